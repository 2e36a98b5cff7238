"""Results of queries: which are held, which are being asked for, and what makes them outdated.

Results are held only for collections that a lease covers: whoever listens hears every change in
them. Documents of a result are shared with the cache's entries. No I/O; everything is done under
the gate's lock.

A result is right while its collection's stream is healthy and nothing newer is known of:
`version` is the newest version that the store had when it answered, so every change up to it is
in the result. `floor` is the newest version known in the collection, heard as a change, written
by ourselves or brought by a load; a result below it is outdated. What has no version (a write of
unknown outcome, an invalidation, doubt) begins a new epoch, and results are of one epoch. What
doubt alone has ended may be served as stale while the store fails (`stale_results`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from beastmode.cache.flights import AbandonedError, Flight
from beastmode.cache.gate import Gate
from beastmode.cache.holdings import Holdings, is_under
from beastmode.cache.lease import Lease
from beastmode.cache.rules import RuleBook
from beastmode.cache.stale_results import StaleResult, StaleResults
from beastmode.errors import ClosedError
from beastmode.stores.base import Query, QueryResult
from beastmode.stores.documents import Document, collection_of

__all__ = ["QueryFlight", "QueryReport", "QueryShelf", "canonical"]

_ORDINARY: Final = frozenset({str, bytes, bool, int, type(None)})


@dataclass(frozen=True, slots=True)
class QueryReport:
    """Counters of a cache's queries since it was made, and what is held now."""

    hits: int
    """Queries answered by a held result."""
    loads: int
    """Queries asked of the store."""
    coalesced: int
    """Queries that waited for the same query of another reader."""
    discarded: int
    """Results for covered collections that were not kept: a change came in between."""
    outdated: int
    """Held results that a change, a write or doubt ended, noticed at the next such query."""
    held: int
    """Results held now."""
    documents: int
    """Documents in them, each counted once for each result that it is in."""
    collections: int
    """Collections that a lease covers."""
    stale_served: int = 0
    """Queries answered, as the store failed, by a result that was right until doubt."""
    stale: int = 0
    """Such results kept now."""


def canonical(query: Query) -> Hashable | None:
    """Return what tells `query` from those with other results; None if its values have no hash.

    The order of the conditions does not matter, as all must hold. O(size).
    """
    try:
        where = [
            (condition.field, condition.op, _canonical_value(condition.value))
            for condition in query.where
        ]
        where.sort(key=repr)
        order = tuple((order.field, order.descending) for order in query.order_by)
        key = (query.collection, tuple(where), order, query.limit)
        hash(key)
    except TypeError:
        return None
    return key


def _canonical_value(value: Any) -> Hashable:
    kind = type(value)
    if kind in _ORDINARY:
        return (kind, value)
    if kind is float:  # NaN differs from itself, and would never be found again
        return (kind, repr(value))
    if isinstance(value, Mapping):
        return (dict, tuple(sorted((key, _canonical_value(item)) for key, item in value.items())))
    if isinstance(value, (list, tuple)):
        return (list, tuple(map(_canonical_value, value)))
    return (kind, value)


class _Covered:
    """A collection that a lease covers."""

    __slots__ = ("epoch", "floor", "lease")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.epoch = 0
        self.floor = -1


class QueryFlight(Flight[QueryResult]):
    """One query that is being asked of the store; `path` is its collection."""

    __slots__ = ("covered", "epoch", "overtaken")

    covered: _Covered | None
    """Who covered the collection as it began, and (next) the epoch of that."""
    epoch: int
    overtaken: bool
    """Something in its collection was heard of while it was in the air."""


class _Result(NamedTuple):
    collection: str
    covered: _Covered
    epoch: int
    version: int
    documents: dict[str, Document]
    max_stale: float


class _Begun(NamedTuple):
    """What `begin` answers: a held result, or the flight to wait for and whether to load it."""

    documents: list[Document] | None = None
    flight: QueryFlight | None = None
    led: bool = False


class QueryShelf:
    """The queries of one cache; `blocked` are paths for which nothing may be installed.

    `learn` is told of each document that a query brought.

    All methods but `land`, `fail`, `abandon` and `close` are called under the lock.
    """

    def __init__(
        self,
        gate: Gate,
        held: Holdings,
        book: RuleBook,
        *,
        blocked: Container[str],
        learn: Callable[[Document], object],
        max_queries: int,
        max_documents: int,
    ) -> None:
        self._gate = gate
        self._held = held
        self._book = book
        self._blocked = blocked
        self._learn = learn
        self._max_queries = max_queries
        self._max_documents = max_documents
        self._covered: dict[str, _Covered] = {}
        self._results: OrderedDict[Hashable, _Result] = OrderedDict()
        self._documents = 0
        self._stale = StaleResults(max_queries, max_documents)
        self._flights: dict[Hashable, QueryFlight] = {}
        self.stale_served = 0
        self.hits = self.loads = self.coalesced = self.discarded = self.outdated = 0

    # -- reads ---------------------------------------------------------------------------------

    def begin(
        self,
        query: Query,
        key: Hashable | None,
        *,
        now: float,
        deadline: float,
        mine: asyncio.AbstractEventLoop | None,
        leader: asyncio.AbstractEventLoop | None,
    ) -> _Begun:
        """Return the held result, or the flight to wait for. O(1), a hit O(documents)."""
        held = None if key is None else self._find(key, now)
        if held is not None:
            self.hits += 1
            return _Begun(list(held.documents.values()))
        flight = None if key is None else self._flights.get(key)
        if flight is not None and not flight.is_stalled(mine):
            self.coalesced += 1
            return _Begun(flight=flight)
        flight = QueryFlight(
            key,
            query.collection,
            self._book.policy_for(f"{query.collection}/*"),
            started=now,
            deadline=deadline,
            loop=leader,
        )
        if key is not None:
            self._flights[key] = flight
        covered = flight.covered = self._covered.get(query.collection)
        flight.epoch = 0 if covered is None else covered.epoch
        flight.overtaken = False
        self.loads += 1
        return _Begun(flight=flight, led=True)

    def _find(self, key: Hashable, now: float) -> _Result | None:
        result = self._results.get(key)
        if result is None:
            return None
        if self._is_right(result):
            if now < result.covered.lease.valid_until:
                self._results.move_to_end(key)
                return result
            return None  # the stream may come to be heard again
        self.outdated += 1
        self._discard(key)
        return None

    def _is_right(self, result: _Result) -> bool:
        """Return whether nothing is known that a result may lack."""
        covered = result.covered
        return (
            self._covered.get(result.collection) is covered
            and result.epoch == covered.epoch
            and result.version >= covered.floor
        )

    def stale(self, key: Hashable | None, now: float) -> list[Document] | None:
        """Return what to answer as the store fails: right until doubt, and not long ago. O(1)."""
        if key is None:
            return None
        documents = None
        held = self._results.get(key)
        if held is not None and self._is_right(held):
            if now < held.covered.lease.promised_until + held.max_stale:
                documents = held.documents
        elif (kept := self._stale.find(key, now)) is not None:
            documents = kept.documents
        if documents is None:
            return None
        self.stale_served += 1
        return list(documents.values())

    def land(self, flight: QueryFlight, result: QueryResult) -> None:
        """Keep what a flight brought, if nothing newer is known, and hand it to its waiters."""
        with self._gate.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
            result = flight.newest(result)
            for document in result.documents:  # what is older must not be seen after this
                self._learn(document)
                self._stale.seen(document)
            if flight.key is not None:
                self._stale.discard(flight.key)
            self._keep(flight, result)
            successor = None if flight.key is None else self._flights.get(flight.key)
            if successor is not None:
                successor.learn(result)
        flight.resolve(result)

    def _keep(self, flight: QueryFlight, result: QueryResult) -> None:
        policy = flight.policy
        covered, epoch = flight.covered, flight.epoch
        if (
            covered is None
            or flight.key is None
            or policy.per_user
            or not policy.cacheable
            or self._gate.closed
        ):
            return
        if (
            self._covered.get(flight.path) is not covered
            or covered.epoch != epoch
            or result.version < covered.floor
            # Some servers stamp what they answer after they have looked: it may lack a change
            # with a lower version than its own.
            or flight.overtaken
        ):
            self.discarded += 1
            return
        documents = {document.path: document for document in result.documents}
        # Nothing newer is known of any of them, so each may be held by itself.
        for path, document in documents.items():
            covered.floor = max(covered.floor, document.version)
            if path not in self._blocked and not self._held.has(path, document.version):
                self._held.install(path, path, policy, document, flight.started)
        if len(documents) <= self._max_documents:
            self._discard(flight.key)
            self._results[flight.key] = _Result(
                flight.path, covered, epoch, result.version, documents, policy.max_stale
            )
            self._documents += len(documents)
            while len(self._results) > self._max_queries or self._documents > self._max_documents:
                self._discard(next(iter(self._results)))

    def _discard(self, key: Hashable) -> None:
        result = self._results.pop(key, None)
        if result is not None:
            self._documents -= len(result.documents)

    def fail(self, flight: QueryFlight, error: Exception) -> None:
        """Hand `error` to a flight's waiters; nothing is kept."""
        with self._gate.lock:
            if flight.settled:
                return
            flight.settled = True
            self._forget(flight)
        flight.resolve(error)

    def abandon(self, flight: QueryFlight) -> None:
        """Wake a flight's waiters so that they begin again; it will bring nothing."""
        self.fail(flight, AbandonedError(f"the query of {flight.path!r} was cancelled"))

    def _forget(self, flight: QueryFlight) -> None:
        if flight.key is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def reap(self, now: float) -> list[QueryFlight]:
        """Return the flights that will never end, to be abandoned; forget what is too old."""
        self._stale.expire(now)
        return [flight for flight in self._flights.values() if flight.is_dead()]

    # -- what covers collections, and what ends results ----------------------------------------

    def cover(self, collection: str, lease: Lease) -> None:
        """Let `lease` vouch for a collection, in a new epoch."""
        self.uncover(collection)
        self._covered[collection] = _Covered(lease)
        self._held.leases[collection] = lease

    def uncover(self, collection: str) -> Lease | None:
        """Hold no results of a collection any more; the lease that covered it."""
        self._kill(collection)
        self._held.leases.pop(collection, None)
        covered = self._covered.pop(collection, None)
        if covered is None:
            return None
        for key in [key for key, one in self._results.items() if one.covered is covered]:
            self._discard(key)
        return covered.lease

    def changed(self, path: str, version: int | None) -> None:
        """Take notice that `path` is, or may (None) be, another since `version`. O(flights)."""
        if not self._covered and not self._flights and not self._stale:
            return
        collection = collection_of(path)
        self._kill(collection)
        self._stale.changed(collection, version)
        covered = self._covered.get(collection)
        if covered is None:
            return
        if version is None:
            covered.epoch += 1
        elif version > covered.floor:
            covered.floor = version

    def seen(self, document: Document) -> None:
        """Take notice of what a load brought: no result may show its readers less. O(results)."""
        if not self._covered and not self._flights and not self._stale:
            return
        self._stale.seen(document)
        collection = collection_of(document.path)
        covered = self._covered.get(collection)
        if covered is None or document.version > covered.floor:
            # Its readers must not join a query that may have been answered before.
            self._kill(collection)
        if covered is None:
            return
        if document.data is not None:
            covered.floor = max(covered.floor, document.version)
            return
        # A tombstone's version is the time of the load: it outdates who shows the document only.
        path = document.path
        for key in [
            key
            for key, one in self._results.items()
            if one.covered is covered and path in one.documents
        ]:
            self.outdated += 1
            self._discard(key)

    def doubt_paths(self, paths: Sequence[str], now: float) -> None:
        """Begin a new epoch in the collections of `paths`; their results are stale from `now`."""
        if self._covered or self._flights:
            self._doubt(set(map(collection_of, paths)), now)

    def bump_under(self, prefix: str | None) -> None:
        """Begin a new epoch in the collections at, under and around `prefix`.

        Nothing of them is served any more, for they have been changed.
        """
        for collection in self._around(prefix):
            self._stale.changed(collection, None)
            self._bump(collection)

    def doubt_under(self, prefix: str | None, now: float) -> None:
        """Begin a new epoch there, too; results are stale, cancelled leases cover no more.

        Any other goes on to vouch for what is read from here on: its stream is still heard.
        """
        self._doubt(self._around(prefix), now)
        for collection, covered in list(self._covered.items()):
            if covered.lease.cancelled and (prefix is None or is_under(collection, prefix)):
                self.uncover(collection)

    def _around(self, prefix: str | None) -> set[str]:
        known = {
            *self._covered,
            *(one.path for one in self._flights.values()),
            *self._stale.collections,
        }
        return {
            one for one in known if prefix is None or is_under(one, prefix) or is_under(prefix, one)
        }

    def _doubt(self, collections: AbstractSet[str], now: float) -> None:
        """Put aside what was right until now, and begin a new epoch. O(results)."""
        for key, result in list(self._results.items()):
            lease, collection = result.covered.lease, result.collection
            if collection in collections and self._is_right(result):
                since = min(now, lease.promised_until)
                until = since + result.max_stale
                self._stale.put(
                    key, StaleResult(collection, result.version, result.documents, until)
                )
                self.outdated += 1
                self._discard(key)
        for collection in collections:
            self._bump(collection)

    def _bump(self, collection: str) -> None:
        self._kill(collection)
        covered = self._covered.get(collection)
        if covered is not None:
            covered.epoch += 1

    def _kill(self, collection: str) -> None:
        """Let nobody join the flights of a collection any more, nor keep what they bring."""
        for key in [key for key, one in self._flights.items() if one.path == collection]:
            self._flights.pop(key).overtaken = True

    def close(self) -> None:
        """Hold nothing and wake every waiter; the gate is closed already."""
        with self._gate.lock:
            flights = list(self._flights.values())
            self._covered.clear()
            self._results.clear()
            self._stale.clear()
            self._documents = 0
        for flight in flights:
            self.fail(flight, ClosedError("the cache was closed during the query"))

    def report(self) -> QueryReport:
        """Return the counters."""
        return QueryReport(
            hits=self.hits,
            loads=self.loads,
            coalesced=self.coalesced,
            discarded=self.discarded,
            outdated=self.outdated,
            held=len(self._results),
            documents=self._documents,
            collections=len(self._covered),
            stale_served=self.stale_served,
            stale=len(self._stale),
        )
