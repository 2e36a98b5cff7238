"""Ways: how a parsed request is carried out, past beast mode or through it.

Each way exists for threads and for coroutines. They only ask; counting and answering is the
optimizer's. `active` says whether beast mode serves the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol, Self, TypeVar

from beastmode.cache import Answer
from beastmode.errors import BeastError, ClosedError
from beastmode.optimizer.parts import Parts, committed_document
from beastmode.requests import Request, Source
from beastmode.stores.documents import Delete, Document, Operation, Set, detached

__all__ = ["AsyncCommit", "Commit", "Ways"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Commit(Protocol):
    """The `commit` of a store, or of a transaction."""

    def __call__(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`."""
        ...


class AsyncCommit(Protocol):
    """The awaited `commit` of a store, or of a transaction."""

    async def __call__(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`."""
        ...


class Ways:
    """Carries out requests on `parts`.

    Own writes are seen by every read from the moment they were accepted: documents are overlaid
    with what is pending, queries flush their collection first. What a transform makes of a
    document the store alone knows, so reads have it committed first.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._batcher = parts.batcher
        self._breaker = parts.breaker
        self._cache = parts.cache
        self._store = parts.store
        self._async_store = parts.async_store
        self._auditor = parts.auditor
        self._unflushed = parts.unflushed
        # Event loops hold tasks weakly, so someone has to hold them.
        self._commits: set[asyncio.Task[Any]] = set()

    def get(
        self, user: str | None, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[Document, Source]:
        """Return a document and where it came from."""
        path = request.path or ""
        waited = path in self._unflushed and self._batcher.drain((path,), deadline)
        if (buffered := self._from_buffer(path)) is not None:
            return buffered, "buffer"
        if not active:
            return self._read_past(self._store.get(path, deadline=deadline)), "store"
        # The optimizer has looked, unless a write was pending.
        read = self._cache.get if waited or path in self._unflushed else self._cache.load
        answer = read(path, user=user, deadline=deadline)
        if self._batcher.is_outdated(answer.document):
            return self._read_past(self._store.get(path, deadline=deadline)), "store"
        return self._batcher.overlay(answer.document), answer.source

    async def aget(
        self, user: str | None, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[Document, Source]:
        """As `get`, for coroutines."""
        path = request.path or ""
        waited = path in self._unflushed and await self._batcher.adrain((path,), deadline)
        if (buffered := self._from_buffer(path)) is not None:
            return buffered, "buffer"
        if not active:
            return self._read_past(await self._async_store.get(path, deadline=deadline)), "store"
        read = self._cache.aget if waited or path in self._unflushed else self._cache.aload
        answer = await read(path, user=user, deadline=deadline)
        if self._batcher.is_outdated(answer.document):
            return self._read_past(await self._async_store.get(path, deadline=deadline)), "store"
        return self._batcher.overlay(answer.document), answer.source

    def get_many(
        self, user: str | None, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[list[Document], Sequence[Answer] | None]:
        """Return documents, and the cache's answers where it was asked."""
        if pending := [path for path in request.paths if path in self._unflushed]:
            self._batcher.drain(pending, deadline)
        if not active:
            documents = self._store.get_many(request.paths, deadline=deadline)
            self._cache.observe(documents)
            return self._overlaid(documents), None
        answers = self._cache.get_many(request.paths, user=user, deadline=deadline)
        self._sample(answers, user)
        documents = [answer.document for answer in answers]
        if again := self._outdated(documents):
            fresh = self._store.get_many(again, deadline=deadline)
            self._cache.observe(fresh)
            documents = _replaced(documents, fresh)
        return self._overlaid(documents), answers

    async def aget_many(
        self, user: str | None, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[list[Document], Sequence[Answer] | None]:
        """As `get_many`, for coroutines."""
        if pending := [path for path in request.paths if path in self._unflushed]:
            await self._batcher.adrain(pending, deadline)
        if not active:
            documents = await self._async_store.get_many(request.paths, deadline=deadline)
            self._cache.observe(documents)
            return self._overlaid(documents), None
        answers = await self._cache.aget_many(request.paths, user=user, deadline=deadline)
        self._sample(answers, user)
        documents = [answer.document for answer in answers]
        if again := self._outdated(documents):
            fresh = await self._async_store.get_many(again, deadline=deadline)
            self._cache.observe(fresh)
            documents = _replaced(documents, fresh)
        return self._overlaid(documents), answers

    def query(
        self, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[list[Document], Source]:
        """Return the documents that a query describes, own writes included, and their source."""
        assert request.query_of is not None
        if self._batcher.pending_in(request.query_of.collection):
            self._breaker.check()  # a flush would wait for a store that is not asked
            self._batcher.flush(deadline)
        if not active:
            documents = self._store.query(request.query_of, deadline=deadline).documents
            self._cache.observe(documents)
            return documents, "store"
        return self._cache.query(request.query_of, deadline=deadline)

    async def aquery(
        self, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[list[Document], Source]:
        """As `query`, for coroutines."""
        assert request.query_of is not None
        if self._batcher.pending_in(request.query_of.collection):
            self._breaker.check()
            await self._batcher.aflush(deadline)
        if not active:
            result = await self._async_store.query(request.query_of, deadline=deadline)
            self._cache.observe(result.documents)
            return result.documents, "store"
        return await self._cache.aquery(request.query_of, deadline=deadline)

    def write(
        self, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[Source, list[int] | None]:
        """Return what acknowledged the operations, and their versions if the store did."""
        batcher = self._batcher
        if active and request.op != "commit":
            versions = batcher.write(request.operations, deadline=deadline)
            return ("journal" if versions is None else "store"), versions
        operations = tuple(map(detached, request.operations))
        self.settle(_paths(operations), deadline)
        return "store", self.commit(operations, self._store.commit, deadline, active=active)

    def commit(
        self,
        operations: Sequence[Operation],
        commit: Commit,
        deadline: float | None,
        *,
        active: bool,
    ) -> list[int]:
        """Have `commit` apply operations past the batcher, and the cache learn of it.

        What was pending of their documents is settled already.
        """
        with _Direct(self._parts, operations, keep=active) as direct:
            versions = direct.versions = commit(operations, deadline=deadline)
        self.settle_after(_paths(operations), deadline)
        return versions

    async def awrite(
        self, request: Request, deadline: float | None, *, active: bool
    ) -> tuple[Source, list[int] | None]:
        """As `write`, for coroutines."""
        batcher = self._batcher
        if active and request.op != "commit":
            versions = await batcher.awrite(request.operations, deadline=deadline)
            return ("journal" if versions is None else "store"), versions
        operations = tuple(map(detached, request.operations))
        await self.asettle(_paths(operations), deadline)
        return "store", await self.acommit(
            operations, self._async_store.commit, deadline, active=active
        )

    async def acommit(
        self,
        operations: Sequence[Operation],
        commit: AsyncCommit,
        deadline: float | None,
        *,
        active: bool,
    ) -> list[int]:
        """As `commit`, for coroutines."""
        # A task of its own: when the caller is cancelled the store may commit all the same, and
        # the cache must then learn of it at the end, not before.
        return await self.shielded(self._acommit(operations, commit, deadline, active=active))

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` as a task of its own, which goes on when the caller is cancelled."""
        task = asyncio.create_task(work)
        self._commits.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _acommit(
        self,
        operations: Sequence[Operation],
        commit: AsyncCommit,
        deadline: float | None,
        *,
        active: bool,
    ) -> list[int]:
        with _Direct(self._parts, operations, keep=active) as direct:
            versions = direct.versions = await commit(operations, deadline=deadline)
        await self.asettle_after(_paths(operations), deadline)
        return versions

    def settle(self, paths: Iterable[str], deadline: float | None) -> None:
        """Return once no earlier write of these documents can reach the store any more.

        Neither from the buffer, nor, should the process end here, from the journal: it would
        overwrite a commit that is made past them. Hence before the commit; and after it, for the
        writes that came in between.
        """
        if self.is_pending(paths):
            self._breaker.check()  # a flush would wait for a store that is not asked
            self._batcher.flush(deadline)
        self._batcher.wait_noted(deadline)

    async def asettle(self, paths: Iterable[str], deadline: float | None) -> None:
        """As `settle`, for coroutines."""
        if self.is_pending(paths):
            self._breaker.check()
            await self._batcher.aflush(deadline)
        await self._batcher.await_noted(deadline)

    def settle_after(self, paths: Iterable[str], deadline: float | None) -> None:
        """As `settle`, after a commit, which stands whatever becomes of this."""
        try:
            self.settle(paths, deadline)
        except BeastError as error:
            _warn_of_replay(error)

    async def asettle_after(self, paths: Iterable[str], deadline: float | None) -> None:
        """As `settle_after`, for coroutines."""
        try:
            await self.asettle(paths, deadline)
        except BeastError as error:
            _warn_of_replay(error)

    def is_pending(self, paths: Iterable[str]) -> bool:
        """Return whether the store lacks a write of one of these documents."""
        return any(path in self._unflushed for path in paths)

    def forget_closed_loops(self) -> None:
        """Let go of commits whose event loop was closed under them: they will never end.

        Destroying such a task tells the cache that its write is over.
        """
        for task in list(self._commits):
            if task.get_loop().is_closed():
                self._commits.discard(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._commits.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its caller, unless it was cancelled, raises it as well.
            logger.debug("a commit failed: %s", error)

    def _from_buffer(self, path: str) -> Document | None:
        """Return the document if our own pending writes alone tell it: a Set or Delete does."""
        if path not in self._unflushed:
            return None
        pending = self._batcher.pending(path)
        if not pending or not isinstance(pending[0], (Set, Delete)):
            return None
        return self._batcher.overlay(Document(path, None, 0))

    def _sample(self, answers: Sequence[Answer], user: str | None) -> None:
        """Have the auditor hear of what came from the cache; single reads tell it themselves."""
        if self._auditor is not None:
            for answer in answers:
                if answer.source == "hit":
                    self._auditor.served(answer.document.path, user)

    def _outdated(self, documents: list[Document]) -> list[str]:
        """Return the paths of those that have to be read again."""
        is_outdated = self._batcher.is_outdated
        return list({document.path: None for document in documents if is_outdated(document)})

    def _read_past(self, document: Document) -> Document:
        """Return what the store answered past the cache, which must not fall behind it."""
        self._cache.observe((document,))
        return self._batcher.overlay(document)

    def _overlaid(self, documents: list[Document]) -> list[Document]:
        return [self._batcher.overlay(document) for document in documents]


def _paths(operations: Sequence[Operation]) -> list[str]:
    return [operation.path for operation in operations]


def _replaced(documents: list[Document], fresh: list[Document]) -> list[Document]:
    newer = {document.path: document for document in fresh}
    return [newer.get(document.path, document) for document in documents]


def _warn_of_replay(error: BeastError) -> None:
    logger.warning(
        "a commit is in the store, but until the journal recovers, the next start may replay an "
        "older write of the same documents over it: %s",
        error,
    )


class _Direct:
    """A commit that goes past the batcher: the cache learns of it as of any other write.

    Without `keep` nothing is held of what was written: nobody would read it, and a listener would
    be sent it.
    """

    def __init__(self, parts: Parts, operations: Sequence[Operation], *, keep: bool) -> None:
        self._parts = parts
        self._operations = operations
        self._keep = keep
        self.versions: list[int] | None = None

    def __enter__(self) -> Self:
        for operation in self._operations:
            self._parts.cache.write_started(operation.path)
        return self

    def __exit__(self, *_: object) -> None:
        # Of several operations on one document only the state after the last was ever there.
        last = {operation.path: number for number, operation in enumerate(self._operations)}
        for number, operation in enumerate(self._operations):
            version = None if self.versions is None else self.versions[number]
            document = None
            alone = self._keep and last[operation.path] == number
            if version is not None and alone:
                document = committed_document(operation, version)
            try:
                self._parts.cache.write_finished(
                    operation.path,
                    document,
                    version=version,
                    operation=operation if alone else None,
                )
            except ClosedError:
                return  # closed meanwhile: the store's answer is the caller's all the same
