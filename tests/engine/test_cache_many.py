"""`get_many`, `set_many` and `delete_many` over several blocks of keys, and what may disturb them.

The compiled twin works on blocks of 64 keys, keeps up to 256 on the stack, and takes only exact
str, bytes and int without calling Python: the tests are about those borders.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from beastcore import RemovalCause
from evil import actions
from support import FakeClock, Twin

BORDERS = [1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 600]
PLACES = [0, 62, 63, 64, 65, 149]
M61 = 2**61 - 1
"""Ints that differ by this have the same hash."""


class Text(str):
    """Equal to its text, by Python code."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True

    def __hash__(self) -> int:
        return str.__hash__(self)


class Number(int):
    """Equal to its number, by Python code."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return int.__eq__(self, other) is True

    def __hash__(self) -> int:
        return int.__hash__(self)


class Does:
    """A key that runs `hashing` when it is hashed and `comparing` when it is compared.

    Its hash is that of the str that it is equal to.
    """

    def __init__(
        self,
        text: str,
        comparing: Callable[[], object] = int,
        hashing: Callable[[], object] = int,
    ) -> None:
        self.text, self.comparing, self.hashing = text, comparing, hashing

    def __eq__(self, other: object) -> bool:
        self.comparing()
        return other == self.text if isinstance(other, str) else self is other

    def __hash__(self) -> int:
        self.hashing()
        return hash(self.text)


def fresh(i: int) -> Any:
    """Return key number i: a str, an int or bytes that nothing else refers to."""
    return (f"key {i}", i << 40, b"key %d" % i)[i % 3]


def texts(n: int) -> list[Any]:
    return [f"key {i}" for i in range(n)]


def filled(engine: Twin, keys: list[Any], **kwargs: Any) -> Any:
    cache = engine.Cache(2000, **kwargs)
    for i, key in enumerate(keys):
        cache[key] = i
    return cache


class TestBorders:
    @pytest.mark.parametrize("n", BORDERS)
    @pytest.mark.parametrize("kind", [list, tuple, iter, dict.fromkeys])
    def test_get_many(self, engine: Twin, n: int, kind: Any) -> None:
        cache = filled(engine, [fresh(i) for i in range(0, n, 2)])
        answers = cache.get_many(kind([fresh(i) for i in range(n)]), "absent")
        assert answers == ["absent" if i % 2 else i // 2 for i in range(n)]
        assert cache.stats()[:2] == ((n + 1) // 2, n // 2)
        assert gc.is_tracked(answers)

    @pytest.mark.parametrize("n", BORDERS)
    @pytest.mark.parametrize("kind", [list, tuple, iter, dict])
    def test_set_many(self, engine: Twin, n: int, kind: Any) -> None:
        cache = filled(engine, [fresh(i) for i in range(0, n, 2)], policy="lru")
        cache.set_many(kind([(fresh(i), -i) for i in range(n)]))
        assert cache.items() == [(fresh(i), -i) for i in range(n)]
        assert cache.stats().sets == (n + 1) // 2 + n

    @pytest.mark.parametrize("n", BORDERS)
    @pytest.mark.parametrize("kind", [list, tuple, iter, dict.fromkeys])
    def test_delete_many(self, engine: Twin, n: int, kind: Any) -> None:
        removed: list[Any] = []
        cache = engine.Cache(2000, on_removal=lambda *a: removed.append(a))
        cache.set_many([(fresh(i), i) for i in range(0, n, 2)])
        cache["stays"] = 1
        assert cache.delete_many(kind([fresh(i) for i in range(n)])) == (n + 1) // 2
        assert removed == [(fresh(i), i, RemovalCause.EXPLICIT) for i in range(0, n, 2)]
        assert cache.items() == [("stays", 1)]

    def test_the_order_of_use(self, engine: Twin) -> None:
        keys = texts(300)
        cache = filled(engine, keys, policy="lru")
        asked = [random.Random(1).choice(keys) for _ in range(400)]
        cache.get_many(asked)
        recent = list(dict.fromkeys(reversed(asked)))[::-1]
        assert cache.keys() == [key for key in keys if key not in asked] + recent

    def test_as_one_at_a_time(self, engine: Twin) -> None:
        rng = random.Random(2)
        one, many = (engine.Cache(100, policy="lru") for _ in range(2))
        for _ in range(20):
            asked = [fresh(rng.randrange(200)) for _ in range(150)]
            assert many.get_many(asked) == [one.get(key) for key in asked]
            stored = [(fresh(rng.randrange(200)), rng.random()) for _ in range(150)]
            many.set_many(stored)
            for key, value in stored:
                one.set(key, value)
            assert many.items() == one.items()
            assert many.stats()[:6] == one.stats()[:6]

    def test_more_than_the_cache_holds(self, engine: Twin) -> None:
        cache = engine.Cache(70, policy="lru")
        cache.set_many((i, i) for i in range(1000))
        assert cache.keys() == list(range(930, 1000))
        assert cache.stats().evictions == 930
        small = engine.Cache(3, policy="lru")
        small.set_many(dict.fromkeys(range(200)))
        assert small.get_many(range(200), "no")[-4:] == ["no", None, None, None]


class TestTime:
    @pytest.mark.parametrize("n", [1, 64, 65, 300])
    def test_one_look_at_the_clock(self, engine: Twin, n: int) -> None:
        looks: list[float] = []

        def timer() -> float:
            looks.append(1.0)
            return 1.0

        cache = engine.Cache(1000, 5, timer=timer)
        keys = [fresh(i) for i in range(n)]
        operations: list[Callable[[], object]] = [
            lambda: cache.set_many(dict.fromkeys(keys)),
            lambda: cache.get_many(keys),
            lambda: cache.get_many([Text("x"), *keys]),
            lambda: cache.delete_many(keys),
        ]
        for operation in operations:
            looks.clear()
            operation()
            assert len(looks) == 1

    @pytest.mark.parametrize("gap", [1, 63, 64, 200])
    def test_an_expired_key_given_twice(self, engine: Twin, clock: FakeClock, gap: int) -> None:
        removed: list[Any] = []
        cache = engine.Cache(1000, timer=clock, on_removal=lambda *a: removed.append(a))
        cache.set_many(dict.fromkeys(range(400), "live"))
        cache.set("old", 1, 1)
        cache.set("older", 2, 1)
        clock.advance(2)
        between = list(range(gap - 1))
        answers = cache.get_many(["old", *between, "old", "older", "old"], "no")
        assert answers == ["no", *["live"] * (gap - 1), "no", "no", "no"]
        assert removed == [("old", 1, RemovalCause.EXPIRED), ("older", 2, RemovalCause.EXPIRED)]
        assert cache.stats()[:2] == (gap - 1, 4)
        assert cache.stats().expirations == 2

    def test_delete_many_of_expired(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(1000, timer=clock)
        keys = texts(200)
        for i, key in enumerate(keys):
            cache.set(key, i, 1 if i % 2 else None)
        clock.advance(2)
        assert cache.delete_many(keys + keys) == 100
        assert (cache.stats().removals, cache.stats().expirations, len(cache)) == (100, 100, 0)

    def test_set_many_over_expired(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(1000, timer=clock)
        keys = texts(200)
        cache.set_many(dict.fromkeys(keys, "old"), 1)
        clock.advance(2)
        cache.set_many([(key, "new") for key in keys], 5)
        assert cache.stats().expirations == 200
        assert cache.get_many(keys) == ["new"] * 200
        assert cache.expires_in(keys[0]) == 5

    def test_a_timer_that_empties_the_list(self, engine: Twin) -> None:
        asked: list[str] = []

        def timer() -> float:
            asked.clear()
            return 1.0

        cache = engine.Cache(1000, 5, timer=timer)
        cache.set_many((key, i) for i, key in enumerate(texts(150)))
        asked += texts(150)
        assert cache.get_many(asked) == list(range(150))
        assert asked == []
        asked += texts(150)
        assert cache.delete_many(asked) == 150


class TestOtherKeys:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("odd", [Text("key 7"), Number(7), ("key", 7), 7.0, None])
    def test_among_plain_ones(self, engine: Twin, place: int, odd: Any) -> None:
        keys = [fresh(i + 1000) for i in range(150)]
        cache = filled(engine, keys)
        asked: list[Any] = []
        equal = str(odd) if isinstance(odd, str) else 7 if odd == 7 else odd
        for key in (odd, equal):  # held as it is, and as a plain key that it is equal to
            cache.pop(odd, None)
            cache[key] = "odd"
            asked = keys.copy()
            asked[place] = odd
            expected: list[Any] = list(range(150))
            expected[place] = "odd"
            assert cache.get_many(asked) == expected
            asked[place] = equal
            assert cache.get_many(asked) == expected
            cache.set_many([(k, k) for k in asked])
            assert cache.get_many(asked) == asked
            cache.set_many([(k, i) for i, k in enumerate(keys)])
        assert cache.delete_many(asked) == 150
        assert cache.keys() == [keys[place]]

    def test_equal_hashes(self, engine: Twin) -> None:
        keys = [i + j * M61 for i in range(50) for j in range(6)]
        cache = filled(engine, keys)
        assert cache.get_many(keys[::-1]) == list(range(300))[::-1]
        assert cache.get_many([key + 6 * M61 for key in keys[::6]]) == [None] * 50
        assert cache.get_many([float(i) for i in range(50)]) == list(range(0, 300, 6))
        assert cache.get_many([True, False, -1, -2]) == [6, 0, None, None]

    @pytest.mark.parametrize("place", PLACES)
    def test_an_error_of_hashing_comes_first(self, engine: Twin, place: int) -> None:
        keys: list[Any] = texts(150)
        cache = filled(engine, keys, policy="lru")
        before = cache.items(), cache.stats()
        keys[place] = []
        for operation in (cache.get_many, cache.delete_many):
            with pytest.raises(TypeError, match="unhashable"):
                operation(keys)
        for pairs in ([(key, 1) for key in keys], iter([(key, 1) for key in keys])):
            with pytest.raises(TypeError, match="unhashable"):
                cache.set_many(pairs)
        assert (cache.items(), cache.stats()) == before

    @pytest.mark.parametrize("place", PLACES)
    def test_an_error_of_comparing(self, engine: Twin, place: int) -> None:
        cache = filled(engine, texts(150), policy="lru", slack=0)
        before = cache.items(), cache.stats()
        keys: list[Any] = texts(150)[::-1]
        keys[place] = Does(keys[place], comparing=lambda: 1 // 0)
        for operation in (cache.get_many, cache.delete_many):
            with pytest.raises(ZeroDivisionError):
                operation(keys)
            assert (cache.items(), cache.stats()) == before
        with pytest.raises(ZeroDivisionError):
            cache.set_many([(key, "new") for key in keys])
        assert cache.items()[150 - place :] == [(key, "new") for key in keys[:place]]
        assert cache.stats().sets == 150 + place


class TestDisturbed:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("when", ["hashing", "comparing"])
    def test_the_list_is_emptied(self, engine: Twin, place: int, when: str) -> None:
        cache = filled(engine, texts(150))
        keys: list[Any] = []

        def refill() -> list[Any]:
            keys[:] = texts(150)
            keys[place] = Does(keys[place], **{when: keys.clear})
            return keys

        assert cache.get_many(refill()) == list(range(150))
        assert keys == []
        assert cache.delete_many(refill()) == 150

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("when", ["hashing", "comparing"])
    @pytest.mark.parametrize("kind", [list, dict])
    def test_the_pairs_are_emptied(self, engine: Twin, place: int, when: str, kind: Any) -> None:
        cache = filled(engine, texts(150))
        keys: list[Any] = texts(150)
        key = keys[place] = Does(keys[place])
        items = kind([(key, {"of": i}) for i, key in enumerate(keys)])
        setattr(key, when, items.clear)
        cache.set_many(items)
        assert cache.get_many(texts(150)) == [{"of": i} for i in range(150)]
        assert len(items) == 0

    @pytest.mark.parametrize("place", PLACES)
    def test_a_comparison_empties_the_cache(self, engine: Twin, place: int) -> None:
        cache = filled(engine, texts(150))
        keys: list[Any] = texts(150)
        keys[place] = Does(keys[place], comparing=cache.clear)
        assert cache.get_many(keys, "no") == ["no"] * 150
        assert cache.stats()[:2] == (0, 150)
        cache.set_many(dict.fromkeys(texts(150)))
        assert cache.delete_many(keys) == 0

    @pytest.mark.parametrize("place", [70, 149])
    def test_a_comparison_removes_what_was_found(self, engine: Twin, place: int) -> None:
        cache = filled(engine, texts(150))
        keys: list[Any] = texts(150)
        keys[place] = Does(keys[place], comparing=lambda: cache.delete_many(texts(60)))
        assert cache.get_many(keys, "no") == ["no"] * 60 + list(range(60, 150))
        assert cache.stats()[:2] == (90, 60)

    @pytest.mark.parametrize("place", [3, 64, 149])
    def test_whatever_a_comparison_does(self, engine: Twin, place: int) -> None:
        for name in actions(engine.Cache(1), 0):
            cache = filled(engine, texts(150))
            keys: list[Any] = texts(150)
            keys[place] = Does(keys[place], comparing=actions(cache, "key 1")[name])
            try:
                answers = cache.get_many(keys)
                assert all(a in (None, i, "again") for i, a in enumerate(answers)), name
                cache.set_many((key, "new") for key in keys)
                assert set(cache.get_many(keys[:place])) <= {"new", "again", None}, name
                assert 0 <= cache.delete_many(keys) <= 150, name
            except RuntimeError as error:
                assert str(error) == "cache changed during key comparison"
            cache._check()

    def test_a_collection_changes_the_keys(self, engine: Twin) -> None:
        """The answers are made while a collection may run any code."""
        cache = filled(engine, texts(150))
        keys = texts(100)
        threshold = gc.get_threshold()

        def more(phase: str, info: dict[str, int]) -> None:
            if len(keys) < 150:
                keys.append(f"key {len(keys)}")

        gc.callbacks.append(more)
        try:
            gc.set_threshold(1)
            answers = cache.get_many(keys)
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(more)
        assert answers == list(range(len(answers)))
        assert 100 <= len(answers) <= 150


@pytest.mark.parametrize("n", [10, 64, 300])
def test_references(engine: Twin, clock: FakeClock, n: int) -> None:
    """Keys, values and the default are held exactly as long as they are needed."""
    cache = engine.raw.Cache(1000, timer=clock)
    value, default, boom = object(), object(), object()
    keys: list[Any] = [*texts(n - 1), Does("last")]
    failing = [*keys, Does("key 0", comparing=lambda: 1 // 0)]
    things = [value, default, boom, *keys]

    def use() -> None:
        cache.set_many([(key, value) for key in keys])
        cache.set_many(dict.fromkeys(keys, value), 1)
        assert cache.get_many([*keys, "x"], default) == [value] * n + [default]
        with pytest.raises(ZeroDivisionError):
            cache.get_many(failing, default)
        with pytest.raises(ZeroDivisionError):
            cache.set_many((key, boom) for key in failing)
        clock.advance(3)
        cache.set_many(dict.fromkeys(keys, value), 1)
        clock.advance(3)
        assert cache.get_many(keys, default) == [default] * n
        cache.set_many(dict.fromkeys(keys, value))
        assert cache.delete_many(tuple(keys)) == n

    use()
    before = [sys.getrefcount(thing) for thing in things]
    for _ in range(5):
        use()
    assert [sys.getrefcount(thing) for thing in things] == before
