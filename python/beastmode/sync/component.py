"""`BeastModeRealTimeSync`: keeps a cache in step with its store, and tells subscribers."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from beastmode.errors import ClosedError, ConfigError, RequestError, StoreUnavailable
from beastmode.stores.base import Change, Query, Target
from beastmode.sync.interest import Interest, LeaseLike
from beastmode.sync.report import SyncReport
from beastmode.sync.subscribers import Subscribers, SyncSubscription
from beastmode.sync.watching import Watching

__all__ = ["BeastModeRealTimeSync"]

_UNTOLD: Final = 100
"""Errors that wait for the next tick; of more the newest."""


class BeastModeRealTimeSync:
    """Keeps `cache` in step with `store`; call `start()`, then `tick()` at the sync interval.

    `store`, `cache`
        a store that has `open_feed` is followed where the cache's interest is, if `lease` is
        given; any other store is followed as a whole, through its `watch`
    `lease`
        makes a `cache.Lease`, by which a healthy feed keeps entries fresh
    `max_documents`
        most documents that are listened to one by one; each costs one read at first
    `collections`
        collections and queries that are listened to as a whole: all their documents are read at
        first, whether anyone asks for them or not
    `interval_s`
        shortest time between two calls of one callback for one document
    `timer`
        the cache's timer
    `on_error`
        called, by `tick()` and `close()`, with the reason whenever the cache must doubt what it
        holds, and when a callback misses a change; of more than 100 at once with the newest

    Changes are applied on the store's threads at once, in the store's order, versions compared.
    Nothing raised here reaches those threads' owner. Safe between threads.
    """

    def __init__(
        self,
        store: Any,
        cache: Any,
        *,
        target: Target | None = None,
        lease: Callable[[], LeaseLike] | None = None,
        max_documents: int = 10_000,
        collections: Iterable[str | Query] = (),
        interval_s: float = 0.1,
        timer: Callable[[], float] = time.monotonic,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._on_error = on_error
        self._untold: deque[BaseException] = deque(maxlen=_UNTOLD)
        """What `on_error` is called with at the next tick: not where it came up, for there the
        feed may be locked, and the hook may do anything, even close it."""
        self._closed = False
        self._started = False
        self._failures = self._doubts = 0
        self._last_error = ""
        self._subscribers = Subscribers(
            interval_s=interval_s, on_end=self._ended, on_error=self._untold.append
        )
        open_feed = None if lease is None else getattr(store, "open_feed", None)
        self._interest: Interest | None = None
        self._watching: Watching | None = None
        if open_feed is not None and lease is not None:
            if target is not None:
                raise ConfigError("target is for stores that are followed as a whole")
            self._interest = Interest(
                open_feed,
                cache,
                lease=lease,
                max_documents=max_documents,
                timer=timer,
                clock=time.monotonic,
                on_change=self._subscribers.offer,
                on_current=self._subscribers.started,
                on_doubt=self._on_doubt,
            )
            for one in collections:
                self._interest.want(_whole(one))
        else:
            self._watching = Watching(
                store,
                cache,
                target=Target() if target is None else target,
                timer=timer,
                on_change=self._subscribers.offer,
                on_doubt=self._doubted,
            )

    @property
    def active(self) -> bool:
        """Whether changes are coming in, of all that is followed."""
        following = self._interest or self._watching
        return following is not None and following.active

    @property
    def follows_everything(self) -> bool:
        """Whether every change of the store is seen at the moment, whatever it concerns."""
        return self._watching is not None and self._watching.active

    def start(self) -> None:
        """Begin to follow; if that fails, `tick()` goes on trying. ClosedError after `close()`."""
        if self._closed:
            raise ClosedError("BeastModeRealTimeSync was used after close()")
        self._started = True
        if self._interest is not None:
            self._interest.start()
        self.tick()

    def tick(self) -> None:
        """Follow what the cache holds by now; open again what has failed; call `on_error`."""
        if self._closed or not self._started:
            return
        try:
            if self._interest is not None:
                self._interest.turn()
            elif self._watching is not None:
                self._watching.turn()
        finally:
            self._tell_errors()

    def configure(self, *, interval_s: float) -> None:
        """Change the shortest time between two calls of one callback for one document."""
        self._subscribers.set_interval(interval_s)

    def subscribe(
        self,
        what: str | Query | Target,
        callback: Callable[[Change], object],
        *,
        priority: int = 0,
    ) -> SyncSubscription:
        """Call `callback` with changes of a document, a collection or a query from now on.

        `what` is the path of a document or of a collection, a Query or a Target. Callbacks run
        one at a time in one thread of their own, those with the highest `priority` first. A
        change of a quiet document is told at once; further ones within the sync interval come
        as one, the newest state. A callback that raises is logged and counted; one that takes
        long delays the others, but nothing else. RequestError for bad arguments.

        A document that leaves a query is told with its new state if the store tells that; where
        it does not, nothing is told.
        """
        if self._closed:
            raise ClosedError("BeastModeRealTimeSync was used after close()")
        target = _target(what)
        if self._interest is not None and target == Target():
            raise RequestError("this store cannot be followed as a whole; name a collection")
        one = self._subscribers.add(target, callback, priority)
        try:
            if self._interest is None or self._interest.want(target):
                self._subscribers.started(target)
        except BaseException:
            one.close()
            raise
        return one

    def close(self) -> None:
        """End it all; callbacks are not called any more. Idempotent."""
        self._closed = True
        if self._interest is not None:
            self._interest.close()
        if self._watching is not None:
            self._watching.close()
        self._subscribers.close()
        self._tell_errors()

    def get_stats(self) -> SyncReport:
        """Return the counters."""
        documents = wholes = current = forgotten = not_followed = changes = 0
        last_error = self._last_error
        if self._interest is not None:
            documents, wholes, current = self._interest.counts()
            forgotten, not_followed = self._interest.forgotten, self._interest.not_followed
            changes = self._interest.changes
            last_error = self._interest.error or last_error
        elif self._watching is not None:
            changes = self._watching.changes
        calls, errors, merged, missed = self._subscribers.counts()
        return SyncReport(
            active=self.active,
            changes=changes,
            failures=self._failures,
            last_error=last_error,
            doubts=self._doubts,
            documents=documents,
            collections=wholes,
            current=current,
            not_followed=not_followed,
            forgotten=forgotten,
            callbacks=calls,
            callback_errors=errors,
            callbacks_merged=merged,
            callbacks_missed=missed,
        )

    def _ended(self, one: SyncSubscription) -> None:
        if self._interest is not None and not self._closed:
            self._interest.unwant(one.target)

    def _on_doubt(self, _why: str) -> None:
        self._doubts += 1
        # A server that tells something anew is no failure; then there is no error.
        if self._interest is not None and (error := self._interest.error):
            self._doubted(StoreUnavailable(error))

    def _doubted(self, error: BaseException) -> None:
        self._failures += 1
        self._last_error = f"{type(error).__name__}: {error}"
        self._untold.append(error)

    def _tell_errors(self) -> None:
        """Call `on_error` with what has come up; no lock is held."""
        while self._untold:
            with contextlib.suppress(Exception):  # the hook is the user's; sync must go on
                error = self._untold.popleft()
                if self._on_error is not None:
                    self._on_error(error)


def _whole(one: str | Query) -> Target:
    return Target(query=one) if isinstance(one, Query) else Target(collection=one)


def _target(what: object) -> Target:
    if isinstance(what, Target):
        return what
    if isinstance(what, Query):
        return Target(query=what)
    if isinstance(what, str):
        is_document = what.count("/") % 2
        return Target(document=what) if is_document else Target(collection=what)
    raise RequestError(f"subscribe takes a path, a Query or a Target, got {what!r}")
