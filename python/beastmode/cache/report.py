"""What the cache hands out: answers to reads, and the frozen snapshot of its counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from beastcore import CacheStats
from beastmode.cache.queries import QueryReport
from beastmode.stores.documents import Document

__all__ = ["Answer", "CacheReport", "QueryReport", "Source"]

Source = Literal["hit", "stale", "store"]
"""Where an answer came from: a fresh entry, an overdue entry, or a load from the store."""


class Answer(NamedTuple):
    """A document (a tombstone when there is none) and where it came from."""

    document: Document
    source: Source


@dataclass(frozen=True, slots=True)
class CacheReport:
    """Counters of a `BeastModeCache` since it was made, and its present state.

    Counters that the lock-free hit path keeps (`negative_hits`, `overdue_lookups`) are exact
    under the GIL; on a free-threaded build they may miss a few.
    """

    engine: CacheStats
    """The engine's own counters; its hits include lookups that met an overdue entry."""
    overdue_lookups: int
    """Lookups that met an entry past its time to live; they answered nothing."""
    negative_hits: int
    """Fresh hits whose answer was that there is no such document."""
    stale_served: int
    """Answers given from an overdue entry: while it was reloaded, or as the store failed."""
    loads: int
    """Documents asked of the store, background refreshes included."""
    load_errors: int
    """Documents whose load ended with an error."""
    coalesced: int
    """Reads that waited for a load that another reader had started."""
    discarded: int
    """Loaded documents that were handed to their readers but not installed: a write, a change
    or an invalidation came in between, or something newer was held."""
    abandoned: int
    """Loads that were cancelled or came to a halt; their readers began again."""
    refreshes: int
    """Background refreshes started by stale-while-revalidate."""
    reloads_limited: int
    """Reads of doubted documents for which no load was begun, because too many had been just
    before; they were answered by what was held, as stale."""
    gathered: int
    """Documents that were asked of the store together with others, because coroutines had begun
    to read them in the same turn of their event loop."""
    refreshes_skipped: int
    """Background refreshes not started because too many were running."""
    background_errors: int
    """Background refreshes that failed; each was also given to `on_error`."""
    hook_errors: int
    """Calls of `on_error` that raised."""
    changes_applied: int
    """Changes that replaced a held document."""
    changes_kept: int
    """Changes heard while a write of the document was pending, and taken up when it finished."""
    guesses: int
    """Documents held provisionally after a merge or an update, until the store tells of them."""
    confirmed: int
    """Provisional documents that a change of the same version confirmed, without a load."""
    prolonged: int
    """Times that a lease kept a document fresh which was past its time."""
    doubted: int
    """Documents that a failing source of changes made overdue."""
    in_flight: int
    """Documents being loaded now."""
    pending_writes: int
    """Documents with writes that the store has not acknowledged."""
    queries: QueryReport
    """The results of queries that are held, and how queries were answered."""

    @property
    def hits(self) -> int:
        """Lookups answered by a fresh entry."""
        return max(0, self.engine.hits - self.overdue_lookups)

    @property
    def hit_rate(self) -> float | None:
        """Lookups answered by a fresh entry / lookups; None before the first one."""
        lookups = self.engine.hits + self.engine.misses
        return self.hits / lookups if lookups else None
