"""Single-flight, stale results and kept errors, many times over; exit code 1 if memory remains."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import beastcore
from beastcore import cached
from engine_tools import leaking
from leak_tools import Bad, Value, refused
from support import FakeClock

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"

sys.unraisablehook = lambda args: None
clock = FakeClock()
jobs: list[Callable[[], None]] = []


def answer(x: Any, **kwargs: Any) -> Value:
    if x == "bad":
        raise LookupError(Value())
    return Value()


class Shop:
    @cached(maxsize=4, single_flight=True)
    def price(self, item: Any) -> Value:
        return answer(item)

    @cached(maxsize=4, ttl=10, stale=10, timer=clock, cache_errors=LookupError)
    def name(self, item: Any) -> Value:
        return answer(item)


single = cached(maxsize=10, single_flight=True)(answer)
stale = cached(maxsize=10, ttl=10, stale=10, timer=clock, single_flight=True)(answer)
handed = cached(maxsize=10, ttl=10, stale=10, timer=clock, refresh=jobs.append)(answer)
errors = cached(maxsize=10, cache_errors=LookupError)(answer)
FUNCTIONS = (single, stale, handed, errors)


def clear() -> None:
    jobs.clear()
    for function in FUNCTIONS:
        function.cache_clear()


def calls() -> None:
    for function in FUNCTIONS:
        for i in range(6):
            function(i)
            function(i, a=i)
            refused(LookupError, function, "bad")
        refused(ZeroDivisionError, lambda f=function: [f(Bad()), f(Bad())])
        refused(TypeError, function, [])
    clear()


def methods() -> None:
    for shop in [Shop() for _ in range(3)]:
        for _ in range(2):
            shop.price(1)
            shop.name(1)
            refused(LookupError, shop.price, "bad")
            refused(LookupError, shop.name, "bad")
            clock.advance(12)


def refreshes() -> None:
    for function in (stale, handed):
        function("a")
        function("b")
        clock.advance(12)
        function("a")
        function("b")
    jobs[0]()
    handed("a")
    clock.advance(12)
    handed("b")
    clear()  # drops a refresh that was not made


def recursion() -> None:
    @cached(single_flight=True)
    def f(x: int) -> Any:
        return f(x - 1) if x else f

    f(5)

    @cached(single_flight=True)
    def g(x: int) -> Any:
        return g(x)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100)
    refused(RecursionError, g, 1)
    sys.setrecursionlimit(limit)


def waiting() -> None:
    entered, leave = threading.Event(), threading.Event()

    @cached(single_flight=True)
    def f(x: str) -> Value:
        entered.set()
        leave.wait(20)
        return answer(x)

    def work(x: str) -> None:
        with contextlib.suppress(LookupError):
            f(x)

    for x in ("good", "bad"):
        entered.clear()
        leave.clear()
        threads = [threading.Thread(target=work, args=(x,)) for _ in range(3)]
        threads[0].start()
        entered.wait(20)
        for thread in threads[1:]:
            thread.start()
        leave.set()
        for thread in threads:
            thread.join(20)


loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda loop, context: None)


def coroutines() -> None:
    calls = 0

    @cached(ttl=10, stale=10, timer=clock, cache_errors=LookupError)
    async def f(x: Any) -> Value:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls > 3:
            raise ValueError(Value())
        return answer(x)

    async def main() -> None:
        await f(1)
        for _ in range(2):
            await asyncio.gather(f("bad"), f("bad"), return_exceptions=True)
        clock.advance(12)
        for _ in range(3):
            await asyncio.gather(f(1), f(1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            clock.advance(0.1)

    loop.run_until_complete(main())


found = leaking([calls, methods, refreshes, recursion, waiting, coroutines])
clear()
gc.collect()
values = sum(isinstance(obj, Value) for obj in gc.get_objects())
if values:
    found.append(f"{values} values remain")
loop.close()
if found:
    sys.exit("leaked: " + "; ".join(found))
