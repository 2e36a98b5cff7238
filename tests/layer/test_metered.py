"""What a store is billed for, counted around a real one."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from beastmode.cost import Meter, Units, Usage
from beastmode.errors import (
    ClosedError,
    PreconditionFailed,
    RequestError,
    StoreError,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores.attempts import attempts_of_call
from beastmode.stores.base import AsyncStore, Change, FeedStore, Query, Store, StoreHealth, Target
from beastmode.stores.documents import Delete, Document, Merge, Operation, Precondition, Set, Update
from beastmode.stores.metered import (
    MeteredAsyncStore,
    MeteredStore,
    commit_units,
    query_units,
)
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def store(meter: Meter) -> Iterator[MeteredStore]:
    inner = SQLiteStore(":memory:")
    inner.commit([Set(f"users/{number}", {"n": number}) for number in range(5)])
    metered = MeteredStore(inner, meter)
    yield metered
    metered.close()


def used(meter: Meter) -> tuple[int, int, int, int]:
    report = meter.report()
    assert report.baseline == Usage()
    units = report.actual.units
    return units.reads, units.writes, units.deletes, report.actual.calls


def test_it_is_a_store(store: MeteredStore, meter: Meter) -> None:
    assert isinstance(store, Store)
    assert isinstance(MeteredAsyncStore(ThreadedAsyncStore(store), meter), AsyncStore)


def test_reads(store: MeteredStore, meter: Meter) -> None:
    assert store.get("users/1").data == {"n": 1}
    assert used(meter) == (1, 0, 0, 1)
    assert not store.get("users/99").exists
    assert used(meter) == (2, 0, 0, 2)
    found = store.get_many(["users/3", "users/99", "users/3"])
    assert [document.exists for document in found] == [True, False, True]
    assert used(meter) == (4, 0, 0, 3)  # a path that is named twice is read once
    with pytest.raises(RequestError):
        store.get_many("users/1")
    assert used(meter) == (4, 0, 0, 4)


@pytest.mark.parametrize(
    ("query", "found", "reads"),
    [
        (Query("users"), 5, 5),
        (Query("users", limit=2), 2, 2),
        (Query("users", limit=1), 1, 1),
        (Query("nobody"), 0, 1),
    ],
)
def test_queries(store: MeteredStore, meter: Meter, query: Query, found: int, reads: int) -> None:
    assert len(store.query(query).documents) == found
    assert used(meter) == (reads, 0, 0, 1)
    assert query_units(found) == Units(reads=reads)


def test_commits(store: MeteredStore, meter: Meter) -> None:
    operations: list[Operation] = [
        Set("users/1", {"n": 0}),
        Merge("users/2", {"n": 0}),
        Update("users/3", {"n": 0}),
        Delete("users/4"),
        Delete("users/99"),
    ]
    assert len(store.commit(operations)) == 5
    assert used(meter) == (0, 3, 2, 1)
    assert commit_units(operations) == Units(writes=3, deletes=2)
    assert not store.store.get("users/4").exists


def test_a_refused_call_bills_nothing_but_was_a_call(store: MeteredStore, meter: Meter) -> None:
    with pytest.raises(PreconditionFailed):
        store.commit([Set("users/1", {}, Precondition(exists=False)), Delete("users/2")])
    assert used(meter) == (0, 0, 0, 1)
    assert store.store.get("users/2").exists


def possible(meter: Meter) -> tuple[int, int, int]:
    units = meter.report().possibly_billed
    return units.reads, units.writes, units.deletes


def test_what_a_timeout_may_have_done_is_possibly_billed(store: MeteredStore, meter: Meter) -> None:
    with pytest.raises(StoreTimeout):
        store.get_many(["users/1", "users/2", "users/1"], deadline=0.0)
    assert possible(meter) == (2, 0, 0)
    with pytest.raises(StoreTimeout):
        store.commit([Set("users/1", {}), Delete("users/2")], deadline=0.0)
    assert possible(meter) == (2, 1, 1)
    with pytest.raises(StoreTimeout):
        store.query(Query("users"), deadline=0.0)
    assert possible(meter) == (3, 1, 1)
    with pytest.raises(StoreTimeout):
        store.query(Query("users", limit=4), deadline=0.0)
    assert possible(meter) == (7, 1, 1)
    assert used(meter) == (0, 0, 0, 4)


class Scripted:
    """A store that tells of its attempts: each call makes `attempts`, answered or not."""

    def __init__(self) -> None:
        self.attempts: list[bool] = []
        self.error: Exception | None = None

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        told = attempts_of_call()
        for answered in self.attempts:
            told.sent()
            if answered:
                told.answered()
        if self.error is not None:
            raise self.error
        return [1] * len(operations)


@pytest.mark.parametrize(
    ("attempts", "error", "billed", "unknown"),
    [
        ([True], None, 1, 0),
        ([False, True], None, 1, 1),
        ([False, False, True], None, 1, 2),
        ([True], StoreUnavailable("refused for the moment"), 0, 0),
        ([False, False], StoreTimeout("late"), 0, 2),
        ([], StoreTimeout("never sent"), 0, 0),
        ([False, True], PreconditionFailed("the first one may have been it"), 0, 1),
    ],
)
def test_a_store_that_tells_of_its_attempts_is_billed_by_them(
    meter: Meter, attempts: list[bool], error: Exception | None, billed: int, unknown: int
) -> None:
    inner: Any = Scripted()
    inner.attempts, inner.error = attempts, error
    store = MeteredStore(inner, meter)
    with contextlib.suppress(StoreError):
        store.commit([Set("users/1", {}), Delete("users/2"), Set("_bm/1", {})])
    assert used(meter) == (0, 2 * billed, billed, 1)
    assert possible(meter) == (0, 2 * unknown, unknown)
    assert meter.report().markers == Units(writes=billed)


@pytest.mark.parametrize(("maybe_applied", "unknown"), [(True, 1), (False, 0)])
def test_a_commit_that_may_be_applied_is_possibly_billed(
    meter: Meter, maybe_applied: bool, unknown: int
) -> None:
    class Lost(SQLiteStore):
        def commit(
            self, operations: Sequence[Operation], *, deadline: float | None = None
        ) -> list[int]:
            error = StoreUnavailable("the connection was lost")
            error.maybe_applied = maybe_applied
            raise error

    with Lost(":memory:") as inner, pytest.raises(StoreUnavailable):
        MeteredStore(inner, meter).commit([Set("users/1", {})])
    assert used(meter) == (0, 0, 0, 1)
    assert possible(meter) == (0, unknown, 0)


def test_health_is_not_counted_and_close_closes_the_store(
    store: MeteredStore, meter: Meter
) -> None:
    assert store.health().ok
    store.close()
    with pytest.raises(ClosedError):
        store.store.get("users/1")
    assert used(meter) == (0, 0, 0, 0)


@pytest.mark.parametrize(("bill_changes", "reads"), [(False, 0), (True, 2)])
def test_changes_are_billed_only_where_asked(
    store: MeteredStore, meter: Meter, bill_changes: bool, reads: int
) -> None:
    arrived: queue.Queue[Change] = queue.Queue()
    watching = MeteredStore(store.store, meter, bill_changes=bill_changes)
    subscription = watching.watch(Target(collection="users"), arrived.put)
    store.store.commit([Set("users/1", {"n": 7}), Set("users/new", {}), Delete("users/2")])
    changed = {arrived.get(timeout=10).path for _ in range(3)}
    subscription.close()
    assert changed == {"users/1", "users/new", "users/2"}
    assert used(meter) == (reads, 0, 0, 0)


async def test_the_async_twin_counts_the_same(store: MeteredStore, meter: Meter) -> None:
    counted = MeteredAsyncStore(ThreadedAsyncStore(store.store, close_store=True), meter)
    assert (await counted.get("users/1")).exists
    assert len(await counted.get_many(["users/1", "users/99"])) == 2
    assert len((await counted.query(Query("users"))).documents) == 5
    await counted.commit([Set("users/9", {}), Delete("users/1")])
    assert used(meter) == (8, 1, 1, 4)
    with pytest.raises(StoreTimeout):
        await counted.get("users/1", deadline=0.0)
    assert possible(meter) == (1, 0, 0)
    with pytest.raises(PreconditionFailed):
        await counted.commit([Delete("users/2", Precondition(exists=False))])
    assert used(meter) == (8, 1, 1, 6)
    arrived: queue.Queue[Change] = queue.Queue()
    subscription = await counted.watch(Target(), arrived.put)
    await counted.commit([Set("users/10", {})])
    change = await asyncio.to_thread(arrived.get, timeout=10)
    assert change.path == "users/10"
    subscription.close()
    assert (await counted.health()).ok
    assert used(meter) == (8, 2, 1, 7)
    await counted.close()
    with pytest.raises(ClosedError):
        store.store.get("users/1")


class HangingStore:
    """An AsyncStore of which only these two calls are asked: one hangs, one is not reached."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing ends the wait")

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        raise StoreUnavailable("no route")


async def test_what_a_cancelled_call_may_have_done_is_possibly_billed(meter: Meter) -> None:
    inner: Any = HangingStore()
    counted = MeteredAsyncStore(inner, meter)
    call = asyncio.create_task(counted.get("users/1"))
    await inner.asked.wait()
    assert used(meter) == (0, 0, 0, 0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert used(meter) == (0, 0, 0, 1)
    assert possible(meter) == (1, 0, 0)
    with pytest.raises(StoreUnavailable):
        await counted.get_many(["users/1"])
    assert used(meter) == (0, 0, 0, 2)
    assert possible(meter) == (1, 0, 0)


# -- what beast mode causes itself --------------------------------------------------------------


def test_markers_are_billed_and_told_apart(store: MeteredStore, meter: Meter) -> None:
    store.commit([Set("users/1", {"n": 7}), Set("_bm/b1", {})])
    report = meter.report()
    assert report.actual == Usage(Units(writes=2), 1)
    assert report.markers == Units(writes=1)
    store.commit([Delete("_bm/b1")])
    store.get("_bm/b1")
    store.get_many(["_bm/b1", "users/1"])
    report = meter.report()
    assert report.actual == Usage(Units(reads=3, writes=2, deletes=1), 4)
    assert report.markers == Units(reads=2, writes=1, deletes=1)
    with pytest.raises(PreconditionFailed):
        store.commit([Set("_bm/b1", {}, Precondition(exists=True))])
    later = meter.report()
    assert later.markers == report.markers
    assert (later - report).actual == Usage(calls=1)


async def test_calls_are_counted_on_their_account(meter: Meter) -> None:
    with SQLiteStore(":memory:") as inner:
        MeteredStore(inner, meter, account="auditor").get("users/1")
        bridge = ThreadedAsyncStore(inner)
        await MeteredAsyncStore(bridge, meter, account="auditor").get_many(["users/1", "users/2"])
        await bridge.close()
    report = meter.report()
    assert report.actual == Usage(Units(reads=3), 2)
    assert report.auditor == Units(reads=3)


class _Feed:
    documents_read = 0


class _Feeding(SQLiteStore):
    def __init__(self) -> None:
        super().__init__(":memory:")
        self.feeds: list[_Feed] = []

    def open_feed(self, listener: Any) -> _Feed:
        self.feeds.append(_Feed())
        return self.feeds[-1]


def test_what_feeds_are_sent_is_billed(meter: Meter) -> None:
    with _Feeding() as inner:
        store = MeteredStore(inner, meter)
        feeds = [store.open_feed(None) for _ in range(2)]
        assert feeds == inner.feeds
        assert isinstance(store, FeedStore)
        feeds[0].documents_read = 100
        feeds[1].documents_read = 7
        report = meter.report()
        assert report.listener == Units(reads=107)
        assert report.actual == Usage(Units(reads=107))
        assert store.path == inner.path


def test_a_store_without_feeds_offers_none(store: MeteredStore) -> None:
    assert not hasattr(store, "open_feed")
    assert not isinstance(store, FeedStore)


async def test_a_health_probe_is_billed_where_the_store_says_so(
    store: MeteredStore, meter: Meter
) -> None:
    class Billed(SQLiteStore):
        health_reads = 1

    class AsyncBilled(ThreadedAsyncStore):
        health_reads = 1

    store.health()
    assert meter.report().actual == Usage()
    with Billed(":memory:") as inner:
        assert MeteredStore(inner, meter).health().ok
        bridge = AsyncBilled(inner)
        assert (await MeteredAsyncStore(bridge, meter).health()).ok
        await bridge.close()
    assert meter.report().actual == Usage(Units(reads=2), 2)
    assert meter.report().probes == Units(reads=2)
    assert possible(meter) == (0, 0, 0)


@pytest.mark.parametrize(
    ("error", "unknown"),
    [(StoreTimeout("late"), 1), (StoreRefused("no permission"), 0), (None, 1)],
    ids=repr,
)
async def test_a_failed_probe_is_billed_at_most(
    meter: Meter, error: Exception | None, unknown: int
) -> None:
    class Billed(SQLiteStore):
        health_reads = 1

        def health(self) -> StoreHealth:
            return StoreHealth(ok=False, latency_s=0.0, detail="failed", error=error)

    class AsyncBilled(ThreadedAsyncStore):
        health_reads = 1

    with Billed(":memory:") as inner:
        assert not MeteredStore(inner, meter).health().ok
        bridge = AsyncBilled(inner)
        assert not (await MeteredAsyncStore(bridge, meter).health()).ok
        await bridge.close()
    assert meter.report().actual == Usage(calls=2)
    assert possible(meter) == (2 * unknown, 0, 0)
