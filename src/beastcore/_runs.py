"""Runs of cached functions that are under way, and who waits for whom.

Coroutine runs and runs of threads are one graph, so that a circle through both is seen.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar

__all__ = ["Run", "current_run", "running_here"]


class Run:
    """One run of a function for one key.

    `waits` holds the runs that must end before this one can: those that code in its context, or
    code in the thread that it occupies, waits for. A run that has ended refers to nothing, for a
    task or a copied context may hold it for long.
    """

    __slots__ = ("owner", "running", "waits")

    def __init__(self, owner: int | None = None) -> None:
        self.owner = owner
        """The thread that is busy with the run; None once it is over, or for a coroutine."""
        self.running = True
        self.waits: list[Run] = []

    def end(self) -> None:
        """Note that the run is over. Idempotent."""
        self.running = False
        self.waits.clear()

    def stop_waiting(self, other: Run) -> None:
        """Note that this run no longer waits for `other`."""
        with contextlib.suppress(ValueError):  # it has ended meanwhile
            self.waits.remove(other)

    def reaches(self, target: Run | None, thread: int | None = None) -> bool:
        """Whether this run is `target` or one of `thread`, or waits for such a one. O(waits)."""
        seen: set[Run] = set()
        stack: list[Run] = [self]
        while stack:
            run = stack.pop()
            if run is target or (run.owner is not None and run.owner == thread):
                return True
            if run not in seen:
                seen.add(run)
                stack.extend(run.waits)
        return False


current_run: ContextVar[Run | None] = ContextVar("beastcore_cached_run", default=None)
"""The run in whose context the present code is executed; it may have ended."""


def running_here() -> Run | None:
    """Return the run that the present code is part of."""
    run = current_run.get()
    return run if run is not None and run.running else None
