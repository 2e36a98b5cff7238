"""When a call to Firestore is tried again, and for how long: no I/O.

Each call has one absolute deadline for all its attempts. Google's client does not keep to its
timeouts where it retries by itself (a read with `timeout=2` of a server that has stopped took
over four minutes), so each attempt here is one bare RPC with the time that is left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from beastmode.breaker import RetryBudget
from beastmode.errors import BeastError, StoreError, StoreUnavailable

__all__ = ["Attempts", "RetryPolicy"]

_LEAST_S: Final = 0.005
"""An attempt with less time than this is not made."""


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

    __slots__ = ("_end", "_policy", "maybe_applied", "retries")

    def __init__(self, policy: RetryPolicy, end: float) -> None:
        self._policy = policy
        self._end = end
        self.retries = 0
        self.maybe_applied = False
        """Whether an attempt of a commit may have been applied."""
        policy.budget.count_call()

    def pause(self, error: BeastError, *, repeatable: bool = True) -> float | None:
        """Return the seconds to wait before the next attempt, or None: raise `error`.

        Only StoreUnavailable is repeated, and of a commit that must not be applied twice
        (`repeatable` False) only one that was certainly not applied.
        """
        policy = self._policy
        if isinstance(error, StoreError):
            # What an earlier attempt did is not undone by a later one that was never sent.
            self.maybe_applied = self.maybe_applied or error.maybe_applied
            error.maybe_applied = self.maybe_applied
        if not isinstance(error, StoreUnavailable) or self.retries >= policy.max_retries:
            return None
        if error.maybe_applied and not repeatable:
            return None
        longest = min(policy.cap_s, policy.base_s * 2.0**self.retries)
        wait = longest * policy.rng.uniform(0.5, 1.0)
        if policy.timer() + wait + _LEAST_S >= self._end or not policy.budget.take():
            return None
        self.retries += 1
        return wait
