"""Value types that both twins hand out: removal causes and statistics snapshots."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

__all__ = [
    "BatchItem",
    "BatchStats",
    "CacheInfo",
    "CacheStats",
    "ConnInfo",
    "PolicyState",
    "RemovalCause",
    "TableStats",
]

PolicyState = tuple[float, float, tuple[tuple[float, float], ...]]
"""What "adaptive" has learnt: the window's share, of how many sampled requests, and the share and
the score (their hits, older ones less) of each shadow."""


class RemovalCause(enum.Enum):
    """Why an entry left a `Cache`; the third argument of `on_removal`."""

    EXPLICIT = "explicit"
    """The caller removed it: `del`, `pop`, `popitem`, `delete_many` or `clear`."""
    REPLACED = "replaced"
    """A new value was stored under its key."""
    EXPIRED = "expired"
    """Its time to live had passed when it was met."""
    SIZE = "size"
    """It was evicted: the cache was full, was made smaller, or `evict` was called."""

    def __repr__(self) -> str:
        return f"RemovalCause.{self.name}"


class CacheStats(NamedTuple):
    """Counters of a `Cache` since creation or `reset_stats()`, and its present size.

    `currsize` and the fields from `weight` on are states, not counters: a reset leaves them alone.
    """

    hits: int
    """Lookups by `get`, `c[k]`, `setdefault` or `get_many` that found a live entry."""
    misses: int
    """The same lookups that did not."""
    sets: int
    """Entries written, overwrites included."""
    evictions: int
    """Entries removed with cause SIZE."""
    expirations: int
    """Entries removed with cause EXPIRED."""
    removals: int
    """Entries removed with cause EXPLICIT."""
    rejections: int
    """Writes refused: heavier than `max_weight`, or turned away by the policy."""
    currsize: int
    """Entries held; may count expired ones that nothing has met yet."""
    maxsize: int
    """Most entries that may be held."""
    weight: int
    """Sum of the entries' weights; `currsize` where there is no weigher."""
    max_weight: int | None
    """Most weight that may be held; None where there is no weigher."""
    bytes: int
    """Estimate of the bytes that the cache's own structures take, without keys and values."""
    window: int | None
    """How much the policy "adaptive" gives its window of newcomers at present, in entries (with a
    weigher: in weight). None for "lru", and until there has been something to decide."""
    shadows: tuple[tuple[float, float], ...]
    """(share, hit ratio) of each shadow cache of "adaptive": the share of the window, from 0 to 1,
    that it tries, and what its rule would have given of late, from 0 to 1, estimated from a
    sample of the keys. Empty for "lru", and before the first sampled request."""
    listener_errors: int
    """Calls of `on_removal` that raised; what they raised went to `sys.unraisablehook`."""

    @property
    def hit_rate(self) -> float | None:
        """Hits / (hits + misses), from 0 to 1; None before the first lookup."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else None


class CacheInfo(NamedTuple):
    """What `cache_info()` of a function decorated with `cached` answers, as in `functools`."""

    hits: int
    """Calls answered from the cache."""
    misses: int
    """Calls that ran the function."""
    maxsize: int
    """Most results that may be held (per instance for a method)."""
    currsize: int
    """Results held."""


class BatchItem(tuple[Any, Any]):  # noqa: SLOT001 - it carries attributes
    """A drained operation: the pair `(key, op)`, which also remembers what `add` was told.

    Equal to the plain pair. `BatchBuffer.restore` reads the attributes, so that what is put back
    keeps its size, its priority and its age.
    """

    size: int = 0
    """Size in bytes."""
    priority: int = 0
    """Priority; higher ones are drained first."""
    added_at: float | None = None
    """Time of its `add` by the buffer's timer; None for an item that no buffer made."""


class BatchStats(NamedTuple):
    """Counters of a `BatchBuffer` since creation, and its present content.

    `pending` is always `added - coalesced - drained + restored - cleared`.
    """

    added: int
    """Operations accepted by `add`."""
    coalesced: int
    """Operations that were merged into an earlier one of the same key."""
    drained: int
    """Operations handed out by `drain`."""
    restored: int
    """Operations put back by `restore`."""
    cleared: int
    """Operations dropped by `clear`."""
    pending: int
    """Operations held now."""
    keys: int
    """Distinct keys that have operations now."""
    bytes: int
    """Sum of the sizes of the operations held now."""


class ConnInfo(NamedTuple):
    """One connection in a `ConnectionTable.snapshot()`."""

    conn_id: Any
    """What the connection was added as."""
    user: Any
    """Who it belongs to, or None."""
    class_id: int
    """Its class."""
    idle: float
    """Seconds since its last activity."""
    age: float
    """Seconds since it was added."""
    pinged: bool
    """Whether `mark_pinged` named it after its last activity."""


class TableStats(NamedTuple):
    """Counters of a `ConnectionTable` since creation, and its present content."""

    active: int
    """Connections held now."""
    max_connections: int
    """Most connections that may be held."""
    added: int
    """Connections added."""
    removed: int
    """Connections removed by `remove` or `clear`."""
    suspected: int
    """Times that a sweep reported a connection as SUSPECT."""
    expired: int
    """Connections that a sweep removed as EXPIRED."""
    rejected: int
    """Calls of `add` refused because the table was full."""
    late_sweeps: int
    """Sweeps so late that every deadline was extended once."""
