"""Sums over a sliding window of time, and the check of a number; shared by breaker and budget."""

from __future__ import annotations

from typing import Final

from beastmode.errors import ConfigError

__all__ = ["Window", "check_number"]

_SLICES: Final = 10


class Window:
    """Two sums over the last `span_s` seconds, kept in ten slices and forgotten by the slice.

    What is asked covers the last nine slices and what there is of the newest. Not thread-safe.
    """

    __slots__ = ("_firsts", "_newest", "_seconds", "_slice_s")

    def __init__(self, span_s: float) -> None:
        self._slice_s = span_s / _SLICES
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._firsts = [0] * _SLICES
        self._seconds = [0] * _SLICES
        self._newest: int | None = None

    def add(self, now: float, first: int, second: int) -> None:
        """Add to both sums."""
        place = self._move(now)
        self._firsts[place] += first
        self._seconds[place] += second

    def sums(self, now: float) -> tuple[int, int]:
        """Return both sums."""
        self._move(now)
        return sum(self._firsts), sum(self._seconds)

    def _move(self, now: float) -> int:
        """Forget what is too old and return the place of `now`, never older than the newest."""
        number = int(now // self._slice_s)
        if self._newest is None or number - self._newest >= _SLICES:
            self.clear()
            self._newest = number
        while self._newest < number:
            self._newest += 1
            place = self._newest % _SLICES
            self._firsts[place] = self._seconds[place] = 0
        return self._newest % _SLICES


def check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """Raise ConfigError unless `value`, the argument `name`, is a number in these bounds."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        least = f"above {low:g}" if above else f"from {low:g}"
        raise ConfigError(f"{name} must be a number {least} to {high:g}, got {value!r}")
