"""Stores that count what they are billed for: wrappers that put a `Meter` around any store.

Counted as actual usage, by the rules of Firestore's bill: a document read is 1 unit, whether it
exists or not; a query reads each document it returns and at least 1; each operation of a commit
is 1 unit, deletions apart; a path named twice in one call is read once. Every call asked of the
store counts as a call. Units count as billed when the call succeeded. An attempt without an answer
may have been carried out all the same: it timed out, was cancelled, or its connection was lost.
Its units count as possibly billed, also where the store repeated it and the repetition succeeded
(`stores.attempts`). A call that was refused or never sent bills nothing.

Of a feed every document counts that it was sent, deletions apart, as for a listener of Firestore; a
store that is billed for `health` says so by an attribute `health_reads`. In a transaction all of it
counts as outside of one, each time that it is run. `watch`, `close` and what else a store offers
pass through; with `bill_changes=True` each change that a watch delivers is one read, but for
deletions.

Documents in the collection `_bm` are beast mode's own: markers of batches. They are billed as all
others and told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from beastmode.cost import Account, Meter, Units
from beastmode.errors import StoreError, StoreTimeout
from beastmode.stores.attempts import Attempts, unanswered
from beastmode.stores.base import (
    AsyncStore,
    Change,
    Feed,
    FeedListener,
    Query,
    QueryResult,
    Store,
    StoreHealth,
    Subscription,
    Target,
)
from beastmode.stores.documents import Delete, Document, Operation
from beastmode.stores.transactions import AsyncStoreTransaction, StoreTransaction
from beastmode.stores.wrapper import StoreWrapper

__all__ = ["MeteredAsyncStore", "MeteredStore", "commit_units", "query_units"]


_OWN: Final = "_bm/"
"""What the paths of beast mode's own documents begin with."""
_NONE: Final = Units()


def query_units(documents: int) -> Units:
    """Return what a query that returned `documents` documents is billed."""
    return Units(reads=max(1, documents))


def commit_units(operations: Sequence[Operation]) -> Units:
    """Return what a commit of `operations` is billed."""
    deletes = sum(isinstance(operation, Delete) for operation in operations)
    return Units(writes=len(operations) - deletes, deletes=deletes)


class _Bill:
    """The units that one call is billed, as far as it is known; `markers` are among them."""

    __slots__ = ("markers", "units")

    def __init__(self, units: Units, markers: Units = _NONE) -> None:
        self.units = units
        self.markers = markers


def _is_own(path: object) -> bool:
    return isinstance(path, str) and path.startswith(_OWN)  # the store refuses what is no path


def _read_bill(paths: Sequence[str]) -> _Bill:
    if isinstance(paths, str):
        return _Bill(_NONE)  # the store refuses it
    named: Sequence[object] = paths
    once = {path for path in named if isinstance(path, str)}
    own = sum(map(_is_own, once))
    return _Bill(Units(reads=len(once)), Units(reads=own) if own else _NONE)


def _query_bill(query: Query) -> _Bill:
    """Return what a query is billed at most; of one without a limit nobody knows."""
    return _Bill(query_units(getattr(query, "limit", None) or 0))


def _commit_bill(operations: Sequence[Operation]) -> _Bill:
    own = [each for each in operations if _is_own(getattr(each, "path", None))]
    return _Bill(commit_units(operations), commit_units(own) if own else _NONE)


def _unheard(attempts: Attempts, error: BaseException | None) -> int:
    """Return how many attempts of a call that ended with `error` may be billed unheard."""
    if attempts.told:
        return attempts.open
    if isinstance(error, StoreError):
        return int(isinstance(error, StoreTimeout) or error.maybe_applied)
    # What is no Exception is a cancellation.
    return int(error is not None and not isinstance(error, Exception))


class _Metered(StoreWrapper):
    """What both wrappers share: counting around one call."""

    def __init__(self, store: Any, meter: Meter, *, bill_changes: bool, account: Account) -> None:
        super().__init__(store)
        self.meter = meter
        self._bill_changes = bill_changes
        self._account = account

    def _open_feed(self, listener: FeedListener) -> Feed:
        feed = super()._open_feed(listener)
        self.meter.add_listener(lambda: feed.documents_read)
        return feed

    def _count_health(self, health: StoreHealth, attempts: Attempts) -> None:
        reads = Units(reads=getattr(self._inner, "health_reads", 0))
        if reads != _NONE:
            self._count(reads if health.ok else _NONE, "probes", 1)
            error = None if health.ok else health.error or StoreTimeout(health.detail)
            self.meter.count_possible(reads * _unheard(attempts, error))

    @contextmanager
    def _call(self, bill: _Bill) -> Iterator[_Bill]:
        asked: _Bill = bill
        failed: BaseException | None = None
        with unanswered() as attempts:
            try:
                yield bill
            except BaseException as error:
                asked, bill, failed = bill, _Bill(_NONE), error
                raise
            finally:
                own = asked.markers is not _NONE
                only_own = own and asked.markers == asked.units
                if own:
                    self._count(bill.markers, "markers", int(only_own))
                if not only_own:
                    self._count(bill.units - bill.markers, self._account, 1)
                self.meter.count_possible(asked.units * _unheard(attempts, failed))

    def _count(self, units: Units, account: Account, calls: int) -> None:
        self.meter.count_actual(
            reads=units.reads,
            writes=units.writes,
            deletes=units.deletes,
            calls=calls,
            account=account,
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

    `store` and `meter` are attributes; calls are counted on `account`. It owns the store: closing
    it closes the store.
    """

    def __init__(
        self,
        store: Store,
        meter: Meter,
        *,
        bill_changes: bool = False,
        account: Account = "requests",
    ) -> None:
        super().__init__(store, meter, bill_changes=bill_changes, account=account)
        self.store = store

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `Store.get`; 1 read."""
        with self._call(_read_bill((path,))):
            return self.store.get(path, deadline=deadline)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """See `Store.get_many`; 1 read for each path, named once or twice."""
        with self._call(_read_bill(paths)):
            return self.store.get_many(paths, deadline=deadline)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `Store.query`; 1 read for each document, at least 1."""
        with self._call(_query_bill(query)) as bill:
            result = self.store.query(query, deadline=deadline)
            bill.units = query_units(len(result.documents))
            return result

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`; 1 write or delete for each operation."""
        with self._call(_commit_bill(operations)):
            return self.store.commit(operations, deadline=deadline)

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `Store.watch`; counted only with `bill_changes`."""
        return self.store.watch(target, self._counting(on_change))

    def health(self) -> StoreHealth:
        """See `Store.health`; billed where the store says so."""
        with unanswered() as attempts:
            health = self.store.health()
        self._count_health(health, attempts)
        return health

    def close(self) -> None:
        """See `Store.close`."""
        self.store.close()

    def _begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> StoreTransaction:
        with self._call(_Bill(_NONE)):
            inner: Any = self._inner.begin_transaction(retry_of=retry_of, deadline=deadline)
        return cast(StoreTransaction, MeteredStore(inner, self.meter, account=self._account))


class MeteredAsyncStore(_Metered):
    """`MeteredStore` over an `AsyncStore`."""

    def __init__(
        self,
        store: AsyncStore,
        meter: Meter,
        *,
        bill_changes: bool = False,
        account: Account = "requests",
    ) -> None:
        super().__init__(store, meter, bill_changes=bill_changes, account=account)
        self.store = store

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `MeteredStore.get`."""
        with self._call(_read_bill((path,))):
            return await self.store.get(path, deadline=deadline)

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `MeteredStore.get_many`."""
        with self._call(_read_bill(paths)):
            return await self.store.get_many(paths, deadline=deadline)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `MeteredStore.query`."""
        with self._call(_query_bill(query)) as bill:
            result = await self.store.query(query, deadline=deadline)
            bill.units = query_units(len(result.documents))
            return result

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `MeteredStore.commit`."""
        with self._call(_commit_bill(operations)):
            return await self.store.commit(operations, deadline=deadline)

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `MeteredStore.watch`."""
        return await self.store.watch(target, self._counting(on_change))

    async def health(self) -> StoreHealth:
        """See `MeteredStore.health`."""
        with unanswered() as attempts:
            health = await self.store.health()
        self._count_health(health, attempts)
        return health

    async def close(self) -> None:
        """See `MeteredStore.close`."""
        await self.store.close()

    async def _begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> AsyncStoreTransaction:
        with self._call(_Bill(_NONE)):
            inner: Any = await self._inner.begin_transaction(retry_of=retry_of, deadline=deadline)
        return cast(
            AsyncStoreTransaction, MeteredAsyncStore(inner, self.meter, account=self._account)
        )
