"""BeastModeRealTimeSync: carries changes from a store's watch into the cache.

The store reports every change, whoever made it; the cache replaces what it holds or forgets it.
`tick()` is called at the sync interval. It notices a watch that has failed; then everything held
is doubtful: the cache serves it only as stale, within its bound, until it has been loaded again.
It opens another watch, waiting longer after each failure.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from beastmode.errors import BeastError, ClosedError
from beastmode.stores.base import Change, Subscription, Target

__all__ = ["BeastModeRealTimeSync", "Follower", "SyncReport", "Watched"]

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0


class Watched(Protocol):
    """The part of a `Store` that is needed here."""

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `Store.watch`."""
        ...


class Follower(Protocol):
    """The part of `BeastModeCache` that is needed here."""

    def apply_change(self, change: Change) -> Any:
        """Take notice of a change."""
        ...

    def mark_unverified(self) -> Any:
        """Doubt everything held."""
        ...


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a `BeastModeRealTimeSync` has done since it was made."""

    active: bool
    """Whether changes are coming in."""
    changes: int
    """Changes that were carried into the cache."""
    failures: int
    """Watches that ended by themselves or could not be opened."""
    last_error: str
    """Why the last one did; empty if none did."""


class BeastModeRealTimeSync:
    """Keeps `cache` in step with `store`; call `start()`, then `tick()` at the sync interval.

    Changes are applied on the store's watching thread, in the store's order. Nothing raised here
    reaches that thread's owner: a change that cannot be applied makes the cache doubtful, is
    counted and logged. Safe between threads.
    """

    def __init__(
        self,
        store: Watched,
        cache: Follower,
        *,
        target: Target | None = None,
        timer: Callable[[], float] = time.monotonic,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._target = Target() if target is None else target
        self._timer = timer
        self._on_error = on_error
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._closed = False
        self._started = False
        self._wait = _FIRST_WAIT_S
        self._retry_at = 0.0
        self._changes = 0
        self._failures = 0
        self._last_error = ""

    @property
    def active(self) -> bool:
        """Whether changes are coming in."""
        subscription = self._subscription
        return subscription is not None and subscription.active

    def start(self) -> None:
        """Open the watch; if that fails, `tick()` goes on trying. ClosedError after `close()`."""
        if self._closed:
            raise ClosedError("BeastModeRealTimeSync was used after close()")
        self._started = True
        self.tick()

    def tick(self) -> None:
        """Notice a watch that failed, and open another one when it is time to."""
        with self._lock:
            if self._closed or not self._started or self.active:
                return
            failed, self._subscription = self._subscription, None
            if failed is not None:
                self._doubt(failed.error or BeastError("the watch ended"))
                failed.close()
            if self._timer() < self._retry_at:
                return
            try:
                self._subscription = self._store.watch(self._target, self._on_change)
            except Exception as error:  # noqa: BLE001 - whatever it is, trying again is the answer
                self._doubt(error)
                return
            self._wait = _FIRST_WAIT_S
            # What changed while nobody was watching was not seen: doubt once more, now that
            # every later change will be.
            self._cache.mark_unverified()

    def close(self) -> None:
        """End the watch. Idempotent."""
        with self._lock:
            self._closed = True
            subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    def get_stats(self) -> SyncReport:
        """Return the counters."""
        return SyncReport(self.active, self._changes, self._failures, self._last_error)

    def _on_change(self, change: Change) -> None:
        self._changes += 1
        try:
            self._cache.apply_change(change)
        except Exception as error:  # noqa: BLE001 - the watch must live on, the cache not stay wrong
            self._doubt(error)

    def _doubt(self, error: BaseException) -> None:
        self._cache.mark_unverified()
        self._failures += 1
        self._last_error = f"{type(error).__name__}: {error}"
        self._retry_at = self._timer() + self._wait * random.uniform(0.8, 1.2)
        self._wait = min(self._wait * 2, _LONGEST_WAIT_S)
        logger.warning("changes of the store are not followed: %s", self._last_error)
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:  # the hook is the user's, and the watch must be opened again
                logger.exception("on_error raised")
