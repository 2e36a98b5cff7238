"""When a call to Firestore is tried again, and for how long: no I/O.

Each call has one absolute deadline for all its attempts. Google's client does not keep to its
timeouts where it retries by itself (a read with `timeout=2` of a server that has stopped took
over four minutes), so each attempt here is one bare RPC with the time that is left.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from beastmode.breaker import RetryBudget
from beastmode.errors import BeastError, StoreError, StoreUnavailable

__all__ = ["Attempts", "RetryPolicy", "Silence"]

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


class Silence:
    """Tells when to leave a connection: `times` calls in a row have heard nothing on it.

    A network that forgets a connection tells nobody: packets are sent and nothing comes, until
    keepalive notices after half a minute. A call that had less than `least_s` is not counted, and
    it is at least `pause_s` until the next connection is left, so that a server which is merely
    slow is not made to shake hands all the time. Races of threads do no harm.
    """

    __slots__ = ("_least_s", "_left_at", "_pause_s", "_silent", "_timer", "_times")

    def __init__(
        self,
        *,
        times: int = 2,
        least_s: float = 0.4,
        pause_s: float = 5.0,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._times = times
        self._least_s = least_s
        self._pause_s = pause_s
        self._timer = timer
        self._silent = 0
        self._left_at = -math.inf

    def broken(self) -> None:
        """Note that the server answered."""
        self._silent = 0

    def kept(self, seconds: float) -> bool:
        """Note that a call waited `seconds` for nothing; return whether to leave the connection."""
        if seconds < self._least_s:
            return False
        self._silent += 1
        now = self._timer()
        if self._silent < self._times or now - self._left_at < self._pause_s:
            return False
        self._silent = 0
        self._left_at = now
        return True
