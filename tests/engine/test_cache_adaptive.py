"""The policy "adaptive": its limits, what it keeps, what it refuses; both twins."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from beastcore import RemovalCause
from cache_lockstep import salted
from support import FakeClock, Twin


def make(engine: Twin, *args: Any, salt: int = 1, **kwargs: Any) -> Any:
    """Return a cache with a known salt."""
    with salted(engine, salt):
        return engine.Cache(*args, **kwargs)


def play(cache: Any, keys: list[Any]) -> float:
    """Look each key up and write it if it is absent; return the ratio of hits."""
    before = cache.stats().hits
    for key in keys:
        if cache.get(key) is None:
            cache[key] = 1
    return (cache.stats().hits - before) / len(keys)


def test_the_salt_is_drawn_from_the_system(engine: Twin) -> None:
    """What `salted` replaces is what the cache asks: other salts, other choices."""

    def left(salt: int) -> list[int]:
        cache = make(engine, 100, salt=salt)
        rng = random.Random(1)
        play(cache, [int(400 * rng.random() ** 2) for _ in range(4000)])
        return cache.keys()

    assert left(1) == left(1)
    assert len({tuple(left(salt)) for salt in range(5)}) > 1


@pytest.mark.parametrize("maxsize", [1, 2, 3, 7, 40, 64, 200, 1000])
def test_never_more_than_maxsize(engine: Twin, maxsize: int) -> None:
    rng = random.Random(maxsize)
    cache = make(engine, maxsize)
    for step in range(3000):
        key = int(4 * maxsize * rng.random() ** 2)
        if cache.get(key) is None:
            cache.set(key, key, rng.choice([None, 60.0]))
        if step % 50 == 7:
            cache.pop(rng.randrange(4 * maxsize), None)
        assert len(cache) <= maxsize
        if step % 100 == 0:
            cache._check()
    assert len(set(cache.keys())) == len(cache) >= maxsize - 1


@pytest.mark.parametrize("maxsize", [10, 100, 100_000])
@pytest.mark.parametrize("weights", [(0,), (1,), (0, 1, 5), (1, 2, 50), (70, 100), (100,)])
def test_weights_stay_within_max_weight(
    engine: Twin, maxsize: int, weights: tuple[int, ...]
) -> None:
    rng = random.Random(5)
    cache = make(engine, maxsize, max_weight=100, weigher=lambda k, v: v)
    for step in range(1500):
        key = int(60 * rng.random() ** 2)
        if cache.get(key) is None or step % 9 == 0:
            cache[key] = rng.choice(weights)
        assert cache.weight <= 100
        assert len(cache) <= maxsize
        if step % 20 == 0:
            cache._check()
    assert cache.weight == sum(cache.values())


def test_a_few_heavy_entries_fill_it(engine: Twin) -> None:
    """So few entries that the policy has not begun to adapt when the first must leave."""
    cache = make(engine, 10**6, max_weight=100, weigher=lambda k, v: v)
    for i in range(50):
        cache[i] = 30
        cache._check()
        assert len(cache) == min(i + 1, 3)


@pytest.mark.parametrize("size", [3, 8, 15, 16, 40])
def test_shrinking_before_it_is_full(engine: Twin, size: int) -> None:
    """`resize` and `evict` of a cache that has no sketch yet."""
    for shrink in (lambda c: c.resize(2), lambda c: c.evict(size - 2)):
        cache = make(engine, 1000)
        for i in range(size):
            cache[i] = i
        cache.get(0)
        assert shrink(cache) == size - 2
        cache._check()
        assert len(cache) == 2
        cache["new"] = 1
        cache._check()


@pytest.mark.parametrize("heavy", [50, 300, 1000])
def test_heavy_newcomers_do_not_flush_light_entries(engine: Twin, heavy: int) -> None:
    cache = make(engine, 10_000, max_weight=1000, weigher=lambda k, v: v)
    hot = range(400)
    for _ in range(4):
        for key in hot:
            if cache.get(key) is None:
                cache[key] = 1
    for i in range(300):  # one-off
        cache["heavy", i] = heavy
        for key in random.Random(i).sample(hot, 20):
            if cache.get(key) is None:
                cache[key] = 1
    cache._check()
    assert sum(key in cache for key in hot) > 360


def test_a_count_bounds_a_weighed_cache_that_is_far_from_full(engine: Twin) -> None:
    """The window has its share of what is held, not of a max_weight never reached."""
    rng = random.Random(3)
    stream = [int(300 * rng.random() ** 4) for _ in range(6000)]
    scan = itertools.count(1000)
    keys = [k for key in stream for k in (key, next(scan))]
    plain = play(make(engine, 60), keys)
    bounded = make(engine, 60, max_weight=10**9, weigher=lambda k, v: v)
    assert play(bounded, keys) == pytest.approx(plain, abs=0.03)


def test_a_scan_does_not_flush_what_is_used_often(engine: Twin) -> None:
    rng = random.Random(2)
    scan = itertools.count(10**6)
    keys: list[int] = []
    for _ in range(60):
        keys += [int(150 * rng.random() ** 2) for _ in range(100)]
        keys += [next(scan) for _ in range(150)]
    best = play(make(engine, 100), keys)
    lru = play(make(engine, 100, policy="lru"), keys)
    assert best > lru + 0.02, (best, lru)


def test_recency_alone(engine: Twin) -> None:
    """Each key seen twice, then never: no policy of frequency alone would keep up with "lru"."""
    keys = [n for i in range(0, 20_000, 50) for n in [*range(i, i + 50)] * 2]
    best = play(make(engine, 100), keys)
    lru = play(make(engine, 100, policy="lru"), keys)
    assert lru == 0.5
    assert best > 0.4


def test_stats_tell_the_window_and_what_the_shadows_saw(engine: Twin) -> None:
    large = make(engine, 20_000)
    play(large, list(range(5000)))
    assert (large.stats().window, large.stats().shadows) == (None, ())
    cache = make(engine, 400)
    # Recency alone: the wider the window, the better.
    play(cache, [n for i in range(1000, 21_000, 150) for n in [*range(i, i + 150)] * 2])
    stats = cache.stats()
    shares, ratios = zip(*stats.shadows, strict=True)
    assert shares[0] < 0.05
    assert shares[-1] == 1.0
    assert list(shares) == sorted(shares)
    assert ratios[0] < 0.2
    assert ratios[-1] == pytest.approx(0.5, abs=0.1)
    assert stats.window > 200
    # Frequency: hot keys between scans, for which a window has no use.
    scan = itertools.count(10**6)
    for _ in range(150):
        play(cache, [*range(350), *itertools.islice(scan, 350)])
    ratios = tuple(ratio for _, ratio in cache.stats().shadows)
    assert ratios[0] > ratios[-1]
    assert cache.stats().window < 100
    cache.reset_stats()
    assert tuple(ratio for _, ratio in cache.stats().shadows) == ratios


def test_lru_has_no_shadows(engine: Twin) -> None:
    cache = engine.Cache(50, policy="lru")
    play(cache, list(range(100)) * 3)
    assert (cache.stats().window, cache.stats().shadows) == (None, ())


def test_the_window_is_told_in_weight(engine: Twin) -> None:
    cache = make(engine, 1000, max_weight=5000, weigher=lambda k, v: 50)
    play(cache, list(range(120)))
    assert cache.stats().window == 50
    assert cache.stats().max_weight == 5000


def test_a_refused_newcomer(engine: Twin) -> None:
    seen: list[Any] = []
    cache = make(engine, 100, on_removal=lambda *a: seen.append(a))
    for _ in range(6):
        play(cache, list(range(100)))
    assert seen == []
    for i in range(300):
        before = cache.stats()
        seen.clear()
        cache["new", i] = i
        stats = cache.stats()
        assert (stats.sets, stats.evictions) == (before.sets + 1, before.evictions + 1)
        assert len(seen) == 1
        refused = stats.rejections - before.rejections
        assert refused == (seen == [(("new", i), i, RemovalCause.SIZE)])
        assert refused == (("new", i) not in cache)
    assert sum(key in cache for key in range(100)) > 90


def test_a_newcomer_too_heavy_for_its_use_is_refused(engine: Twin) -> None:
    seen: list[Any] = []
    cache = make(
        engine, 1000, max_weight=100, weigher=lambda k, v: v, on_removal=lambda *a: seen.append(a)
    )
    for _ in range(5):
        for key in range(100):
            if cache.get(key) is None:
                cache[key] = 1
    seen.clear()
    cache["heavy"] = 90
    assert "heavy" not in cache
    assert seen[-1] == ("heavy", 90, RemovalCause.SIZE)
    assert cache.stats().rejections == 1
    assert len(cache) > 90


def test_an_overwrite_that_grows_evicts_others_only(engine: Twin) -> None:
    for grown in range(10):
        cache = make(engine, 100, max_weight=10, weigher=lambda k, v: v, salt=grown)
        for key in range(10):
            cache[key] = 1
        cache[grown] = 10
        assert cache.items() == [(grown, 10)]
        assert cache.stats().rejections == 0


def test_what_has_expired_leaves_with_its_own_cause(engine: Twin, clock: FakeClock) -> None:
    seen: list[Any] = []
    cache = make(engine, 20, timer=clock, on_removal=lambda k, v, cause: seen.append(cause))
    for i in range(20):
        cache.set(i, i, 1)
    clock.advance(5)
    for i in range(20, 40):
        cache[i] = i
    stats = cache.stats()
    assert seen.count(RemovalCause.EXPIRED) == stats.expirations >= 15
    assert seen.count(RemovalCause.SIZE) == stats.evictions
    cache.expire()
    assert cache._check() is None


def test_the_policy_goes_on_after_clear_and_resize(engine: Twin) -> None:
    rng = random.Random(8)
    cache = make(engine, 64)
    for size in (64, 20, 200, 1, 3000, 64):
        cache.resize(size)
        play(cache, [int(500 * rng.random() ** 2) for _ in range(1500)])
        cache._check()
        assert len(cache) <= size
        cache.clear()
        cache._check()
        assert cache.items() == []


def test_the_window_is_always_that_of_a_shadow(engine: Twin) -> None:
    """Phases that different rules of the shadows serve best: the window is always one of theirs."""
    cache = make(engine, 200)
    play(cache, list(range(300)))
    shares = [share for share, _ in cache.stats().shadows]
    assert len(set(shares)) == len(shares) == 5
    rng = random.Random(4)
    seen = set()
    for phase in range(12):
        base = 1000 * phase * (phase % 3 != 0)
        for step in range(2000):
            key = int(900 * rng.random() ** 2)
            if phase % 3 == 1:  # most keys come twice, not far apart
                key = 10**6 * (phase + 1) + step // 2 + 60 * (step % 2)
            play(cache, [base + key])
            seen.add(cache.stats().window)
        cache._check()
    assert seen <= {int(share * 200.0) for share in shares} | {2}
    assert len(seen) >= 2


class TestFrequency:
    def test_storing_and_hits_are_uses_up_to_fifteen(self, engine: Twin) -> None:
        cache = engine.Cache(1000)
        assert cache.frequency("k") == 0
        cache["k"] = 1
        for uses in range(1, 20):
            assert [cache.frequency("k") for _ in range(3)] == [min(uses, 15)] * 3
            assert cache.get("k") == 1
        cache.peek("k")
        cache["other"] = 1
        assert cache.frequency("other") == 1
        assert cache.frequency("absent") == 0

    def test_counts_are_halved_as_others_rise(self, engine: Twin) -> None:
        cache = make(engine, 300)
        for key in range(300):
            cache[key] = key
        for _ in range(20):
            cache.get(7)
        assert cache.frequency(7) == 15
        assert 1 <= cache.frequency(8) <= 3
        rng = random.Random(1)
        play(cache, [300 + int(600 * rng.random() ** 2) for _ in range(40_000)] + [7] * 3)
        assert 1 <= cache.frequency(7) < 12
        assert cache.frequency(300) > 12

    def test_an_expired_entry_has_none(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(8, 5, timer=clock)
        cache["k"] = 1
        assert cache.frequency("k") == 1
        clock.advance(5)
        assert cache.frequency("k") == 0
        assert len(cache) == 1, "it is not removed either"

    def test_lru_counts_nothing(self, engine: Twin) -> None:
        cache = engine.Cache(8, policy="lru")
        cache["k"] = 1
        cache.get("k")
        assert cache.frequency("k") == 0
