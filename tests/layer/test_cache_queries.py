"""Results of queries: held only while a lease covers the collection and nothing in it changes."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beastmode.cache import BeastModeCache, Lease, Rule
from beastmode.cache.queries import canonical
from beastmode.cache.stale_results import StaleResult, StaleResults
from beastmode.errors import (
    ClosedError,
    ConfigError,
    LoadError,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.optimizer import BeastModeOptimizer
from beastmode.requests import Request
from beastmode.stores.base import Change, Filter, Order, Query
from beastmode.stores.documents import Delete, Document, Set
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.values import GeoPoint
from layer.faulty_store import FaultyStore
from scripted import WAIT_S, Asking, ScriptedAsyncStore, ScriptedStore
from support import FakeClock

ADULTS = Query("users", (Filter("age", ">=", 18),), (Order("age"),))
ALL = Query("users")


@pytest.fixture
def store() -> ScriptedStore:
    store = ScriptedStore()
    for number, age in enumerate((30, 10, 20)):
        store.put(f"users/{number}", age=age)
    return store


@pytest.fixture
def cache(store: ScriptedStore, clock: FakeClock) -> Iterator[BeastModeCache]:
    cache = BeastModeCache(
        store,
        ScriptedAsyncStore(store),
        ttl_s=100,
        load_deadline_s=WAIT_S,
        rules=[Rule("mail", per_user=True), Rule("raw", cacheable=False)],
        timer=clock,
    )
    yield cache
    cache.close()


def ids(cache: BeastModeCache, query: Query = ADULTS) -> tuple[list[str], str]:
    documents, source = cache.query(query)
    return [document.path[-1] for document in documents], source


@pytest.fixture
def lease(cache: BeastModeCache) -> Lease:
    lease = Lease(math.inf)
    cache.cover_collection("users", lease)
    return lease


# -- what is held ------------------------------------------------------------------------------


def test_without_a_lease_the_store_is_asked_each_time(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    assert [ids(cache) for _ in range(2)] == [(["2", "0"], "store")] * 2
    assert cache.lookup("users/0") is None
    assert cache.get_stats().queries.held == 0
    assert store.deadlines == [None, None], "the store has its own"


def test_a_covered_result_is_held_and_shares_its_documents(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock, lease: Lease
) -> None:
    assert ids(cache) == (["2", "0"], "store")
    assert ids(cache) == (["2", "0"], "hit")
    documents = cache.query(ADULTS).documents
    assert cache.lookup("users/2") is documents[0]
    documents.clear()
    clock.advance(1000)
    assert ids(cache) == (["2", "0"], "hit")
    assert cache.lookup("users/0") is store.documents["users/0"], "covered with its collection"
    assert len(store.queries) == 1
    assert store.gets == []
    stats = cache.get_stats().queries
    assert (stats.hits, stats.loads, stats.held, stats.documents) == (3, 1, 1, 2)
    assert stats.collections == 1


def test_an_empty_result_is_held_too(cache: BeastModeCache, lease: Lease) -> None:
    nobody = Query("users", (Filter("age", ">", 99),))
    assert [ids(cache, nobody) for _ in range(2)] == [([], "store"), ([], "hit")]


def test_a_result_counts_as_long_as_its_stream_is_heard(
    cache: BeastModeCache, clock: FakeClock, lease: Lease
) -> None:
    lease.valid_until = clock.now + 60
    ids(cache)
    clock.advance(60)
    assert ids(cache)[1] == "store"
    lease.valid_until = clock.now + 60
    assert ids(cache)[1] == "hit"


ENDERS: dict[str, Callable[[BeastModeCache, ScriptedStore], Any]] = {
    "change": lambda cache, store: cache.apply_change(Change(store.documents["users/1"])),
    "set": lambda cache, store: cache.set(store.documents["users/1"]),
    "load": lambda cache, store: cache.get("users/1"),
    "known write": lambda cache, store: (
        cache.write_started("users/1"),
        cache.write_finished("users/1", store.documents["users/1"]),
    ),
    "unknown write": lambda cache, store: (
        cache.write_started("users/1"),
        cache.write_finished("users/1", None),
    ),
    "invalidate": lambda cache, store: cache.invalidate("users/1"),
    "invalidate prefix": lambda cache, store: cache.invalidate(prefix="users"),
    "clear": lambda cache, store: cache.clear(),
    "doubt path": lambda cache, store: cache.doubt(["users/1"]),
    "doubt prefix": lambda cache, store: cache.mark_unverified("users"),
    "doubt": lambda cache, store: cache.mark_unverified(),
    "uncover": lambda cache, store: cache.uncover_collection("users"),
    "cover": lambda cache, store: cache.cover_collection("users", Lease(math.inf)),
}


@pytest.mark.parametrize("name", ENDERS)
def test_what_ends_a_result(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease, name: str
) -> None:
    ids(cache)
    store.put("users/1", age=19)
    ENDERS[name](cache, store)
    assert ids(cache) == (["1", "2", "0"], "store")


@pytest.mark.parametrize("name", ENDERS)
def test_a_query_that_was_overtaken_is_not_held(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease, name: str
) -> None:
    hold = store.hold("users")
    first: list[Any] = []
    reader = threading.Thread(target=lambda: first.append(ids(cache)))
    reader.start()
    hold.wait_entered()
    new = store.put("users/1", age=19)
    ENDERS[name](cache, store)
    assert ids(cache) == (["1", "2", "0"], "store"), "who comes now does not join it"
    hold.release()
    reader.join(WAIT_S)
    assert first == [(["2", "0"], "store")], "who was waiting may get it"
    assert ids(cache)[0] == ["1", "2", "0"]
    assert cache.lookup("users/1") in (None, new)


def test_the_echo_of_what_a_result_shows_does_not_end_it(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    cache.write_started("users/1")
    own = store.put("users/1", age=19)
    cache.write_finished("users/1", own)
    assert ids(cache) == (["1", "2", "0"], "store")
    cache.apply_change(Change(own))
    assert ids(cache) == (["1", "2", "0"], "hit")


def test_a_change_elsewhere_ends_nothing(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    ids(cache)
    cache.apply_change(Change(store.put("rooms/1", n=1)))
    cache.apply_change(Change(store.put("users/1/pets/1", n=1)))
    cache.mark_unverified("rooms")
    assert ids(cache)[1] == "hit"


def test_a_missing_document_that_is_loaded_ends_only_who_shows_it(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    ids(cache)
    assert not cache.get("users/9").document.exists
    assert ids(cache)[1] == "hit"
    cache.invalidate("users/2")
    ids(cache)
    store.delete("users/2")  # not heard of yet
    cache._engine.clear()
    assert not cache.get("users/2").document.exists
    assert ids(cache) == (["0"], "store"), "its readers know that it is gone"


def test_a_result_does_not_bring_back_what_was_overtaken(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    """A change between a query's answer and its return, of a document that nobody holds."""
    asking = Asking(cache, store)
    cache.apply_change(Change(store.put("users/0", age=31)))
    asking.end()
    assert cache.lookup("users/0") is None
    assert cache.get_stats().queries.discarded == 1


def test_a_result_that_was_stamped_after_a_change_that_it_lacks_is_not_kept(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    asking = Asking(cache, store)
    cache.apply_change(Change(store.put("users/0", age=31)))
    asking.end(lambda result: replace(result, version=store.version + 1))
    assert cache.get_stats().queries.discarded == 1
    documents, source = cache.query(ALL)
    assert source == "store"
    assert store.documents["users/0"] in documents


def test_documents_with_pending_writes_and_newer_ones_are_left_alone(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    newer = Document("users/2", {"age": 21}, 99)
    cache.get("users/0")
    cache.set(newer)
    cache.write_started("users/0")
    ids(cache)
    assert cache.lookup("users/2") is newer
    assert cache.lookup("users/0") is not None
    cache.write_finished("users/0", None)
    assert cache.lookup("users/0") is None


def test_a_document_with_a_pending_write_is_not_installed(
    cache: BeastModeCache, lease: Lease
) -> None:
    cache.write_started("users/0")
    cache.query(ALL)
    assert not cache.holds("users/0")
    assert cache.holds("users/1")
    cache.write_finished("users/0", None)


def test_what_was_held_before_is_not_covered_with_its_collection(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    """It may have been deleted before the stream began, which nobody tells."""
    cache.get("users/0")
    store.delete("users/0")
    cache.cover_collection("users", Lease(math.inf))
    clock.advance(100)
    assert not cache.get("users/0").document.exists
    clock.advance(20)
    assert cache.lookup("users/0") is not None
    clock.advance(200)
    assert cache.lookup("users/0") is not None, "loaded since, so it is"


def test_a_load_that_began_before_the_cover_is_not_installed(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    hold = store.hold("users/0")
    reader = threading.Thread(target=lambda: cache.get("users/0"))
    reader.start()
    hold.wait_entered()
    store.delete("users/0")
    cache.cover_collection("users", Lease(math.inf))
    hold.release()
    reader.join(WAIT_S)
    assert cache.lookup("users/0") is None


def test_an_uncovered_collection_lives_by_time(
    cache: BeastModeCache, clock: FakeClock, lease: Lease
) -> None:
    ids(cache)
    clock.advance(500)
    cache.uncover_collection("users")
    cache.uncover_collection("rooms")
    clock.advance(99)
    assert cache.lookup("users/0") is not None
    clock.advance(1)
    assert cache.lookup("users/0") is None
    assert cache.get_stats().queries.collections == 0


@pytest.mark.parametrize("collection", ["mail", "raw"])
def test_rules_that_keep_documents_apart_keep_their_queries_out(
    cache: BeastModeCache, store: ScriptedStore, collection: str
) -> None:
    store.put(f"{collection}/1", n=1)
    cache.cover_collection(collection, Lease(math.inf))
    assert [ids(cache, Query(collection)) for _ in range(2)] == [(["1"], "store")] * 2


def test_results_are_bounded_by_number_and_by_documents(
    store: ScriptedStore, clock: FakeClock
) -> None:
    cache = BeastModeCache(store, max_queries=3, max_query_documents=5, timer=clock)
    cache.cover_collection("users", Lease(math.inf))
    for limit in (1, 2, 1, 3):
        ids(cache, Query("users", limit=limit))
    stats = cache.get_stats().queries
    assert (stats.held, stats.documents) == (2, 4), "the one used least recently has left"
    assert ids(cache, Query("users", limit=2))[1] == "store"
    for number in range(3, 9):
        store.put(f"users/{number}", age=1)
    assert len(cache.query(Query("users", limit=6)).documents) == 6
    assert ids(cache, Query("users", limit=6))[1] == "store", "too large by itself"
    assert cache.get_stats().queries.documents <= 5
    for limit in (1, 1, 1, 1):
        ids(cache, Query("users", (Filter("age", "==", limit),), limit=limit))
    assert cache.get_stats().queries.held <= 3
    cache.close()


def test_what_makes_queries_the_same() -> None:
    low, high = Filter("age", ">", 1), Filter("age", "<", 5)
    assert canonical(Query("users", (low, high))) == canonical(Query("users", (high, low)))
    different = [
        Query("users", (low,)),
        Query("users", (Filter("age", ">", 1.0),)),
        Query("users", (Filter("age", ">", True),)),
        Query("users", (Filter("age", ">", "1"),)),
        Query("users", (Filter("age", "in", [1, 2]),)),
        Query("users", (Filter("age", "in", [2]),)),
        Query("users", (Filter("age", "==", {"a": 1, "b": [2]}),)),
        Query("users", (Filter("age", "==", GeoPoint(1.0, 2.0)),)),
        Query("users", (Filter("age", "==", math.nan),)),
        Query("users", (Filter("age", "==", None),)),
        Query("users", (low,), (Order("age"),)),
        Query("users", (low,), (Order("age", descending=True),)),
        Query("users", (low,), limit=1),
        Query("rooms", (low,)),
    ]
    keys = [canonical(query) for query in different]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    nan = Query("users", (Filter("age", "==", float("nan")),))
    assert canonical(nan) in keys
    swapped = Query("users", (Filter("age", "==", {"b": [2], "a": 1}),))
    assert canonical(swapped) in keys


def test_a_value_without_a_hash_is_asked_for_each_time(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

    query = Query("users", (Filter("age", "==", Odd()),))
    assert canonical(query) is None
    store.answer = lambda result: result
    with pytest.raises(RequestError):
        cache.query(query)


# -- single-flight -----------------------------------------------------------------------------


@pytest.mark.parametrize("covered", [True, False])
async def test_readers_of_one_query_share_one_call(
    cache: BeastModeCache, store: ScriptedStore, covered: bool
) -> None:
    if covered:
        cache.cover_collection("users", Lease(math.inf))
    hold = store.hold("users")
    readers = [asyncio.create_task(cache.aquery(ADULTS)) for _ in range(5)]
    thread = asyncio.create_task(asyncio.to_thread(cache.query, ADULTS))
    while cache.get_stats().queries.coalesced < 5:
        await asyncio.sleep(0)
    readers[0].cancel()  # it leads
    with pytest.raises(asyncio.CancelledError):
        await readers[0]
    other = await cache.aquery(ALL)
    assert len(other.documents) == 3
    hold.release()
    answers = [*await asyncio.gather(*readers[1:]), await thread]
    assert all(len(answer.documents) == 2 for answer in answers)
    assert len({id(answer.documents) for answer in answers}) == 5, "a list for each"
    assert len(store.queries) == 2


async def test_a_reader_after_an_own_write_does_not_join_an_older_query(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    hold = store.hold("users")
    reader = asyncio.create_task(cache.aquery(ADULTS))
    while not hold.entered.is_set():
        await asyncio.sleep(0)
    cache.write_started("users/1")
    cache.write_finished("users/1", store.put("users/1", age=40))
    assert len((await cache.aquery(ADULTS)).documents) == 3
    hold.release()
    assert len((await reader).documents) == 2


async def test_an_error_reaches_all_and_is_not_held(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    hold = store.hold("users")
    readers = [asyncio.create_task(cache.aquery(ADULTS)) for _ in range(2)]
    while not hold.entered.is_set():
        await asyncio.sleep(0)
    hold.fail(StoreUnavailable("down"))
    errors = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(error) for error in errors] == [StoreUnavailable] * 2
    assert (await cache.aquery(ADULTS)).source == "store"
    assert (await cache.aquery(ADULTS)).source == "hit"


async def test_without_an_async_store_a_thread_asks(store: ScriptedStore, clock: FakeClock) -> None:
    cache = BeastModeCache(store, timer=clock)
    cache.cover_collection("users", Lease(math.inf))
    hold = store.hold("users")
    readers = [asyncio.create_task(cache.aquery(ADULTS)) for _ in range(4)]
    while cache.get_stats().queries.coalesced < 3:
        await asyncio.sleep(0)
    hold.release()
    answers = await asyncio.gather(*readers)
    assert {answer.source for answer in answers} == {"store"}
    assert (await cache.aquery(ADULTS)).source == "hit"
    assert len(store.queries) == 1
    store.error = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await cache.aquery(ALL)
    await asyncio.to_thread(cache.close)
    with pytest.raises(ClosedError):
        await cache.aquery(ADULTS)


def test_bad_queries_and_answers_are_told(cache: BeastModeCache, store: ScriptedStore) -> None:
    with pytest.raises(RequestError, match="query must be a Query"):
        cache.query("users")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="collection"):
        cache.cover_collection("users/1", Lease())
    with pytest.raises(RequestError, match="Lease"):
        cache.cover_collection("users", None)  # type: ignore[arg-type]
    for name in ("max_queries", "max_query_documents"):
        with pytest.raises(ConfigError, match=name):
            BeastModeCache(store, **{name: 0})  # type: ignore[arg-type]
    store.answer = lambda _: None
    with pytest.raises(LoadError, match="returned None"):
        cache.query(ADULTS)
    cache.close()
    with pytest.raises(ClosedError):
        cache.query(ADULTS)


# -- while the store fails ---------------------------------------------------------------------


def fail(store: ScriptedStore, error: type[Exception] = StoreUnavailable) -> None:
    store.error = error("down")


@pytest.mark.parametrize("error", [StoreUnavailable, StoreTimeout])
@pytest.mark.parametrize("why", ["the stream is lost", "a document is in doubt", "silence"])
async def test_a_result_is_served_as_stale_while_the_store_fails(
    cache: BeastModeCache,
    store: ScriptedStore,
    clock: FakeClock,
    lease: Lease,
    why: str,
    error: type[Exception],
) -> None:
    assert ids(cache) == (["2", "0"], "store")
    if why == "the stream is lost":
        lease.cancel()
        cache.mark_unverified("users")
    elif why == "a document is in doubt":
        cache.doubt(["users/1"])
    else:
        lease.valid_until = clock.now
    fail(store, error)
    assert ids(cache) == (["2", "0"], "stale")
    answer = await cache.aquery(ADULTS)
    assert (len(answer.documents), answer.source) == (2, "stale")
    clock.advance(59.9)
    assert ids(cache) == (["2", "0"], "stale")
    assert cache.get_stats().queries.stale_served == 3
    with pytest.raises(error):
        cache.query(ALL)
    clock.advance(0.2)
    with pytest.raises(error):  # past `max_stale_s`
        cache.query(ADULTS)
    store.error = None
    assert ids(cache) == (["2", "0"], "store")


def test_what_is_too_old_is_forgotten(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock, lease: Lease
) -> None:
    ids(cache)
    cache.mark_unverified()
    assert cache.get_stats().queries.stale == 1
    clock.advance(61)
    cache.cleanup()
    assert cache.get_stats().queries.stale == 0


@pytest.mark.parametrize("when", ["before the doubt", "after it"])
@pytest.mark.parametrize(
    "what",
    ["change", "own write", "unknown write", "invalidate", "prefix", "clear", "load", "gone"],
)
def test_a_result_that_lacks_what_was_seen_or_written_is_not_served(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease, when: str, what: str
) -> None:
    assert ids(cache) == (["2", "0"], "store")
    if when == "after it":
        lease.cancel()
        cache.mark_unverified("users")
    if what == "change":
        cache.apply_change(Change(store.put("users/5", age=50)))
    elif what in ("own write", "unknown write"):
        cache.write_started("users/5")
        document = store.put("users/5", age=50)
        cache.write_finished("users/5", document if what == "own write" else None)
    elif what == "invalidate":
        cache.invalidate("users/5")
    elif what == "prefix":
        cache.invalidate(prefix="users")
    elif what == "clear":
        cache.clear()
    elif what == "load":
        store.put("users/5", age=50)
        assert cache.get("users/5").source == "store"
    else:
        store.delete("users/0")
        cache.observe([store.get("users/0")])
    if when == "before the doubt":
        cache.mark_unverified("users")
    fail(store)
    with pytest.raises(StoreUnavailable):
        cache.query(ADULTS)


def test_a_newer_answer_takes_the_place_of_the_stale_one(
    cache: BeastModeCache, store: ScriptedStore, lease: Lease
) -> None:
    ids(cache)
    lease.cancel()
    cache.mark_unverified("users")
    store.delete("users/0")
    assert ids(cache) == (["2"], "store"), "not kept, because nobody covers it"
    fail(store)
    with pytest.raises(StoreUnavailable):
        cache.query(ADULTS)


def test_stale_results_are_bounded(store: ScriptedStore, clock: FakeClock) -> None:
    cache = BeastModeCache(store, timer=clock, max_queries=3, max_query_documents=5)
    cache.cover_collection("users", Lease(math.inf))
    for limit in (1, 2, 3):
        cache.query(Query("users", limit=limit))
    cache.mark_unverified()
    cache.cover_collection("users", Lease(math.inf))
    cache.query(Query("users", limit=4))
    cache.mark_unverified()
    fail(store)
    with pytest.raises(StoreUnavailable):
        cache.query(Query("users", limit=1))
    assert cache.query(Query("users", limit=4)).source == "stale"
    with pytest.raises(StoreUnavailable):
        cache.query(Query("users", limit=3))
    cache.close()
    assert cache.get_stats().queries.stale == 0


def test_what_is_older_than_all_stale_results_is_not_compared_with_each() -> None:
    compared = 0

    class Version(int):
        def __lt__(self, other: int) -> bool:
            nonlocal compared
            compared += 1
            return int(self) < other

    held = StaleResults(max_queries=1000, max_documents=1000)
    for number in range(300):
        held.put(number, StaleResult("users", Version(1000 + number), {}, math.inf))
    compared = 0
    for version in range(1000):
        held.seen(Document(f"users/{version}", {}, version))
    assert compared < 2000, "once for each document, not for each result as well"
    assert len(held) == 300
    held.seen(Document("users/1", {}, 1010))
    held.seen(Document("users/1", {}, 1010))
    assert len(held) == 290
    held.discard(10)
    held.put(10, StaleResult("users", 1005, {}, math.inf))
    held.changed("users", 1006)
    assert len(held) == 289
    held.changed("users", None)
    assert not held.collections
    held.changed("users", 1)


@pytest.mark.parametrize("by", ["sync", "async"])
def test_requests_are_answered_by_stale_results_until_something_is_written(
    tmp_path: Path, by: str
) -> None:
    store = FaultyStore(SQLiteStore(tmp_path / "a.db"))
    store.inner.commit([Set("users/1", {"age": 30})])
    request = Request.query(ADULTS)
    journal = str(tmp_path / "journal.db")
    with BeastModeOptimizer(store, journal_path=journal, healing_interval_s=60) as optimizer:

        def ask() -> Any:
            if by == "sync":
                return optimizer.handle_request_sync(None, request)
            return asyncio.run(optimizer.handle_request(None, request))

        lease = Lease(math.inf)
        optimizer.cache.cover_collection("users", lease)
        assert ask().source == "store"
        store.down = StoreUnavailable("down")
        lease.cancel()
        optimizer.cache.mark_unverified("users")
        reads = optimizer._tally.reads()
        for _ in range(20):  # more than it takes to open the breaker
            response = ask()
            assert (response.source, len(response.documents)) == ("stale", 1)
        assert optimizer._parts.breaker.state != "closed"
        assert optimizer._tally.reads() == (reads[0] + 20, reads[1] + 20), "none asked the store"
        optimizer.handle_request_sync(None, Request.set("users/2", {"age": 40}))
        with pytest.raises(StoreUnavailable):
            ask()  # it would lack the own write
        store.down = None


# -- the way of a request ----------------------------------------------------------------------


def wait_for_echoes(optimizer: BeastModeOptimizer, seen: int) -> None:
    limit = time.monotonic() + WAIT_S
    while optimizer.get_stats().sync.changes < seen:
        assert time.monotonic() < limit, "no echo came"
        time.sleep(0.005)


async def test_requests_are_answered_by_held_results(tmp_path: Path) -> None:
    request = Request.query(ADULTS)
    async with BeastModeOptimizer(tmp_path / "a.db") as optimizer:
        for number, age in enumerate((30, 10, 20)):
            optimizer.handle_request_sync(None, Request.set(f"users/{number}", {"age": age}))
        optimizer.flush()
        wait_for_echoes(optimizer, 3)
        optimizer.cache.cover_collection("users", Lease(math.inf))
        assert (await optimizer.handle_request(None, request)).source == "store"
        found = await optimizer.handle_request(None, request)
        assert (found.source, len(found.documents or ())) == ("hit", 2)
        billed = optimizer._parts.meter.report().actual
        assert optimizer.handle_request_sync(None, request).source == "hit"
        assert optimizer._parts.meter.report().actual == billed
        optimizer.handle_request_sync(None, Request.merge("users/1", {"age": 40}))
        found = optimizer.handle_request_sync(None, request)
        assert (found.source, len(found.documents or ())) == ("store", 3), "the own write"
        optimizer.handle_request_sync(None, Request.commit([Delete("users/1"), Set("a/b", {})]))
        found = await optimizer.handle_request(None, request)
        assert (found.source, len(found.documents or ())) == ("store", 2)
        optimizer.disable_beast_mode()
        assert (await optimizer.handle_request(None, request)).source == "store"
        assert (await optimizer.handle_request(None, request)).source == "store"


@pytest.mark.parametrize("kind", ["held", "in the air"])
def test_an_own_write_is_seen_before_the_cache_was_told_of_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The store has the write, it left the buffer, and `write_finished` has not been called."""
    request = Request.query(ALL)
    with BeastModeOptimizer(tmp_path / "a.db", batch_max_delay_ms=60_000) as optimizer:
        cache, batcher = optimizer.cache, optimizer._parts.batcher
        monkeypatch.setattr(cache, "apply_change", lambda _change: None)  # the stream is late
        cache.cover_collection("users", Lease(math.inf))
        committed, told, moved = threading.Event(), threading.Event(), threading.Event()
        asked, answered = threading.Event(), threading.Event()
        finish, flush, ask = cache.write_finished, batcher.flush, optimizer._parts.store.query

        def wait_to_be_told(*args: Any, **more: Any) -> None:
            committed.set()
            assert told.wait(WAIT_S)
            finish(*args, **more)

        def flushed(deadline: float | None = None) -> None:
            moved.set()
            flush(deadline)

        answers: list[list[str]] = []

        def read() -> None:
            response = optimizer.handle_request_sync(None, request)
            answers.append([document.path for document in response.documents or ()])
            moved.set()

        readers = [threading.Thread(target=read)]
        if kind == "held":
            assert optimizer.handle_request_sync(None, request).documents == []
        else:  # a query that was answered before the commit, and returns after it

            def held_back(query: Query, *, deadline: float | None = None) -> Any:
                result = ask(query, deadline=deadline)
                if not asked.is_set():
                    asked.set()
                    assert answered.wait(WAIT_S)
                return result

            monkeypatch.setattr(optimizer._parts.store, "query", held_back)
            early = threading.Thread(
                target=optimizer.handle_request_sync, args=(None, request), daemon=True
            )
            early.start()
            assert asked.wait(WAIT_S)
            readers.append(early)
        monkeypatch.setattr(cache, "write_finished", wait_to_be_told)
        optimizer.handle_request_sync(None, Request.set("users/1", {"age": 1}))
        writer = threading.Thread(target=flush, daemon=True)
        writer.start()
        assert committed.wait(WAIT_S)
        monkeypatch.setattr(batcher, "flush", flushed)
        try:
            assert batcher.pending_in("users")
            readers[0].start()
            assert moved.wait(WAIT_S)
        finally:
            told.set()
            answered.set()
        for thread in (*readers, writer):
            thread.join(WAIT_S)
        assert answers == [["users/1"]]
        assert not batcher.pending_in("users")
        batcher._pending._check()
