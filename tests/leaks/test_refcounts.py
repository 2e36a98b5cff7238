"""Each reference that a `Cache` takes is given back; what it returns is owned by the caller."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from support import Twin


class Thing:
    """Referred to by what the test says, nothing else."""


def test_balance_after_2000_sets_and_clear(engine: Twin, isolated: Callable[..., str]) -> None:
    isolated("cache_refcounts.py", engine.name, pure=not engine.compiled)


def test_an_entry_owns_one_reference_to_each(engine: Twin) -> None:
    cache = engine.raw.Cache(8)
    key, value = Thing(), Thing()
    keys, values = sys.getrefcount(key), sys.getrefcount(value)
    cache[key] = value
    assert sys.getrefcount(key) - keys == 1
    assert sys.getrefcount(value) - values == 1
    cache[key] = value
    cache.set(key, value, 5)
    cache.resize(5000)
    cache.resize(3)
    assert sys.getrefcount(key) - keys == 1
    assert sys.getrefcount(value) - values == 1
    cache.set(key, None)
    assert sys.getrefcount(value) == values
    del cache[key]
    assert sys.getrefcount(key) == keys


RETURNING: list[Callable[[Any, Any], Any]] = [
    lambda c, k: c.get(k),
    lambda c, k: c[k],
    lambda c, k: c.peek(k),
    lambda c, k: c.setdefault(k, 1),
    lambda c, k: c.get_many([k]),
    lambda c, k: c.values(),
    lambda c, k: c.items(),
]


@pytest.mark.parametrize("look", RETURNING)
def test_lookups_return_one_new_reference(engine: Twin, look: Callable[[Any, Any], Any]) -> None:
    cache = engine.raw.Cache(8, 60)
    key, value = Thing(), Thing()
    cache[key] = value
    keys, values = sys.getrefcount(key), sys.getrefcount(value)
    for _ in range(50):
        answer = look(cache, key)
        assert sys.getrefcount(value) - values == 1
        del answer
        assert sys.getrefcount(value) == values
        assert sys.getrefcount(key) == keys


def test_removals_hand_their_reference_over(engine: Twin) -> None:
    cache = engine.raw.Cache(8)
    key, value = Thing(), Thing()
    keys, values = sys.getrefcount(key), sys.getrefcount(value)
    for _ in range(50):
        cache[key] = value
        popped = cache.pop(key)
        assert (sys.getrefcount(value) - values, sys.getrefcount(key) - keys) == (1, 0)
        del popped
        cache[key] = value
        pair = cache.popitem()
        assert (sys.getrefcount(value) - values, sys.getrefcount(key) - keys) == (1, 1)
        del pair
        assert (sys.getrefcount(value), sys.getrefcount(key)) == (values, keys)


def test_defaults_and_misses_keep_nothing(engine: Twin) -> None:
    cache = engine.raw.Cache(8)
    key, default = Thing(), Thing()
    keys, defaults = sys.getrefcount(key), sys.getrefcount(default)
    for _ in range(50):
        cache.get(key, default)
        cache.peek(key, default)
        cache.pop(key, default)
        cache.get_many([key, key], default)
        cache.touch(key)
        cache.delete_many([key])
        assert key not in cache
        with pytest.raises(KeyError):
            cache[key]
    assert (sys.getrefcount(key), sys.getrefcount(default)) == (keys, defaults)


def test_hooks_are_held_once(engine: Twin) -> None:
    def weigher(key: Any, value: Any) -> int:
        return 1

    def timer() -> float:
        return 1.0

    def told(key: Any, value: Any, cause: Any) -> None:
        pass

    before = [sys.getrefcount(f) for f in (weigher, timer, told)]
    cache = engine.raw.Cache(2, 5, max_weight=9, weigher=weigher, timer=timer, on_removal=told)
    for i in range(100):
        cache[i] = i
        cache.get(i)
    held = [sys.getrefcount(f) for f in (weigher, timer, told)]
    assert all(1 <= b - a <= 2 for a, b in zip(before, held, strict=True))
    del cache
    assert [sys.getrefcount(f) for f in (weigher, timer, told)] == before
