"""`BeastModeBatcher`: the component itself; see the package for what it is."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

from beastmode.batcher.committing import Backoff
from beastmode.batcher.entries import WriteCall
from beastmode.batcher.failures import Failures
from beastmode.batcher.flusher import Flusher
from beastmode.batcher.intake import Intake, Until, prepare
from beastmode.batcher.life import BatcherLife, check_age
from beastmode.batcher.markers import MarkerMode, marker_rule
from beastmode.batcher.outside import Callbacks, WriteJournal
from beastmode.batcher.pending import PendingWrites
from beastmode.batcher.report import BatcherReport
from beastmode.batcher.sending import Sender
from beastmode.batcher.settling import Settling
from beastmode.batcher.waiting import LoopWaiter, ThreadWaiter
from beastmode.errors import (
    ConfigError,
    RequestError,
)
from beastmode.stores.base import Store, check_count, check_seconds
from beastmode.stores.documents import (
    Document,
    Operation,
    check_collection,
)
from beastmode.stores.operation_codec import EncodedOperation

__all__ = ["BeastModeBatcher", "WriteMode"]

logger = logging.getLogger(__name__)

WriteMode = Literal["write-behind", "write-through"]
WhenFull = Literal["wait", "raise"]

_FLUSH_S: Final = 30.0
_GRACE_S: Final = 0.1  # for the answer of a store that uses its deadline up
_JOIN_S: Final = 1.0


class BeastModeBatcher(BatcherLife):
    """Gathers writes into few commits of `store`, in order for each document.

    In mode "write-behind" a write is accepted into `journal` (into memory alone with None: the
    end of the process loses it) and committed later: when `max_ops` operations or `max_bytes` of
    them wait, when the oldest has waited `max_delay_s` seconds, at `flush()` and at `close()`.
    Writes to one document that wait together become one where that means the same. A write of
    several operations is not atomic then. In mode "write-through", and always for operations with
    a precondition, a write is one atomic commit at once, after what waits for its documents.

    A commit has `commit_deadline_s` seconds to be answered. While the store is unavailable or late,
    commits are repeated for ever, with pauses of up to one second, and one of several operations
    that was late is halved once it is settled whether it was carried out. After an error that does
    not pass by itself, such as a permission that is missing, the pauses grow to 30 seconds; `flush`
    and `close` try at once. Failures are logged when they are others than before. No more than
    `max_pending_ops` operations or `max_pending_bytes` are held meanwhile, and writers wait for
    room, or with `when_full="raise"` get BufferFullError at once.
    A commit holds no more than the store's `commit_limits` say (see `Limits`); an operation that
    alone is more raises RequestError, and so does one that the store knows beforehand it never
    takes: its method `check_operation(operation)`, if it has one, raises that. An operation that
    the store rejects later is dropped alone:
    `on_failed` is told and the journal keeps it as a dead letter.

    `on_accepted(operation)` is called just before an operation becomes visible to readers;
    `on_committed(operation, version)` or `on_failed(operation, error)`, from the batcher's thread,
    when the store has it or never will (version None: it has it, the answer that told the version
    was lost); an operation that was merged away gets the outcome of the
    merged one. What `close` leaves in the journal gets neither. `on_error(error)` hears what no
    caller is told. They must be quick and must not write or wait; what they raise is counted.

    Operations with transforms are applied once, whatever happens between: their commits carry a
    marker document in the collection `_bm` (see `beastmode.batcher.markers`), deleted afterwards,
    or after `marker_grace_s` seconds where an attempt had no answer. `markers="always"` gives one
    to every buffered commit: then none is carried out after newer ones because the network held it
    up, and no repetition overwrites what others wrote meanwhile. "auto" is "always" for a store
    that has `commit_limits` (a server, as Firestore: a commit can outlive its deadline there), and
    "transforms" for any other. It costs one more write and later one deletion for each commit.

    `overlay` applies a committed operation for `read_grace_s` seconds more to documents that are
    older than its commit, for readers who asked the store just before it. `timer` (seconds) tells
    ages and pauses, `rng` draws pauses; deadlines are of `time.monotonic` always.

    `check_store` is called before a reader is made to wait until the store has what is pending; it
    raises where the store is not asked at the moment, and that is what the reader gets.

    `start` replays what an earlier run left in the journal: call it before the first read. Safe
    to share between threads and event loops. It must be made after a fork.
    """

    def __init__(
        self,
        store: Store,
        journal: WriteJournal | None = None,
        *,
        max_ops: int = 500,
        max_delay_s: float = 1.0,
        max_bytes: int = 8 * 1024 * 1024,
        max_pending_ops: int = 100_000,
        max_pending_bytes: int = 256 * 1024 * 1024,
        mode: WriteMode = "write-behind",
        on_accepted: Callable[[Operation], object] | None = None,
        on_committed: Callable[[Operation, int | None], object] | None = None,
        on_failed: Callable[[Operation, Exception], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
        check_store: Callable[[], object] | None = None,
        commit_deadline_s: float = 5.0,
        markers: MarkerMode = "auto",
        marker_grace_s: float = 600.0,
        when_full: WhenFull = "wait",
        read_grace_s: float = 5.0,
        timer: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        check_count("max_ops", max_ops)
        check_age("max_delay_s", max_delay_s)
        check_count("max_bytes", max_bytes)
        check_count("max_pending_ops", max_pending_ops)
        check_count("max_pending_bytes", max_pending_bytes)
        if mode not in get_args(WriteMode):
            raise ConfigError(f"mode must be 'write-behind' or 'write-through', got {mode!r}")
        check_seconds("commit_deadline_s", commit_deadline_s)
        if markers not in get_args(MarkerMode):
            raise ConfigError(f"markers must be 'auto', 'transforms' or 'always', got {markers!r}")
        check_age("marker_grace_s", marker_grace_s)
        if when_full not in get_args(WhenFull):
            raise ConfigError(f"when_full must be 'wait' or 'raise', got {when_full!r}")
        check_age("read_grace_s", read_grace_s)
        super().__init__()
        self._mode: WriteMode = mode
        self._journal = journal
        self._commit_deadline_s = commit_deadline_s
        self._check_store = check_store
        self._check_operation: Callable[[Operation], object] | None = getattr(
            store, "check_operation", None
        )
        self._marker_grace_s = marker_grace_s
        self._when_full: WhenFull = when_full
        self._pid = os.getpid()
        self._pending = PendingWrites(
            max_ops=max_ops,
            max_delay_s=max_delay_s,
            max_bytes=max_bytes,
            max_pending_ops=max_pending_ops,
            max_pending_bytes=max_pending_bytes,
            read_grace_s=read_grace_s,
            timer=timer,
            source=journal,
        )
        self._changed = threading.Condition(threading.Lock())
        self._callbacks = Callbacks(on_accepted, on_committed, on_failed, on_error)
        self._flusher = Flusher(
            Sender(store, commit_deadline_s, marker_grace_s, timer),
            journal,
            self._pending,
            self._changed,
            self._callbacks,
            Failures(Backoff(rng=rng)),
            marker_rule(markers, store),
        )
        self._settling = Settling(self._pending, self._flusher, self._changed)
        self._intake = Intake(self._pending, self._flusher, journal, self._callbacks, self._changed)

    # Writing.

    def write(
        self,
        operations: Sequence[Operation],
        *,
        until: Until = "journal",
        deadline: float | None = None,
    ) -> list[int] | None:
        """Write, and return when it is acknowledged: in the journal, or with "store" committed.

        Returns each operation's version when committed, else None; None too where the answer that
        told them was lost and the commit was confirmed later. With `until="journal"` and no
        journal it is acknowledged when it is in memory. "store" asks for a flush at once. Where
        the write is one commit (see the class) it is acknowledged when committed, whatever
        `until` says.

        `deadline` is of `time.monotonic()`; None stands for `commit_deadline_s` from now. Raises
        RequestError for a malformed operation, BufferFullError when there was no room,
        JournalFull or another JournalError, what the store raised when it rejected an operation
        (of several: the first), and StoreTimeout when the acknowledgement did not come in time:
        its text says whether the write may still happen.
        """
        call, encoded = self._prepare(operations, until, deadline)
        if not call.operations:
            return None
        self.start()
        waiter = ThreadWaiter()
        if encoded is None:
            self._intake.enqueue(call, waiter)
        else:
            room = ThreadWaiter()
            if not self._intake.reserve(call, room):
                self._intake.wait_for_room(call, room, self._when_full == "wait")
            self._intake.submit(call, encoded, waiter, until)
        if not waiter.wait(call.deadline + _GRACE_S):
            self._intake.abandon(call, waiter)
        return waiter.result()

    async def awrite(
        self,
        operations: Sequence[Operation],
        *,
        until: Until = "journal",
        deadline: float | None = None,
    ) -> list[int] | None:
        """Write without blocking the event loop; see `write`.

        A cancelled call may have been accepted; one that still waited for room was not.
        """
        call, encoded = self._prepare(operations, until, deadline)
        if not call.operations:
            return None
        if not self._is_ready():
            await asyncio.to_thread(self.start)
        waiter = LoopWaiter()
        if encoded is None:
            self._intake.enqueue(call, waiter)
        else:
            room = LoopWaiter()
            if not self._intake.reserve(call, room):
                await self._intake.await_room(call, room, self._when_full == "wait")
            self._intake.submit(call, encoded, waiter, until)
        if not await waiter.wait(call.deadline + _GRACE_S):
            self._intake.abandon(call, waiter)
            await waiter.wait(math.inf)
        return waiter.result()

    def _prepare(
        self, operations: Sequence[Operation], until: Until, deadline: float | None
    ) -> tuple[WriteCall, list[EncodedOperation] | None]:
        self._check_usable()
        if until not in get_args(Until):
            raise RequestError(f"until must be 'journal' or 'store', got {until!r}")
        self._check_thread("write")
        return prepare(
            operations,
            self._end(deadline, self._commit_deadline_s),
            direct=self._mode == "write-through",
            limits=self._flusher.limits,
            max_ops=self._pending.max_pending_ops,
            check=self._check_operation,
        )

    # Reading.

    @property
    def mode(self) -> WriteMode:
        """The mode: "write-behind" or "write-through"."""
        return self._mode

    @property
    def has_pending(self) -> bool:
        """Whether `overlay` may change any document. Takes no lock."""
        return self._pending.visible

    def overlay(self, document: Document) -> Document:
        """Return `document` with the operations that its reader must see and the store lacked.

        The same object when there are none; its version stays that of `document`. Transforms are
        not among them, nor what depends on their result: see `drain` and `is_outdated`.
        """
        if not self._pending.visible:
            return document
        self._check_process()
        with self._changed:
            return self._pending.overlay(document)

    def is_outdated(self, document: Document) -> bool:
        """Return whether `document` is from before a committed transform: read it again then.

        `overlay` cannot bring it up to date.
        """
        if not self._pending.visible:
            return False
        self._check_process()
        with self._changed:
            return self._pending.is_outdated(document)

    def pending(self, path: str) -> list[Operation]:
        """Return the operations on the document `path` that the store does not have yet."""
        self._check_process()
        with self._changed:
            return self._pending.pending(path)

    def pending_in(self, collection: str) -> bool:
        """Return whether operations on documents directly in `collection` are pending. O(1).

        They are until `on_committed` or `on_failed` was told of them: `flush` waits for that.
        """
        check_collection(collection)
        self._check_process()
        with self._changed:
            return collection in self._pending.collections

    def get_stats(self) -> BatcherReport:
        """Return the counters; never waits for I/O."""
        self._check_process()
        journal = None if self._journal is None else self._journal.get_stats()
        with self._changed:
            pending, flusher = self._pending, self._flusher
            oldest = pending.oldest()
            age = 0.0 if oldest is None else max(0.0, pending.timer() - oldest.accepted_at)
            error = flusher.last_error
            return BatcherReport(
                mode=self._mode,
                running=flusher.running,
                pending=len(pending.open),
                pending_bytes=pending.bytes_held,
                oldest_age_s=age,
                accepted=pending.accepted,
                replayed=self._replayed,
                coalesced=pending.buffer.stats().coalesced,
                flushes=flusher.flushes,
                commits=flusher.commits,
                committed=flusher.committed,
                written=flusher.written,
                markers=flusher.sender.markers,
                confirmed=flusher.sender.confirmed,
                retries=flusher.retries,
                failures_in_row=flusher.failures.in_a_row,
                failed=flusher.failed,
                errors=self._callbacks.errors + flusher.surprises,
                last_error="" if error is None else f"{type(error).__name__}: {error}",
                journal_bytes=0 if journal is None else journal.bytes,
                journal_records=0 if journal is None else journal.records,
                journal_dead_letters=0 if journal is None else journal.dead_letters,
                journal_corrupt=0 if journal is None else journal.corrupt,
            )
