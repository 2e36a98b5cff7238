"""Fail each allocation of each operation of the compiled `Cache` in turn.

After every MemoryError the structure must be sound and its content as before the operation; at
the end the operation must succeed. Prints how many failures each operation had.
"""

from __future__ import annotations

import _testcapi
import gc
from collections.abc import Callable
from typing import Any

from leak_tools import refused
from support import FakeClock, Twin

Cache = Twin(compiled=True, tracked=False).Cache
clock = FakeClock()


def small(n: int = 8, **kwargs: Any) -> Any:
    cache = Cache(100, timer=clock, **kwargs)
    for i in range(n):
        cache[str(i)] = [i]
    return cache


def timed(n: int = 40) -> Any:
    clock.now = 1000.0
    cache = Cache(100, 10, timer=clock)
    for i in range(n):
        cache[str(i)] = [i]
    clock.now = 1000.0 + (20 if n == 40 else 1)
    return cache


def large() -> Any:
    cache = Cache(5000)
    for i in range(40):
        cache[i] = i
    return cache


def full(policy: str = "lru") -> Any:
    cache = Cache(40, policy=policy, max_weight=40, weigher=lambda key, value: value)
    for i in range(40):
        cache[i] = 1
    return cache


def before_adapting() -> Any:
    """One entry more, and the policy needs its sketch."""
    cache = Cache(40)
    for i in range(16):
        cache[i] = i
    assert cache.stats().bytes < 4000
    return cache


def adaptive(**kwargs: Any) -> Any:
    """A full cache that takes the next newcomer in and lets another one leave."""
    cache = Cache(40, timer=clock, **kwargs)
    for i in range(80):
        cache[i] = i
        cache.get(i // 2)
    return cache


def empty() -> Any:
    return Cache(40, timer=clock)


def dumped() -> Any:
    return *DUMPED[:4], None, 0.0, DUMPED[4], 40


DUMPED = adaptive(ttl=60)._export()
KEYS = [str(i) for i in range(8)]
PAIRS = [(str(i), i) for i in range(4, 30)]
MANY = KEYS * 40
MORE_PAIRS = PAIRS * 12
WHOLE, PREFIX, LESS = "whole", "prefix", "less"

# name, how the cache is made, what is done, what a failure may leave, fewest failures expected
CASES: list[tuple[str, Callable[[], Any], Callable[[Any], Any], str, int]] = [
    ("construct small", small, lambda c: Cache(10), WHOLE, 4),
    ("construct large", small, lambda c: Cache(10_000, 5, timer=clock), WHOLE, 4),
    ("get", small, lambda c: c.get("1"), WHOLE, 0),
    ("get absent", small, lambda c: c.get("x"), WHOLE, 0),
    ("getitem absent", small, lambda c: absent(c.__getitem__, "x"), WHOLE, 1),
    ("get timed", lambda: timed(8), lambda c: c.get("1"), WHOLE, 0),
    ("get expired", timed, lambda c: c.get("1"), WHOLE, 0),
    ("get tuple", small, lambda c: c.get(("a", 1.5)), WHOLE, 0),
    ("peek", small, lambda c: c.peek("1"), WHOLE, 0),
    ("in", small, lambda c: "1" in c, WHOLE, 0),
    ("set that grows", small, lambda c: c.set("new", 1), WHOLE, 3),
    ("set with ttl", small, lambda c: c.set("new", 1, 5), WHOLE, 3),
    ("set the first ttl", small, lambda c: c.set("1", 1, 5.0), WHOLE, 1),
    ("touch with the first ttl", small, lambda c: c.touch("1", 5.0), WHOLE, 1),
    ("set that grows with timers", lambda: timed(8), lambda c: c.set("new", 1), WHOLE, 4),
    ("set that sweeps", timed, lambda c: c.set("new", 1), WHOLE, 1),
    ("set odd ttl", small, lambda c: c.set("1", 1, 5), WHOLE, 1),
    ("overwrite", small, lambda c: c.set("1", 1), WHOLE, 0),
    ("overwrite expired", timed, lambda c: c.set("1", 1), WHOLE, 0),
    ("set evicting many", full, lambda c: c.set("new", 39), WHOLE, 1),
    ("overwrite evicting many", full, lambda c: c.set(39, 38), WHOLE, 1),
    ("set many weights, adaptive", lambda: full("adaptive"), lambda c: c.set(0, 39), LESS, 1),
    ("set that begins to adapt", before_adapting, lambda c: c.set("new", 1), WHOLE, 1),
    ("set into a full one", adaptive, lambda c: c.set("new", 1), WHOLE, 0),
    ("overwrite in a full one", adaptive, lambda c: c.set(79, 1), WHOLE, 0),
    ("get from a full one", adaptive, lambda c: c.get(79), WHOLE, 0),
    ("set_many into a full one", adaptive, lambda c: c.set_many(PAIRS), PREFIX, 1),
    ("evict from a full one", adaptive, lambda c: c.evict(30), WHOLE, 1),
    ("resize a full one up", adaptive, lambda c: c.resize(9000), WHOLE, 4),
    ("resize a full one down", adaptive, lambda c: c.resize(3), WHOLE, 2),
    ("clear a full one", adaptive, lambda c: c.clear(), WHOLE, 1),
    ("too heavy", full, lambda c: refused(ValueError, c.set, 1, 99), WHOLE, 2),
    ("setdefault", small, lambda c: c.setdefault("new", 1), WHOLE, 3),
    ("get_many", small, lambda c: c.get_many(KEYS), WHOLE, 1),
    ("get_many of a set", small, lambda c: c.get_many(set(KEYS)), WHOLE, 3),
    ("get_many beyond the stack", small, lambda c: c.get_many(MANY), WHOLE, 2),
    ("get_many expired", timed, lambda c: c.get_many(KEYS), WHOLE, 2),
    ("set_many", small, lambda c: c.set_many(PAIRS), PREFIX, 8),
    ("set_many with ttl", small, lambda c: c.set_many(PAIRS, 60), PREFIX, 8),
    ("set_many beyond the stack", small, lambda c: c.set_many(MORE_PAIRS), PREFIX, 9),
    ("delete_many", small, lambda c: c.delete_many(KEYS), WHOLE, 1),
    ("delete_many beyond the stack", small, lambda c: c.delete_many(MANY), WHOLE, 2),
    ("pop", small, lambda c: c.pop("1"), WHOLE, 0),
    ("pop absent", small, lambda c: absent(c.pop, "x"), WHOLE, 1),
    ("popitem", small, lambda c: c.popitem(), WHOLE, 0),
    ("popitem expired", timed, lambda c: absent(c.popitem), PREFIX, 1),
    ("del", small, lambda c: c.__delitem__("1"), WHOLE, 0),
    ("touch", small, lambda c: c.touch("1", 5), WHOLE, 1),
    ("expires_in", lambda: timed(8), lambda c: c.expires_in("1"), WHOLE, 1),
    ("frequency", lambda: timed(8), lambda c: c.frequency("1"), WHOLE, 0),
    ("expire", timed, lambda c: c.expire(), WHOLE, 1),
    ("expire limit", timed, lambda c: c.expire(20), WHOLE, 1),
    ("evict few", small, lambda c: c.evict(3), WHOLE, 0),
    ("evict many", large, lambda c: c.evict(30), WHOLE, 1),
    ("resize down", large, lambda c: c.resize(10), WHOLE, 1),
    ("resize up", large, lambda c: c.resize(9000), WHOLE, 3),
    ("clear", large, lambda c: c.clear(), WHOLE, 1),
    ("dump: what it exports", adaptive, lambda c: c._export(), WHOLE, 6),
    ("dump: what it exports, timed", lambda: timed(8), lambda c: c._export(), WHOLE, 5),
    ("load: what it imports", small, lambda c: c._import(*dumped()), PREFIX, 5),
    ("load that begins to adapt", empty, lambda c: c._import(*dumped()), PREFIX, 5),
    ("keys", small, lambda c: c.keys(), WHOLE, 1),
    ("values", small, lambda c: c.values(), WHOLE, 1),
    ("items", small, lambda c: c.items(), WHOLE, 3),
    ("iter", small, list, WHOLE, 1),
    ("eq", small, lambda c: c == {"1": 1}, WHOLE, 2),
    ("stats", small, lambda c: c.stats(), WHOLE, 1),
    ("repr", small, lambda c: repr(c), WHOLE, 2),
    ("len", small, lambda c: len(c), WHOLE, 0),
    ("properties", small, lambda c: (c.maxsize, c.ttl, c.weight, c.policy), WHOLE, 0),
]


def absent(operation: Callable[..., Any], *args: Any) -> None:
    try:
        operation(*args)
    except KeyError:
        return
    raise AssertionError("no KeyError")


def contents(cache: Any) -> Any:
    return cache.items(), len(cache), cache.maxsize


def main() -> None:
    gc.disable()
    for name, make, operation, leaves, floor in CASES:
        failures = 0
        operation(make())  # Cython's runtime makes what it needs for tracebacks only once
        for n in range(2000):
            cache = make()
            before = contents(cache)
            counters = cache.stats()[:6]
            failed = False
            _testcapi.set_nomemory(n, n + 1)
            try:
                operation(cache)
            except MemoryError:
                failed = True
            finally:
                _testcapi.remove_mem_hooks()
            cache._check()
            if not failed:
                break
            failures += 1
            if leaves == WHOLE:
                assert contents(cache) == before, (name, n, before, contents(cache))
                assert cache.stats()[2:6] == counters[2:], (name, n, counters, cache.stats())
            elif leaves == LESS:
                assert {k for k, _ in contents(cache)[0]} <= {k for k, _ in before[0]}, (name, n)
                assert cache.weight <= cache.max_weight, (name, n)
        else:
            raise AssertionError(f"{name} never succeeded")
        assert failures >= floor, f"{name}: {failures} failures, expected {floor}"
        print(f"{name}: {failures}")


main()
