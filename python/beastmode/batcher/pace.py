"""How many operations the next commit may hold, from how long the last ones took: no I/O.

A commit that is too slow for its deadline is not made faster by repeating it, so it is halved,
and what comes after it begins with that size. Answers well within the deadline let it grow again.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Pace"]

_EARLY: Final = 0.25  # of the deadline: twice the size is then expected within half of it
_PATIENCE: Final = 1024


class Pace:
    """A limit between one operation and whatever the caller allows.

    It doubles after some early answers in a row: 2 after a first late commit, and twice as many
    after each further one, for a size may be too slow for ever although half of it is fast.
    """

    __slots__ = ("_deadline_s", "_early", "_limit", "_needed")

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._limit: int | None = None
        self._early = 0
        self._needed = 1

    def cap(self, operations: int) -> int:
        """Return `operations`, or fewer while the store is slow. O(1)."""
        limit = self._limit
        if limit is None:
            return operations
        if limit >= operations:
            self._limit = None
            return operations
        return limit

    def allows(self, operations: int) -> bool:
        """Return whether a commit made before may be sent with so many operations. O(1)."""
        return self._limit is None or operations <= self._limit

    def late(self, operations: int) -> None:
        """Learn that a commit of so many operations had no answer at its deadline.

        Nothing is learnt from one alone, which cannot be halved.
        """
        if operations < 2:
            return
        half = operations // 2
        self._limit = half if self._limit is None else min(self._limit, half)
        self._early = 0
        self._needed = min(2 * self._needed, _PATIENCE)

    def answered(self, operations: int, took_s: float) -> None:
        """Learn that a commit of so many operations was answered after `took_s` seconds.

        Only one as large as the limit tells anything about a larger one.
        """
        limit = self._limit
        if limit is None:
            self._needed = 1
        elif operations >= limit and took_s <= _EARLY * self._deadline_s:
            self._early += 1
            if self._early >= self._needed:
                self._limit, self._early = 2 * limit, 0
