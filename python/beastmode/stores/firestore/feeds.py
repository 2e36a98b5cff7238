"""The feeds and watches of one store: opened here, and ended with it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from beastmode.errors import ClosedError
from beastmode.stores.base import Change, FeedListener, Subscription, Target
from beastmode.stores.firestore.channel import Connection
from beastmode.stores.firestore.convert import Converter
from beastmode.stores.firestore.listen import SILENCE_S, TARGETS_PER_STREAM, ListenFeed
from beastmode.stores.firestore.watch import open_watch

__all__ = ["Feeds"]


class Feeds:
    """Opens feeds over `connect()`, which is asked for a connection when the first one is opened.

    The connection stays its maker's. `close()` ends every feed and watch that is still open.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        converter: Converter,
        *,
        silence_s: float = SILENCE_S,
        targets_per_stream: int = TARGETS_PER_STREAM,
    ) -> None:
        self._connect = connect
        self._converter = converter
        self._silence_s = silence_s
        self._per_stream = targets_per_stream
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[ListenFeed] = weakref.WeakSet()
        self._closed = False

    def open(self, listener: FeedListener) -> ListenFeed:
        """Return a new feed. ClosedError after `close()`."""
        with self._lock:
            if self._closed:
                raise ClosedError("open_feed: the store is closed")
            feed = ListenFeed(
                self._connect(),
                self._converter,
                listener,
                silence_s=self._silence_s,
                targets_per_stream=self._per_stream,
            )
            self._open.add(feed)
        return feed

    def watch(
        self, target: Target, on_change: Callable[[Change], object], deadline: float
    ) -> Subscription:
        """Return a watch of one target; see `watch.open_watch`."""
        return open_watch(self.open, target, on_change, deadline)

    def close(self) -> None:
        """End everything that is open. Idempotent."""
        with self._lock:
            self._closed = True
            feeds = list(self._open)
        for feed in feeds:
            feed.close()
