"""The cache's state machine: what is held, what is being loaded, what is being written.

No I/O happens here. Everything but the engine's own look-ups is done under one lock, which is
never held while the store, a hook or a waiter runs. Loads in the air are in `table`, entries in
`holdings`; here is what connects them.

The rules, per path
    1. A flight carries a token. What it brings is installed only while the token is live, no
       write of the path is pending, and its version is not below the version held.
    2. A write, a change, an invalidation, doubt, `set` and `clear` kill the token: readers that
       already wait get what the flight brings (they began before), later readers start a new one.
    3. The version held under a key never goes back; a reader whose load brought less than what
       is held, or than what others have seen of it meanwhile, gets that (but no guess, rule 5).
    4. While a write is pending nothing that was read from the store is installed. A change heard
       meanwhile replaces what is held below the write; the newest is kept besides, and taken up
       when the write finishes if it is not older. If only its version is known (another write has
       it), the entry is dropped, to be loaded.
    5. After a write whose result is not certain (a merge, an update) the entry is provisional:
       not fresh, replaced by a change or load of the same version or a newer one.
    6. A lease keeps an entry fresh beyond its time; doubt ends that, and is in force when it
       returns. What replaces a covered entry is covered too, because later changes are heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from beastcore import Cache
from beastmode.cache.gate import Gate
from beastmode.cache.holdings import PROVISIONAL, UNKNOWN, Entry, Holdings, is_unclear, is_under
from beastmode.cache.lease import Lease, ReloadLimit
from beastmode.cache.queries import QueryShelf
from beastmode.cache.report import CacheReport
from beastmode.cache.rules import Key, Policy, RuleBook
from beastmode.cache.table import FlightTable
from beastmode.errors import CacheError
from beastmode.stores.documents import Document

__all__ = ["CacheState", "Guess"]

_SLICE: Final = 1024
"""Paths for which the lock is held at a time."""

_T = TypeVar("_T")


class _Pending:
    """Writes of one path that are not acknowledged, and what was learned of it meanwhile."""

    __slots__ = ("count", "foreign", "newest")

    def __init__(self) -> None:
        self.count = 0
        self.foreign: Document | None = None
        """The newest change heard."""
        self.newest = -1
        """The newest version heard of, by a change or as a write's own."""


class Guess(NamedTuple):
    """What a path holds after a write, if nobody else has written it since `base`."""

    base: Document
    data: Mapping[str, Any] | None


class CacheState:
    """Entries, flights and pending writes of one cache, under one lock."""

    def __init__(
        self,
        engine: Cache[Key, Entry],
        book: RuleBook,
        *,
        revalidate_s: float,
        jitter: float,
        reload_rate: float,
        max_queries: int,
        max_query_documents: int,
    ) -> None:
        self.engine = engine
        self.held = Holdings(engine, book, jitter=jitter)
        self.book = book
        self.gate = Gate()
        self.pending: dict[str, _Pending] = {}
        self.queries = QueryShelf(
            self.gate,
            self.held,
            book,
            blocked=self.pending,
            learn=self._learn,
            max_queries=max_queries,
            max_documents=max_query_documents,
        )
        self.table = FlightTable(
            self.gate,
            self.held,
            blocked=self.pending,
            seen=self.queries.seen,
            reloads=ReloadLimit(reload_rate),
            revalidate_s=revalidate_s,
        )
        self.overdue_lookups = self.negative_hits = 0  # kept by readers without the lock
        self.changes_applied = self.changes_kept = self.hook_errors = 0
        self.guesses = self.confirmed = self.prolonged = self.doubted = self.gathered = 0

    # -- entries -------------------------------------------------------------------------------

    def set(self, key: Key, path: str, policy: Policy, document: Document, now: float) -> bool:
        """Install a document known from the store; False if it may not be or is outdated."""
        with self.gate:
            if not policy.cacheable or path in self.pending:
                return False
            if self.held.newer(key, document.version) is not None:
                return False
            self.table.kill_path(path)
            self.queries.seen(document)
            self.held.install(key, path, policy, document, now)
            return key in self.engine

    def observe(self, documents: Iterable[Document]) -> None:
        """Let nothing older be seen than `documents`, which were read past the cache."""
        with self.gate:
            for document in documents:
                self._learn(document)
                self.queries.seen(document)

    def _learn(self, document: Document) -> None:
        self.table.learn(document)

    def invalidate(self, path: str) -> int:
        """Drop a path's entries and kill its loads; the number of entries dropped."""
        with self.gate:
            self.table.kill_path(path)
            self.queries.changed(path, None)
            return self.held.drop(path)

    def invalidate_under(self, prefix: str) -> int:
        """As `invalidate` for everything under `prefix`; scans all entries, without the lock."""
        with self.gate:
            self.table.kill_under(prefix)
            self.queries.bump_under(prefix)
        return self.held.drop_under(prefix)

    def clear(self) -> None:
        """Drop every entry and kill every load; pending writes stay counted."""
        with self.gate:
            self.table.kill_under(None)
            self.queries.bump_under(None)
            self.engine.clear()

    def set_ttl(self, ttl: float) -> None:
        """Change the inherited time to live; entries are never fresh for longer than it says."""
        with self.gate.lock:
            self.book.set_ttl(ttl)
        # Under the lock, else an entry that is doubted meanwhile could be made fresh again.
        for part in _parts(self.engine.values()):
            with self.gate.lock:
                self.held.shorten(part)

    # -- leases and doubt ----------------------------------------------------------------------

    def prolong(self, entry: Entry, now: float) -> bool:
        """Return whether a lease keeps an entry fresh that is past its time."""
        # Under the lock, so that a doubt that has returned cannot be undone by a reader who
        # looked at the lease before.
        with self.gate.lock:
            fresh = entry.is_fresh(now)
            self.prolonged += fresh
            return fresh

    def cover(self, path: str, lease: Lease) -> bool:
        """Let `lease` vouch for a path's entries; whether there are any."""
        with self.gate:
            pending = self.pending.get(path)
            return self.held.cover(path, lease, -1 if pending is None else pending.newest)

    def uncover(self, paths: Sequence[str], now: float) -> None:
        """Let the entries of paths live by time again."""
        for part in _parts(paths):
            with self.gate:
                self.held.interest.forget(part)
                for path in part:
                    self.held.uncover(path, now)

    def doubt(self, paths: Sequence[str], now: float, *, unknown: bool = False) -> None:
        """Make entries of paths overdue from `now` on and kill their loads.

        Loads are killed because one that began before a change was missed may not show it, and
        notes that a path was installed are dropped because they would have it covered unloaded.
        """
        for part in _parts(paths):
            with self.gate:
                self.table.kill_paths(part)
                self.queries.doubt_paths(part, now)
                self.held.interest.forget(part)
                for path in part:
                    self.doubted += self.held.doubt(path, now, unknown=unknown)
                    if (pending := self.pending.get(path)) is not None:
                        pending.foreign = None

    def doubt_under(self, prefix: str | None, now: float) -> None:
        """As `doubt` for all at and under `prefix`; scans all entries, without the lock."""
        interest = self.held.interest
        with self.gate:
            self.table.kill_under(prefix)
            self.queries.doubt_under(prefix, now)
            self._forget_foreign(prefix)
            notes = interest.notes()
        # What is installed from here on was loaded after the doubt.
        if prefix is not None:
            notes = [note for note in notes if is_under(note[0], prefix)]
        for part in _parts(notes):
            with self.gate.lock:
                interest.forget_notes(part)
        self._doubt_held(self.held.paths_under(prefix), now, None)

    def _doubt_held(self, paths: Sequence[str], now: float, lease: Lease | None) -> None:
        for part in _parts(paths):
            with self.gate.lock:
                for path in part:
                    self.doubted += self.held.doubt(path, now, lease)

    def _forget_foreign(self, prefix: str | None) -> None:
        for path, pending in self.pending.items():
            if prefix is None or is_under(path, prefix):
                pending.foreign = None

    def cover_collection(self, collection: str, lease: Lease) -> None:
        """Let `lease` vouch for what is read of a collection from now on."""
        with self.gate:
            # What a load read before may be a document that has been deleted unheard.
            self.table.kill_under(collection)
            self.queries.cover(collection, lease)

    def uncover_collection(self, collection: str, now: float) -> None:
        """End `cover_collection`; scans all entries, without the lock."""
        with self.gate:
            lease = self.queries.uncover(collection)
        if lease is not None:
            # Nothing new comes under the lease any more, and what it covered keeps its path.
            for part in _parts(self.held.covered_by(lease, collection)):
                with self.gate.lock:
                    for path in part:
                        self.held.uncover(path, now, lease)

    def doubt_collection(self, collection: str, now: float) -> None:
        """End `cover_collection` and doubt what it covered; scans all entries, without the lock."""
        with self.gate:
            self.table.kill_under(collection)
            self._forget_foreign(collection)
            lease = self.queries.uncover(collection)
        if lease is not None:
            self._doubt_held(self.held.covered_by(lease, collection), now, lease)

    def drain_interest(self, limit: int) -> tuple[list[str], bool]:
        """Take out paths installed since the last call; whether some were forgotten."""
        with self.gate:
            return self.held.interest.drain(limit)

    # -- writes and changes --------------------------------------------------------------------

    def write_started(self, path: str) -> None:
        """Count a write of `path` as pending and kill its loads."""
        with self.gate:
            pending = self.pending.get(path)
            if pending is None:
                pending = self.pending[path] = _Pending()
            pending.count += 1
            self.table.kill_path(path)

    def write_finished(
        self,
        key: Key | None,
        path: str,
        policy: Policy,
        document: Document | None,
        now: float,
        *,
        version: int | None,
        guess: Guess | None = None,
    ) -> None:
        """Count a write as done; `document` is the path's verified state after it, if known.

        `version` is the path's version after it, where that is known; `guess` what its state
        then is if nobody else has written.
        `key` is None where the path is kept per user: then nobody's entry is known to be right.
        """
        with self.gate:
            pending = self.pending.get(path)
            if pending is None:
                raise CacheError(f"no write of {path!r} was started, so none can finish")
            pending.count -= 1
            if not pending.count:
                del self.pending[path]
            self.table.kill_path(path)
            self.queries.changed(path, version)
            foreign = pending.foreign
            if version is not None:
                pending.newest = max(pending.newest, version)
            if version is None or key is None or not policy.cacheable:
                self.held.drop(path)
            elif foreign is not None and foreign.version >= pending.newest:
                # It is the store's own word on the newest version there is.
                self.changes_kept += self._take_up(key, path, policy, foreign, now, pending)
            elif version < pending.newest:
                self.held.drop(path)
            else:
                # Several writes may have become one version: until the last of them has
                # finished, this is what was there just before it.
                version -= pending.count > 0
                if document is not None:
                    document = Document(path, document.data, version)
                    self._take_up(key, path, policy, document, now, pending)
                elif guess is not None and self._is_base(key, guess):
                    self.held.install_guess(key, Document(path, guess.data, version), now)
                    self.guesses += 1
                else:
                    self.held.drop(path)

    def _take_up(
        self,
        key: Key,
        path: str,
        policy: Policy,
        document: Document,
        now: float,
        pending: _Pending,
    ) -> bool:
        # With further writes pending, a held base must take this one up, because nothing else
        # shows it any more; but no new key is installed.
        if (pending.count and key not in self.engine) or self.held.newer(key, document.version):
            return False
        # Whoever writes may never read it: then it need not be listened to.
        self.held.install(key, path, policy, document, now, read=False)
        return True

    def _is_base(self, key: Key, guess: Guess) -> bool:
        entry = self.engine.peek(key)
        return entry is not None and entry.document is guess.base

    def apply_change(
        self, path: str, document: Document, now: float, *, inferred: bool = False
    ) -> None:
        """Take notice of a change: replace an older entry, never install a new key.

        Where it is unclear which of both is the later one the entry is dropped, to be loaded.
        """
        version = document.version
        with self.gate:
            self.table.kill_path(path)
            self.queries.changed(path, version)
            pending = self.pending.get(path)
            if pending is not None:
                pending.newest = max(pending.newest, version)
                if inferred:
                    return  # it only says that own writes alone do not tell what there is
                if pending.foreign is None or pending.foreign.version < version:
                    pending.foreign = document
            for key in self.held.keys_of(path):
                entry = self.engine.peek(key)
                if entry is None:
                    continue
                if is_unclear(entry.document, document) and (inferred or document.data is not None):
                    self.engine.pop(key, None)
                    continue
                if entry.document.version > version:
                    continue
                if entry.document.version == version:
                    if entry.flags & (PROVISIONAL | UNKNOWN):
                        self.confirmed += bool(entry.flags & PROVISIONAL)
                        self.held.confirm(key, entry, document, now)
                    continue
                self.changes_applied += 1
                if isinstance(key, tuple):  # what this user may see of it is not known
                    self.engine.pop(key, None)
                else:
                    self.held.renew(key, entry, document, now)

    def reap(self, now: float) -> None:
        """Give up loads and queries that will never end and wake whoever waits for them."""
        self.table.reap()
        with self.gate.lock:
            dead = self.queries.reap(now)
        for flight in dead:
            self.queries.abandon(flight)

    # -- ends ----------------------------------------------------------------------------------

    def close(self) -> bool:
        """Refuse everything from now on and wake all waiters; False if it was closed before."""
        with self.gate.lock:
            if self.gate.closed:
                return False
            self.gate.closed = True
            self.pending.clear()
        self.table.close()
        self.queries.close()
        self.engine.clear()
        return True

    def report(self) -> CacheReport:
        """Return all counters at one moment."""
        with self.gate.lock:
            return CacheReport(
                engine=self.engine.stats(),
                overdue_lookups=self.overdue_lookups,
                negative_hits=self.negative_hits,
                stale_served=self.table.stale_served,
                loads=self.table.loads,
                load_errors=self.table.load_errors,
                coalesced=self.table.coalesced,
                discarded=self.table.discarded,
                abandoned=self.table.abandoned,
                refreshes=self.table.refreshes,
                reloads_limited=self.table.reloads_limited,
                gathered=self.gathered,
                refreshes_skipped=self.table.refreshes_skipped,
                background_errors=self.table.background_errors,
                hook_errors=self.hook_errors,
                changes_applied=self.changes_applied,
                changes_kept=self.changes_kept,
                guesses=self.guesses,
                confirmed=self.confirmed,
                prolonged=self.prolonged,
                doubted=self.doubted,
                in_flight=len(self.table),
                pending_writes=len(self.pending),
                queries=self.queries.report(),
            )


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + _SLICE] for start in range(0, len(items), _SLICE))
