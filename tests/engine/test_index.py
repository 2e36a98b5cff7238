"""The index with lines that overflow, of which caches of ordinary size and keys have next to none.

Keys of one hash have one home, whatever the salt, so that twenty of them fill a line and go on in
the next. `_check` verifies after the steps that each word is where a probe comes by.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from support import Twin

PERIOD = sys.hash_info.modulus
"""Ints this far apart have the same hash."""
ROOMY = 1 << 16
"""The index of a larger cache is so full that one line in twenty overflows."""


def agree(cache: Any, known: dict[int, int], absent: list[int]) -> None:
    keys = list(known)
    assert len(cache) == len(known)
    assert [cache.peek(key) for key in keys] == list(known.values())
    assert cache.get_many(keys) == list(known.values())
    assert not any(key in cache for key in absent)
    assert cache.get_many(absent) == [None] * len(absent)


@pytest.mark.parametrize("n_hashes", [1, 2, 7, 40])
@pytest.mark.parametrize("spread", [1, 16, 17, 33])
def test_full_lines_of_few_hashes(engine: Twin, n_hashes: int, spread: int) -> None:
    """`spread` keys of each of `n_hashes` hashes come, and leave in any order."""
    chance = random.Random(n_hashes * 100 + spread)
    keys = [home + PERIOD * i for home in range(1, n_hashes + 1) for i in range(spread)]
    for maxsize in (len(keys), 4 * len(keys)):  # grown step by step, and with little overflow
        cache = engine.Cache(maxsize, policy="lru")
        known: dict[int, int] = {}
        for number in range(3 * len(keys)):
            key = chance.choice(keys)
            if chance.random() < 0.3 and key in known:
                assert cache.pop(key) == known.pop(key)
            else:
                cache[key] = known[key] = number
            if number % 16 == 0:
                cache._check()
        agree(cache, known, [key for key in keys if key not in known])
        chance.shuffle(keys)
        for number, key in enumerate(keys):
            assert cache.pop(key, None) == known.pop(key, None)
            if number % 16 == 0:
                cache._check()
                agree(cache, known, keys[: number + 1])
        cache._check()


def test_every_line_in_turn_is_full(engine: Twin) -> None:
    """Under so many salts some runs of full lines go from the last one on to the first."""
    keys = [3 + PERIOD * i for i in range(40)]
    for _ in range(60):
        cache = engine.Cache(64)
        cache.set_many([(key, key) for key in keys])
        cache._check()
        assert cache.delete_many(keys[::3]) == len(keys[::3])
        cache._check()
        left = [key for key in keys if key not in keys[::3]]
        agree(cache, {key: key for key in left}, keys[::3])


def test_a_full_large_index_changes(engine: Twin) -> None:
    n = ROOMY + 5000
    chance = random.Random(5)
    cache = engine.Cache(n, policy="lru")
    cache.set_many([(key, key) for key in range(n)])
    cache._check()
    known = dict.fromkeys(range(n), 0)
    for number in range(n, n + 30_000):
        if number % 2:
            key = chance.randrange(number)
            assert (cache.pop(key, None) is None) == (known.pop(key, None) is None)
        cache[number] = number  # which evicts the oldest if nothing has left
        known[number] = 0
        if len(known) > n:
            del known[next(iter(known))]
    cache._check()
    assert sorted(cache.keys()) == sorted(known)
    assert cache.get_many(list(known)) == list(known)
    gone = [key for key in range(n) if key not in known]
    assert cache.get_many(gone) == [None] * len(gone)
    assert cache.delete_many(list(known)) == len(known)
    cache._check()
    assert len(cache) == 0
