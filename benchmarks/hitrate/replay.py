"""Replays a trace through a cache: one `get` for each request, one `set` where it missed."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hitrate.traces import Cell, trace
from benchmarks.peers import BEASTCORE, PEERS, Peer, Store, beastcore_store

ADAPTIVE = BEASTCORE
LRU = "beastcore, lru"
BELADY = "Belady"
LFU = "cachebox LFUCache"
MOKA = "moka-py"
THEINE = "theine"


@dataclass(frozen=True)
class Contender:
    """A cache as it is replayed, or Belady's rule."""

    name: str
    peer: Peer | None
    random: bool = False
    """Whether a random stream decides too, so that one run does not tell all."""
    slow: bool = False
    """Whether it takes microseconds for a request, too long for the longest traces."""


def _peer(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def _lru(module: Any, size: int) -> Store:
    """Textbook LRU: without slack in the promotion, where the policy has one."""
    try:
        return beastcore_store(None, "lru", slack=0)(module, size)
    except TypeError:  # it has none
        return beastcore_store(None, "lru")(module, size)


def _lfu(module: Any, size: int) -> Store:
    cache = module.LFUCache(size)
    return Store(cache, get=cache.get, size=cache.__len__)


STORED = "value"
SLOW = 1_300_000
"""Requests of the longest trace that slow caches are given, unless told otherwise."""
CONTENDERS = [
    Contender(ADAPTIVE, _peer(ADAPTIVE), random=True),
    Contender(LRU, Peer(LRU, BEASTCORE, "beastcore", _lru)),
    Contender("cachebox LRUCache", _peer("cachebox LRUCache")),
    Contender(LFU, Peer(LFU, "cachebox", "cachebox", _lfu)),
    Contender(MOKA, _peer(MOKA), slow=True),
    Contender(THEINE, _peer(THEINE), slow=True),
    Contender(BELADY, None),
]


def percent_of_hits(contender: Contender, keys: array[int], capacity: int) -> float:
    """Return 100 x hits / requests of a cache that starts empty.

    AssertionError if the cache holds more than its capacity afterwards.
    """
    if contender.peer is None:
        return 100 * belady_hits(keys, capacity) / len(keys)
    assert contender.peer.store is not None
    store = contender.peer.store(contender.peer.load(), capacity)
    get = store.get
    assert get is not None
    put = store.set or store.cache.__setitem__
    misses = _misses(get, put, keys) if store.unit is bool else _misses_of(store, put, keys)
    assert store.size is not None
    held = store.size()
    assert held <= capacity, f"{contender.name} holds {held} of at most {capacity}"
    return 100 * (1 - misses / len(keys))


def _misses(get: Callable[[Any], Any], put: Callable[[Any, Any], Any], keys: Iterable[int]) -> int:
    misses = 0
    for key in keys:
        if get(key) is None:
            misses += 1
            put(key, STORED)
    return misses


def _misses_of(store: Store, put: Callable[[Any, Any], Any], keys: Iterable[int]) -> int:
    """Count the misses of a cache whose answer tells it in another way."""
    get, unit, misses = store.get, store.unit, 0
    assert get is not None
    for key in keys:
        if not unit(get(key)):
            misses += 1
            put(key, STORED)
    return misses


def belady_hits(keys: array[int], capacity: int) -> int:
    """Return the hits of Belady's rule: a full cache drops what is needed last; O(n log n).

    Every missed key enters, as in the caches compared. L. A. Belady, "A study of replacement
    algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966. `keys` must be
    labels 0, 1, 2, ...
    """
    n = len(keys)
    following = array("q", bytes(8 * n))
    later = array("q", [-1]) * (max(keys) + 1)
    for i in range(n - 1, -1, -1):
        key = keys[i]
        # Never again: behind the end, each at a place of its own.
        following[i] = later[key] if later[key] >= 0 else n + i
        later[key] = i
    held = bytearray(len(later))
    count = hits = 0
    # Next uses, negative: the farthest first. Those already passed are the least far, so that the
    # first is always of a key that is held.
    heap: list[int] = []
    for i, key in enumerate(keys):
        if held[key]:
            hits += 1
        else:
            if count == capacity:
                place = -heapq.heappop(heap)
                held[keys[place - n if place >= n else place]] = 0
            else:
                count += 1
            held[key] = 1
        heapq.heappush(heap, -following[i])
    return hits


def run_cell(job: tuple[str, str, Cell]) -> tuple[str, Cell, float]:
    """Run the contender of that name on one cell; for a pool of processes."""
    folder, name, cell = job
    contender = next(one for one in CONTENDERS if one.name == name)
    keys = trace(Path(folder) / f"{cell.trace}.npz")
    return name, cell, percent_of_hits(contender, keys, cell.capacity)
