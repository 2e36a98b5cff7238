"""The cache's state machine: what is held, what is being loaded, what is being written.

No I/O happens here. Everything but the engine's own look-ups is done under one lock, which is
never held while the store, a hook or a waiter runs. The sync and the async driver of
`readthrough` ask `begin` what to do for each read, load what it tells them to load, and hand the
result to `land` or `fail`.

The rules, per path
    1. A flight carries a token. What it brings is installed only while the token is live, no
       write of the path is pending, and its version is not below the version held.
    2. A write, a change, an invalidation, doubt, `set` and `clear` kill the token: readers that
       already wait get what the flight brings (they began before), later readers start a new one.
    3. The version held under a key never goes back; a reader whose load brought less than what
       is held gets what is held.
    4. While a write is pending nothing that was read from the store is installed. A change heard
       meanwhile is remembered by version; if the write's own document is not newer, the entry is
       dropped when the write finishes, so that the change is loaded.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Final

from beastcore import Cache
from beastmode.cache.flights import AbandonedError, Flight, is_loading
from beastmode.cache.holdings import Entry, Holdings, is_under
from beastmode.cache.report import Answer, CacheReport
from beastmode.cache.rules import Key, Policy, RuleBook
from beastmode.errors import CacheError, ClosedError, ForkedError, StoreTimeout, StoreUnavailable
from beastmode.stores.documents import Document

__all__ = ["MAX_REFRESHES", "CacheState", "Read"]

MAX_REFRESHES: Final = 256
"""Most background refreshes in the air at a time; further ones wait for the next read."""


class Read:
    """One key that a reader asks for, on its way to an answer."""

    __slots__ = ("abandoned", "answer", "flight", "key", "led", "path", "policy")

    def __init__(self, key: Key, path: str, policy: Policy) -> None:
        self.key = key
        self.path = path
        self.policy = policy
        self.answer: Answer | None = None
        self.flight: Flight | None = None
        self.led = False
        self.abandoned = 0


class _Pending:
    """Writes of one path that are not acknowledged, and the newest change heard meanwhile."""

    __slots__ = ("count", "foreign")

    def __init__(self) -> None:
        self.count = 0
        self.foreign: int | None = None


class _Guard:
    """The lock of a state, entered only while the cache can be used."""

    __slots__ = ("_acquire", "_release", "_state")

    def __init__(self, state: CacheState) -> None:
        self._state = weakref.proxy(state)
        self._acquire = state.lock.acquire
        self._release = state.lock.release

    def __enter__(self) -> None:
        self._state.check_open()  # before the lock: in a forked child nobody may ever release it
        self._acquire()
        if self._state.closed:
            self._release()
            self._state.check_open()

    def __exit__(self, *_: object) -> None:
        self._release()


class CacheState:
    """Entries, flights and pending writes of one cache, under one lock."""

    def __init__(
        self, engine: Cache[Key, Entry], book: RuleBook, *, revalidate_s: float, jitter: float
    ) -> None:
        self.engine = engine
        self.held = Holdings(engine, book, jitter=jitter)
        self.book = book
        self.revalidate_s = revalidate_s
        # Reentrant: a finalizer that the garbage collector runs in here may call the cache.
        self.lock = threading.RLock()
        self.closed = False
        self._pid = os.getpid()
        self._open = _Guard(self)
        self.flights: dict[Key, Flight] = {}
        self.pending: dict[str, _Pending] = {}
        self.refreshing = 0
        self.overdue_lookups = self.negative_hits = 0  # kept by readers without the lock
        self.stale_served = self.loads = self.load_errors = self.coalesced = 0
        self.discarded = self.refreshes = self.refreshes_skipped = self.changes_applied = 0
        self.abandoned = self.background_errors = self.hook_errors = 0

    def check_open(self) -> None:
        """Raise ClosedError, in a child process ForkedError, if the cache cannot be used."""
        if self.closed:
            raise ClosedError("the cache is closed")
        if os.getpid() != self._pid:
            raise ForkedError("the cache was made in the parent process; make one after the fork")

    # -- reads ---------------------------------------------------------------------------------

    def begin(
        self,
        reads: Iterable[Read],
        *,
        now: float,
        deadline: float,
        background_deadline: float,
        mine: asyncio.AbstractEventLoop | None,
        leader: asyncio.AbstractEventLoop | None,
    ) -> tuple[list[Flight], list[Flight]]:
        """Give each read its answer or its flight; return the flights that the caller must load.

        The first list are flights that the caller leads, the second ones background refreshes.
        `mine` is the loop that runs in this thread, `leader` the one that would run the loads.
        Raises CacheError, before anything changes, if this context is already inside a load of
        one of the keys: waiting for it would never end. O(len(reads)).
        """
        reads = list(reads)
        for read in reads:
            if is_loading(self, read.key):
                raise CacheError(
                    f"the load of {read.path!r} asks the cache for {read.path!r} itself"
                )
        led: list[Flight] = []
        refresh: list[Flight] = []
        dead: list[Flight] = []
        with self._open:
            for read in reads:
                entry = self.engine.peek(read.key)
                if entry is not None:
                    overdue = now - entry.fresh_until
                    if overdue < 0:
                        read.answer = Answer(entry.document, "hit")
                        continue
                    if overdue < min(self.revalidate_s, entry.policy.max_stale):
                        read.answer = Answer(entry.document, "stale")
                        self.stale_served += 1
                        if self._may_refresh(read.key, dead):
                            refresh.append(
                                self._launch(
                                    read, now, background_deadline, leader, background=True
                                )
                            )
                        continue
                flight = self._joinable(read.key, mine, dead)
                read.led = flight is None
                if flight is None:
                    flight = self._launch(read, now, deadline, leader)
                    led.append(flight)
                else:
                    self.coalesced += 1
                read.flight = flight
        self._abandon_dead(dead)
        return led, refresh

    def settle(
        self, read: Read, outcome: Document | Exception, *, now: float, limit: float
    ) -> bool:
        """Turn the outcome of a read's flight into its answer; False: the read must begin again.

        Raises `outcome` if it is an error for which there is nothing to serve: an unreachable or
        late store is answered from an entry that is at most `max_stale` seconds overdue.
        """
        if isinstance(outcome, Document):
            read.answer = Answer(outcome, "store")
            return True
        flight = read.flight
        may_retry = not read.led and time.monotonic() < limit
        if isinstance(outcome, AbandonedError):
            # Twice at most, so that a loader that always cancels itself does not go on for ever.
            read.abandoned += 1
            if may_retry and read.abandoned < 2:
                return False
            raise outcome
        if (
            may_retry
            and isinstance(outcome, StoreTimeout)
            and flight is not None
            and flight.deadline < limit
        ):
            return False  # the leader's deadline was shorter than this reader's
        if isinstance(outcome, (StoreUnavailable, StoreTimeout)):
            entry = self.engine.peek(read.key)
            if entry is not None and now < entry.fresh_until + entry.policy.max_stale:
                fresh = now < entry.fresh_until
                read.answer = Answer(entry.document, "hit" if fresh else "stale")
                if not fresh:
                    with self.lock:
                        self.stale_served += 1
                return True
        raise outcome

    def land(self, flight: Flight, document: Document) -> None:
        """Install what a flight brought, if the rules allow it, and hand it to its waiters."""
        answer = document
        with self.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            newer = self.held.newer(flight.key, document.version)
            if newer is not None:
                answer = newer
                self.discarded += 1
            elif flight.policy.cacheable:
                if self._may_install(flight):
                    self.held.install(
                        flight.key, flight.path, flight.policy, document, flight.started
                    )
                    # A finalizer that ran inside the engine may have invalidated the path.
                    if not self._may_install(flight):
                        self.engine.pop(flight.key, None)
                else:
                    self.discarded += 1
        flight.resolve(answer)

    def fail(self, flight: Flight, error: Exception) -> None:
        """Hand `error` to a flight's waiters; nothing is cached."""
        with self.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            self.load_errors += 1
            self.background_errors += flight.background
        flight.resolve(error)

    def abandon(self, flight: Flight, why: str) -> None:
        """Wake a flight's waiters so that they begin again; it will bring nothing."""
        with self.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            self.abandoned += 1
        flight.resolve(AbandonedError(f"the load of {flight.path!r} {why}"))

    def _may_install(self, flight: Flight) -> bool:
        return flight.live and flight.path not in self.pending and not self.closed

    def _joinable(
        self, key: Key, mine: asyncio.AbstractEventLoop | None, dead: list[Flight]
    ) -> Flight | None:
        flight = self.flights.get(key)
        if flight is None or not flight.is_stalled(mine):
            return flight
        self._kill(flight)
        # Blocking the loop that runs it is the caller's problem alone: others still get it.
        if flight.is_stalled(None):
            dead.append(flight)
        return None

    def _may_refresh(self, key: Key, dead: list[Flight]) -> bool:
        if self._joinable(key, None, dead) is not None:
            return False
        if self.refreshing >= MAX_REFRESHES:
            self._reap(dead)
        if self.refreshing >= MAX_REFRESHES:
            self.refreshes_skipped += 1
            return False
        return True

    def _reap(self, dead: list[Flight]) -> None:
        """Take out flights that will never end, such as those of a closed event loop."""
        for flight in [flight for flight in self.flights.values() if flight.is_stalled(None)]:
            self._kill(flight)
            dead.append(flight)

    def _abandon_dead(self, dead: Iterable[Flight]) -> None:
        for flight in dead:
            self.abandon(flight, "came to a halt")

    def reap(self) -> None:
        """Give up flights that will never end and wake whoever waits for them."""
        dead: list[Flight] = []
        with self.lock:
            self._reap(dead)
        self._abandon_dead(dead)

    def _launch(
        self,
        read: Read,
        now: float,
        deadline: float,
        loop: asyncio.AbstractEventLoop | None,
        *,
        background: bool = False,
    ) -> Flight:
        flight = Flight(
            read.key,
            read.path,
            read.policy,
            started=now,
            deadline=deadline,
            loop=loop,
            background=background,
        )
        self.flights[read.key] = flight
        self.loads += 1
        if background:
            self.refreshing += 1
            self.refreshes += 1
        return flight

    def _forget(self, flight: Flight) -> None:
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]
            self.refreshing -= flight.background

    def _kill(self, flight: Flight) -> None:
        flight.live = False
        self._forget(flight)

    def _kill_path(self, path: str) -> None:
        if self.book.shares_keys:
            flight = self.flights.get(path)
            if flight is not None:
                self._kill(flight)
            return
        for flight in [flight for flight in self.flights.values() if flight.path == path]:
            self._kill(flight)

    def _kill_under(self, prefix: str | None) -> None:
        for flight in list(self.flights.values()):
            if prefix is None or is_under(flight.path, prefix):
                self._kill(flight)

    # -- entries -------------------------------------------------------------------------------

    def set(self, key: Key, path: str, policy: Policy, document: Document, now: float) -> bool:
        """Install a document known from the store; False if it may not be or is outdated."""
        with self._open:
            if not policy.cacheable or path in self.pending:
                return False
            if self.held.newer(key, document.version) is not None:
                return False
            self._kill_path(path)
            self.held.install(key, path, policy, document, now)
            return key in self.engine

    def invalidate(self, path: str) -> int:
        """Drop a path's entries and kill its loads; the number of entries dropped."""
        with self._open:
            self._kill_path(path)
            return self.held.drop(path)

    def invalidate_under(self, prefix: str) -> int:
        """As `invalidate` for everything under `prefix`; scans all entries, without the lock."""
        with self._open:
            self._kill_under(prefix)
        return self.held.drop_under(prefix)

    def doubt(self, prefix: str | None, now: float) -> None:
        """Make entries overdue from `now` on and kill loads; scans all entries, without the lock.

        Loads are killed because one that began before a change was missed may not show it.
        """
        with self._open:
            self._kill_under(prefix)
        self.held.age(prefix, now)

    def clear(self) -> None:
        """Drop every entry and kill every load; pending writes stay counted."""
        with self._open:
            self._kill_under(None)
            self.engine.clear()

    def set_ttl(self, ttl: float) -> None:
        """Change the inherited time to live; entries are never fresh for longer than it says."""
        with self.lock:
            self.book.set_ttl(ttl)
        self.held.shorten()

    # -- writes and changes --------------------------------------------------------------------

    def write_started(self, path: str) -> None:
        """Count a write of `path` as pending and kill its loads."""
        with self._open:
            pending = self.pending.get(path)
            if pending is None:
                pending = self.pending[path] = _Pending()
            pending.count += 1
            self._kill_path(path)

    def write_finished(
        self, key: Key | None, path: str, policy: Policy, document: Document | None, now: float
    ) -> None:
        """Count a write as done; `document` is the path's verified state after it, if known.

        `key` is None where the path is kept per user: then nobody's entry is known to be right.
        """
        with self._open:
            pending = self.pending.get(path)
            if pending is None:
                raise CacheError(f"no write of {path!r} was started, so none can finish")
            pending.count -= 1
            if not pending.count:
                del self.pending[path]
            self._kill_path(path)
            foreign = pending.foreign
            if (
                key is None
                or document is None
                or not policy.cacheable
                or (foreign is not None and foreign > document.version)
            ):
                self.held.drop(path)
            elif (
                # With further writes pending, a held base must take this one up, because
                # nothing else shows it any more; but no new key is installed.
                (not pending.count or key in self.engine)
                and self.held.newer(key, document.version) is None
            ):
                self.held.install(key, path, policy, document, now)

    def apply_change(self, path: str, document: Document, now: float) -> None:
        """Take notice of a change: replace an older entry, never install a new key."""
        with self._open:
            self._kill_path(path)
            pending = self.pending.get(path)
            if pending is not None:
                if pending.foreign is None or pending.foreign < document.version:
                    pending.foreign = document.version
                return
            for key in self.held.keys_of(path):
                entry = self.engine.peek(key)
                if entry is None or entry.document.version >= document.version:
                    continue
                self.changes_applied += 1
                if isinstance(key, tuple):  # what this user may see of it is not known
                    self.engine.pop(key, None)
                else:
                    self.held.renew(key, entry, document, now)

    # -- ends ----------------------------------------------------------------------------------

    def close(self) -> bool:
        """Refuse everything from now on and wake all waiters; False if it was closed before."""
        with self.lock:
            if self.closed:
                return False
            self.closed = True
            flights = list(self.flights.values())
            self._kill_under(None)
            self.pending.clear()
        for flight in flights:
            self.fail(flight, ClosedError("the cache was closed during the load"))
        self.engine.clear()
        return True

    def report(self) -> CacheReport:
        """Return all counters at one moment."""
        with self.lock:
            return CacheReport(
                engine=self.engine.stats(),
                overdue_lookups=self.overdue_lookups,
                negative_hits=self.negative_hits,
                stale_served=self.stale_served,
                loads=self.loads,
                load_errors=self.load_errors,
                coalesced=self.coalesced,
                discarded=self.discarded,
                abandoned=self.abandoned,
                refreshes=self.refreshes,
                refreshes_skipped=self.refreshes_skipped,
                background_errors=self.background_errors,
                hook_errors=self.hook_errors,
                changes_applied=self.changes_applied,
                in_flight=len(self.flights),
                pending_writes=len(self.pending),
            )
