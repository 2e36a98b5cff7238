"""`SQLiteStore`: the embedded default store, one SQLite file in WAL mode, standard library only.

Several processes may use one file; each makes its own store, after a fork and not before. Reads
never wait for writers. Commits of one process take turns at a lock of the store, those of several
processes at SQLite's, and are applied whole or not at all, in the order in which they got it.

Versions are nanoseconds since 1970 where the clock allows it, and always greater than any version
in the file. A write that changes nothing keeps the document's version. A document that does not
exist is answered with the newest version of the file, so that answers about it can be ordered.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal, Self, get_args

from beastmode.errors import (
    ClosedError,
    ConfigError,
    ForkedError,
    RequestError,
    StoreError,
)
from beastmode.stores import codec
from beastmode.stores.base import (
    Change,
    Query,
    QueryResult,
    StoreHealth,
    Subscription,
    Target,
    check_count,
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
    freeze,
)
from beastmode.stores.lender import Lender
from beastmode.stores.matching import Matcher
from beastmode.stores.operation_codec import normal_operation
from beastmode.stores.sqlite_commit import Changes, Key, look_up, prune
from beastmode.stores.sqlite_file import NEWEST, Connection, SQLiteFile
from beastmode.stores.sqlite_query import find
from beastmode.stores.sqlite_transaction import ReadSet, SQLiteTransaction, Versions
from beastmode.stores.sqlite_watch import Watcher

__all__ = ["SQLiteStore"]

logger = logging.getLogger(__name__)

Durability = Literal["process", "power"]
_GET: Final = "SELECT version, body FROM docs WHERE parent = ? AND id = ?"
_GET_OR_NEWEST: Final = (
    f"SELECT ({NEWEST}), docs.version, docs.body FROM (SELECT 1) "  # noqa: S608
    "LEFT JOIN docs ON docs.parent = ? AND docs.id = ?"
)
_CLOSE_PATIENCE_S: Final = 2.0
_PROBE_S: Final = 1.0


class SQLiteStore:
    """A `Store` over one SQLite file, or over memory when `path` is ":memory:".

    `deadline_s` is what a call without a deadline has; `durability` what an acknowledged commit
    survives: the end of the process, kill -9 included ("process"), or of the machine ("power",
    one fsync per commit). At most `connections` calls read at the same time. `max_changes` bounds
    the list that watchers read (they may fall behind by that many changes). `clock_ns` gives the
    time for versions.

    Raises StoreError when the path cannot be written or holds another application's file,
    StoreCorrupt when it holds no sound SQLite file, ConfigError for an argument that is not
    allowed. A child of a fork gets ForkedError from every call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        deadline_s: float = 5.0,
        durability: Durability = "process",
        connections: int = 8,
        max_changes: int = 100_000,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        _check_location(path)
        check_seconds("deadline_s", deadline_s)
        if durability not in get_args(Durability):
            raise ConfigError(f"durability must be 'process' or 'power', got {durability!r}")
        check_count("connections", connections)
        check_count("max_changes", max_changes)
        self._pid = os.getpid()
        self._deadline_s = deadline_s
        self._max_changes = max_changes
        self._clock_ns = clock_ns
        self._closed = False
        # Commits of this process take turns here, in order, and do not fight for SQLite's lock.
        self._turns: Lender[object] = Lender(1, "other commits of this process kept it")
        # The first commit prunes, so that processes that live for a few commits do it as well.
        self._until_prune = 0
        self._file = SQLiteFile(
            path,
            durability=durability,
            connections=connections,
            deadline=deadline_in(deadline_s),
        )
        self._watcher = Watcher(self._file)

    @property
    def path(self) -> str:
        """The file's absolute path, or ":memory:"."""
        return self._file.name

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"SQLiteStore({self._file.name!r}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------------------------

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        """Return the document, a tombstone when it does not exist; one lookup in the index."""
        key = _key(path)
        end = self._begin("get", deadline)
        file = self._file
        held = file.take("get", end)
        try:
            rows = held.execute(_GET, key).fetchall()
            if rows:
                version, body = rows[0]
            else:
                # Newest version and absence must be of one moment, so one statement tells both.
                ((newest, version, body),) = held.execute(_GET_OR_NEWEST, key).fetchall()
                if version is None:
                    return Document(path, None, newest)
        except sqlite3.Error as error:
            raise file.failure(error, "get") from error
        finally:
            file.give_back(held)
        return Document(path, codec.decode_frozen(body, path), version)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """Return the documents in the order of `paths`, all as of one moment."""
        if isinstance(paths, str):
            raise RequestError(f"get_many takes a list of document paths, got {paths!r}")
        keys = [_key(path) for path in paths]
        end = self._begin("get_many", deadline)
        if not keys:
            return []
        with self._file.connection("get_many", end) as held:
            held.begin("get_many", write=False)
            states = look_up(held, keys)
            newest: int = held.execute(NEWEST).fetchone()[0]
            held.commit()
        documents: dict[Key, Document] = {}
        for path, key in zip(paths, keys, strict=True):
            if key not in documents:
                version, body = states.get(key, (None, None))
                data = None if body is None else codec.decode_frozen(body, path)
                documents[key] = Document(path, data, newest if version is None else version)
        return [documents[key] for key in keys]

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """Return the documents that `query` describes; reads each document of the collection.

        Filters are narrowed down inside SQLite where its JSON functions allow it, and decided by
        `matching`. Without an order the search ends at the limit.
        """
        if not isinstance(query, Query):
            raise RequestError(f"query takes a Query, got {query!r}")
        matcher = Matcher(query)
        _check_text(query.collection)
        end = self._begin("query", deadline)
        with self._file.connection("query", end) as held:
            held.begin("query", write=False)
            found = find(held, query, matcher, end, can_json=self._file.can_json)
            newest: int = held.execute(NEWEST).fetchone()[0]
            held.commit()
        documents = [
            Document(f"{query.collection}/{doc_id}", freeze(data), version)
            for doc_id, version, data in found
        ]
        return QueryResult(documents, newest)

    def health(self) -> StoreHealth:
        """Probe the store with one small read; never raises."""
        began = time.monotonic()
        try:
            end = self._begin("health", deadline_in(_PROBE_S))
            with self._file.connection("health", end) as held:
                held.execute(NEWEST).fetchall()
            self._file.check_identity("health")
        except (StoreError, ClosedError) as error:
            took = time.monotonic() - began
            return StoreHealth(ok=False, latency_s=took, detail=str(error), error=error)
        return StoreHealth(ok=True, latency_s=time.monotonic() - began)

    # -- writing ---------------------------------------------------------------------------------

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """Apply all operations in order, or none, and return each one's resulting version.

        A StoreTimeout means that nothing was applied, as does every other error. A delete of a
        document that does not exist results in the newest version of the file.
        """
        return self._commit(operations, deadline, None)

    def begin_transaction(
        self,
        *,
        retry_of: bytes = b"",
        deadline: float | None = None,
    ) -> SQLiteTransaction:
        """Begin a transaction, which holds no lock: a conflict is found by reading and committing.

        All that it reads is of one moment. See `StoreTransaction`.
        """
        self._begin("begin_transaction", deadline)
        return SQLiteTransaction(
            get_many=lambda paths, end: self.get_many(paths, deadline=end),
            query=lambda query, end: self.query(query, deadline=end),
            check=self._check_reads,
            commit=self._commit,
            reads=ReadSet(self._rerun),
        )

    def _rerun(self, held: Connection, query: Query, end: float) -> Versions:
        found = find(held, query, Matcher(query), end, can_json=self._file.can_json)
        return [(doc_id, version) for doc_id, version, _ in found]

    def _check_reads(self, reads: ReadSet, deadline: float | None) -> None:
        end = self._begin("check", deadline)
        with self._file.connection("check", end) as held:
            held.begin("check", write=False)
            reads.check(held, end)
            held.commit()

    def _commit(
        self, operations: Sequence[Operation], deadline: float | None, reads: ReadSet | None
    ) -> list[int]:
        keys = [_checked(operation) for operation in operations]
        operations = [normal_operation(operation) for operation in operations]
        bodies = [
            codec.encode(operation.data, operation.path)
            if type(operation) is Set and not operation.transforms
            else None
            for operation in operations
        ]
        end = self._begin("commit", deadline)
        if not keys and not reads:
            return []
        turn = self._turns.take("commit", end) or object()
        try:
            versions = self._commit_now(operations, keys, bodies, end, reads)
        finally:
            self._turns.give_back(turn)
        return versions

    def load(
        self,
        documents: Iterable[tuple[str, Mapping[str, Any]]],
        *,
        chunk: int = 2_000,
        deadline_s: float = 30.0,
    ) -> int:
        """Set many documents, `chunk` in each commit, and return how many; for first fillings.

        Each commit has `deadline_s`. When one fails, those before it stay.
        """
        check_count("chunk", chunk)
        count = 0
        source = iter(documents)
        while part := [Set(path, data) for path, data in islice(source, chunk)]:
            count += len(self.commit(part, deadline=deadline_in(deadline_s)))
        return count

    def _commit_now(
        self,
        operations: Sequence[Operation],
        keys: list[Key],
        bodies: list[str | None],
        end: float,
        reads: ReadSet | None,
    ) -> list[int]:
        file = self._file
        file.check_identity("commit")
        with file.connection("commit", end) as held:
            held.begin("commit", write=True)
            if reads:
                reads.check(held, end)
            changes = Changes(held, keys, self._clock_ns)
            versions = [
                changes.apply(operation, key, body)
                for operation, key, body in zip(operations, keys, bodies, strict=True)
            ]
            changes.write()
            self._prune(held, len(changes.written))
            held.commit()
        if changes.written:
            self._watcher.notify()
        return versions

    def _prune(self, held: Connection, count: int) -> None:
        """Keep `changes` at `max_changes` rows, and a tenth more for not counting each time."""
        self._until_prune -= count
        if count and self._until_prune <= 0:
            prune(held, self._max_changes)
            self._until_prune = max(1, self._max_changes // 10)

    # -- watching and closing --------------------------------------------------------------------

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """Call `on_change` for each change from now on, made by this process or by another.

        Changes come in the order of commits, from one thread of the store for all watches.
        Changes of one document that follow each other faster than they are read come as one,
        with its newest state. An `on_change` that raises is logged and counted, and goes on
        being called. A watch that fell behind what the file remembers (`max_changes`) ends with
        StoreError in `error`.
        """
        if not isinstance(target, Target):
            raise RequestError(f"watch takes a Target, got {target!r}")
        if target.query is not None:
            raise RequestError("a SQLiteStore watches documents and collections, not queries")
        if not callable(on_change):
            raise RequestError(f"on_change must be callable, got {on_change!r}")
        end = self._begin("watch", None)
        with self._file.connection("watch", end) as held:
            newest: int = held.execute(NEWEST).fetchone()[0]
        return self._watcher.add(target, on_change, newest)

    def close(self) -> None:
        """End all watches, wait a bounded time for calls that run, and close the file.

        Calls that still run after two seconds are interrupted and raise ClosedError. In a child
        of a fork nothing is done: the parent's connections are not the child's to close.
        """
        if self._closed or os.getpid() != self._pid:
            self._closed = True
            return
        self._closed = True
        self._watcher.close(_CLOSE_PATIENCE_S)
        if not self._file.close(_CLOSE_PATIENCE_S):
            logger.warning("%s: a call still runs; its connection closes with it", self._file.name)

    def _begin(self, what: str, deadline: float | None) -> float:
        """Return the call's deadline, after refusing a closed or forked store and a past one."""
        if os.getpid() != self._pid:
            raise ForkedError(
                f"{what}: this SQLiteStore was made in process {self._pid} and cannot be used in "
                f"its child {os.getpid()}; make a store after the fork"
            )
        if self._closed:
            raise ClosedError(f"{what}: the store over {self._file.name} is closed")
        if deadline is None:
            return time.monotonic() + self._deadline_s
        remaining(deadline, what)
        return deadline


def _check_location(path: object) -> None:
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str) or not path:
        raise ConfigError(f"path must be a file's path or ':memory:', got {path!r}")


def _check_text(path: str) -> None:
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the path {path!r} cannot be encoded as UTF-8: {error}") from error


def _key(path: str) -> Key:
    check_path(path)
    _check_text(path)
    parent, _, doc_id = path.rpartition("/")
    return parent, doc_id


def _checked(operation: object) -> Key:
    if not isinstance(operation, (Set, Merge, Update, Delete)):
        raise RequestError(f"commit takes Set, Merge, Update and Delete, got {operation!r}")
    return _key(operation.path)
