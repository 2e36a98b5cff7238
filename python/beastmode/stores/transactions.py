"""What a transaction of a store is: reads and one commit that take effect as of one moment.

A store that has transactions has `begin_transaction` beside the calls of `Store`, an
`AsyncTransactionStore` an awaited one. Nobody is kept from writing what a transaction has read:
either the store makes other writers wait, or it refuses the commit (`TransactionConflict`), and
the whole transaction has to be run again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from beastmode.stores.base import Query, QueryResult
from beastmode.stores.documents import Document, Operation

__all__ = [
    "AsyncStoreTransaction",
    "AsyncTransactionStore",
    "BoundAsyncTransaction",
    "BoundTransaction",
    "StoreTransaction",
    "TransactionStore",
]


class StoreTransaction(Protocol):
    """One transaction, from its beginning to `commit` or `rollback`; for one thread at a time.

    All that is read before anything is written. Every call but `rollback` may raise
    TransactionConflict: then nothing was applied and the transaction is over, unless the error's
    `maybe_applied` says that an attempt to commit got no answer.
    """

    @property
    def token(self) -> bytes:
        """What tells the store, as `retry_of`, which transaction is run again."""
        ...

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """Return the documents in the order of `paths`, tombstones included."""
        ...

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """Return the existing documents that `query` describes."""
        ...

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """Apply all operations in order, or none, and return each one's resulting version.

        Without operations it says whether what was read is of one moment. It ends the transaction.
        """
        ...

    def rollback(self, *, deadline: float | None = None) -> None:
        """End the transaction without a commit, and let others write what it has read."""
        ...


class AsyncStoreTransaction(Protocol):
    """`StoreTransaction` with awaited methods."""

    @property
    def token(self) -> bytes:
        """See `StoreTransaction.token`."""
        ...

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `StoreTransaction.get_many`."""
        ...

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `StoreTransaction.query`."""
        ...

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `StoreTransaction.commit`."""
        ...

    async def rollback(self, *, deadline: float | None = None) -> None:
        """See `StoreTransaction.rollback`."""
        ...


@runtime_checkable
class TransactionStore(Protocol):
    """What a `Store` has besides if it has transactions."""

    def begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> StoreTransaction:
        """Begin one; `retry_of` is the token of the one that met a conflict and is run again."""
        ...


@runtime_checkable
class AsyncTransactionStore(Protocol):
    """What an `AsyncStore` has besides if it has transactions."""

    async def begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> AsyncStoreTransaction:
        """See `TransactionStore.begin_transaction`."""
        ...


@dataclass(frozen=True, slots=True)
class BoundTransaction:
    """A `StoreTransaction` made of a store's own functions, each bound to `token`."""

    token: bytes
    reading: Callable[[Sequence[str], float | None], list[Document]]
    querying: Callable[[Query, float | None], QueryResult]
    committing: Callable[[Sequence[Operation], float | None], list[int]]
    ending: Callable[[float | None], Any]

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """See `StoreTransaction.get_many`."""
        return self.reading(paths, deadline)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `StoreTransaction.query`."""
        return self.querying(query, deadline)

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `StoreTransaction.commit`."""
        return self.committing(operations, deadline)

    def rollback(self, *, deadline: float | None = None) -> None:
        """See `StoreTransaction.rollback`."""
        self.ending(deadline)


@dataclass(frozen=True, slots=True)
class BoundAsyncTransaction:
    """An `AsyncStoreTransaction` made of a store's own functions, each bound to `token`."""

    token: bytes
    reading: Callable[[Sequence[str], float | None], Awaitable[list[Document]]]
    querying: Callable[[Query, float | None], Awaitable[QueryResult]]
    committing: Callable[[Sequence[Operation], float | None], Awaitable[list[int]]]
    ending: Callable[[float | None], Awaitable[Any]]

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `StoreTransaction.get_many`."""
        return await self.reading(paths, deadline)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `StoreTransaction.query`."""
        return await self.querying(query, deadline)

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `StoreTransaction.commit`."""
        return await self.committing(operations, deadline)

    async def rollback(self, *, deadline: float | None = None) -> None:
        """See `StoreTransaction.rollback`."""
        await self.ending(deadline)
