"""`BeastModeCache`: reads, freshness, staleness, rules, invalidation, settings, its end."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from beastmode.cache import Answer, BeastModeCache, CacheReport, Rule
from beastmode.errors import (
    CacheError,
    ClosedError,
    ConfigError,
    ForkedError,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores.base import Change, deadline_in
from beastmode.stores.documents import Delete, Document, Set
from beastmode.stores.sqlite import SQLiteStore
from scripted import WAIT_S, ScriptedAsyncStore, ScriptedStore
from support import FakeClock


@pytest.fixture
def store() -> ScriptedStore:
    store = ScriptedStore()
    for number in range(10):
        store.put(f"users/{number}", n=number)
    return store


@pytest.fixture
def make(store: ScriptedStore, clock: FakeClock) -> Iterator[Any]:
    caches: list[BeastModeCache] = []

    def make(*args: Any, **settings: Any) -> BeastModeCache:
        settings.setdefault("timer", clock)
        cache = BeastModeCache(*(args or (store,)), **settings)
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        cache.close()


# -- over the real store ----------------------------------------------------------------------


def test_reads_through_a_real_store() -> None:
    store = SQLiteStore(":memory:")
    cache = BeastModeCache(store)
    try:
        (version,) = store.commit([Set("users/1", {"name": "Ada"})])
        assert cache.lookup("users/1") is None
        first = cache.get("users/1")
        assert first.source == "store"
        assert first.document.data == {"name": "Ada"}
        assert first.document.version == version
        second = cache.get("users/1")
        assert second == Answer(first.document, "hit")
        assert second.document is first.document is cache.lookup("users/1")

        missing = cache.get("users/2")
        assert not missing.document.exists
        assert cache.get("users/2").source == "hit"
        store.commit([Set("users/2", {"name": "Bo"})])
        assert cache.invalidate("users/2") == 1
        assert cache.get("users/2").document.data == {"name": "Bo"}

        store.commit([Delete("users/2")])
        cache.invalidate("users/2")
        assert not cache.get("users/2").document.exists
        many = cache.get_many(["users/3", "users/1", "users/2", "users/3"])
        assert [answer.document.path for answer in many] == [
            "users/3",
            "users/1",
            "users/2",
            "users/3",
        ]
        assert [answer.source for answer in many] == ["store", "hit", "hit", "store"]
    finally:
        cache.close()
        store.close()


async def test_async_reads_without_an_async_store_do_not_block_the_loop() -> None:
    store = SQLiteStore(":memory:")
    cache = BeastModeCache(store)
    try:
        store.commit([Set("users/1", {"name": "Ada"})])
        answers = await asyncio.gather(*(cache.aget("users/1") for _ in range(20)))
        assert {answer.document.version for answer in answers} == {answers[0].document.version}
        assert cache.get_stats().loads == 1
        assert [a.source for a in await cache.aget_many(["users/1", "users/2"])] == ["hit", "store"]
    finally:
        await asyncio.to_thread(cache.close)
        store.close()


async def test_a_hit_never_suspends(make: Any, store: ScriptedStore) -> None:
    cache = make(store, ScriptedAsyncStore(store))
    await cache.aget("users/1")
    for read in (cache.aget("users/1"), cache.aget_many(["users/1"])):
        with pytest.raises(StopIteration):  # it ended at its first step
            read.send(None)


# -- freshness ---------------------------------------------------------------------------------


def test_a_document_is_fresh_for_its_ttl(make: Any, clock: FakeClock) -> None:
    cache = make(ttl_s=10, max_stale_s=5)
    cache.get("users/1")
    clock.advance(9.99)
    assert cache.lookup("users/1") is not None
    clock.advance(0.01)
    assert cache.lookup("users/1") is None
    assert cache.get("users/1").source == "store"
    assert cache.get("users/1").source == "hit"


def test_lookup_takes_the_time_from_the_caller(make: Any, clock: FakeClock) -> None:
    cache = make(ttl_s=10, max_stale_s=5)
    cache.get("users/1")
    assert cache.lookup("users/1", None, clock.now + 9) is not None
    assert cache.lookup("users/1", None, clock.now + 10) is None


def test_freshness_counts_from_the_beginning_of_the_load(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    cache = make(ttl_s=10)
    held = store.hold("users/1")
    reader = threading.Thread(target=cache.get, args=("users/1",))
    reader.start()
    held.wait_entered()
    clock.advance(6)
    held.release()
    reader.join(WAIT_S)
    clock.advance(3.9)
    assert cache.lookup("users/1") is not None
    clock.advance(0.2)
    assert cache.lookup("users/1") is None


@pytest.mark.parametrize("forever", [None, math.inf])
def test_a_ttl_may_be_endless(make: Any, clock: FakeClock, forever: float | None) -> None:
    cache = make(ttl_s=forever, negative_ttl_s=forever, ttl_jitter=0.5)
    cache.get_many(["users/1", "none/1"])
    clock.advance(1e9)
    assert cache.lookup("users/1") is not None
    assert cache.lookup("none/1") is not None


def test_tombstones_have_their_own_ttl(make: Any, store: ScriptedStore, clock: FakeClock) -> None:
    cache = make(ttl_s=100, negative_ttl_s=10)
    assert not cache.get("none/1").document.exists
    clock.advance(9)
    assert cache.get("none/1").source == "hit"
    assert cache.get_stats().negative_hits == 1
    clock.advance(1)
    assert cache.get("none/1").source == "store"


def test_tombstones_need_not_be_kept(make: Any, store: ScriptedStore) -> None:
    cache = make(negative_ttl_s=0)
    assert [cache.get("none/1").source for _ in range(2)] == ["store", "store"]
    cache.get("users/1")
    store.delete("users/1")
    assert cache.get("users/1").source == "hit"
    assert cache.set(store.documents["users/1"]) is False
    assert cache.lookup("users/1") is None, "a known deletion must not leave the old document"


def test_jitter_only_shortens(make: Any, store: ScriptedStore, clock: FakeClock) -> None:
    cache = make(ttl_s=100, ttl_jitter=0.5)
    cache.get_many(list(store.documents))
    clock.advance(49.9)
    assert all(cache.lookup(path) for path in store.documents)
    clock.advance(50.1)
    assert not any(cache.lookup(path) for path in store.documents)


# -- staleness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreTimeout("late")])
def test_an_overdue_document_is_served_while_the_store_fails_and_no_longer(
    make: Any, store: ScriptedStore, clock: FakeClock, error: Exception
) -> None:
    cache = make(ttl_s=10, max_stale_s=5)
    document = cache.get("users/1").document
    clock.advance(14.9)
    store.error = error
    assert cache.get("users/1") == Answer(document, "stale")
    assert cache.get_many(["users/1"]) == [Answer(document, "stale")]
    assert cache.lookup("users/1") is None
    clock.advance(0.1)
    with pytest.raises(type(error), match=str(error)):
        cache.get("users/1")
    assert cache.get_stats().stale_served == 2
    store.error = None
    assert cache.get("users/1").source == "store"


def test_other_errors_are_never_hidden_by_a_stale_document(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    cache = make(ttl_s=10)
    cache.get("users/1")
    clock.advance(11)
    store.error = PermissionError("not yours")
    with pytest.raises(PermissionError):
        cache.get("users/1")


async def test_async_reads_serve_stale_too(make: Any, store: ScriptedStore, clock: Any) -> None:
    cache = make(store, ScriptedAsyncStore(store), ttl_s=10, max_stale_s=5)
    await cache.aget("users/1")
    clock.advance(12)
    store.error = StoreUnavailable("down")
    assert (await cache.aget("users/1")).source == "stale"
    clock.advance(3)
    with pytest.raises(StoreUnavailable):
        await cache.aget("users/1")


def wait_until(condition: Any) -> None:
    """Wait for another thread to get there."""
    tick = threading.Event()
    end = deadline_in(WAIT_S)
    while not condition():
        assert deadline_in(0) < end, "it did not come to pass"
        tick.wait(0.001)


def test_revalidation_serves_at_once_and_refreshes_once(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    cache = make(ttl_s=10, max_stale_s=5, stale_while_revalidate_s=3)
    old = cache.get("users/1").document
    new = store.put("users/1", n="new")
    clock.advance(12)
    held = store.hold("users/1")
    assert cache.get("users/1") == Answer(old, "stale")
    held.wait_entered()
    assert [cache.get("users/1").source for _ in range(5)] == ["stale"] * 5
    assert store.loads_of("users/1") == 2
    held.release()
    wait_until(lambda: cache.lookup("users/1") is not None)
    assert cache.get("users/1") == Answer(new, "hit")
    assert cache.get_stats().refreshes == 1

    clock.advance(13)  # beyond the window: the reader waits for the load
    assert cache.get("users/1").source == "store"


async def test_async_revalidation(make: Any, store: ScriptedStore, clock: FakeClock) -> None:
    cache = make(
        store, ScriptedAsyncStore(store), ttl_s=10, max_stale_s=5, stale_while_revalidate_s=5
    )
    old = (await cache.aget("users/1")).document
    new = store.put("users/1", n="new")
    clock.advance(12)
    held = store.hold("users/1")
    assert [(await cache.aget("users/1")) for _ in range(3)] == [Answer(old, "stale")] * 3
    while not held.entered.is_set():
        await asyncio.sleep(0)
    held.release()
    while cache.lookup("users/1") is None:
        await asyncio.sleep(0)
    assert await cache.aget("users/1") == Answer(new, "hit")
    assert store.loads_of("users/1") == 2


def test_a_failing_refresh_is_counted_and_reported(
    make: Any, store: ScriptedStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[BaseException] = []

    def hook(error: BaseException) -> None:
        seen.append(error)
        raise ValueError("the hook is broken as well")

    cache = make(ttl_s=10, max_stale_s=5, stale_while_revalidate_s=5, on_error=hook)
    cache.get("users/1")
    clock.advance(11)
    store.error = error = StoreUnavailable("down")
    assert cache.get("users/1").source == "stale"
    wait_until(lambda: cache.get_stats().hook_errors == 1)
    assert seen == [error]
    assert cache.get_stats().background_errors == 1
    assert "on_error raised" in caplog.text
    store.error = None
    assert cache.get("users/1").source == "stale"
    wait_until(lambda: cache.lookup("users/1") is not None)


def test_background_refreshes_are_bounded(
    make: Any, store: ScriptedStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beastmode.cache.table.MAX_REFRESHES", 2)
    cache = make(ttl_s=10, max_stale_s=5, stale_while_revalidate_s=5)
    paths = [f"users/{number}" for number in range(4)]
    cache.get_many(paths)
    clock.advance(11)
    held = [store.hold(path) for path in paths[:2]]
    assert [cache.get(path).source for path in paths] == ["stale"] * 4
    report = cache.get_stats()
    assert (report.refreshes, report.refreshes_skipped, report.in_flight) == (2, 2, 2)
    for hold in held:
        hold.release()
    wait_until(lambda: cache.get_stats().in_flight == 0)
    assert cache.get(paths[3]).source == "stale"
    wait_until(lambda: cache.lookup(paths[3]) is not None)


def test_doubt_makes_everything_stale_at_once(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    store.put("rooms/1", n=1)
    cache = make(ttl_s=100, max_stale_s=5)
    cache.get_many(["users/1", "users/2", "rooms/1"])
    cache.mark_unverified("users")
    assert cache.lookup("users/1") is None
    assert cache.lookup("rooms/1") is not None
    store.error = StoreUnavailable("down")
    clock.advance(4.9)
    assert cache.get("users/1").source == "stale"
    clock.advance(0.1)
    with pytest.raises(StoreUnavailable):
        cache.get("users/1")
    store.error = None
    assert cache.get("users/1").source == "store"
    assert cache.get("users/1").source == "hit"
    cache.mark_unverified()
    assert not any(cache.lookup(path) for path in ("users/1", "users/2", "rooms/1"))


# -- many --------------------------------------------------------------------------------------


def test_get_many_asks_once_for_what_is_missing(make: Any, store: ScriptedStore) -> None:
    cache = make()
    cache.get("users/1")
    paths = ["users/3", "users/1", "users/2", "users/3"]
    answers = cache.get_many(paths)
    assert [answer.document.path for answer in answers] == paths
    assert store.batches == [["users/3", "users/2"]]
    assert cache.get_many([]) == []
    assert cache.get_many(iter(paths)) == [Answer(a.document, "hit") for a in answers]
    assert store.gets == ["users/1"]


def test_get_many_waits_for_what_others_load(make: Any, store: ScriptedStore) -> None:
    cache = make()
    held = store.hold("users/1")
    first = threading.Thread(target=cache.get, args=("users/1",))
    first.start()
    held.wait_entered()
    got: list[list[Answer]] = []
    second = threading.Thread(target=lambda: got.append(cache.get_many(["users/2", "users/1"])))
    second.start()
    wait_until(lambda: cache.lookup("users/2") is not None)
    assert not got
    held.release()
    second.join(WAIT_S)
    first.join(WAIT_S)
    assert [answer.source for answer in got[0]] == ["store", "store"]
    assert store.batches == [["users/2"]]


def test_get_many_raises_what_cannot_be_served_and_keeps_the_rest(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    cache = make(ttl_s=10, max_stale_s=5)
    cache.get("users/1")
    clock.advance(11)
    store.error = StoreUnavailable("down")
    assert cache.get_many(["users/1"])[0].source == "stale"
    with pytest.raises(StoreUnavailable):
        cache.get_many(["users/1", "users/2"])
    store.error = None
    store.answer = lambda doc: doc if doc.path != "users/4" else Document("users/5", None, 1)
    with pytest.raises(CacheError, match="users/4"):
        cache.get_many(["users/3", "users/4"])
    assert cache.lookup("users/3") is not None


def test_warm_loads_in_chunks_what_is_not_held(make: Any, store: ScriptedStore) -> None:
    cache = make()
    cache.get("users/1")
    paths = [f"things/{number}" for number in range(1200)]
    assert cache.warm(["users/1", *paths]) == 1200
    assert [len(batch) for batch in store.batches] == [499, 500, 201]
    assert cache.warm(iter(paths)) == 0
    with pytest.raises(RequestError):
        cache.warm("users/1")


async def test_awarm(make: Any, store: ScriptedStore) -> None:
    cache = make(store, ScriptedAsyncStore(store))
    assert await cache.awarm(["users/1", "users/2"]) == 2
    assert await cache.awarm(["users/1", "users/2"]) == 0


# -- rules -------------------------------------------------------------------------------------


def test_rules_give_collections_their_own_lives(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    cache = make(
        ttl_s=100,
        max_stale_s=50,
        rules=[
            Rule("sessions", ttl_s=5, max_stale_s=0),
            Rule("users/*/private", ttl_s=20, negative_ttl_s=0),
        ],
    )
    store.put("sessions/1", n=1)
    store.put("users/1/private/a", n=1)
    paths = ["sessions/1", "users/1/private/a", "users/1"]
    cache.get_many(paths)
    clock.advance(5)
    assert [cache.lookup(path) is not None for path in paths] == [False, True, True]
    store.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        cache.get("sessions/1")
    clock.advance(15)
    assert [cache.lookup(path) is not None for path in paths] == [False, False, True]
    assert cache.get("users/1/private/a").source == "stale"


def test_uncacheable_documents_are_always_loaded(make: Any, store: ScriptedStore) -> None:
    cache = make(rules=[Rule("users", cacheable=False)])
    assert [cache.get("users/1").source for _ in range(2)] == ["store", "store"]
    assert cache.set(store.documents["users/1"]) is False
    cache.write_started("users/1")
    cache.write_finished("users/1", store.documents["users/1"])
    assert cache.lookup("users/1") is None
    assert cache.get_stats().engine.currsize == 0


def test_per_user_documents_are_kept_apart(make: Any, store: ScriptedStore) -> None:
    cache = make(rules=[Rule("mail", per_user=True), Rule("*/*/inbox", per_user=True)])
    store.put("mail/1", n=1)
    assert cache.get("mail/1", user="ada").source == "store"
    assert cache.get("mail/1", user="ada").source == "hit"
    assert cache.lookup("mail/1", "ada") is not None
    assert cache.lookup("mail/1", "bo") is None
    assert cache.get("mail/1", user="bo").source == "store"
    assert cache.get("users/1", user="bo").source == "store"
    assert cache.get("users/1").source == "hit"
    for read in (cache.get, cache.lookup, lambda path: cache.get_many([path])):
        for path in ("mail/1", "a/b/inbox/1"):
            with pytest.raises(RequestError, match="user"):
                read(path)
    assert cache.get_many(["mail/1", "users/1"], user="bo")[0].source == "hit"


def test_a_per_user_document_goes_for_every_user(make: Any, store: ScriptedStore) -> None:
    cache = make(rules=[Rule("mail", per_user=True)])
    old = store.put("mail/1", n=1)
    users = [f"user{number}" for number in range(200)]

    def held() -> int:
        return sum(cache.lookup("mail/1", user) is not None for user in users)

    def fill() -> None:
        for user in users:
            cache.get("mail/1", user=user)
        assert held() == 200

    fill()
    assert cache.invalidate("mail/1") == 200
    assert held() == 0
    fill()
    assert cache.invalidate(prefix="mail") == 200
    fill()
    cache.apply_change(Change(old))
    assert held() == 200
    cache.apply_change(Change(store.put("mail/1", n=2)))
    assert held() == 0
    fill()
    cache.write_started("mail/1")
    cache.write_finished("mail/1", store.put("mail/1", n=3))
    assert held() == 0
    assert cache.set(store.documents["mail/1"], user="ada") is True
    assert cache.lookup("mail/1", "ada") is not None
    with pytest.raises(RequestError, match="user"):
        cache.set(store.documents["mail/1"])


def test_the_index_of_users_does_not_outgrow_the_cache(make: Any, store: ScriptedStore) -> None:
    cache = make(max_entries=10, rules=[Rule("mail", per_user=True)])
    store.put("mail/1", n=1)
    for number in range(1000):
        cache.get("mail/1", user=f"user{number}")
    shelf = cache._state.held._shelves["mail/1"]
    assert len(shelf.users) <= 64
    assert cache.invalidate("mail/1") == 10
    del shelf
    cache.clear()
    assert not cache._state.held._shelves


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"collection": "users/1"}, "odd number"),
        ({"collection": ""}, "odd number"),
        ({"collection": "us*"}, "one whole part"),
        ({"collection": 7}, "must be a str"),
        ({"collection": "a", "ttl_s": 0}, "ttl_s of the Rule for 'a' must be positive"),
        ({"collection": "a", "ttl_s": math.nan}, "ttl_s"),
        ({"collection": "a", "ttl_s": "5"}, "ttl_s"),
        ({"collection": "a", "negative_ttl_s": -1}, "negative_ttl_s"),
        ({"collection": "a", "max_stale_s": -1}, "max_stale_s"),
        ({"collection": "a", "cacheable": 1}, "cacheable"),
        ({"collection": "a", "per_user": None}, "per_user"),
    ],
)
def test_bad_rules(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Rule(**settings)


def test_bad_rule_lists(make: Any) -> None:
    with pytest.raises(ConfigError, match="two rules for 'a'"):
        make(rules=[Rule("a"), Rule("a", ttl_s=5)])
    with pytest.raises(ConfigError, match="must be Rule objects"):
        make(rules=["users"])


def test_the_first_matching_rule_counts(make: Any, clock: FakeClock) -> None:
    cache = make(rules=[Rule("users", ttl_s=5), Rule("*", ttl_s=50)])
    cache.get_many(["users/1", "rooms/1", "users/1/x/1"])
    clock.advance(5)
    assert cache.lookup("users/1") is None


# -- invalidation, cleanup, settings -----------------------------------------------------------


def test_prefixes_match_whole_parts(make: Any) -> None:
    cache = make()
    paths = ["users/7", "users/70", "users/7/posts/1", "user/7", "users2/7"]
    cache.get_many(paths)
    assert cache.invalidate(prefix="users/7") == 2
    assert [cache.lookup(path) is not None for path in paths] == [False, True, False, True, True]
    assert cache.invalidate(prefix="users/") == 1
    assert cache.invalidate(prefix="nothing") == 0
    assert cache.invalidate("users2/7") == 1
    assert cache.invalidate("users2/7") == 0


@pytest.mark.parametrize("prefix", ["", "/", "users//", 7])
def test_bad_prefixes(make: Any, prefix: Any) -> None:
    cache = make()
    cache.get("users/1")
    with pytest.raises(RequestError, match="prefix"):
        cache.invalidate(prefix=prefix)
    assert cache.lookup("users/1") is not None


def test_bad_arguments_change_nothing(make: Any, store: ScriptedStore) -> None:
    cache = make()
    cache.get("users/1")
    for bad in (
        lambda: cache.invalidate(),
        lambda: cache.invalidate("users/1", prefix="users"),
        lambda: cache.invalidate("users"),
        lambda: cache.get("users"),
        lambda: cache.get(7),
        lambda: cache.get_many("users/1"),
        lambda: cache.get_many(["users/2", "users"]),
        lambda: cache.get_many(["users/2", ["users/3"]]),
        lambda: cache.set({"path": "users/1"}),
        lambda: cache.write_started("users"),
        lambda: cache.write_finished("users/1", {"n": 1}),
        lambda: cache.write_finished("users/1", store.documents["users/2"]),
    ):
        with pytest.raises(RequestError):
            bad()
    with pytest.raises(CacheError, match="no write of 'users/1' was started"):
        cache.write_finished("users/1", None)
    assert cache.lookup("users/1") is not None
    assert store.batches == []
    assert cache.get_stats().in_flight == 0


def test_cleanup_removes_what_is_too_old_even_to_be_stale(make: Any, clock: FakeClock) -> None:
    cache = make(ttl_s=10, max_stale_s=5)
    cache.get_many([f"users/{number}" for number in range(5)])
    clock.advance(12)
    assert cache.cleanup() == 0
    clock.advance(3.1)
    assert cache.cleanup(2) == 2
    assert cache.cleanup() == 3
    assert cache.get_stats().engine.currsize == 0


def test_configure_is_all_or_nothing(make: Any, clock: FakeClock) -> None:
    cache = make(ttl_s=100, max_entries=100, rules=[Rule("rooms", ttl_s=40)])
    cache.get_many(["users/1", "users/2", "rooms/1"])
    for bad in ({"ttl_s": 5, "max_entries": 0}, {"ttl_s": -1, "max_entries": 1}):
        with pytest.raises(ConfigError):
            cache.configure(**bad)
    clock.advance(20)
    assert cache.lookup("users/1") is not None
    assert cache.get_stats().engine.maxsize == 100

    cache.configure(ttl_s=10)  # shorter: counts for what is held
    assert cache.lookup("users/1") is None
    cache.configure(ttl_s=1000)  # longer: for what is loaded from now on
    assert cache.lookup("users/1") is None
    cache.get("users/1")
    clock.advance(999)
    assert cache.lookup("users/1") is not None
    cache.configure(max_entries=1)
    assert cache.get_stats().engine.currsize == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_entries": 0}, "max_entries must be positive, got 0"),
        ({"max_entries": 1.5}, "max_entries"),
        ({"ttl_s": -1}, "ttl_s must be positive"),
        ({"ttl_s": math.nan}, "ttl_s"),
        ({"negative_ttl_s": -1}, "negative_ttl_s"),
        ({"max_stale_s": -0.1}, "max_stale_s"),
        ({"max_stale_s": math.inf}, "max_stale_s"),
        ({"stale_while_revalidate_s": 61}, "at most max_stale_s"),
        ({"load_deadline_s": 0}, "load_deadline_s"),
        ({"ttl_jitter": 1}, "ttl_jitter"),
        ({"timer": 5}, "timer"),
        ({"on_error": 5}, "on_error"),
    ],
)
def test_bad_settings(make: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(**settings)


def test_eviction_keeps_within_max_entries(make: Any) -> None:
    cache = make(max_entries=3)
    for number in range(6):
        cache.get(f"users/{number}")
    report = cache.get_stats()
    assert report.engine.currsize == 3
    assert report.engine.evictions == 3


def test_the_report_counts_honestly(make: Any, store: ScriptedStore, clock: FakeClock) -> None:
    cache = make(ttl_s=10, max_stale_s=5)
    empty = cache.get_stats()
    assert isinstance(empty, CacheReport)
    assert empty.hit_rate is None
    cache.get("users/1")
    for _ in range(3):
        cache.get("users/1")
    clock.advance(11)
    cache.get("users/1")
    report = cache.get_stats()
    assert (report.hits, report.loads, report.overdue_lookups) == (3, 2, 1)
    assert report.hit_rate == 3 / 5
    assert cache.load("users/1").source == "hit"  # counts nothing: the caller looked it up
    assert cache.get_stats().engine == report.engine
    with pytest.raises(AttributeError):
        report.loads = 7  # type: ignore[misc]


# -- its end -----------------------------------------------------------------------------------


def test_after_close_everything_says_so(make: Any, store: ScriptedStore) -> None:
    cache = make()
    cache.get("users/1")
    cache.close()
    cache.close()
    document = store.documents["users/1"]
    for use in (
        lambda: cache.lookup("users/1"),
        lambda: cache.get("users/1"),
        lambda: cache.get_many(["users/1"]),
        lambda: cache.warm(["users/1"]),
        lambda: cache.set(document),
        lambda: cache.invalidate("users/1"),
        lambda: cache.invalidate(prefix="users"),
        lambda: cache.mark_unverified(),
        lambda: cache.cleanup(),
        lambda: cache.clear(),
        lambda: cache.configure(ttl_s=5),
        lambda: cache.write_started("users/1"),
        lambda: cache.write_finished("users/1", None),
    ):
        with pytest.raises(ClosedError):
            use()
    assert cache.get_stats().engine.currsize == 0


async def test_after_close_coroutines_say_so(make: Any) -> None:
    cache = make()
    cache.close()
    with pytest.raises(ClosedError):
        await cache.aget("users/1")
    with pytest.raises(ClosedError):
        await cache.aget_many(["users/1"])


def test_close_wakes_readers_and_stops_threads(
    make: Any, store: ScriptedStore, clock: FakeClock
) -> None:
    cache = make(ttl_s=10, max_stale_s=5, stale_while_revalidate_s=5)
    cache.get("users/2")
    clock.advance(11)
    held, refresh = store.hold("users/1"), store.hold("users/2")
    cache.get("users/2")
    refresh.wait_entered()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            cache.get("users/1")
        except ClosedError as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    readers[0].start()
    held.wait_entered()
    for reader in readers[1:]:
        reader.start()
    wait_until(lambda: cache.get_stats().coalesced == 2)
    closer = threading.Thread(target=cache.close)
    closer.start()
    for reader in readers[1:]:
        reader.join(WAIT_S)
    assert len(errors) == 2
    assert closer.is_alive(), "it waits for the refresh that is being loaded"
    held.release()
    refresh.release()
    for thread in (*readers, closer):
        thread.join(WAIT_S)
    assert len(errors) == 3
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("beastmode-cache")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="another operating system: no fork")
def test_a_child_of_a_fork_is_told() -> None:
    script = """
import os
from beastmode.cache import BeastModeCache
from beastmode.errors import ForkedError
from beastmode.stores.documents import Document

class Store:
    def get(self, path, *, deadline=None):
        return Document(path, {}, 1)

cache = BeastModeCache(Store())
cache.get("users/1")
cache._state.gate.lock.acquire()  # as if another thread held it at that moment
pid = os.fork()
if pid == 0:
    code = 1
    try:
        cache.get("users/2")
    except ForkedError:
        code = 0
    finally:
        os._exit(code)
cache._state.gate.lock.release()
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_forked_error_is_a_closed_error() -> None:
    assert issubclass(ForkedError, ClosedError)
