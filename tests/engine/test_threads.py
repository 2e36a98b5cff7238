"""Threads that share one `Cache`: nothing is lost, told twice or broken, no error is invented.

The switch interval is a microsecond, so that threads meet in the middle of operations; all start
at a barrier, and an error in one fails the test.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beastcore import RemovalCause
from support import Twin

THREADS = 4


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run(work: Callable[[int, random.Random], None], threads: int = THREADS) -> None:
    """Run `work(number, rng)` in each thread; raise the first error."""
    barrier = threading.Barrier(threads)
    errors: list[BaseException] = []

    def body(number: int) -> None:
        try:
            barrier.wait(10)
            work(number, random.Random(number))
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=body, args=(n,), daemon=True) for n in range(threads)]
    for thread in running:
        thread.start()
    deadline = time.monotonic() + 60
    for thread in running:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in running), "a thread hangs"
    if errors:
        raise errors[0]


class SlowKey:
    """A key whose comparison lets the other threads run."""

    def __init__(self, number: int, spread: int = 1000) -> None:
        self.number = number
        self.spread = spread

    def __hash__(self) -> int:
        return self.number % self.spread

    def __eq__(self, other: object) -> bool:
        time.sleep(0)
        return isinstance(other, SlowKey) and self.number == other.number

    def __repr__(self) -> str:
        return f"SlowKey({self.number})"


def test_each_thread_finds_what_it_stored(engine: Twin) -> None:
    cache = engine.Cache(10_000)

    def work(number: int, rng: random.Random) -> None:
        for step in range(1500):
            key = (number, rng.randrange(200))
            cache[key] = (number, step)
            assert cache[key] == (number, step)
            if step % 3 == 0:
                assert cache.pop(key) == (number, step)
                assert key not in cache

    run(work)
    cache._check()
    assert len(cache.keys()) == len(cache)


@pytest.mark.parametrize("maxsize", [1, 3, 40])
def test_every_value_leaves_once(engine: Twin, maxsize: int) -> None:
    told: list[Any] = []
    cache = engine.Cache(maxsize, on_removal=lambda k, v, c: told.append((v, c)))
    stored: list[int] = [0] * THREADS

    def work(number: int, rng: random.Random) -> None:
        for step in range(2000):
            key, value = rng.randrange(60), (number, step)
            action = rng.random()
            if action < 0.6:
                cache[key] = value
                stored[number] += 1
            elif action < 0.7:
                cache.get(key)
            elif action < 0.8:
                cache.pop(key, None)
            elif action < 0.85:
                cache.delete_many([key, key + 1])
            elif action < 0.9:
                cache.set_many([(key, value), (key + 1, (number, -step - 1))])
                stored[number] += 2
            elif action < 0.93:
                cache.evict(2)
            elif action < 0.96:
                cache.resize(rng.choice([1, 3, maxsize]))
            elif action < 0.98:
                cache.items()
            else:
                cache.clear()

    run(work)
    cache._check()
    stats = cache.stats()
    assert stats.sets == sum(stored)
    assert len(told) + len(cache) == sum(stored)
    assert max(Counter(value for value, _ in told).values()) == 1
    causes = Counter(cause for _, cause in told)
    assert causes[RemovalCause.SIZE] == stats.evictions
    assert causes[RemovalCause.EXPLICIT] == stats.removals
    assert len(cache) <= maxsize


def test_lookups_are_all_counted(engine: Twin) -> None:
    cache = engine.Cache(50)
    cache.set_many({i: i for i in range(50)})

    def work(number: int, rng: random.Random) -> None:
        for _ in range(2000):
            cache.get(rng.randrange(100))

    run(work)
    stats = cache.stats()
    assert stats.hits + stats.misses == THREADS * 2000


def test_weights_stay_right(engine: Twin) -> None:
    cache = engine.Cache(50, max_weight=100, weigher=lambda key, value: value)

    def work(number: int, rng: random.Random) -> None:
        for _ in range(1000):
            cache[rng.randrange(80)] = rng.randrange(20)
            if rng.random() < 0.2:
                cache.pop(rng.randrange(80), None)

    run(work)
    cache._check()
    assert cache.weight == sum(cache.values()) <= 100


def test_times_to_live(engine: Twin) -> None:
    now = [0.0]
    cache = engine.Cache(50, timer=lambda: now[0])

    def work(number: int, rng: random.Random) -> None:
        for _ in range(800):
            key = rng.randrange(80)
            cache.set(key, key, rng.choice([None, 0.1, 1, 5]))
            assert cache.get(key, key) == key
            cache.touch(rng.randrange(80), 1)
            now[0] += 0.01
            if rng.random() < 0.05:
                cache.expire(5)

    run(work)
    cache._check()


@pytest.mark.parametrize("spread", [1000, 7])
def test_slow_comparisons_of_own_keys(engine: Twin, spread: int) -> None:
    """Other threads change the cache during nearly every comparison; that is no error."""
    cache = engine.Cache(10_000)

    def work(number: int, rng: random.Random) -> None:
        for step in range(1500 if spread == 1000 else 300):
            name = number * 100 + rng.randrange(25)
            cache[SlowKey(name, spread)] = step
            assert cache[SlowKey(name, spread)] == step
            assert cache.get_many([SlowKey(name, spread)]) == [step]
            if step % 4 == 0:
                assert cache.pop(SlowKey(name, spread)) == step
                assert SlowKey(name, spread) not in cache

    run(work)
    cache._check()


def test_slow_comparisons_of_shared_keys(engine: Twin) -> None:
    told: list[Any] = []
    cache = engine.Cache(8, on_removal=lambda k, v, c: told.append(v))
    stored = [0] * THREADS

    def work(number: int, rng: random.Random) -> None:
        for step in range(1500):
            key = SlowKey(rng.randrange(12))
            action = rng.random()
            if action < 0.5:
                cache[key] = (number, step)
                stored[number] += 1
            elif action < 0.7:
                cache.get(key)
            elif action < 0.8:
                cache.pop(key, None)
            elif action < 0.9:
                cache.set_many([(key, (number, step))])
                stored[number] += 1
            else:
                cache.delete_many([key, SlowKey(3)])

    run(work)
    cache._check()
    assert len(told) == len(set(told)) == sum(stored) - len(cache)
    names = [key.number for key, _ in cache.items()]
    assert len(set(names)) == len(names), "a key is held twice"


def test_iteration_among_writers(engine: Twin) -> None:
    cache = engine.Cache(100)
    cache.set_many({i: i for i in range(100)})

    def work(number: int, rng: random.Random) -> None:
        for _ in range(150):
            if number == 0:
                try:
                    seen = list(cache)
                except RuntimeError as error:
                    assert str(error) == "cache changed size during iteration"
                else:
                    assert len(set(seen)) == len(seen)
                items = cache.items()
                assert all(key == value for key, value in items)
                assert len(dict(items)) == len(items)
            else:
                for _ in range(20):
                    key = rng.randrange(300)
                    cache[key] = key

    run(work)


def test_callbacks_in_many_threads(engine: Twin) -> None:
    def callback(key: int, value: Any, cause: RemovalCause) -> None:
        if cause is RemovalCause.SIZE and key % 3 == 0:
            cache.set(key + 1, "again")

    cache = engine.Cache(5, on_removal=callback)

    def work(number: int, rng: random.Random) -> None:
        for _ in range(500):
            cache[rng.randrange(30)] = number

    run(work)
    cache._check()


@pytest.mark.parametrize("spread", [1000, 40])
def test_slow_comparisons_among_fast_writers(engine: Twin, spread: int) -> None:
    """The cache changes during every comparison, but not what is being compared."""
    cache = engine.Cache(5000)
    names = range(300 if spread == 1000 else 60)
    cache.set_many((SlowKey(name, spread), name) for name in names)
    done = threading.Event()

    def work(number: int, rng: random.Random) -> None:
        if number > 0:
            while not done.is_set():
                key = rng.randrange(4000)
                cache[key] = key
                cache.pop(rng.randrange(4000), None)
            return
        try:
            for name in names:
                assert cache[SlowKey(name, spread)] == name
                assert cache.get_many([SlowKey(name, spread), SlowKey(name, spread)]) == [
                    name,
                    name,
                ]
                cache[SlowKey(name, spread)] = -name
                assert cache.pop(SlowKey(name, spread)) == -name
        finally:
            done.set()

    run(work)
    cache._check()
