"""`Flusher`: the one thread that commits, in the order in which operations were accepted.

It is the only caller of `store.commit`, so no two commits overtake each other. It holds the
batcher's lock only to look at and change the pending state, never over I/O or a callback.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from beastmode.batcher.batches import Batch, make_batches
from beastmode.batcher.direct import DirectCommits
from beastmode.batcher.entries import Entry, Part, WriteCall, resolve
from beastmode.batcher.failures import Failures
from beastmode.batcher.markers import MarkerBin
from beastmode.batcher.outside import Callbacks, WriteJournal
from beastmode.batcher.pending import PendingWrites
from beastmode.batcher.recovery import Recovered
from beastmode.batcher.sending import Refused, Sender, Voided
from beastmode.errors import (
    BeastError,
    BreakerOpen,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Operation

__all__ = ["Flusher"]

logger = logging.getLogger(__name__)

_SWEEP: Final = 100  # markers in one commit
_SWEEP_AGAIN_S: Final = 30.0
_SWEEP_TURN: Final = 25  # commits after which markers that may go have a turn, whatever waits


class Flusher(DirectCommits):
    """Runs in its own thread, from `start` to `stop`.

    Whoever gives the thread something to do notifies `changed`. `work` holds the batches under
    way: between two flushes only those that may not be changed any more.
    """

    def __init__(
        self,
        sender: Sender,
        journal: WriteJournal | None,
        pending: PendingWrites,
        changed: threading.Condition,
        callbacks: Callbacks,
        failures: Failures,
        needs_marker: Callable[[Operation], bool],
    ) -> None:
        super().__init__(
            sender.store,
            journal,
            pending,
            changed,
            callbacks,
            failures,
            sender.deadline_s,
            sender.answered,
        )
        self.sender = sender
        self._needs_marker = needs_marker
        self.markers = MarkerBin(pending.timer)
        self.work: deque[Batch] = deque()
        self.flush_goal = 0
        self.stopping = False
        self.flushes = self.retries = self.surprises = 0
        self._turns = 0  # since markers were deleted
        self._thread: threading.Thread | None = None

    # Called by the batcher, with the lock held.

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller is the flushing thread."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Start the thread, or start it again should it have died."""
        if self.running or self.stopping:
            return
        self._recollect(StoreUnavailable("the flushing thread had died"))
        thread = threading.Thread(target=self._run, name="beastmode-batcher", daemon=True)
        thread.start()
        self._thread = thread

    def request_flush(self, goal: int | None = None) -> int:
        """Have everything accepted up to `goal` flushed now; return the number to wait for.

        None stands for everything accepted so far.
        """
        if goal is None:
            goal = self._pending.accepted
        self.flush_goal = max(self.flush_goal, goal)
        self._changed.notify_all()
        return goal

    def split(self, entries: list[Entry]) -> list[Batch]:
        """Make batches of entries, in order, each small enough for one commit. Needs no lock."""
        buffer = self._pending.buffer
        return list(
            make_batches(
                entries,
                max_ops=buffer.max_ops,
                max_bytes=buffer.max_bytes,
                limits=self.limits,
                needs_marker=self._needs_marker,
            )
        )

    def take_up(self, recovered: Recovered) -> None:
        """Do what earlier runs left, before everything that is pending."""
        taken = [entry for batch in recovered.batches for entry in batch.entries]
        self._pending.adopt(taken, recovered.entries)
        self.work.extend(recovered.batches)
        for name, journal, delay_s in recovered.markers:
            self.markers.add(name, journal, delay_s)
        self.request_flush()

    def retry_now(self) -> None:
        """End the pause after a failure: there is reason to believe that the store is back."""
        self._not_before = 0.0
        self._changed.notify_all()

    def stop(self) -> threading.Thread | None:
        """Tell the thread to end after the commit it is in, and return it to be joined."""
        self.stopping = True
        self._changed.notify_all()
        return self._thread

    # The thread.

    def _run(self) -> None:
        while True:
            try:
                action = self._await_work()
                if action is None:
                    self._last_sweep()
                    return
                self._turns += 1
                action()
            except Exception as error:  # noqa: BLE001 - supervision: logged by `tell`, nothing lost
                self.surprises += 1
                self.failures.tell(error)
                with self._changed:
                    self._recollect(error)
                    self._fail(error)
                self._callbacks.error(error)

    def _recollect(self, error: BaseException) -> None:
        """Take up what an interrupted action left: nothing accepted is lost, nobody waits on."""
        self._put_back()
        self._announced()
        for call in self.committing:
            resolve(call, error)
        self.committing.clear()

    def _put_back(self) -> None:
        """Put back what is under way and not settled, but for batches that may not be changed.

        What stands before one of those stays as well, or it would be overtaken; but in smaller
        batches where it was too slow.
        """
        fixed = [number for number, batch in enumerate(self.work) if batch.fixed]
        while len(self.work) > (fixed[-1] + 1 if fixed else 0):
            self.work.pop()
        held, self.work = self.work, deque()
        for batch in held:
            entries = [entry for entry in batch.entries if self._pending.is_taken(entry)]
            batch.entries = entries
            if batch.fixed or self.sender.pace.allows(len(entries)):
                self.work.extend([batch] if entries else ())
            else:
                self.work.extend(batch.pieces(self._needs_marker))
        self._pending.put_back([entry for batch in self.work for entry in batch.entries])

    def _await_work(self) -> Callable[[], None] | None:
        """Wait until there is something to do and return it; None when told to stop."""
        pending = self._pending
        with self._changed:
            while not self.stopping:
                now = pending.timer()
                wake_at = pending.expire_recent()
                buffered = len(pending.buffer) > 0 or bool(self.work)
                blocked = self.is_direct_blocked()
                ready = bool(self.direct) and not blocked
                # While the store fails, what waits would wait for an attempt of less worth.
                may_sweep = not self.failures.in_a_row or not (buffered or ready)
                sweep_at = self.markers.due_at() if may_sweep else None
                if self._turns >= _SWEEP_TURN and sweep_at is not None and now >= sweep_at:
                    return self._sweep
                if ready and self._flushed_last:  # by turns, so that neither can starve
                    return self.commit_direct
                if buffered and (blocked or self._is_flush_wanted()):
                    if now >= self._not_before:
                        return self._flush
                    wake_at = _earlier(wake_at, self._not_before)
                elif buffered:
                    wake_at = _earlier(wake_at, pending.buffer.deadline())
                if ready:
                    return self.commit_direct
                if sweep_at is not None and now >= sweep_at:
                    return self._sweep
                wake_at = _earlier(wake_at, sweep_at)
                self._changed.wait(None if wake_at is None else max(0.0, wake_at - now))
        return None

    def _is_flush_wanted(self) -> bool:
        oldest = self._pending.oldest()
        wanted = bool(self.work) or (oldest is not None and oldest.number <= self.flush_goal)
        return wanted or self._pending.crowded or self._pending.buffer.due()

    def _flush(self) -> None:
        """Commit one batch of buffered operations, or what is left of earlier ones."""
        with self._changed:
            entries: list[Entry] = []
            if not self.work:
                most = self.limits.cap(self._pending.buffer.max_ops)
                entries = self._pending.take(self.sender.pace.cap(most))
            self.flushes += 1
            self._flushed_last = True
        if entries:
            batches = self.split(entries)  # encodes them where they are many bytes: no lock held
            with self._changed:
                # In front of what was adopted meanwhile, and will be seen after these.
                self.work.extendleft(reversed(batches))
        while self.work:
            batch = self.work[0]
            try:
                versions, newest = self.sender.send(batch)
            except Refused as refusal:
                if len(batch.entries) == 1:
                    self._entry_rejected(batch, refusal.reason)
                    self._end(batch)
                else:
                    self._send_anew(batch)
            except Voided:
                self._send_anew(batch)
            except Exception as error:  # noqa: BLE001 - counted and reported there
                self._retry_later(error)
                return
            else:
                self._batch_committed(batch, versions, newest)
                self._end(batch)

    def _end(self, batch: Batch) -> None:
        with self._changed:
            self.work.remove(batch)
            self._bin_marker(batch)

    def _bin_marker(self, batch: Batch) -> None:
        if batch.name is not None and batch.marker_stays is not None:
            self.markers.add(batch.name, batch.source, batch.marker_stays)

    def _send_anew(self, batch: Batch) -> None:
        """Send what the store will never have as it is: a batch of several entries as two."""
        self._tell(self.sender.released, batch)
        pieces = batch.pieces(self._needs_marker)
        with self._changed:
            self.work.popleft()
            self.work.extendleft(reversed(pieces))
            self._bin_marker(batch)

    def _batch_committed(self, batch: Batch, versions: list[int] | None, newest: int) -> None:
        self.failures.tell_success()
        entries = batch.entries
        known = [None] * len(entries) if versions is None else versions
        parts = [
            (part, version)
            for entry, version in zip(entries, known, strict=True)
            for part in entry.parts
        ]
        # The journal first: who finds nothing pending any more relies on it to have been told.
        self._tell(self.sender.acknowledged, batch)
        # Then the overlay: who finds nothing unflushed must not be shown these any more, for a
        # newer write may have gone past the buffer.
        with self._changed:
            self.succeed(len(parts), len(entries))
            self._announcing = parts[0][0].number
            for entry, version in zip(entries, known, strict=True):
                self._pending.settle(entry, newest if version is None else version)
        self._callbacks.committed([(part.operation, version) for part, version in parts])
        with self._changed:
            self._announced()
            self._pending.expire_recent()
            for part, version in parts:
                _answer(part, version, None)
            self.wake_idle_waiters()

    def _announced(self) -> None:
        self._announcing = None
        self._pending.told()

    def _entry_rejected(self, batch: Batch, error: Exception) -> None:
        (entry,) = batch.entries
        logger.warning(
            "the store rejected an operation on %r for good: %s", entry.operation.path, error
        )
        self._tell(self.sender.rejected, batch, f"{type(error).__name__}: {error}")
        with self._changed:
            self.failed += len(entry.parts)
            self._announcing = entry.parts[0].number
            self._pending.settle(entry, None)
        self._callbacks.failed([part.operation for part in entry.parts], error)
        with self._changed:
            self._announced()
            is_heard = any(part.call is not None and part.call.waiter for part in entry.parts)
            for part in entry.parts:
                _answer(part, None, error)
            self.wake_idle_waiters()
        if not is_heard:  # it was acknowledged before
            self._callbacks.error(error)

    def _tell(self, tell: Callable[..., None], *args: object) -> None:
        try:
            tell(*args)
        except BeastError as error:
            # The store has answered; at worst they are sent once more at the next start.
            logger.warning("the journal could not note an answer of the store: %s", error)
            self._callbacks.error(error)

    def _retry_later(self, error: Exception) -> None:
        if not isinstance(error, (StoreUnavailable, StoreTimeout, StoreRefused)):
            self.surprises += 1
        asked = not isinstance(error, BreakerOpen)
        self.failures.tell(error)
        with self._changed:
            self._put_back()
            self.retries += asked
            self._fail(error)
            blocked: list[WriteCall] = []
            while self.is_direct_blocked():
                blocked.append(self.direct.popleft())
            for call in blocked:
                failure = StoreUnavailable(
                    f"not committed, because earlier writes of {sorted(call.paths)} could not be: "
                    f"{error}"
                )
                failure.__cause__ = error
                resolve(call, failure)
            self.wake_idle_waiters()
        if asked:
            self._callbacks.error(error)

    def _fail(self, error: Exception) -> None:
        self.last_error = error
        self._not_before = self._pending.timer() + self.failures.failed(error)

    def _sweep(self) -> None:
        """Delete markers that are not needed any more."""
        self._turns = 0
        with self._changed:
            names = self.markers.take(self.limits.cap(_SWEEP))
        try:
            self.sender.delete_markers(names, deadline_in(self._commit_deadline_s))
        except BeastError as error:
            logger.info("markers could not be deleted, to be tried again: %s", error)
            asked = not isinstance(error, BreakerOpen)
            with self._changed:
                for journal, batches in names.items():
                    for name in batches:
                        self.markers.add(name, journal, _SWEEP_AGAIN_S)
            if asked:
                self._callbacks.error(error)

    def _last_sweep(self) -> None:
        """Delete what may be deleted at the end; the rest is left to the next start."""
        while not self.failures.in_a_row and self.markers.has_due():
            before = len(self.markers)
            self._sweep()
            if len(self.markers) >= before:
                return


def _answer(part: Part, version: int | None, error: Exception | None) -> None:
    """Note what became of one operation, and answer its call after the last one."""
    call = part.call
    if call is None or call.waiter is None:
        return
    if version is None:
        call.known = False
    else:
        call.versions[part.index] = version
    call.error = call.error or error
    call.left -= 1
    if not call.left:
        resolve(call, call.error)


def _earlier(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
