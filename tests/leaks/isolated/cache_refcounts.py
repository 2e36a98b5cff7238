"""References after 2000 writes and `clear()`: each key and value is back where it was.

usage: cache_refcounts.py TWIN
"""

from __future__ import annotations

import gc
import sys
from typing import Any

from support import FakeClock, Twin

Cache: Any = Twin(compiled=sys.argv[1] == "compiled", tracked=False).Cache
clock = FakeClock()


class Key:
    """Equal to none but itself."""


keys = [Key() for _ in range(2000)]
values = [Key() for _ in range(2000)]
texts = [f"key {i}" for i in range(2000)]
default = Key()


def references() -> list[int]:
    gc.collect()
    held = [sys.getrefcount(x) for x in keys + values + texts]
    return [*held, sys.getrefcount(default), sys.getrefcount(clock)]


def use(maxsize: int, ttl: float | None) -> None:
    told: list[Any] = []
    cache = Cache(maxsize, ttl, timer=clock, on_removal=lambda *a: told.append(a))
    for key, value, text in zip(keys, values, texts, strict=True):
        cache[key] = value
        cache[text] = key
        cache.get(key, default)
    for key, value in zip(keys, reversed(values), strict=True):
        cache.set(key, value, 5)
    cache.set_many(zip(texts, values, strict=True))
    cache.get_many(keys, default)
    cache.delete_many(keys[:100])
    for key in keys[100:200]:
        cache.pop(key, default)
        cache.setdefault(key, default)
    cache.popitem()
    clock.advance(7)
    cache.get_many(keys[:1000], default)
    cache.expire(50)
    cache.expire()
    cache.evict(3)
    cache.resize(max(1, maxsize // 2))
    cache.resize(maxsize)
    cache.items()
    list(cache)
    cache.clear()
    assert len(cache) == 0
    told.clear()


use(100, None)
before = references()
for maxsize in (1, 7, 100, 2000, 5000):
    for ttl in (None, 60.0):
        use(maxsize, ttl)
        after = references()
        wrong = [(i, a, b) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert not wrong, (maxsize, ttl, wrong[:5])
