"""`AsyncFirestoreStore`: Google's Firestore as an `AsyncStore`, for any number of event loops."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

from beastmode.errors import (
    ClosedError,
    RequestError,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores.attempts import attempts_of_call
from beastmode.stores.base import (
    Change,
    Query,
    QueryResult,
    StoreHealth,
    Subscription,
    Target,
    remaining,
)
from beastmode.stores.documents import Document, Operation
from beastmode.stores.firestore.base import (
    PROBE_PATH,
    RETIRED_S,
    FirestoreBase,
    is_repeatable,
)
from beastmode.stores.firestore.calls import Attempts, Silence
from beastmode.stores.firestore.channel import AsyncConnection
from beastmode.stores.firestore.errors import is_answered
from beastmode.stores.transactions import AsyncStoreTransaction, BoundAsyncTransaction

__all__ = ["AsyncFirestoreStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AsyncFirestoreStore(FirestoreBase):
    """`FirestoreStore` with awaited methods, and the same arguments.

    Each event loop has a connection of its own, made by its first call; those of closed loops are
    forgotten.
    """

    coalesce_reads = True
    """One call for many documents takes little longer than one for a single one."""

    def _open(self) -> None:
        self._connections: dict[asyncio.AbstractEventLoop, AsyncConnection] = {}
        self._retired: dict[asyncio.AbstractEventLoop, list[tuple[float, AsyncConnection]]] = {}
        self._silence: dict[asyncio.AbstractEventLoop, Silence] = {}

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
        return await self._get_many(paths, deadline)

    async def _get_many(
        self, paths: Sequence[str], deadline: float | None, token: bytes | None = None
    ) -> list[Document]:
        checked = self._checked_paths(paths)
        end = self._begin("get_many", deadline)
        found: dict[str, Document] = {}
        moment: Any = None
        for chunk in self._chunks(checked):
            request = self._get_request(chunk, moment, token)
            answers = await self._read("get_many", request, end, token)
            found.update(self._documents(answers))
            moment = answers[0].read_time if moment is None and answers else moment
        return self._in_order(checked, found)

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `FirestoreStore.query`."""
        return await self._query(query, deadline)

    async def _query(
        self, query: Query, deadline: float | None, token: bytes | None = None
    ) -> QueryResult:
        request = self._query_request(query, token)
        end = self._begin("query", deadline)
        metadata = self.place.metadata(self._google, "parent", request.parent)

        async def attempt(connection: AsyncConnection, left: float) -> list[Any]:
            call = connection.run_query(request, timeout=left, metadata=metadata)
            return [answer async for answer in call]

        return self._query_result(await self._call("query", attempt, end, token=token))

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `FirestoreStore.commit`.

        When the awaiting task is cancelled, the operations may or may not be applied.
        """
        return await self._commit(operations, deadline)

    async def _commit(
        self, operations: Sequence[Operation], deadline: float | None, token: bytes | None = None
    ) -> list[int]:
        held = list(operations)
        request = self._commit_request(held, token)
        end = self._begin("commit", deadline)
        if not held and token is None:
            return []
        self._check_size(request)

        async def attempt(connection: AsyncConnection, left: float) -> Any:
            return await connection.commit(request, timeout=left, metadata=connection.metadata)

        return self._versions(await self._call("commit", attempt, end, held, token), held)

    async def begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> AsyncStoreTransaction:
        """See `FirestoreStore.begin_transaction`."""
        request = self._begin_request(retry_of)
        end = self._begin("begin_transaction", deadline)

        async def attempt(connection: AsyncConnection, left: float) -> Any:
            return await connection.begin_transaction(
                request, timeout=left, metadata=connection.metadata
            )

        token: bytes = (
            await self._call("begin_transaction", attempt, end, token=retry_of or None)
        ).transaction
        return BoundAsyncTransaction(
            token,
            functools.partial(self._get_many, token=token),
            functools.partial(self._query, token=token),
            functools.partial(self._commit, token=token),
            functools.partial(self._rollback, token),
        )

    async def _rollback(self, token: bytes, deadline: float | None) -> None:
        request = self._rollback_request(token)
        end = self._begin("rollback", deadline)

        async def attempt(connection: AsyncConnection, left: float) -> Any:
            return await connection.rollback(request, timeout=left, metadata=connection.metadata)

        await self._call("rollback", attempt, end, token=token)

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `FirestoreStore.watch`. `on_change` is called from a thread, not in the loop."""
        end = self._begin("watch", None)
        return await asyncio.to_thread(self._feeds.watch, target, on_change, end)

    async def health(self) -> StoreHealth:
        """See `FirestoreStore.health`."""
        began = time.monotonic()
        try:
            await self.get(PROBE_PATH, deadline=self._probe_deadline())
        except (StoreError, ClosedError, RequestError) as error:
            took = time.monotonic() - began
            return StoreHealth(ok=False, latency_s=took, detail=str(error), error=error)
        return StoreHealth(ok=True, latency_s=time.monotonic() - began)

    async def close(self) -> None:
        """End all watches and feeds and close the connections of all loops. Idempotent.

        Calls that run raise ClosedError. In a child of a fork nothing is done.
        """
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, {}
            retired, self._retired = self._retired, {}
        if os.getpid() != self._pid:
            return
        await asyncio.to_thread(self._stop_listening)
        here = asyncio.get_running_loop()
        for loop, current in connections.items():
            for connection in (current, *(held for _, held in retired.get(loop, ()))):
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
                del self._connections[other], self._silence[other]
                self._retired.pop(other, None)
            self._silence[loop] = Silence()
            connection = self._connections[loop] = AsyncConnection(self._google, self.place)
            return connection

    async def _read(
        self, what: str, request: Any, end: float, token: bytes | None = None
    ) -> list[Any]:
        async def attempt(connection: AsyncConnection, left: float) -> list[Any]:
            call = connection.batch_get(request, timeout=left, metadata=connection.metadata)
            return [answer async for answer in call]

        return await self._call(what, attempt, end, token=token)

    async def _call(
        self,
        what: str,
        attempt: Callable[[AsyncConnection, float], Awaitable[T]],
        end: float,
        operations: Sequence[Operation] | None = None,
        token: bytes | None = None,
    ) -> T:
        """Return what `attempt(connection, seconds left)` returns, tried again as allowed."""
        attempts = Attempts(self._policy, end)
        billed = attempts_of_call()
        while True:
            left = remaining(end, what)
            connection = self._connect(what)
            silence = self._silence[asyncio.get_running_loop()]
            billed.sent()
            try:
                answer = await attempt(connection, left)
            except self._google.grpc.RpcError as error:
                if is_answered(error):
                    billed.answered()
                failed = self._failed(error, what, operations, token)
                cause: BaseException = error
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # The channel was closed under the call: by close(), or long after it was left.
                failed, cause = StoreUnavailable(f"{what}: the connection was closed"), error
                failed.maybe_applied = operations is not None
            except self._google.UsageError as error:
                billed.answered()
                if not self._closed:
                    raise
                failed, cause = self._is_closed(what), error
            else:
                billed.answered()
                silence.broken()
                return answer
            if self._closed:
                failed = self._is_closed(what)
            elif isinstance(failed, StoreTimeout) and silence.kept(left):
                await self._leave(connection)
            wait = attempts.pause(failed, repeatable=is_repeatable(operations, token))
            if wait is None:
                raise failed from cause
            await asyncio.sleep(wait)
            if self._closed:
                raise self._is_closed(what)

    async def _leave(self, connection: AsyncConnection) -> None:
        """Make the calls of this loop after this one on a new connection."""
        logger.warning("%s: nothing is heard on the connection; trying a new one", self)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        with self._lock:
            if self._closed or self._connections.get(loop) is not connection:
                return
            self._connections[loop] = AsyncConnection(self._google, self.place)
            retired = [*self._retired.get(loop, ()), (now, connection)]
            self._retired[loop] = [item for item in retired if now - item[0] <= RETIRED_S]
        for at, held in retired:
            if now - at > RETIRED_S:
                await held.close()
