"""`FirestoreStore`: Google's Firestore as a `Store`, called from threads."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from beastmode.errors import ClosedError, RequestError, StoreError, StoreTimeout
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
from beastmode.stores.firestore.channel import Connection
from beastmode.stores.firestore.errors import is_answered
from beastmode.stores.transactions import BoundTransaction, StoreTransaction

__all__ = ["FirestoreStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FirestoreStore(FirestoreBase):
    """A `Store` over one database of Firestore; see `FirestoreBase` for the arguments.

    All threads share one connection.
    """

    def _open(self) -> None:
        self._connection = Connection(self._google, self.place)
        self._retired: list[tuple[float, Connection]] = []
        self._silence = Silence()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        """Return the document, a tombstone when it does not exist; 1 read."""
        request = self._get_request([self._check_path(path)])
        return self._one(path, self._read("get", request, self._begin("get", deadline)))

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """Return the documents in the order of `paths`, all as of one moment.

        A path that is named twice is read once.
        """
        return self._get_many(paths, deadline)

    def _get_many(
        self, paths: Sequence[str], deadline: float | None, token: bytes | None = None
    ) -> list[Document]:
        checked = self._checked_paths(paths)
        end = self._begin("get_many", deadline)
        found: dict[str, Document] = {}
        moment: Any = None
        for chunk in self._chunks(checked):
            request = self._get_request(chunk, moment, token)
            answers = self._read("get_many", request, end, token)
            found.update(self._documents(answers))
            moment = answers[0].read_time if moment is None and answers else moment
        return self._in_order(checked, found)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """Return the documents that `query` describes; 1 read each, at least 1.

        Raises RequestError for a query that Firestore does not allow, or for which it needs an
        index that is not there; the text has the link that makes it.
        """
        return self._query(query, deadline)

    def _query(
        self, query: Query, deadline: float | None, token: bytes | None = None
    ) -> QueryResult:
        request = self._query_request(query, token)
        end = self._begin("query", deadline)
        metadata = self.place.metadata(self._google, "parent", request.parent)
        answers: list[Any] = self._call(
            "query",
            lambda connection, left: list(
                connection.run_query(request, timeout=left, metadata=metadata)
            ),
            end,
            token=token,
        )
        return self._query_result(answers)

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """Apply all operations in order, or none, and return each one's resulting version.

        A deletion results in the time of the commit. After StoreTimeout, and after an error whose
        `maybe_applied` is True, they may have been applied. Where the connection is lost, plain
        operations are sent again; those with preconditions or transforms never are, unless it is
        certain that the server did not get them.
        """
        return self._commit(operations, deadline)

    def _commit(
        self, operations: Sequence[Operation], deadline: float | None, token: bytes | None = None
    ) -> list[int]:
        held = list(operations)
        request = self._commit_request(held, token)
        end = self._begin("commit", deadline)
        if not held and token is None:
            return []
        self._check_size(request)
        answer = self._call(
            "commit",
            lambda connection, left: connection.commit(
                request, timeout=left, metadata=connection.metadata
            ),
            end,
            held,
            token,
        )
        return self._versions(answer, held)

    def begin_transaction(
        self, *, retry_of: bytes = b"", deadline: float | None = None
    ) -> StoreTransaction:
        """Begin a transaction of the server; its reads are of one moment. See `StoreTransaction`.

        Whether the server makes other writers of what it reads wait, or refuses its commit, is a
        setting of the database. `retry_of` gives it precedence over younger ones.
        """
        request = self._begin_request(retry_of)
        answer = self._call(
            "begin_transaction",
            lambda connection, left: connection.begin_transaction(
                request, timeout=left, metadata=connection.metadata
            ),
            self._begin("begin_transaction", deadline),
            token=retry_of or None,
        )
        token: bytes = answer.transaction
        return BoundTransaction(
            token,
            functools.partial(self._get_many, token=token),
            functools.partial(self._query, token=token),
            functools.partial(self._commit, token=token),
            functools.partial(self._rollback, token),
        )

    def _rollback(self, token: bytes, deadline: float | None) -> None:
        request = self._rollback_request(token)
        self._call(
            "rollback",
            lambda connection, left: connection.rollback(
                request, timeout=left, metadata=connection.metadata
            ),
            self._begin("rollback", deadline),
            token=token,
        )

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """Call `on_change` for each change of a document, a collection or a query from now on.

        Returns when the server follows the target. Firestore cannot follow everything:
        RequestError for a `Target()`. See `open_feed` for many targets.
        """
        return self._feeds.watch(target, on_change, self._begin("watch", None))

    def health(self) -> StoreHealth:
        """Probe the store by reading one document that need not exist; never raises. 1 read."""
        began = time.monotonic()
        try:
            self.get(PROBE_PATH, deadline=self._probe_deadline())
        except (StoreError, ClosedError, RequestError) as error:
            took = time.monotonic() - began
            return StoreHealth(ok=False, latency_s=took, detail=str(error), error=error)
        return StoreHealth(ok=True, latency_s=time.monotonic() - began)

    def close(self) -> None:
        """End all watches and feeds and close the connection. Idempotent.

        Calls that run raise ClosedError. In a child of a fork nothing is done: the connection is
        its parent's.
        """
        self._closed = True
        if os.getpid() != self._pid:
            return
        self._closing.set()
        self._stop_listening()
        with self._lock:
            connections = [self._connection, *(held for _, held in self._retired)]
        for connection in connections:
            connection.close()

    # -- calls -----------------------------------------------------------------------------------

    def _read(self, what: str, request: Any, end: float, token: bytes | None = None) -> list[Any]:
        return self._call(
            what,
            lambda connection, left: list(
                connection.batch_get(request, timeout=left, metadata=connection.metadata)
            ),
            end,
            token=token,
        )

    def _call(
        self,
        what: str,
        attempt: Callable[[Connection, float], T],
        end: float,
        operations: Sequence[Operation] | None = None,
        token: bytes | None = None,
    ) -> T:
        """Return what `attempt(connection, seconds left)` returns, tried again as allowed."""
        attempts = Attempts(self._policy, end)
        billed = attempts_of_call()
        while True:
            left = remaining(end, what)
            connection = self._connection
            billed.sent()
            try:
                answer = attempt(connection, left)
            except self._google.grpc.RpcError as error:
                if is_answered(error):
                    billed.answered()
                failed = self._failed(error, what, operations, token)
                cause: Exception = error
            except ValueError as error:  # the channel was closed meanwhile
                billed.answered()
                failed, cause = self._is_closed(what), error
                if not self._closed:
                    raise
            else:
                billed.answered()
                self._silence.broken()
                return answer
            if self._closed:
                failed = self._is_closed(what)
            elif isinstance(failed, StoreTimeout) and self._silence.kept(left):
                self._leave(connection)
            wait = attempts.pause(failed, repeatable=is_repeatable(operations, token))
            if wait is None:
                raise failed from cause
            if self._closing.wait(wait):
                raise self._is_closed(what)

    def _leave(self, connection: Connection) -> None:
        """Make the calls after this one on a new connection."""
        logger.warning("%s: nothing is heard on the connection; trying a new one", self)
        now = time.monotonic()
        with self._lock:
            if self._connection is not connection or self._closed:
                return
            self._connection = Connection(self._google, self.place)
            self._retired.append((now, connection))
            old = [held for at, held in self._retired if now - at > RETIRED_S]
            self._retired = [item for item in self._retired if now - item[0] <= RETIRED_S]
        for held in old:
            held.close()
