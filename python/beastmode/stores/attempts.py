"""Attempts of a call that may have been carried out, and billed, though nobody heard their answer.

A store that repeats calls by itself tells of them with `attempts_of_call()`; who wants to know asks
with `unanswered()` around the call. In between nobody has to pass anything on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Attempts", "attempts_of_call", "unanswered"]


class Attempts:
    """The attempts of one call without an answer; `told` where the store speaks of them at all."""

    __slots__ = ("open", "told")

    def __init__(self) -> None:
        self.open = 0
        self.told = False

    def sent(self) -> None:
        """Count an attempt that begins."""
        self.open += 1

    def answered(self) -> None:
        """Take it back: it was answered, or has certainly not reached the server."""
        self.open -= 1


_asked: ContextVar[Attempts | None] = ContextVar("beastmode_attempts", default=None)


@contextmanager
def unanswered() -> Iterator[Attempts]:
    """Yield what the store called inside tells of its attempts. O(1)."""
    attempts = Attempts()
    token = _asked.set(attempts)
    try:
        yield attempts
    finally:
        _asked.reset(token)


def attempts_of_call() -> Attempts:
    """Return where a store counts the attempts of the call that it is in."""
    attempts = _asked.get() or Attempts()
    attempts.told = True
    return attempts
