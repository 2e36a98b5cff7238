"""`Settling`: waiting until operations are settled: in the store, or rejected by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from beastmode.batcher.flusher import Flusher
from beastmode.batcher.intake import because
from beastmode.batcher.pending import PendingWrites
from beastmode.batcher.waiting import Waiter
from beastmode.errors import StoreTimeout

__all__ = ["Settling"]


class Settling:
    """Has waiters resolved by the flushing thread. `changed` is the condition over its lock."""

    def __init__(
        self, pending: PendingWrites, flusher: Flusher, changed: threading.Condition
    ) -> None:
        self._pending = pending
        self._flusher = flusher
        self._changed = changed

    def is_flushed(self, waiter: Waiter) -> bool:
        """Have `waiter` resolved when all that is accepted is settled; True when it is already.

        It is tried at once, even in a pause after a failure.
        """
        with self._changed:
            goal = self._flusher.request_flush()
            if self._flusher.is_done(goal):
                return True
            self._flusher.idle_waiters.append((goal, waiter))
            self._flusher.retry_now()
            return False

    def owed(self, paths: Iterable[str], waiter: Waiter, check: Callable[[], None]) -> int:
        """Have `waiter` resolved when the transforms of `paths` are settled.

        Returns the number of the last one of them, 0 when there is none; where there is one,
        `check` is called first.
        """
        with self._changed:
            goal = max(map(self._pending.owed, paths), default=0)
            if goal:
                check()
                self._flusher.request_flush(goal)
                self._flusher.idle_waiters.append((goal, waiter))
            return goal

    def give_up(self, waiter: Waiter, goal: int | None = None) -> None:
        """Raise StoreTimeout for all operations, or those up to `goal`, unless they are settled."""
        with self._changed:
            waiting = self._flusher.idle_waiters
            left = [item for item in waiting if item[1] is not waiter]
            if len(left) == len(waiting):
                return  # done at the last moment
            self._flusher.idle_waiters = left
            numbers = self._pending.open
            count = len(numbers) if goal is None else sum(number <= goal for number in numbers)
            failure = self._flusher.last_error
        raise StoreTimeout(
            f"{count} operations are not in the store at the deadline; they stay pending"
            f"{because(failure)}"
        ) from failure
