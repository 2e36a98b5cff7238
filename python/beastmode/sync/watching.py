"""Follows a store as a whole, by one watch, and carries its changes into the cache.

The store reports every change, whoever made it; the cache replaces what it holds or forgets it.
`tick()` is called at the sync interval. It notices a watch that has failed; then everything held
is doubtful: the cache serves it only as stale, within its bound, until it has been loaded again.
It opens another watch, waiting longer after each failure.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

from beastmode.errors import BeastError
from beastmode.stores.base import Change, Subscription, Target

__all__ = ["Follower", "Watched", "Watching"]

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


class Watching:
    """One watch of `target`, opened again when it fails; call `turn()` at the sync interval.

    Changes are applied on the store's watching thread, in the store's order, then handed to
    `on_change`. Nothing raised here reaches that thread's owner: a change that cannot be applied
    makes the cache doubtful and is told to `on_doubt`. Safe between threads.
    """

    def __init__(
        self,
        store: Watched,
        cache: Follower,
        *,
        target: Target,
        timer: Callable[[], float],
        on_change: Callable[[Change], None],
        on_doubt: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._cache = cache
        self._target = target
        self._timer = timer
        self._rng = random.Random()
        self._tell_change = on_change
        self._tell_doubt = on_doubt
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._closed = False
        self._wait = _FIRST_WAIT_S
        self._retry_at = 0.0
        self.changes = 0

    @property
    def active(self) -> bool:
        """Whether changes are coming in."""
        subscription = self._subscription
        return subscription is not None and subscription.active

    def turn(self) -> None:
        """Notice a watch that failed, and open another one when it is time to."""
        with self._lock:
            if self._closed or self.active:
                return
            failed, self._subscription = self._subscription, None
            if failed is not None:
                self.doubt(failed.error or BeastError("the watch ended"))
                failed.close()
            if self._timer() < self._retry_at:
                return
            try:
                self._subscription = self._store.watch(self._target, self._on_change)
            except Exception as error:  # noqa: BLE001 - whatever it is, trying again is the answer
                self.doubt(error)
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

    def _on_change(self, change: Change) -> None:
        self.changes += 1
        try:
            self._cache.apply_change(change)
        except Exception as error:  # noqa: BLE001 - the watch must live on, the cache not stay wrong
            self.doubt(error)
        self._tell_change(change)

    def doubt(self, error: BaseException) -> None:
        """Doubt everything held because of `error`, and wait a while before the next watch."""
        self._cache.mark_unverified()
        self._retry_at = self._timer() + self._wait * self._rng.uniform(0.8, 1.2)
        self._wait = min(self._wait * 2, _LONGEST_WAIT_S)
        logger.warning("changes of the store are not followed: %s: %s", type(error).__name__, error)
        self._tell_doubt(error)
