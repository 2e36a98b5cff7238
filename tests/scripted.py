"""A document store that does what a test tells it to, step by step, without sleeps.

A load can be held (it has read its document and waits to return it), made to fail, or made to
return anything. Documents live in memory; versions count up.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from beastmode.cache import BeastModeCache
from beastmode.stores.base import Query, QueryResult
from beastmode.stores.documents import Document, collection_of, freeze
from beastmode.stores.matching import Matcher, sort_rows

WAIT_S = 20.0
"""How long a step may take before the test is given up; nothing waits that long when it works."""


class Hold:
    """A load that is stopped between its read and its return."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._gate: Future[Callable[[Any], Any] | None] = Future()

    def wait_entered(self) -> None:
        assert self.entered.wait(WAIT_S), "no load came"

    def release(self, result: Callable[[Any], Any] | None = None) -> None:
        """Let it return; `result(document)` may raise or return something else instead."""
        self._gate.set_result(result)

    def fail(self, error: BaseException) -> None:
        def throw(_: Document) -> Any:
            raise error

        self.release(throw)

    def stop(self) -> Callable[[Any], Any] | None:
        self.entered.set()
        return self._gate.result(WAIT_S)

    async def astop(self) -> Callable[[Any], Any] | None:
        self.entered.set()
        return await asyncio.shield(asyncio.wrap_future(self._gate))


class ScriptedStore:
    """The reading half of a `Store`, and the writes that a test makes behind the cache's back."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.version = 0
        self.gets: list[str] = []
        self.batches: list[list[str]] = []
        self.queries: list[Query] = []
        self.deadlines: list[float | None] = []
        self.error: BaseException | None = None
        self.answer: Callable[[Any], Any] | None = None
        self._holds: dict[str, deque[Hold]] = defaultdict(deque)
        self._lock = threading.Lock()

    def put(self, path: str, **fields: Any) -> Document:
        return self._write(path, freeze(fields))

    def delete(self, path: str) -> Document:
        return self._write(path, None)

    def _write(self, path: str, data: Any) -> Document:
        with self._lock:
            self.version += 1
            document = self.documents[path] = Document(path, data, self.version)
            return document

    def hold(self, path: str) -> Hold:
        """Hold the next load of `path`."""
        held = Hold()
        self._holds[path].append(held)
        return held

    def loads_of(self, path: str) -> int:
        return self.gets.count(path) + sum(batch.count(path) for batch in self.batches)

    def _enter(self, path: str) -> tuple[Document, Hold | None]:
        with self._lock:
            document = self.documents.get(path) or Document(path, None, self.version)
            holds = self._holds[path]
            return document, holds.popleft() if holds else None

    def _leave(self, document: Any, script: Callable[[Any], Any] | None) -> Any:
        if script is not None:
            return script(document)
        if self.error is not None:
            raise self.error
        return document if self.answer is None else self.answer(document)

    def get(self, path: str, *, deadline: float | None = None) -> Any:
        self.gets.append(path)
        self.deadlines.append(deadline)
        document, held = self._enter(path)
        return self._leave(document, held.stop() if held else None)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> Any:
        self.batches.append(list(paths))
        self.deadlines.append(deadline)
        entered = [self._enter(path) for path in paths]
        return [self._leave(document, held.stop() if held else None) for document, held in entered]

    def _find(self, query: Query) -> tuple[QueryResult, Hold | None]:
        matcher = Matcher(query)
        with self._lock:
            rows = [
                (matcher.keys(document.data), path, document)
                for path, document in self.documents.items()
                if collection_of(path) == query.collection
                and document.data is not None
                and matcher(document.data)
            ]
            holds = self._holds[query.collection]
            hold, version = holds.popleft() if holds else None, self.version
        sort_rows(rows, matcher.orders)
        return QueryResult([row[2] for row in rows][: query.limit], version), hold

    def query(self, query: Query, *, deadline: float | None = None) -> Any:
        """Hold it by its collection's path."""
        self.queries.append(query)
        self.deadlines.append(deadline)
        result, held = self._find(query)
        return self._leave(result, held.stop() if held else None)


class ScriptedAsyncStore:
    """The same script, awaited."""

    def __init__(self, store: ScriptedStore) -> None:
        self.store = store

    async def get(self, path: str, *, deadline: float | None = None) -> Any:
        store = self.store
        store.gets.append(path)
        store.deadlines.append(deadline)
        document, held = store._enter(path)
        await asyncio.sleep(0)
        return store._leave(document, await held.astop() if held else None)

    async def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> Any:
        store = self.store
        store.batches.append(list(paths))
        store.deadlines.append(deadline)
        entered = [store._enter(path) for path in paths]
        await asyncio.sleep(0)
        return [store._leave(doc, await held.astop() if held else None) for doc, held in entered]

    async def query(self, query: Query, *, deadline: float | None = None) -> Any:
        store = self.store
        store.queries.append(query)
        store.deadlines.append(deadline)
        result, held = store._find(query)
        await asyncio.sleep(0)
        return store._leave(result, await held.astop() if held else None)


class Asking:
    """A query in another thread, answered by the store and not yet returned."""

    def __init__(self, cache: BeastModeCache, store: ScriptedStore) -> None:
        self._held: Hold = store.hold("users")
        self._documents: list[Document] = []

        def ask() -> None:
            self._documents = cache.query(Query("users")).documents

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()
        self._held.wait_entered()

    def end(self, change: Callable[[QueryResult], QueryResult] | None = None) -> list[Document]:
        """Let it bring what it found, changed by `change` if that is given."""
        self._held.release(change)
        self._thread.join(WAIT_S)
        return self._documents
