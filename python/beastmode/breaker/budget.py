"""`RetryBudget`: bounds the retries of all callers together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from beastmode.breaker.window import Window, check_number

__all__ = ["RetryBudget"]


class RetryBudget:
    """How many retries may be made: 20 % of the calls of the last 10 s, and 10 in each second.

    Retries of all callers together cannot multiply the load on a store that is down. The rule is
    that of Finagle's RetryBudget. Count every call with `count_call`, and ask `take` before each
    retry.
    """

    def __init__(
        self,
        *,
        share: float = 0.2,
        per_s: float = 10.0,
        window_s: float = 10.0,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        check_number("share", share, 0.0, 1000.0)
        check_number("per_s", per_s, 0.0, 1_000_000.0)
        check_number("window_s", window_s, 0.0, 3600.0, above=True)
        self._share = share
        self._reserve = per_s * window_s
        self._timer = timer
        self._lock = threading.Lock()
        self._window = Window(window_s)
        self.refused = 0
        """Retries that were not allowed."""

    def count_call(self) -> None:
        """Count a call that is no retry."""
        with self._lock:
            self._window.add(self._timer(), 1, 0)

    def take(self) -> bool:
        """Return whether a retry may be made, and count it if so."""
        with self._lock:
            now = self._timer()
            if self._left(now) < 1:
                self.refused += 1
                return False
            self._window.add(now, 0, 1)
            return True

    @property
    def left(self) -> float:
        """Retries that may be made now."""
        with self._lock:
            return max(0.0, self._left(self._timer()))

    def _left(self, now: float) -> float:
        calls, retries = self._window.sums(now)
        return self._reserve + self._share * calls - retries
