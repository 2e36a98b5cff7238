"""Caches without timer, weigher and listener, for which the compiled `Cache` stores a shorter way.

The tests in lockstep give every cache a listener and a timer; these compare the twins without.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from cache_lockstep import POLICIES, salted
from support import Twin

SIZES = [1, 2, 7, 8, 9, 40, 300]


def twins(maxsize: int, ttl: float | None, **kwargs: Any) -> list[Any]:
    """Return a compiled and a pure cache with the same salt."""
    caches = []
    for compiled in (True, False):
        twin = Twin(compiled=compiled, tracked=False)
        with salted(twin, 0x5EED_0123_4567_89AB):
            caches.append(twin.raw.Cache(maxsize, ttl, **kwargs))
    return caches


def seen(cache: Any) -> tuple[Any, ...]:
    """Return what can be seen of a cache, but for what it takes in memory."""
    return cache.items(), cache.stats()._replace(bytes=0)


@pytest.mark.compiled_only
@pytest.mark.parametrize("ttl", [None, 1e6])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("maxsize", SIZES)
def test_the_twins_agree(engine: Twin, maxsize: int, policy: str, ttl: float | None) -> None:
    choose = random.Random(f"{maxsize} {policy} {ttl}")
    caches = twins(maxsize, ttl, **POLICIES[policy])
    for step in range(1500):
        key: Any = int(choose.paretovariate(0.7)) % (4 * maxsize + 2)
        if key % 3 == 0:
            key = f"key {key}"
        value = [step] if step % 5 == 0 else step
        operation = choose.random()
        for cache in caches:
            if operation < 0.45:
                cache.get(key)
            elif operation < 0.75:
                cache[key] = value
            elif operation < 0.85:
                cache.set(key, value, None if step % 2 else 1e5)
            elif operation < 0.9:
                cache.setdefault(key, value)
            elif operation < 0.97:
                cache.pop(key, None)
            else:
                cache.expire(5)
        assert seen(caches[0]) == seen(caches[1]), step
        if step % 100 == 0:
            for cache in caches:
                cache._check()


@pytest.mark.compiled_only
@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_one_keeps_its_invariants(engine: Twin, policy: str) -> None:
    """Large enough that what leaves next is fetched ahead; the twin would take minutes."""
    cache = engine.Cache(70_000, 1e6, **POLICIES[policy])
    choose = random.Random(7)
    for _ in range(200_000):
        key = int(choose.random() ** 2 * 300_000)
        if cache.get(key) is None:
            cache[key] = key
    cache._check()
    stats = cache.stats()
    assert stats.currsize == 70_000
    assert stats.evictions > 1000
    assert all(key == value for key, value in cache.items())
    cache.clear()
    cache._check()
