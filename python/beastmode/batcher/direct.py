"""Operations that are committed at once: preconditions, and every write in write-through mode."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from beastmode.batcher.answered import Answered
from beastmode.batcher.batches import Limits
from beastmode.batcher.committing import commit_in_order
from beastmode.batcher.entries import WriteCall, resolve
from beastmode.batcher.failures import Failures
from beastmode.batcher.outside import Callbacks, WriteJournal
from beastmode.batcher.pending import PendingWrites
from beastmode.batcher.sending import is_doubtful
from beastmode.batcher.waiting import Waiter
from beastmode.errors import StoreTimeout, StoreUnavailable
from beastmode.stores.base import Store, deadline_in
from beastmode.stores.documents import Operation

__all__ = ["DirectCommits"]


class DirectCommits:
    """The part of the flushing thread that commits calls whole, and the counters of all its parts.

    `changed` is a condition over the lock that guards `pending` and every attribute here.
    """

    def __init__(
        self,
        store: Store,
        journal: WriteJournal | None,
        pending: PendingWrites,
        changed: threading.Condition,
        callbacks: Callbacks,
        failures: Failures,
        commit_deadline_s: float,
        answered: Answered,
    ) -> None:
        self._store = store
        self._pending = pending
        self._changed = changed
        self._callbacks = callbacks
        self.failures = failures
        self._commit_deadline_s = commit_deadline_s
        self._answered = answered
        self.limits = Limits(store)
        self.journals: tuple[WriteJournal, ...] = () if journal is None else (journal,)
        self.direct: deque[WriteCall] = deque()
        self.committing: list[WriteCall] = []
        self.idle_waiters: list[tuple[int | None, Waiter]] = []
        self.commits = self.committed = self.written = self.failed = 0
        self.last_error: Exception | None = None
        self._not_before = 0.0
        self._announcing: int | None = None
        self._flushed_last = False

    def is_direct_blocked(self) -> bool:
        """Whether earlier writes of its documents go before the call in front."""
        if not self.direct:
            return False
        call = self.direct[0]
        return any(self._pending.is_waiting(path, call.after) for path in call.paths)

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

    def succeed(self, operations: int, written: int) -> None:
        """Count a commit, and forget the failures before it."""
        self.failures.succeeded()
        self._not_before = 0.0
        self.last_error = None
        self.commits += 1
        self.committed += operations
        self.written += written

    def commit_direct(self) -> None:
        """Commit what waits in front, as many calls together as a batch may have."""
        calls: list[WriteCall] = []
        count = 0
        buffer = self._pending.buffer
        with self._changed:
            self._flushed_last = False
            now = time.monotonic()
            while self.direct and not self.is_direct_blocked():
                call = self.direct[0]
                if calls and count + len(call.operations) > self.limits.cap(buffer.max_ops):
                    break
                self.direct.popleft()
                if call.deadline <= now:
                    resolve(call, StoreTimeout("not committed: the deadline came first"))
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
            self._answered.settle([operation.path for operation in operations], until)
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
            failure = _with_outcome(error)
            for call in calls[settled:]:
                self._call_failed(call, failure)

    def _calls_committed(self, calls: Sequence[WriteCall], versions: list[int]) -> None:
        operations = [operation for call in calls for operation in call.operations]
        outcomes = list(zip(operations, versions, strict=True))
        self.failures.tell_success()
        with self._changed:
            self.succeed(len(operations), len(operations))
            for operation, version in outcomes:
                self._pending.remember(operation, version)
        self._callbacks.committed(outcomes)
        with self._changed:
            first = 0
            for call in calls:
                call.versions = versions[first : first + len(call.operations)]
                first += len(call.operations)
                resolve(call, None)
                self.committing.remove(call)
            self.wake_idle_waiters()

    def _call_failed(self, call: WriteCall, error: Exception) -> None:
        self._callbacks.failed(call.operations, error)
        with self._changed:
            self.failed += len(call.operations)
            resolve(call, error)
            self.committing.remove(call)
            self.wake_idle_waiters()


def _with_outcome(error: Exception) -> Exception:
    """Return the error of a commit without an answer, its text saying what that means."""
    if type(error) not in (StoreTimeout, StoreUnavailable) or not is_doubtful(error):
        return error
    told = type(error)(f"{error}; the write may be committed or not")
    told.__cause__ = error
    return told
