"""The table of loads in the air: who leads, who joins, and what may be installed at the end.

No I/O happens here, and everything is done under the gate's lock. The drivers in `loader` ask
`begin` what to do for each read, load what it tells them to load, and hand the result to `land`,
`fail` or `abandon`. The rules by which a load is overtaken are told in `state`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Container, Hashable, Iterable
from typing import Final

from beastmode.cache.flights import AbandonedError, Flight, is_loading
from beastmode.cache.gate import Gate
from beastmode.cache.holdings import DOUBTED, Entry, Holdings, is_unclear, is_under
from beastmode.cache.lease import ReloadLimit
from beastmode.cache.report import Answer
from beastmode.cache.rules import Key, Policy
from beastmode.errors import CacheError, ClosedError, StoreTimeout, StoreUnavailable
from beastmode.stores.documents import Document

__all__ = ["MAX_REFRESHES", "DocumentFlight", "FlightTable", "Read"]

MAX_REFRESHES: Final = 256
"""Most background refreshes in the air at a time; further ones wait for the next read."""


class DocumentFlight(Flight[Document]):
    """One load of a document."""

    __slots__ = ("unclear",)

    unclear: bool
    """(Set as it lands) It brought what may be older or newer than what others have seen."""


class Read:
    """One key that a reader asks for, on its way to an answer."""

    __slots__ = ("abandoned", "answer", "flight", "key", "late", "led", "path", "policy")

    def __init__(self, key: Key, path: str, policy: Policy) -> None:
        self.key = key
        self.path = path
        self.policy = policy
        self.answer: Answer | None = None
        self.flight: DocumentFlight | None = None
        self.led = False
        self.late = False
        """It joined a flight after others had seen something of the document."""
        self.abandoned = 0


class FlightTable:
    """The flights of one cache by key.

    `blocked` are paths for which nothing may be installed, `seen` is told of each document that
    a load brought, `reloads` bounds how many doubted documents are loaded while they may be
    served stale.
    """

    def __init__(
        self,
        gate: Gate,
        held: Holdings,
        *,
        blocked: Container[str],
        seen: Callable[[Document], object],
        reloads: ReloadLimit,
        revalidate_s: float,
    ) -> None:
        self._gate = gate
        self._held = held
        self._blocked = blocked
        self._seen = seen
        self._reloads = reloads
        self._revalidate_s = revalidate_s
        self._flights: dict[Hashable, DocumentFlight] = {}
        self._refreshing = 0
        self.stale_served = self.loads = self.load_errors = self.coalesced = 0
        self.discarded = self.abandoned = self.refreshes = self.refreshes_skipped = 0
        self.background_errors = self.reloads_limited = 0

    def __len__(self) -> int:
        return len(self._flights)

    def begin(
        self,
        reads: Iterable[Read],
        *,
        now: float,
        deadline: float,
        background_deadline: float,
        mine: asyncio.AbstractEventLoop | None,
        leader: asyncio.AbstractEventLoop | None,
    ) -> tuple[list[DocumentFlight], list[DocumentFlight]]:
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
        led: list[DocumentFlight] = []
        refresh: list[DocumentFlight] = []
        dead: list[DocumentFlight] = []
        with self._gate:
            for read in reads:
                entry = self._held.engine.peek(read.key)
                if entry is not None:
                    if entry.is_fresh(now):
                        read.answer = Answer(entry.document, "hit")
                        continue
                    overdue = now - entry.fresh_until
                    if overdue < min(self._revalidate_s, entry.policy.max_stale):
                        read.answer = Answer(entry.document, "stale")
                        self.stale_served += 1
                        if self._may_refresh(read.key, entry, now, dead):
                            refresh.append(
                                self._launch(
                                    read, now, background_deadline, leader, background=True
                                )
                            )
                        continue
                flight = self._joinable(read.key, mine, dead)
                if (
                    flight is None
                    and entry is not None
                    and entry.flags & DOUBTED
                    and now - entry.fresh_until < entry.policy.max_stale
                    and not self._reloads.take(now)
                ):
                    read.answer = Answer(entry.document, "stale")
                    self.stale_served += 1
                    self.reloads_limited += 1
                    continue
                read.led = flight is None
                if flight is None:
                    flight = self._launch(read, now, deadline, leader)
                    led.append(flight)
                else:
                    self.coalesced += 1
                read.late = flight.known is not None
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
        flight = read.flight
        may_retry = not read.led and time.monotonic() < limit
        if isinstance(outcome, Document):
            if read.late and flight is not None and flight.unclear and may_retry:
                return False
            read.answer = Answer(outcome, "store")
            return True
        if isinstance(outcome, AbandonedError):
            self._gate.check()
            # Twice at most, so that a loader that always cancels itself does not go on for ever.
            read.abandoned += 1
            if may_retry and read.abandoned < 2:
                return False
        elif (
            may_retry
            and isinstance(outcome, StoreTimeout)
            and flight is not None
            and flight.deadline < limit
        ):
            return False  # the leader's deadline was shorter than this reader's
        if isinstance(outcome, (StoreUnavailable, StoreTimeout)):
            entry = self._held.engine.peek(read.key)
            if entry is not None and now < entry.fresh_until + entry.policy.max_stale:
                with self._gate.lock:
                    fresh = entry.is_fresh(now)
                    self.stale_served += not fresh
                read.answer = Answer(entry.document, "hit" if fresh else "stale")
                return True
        raise outcome

    def land(self, flight: DocumentFlight, document: Document) -> None:
        """Install what a flight brought, if the rules allow it, and hand it to its waiters."""
        with self._gate.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            known = flight.known
            flight.unclear = known is not None and is_unclear(known, document)
            if flight.unclear:
                flight.live = False
            else:
                document = flight.newest(document)
            newer = self._held.newer(flight.key, document.version)
            if newer is not None and not flight.live and self._held.is_guess(flight.key):
                # Made of a write that came after the load began. It may lack what others wrote,
                # which the load has seen; what is pending or was since is the writer's to add.
                newer = None
            if newer is not None and not (flight.live and is_unclear(newer, document)):
                document = newer
                self.discarded += 1
            elif newer is not None:
                # A tombstone, but the look at the document began later: load it once more.
                self._held.outdate(document)
                self.discarded += 1
            else:
                self._seen(document)
                if flight.policy.cacheable and self._may_install(flight):
                    self._held.install(
                        flight.key, flight.path, flight.policy, document, flight.started
                    )
                    # A finalizer that ran inside the engine may have invalidated the path.
                    if not self._may_install(flight):
                        self._held.engine.pop(flight.key, None)
                else:
                    self.discarded += flight.policy.cacheable
                    # A lease may make what is held fresh again, and that is older; so may be
                    # what the flight brings that was begun when this one was overtaken.
                    self._held.outdate(document)
                    successor = self._flights.get(flight.key)
                    if successor is not None:
                        successor.learn(document)
        flight.resolve(document)

    def learn(self, document: Document) -> None:
        """Let nothing older than `document` be seen, which somebody has got past the table.

        O(1), O(flights) where kept per user. The caller holds the lock.
        """
        path = document.path
        self._held.outdate(document)
        if self._held.shares_keys:
            if (flight := self._flights.get(path)) is not None:
                flight.learn(document)
            return
        for flight in [flight for flight in self._flights.values() if flight.path == path]:
            if isinstance(flight.key, tuple):  # what its user may see is not known
                self._kill(flight)
            else:
                flight.learn(document)

    def fail(self, flight: DocumentFlight, error: Exception) -> None:
        """Hand `error` to a flight's waiters; nothing is cached."""
        with self._gate.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            self.load_errors += 1
            self.background_errors += flight.background
        flight.resolve(error)

    def abandon(self, flight: DocumentFlight, why: str) -> None:
        """Wake a flight's waiters so that they begin again; it will bring nothing."""
        with self._gate.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            self.abandoned += 1
        flight.resolve(AbandonedError(f"the load of {flight.path!r} {why}"))

    def _may_install(self, flight: DocumentFlight) -> bool:
        return flight.live and flight.path not in self._blocked and not self._gate.closed

    def _joinable(
        self, key: Key, mine: asyncio.AbstractEventLoop | None, dead: list[DocumentFlight]
    ) -> DocumentFlight | None:
        flight = self._flights.get(key)
        if flight is None or not flight.is_stalled(mine):
            return flight
        self._kill(flight)
        # Blocking the loop that runs it is the caller's problem alone: others still get it.
        if flight.is_stalled(None):
            dead.append(flight)
        return None

    def _may_refresh(self, key: Key, entry: Entry, now: float, dead: list[DocumentFlight]) -> bool:
        if self._joinable(key, None, dead) is not None:
            return False
        if self._refreshing >= MAX_REFRESHES:
            self._reap(dead)
        if self._refreshing >= MAX_REFRESHES:
            self.refreshes_skipped += 1
            return False
        if entry.flags & DOUBTED and not self._reloads.take(now):
            self.reloads_limited += 1
            return False
        return True

    def _reap(self, dead: list[DocumentFlight]) -> None:
        """Take out flights that will never end, such as those of a closed event loop."""
        for flight in [flight for flight in self._flights.values() if flight.is_dead()]:
            self._kill(flight)
            dead.append(flight)

    def _abandon_dead(self, dead: Iterable[DocumentFlight]) -> None:
        for flight in dead:
            self.abandon(flight, "came to a halt")

    def reap(self) -> None:
        """Give up flights that will never end and wake whoever waits for them."""
        dead: list[DocumentFlight] = []
        with self._gate.lock:
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
    ) -> DocumentFlight:
        flight = DocumentFlight(
            read.key,
            read.path,
            read.policy,
            started=now,
            deadline=deadline,
            loop=loop,
            background=background,
        )
        self._flights[read.key] = flight
        self.loads += 1
        if background:
            self._refreshing += 1
            self.refreshes += 1
        return flight

    def _forget(self, flight: DocumentFlight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
            self._refreshing -= flight.background

    def _kill(self, flight: DocumentFlight) -> None:
        flight.live = False
        self._forget(flight)

    def kill_path(self, path: str) -> None:
        """Kill the tokens of a path's flights; the caller holds the lock."""
        if self._held.shares_keys:
            flight = self._flights.get(path)
            if flight is not None:
                self._kill(flight)
            return
        for flight in [flight for flight in self._flights.values() if flight.path == path]:
            self._kill(flight)

    def kill_paths(self, paths: Collection[str]) -> None:
        """As `kill_path` for many; O(paths), where kept per user O(paths + flights)."""
        if self._held.shares_keys:
            for path in paths:
                self.kill_path(path)
            return
        doomed = frozenset(paths)
        for flight in [flight for flight in self._flights.values() if flight.path in doomed]:
            self._kill(flight)

    def kill_under(self, prefix: str | None) -> None:
        """Kill the tokens of all flights at and under `prefix`; the caller holds the lock."""
        for flight in list(self._flights.values()):
            if prefix is None or is_under(flight.path, prefix):
                self._kill(flight)

    def close(self) -> None:
        """Wake every waiter with ClosedError; the gate is closed already."""
        with self._gate.lock:
            flights = list(self._flights.values())
            self.kill_under(None)
        for flight in flights:
            self.fail(flight, ClosedError("the cache was closed during the load"))
