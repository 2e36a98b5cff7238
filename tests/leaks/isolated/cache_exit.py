"""A process that ends with caches in every awkward place; it must print nothing and exit with 0.

usage: cache_exit.py TWIN
"""

from __future__ import annotations

import atexit
import sys
import threading
import warnings
from typing import Any

from support import Twin

warnings.simplefilter("error")
Cache: Any = Twin(compiled=sys.argv[1] == "compiled", tracked=False).Cache


class Evil:
    """Uses the cache when it dies, even when the interpreter is half gone."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __del__(self) -> None:
        self.cache.set("late", 1)
        self.cache.get("late")
        self.cache.pop("late", None)
        self.cache.items()
        self.cache.clear()


class Loop:
    def __init__(self) -> None:
        self.me = self
        self.cache = Cache(3, 60)
        self.cache["me"] = self
        self.cache["cache"] = self.cache

    def __del__(self) -> None:
        self.cache.set("late", self)


def told(key: Any, value: Any, cause: Any) -> None:
    everything.set(("told", key), 1)


everything = Cache(100, 60, on_removal=told)
everything["evil"] = Evil(everything)
everything["loop"] = Loop()
everything[everything.get] = everything
iterator = iter(everything)
next(iterator)
nested = Cache(2)
nested["inner"] = Cache(2)
nested["inner"]["outer"] = nested
nested["evil"] = Evil(nested["inner"])
plain = Cache(10)
plain["evil"] = Evil(plain)
large = Cache(10_000, 0.001)
large.set_many((i, [i]) for i in range(10_000))
sys.modules["kept"] = everything
local = threading.local()
local.cache = Cache(2)
local.cache["evil"] = Evil(local.cache)
atexit.register(everything.set, "at exit", 1)
atexit.register(plain.clear)
