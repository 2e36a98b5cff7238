"""`ThreadedAsyncStore`: any `Store` as an `AsyncStore`, its calls made in a few threads of its own.

Works from any number of event loops, in any threads, at the same time. Nothing of it blocks a
loop: calls wait in a queue for a free thread, at most until their deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final, Self, TypeVar

from beastmode.errors import (
    CapacityError,
    ClosedError,
    ForkedError,
    StoreTimeout,
)
from beastmode.stores.base import (
    Change,
    Query,
    QueryResult,
    Store,
    StoreHealth,
    Subscription,
    Target,
    check_count,
    check_seconds,
    deadline_in,
    remaining,
)
from beastmode.stores.documents import Document, Operation
from beastmode.stores.transactions import (
    AsyncStoreTransaction,
    BoundAsyncTransaction,
    TransactionStore,
)

__all__ = ["ThreadedAsyncStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE_S: Final = 0.1
"""How long after the deadline the store may still answer: its own error says more than ours."""

_HEALTH_S: Final = 5.0


class ThreadedAsyncStore:
    """An `AsyncStore` over `store`, with at most `threads` calls running at a time.

    A call without a deadline gets one in `deadline_s`. At most `max_waiting` calls may run or
    wait; more are refused with CapacityError. When the task that awaits a call is cancelled, or
    the deadline passes, a read that has not begun is dropped, and everything else is left to
    finish: a commit is always carried to its end, and if nobody hears of its end, it is logged
    and counted in `unheard_commits`. `close` closes `store` as well with `close_store=True`.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: int = 4,
        deadline_s: float = 10.0,
        max_waiting: int = 10_000,
        close_store: bool = False,
        close_patience_s: float = 5.0,
    ) -> None:
        check_count("threads", threads)
        check_count("max_waiting", max_waiting)
        check_seconds("deadline_s", deadline_s)
        check_seconds("close_patience_s", close_patience_s)
        self.store = store
        self.unheard_commits = 0
        """Commits that ended after their caller was cancelled or had timed out."""
        self._threads = threads
        self._deadline_s = deadline_s
        self._max_waiting = max_waiting
        self._close_store = close_store
        self._close_patience_s = close_patience_s
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._running: set[Future[Any]] = set()
        self._closed = False
        if isinstance(store, TransactionStore):
            # An attribute, because a method would make every one an AsyncTransactionStore.
            self.begin_transaction = self._begin_transaction

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `Store.get`."""
        end = self._deadline(deadline)
        return await self._call("get", lambda: self.store.get(path, deadline=end), end)

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `Store.get_many`."""
        end = self._deadline(deadline)
        return await self._call("get_many", lambda: self.store.get_many(paths, deadline=end), end)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `Store.query`."""
        end = self._deadline(deadline)
        return await self._call("query", lambda: self.store.query(query, deadline=end), end)

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`; goes on to its end when the awaiting task is cancelled."""
        end = self._deadline(deadline)
        held = list(operations)  # the caller may change its list while the call waits
        return await self._call("commit", lambda: self.store.commit(held, deadline=end), end)

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `Store.watch`. `on_change` is called from a thread of the store, not in the loop."""
        end = self._deadline(None)
        return await self._call("watch", lambda: self.store.watch(target, on_change), end)

    async def _begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> AsyncStoreTransaction:
        """See `TransactionStore.begin_transaction`."""
        store = self.store
        assert isinstance(store, TransactionStore)
        end = self._deadline(deadline)
        held = await self._call(
            "begin_transaction",
            lambda: store.begin_transaction(retry_of=retry_of, deadline=end),
            end,
        )

        def call(what: str, method: Callable[..., T]) -> Callable[..., Awaitable[T]]:
            def made(*args: Any) -> Awaitable[T]:
                *given, deadline = args
                end = self._deadline(deadline)
                return self._call(what, lambda: method(*given, deadline=end), end)

            return made

        return BoundAsyncTransaction(
            held.token,
            call("get_many", held.get_many),
            call("query", held.query),
            call("commit", held.commit),
            call("rollback", held.rollback),
        )

    async def health(self) -> StoreHealth:
        """See `Store.health`; a probe that hangs or cannot begin is an unhealthy store."""
        began = time.monotonic()
        try:
            return await self._call("health", self.store.health, deadline_in(_HEALTH_S))
        except (StoreTimeout, CapacityError, ClosedError) as error:
            took = time.monotonic() - began
            return StoreHealth(ok=False, latency_s=took, detail=str(error), error=error)

    async def close(self) -> None:
        """Refuse new calls, wait at most `close_patience_s` for those that run. Idempotent."""
        await asyncio.to_thread(self.shut_down)

    def shut_down(self) -> None:
        """As `close`, for threads; blocks meanwhile."""
        if os.getpid() != self._pid:
            self._closed = True
            return
        with self._lock:
            was_closed, self._closed = self._closed, True
            executor, self._executor = self._executor, None
            running = list(self._running)
        if was_closed:
            return
        late = wait(running, timeout=self._close_patience_s).not_done
        if late:
            logger.warning("%d calls of the store still run at close", len(late))
        if executor is not None:
            executor.shutdown(wait=False)
        if self._close_store:
            self.store.close()

    def _deadline(self, deadline: float | None) -> float:
        return time.monotonic() + self._deadline_s if deadline is None else deadline

    async def _call(self, what: str, call: Callable[[], T], end: float) -> T:
        """Run `call` in a thread and wait for it until `end` and a little more."""
        left = remaining(end, what)
        running = self._submit(what, call)
        waiter = asyncio.wrap_future(running)
        try:
            done, _ = await asyncio.wait((waiter,), timeout=left + _GRACE_S)
        except asyncio.CancelledError:
            self._abandon(what, running, waiter)
            raise
        if done:
            return waiter.result()
        self._abandon(what, running, waiter)
        raise StoreTimeout(
            f"{what}: the store did not answer before the deadline"
            + ("; it may still commit" if what == "commit" else "")
        )

    def _submit(self, what: str, call: Callable[[], T]) -> Future[T]:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"{what}: this ThreadedAsyncStore was made in process {self._pid} and cannot be "
                f"used in its child {os.getpid()}; make one after the fork"
            )
        with self._lock:
            if self._closed:
                raise ClosedError(f"{what}: this ThreadedAsyncStore is closed")
            if len(self._running) >= self._max_waiting:
                raise CapacityError(
                    f"{what}: {len(self._running)} store calls already run or wait "
                    f"(max_waiting); nothing was done"
                )
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._threads, "beastmode-store")
            future = self._executor.submit(call)
            self._running.add(future)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._running.discard(future)

    def _abandon(self, what: str, running: Future[Any], waiter: asyncio.Future[Any]) -> None:
        """Nobody awaits the call any more: drop it if it only reads and has not begun."""
        waiter.add_done_callback(_forget)
        if what == "commit":
            running.add_done_callback(self._tell_unheard)
        elif what != "watch":
            running.cancel()
        else:
            running.add_done_callback(_close_watch)

    def _tell_unheard(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            logger.info("a commit succeeded after its caller stopped waiting for it")
        else:
            logger.warning("a commit failed after its caller stopped waiting for it: %s", error)
        with self._lock:  # counted last: whoever sees the count finds the log complete
            self.unheard_commits += 1


def _forget(future: asyncio.Future[Any]) -> None:
    """Take a result that nobody awaits, so that asyncio does not report it as lost."""
    if not future.cancelled():
        future.exception()


def _close_watch(future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
