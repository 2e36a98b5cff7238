"""Keys that share a hash: at most the comparisons that dict makes, for plain keys none by Python.

No salt separates keys whose Python hashes are identical, so each operation meets all of them, in
a cache as in a dict. What can be bounded, and is here, is the number of comparisons.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import Twin

PERIOD = sys.hash_info.modulus
"""Ints this far apart have the same hash."""
N = 120
POLICIES = pytest.mark.parametrize("policy", ["adaptive", "lru"])


class Counted:
    """A key that counts how often it is compared; all have the same hash."""

    calls = 0

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> Any:
        Counted.calls += 1
        return isinstance(other, Counted) and self.name == other.name


class Unwilling(Counted):
    """Leaves the answer to the other key, which leaves it, too."""

    __hash__ = Counted.__hash__

    def __eq__(self, other: object) -> Any:
        Counted.calls += 1
        return NotImplemented


def comparisons(operation: Callable[..., object], *args: Any) -> int:
    before = Counted.calls
    operation(*args)
    return Counted.calls - before


def each(operation: Callable[[Any, Any], object], mapping: Any, names: range) -> int:
    """Return how often keys are compared in all when each of `names` is operated on.

    A single one may be met sooner or later in the cache than in the dict, as it is filed anew
    when the cache grows.
    """
    return sum(comparisons(operation, mapping, Counted(name)) for name in names)


def fill(mapping: Any, kind: type[Counted], n: int = N) -> None:
    for i in range(n):
        mapping[kind(i)] = i


@POLICIES
@pytest.mark.parametrize("kind", [Counted, Unwilling])
def test_inserting_compares_as_often_as_dict(
    engine: Twin, policy: str, kind: type[Counted]
) -> None:
    expected = comparisons(fill, {}, kind)
    assert expected == N * (N - 1) // 2 * (2 if kind is Unwilling else 1)
    cache = engine.Cache(2 * N, policy=policy)
    assert comparisons(fill, cache, kind) == expected
    bulk = engine.Cache(2 * N, policy=policy)
    assert comparisons(bulk.set_many, [(kind(i), i) for i in range(N)]) <= expected


LOOKS: dict[str, Callable[[Any, Any], object]] = {
    "get": lambda c, k: c.get(k),
    "in": lambda c, k: k in c,
    "peek": lambda c, k: c.peek(k),
    "touch": lambda c, k: c.touch(k),
    "expires_in": lambda c, k: c.expires_in(k) if k.name < N else None,
    "get_many": lambda c, k: c.get_many([k]),
    "set": lambda c, k: c.set(k, 1) if k.name < N else None,
    "setdefault": lambda c, k: c.setdefault(k, 1) if k.name < N else None,
}


@POLICIES
@pytest.mark.parametrize("name", LOOKS)
def test_looking_compares_as_often_as_dict(engine: Twin, policy: str, name: str) -> None:
    known: dict[Any, int] = {}
    cache = engine.Cache(2 * N, 60, policy=policy)
    fill(known, Counted)
    fill(cache, Counted)
    assert each(lambda d, k: d.get(k), known, range(N)) == N * (N + 1) // 2
    assert each(LOOKS[name], cache, range(N)) == N * (N + 1) // 2
    if name not in {"expires_in", "set", "setdefault"}:
        assert each(LOOKS[name], cache, range(N, N + 3)) == 3 * N


@POLICIES
def test_removing_compares_as_often_as_dict(engine: Twin, policy: str) -> None:
    known: dict[Any, int] = {}
    cache = engine.Cache(2 * N, policy=policy)
    fill(known, Counted)
    fill(cache, Counted)
    for names in (range(5, 30), range(N - 1, 50, -7), range(40, 50)):
        gone = [c.pop(Counted(name), None) for c in (known, cache) for name in names]
        assert gone[: len(names)] == gone[len(names) :]
        left = len(known)
        # Absent keys are compared with all, present ones with half of them on the average.
        absent = (N - left) * left
        for mapping in (known, cache):
            assert each(lambda d, k: d.get(k), mapping, range(N)) == left * (left + 1) // 2 + absent


@POLICIES
def test_evicting_compares_nothing_more(engine: Twin, policy: str) -> None:
    """What leaves is not searched for: a full cache compares the newcomer alone.

    The pure twin looks again once the chain of its entries has changed.
    """
    cache = engine.Cache(50, policy=policy)
    fill(cache, Counted, 50)
    for i in range(100, 140):
        assert comparisons(cache.set, Counted(i), 1) <= (50 if engine.compiled else 100)
    assert comparisons(cache.evict, 10) == comparisons(cache.resize, 20) == 0
    assert comparisons(cache.clear) == 0


def plain_keys() -> Iterator[Any]:
    """Yield plain keys that share one hash by the hundred, and others that nearly equal them."""
    for i in range(-60, 60):
        yield i * PERIOD + 5
        yield (i * PERIOD + 5,)
        yield ("a", i * PERIOD + 5, b"x")
    for sign in (1, -1):
        for bits in (0, 1, 15, 29, 30, 31, 59, 60, 61, 63, 64, 89, 90, 120, 1000):
            yield sign << bits
            yield (sign << bits) - 1
    yield from (0, False, True, 0.0, 1.0, -1, -2, (), (0,), (False,), (0.0,), ((0,),), (0, 0))
    yield from ((None,), ("",), (b"",), ("", ""), ((1, 2), 3), ((1, 2), 3.0), (1.5, 5), (2**70,))


def rebuilt(key: Any) -> Any:
    """Return an equal key of the same type that is another object wherever there may be one."""
    if isinstance(key, tuple):
        return tuple(map(rebuilt, list(key)))
    if isinstance(key, str | bytes):
        return key[:1] + key[1:]
    return int(str(key)) if type(key) is int else key


@POLICIES
def test_plain_keys_are_told_apart_as_dict_does(engine: Twin, policy: str) -> None:
    cache = engine.Cache(2000, policy=policy)
    known: dict[Any, int] = {}
    for number, key in enumerate(plain_keys()):
        cache[key] = known[key] = number
    assert len(cache) == len(known)
    for key in plain_keys():
        again = rebuilt(key)
        assert cache[again] == known[again] == cache.get_many([again])[0], key
        for other in (-1, 1, 3 * PERIOD):
            if isinstance(key, int):
                assert cache.get(key + other) == known.get(key + other), key
    for key in plain_keys():
        assert (cache.pop(rebuilt(key), None) is None) == (known.pop(key, None) is None)
    assert len(cache) == 0


@pytest.mark.parametrize("base", [int, str, bytes, tuple])
def test_subclasses_are_asked(engine: Twin, base: type) -> None:
    """Only exact types are plain; a subclass may mean something else by equal."""
    calls: list[Any] = []

    class Own(base):  # type: ignore[misc, valid-type]
        __hash__ = base.__hash__

        def __eq__(self, other: object) -> Any:
            calls.append(other)
            return base.__eq__(self, other)

    value: Any = {int: 7, str: "k", bytes: b"k", tuple: (1,)}[base]
    cache = engine.Cache(8)
    cache[Own(value)] = 1
    assert cache.get(value) == 1
    assert cache.get(Own(value)) == 1
    cache[(value, 2)] = 2
    assert cache.get((Own(value), 2)) == 2
    assert len(calls) == 3
