"""When a call to Firestore is tried again, and for how long: no I/O.

Each call has one absolute deadline for all its attempts. Google's client does not keep to its
timeouts where it retries by itself (a read with `timeout=2` of a server that has stopped took
over four minutes), so each attempt here is one bare RPC with the time that is left.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from beastmode.errors import BeastError, StoreUnavailable

__all__ = ["Attempts", "RetryBudget", "RetryPolicy"]

_LEAST_S: Final = 0.005
"""An attempt with less time than this is not made."""


class RetryBudget:
    """Bounds repeated calls to a share of all calls, so that a sick server is not flooded.

    It holds up to `capacity` repetitions; each first attempt earns `share` of one. (Finagle's
    retry budget.) Safe to use from threads.
    """

    __slots__ = ("_capacity", "_held", "_lock", "_share")

    def __init__(self, capacity: float = 20.0, share: float = 0.1) -> None:
        self._capacity = capacity
        self._share = share
        self._held = capacity
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count a first attempt. O(1)."""
        if self._held < self._capacity:
            with self._lock:
                self._held = min(self._capacity, self._held + self._share)

    def spend(self) -> bool:
        """Take one repetition; False when there is none left. O(1)."""
        with self._lock:
            if self._held < 1:
                return False
            self._held -= 1
            return True


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed call is repeated: `max_retries` times, within the budget.

    The pause before repetition n is between half and all of `base_s * 2**n`, at most `cap_s`.
    """

    max_retries: int = 5
    base_s: float = 0.05
    cap_s: float = 0.5
    budget: RetryBudget = field(default_factory=RetryBudget)
    rng: random.Random = field(default_factory=random.Random)
    timer: Callable[[], float] = time.monotonic


class Attempts:
    """The attempts of one call that must end at `end`; `pause` decides after each failure."""

    __slots__ = ("_end", "_policy", "retries")

    def __init__(self, policy: RetryPolicy, end: float) -> None:
        self._policy = policy
        self._end = end
        self.retries = 0
        policy.budget.earn()

    def pause(self, error: BeastError, *, repeatable: bool = True) -> float | None:
        """Return the seconds to wait before the next attempt, or None: raise `error`.

        Only StoreUnavailable is repeated, and of a commit that must not be applied twice
        (`repeatable` False) only one that was certainly not applied.
        """
        policy = self._policy
        if not isinstance(error, StoreUnavailable) or self.retries >= policy.max_retries:
            return None
        if error.maybe_applied and not repeatable:
            return None
        longest = min(policy.cap_s, policy.base_s * 2.0**self.retries)
        wait = longest * policy.rng.uniform(0.5, 1.0)
        if policy.timer() + wait + _LEAST_S >= self._end or not policy.budget.spend():
            return None
        self.retries += 1
        return wait
