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
       is held gets what is held.
    4. While a write is pending nothing that was read from the store is installed. A change heard
       meanwhile, or another write that finished, is remembered by version; if the write's own
       document is older, the entry is dropped when the write finishes, so that it is loaded.
"""

from __future__ import annotations

from beastcore import Cache
from beastmode.cache.gate import Gate
from beastmode.cache.holdings import Entry, Holdings
from beastmode.cache.report import CacheReport
from beastmode.cache.rules import Key, Policy, RuleBook
from beastmode.cache.table import FlightTable
from beastmode.errors import CacheError
from beastmode.stores.documents import Document

__all__ = ["CacheState"]


class _Pending:
    """Writes of one path that are not acknowledged, and the newest change heard meanwhile."""

    __slots__ = ("count", "foreign")

    def __init__(self) -> None:
        self.count = 0
        self.foreign: int | None = None


class CacheState:
    """Entries, flights and pending writes of one cache, under one lock."""

    def __init__(
        self, engine: Cache[Key, Entry], book: RuleBook, *, revalidate_s: float, jitter: float
    ) -> None:
        self.engine = engine
        self.held = Holdings(engine, book, jitter=jitter)
        self.book = book
        self.gate = Gate()
        self.pending: dict[str, _Pending] = {}
        self.table = FlightTable(
            self.gate, self.held, blocked=self.pending, revalidate_s=revalidate_s
        )
        self.overdue_lookups = self.negative_hits = 0  # kept by readers without the lock
        self.changes_applied = self.hook_errors = 0

    # -- entries -------------------------------------------------------------------------------

    def set(self, key: Key, path: str, policy: Policy, document: Document, now: float) -> bool:
        """Install a document known from the store; False if it may not be or is outdated."""
        with self.gate:
            if not policy.cacheable or path in self.pending:
                return False
            if self.held.newer(key, document.version) is not None:
                return False
            self.table.kill_path(path)
            self.held.install(key, path, policy, document, now)
            return key in self.engine

    def invalidate(self, path: str) -> int:
        """Drop a path's entries and kill its loads; the number of entries dropped."""
        with self.gate:
            self.table.kill_path(path)
            return self.held.drop(path)

    def invalidate_under(self, prefix: str) -> int:
        """As `invalidate` for everything under `prefix`; scans all entries, without the lock."""
        with self.gate:
            self.table.kill_under(prefix)
        return self.held.drop_under(prefix)

    def doubt(self, prefix: str | None, now: float) -> None:
        """Make entries overdue from `now` on and kill loads; scans all entries, without the lock.

        Loads are killed because one that began before a change was missed may not show it.
        """
        with self.gate:
            self.table.kill_under(prefix)
        self.held.age(prefix, now)

    def clear(self) -> None:
        """Drop every entry and kill every load; pending writes stay counted."""
        with self.gate:
            self.table.kill_under(None)
            self.engine.clear()

    def set_ttl(self, ttl: float) -> None:
        """Change the inherited time to live; entries are never fresh for longer than it says."""
        with self.gate.lock:
            self.book.set_ttl(ttl)
        self.held.shorten()

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
    ) -> None:
        """Count a write as done; `document` is the path's verified state after it, if known.

        `version` is the path's version after it, where that is known.
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
            if version is not None and (foreign is None or foreign < version):
                # Writes at the same time may finish in another order than the store had them.
                pending.foreign = version

    def apply_change(self, path: str, document: Document, now: float) -> None:
        """Take notice of a change: replace an older entry, never install a new key."""
        with self.gate:
            self.table.kill_path(path)
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
        with self.gate.lock:
            if self.gate.closed:
                return False
            self.gate.closed = True
            self.pending.clear()
        self.table.close()
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
                refreshes_skipped=self.table.refreshes_skipped,
                background_errors=self.table.background_errors,
                hook_errors=self.hook_errors,
                changes_applied=self.changes_applied,
                in_flight=len(self.table),
                pending_writes=len(self.pending),
            )
