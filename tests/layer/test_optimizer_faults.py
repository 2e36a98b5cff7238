"""The optimizer where something goes wrong: bad input, failing starts, races, hooks that raise."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode import (
    BeastModeOptimizer,
    Delete,
    Merge,
    Precondition,
    Query,
    Request,
    Set,
    SQLiteStore,
    ThreadedAsyncStore,
    Update,
)
from beastmode.cache import loader
from beastmode.cache.readthrough import BeastModeCache
from beastmode.errors import (
    ConfigError,
    DocumentMissing,
    JournalError,
    PreconditionFailed,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.stores.base import (
    Filter,
    Order,
    QueryResult,
    StoreHealth,
    Subscription,
    Target,
)
from beastmode.stores.documents import Document, Operation
from layer.faulty_store import FaultyStore


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "app.db")


def eventually(check: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        lambda: Request("dlete", path="users/1"),  # type: ignore[arg-type]
        lambda: Request("set", path="users/1"),
        lambda: Request("commit", operations=(1,)),  # type: ignore[arg-type]
        lambda: Request("get"),
        lambda: Request("get", path=[1]),  # type: ignore[arg-type]
        lambda: Request("get_many", paths=["users/1"]),  # type: ignore[arg-type]
        lambda: Request("query"),
        lambda: Request.get_many(5),  # type: ignore[arg-type]
        lambda: Request.commit(5),  # type: ignore[arg-type]
        lambda: Request.set("users/1", {}, 7),  # type: ignore[arg-type]
        lambda: Query("users", (1,)),  # type: ignore[arg-type]
        lambda: Query("users", (), ("name",)),  # type: ignore[arg-type]
        lambda: Query("users", limit="5"),  # type: ignore[arg-type]
        lambda: Query("users", limit=1.5),  # type: ignore[arg-type]
        lambda: Order("name", "down"),  # type: ignore[arg-type]
        lambda: Precondition(exists="yes"),  # type: ignore[arg-type]
        lambda: Precondition(version="7"),  # type: ignore[arg-type]
        lambda: Request.parse({"op": "query", "collection": "users", "order_by": "name"}),
    ],
)
def test_a_malformed_value_is_refused_where_it_is_made(made: Any) -> None:
    with pytest.raises(RequestError):
        made()


def test_a_query_takes_lists_of_conditions_too() -> None:
    Query("users", [Filter("a", "==", 1)], [Order("a")])  # type: ignore[arg-type]


@pytest.mark.parametrize("deadline", ["soon", float("nan"), True])
def test_a_bad_deadline_is_named(path: str, deadline: Any) -> None:
    with BeastModeOptimizer(path) as optimizer:
        for what in (
            Request.get("users/1"),
            Request.get_many(["users/1"]),
            Request.query(Query("users")),
            Request.set("users/1", {}),
            Request.commit([Set("users/1", {})]),
        ):
            with pytest.raises(RequestError, match="deadline must be seconds"):
                optimizer.handle_request_sync(None, what, deadline=deadline)
            with pytest.raises(RequestError, match="deadline must be seconds"):
                asyncio.run(optimizer.handle_request(None, what, deadline=deadline))
        assert not optimizer._parts.unflushed


def test_closing_with_a_bad_deadline_closes_nothing(path: str) -> None:
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        optimizer.handle_request_sync(None, Request.set("users/1", {"n": 1}))
        with pytest.raises(RequestError, match="deadline must be seconds"):
            optimizer.close("soon")  # type: ignore[arg-type]
        assert optimizer.handle_request_sync(None, Request.get("users/1")).data == {"n": 1}
    with SQLiteStore(path) as store:
        assert store.get("users/1").data == {"n": 1}


def test_a_user_that_cannot_be_a_key_is_named(path: str) -> None:
    with BeastModeOptimizer(path) as optimizer:
        for what in (Request.get("users/1"), Request.get("users/1"), Request.heartbeat()):
            with pytest.raises(RequestError, match=r"user_id must be hashable.*\[1\]"):
                optimizer.handle_request_sync([1], what)  # type: ignore[arg-type]
            optimizer.handle_request_sync(None, what)  # the second get is a hit


def test_a_store_of_the_wrong_kind_is_refused() -> None:
    with SQLiteStore(":memory:") as store:
        with pytest.raises(ConfigError, match="methods are not awaited"):
            BeastModeOptimizer(ThreadedAsyncStore(store), write_mode="write-through")
        with pytest.raises(ConfigError, match="methods are awaited"):
            BeastModeOptimizer(store, async_store=store)  # type: ignore[arg-type]


def test_two_names_for_the_store_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        BeastModeOptimizer(path, store_path=str(tmp_path / "other.db"))
    assert not list(tmp_path.iterdir())


def test_what_the_caller_changes_after_a_write_reaches_nothing(path: str) -> None:
    raw = bytearray(b"abc")
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        optimizer.handle_request_sync(None, Request.set("users/1", {"raw": raw}))
        raw[:] = b"xyz"
        optimizer.handle_request_sync(None, Request.set("users/2", {"raw": memoryview(b"abc")}))
        for _ in range(2):  # from the buffer, and from the cache
            for number in (1, 2):
                read = optimizer.handle_request_sync(None, Request.get(f"users/{number}"))
                assert read.data == {"raw": b"abc"}
                assert type(read.data["raw"]) is bytes
            optimizer.flush()
        optimizer.disable_beast_mode()
        assert optimizer.handle_request_sync(None, Request.get("users/1")).data == {"raw": b"abc"}


async def test_a_commit_keeps_what_it_was_given(path: str) -> None:
    data: dict[str, Any] = {"n": 1}
    async with BeastModeOptimizer(path) as optimizer:
        await optimizer.handle_request(None, Request.get("users/1"))
        task = asyncio.create_task(
            optimizer.handle_request(None, Request.commit([Set("users/1", data)]))
        )
        await asyncio.sleep(0)
        data["n"] = 2
        await task
        read = await optimizer.handle_request(None, Request.get("users/1"))
        assert (read.source, read.data) == ("hit", {"n": 1})


def test_a_damaged_document_holds_up_no_other_write(path: str) -> None:
    with SQLiteStore(path) as store:
        store.commit([Set(f"users/{n}", {"n": n}) for n in range(3)])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE docs SET body = '{\"n\":x}' WHERE id = '1'")
    raw.close()
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        for n in range(3):
            optimizer.handle_request_sync(None, Request.update(f"users/{n}", {"m": n}))
        optimizer.flush(time.monotonic() + 10)
        eventually(lambda: optimizer.get_stats().batcher.journal_dead_letters == 1)
        assert optimizer.handle_request_sync(None, Request.get("users/2")).data == {"n": 2, "m": 2}
        with pytest.raises(WriteRejected, match="write or delete the document to repair it"):
            optimizer.handle_request_sync(None, Request.commit([Merge("users/1", {"m": 1})]))
        optimizer.handle_request_sync(None, Request.commit([Set("users/1", {"n": 5})]))
        assert optimizer.handle_request_sync(None, Request.get("users/1")).data == {"n": 5}


# -- starting and ending ------------------------------------------------------------------------


def test_a_failed_start_leaves_nothing_open(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = BeastModeOptimizer(path)

    def fail() -> None:
        raise JournalError("cannot be read")

    monkeypatch.setattr(optimizer._parts.batcher, "start", fail)
    with pytest.raises(JournalError, match="cannot be read"):
        optimizer.start()
    with pytest.raises(Exception, match="before start"):
        optimizer.handle_request_sync(None, Request.get("users/1"))
    with pytest.raises(JournalError, match="cannot be read"), optimizer:
        pass
    with BeastModeOptimizer(path) as again:  # the journal is free
        assert again.active


def test_the_journal_of_an_optimizer_that_nobody_closed_is_free(path: str) -> None:
    for _ in range(3):
        BeastModeOptimizer(path)
        gc.collect()
    with BeastModeOptimizer(path) as optimizer:
        assert optimizer.active


class _SlowHealth(FaultyStore):
    """Answers a probe when it may."""

    def __init__(self, store: SQLiteStore) -> None:
        super().__init__(store)
        self.probing = threading.Event()
        self.go_on = threading.Event()
        self.slow = False

    def health(self) -> StoreHealth:
        if not self.slow:
            return StoreHealth(ok=False, latency_s=0.0, detail="not yet")
        self.probing.set()
        self.go_on.wait(10)
        return StoreHealth(ok=True, latency_s=0.0)


def test_disabling_during_the_probe_that_would_activate_wins(path: str) -> None:
    store = _SlowHealth(SQLiteStore(path))
    with BeastModeOptimizer(store, write_mode="write-through") as optimizer:
        assert not optimizer.active
        store.slow = True
        assert store.probing.wait(10)
        optimizer.disable_beast_mode()
        store.go_on.set()
        job = next(job for job in optimizer.get_stats().jobs if job.name == "activation")
        eventually(
            lambda: any(
                each.name == job.name and each.runs > job.runs + 1
                for each in optimizer.get_stats().jobs
            )
        )
        assert not optimizer.active
        assert optimizer.enable_beast_mode()
    store.close()


def test_a_long_flush_of_disabling_blocks_neither_settings_nor_close(path: str) -> None:
    store = FaultyStore(SQLiteStore(path))

    def refuse(operations: Sequence[Operation]) -> None:
        raise StoreUnavailable("switched off")

    store.before = refuse
    optimizer = BeastModeOptimizer(store, journal_path=f"{path}-journal.db").start()
    optimizer.handle_request_sync(None, Request.set("users/1", {}))
    failures: list[BaseException] = []

    def disable() -> None:
        try:
            optimizer.disable_beast_mode(time.monotonic() + 1.5)
        except StoreTimeout as error:
            failures.append(error)

    thread = threading.Thread(target=disable)
    thread.start()
    eventually(lambda: not optimizer.active)
    began = time.monotonic()
    optimizer.configure(cache_ttl_s=5)
    with pytest.raises(StoreTimeout):
        optimizer.close(time.monotonic() + 0.1)
    assert time.monotonic() - began < 1.4
    thread.join()
    assert failures
    assert not optimizer.active  # it was closed meanwhile
    store.close()


async def test_a_commit_that_ends_after_close_tells_its_outcome(path: str) -> None:
    store = SQLiteStore(path)
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(ThreadedAsyncStore):
        async def commit(
            self, operations: Sequence[Operation], *, deadline: float | None = None
        ) -> list[int]:
            begun.set()
            await go_on.wait()
            return await super().commit(operations, deadline=deadline)

    slow = Slow(store)
    async with BeastModeOptimizer(store, async_store=slow, write_mode="write-through") as optimizer:
        task = asyncio.create_task(
            optimizer.handle_request(None, Request.commit([Set("users/1", {"n": 1})]))
        )
        await begun.wait()
    go_on.set()
    assert len((await task).versions or []) == 1
    assert store.get("users/1").data == {"n": 1}
    await slow.close()
    store.close()


async def test_beast_mode_is_switched_without_blocking_the_loop(path: str) -> None:
    async with BeastModeOptimizer(path) as optimizer:
        await optimizer.adisable_beast_mode()
        assert not optimizer.active
        assert await optimizer.aenable_beast_mode()


# -- consistency --------------------------------------------------------------------------------


def test_no_reader_sees_a_state_from_inside_a_commit(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Document | None] = []
    with BeastModeOptimizer(path) as optimizer:
        optimizer.handle_request_sync(None, Request.get("users/1"))
        cache = optimizer.cache
        finish = cache.write_finished

        def spy(document_path: str, document: Document | None, **known: Any) -> None:
            finish(document_path, document, **known)
            seen.append(cache.lookup("users/1"))

        monkeypatch.setattr(cache, "write_finished", spy)
        operations = [Set("users/1", {"n": 1}), Merge("users/1", {"m": 1}), Set("users/2", {})]
        optimizer.handle_request_sync(None, Request.commit(operations))
        operations = [Set("users/1", {"n": 2}), Delete("users/1"), Set("users/1", {"n": 3})]
        optimizer.handle_request_sync(None, Request.commit(operations))
        # The watch may have told of the first commit, whose end its operations do not tell alone.
        ends = [{"n": 1, "m": 1}, {"n": 3}]
        shown = [document.data for document in seen if document is not None]
        assert all(data in ends for data in shown)
        assert shown[-1] == ends[-1]
        assert [data for data in shown if data == ends[-1]] == shown[shown.index(ends[-1]) :]


def test_a_buffered_write_is_not_shown_over_a_newer_commit(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batcher has committed a write and told the cache, and is held up right after that."""
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        told, go_on = threading.Event(), threading.Event()
        callbacks = optimizer._parts.batcher._callbacks
        committed = callbacks.committed

        def slowly(parts: Any) -> None:
            committed(parts)
            told.set()
            go_on.wait(10)

        monkeypatch.setattr(callbacks, "committed", slowly)
        optimizer.handle_request_sync(None, Request.merge("users/1", {"n": 1}))
        flusher = threading.Thread(target=optimizer.flush)
        flusher.start()
        assert told.wait(10)
        optimizer.handle_request_sync(None, Request.commit([Set("users/1", {"n": 2})]))
        for request in (Request.get("users/1"), Request.get_many(["users/1"])):
            answer = optimizer.handle_request_sync(None, request)
            document = answer.document or (answer.documents or [])[0]
            assert document.data == {"n": 2}
        go_on.set()
        flusher.join()


def test_commits_that_finish_in_another_order_leave_the_newest(path: str) -> None:
    with SQLiteStore(path) as store:
        cache = BeastModeCache(store)
        for newer in (Set("users/1", {"n": 2}), Merge("users/1", {"m": 2})):
            cache.clear()
            cache.write_started("users/1")
            cache.write_started("users/1")
            (first,) = store.commit([Set("users/1", {"n": 1, "turn": first_of(newer)})])
            (second,) = store.commit([newer])
            held = Document("users/1", newer.data, second) if isinstance(newer, Set) else None
            cache.write_finished("users/1", held, version=second)
            cache.write_finished("users/1", Document("users/1", {"n": 1}, first))
            assert cache.get("users/1").document == store.get("users/1")
        cache.close()


def first_of(operation: Operation) -> str:
    """Something that makes the write before `operation` a change."""
    return type(operation).__name__


def test_writers_readers_and_switching_at_once(path: str) -> None:
    """Two event loops and a thread write and read their own documents while beast mode is switched
    off and on and settings change; everyone sees his own writes at once, and nothing is lost."""
    problems: list[str] = []
    end = time.monotonic() + 1.5
    counts: dict[str, int] = {}

    with BeastModeOptimizer(path, batch_max_delay_ms=5) as optimizer:

        def check(key: str, n: int, what: str, data: Any) -> None:
            if not data or data["n"] != n:
                problems.append(f"{what} of {key} after write {n}: {data}")

        def request(key: str, n: int) -> Request:
            if n % 4 == 1:
                return Request.set(key, {"n": n})
            if n % 4 == 2:
                return Request.merge(key, {"n": n})
            if n % 4 == 3:
                return Request.commit([Update(key, {"n": n}), Merge(f"{key}-b", {"n": n})])
            return Request.update(key, {"n": n}, Precondition(exists=True))

        async def task(key: str) -> None:
            n = 0
            while time.monotonic() < end:
                n += 1
                await optimizer.handle_request("u", request(key, n))
                read = await optimizer.handle_request("u", Request.get(key))
                check(key, n, f"get ({read.source})", read.data)
                many = await optimizer.handle_request("u", Request.get_many([key, "c/none"]))
                check(key, n, "get_many", (many.documents or [])[0].data)
                if n % 10 == 0:
                    query = Query("c", (Filter("n", "==", n),))
                    found = (await optimizer.handle_request("u", Request.query(query))).documents
                    if key not in {document.path for document in found or ()}:
                        problems.append(f"query of {key} after write {n}: {found}")
            counts[key] = n

        def loop(number: int) -> None:
            async def main() -> None:
                await asyncio.gather(*(task(f"c/{number}-{each}") for each in range(3)))

            asyncio.run(main())

        def thread() -> None:
            n = 0
            while time.monotonic() < end:
                n += 1
                optimizer.handle_request_sync("u", request("c/t", n))
                read = optimizer.handle_request_sync("u", Request.get("c/t"))
                check("c/t", n, f"get ({read.source})", read.data)
            counts["c/t"] = n

        def switch() -> None:
            turn = 0
            while time.monotonic() < end:
                turn += 1
                optimizer.disable_beast_mode()
                time.sleep(0.01)
                optimizer.enable_beast_mode()
                optimizer.configure(batch_max_ops=5 + turn % 50, cache_max_entries=2 + turn % 9)
                time.sleep(0.02)

        targets = [(loop, (0,)), (loop, (1,)), (thread, ()), (switch, ())]
        threads = [threading.Thread(target=target, args=args) for target, args in targets]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert not problems, problems[:3]
    assert len(counts) == 7
    with SQLiteStore(path) as store:
        for key, n in counts.items():
            document = store.get(key)
            assert document.data is not None
            assert document.data["n"] == n


# -- the event loop -----------------------------------------------------------------------------


class _Sleepy(FaultyStore):
    """Every call takes `seconds`."""

    seconds = 0.2

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        time.sleep(self.seconds)
        return super().get(path)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        time.sleep(self.seconds)
        return super().get_many(paths)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        time.sleep(self.seconds)
        return super().query(query)

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        time.sleep(self.seconds)
        return super().commit(operations)

    def watch(self, target: Target, on_change: Any) -> Subscription:
        time.sleep(self.seconds)
        return super().watch(target, on_change)

    def health(self) -> StoreHealth:
        time.sleep(self.seconds)
        return super().health()


@pytest.mark.parametrize("mode", ["write-behind", "write-through"])
async def test_no_store_call_delays_other_coroutines(path: str, mode: str) -> None:
    inner = SQLiteStore(path)
    longest = 0.0
    where = doing = "start"

    async def watch_the_loop() -> None:
        nonlocal longest, where
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            late = time.monotonic() - before - 0.005
            if late > longest:
                longest, where = late, doing

    watcher = asyncio.create_task(watch_the_loop())
    requests = [
        Request.get("users/1"),
        Request.set("users/1", {"n": 1}),
        Request.get("users/1"),
        Request.merge("users/2", {"n": 1}),
        Request.get("users/2"),
        Request.get_many(["users/1", "users/3"]),
        Request.query(Query("users")),
        Request.commit([Set("users/1", {"n": 2}), Delete("users/2")]),
        Request.set("users/1", {"n": 3}, Precondition(exists=True)),
        Request.heartbeat(),
    ]
    store = _Sleepy(inner)
    journal = f"{path}-journal.db"
    async with BeastModeOptimizer(store, write_mode=mode, journal_path=journal) as optimizer:
        for active in (True, False):
            doing = f"active: {active}"
            await (optimizer.aenable_beast_mode() if active else optimizer.adisable_beast_mode())
            for request in requests:
                doing = f"{request}, active: {active}"
                await optimizer.handle_request("ada", request)
        doing = "closing"
    watcher.cancel()
    inner.close()
    assert longest < _Sleepy.seconds / 2, where


def test_fewer_entries_keep_those_used_last(path: str) -> None:
    with BeastModeOptimizer(path) as optimizer:
        for number in range(9000):
            optimizer.cache.set(Document(f"users/{number}", {}, number + 1))
        optimizer.configure(cache_max_entries=100)
        assert optimizer.get_stats().cache.engine.currsize == 100
        kept = [optimizer.cache.lookup(f"users/{number}") for number in range(9000)]
        assert [each is not None for each in kept] == [False] * 8900 + [True] * 100


def test_every_zombie_is_removed_however_many(path: str) -> None:
    with BeastModeOptimizer(path, idle_timeout_s=0.01, zombie_cleanup_interval_s=0.1) as optimizer:
        for number in range(12_000):
            optimizer.connections.add_connection(number)
        eventually(lambda: optimizer.connections.get_stats().active == 0)
        assert optimizer.connections.get_stats().zombies == 12_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_closed_during_a_commit_leaves_nothing_pending(path: str) -> None:
    store = SQLiteStore(path)

    class Endless(ThreadedAsyncStore):
        async def commit(
            self, operations: Sequence[Operation], *, deadline: float | None = None
        ) -> list[int]:
            await asyncio.Event().wait()
            return []

    optimizer = BeastModeOptimizer(store, async_store=Endless(store), write_mode="write-through")
    with optimizer:
        loop = asyncio.new_event_loop()
        task = loop.create_task(
            optimizer.handle_request(None, Request.commit([Set("users/1", {})]))
        )
        loop.run_until_complete(asyncio.sleep(0.05))
        assert optimizer.get_stats().cache.pending_writes == 1
        loop.close()
        del task
        optimizer._parts.housekeeper.set_interval("commits", 0.02)

        def is_over() -> bool:
            gc.collect()
            return optimizer.get_stats().cache.pending_writes == 0

        eventually(is_over)
        for _ in range(2):
            read = optimizer.handle_request_sync(None, Request.get("users/1"))
        assert read.source == "hit"
    store.close()


async def test_cancelled_requests_leave_nothing_behind(path: str) -> None:
    """Requests of every kind are cancelled at random moments; then all is as the store says."""
    rng = random.Random(5)
    async with BeastModeOptimizer(path, batch_max_delay_ms=5) as optimizer:
        for turn in range(300):
            key = f"users/{rng.randrange(10)}"
            request = rng.choice(
                [
                    Request.get(key),
                    Request.get_many([key, "users/3"]),
                    Request.set(key, {"n": turn}),
                    Request.merge(key, {"m": turn}),
                    Request.commit([Set(key, {"n": turn}), Merge(key, {"c": turn})]),
                    Request.set(key, {"n": turn}, Precondition(exists=turn % 2 == 0)),
                    Request.query(Query("users")),
                ]
            )
            if turn % 20 == 0:
                await (
                    optimizer.aenable_beast_mode() if turn % 40 else optimizer.adisable_beast_mode()
                )
            task = asyncio.create_task(optimizer.handle_request("ada", request))
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(rng.choice((0, 0, 0.0005, 0.002)))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await optimizer.aenable_beast_mode()
        await asyncio.to_thread(optimizer.flush)
        end = time.monotonic() + 10
        while optimizer._ways._commits or optimizer.get_stats().cache.in_flight:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        stats = optimizer.get_stats()
        assert stats.cache.pending_writes == stats.batcher.pending == 0
        assert not optimizer._parts.unflushed
        with SQLiteStore(path) as store:
            for number in range(10):
                key = f"users/{number}"
                read = await optimizer.handle_request("ada", Request.get(key))
                assert read.document == store.get(key)


def test_an_acknowledged_write_that_the_store_refuses_is_told(path: str) -> None:
    told: list[BaseException] = []
    with BeastModeOptimizer(path, on_error=told.append) as optimizer:
        answer = optimizer.handle_request_sync(None, Request.update("users/none", {"n": 1}))
        assert answer.source == "journal"
        optimizer.flush()
        eventually(lambda: bool(told))
        assert [type(error) for error in told] == [DocumentMissing]
        with pytest.raises(PreconditionFailed):  # its caller hears of it
            optimizer.handle_request_sync(
                None, Request.set("users/1", {}, Precondition(exists=True))
            )
        assert len(told) == 1
        assert optimizer.get_stats().batcher.failed == 2


# -- background work ----------------------------------------------------------------------------


def test_a_hook_that_raises_stops_no_background_work(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(error: BaseException) -> None:
        raise RuntimeError("the hook")

    store = FaultyStore(SQLiteStore(path))
    with (
        caplog.at_level(logging.CRITICAL, "beastmode"),
        BeastModeOptimizer(store, write_mode="write-through", on_error=hook) as optimizer,
    ):
        keeper = optimizer._parts.housekeeper
        keeper.add("broken", 0.01, lambda: 1 / 0)
        eventually(lambda: keeper.get_stats()[-1].failures >= 3)
        optimizer._parts.sync._doubted(StoreUnavailable("gone"))
    store.close()


def test_loads_that_nobody_waits_for_are_not_made(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of readers over a slow store leaves no backlog behind, and does not grow for ever."""
    with SQLiteStore(path) as inner:
        store = _Slow(inner)
        cache = BeastModeCache(store, load_deadline_s=0.2)
        monkeypatch.setattr(loader, "_MAX_QUEUED", 50)

        async def burst() -> list[Any]:
            reads = (cache.aget(f"users/{number}") for number in range(80))
            return await asyncio.gather(*reads, return_exceptions=True)

        outcomes = asyncio.run(burst())
        refused = [each for each in outcomes if isinstance(each, StoreUnavailable)]
        assert 26 <= len(refused) <= 30  # up to four are with the threads
        assert "at most 50" in str(refused[0])
        late = [each for each in outcomes if isinstance(each, StoreTimeout)]
        assert len(late) >= 40
        eventually(lambda: cache.get_stats().in_flight == 0 and not cache._loader._queued)
        assert store.gets < 50  # most were dropped
        cache.close()


class _Slow(FaultyStore):
    def __init__(self, store: SQLiteStore) -> None:
        super().__init__(store)
        self.gets = 0

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        self.gets += 1
        time.sleep(0.1)
        return super().get(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="another operating system: it cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_drops_the_optimizer_harms_nothing(path: str) -> None:
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        for n in range(20):
            optimizer.handle_request_sync(None, Request.set(f"users/{n}", {"n": n}))
        child = os.fork()
        if child == 0:
            optimizer.close()
            del optimizer
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for n in range(20, 40):
            optimizer.handle_request_sync(None, Request.set(f"users/{n}", {"n": n}))
    with SQLiteStore(path) as store:
        assert len(store.query(Query("users")).documents) == 40
