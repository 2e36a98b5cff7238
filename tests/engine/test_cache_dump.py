"""`Cache.dump` and `Cache.load`: what comes back, where it fits, how time passes."""

from __future__ import annotations

import gc
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from beastcore import SnapshotError
from cache_lockstep import salted
from evil import run_script
from support import FakeClock, Twin


def encode(value: Any) -> bytes:
    return repr(value).encode()


def decode(data: bytes) -> Any:
    return eval(data, {"__builtins__": {}})


def dump(cache: Any, path: Path, **kwargs: Any) -> int:
    written: int = cache.dump(path, **{"value_encoder": encode, **kwargs})
    return written


def load(cache: Any, path: Path, **kwargs: Any) -> int:
    loaded: int = cache.load(path, **{"value_decoder": decode, **kwargs})
    return loaded


def used(engine: Twin, seed: int, size: int = 60, **kwargs: Any) -> Any:
    """Return a cache with a history: every queue of "adaptive" has entries."""
    rng = random.Random(seed)
    with salted(engine, seed):
        cache = engine.Cache(size, **kwargs)
    for _ in range(40 * size):
        key = int(rng.paretovariate(0.4)) % (5 * size)
        if cache.get(key) is None:
            cache[key] = rng.randrange(1, 9)
    return cache


def facts(cache: Any) -> Any:
    """What is stored of each entry, in the order of leaving."""
    keys, values, states, left, policy = cache._export()
    return keys, values, states, memoryview(left).cast("d").tolist(), policy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.dump"


@pytest.mark.parametrize("policy", ["adaptive", "lru"])
def test_all_comes_back_as_it_was(engine: Twin, path: Path, policy: str) -> None:
    cache = used(engine, 1, policy=policy)
    assert dump(cache, path) == 60
    queues = {state & 3 for state in facts(cache)[2]}
    assert queues == ({0, 1, 2} if policy == "adaptive" else {0})
    other = engine.Cache(60, policy=policy)
    assert load(other, path) == 60
    assert facts(other) == facts(cache)
    assert other.items() == cache.items()
    stats = other.stats()
    assert (stats.sets, stats.hits, stats.misses, stats.evictions) == (0, 0, 0, 0)


@pytest.mark.parametrize("policy", ["adaptive", "lru"])
def test_after_it_the_same_leave_in_the_same_order(engine: Twin, path: Path, policy: str) -> None:
    cache = used(engine, 2, policy=policy)
    dump(cache, path)
    left: list[list[Any]] = []
    for _ in range(2):
        told: list[Any] = []
        with salted(engine, 7):
            other = engine.Cache(60, policy=policy, on_removal=lambda *a, t=told: t.append(a))
        load(other, path)
        other.evict(60)
        left.append(told)
    assert left[0] == left[1]
    if policy == "lru":
        assert [key for key, _, _ in left[0]] == cache.keys()


@pytest.mark.compiled_only
@pytest.mark.parametrize("policy", ["adaptive", "lru"])
def test_each_twin_reads_what_the_other_wrote(engine: Twin, path: Path, policy: str) -> None:
    twins = [engine, Twin(compiled=False)]
    files = []
    for writer in twins:
        dump(used(writer, 3, 200, policy=policy), path, wall_clock=lambda: 5.0)
        files.append(path.read_bytes())
        left = []
        for reader in twins:
            told: list[Any] = []
            with salted(reader, 9):
                other = reader.Cache(150, policy=policy, on_removal=lambda *a, t=told: t.append(a))
            assert load(other, path) == 150
            known = facts(other)
            for key in range(300):
                if other.get(key) is None:
                    other[key] = -1
            other.evict(150)
            other._check()
            left.append((known, told))
        assert left[0] == left[1]
    assert files[0] == files[1]


@pytest.mark.compiled_only
@settings(max_examples=100, deadline=None, phases=[Phase.generate])
@given(
    seed=st.integers(0, 2**32),
    policies=st.tuples(*[st.sampled_from(["adaptive", "lru"])] * 2),
    sizes=st.tuples(*[st.integers(1, 60)] * 2),
    weights=st.one_of(st.none(), st.tuples(*[st.integers(1, 80)] * 2)),
    down=st.sampled_from([0.0, 1.5, 30.0, -7.0, 1e9]),
    before=st.integers(0, 10),
)
def test_the_twins_load_alike(
    seed: int,
    policies: tuple[str, str],
    sizes: tuple[int, int],
    weights: tuple[int, int] | None,
    down: float,
    before: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("dump") / "x"
    seen = []
    for twin in [Twin(compiled=compiled, tracked=False) for compiled in (True, False)]:
        rng = random.Random(seed)
        clock = FakeClock()
        caches = []
        for i in (0, 1):
            kwargs: dict[str, Any] = {"policy": policies[i], "timer": clock}
            if weights is not None:
                kwargs |= {"max_weight": weights[i], "weigher": lambda key, value: value}
            with salted(twin, seed + i):
                caches.append(twin.Cache(sizes[i], **kwargs))
        for cache, steps in zip(caches, (300, before), strict=True):
            for _ in range(steps):
                key = rng.randrange(100)
                weight = 0 if weights is None else rng.randrange(min(9, cache.max_weight + 1))
                if cache.get(key) is None:
                    cache.set(key, weight, rng.choice([None, 0.5, 20, 2000]))
                clock.advance(rng.choice([0, 0, 0.01, 0.3]))
        written = dump(caches[0], path, wall_clock=lambda: 1000.0)
        content = path.read_bytes()
        held = dict(caches[1].items())
        loaded = load(caches[1], path, wall_clock=lambda: 1000.0 + down)
        caches[1]._check()
        assert loaded <= written
        assert held.items() <= dict(caches[1].items()).items(), "something left or changed"
        seen.append((written, content, loaded, facts(caches[1])))
    assert seen[0] == seen[1]


def test_a_smaller_cache_keeps_the_best(engine: Twin, path: Path) -> None:
    cache = used(engine, 4, policy="lru")
    dump(cache, path)
    other = engine.Cache(10, policy="lru", on_removal=lambda *a: pytest.fail(f"told of {a}"))
    assert load(other, path) == 10
    assert other.items() == cache.items()[-10:]
    adaptive = used(engine, 4)
    dump(adaptive, path)
    small = engine.Cache(10, on_removal=lambda *a: pytest.fail(f"told of {a}"))
    assert load(small, path) == 10
    assert small.keys() == adaptive.keys()[-10:]


def test_only_what_may_fit_is_decoded(engine: Twin, path: Path) -> None:
    dump(used(engine, 5), path)
    decoded: list[bytes] = []
    other = engine.Cache(7)
    assert load(other, path, value_decoder=lambda b: decoded.append(b) or 1) == 7
    assert len(decoded) == 7
    assert load(other, path) == 0


def test_what_is_held_stays(engine: Twin, path: Path) -> None:
    cache = engine.Cache(8, policy="lru")
    cache.set_many({"a": 1, "b": 2, "c": 3, "d": 4})
    dump(cache, path)
    other = engine.Cache(4, policy="lru", on_removal=lambda *a: pytest.fail(f"told of {a}"))
    other["c"] = "newer"
    other["x"] = "new"
    assert load(other, path) == 2
    assert other.items() == [("c", "newer"), ("x", "new"), ("b", 2), ("d", 4)]
    assert load(other, path) == 0


@pytest.mark.parametrize("policy", ["adaptive", "lru"])
def test_weights_are_those_of_the_cache_that_loads(engine: Twin, path: Path, policy: str) -> None:
    cache = engine.Cache(20, policy=policy)
    for key, value in {"a": 3, "b": 50, "c": 4, "d": 2, "e": 0}.items():
        cache[key] = value
    dump(cache, path)
    other = engine.Cache(
        20,
        policy=policy,
        max_weight=7,
        weigher=lambda key, value: value,
        on_removal=lambda *a: pytest.fail(f"told of {a}"),
    )
    assert load(other, path) == 3
    assert dict(other.items()) == {"c": 4, "d": 2, "e": 0}  # "b" and "a" are too heavy by then
    assert other.weight == 6
    assert other.stats().rejections == 0


def test_a_bad_weigher_changes_nothing(engine: Twin, path: Path) -> None:
    dump(used(engine, 5), path)
    for weigher, error in ((lambda k, v: "heavy", TypeError), (lambda k, v: 1 // (v - 3), OSError)):
        cache = engine.Cache(60, max_weight=100, weigher=weigher)
        with pytest.raises((error, ZeroDivisionError)):
            load(cache, path)
        assert len(cache) == 0


# -- time ------------------------------------------------------------------------------------------


def test_time_spent_down_counts(engine: Twin, path: Path, clock: FakeClock) -> None:
    cache = engine.Cache(9, timer=clock)
    for key, ttl in {"short": 10, "long": 100, "ever": None, "gone": 1}.items():
        cache.set(key, key, ttl)
    clock.advance(4)
    assert dump(cache, path, wall_clock=lambda: 50_000.0) == 3  # "gone" is
    other_clock = FakeClock(1e6)
    for down, expected in (
        (0, {"short": 6, "long": 96, "ever": None}),
        (5, {"short": 1, "long": 91, "ever": None}),
        (6, {"long": 90, "ever": None}),
        (95, {"long": 1, "ever": None}),
        (1e9, {"ever": None}),
        (-1000, {"short": 6, "long": 96, "ever": None}),  # a clock set back lengthens nothing
    ):
        other = engine.Cache(9, ttl=3, timer=other_clock)
        assert load(other, path, wall_clock=lambda d=down: 50_000.0 + d) == len(expected)
        assert {key: other.expires_in(key) for key in other} == expected
    other_clock.advance(1.5)
    assert "ever" in other


def test_time_spent_decoding_counts(engine: Twin, path: Path, clock: FakeClock) -> None:
    cache = engine.Cache(9, timer=clock)
    cache.set_many({1: 1, 2: 2}, 10)
    dump(cache, path, wall_clock=lambda: 0.0)
    wall = iter([4.0, 7.0])
    other = engine.Cache(9, timer=clock)
    assert load(other, path, wall_clock=lambda: next(wall)) == 2
    assert other.expires_in(1) == 3
    wall = iter([4.0, 11.0])
    other = engine.Cache(9, timer=clock)
    assert load(other, path, wall_clock=lambda: next(wall)) == 0


def test_lives_do_not_grow_by_many_restarts(engine: Twin, path: Path) -> None:
    cache = engine.Cache(9)
    cache.set("a", 1, 100)
    for _ in range(20):
        dump(cache, path)
        cache = engine.Cache(9)
        load(cache, path)
    assert 98 < cache.expires_in("a") <= 100 + 20 / 32


def test_the_longest_life_survives(engine: Twin, path: Path, clock: FakeClock) -> None:
    clock.now = 0.003
    cache = engine.Cache(9, ttl=31_536_000, timer=clock)
    clock.now = 77.777
    cache["a"] = 1
    dump(cache, path, wall_clock=lambda: 0.0)
    assert load(other := engine.Cache(9, timer=clock), path, wall_clock=lambda: 0.0) == 1
    assert other.expires_in("a") == pytest.approx(31_536_000, abs=0.1)


def test_loaded_entries_expire(engine: Twin, path: Path, clock: FakeClock) -> None:
    cache = engine.Cache(50, timer=clock)
    cache.set_many({i: i for i in range(40)}, 5)
    dump(cache, path, wall_clock=lambda: 0.0)
    other = engine.Cache(50, timer=clock)
    load(other, path, wall_clock=lambda: 1.0)
    clock.advance(3.9)
    assert other.get(1) == 1
    clock.advance(0.2)
    assert other.get(1) is None
    assert other.expire() == 39


# -- other code meanwhile --------------------------------------------------------------------------


def test_encoders_may_change_the_cache(engine: Twin, path: Path) -> None:
    cache = used(engine, 6)
    expected = cache.items()

    def encoder(value: Any) -> bytes:
        cache.clear()
        cache["new"] = 1
        return encode(value)

    assert dump(cache, path, value_encoder=encoder) == 60
    other = engine.Cache(60)
    assert load(other, path) == 60
    assert other.items() == expected
    assert cache.items() == [("new", 1)]


def test_decoders_may_change_the_cache(engine: Twin, path: Path) -> None:
    dump(used(engine, 6), path)
    cache = engine.Cache(60)

    def decoder(data: bytes) -> Any:
        cache[len(cache)] = "mine"
        return decode(data)

    load(cache, path, value_decoder=decoder)
    assert len(cache) == 60
    assert [cache.peek(i) for i in range(60)].count("mine") == 60


def test_keys_may_change_the_cache(engine: Twin, path: Path) -> None:
    class Key:
        armed = 0

        def __init__(self, name: int) -> None:
            self.name = name

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            if Key.armed:
                Key.armed -= 1
                target.clear()
                target.set_many({i: i for i in range(8)})
            return isinstance(other, Key) and self.name == other.name

    cache = engine.Cache(8)
    for i in range(8):
        cache[Key(i)] = i
    dump(cache, path, key_encoder=lambda key: b"%d" % key.name)
    for policy in ("adaptive", "lru"):
        target = engine.Cache(8, policy=policy)
        Key.armed = 5
        load(target, path, key_decoder=lambda data: Key(int(data)))
        Key.armed = 0
        target._check()
        assert len(target) <= 8


def test_a_listener_may_load_again(engine: Twin, path: Path, clock: FakeClock) -> None:
    source = engine.Cache(30, timer=clock)
    source.set_many({i: i for i in range(30)})
    dump(source, path)
    cache = engine.Cache(30, timer=clock, on_removal=lambda *a: load(cache, path))
    cache.set_many(dict.fromkeys(range(5), -1), 1)
    clock.advance(2)
    load(cache, path)
    assert cache.items()[-1][1] >= 0
    assert len(cache) == 30


def test_references_are_given_back(engine: Twin, path: Path) -> None:
    cache = engine.Cache(50)
    keys = [f"key {i}" for i in range(50)]
    values = [float(i) for i in range(50)]
    for key, value in zip(keys, values, strict=True):
        cache[key] = value
    before = [sys.getrefcount(thing) for thing in keys + values]
    for _ in range(3):
        dump(cache, path)
        table = {encode(value): value for value in values}
        other = engine.Cache(50)
        load(other, path, value_decoder=table.__getitem__)
        del table, other
        with pytest.raises(ZeroDivisionError):
            dump(cache, path, value_encoder=lambda value: b"%d" % (1 / (value - 20)))
        gc.collect()
    assert [sys.getrefcount(thing) for thing in keys + values] == before


def test_the_hooks_refuse_nonsense(engine: Twin) -> None:
    cache = engine.Cache(4)
    good: list[Any] = [[1], [1], b"\0", bytes(8), None, 0.0, None, 4]
    for i, bad in ((0, []), (1, []), (2, b""), (3, b""), (7, 0), (7, 5)):
        with pytest.raises(ValueError, match="_import: "):
            cache._import(*good[:i], bad, *good[i + 1 :])
    if engine.compiled:
        for i, bad in ((0, None), (1, 5), (2, [0]), (3, None), (5, "1")):
            with pytest.raises(TypeError):
                cache._import(*good[:i], bad, *good[i + 1 :])
    with pytest.raises(TypeError, match="unhashable"):
        cache._import([[]], *good[1:])
    assert len(cache) == 0
    assert cache._import(*good) == 0  # a life of 0 seconds is over


def test_nothing_of_it_is_imported_before_it_is_used(engine: Twin) -> None:
    run_script(
        engine,
        "import sys\n"
        "cache = Cache(1)\n"
        "assert not {'beastcore._snapshot', 'beastcore._dumpfile'} & set(sys.modules)\n",
    )


def test_an_empty_cache(engine: Twin, path: Path) -> None:
    assert dump(engine.Cache(4), path) == 0
    assert load(engine.Cache(4), path) == 0
    assert path.stat().st_size < 100
    path.write_bytes(b"")
    with pytest.raises(SnapshotError, match="no dump of a Cache"):
        load(engine.Cache(4), path)
