"""`Breaker`: stops asking a store that fails, and finds out when to ask again.

The circuit breaker of Michael Nygard, "Release It!" (2007), with the sliding window of
resilience4j and the consecutive-failure rule of Envoy. It knows no store: no I/O, no thread, an
injected clock and random generator. Every method is safe between threads and O(1).

    closed     calls pass. 5 failures in a row, or half of at least 20 outcomes within 10 s,
               open it
    open       calls are refused at once for 0.5 s; each further opening doubles that, up to 2 s,
               changed at random by up to 20 %, so that processes do not come back together;
               the time that a failed probe took counts, for it was spent waiting, too
    half-open  one call at a time passes, as a probe: 2 successes close it, a failure opens it

An outcome counts only for the state that its call began in: a call that began before the breaker
opened and fails, or succeeds, long after says nothing about now.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from beastmode.breaker.window import Window, check_number
from beastmode.errors import BreakerOpen, ConfigError, StoreTimeout

__all__ = ["Breaker", "BreakerState", "StoreSignal"]

logger = logging.getLogger(__name__)

BreakerState = Literal["closed", "open", "half-open"]

_SOON_S: Final = 0.05
"""The shortest wait that a refused caller is told of."""
_LEAST_WAIT: Final = 0.2
"""The least pause after a failure, as a share of the shortest wait."""
_PROBING_S: Final = 0.2
"""What it is told while a probe is in the air."""


@dataclass(frozen=True, slots=True)
class StoreSignal:
    """How a store fares, as its breaker sees it."""

    state: BreakerState
    for_s: float
    """How long it has been in this state, in seconds."""
    failures_in_row: int
    """Counted failures since the last success, probes included."""
    last_error: str
    """The last counted failure; empty if there never was one."""
    retry_after_s: float
    """Seconds until the next try, 0 where calls pass."""
    opened: int
    """How often it has opened."""
    refused: int
    """Calls refused without asking the store."""

    @property
    def ok(self) -> bool:
        """Whether calls pass."""
        return self.state == "closed"


class Breaker:
    """The circuit breaker of one store, shared by everything that calls it.

        permit = breaker.admit()            # BreakerOpen while it is open
        ...                                 # the call
        breaker.succeeded(permit)           # or failed(permit, error), or released(permit)

    Every permit is given back exactly once; `released` where the outcome says nothing about the
    store. A probe that is not given back within `probe_limit_s` counts as failed.

    `user_grace_s` is how long after the next try fell due `admit` still refuses: what calls
    `admit_probe` in the background goes first, and a user's call takes the risk of being the
    probe only if nothing does. Once a probe in the background had no answer in time it is the
    other way round: a call with more patience, or for something else, may well get one. `timer` is
    a monotonic clock in seconds. ConfigError names an argument that is not allowed.
    """

    def __init__(
        self,
        *,
        failures_in_row: int = 5,
        failure_share: float = 0.5,
        least_outcomes: int = 20,
        window_s: float = 10.0,
        open_s: float = 0.5,
        longest_open_s: float = 2.0,
        jitter: float = 0.2,
        closing_successes: int = 2,
        probe_limit_s: float = 10.0,
        user_grace_s: float = 0.0,
        timer: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        for name, count in (
            ("failures_in_row", failures_in_row),
            ("least_outcomes", least_outcomes),
            ("closing_successes", closing_successes),
        ):
            _check_count(name, count)
        check_number("failure_share", failure_share, 0.0, 1.0, above=True)
        check_number("jitter", jitter, 0.0, 0.99)
        check_number("user_grace_s", user_grace_s, 0.0, 3600.0)
        for name, seconds in (
            ("window_s", window_s),
            ("open_s", open_s),
            ("probe_limit_s", probe_limit_s),
        ):
            check_number(name, seconds, 0.0, 3600.0, above=True)
        check_number("longest_open_s", longest_open_s, open_s, 3600.0)
        self._most_in_row = failures_in_row
        self._share = failure_share
        self._least = least_outcomes
        self._window_s = window_s
        self._open_s = open_s
        self._longest_open_s = longest_open_s
        self._jitter = jitter
        self._closing = closing_successes
        self._probe_limit_s = probe_limit_s
        self.user_grace_s = user_grace_s
        self._timer = timer
        self._rng = random.Random() if rng is None else rng
        self._lock = threading.Lock()
        self._window = Window(window_s)
        self._state: BreakerState = "closed"
        self._since = timer()
        self._permit = 0
        """The permit whose outcome counts: one for all calls while closed, one for each probe."""
        self._probe_since: float | None = None
        self._is_background = False
        """Whether the newest probe was one of `admit_probe`."""
        self._callers_first = False
        """Whether the next probe is a caller's, if one comes in time."""
        self._retry_at = 0.0
        self._successes = 0
        self._in_row = 0
        self._openings = 0
        """Openings without a longer closed time between them."""
        self._opened = self._refused = 0
        self._last_error = ""
        self.answered_at = -math.inf
        """When, on `timer`, the store answered last."""
        self._subscribers: tuple[Callable[[StoreSignal], object], ...] = ()

    @property
    def state(self) -> BreakerState:
        """The state now."""
        return self._state

    def subscribe(self, on_change: Callable[[StoreSignal], object]) -> None:
        """Call `on_change` after each change of state, and when a try is brought forward.

        It is called by the thread that brought it about, which holds no lock then. It must not
        block; what it raises is logged. Two changes may be told in the wrong order by two
        threads: `state` is what holds.
        """
        with self._lock:
            self._subscribers = (*self._subscribers, on_change)

    def admit(self) -> int:
        """Return a permit for a call, or raise BreakerOpen, which tells when to try again."""
        current = self._permit  # before the state: what opens changes the permit last
        if self._state == "closed":
            return current
        with self._lock:
            if self._passes():
                return self._permit
            permit, signal, changed = self._try(background=False)
            self._refused += permit is None
        if changed:
            self._tell(signal)
        if permit is None:
            raise _refusal(signal)
        return permit

    def check(self) -> None:
        """Raise BreakerOpen unless calls pass; for who would have to wait for one."""
        if self._state != "closed":
            signal = self.signal()
            if not signal.ok:
                raise _refusal(signal)

    def admit_probe(self) -> int | None:
        """Return a permit for a probe in the background; None while it is not time for one."""
        with self._lock:
            if self._state == "closed":
                return None
            permit, signal, changed = self._try(background=True)
        if changed:
            self._tell(signal)
        return permit

    def succeeded(self, permit: int) -> None:
        """Say that the store has answered; a refusal with a reason is an answer, too."""
        if permit != self._permit:
            return
        with self._lock:
            if permit != self._permit:
                return
            self.answered_at = now = self._timer()
            self._in_row = 0
            if self._state == "closed":
                self._window.add(now, 1, 0)
                return
            self._end_probe(now)
            self._successes += 1
            if self._successes < self._closing:
                return
            self._state = "closed"
            self._since = now
            self._window.clear()
            signal = self._signal(now)
        self._tell(signal)

    def failed(self, permit: int, error: BaseException) -> None:
        """Say that the store could not be reached, did not answer in time or broke down."""
        with self._lock:
            if permit != self._permit:
                return
            now = self._timer()
            self._in_row += 1
            self._last_error = _described(error)
            if self._state == "closed":
                self._window.add(now, 1, 1)
                outcomes, failures = self._window.sums(now)
                many = outcomes >= self._least and failures >= self._share * outcomes
                if self._in_row < self._most_in_row and not many:
                    return
                if now - self._since > self._window_s:
                    self._openings = 0
            else:
                self._callers_first = self._is_background and isinstance(error, StoreTimeout)
            self._open(now)
            signal = self._signal(now)
        self._tell(signal)

    def released(self, permit: int) -> None:
        """Say that a call ended without saying anything about the store."""
        with self._lock:
            if permit == self._permit and self._state != "closed":
                self._end_probe(self._timer())

    def hurry(self) -> None:
        """Have the next try made at once: something else has just heard from the store.

        But not sooner than a fifth of the shortest wait after the last one failed.
        """
        with self._lock:
            now = self._timer()
            soonest = max(now, self._since + _LEAST_WAIT * self._open_s)
            if self._state != "open" or self._retry_at + self._grace(background=True) <= soonest:
                return
            self._retry_at = min(self._retry_at, soonest)
            self._callers_first = False
            signal = self._signal(now)
        self._tell(signal)

    def next_probe_s(self) -> float | None:
        """Return the seconds after which `admit_probe` is worth a call; None while closed."""
        with self._lock:
            if self._state == "closed":
                return None
            if self._probe_since is not None:
                return _SOON_S
            due = self._retry_at + self._grace(background=True)
            return max(0.0, due - self._timer())

    def signal(self) -> StoreSignal:
        """Return how the store fares."""
        with self._lock:
            return self._signal(self._timer())

    # Everything below is called with the lock held.

    def _passes(self) -> bool:
        return self._state == "closed"

    def _grace(self, *, background: bool) -> float:
        """Return how long past its time a probe is left to the others."""
        return self.user_grace_s if background is self._callers_first else 0.0

    def _try(self, *, background: bool) -> tuple[int | None, StoreSignal, bool]:
        now = self._timer()
        before = self._opened, self._state
        permit = self._take_probe(now, self._grace(background=background))
        if permit is not None:
            self._is_background = background
            self._callers_first = False
        return permit, self._signal(now), (self._opened, self._state) != before

    def _take_probe(self, now: float, grace_s: float) -> int | None:
        if self._probe_since is not None:
            if now < self._probe_since + self._probe_limit_s:
                return None
            self._in_row += 1
            self._last_error = f"a probe had no answer within {self._probe_limit_s:g} s"
            self._open(now)
            return None
        if now < self._retry_at + grace_s:
            return None
        if self._state == "open":
            self._state = "half-open"
            self._since = now
            self._successes = 0
        self._probe_since = now
        self._permit += 1
        return self._permit

    def _end_probe(self, now: float) -> None:
        self._probe_since = None
        self._retry_at = now
        self._permit += 1

    def _open(self, now: float) -> None:
        open_s = min(self._longest_open_s, self._open_s * 2.0 ** min(self._openings, 32))
        self._openings += 1
        self._opened += 1
        wait_s = open_s * self._rng.uniform(1 - self._jitter, 1 + self._jitter)
        begun = now if self._probe_since is None else self._probe_since
        self._state = "open"
        self._since = now
        self._successes = 0
        self._probe_since = None
        self._permit += 1
        self._retry_at = max(begun + wait_s, now + _LEAST_WAIT * self._open_s)

    def _signal(self, now: float) -> StoreSignal:
        wait_s = 0.0
        if self._state != "closed":
            # Not 0 while a probe is in the air or about to be: who waits that long must not spin.
            wait_s = _PROBING_S
            if self._probe_since is None:
                wait_s = max(_SOON_S, self._retry_at - now)
        return StoreSignal(
            state=self._state,
            for_s=max(0.0, now - self._since),
            failures_in_row=self._in_row,
            last_error=self._last_error,
            retry_after_s=wait_s,
            opened=self._opened,
            refused=self._refused,
        )

    def _tell(self, signal: StoreSignal) -> None:
        """Tell the subscribers; without the lock."""
        for on_change in self._subscribers:
            try:
                on_change(signal)
            except Exception:  # a listener must not turn a store's answer into an error
                logger.exception("a subscriber of the breaker raised")


def _refusal(signal: StoreSignal) -> BreakerOpen:
    return BreakerOpen(
        f"the store was not asked, because it keeps failing ({signal.last_error}); "
        f"next try in {signal.retry_after_s:.2f} s",
        signal.retry_after_s,
    )


def _described(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 200 else f"{text[:199]}\u2026"


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive int, got {value!r}")
