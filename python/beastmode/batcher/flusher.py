"""`Flusher`: the one thread that commits, in the order in which operations were accepted.

It is the only caller of `store.commit`, so no two commits overtake each other. It holds the
batcher's lock only to look at and change the pending state, never over I/O or a callback.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from beastmode.batcher.committing import Backoff, commit_in_order
from beastmode.batcher.outside import Callbacks, WriteJournal
from beastmode.batcher.pending import Entry, Part, PendingWrites, WriteCall
from beastmode.batcher.waiting import Waiter
from beastmode.errors import BeastError, BreakerOpen, StoreTimeout, StoreUnavailable
from beastmode.stores.base import Store, deadline_in
from beastmode.stores.documents import Operation

__all__ = ["Flusher"]

logger = logging.getLogger(__name__)


class Flusher:
    """Runs in its own thread, from `start` to `stop`.

    `changed` is a condition over the lock that guards `pending` and every attribute here;
    whoever gives the thread something to do notifies it.
    """

    def __init__(
        self,
        store: Store,
        journal: WriteJournal | None,
        pending: PendingWrites,
        changed: threading.Condition,
        callbacks: Callbacks,
        backoff: Backoff,
        commit_deadline_s: float,
    ) -> None:
        self._store = store
        self._journal = journal
        self._pending = pending
        self._changed = changed
        self._callbacks = callbacks
        self._backoff = backoff
        self._commit_deadline_s = commit_deadline_s
        self.direct: deque[WriteCall] = deque()
        self.committing: list[WriteCall] = []
        self.flush_goal = 0
        self.stopping = False
        self.idle_waiters: list[tuple[int | None, Waiter]] = []
        self.flushes = self.commits = self.committed = self.written = 0
        self.retries = self.failed = self.surprises = 0
        self.last_error: Exception | None = None
        self._not_before = 0.0
        self._announcing: int | None = None
        self._flushed_last = False
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

    def request_flush(self) -> int:
        """Have everything accepted so far flushed now; return the number to wait for."""
        self.flush_goal = self._pending.accepted
        self._changed.notify_all()
        return self.flush_goal

    def is_done(self, goal: int | None) -> bool:
        """Return whether all operations up to `goal` are settled; None: whether all is quiet.

        Settled is more than out of `pending`: the callbacks have been told as well.
        """
        announcing = self._announcing
        if announcing is not None and (goal is None or announcing <= goal):
            return False
        oldest = self._pending.oldest()
        if goal is None:
            quiet = not self._pending.reserved and not self.direct and not self.committing
            return oldest is None and quiet
        return oldest is None or oldest.number > goal

    def wake_idle_waiters(self) -> None:
        """Resolve whoever waits for what is done now."""
        waiting = self.idle_waiters
        if waiting:
            self.idle_waiters = [item for item in waiting if not self.is_done(item[0])]
            for goal, waiter in waiting:
                if self.is_done(goal):
                    waiter.resolve()

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
                    return
                action()
            except Exception as error:  # supervision: whatever it was, nothing accepted is lost
                logger.exception("the flushing thread failed and goes on")
                self.surprises += 1
                with self._changed:
                    self._recollect(error)
                    self._fail(error)
                self._callbacks.error(error)

    def _recollect(self, error: BaseException) -> None:
        """Take up what an interrupted action left: nothing accepted is lost, nobody waits on."""
        self._pending.put_back()
        self._announcing = None
        for call in self.committing:
            _resolve(call, error)
        self.committing.clear()

    def _await_work(self) -> Callable[[], None] | None:
        """Wait until there is something to do and return it; None when told to stop."""
        pending = self._pending
        with self._changed:
            while not self.stopping:
                now = pending.timer()
                wake_at = pending.expire_recent()
                buffered = len(pending.buffer) > 0
                blocked = self._is_direct_blocked()
                ready = bool(self.direct) and not blocked
                if ready and self._flushed_last:  # by turns, so that neither can starve
                    return self._commit_direct
                if buffered and (blocked or self._is_flush_wanted()):
                    if now >= self._not_before:
                        return self._flush
                    wake_at = _earlier(wake_at, self._not_before)
                elif buffered:
                    wake_at = _earlier(wake_at, pending.buffer.deadline())
                if ready:
                    return self._commit_direct
                self._changed.wait(None if wake_at is None else max(0.0, wake_at - now))
        return None

    def _is_flush_wanted(self) -> bool:
        oldest = self._pending.oldest()
        wanted = oldest is not None and oldest.number <= self.flush_goal
        return wanted or self._pending.crowded or self._pending.buffer.due()

    def _is_direct_blocked(self) -> bool:
        if not self.direct:
            return False
        call = self.direct[0]
        return any(self._pending.is_waiting(path, call.after) for path in call.paths)

    def _flush(self) -> None:
        """Commit one batch of buffered operations."""
        with self._changed:
            entries = self._pending.take(self._pending.buffer.max_ops)
            self.flushes += 1
            self._flushed_last = True
        for chunk in _chunks(entries, self._pending.buffer.max_bytes):
            _, error = commit_in_order(
                chunk,
                lambda entry: (entry.operation,),
                self._commit_once,
                self._entries_committed,
                self._entry_rejected,
            )
            if error is not None:
                self._retry_later(error)
                return

    def _commit_once(self, operations: list[Operation]) -> list[int]:
        return self._store.commit(operations, deadline=deadline_in(self._commit_deadline_s))

    def _entries_committed(self, entries: Sequence[Entry], versions: list[int]) -> None:
        parts = [
            (part, version)
            for entry, version in zip(entries, versions, strict=True)
            for part in entry.parts
        ]
        # The journal first: who finds nothing pending any more relies on it to have been told.
        self._tell_journal([part for part, _ in parts], None)
        # Then the overlay: who finds nothing unflushed must not be shown these any more, for a
        # newer write may have gone past the buffer.
        with self._changed:
            self._succeed(len(parts), len(entries))
            self._announcing = parts[0][0].number
            for entry, version in zip(entries, versions, strict=True):
                self._pending.settle(entry, version)
        self._callbacks.committed([(part.operation, version) for part, version in parts])
        with self._changed:
            self._announcing = None
            self._pending.expire_recent()
            for part, version in parts:
                _answer(part, version, None)
            self.wake_idle_waiters()

    def _entry_rejected(self, entry: Entry, error: Exception) -> None:
        logger.warning(
            "the store rejected an operation on %r for good: %s", entry.operation.path, error
        )
        self._tell_journal(entry.parts, f"{type(error).__name__}: {error}")
        with self._changed:
            self.failed += len(entry.parts)
            self._announcing = entry.parts[0].number
            self._pending.settle(entry, None)
        self._callbacks.failed([part.operation for part in entry.parts], error)
        with self._changed:
            self._announcing = None
            is_heard = any(part.call is not None and part.call.waiter for part in entry.parts)
            for part in entry.parts:
                _answer(part, 0, error)
            self.wake_idle_waiters()
        if not is_heard:  # it was acknowledged before
            self._callbacks.error(error)

    def _tell_journal(self, parts: Sequence[Part], reason: str | None) -> None:
        seqs = [part.seq for part in parts if part.seq is not None]
        if self._journal is None or not seqs:
            return
        try:
            if reason is None:
                self._journal.acknowledge(seqs)
            else:
                self._journal.reject(seqs, reason)
        except BeastError as error:
            # The store has answered; at worst they are applied once more at the next start.
            logger.warning("the journal could not note an answer of the store: %s", error)
            self._callbacks.error(error)

    def _retry_later(self, error: Exception) -> None:
        if not isinstance(error, (StoreUnavailable, StoreTimeout)):
            self.surprises += 1
            logger.error("the store failed unexpectedly; nothing is dropped", exc_info=error)
        elif not self._backoff.failures:
            logger.warning("a commit failed and will be repeated: %s", error)
        asked = not isinstance(error, BreakerOpen)
        with self._changed:
            self._pending.put_back()
            self.retries += asked
            self._fail(error)
            blocked: list[WriteCall] = []
            while self._is_direct_blocked():
                blocked.append(self.direct.popleft())
            for call in blocked:
                failure = StoreUnavailable(
                    f"not committed, because earlier writes of {sorted(call.paths)} could not be: "
                    f"{error}"
                )
                failure.__cause__ = error
                _resolve(call, failure)
            self.wake_idle_waiters()
        if asked:
            self._callbacks.error(error)

    def _fail(self, error: Exception) -> None:
        self.last_error = error
        pause_s = self._backoff.fail()
        if isinstance(error, BreakerOpen) and error.retry_after_s is not None:
            pause_s = error.retry_after_s  # before that nothing would be asked
        self._not_before = self._pending.timer() + pause_s

    def _succeed(self, operations: int, written: int) -> None:
        if self._backoff.failures:
            logger.info("commits succeed again after %d failures", self._backoff.failures)
        self._backoff.succeed()
        self._not_before = 0.0
        self.last_error = None
        self.commits += 1
        self.committed += operations
        self.written += written

    # Operations that are committed at once.

    def _commit_direct(self) -> None:
        """Commit what waits in front, as many calls together as a batch may have."""
        calls: list[WriteCall] = []
        count = 0
        with self._changed:
            self._flushed_last = False
            now = time.monotonic()
            while self.direct and not self._is_direct_blocked():
                call = self.direct[0]
                if calls and count + len(call.operations) > self._pending.buffer.max_ops:
                    break
                self.direct.popleft()
                if call.deadline <= now:
                    _resolve(call, StoreTimeout("not committed: the deadline came first"))
                    continue
                call.stage = "committing"
                count += len(call.operations)
                calls.append(call)
            self.committing = list(calls)
            self.wake_idle_waiters()
        if not calls:
            return
        until = min(deadline_in(self._commit_deadline_s), max(call.deadline for call in calls))
        for call in calls:
            self._callbacks.accepted(call.operations)

        def commit(operations: list[Operation]) -> list[int]:
            if self._journal is not None and self._journal.has_unnoted:
                # An older write that the next start replays would overwrite this one.
                self._journal.wait_noted(until)
            return self._store.commit(operations, deadline=until)

        settled, error = commit_in_order(
            calls,
            lambda call: call.operations,
            commit,
            self._calls_committed,
            self._call_failed,
        )
        if error is not None:
            self.last_error = error
            for call in calls[settled:]:
                self._call_failed(call, error)

    def _calls_committed(self, calls: Sequence[WriteCall], versions: list[int]) -> None:
        operations = [operation for call in calls for operation in call.operations]
        outcomes = list(zip(operations, versions, strict=True))
        with self._changed:
            self._succeed(len(operations), len(operations))
            for operation, version in outcomes:
                self._pending.remember(operation, version)
        self._callbacks.committed(outcomes)
        with self._changed:
            first = 0
            for call in calls:
                call.versions = versions[first : first + len(call.operations)]
                first += len(call.operations)
                _resolve(call, None)
                self.committing.remove(call)
            self.wake_idle_waiters()

    def _call_failed(self, call: WriteCall, error: Exception) -> None:
        self._callbacks.failed(call.operations, error)
        with self._changed:
            self.failed += len(call.operations)
            _resolve(call, error)
            self.committing.remove(call)
            self.wake_idle_waiters()


def _answer(part: Part, version: int, error: Exception | None) -> None:
    """Note what became of one operation, and answer its call after the last one."""
    call = part.call
    if call is None or call.waiter is None:
        return
    call.versions[part.index] = version
    call.error = call.error or error
    call.left -= 1
    if not call.left:
        _resolve(call, call.error)


def _resolve(call: WriteCall, error: BaseException | None) -> None:
    waiter, call.waiter = call.waiter, None
    call.stage = "done"
    if waiter is not None:
        if error is None:
            waiter.resolve(call.versions)
        else:
            waiter.resolve(error=error)


def _chunks(entries: list[Entry], max_bytes: int | None) -> Iterator[list[Entry]]:
    """Split a batch so that no part exceeds `max_bytes`, but for one entry that does alone."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        if chunk and max_bytes is not None and size + entry.size > max_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += entry.size
    if chunk:
        yield chunk


def _earlier(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
