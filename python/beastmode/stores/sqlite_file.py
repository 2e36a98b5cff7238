"""The SQLite file under `SQLiteStore`: opening, checking, connections, errors.

Tables:

    docs(parent, id, version, body)         the documents; body as `codec` writes it
    changes(version, parent, id, deleted)   one row for each changed document of a commit, oldest
                                            first; the newest ones only
    meta(name, value)                       pruned_through: newest version removed from `changes`

A version is given to one change only, so it numbers the changes as well; the newest row of
`changes` is never removed and holds the newest version of the file. The schema's number is the
file's `user_version`, and `application_id` tells whose file it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from beastmode.errors import (
    ClosedError,
    StoreCorrupt,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.stores.base import remaining
from beastmode.stores.lender import Lender

__all__ = ["NEWEST", "Connection", "SQLiteFile", "is_busy", "translate"]

NEWEST: Final = "SELECT coalesce(max(version), 0) FROM changes"
"""The newest version of the file, 0 before the first change."""

APPLICATION_ID: Final = 0x42454153  # "BEAS"
SCHEMA_VERSION: Final = 1
_SCHEMA: Final = f"""
CREATE TABLE docs (
    parent TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (parent, id)
) WITHOUT ROWID;
CREATE TABLE changes (
    version INTEGER PRIMARY KEY, parent TEXT NOT NULL, id TEXT NOT NULL, deleted INTEGER NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('pruned_through', 0);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION}
"""  # noqa: S608
_BUSY_TIMEOUT_S: Final = 0.05
_BUSY_PAUSE_S: Final = 0.005
_PROGRESS_STEPS: Final = 20_000  # some 0.2 ms of SQLite's work
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024

_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNAVAILABLE: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "reading or writing it failed",
    sqlite3.SQLITE_CANTOPEN: "it or a file beside it cannot be opened",
    sqlite3.SQLITE_READONLY: "it cannot be written any more",
    sqlite3.SQLITE_NOMEM: "there is no memory",
    sqlite3.SQLITE_PROTOCOL: "its lock cannot be had",
    sqlite3.SQLITE_PERM: "permission was denied",
}


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether `error` says that another connection holds a lock."""
    return _code(error) in _BUSY


def translate(error: sqlite3.Error, name: str, what: str) -> StoreError:
    """Return the store error that `error` means; `name` is the file and `what` the call."""
    code = _code(error)
    if code in _BUSY:
        return StoreTimeout(f"{what}: another process held {name} until the deadline ({error})")
    if code == sqlite3.SQLITE_INTERRUPT:
        return StoreTimeout(f"{what}: {name} did not answer before the deadline")
    if code in _CORRUPT or "malformed JSON" in str(error):
        return StoreCorrupt(
            f"{what}: {name} is not a sound SQLite file ({error}); restore it from a backup, or "
            f"save what can be read with: sqlite3 {name} .recover"
        )
    if code in _UNAVAILABLE:
        return StoreUnavailable(f"{what}: {name}: {_UNAVAILABLE[code]} ({error})")
    if code == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError):
        return WriteRejected(f"{what}: a value is too large for {name} ({error})")
    return StoreError(f"{what}: {name}: {error}")


class Connection:
    """One SQLite connection whose statements end at `deadline`; used by one thread at a time."""

    __slots__ = ("_stopped", "deadline", "execute", "executemany", "raw")

    def __init__(self, raw: sqlite3.Connection, stopped: Callable[[], bool]) -> None:
        self.raw = raw
        self.execute = raw.execute
        self.executemany = raw.executemany
        self.deadline = float("inf")
        self._stopped = stopped
        raw.set_progress_handler(self._overdue, _PROGRESS_STEPS)

    def _overdue(self) -> bool:
        return time.monotonic() >= self.deadline or self._stopped()

    def begin(self, what: str, *, write: bool) -> None:
        """Begin a transaction, waiting for other processes until `deadline`."""
        while True:
            try:
                self.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            except sqlite3.OperationalError as error:
                if not is_busy(error) or self._stopped():
                    raise
                remaining(self.deadline, f"{what}: another process is writing; nothing was done")
                time.sleep(_BUSY_PAUSE_S)
            else:
                return

    def commit(self) -> None:
        """Commit; from here on the deadline does not interrupt, so the outcome is known."""
        self.deadline = float("inf")
        self.execute("COMMIT")

    def reset(self) -> None:
        """Leave no transaction and no deadline behind."""
        self.deadline = float("inf")
        if self.raw.in_transaction:
            self.execute("ROLLBACK")


class SQLiteFile:
    """A checked and prepared SQLite file, or a database in memory, and its connections.

    At most `connections` are open, made when needed; a database in memory has exactly one, so
    that its users take turns. Raises what `SQLiteStore` documents.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, durability: str, connections: int, deadline: float
    ) -> None:
        self.path = None if path == ":memory:" else Path(os.path.abspath(path))  # noqa: PTH100
        self.name = ":memory:" if self.path is None else str(self.path)
        self._synchronous = {"process": "NORMAL", "power": "FULL"}[durability]
        self._lender: Lender[Connection] = Lender(
            1 if self.path is None else connections, f"every connection to {self.name} was"
        )
        self._identity: tuple[int, int] | None = None
        self._closed = False
        self._abort = False
        self.can_json = True
        if self.path is not None:
            _check_place(self.path)
        self._lender.take("open", deadline)
        first = self._connect("open", deadline)
        try:
            self._prepare(first, deadline)
        except sqlite3.Error as error:
            first.raw.close()
            raise self._cannot_open(error) from error
        except BaseException:
            first.raw.close()
            raise
        first.deadline = float("inf")
        self._identity = self._stat()
        self._lender.give_back(first)

    # -- connections -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(self, what: str, deadline: float) -> Iterator[Connection]:
        """Lend a connection until the block ends; StoreTimeout when none is free in time."""
        held = self.take(what, deadline)
        try:
            yield held
        except sqlite3.Error as error:
            raise self.failure(error, what) from error
        finally:
            self.give_back(held)

    def take(self, what: str, deadline: float) -> Connection:
        """Lend a connection; the caller must `give_back` it."""
        held = self._lender.take(what, deadline)
        if held is None:
            try:
                held = self._connect(what, deadline)
                self.check_identity(what)
            except BaseException:
                self._lender.drop()
                raise
        held.deadline = deadline
        return held

    def give_back(self, held: Connection) -> None:
        """Take a connection back, out of any transaction; a broken one is closed."""
        try:
            held.reset()
        except sqlite3.Error:
            # Its transaction cannot be ended (the disk failed under it); closing ends it.
            self._discard(held)
            return
        if not self._lender.give_back(held):
            self._discard(held)

    def _connect(self, what: str, deadline: float) -> Connection:
        target = ":memory:" if self.path is None else f"{self.path.as_uri()}?mode=rw"
        try:
            raw = sqlite3.connect(
                target,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                uri=self.path is not None,
            )
        except sqlite3.Error as error:
            raise self._cannot_open(error) from error
        made = Connection(raw, lambda: self._abort)
        made.deadline = deadline
        try:
            raw.execute(f"PRAGMA synchronous = {self._synchronous}")
            raw.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except sqlite3.Error as error:
            raw.close()
            raise translate(error, self.name, what) from error
        return made

    def _discard(self, held: Connection) -> None:
        held.raw.close()
        self._lender.drop()

    def close(self, patience_s: float) -> bool:
        """Close every connection; wait `patience_s` for those in use, then stop their work.

        Returns whether all are closed; one that is still in use closes when it is given back.
        """
        self._closed = True
        for held in self._lender.close():
            self._discard(held)
        if self._lender.wait_empty(patience_s):
            return True
        self._abort = True
        return self._lender.wait_empty(patience_s)

    # -- the file --------------------------------------------------------------------------------

    def _prepare(self, held: Connection, deadline: float) -> None:
        """Refuse what is not ours, then make it a WAL file with our tables."""
        self._retry(held, "PRAGMA schema_version", deadline)
        if not self._is_ours(held):
            if self.path is not None:
                row = self._retry(held, "PRAGMA journal_mode = WAL", deadline)
                if row[0] != "wal":
                    raise StoreError(
                        f"{self.name}: a write-ahead log cannot be used here, the journal mode "
                        f"stays {row[0]!r}; a file on a network file system cannot be a store"
                    )
            held.begin("open", write=True)
            if not self._is_ours(held):  # or another process was faster
                for statement in _SCHEMA.split(";"):
                    held.execute(statement)
            held.commit()
            held.deadline = deadline
        with contextlib.suppress(sqlite3.OperationalError):
            # A lock that another process holds is no reason to refuse: it shows that the file
            # can be written. A file that cannot be is told by the error READONLY, raised below.
            held.execute("PRAGMA busy_timeout = 0")
            self._probe_write(held)
        held.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")
        try:
            held.execute("SELECT json_type('{}')")
        except sqlite3.OperationalError:
            self.can_json = False

    def _probe_write(self, held: Connection) -> None:
        try:
            held.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise self._cannot_open(error) from error
            raise
        held.execute("ROLLBACK")

    def _is_ours(self, held: Connection) -> bool:
        """Return whether the file has our tables, False for an empty one; raise for others."""
        application = held.execute("PRAGMA application_id").fetchone()[0]
        schema = held.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION_ID:
            if schema > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.name} was written by a newer version of beastmode (schema {schema}, "
                    f"this one reads up to {SCHEMA_VERSION}); upgrade, or use another path"
                )
            return True
        used = held.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application or schema or used:
            raise StoreError(
                f"{self.name} is a SQLite file of another application (application_id "
                f"{application:#x}, {used} tables and indexes); use another path"
            )
        return False

    def _retry(self, held: Connection, statement: str, deadline: float) -> Any:
        while True:
            try:
                return held.execute(statement).fetchone()
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                remaining(deadline, f"open: another process holds {self.name}")
                time.sleep(_BUSY_PAUSE_S)

    def _cannot_open(self, error: sqlite3.Error) -> StoreError:
        code = _code(error)
        if self.path is not None and code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            return StoreError(
                f"cannot open {self.name} for writing ({error}); the file and its directory must "
                "be writable, SQLite keeps a log and an index beside the file"
            )
        return translate(error, self.name, "open")

    def _stat(self) -> tuple[int, int] | None:
        if self.path is None:
            return None
        try:
            found = os.stat(self.name)  # noqa: PTH116 -- on every commit; pathlib costs twice
        except OSError:
            return (0, 0)
        return (found.st_dev, found.st_ino)

    def check_identity(self, what: str) -> None:
        """Raise StoreUnavailable when the path no longer names the file that was opened."""
        if self._stat() != self._identity:
            raise StoreUnavailable(
                f"{what}: {self.name} was moved, removed or replaced after it was opened; "
                "put it back, or make a new store"
            )

    def failure(self, error: sqlite3.Error, what: str) -> Exception:
        """Return what `error` of a call means, ClosedError when `close` stopped it."""
        if self._closed and (_code(error) == sqlite3.SQLITE_INTERRUPT or _code(error) in _BUSY):
            return ClosedError(f"{what}: the store over {self.name} was closed meanwhile")
        return translate(error, self.name, what)


def _check_place(path: Path) -> None:
    """Raise StoreError when `path` cannot be written; make the file, private, if it is new.

    An existing file is never opened here: closing it would drop SQLite's locks on it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise StoreError(f"cannot open {path}: it is a directory, not a file") from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreError(f"cannot open {path}: {os.strerror(errno.EACCES)}") from None
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise StoreError(
                f"cannot open {path}: its directory cannot be written, and SQLite keeps a log "
                "and an index beside the file"
            ) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StoreError(f"cannot open {path}: {reason}") from error
