"""The drivers of queries: they ask the store, from threads and event loops, one at a time for each.

What is held and what may be kept is decided by `queries`; here is the I/O. As for documents, a
coroutine's query runs detached from it, so that cancelling one reader disturbs no other.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from beastmode.cache.flights import GRACE_S, AbandonedError, running_loop
from beastmode.cache.loader import Loader
from beastmode.cache.queries import QueryFlight, canonical
from beastmode.cache.report import Source
from beastmode.cache.state import CacheState
from beastmode.errors import LoadError, StoreTimeout, StoreUnavailable
from beastmode.stores.base import AsyncStore, Query, QueryResult, Store
from beastmode.stores.documents import Document

__all__ = ["QueryAnswer", "QueryLoader"]

_DEADLINE_S: Final = 10.0
"""How long a query is waited for whose reader gave no deadline; the store has its own."""


class QueryAnswer(NamedTuple):
    """The documents of a query, in its order, and where they came from."""

    documents: list[Document]
    source: Source


class _Asking:
    """One reader's query."""

    __slots__ = ("abandoned", "deadline", "key", "limit", "query")

    def __init__(self, query: Query, deadline: float | None) -> None:
        self.query = query
        self.key: Hashable | None = canonical(query)
        self.deadline = deadline
        self.limit = time.monotonic() + _DEADLINE_S if deadline is None else deadline
        self.abandoned = 0

    def answer(
        self, flight: QueryFlight, outcome: QueryResult | Exception, *, led: bool
    ) -> QueryAnswer | None:
        """Return the answer, or None to ask again; raises what the store did."""
        if not isinstance(outcome, Exception):
            return QueryAnswer(list(outcome.documents), "store")
        may_retry = not led and time.monotonic() < self.limit
        if isinstance(outcome, AbandonedError):
            self.abandoned += 1
            if may_retry and self.abandoned < 2:
                return None
        elif may_retry and isinstance(outcome, StoreTimeout) and flight.deadline < self.limit:
            return None  # the leader's deadline was shorter than this reader's
        raise outcome


class QueryLoader:
    """Answers queries over a store, on behalf of one `CacheState`."""

    def __init__(
        self,
        state: CacheState,
        loader: Loader,
        store: Store,
        async_store: AsyncStore | None,
        *,
        timer: Callable[[], float],
    ) -> None:
        self._state = state
        self._shelf = state.queries
        self._loader = loader
        self._store = store
        self._async_store = async_store
        self._timer = timer

    def query(self, query: Query, deadline: float | None) -> QueryAnswer:
        """Answer from this thread, which asks the store itself unless another reader does."""
        asking = _Asking(query, deadline)
        while True:
            held, flight, led = self._begin(asking, running_loop(), None)
            if flight is None:
                return QueryAnswer(held or [], "hit")
            if led:
                self._load(asking, flight)
            answer = self._answer(asking, flight, flight.outcome(asking.limit), led=led)
            if answer is not None:
                return answer

    async def aquery(self, query: Query, deadline: float | None) -> QueryAnswer:
        """Answer a coroutine; the store is asked apart from it, so it may be cancelled."""
        asking = _Asking(query, deadline)
        loop = asyncio.get_running_loop()
        store = self._async_store
        while True:
            held, flight, led = self._begin(asking, None, None if store is None else loop)
            if flight is None:
                return QueryAnswer(held or [], "hit")
            if led and store is None:
                self._load_apart(asking, flight)
            elif led and store is not None:
                task = loop.create_task(self._aload(store, asking, flight))
                self._loader.hold(task)
                task.add_done_callback(functools.partial(self._ended, flight))
            answer = self._answer(asking, flight, await flight.aoutcome(asking.limit), led=led)
            if answer is not None:
                return answer

    def _begin(
        self,
        asking: _Asking,
        mine: asyncio.AbstractEventLoop | None,
        leader: asyncio.AbstractEventLoop | None,
    ) -> tuple[list[Document] | None, QueryFlight | None, bool]:
        with self._state.gate:
            return self._shelf.begin(
                asking.query,
                asking.key,
                now=self._timer(),
                deadline=asking.limit,
                mine=mine,
                leader=leader,
            )

    def _answer(
        self, asking: _Asking, flight: QueryFlight, outcome: QueryResult | Exception, *, led: bool
    ) -> QueryAnswer | None:
        """Return the answer, stale where the store fails and it may be, or None to ask again."""
        try:
            return asking.answer(flight, outcome, led=led)
        except (StoreUnavailable, StoreTimeout):
            with self._state.gate.lock:
                documents = self._shelf.stale(asking.key, self._timer())
            if documents is None:
                raise
            return QueryAnswer(documents, "stale")

    def _load(self, asking: _Asking, flight: QueryFlight) -> None:
        try:
            self._land(flight, self._store.query(asking.query, deadline=asking.deadline))
        except Exception as error:  # noqa: BLE001 - every waiter gets it
            self._shelf.fail(flight, error)
        finally:  # an interrupt: the waiters begin again
            self._shelf.abandon(flight)

    def _load_apart(self, asking: _Asking, flight: QueryFlight) -> None:
        try:
            done = self._loader.in_thread(functools.partial(self._load, asking, flight))
        except Exception as error:  # noqa: BLE001 - closed, or no thread to be had
            self._shelf.fail(flight, error)
        else:
            done.add_done_callback(lambda _: self._shelf.abandon(flight))  # it may not have run

    async def _aload(self, store: AsyncStore, asking: _Asking, flight: QueryFlight) -> None:
        try:
            limit = asyncio.timeout(asking.limit - time.monotonic() + GRACE_S)
            try:
                async with limit:
                    result = await store.query(asking.query, deadline=asking.deadline)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise StoreTimeout(
                    f"the store did not end the query of {flight.path!r} at its deadline"
                ) from error
            self._land(flight, result)
        except Exception as error:  # noqa: BLE001 - every waiter gets it
            self._shelf.fail(flight, error)
        finally:  # the task was cancelled or destroyed
            self._shelf.abandon(flight)

    def _ended(self, flight: QueryFlight, _task: asyncio.Task[None]) -> None:
        self._shelf.abandon(flight)  # a task cancelled before its first step has run nothing

    def _land(self, flight: QueryFlight, result: object) -> None:
        if not isinstance(result, QueryResult):
            raise LoadError(
                f"the store was asked for a query of {flight.path!r} and returned {result!r:.200}"
            )
        self._shelf.land(flight, result)
