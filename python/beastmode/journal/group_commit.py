"""`GroupCommit`: the thread that writes a journal, and the queue that it writes from.

Appends that arrive while it is busy share the next transaction, so a sync costs all of them
together as much as one (group commit, as in DeWitt et al., "Implementation Techniques for Main
Memory Database Systems", SIGMOD 1984). What the store answered rides along and is kept until it
is on disk.

Lock order: `_io` (the connection) before `_cond` (the queue). No callback runs under either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from beastmode.errors import JournalError
from beastmode.journal.database import Database
from beastmode.journal.work import Append, Note, Settled

__all__ = ["GroupCommit"]

logger = logging.getLogger(__name__)

_GROUP_RECORDS: Final = 10_000  # in one transaction, which bounds its time and its log
_RETRY_S: Final = 1.0  # answers that a full disk refused


class GroupCommit:
    """See the module. `Journal` is the face of it: it opens `_database` and fills the queue."""

    _database: Database

    def __init__(self, path: Path, max_dead_letters: int) -> None:
        self._path = path
        self._max_dead_letters = max_dead_letters
        self._io = threading.Lock()
        self._cond = threading.Condition()
        self._queue: deque[Append | Note] = deque()
        self._settled = Settled()
        self._handed = self._noted = self._synced = 0  # of unmarked answers
        self._busy = False
        self._retry_at = 0.0
        self._refusal: JournalError | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._appended = self._removed = self._transactions = self._failures = 0

    @property
    def path(self) -> str:
        """The journal's file."""
        return str(self._path)

    def _wake(self) -> None:
        """Wake the writing thread, made at its first use. `_cond` is held."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="beastmode-journal", daemon=True)
            thread.start()
            self._thread = thread
        self._cond.notify_all()

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

    def _take(self) -> tuple[list[Append], list[Note], Settled] | None:
        """Take one transaction's work from the queue; None when there is nothing to do now."""
        settle = bool(self._settled) and (
            bool(self._queue) or self._closing or time.monotonic() >= self._retry_at
        )
        if not self._queue and (not settle or (self._closing and self._retry_at)):
            return None
        appends: list[Append] = []
        notes: list[Note] = []
        size = 0
        while self._queue and size < _GROUP_RECORDS:
            item = self._queue.popleft()
            if isinstance(item, Note):
                notes.append(item)
            else:
                appends.append(item)
                size += len(item.operations)
        settled, self._settled = self._settled, Settled()
        return appends, notes, settled

    def _patience(self) -> float | None:
        return max(0.0, self._retry_at - time.monotonic()) if self._settled else None

    def _write(self, appends: list[Append], notes: list[Note], settled: Settled) -> None:
        error = self._transact(appends, notes, settled)
        if error is None:
            return
        # What makes room goes first, then each of the others for itself: one too large for the
        # room that is left must not fail the rest.
        held_up: JournalError | None = None
        if settled:
            held_up = failed = self._transact([], [], settled) if appends or notes else error
            if failed is not None:
                logger.warning("noting the store's answers failed, to be retried: %s", failed)
                with self._cond:
                    self._refusal = failed
                    self._settled.put_back(settled)
                    self._retry_at = time.monotonic() + _RETRY_S
        alone = len(appends) + len(notes) == 1 and not settled
        for note in notes:
            # Never before the answers that came before it: they may be the end of another batch
            # of the same operations.
            failed = held_up or (error if alone else self._transact([], [note], Settled()))
            if failed is not None:
                self._tell(note, failed)
        for append in appends:
            failed = error if alone else self._transact([append], [], Settled())
            if failed is not None:
                self._answer(append, None, failed)

    def _transact(
        self, appends: list[Append], notes: list[Note], settled: Settled
    ) -> JournalError | None:
        """Write one transaction and answer those who wait for it; return why it failed."""
        try:
            with self._io:
                seqs, removed = self._database.write(
                    [append.operations for append in appends],
                    notes,
                    settled,
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
            self._noted += settled.unmarked
            if notes or self._database.full_sync:
                self._synced = self._noted
            self._cond.notify_all()
        for note in notes:
            self._tell(note, None)
        for append, numbers in zip(appends, seqs, strict=True):
            self._appended += len(numbers)
            self._answer(append, numbers, None)
        return None

    def _answer(
        self, append: Append, seqs: Sequence[int] | None, error: BaseException | None
    ) -> None:
        try:
            append.done(None if seqs is None else list(seqs), error)
        except Exception:  # a callback of the caller's must not end the writing thread
            logger.exception("a callback of the journal %r raised", self.path)

    def _tell(self, note: Note, error: BaseException | None) -> None:
        try:
            note.done(error)
        except Exception:  # as above
            logger.exception("a callback of the journal %r raised", self.path)
