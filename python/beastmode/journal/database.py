"""The journal's SQLite file: its tables, its transactions, its errors in our words.

Size: deleted records leave free pages that later records use; when no record is left and the
file is larger than `SHRINK_ABOVE`, it is given back to the disk. The write-ahead log is copied
into the file every 1000 pages (4 MiB) and cut to 8 MiB after that.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from beastmode.errors import JournalDamaged, JournalError, JournalFull
from beastmode.journal.batches import BatchTable
from beastmode.journal.records import DeadLetter, RecordError, read_record, to_record
from beastmode.journal.work import Note, Settled
from beastmode.stores.documents import Operation
from beastmode.stores.operation_codec import EncodedOperation

__all__ = ["SHRINK_ABOVE", "Database"]

logger = logging.getLogger(__name__)

SHRINK_ABOVE: Final = 8 * 1024 * 1024
_APPLICATION_ID: Final = 0x424D4A4C  # "BMJL"
_SCHEMA_VERSION: Final = 2  # 1 had no table of batches
_BUSY_MS: Final = 2000
_SPARE_PAGES: Final = 64  # beyond max_bytes, for what makes room or lets the writes go on
_COLUMNS: Final = "format, kind, path, fields, removed, checksum"
_SHAPE: Final = (
    "seq INTEGER PRIMARY KEY, format INTEGER, kind INTEGER, "
    "path BLOB, fields BLOB, removed BLOB, checksum BLOB"
)
_REFUSED_WRITES: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
)


class Database:
    """One open journal file. Not safe to share: the caller holds a lock around each call."""

    def __init__(self, path: Path, *, full_sync: bool, max_bytes: int) -> None:
        self._path = path
        self.records = self.dead = self.corrupt = 0
        with self._errors("open"):
            self.connection = sqlite3.connect(
                f"{path.as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=_BUSY_MS / 1000,
                cached_statements=32,
            )
        try:
            with self._errors("open"):
                self._open(full_sync=full_sync, max_bytes=max_bytes)
        except BaseException:
            self.connection.close()
            raise

    def _open(self, *, full_sync: bool, max_bytes: int) -> None:
        self.connection.text_factory = bytes  # damaged text must not stop the reading of the rest
        run = self.connection.execute
        if not self._path.stat().st_size:
            run("PRAGMA auto_vacuum = INCREMENTAL")  # heard only before anything is read
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA cell_size_check = ON")
        self._check_identity()
        self._check_pages()
        (mode,) = run("PRAGMA journal_mode = WAL").fetchone()
        if mode not in (b"wal", "wal"):
            raise JournalError(
                f"the journal {str(self._path)!r} is on a file system without SQLite's WAL mode; "
                "choose a local disk"
            )
        run(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        run("PRAGMA wal_autocheckpoint = 1000")
        run(f"PRAGMA journal_size_limit = {SHRINK_ABOVE}")
        (page,) = run("PRAGMA page_size").fetchone()
        run("BEGIN IMMEDIATE")
        run(f"CREATE TABLE IF NOT EXISTS records({_SHAPE})")
        for table in ("dead_letters", "quarantine"):
            run(f"CREATE TABLE IF NOT EXISTS {table}({_SHAPE}, reason TEXT, noted_at REAL)")
        self.batches = BatchTable(self.connection)
        run(f"PRAGMA application_id = {_APPLICATION_ID}")
        run(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        run("COMMIT")
        self.full_sync = full_sync
        self._max_pages = max(64, max_bytes // page)
        self._allow_pages(self._max_pages)
        self.records = self._count("records")
        self.dead = self._count("dead_letters")
        self.corrupt = self._count("quarantine") + self.batches.damaged
        (newest,) = run(
            "SELECT max(seq) FROM (SELECT max(seq) AS seq FROM records UNION ALL "
            "SELECT max(seq) FROM dead_letters UNION ALL SELECT max(seq) FROM quarantine)"
        ).fetchone()
        self._next_seq = (newest or 0) + 1

    def _check_identity(self) -> None:
        run = self.connection.execute
        (tables,) = run("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = run("PRAGMA application_id").fetchone()
        (version,) = run("PRAGMA user_version").fetchone()
        if tables and application != _APPLICATION_ID:
            raise JournalError(
                f"{str(self._path)!r} is an SQLite file of something else, not a journal; "
                "choose another path"
            )
        if version > _SCHEMA_VERSION:
            raise JournalError(
                f"the journal {str(self._path)!r} was written by a newer version (format "
                f"{version}, this one knows {_SCHEMA_VERSION}); start that version to empty it"
            )

    def _check_pages(self) -> None:
        (answer,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer not in (b"ok", "ok"):
            text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
            raise self._damaged(text)

    def _count(self, table: str) -> int:
        (count,) = self.connection.execute(
            f"SELECT count(*) FROM {table}"  # noqa: S608 - our own table names
        ).fetchone()
        return int(count)

    def write(
        self,
        groups: Sequence[Sequence[EncodedOperation]],
        notes: Sequence[Note],
        settled: Settled,
        max_dead_letters: int,
    ) -> tuple[list[list[int]], int]:
        """Do it all in one transaction; return each group's numbers and the count of removals.

        With notes it is on the disk itself at the end, whatever the level of the others is.
        Without groups it may exceed the limit of the file a little. Raises JournalFull, or
        another JournalError, with nothing changed.
        """
        seqs: list[list[int]] = []
        number = self._next_seq
        for group in groups:
            seqs.append(list(range(number, number + len(group))))
            number += len(group)
        rows = [
            (seq, *to_record(encoded))
            for numbers, group in zip(seqs, groups, strict=True)
            for seq, encoded in zip(numbers, group, strict=True)
        ]
        run_many = self.connection.executemany
        removed = dead = dropped = 0
        with self._levels(synced=bool(notes), spare=not groups), self._transaction("write to"):
            if settled.acknowledged:
                removed = run_many(
                    "DELETE FROM records WHERE seq = ?", [(seq,) for seq in settled.acknowledged]
                ).rowcount
            for seq, reason in settled.rejected:
                dead += self._move(seq, "dead_letters", reason)
            if dead and self.dead + dead > max_dead_letters:
                dropped = self._drop_dead_letters(max_dead_letters)
            if rows:
                run_many(
                    f"INSERT INTO records(seq, {_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
            more_batches = self._write_batches(notes, settled)
        self._next_seq = number
        self.records += len(rows) - removed - dead
        self.dead += dead - dropped
        self.batches.count += more_batches
        if dropped:
            logger.warning("%d oldest dead letters of %r were dropped", dropped, str(self._path))
        if not self.records and removed:
            self._shrink()
        return seqs, removed

    def _write_batches(self, notes: Sequence[Note], settled: Settled) -> int:
        """Write it, and return by how many the batches have become more."""
        more = 0
        for note in notes:
            if note.sent is not None:
                more += self.batches.note_sent(*note.sent)
            self.batches.confirm(note.confirmed)
        if notes and not any(note.sent for note in notes):
            # What writes no page is not synced.
            self.connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        if settled.finished:
            self.batches.finish(settled.finished)
        if settled.forgotten:
            more -= self.batches.forget(settled.forgotten)
        return more

    def _drop_dead_letters(self, keep: int) -> int:
        return self.connection.execute(
            "DELETE FROM dead_letters WHERE seq NOT IN "
            "(SELECT seq FROM dead_letters ORDER BY noted_at DESC, seq DESC LIMIT ?)",
            (keep,),
        ).rowcount

    @contextmanager
    def _levels(self, *, synced: bool, spare: bool) -> Iterator[None]:
        """Sync what is written inside to the disk, and let it take a little more room."""
        run = self.connection.execute
        raised = synced and not self.full_sync
        with self._errors("write to"):
            if raised:
                run("PRAGMA synchronous = FULL")
            if spare:
                self._allow_pages(self._max_pages + _SPARE_PAGES)
        try:
            yield
        finally:
            with self._errors("write to"):
                if raised:
                    run("PRAGMA synchronous = NORMAL")
                if spare:
                    self._allow_pages(self._max_pages)

    def _allow_pages(self, count: int) -> None:
        self.connection.execute(f"PRAGMA max_page_count = {count}")

    def recover(self) -> tuple[list[tuple[int, Operation]], list[tuple[int, str]]]:
        """Return the readable operations in order, and the damaged ones, now in quarantine."""
        operations: list[tuple[int, Operation]] = []
        damaged: list[tuple[int, str]] = []
        with self._errors("read"):
            rows = self.connection.execute(
                f"SELECT seq, {_COLUMNS} FROM records ORDER BY seq"  # noqa: S608
            )
            for seq, *values in rows:
                try:
                    operations.append((seq, read_record(tuple(values))))
                except RecordError as error:
                    damaged.append((seq, str(error)))
        if damaged:
            with self._transaction("write to"):
                for seq, reason in damaged:
                    self._move(seq, "quarantine", reason)
            self.records -= len(damaged)
            self.corrupt += len(damaged)
        return operations, damaged

    def content(self) -> tuple[int, int]:
        """Return how many operations there are, and their bytes. O(content), in no memory."""
        with self._errors("read"):
            count, size = self.connection.execute(
                "SELECT count(*), total(length(path) + length(fields) + length(removed)) "
                "FROM records"
            ).fetchone()
        return count, int(size)

    def read_batches(self) -> tuple[list[tuple[str, list[int]]], list[tuple[str, float]]]:
        """Return the batches sent without an answer, and the markers left with their times."""
        with self._transaction("read"):
            sent, markers, damaged = self.batches.read()
        if damaged:
            self.corrupt += len(damaged)
            self.batches.recount()
            logger.warning(
                "the journal %r had %d damaged note(s) of commits; should the store have those "
                "commits, they are applied twice: %s",
                str(self._path),
                len(damaged),
                "; ".join(damaged[:10]),
            )
        return sent, markers

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead letters; one that cannot be read is logged and left out."""
        letters: list[DeadLetter] = []
        with self._errors("read"):
            rows = self.connection.execute(
                f"SELECT seq, reason, noted_at, {_COLUMNS} FROM dead_letters "  # noqa: S608
                "ORDER BY noted_at DESC, seq DESC LIMIT ?",
                (limit,),
            ).fetchall()
        for seq, reason, noted_at, *values in rows:
            try:
                operation = read_record(tuple(values))
            except RecordError as error:
                logger.warning("dead letter %d of %r is damaged: %s", seq, str(self._path), error)
            else:
                text = reason.decode("utf-8", "replace")
                letters.append(DeadLetter(seq, operation, text, noted_at))
        return letters

    def discard_dead_letters(self) -> int:
        """Remove every dead letter and return their number."""
        with self._transaction("write to"):
            count = self.connection.execute("DELETE FROM dead_letters").rowcount
        self.dead = 0
        return count

    def file_bytes(self) -> int:
        """Return the size of the file and its write-ahead log."""
        total = 0
        for name in (self._path.name, self._path.name + "-wal"):
            try:
                total += self._path.with_name(name).stat().st_size
            except OSError:
                continue  # no log at the moment
        return total

    def close(self) -> None:
        """Copy the log into the file and close it."""
        try:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            # The log stays beside the file, and SQLite reads it at the next start.
            logger.warning("the log of %r stays for the next start: %s", str(self._path), error)
        with self._errors("close"):
            self.connection.close()

    def _move(self, seq: int, table: str, reason: str) -> int:
        run = self.connection.execute
        run(
            f"INSERT OR REPLACE INTO {table} "  # noqa: S608 - our own table names
            f"SELECT seq, {_COLUMNS}, ?, ? FROM records WHERE seq = ?",
            (reason, time.time(), seq),
        )
        return run("DELETE FROM records WHERE seq = ?", (seq,)).rowcount

    def _shrink(self) -> None:
        try:
            if self.file_bytes() > 2 * SHRINK_ABOVE:
                # Each step frees one page and answers without a column, which execute() takes
                # for the end; executescript() goes on until the statement is done.
                self.connection.executescript("PRAGMA incremental_vacuum")
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            logger.warning("the journal %r could not be made smaller: %s", str(self._path), error)

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        with self._errors(doing):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translated(error, doing) from error

    def _translated(self, error: sqlite3.Error, doing: str) -> JournalError:
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _REFUSED_WRITES:
            return JournalFull(
                f"the journal {str(self._path)!r} has no room: the disk, a quota or max_bytes "
                f"refused the write ({error}); nothing of it was kept"
            )
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(str(error))
        return JournalError(f"cannot {doing} the journal {str(self._path)!r}: {error}")

    def _damaged(self, what: str) -> JournalError:
        name = str(self._path)
        return JournalDamaged(
            f"the journal {name!r} is damaged: {what}. It was left as it is, for it may hold "
            "acknowledged writes that the store does not have. Either restore the file from a "
            f'backup, or rescue what is readable with: sqlite3 "{name}" .recover | sqlite3 '
            f'"{name}.rescued" (then put the rescued file in its place), or move it, its -wal '
            "and its -shm file away to start with an empty journal."
        )
