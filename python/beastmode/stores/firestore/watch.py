"""A plain watch of one target, made from a feed: `open_watch`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from beastmode.errors import RequestError, StoreError, StoreTimeout
from beastmode.stores.base import Change, Feed, FeedListener, Subscription, Target

__all__ = ["open_watch"]

logger = logging.getLogger(__name__)


class _FeedWatch:
    """A `Subscription`, and the listener of the feed that serves it.

    What the server tells before the target is current was there before the watch.
    """

    def __init__(self, on_change: Callable[[Change], object]) -> None:
        self._on_change = on_change
        self._live = False
        self._closed = False
        self.feed: Feed | None = None
        self._settled = threading.Event()
        """Set once the target is current or refused."""
        self._refusal = ""

    def on_change(self, change: Change) -> None:
        if self._live and not self._closed:
            self._on_change(change)

    def on_current(self, _target: Target) -> None:
        self._live = True
        self._settled.set()

    def on_doubt(self, _targets: Sequence[Target] | None, why: str) -> None:
        # What was missed is told once the feed hears again; until then it is not `active`.
        if not self._live:
            self._refusal = why
            self._settled.set()

    def on_unknown(self, paths: Sequence[str], why: str) -> None:
        logger.info("a watch cannot tell what became of %s: %s", paths, why)

    def wait(self, deadline: float) -> None:
        """Return once changes are followed; StoreTimeout or StoreError if they are not."""
        if not self._settled.wait(max(0.0, deadline - time.monotonic())):
            why = (self.feed and self.feed.error) or "not all of it has been told yet"
            raise StoreTimeout(f"watch: what to watch is not followed by the deadline: {why}")
        if self._refusal:
            raise StoreError(f"watch: {self._refusal}")

    @property
    def active(self) -> bool:
        """Whether changes are coming in: False once closed, and while the store is not heard."""
        return not self._closed and self.feed is not None and self.feed.active

    @property
    def error(self) -> BaseException | None:
        """Why the store is not heard at the moment, or None."""
        return None if self._closed or self.feed is None else self.feed.error

    def close(self) -> None:
        """See `Subscription.close`; waits up to five seconds for an `on_change` that runs."""
        self._closed = True
        if self.feed is not None:
            self.feed.close()


def open_watch(
    open_feed: Callable[[FeedListener], Feed],
    target: Target,
    on_change: Callable[[Change], object],
    deadline: float,
) -> Subscription:
    """Watch `target`; returns when its changes are followed, so that none from now on is missed.

    The watch outlives failures of the store: `active` is False while it is not heard, and then it
    tells what has changed meanwhile. Raises StoreTimeout if the store does not answer by
    `deadline` (a time of `time.monotonic`), StoreError if it refuses the target.
    """
    if not isinstance(target, Target):
        raise RequestError(f"watch takes a Target, got {target!r}")
    if not callable(on_change):
        raise RequestError(f"on_change must be callable, got {on_change!r}")
    watch = _FeedWatch(on_change)
    watch.feed = open_feed(watch)
    try:
        watch.feed.add(target)
        watch.wait(deadline)
    except BaseException:
        # Closing gives the server time to end the stream; the caller's time is over.
        threading.Thread(target=watch.close, name="beastmode-listen-close", daemon=True).start()
        raise
    return watch
