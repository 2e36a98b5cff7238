"""Stores behind a circuit breaker: what fails again and again is not asked for a while.

`GuardedStore` and `GuardedAsyncStore` share one `Breaker` with everything else that calls the
same backend. While it is open a call raises BreakerOpen at once, a StoreUnavailable whose
`retry_after_s` tells when the next try is made.

Counted as failures: StoreUnavailable and StoreTimeout. An answer that refuses (WriteRejected,
StoreRefused, TransactionConflict) is an answer, and a success. Neither: malformed requests, a
caller's own cancellation, a timeout of a caller who left the store less than 0.25 s, errors of any
other kind.

The calls of a transaction are guarded as all others, but for its rollback. `watch` and whatever
else a store offers beyond the protocol pass through: streams have a watchdog of their own. What a
stream hears brings the next try forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from beastmode.breaker import Breaker
from beastmode.errors import BreakerOpen, StoreTimeout, StoreUnavailable
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
from beastmode.stores.documents import Document, Operation
from beastmode.stores.probing import ANSWERS, judge_health
from beastmode.stores.transactions import AsyncStoreTransaction, StoreTransaction
from beastmode.stores.wrapper import StoreWrapper

__all__ = ["GuardedAsyncStore", "GuardedStore"]

_FAIR_S: Final = 0.25
"""A store that was left less time than this and did not answer may be as well as ever."""


class _Guarded(StoreWrapper):
    """What both wrappers share: the permit around one call, and health while it is open."""

    def __init__(self, store: Any, breaker: Breaker) -> None:
        super().__init__(store)
        self.breaker = breaker

    def _open_feed(self, listener: FeedListener) -> Feed:
        return super()._open_feed(_Hearing(listener, self.breaker))

    @contextmanager
    def _call(self, deadline: float | None) -> Iterator[None]:
        breaker = self.breaker
        permit = breaker.admit()
        fair = deadline is None or deadline - time.monotonic() >= _FAIR_S
        try:
            yield
        except BreakerOpen:  # of a breaker further in
            breaker.released(permit)
            raise
        except StoreTimeout as error:
            if fair:
                breaker.failed(permit, error)
            else:
                breaker.released(permit)
            raise
        except StoreUnavailable as error:
            breaker.failed(permit, error)
            raise
        except ANSWERS:
            breaker.succeeded(permit)
            raise
        except BaseException:
            breaker.released(permit)
            raise
        breaker.succeeded(permit)

    def _health_permit(self) -> int | StoreHealth:
        """Return a permit to ask the store, or the answer while it must not be asked."""
        permit = self.breaker.admit_probe()
        if permit is not None:
            return permit
        signal = self.breaker.signal()
        if not signal.ok:
            return StoreHealth(
                ok=False,
                latency_s=0.0,
                detail=f"not asked: {signal.failures_in_row} failures in a row, "
                f"{signal.state} for {signal.for_s:.1f} s, next try in "
                f"{signal.retry_after_s:.2f} s; the last one was {signal.last_error}",
            )
        try:
            return self.breaker.admit()
        except BreakerOpen as error:
            return StoreHealth(ok=False, latency_s=0.0, detail=str(error))

    def _hearing(self, on_change: Callable[[Change], object]) -> Callable[[Change], object]:
        breaker = self.breaker

        def heard(change: Change) -> None:
            if breaker.state != "closed":
                breaker.hurry()
            on_change(change)

        return heard


class _Hearing:
    """A FeedListener that tells `breaker` when the store is heard, and passes everything on."""

    def __init__(self, listener: FeedListener, breaker: Breaker) -> None:
        self._listener = listener
        self._breaker = breaker

    def _heard(self) -> None:
        if self._breaker.state != "closed":
            self._breaker.hurry()

    def on_change(self, change: Change) -> object:
        """See `FeedListener.on_change`."""
        self._heard()
        return self._listener.on_change(change)

    def on_current(self, target: Target) -> object:
        """See `FeedListener.on_current`."""
        self._heard()
        return self._listener.on_current(target)

    def on_doubt(self, targets: Sequence[Target] | None, why: str) -> object:
        """See `FeedListener.on_doubt`."""
        return self._listener.on_doubt(targets, why)

    def on_unknown(self, paths: Sequence[str], why: str) -> object:
        """See `FeedListener.on_unknown`."""
        self._heard()
        return self._listener.on_unknown(paths, why)


class GuardedStore(_Guarded):
    """A `Store` that asks `store` only while `breaker` lets it. O(1) beside the store's work.

    `store` and `breaker` are attributes. It owns the store: closing it closes the store.
    """

    def __init__(self, store: Store, breaker: Breaker) -> None:
        super().__init__(store, breaker)
        self.store = store

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `Store.get`."""
        with self._call(deadline):
            return self.store.get(path, deadline=deadline)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """See `Store.get_many`."""
        with self._call(deadline):
            return self.store.get_many(paths, deadline=deadline)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `Store.query`."""
        with self._call(deadline):
            return self.store.query(query, deadline=deadline)

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`."""
        with self._call(deadline):
            return self.store.commit(operations, deadline=deadline)

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `Store.watch`; not refused."""
        return self.store.watch(target, self._hearing(on_change))

    def health(self) -> StoreHealth:
        """Probe the store if a probe is due, else tell how the breaker stands; never raises."""
        permit = self._health_permit()
        if isinstance(permit, StoreHealth):
            return permit
        try:
            health = self.store.health()
        except BaseException:
            self.breaker.released(permit)
            raise
        judge_health(self.breaker, permit, health)
        return health

    def close(self) -> None:
        """See `Store.close`."""
        self.store.close()

    def _begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> StoreTransaction:
        with self._call(deadline):
            inner: Any = self._inner.begin_transaction(retry_of=retry_of, deadline=deadline)
        return cast(StoreTransaction, GuardedStore(inner, self.breaker))


class GuardedAsyncStore(_Guarded):
    """`GuardedStore` over an `AsyncStore`; give both the same `breaker`."""

    def __init__(self, store: AsyncStore, breaker: Breaker) -> None:
        super().__init__(store, breaker)
        self.store = store

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `GuardedStore.get`."""
        with self._call(deadline):
            return await self.store.get(path, deadline=deadline)

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `GuardedStore.get_many`."""
        with self._call(deadline):
            return await self.store.get_many(paths, deadline=deadline)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `GuardedStore.query`."""
        with self._call(deadline):
            return await self.store.query(query, deadline=deadline)

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `GuardedStore.commit`."""
        with self._call(deadline):
            return await self.store.commit(operations, deadline=deadline)

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `GuardedStore.watch`."""
        return await self.store.watch(target, self._hearing(on_change))

    async def health(self) -> StoreHealth:
        """See `GuardedStore.health`."""
        permit = self._health_permit()
        if isinstance(permit, StoreHealth):
            return permit
        try:
            health = await self.store.health()
        except BaseException:
            self.breaker.released(permit)
            raise
        judge_health(self.breaker, permit, health)
        return health

    async def close(self) -> None:
        """See `GuardedStore.close`."""
        await self.store.close()

    async def _begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> AsyncStoreTransaction:
        with self._call(deadline):
            inner: Any = await self._inner.begin_transaction(retry_of=retry_of, deadline=deadline)
        return cast(AsyncStoreTransaction, GuardedAsyncStore(inner, self.breaker))
