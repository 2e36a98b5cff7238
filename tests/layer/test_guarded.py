"""Stores behind a breaker: what counts, what passes, who probes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from beastmode.breaker import Breaker
from beastmode.errors import (
    BreakerOpen,
    CapacityError,
    ClosedError,
    PreconditionFailed,
    RequestError,
    StoreCorrupt,
    StoreError,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.stores.base import (
    AsyncStore,
    Change,
    FeedListener,
    FeedStore,
    Query,
    Store,
    StoreHealth,
    Target,
    deadline_in,
)
from beastmode.stores.documents import Document, Set
from beastmode.stores.guarded import GuardedAsyncStore, GuardedStore
from beastmode.stores.probing import Prober, judge_health
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore
from layer.faulty_store import FaultyStore
from support import FakeClock


class Bench:
    """A store that fails on demand behind a breaker, called by threads or by coroutines."""

    def __init__(self, inner: SQLiteStore, *, is_async: bool) -> None:
        self.clock = FakeClock()
        self.breaker = Breaker(timer=self.clock, jitter=0.0, rng=random.Random(1))
        self.faulty = FaultyStore(inner)
        self.store = GuardedStore(self.faulty, self.breaker)
        self.bridge = ThreadedAsyncStore(self.faulty)
        self.async_store = GuardedAsyncStore(self.bridge, self.breaker)
        self.is_async = is_async

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        if not self.is_async:
            return getattr(self.store, name)(*args, **options)

        async def ask() -> Any:
            return await getattr(self.async_store, name)(*args, **options)

        return asyncio.run(ask())

    def fail(self, error: Exception, times: int = 5, **options: Any) -> None:
        self.faulty.down = error
        for _ in range(times):
            with pytest.raises(type(error)):
                self.call("get", "users/1", **options)
        self.faulty.down = None


@pytest.fixture(params=[False, True], ids=["threads", "coroutines"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with SQLiteStore(":memory:") as inner:
        inner.commit([Set("users/1", {"n": 1})])
        bench = Bench(inner, is_async=request.param)
        yield bench
        bench.bridge.shut_down()


CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("get", ("users/1",)),
    ("get_many", (["users/1"],)),
    ("query", (Query("users"),)),
    ("commit", ([Set("users/1", {"n": 2})],)),
]


def test_they_are_stores(bench: Bench) -> None:
    assert isinstance(bench.store, Store)
    assert isinstance(bench.async_store, AsyncStore)


@pytest.mark.parametrize(("name", "args"), CALLS)
def test_every_call_counts_and_is_refused_at_once(
    bench: Bench, name: str, args: tuple[Any, ...]
) -> None:
    bench.faulty.down = StoreUnavailable("connection refused")
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="^connection refused$"):
            bench.call(name, *args)
    assert bench.breaker.state == "open"
    asked = bench.faulty.asked
    for other, its_args in CALLS:
        with pytest.raises(BreakerOpen, match=r"connection refused.*next try in 0\.50 s") as caught:
            bench.call(other, *its_args)
        assert caught.value.retry_after_s == 0.5
    assert bench.faulty.asked == asked
    bench.faulty.down = None
    bench.clock.advance(0.5)
    assert [bool(bench.call(name, *args)) for _ in range(2)] == [True, True]
    assert bench.breaker.signal().ok


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("gone"),
        StoreTimeout("no answer"),
    ],
    ids=repr,
)
def test_what_counts(bench: Bench, error: Exception) -> None:
    bench.fail(error)
    assert bench.breaker.state == "open"


@pytest.mark.parametrize(
    "error",
    [
        WriteRejected("too large"),
        StoreRefused("permission denied"),
        PreconditionFailed("exists"),
        RequestError("no path"),
        StoreError("no such file"),
        StoreCorrupt("unreadable"),
        CapacityError("too many calls wait"),
        BreakerOpen("of an inner breaker", 1.0),
        ValueError("a bug"),
    ],
    ids=repr,
)
def test_what_does_not_count(bench: Bench, error: Exception) -> None:
    bench.fail(error, 30)
    assert bench.breaker.state == "closed"
    assert bench.breaker.signal().failures_in_row == 0


def test_a_refusal_with_a_reason_is_an_answer(bench: Bench) -> None:
    bench.fail(StoreUnavailable("gone"), 4)
    bench.fail(PreconditionFailed("exists"), 1)
    bench.fail(StoreUnavailable("gone"), 4)
    assert bench.breaker.state == "closed"


def test_a_store_that_refuses_everything_serves(bench: Bench) -> None:
    bench.fail(StoreUnavailable("gone"))
    bench.clock.advance(0.5)
    bench.fail(StoreRefused("permission denied"), 2)
    assert bench.breaker.state == "closed"


def test_a_refused_probe_of_health_is_an_answer(bench: Bench) -> None:
    bench.fail(StoreUnavailable("gone"))
    bench.clock.advance(0.5)
    bench.faulty.down = StoreRefused("no permission to read _bm/health")
    for _ in range(2):
        health = bench.call("health")
        assert not health.ok
        assert health.error is bench.faulty.down
    assert bench.breaker.state == "closed"
    bench.faulty.down = None
    assert bench.call("get", "users/1").exists


@pytest.mark.parametrize(
    "error", [StoreTimeout("late"), StoreError("disk"), ClosedError("closed"), None], ids=repr
)
def test_a_probe_that_failed_otherwise_is_a_failure(error: Exception | None) -> None:
    clock = FakeClock()
    breaker = Breaker(timer=clock, jitter=0.0)
    for _ in range(5):
        breaker.failed(breaker.admit(), StoreUnavailable("gone"))
    clock.advance(0.5)
    permit = breaker.admit_probe()
    assert permit is not None
    judge_health(
        breaker, permit, StoreHealth(ok=False, latency_s=0.0, detail="it says why", error=error)
    )
    assert breaker.state == "open"
    last = "StoreUnavailable: it says why" if error is None else f"{type(error).__name__}: {error}"
    assert breaker.signal().last_error == last


def test_a_hurried_caller_does_not_open_it(bench: Bench) -> None:
    for _ in range(10):
        bench.fail(StoreTimeout("no answer"), 1, deadline=deadline_in(0.2))
    assert bench.breaker.state == "closed"
    bench.fail(StoreTimeout("no answer"), 5, deadline=deadline_in(60))
    assert bench.breaker.state == "open"


async def test_a_cancelled_call_does_not_count() -> None:
    class Endless(ThreadedAsyncStore):
        async def get(self, path: str, *, deadline: float | None = None) -> Document:
            await asyncio.Event().wait()
            raise AssertionError

    clock = FakeClock()
    with SQLiteStore(":memory:") as inner:
        store = GuardedAsyncStore(Endless(inner), Breaker(timer=clock))
        for _ in range(10):
            task = asyncio.create_task(store.get("users/1"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert store.breaker.signal() == Breaker(timer=clock).signal()


def test_a_cancelled_probe_leaves_room_for_the_next(bench: Bench) -> None:
    bench.fail(StoreUnavailable("gone"))
    bench.clock.advance(0.5)
    bench.fail(ValueError("a bug"), 3)
    assert bench.call("get", "users/1").exists


def test_health_is_the_breakers_while_it_is_not_closed(bench: Bench) -> None:
    assert bench.call("health").ok
    bench.fail(StoreUnavailable("gone"))
    health = bench.call("health")
    assert not health.ok
    assert "5 failures in a row" in health.detail
    assert "StoreUnavailable: gone" in health.detail
    bench.clock.advance(0.5)
    assert bench.call("health").ok
    assert bench.breaker.signal().state == "half-open"
    assert bench.call("health").ok
    assert bench.breaker.signal().ok


def test_failing_probes_of_health_open_it(bench: Bench) -> None:
    bench.faulty.down = StoreUnavailable("gone")
    for _ in range(5):
        assert not bench.call("health").ok
    assert bench.breaker.state == "open"


def test_streams_pass_and_bring_the_next_try_forward() -> None:
    with SQLiteStore(":memory:") as inner:
        bench = Bench(inner, is_async=False)
        bench.fail(StoreUnavailable("gone"))
        heard: list[Change] = []
        came = threading.Event()

        def on_change(change: Change) -> None:
            heard.append(change)
            came.set()

        bench.clock.advance(0.2)
        assert bench.breaker.next_probe_s() == pytest.approx(0.3)
        subscription = bench.store.watch(Target(), on_change)
        inner.commit([Set("users/2", {"n": 2})])
        assert came.wait(10)
        subscription.close()
        assert heard[0].path == "users/2"
        assert bench.breaker.next_probe_s() == 0.0
        bench.bridge.shut_down()


def test_what_a_store_offers_beyond_the_protocol_passes() -> None:
    with SQLiteStore(":memory:") as inner:
        guarded = GuardedStore(inner, Breaker())
        assert guarded.path == inner.path
        assert not hasattr(guarded, "open_feed")
        assert not isinstance(guarded, FeedStore)
        with pytest.raises(AttributeError):
            _ = guarded.nothing_like_it
        with pytest.raises(AttributeError):
            _ = guarded._path


class _Feeding(SQLiteStore):
    listener: Any = None

    def open_feed(self, listener: FeedListener) -> Any:
        self.listener = listener
        return "a feed"


def test_feeds_pass_and_bring_the_next_try_forward() -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def on_change(self, change: Change) -> None:
            self.heard.append(change)

        def on_current(self, target: Target) -> None:
            self.heard.append(target)

        def on_doubt(self, targets: Sequence[Target] | None, why: str) -> None:
            self.heard.append(why)

        def on_unknown(self, paths: Sequence[str], why: str) -> None:
            self.heard.append((*paths, why))

    clock = FakeClock()
    breaker = Breaker(timer=clock, jitter=0.0)
    with _Feeding(":memory:") as inner:
        store = GuardedStore(inner, breaker)
        assert isinstance(store, FeedStore)
        listener = Listener()
        assert store.open_feed(listener) == "a feed"
        for event in ("on_doubt", "on_current", "on_unknown", "on_change"):
            for _ in range(5):
                breaker.failed(breaker.admit(), StoreUnavailable("gone"))
            clock.advance(0.2)
            match event:
                case "on_doubt":
                    inner.listener.on_doubt(None, "silence")
                    assert breaker.next_probe_s() == pytest.approx(0.3)
                    clock.advance(0.3)
                case "on_current":
                    inner.listener.on_current(Target())
                case "on_unknown":
                    inner.listener.on_unknown(["users/1"], "unreadable")
                case _:
                    inner.listener.on_change(Change(Document("users/1", None, 1)))
            assert breaker.next_probe_s() == 0.0
            for _ in range(2):
                permit = breaker.admit_probe()
                assert permit is not None
                breaker.succeeded(permit)
            clock.advance(60.0)
        change = Change(Document("users/1", None, 1))
        assert listener.heard == ["silence", Target(), ("users/1", "unreadable"), change]
        told = {name for name in vars(FeedListener) if name.startswith("on_")}
        assert told <= set(dir(inner.listener)), "whatever a feed tells is passed on"


# -- who probes ---------------------------------------------------------------------------------


def eventually(check: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


def probing_threads() -> int:
    return sum(thread.name == "beastmode-probe" for thread in threading.enumerate())


def test_probes_are_made_in_the_background_until_it_closes() -> None:
    answers = [StoreHealth(ok=False, latency_s=0.0, detail="still gone")] * 3
    breaker = Breaker(open_s=0.01, longest_open_s=0.02, user_grace_s=60.0)
    prober = Prober(
        breaker, lambda: answers.pop() if answers else StoreHealth(ok=True, latency_s=0.0)
    )
    before = probing_threads()
    for _ in range(3):
        for _ in range(5):
            breaker.failed(breaker.admit(), StoreUnavailable("gone"))
        eventually(lambda: breaker.state == "closed" and probing_threads() == before)
    assert prober.probes == 3 + 3 * 2
    assert breaker.signal().refused == 0
    prober.close()


def test_a_probe_that_raises_counts_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    def ask() -> StoreHealth:
        if breaker.signal().opened < 3:
            raise RuntimeError("a broken store")
        return StoreHealth(ok=True, latency_s=0.0)

    breaker = Breaker(open_s=0.01, longest_open_s=0.02)
    prober = Prober(breaker, ask)
    for _ in range(5):
        breaker.failed(breaker.admit(), StoreUnavailable("gone"))
    eventually(lambda: breaker.state == "closed")
    assert breaker.signal().opened == 3
    assert "health probe of a store raised" in caplog.text
    prober.close()


def test_a_closed_prober_makes_no_more_probes() -> None:
    breaker = Breaker(open_s=0.01, longest_open_s=0.01)
    before = probing_threads()
    prober = Prober(breaker, lambda: StoreHealth(ok=False, latency_s=0.0, detail="gone"))
    for _ in range(5):
        breaker.failed(breaker.admit(), StoreUnavailable("gone"))
    eventually(lambda: prober.probes > 2)
    prober.close()
    eventually(lambda: probing_threads() == before)
    made = prober.probes
    time.sleep(0.05)
    assert prober.probes == made


def test_without_a_thread_a_users_call_is_the_probe(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    clock = FakeClock()
    breaker = Breaker(timer=clock, jitter=0.0, user_grace_s=1.0)
    prober = Prober(breaker, lambda: StoreHealth(ok=True, latency_s=0.0))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(5):
        breaker.failed(breaker.admit(), StoreUnavailable("gone"))
    assert "no thread" in caplog.text
    clock.advance(1.5)
    breaker.succeeded(breaker.admit())
    assert breaker.state == "half-open"
    prober.close()
