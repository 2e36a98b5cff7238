"""What the function of a transaction is given: reads past the cache, writes kept for the commit.

A `Plan` is one transaction through all the times that it is run, a draft is one of those times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from beastmode.batcher.committing import Backoff
from beastmode.errors import RequestError, StoreUnavailable, TransactionConflict
from beastmode.optimizer.parts import Parts
from beastmode.stores.base import Query, check_deadline, deadline_in, remaining
from beastmode.stores.documents import (
    Delete,
    Document,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
    check_path,
    detached,
)
from beastmode.stores.metered import commit_units, query_units
from beastmode.stores.transactions import AsyncStoreTransaction, StoreTransaction

__all__ = ["AsyncTransaction", "Plan", "Restart", "Transaction", "check_paths"]

_DEADLINE_S: Final = 10.0


class Restart(TransactionConflict):
    """Own writes must reach the store before the transaction reads: it begins again at once."""


class Plan:
    """One transaction: what it may take, what it has cost, what must be settled before it begins.

    `paths` and `collections` are what it has touched so far, and is likely to touch again.
    """

    def __init__(self, paths: object, deadline: float | None, max_attempts: object) -> None:
        check_deadline(deadline)
        self.paths = set(check_paths(paths))
        self.collections: set[str] = set()
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
            raise RequestError(f"max_attempts must be a positive int, got {max_attempts!r}")
        self.end = deadline_in(_DEADLINE_S) if deadline is None else deadline
        self.retry_of = b""
        self.documents = self.calls = 0
        self.units = commit_units(())
        self.wrote = False
        self._max_attempts = max_attempts
        self._attempts = 0
        self._backoff = Backoff()

    def begin(self) -> None:
        """Begin an attempt. StoreTimeout when there is no time left for one."""
        remaining(self.end, "transaction")
        self._attempts += 1

    def pause_s(self, error: TransactionConflict) -> float:
        """Return the seconds before the next attempt; raises where there is to be none."""
        if error.maybe_applied:
            unknown = StoreUnavailable(f"{error}; the transaction may be committed or not")
            unknown.maybe_applied = True
            raise unknown from error
        if self._attempts >= self._max_attempts:
            raise TransactionConflict(
                f"nothing was committed, for others were in the way {self._attempts} times "
                f"(max_attempts): {error}"
            ) from error
        wait = 0.0 if isinstance(error, Restart) else self._backoff.fail()
        if remaining(self.end, f"transaction: {error}") <= wait:
            raise error
        return wait

    def count_reads(self, documents: int, billed: int) -> None:
        """Count what one call has read, in whatever attempt."""
        self.documents += documents
        self.units += query_units(billed) if billed else commit_units(())
        self.calls += 1

    def count_commit(self, operations: Collection[Operation]) -> None:
        """Count the commit."""
        self.units += commit_units(tuple(operations))
        self.calls += 1
        self.wrote = bool(operations)


class _Draft:
    """What reads of threads and of coroutines have in common, and the writes."""

    def __init__(self, parts: Parts, plan: Plan) -> None:
        self._parts = parts
        self._plan = plan
        self._operations: list[Operation] = []
        self._paths: set[str] = set()
        self._collections: set[str] = set()
        self._lost: TransactionConflict | None = None
        self._over = False

    def set(
        self, path: str, data: Mapping[str, Any], precondition: Precondition | None = None
    ) -> None:
        """Replace or create a document."""
        self.write(Set(path, data, precondition))

    def merge(
        self, path: str, data: Mapping[str, Any], precondition: Precondition | None = None
    ) -> None:
        """Merge fields into a document, or create it."""
        self.write(Merge(path, data, precondition))

    def update(
        self, path: str, data: Mapping[str, Any], precondition: Precondition | None = None
    ) -> None:
        """Replace fields of an existing document, named by dotted paths."""
        self.write(Update(path, data, precondition))

    def delete(self, path: str, precondition: Precondition | None = None) -> None:
        """Remove a document."""
        self.write(Delete(path, precondition))

    def write(self, *operations: Operation) -> None:
        """Have operations committed, in order, when the function has returned."""
        self._check_open()
        for operation in operations:
            if not isinstance(operation, (Set, Merge, Update, Delete)):
                raise RequestError(
                    f"a transaction writes Set, Merge, Update and Delete, got {operation!r}"
                )
        self._operations += map(detached, operations)

    # -- for whoever runs it ---------------------------------------------------------------------

    def finish(self) -> tuple[list[Operation], bool]:
        """End the function's part: what is to be committed, and whether to flush before.

        Raises the conflict that the function has met, should it have caught it.
        """
        self._over = True
        if self._lost is not None:
            raise self._lost
        operations = self._operations
        return operations, self._must_flush([operation.path for operation in operations])

    def end(self) -> None:
        """Refuse further use."""
        self._over = True

    def _check_open(self) -> None:
        if self._over:
            raise RequestError("a transaction was used after its function had returned")

    def _check_reading(self) -> None:
        self._check_open()
        if self._lost is not None:
            raise self._lost
        if self._operations:
            raise RequestError("a transaction reads everything before it writes anything")

    def _must_flush(self, paths: Collection[str], collection: str | None = None) -> bool:
        """Return whether buffered writes go first; Restart where it is too late for that.

        Once something was read the store may keep other writers of it, and so the buffer, waiting
        for this transaction. What comes into the buffer after it was read is later than this.
        """
        new = [path for path in paths if path not in self._paths]
        pending = not self._parts.unflushed.keys().isdisjoint(new)
        self._plan.paths.update(new)
        if collection is not None and collection not in self._collections:
            pending = pending or self._parts.batcher.pending_in(collection)
            self._plan.collections.add(collection)
        if pending and (self._paths or self._collections):
            self._lost = Restart("writes of this process must reach the store before it is read")
            raise self._lost
        if pending:
            self._parts.breaker.check()  # a flush would wait for a store that is not asked
        return pending

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Remember a conflict that a read meets, should the function catch it."""
        try:
            yield
        except TransactionConflict as error:
            self._lost = error
            raise

    def _took(self, documents: list[Document]) -> list[Document]:
        self._paths.update(document.path for document in documents)
        self._parts.cache.observe(documents)  # who has seen them must be shown nothing older
        return documents


class Transaction(_Draft):
    """One run of a transaction; only its function uses it, in one thread, and before it returns.

    Reads go to the store, past the cache, after the process's own buffered writes of the same
    documents; all of them are of one moment. Writes are kept, and committed together once the
    function has returned, if nobody has written what was read: else it is called again.
    """

    def __init__(self, parts: Parts, plan: Plan, held: StoreTransaction) -> None:
        super().__init__(parts, plan)
        self._held = held

    def get(self, path: str) -> Document:
        """Return the document, a tombstone when it does not exist."""
        return self.get_many([path])[0]

    def get_many(self, paths: Iterable[str]) -> list[Document]:
        """Return the documents in the order of `paths`, tombstones included."""
        self._check_reading()
        asked = check_paths(paths)
        if self._must_flush(asked):
            self._parts.batcher.flush(self._plan.end)
        with self._noting():
            documents = self._held.get_many(asked, deadline=self._plan.end)
        self._plan.count_reads(len(asked), len(set(asked)))
        return self._took(documents)

    def query(self, query: Query) -> list[Document]:
        """Return the existing documents that `query` describes."""
        self._check_reading()
        collection = _collection_of(query)
        if self._must_flush((), collection):
            self._parts.batcher.flush(self._plan.end)
        with self._noting():
            documents = self._held.query(query, deadline=self._plan.end).documents
        self._collections.add(collection)
        self._plan.count_reads(len(documents), max(1, len(documents)))
        return self._took(documents)


class AsyncTransaction(_Draft):
    """As `Transaction`, with awaited reads."""

    def __init__(self, parts: Parts, plan: Plan, held: AsyncStoreTransaction) -> None:
        super().__init__(parts, plan)
        self._held = held

    async def get(self, path: str) -> Document:
        """See `Transaction.get`."""
        return (await self.get_many([path]))[0]

    async def get_many(self, paths: Iterable[str]) -> list[Document]:
        """See `Transaction.get_many`."""
        self._check_reading()
        asked = check_paths(paths)
        if self._must_flush(asked):
            await self._parts.batcher.aflush(self._plan.end)
        with self._noting():
            documents = await self._held.get_many(asked, deadline=self._plan.end)
        self._plan.count_reads(len(asked), len(set(asked)))
        return self._took(documents)

    async def query(self, query: Query) -> list[Document]:
        """See `Transaction.query`."""
        self._check_reading()
        collection = _collection_of(query)
        if self._must_flush((), collection):
            await self._parts.batcher.aflush(self._plan.end)
        with self._noting():
            documents = (await self._held.query(query, deadline=self._plan.end)).documents
        self._collections.add(collection)
        self._plan.count_reads(len(documents), max(1, len(documents)))
        return self._took(documents)


def check_paths(paths: object) -> list[str]:
    """Return `paths` as a list; RequestError unless all are paths of documents."""
    if isinstance(paths, str) or not isinstance(paths, Iterable):
        raise RequestError(f"paths must be paths of documents, got {paths!r}")
    return [check_path(path) for path in paths]


def _collection_of(query: object) -> str:
    if not isinstance(query, Query):
        raise RequestError(f"query takes a Query, got {query!r}")
    return query.collection
