"""Stores that count what they are billed for: wrappers that put a `Meter` around any store.

Counted as actual usage, by the rules of Firestore's bill: a document read is 1 unit, whether it
exists or not; a query reads each document it returns and at least 1; each operation of a commit
is 1 unit, deletions apart. Every call asked of the store counts as a call. Units count when the
call succeeded, and when it timed out or was cancelled, because the work may well have been done
and billed; a call that failed otherwise bills nothing. `watch`, `health` and `close` pass
through; with `bill_changes=True` each delivered change but a deletion is one read, as for a
listener of Firestore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from beastmode.cost import Meter, Units
from beastmode.errors import StoreTimeout
from beastmode.stores.base import (
    AsyncStore,
    Change,
    Query,
    QueryResult,
    Store,
    StoreHealth,
    Subscription,
    Target,
)
from beastmode.stores.documents import Delete, Document, Operation

__all__ = ["MeteredAsyncStore", "MeteredStore", "commit_units", "query_units"]


def query_units(documents: int) -> Units:
    """Return what a query that returned `documents` documents is billed."""
    return Units(reads=max(1, documents))


def commit_units(operations: Sequence[Operation]) -> Units:
    """Return what a commit of `operations` is billed."""
    deletes = sum(isinstance(operation, Delete) for operation in operations)
    return Units(writes=len(operations) - deletes, deletes=deletes)


class _Bill:
    """The units that one call is billed, as far as it is known."""

    __slots__ = ("units",)

    def __init__(self, units: Units) -> None:
        self.units = units


class _Metered:
    """What both wrappers share: counting around one call."""

    def __init__(self, meter: Meter, *, bill_changes: bool) -> None:
        self.meter = meter
        self._bill_changes = bill_changes

    @contextmanager
    def _call(self, units: Units) -> Iterator[_Bill]:
        bill = _Bill(units)
        try:
            yield bill
        except StoreTimeout:
            raise
        except Exception:  # refused or not reached; a cancellation is no Exception
            bill.units = Units()
            raise
        finally:
            billed = bill.units
            self.meter.count_actual(
                reads=billed.reads, writes=billed.writes, deletes=billed.deletes
            )

    def _counting(self, on_change: Callable[[Change], object]) -> Callable[[Change], object]:
        if not self._bill_changes:
            return on_change
        count = self.meter.count_actual

        def counted(change: Change) -> None:
            count(reads=int(change.document.exists), calls=0)
            on_change(change)

        return counted


class MeteredStore(_Metered):
    """A `Store` that counts into `meter` what `store` is asked for. O(1) beside the store's work.

    `store` and `meter` are attributes. It owns the store: closing it closes the store.
    """

    def __init__(self, store: Store, meter: Meter, *, bill_changes: bool = False) -> None:
        super().__init__(meter, bill_changes=bill_changes)
        self.store = store

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `Store.get`; 1 read."""
        with self._call(Units(reads=1)):
            return self.store.get(path, deadline=deadline)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """See `Store.get_many`; 1 read for each path."""
        with self._call(Units(reads=len(paths))):
            return self.store.get_many(paths, deadline=deadline)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `Store.query`; 1 read for each document, at least 1."""
        with self._call(query_units(0)) as bill:
            result = self.store.query(query, deadline=deadline)
            bill.units = query_units(len(result.documents))
            return result

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`; 1 write or delete for each operation."""
        with self._call(commit_units(operations)):
            return self.store.commit(operations, deadline=deadline)

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `Store.watch`; counted only with `bill_changes`."""
        return self.store.watch(target, self._counting(on_change))

    def health(self) -> StoreHealth:
        """See `Store.health`; not counted."""
        return self.store.health()

    def close(self) -> None:
        """See `Store.close`."""
        self.store.close()


class MeteredAsyncStore(_Metered):
    """`MeteredStore` over an `AsyncStore`."""

    def __init__(self, store: AsyncStore, meter: Meter, *, bill_changes: bool = False) -> None:
        super().__init__(meter, bill_changes=bill_changes)
        self.store = store

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `MeteredStore.get`."""
        with self._call(Units(reads=1)):
            return await self.store.get(path, deadline=deadline)

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `MeteredStore.get_many`."""
        with self._call(Units(reads=len(paths))):
            return await self.store.get_many(paths, deadline=deadline)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `MeteredStore.query`."""
        with self._call(query_units(0)) as bill:
            result = await self.store.query(query, deadline=deadline)
            bill.units = query_units(len(result.documents))
            return result

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `MeteredStore.commit`."""
        with self._call(commit_units(operations)):
            return await self.store.commit(operations, deadline=deadline)

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `MeteredStore.watch`."""
        return await self.store.watch(target, self._counting(on_change))

    async def health(self) -> StoreHealth:
        """See `MeteredStore.health`."""
        return await self.store.health()

    async def close(self) -> None:
        """See `MeteredStore.close`."""
        await self.store.close()
