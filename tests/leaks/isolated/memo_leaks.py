"""Every way of using `cached`, many times over; exit code 1 if memory blocks or objects remain."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Any

import beastcore
from beastcore import cached
from engine_tools import references
from leak_tools import Value, refused

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"


class Shop:
    @cached(maxsize=4)
    def price(self, item: Any = None, *, tax: Any = None) -> Value:
        return Value()

    @cached(maxsize=4, typed=True)
    async def fetch(self, item: Any = None) -> Value:
        await asyncio.sleep(0)
        return Value()


class Slotted:
    __slots__ = ()

    @cached
    def f(self) -> None: ...


@cached(maxsize=10, typed=True)
def plain(*args: Any, **kwargs: Any) -> Value:
    return Value()


@cached(maxsize=10, key=lambda x: (x,))
def keyed(x: Any) -> Value:
    return Value()


@cached(maxsize=10)
def failing(x: Any) -> Value:
    raise ValueError(x)


@cached(maxsize=10)
async def failing_later(x: Any) -> Value:
    await asyncio.sleep(0)
    raise ValueError(x)


@cached(maxsize=10)
async def recursive(x: Any) -> Value:
    return await recursive(x)


shared = beastcore.Cache(20)


@cached(cache=shared)
def given(x: Any) -> Value:
    return Value()


class BadHash:
    def __hash__(self) -> int:
        raise ZeroDivisionError


def functions() -> None:
    for i in range(30):
        plain(i)
        plain(str(i))
        plain(i, "two", three=i)
        plain(i, "two", three=i)
        keyed(float(i))
        given(object())
    plain.cache_info()
    plain.cache_clear()
    given.cache_clear()
    cached(lambda x: Value())(1)


def errors() -> None:
    refused(ValueError, lambda: failing("x"))
    refused(TypeError, lambda: plain([]))
    refused(ZeroDivisionError, lambda: plain(1, a=BadHash()))
    refused(TypeError, lambda: Slotted().f())
    refused(ValueError, lambda: cached(maxsize=0))
    refused(TypeError, lambda: cached(1)(1))  # type: ignore[call-overload]
    refused(TypeError, lambda: plain(*[1] * 3, b=[]))


def methods() -> None:
    shops = [Shop() for _ in range(5)]
    for shop in shops:
        for i in range(6):
            shop.price(i)
            shop.price(i, tax=object())
            Shop.price(shop, "x")
            shop.price(*[i], tax=5)
        shop.price.cache_info()
    shops[0].price.cache_clear()
    bound = shops[1].price
    assert bound == shops[1].price
    repr(bound)
    Shop.price.cache_info()


def cycles() -> None:
    class Local:
        @cached
        def me(self) -> Any:
            return self

    local = Local()
    local.me()

    @cached
    def f(x: Any) -> Any:
        return f

    f(f)
    gc.collect()


def coroutines() -> None:
    async def main() -> None:
        shop = Shop()
        await asyncio.gather(*(shop.fetch(i % 3) for i in range(20)))
        await shop.fetch(0)
        done = await asyncio.gather(
            *(failing_later(i % 2) for i in range(6)), recursive(1), return_exceptions=True
        )
        assert all(isinstance(error, (ValueError, RuntimeError)) for error in done)
        task = asyncio.create_task(shop.fetch("cancelled"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        shop.fetch("never awaited").close()

    asyncio.run(main())


def measure(operation: Callable[[], None]) -> tuple[int, int, int]:
    for _ in range(100):
        operation()
    plain.cache_clear()
    given.cache_clear()
    keyed.cache_clear()
    gc.collect()
    values = sum(isinstance(obj, Value) for obj in gc.get_objects())
    return sys.getallocatedblocks(), references(), values


failures = []
for operation in (functions, errors, methods, cycles, coroutines):
    measure(operation)
    grown = []
    *before, values = measure(operation)
    # A leak of one object in each of 100 rounds shows as 100 blocks every time; the free lists of
    # the interpreter and of asyncio grow now and then, not every time.
    while len(grown) < 5 and min(grown, default=100) > 60:
        *after, values = measure(operation)
        grown.append(max(a - b for a, b in zip(after, before, strict=True)))
        before = after
    if min(grown) > 60 or values:
        failures.append(f"{operation.__name__}: {grown} blocks or references, {values} values")
if failures:
    sys.exit("leaked: " + "; ".join(failures))
