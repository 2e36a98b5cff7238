"""The drivers of the cache: they run loads, in threads and on event loops, and wait for them.

What to load and what to do with it is decided by `table`; here is all of the cache's I/O, its
threads and its tasks. A thread that reads does the loads that it leads itself. A coroutine's
loads run detached, as a task of its loop (over an AsyncStore) or in one of the loader's few
threads, so that cancelling it cancels nobody else's load.

Single reads that coroutines begin in one turn of their event loop can be gathered into one call
of the store. Nobody waits longer for that: the task that loads is made by the first of them, and
what has joined by the time it runs, which is in the next turn, is loaded with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from beastmode.cache.flights import GRACE_S, loading, running_loop
from beastmode.cache.state import CacheState
from beastmode.cache.table import DocumentFlight, Read
from beastmode.errors import ClosedError, LoadError, StoreTimeout, StoreUnavailable
from beastmode.stores.base import AsyncStore, Store
from beastmode.stores.documents import Document

__all__ = ["Loader"]

_log = logging.getLogger(__name__)

_THREADS: Final = 4
"""Threads for background refreshes, and for loads of coroutines where there is no AsyncStore."""
_FEWEST_TASKS: Final = 64
_MOST_GATHERED: Final = 500
"""Single reads of one turn that are loaded by one call."""
_MAX_QUEUED: Final = 10_000
"""Documents that may wait for one of the threads; further loads fail as if the store were down."""


class Loader:
    """Answers reads over a store, on behalf of one `CacheState`."""

    def __init__(
        self,
        state: CacheState,
        store: Store,
        async_store: AsyncStore | None,
        *,
        deadline_s: float,
        timer: Callable[[], float],
        on_error: Callable[[BaseException], object] | None,
        gather: bool,
    ) -> None:
        self._state = state
        self._table = state.table
        self._store = store
        self._async_store = async_store
        self._load_deadline_s = deadline_s
        self._timer = timer
        self._on_error = on_error
        self._gather = gather
        self._turns: dict[asyncio.AbstractEventLoop, list[DocumentFlight]] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._queued = 0
        self._workers: set[int] = set()
        # Event loops hold tasks weakly, so someone has to hold them.
        self._tasks: set[asyncio.Task[None]] = set()
        self._prune_at = _FEWEST_TASKS

    def close(self) -> None:
        """Cancel the tasks and stop the threads, waiting for loads that they are doing."""
        for task in list(self._tasks):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)
        with self._state.gate.lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            # A thread of ours that closes the cache, from on_error say, cannot wait for itself.
            executor.shutdown(wait=threading.get_ident() not in self._workers, cancel_futures=True)

    def forget_closed_loops(self) -> None:
        """Let go of tasks whose event loop is closed: they will never end."""
        for task in list(self._tasks):
            if task.get_loop().is_closed():
                self._tasks.discard(task)
        for loop in list(self._turns):
            if loop.is_closed():
                self._turns.pop(loop, None)
        self._prune_at = max(_FEWEST_TASKS, 2 * len(self._tasks))

    def read(self, reads: list[Read], deadline: float | None, *, one: bool = False) -> None:
        """Answer `reads` from this thread, which does the loads that it leads itself."""
        limit = time.monotonic() + self._load_deadline_s if deadline is None else deadline
        while reads:
            led, refresh = self._table.begin(
                reads,
                now=self._timer(),
                deadline=limit,
                background_deadline=time.monotonic() + self._load_deadline_s,
                mine=running_loop(),
                leader=None,
            )
            if refresh:
                self._submit(refresh)
            if led:
                self._load_flights(led, one=one)
            waiting = [read for read in reads if read.answer is None]
            reads = []
            for read in waiting:
                assert read.flight is not None
                outcome = read.flight.outcome(limit)
                if not self._table.settle(read, outcome, now=self._timer(), limit=limit):
                    reads.append(read)

    async def aread(self, reads: list[Read], deadline: float | None, *, one: bool = False) -> None:
        """Answer `reads` from a coroutine; loads run apart from it, so it may be cancelled."""
        started = time.monotonic()
        limit = started + self._load_deadline_s if deadline is None else deadline
        loop = asyncio.get_running_loop()
        while reads:
            load_limit = time.monotonic() + self._load_deadline_s
            led, refresh = self._table.begin(
                reads,
                now=self._timer(),
                deadline=max(limit, load_limit),
                background_deadline=load_limit,
                mine=None,
                leader=None if self._async_store is None else loop,
            )
            for flights, is_one in ((refresh, False), (led, one)):
                if flights and self._async_store is None:
                    self._submit(flights, one=is_one)
                elif flights and is_one and self._gather:
                    self._join_turn(loop, flights[0], self._async_store)
                elif flights:
                    load = self._aload_flights(self._async_store, flights, one=is_one)
                    self._spawn(loop, flights, load)
            waiting = [read for read in reads if read.answer is None]
            reads = []
            for read in waiting:
                assert read.flight is not None
                outcome = await read.flight.aoutcome(limit)
                if not self._table.settle(read, outcome, now=self._timer(), limit=limit):
                    reads.append(read)

    def _load_queued(self, flights: list[DocumentFlight], *, one: bool = False) -> None:
        """Load those of `flights` that anyone may still wait for; in one of our threads."""
        with self._state.gate.lock:
            self._queued -= len(flights)
        wanted = [flight for flight in flights if not (flight.settled or flight.is_dead())]
        if wanted:
            self._load_flights(wanted, one=one)

    def _load_flights(self, flights: list[DocumentFlight], *, one: bool = False) -> None:
        """Load `flights` in this thread and resolve every one of them, whatever happens."""
        try:
            deadline = flights[0].deadline
            with loading(self._table, [flight.key for flight in flights]):
                if one:
                    documents: Any = [self._store.get(flights[0].path, deadline=deadline)]
                else:
                    paths = [flight.path for flight in flights]
                    documents = self._store.get_many(paths, deadline=deadline)
            self._land(flights, documents)
        except Exception as error:  # noqa: BLE001 - every waiter gets it, and it is counted
            self._fail(flights, error)
        finally:  # an interrupt: the waiters begin again
            self._abandon(flights)

    async def _aload_flights(
        self, store: AsyncStore | None, flights: list[DocumentFlight], *, one: bool = False
    ) -> None:
        """As `_load_flights`, in a task of its own."""
        try:
            self._land(flights, await self._afetch(store, flights, one=one))
        except Exception as error:  # noqa: BLE001 - every waiter gets it, and it is counted
            self._fail(flights, error)
        finally:  # the task was cancelled or destroyed: the waiters begin again
            self._abandon(flights)

    async def _afetch(
        self, store: AsyncStore | None, flights: list[DocumentFlight], *, one: bool
    ) -> Any:
        assert store is not None
        deadline = max(flight.deadline for flight in flights)
        left = deadline - time.monotonic() + GRACE_S
        with loading(self._table, [flight.key for flight in flights]):
            limit = asyncio.timeout(left)
            try:
                async with limit:
                    if one:
                        return [await store.get(flights[0].path, deadline=deadline)]
                    paths = [flight.path for flight in flights]
                    return await store.get_many(paths, deadline=deadline)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise StoreTimeout(
                    f"the store did not end the load of {flights[0].path!r} at its deadline"
                ) from error

    def _join_turn(
        self,
        loop: asyncio.AbstractEventLoop,
        flight: DocumentFlight,
        store: AsyncStore | None,
    ) -> None:
        """Load `flight` together with those that begin in the same turn of `loop`."""
        flights = self._turns.get(loop)
        if flights is not None and len(flights) < _MOST_GATHERED:
            flights.append(flight)
            return
        flights = self._turns[loop] = [flight]
        self._spawn(loop, flights, self._aload_turn(store, loop, flights))

    async def _aload_turn(
        self,
        store: AsyncStore | None,
        loop: asyncio.AbstractEventLoop,
        flights: list[DocumentFlight],
    ) -> None:
        if self._turns.get(loop) is flights:
            del self._turns[loop]
        if len(flights) == 1:
            await self._aload_flights(store, flights, one=True)
            return
        with self._state.gate.lock:
            self._state.gathered += len(flights)
        try:
            self._land(flights, await self._afetch(store, flights, one=False))
        except (StoreUnavailable, StoreTimeout) as error:
            self._fail(flights, error)
        except Exception:  # noqa: BLE001 - each load raises its own
            # One document may be to blame, and the others' readers have nothing to do with it.
            alone = [self._aload_flights(store, [flight], one=True) for flight in flights]
            await asyncio.gather(*alone)
        finally:
            self._abandon(flights)

    def _spawn(
        self,
        loop: asyncio.AbstractEventLoop,
        flights: list[DocumentFlight],
        load: Coroutine[Any, Any, None],
    ) -> None:
        # A refresh outlives the read that started it and is none of its business.
        context = contextvars.Context() if flights[0].background else None
        task = loop.create_task(load, context=context)
        self.hold(task)
        task.add_done_callback(functools.partial(self._ended, flights))

    def hold(self, task: asyncio.Task[None]) -> None:
        """Keep a task of the cache until it is done; `close` cancels it."""
        if len(self._tasks) >= self._prune_at:
            self.forget_closed_loops()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ended(self, flights: list[DocumentFlight], task: asyncio.Task[None]) -> None:
        if self._turns.get(task.get_loop()) is flights:
            del self._turns[task.get_loop()]
        self._abandon(flights)  # a task cancelled before its first step has run nothing

    def _submit(self, flights: list[DocumentFlight], *, one: bool = False) -> None:
        """Load `flights` in one of the cache's threads."""
        context = contextvars.Context() if flights[0].background else contextvars.copy_context()
        try:
            with self._state.gate.lock:
                self._state.gate.check()
                self._check_room(flights)
                done = self._threads().submit(
                    context.run, functools.partial(self._load_queued, flights, one=one)
                )
                self._queued += len(flights)
            done.add_done_callback(lambda _: self._abandon(flights))  # it may never have run
        except (ClosedError, StoreUnavailable, RuntimeError) as error:
            # Too many, closed meanwhile, or no thread to be had.
            self._fail(flights, error)

    def _threads(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(
                _THREADS, "beastmode-cache", lambda: self._workers.add(threading.get_ident())
            )
        return self._executor

    def in_thread(self, work: Callable[[], None]) -> Future[None]:
        """Do `work` in one of the cache's threads; what keeps it from being done is raised."""
        with self._state.gate:
            return self._threads().submit(contextvars.copy_context().run, work)

    def _check_room(self, flights: list[DocumentFlight]) -> None:
        # One list alone may be longer.
        if self._queued and self._queued + len(flights) > _MAX_QUEUED:
            raise StoreUnavailable(
                f"{self._queued} loads wait for the store already (at most {_MAX_QUEUED}); "
                f"{flights[0].path!r} was not asked for"
            )

    def _land(self, flights: list[DocumentFlight], documents: Any) -> None:
        if not isinstance(documents, Sequence) or len(documents) != len(flights):
            raise LoadError(
                f"the store was asked for {len(flights)} documents and returned {documents!r:.200}"
            )
        for flight, document in zip(flights, documents, strict=True):
            if isinstance(document, Document) and document.path == flight.path:
                self._table.land(flight, document)
            else:
                self._fail(
                    [flight],
                    LoadError(
                        f"the store was asked for {flight.path!r} and returned {document!r:.200}"
                    ),
                )

    def _fail(self, flights: list[DocumentFlight], error: Exception) -> None:
        for flight in flights:
            self._table.fail(flight, error)
        if flights[0].background and not self._state.gate.closed:
            _log.warning("a background load of %r failed: %r", flights[0].path, error)
            if self._on_error is not None:
                try:
                    self._on_error(error)
                except Exception:  # noqa: BLE001 - the hook is the user's; it is counted
                    _log.exception("on_error raised")
                    self._state.hook_errors += 1

    def _abandon(self, flights: list[DocumentFlight]) -> None:
        for flight in flights:
            if not flight.settled:
                self._table.abandon(flight, "was cancelled before it ended")
