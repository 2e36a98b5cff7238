"""Transactions: past the cache, after own buffered writes, run again when others were faster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode.errors import (
    BreakerOpen,
    ClosedError,
    PreconditionFailed,
    RequestError,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    TransactionConflict,
)
from beastmode.optimizer import AsyncTransaction, BeastModeOptimizer, Transaction
from beastmode.requests import Request
from beastmode.stores.base import Filter, Query, deadline_in
from beastmode.stores.documents import Delete, Document, Operation, Precondition, Set
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore
from beastmode.stores.transactions import AsyncTransactionStore, TransactionStore
from beastmode.testing.pytest_plugin import Firestore
from layer.faulty_store import FaultyStore

Body = Callable[[Any], Coroutine[Any, Any, Any]]
Transact = Callable[..., Any]
WAIT_S = 20.0


class Awaited:
    """A `Transaction` whose reads are awaited, so that one function does for both kinds."""

    def __init__(self, inner: Transaction) -> None:
        self._inner = inner

    async def get(self, path: str) -> Document:
        return self._inner.get(path)

    async def get_many(self, paths: Sequence[str]) -> list[Document]:
        return self._inner.get_many(paths)

    async def query(self, query: Query) -> list[Document]:
        return self._inner.query(query)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def by_thread(optimizer: BeastModeOptimizer, body: Body, **options: Any) -> Any:
    def function(transaction: Transaction) -> Any:
        coroutine = body(Awaited(transaction))
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it awaits something else")

    return optimizer.run_transaction(function, **options)


def by_coroutine(optimizer: BeastModeOptimizer, body: Body, **options: Any) -> Any:
    return asyncio.run(optimizer.arun_transaction(body, **options))


@pytest.fixture(params=["sync", "async"])
def transact(request: pytest.FixtureRequest) -> Transact:
    return by_thread if request.param == "sync" else by_coroutine


@pytest.fixture(params=["sqlite", "memory", "firestore"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., BeastModeOptimizer]]:
    """Make an optimizer over a store of `kind` that keeps writes in its buffer until a flush."""
    made: list[tuple[BeastModeOptimizer, Any, Any]] = []

    def make(kind: str = "sqlite", **settings: Any) -> BeastModeOptimizer:
        settings = {
            "batch_max_delay_ms": 60_000,
            "journal_path": str(tmp_path / f"journal-{len(made)}.db"),
            **settings,
        }
        store: Any = settings.pop("store", None)
        other: Any = None
        if store is None and kind == "firestore":
            place: Firestore = request.getfixturevalue("firestore")
            store = FirestoreStore(place.project, emulator_host=place.host)
            other = AsyncFirestoreStore(place.project, emulator_host=place.host)
        elif store is None:
            store = SQLiteStore(":memory:" if kind == "memory" else tmp_path / "app.db")
        optimizer = BeastModeOptimizer(store, async_store=other, **settings)
        made.append((optimizer, store, other))
        optimizer.start()
        return optimizer

    yield make
    for optimizer, store, other in made:
        optimizer.close()
        store.close()
        if other is not None:
            asyncio.run(other.close())


def read(optimizer: BeastModeOptimizer, path: str) -> Any:
    return optimizer.handle_request_sync(None, Request.get(path)).data


def stored(optimizer: BeastModeOptimizer, path: str) -> Any:
    """What the store has, past everything."""
    return optimizer._parts.store.get(path).data


def deafen(optimizer: BeastModeOptimizer) -> None:
    """Let the cache hear of no change from now on, as if the stream were late."""
    optimizer.cache.apply_change = lambda change: None  # type: ignore[method-assign]


def buffer(optimizer: BeastModeOptimizer, path: str, **data: Any) -> None:
    optimizer.handle_request_sync(None, Request.set(path, data))
    assert path in optimizer._unflushed


async def increment(transaction: Any) -> int:
    document = await transaction.get("counters/1")
    count: int = (document.data or {"n": 0})["n"] + 1
    transaction.set("counters/1", {"n": count})
    return count


# -- what everybody may rely on ----------------------------------------------------------------


def test_reads_pass_the_cache_and_the_cache_learns_of_the_commit(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact
) -> None:
    optimizer = make(kind)
    store = optimizer._parts.store
    store.commit([Set("users/1", {"n": 1}), Set("users/2", {"n": 1}), Set("users/3", {"n": 1})])
    assert [read(optimizer, f"users/{number}") for number in (1, 2, 3)] == [{"n": 1}] * 3
    deafen(optimizer)
    store.commit([Set("users/1", {"n": 7})])

    async def body(transaction: Any) -> int:
        first, second, _, none = await transaction.get_many(
            ["users/1", "users/2", "users/3", "users/4"]
        )
        found = await transaction.query(Query("users", (Filter("n", "==", 1),)))
        assert [document.path for document in found] == ["users/2", "users/3"]
        assert (first.data, none.data) == ({"n": 7}, None)
        transaction.set("users/1", {"n": first.data["n"] + second.data["n"]})
        transaction.update("users/2", {"n": 5})
        transaction.delete("users/3")
        transaction.merge("users/4", {"n": 9})
        return 42

    assert transact(optimizer, body) == 42
    expected = {"users/1": {"n": 8}, "users/2": {"n": 5}, "users/3": None, "users/4": {"n": 9}}
    for path, data in expected.items():
        assert stored(optimizer, path) == data
        assert read(optimizer, path) == data, "and none of it waits for the stream"


def test_what_it_read_outdates_what_is_held(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()
    store = optimizer._parts.store
    deafen(optimizer)  # before the first load, which the echo of the first write would overtake
    store.commit([Set("users/1", {"n": 1})])
    assert read(optimizer, "users/1") == {"n": 1}
    store.commit([Set("users/1", {"n": 2})])

    async def body(transaction: Any) -> Any:
        return (await transaction.get("users/1")).data

    assert read(optimizer, "users/1") == {"n": 1}
    assert transact(optimizer, body) == {"n": 2}
    assert read(optimizer, "users/1") == {"n": 2}, "nobody goes back behind what was seen"


@pytest.mark.parametrize("declared", [True, False])
def test_own_buffered_writes_come_first(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact, declared: bool
) -> None:
    optimizer = make(kind)
    buffer(optimizer, "counters/1", n=10)
    assert transact(optimizer, increment, paths=["counters/1"] if declared else ()) == 11
    optimizer.flush()
    assert stored(optimizer, "counters/1") == {"n": 11}, "the buffered one did not come after it"


def test_writes_that_were_not_read_come_after_the_buffered_ones(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact
) -> None:
    optimizer = make(kind)
    buffer(optimizer, "users/1", n=1)
    runs = []

    async def body(transaction: Any) -> None:
        runs.append(1)
        await transaction.get("users/2")
        transaction.set("users/1", {"n": 2})

    transact(optimizer, body)
    optimizer.flush()
    assert stored(optimizer, "users/1") == {"n": 2}
    assert len(runs) == 2, "once something is read, the buffer may be waiting for it"


def test_buffered_writes_found_after_the_first_read_make_it_begin_again(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact
) -> None:
    optimizer = make(kind)
    seen: list[tuple[Any, Any]] = []

    async def body(transaction: Any) -> None:
        first = await transaction.get("users/1")
        if not seen:
            seen.append((None, None))
            buffer(optimizer, "users/2", n=2)
            buffer(optimizer, "orders/1", n=3)
        second = await transaction.get("users/2")
        orders = await transaction.query(Query("orders"))
        seen.append((second.data, [order.data for order in orders]))
        transaction.set("users/1", {"n": (first.data or {"n": 0})["n"] + second.data["n"]})

    transact(optimizer, body)
    assert seen == [(None, None), ({"n": 2}, [{"n": 3}])]
    assert stored(optimizer, "users/1") == {"n": 2}


@pytest.mark.parametrize("mixed", [False, True])
def test_no_update_is_lost_between_two_who_increment(
    make: Callable[..., BeastModeOptimizer], kind: str, mixed: bool
) -> None:
    """Each conflict costs two seconds on the emulator, where one waits for the other's lock."""
    optimizer = make(kind)
    times = 3 if kind == "firestore" else 40
    errors: list[BaseException] = []
    begin = threading.Barrier(2)

    def work(transact: Transact) -> None:
        try:
            begin.wait(WAIT_S)
            for _ in range(times):
                transact(optimizer, increment, deadline=deadline_in(60), max_attempts=1000)
        except BaseException as error:
            errors.append(error)

    ways = (by_thread, by_coroutine if mixed else by_thread)
    threads = [threading.Thread(target=work, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert stored(optimizer, "counters/1") == read(optimizer, "counters/1") == {"n": 2 * times}


def test_what_the_function_raises_ends_it_and_nothing_is_committed(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact
) -> None:
    optimizer = make(kind)

    async def body(transaction: Any) -> None:
        await transaction.get("users/1")
        transaction.set("users/1", {"n": 1})
        raise KeyError("no")

    with pytest.raises(KeyError):
        transact(optimizer, body)
    began = time.monotonic()
    optimizer._parts.store.commit([Set("users/1", {"n": 2})])
    assert time.monotonic() - began < 1.5, "it was rolled back and keeps nobody waiting"
    assert read(optimizer, "users/1") == {"n": 2}


def test_a_refused_commit_is_told_and_applies_nothing(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact
) -> None:
    optimizer = make(kind)
    runs = []

    async def body(transaction: Any) -> None:
        runs.append(1)
        transaction.set("users/1", {"n": 1})
        transaction.set("users/2", {"n": 1}, Precondition(exists=True))

    with pytest.raises(PreconditionFailed):
        transact(optimizer, body)
    assert stored(optimizer, "users/1") is None
    assert len(runs) == 1


def test_a_commit_that_cannot_be_sent_keeps_nobody_waiting(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make("firestore")
    optimizer._parts.store.commit([Set("users/1", {"n": 1})])

    async def body(transaction: Any) -> None:
        await transaction.get("users/1")
        transaction.set("users/1", {"n": [[1]]})

    with pytest.raises(RequestError, match="no list directly inside a list"):
        transact(optimizer, body)
    began = time.monotonic()
    optimizer._parts.store.commit([Set("users/1", {"n": 2})])
    assert time.monotonic() - began < 1.5, "it was rolled back and keeps nobody waiting"


def test_it_is_counted_as_what_it_would_cost_straight(
    make: Callable[..., BeastModeOptimizer], kind: str, transact: Transact
) -> None:
    optimizer = make(kind, sync_interval_ms=60_000)
    meter = optimizer._parts.meter
    before = meter.report()

    async def body(transaction: Any) -> None:
        await transaction.get_many(["users/1", "users/2", "users/1"])
        await transaction.query(Query("users"))
        transaction.set("users/1", {"n": 1})
        transaction.delete("users/2")

    transact(optimizer, body)
    after = meter.report()
    for account, usage in (("actual", after.actual), ("baseline", after.baseline)):
        base = getattr(before, account)
        units = usage.units - base.units
        assert (units.reads, units.writes, units.deletes) == (3, 1, 1), account
        assert usage.calls - base.calls == 4, "begin, two reads, commit"


# -- conflicts ---------------------------------------------------------------------------------


def test_a_conflict_runs_it_again(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()
    seen: list[Any] = []

    async def body(transaction: Any) -> Any:
        document = await transaction.get("users/1")
        seen.append(document.data)
        if len(seen) == 1:
            optimizer._parts.store.commit([Set("users/1", {"n": 1})])
        transaction.merge("users/1", {"m": 1})
        return len(seen)

    assert transact(optimizer, body) == 2
    assert seen == [None, {"n": 1}]
    assert read(optimizer, "users/1") == {"n": 1, "m": 1}
    assert optimizer.get_stats().signal.state == "closed"


@pytest.mark.parametrize("change", ["another", "fewer", "more"])
def test_what_a_query_finds_counts_as_read(
    make: Callable[..., BeastModeOptimizer], transact: Transact, change: str
) -> None:
    optimizer = make()
    store = optimizer._parts.store
    store.commit([Set("users/1", {"n": 1}), Set("others/1", {"n": 1})])
    changes: dict[str, Operation] = {
        "another": Set("users/1", {"n": 2}),
        "fewer": Delete("users/1"),
        "more": Set("users/2", {"n": 1}),
    }
    found: list[int] = []

    async def body(transaction: Any) -> None:
        found.append(len(await transaction.query(Query("users"))))
        if len(found) == 1:
            store.commit([Set("others/1", {"n": len(found) + 5}), changes[change]])
        transaction.set("sums/1", {"n": found[-1]})

    transact(optimizer, body)
    assert len(found) == 2
    assert stored(optimizer, "sums/1") == {"n": found[-1]}


def test_its_reads_are_of_one_moment(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    """No run ever sees one of two documents that are written together without the other."""
    optimizer = make()
    store = optimizer._parts.store
    store.commit([Set("a/1", {"n": 0}), Set("b/1", {"n": 0})])
    pairs: list[tuple[int, int]] = []
    runs = []

    async def body(transaction: Any) -> None:
        runs.append(1)
        first = (await transaction.get("a/1")).data["n"]
        if len(runs) == 1:
            store.commit([Set("a/1", {"n": 1}), Set("b/1", {"n": 1})])
        (second,) = await transaction.query(Query("b"))
        pairs.append((first, second.data["n"]))

    transact(optimizer, body)
    assert pairs == [(1, 1)]
    assert len(runs) == 2


def test_a_conflict_that_the_function_caught_counts_all_the_same(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()
    store = optimizer._parts.store
    runs = []

    async def body(transaction: Any) -> None:
        runs.append(1)
        await transaction.get("users/1")
        if len(runs) == 1:
            store.commit([Set("users/1", {"n": 1})])
        for _ in range(2):
            try:
                await transaction.get("users/2")
            except TransactionConflict:
                assert len(runs) == 1
        transaction.set("users/2", {"n": len(runs)})

    transact(optimizer, body)
    assert stored(optimizer, "users/2") == {"n": 2}


def test_it_gives_up_after_max_attempts(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()
    runs = []

    async def body(transaction: Any) -> None:
        runs.append(1)
        await transaction.get("users/1")
        optimizer._parts.store.commit([Set("users/1", {"n": len(runs)})])
        transaction.set("users/2", {})

    failed = optimizer._tally.failed
    with pytest.raises(TransactionConflict, match="3 times"):
        transact(optimizer, body, max_attempts=3)
    assert len(runs) == 3
    assert stored(optimizer, "users/2") is None
    assert optimizer._tally.failed == failed + 1


def test_it_ends_at_its_deadline(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()

    async def body(transaction: Any) -> None:
        await transaction.get("users/1")
        optimizer._parts.store.commit([Set("users/1", {"t": time.time_ns()})])
        transaction.set("users/2", {})

    began = time.monotonic()
    with pytest.raises((TransactionConflict, StoreTimeout)):
        transact(optimizer, body, deadline=deadline_in(0.5), max_attempts=10_000)
    assert time.monotonic() - began < 1.5


# -- when the store fails ----------------------------------------------------------------------


class Transactional(FaultyStore):
    """A FaultyStore with transactions, whose commits go through its hooks."""

    def begin_transaction(self, *, retry_of: bytes = b"", deadline: float | None = None) -> Any:
        self._ask()
        return _Hooked(self, self.inner.begin_transaction(deadline=deadline))  # type: ignore[attr-defined]


class _Hooked:
    token = b"t"

    def __init__(self, store: Transactional, inner: Any) -> None:
        self._store = store
        self._inner = inner
        self.get_many, self.query, self.rollback = inner.get_many, inner.query, inner.rollback

    def commit(self, operations: Sequence[Operation], *, deadline: float | None = None) -> Any:
        if self._store.before is not None:
            self._store.before(operations)
        versions = self._inner.commit(operations, deadline=deadline)
        if self._store.after is not None:
            self._store.after(operations)
        return versions


@pytest.mark.parametrize("error", [StoreUnavailable, TransactionConflict, StoreTimeout])
def test_a_commit_of_unknown_outcome_is_told_and_drops_what_is_held(
    make: Callable[..., BeastModeOptimizer],
    tmp_path: Path,
    transact: Transact,
    error: type[StoreError],
) -> None:
    store = Transactional(SQLiteStore(tmp_path / "app.db"))
    optimizer = make(store=store)
    store.inner.commit([Set("users/1", {"n": 1})])
    assert read(optimizer, "users/1") == {"n": 1}
    deafen(optimizer)
    runs = []

    def lose(_operations: Sequence[Operation]) -> None:
        lost = error("the answer was lost")
        lost.maybe_applied = True
        raise lost

    async def body(transaction: Any) -> None:
        runs.append(1)
        transaction.set("users/1", {"n": 2})

    store.after = lose
    with pytest.raises((StoreUnavailable, StoreTimeout)) as caught:
        transact(optimizer, body)
    assert caught.value.maybe_applied
    assert len(runs) == 1, "it may be in the store, so it is not run again"
    assert not optimizer.cache.holds("users/1")
    assert read(optimizer, "users/1") == {"n": 2}


def test_while_the_store_is_not_asked_it_is_refused_at_once(
    make: Callable[..., BeastModeOptimizer], tmp_path: Path, transact: Transact
) -> None:
    store = Transactional(SQLiteStore(tmp_path / "app.db"))
    optimizer = make(store=store, healing_interval_s=60)
    store.down = StoreUnavailable("down")
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            transact(optimizer, increment)
    asked = store.asked
    with pytest.raises(BreakerOpen):
        transact(optimizer, increment)
    assert store.asked == asked
    buffer(optimizer, "counters/1", n=1)
    with pytest.raises(BreakerOpen):
        transact(optimizer, increment, paths=["counters/1"])
    store.down = None


async def test_a_cancelled_one_commits_nothing(make: Callable[..., BeastModeOptimizer]) -> None:
    optimizer = make()
    reached, never = asyncio.Event(), asyncio.Event()

    async def body(transaction: AsyncTransaction) -> None:
        await transaction.get("users/1")
        transaction.set("users/1", {"n": 1})
        reached.set()
        await never.wait()

    task = asyncio.create_task(optimizer.arun_transaction(body))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stored(optimizer, "users/1") is None


async def test_one_that_is_cancelled_while_it_commits_is_carried_to_its_end(
    make: Callable[..., BeastModeOptimizer], tmp_path: Path
) -> None:
    store = Transactional(SQLiteStore(tmp_path / "app.db"))
    optimizer = make(store=store)
    store.inner.commit([Set("users/1", {"n": 0})])
    assert read(optimizer, "users/1") == {"n": 0}
    committing, go_on = threading.Event(), threading.Event()

    def wait(_operations: Sequence[Operation]) -> None:
        committing.set()
        assert go_on.wait(WAIT_S)

    store.before = wait

    async def body(transaction: AsyncTransaction) -> None:
        transaction.set("users/1", {"n": 1})

    task = asyncio.create_task(optimizer.arun_transaction(body))
    assert await asyncio.to_thread(committing.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    limit = time.monotonic() + WAIT_S
    while read(optimizer, "users/1") != {"n": 1}:
        assert time.monotonic() < limit
        await asyncio.sleep(0.005)


# -- mistakes ----------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_is_done(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()
    kept: list[Any] = []

    async def reads_after_writing(transaction: Any) -> None:
        kept.append(transaction)
        transaction.set("users/1", {})
        await transaction.get("users/1")

    with pytest.raises(RequestError, match="reads everything before"):
        transact(optimizer, reads_after_writing)
    with pytest.raises(RequestError, match="after its function had returned"):
        kept[0].set("users/1", {})
    assert stored(optimizer, "users/1") is None

    async def nothing(_transaction: Any) -> None:
        raise AssertionError("it must not be run")

    for name, value in (("max_attempts", 0), ("max_attempts", True), ("paths", "users/1")):
        with pytest.raises(RequestError, match=name):
            transact(optimizer, nothing, **{name: value})
    with pytest.raises(RequestError, match="deadline"):
        transact(optimizer, nothing, deadline="soon")
    with pytest.raises(StoreTimeout):
        transact(optimizer, nothing, deadline=time.monotonic() - 1)
    for bad in ("get", "get_many", "query", "write"):

        async def wrong(transaction: Any, bad: str = bad) -> None:
            outcome = getattr(transaction, bad)(7)
            if isinstance(outcome, Awaitable):
                await outcome

        with pytest.raises(RequestError, match="7"):
            transact(optimizer, wrong)


async def test_functions_of_the_other_kind_are_told(
    make: Callable[..., BeastModeOptimizer],
) -> None:
    optimizer = make()
    with pytest.raises(RequestError, match="arun_transaction"):
        optimizer.run_transaction(increment)
    with pytest.raises(RequestError, match="async function"):
        await optimizer.arun_transaction(lambda _: 1)  # type: ignore[arg-type, return-value]
    with pytest.raises(RequestError, match="callable"):
        optimizer.run_transaction(None)  # type: ignore[arg-type]


def test_a_store_without_transactions_is_told(
    make: Callable[..., BeastModeOptimizer], tmp_path: Path, transact: Transact
) -> None:
    store = FaultyStore(SQLiteStore(tmp_path / "app.db"))
    assert not isinstance(store, TransactionStore)
    assert not isinstance(ThreadedAsyncStore(store), AsyncTransactionStore)
    optimizer = make(store=store)
    with pytest.raises(RequestError, match=r"FaultyStore.* has no transactions"):
        transact(optimizer, increment)


def test_after_close_there_are_none(
    make: Callable[..., BeastModeOptimizer], transact: Transact
) -> None:
    optimizer = make()
    optimizer.close()
    with pytest.raises(ClosedError):
        transact(optimizer, increment)
    with pytest.raises(ClosedError), optimizer.writing("users/1"):
        pass


# -- transactions of other clients -------------------------------------------------------------


def test_what_others_write_past_the_optimizer(
    make: Callable[..., BeastModeOptimizer], kind: str
) -> None:
    optimizer = make(kind)
    buffer(optimizer, "users/1", n=1)
    with optimizer.writing("users/1", "users/2"):
        assert stored(optimizer, "users/1") == {"n": 1}, "the buffered write is in the store"
        deafen(optimizer)
        assert read(optimizer, "users/2") is None
        optimizer._parts.store.commit([Set("users/1", {"n": 2}), Set("users/2", {"n": 2})])
    assert read(optimizer, "users/1") == read(optimizer, "users/2") == {"n": 2}
    optimizer.flush()
    assert stored(optimizer, "users/1") == {"n": 2}


def test_a_transaction_of_the_clients_own(
    make: Callable[..., BeastModeOptimizer], firestore: Firestore
) -> None:
    """It reads what was only in our buffer, and we read at once what it has written."""
    from google.cloud import firestore as google

    optimizer = make("firestore")
    deafen(optimizer)
    buffer(optimizer, "counters/1", n=1)
    client = google.Client(firestore.project)
    counter = client.document("counters/1")

    @google.transactional
    def count(transaction: Any) -> None:
        (held,) = transaction.get(counter)
        transaction.set(counter, {"n": held.get("n") + 1})

    for number in (2, 3):
        with optimizer.writing("counters/1"):
            count(client.transaction())
        assert read(optimizer, "counters/1") == {"n": number}
    client.close()


async def test_the_same_for_coroutines(make: Callable[..., BeastModeOptimizer]) -> None:
    optimizer = make()
    buffer(optimizer, "users/1", n=1)
    with pytest.raises(KeyError):
        async with optimizer.awriting("users/1"):
            deafen(optimizer)
            optimizer._parts.store.commit([Set("users/1", {"n": 2})])
            raise KeyError("after the commit")
    assert read(optimizer, "users/1") == {"n": 2}
    for bad in ((), ("users",), (7,)):
        with pytest.raises(RequestError):
            async with optimizer.awriting(*bad):  # type: ignore[arg-type]
                pass
        with pytest.raises(RequestError), optimizer.writing(*bad):  # type: ignore[arg-type]
            pass


# -- of a store itself -------------------------------------------------------------------------


def test_a_transaction_of_firestore_that_is_over_says_so(firestore: Firestore) -> None:
    store = FirestoreStore(firestore.project, emulator_host=firestore.host)
    held = store.begin_transaction()
    assert isinstance(held.token, bytes)
    assert held.get_many(["users/1"])[0].data is None
    held.rollback()
    with pytest.raises(TransactionConflict) as caught:
        held.commit([Set("users/1", {})])
    assert not caught.value.maybe_applied
    with pytest.raises(TransactionConflict):
        store.begin_transaction(retry_of=b"never heard of")
    with pytest.raises(RequestError, match="retry_of"):
        store.begin_transaction(retry_of="text")  # type: ignore[arg-type]
    assert store.get("users/1").data is None
    store.close()
