"""`cached` on methods: results per instance, held weakly and by identity."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pytest

from beastcore._types import CacheInfo
from support import FakeClock, Twin


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Switch cyclic collection off: what dies, dies of its reference count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make_class(engine: Twin, **options: Any) -> type:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name
            self.calls: list[tuple[Any, ...]] = []

        @engine.cached(**options)
        def price(self, item: str, *, tax: int = 0) -> str:
            """Return the price."""
            self.calls.append((item, tax))
            return f"{self.name}/{item}/{tax}"

    return Shop


def test_results_are_held_per_instance(engine: Twin) -> None:
    shop = make_class(engine, maxsize=2)
    a, b = shop("a"), shop("b")
    for _ in range(2):
        assert a.price("x") == "a/x/0"
        assert b.price("x") == "b/x/0"
        assert a.price("x", tax=1) == "a/x/1"
    assert a.calls == [("x", 0), ("x", 1)]
    assert a.price.cache_info() == CacheInfo(2, 2, 2, 2)
    assert b.price.cache_info() == CacheInfo(1, 1, 2, 1)
    assert shop.price.cache_info() == CacheInfo(3, 3, 2, 3)
    a.price("y")  # the bound of two is each instance's own
    assert a.price.cache_info().currsize == 2
    assert b.price.cache_info().currsize == 1
    shop.price._check()


def test_clear_one_instance_or_all(engine: Twin) -> None:
    shop = make_class(engine)
    a, b = shop("a"), shop("b")
    a.price("x")
    b.price("x")
    a.price.cache_clear()
    assert a.price.cache_info() == CacheInfo(0, 0, 128, 0)
    assert b.price.cache_info() == CacheInfo(0, 1, 128, 1)
    shop.price.cache_clear()
    assert shop.price.cache_info() == CacheInfo(0, 0, 128, 0)
    b.price("x")
    assert b.calls == [("x", 0)] * 2


def test_info_and_clear_of_an_instance_never_called(engine: Twin) -> None:
    shop = make_class(engine)
    a = shop("a")
    assert a.price.cache_info() == CacheInfo(0, 0, 128, 0)
    a.price.cache_clear()


def test_the_instance_is_not_kept_alive(engine: Twin, no_gc: None) -> None:
    shop = make_class(engine)
    a = shop("a")
    a.price("x")
    ref = weakref.ref(a)
    del a
    assert ref() is None


def test_results_go_with_the_instance(engine: Twin, no_gc: None) -> None:
    class Result:
        pass

    class Maker:
        @engine.cached
        def make(self) -> Result:
            return Result()

    maker = Maker()
    ref = weakref.ref(maker.make())
    assert ref() is maker.make()
    del maker
    assert ref() is None
    assert Maker.make.cache_info() == CacheInfo(1, 1, 128, 0)
    Maker.make.cache_clear()
    assert Maker.make.cache_info() == CacheInfo(0, 0, 128, 0)


def test_a_result_that_refers_to_its_instance_goes_when_cleared(engine: Twin) -> None:
    class Node:
        @engine.cached
        def chain(self) -> list[Any]:
            return [self]

    node = Node()
    node.chain()
    ref = weakref.ref(node)
    del node
    gc.collect()
    assert ref() is not None  # as documented: the result holds it
    Node.chain.cache_clear()
    gc.collect()
    assert ref() is None


def test_instances_are_told_apart_by_identity(engine: Twin) -> None:
    class Same:
        n = 0

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

        @engine.cached
        def number(self) -> int:
            Same.n += 1
            return Same.n

    a, b = Same(), Same()
    assert (a.number(), b.number(), a.number(), b.number()) == (1, 2, 1, 2)


def test_a_new_object_at_the_address_of_a_dead_one(engine: Twin) -> None:
    class Numbered:
        __slots__ = ("__weakref__", "n")

        def __init__(self, n: int) -> None:
            self.n = n

        @engine.cached
        def number(self) -> int:
            return self.n

    seen = set()
    for n in range(300):
        obj = Numbered(n)
        seen.add(id(obj))
        assert obj.number() == n
        del obj
    assert len(seen) < 300  # addresses were used again
    assert Numbered.number.cache_info() == CacheInfo(0, 300, 128, 0)


def test_an_object_without_weak_references(engine: Twin) -> None:
    class Slotted:
        __slots__ = ("x",)

        @engine.cached
        def f(self) -> int:
            return 1

    obj = Slotted()
    with pytest.raises(TypeError, match=r"Slotted\.f.*add '__weakref__' to the __slots__ of"):
        obj.f()
    assert callable(obj.f)


@pytest.mark.parametrize("how", ["class", "super", "property"])
def test_unusual_calls_reach_the_same_results(engine: Twin, how: str) -> None:
    class Base:
        def __init__(self) -> None:
            self.calls: list[int] = []

        @engine.cached
        def f(self, x: int) -> int:
            self.calls.append(x)
            return x

    class Sub(Base):
        def g(self, x: int) -> int:
            return super().f(x)

    obj = Sub()
    obj.f(1)
    if how == "class":
        assert Base.f(obj, 1) == Sub.f(obj, 1) == 1
    elif how == "super":
        assert obj.g(1) == 1
    else:
        bound = obj.f
        assert bound(1) == 1
    assert obj.calls == [1]
    assert obj.f.cache_info().hits in {1, 2}


def test_overriding_methods_do_not_mix(engine: Twin) -> None:
    class Base:
        @engine.cached
        def f(self, x: int) -> str:
            return f"base {x}"

    class Sub(Base):
        @engine.cached
        def f(self, x: int) -> str:
            return f"sub of {super().f(x)}"

    obj = Sub()
    for _ in range(2):
        assert obj.f(1) == "sub of base 1"
    assert Base.f.cache_info() == CacheInfo(0, 1, 128, 1)
    assert Sub.f.cache_info() == CacheInfo(1, 1, 128, 1)


def test_classmethod_and_staticmethod(engine: Twin) -> None:
    calls: list[Any] = []

    class Base:
        @classmethod
        @engine.cached
        def make(cls, x: int) -> tuple[type, int]:
            calls.append((cls, x))
            return cls, x

        @staticmethod
        @engine.cached
        def double(x: int) -> int:
            calls.append(x)
            return 2 * x

    class Sub(Base):
        pass

    for _ in range(2):
        assert Base.make(1) == Base().make(1) == (Base, 1)
        assert Sub.make(1) == (Sub, 1)
        assert Base.double(4) == Sub().double(4) == 8
    assert calls == [(Base, 1), (Sub, 1), 4]
    assert Base.make.cache_info() == CacheInfo(4, 2, 128, 2)
    assert Base.double.cache_info() == CacheInfo(3, 1, 128, 1)
    assert list(inspect.signature(Base.make).parameters) == ["x"]
    Base.double.cache_clear()
    assert Base.double.cache_info().currsize == 0


def test_property_above(engine: Twin) -> None:
    class C:
        n = 0

        @property
        @engine.cached
        def value(self) -> int:
            self.n += 1
            return self.n

    a, b = C(), C()
    assert (a.value, a.value, b.value) == (1, 1, 1)


def test_assigned_after_the_class_was_made(engine: Twin) -> None:
    class C:
        def __init__(self) -> None:
            self.calls = 0

    def f(self: C, x: int) -> int:
        self.calls += 1
        return x

    C.f = engine.cached(f)  # type: ignore[attr-defined]
    obj: Any = C()
    assert obj.f(1) == obj.f(1) == C.f(obj, 1) == 1  # type: ignore[attr-defined]
    assert obj.calls == 1
    assert obj.f.cache_info() == CacheInfo(2, 1, 128, 1)


def test_a_function_used_both_ways(engine: Twin) -> None:
    @engine.cached
    def f(x: Any) -> str:
        return type(x).__name__

    class C:
        name = f

    obj = C()
    assert f(3) == "int"
    assert obj.name() == "C"
    assert f(3) == "int"
    assert f(obj) == "C"
    assert f.cache_info() == CacheInfo(2, 2, 128, 2)


def test_abstract_methods(engine: Twin) -> None:
    class A(ABC):
        @engine.cached
        @abstractmethod
        def f(self) -> int: ...

    class B(A):
        @engine.cached
        def f(self) -> int:
            return 1

    with pytest.raises(TypeError, match="abstract"):
        A()  # type: ignore[abstract]
    assert B().f() == 1


def test_metadata_of_a_bound_method(engine: Twin) -> None:
    shop = make_class(engine)
    a, b = shop("a"), shop("a")
    assert a.price.__self__ is a
    assert a.price.__func__ is shop.price
    assert a.price.__name__ == "price"
    assert a.price.__doc__ == "Return the price."
    assert str(inspect.signature(a.price)) == "(item: 'str', *, tax: 'int' = 0) -> 'str'"
    assert str(inspect.signature(shop.price)).startswith("(self, item")
    assert a.price == a.price
    assert hash(a.price) == hash(a.price)
    assert a.price != b.price
    assert a.price != a.price.__func__
    assert repr(a.price) == f"<cached method {shop.price.__qualname__} of {a!r}>"
    assert not hasattr(a.price, "nonsense")
    assert a.price.cache is a.price.cache
    assert a.price.cache is not b.price.cache
    assert not inspect.iscoroutinefunction(a.price)
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (type(a.price),), {})


def test_a_method_that_was_never_bound_is_harmless(engine: Twin) -> None:
    shop = make_class(engine)
    kind = type(shop("a").price)
    for make in (lambda: kind(), lambda: kind(None, 1), lambda: type(shop.price)()):
        with pytest.raises((TypeError, AttributeError)):
            make()()
    bare = kind.__new__(kind)
    for use in (lambda: bare(), lambda: bare(1), lambda: bare.cache):
        with pytest.raises((TypeError, AttributeError)):
            use()
    bound = kind(shop.price, shop("a"))
    assert bound("x") == "a/x/0"


class Portable:
    """An instance that can be pickled with its bound method."""

    @staticmethod
    def number(x: int) -> int:
        return x


def test_copies_of_bound_methods(engine: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    def number(self: Portable, x: int) -> int:
        return x + 1

    monkeypatch.setattr(Portable, "number", engine.cached(number))
    obj = Portable()
    bound: Any = obj.number
    again = pickle.loads(pickle.dumps(bound))
    assert isinstance(again.__self__, Portable)
    assert again(1) == 2
    assert copy.copy(bound) == bound


def test_key_function_gets_the_instance(engine: Twin) -> None:
    class C:
        calls = 0

        @engine.cached(key=lambda self, x: x["id"])
        def f(self, x: dict[str, int]) -> int:
            self.calls += 1
            return x["id"]

    a, b = C(), C()
    assert a.f({"id": 1}) == a.f({"id": 1, "more": 2}) == 1
    assert b.f({"id": 1}) == 1
    assert (a.calls, b.calls) == (1, 1)
    assert a.f.cache.keys() == [1]


def test_time_to_live(engine: Twin, clock: FakeClock) -> None:
    shop = make_class(engine, ttl=5, timer=clock)
    a = shop("a")
    a.price("x")
    clock.advance(5.1)
    a.price("x")
    assert len(a.calls) == 2


# -- a given cache


def test_a_given_cache_tells_instances_apart(engine: Twin, no_gc: None) -> None:
    cache = engine.Cache(50)
    shop = make_class(engine, cache=cache)
    a, b = shop("a"), shop("b")
    for _ in range(2):
        assert a.price("x") == "a/x/0"
        assert b.price("x") == "b/x/0"
    assert len(cache) == 2
    assert a.price.cache is shop.price.cache is cache
    assert a.price.cache_info() == CacheInfo(1, 1, 50, 2)
    a.price.cache_clear()
    assert len(cache) == 1
    ref = weakref.ref(b)
    del b
    assert ref() is None  # the key does not hold the instance,
    assert len(cache) == 1  # its results age out
    c = shop("c")
    assert c.price("x") == "c/x/0"
    shop.price.cache_clear()
    assert len(cache) == 0
    assert shop.price.cache_info() == CacheInfo(0, 0, 50, 0)


def test_a_given_cache_and_key_share_between_instances(engine: Twin) -> None:
    cache = engine.Cache(50)
    shop = make_class(engine, cache=cache, key=lambda self, item: item)
    a, b = shop("a"), shop("b")
    assert a.price("x") == b.price("x") == "a/x/0"
    a.price.cache_clear()
    assert len(cache) == 0


# -- lifetime


def test_a_cycle_through_class_and_method_is_collected(engine: Twin) -> None:
    def make() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        class C:
            @engine.cached
            def f(self) -> Any:
                return C

        obj = C()
        obj.me = obj  # type: ignore[attr-defined]
        obj.bound = obj.f  # type: ignore[attr-defined]
        obj.f()
        return weakref.ref(C), weakref.ref(obj)

    refs = make()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_resurrection(engine: Twin) -> None:
    saved: list[Any] = []

    class Phoenix:
        def __init__(self) -> None:
            self.n = 0

        def __del__(self) -> None:
            saved.append(self)
            self.f()

        @engine.cached
        def f(self) -> int:
            self.n += 1
            return self.n

    phoenix = Phoenix()
    phoenix.f()
    del phoenix
    gc.collect()
    assert saved[0].f() in {1, 2}
    assert saved[0].f.cache_info().currsize == 1
    Phoenix.f._check()


def test_many_instances_leave_nothing(engine: Twin, no_gc: None) -> None:
    class C:
        @engine.cached(maxsize=1)
        def f(self) -> int:
            return 1

    living = [C() for _ in range(2000)]
    for obj in living:
        obj.f()
    assert C.f.cache_info() == CacheInfo(0, 2000, 1, 2000)
    del living[::2], obj
    assert C.f.cache_info() == CacheInfo(0, 2000, 1, 1000)
    living.clear()
    assert C.f.cache_info() == CacheInfo(0, 2000, 1, 0)
