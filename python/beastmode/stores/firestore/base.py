"""What the stores of threads and of event loops share: arguments, requests and answers, no I/O."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from beastmode.errors import (
    BeastError,
    ClosedError,
    CommitTooLarge,
    ConfigError,
    ForkedError,
    RequestError,
    StoreCorrupt,
)
from beastmode.stores.base import (
    Feed,
    FeedListener,
    Query,
    QueryResult,
    check_count,
    check_deadline,
    check_seconds,
    deadline_in,
    remaining,
)
from beastmode.stores.documents import (
    Delete,
    Document,
    Merge,
    Operation,
    Set,
    Update,
    check_path,
    has_transforms,
)
from beastmode.stores.firestore._google import load
from beastmode.stores.firestore.calls import RetryPolicy
from beastmode.stores.firestore.channel import Connection, find_place
from beastmode.stores.firestore.convert import Converter, version_of
from beastmode.stores.firestore.errors import commit_failure, conflict, failure
from beastmode.stores.firestore.feeds import Feeds
from beastmode.stores.firestore.limits import check_operation
from beastmode.stores.firestore.listen import SILENCE_S, TARGETS_PER_STREAM

__all__ = ["PROBE_PATH", "RETIRED_S", "CommitLimits", "FirestoreBase", "is_repeatable"]

PROBE_PATH: Final = "_bm/health"
_LONGEST_PROBE_S: Final = 10.0
RETIRED_S: Final = 30.0
"""How long a connection that was left stays open for the calls that still wait on it."""
_PATHS_BYTES: Final = 1_000_000
"""At most so many bytes of names in one request for documents: far below the server's limit."""


@dataclass(frozen=True, slots=True)
class CommitLimits:
    """What one commit may have: operations, and bytes of the request as it is sent."""

    max_operations: int
    max_bytes: int


class FirestoreBase:
    """One database of Firestore, as both kinds of store see it.

    `project` and `credentials` are found as Google's client finds them where they are None, an
    emulator by `emulator_host` or the environment variable FIRESTORE_EMULATOR_HOST. `deadline_s`
    is what a call without a deadline has. A call that fails for the moment is repeated up to
    `max_retries` times within its deadline. `keepalive_s` is how often an idle connection is
    tested: 30 s, 330 at an emulator, which closes a connection that is tested more often than
    every 5 minutes. `endpoint` is another server than firestore.googleapis.com, as "host:port".
    `listen_silence_s` and `listen_targets_per_stream` are for its feeds: docs/real-time-sync.md.

    Raises MissingExtra where Google's libraries are not installed, ConfigError for an argument
    that is not allowed and where no credentials or no project are found.
    """

    health_reads: Final = 1
    """What a `health()` is billed."""

    def __init__(
        self,
        project: str | None = None,
        database: str = "(default)",
        *,
        credentials: Any = None,
        emulator_host: str | None = None,
        endpoint: str | None = None,
        deadline_s: float = 2.0,
        max_retries: int = 5,
        keepalive_s: float | None = None,
        listen_silence_s: float = SILENCE_S,
        listen_targets_per_stream: int = TARGETS_PER_STREAM,
    ) -> None:
        check_seconds("deadline_s", deadline_s)
        if keepalive_s is not None:
            check_seconds("keepalive_s", keepalive_s)
        check_seconds("listen_silence_s", listen_silence_s)
        check_count("listen_targets_per_stream", listen_targets_per_stream)
        retries: object = max_retries
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigError(f"max_retries must be an int of at least 0, got {retries!r}")
        self._google = load()
        self.place = find_place(
            self._google,
            project,
            database,
            credentials=credentials,
            emulator_host=emulator_host,
            endpoint=endpoint,
            keepalive_s=keepalive_s,
        )
        self.commit_limits = CommitLimits(500, 3_500_000 if self.place.is_emulator else 9_000_000)
        """The server takes requests of 10 MiB, the emulator of 4 MiB; 500 is our number."""
        self._convert = Converter(self._google, self.place.documents)
        self._policy = RetryPolicy(max_retries=max_retries)
        self._lock = threading.Lock()
        self._listening: Connection | None = None
        self._feeds = Feeds(
            self._connect_to_listen,
            self._convert,
            silence_s=listen_silence_s,
            targets_per_stream=listen_targets_per_stream,
        )
        self._deadline_s = deadline_s
        self._pid = os.getpid()
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Make what the kind of store needs."""
        raise NotImplementedError

    def _connect_to_listen(self) -> Connection:
        """Return the connection of the threads that listen: one of its own, made when needed."""
        with self._lock:
            if self._closed:
                raise self._is_closed("open_feed")
            if self._listening is None:
                self._listening = Connection(self._google, self.place)
            return self._listening

    def _stop_listening(self) -> None:
        """End all feeds and watches, and their connection; `_closed` is set."""
        self._feeds.close()
        with self._lock:
            listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()

    def open_feed(self, listener: FeedListener) -> Feed:
        """Return a feed of many targets, added and removed while it runs; none at first.

        It works in threads of its own, also for event loops.
        """
        self._begin("open_feed", None)
        return self._feeds.open(listener)

    @property
    def project(self) -> str:
        """The project's id."""
        return self.place.project

    @property
    def database(self) -> str:
        """The database's id, "(default)" for a project's first."""
        return self.place.database_id

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self.project!r}, {self.database!r}{state})"

    def check_operation(self, operation: Operation) -> None:
        """Raise the RequestError with which `commit` would refuse `operation` by itself. O(size).

        So that what is acknowledged before it is committed can be refused in time. What depends
        on the documents in the database, and what the server alone knows, is not looked at.
        """
        check_operation(operation)

    def commit_size(self, operations: Sequence[Operation]) -> int:
        """Return the bytes that a commit of `operations` sends, for `commit_limits`. O(size)."""
        return int(self._commit_request(operations).ByteSize())

    # -- arguments -------------------------------------------------------------------------------

    def _begin(self, what: str, deadline: float | None) -> float:
        """Return the call's deadline, after refusing a closed or forked store and a past one."""
        if os.getpid() != self._pid:
            raise ForkedError(
                f"{what}: this {type(self).__name__} was made in process {self._pid} and cannot "
                f"be used in its child {os.getpid()}; make a store after the fork"
            )
        if self._closed:
            raise self._is_closed(what)
        if deadline is None:
            return time.monotonic() + self._deadline_s
        check_deadline(deadline)
        remaining(deadline, what)
        return deadline

    def _probe_deadline(self) -> float:
        """Return the deadline of a probe: what a call has, for a slow store serves as well."""
        return deadline_in(min(self._deadline_s, _LONGEST_PROBE_S))

    def _is_closed(self, what: str) -> ClosedError:
        return ClosedError(f"{what}: the store of {self.place.database} is closed")

    # -- reading ---------------------------------------------------------------------------------

    def _get_request(
        self, paths: Iterable[str], read_time: Any = None, token: bytes | None = None
    ) -> Any:
        name = self._convert.name
        return self._google.BatchGetDocumentsRequest(
            database=self.place.database,
            documents=[name(path) for path in paths],
            # One of both: a transaction has a moment of its own.
            read_time=read_time if token is None else None,
            transaction=token,
        )

    def _check_path(self, path: object) -> str:
        checked = check_path(path)
        _check_text(checked)
        return checked

    def _chunks(self, paths: Sequence[str]) -> Iterator[list[str]]:
        """Yield every path once, so many at a time that the names fit into a request."""
        chunk: list[str] = []
        size = 0
        for path in dict.fromkeys(paths):
            size += len(self.place.documents) + 4 * len(path) + 8
            if chunk and size > _PATHS_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(path)
        if chunk:
            yield chunk

    def _checked_paths(self, paths: Sequence[str]) -> list[str]:
        if isinstance(paths, str):
            raise RequestError(f"get_many takes a list of document paths, got {paths!r}")
        return [self._check_path(path) for path in paths]

    def _documents(self, answers: Iterable[Any]) -> dict[str, Document]:
        """Return what was found and what was not, by path."""
        found: dict[str, Document] = {}
        convert = self._convert
        for answer in answers:
            kind = answer.WhichOneof("result")
            if kind == "found":
                document = convert.document(answer.found)
                found[document.path] = document
            elif kind == "missing":
                path = convert.path(answer.missing)
                found[path] = Document(path, None, version_of(answer.read_time))
        return found

    def _one(self, path: str, answers: Iterable[Any]) -> Document:
        return self._in_order((path,), self._documents(answers))[0]

    def _in_order(self, paths: Sequence[str], found: dict[str, Document]) -> list[Document]:
        try:
            return [found[path] for path in paths]
        except KeyError as error:
            raise StoreCorrupt(f"the server did not tell about {error}") from error

    def _query_request(self, query: Query, token: bytes | None = None) -> Any:
        if not isinstance(query, Query):
            raise RequestError(f"query takes a Query, got {query!r}")
        _check_text(query.collection)
        parent, structured = self._convert.query(query)
        return self._google.RunQueryRequest(
            parent=parent, structured_query=structured, transaction=token
        )

    def _query_result(self, answers: Iterable[Any]) -> QueryResult:
        documents: list[Document] = []
        version = 0
        convert = self._convert
        for answer in answers:
            if answer.HasField("document"):
                documents.append(convert.document(answer.document))
            if answer.HasField("read_time"):
                version = max(version, version_of(answer.read_time))
        return QueryResult(documents, version)

    # -- writing ---------------------------------------------------------------------------------

    def _commit_request(self, operations: Sequence[Operation], token: bytes | None = None) -> Any:
        for operation in operations:
            if not isinstance(operation, (Set, Merge, Update, Delete)):
                raise RequestError(f"commit takes Set, Merge, Update and Delete, got {operation!r}")
            _check_text(operation.path)
        write = self._convert.write
        return self._google.CommitRequest(
            database=self.place.database,
            writes=[write(operation) for operation in operations],
            transaction=token,
        )

    def _check_size(self, request: Any) -> None:
        size, limit = request.ByteSize(), self.commit_limits.max_bytes
        if size > limit:
            raise CommitTooLarge(
                f"commit: the operations are {size} bytes together, at most {limit} are allowed; "
                "nothing was sent"
            )

    def _begin_request(self, retry_of: object) -> Any:
        if not isinstance(retry_of, bytes):
            raise RequestError(f"retry_of must be a transaction's token or b'', got {retry_of!r}")
        request = self._google.BeginTransactionRequest(database=self.place.database)
        request.options.read_write.retry_transaction = retry_of
        request.options.read_write.SetInParent()
        return request

    def _rollback_request(self, token: bytes) -> Any:
        return self._google.RollbackRequest(database=self.place.database, transaction=token)

    def _failed(
        self, error: Any, what: str, operations: Sequence[Operation] | None, token: bytes | None
    ) -> BeastError:
        """Return the error of a call; `operations` of a commit, `token` of a transaction."""
        lost = None if token is None else conflict(error, what)
        if lost is not None:
            return lost
        return failure(error, what) if operations is None else commit_failure(error, operations)

    def _versions(self, answer: Any, operations: Sequence[Operation]) -> list[int]:
        results = answer.write_results
        if len(results) != len(operations):
            raise StoreCorrupt(
                f"commit: the server answered {len(operations)} operations with "
                f"{len(results)} results"
            )
        at = version_of(answer.commit_time)
        # A deletion has no update time.
        return [version_of(result.update_time) or at for result in results]


def is_repeatable(operations: Sequence[Operation] | None, token: bytes | None = None) -> bool:
    """Return whether a call that may have been carried out can be made again.

    So it is with a read, with operations that change nothing more when they are applied a second
    time, and in a transaction, which the server commits once.
    """
    return (
        operations is None
        or token is not None
        or all(
            operation.precondition is None and not has_transforms(operation)
            for operation in operations
        )
    )


def _check_text(path: str) -> None:
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the path {path!r} cannot be encoded as UTF-8: {error}") from error
