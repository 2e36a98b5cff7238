"""References after many calls of every kind and `cache_clear()`: all are back where they were."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from typing import Any

import beastcore
from beastcore import cached
from support import FakeClock

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"


class Thing:
    """An argument, a result, an instance."""

    @cached(ttl=10, stale=10, timer=FakeClock())
    def method(self, x: Any) -> Any:
        return x


class Failure(Exception):
    """Kept."""


clock = FakeClock()
things = [Thing() for _ in range(50)]
texts = [f"text {i}" for i in range(50)]
result = Thing()
loop = asyncio.new_event_loop()


def plain(x: Any, y: Any = None) -> Any:
    if y is Failure:
        raise Failure(x)
    return result


async def later(x: Any, y: Any = None) -> Any:
    return plain(x, y)


def references() -> list[int]:
    gc.collect()
    watched = [*things, *texts, result, plain, later, Failure, clock, loop]
    return [sys.getrefcount(each) for each in watched]


def use() -> None:
    jobs: list[Any] = []
    options: dict[str, Any] = {"ttl": 10, "stale": 10, "timer": clock, "cache_errors": Failure}
    f = cached(20, single_flight=True, **options)(plain)
    g = cached(20, refresh=jobs.append, **options)(plain)
    h = cached(20, **options)(later)

    async def await_all(x: Any) -> None:
        await asyncio.gather(h(x), h(x), h(x, y=Failure), h(x, Failure), return_exceptions=True)

    for _ in range(20):
        for thing, text in zip(things, texts, strict=True):
            for key in (thing, text):
                for function in (f, g):
                    function(key)
                    with contextlib.suppress(Failure):
                        function(key, y=Failure)
                loop.run_until_complete(await_all(key))
            thing.method(text)
            clock.advance(3)
        for job in jobs[::2]:
            job()
        jobs.clear()
    for function in (f, g, h):
        function.cache_clear()
    Thing.method.cache_clear()


use()
before = references()
use()
after = references()
loop.close()
if before != after:
    sys.exit(f"references differ: {[b - a for a, b in zip(before, after, strict=True)]}")
