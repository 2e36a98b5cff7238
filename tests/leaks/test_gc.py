"""The garbage collector and each class of the engine: cycles are collected, nothing else is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from support import Twin


class Node:
    """One corner of a cycle."""

    def __init__(self, other: Any) -> None:
        self.other = other


def through_value(engine: Twin) -> Any:
    cache = engine.Cache(8, 60)
    cache["node"] = Node(cache)
    return cache


def through_key(engine: Twin) -> Any:
    cache = engine.Cache(8)
    cache[Node(cache)] = 1
    return cache


def through_itself(engine: Twin) -> Any:
    cache = engine.Cache(8)
    cache["me"] = cache
    return cache


def through_a_large_arena(engine: Twin) -> Any:
    cache = engine.Cache(20_000)
    for i in range(10_000):
        cache[i] = i
    cache["node"] = Node(cache)
    for i in range(5000):
        del cache[i]
    return cache


def through_a_resized_arena(engine: Twin) -> Any:
    cache = through_value(engine)
    cache.resize(9000)
    cache["other"] = Node(cache)
    cache.resize(3)
    return cache


def through_an_overwritten_value(engine: Twin) -> Any:
    cache = engine.Cache(8)
    cache["a"] = 1  # no part of the collector's work, until ...
    cache["a"] = Node(cache)
    return cache


def through_an_iterator(engine: Twin) -> Any:
    cache = engine.Cache(8)
    cache["it"] = iter(cache)
    return cache


def through_a_bound_method(engine: Twin) -> Any:
    cache = engine.Cache(8)
    cache["get"] = cache.get
    return cache


def through_two_caches(engine: Twin) -> Any:
    one, two = engine.Cache(8), engine.Cache(8)
    one["two"], two["one"] = two, one
    return one


def through_the_timer(engine: Twin) -> Any:
    node = Node(None)
    cache = engine.Cache(8, 5, timer=lambda: 1.0 if node else 2.0)
    node.other = cache
    return cache


def through_the_callback(engine: Twin) -> Any:
    node = Node(None)
    cache = engine.Cache(8, on_removal=lambda *a: node)
    node.other = cache
    return cache


def through_the_weigher(engine: Twin) -> Any:
    node = Node(None)
    cache = engine.Cache(8, max_weight=9, weigher=lambda k, v: 1 if node else 2)
    node.other = cache
    return cache


CYCLES = [
    through_value,
    through_key,
    through_itself,
    through_a_large_arena,
    through_a_resized_arena,
    through_an_overwritten_value,
    through_an_iterator,
    through_a_bound_method,
    through_two_caches,
    through_the_timer,
    through_the_callback,
    through_the_weigher,
]


@pytest.mark.lifetime
@pytest.mark.parametrize("make", CYCLES)
def test_cycles_are_collected(engine: Twin, make: Callable[[Twin], Any]) -> None:
    gc.collect()
    refs = [weakref.ref(make(engine.raw)) for _ in range(5)]
    gc.collect()
    assert [ref() for ref in refs] == [None] * 5
    assert not gc.garbage


@pytest.mark.lifetime
@pytest.mark.parametrize("make", CYCLES)
def test_what_is_in_use_is_kept(engine: Twin, make: Callable[[Twin], Any]) -> None:
    cache = make(engine.raw)
    before = cache.items()
    for _ in range(3):
        gc.collect()
    cache._check()
    assert [(id(k), id(v)) for k, v in cache.items()] == [(id(k), id(v)) for k, v in before]
    del before
    cache.clear()
    ref = weakref.ref(cache)
    del cache
    gc.collect()
    assert ref() is None


@pytest.mark.lifetime
def test_a_collection_does_not_disturb_plain_entries(engine: Twin) -> None:
    cache = engine.raw.Cache(3000)
    for i in range(2000):
        cache[str(i)] = i
    gc.collect()
    gc.freeze()
    gc.unfreeze()
    cache._check()
    assert cache.values() == list(range(2000))


@pytest.mark.lifetime
def test_clearing_a_cycle_does_not_tell(engine: Twin) -> None:
    told: list[Any] = []
    cache = engine.raw.Cache(8, on_removal=lambda k, v, c: told.append(k))
    cache["me"] = cache
    del cache
    gc.collect()
    assert told == []
