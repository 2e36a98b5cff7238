"""Do one operation of `Cache` many times; exit code 1 if objects or memory blocks remain.

usage: cache_leaks.py TWIN OPERATION
"""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from collections.abc import Callable
from typing import Any

from beastcore import RemovalCause
from engine_tools import references
from leak_tools import Bad, Value, refused
from support import FakeClock, Twin

Cache: Any = Twin(compiled=sys.argv[1] == "compiled", tracked=False).Cache
clock = FakeClock()


def cache(n: int = 20, *, maxsize: int = 32, ttl: float | None = None, **kwargs: Any) -> Any:
    made = Cache(maxsize, ttl, timer=clock, **kwargs)
    for i in range(n):
        made[str(i)] = Value()
    return made


def expired() -> Any:
    made = cache(ttl=1.0)
    clock.advance(2)
    return made


def construct_badly() -> None:
    for kwargs in (
        {"maxsize": 0},
        {"maxsize": 5, "ttl": -1},
        {"maxsize": 5, "policy": "x"},
        {"maxsize": 5, "timer": 5},
        {"maxsize": 5, "on_removal": 5},
        {"maxsize": 5, "max_weight": 5},
    ):
        refused((ValueError, TypeError), lambda k=kwargs: Cache(**k))  # type: ignore[arg-type]
    refused(TypeError, lambda: Cache(5, timer=lambda: "x"))


def cycle() -> None:
    made = cache()
    made["me"] = made
    made[(made.get, 1)] = made


def iterate() -> None:
    made = cache()
    assert len(list(made)) == 20
    iterator = iter(made)
    next(iterator)
    made.clear()
    refused(RuntimeError, next, iterator)


def told(key: Any, value: Any, cause: RemovalCause) -> None:
    assert isinstance(cause, RemovalCause)


def failing(key: Any, value: Any, cause: RemovalCause) -> None:
    raise ZeroDivisionError


def unraisable() -> None:
    before, sys.unraisablehook = sys.unraisablehook, lambda args: None
    try:
        cache(40, on_removal=failing).clear()
    finally:
        sys.unraisablehook = before


def change_while_comparing() -> None:
    class Key:
        def __init__(self, act: Any = None) -> None:
            self.act = act

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            for key in (self, other):
                if isinstance(key, Key) and key.act is not None:
                    key.act()
            return True

    made = cache()

    def renew() -> None:
        made.clear()
        made[Key()] = Value()

    made[Key()] = 1
    refused(RuntimeError, made.get, Key(renew))
    made.clear()


def weigh() -> None:
    made = Cache(20, max_weight=10, weigher=lambda k, v: v)
    for i in range(30):
        made[i] = i % 5
        made[0] = i % 7
    refused(ValueError, made.set, 1, 11)
    refused(ValueError, made.set, 1, -1)
    refused(TypeError, made.set, 1, "x")


OPERATIONS: dict[str, Callable[[], Any]] = {
    "construct": lambda: Cache(100),
    "construct_large": lambda: Cache(100_000),
    "construct_badly": construct_badly,
    "get": lambda: [(c := cache()).get("1"), c.get("x"), c.get("y", Value()), c["2"]],
    "getitem_absent": lambda: refused(KeyError, cache().__getitem__, Value()),
    "get_expired": lambda: [expired().get("1")],
    "peek": lambda: [cache().peek("1"), cache().peek("x", Value())],
    "contains": lambda: ["1" in (c := cache()), Value() in c],
    "set": lambda: [cache().set("n", Value()), cache().set("n", Value(), 5)],
    "set_badly": lambda: [
        refused(ValueError, cache().set, "n", Value(), -1),
        refused(TypeError, cache().set, [], Value()),
    ],
    "overwrite": lambda: [(c := cache()).set("1", Value()), c.__setitem__("1", Value())],
    "overwrite_expired": lambda: [expired().set("1", Value())],
    "evicting": lambda: cache(100),
    "grow": lambda: cache(600, maxsize=700),
    "eq_raises": lambda: [
        refused(ZeroDivisionError, cache().get, Bad("0")),
        refused(ZeroDivisionError, cache().set, Bad("0"), Value()),
        refused(ZeroDivisionError, cache().get_many, ["1", Bad("0")]),
        refused(ZeroDivisionError, cache().delete_many, ["1", Bad("0")]),
        refused(ZeroDivisionError, cache().set_many, [("1", Value()), (Bad("0"), Value())]),
    ],
    "change_while_comparing": change_while_comparing,
    "get_many": lambda: [cache().get_many(["1", "x", "2", "1"]), expired().get_many("123" * 9)],
    "set_many": lambda: [
        cache().set_many([(str(i), Value()) for i in range(50)]),
        cache().set_many({Value(): Value()}, 10),
        refused(ValueError, cache().set_many, [("a", Value()), 5]),
        refused(TypeError, cache().set_many, [("a", Value()), ([], 5)]),
    ],
    "delete_many": lambda: [cache().delete_many(["1", "x", "1"]), expired().delete_many("12")],
    "pop": lambda: [(c := cache()).pop("1"), c.pop("1", Value()), refused(KeyError, c.pop, "1")],
    "popitem": lambda: [cache().popitem(), refused(KeyError, expired().popitem)],
    "delitem": lambda: [cache().__delitem__("1"), refused(KeyError, cache().__delitem__, "x")],
    "setdefault": lambda: [(c := cache()).setdefault("1", Value()), c.setdefault("n", Value())],
    "touch": lambda: [cache().touch("1"), cache().touch("1", 5), expired().touch("1")],
    "expires_in": lambda: [cache(ttl=5).expires_in("1"), refused(KeyError, cache().expires_in, 0)],
    "frequency": lambda: [cache().frequency("1"), cache().frequency("x"), expired().frequency("1")],
    "expire": lambda: [expired().expire(), expired().expire(3)],
    "evict": lambda: [cache().evict(3), cache().evict(99)],
    "resize": lambda: [(c := cache()).resize(5), c.resize(9000), c.resize(1)],
    "clear": lambda: [(c := cache()).clear(), c.clear()],
    "lists": lambda: [(c := cache()).keys(), c.values(), c.items(), expired().items()],
    "iterate": iterate,
    "eq": lambda: [cache() == cache(), cache() == {"1": 1}, cache() == 5, cache() != cache()],
    "repr": lambda: [repr(cache()), str(cache())],
    "stats": lambda: [cache().stats(), cache().reset_stats(), len(cache())],
    "properties": lambda: [(c := cache()).maxsize, c.ttl, c.policy, c.timer, c.weight],
    "copy": lambda: [
        refused(TypeError, copy.copy, cache()),
        refused(TypeError, pickle.dumps, cache()),
    ],
    "subscript": lambda: [Cache[str, int]],
    "on_removal": lambda: [(c := cache(60, on_removal=told)).clear(), c.set("1", 1)],
    "on_removal_raises": unraisable,
    "weigh": weigh,
    "cycle": cycle,
}


def count() -> tuple[int, int, int]:
    for _ in range(3):
        gc.collect()
    return sys.getallocatedblocks(), len(gc.get_objects()), references()


def main() -> int:
    name = sys.argv[2]
    operation = OPERATIONS[name]
    rounds = 100
    for _ in range(rounds):
        operation()
    before = count()
    grown = []
    for _ in range(4):
        for _ in range(rounds):
            operation()
        now = count()
        grown.append(tuple(a - b for a, b in zip(now, before, strict=True)))
        before = now
    # One leaked thing per call would be `rounds` in each line; caches settle by then.
    leaked = [line for line in grown if max(line) >= rounds // 2]
    if len(leaked) >= 2:
        print(
            f"{name} leaks: (blocks, objects, references) grown by {grown} in {rounds} calls each"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
