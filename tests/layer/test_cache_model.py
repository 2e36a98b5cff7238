"""A random walk through reads, queries, writes, changes, leases and doubt, against a model."""

from __future__ import annotations

import asyncio
import functools
import unittest.mock
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from beastcore import Cache
from beastmode.cache import Answer, BeastModeCache, Lease, QueryAnswer
from beastmode.cache.holdings import PROVISIONAL
from beastmode.errors import StoreUnavailable
from beastmode.stores.base import Change, Query, QueryResult, deadline_in
from beastmode.stores.documents import Document, Merge, collection_of
from support import FakeClock

PATHS = ("users/1", "users/2", "rooms/1")
paths = st.sampled_from(PATHS)


class Load:
    """A load that has read its document and waits for the test."""

    def __init__(self, path: str, document: Document, future: asyncio.Future[Document]) -> None:
        self.path = path
        self.document = document
        self.future = future


class Asked:
    """A query that has been answered and waits for the test to return it."""

    def __init__(self, result: QueryResult, future: asyncio.Future[QueryResult]) -> None:
        self.result = result
        self.future = future


class Store:
    """Every load and query stops until the test lets it go on."""

    def __init__(self) -> None:
        self.version = 0
        self.documents = {path: Document(path, None, 0) for path in PATHS}
        self.history = {path: [document] for path, document in self.documents.items()}
        self.asked: list[Asked] = []
        self.loads: list[Load] = []
        self.started = 0

    def write(self, path: str, data: dict[str, Any] | None) -> Document:
        self.version += 1
        self.documents[path] = Document(path, data, self.version)
        self.history[path].append(self.documents[path])
        return self.documents[path]

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        found = [
            document
            for path, document in self.documents.items()
            if collection_of(path) == query.collection and document.data is not None
        ]
        future: asyncio.Future[QueryResult] = asyncio.get_running_loop().create_future()
        self.asked.append(Asked(QueryResult(found, self.version), future))
        return await future

    def may_be_missing(self, path: str, floor: int) -> bool:
        """Whether the document was missing at `floor` or at any later time."""
        states = self.history[path]
        first = max(index for index, state in enumerate(states) if state.version <= floor)
        return any(state.data is None for state in states[first:])

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        load = Load(path, self.documents[path], asyncio.get_running_loop().create_future())
        self.loads.append(load)
        self.started += 1
        return await load.future


class CacheMachine(RuleBasedStateMachine):
    """The model: `floor` is the oldest version that a later reader of a path may be given."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store = Store()
        # With "lru" a document that was installed is there; "adaptive" may turn it away.
        lru = functools.partial(Cache, policy="lru")
        with unittest.mock.patch("beastmode.cache.readthrough.Cache", lru):
            self.cache = BeastModeCache(
                self.store,  # type: ignore[arg-type]
                self.store,  # type: ignore[arg-type]
                max_entries=2,
                ttl_s=20,
                negative_ttl_s=10,
                max_stale_s=0,
                load_deadline_s=60,
                timer=self.clock,
            )
        self.floor = dict.fromkeys(PATHS, 0)
        self.seen = dict.fromkeys(PATHS, 0)
        self.pending = dict.fromkeys(PATHS, 0)
        self.heard: dict[str, Document | None] = dict.fromkeys(PATHS)
        self.newest = dict.fromkeys(PATHS, 0)
        self.lease = Lease()
        self.notices: list[Document] = []
        self.joinable: dict[str, Load] = {}
        self.readers: list[tuple[str, int, asyncio.Task[Answer]]] = []
        self.askers: list[tuple[dict[str, int], asyncio.Task[QueryAnswer]]] = []
        self.given = dict.fromkeys(PATHS, 0)

    def step(self) -> None:
        async def some() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(some())
        waiting = []
        for path, floor, task in self.readers:
            if not task.done():
                waiting.append((path, floor, task))
            elif not task.cancelled() and task.exception() is None:
                document = task.result().document
                assert document.path == path
                assert document.version >= floor, "a reader was given what was overtaken"
                self.given[path] = max(self.given[path], document.version)
        self.readers = waiting
        asking = []
        for floors, asker in self.askers:
            if not asker.done():
                asking.append((floors, asker))
            elif not asker.cancelled() and asker.exception() is None:
                self.check_result(floors, asker.result().documents)
        self.askers = asking

    def check_result(self, floors: dict[str, int], documents: list[Document]) -> None:
        found = {document.path: document for document in documents}
        for path, floor in floors.items():
            if path in found:
                assert found[path].version >= floor, "a query showed what was overtaken"
            else:
                assert self.store.may_be_missing(path, floor), "a query lacks a document"

    def overtake(self, path: str, floor: int) -> None:
        self.floor[path] = max(self.floor[path], floor)
        self.joinable.pop(path, None)

    # -- the store ------------------------------------------------------------------------------

    @rule(path=paths, exists=st.booleans())
    def someone_else_writes(self, path: str, exists: bool) -> None:
        self.notices.append(self.store.write(path, {"v": self.store.version} if exists else None))

    @precondition(lambda self: self.notices)
    @rule(data=st.data(), keep=st.booleans())
    def a_notice_comes(self, data: st.DataObject, keep: bool) -> None:
        """In any order, perhaps twice."""
        document = data.draw(st.sampled_from(self.notices))
        if not keep:
            self.notices.remove(document)
        self.cache.apply_change(Change(document))
        path = document.path
        if self.pending[path]:
            self.newest[path] = max(self.newest[path], document.version)
            heard = self.heard[path]
            if heard is None or heard.version < document.version:
                self.heard[path] = document
            self.joinable.pop(path, None)
        else:
            self.overtake(path, document.version)

    # -- readers --------------------------------------------------------------------------------

    @rule(path=paths)
    def read(self, path: str) -> None:
        held = self.cache.lookup(path)
        before = self.store.started
        deadline = deadline_in(60)

        async def start() -> asyncio.Task[Answer]:
            return asyncio.create_task(self.cache.aget(path, deadline=deadline))

        task = self.loop.run_until_complete(start())
        self.readers.append((path, self.floor[path], task))
        self.step()
        started = self.store.started - before
        if held is not None or path in self.joinable:
            assert started == 0, "a second load of one key"
        else:
            assert started == 1, "no load, or more than one"
            self.joinable[path] = self.store.loads[-1]

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def a_reader_is_cancelled(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.readers))
        entry[2].cancel()
        self.step()

    @precondition(lambda self: self.store.loads)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def a_load_ends(self, data: st.DataObject, fails: bool) -> None:
        load = data.draw(st.sampled_from(self.store.loads))
        self.store.loads.remove(load)
        is_live = self.joinable.get(load.path) is load
        if is_live:
            del self.joinable[load.path]
        held = self.cache._engine.peek(load.path)
        if fails:
            load.future.set_exception(StoreUnavailable("down"))
        else:
            load.future.set_result(load.document)
        self.step()
        after = self.cache._engine.peek(load.path)
        if fails or not is_live or self.pending[load.path]:
            assert after is held, "it was installed without right"
        else:
            assert after is not None
            newest = max(load.document.version, held.document.version if held else 0)
            assert after.document.version == newest

    @rule(at_once=st.booleans())
    def query(self, at_once: bool) -> None:
        users = [path for path in PATHS if path.startswith("users/")]
        floors = {path: max(self.floor[path], self.given[path]) for path in users}

        async def start() -> asyncio.Task[QueryAnswer]:
            return asyncio.create_task(self.cache.aquery(Query("users"), deadline=deadline_in(60)))

        before = len(self.store.asked)
        self.askers.append((floors, self.loop.run_until_complete(start())))
        self.step()
        if at_once and len(self.store.asked) > before:
            asked = self.store.asked.pop()
            asked.future.set_result(asked.result)
            self.step()

    @precondition(lambda self: self.store.asked)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def a_query_ends(self, data: st.DataObject, fails: bool) -> None:
        asked = data.draw(st.sampled_from(self.store.asked))
        self.store.asked.remove(asked)
        if fails:
            asked.future.set_exception(StoreUnavailable("down"))
        else:
            asked.future.set_result(asked.result)
        self.step()

    # -- what overtakes loads -------------------------------------------------------------------

    @rule(path=paths)
    def invalidate(self, path: str) -> None:
        held = path in self.cache._engine
        assert self.cache.invalidate(path) == held
        self.overtake(path, self.store.documents[path].version)

    @rule(
        how=st.sampled_from(
            [
                "prefix",
                "clear",
                "doubt",
                "doubt prefix",
                "doubt paths prefix",
                "doubt unknown prefix",
            ]
        )
    )
    def invalidate_many(self, how: str) -> None:
        if how == "prefix":
            self.cache.invalidate(prefix="users")
        elif how == "clear":
            self.cache.clear()
        elif how == "doubt paths prefix":
            self.lease.cancel()
            self.cache.doubt(["users/1", "users/2"])
        elif how == "doubt unknown prefix":
            self.cache.doubt(["users/1", "users/2"], unknown=True)
        else:
            self.cache.mark_unverified("users" if how == "doubt prefix" else None)
        for path in PATHS:
            if "prefix" not in how or path.startswith("users/"):
                if "doubt" in how:
                    self.heard[path] = None
                    assert self.cache.lookup(path) is None, "doubt comes before the next read"
                self.overtake(path, self.store.documents[path].version)

    @rule(path=paths)
    def set(self, path: str) -> None:
        document = self.store.documents[path]
        if self.cache.set(document):
            assert not self.pending[path]
            assert self.cache.lookup(path) is document
            self.overtake(path, document.version)
        else:
            assert self.pending[path]

    @rule(path=paths)
    def a_write_starts(self, path: str) -> None:
        self.cache.write_started(path)
        self.pending[path] += 1
        self.overtake(path, 0)

    @precondition(lambda self: any(self.pending.values()))
    @rule(data=st.data(), outcome=st.sampled_from(["known", "merged", "unknown", "failed"]))
    def a_write_finishes(self, data: st.DataObject, outcome: str) -> None:
        path = data.draw(st.sampled_from([path for path in PATHS if self.pending[path]]))
        version = None
        document = None
        if outcome != "failed":
            written = self.store.write(path, {"own": self.store.version})
            self.notices.append(written)  # its echo
            if outcome != "unknown":
                version = written.version
            if outcome == "known":
                document = written
        held = self.cache._engine.peek(path)
        before = None if held is None else held.document
        merge = Merge(path, {"own": self.store.version})
        self.cache.write_finished(path, document, version=version, operation=merge)
        self.pending[path] -= 1
        found = self.cache._engine.peek(path)
        heard = self.heard[path]
        newest = self.newest[path] = max(self.newest[path], version or 0)
        may_install = before is not None or not self.pending[path]
        floor = newest
        if version is None:
            assert found is None
            floor = self.store.documents[path].version
        elif heard is not None and heard.version >= newest:
            if may_install:
                assert found is not None
                assert found.document is heard
        elif version < newest:
            assert found is None, "something newer is known of, but not its content"
        elif document is not None:
            if may_install:
                assert found is not None
                assert found.document.data == document.data
                assert found.document.version == version - bool(self.pending[path])
            floor = version - bool(self.pending[path])
        elif before is not None:
            assert found is not None
            assert found.flags & PROVISIONAL
            assert self.cache.lookup(path) is None
        if not self.pending[path]:
            self.heard[path] = None
            self.newest[path] = 0
        self.overtake(path, floor)

    # -- leases ---------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def the_stream_is_heard(self, seconds: float) -> None:
        self.lease.valid_until = self.clock.now + seconds

    @rule(path=paths)
    def a_path_is_covered(self, path: str) -> None:
        """By a stream that has told everything, as it does before it is current."""
        self.cache.apply_change(Change(self.store.documents[path]))
        if self.pending[path]:
            self.newest[path] = max(self.newest[path], self.store.documents[path].version)
            self.heard[path] = self.store.documents[path]
        held = self.cache._engine.peek(path)
        assert self.cache.cover(path, self.lease) == (held is not None)
        self.overtake(path, 0 if self.pending[path] else self.store.documents[path].version)

    @rule()
    def a_collection_is_covered(self) -> None:
        for path in ("users/1", "users/2"):
            if self.store.documents[path].data is not None:
                self.a_path_is_covered(path)
            self.joinable.pop(path, None)
        self.cache.cover_collection("users", self.lease)
        self.lease.valid_until = max(self.lease.valid_until, self.clock.now + 60)

    @rule()
    def a_collection_is_released(self) -> None:
        self.cache.uncover_collection("users")

    @rule(path=paths)
    def a_path_is_released(self, path: str) -> None:
        before = self.cache.lookup(path)
        self.cache.uncover([path])
        assert self.cache.lookup(path) is before

    @rule(seconds=st.sampled_from([0.5, 5.0, 15.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def cleanup(self) -> None:
        self.cache.cleanup()

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def what_is_found_is_right(self) -> None:
        for path in PATHS:
            found = self.cache.lookup(path)
            if found is not None:
                assert found.path == path
                assert found.version >= self.floor[path], "an overtaken document is held"
                assert found.version >= self.seen[path], "a version went back"
                self.seen[path] = found.version

    @invariant()
    def the_books_are_right(self) -> None:
        report = self.cache.get_stats()
        assert report.in_flight == len(self.joinable)
        assert report.pending_writes == sum(bool(count) for count in self.pending.values())

    def teardown(self) -> None:
        for load in self.store.loads:
            load.future.set_result(load.document)
        for asked in self.store.asked:
            asked.future.set_result(asked.result)
        self.step()
        assert not self.readers, "a reader hangs"
        assert not self.askers, "a query hangs"
        assert self.cache.get_stats().in_flight == 0
        self.cache.close()
        self.step()
        self.loop.close()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
