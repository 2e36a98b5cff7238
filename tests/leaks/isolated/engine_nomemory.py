"""Fail each allocation of each public operation of the compiled engine but `Cache` in turn.

`Cache` has cache_nomemory.py. After every MemoryError the structure must be sound and tell the same
as before; once nothing fails the operation must succeed. Prints how many failures each had.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from typing import Any

from engine_tools import every_allocation_fails
from support import FakeClock, Twin

engine = Twin(compiled=True, tracked=False)
clock = FakeClock()
Make = Callable[[], Any]


def buffer() -> Any:
    made = engine.BatchBuffer(timer=clock, max_bytes=10**6)
    for i in range(12):
        made.add(i % 7, i, size=i, priority=i % 3)
    return made


def table() -> Any:
    clock.now = 1000.0
    made = engine.ConnectionTable(40, 30.0, grace=5.0, timer=clock)
    for i in range(30):
        made.add(f"c{i}", [i], user=i % 3, class_id=i % 4)
    clock.now = 1031.0
    return made


def histogram() -> Any:
    made = engine.LatencyHistogram()
    made.record_many(range(0, 10**6, 9973))
    return made


class Shop:
    @engine.cached(8)
    def price(self, item: Any) -> Any:
        return [item]

    @engine.cached(8, typed=True)
    async def fetch(self, item: Any) -> Any:
        return [item]


shop = Shop()


def function() -> Any:
    made = engine.cached(8, 60, timer=clock)(lambda *args, **kwargs: [args, kwargs])
    for i in range(5):
        made(i)
    return made


def coroutine() -> Any:
    @engine.cached(8)
    async def made(*args: Any) -> Any:
        await asyncio.sleep(0)
        return [args]

    return made


def method(name: str) -> Make:
    def make() -> Any:
        getattr(Shop, name).cache_clear()
        return getattr(shop, name)

    return make


loop = asyncio.new_event_loop()
loop.set_debug(False)  # or it logs what took long, and the allocation that fails may be one of that
loop.set_exception_handler(lambda loop, context: None)  # its own callbacks may fail, too


def drive(awaitable: Any) -> Any:
    """Run a coroutine to its end; MemoryError also where it has none, as the loop lost it."""
    task = loop.create_task(awaitable)
    for _ in range(20):
        if task.done():
            return task.result()
        loop.call_soon(loop.stop)
        loop.run_forever()
    task.cancel()
    raise MemoryError


def tells(thing: Any) -> Any:
    """Return what must be the same after an operation that failed."""
    if isinstance(thing, engine.BatchBuffer):
        return [thing.pending(i) for i in range(9)], len(thing), thing.stats()[:2]
    if isinstance(thing, engine.ConnectionTable):
        return thing.snapshot(), len(thing), thing.max_connections
    if isinstance(thing, engine.LatencyHistogram):
        return thing.to_dict()
    return thing.cache.items()


def sound(thing: Any) -> None:
    """Verify the invariants."""
    getattr(thing, "cache", thing)._check()


names = [f"n{i}" for i in range(90)]

# What is made, what is done, fewest failures expected. The name is that of the operation. None
# closes over its argument, not even a list comprehension: CPython up to 3.12 loses the reference to
# an argument whose cell it has no memory for.
CASES: list[tuple[str, Make, Callable[[Any], Any], int]] = [
    ("BatchBuffer", buffer, lambda b: engine.BatchBuffer(5, 1.0, max_bytes=9), 2),
    ("BatchBuffer.add", buffer, lambda b: list(map(b.add, names, range(90))), 4),
    ("BatchBuffer.due", buffer, lambda b: b.due(), 0),
    ("BatchBuffer.deadline", buffer, lambda b: b.deadline(), 0),
    ("BatchBuffer.drain", buffer, lambda b: b.drain(), 5),
    ("BatchBuffer.drain some", buffer, lambda b: b.drain(3), 2),
    ("BatchBuffer.restore", buffer, lambda b: b.restore([(i, i) for i in range(50)]), 10),
    ("BatchBuffer.pending", buffer, lambda b: b.pending(3), 1),
    ("BatchBuffer.clear", buffer, lambda b: b.clear(), 0),
    ("BatchBuffer.stats", buffer, lambda b: b.stats(), 1),
    ("BatchBuffer.max_ops", buffer, lambda b: setattr(b, "max_ops", 700), 0),
    ("BatchBuffer.max_delay", buffer, lambda b: setattr(b, "max_delay", 1.5), 0),
    ("BatchBuffer.max_bytes", buffer, lambda b: setattr(b, "max_bytes", 10**7), 0),
    ("BatchBuffer.timer", buffer, lambda b: (b.timer, len(b), 3 in b, repr(b)), 1),
    ("ConnectionTable", table, lambda t: engine.ConnectionTable(5, 1.0), 4),
    ("ConnectionTable.add", table, lambda t: t.add("new", user="new", class_id=9), 1),
    ("ConnectionTable.get", table, lambda t: t.get("c1"), 0),
    ("ConnectionTable.remove", table, lambda t: t.remove("c1"), 0),
    ("ConnectionTable.clear", table, lambda t: t.clear(), 0),
    ("ConnectionTable.update_activity", table, lambda t: t.update_activity("c1"), 0),
    ("ConnectionTable.touch_many", table, lambda t: t.touch_many([t.get("c1"), t.get("c2")]), 3),
    ("ConnectionTable.mark_pinged", table, lambda t: t.mark_pinged([t.get("c1")]), 2),
    ("ConnectionTable.sweep", table, lambda t: t.sweep(), 5),
    ("ConnectionTable.sweep some", table, lambda t: t.sweep(limit=4), 2),
    ("ConnectionTable.idlest", table, lambda t: t.idlest(7), 3),
    ("ConnectionTable.count", table, lambda t: (t.count(user=1), t.count(class_id=2)), 0),
    ("ConnectionTable.snapshot", table, lambda t: t.snapshot(), 30),
    ("ConnectionTable.idle_histogram", table, lambda t: t.idle_histogram([1.0, 50.0]), 3),
    ("ConnectionTable.stats", table, lambda t: t.stats(), 1),
    ("ConnectionTable.resize", table, lambda t: t.resize(5000), 0),
    ("ConnectionTable.set_class_timeout", table, lambda t: t.set_class_timeout(77, 5.0), 0),
    ("ConnectionTable.idle_timeout", table, lambda t: setattr(t, "idle_timeout", 60.0), 0),
    ("ConnectionTable.grace", table, lambda t: setattr(t, "grace", 6.0), 0),
    ("ConnectionTable.late_after", table, lambda t: setattr(t, "late_after", 7.0), 0),
    ("ConnectionTable.max_connections", table, lambda t: (t.max_connections, list(t), t.timer), 1),
    ("LatencyHistogram", histogram, lambda h: engine.LatencyHistogram(), 1),
    ("LatencyHistogram.record", histogram, lambda h: h.record(2**40), 0),
    ("LatencyHistogram.record_many", histogram, lambda h: h.record_many(range(0, 10**6, 9999)), 2),
    ("LatencyHistogram.merge", histogram, lambda h: h.merge(h), 0),
    ("LatencyHistogram.reset", histogram, lambda h: h.reset(), 0),
    ("LatencyHistogram.percentile", histogram, lambda h: (h.percentile(1), h.percentile(99)), 1),
    ("LatencyHistogram.count", histogram, lambda h: (h.count, h.min, h.max, h.sum, h.mean), 1),
    ("LatencyHistogram.to_dict", histogram, lambda h: h.to_dict(), 20),
    ("LatencyHistogram.from_dict", histogram, lambda h: h.from_dict(histogram().to_dict()), 50),
    ("cached", function, lambda f: engine.cached(9, 5, typed=True)(print), 5),
    ("cached call, kept", function, lambda f: f(3), 0),
    ("cached call, new", function, lambda f: f(77, x=1), 2),
    ("cached.cache_info", function, lambda f: (f.cache_info(), f.cache), 1),
    ("cached.cache_clear", function, lambda f: f.cache_clear(), 0),
    ("cached, introspection", function, lambda f: (repr(f), f.__wrapped__, f.__name__), 1),
    ("cached method", method("price"), lambda m: (m(1), m(1), m.cache_info()), 4),
    ("cached method, bound", method("price"), lambda m: (shop.price(2), m == shop.price), 2),
    ("cached coroutine", coroutine, lambda f: (drive(f(1)), drive(f(1))), 4),
    ("cached coroutine method", method("fetch"), lambda m: (drive(m(1)), drive(shop.fetch(1))), 4),
]
CHANGES = {
    "BatchBuffer.add",
    "cached call, new",
    "cached method",
    "cached method, bound",
    "cached coroutine",
}
CHANGES |= {"cached coroutine method", "ConnectionTable.touch_many"}
"""Their first part may be done when a later one fails."""


class Case:
    """One row, with what it is done to made anew after each attempt."""

    def __init__(self, name: str, make: Make, operation: Callable[[Any], Any]) -> None:
        self.name, self.make, self.operation = name, make, operation
        self.failed = False
        operation(make())  # what Cython and asyncio make only once
        self.renew()

    def renew(self) -> None:
        self.thing = self.make()
        self.before = tells(self.thing)

    def body(self) -> None:
        self.failed = True
        self.operation(self.thing)
        self.failed = False

    def check(self) -> None:
        sound(self.thing)
        if self.failed and self.name not in CHANGES:
            after = tells(self.thing)
            assert after == self.before, (self.name, after, self.before)
        self.renew()


def main() -> None:
    gc.disable()
    warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines whose task could not be made
    for name, make, operation, floor in CASES:
        case = Case(name, make, operation)
        failures = every_allocation_fails(case.body, case.check)
        assert failures >= floor, f"{name}: {failures} failures, expected {floor}"
        print(f"{name}: {failures}")


if __name__ == "__main__":
    main()
