"""`Journal`: appends by group commit, batches under way, acknowledgements, dead letters, recovery.

Should the process end before the store's answers are on disk, those operations are applied once
more: operations without transforms lead to the same document, and batches that carry a marker are
refused by the store, which has them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Final, Literal, get_args

from beastmode.errors import ClosedError, ConfigError, ForkedError, JournalError
from beastmode.forking import tell_after_fork
from beastmode.journal.database import Database
from beastmode.journal.files import LifetimeLock, create_private, resolve_location
from beastmode.journal.group_commit import GroupCommit
from beastmode.journal.records import DeadLetter
from beastmode.journal.report import JournalReport
from beastmode.journal.work import Append, Done, Note
from beastmode.stores.documents import Operation
from beastmode.stores.operation_codec import EncodedOperation, encode_operation

try:
    import ctypes
except ImportError:  # a Python built without libffi
    ctypes = None  # type: ignore[assignment]

__all__ = ["Done", "Durability", "Journal"]

logger = logging.getLogger(__name__)

Durability = Literal["process", "power"]
_MIN_BYTES: Final = 256 * 1024
_CLOSE_S: Final = 10.0
_NOTE_S: Final = 30.0


class Journal(GroupCommit):
    """A durable queue of operations in one SQLite file that only this process uses.

    `path` names the file; it is made with mode 0600, beside it `path.lock`, `path-wal` and
    `path-shm`. Its directory must not be writable for everybody. `durability` is "process"
    (what was appended survives the end of the process) or "power" (also a power failure, at the
    price of a disk sync per group of appends). The file takes at most `max_bytes`; appends beyond
    raise JournalFull until operations are acknowledged. Of operations that were rejected the
    newest `max_dead_letters` are kept. With `must_exist` a file that is not there is a
    FileNotFoundError.

    Safe to share between threads. Raises JournalLocked when another process, or another Journal
    of this one, has the file, JournalError when it cannot be used, and ConfigError for a setting.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        max_bytes: int = 1024 * 1024 * 1024,
        max_dead_letters: int = 10_000,
        must_exist: bool = False,
    ) -> None:
        if durability not in get_args(Durability):
            raise ConfigError(f"durability must be 'process' or 'power', got {durability!r}")
        _check_int("max_bytes", max_bytes, _MIN_BYTES)
        _check_int("max_dead_letters", max_dead_letters, 0)
        super().__init__(resolve_location(path), max_dead_letters)
        self._durability: Durability = durability
        self._pid = os.getpid()
        self._closed = False
        self._lock = LifetimeLock(self._path)
        try:
            self._check_presence(must_exist=must_exist)
            create_private(self._path)
            self._database = Database(
                self._path, full_sync=durability == "power", max_bytes=max_bytes
            )
        except BaseException:
            self._lock.release()
            raise
        tell_after_fork(self)

    def append(self, operations: Sequence[Operation], *, timeout: float = 30.0) -> list[int]:
        """Make `operations` durable together, and return their sequence numbers in order.

        Raises RequestError for an operation that cannot be kept, JournalFull when there is no
        room, and JournalError when the disk did not answer within `timeout` seconds (they may
        be in the journal then).
        """
        encoded = [encode_operation(operation) for operation in operations]
        if not encoded:
            return []
        if threading.current_thread() is self._thread:
            raise JournalError("append() inside a callback of the journal would wait for itself")
        answer: Future[list[int]] = Future()

        def done(seqs: list[int] | None, error: BaseException | None) -> None:
            if seqs is None:
                answer.set_exception(error or JournalError("the journal gave no answer"))
            else:
                answer.set_result(seqs)

        self.submit(encoded, done)
        try:
            return answer.result(timeout)
        except FutureTimeout:
            raise JournalError(
                f"the journal {self.path!r} did not answer within {timeout} s; "
                "the operations may be in it"
            ) from None

    def submit(self, operations: Sequence[EncodedOperation], done: Done) -> None:
        """Queue `operations` to be made durable together; never waits for the disk.

        `done` is called once, from the writing thread and in the order of the sequence numbers.
        It must be quick. The queue is as long as callers make it: they bound it.
        """
        self._check_usable()
        with self._cond:
            if self._closing:
                raise self._closed_error()
            self._queue.append(Append(operations, done))
            self._wake()

    def acknowledge(
        self, seqs: Sequence[int], batch: str | None = None, marker_due: float = 0.0
    ) -> None:
        """Forget operations that the store has. Never waits; unknown numbers are no error.

        `batch` ends with them: its marker may be deleted from `marker_due` (`time.time`) on.
        """
        # Those of a batch with a marker would be sent under its name again, and refused.
        with self._settling(0 if batch else len(seqs), batch, marker_due):
            self._settled.acknowledged.extend(seqs)

    def reject(
        self,
        seqs: Sequence[int],
        reason: str,
        batch: str | None = None,
        marker_due: float = 0.0,
    ) -> None:
        """Make dead letters of operations that the store rejected for good. Never waits.

        `batch` as for `acknowledge`.
        """
        with self._settling(len(seqs), batch, marker_due):
            self._settled.rejected.extend((seq, reason) for seq in seqs)

    def release(self, batch: str, marker_due: float) -> None:
        """Say that `batch` will never be applied: its operations are as if never sent."""
        with self._settling(0, batch, marker_due):
            pass

    def forget(self, batches: Sequence[str]) -> None:
        """Forget finished batches: their markers are gone. Never waits."""
        with self._settling(0, None, 0.0):
            self._settled.forgotten.extend(batches)

    @contextmanager
    def _settling(self, unmarked: int, batch: str | None, marker_due: float) -> Iterator[None]:
        self._check_usable()
        with self._cond:
            if self._closed:
                raise self._closed_error()
            yield
            if batch is not None:
                self._settled.finished.append((batch, marker_due))
            self._settled.unmarked += unmarked
            self._handed += unmarked
            self._wake()

    def note_sent(self, batch: str, seqs: Sequence[int], deadline: float | None = None) -> None:
        """Note on the disk itself that `seqs` are about to be sent to the store as `batch`.

        From now until `acknowledge`, `reject` or `release` names `batch`, they may only be sent
        under this name. Waits until `deadline` (`time.monotonic`; None: 30 seconds). Raises
        JournalError when it is not noted by then; it may be later.
        """
        self._note((batch, list(seqs)), (), deadline)

    def confirm(self, batches: Sequence[str], deadline: float | None = None) -> None:
        """Have the end of finished batches on the disk itself, so that no power loss undoes it.

        Only then may their markers be deleted. Waits and raises as `note_sent`.
        """
        self._note(None, list(batches), deadline)

    def _note(
        self, sent: tuple[str, list[int]] | None, confirmed: Sequence[str], deadline: float | None
    ) -> None:
        self._check_usable()
        if threading.current_thread() is self._thread:
            raise JournalError("a callback of the journal cannot wait for it")
        until = time.monotonic() + _NOTE_S if deadline is None else deadline
        answer: Future[None] = Future()

        def done(error: BaseException | None) -> None:
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

        with self._cond:
            if self._closing:
                raise self._closed_error()
            self._queue.append(Note(sent, confirmed, done))
            self._wake()
        try:
            answer.result(max(0.0, until - time.monotonic()))
        except FutureTimeout:
            raise JournalError(
                f"the journal {self.path!r} did not note a batch before the deadline"
            ) from None

    @property
    def syncs_each(self) -> bool:
        """Whether its durability is "power": each write and each answer is synced when noted."""
        return self._durability == "power"

    @property
    def has_unnoted(self) -> bool:
        """Whether a loss of power could undo answers of the store. Takes no lock.

        Those to a batch with a marker do not count: the store would refuse it the second time.
        """
        return self._handed != self._synced

    def wait_noted(self, deadline: float) -> None:
        """Return once the answers handed over before are on the disk itself (see `has_unnoted`).

        No restart replays those operations then, not even after a loss of power. Raises
        JournalError at `deadline` (`time.monotonic`), naming what the disk refused.
        """
        self._check_usable()
        with self._cond:
            goal = self._handed
            self._retry_at = 0.0
            while self._noted < goal:
                if self._closed:
                    raise self._closed_error()
                left = deadline - time.monotonic()
                if left <= 0:
                    failure = self._refusal
                    raise JournalError(
                        f"the journal {self.path!r} could not note {goal - self._noted} answers of "
                        "the store before the deadline"
                        + ("" if failure is None else f": {failure}")
                    ) from failure
                self._wake()
                self._cond.wait(min(left, threading.TIMEOUT_MAX))
            if self._synced >= goal:
                return
        self.confirm((), deadline)

    def recover(self) -> list[tuple[int, Operation]]:
        """Return all (sequence number, operation) neither acknowledged nor rejected, in order.

        A damaged record is moved to the quarantine table, counted and logged; the others are
        returned. O(content).
        """
        self.sync()
        with self._io:
            self._check_open()
            operations, damaged = self._database.recover()
        if damaged:
            shown = "; ".join(f"number {seq}: {reason}" for seq, reason in damaged[:10])
            logger.warning(
                "the journal %r had %d damaged record(s), now in its table 'quarantine' and not "
                "replayed: %s",
                self.path,
                len(damaged),
                shown,
            )
        return operations

    def content(self) -> tuple[int, int]:
        """Return how many operations `recover` will find, and their bytes. Reads them all."""
        self.sync()
        with self._io:
            self._check_open()
            return self._database.content()

    def recover_batches(self) -> tuple[list[tuple[str, list[int]]], list[tuple[str, float]]]:
        """Return what earlier runs left of batches with a marker: (sent, markers).

        `sent` has (name, sequence numbers) of those that the store may have or not, the oldest
        first; `markers` has (name, `time.time` from when it may be deleted) of finished ones.
        A damaged note is logged and counted; its operations are then as if never sent.
        """
        self.sync()
        with self._io:
            self._check_open()
            return self._database.read_batches()

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the newest `limit` operations that the store rejected, newest first."""
        _check_int("limit", limit, 1)
        self.sync()
        with self._io:
            self._check_open()
            return self._database.dead_letters(limit)

    def discard_dead_letters(self) -> int:
        """Forget every dead letter, and return how many there were."""
        self.sync()
        with self._io:
            self._check_open()
            return self._database.discard_dead_letters()

    def sync(self, timeout: float = 30.0) -> None:
        """Wait until what was handed over before is on disk; JournalError after `timeout` seconds.

        Acknowledgements that a full disk refuses are no error: they are tried again.
        """
        self._check_usable()
        end = time.monotonic() + timeout
        with self._cond:
            self._retry_at = 0.0
            while self._queue or self._busy or (bool(self._settled) and not self._retry_at):
                if self._closed:
                    raise self._closed_error()
                left = end - time.monotonic()
                if left <= 0:
                    raise JournalError(f"the journal {self.path!r} is busy after {timeout} s")
                self._wake()
                self._cond.wait(left)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be done: no operation, no batch, no marker, nothing to note.

        Rejected operations and damaged records may be in it.
        """
        with self._cond:
            idle = not (self._queue or self._busy or self._settled)
            return idle and not self._database.records and not self._database.batches.count

    def get_stats(self) -> JournalReport:
        """Return the journal's counters; reads no table."""
        self._check_usable()
        database = self._database
        return JournalReport(
            path=self.path,
            durability=self._durability,
            records=database.records,
            dead_letters=database.dead,
            corrupt=database.corrupt,
            bytes=database.file_bytes(),
            appended=self._appended,
            acknowledged=self._removed,
            transactions=self._transactions,
            failures=self._failures,
        )

    def close(
        self, timeout: float = _CLOSE_S, *, at_end: Callable[[], object] | None = None
    ) -> None:
        """Write what was handed over, close the file and give its lock back. Idempotent.

        `at_end` is called between the two: the files are nobody's then, and nobody can take them.

        Operations that are neither acknowledged nor rejected stay for the next start. In a child
        made by fork it does nothing: the file is the parent's. Raises JournalError when the disk
        does not answer within `timeout` seconds; it can be called again then.
        """
        if os.getpid() != self._pid:
            return
        with self._cond:
            self._closing = True
            self._retry_at = 0.0
            self._cond.notify_all()
            thread = self._thread
        if thread is threading.current_thread():
            raise JournalError("close() inside a callback of the journal would wait for itself")
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                raise JournalError(f"the journal {self.path!r} is still writing after {timeout} s")
        with self._io:
            if self._closed:
                return
            self._closed = True
            left = self._settled.operations
            if left:
                logger.warning(
                    "%d answers of the store could not be noted in the journal %r; "
                    "those operations are applied once more at the next start",
                    left,
                    self.path,
                )
            try:
                self._database.close()
                if at_end is not None:
                    at_end()
            finally:
                self._lock.release()

    def _check_presence(self, *, must_exist: bool) -> None:
        if must_exist and not self._path.exists():
            self._lock.remove()
            raise FileNotFoundError(f"there is no journal {self.path!r}")

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"the journal {self.path!r} belongs to process {self._pid}, which forked this one; "
                "make a Journal with its own file after the fork"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the journal {self.path!r} is closed")

    def after_fork_in_child(self) -> None:
        """Let go of the parent's file, in a child that was forked. See `tell_after_fork`."""
        if self._closed:
            return
        # The lock must end with the parent, not with this child.
        self._lock.abandon()
        # Closing the connection here could wait for ever for a mutex that a thread of the parent
        # held, or write to the parent's file: it gets a reference that nobody ever drops.
        if ctypes is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database.connection))


def _check_int(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be an int of at least {minimum}, got {value!r}")
