"""The timing wheel of `Cache`: all expires on time, and no operation pays for all at once."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import pytest

from beastcore import RemovalCause
from support import FakeClock, Twin

DAY = 86_400.0
YEAR = 365 * DAY
LOOKS = 64
"""Timers that a write looks at."""
MOST = 16
"""Entries that it removes."""
POLICIES = pytest.mark.parametrize("policy", ["adaptive", "lru"])
TTLS = [1 / 64, 0.3, 1, 2.5, 60, 300, 511, 512, 513, 1000, 32_255, 32_256, 32_767, 32_768]
TTLS += [32_769, 40_000, 65_535, 65_536, 70_000, 98_304, 1e6, 0.9 * YEAR, YEAR]


PURE = Twin(compiled=False, tracked=False)
"""What the twins look at is the same; the pure one can be watched."""


def looks(cache: Any) -> Any:
    """Return a list and a context in which it takes up the timers that `cache` looks at."""
    wheel = type(cache._wheel)
    seen: list[Any] = []

    def first(self: Any, number: int, original: Any = wheel.first) -> Any:
        found = original(self, number)
        if found is not None:
            seen.append(found)
        return found

    return seen, mock.patch.object(wheel, "first", first)


class TestBounds:
    @POLICIES
    def test_no_write_pays_for_all_that_falls_due(
        self, engine: Twin, clock: FakeClock, policy: str
    ) -> None:
        n, due = (1_000_000, 200_000) if engine.compiled else (12_000, 4000)
        cache = engine.Cache(n, policy=policy, timer=clock)
        cache.set_many(((i, i) for i in range(n - due)), 3600)
        cache.set_many(((-1 - i, i) for i in range(due)), 10)
        assert len(cache) == n
        clock.advance(12)
        left, writes = due, 0
        while left:
            before = cache.stats().expirations
            cache.set(n + writes, 0, 3600)
            writes += 1
            removed = cache.stats().expirations - before
            assert removed == min(MOST, left), "a write does its share, and no more"
            left -= removed
        assert cache.stats().evictions == 0
        assert len(cache) == n - due + writes
        cache._check()

    def test_no_write_looks_at_more_than_its_share(self, clock: FakeClock) -> None:
        cache = PURE.Cache(9000, timer=clock)
        for i in range(3000):
            cache.set(i, i, 5)
            cache.set(-1 - i, i, 700)
        for i in range(3000):
            assert cache.touch(i, 900)  # stays filed where it was
        cache.delete_many(range(1000))
        clock.advance(710)
        total = 0
        for i in range(400):
            seen, recorded = looks(cache)
            with recorded:
                cache.set("new", i, 900)
            assert len(seen) <= LOOKS
            total += len(seen)
        assert cache.stats().expirations == 3000
        assert len(cache) == 2001
        assert total >= 6000
        cache._check()

    def test_a_sweep_looks_at_a_bounded_number(self, clock: FakeClock) -> None:
        cache = PURE.Cache(9000, timer=clock)
        for i in range(3000):
            cache.set(i, i, 5)
            cache.touch(i, 900)
        cache.set("due", 1, 6)
        clock.advance(8)
        removed = []
        while not removed or not removed[-1]:
            seen, recorded = looks(cache)
            with recorded:
                removed.append(cache.expire(10))
            assert len(seen) <= LOOKS + 2 * 10 + 1
        assert sum(removed) == 1
        assert 3000 / 84 < len(removed) <= 3000 / 84 + 2

    @POLICIES
    def test_a_full_cache_drops_what_expired_before_what_lives(
        self, engine: Twin, clock: FakeClock, policy: str
    ) -> None:
        told: list[Any] = []
        cache = engine.Cache(
            100, policy=policy, timer=clock, on_removal=lambda k, v, c: told.append((k, c))
        )
        for i in range(100):  # the expired ones are in the midst of the queues
            cache.set(i, i, 1 if 40 <= i < 50 else 1000)
            cache.get(i)
        clock.advance(3)
        cache.set("new", 1, 1000)
        assert told == [(i, RemovalCause.EXPIRED) for i in range(40, 50)]
        assert (len(cache), cache.stats().evictions) == (91, 0)

    def test_one_time_to_live_files_each_slot_once_in_it(self, clock: FakeClock) -> None:
        cache = PURE.Cache(50, 300, timer=clock)
        for i in range(50):
            cache[i] = i
        with mock.patch.object(type(cache._wheel), "again", side_effect=AssertionError):
            for i in range(2000):
                clock.advance(0.125)
                cache[i] = i  # overwrites, then evictions
        cache._check()


class TestOnTime:
    @pytest.mark.parametrize("step", [1 / 64, 0.7, 10, 511.5, 512, 40_000, 3e6])
    def test_expire_finds_each_when_its_time_has_passed(
        self, engine: Twin, clock: FakeClock, step: float
    ) -> None:
        cache = engine.Cache(100, timer=clock)
        start = clock.now
        ttls = [ttl for ttl in TTLS if ttl < 2000 * step]
        for ttl in ttls:
            cache.set(ttl, ttl, ttl)
        while len(cache):
            clock.advance(step)
            passed = clock.now - start
            expected = [ttl for ttl in ttls if ttl > passed]
            removed = len(cache) - len(expected)
            assert cache.expire() in (removed, removed - 1)  # at most a tick late
            clock.advance(1 / 64)
            cache.expire()
            assert len(cache) <= len(expected)
            assert all(ttl > passed for ttl in cache)
            clock.advance(-1 / 64)
            cache._check()

    @pytest.mark.parametrize("seed", range(6))
    def test_against_a_dict(self, engine: Twin, clock: FakeClock, seed: int) -> None:
        rng = random.Random(seed)
        cache = engine.Cache(5000, timer=clock)
        due: dict[int, float] = {}
        past: dict[int, float] = {}
        steps = [0.0, 0.5, 1, 7, 300, 600, 33_000, 70_000, 2e6, -2, -700]
        for number in range(1500):
            key = rng.randrange(300)
            ttl = rng.choice(TTLS[1:])
            what = rng.random()
            if what < 0.5:
                cache.set(key, number, ttl)
                due[key] = clock.now + ttl
                past.pop(key, None)
            elif what < 0.6:
                cache.set(key, number, None)
                past.pop(key, None)
                due[key] = 1e5 * YEAR
            elif what < 0.75 and cache.touch(key, ttl):
                due[key] = clock.now + ttl
                past.pop(key, None)
            elif what < 0.8:
                cache.pop(key, None)
                due.pop(key, None)
                past.pop(key, None)
            elif what < 0.85:
                cache.expire(rng.randrange(20))
            elif what < 0.86:
                cache.resize(rng.choice([400, 900, 5000]))
            if rng.random() < 0.2:
                clock.now = max(1000.0, clock.now + rng.choice(steps))
                # What has expired may be gone for good, even if the clock runs back.
                past.update({k: at for k, at in due.items() if at <= clock.now + 1e-3})
                due = {k: at for k, at in due.items() if k not in past}
            if rng.random() < 0.1:
                cache.expire()
                held = set(cache)
                assert len(cache) == len(held), "expire() leaves none that has expired"
                assert set(due) <= held, "what lives is there"
                assert held <= set(due) | {k for k, at in past.items() if at > clock.now - 1 / 32}
                cache._check()

    @POLICIES
    def test_a_clock_that_leaps_years(self, engine: Twin, clock: FakeClock, policy: str) -> None:
        cache = engine.Cache(400, policy=policy, timer=clock)
        for leap in (1.5 * YEAR, 5 * YEAR, 0.99 * YEAR, 1e5 * YEAR):
            for i in range(200):
                cache.set(i, i, 1 + i * YEAR / 200)
            clock.advance(leap // 1)
            for i in range(200, 213):  # each write does its share
                cache.set(i, i, 10)
                cache._check()
            live = [i for i in range(200) if 1 + i * YEAR / 200 > leap // 1]
            assert len(cache) == len(live) + 13
            assert sorted(cache) == [*live, *range(200, 213)]
            cache.clear()
            cache._check()

    def test_time_that_runs_back(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, timer=clock)
        cache.set("a", 1, 1000)
        clock.advance(500)
        cache.set("b", 1, 1000)  # the wheel has come to 500
        clock.advance(-450)
        cache.set("c", 1, 10)
        cache._check()
        assert cache.expire() == 0
        clock.advance(9)
        assert cache.expire() == 0
        clock.advance(1)
        assert cache.expire() == 1
        assert sorted(cache) == ["a", "b"]
        cache._check()

    def test_a_slot_whose_next_entry_is_due_sooner(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(1, policy="lru", timer=clock)
        cache.set("a", 1, 1000)
        cache.set("b", 1, 10)
        cache.set("c", 1, 5)
        cache.set("d", 1, None)
        clock.advance(20)
        assert cache.expire() == 0
        cache.set("e", 1, 2000)
        cache.set("e", 1, 7)
        cache._check()
        clock.advance(7)
        assert cache.expire() == 1
        assert len(cache) == 0

    def test_the_present_second(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(5000, timer=clock)
        for i in range(3000):
            cache.set(i, i, 10.25 if i % 2 else 10.75)
        clock.advance(10.5)
        assert cache.expire(10) <= 10
        assert cache.expire() + cache.stats().expirations >= 1500
        assert cache.stats().expirations == 1500
        cache._check()
        assert cache.expire() == 0
        cache.set("late", 1, 0.25)
        clock.advance(0.375)
        removed = 0
        for _ in range(300):
            n = cache.expire(7)
            assert n <= 7
            removed += n
        assert removed == 1501
        assert len(cache) == 0


class TestListeners:
    def test_that_adds_what_expires_at_once(self, engine: Twin, clock: FakeClock) -> None:
        def add(key: Any, value: Any, cause: RemovalCause) -> None:
            cache.set(key, value, 1)
            clock.advance(0.01)

        cache = engine.Cache(5000, timer=clock, on_removal=add)
        for i in range(3000):
            cache.set(i, i, 1)
        clock.advance(5)
        assert cache.expire() == 3000
        assert cache.stats().expirations == 3000
        cache._check()

    @POLICIES
    def test_that_stores_again_what_expired(
        self, engine: Twin, clock: FakeClock, policy: str
    ) -> None:
        """A listener's own writes do not sweep, which would call it deeper and deeper."""
        deepest = depth = 0

        def again(key: Any, value: Any, cause: RemovalCause) -> None:
            nonlocal deepest, depth
            depth += 1
            deepest = max(deepest, depth)
            cache.set(key, value + 1, 5)
            depth -= 1

        cache = engine.Cache(90_000, policy=policy, timer=clock, on_removal=again)
        for i in range(80_000 if engine.compiled else 20_000):
            cache.set(i, 0, 5)
        clock.advance(7)
        cache.set("new", 0, 100)
        assert deepest == 1
        assert cache.stats().expirations == MOST
        cache._check()

    @pytest.mark.parametrize(
        "do",
        [
            lambda c: c.expire(),
            lambda c: c.expire(3),
            lambda c: c.clear(),
            lambda c: c.resize(3),
            lambda c: c.resize(9000),
            lambda c: c.evict(1),
            lambda c: c.set("new", 1, 2),
            lambda c: c.touch(2999, 0.5),
        ],
    )
    def test_that_comes_back(self, engine: Twin, clock: FakeClock, do: Any) -> None:
        told = []

        def listener(key: Any, value: Any, cause: RemovalCause) -> None:
            told.append(key)
            if len(told) < 50:
                do(cache)
                cache._check()

        cache = engine.Cache(5000, timer=clock, on_removal=listener)
        for i in range(3000):
            cache.set(i, i, 1 + i % 3)
        clock.advance(6)
        assert 0 < cache.expire() <= 3000
        assert len(set(told)) == len(told) or "new" in told
        assert len(cache) in (0, 1)
        cache._check()

    def test_that_moves_the_origin_of_time(self, engine: Twin, clock: FakeClock) -> None:
        def leap(key: Any, value: Any, cause: RemovalCause) -> None:
            if cache.stats().expirations == 1024 and "long" in cache:
                clock.advance(2 * YEAR)
                assert cache.peek("long") is None

        cache = engine.Cache(5000, timer=clock, on_removal=leap)
        for i in range(2000):
            cache.set(i, i, 1)
        cache.set("long", 1, YEAR)
        clock.advance(DAY)
        assert cache.expire() in (2000, 2001)
        assert cache.expire() + len(cache) <= 1
        cache._check()


def test_a_cache_that_grows_keeps_its_timers(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(3000, timer=clock)
    for i in range(3000):
        cache.set(i, i, 1 + i)
        if i % 100 == 0:
            cache._check()
    for second in range(0, 3000, 300):
        assert cache.expire() == (300 if second else 0)
        assert min(cache) == second
        clock.advance(300)
    cache._check()


def test_resizing_keeps_the_timers(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(6000, timer=clock)
    for i in range(3000):
        cache.set(i, i, 5 + i % 7)
    cache.delete_many(range(0, 3000, 2))
    for size in (5000, 20_000, 4000, 1500, 1600):
        assert cache.resize(size) == 0
        cache._check()
    clock.advance(20)
    assert cache.expire() == 1500
    cache._check()


def test_resizing_keeps_what_is_left_of_a_sweep(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(200, timer=clock)
    for i in range(40):
        cache.set(i, i, 512)  # the list of a whole block, which is dealt out when it begins
    clock.advance(512)
    swept = []
    for key in ("a", "b", "c"):
        cache.set(key, 0, 3600)
        swept.append(cache.stats().expirations)
        cache.resize(5000 + len(swept))
    assert swept == [MOST, 2 * MOST, 40]


def test_clearing_forgets_the_timers(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(600, timer=clock)
    for round_ in range(3):
        for i in range(500):
            cache.set(i, round_, 10)
        cache.clear()
        cache._check()
    cache.set("k", 1, 20)
    clock.advance(15)
    cache.set("l", 1, 20)
    assert sorted(cache.keys()) == ["k", "l"]
    clock.advance(5)
    assert cache.expire() == 1


@pytest.mark.compiled_only
def test_bytes_tell_the_links_of_the_wheel(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(10_000, timer=clock)
    cache[1] = 1
    before = cache.stats().bytes
    cache.set(2, 2, 5)
    links = cache.stats().bytes - before
    assert 8 * 10_000 < links < 8 * 10_000 + 5000
