"""Users' callbacks: told of changes by a thread of their own, so that they can stop nothing else.

`CallbackQueue` decides what is told when; it has no thread and no clock of its own. A change of a
quiet document is told at once; a document that changes again within the interval is told once it
is over, with its newest state. Of what is due the highest priority is told first. What waits is
bounded: a change for which there is no room is counted as missed and reported.
"""

from __future__ import annotations

import contextlib
import heapq
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

from beastmode.errors import BufferFullError, ClosedError, RequestError
from beastmode.stores.base import Change, Target
from beastmode.stores.documents import collection_of
from beastmode.stores.matching import Matcher

__all__ = ["CallbackQueue", "Subscribers", "SyncSubscription"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
_JOIN_S: Final = 1.0


class SyncSubscription:
    """One callback and what it wants to hear of. `close()` ends it."""

    def __init__(
        self,
        target: Target,
        callback: Callable[[Change], object],
        priority: int,
        on_close: Callable[[SyncSubscription], None],
    ) -> None:
        self.target = target
        self.priority = priority
        self.live = False
        """Whether changes are told: not before all that was there before has been heard."""
        self.calls = self.errors = self.merged = self.missed = 0
        self._callback = callback
        self._on_close = on_close
        self._closed = False
        self._matcher = None if target.query is None else Matcher(target.query)
        self._inside: set[str] = set()

    @property
    def active(self) -> bool:
        """Whether it hears of changes: False before the first are followed, and once closed."""
        return self.live and not self._closed

    def wants(self, change: Change) -> bool:
        """Return whether a change in its target's part of the store concerns it.

        Of a query: when the document is in it, or was when it was heard of last.
        """
        if self._matcher is None:
            return True
        data = change.document.data
        if data is not None and self._matcher(data):
            self._inside.add(change.path)
            return True
        if change.path in self._inside:
            self._inside.discard(change.path)
            return True
        return False

    def call(self, change: Change) -> None:
        """Call the callback; what it raises is logged and counted."""
        if self._closed:
            return
        self.calls += 1
        try:
            self._callback(change)
        except Exception:
            self.errors += 1
            if self.errors <= 10 or not self.errors % 100:
                logger.exception("a callback raised for %s (error %d)", change.path, self.errors)

    def close(self) -> None:
        """End it: its callback is not called any more, though a call may be running. Idempotent."""
        if not self._closed:
            self._closed = True
            self._on_close(self)


_Key = tuple[SyncSubscription, str]


class CallbackQueue:
    """What waits to be told, and to whom; see the module. The caller holds a lock."""

    def __init__(self, interval_s: float, most: int = MAX_WAITING) -> None:
        self.interval_s = interval_s
        self._most = most
        self._waiting: dict[_Key, Change] = {}
        self._due: list[tuple[int, int, _Key]] = []
        self._later: list[tuple[float, int, _Key]] = []
        self._rest_until: dict[_Key, float] = {}
        self._rests: deque[tuple[float, _Key]] = deque()
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, one: SyncSubscription, change: Change, now: float) -> bool:
        """Let `change` be told to `one` when it is time to; False if there is no room. O(log n)."""
        key = (one, change.path)
        if key in self._waiting:
            # Targets that overlap may tell a change twice, in another order.
            waiting = self._waiting[key]
            if waiting.inferred or waiting.document.version <= change.document.version:
                self._waiting[key] = change
            one.merged += 1
            return True
        if len(self._waiting) >= self._most:
            one.missed += 1
            return False
        self._waiting[key] = change
        self._number += 1
        rest_until = self._rest_until.get(key, -inf)
        if rest_until > now:
            heapq.heappush(self._later, (rest_until, self._number, key))
        else:
            heapq.heappush(self._due, (-one.priority, self._number, key))
        return True

    def take(self, now: float) -> tuple[SyncSubscription, Change] | float:
        """Return what to tell now, or the time at which something will be due (inf: nothing)."""
        while self._rests and self._rests[0][0] <= now:
            until, key = self._rests.popleft()
            if self._rest_until.get(key) == until:
                del self._rest_until[key]
        while self._later and self._later[0][0] <= now:
            _, number, key = heapq.heappop(self._later)
            heapq.heappush(self._due, (-key[0].priority, number, key))
        while self._due:
            _, _, key = heapq.heappop(self._due)
            change = self._waiting.pop(key, None)
            if change is not None:
                until = now + self.interval_s
                self._rest_until[key] = until
                self._rests.append((until, key))
                return key[0], change
        return self._later[0][0] if self._later else inf

    def forget(self, one: SyncSubscription) -> None:
        """Drop what waits for `one`; O(n)."""
        for key in [key for key in self._waiting if key[0] is one]:
            del self._waiting[key]


class Subscribers:
    """All subscriptions, and the thread that calls them. Safe between threads.

    `on_end` is called with a subscription that was closed.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        on_end: Callable[[SyncSubscription], None],
        on_error: Callable[[BaseException], object] | None,
        timer: Callable[[], float] = time.monotonic,
        most: int = MAX_WAITING,
    ) -> None:
        self._queue = CallbackQueue(interval_s, most)
        self._on_end = on_end
        self._on_error = on_error
        self._timer = timer
        self._wake = threading.Condition(threading.Lock())
        self._by_place: dict[str, list[SyncSubscription]] = {}
        """By path of a document or a collection, "" for everything."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._calls = self._errors = self._merged = self._missed = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_place.values()))

    def add(
        self, target: Target, callback: Callable[[Change], object], priority: int
    ) -> SyncSubscription:
        """Subscribe; RequestError for bad arguments, ClosedError after `close()`."""
        given: object = callback
        if not callable(given) or inspect.iscoroutinefunction(given):
            raise RequestError(f"callback must be a function, not a coroutine's, got {callback!r}")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise RequestError(f"priority must be an int (the highest first), got {priority!r}")
        one = SyncSubscription(target, callback, priority, self._end)
        with self._wake:
            if self._closed:
                raise ClosedError("real-time sync is closed")
            self._by_place.setdefault(_place(target), []).append(one)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="beastmode-sync-callbacks", daemon=True
                )
                self._thread.start()
        return one

    def set_interval(self, interval_s: float) -> None:
        """Change the shortest time between two calls for one document."""
        with self._wake:
            self._queue.interval_s = interval_s

    def offer(self, change: Change) -> None:
        """Let those who want to know be told of `change`; never waits for them. O(log waiting)."""
        if not self._by_place:
            return
        missed = 0
        path = change.path
        with self._wake:
            now = self._timer()
            for place in (path, collection_of(path), ""):
                for one in self._by_place.get(place, ()):
                    if one.active and one.wants(change):
                        missed += not self._queue.offer(one, change, now)
            self._wake.notify()
        if missed and self._on_error is not None:
            with contextlib.suppress(Exception):  # the hook is the user's
                self._on_error(
                    BufferFullError(f"{len(self._queue)} changes wait for callbacks; missed {path}")
                )

    def started(self, target: Target) -> None:
        """Say that `target` is followed from now on."""
        with self._wake:
            for one in self._by_place.get(_place(target), ()):
                if one.target.key == target.key:
                    one.live = True

    def counts(self) -> tuple[int, int, int, int]:
        """Return calls, errors, merged and missed changes of all, those that ended included."""
        with self._wake:
            held = [one for held in self._by_place.values() for one in held]
            return (
                self._calls + sum(one.calls for one in held),
                self._errors + sum(one.errors for one in held),
                self._merged + sum(one.merged for one in held),
                self._missed + sum(one.missed for one in held),
            )

    def close(self) -> None:
        """End all; a callback that runs is waited for one second at most. Idempotent."""
        with self._wake:
            self._closed = True
            held = [one for held in self._by_place.values() for one in held]
            self._wake.notify()
        for one in held:
            one.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)
            if thread.is_alive():
                logger.warning("a callback still runs after real-time sync was closed")

    def _end(self, one: SyncSubscription) -> None:
        with self._wake:
            place = _place(one.target)
            held = self._by_place.get(place, [])
            if one in held:
                held.remove(one)
                if not held:
                    del self._by_place[place]
                self._calls += one.calls
                self._errors += one.errors
                self._merged += one.merged
                self._missed += one.missed
            self._queue.forget(one)
        self._on_end(one)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._closed:
                    return
                found = self._queue.take(self._timer())
                if isinstance(found, float):
                    self._wake.wait(None if found == inf else max(0.0, found - self._timer()))
                    continue
            one, change = found
            one.call(change)


def _place(target: Target) -> str:
    query = target.as_query()
    return query.collection if query is not None else (target.document or "")
