"""Real-time sync as a component: callbacks, plain stores, stores with feeds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from beastmode.cache import BeastModeCache
from beastmode.cache.lease import Lease
from beastmode.errors import BufferFullError, ClosedError, ConfigError, RequestError
from beastmode.stores.base import Change, Filter, Query, Target
from beastmode.stores.documents import Delete, Document, Set
from beastmode.stores.sqlite import SQLiteStore
from beastmode.sync import BeastModeRealTimeSync
from beastmode.sync.subscribers import CallbackQueue, Subscribers, SyncSubscription
from played_feed import PlayedFeed, Ranked
from store_support import wait_until
from support import FakeClock


def change(path: str, version: int, **fields: Any) -> Change:
    return Change(Document(path, fields, version))


def subscription(priority: int = 0, target: Target | None = None) -> SyncSubscription:
    one = SyncSubscription(target or Target(), lambda _change: None, priority, lambda _one: None)
    one.live = True
    return one


# -- what is told when -------------------------------------------------------------------------


def test_quiet_changes_go_out_at_once_and_bursts_at_the_interval() -> None:
    queue, one = CallbackQueue(0.1), subscription()
    first, *burst = (change("u/a", n) for n in range(1, 5))
    assert queue.take(0.0) == inf
    queue.offer(one, first, 0.0)
    assert queue.take(0.0) == (one, first)
    for each in burst:
        queue.offer(one, each, 0.05)
    other = change("u/b", 9)
    queue.offer(one, other, 0.05)
    assert queue.take(0.05) == (one, other), "another document does not wait"
    assert queue.take(0.05) == pytest.approx(0.1)
    assert queue.take(0.1) == (one, burst[-1]), "the newest state, once"
    assert one.merged == 2
    quiet = change("u/a", 6)
    queue.offer(one, quiet, 0.3)
    assert queue.take(0.3) == (one, quiet)
    assert queue.take(1.0) == inf
    assert len(queue) == 0
    assert not queue._rest_until
    assert not queue._rests


def test_an_older_change_does_not_replace_a_newer_one_that_waits() -> None:
    queue, one = CallbackQueue(0.1), subscription()
    newer = change("u/a", 2)
    queue.offer(one, newer, 0.0)
    queue.offer(one, change("u/a", 1), 0.0)
    assert queue.take(0.0) == (one, newer)


def test_what_is_told_replaces_a_deletion_that_was_only_inferred() -> None:
    queue, one = CallbackQueue(0.1), subscription()
    queue.offer(one, Change(Document("u/a", None, 2), inferred=True), 0.0)
    queue.offer(one, change("u/a", 1), 0.0)
    assert queue.take(0.0) == (one, change("u/a", 1))


def test_the_highest_priority_is_told_first() -> None:
    queue = CallbackQueue(0.1)
    low, high = subscription(0), subscription(5)
    for n in range(3):
        queue.offer(low, change(f"u/{n}", 1), 0.0)
    queue.offer(high, change("u/9", 1), 0.0)
    order = [queue.take(0.0) for _ in range(4)]
    assert [one[1].path for one in order] == ["u/9", "u/0", "u/1", "u/2"]  # type: ignore[index]


def test_what_waits_is_bounded_and_what_is_missed_is_counted() -> None:
    queue, one = CallbackQueue(0.1, most=2), subscription()
    assert queue.offer(one, change("u/a", 1), 0.0)
    assert queue.offer(one, change("u/b", 1), 0.0)
    assert not queue.offer(one, change("u/c", 1), 0.0)
    assert queue.offer(one, change("u/a", 2), 0.0), "there is room for what waits already"
    assert (one.missed, one.merged) == (1, 1)
    queue.forget(one)
    assert queue.take(0.0) == inf


def test_a_query_hears_of_what_is_in_it_and_leaves_it() -> None:
    one = subscription(target=Target(query=Query("u", (Filter("age", ">", 17),))))
    told = [
        one.wants(change("u/a", 1, age=5)),
        one.wants(change("u/a", 2, age=20)),
        one.wants(change("u/a", 3, age=5)),
        one.wants(change("u/a", 4, age=6)),
        one.wants(change("u/a", 5, age=30)),
        one.wants(Change(Document("u/a", None, 6))),
        one.wants(Change(Document("u/a", None, 7))),
    ]
    assert told == [False, True, True, False, True, True, False]


# -- the thread that calls ---------------------------------------------------------------------


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def subscribers(errors: list[BaseException]) -> Iterator[Subscribers]:
    made = Subscribers(interval_s=0.02, on_end=lambda _one: None, on_error=errors.append, most=5)
    yield made
    made.close()


def test_a_stuck_callback_stops_nothing_but_callbacks(
    subscribers: Subscribers, errors: list[BaseException]
) -> None:
    go, entered = threading.Event(), threading.Event()
    seen: list[str] = []

    def stuck(each: Change) -> None:
        entered.set()
        go.wait(10)
        seen.append(each.path)

    one = subscribers.add(Target(collection="u"), stuck, 0)
    assert not one.active
    subscribers.offer(change("u/early", 1))
    subscribers.started(Target(collection="u"))
    assert one.active
    subscribers.offer(change("u/0", 1))
    assert entered.wait(10)
    began = time.monotonic()
    for n in range(1, 100):
        subscribers.offer(change(f"u/{n}", 1))
    assert time.monotonic() - began < 1
    assert one.missed == 94
    assert len(errors) == 94
    assert isinstance(errors[0], BufferFullError)
    go.set()
    wait_until(lambda: len(seen) == 6)
    assert "u/early" not in seen, "it was there before"
    assert subscribers.counts() == (6, 0, 0, 94)


def test_a_callback_that_raises_is_counted_and_called_again(
    subscribers: Subscribers, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_change: Change) -> None:
        raise ValueError("on purpose")

    one = subscribers.add(Target(document="u/a"), raises, 0)
    subscribers.started(Target(document="u/a"))
    subscribers.offer(change("u/a", 1))
    subscribers.offer(change("u/b", 1))
    wait_until(lambda: one.errors == 1)
    subscribers.offer(change("u/a", 2))
    wait_until(lambda: one.errors == 2)
    assert "ValueError: on purpose" in caplog.text
    one.close()
    assert subscribers.counts()[:2] == (2, 2), "what has ended is counted still"
    assert len(subscribers) == 0


def test_a_closed_subscription_is_not_called(subscribers: Subscribers) -> None:
    seen: list[Change] = []
    one = subscribers.add(Target(), seen.append, 0)
    other = subscribers.add(Target(), seen.append, 0)
    subscribers.started(Target())
    one.close()
    one.close()
    subscribers.offer(change("u/a", 1))
    wait_until(lambda: len(seen) == 1)
    assert (one.active, other.active) == (False, True)
    subscribers.close()
    subscribers.offer(change("u/a", 2))
    assert len(seen) == 1
    with pytest.raises(ClosedError):
        subscribers.add(Target(), print, 0)


# -- a store that is followed as a whole -------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[tuple[SQLiteStore, BeastModeCache, BeastModeRealTimeSync]]:
    with SQLiteStore(":memory:") as store:
        cache = BeastModeCache(store)
        sync = BeastModeRealTimeSync(store, cache, lease=Lease, interval_s=0.01)
        yield store, cache, sync
        sync.close()
        cache.close()


def test_a_plain_store_is_followed_as_a_whole(plain: Any) -> None:
    store, cache, sync = plain
    store.commit([Set("u/a", {"n": 0})])
    cache.get("u/a")
    assert not sync.active
    sync.start()
    assert sync.active
    assert sync.follows_everything
    one, users, grown, everything = [], [], [], []
    sync.subscribe("u/a", one.append)
    sync.subscribe("u", users.append)
    sync.subscribe(Query("u", (Filter("n", ">", 17),)), grown.append)
    sync.subscribe(Target(), everything.append)
    sync.configure(interval_s=0.005)
    store.commit([Set("u/a", {"n": 1}), Set("u/b", {"n": 20}), Set("v/a", {"n": 2})])
    wait_until(lambda: len(everything) == 3)
    wait_until(lambda: (len(one), len(users), len(grown)) == (1, 2, 1))
    assert cache.get("u/a").document.data == {"n": 1}
    store.commit([Delete("u/b")])
    wait_until(lambda: len(grown) == 2)
    report = sync.get_stats()
    assert (report.active, report.changes, report.failures) == (True, 4, 0)
    assert report.callbacks >= 9
    sync.close()
    sync.tick()
    assert not sync.active
    for call in (sync.start, lambda: sync.subscribe("u", print)):
        with pytest.raises(ClosedError):
            call()


def test_bad_subscriptions_are_refused(plain: Any) -> None:
    _, _, sync = plain

    async def later(_change: Change) -> None:
        pass

    for what, callback, options in (
        (7, print, {}),
        ("u/a", None, {}),
        ("u/a", later, {}),
        ("u//a", print, {}),
        ("u", print, {"priority": "high"}),
        ("u", print, {"priority": True}),
    ):
        with pytest.raises(RequestError):
            sync.subscribe(what, callback, **options)
    assert sync.get_stats().callbacks == 0


class Offering:
    """A store with a feed that hears nothing."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.feed: Any = None

    def open_feed(self, listener: Any) -> Any:
        self.feed = PlayedFeed(listener, self.clock)
        return self.feed


@pytest.mark.parametrize("with_error", [True, False])
def test_a_store_with_a_feed_is_followed_by_it(
    clock: FakeClock, errors: list[BaseException], with_error: bool
) -> None:
    store: Any = Offering(clock)
    sync = BeastModeRealTimeSync(
        store, Ranked(), lease=Lease, collections=["u", Query("w")], on_error=errors.append
    )
    seen: list[Change] = []
    one = sync.subscribe("u", seen.append)
    sync.start()
    assert sorted(store.feed.asked) == sorted(["u", Target(query=Query("w")).key])
    assert sync.active
    assert not sync.follows_everything
    assert not one.active
    store.feed.current("u")
    assert one.active
    late = sync.subscribe("u", seen.append)
    assert late.active, "it is followed already"
    with pytest.raises(RequestError, match="as a whole"):
        sync.subscribe(Target(), print)
    if with_error:
        store.feed.error = OSError("gone")
    store.feed.lose("u")
    report = sync.get_stats()
    assert (report.doubts, report.failures) == (1, int(with_error))
    assert errors == [], "not yet: the feed may be locked"
    sync.tick()
    assert len(errors) == int(with_error)
    assert (report.collections, report.current, report.documents) == (2, 0, 0)
    one.close()
    late.close()
    sync.tick()
    assert "u" in store.feed.asked, "the settings still want it"
    sync.close()


class Locked(PlayedFeed):
    """A feed that tells under its lock, and closes under it."""

    def __init__(self, listener: Any, clock: FakeClock) -> None:
        super().__init__(listener, clock)
        self.lock = threading.RLock()

    def lose(self, *keys: str) -> None:
        with self.lock:
            super().lose(*keys)

    def close(self) -> None:
        if not self.lock.acquire(timeout=5):
            raise AssertionError("the feed cannot be closed: who it tells waits for that")
        with self.lock:
            super().close()
        self.lock.release()


def test_a_hook_that_waits_for_the_close_of_the_feed_ends(clock: FakeClock) -> None:
    store: Any = Offering(clock)

    def open_feed(listener: Any) -> Any:
        store.feed = Locked(listener, clock)
        return store.feed

    store.open_feed = open_feed
    closed: list[bool] = []

    def close_elsewhere(_error: BaseException) -> None:
        closing = threading.Thread(target=sync.close)
        closing.start()
        closing.join(2)
        closed.append(not closing.is_alive())

    sync = BeastModeRealTimeSync(
        store, Ranked(), lease=Lease, collections=["u"], on_error=close_elsewhere
    )
    sync.start()
    store.feed.error = OSError("gone")
    losing = threading.Thread(target=store.feed.lose, args=("u",))
    losing.start()
    losing.join(10)
    sync.tick()
    assert closed == [True]
    assert not store.feed.active


def test_errors_that_came_up_before_the_end_are_told_by_it(
    clock: FakeClock, errors: list[BaseException]
) -> None:
    store: Any = Offering(clock)
    sync = BeastModeRealTimeSync(
        store, Ranked(), lease=Lease, collections=["u"], on_error=errors.append
    )
    sync.start()
    store.feed.error = OSError("gone")
    for _ in range(101):
        store.feed.lose("u")
    sync.close()
    assert len(errors) == 100, "the newest"
    sync.close()
    assert len(errors) == 100


def test_what_does_not_fit_a_store_with_a_feed(clock: FakeClock) -> None:
    store: Any = Offering(clock)
    with pytest.raises(ConfigError):
        BeastModeRealTimeSync(store, None, lease=Lease, target=Target(collection="u"))
