"""The request path end to end, over the real embedded store."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode import (
    BeastModeOptimizer,
    Delete,
    Document,
    Filter,
    Merge,
    Precondition,
    Query,
    Request,
    Rule,
    Set,
    SQLiteStore,
    ThreadedAsyncStore,
)
from beastmode.errors import (
    ClosedError,
    ConfigError,
    ForkedError,
    JournalLocked,
    PreconditionFailed,
    RequestError,
    StoreUnavailable,
    TableFullError,
)
from beastmode.stores.base import Change, Operation, QueryResult, StoreHealth, Subscription, Target

Ask = Callable[..., Any]


class FaultyStore:
    """A real store that can be switched off, and that counts what it is asked."""

    def __init__(self, store: SQLiteStore) -> None:
        self.store = store
        self.journal = f"{store.path}-journal.db"  # where a SQLiteStore on that path has it
        self.down = False
        self.calls: list[str] = []

    def _check(self, call: str) -> None:
        self.calls.append(call)
        if self.down:
            raise StoreUnavailable("switched off")

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        self._check("get")
        return self.store.get(path, deadline=deadline)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        self._check("get_many")
        return self.store.get_many(paths, deadline=deadline)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        self._check("query")
        return self.store.query(query, deadline=deadline)

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        self._check("commit")
        return self.store.commit(operations, deadline=deadline)

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        self._check("watch")
        return self.store.watch(target, on_change)

    def health(self) -> StoreHealth:
        if self.down:
            return StoreHealth(ok=False, latency_s=0.0, detail="switched off")
        return self.store.health()

    def close(self) -> None:
        self.store.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "app.db")


@pytest.fixture
def faulty(path: str) -> Iterator[FaultyStore]:
    store = FaultyStore(SQLiteStore(path))
    yield store
    store.close()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Send a request by thread or by coroutine: every behaviour holds for both."""

    def by_thread(optimizer: BeastModeOptimizer, what: Any, user: str | None = None) -> Any:
        return optimizer.handle_request_sync(user, what)

    def by_coroutine(optimizer: BeastModeOptimizer, what: Any, user: str | None = None) -> Any:
        return asyncio.run(optimizer.handle_request(user, what))

    return by_thread if request.param == "sync" else by_coroutine


def eventually(check: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what another thread does; the bound only ends a broken test."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


# -- reading ------------------------------------------------------------------------------------


def test_the_second_read_is_a_hit(path: str, ask: Ask) -> None:
    with SQLiteStore(path) as store:
        store.commit([Set("users/1", {"n": 1})])
    with BeastModeOptimizer(path) as optimizer:
        assert optimizer.active
        first = ask(optimizer, Request.get("users/1"))
        second = ask(optimizer, Request.get("users/1"))
        as_mapping = ask(optimizer, {"op": "get", "path": "users/1"})
    assert [first.source, second.source, as_mapping.source] == ["store", "hit", "hit"]
    assert first.data == second.data == as_mapping.data == {"n": 1}


def test_that_there_is_no_document_is_remembered_too(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        answers = [ask(optimizer, Request.get("users/none")) for _ in range(2)]
    assert [answer.source for answer in answers] == ["store", "hit"]
    assert answers[1].data is None
    assert not answers[1].document.exists


def test_a_hit_does_not_suspend(path: str) -> None:
    with BeastModeOptimizer(path) as optimizer:
        optimizer.handle_request_sync(None, Request.get("users/1"))
        coroutine = optimizer.handle_request("u", Request.get("users/1"))
        with pytest.raises(StopIteration) as stopped:  # no event loop is running at all
            coroutine.send(None)
    assert stopped.value.value.source == "hit"


def test_documents_handed_out_cannot_be_changed(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        ask(optimizer, Request.set("users/1", {"tags": ["a"], "deep": {"x": 1}}))
        for _ in range(2):
            data = ask(optimizer, Request.get("users/1")).data
            with pytest.raises(TypeError, match="to_dict"):
                data["n"] = 2
            with pytest.raises(TypeError, match="to_dict"):
                data["tags"].append("b")
            with pytest.raises(TypeError, match="to_dict"):
                data["deep"]["x"] = 2
            optimizer.flush()
        copy = ask(optimizer, Request.get("users/1")).document.to_dict()
        copy["tags"].append("b")
        assert ask(optimizer, Request.get("users/1")).data["tags"] == ["a"]


def test_many_documents_are_read_in_one_call(faulty: FaultyStore, ask: Ask) -> None:
    faulty.store.commit([Set(f"users/{n}", {"n": n}) for n in range(10)])
    with BeastModeOptimizer(faulty, journal_path=faulty.journal) as optimizer:
        ask(optimizer, Request.get("users/3"))
        faulty.calls.clear()
        paths = [f"users/{n}" for n in (3, 1, 99, 1)]
        answer = ask(optimizer, Request.get_many(paths))
        again = ask(optimizer, Request.get_many(paths))
    assert [document.path for document in answer.documents] == paths
    assert [document.data for document in answer.documents] == [{"n": 3}, {"n": 1}, None, {"n": 1}]
    assert faulty.calls == ["get_many"]
    assert (answer.source, again.source) == ("store", "hit")


def test_a_rule_gives_each_user_his_own_copy(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path, rules=[Rule("inbox", per_user=True)]) as optimizer:
        sources = [
            ask(optimizer, Request.get("inbox/1"), user).source for user in ("ada", "bob", "ada")
        ]
        with pytest.raises(RequestError, match="user"):
            ask(optimizer, Request.get("inbox/1"))
    assert sources == ["store", "store", "hit"]


# -- writing ------------------------------------------------------------------------------------


def test_own_writes_are_seen_at_once(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        assert ask(optimizer, Request.set("users/1", {"a": 1, "b": {"c": 1}})).source == "journal"
        assert ask(optimizer, Request.get("users/1")).source == "buffer"
        ask(optimizer, Request.merge("users/1", {"b": {"d": 2}}))
        ask(optimizer, Request.update("users/1", {"b.c": 3}))
        assert ask(optimizer, Request.get("users/1")).data == {"a": 1, "b": {"c": 3, "d": 2}}
        many = ask(optimizer, Request.get_many(["users/1", "users/2"])).documents
        assert [document.data for document in many] == [{"a": 1, "b": {"c": 3, "d": 2}}, None]
        found = ask(optimizer, Request.query(Query("users", (Filter("a", "==", 1),)))).documents
        assert [document.path for document in found] == ["users/1"]  # it was flushed for this
        ask(optimizer, Request.delete("users/1"))
        assert ask(optimizer, Request.get("users/1")).data is None
    with SQLiteStore(path) as store:
        assert not store.get("users/1").exists


def test_a_partial_write_is_laid_over_the_stored_document(path: str, ask: Ask) -> None:
    with SQLiteStore(path) as store:
        store.commit([Set("users/1", {"a": 1, "b": 1})])
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        ask(optimizer, Request.merge("users/1", {"b": 2}))
        assert ask(optimizer, Request.get("users/1")).data == {"a": 1, "b": 2}
        optimizer.flush()
        assert ask(optimizer, Request.get("users/1")).data == {"a": 1, "b": 2}


def test_a_flushed_set_is_a_hit_without_a_read(faulty: FaultyStore, ask: Ask) -> None:
    with BeastModeOptimizer(faulty, journal_path=faulty.journal) as optimizer:
        ask(optimizer, Request.set("users/1", {"n": 1}))
        optimizer.flush()
        answer = ask(optimizer, Request.get("users/1"))
    assert answer.source == "hit"
    assert "get" not in faulty.calls
    assert answer.document == faulty.store.get("users/1")


def test_a_commit_is_all_or_nothing(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        ask(optimizer, Request.set("users/1", {"n": 1}))
        operations = [Merge("users/1", {"m": 1}), Set("users/2", {}), Delete("users/3")]
        done = ask(optimizer, Request.commit(operations))
        assert done.source == "store"
        assert len(done.versions) == 3
        assert ask(optimizer, Request.get("users/1")).data == {"n": 1, "m": 1}
        refused = [Set("users/1", {"n": 9}), Set("users/2", {}, Precondition(exists=False))]
        with pytest.raises(PreconditionFailed):
            ask(optimizer, Request.commit(refused))
        assert ask(optimizer, Request.get("users/1")).data == {"n": 1, "m": 1}


def test_a_precondition_is_answered_by_the_store(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        ask(optimizer, Request.set("users/1", {"n": 1}))
        with pytest.raises(PreconditionFailed):
            ask(optimizer, Request.set("users/1", {"n": 2}, Precondition(exists=False)))
        answer = ask(optimizer, Request.set("users/1", {"n": 3}, Precondition(exists=True)))
        assert answer.source == "store"
        assert ask(optimizer, Request.get("users/1")).data == {"n": 3}


def test_write_through_answers_with_versions(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path, write_mode="write-through") as optimizer:
        answer = ask(optimizer, Request.set("users/1", {"n": 1}))
        read = ask(optimizer, Request.get("users/1"))
    assert answer.source == "store"
    assert read.document.version == answer.versions[0]
    assert read.data == {"n": 1}


def test_concurrent_writers_and_readers_never_see_a_step_back(path: str) -> None:
    """Each writer counts up its own document; no reader may ever see a lower count."""
    stop = threading.Event()
    problems: list[str] = []

    with BeastModeOptimizer(path, batch_max_delay_ms=5) as optimizer:

        def write(me: int) -> None:
            for count in range(1, 150):
                optimizer.handle_request_sync(None, Request.set(f"counts/{me}", {"n": count}))
                seen = optimizer.handle_request_sync(None, Request.get(f"counts/{me}"))
                if seen.data["n"] != count:
                    problems.append(f"writer {me} wrote {count} and saw {seen}")

        def read() -> None:
            async def watch() -> None:
                last = dict.fromkeys(range(3), 0)
                while not stop.is_set():
                    for me in range(3):
                        answer = await optimizer.handle_request(None, Request.get(f"counts/{me}"))
                        seen = answer.data["n"] if answer.data else 0
                        if seen < last[me]:
                            problems.append(f"{me} went from {last[me]} to {seen}: {answer}")
                        last[me] = seen
                    await asyncio.sleep(0)

            asyncio.run(watch())

        writers = [threading.Thread(target=write, args=(me,)) for me in range(3)]
        readers = [threading.Thread(target=read) for _ in range(2)]
        for thread in writers + readers:
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        for thread in readers:
            thread.join()
    assert not problems, problems[:3]
    with SQLiteStore(path) as store:
        assert [store.get(f"counts/{me}").data for me in range(3)] == [{"n": 149}] * 3


# -- changes made elsewhere ---------------------------------------------------------------------


def test_changes_of_another_process_come_in(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        ask(optimizer, Request.set("users/1", {"n": 1}))
        optimizer.flush()
        assert ask(optimizer, Request.get("users/1")).source == "hit"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_write_elsewhere, args=(path,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        eventually(lambda: ask(optimizer, Request.get("users/1")).data == {"n": 2})


def _write_elsewhere(path: str) -> None:
    with SQLiteStore(path) as store:
        store.commit([Set("users/1", {"n": 2})])


# -- on and off ---------------------------------------------------------------------------------


def test_disabling_flushes_and_goes_straight_to_the_store(faulty: FaultyStore, ask: Ask) -> None:
    with BeastModeOptimizer(
        faulty, journal_path=faulty.journal, batch_max_delay_ms=3_600_000
    ) as optimizer:
        ask(optimizer, Request.set("users/1", {"n": 1}))
        assert not faulty.store.get("users/1").exists
        optimizer.disable_beast_mode()
        assert not optimizer.active
        assert faulty.store.get("users/1").data == {"n": 1}
        assert [ask(optimizer, Request.get("users/1")).source for _ in range(2)] == ["store"] * 2
        assert ask(optimizer, Request.set("users/1", {"n": 2})).source == "store"
        assert optimizer.enable_beast_mode()
        assert ask(optimizer, Request.get("users/1")).data == {"n": 2}
        assert ask(optimizer, Request.get("users/1")).source == "hit"


def test_a_failed_flush_leaves_beast_mode_on(faulty: FaultyStore, ask: Ask) -> None:
    with BeastModeOptimizer(
        faulty, journal_path=faulty.journal, batch_max_delay_ms=3_600_000
    ) as optimizer:
        ask(optimizer, Request.set("users/1", {"n": 1}))
        faulty.down = True
        with pytest.raises(Exception, match="unflushed|not|left|store"):
            optimizer.disable_beast_mode(deadline=time.monotonic() + 0.2)
        assert optimizer.active
        faulty.down = False
        assert ask(optimizer, Request.get("users/1")).data == {"n": 1}


def test_it_becomes_active_once_the_store_answers(faulty: FaultyStore, ask: Ask) -> None:
    faulty.down = True
    with BeastModeOptimizer(faulty, journal_path=faulty.journal) as optimizer:
        assert not optimizer.active
        with pytest.raises(StoreUnavailable):
            ask(optimizer, Request.get("users/1"))
        faulty.down = False
        eventually(lambda: optimizer.active)
        assert ask(optimizer, Request.get("users/1")).source == "store"


def test_a_failing_store_is_bridged_by_what_is_held(faulty: FaultyStore, ask: Ask) -> None:
    faulty.store.commit([Set("users/1", {"n": 1})])
    with BeastModeOptimizer(
        faulty, journal_path=faulty.journal, cache_ttl_s=0.05, max_stale_s=60
    ) as optimizer:
        ask(optimizer, Request.get("users/1"))
        faulty.down = True
        eventually(lambda: ask(optimizer, Request.get("users/1")).source == "stale")
        assert ask(optimizer, Request.get("users/1")).data == {"n": 1}
        with pytest.raises(StoreUnavailable):
            ask(optimizer, Request.get("users/2"))
        faulty.down = False
        eventually(lambda: ask(optimizer, Request.get("users/1")).source == "store")


# -- life ---------------------------------------------------------------------------------------


def test_what_is_buffered_at_close_is_in_the_store(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path, batch_max_delay_ms=3_600_000) as optimizer:
        for n in range(50):
            ask(optimizer, Request.set(f"users/{n}", {"n": n}))
    with SQLiteStore(path) as store:
        found = store.query(Query("users")).documents
    assert len(found) == 50


def test_what_cannot_be_flushed_at_close_is_replayed(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    faulty = FaultyStore(SQLiteStore(path))
    optimizer = BeastModeOptimizer(
        faulty, journal_path=faulty.journal, batch_max_delay_ms=3_600_000
    ).start()
    optimizer.handle_request_sync(None, Request.set("users/1", {"n": 1}))
    faulty.down = True
    with pytest.raises(Exception, match="1"):
        optimizer.close(deadline=time.monotonic() + 0.2)
    optimizer.close()
    faulty.close()
    with BeastModeOptimizer(path) as again:
        assert again.handle_request_sync(None, Request.get("users/1")).data == {"n": 1}
        again.flush()
    with SQLiteStore(path) as store:
        assert store.get("users/1").data == {"n": 1}


def test_use_before_start_and_after_close_is_refused(path: str, ask: Ask) -> None:
    optimizer = BeastModeOptimizer(path)
    with pytest.raises(ClosedError, match="before start"):
        ask(optimizer, Request.get("users/1"))
    with optimizer:
        ask(optimizer, Request.get("users/1"))
    optimizer.close()
    for use in (
        lambda: ask(optimizer, Request.get("users/1")),
        lambda: optimizer.configure(cache_ttl_s=1),
        optimizer.enable_beast_mode,
        optimizer.disable_beast_mode,
        optimizer.start,
    ):
        with pytest.raises(ClosedError, match=r"after close\(\)"):
            use()


def test_no_thread_is_left_behind(path: str) -> None:
    before = set(threading.enumerate())
    with BeastModeOptimizer(path) as optimizer:
        asyncio.run(optimizer.handle_request(None, Request.get("users/1")))
        optimizer.handle_request_sync(None, Request.set("users/1", {}))
    left = {thread for thread in threading.enumerate() if thread not in before}
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


def test_one_journal_belongs_to_one_process(path: str, tmp_path: Path) -> None:
    with BeastModeOptimizer(path):
        with pytest.raises(JournalLocked, match=str(os.getpid())):
            BeastModeOptimizer(path)
        with BeastModeOptimizer(path, journal_path=str(tmp_path / "other.db")) as other:
            assert other.active


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_to_make_its_own(path: str) -> None:
    with BeastModeOptimizer(path) as optimizer:
        optimizer.handle_request_sync(None, Request.get("users/1"))
        assert optimizer.handle_request_sync(None, Request.get("users/1")).source == "hit"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                optimizer.handle_request_sync(None, Request.get("users/1"))
            except ForkedError:
                optimizer.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert optimizer.handle_request_sync(None, Request.get("users/1")).source == "hit"


async def test_the_async_context_manager(path: str) -> None:
    async with BeastModeOptimizer(path) as optimizer:
        await optimizer.handle_request("u", Request.set("users/1", {"n": 1}))
        await optimizer.adisable_beast_mode()
        assert (await optimizer.handle_request("u", Request.get("users/1"))).data == {"n": 1}
    with pytest.raises(ClosedError):
        await optimizer.handle_request("u", Request.get("users/1"))


async def test_a_cancelled_commit_is_still_seen_by_the_cache(path: str) -> None:
    store = SQLiteStore(path)
    slow = _SlowCommit(store)
    try:
        async with BeastModeOptimizer(
            store, async_store=slow, write_mode="write-through"
        ) as optimizer:
            await optimizer.handle_request(None, Request.get("users/1"))
            task = asyncio.create_task(
                optimizer.handle_request(None, Request.commit([Set("users/1", {"n": 1})]))
            )
            await slow.begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            slow.go_on.set()
            while (await optimizer.handle_request(None, Request.get("users/1"))).data is None:
                await asyncio.sleep(0.001)
    finally:
        await slow.close()
        store.close()


class _SlowCommit(ThreadedAsyncStore):
    """Stands between the request and the commit until it may go on."""

    def __init__(self, store: SQLiteStore) -> None:
        super().__init__(store)
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        self.begun.set()
        await self.go_on.wait()
        return await super().commit(operations, deadline=deadline)


# -- settings -----------------------------------------------------------------------------------


def test_settings_change_on_the_running_system(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        for n in range(20):
            ask(optimizer, Request.get(f"users/{n}"))
        config = optimizer.configure(cache_max_entries=5, max_connections=2, batch_max_ops=7)
        assert config is optimizer.config
        assert optimizer.get_stats().cache.engine.currsize == 5
        for user in ("ada", "bob"):
            optimizer.connections.add_connection(user)
        with pytest.raises(TableFullError):
            optimizer.connections.add_connection("eve")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cache_ttl_s": -1}, "cache_ttl_s"),
        ({"cache_ttl": 1}, "did you mean"),
        ({"store_path": "elsewhere.db"}, "store_path is fixed at the start"),
        ({"cache_max_entries": 5, "write_mode": "write-through"}, "write_mode is fixed"),
    ],
)
def test_a_bad_change_changes_nothing(path: str, changes: dict[str, Any], text: str) -> None:
    with BeastModeOptimizer(path) as optimizer:
        before = optimizer.config
        with pytest.raises(ConfigError, match=text):
            optimizer.configure(**changes)
        assert optimizer.config is before
        assert optimizer.get_stats().cache.engine.maxsize == before.cache_max_entries


def test_a_change_that_fails_half_way_is_taken_back(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BeastModeOptimizer(path) as optimizer:
        batcher = optimizer._parts.batcher
        configure, failures = batcher.configure, [MemoryError("no room")]

        def fail_once(**changes: Any) -> None:
            if failures:
                raise failures.pop()
            configure(**changes)

        monkeypatch.setattr(batcher, "configure", fail_once)
        with pytest.raises(MemoryError):
            optimizer.configure(cache_max_entries=5, max_connections=7)
        stats = optimizer.get_stats()
        assert stats.cache.engine.maxsize == 1_000_000
        assert stats.connections.max_connections == 100_000
        assert optimizer.config.max_connections == 100_000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"store": 7}, "store must be a Store"),
        ({"store": ":memory:", "async_store": 7}, "async_store must be"),
        ({"store": ":memory:", "config": {}}, "config must be"),
        ({"store": ":memory:", "cache_ttl_s": 0}, "cache_ttl_s"),
        ({"store": ":memory:", "nonsense": 0}, "nonsense"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        BeastModeOptimizer(**arguments)


def test_a_store_of_ones_own_needs_a_journal_of_its_own(faulty: FaultyStore) -> None:
    with pytest.raises(ConfigError, match="journal_path must be given"):
        BeastModeOptimizer(faulty)
    with BeastModeOptimizer(faulty, write_mode="write-through") as optimizer:
        assert optimizer.active


# -- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (7, "must be a Request or a mapping"),
        ({}, "op must be one of get, get_many"),
        ({"op": "drop"}, "got 'drop'"),
        ({"op": ["get"]}, "op must be one of"),
        ({"op": "get"}, "must have path"),
        ({"op": "get", "path": "users"}, "even number"),
        ({"op": "get", "path": "users/1", "pat": 1}, "unknown pat"),
        ({"op": "get", "path": 7}, "must be a str"),
        ({"op": "get_many", "paths": "users/1"}, "list of paths"),
        ({"op": "set", "path": "users/1", "data": [1]}, "mapping of fields"),
        ({"op": "set", "path": "users/1", "data": {1: 2}}, "non-empty str"),
        ({"op": "update", "path": "users/1", "data": {"a..b": 2}}, "empty field name"),
        ({"op": "delete", "path": "users/1", "precondition": {"exist": True}}, "exists or version"),
        ({"op": "query", "collection": "users", "where": [["a", "~", 1]]}, "op must be one of"),
        ({"op": "query", "collection": "users", "where": [["a"]]}, "where takes"),
        ({"op": "query", "collection": "users", "limit": 0}, "limit must be positive"),
        ({"op": "commit", "operations": []}, "at least one"),
        ({"op": "commit", "operations": [{"set": 1}]}, "item 0"),
    ],
)
def test_a_malformed_request_says_what_is_wrong(
    path: str, ask: Ask, request_: Any, text: str
) -> None:
    with BeastModeOptimizer(path) as optimizer:
        with pytest.raises(RequestError, match=text):
            ask(optimizer, request_)
        stats = optimizer.get_performance_stats()
    assert stats.response_time.detail["requests"] == 1
    assert stats.overall_efficiency.detail["without_error_ratio"] == 1.0  # the caller's mistake


def test_every_operation_can_be_written_as_a_mapping(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        for request_ in (
            {"op": "set", "path": "users/1", "data": {"n": 1}},
            {"op": "merge", "path": "users/1", "data": {"m": 1}},
            {"op": "update", "path": "users/1", "data": {"n": 2}, "precondition": {"exists": True}},
        ):
            ask(optimizer, request_)
        assert ask(optimizer, {"op": "get", "path": "users/1"}).data == {"n": 2, "m": 1}
        query = {
            "op": "query",
            "collection": "users",
            "where": [["n", ">", 1]],
            "order_by": ["n", ["m", True]],
            "limit": 3,
        }
        assert len(ask(optimizer, query).documents) == 1
        ask(optimizer, {"op": "delete", "path": "users/1"})
        many = ask(optimizer, {"op": "get_many", "paths": ["users/1"]})
        assert many.documents[0].data is None
        assert ask(optimizer, {"op": "heartbeat"}, "ada").source == "table"


def test_requests_count_as_activity_of_a_connected_user(path: str, ask: Ask) -> None:
    with BeastModeOptimizer(path) as optimizer:
        conn = optimizer.connections.add_connection("ada")
        for what in (Request.heartbeat(), Request.get("users/1"), Request.get("users/1")):
            time.sleep(0.02)
            idle = conn.idle
            ask(optimizer, what, "ada")
            assert conn.idle < idle


# -- figures ------------------------------------------------------------------------------------


def test_the_figures_count_what_was_asked(faulty: FaultyStore, ask: Ask) -> None:
    faulty.store.commit([Set(f"users/{n}", {"n": n}) for n in range(4)])
    with BeastModeOptimizer(
        faulty, journal_path=faulty.journal, batch_max_delay_ms=3_600_000
    ) as optimizer:
        unknown = optimizer.get_performance_stats()
        assert unknown.response_time.value is None
        assert unknown.hit_rate.text == "not yet known"
        assert unknown.overall_efficiency.value is None
        for _ in range(10):
            ask(optimizer, Request.get("users/0"))  # 1 from the store, 9 hits
        ask(optimizer, Request.get_many(["users/0", "users/1"]))  # one of each
        ask(optimizer, Request.query(Query("users")))  # 4 documents
        for n in range(5):
            ask(optimizer, Request.set("users/9", {"n": n}))  # merged into one
        ask(optimizer, Request.get("users/9"))  # from the buffer
        optimizer.flush()
        ask(optimizer, Request.heartbeat())
        stats = optimizer.get_performance_stats()
    assert stats.response_time.detail["requests"] == 10 + 1 + 1 + 5 + 1 + 1
    assert stats.hit_rate.detail == {"reads_without_store": 9 + 1 + 1, "reads": 10 + 2 + 4 + 1}
    cost = stats.cost_reduction.detail
    # The query had to wait for nothing: the writes came after it.
    assert cost["baseline_units"] == 10 + 2 + 4 + 5 + 1
    assert cost["units"] == 1 + 1 + 4 + 1
    assert cost["baseline_calls"] == 10 + 1 + 1 + 5 + 1
    assert stats.cost_reduction.value == pytest.approx(1 - 7 / 22)
    assert stats.connection_utilisation.value is None
    assert stats.memory.value is None or stats.memory.value > 2**20


def test_only_our_failures_count_as_errors(faulty: FaultyStore, ask: Ask) -> None:
    with BeastModeOptimizer(faulty, journal_path=faulty.journal) as optimizer:
        ask(optimizer, Request.get("users/1"))
        with pytest.raises(PreconditionFailed):
            ask(optimizer, Request.set("users/1", {}, Precondition(exists=True)))
        faulty.down = True
        with pytest.raises(StoreUnavailable):
            ask(optimizer, Request.get("users/2"))
        faulty.down = False
        stats = optimizer.get_performance_stats()
    without_error = stats.overall_efficiency.detail["without_error_ratio"]
    assert without_error == pytest.approx(1 - 1 / 3)


class Silent:
    """A store whose watch never tells of anything."""

    def __init__(self, inner: SQLiteStore) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def watch(self, target: Target, on_change: Any) -> Any:
        return self._inner.watch(target, lambda change: None)


@pytest.mark.parametrize("way", ["get", "get_many", "query"])
@pytest.mark.parametrize("coroutine", [False, True])
async def test_what_was_read_past_beast_mode_is_not_taken_back(
    tmp_path: Path, way: str, coroutine: bool
) -> None:
    """A document seen in a newer state while disabled is never shown in an older one after it."""
    requests = {
        "get": Request.get("a/1"),
        "get_many": Request.get_many(["a/1"]),
        "query": Request.query(Query("a")),
    }
    with SQLiteStore(tmp_path / "a.db") as store:
        store.commit([Set("a/1", {"n": 1})])
        silent: Any = Silent(store)
        with BeastModeOptimizer(silent, journal_path=str(tmp_path / "j.db")) as optimizer:
            assert optimizer.handle_request_sync("u", Request.get("a/1")).data == {"n": 1}
            store.commit([Set("a/1", {"n": 2})])
            optimizer.disable_beast_mode()
            if coroutine:
                await optimizer.handle_request("u", requests[way])
            else:
                optimizer.handle_request_sync("u", requests[way])
            optimizer.enable_beast_mode()
            assert optimizer.handle_request_sync("u", Request.get("a/1")).data == {"n": 2}
