"""The compiled engine against the pure-Python twin, by pytest-benchmark.

Run by `python -m benchmarks twin`, or alone: `python -m pytest benchmarks/bench_twin.py`. Each
benchmark loops over `OPERATIONS` items in Python, the loop included on both sides, and asserts
that its operation was done.
"""

from __future__ import annotations

import array
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import Twin

OPERATIONS = 200
ROUNDS = int(os.environ.get("BEASTCORE_BENCH_ROUNDS", "9"))
SIZE = 10_000
NOT_LESS = 20
"""Rounds of one call each are short: so many are made for each round asked for."""


@pytest.fixture(params=["compiled", "pure"])
def engine(request: pytest.FixtureRequest) -> Iterator[Twin]:
    """The two twins, one after the other."""
    return Twin(compiled=request.param == "compiled", tracked=False)


@pytest.fixture
def measure(benchmark: Any, engine: Twin) -> Callable[..., Any]:
    """Measure `work`, which does `operations` operations, from the state that `setup` makes."""

    def run(
        operation: str,
        work: Callable[..., Any],
        setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
        operations: int = OPERATIONS,
    ) -> Any:
        benchmark.extra_info |= {
            "operation": operation,
            "engine": engine.name,
            "operations": operations,
        }
        return benchmark.pedantic(
            work, setup=setup, rounds=ROUNDS * NOT_LESS, iterations=1, warmup_rounds=1
        )

    return run


def keys(n: int = SIZE) -> list[str]:
    return [f"item:{number:08d}" for number in range(n)]


def stream() -> list[str]:
    return random.Random(3).choices(keys(), k=OPERATIONS)


def filled(engine: Twin, ttl: float | None = None) -> Any:
    cache = engine.Cache(SIZE, ttl)
    cache.set_many((key, key) for key in keys())
    return cache


@pytest.mark.parametrize("ttl", [None, 300.0], ids=["no ttl", "ttl"])
def test_get_hit(engine: Twin, measure: Any, ttl: float | None) -> None:
    cache, items = filled(engine, ttl), stream()

    def work() -> None:
        get = cache.get
        for item in items:
            get(item)

    cache.reset_stats()
    measure("Cache.get, hit" + (", TTL" if ttl else ""), work)
    assert cache.stats().misses == 0
    assert cache.stats().hits > 0


def test_get_miss(engine: Twin, measure: Any) -> None:
    cache, items = filled(engine), [f"absent:{n}" for n in range(OPERATIONS)]

    def work() -> None:
        get = cache.get
        for item in items:
            get(item)

    measure("Cache.get, miss", work)
    assert cache.stats().hits == 0


def test_overwrite(engine: Twin, measure: Any) -> None:
    cache, items = filled(engine), stream()

    def work() -> None:
        for item in items:
            cache[item] = 1

    measure("Cache set, overwrite", work)
    assert cache[items[0]] == 1
    assert len(cache) == SIZE


def test_insert_with_eviction(engine: Twin, measure: Any) -> None:
    cache = filled(engine)
    cache.reset_stats()
    rounds = iter(range(10**9))

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        number = next(rounds)
        return ([f"new:{number}:{n}" for n in range(OPERATIONS)],), {}

    def work(items: list[str]) -> None:
        for item in items:
            cache[item] = 1

    measure("Cache set, insert with eviction", work, setup)
    stats = cache.stats()
    assert stats.evictions == stats.sets >= ROUNDS * OPERATIONS


def test_get_many(engine: Twin, measure: Any) -> None:
    cache, items = filled(engine), stream()
    chunks = [items[i : i + 100] for i in range(0, OPERATIONS, 100)]

    def work() -> list[Any]:
        found: list[Any] = []
        for chunk in chunks:
            found = cache.get_many(chunk)
        return found

    assert measure("Cache.get_many of 100, per key", work) == chunks[-1]


def test_cached_hit(engine: Twin, measure: Any) -> None:
    function, items = engine.cached(maxsize=SIZE)(str.upper), stream()
    for key in keys():
        function(key)

    def work() -> None:
        for item in items:
            function(item)

    measure("cached, hit", work)
    assert function.cache_info().misses == SIZE


def test_batch(engine: Twin, measure: Any) -> None:
    items = keys(OPERATIONS)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (engine.BatchBuffer(OPERATIONS + 1, 60.0),), {}

    def work(buffer: Any) -> list[Any]:
        for item in items:
            buffer.add(item, 1)
        return buffer.drain()

    assert len(measure("BatchBuffer.add and drain", work, setup)) == OPERATIONS


def table_of(engine: Twin, n: int, timer: Callable[[], float] | None = None) -> Any:
    table = engine.ConnectionTable(n, 30.0, timer=timer)
    for number in range(n):
        table.add(number)
    return table


def test_update_activity(engine: Twin, measure: Any) -> None:
    table = table_of(engine, SIZE)
    items = random.Random(4).choices(range(SIZE), k=OPERATIONS)

    def work() -> bool:
        update, found = table.update_activity, True
        for item in items:
            found = update(item)
        return found

    assert measure("ConnectionTable.update_activity", work) is True


def test_touch(engine: Twin, measure: Any) -> None:
    table = table_of(engine, SIZE)
    conns = [table.get(n) for n in random.Random(4).sample(range(SIZE), k=OPERATIONS)]

    def work() -> bool:
        found = True
        for conn in conns:
            found = conn.touch()
        return found

    assert measure("Conn.touch", work) is True


def test_sweep(engine: Twin, measure: Any) -> None:
    n, now = 100_000, [0.0]
    table = table_of(engine, n, timer=lambda: now[0])
    now[0] = 20.0
    for conn_id in range(1, n):
        table.update_activity(conn_id)
    now[0] = 31.0  # only the connection with id 0 has been idle for 30 s; all are looked at
    found = measure("ConnectionTable.sweep, per connection", table.sweep, operations=n)
    assert [conn_id for conn_id, _, _ in found] == [0]


def test_record(engine: Twin, measure: Any) -> None:
    histogram = engine.LatencyHistogram()
    numbers = random.Random(5)
    values = [numbers.randrange(10**3, 10**8) for _ in range(OPERATIONS)]

    def work() -> None:
        record = histogram.record
        for value in values:
            record(value)

    measure("LatencyHistogram.record", work)
    assert histogram.count % OPERATIONS == 0
    assert histogram.count > 0


def test_record_many(engine: Twin, measure: Any) -> None:
    histogram = engine.LatencyHistogram()
    numbers = random.Random(5)
    values = array.array("q", [numbers.randrange(10**3, 10**8) for _ in range(OPERATIONS)])
    measure("LatencyHistogram.record_many, per value", lambda: histogram.record_many(values))
    assert histogram.count % OPERATIONS == 0
    assert histogram.count > 0
