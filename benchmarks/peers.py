"""The caches that are compared, behind one small face each."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

TTL = 300.0
"""Seconds; long enough that nothing expires while it is measured."""


@dataclass
class Store:
    """A cache as the benchmarks use it. Doors that a peer does not have are None."""

    cache: Any
    get: Callable[[Any], Any] | None = None
    """`get(key)`: the value, or something false (theine: a tuple with False) on a miss."""
    set: Callable[[Any, Any], Any] | None = None
    """`set(key, value)`; None where `cache[key] = value` is the door."""
    get_many: Callable[[list[Any]], list[Any]] | None = None
    has: Callable[[Any], bool] | None = None
    size: Callable[[], int] | None = None
    unit: Callable[[Any], bool] = field(default=bool)
    """Tells whether what `get` answered is a hit."""

    def fill(self, keys: list[Any], value: object) -> None:
        """Store `value` under every key."""
        if self.set is None:
            for key in keys:
                self.cache[key] = value
        else:
            for key in keys:
                self.set(key, value)


@dataclass(frozen=True)
class Peer:
    """A library, with or without a time to live."""

    name: str
    distribution: str | None
    """What has to be installed; None for the standard library."""
    module: str | None
    store: Callable[[Any, int], Store] | None = None
    """`store(module, size)` returns an empty cache of that size."""
    decorate: Callable[[Any, int, Any], Any] | None = None
    """`decorate(module, size, function)` returns the memoized function."""
    ttl: bool = False
    exact: bool = True
    """Whether a new key always enters; an admission policy may turn it away."""
    bounded: bool = True

    def load(self) -> Any:
        """Import the library; ImportError if it is not installed."""
        return importlib.import_module(self.module) if self.module else None


def _mapping(cache: Any) -> Store:
    return Store(cache, get=cache.get, has=cache.__contains__, size=cache.__len__)


def beastcore_store(
    ttl: float | None, policy: str = "adaptive", **more: Any
) -> Callable[[Any, int], Store]:
    """Return what makes a `beastcore.Cache`; `more` are further arguments of it."""

    def store(module: Any, size: int) -> Store:
        cache = module.Cache(size, ttl, policy=policy, **more)
        found = _mapping(cache)
        found.get_many = cache.get_many
        return found

    return store


def _moka(ttl: float | None) -> Callable[[Any, int], Store]:
    def store(module: Any, size: int) -> Store:
        cache = module.Moka(size, ttl=ttl)

        def count() -> int:
            cache.run_pending_tasks()
            return cache.count()

        return Store(
            cache,
            get=cache.get,
            set=cache.set,
            has=lambda key: cache.get(key) is not None,
            size=count,
        )

    return store


def _theine(ttl: float | None) -> Callable[[Any, int], Store]:
    def store(module: Any, size: int) -> Store:
        cache = module.Cache(size)
        set_ = cache.set
        if ttl is not None:
            set_ = functools.partial(cache.set, ttl=timedelta(seconds=ttl))
        return Store(
            cache,
            get=cache.get,
            set=set_,
            has=lambda key: cache.get(key)[1],
            size=cache.__len__,
            unit=lambda answer: answer[1],
        )

    return store


def _dict(module: Any, size: int) -> Store:
    return _mapping({})


BEASTCORE = "beastcore"
DICT = "dict"
LRU_CACHE = "functools.lru_cache"

PEERS = [
    Peer(DICT, None, None, _dict, bounded=False),
    Peer(
        LRU_CACHE,
        None,
        "functools",
        decorate=lambda module, size, function: module.lru_cache(maxsize=size)(function),
    ),
    Peer(
        BEASTCORE,
        BEASTCORE,
        "beastcore",
        beastcore_store(None),
        lambda module, size, function: module.cached(maxsize=size)(function),
        exact=False,
    ),
    Peer("beastcore, lru", BEASTCORE, "beastcore", beastcore_store(None, "lru")),
    Peer(
        "beastcore, TTL",
        BEASTCORE,
        "beastcore",
        beastcore_store(TTL),
        lambda module, size, function: module.cached(maxsize=size, ttl=TTL)(function),
        ttl=True,
        exact=False,
    ),
    Peer(
        "cachebox LRUCache",
        "cachebox",
        "cachebox",
        lambda module, size: _mapping(module.LRUCache(size)),
        lambda module, size, function: module.cached(module.LRUCache(size))(function),
    ),
    Peer(
        "cachebox TTLCache",
        "cachebox",
        "cachebox",
        lambda module, size: _mapping(module.TTLCache(size, TTL)),
        lambda module, size, function: module.cached(module.TTLCache(size, TTL))(function),
        ttl=True,
    ),
    Peer(
        "lru-dict",
        "lru-dict",
        "lru",
        lambda module, size: _mapping(module.LRU(size)),
    ),
    Peer(
        "cachetools LRUCache",
        "cachetools",
        "cachetools",
        lambda module, size: _mapping(module.LRUCache(size)),
        lambda module, size, function: module.cached(module.LRUCache(size))(function),
    ),
    Peer(
        "cachetools TTLCache",
        "cachetools",
        "cachetools",
        lambda module, size: _mapping(module.TTLCache(size, TTL)),
        lambda module, size, function: module.cached(module.TTLCache(size, TTL))(function),
        ttl=True,
    ),
    Peer(
        "moka-py",
        "moka-py",
        "moka_py",
        _moka(None),
        lambda module, size, function: module.cached(maxsize=size)(function),
        exact=False,
    ),
    Peer(
        "moka-py, TTL",
        "moka-py",
        "moka_py",
        _moka(TTL),
        lambda module, size, function: module.cached(maxsize=size, ttl=TTL)(function),
        ttl=True,
        exact=False,
    ),
    Peer(
        "theine",
        "theine",
        "theine",
        _theine(None),
        lambda module, size, function: module.Memoize(size, None)(function),
        exact=False,
    ),
    Peer(
        "theine, TTL",
        "theine",
        "theine",
        _theine(TTL),
        lambda module, size, function: module.Memoize(size, timedelta(seconds=TTL))(function),
        ttl=True,
        exact=False,
    ),
]


def distributions() -> list[str]:
    """Return what has to be installed for all of them, the engine first."""
    return list(dict.fromkeys([BEASTCORE, *(p.distribution for p in PEERS if p.distribution)]))


def available() -> tuple[list[Peer], list[str]]:
    """Return the peers that can be imported, and the distributions that are missing."""
    found, missing = [], []
    for peer in PEERS:
        try:
            peer.load()
        except ImportError:
            if peer.distribution == BEASTCORE:
                raise
            missing.append(str(peer.distribution))
        else:
            found.append(peer)
    return found, list(dict.fromkeys(missing))
