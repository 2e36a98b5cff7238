"""`cached` on functions: keys, options, counters, metadata, a given cache."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import math
import pickle
import sys
import threading
import weakref
from typing import Any

import pytest

from beastcore._types import CacheInfo
from support import FakeClock, Twin


def recorder(result: Any = None) -> Any:
    """Return a function that records its calls in `.calls`."""

    def function(*args: Any, **kwargs: Any) -> Any:
        function.calls.append((args, kwargs))
        return result if result is not None else (args, tuple(kwargs.items()))

    function.calls = []
    return function


def pickled(x: int) -> int:
    """Return x; replaced by its cached self in the test of pickling."""
    return x


# -- results and keys


def test_a_second_call_is_a_hit(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(maxsize=10)(f)
    assert g(1, 2) == g(1, 2) == ((1, 2), ())
    assert f.calls == [((1, 2), {})]
    assert g.cache_info() == CacheInfo(hits=1, misses=1, maxsize=10, currsize=1)
    assert type(g.cache_info()) is CacheInfo


def test_bare_decorator(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(f)
    g("x")
    g("x")
    assert len(f.calls) == 1
    assert g.cache_info() == CacheInfo(1, 1, 128, 1)


def test_none_and_false_are_kept(engine: Twin) -> None:
    calls = []

    @engine.cached
    def f(x: object) -> object:
        calls.append(x)
        return x

    for value in (None, False, 0, "", ()):
        assert f(value) is f(value)
    assert len(calls) == 5


def test_no_arguments(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(f)
    g()
    g()
    assert len(f.calls) == 1
    assert g.cache_info().currsize == 1


def test_keywords_are_kept_apart_from_positions(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(f)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}),
        ((), {"a": 1}),
        ((("a", 1),), {}),
        (("a", 1), {}),
        ((1,), {"a": 1}),
        ((1, "a", 1), {}),
        ((), {"b": 1}),
        ((), {"a": 1, "b": 1}),
    ]
    for _ in range(2):
        for args, kwargs in calls:
            assert g(*args, **kwargs) == (args, tuple(kwargs.items()))
    assert f.calls == calls
    assert g.cache_info().hits == len(calls)


def test_single_exact_str_int_bytes_are_their_own_keys(engine: Twin) -> None:
    g = engine.cached(recorder())
    for value in ("a", 1, b"b"):
        g(value)
    assert sorted(map(str, g.cache.keys())) == sorted(map(str, ["a", 1, b"b"]))
    g(1.5)
    g(True)
    assert g.cache_info().currsize == 5


@pytest.mark.parametrize("typed", [False, True])
def test_typed(engine: Twin, typed: bool) -> None:
    g = engine.cached(typed=typed)(recorder())
    for call in [(1, 0), (1.0, 0), (True, 0)]:
        g(*call)
    g(x=1)
    g(x=1.0)
    assert g.cache_info().currsize == (5 if typed else 2)


def test_typed_tells_a_subclass_apart(engine: Twin) -> None:
    class Name(str):
        pass

    g = engine.cached(typed=True)(lambda x: type(x))
    assert g("a") is str
    assert g(Name("a")) is Name
    assert g("a") is str
    assert g(1) is int
    assert g(True) is bool
    assert g(1.0) is float


def test_the_key_is_hashed_once_and_compared_by_equality(engine: Twin) -> None:
    class Key:
        hashed = 0

        def __init__(self, n: int) -> None:
            self.n = n

        def __hash__(self) -> int:
            Key.hashed += 1
            return 7

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.n == other.n

    g = engine.cached(lambda key: key.n)
    assert g(Key(1)) == 1  # a miss looks up and stores with one hash
    assert Key.hashed == 1
    assert g(Key(2)) == 2
    assert g(Key(1)) == 1
    assert Key.hashed == 3
    assert g.cache_info()[:2] == (1, 2)


def test_errors_of_hash_and_eq_propagate(engine: Twin) -> None:
    class Bad:
        def __init__(self, where: str) -> None:
            self.where = where

        def __hash__(self) -> int:
            if self.where == "hash":
                raise ZeroDivisionError("hash")
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("eq")

    f = recorder()
    g = engine.cached(f)
    with pytest.raises(ZeroDivisionError, match="hash"):
        g(Bad("hash"))
    g(Bad("eq"))
    with pytest.raises(ZeroDivisionError, match="eq"):
        g(Bad("eq"))
    assert len(f.calls) == 1
    assert g.cache_info() == CacheInfo(0, 1, 128, 1)


def test_unhashable_argument_is_named_by_type(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(f)
    with pytest.raises(TypeError, match=r"unhashable type: 'list'"):
        g([])
    with pytest.raises(TypeError, match=r"unhashable type: 'dict'"):
        g(x={})
    assert f.calls == []
    assert g.cache_info() == CacheInfo(0, 0, 128, 0)


def test_exceptions_are_not_kept(engine: Twin) -> None:
    calls = []

    @engine.cached
    def f(x: int) -> int:
        calls.append(x)
        if len(calls) < 3:
            raise ValueError(f"try {len(calls)}")
        return x

    for n in (1, 2):
        with pytest.raises(ValueError, match=f"try {n}"):
            f(1)
    assert f(1) == f(1) == 1
    assert f.cache_info() == CacheInfo(1, 3, 128, 1)


def test_recursion(engine: Twin) -> None:
    @engine.cached(maxsize=300)
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert fib(100) == 354224848179261915075
    assert fib.cache_info() == CacheInfo(98, 101, 300, 101)


def test_endless_recursion_is_a_recursion_error(engine: Twin) -> None:
    @engine.cached
    def f(x: int) -> int:
        return f(x)

    with pytest.raises(RecursionError):
        f(1)
    assert f.cache_info().currsize == 0


def test_least_recently_used_goes_first(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(maxsize=2)(f)
    for x in (1, 2, 1, 3, 1, 2):
        g(x)
    assert [args[0] for args, _ in f.calls] == [1, 2, 3, 2]
    assert g.cache_info() == CacheInfo(2, 4, 2, 2)


def test_time_to_live(engine: Twin, clock: FakeClock) -> None:
    f = recorder()
    g = engine.cached(ttl=5, timer=clock)(f)
    g(1)
    clock.advance(4.9)
    g(1)
    assert len(f.calls) == 1
    clock.advance(0.2)
    g(1)
    assert len(f.calls) == 2
    assert g.cache.ttl == 5.0


def test_key_function(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(key=lambda user, /, *, verbose=False: user["id"])(f)
    g({"id": 7}, verbose=True)
    g({"id": 7, "name": "x"})
    assert len(f.calls) == 1
    assert g.cache.keys() == [7]
    assert g.cache.pop(7) == (({"id": 7},), (("verbose", True),))
    g({"id": 7})
    assert len(f.calls) == 2
    with pytest.raises(KeyError, match="id"):
        g({})
    with pytest.raises(TypeError, match="unhashable"):
        g({"id": []})


# -- clearing


def test_cache_clear(engine: Twin) -> None:
    f = recorder()
    g = engine.cached(f)
    g(1)
    g(1)
    g.cache_clear()
    assert g.cache_info() == CacheInfo(0, 0, 128, 0)
    g(1)
    assert len(f.calls) == 2


def test_a_result_begun_before_clear_is_not_kept(engine: Twin) -> None:
    @engine.cached
    def f(x: int) -> int:
        if x:
            f.cache_clear()
        return x

    assert f(1) == 1
    assert f.cache_info().currsize == 0
    f(0)
    assert f.cache_info().currsize == 1


# -- options


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"maxsize": 0}, ValueError, "maxsize must be positive, got 0"),
        ({"maxsize": -3}, ValueError, "maxsize must be positive, got -3"),
        ({"maxsize": None}, TypeError, "maxsize must be an int, got None.*bounded by design"),
        ({"maxsize": True}, TypeError, "maxsize must be an int, got True"),
        ({"maxsize": 1.5}, TypeError, r"maxsize must be an int, got 1\.5"),
        ({"maxsize": "9"}, TypeError, "maxsize must be an int, got '9'"),
        ({"maxsize": 2**40}, ValueError, "maxsize must be at most"),
        ({"ttl": 0}, ValueError, "ttl must be positive.*got 0"),
        ({"ttl": -1.0}, ValueError, "ttl must be positive.*got -1.0"),
        ({"ttl": math.nan}, ValueError, "ttl must be .*got nan"),
        ({"ttl": "1"}, TypeError, "ttl must be .*got '1'"),
        ({"ttl": 1e300}, ValueError, "ttl must be at most"),
        ({"key": 5}, TypeError, "key must be callable or None, got 5"),
        ({"typed": 1}, TypeError, "typed must be a bool, got 1"),
        ({"timer": 3.0}, TypeError, r"timer must be callable or None, got 3\.0"),
        ({"cache": {}}, TypeError, r"cache must be a beastcore.Cache, got \{\}"),
        ({"cache": 7}, TypeError, "cache must be a beastcore.Cache, got 7"),
    ],
)
def test_bad_options(
    engine: Twin, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        engine.cached(**options)


@pytest.mark.parametrize("name", ["maxsize", "ttl", "timer"])
def test_options_that_a_given_cache_excludes(engine: Twin, name: str, clock: FakeClock) -> None:
    cache = engine.Cache(5)
    value = clock if name == "timer" else 128
    with pytest.raises(ValueError, match=f"{name} cannot be given with cache"):
        engine.cached(**{name: value, "cache": cache})


def test_the_class_is_no_cache(engine: Twin) -> None:
    with pytest.raises(TypeError, match=r"cache must be a beastcore.Cache, got <class"):
        engine.cached(cache=engine.raw.Cache)


@pytest.mark.parametrize("value", [5, "text", None, [1]])
def test_what_is_not_callable_is_refused(engine: Twin, value: object) -> None:
    with pytest.raises(TypeError, match=r"cached can only decorate a callable, got ") as caught:
        engine.cached()(value)
    assert repr(value) in str(caught.value)


def test_generators_are_refused(engine: Twin) -> None:
    def generate() -> Any:
        yield 1

    async def agenerate() -> Any:
        yield 1

    class Callable:
        def __call__(self) -> Any:
            yield 1

    with pytest.raises(TypeError, match=r"generator function .*generate: .*only once"):
        engine.cached(generate)
    with pytest.raises(TypeError, match=r"asynchronous generator function .*agenerate"):
        engine.cached(maxsize=3)(agenerate)
    with pytest.raises(TypeError, match="generator function"):
        engine.cached(Callable())
    with pytest.raises(TypeError, match="generator function"):
        engine.cached(functools.partial(generate))


def test_wrong_order_of_decorators_is_refused(engine: Twin) -> None:
    for kind in (staticmethod, classmethod):
        name = kind.__name__
        with pytest.raises(TypeError, match=f"write @{name} above @cached"):
            engine.cached(kind(lambda: 1))
        with pytest.raises(TypeError, match=f"write @{name} above @cached"):
            engine.cached(maxsize=3)(kind(lambda: 1))
    with pytest.raises(TypeError, match="cached_property"):
        engine.cached(property(lambda self: 1))


def test_a_returned_coroutine_is_refused(engine: Twin) -> None:
    async def work() -> int:
        return 1

    g = engine.cached(lambda: work())
    with pytest.raises(TypeError, match=r"returned a coroutine.*'async def' function itself"):
        g()
    assert g.cache_info().currsize == 0


# -- metadata


def test_metadata(engine: Twin) -> None:
    def area(width: float, height: float = 2.0, *, unit: str = "m") -> float:
        """Return the area."""
        return width * height

    area.extra = "kept"  # type: ignore[attr-defined]
    g = engine.cached(area)
    assert g.__wrapped__ is area
    assert (g.__name__, g.__doc__, g.__module__) == ("area", "Return the area.", __name__)
    assert g.__qualname__ == area.__qualname__
    assert g.extra == "kept"
    assert inspect.signature(g) == inspect.signature(area)
    assert g.__annotations__ == area.__annotations__
    assert callable(g)
    assert not inspect.iscoroutinefunction(g)
    assert repr(g) == f"<cached function {area.__qualname__}>"


def test_any_callable(engine: Twin) -> None:
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    adder = Adder()
    g = engine.cached(adder)
    assert g(1) == g(1) == 2
    assert repr(g) == f"<cached function {adder!r}>"
    assert engine.cached(functools.partial(max, 3))(5) == 5
    assert engine.cached(len)("abc") == 3
    point = engine.cached(complex)
    assert point(1, 2) is point(1, 2)
    twice = engine.cached(engine.cached(lambda x: x * 2))
    assert twice(4) == twice(4) == 8
    assert twice.cache_info() == CacheInfo(1, 1, 128, 1)
    assert twice.__wrapped__.cache_info() == CacheInfo(0, 1, 128, 1)


def test_attributes_of_the_wrapped_cannot_break_the_wrapper(engine: Twin) -> None:
    def f(x: int) -> int:
        return x

    for name in ("_function", "_own", "_given", "_maxsize", "cache_info"):
        setattr(f, name, "clobbered")
    g = engine.cached(f)
    assert g(1) == g(1) == 1
    assert engine.cached(f).cache_info is not None


def test_copy_and_pickle_by_name(engine: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    g = engine.cached(pickled)
    assert copy.copy(g) is g
    assert copy.deepcopy(g) is g
    monkeypatch.setattr(sys.modules[__name__], "pickled", g)
    assert pickle.loads(pickle.dumps(g)) is g


def test_final(engine: Twin) -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (type(engine.cached(len)),), {})


# -- a given cache


def test_functions_on_one_cache_do_not_collide(engine: Twin) -> None:
    cache = engine.Cache(100)
    f = engine.cached(cache=cache)(lambda x: ("f", x))
    g = engine.cached(cache=cache, typed=True)(lambda x: ("g", x))
    cache["x"] = "mine"
    for _ in range(2):
        assert f("x") == ("f", "x")
        assert g("x") == ("g", "x")
    assert f.cache is g.cache is cache
    assert len(cache) == 3
    assert f.cache_info() == CacheInfo(1, 1, 100, 3)
    f.cache_clear()
    assert f.cache_info() == CacheInfo(0, 0, 100, 2)
    assert g("x") == ("g", "x")
    assert g.cache_info().hits == 2
    assert cache["x"] == "mine"


def test_a_given_cache_with_key(engine: Twin) -> None:
    cache = engine.Cache(100)
    f = recorder(1)
    g = engine.cached(cache=cache, key=lambda x: ("user", x))(f)
    g(7)
    assert cache[("user", 7)] == 1
    del cache[("user", 7)]
    g(7)
    assert len(f.calls) == 2
    g.cache_clear()
    assert len(cache) == 0


def test_a_value_too_heavy_is_returned_but_not_kept(engine: Twin) -> None:
    cache = engine.Cache(100, max_weight=10, weigher=lambda key, value: len(value))
    f = engine.cached(cache=cache)(lambda n: "x" * n)
    assert f(11) == f(11) == "x" * 11
    assert f(5) == f(5) == "x" * 5
    assert f.cache_info() == CacheInfo(1, 3, 100, 1)
    assert cache.stats().rejections == 2


def test_an_error_of_the_weigher_propagates(engine: Twin) -> None:
    def weigher(key: object, value: object) -> int:
        raise ValueError("cannot weigh")

    f = engine.cached(cache=engine.Cache(100, max_weight=10, weigher=weigher))(len)
    with pytest.raises(ValueError, match="cannot weigh"):
        f("abc")


def test_a_cache_of_the_other_twin(engine: Twin) -> None:
    from beastcore._pure.cache import Cache

    cache: Any = Cache(10)
    f = engine.cached(cache=cache)(lambda x: x + 1)
    assert f(1) == f(1) == 2
    assert f.cache is cache
    f.cache_clear()
    assert len(cache) == 0


def test_keys_of_a_given_cache_name_the_function(engine: Twin) -> None:
    cache = engine.Cache(10)
    engine.cached(cache=cache)(recorder())(1, a=2)
    assert "recorder.<locals>.function" in repr(cache.keys()[0])


# -- lifetime


def test_a_cycle_through_the_function_is_collected(engine: Twin) -> None:
    class Node:
        pass

    def make() -> weakref.ref[Any]:
        node = Node()

        @engine.cached
        def f(x: int) -> Any:
            return node

        f(1)
        node.f = f  # type: ignore[attr-defined]
        return weakref.ref(node)

    gc.disable()
    try:
        ref = make()
        assert ref() is not None
    finally:
        gc.enable()
    gc.collect()
    assert ref() is None


def test_a_function_without_cycle_dies_at_once(engine: Twin) -> None:
    gc.disable()
    try:
        f = engine.cached(len)
        f("abc")
        ref = weakref.ref(f)
        del f
        assert ref() is None
    finally:
        gc.enable()


def test_threads(engine: Twin) -> None:
    @engine.cached(maxsize=50)
    def f(x: int) -> int:
        return x * 2

    wrong: list[int] = []
    barrier = threading.Barrier(4)

    def work(seed: int) -> None:
        barrier.wait()
        for n in range(3000):
            x = (n * (seed + 3)) % 97
            if f(x) != x * 2:
                wrong.append(x)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert f.cache_info().currsize == 50
    f._check()
