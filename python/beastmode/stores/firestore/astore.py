"""`AsyncFirestoreStore`: Google's Firestore as an `AsyncStore`, for any number of event loops."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

from beastmode.errors import BeastError, ClosedError, RequestError, StoreError
from beastmode.stores.base import (
    Change,
    Feed,
    FeedListener,
    Query,
    QueryResult,
    StoreHealth,
    Subscription,
    Target,
    deadline_in,
    remaining,
)
from beastmode.stores.documents import Document, Operation
from beastmode.stores.firestore.base import PROBE_PATH, PROBE_S, FirestoreBase, is_repeatable
from beastmode.stores.firestore.calls import Attempts
from beastmode.stores.firestore.channel import AsyncConnection, Connection
from beastmode.stores.firestore.errors import commit_failure, failure
from beastmode.stores.firestore.feeds import Feeds

__all__ = ["AsyncFirestoreStore"]

T = TypeVar("T")


class AsyncFirestoreStore(FirestoreBase):
    """`FirestoreStore` with awaited methods, and the same arguments.

    Each event loop has a connection of its own, made by its first call; those of closed loops are
    forgotten.
    """

    coalesce_reads = True
    """One call for many documents takes little longer than one for a single one."""

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[asyncio.AbstractEventLoop, AsyncConnection] = {}
        self._listening: Connection | None = None
        self._feeds = Feeds(self._connect_threads, self._convert)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `FirestoreStore.get`."""
        request = self._get_request([self._check_path(path)])
        return self._one(path, await self._read("get", request, self._begin("get", deadline)))

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `FirestoreStore.get_many`."""
        checked = self._checked_paths(paths)
        end = self._begin("get_many", deadline)
        found: dict[str, Document] = {}
        moment: Any = None
        for chunk in self._chunks(checked):
            answers = await self._read("get_many", self._get_request(chunk, moment), end)
            found.update(self._documents(answers))
            moment = answers[0].read_time if moment is None and answers else moment
        return self._in_order(checked, found)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `FirestoreStore.query`."""
        request = self._query_request(query)
        end = self._begin("query", deadline)
        run_query = self._connect("query").run_query
        metadata = self.place.metadata(self._google, "parent", request.parent)

        async def attempt(left: float) -> list[Any]:
            return [answer async for answer in run_query(request, timeout=left, metadata=metadata)]

        return self._query_result(await self._call("query", attempt, end))

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `FirestoreStore.commit`.

        When the awaiting task is cancelled, the operations may or may not be applied.
        """
        held = list(operations)
        request = self._commit_request(held)
        end = self._begin("commit", deadline)
        if not held:
            return []
        self._check_size(request)
        connection = self._connect("commit")

        async def attempt(left: float) -> Any:
            return await connection.commit(request, timeout=left, metadata=connection.metadata)

        return self._versions(await self._call("commit", attempt, end, held), held)

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `FirestoreStore.watch`. `on_change` is called from a thread, not in the loop."""
        end = self._begin("watch", None)
        return await asyncio.to_thread(self._feeds.watch, target, on_change, end)

    def open_feed(self, listener: FeedListener) -> Feed:
        """See `FirestoreStore.open_feed`. It works in threads of its own, for all loops."""
        self._begin("open_feed", None)
        return self._feeds.open(listener)

    async def health(self) -> StoreHealth:
        """See `FirestoreStore.health`."""
        began = time.monotonic()
        try:
            await self.get(PROBE_PATH, deadline=deadline_in(min(PROBE_S, self._deadline_s)))
        except (StoreError, ClosedError, RequestError) as error:
            return StoreHealth(ok=False, latency_s=time.monotonic() - began, detail=str(error))
        return StoreHealth(ok=True, latency_s=time.monotonic() - began)

    async def close(self) -> None:
        """End all watches and feeds and close the connections of all loops. Idempotent.

        Calls that run raise ClosedError. In a child of a fork nothing is done.
        """
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, {}
        if os.getpid() != self._pid:
            return
        await asyncio.to_thread(self._feeds.close)
        with self._lock:
            listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        here = asyncio.get_running_loop()
        for loop, connection in connections.items():
            if loop is here:
                await connection.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(connection.close(), loop)

    # -- calls -----------------------------------------------------------------------------------

    def _connect(self, what: str) -> AsyncConnection:
        """Return the connection of the running loop, made by its first call."""
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is not None:
            return connection
        with self._lock:
            if self._closed:
                raise self._is_closed(what)
            for other in [held for held in self._connections if held.is_closed()]:
                del self._connections[other]
            connection = self._connections[loop] = AsyncConnection(self._google, self.place)
            return connection

    def _connect_threads(self) -> Connection:
        """Return the connection of the threads that listen."""
        with self._lock:
            if self._closed:
                raise self._is_closed("open_feed")
            if self._listening is None:
                self._listening = Connection(self._google, self.place)
            return self._listening

    async def _read(self, what: str, request: Any, end: float) -> list[Any]:
        connection = self._connect(what)

        async def attempt(left: float) -> list[Any]:
            call = connection.batch_get(request, timeout=left, metadata=connection.metadata)
            return [answer async for answer in call]

        return await self._call(what, attempt, end)

    async def _call(
        self,
        what: str,
        attempt: Callable[[float], Awaitable[T]],
        end: float,
        operations: Sequence[Operation] | None = None,
    ) -> T:
        """Return what `attempt(seconds left)` returns, tried again as the policy allows."""
        attempts = Attempts(self._policy, end)
        while True:
            left = remaining(end, what)
            try:
                return await attempt(left)
            except self._google.grpc.RpcError as error:
                failed: BeastError = (
                    failure(error, what)
                    if operations is None
                    else commit_failure(error, operations)
                )
                cause: BaseException = error
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if not self._closed or (task is not None and task.cancelling()):
                    raise
                failed, cause = self._is_closed(what), error  # close() cancelled the call
            except self._google.UsageError as error:
                if not self._closed:
                    raise
                failed, cause = self._is_closed(what), error
            if self._closed:
                failed = self._is_closed(what)
            repeatable = operations is None or is_repeatable(operations)
            wait = attempts.pause(failed, repeatable=repeatable)
            if wait is None:
                raise failed from cause
            await asyncio.sleep(wait)
            if self._closed:
                raise self._is_closed(what)
