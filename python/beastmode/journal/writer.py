"""`Journal`: appends by group commit, acknowledgements, dead letters, recovery.

One thread writes. Appends that arrive while it is busy share the next transaction, so a sync
costs all of them together as much as one (group commit, as in DeWitt et al., "Implementation
Techniques for Main Memory Database Systems", SIGMOD 1984). Acknowledgements and rejections ride
along and are kept until they are on disk; should the process end before, their operations are
applied once more, which for operations without preconditions leads to the same document.

Lock order: `_io` (the connection) before `_cond` (the queue). No callback runs under either.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Final, Literal, NamedTuple, get_args

from beastmode.errors import ClosedError, ConfigError, ForkedError, JournalError
from beastmode.journal.database import Database
from beastmode.journal.files import LifetimeLock, create_private, resolve_location
from beastmode.journal.records import DeadLetter
from beastmode.journal.report import JournalReport
from beastmode.stores.documents import Operation
from beastmode.stores.operation_codec import EncodedOperation, encode_operation

try:
    import ctypes
except ImportError:  # a Python built without libffi
    ctypes = None  # type: ignore[assignment]

__all__ = ["Done", "Durability", "Journal"]

logger = logging.getLogger(__name__)

Durability = Literal["process", "power"]
Done = Callable[[list[int] | None, BaseException | None], object]
"""Called with the sequence numbers, or with None and the error."""

_MIN_BYTES: Final = 256 * 1024
_GROUP_RECORDS: Final = 10_000  # in one transaction, which bounds its time and its log
_RETRY_S: Final = 1.0  # acknowledgements that a full disk refused
_CLOSE_S: Final = 10.0


class _Append(NamedTuple):
    operations: Sequence[EncodedOperation]
    done: Done


class Journal:
    """A durable queue of operations in one SQLite file that only this process uses.

    `path` names the file; it is made with mode 0600, beside it `path.lock`, `path-wal` and
    `path-shm`. Its directory must not be writable for everybody. `durability` is "process"
    (what was appended survives the end of the process) or "power" (also a power failure, at the
    price of a disk sync per group of appends). The file takes at most `max_bytes`; appends beyond
    raise JournalFull until operations are acknowledged. Of operations that were rejected the
    newest `max_dead_letters` are kept.

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
    ) -> None:
        if durability not in get_args(Durability):
            raise ConfigError(f"durability must be 'process' or 'power', got {durability!r}")
        _check_int("max_bytes", max_bytes, _MIN_BYTES)
        _check_int("max_dead_letters", max_dead_letters, 0)
        self._path = resolve_location(path)
        self._durability: Durability = durability
        self._max_dead_letters = max_dead_letters
        self._pid = os.getpid()
        self._io = threading.Lock()
        self._cond = threading.Condition()
        self._queue: deque[_Append] = deque()
        self._acknowledged: list[int] = []
        self._rejected: list[tuple[int, str]] = []
        self._handed = self._noted = 0
        self._busy = False
        self._retry_at = 0.0
        self._refusal: JournalError | None = None
        self._closing = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._appended = self._removed = self._transactions = self._failures = 0
        self._lock = LifetimeLock(self._path)
        try:
            create_private(self._path)
            self._database = Database(
                self._path, full_sync=durability == "power", max_bytes=max_bytes
            )
        except BaseException:
            self._lock.release()
            raise
        if hasattr(os, "register_at_fork"):
            _guard_fork(self)

    @property
    def path(self) -> str:
        """The journal's file."""
        return str(self._path)

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
            self._queue.append(_Append(operations, done))
            self._wake()

    def acknowledge(self, seqs: Sequence[int]) -> None:
        """Forget operations that the store has. Never waits; unknown numbers are no error."""
        self._check_usable()
        with self._cond:
            if self._closed:
                raise self._closed_error()
            self._acknowledged.extend(seqs)
            self._handed += len(seqs)
            self._wake()

    def reject(self, seqs: Sequence[int], reason: str) -> None:
        """Make dead letters of operations that the store rejected for good. Never waits."""
        self._check_usable()
        with self._cond:
            if self._closed:
                raise self._closed_error()
            self._rejected.extend((seq, reason) for seq in seqs)
            self._handed += len(seqs)
            self._wake()

    @property
    def has_unnoted(self) -> bool:
        """Whether answers of the store were handed over that are not on disk. Takes no lock."""
        return self._handed != self._noted

    def wait_noted(self, deadline: float) -> None:
        """Return once the answers handed over before are on disk: no restart replays those.

        Raises JournalError at `deadline` (`time.monotonic`), naming what the disk refused.
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
            while self._queue or self._busy or (self._has_settled() and not self._retry_at):
                if self._closed:
                    raise self._closed_error()
                left = end - time.monotonic()
                if left <= 0:
                    raise JournalError(f"the journal {self.path!r} is busy after {timeout} s")
                self._wake()
                self._cond.wait(left)

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

    def close(self, timeout: float = _CLOSE_S) -> None:
        """Write what was handed over, close the file and give its lock back. Idempotent.

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
            left = len(self._acknowledged) + len(self._rejected)
            if left:
                logger.warning(
                    "%d answers of the store could not be noted in the journal %r; "
                    "those operations are applied once more at the next start",
                    left,
                    self.path,
                )
            try:
                self._database.close()
            finally:
                self._lock.release()

    # The writing thread.

    def _run(self) -> None:
        while True:
            with self._cond:
                while not (work := self._take()):
                    if self._closing:
                        return
                    self._cond.wait(self._patience())
                self._busy = True
            try:
                self._write(*work)
            finally:
                with self._cond:
                    self._busy = False
                    self._cond.notify_all()

    def _take(self) -> tuple[list[_Append], list[int], list[tuple[int, str]]] | None:
        """Take one transaction's work from the queue; None when there is nothing to do now."""
        settle = self._has_settled() and (
            bool(self._queue) or self._closing or time.monotonic() >= self._retry_at
        )
        if not self._queue and (not settle or (self._closing and self._retry_at)):
            return None
        appends: list[_Append] = []
        size = 0
        while self._queue and size < _GROUP_RECORDS:
            appends.append(self._queue.popleft())
            size += len(appends[-1].operations)
        acknowledged, self._acknowledged = self._acknowledged, []
        rejected, self._rejected = self._rejected, []
        return appends, acknowledged, rejected

    def _patience(self) -> float | None:
        if not self._has_settled():
            return None
        return max(0.0, self._retry_at - time.monotonic())

    def _write(
        self,
        appends: list[_Append],
        acknowledged: list[int],
        rejected: list[tuple[int, str]],
    ) -> None:
        error = self._transact(appends, acknowledged, rejected)
        if error is None:
            return
        # What makes room goes first, then each append for itself: one too large for the room
        # that is left must not fail the others.
        if acknowledged or rejected:
            failed = self._transact([], acknowledged, rejected) if appends else error
            if failed is not None:
                logger.warning("noting the store's answers failed, to be retried: %s", failed)
                with self._cond:
                    self._refusal = failed
                    self._acknowledged[:0] = acknowledged
                    self._rejected[:0] = rejected
                    self._retry_at = time.monotonic() + _RETRY_S
        alone = len(appends) == 1 and not acknowledged and not rejected
        for append in appends:
            failed = error if alone else self._transact([append], [], [])
            if failed is not None:
                self._answer(append, None, failed)

    def _transact(
        self,
        appends: list[_Append],
        acknowledged: list[int],
        rejected: list[tuple[int, str]],
    ) -> JournalError | None:
        """Write one transaction and answer its appends; return why it failed."""
        try:
            with self._io:
                seqs, removed = self._database.write(
                    [append.operations for append in appends],
                    acknowledged,
                    rejected,
                    self._max_dead_letters,
                )
        except JournalError as error:
            self._failures += 1
            return error
        except Exception as error:  # whatever it is, each caller must get an answer
            self._failures += 1
            logger.exception("the journal %r could not write", self.path)
            failure = JournalError(f"the journal {self.path!r} could not write: {error!r}")
            failure.__cause__ = error
            return failure
        self._transactions += 1
        self._removed += removed
        with self._cond:
            self._retry_at = 0.0
            self._refusal = None
            self._noted += len(acknowledged) + len(rejected)
            self._cond.notify_all()
        for append, numbers in zip(appends, seqs, strict=True):
            self._appended += len(numbers)
            self._answer(append, numbers, None)
        return None

    def _answer(self, append: _Append, seqs: list[int] | None, error: BaseException | None) -> None:
        try:
            append.done(seqs, error)
        except Exception:  # a callback of the caller's must not end the writing thread
            logger.exception("a callback of the journal %r raised", self.path)

    # Common parts.

    def _wake(self) -> None:
        """Wake the writing thread, made at its first use. `_cond` is held."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="beastmode-journal", daemon=True)
            thread.start()
            self._thread = thread
        self._cond.notify_all()

    def _has_settled(self) -> bool:
        return bool(self._acknowledged or self._rejected)

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

    def _after_fork_in_child(self) -> None:
        # The lock must end with the parent, not with this child.
        self._lock.abandon()
        # Closing the connection here could wait for ever for a mutex that a thread of the parent
        # held, or write to the parent's file: it gets a reference that nobody ever drops.
        if ctypes is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database.connection))


def _guard_fork(journal: Journal) -> None:
    reference = weakref.ref(journal)

    def in_child() -> None:
        alive = reference()
        if alive is not None and not alive._closed:  # noqa: SLF001 - this module's own class
            alive._after_fork_in_child()  # noqa: SLF001

    os.register_at_fork(after_in_child=in_child)


def _check_int(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be an int of at least {minimum}, got {value!r}")
