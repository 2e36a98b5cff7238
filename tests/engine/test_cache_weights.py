"""Weights of `Cache`: what is weighed, what is refused, what leaves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from beastcore import RemovalCause
from support import Twin


def make(
    engine: Twin, max_weight: int = 10, maxsize: int = 100, policy: str = "lru"
) -> tuple[Any, list[Any]]:
    """Return a cache of ints that weigh what they are, and the list of what it tells."""
    seen: list[Any] = []
    cache = engine.Cache(
        maxsize,
        policy=policy,
        max_weight=max_weight,
        weigher=lambda key, value: value,
        on_removal=lambda *a: seen.append(a),
    )
    return cache, seen


SETTERS = pytest.mark.parametrize(
    "store",
    [
        lambda c, k, v: c.set(k, v),
        lambda c, k, v: c.__setitem__(k, v),
        lambda c, k, v: c.set_many({k: v}),
        lambda c, k, v: c.set(k, v, 5),
    ],
)


def test_the_weigher_gets_key_and_value(engine: Twin) -> None:
    calls: list[Any] = []

    def weigher(*args: Any) -> int:
        calls.append(args)
        return 1

    cache = engine.Cache(9, max_weight=9, weigher=weigher)
    cache["a"] = 1
    cache.set("b", 2)
    cache.set_many({"c": 3})
    cache.setdefault("d", 4)
    cache.setdefault("d", 5)
    cache.get("a")
    assert calls == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]


def test_the_sum_is_kept(engine: Twin) -> None:
    cache, _ = make(engine)
    cache.set_many({"a": 3, "b": 4, "c": 0})
    assert (cache.weight, cache.max_weight, cache.stats().weight) == (7, 10, 7)
    assert cache.stats().max_weight == 10
    cache["a"] = 1
    assert cache.weight == 5
    del cache["b"]
    assert cache.weight == 1
    cache.clear()
    assert cache.weight == 0


def test_without_a_weigher_an_entry_weighs_one(engine: Twin) -> None:
    cache = engine.Cache(9)
    cache.set_many({i: i for i in range(5)})
    assert (cache.weight, cache.max_weight, cache.stats().max_weight) == (5, None, None)


def test_evicts_until_the_new_one_fits(engine: Twin) -> None:
    cache, seen = make(engine)
    for key, weight in [("a", 3), ("b", 3), ("c", 4)]:
        cache[key] = weight
    cache["d"] = 5
    assert cache.items() == [("c", 4), ("d", 5)]
    assert seen == [("a", 3, RemovalCause.SIZE), ("b", 3, RemovalCause.SIZE)]


def test_exactly_full_evicts_nothing(engine: Twin) -> None:
    cache, seen = make(engine)
    cache["a"], cache["b"] = 6, 4
    assert (cache.weight, seen) == (10, [])
    cache["c"] = 0
    assert (len(cache), seen) == (3, [])


def test_one_entry_may_take_it_all(engine: Twin) -> None:
    cache, seen = make(engine)
    for i in range(10):
        cache[i] = 1
    cache["big"] = 10
    assert cache.items() == [("big", 10)]
    assert [k for k, _, _ in seen] == list(range(10))


def test_more_than_a_few_victims(engine: Twin) -> None:
    cache, seen = make(engine, max_weight=1000, maxsize=2000)
    for i in range(1000):
        cache[i] = 1
    cache["big"] = 1000
    assert len(seen) == 1000
    assert len(cache) == 1


@SETTERS
def test_an_overwrite_that_grows_evicts_others_only(engine: Twin, store: Any) -> None:
    cache, seen = make(engine)
    for key, weight in [("a", 3), ("b", 3), ("c", 4)]:
        cache[key] = weight
    store(cache, "a", 7)  # "a" is the least recently used, yet it stays
    assert cache.items() == [("a", 7)]
    assert seen == [
        ("a", 3, RemovalCause.REPLACED),
        ("b", 3, RemovalCause.SIZE),
        ("c", 4, RemovalCause.SIZE),
    ]


def test_an_overwrite_that_shrinks(engine: Twin) -> None:
    cache, seen = make(engine)
    cache["a"], cache["b"] = 6, 4
    cache["a"] = 1
    cache["c"] = 5
    assert cache.items() == [("b", 4), ("a", 1), ("c", 5)]
    assert seen == [("a", 6, RemovalCause.REPLACED)]


def test_maxsize_counts_as_well(engine: Twin) -> None:
    cache, _ = make(engine, maxsize=2)
    for key in "abc":
        cache[key] = 0
    assert cache.keys() == ["b", "c"]


@SETTERS
def test_too_heavy_leaves_the_old_entry(engine: Twin, store: Any) -> None:
    cache, seen = make(engine)
    cache["a"], cache["b"] = 3, 4
    before = cache.items()
    for key in ("a", "new"):
        with pytest.raises(ValueError, match="above max_weight") as caught:
            store(cache, key, 11)
        assert str(caught.value) == (
            f"weight of the value under {key!r} is 11, above max_weight 10"
        )
    assert (cache.items(), cache.weight, seen) == (before, 7, [])
    assert (cache.stats().rejections, cache.stats().sets) == (2, 2)


def test_setdefault_too_heavy(engine: Twin) -> None:
    cache, _ = make(engine)
    with pytest.raises(ValueError, match="is 11, above max_weight 10"):
        cache.setdefault("a", 11)
    assert len(cache) == 0
    cache["a"] = 3
    assert cache.setdefault("a", 11) == 3  # what is there is not weighed again


def test_set_many_is_weighed_before_anything_is_stored(engine: Twin) -> None:
    cache, seen = make(engine)
    cache["a"] = 3
    with pytest.raises(ValueError, match="under 'c' is 99"):
        cache.set_many([("a", 1), ("b", 2), ("c", 99), ("d", -1)])
    with pytest.raises(ValueError, match="got -1"):
        cache.set_many([("a", 1), ("d", -1)])
    assert (cache.items(), seen) == ([("a", 3)], [])
    assert (cache.stats().rejections, cache.stats().sets) == (1, 1)


@SETTERS
@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        (-1, ValueError, "weigher(key, value) must be zero or positive, got -1"),
        (2**32, ValueError, f"weigher(key, value) must be at most {2**32 - 1}, got {2**32}"),
        (2**80, ValueError, f"weigher(key, value) must be at most {2**32 - 1}, got {2**80}"),
        (1.0, TypeError, "weigher(key, value) must be an int, got 1.0"),
        (True, TypeError, "weigher(key, value) must be an int, got True"),
        (None, TypeError, "weigher(key, value) must be an int, got None"),
        ("1", TypeError, "weigher(key, value) must be an int, got '1'"),
    ],
)
def test_what_is_no_weight(
    engine: Twin, store: Any, weight: Any, error: type[Exception], text: str
) -> None:
    cache, seen = make(engine, max_weight=2**40)
    cache["a"] = 3
    before = cache.items(), cache.stats()
    with pytest.raises(error) as caught:
        store(cache, "a", weight)
    assert str(caught.value) == text
    assert (cache.items(), cache.stats(), seen) == (*before, [])


@SETTERS
def test_a_weigher_that_raises(engine: Twin, store: Any) -> None:
    def weigher(key: Any, value: Any) -> int:
        if value == "bad":
            raise ZeroDivisionError("cannot weigh")
        return 1

    cache = engine.Cache(4, max_weight=9, weigher=weigher)
    cache["a"] = 1
    before = cache.items(), cache.stats()
    with pytest.raises(ZeroDivisionError, match="cannot weigh"):
        store(cache, "a", "bad")
    assert (cache.items(), cache.stats()) == before


def test_the_largest_weights(engine: Twin) -> None:
    cache, _ = make(engine, max_weight=2**63 - 1)
    for i in range(20):
        cache[i] = 2**32 - 1
    assert cache.weight == 20 * (2**32 - 1)
    for bad in (0, -1, 2**63, 1.5):
        with pytest.raises((ValueError, TypeError), match="max_weight must be"):
            engine.Cache(4, max_weight=bad, weigher=lambda k, v: 1)


def test_an_object_with_index_is_a_weight(engine: Twin) -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    cache, _ = make(engine)
    cache["a"] = Two()
    assert cache.weight == 2


def test_a_weigher_that_changes_the_cache(engine: Twin) -> None:
    actions = iter(["clear", "set", "pop", "fill"])

    def weigher(key: Any, value: Any) -> int:
        if value == "evil":
            action = next(actions)
            if action == "clear":
                cache.clear()
            elif action == "set":
                cache["k"] = "inner"
            elif action == "pop":
                cache.pop("k", None)
            else:
                cache.set_many(dict.fromkeys(range(9), "x"))
        return 1

    cache = engine.Cache(3, max_weight=3, weigher=weigher)
    for _ in range(4):
        cache["k"] = "evil"
        cache._check()
        assert cache["k"] == "evil"
        assert len(cache) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_against_a_model(engine: Twin, seed: int) -> None:
    rng = random.Random(seed)
    cache, _ = make(engine, max_weight=50, maxsize=12)
    model: dict[int, int] = {}
    for _ in range(2000):
        key, weight = rng.randrange(30), rng.choice([0, 1, 2, 5, 20, 50])
        if rng.random() < 0.3:
            cache.get(key)
            if key in model:
                model[key] = model.pop(key)
            continue
        cache[key] = weight
        model.pop(key, None)
        while model and (len(model) >= 12 or sum(model.values()) + weight > 50):
            del model[next(iter(model))]
        model[key] = weight
        assert cache.items() == list(model.items())
        assert cache.weight == sum(model.values())
    cache._check()
