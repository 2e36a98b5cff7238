"""A process that ends with cached functions, methods and a loop still in use; prints nothing."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

from beastcore import cached

warnings.simplefilter("error")


class Loud:
    def __init__(self) -> None:
        self.other = self

    def __del__(self) -> None:
        self.f(1)

    @cached
    def f(self, x: Any) -> Any:
        return [x]


@cached(maxsize=3, ttl=100)
def function(x: Any) -> Any:
    return function, x


@cached
async def later(x: Any) -> Any:
    await asyncio.sleep(0)
    return x


loud = Loud()
loud.f(loud)
function(1)
asyncio.run(later(1))
keep = [loud.f, function, later, loud]
