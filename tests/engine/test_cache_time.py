"""Times to live of `Cache`: what expires when, what reads the clock, broken clocks."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from beastcore import RemovalCause
from support import FakeClock, Twin

TICK = 1 / 64
DAY = 86_400.0
YEAR = 365 * DAY


class TestTimesToLive:
    @pytest.mark.parametrize("ttl", [None, math.inf])
    def test_endless(self, engine: Twin, clock: FakeClock, ttl: Any) -> None:
        cache = engine.Cache(4, ttl, timer=clock)
        assert cache.ttl is None
        cache[1] = 1
        cache.set(2, 2, ttl)
        clock.advance(100 * YEAR)
        assert cache.items() == [(1, 1), (2, 2)]
        assert cache.expires_in(1) is None

    @pytest.mark.parametrize(
        ("ttl", "error", "text"),
        [
            (0, ValueError, "ttl must be positive (None never expires), got 0"),
            (0.0, ValueError, "ttl must be positive (None never expires), got 0.0"),
            (-0.0, ValueError, "ttl must be positive (None never expires), got -0.0"),
            (-1, ValueError, "ttl must be positive (None never expires), got -1"),
            (-math.inf, ValueError, "ttl must be positive (None never expires), got -inf"),
            (math.nan, ValueError, "ttl must be a positive number of seconds or None, got nan"),
            (
                YEAR + 1,
                ValueError,
                "ttl must be at most 31536000 seconds (None never expires), got 31536001.0",
            ),
            (
                1e300,
                ValueError,
                "ttl must be at most 31536000 seconds (None never expires), got 1e+300",
            ),
            (
                10**400,
                None,
                "",
            ),
            (True, TypeError, "ttl must be a positive number of seconds or None, got True"),
            ("5", TypeError, "ttl must be a positive number of seconds or None, got '5'"),
            ([], TypeError, "ttl must be a positive number of seconds or None, got []"),
        ],
    )
    def test_bad(self, engine: Twin, ttl: Any, error: Any, text: str) -> None:
        cache = engine.Cache(4)
        cache[1] = 1
        before = cache.items(), cache.stats()
        operations = (
            lambda: engine.Cache(4, ttl),
            lambda: cache.set(1, 2, ttl),
            lambda: cache.set_many({1: 2}, ttl),
            lambda: cache.touch(1, ttl),
        )
        for operation in operations:
            if error is None:  # an int beyond the floats counts as infinite
                operation()
                continue
            with pytest.raises(error) as caught:
                operation()
            assert str(caught.value) == text
        if error is not None:
            assert (cache.items(), cache.stats()) == before
            assert cache.expires_in(1) is None

    @pytest.mark.parametrize("ttl", [5e-324, 1e-9, TICK, 0.1, 1, 300, DAY, YEAR])
    def test_never_early_and_at_most_a_tick_late(
        self, engine: Twin, clock: FakeClock, ttl: float
    ) -> None:
        for start in (0.0, 0.001, TICK / 2, 0.7, 12345.678):
            clock.now = 1000.0
            cache = engine.Cache(4, ttl, timer=clock)
            clock.now = 1000.0 + start
            cache["k"] = 1
            clock.now = math.nextafter(1000.0 + start + ttl, 0.0)
            if clock.now >= 1000.0 + start:
                assert "k" in cache, f"early: ttl {ttl}, stored at {start}"
                assert cache.expires_in("k") >= 0
            clock.now = 1000.0 + start + ttl + TICK
            assert "k" not in cache, f"late: ttl {ttl}, stored at {start}"

    def test_the_boundary_is_a_tick(self, engine: Twin, clock: FakeClock) -> None:
        clock.now = 0.0
        cache = engine.Cache(4, 10 * TICK, timer=clock)
        clock.now = 5.5 * TICK
        cache["k"] = 1  # deadline at tick ceil(15.5) = 16
        clock.now = math.nextafter(16 * TICK, 0)
        assert cache.get("k") == 1
        assert cache.expires_in("k") > 0
        clock.now = 16 * TICK
        assert cache.get("k") is None

    def test_on_the_tick_it_expires_exactly(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(4, 2, timer=clock)
        cache["k"] = 1
        clock.advance(math.nextafter(2.0, 0) - 1e-9)
        assert "k" in cache
        clock.now = 1002.0
        assert "k" not in cache

    def test_set_gives_the_entry_its_own(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, 10, timer=clock)
        cache["own"] = 1
        cache.set("default", 1)
        cache.set("short", 1, 5)
        cache.set("endless", 1, None)
        cache.set("infinite", 1, math.inf)
        assert [cache.expires_in(k) for k in list(cache.keys())] == [10, 10, 5, None, None]
        clock.advance(5)
        assert cache.keys() == ["own", "default", "endless", "infinite"]
        clock.advance(5)
        assert cache.keys() == ["endless", "infinite"]

    def test_overwriting_sets_it_anew(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, 10, timer=clock)
        cache.set("a", 1, 100)
        cache.set("b", 1, None)
        cache.set("c", 1, 1)
        cache["a"] = cache["b"] = cache["c"] = 2
        assert [cache.expires_in(k) for k in "abc"] == [10, 10, 10]
        clock.advance(4)
        cache.set_many({"a": 3, "b": 3}, 50)
        cache.set_many({"c": 3}, None)
        assert [cache.expires_in(k) for k in "abc"] == [50, 50, None]
        cache.set_many({"c": 4})
        assert cache.expires_in("c") == 10

    def test_reading_does_not_prolong(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, 10, timer=clock)
        cache["a"] = 1
        clock.advance(6)
        assert cache["a"] == cache.setdefault("a", 2) == cache.get_many(["a"])[0] == 1
        assert cache.expires_in("a") == 4

    def test_expires_in(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, 10, timer=clock)
        cache["a"] = 1
        for passed in range(10):
            assert cache.expires_in("a") == 10 - passed
            clock.advance(1)
        with pytest.raises(KeyError) as caught:
            cache.expires_in("a")
        assert caught.value.args == ("a",)
        assert len(cache) == 1  # not removed

    def test_touch(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, 10, timer=clock)
        cache["a"] = 1
        clock.advance(9)
        assert cache.touch("a") is True
        assert cache.expires_in("a") == 10
        assert cache.touch("a", 3) is True
        assert cache.expires_in("a") == 3
        assert cache.touch("a", None) is True
        assert cache.expires_in("a") is None
        assert cache.touch("a") is True
        assert cache.touch("absent") is False
        clock.advance(10)
        assert cache.touch("a") is False
        assert len(cache) == 0
        assert cache.stats().expirations == 1

    def test_touch_without_a_default(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, timer=clock)
        cache.set("a", 1, 5)
        assert cache.touch("a")
        assert cache.expires_in("a") is None
        assert cache.touch("a", 7)
        clock.advance(7)
        assert cache.keys() == []

    def test_len_may_count_expired_ones_until_they_are_met(
        self, engine: Twin, clock: FakeClock
    ) -> None:
        cache = engine.Cache(9, 1, timer=clock)
        cache["a"] = 1
        clock.advance(1)
        assert len(cache) in (0, 1)
        assert cache.get("a") is None
        assert len(cache) == 0


class TestMeetingAnExpiredEntry:
    def make(self, engine: Twin, clock: FakeClock) -> tuple[Any, list[Any]]:
        seen: list[Any] = []
        cache = engine.Cache(9, timer=clock, on_removal=lambda *a: seen.append(a))
        cache.set("old", 1, 1)
        cache.set("live", 2, 100)
        clock.advance(5)
        return cache, seen

    REMOVING = pytest.mark.parametrize(
        ("do", "answer"),
        [
            (lambda c: c.get("old", "absent"), "absent"),
            (lambda c: c.get_many(["old", "live"], "absent"), ["absent", 2]),
            (lambda c: c.pop("old", "absent"), "absent"),
            (lambda c: c.touch("old"), False),
            (lambda c: c.delete_many(["old", "live"]), 1),
            (lambda c: c.setdefault("old", "new"), "new"),
            (lambda c: c.set("old", "new"), None),
            (lambda c: c.set_many({"old": "new"}), None),
            (lambda c: c.__setitem__("old", "new"), None),
            (lambda c: c.expire(), 1),
            (lambda c: c.popitem(), ("live", 2)),
        ],
    )

    @REMOVING
    def test_is_removed(self, engine: Twin, clock: FakeClock, do: Any, answer: Any) -> None:
        cache, seen = self.make(engine, clock)
        assert do(cache) == answer
        assert seen[0] == ("old", 1, RemovalCause.EXPIRED)
        assert all(cause is not RemovalCause.REPLACED for _, _, cause in seen)
        assert cache.stats().expirations == 1
        assert cache.peek("old") in (None, "new")

    @pytest.mark.parametrize(
        "do", [lambda c: c["old"], lambda c: c.pop("old"), lambda c: c.__delitem__("old")]
    )
    def test_is_removed_and_then_absent(self, engine: Twin, clock: FakeClock, do: Any) -> None:
        cache, seen = self.make(engine, clock)
        with pytest.raises(KeyError, match="old"):
            do(cache)
        assert seen == [("old", 1, RemovalCause.EXPIRED)]
        assert (len(cache), cache.stats().expirations, cache.stats().removals) == (1, 1, 0)

    @pytest.mark.parametrize(
        ("do", "answer"),
        [
            (lambda c: c.peek("old", "absent"), "absent"),
            (lambda c: "old" in c, False),
            (list, ["live"]),
            (lambda c: c.keys(), ["live"]),
            (lambda c: c.values(), [2]),
            (lambda c: c.items(), [("live", 2)]),
            (lambda c: c == {"live": 2}, True),
            (lambda c: c.expire(0), 0),
            (lambda c: c.evict(0), 0),
        ],
    )
    def test_is_left_alone(self, engine: Twin, clock: FakeClock, do: Any, answer: Any) -> None:
        cache, seen = self.make(engine, clock)
        assert do(cache) == answer
        assert seen == []
        assert len(cache) == 2

    def test_counts_a_miss(self, engine: Twin, clock: FakeClock) -> None:
        for do in (
            lambda c: c.get("old"),
            lambda c: c.get_many(["old"]),
            lambda c: c.setdefault("old", 1),
        ):
            cache, _ = self.make(engine, clock)
            do(cache)
            assert cache.stats()[:2] == (0, 1)

    def test_an_overwrite_counts_an_expiration_and_stores_the_new_key(
        self, engine: Twin, clock: FakeClock
    ) -> None:
        cache = engine.Cache(9, 1, timer=clock)
        cache[1] = "int"
        clock.advance(5)
        cache[True] = "bool"
        assert type(cache.keys()[0]) is bool
        stats = cache.stats()
        assert (stats.sets, stats.expirations, stats.currsize) == (2, 1, 1)

    def test_the_victim_s_cause(self, engine: Twin, clock: FakeClock) -> None:
        seen: list[Any] = []
        cache = engine.Cache(
            3, policy="lru", timer=clock, on_removal=lambda *a: seen.append(a[::2])
        )
        cache.set("a", 1, 1)
        cache.set("b", 1, 100)
        cache.set("c", 1)
        clock.advance(5)
        for key in "def":
            cache[key] = 1
        assert seen == [
            ("a", RemovalCause.EXPIRED),
            ("b", RemovalCause.SIZE),
            ("c", RemovalCause.SIZE),
        ]
        assert (cache.stats().expirations, cache.stats().evictions) == (1, 2)

    @pytest.mark.parametrize("do", [lambda c: c.evict(2), lambda c: c.resize(1)])
    def test_evict_and_resize_tell_the_cause(self, engine: Twin, clock: FakeClock, do: Any) -> None:
        seen: list[Any] = []
        cache = engine.Cache(3, timer=clock, on_removal=lambda *a: seen.append(a[::2]))
        cache.set("a", 1, 1)
        cache.set("b", 1, 100)
        cache.set("c", 1)
        clock.advance(5)
        assert do(cache) == 2
        assert seen == [("a", RemovalCause.EXPIRED), ("b", RemovalCause.SIZE)]

    def test_popitem_passes_by_expired_ones(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(9, timer=clock)
        for i in range(5):
            cache.set(i, i, 1)
        clock.advance(2)
        with pytest.raises(KeyError, match="popitem"):
            cache.popitem()
        assert (len(cache), cache.stats().expirations) == (0, 5)

    def test_lazy_removal_during_iteration_is_a_change(
        self, engine: Twin, clock: FakeClock
    ) -> None:
        cache, _ = self.make(engine, clock)
        iterator = iter(cache)
        cache.get("old")
        with pytest.raises(RuntimeError, match="changed size"):
            next(iterator)


class TestExpire:
    def test_all(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(1000, timer=clock)
        for i in range(300):
            cache.set(i, i, 1 + i % 3)
        clock.advance(2)
        assert cache.expire() == 200
        assert cache.keys() == [i for i in range(300) if i % 3 == 2]
        assert cache.expire() == 0
        clock.advance(1)
        assert cache.expire(None) == 100
        assert cache.stats().expirations == 300

    def test_limit(self, engine: Twin, clock: FakeClock) -> None:
        seen: list[Any] = []
        cache = engine.Cache(100, 1, timer=clock, on_removal=lambda k, v, c: seen.append(k))
        for i in range(50):
            cache[i] = i
        clock.advance(2)
        assert cache.expire(0) == 0
        assert cache.expire(3) == 3
        assert seen == [0, 1, 2]  # in the order of their filing
        assert cache.expire(40) == 40
        assert cache.expire(40) == 7
        assert seen == list(range(50))

    def test_many_at_once(self, engine: Twin, clock: FakeClock) -> None:
        n = 200_000 if engine.compiled else 20_000
        cache = engine.Cache(n, 1, timer=clock)
        cache.set_many((i, i) for i in range(n))
        clock.advance(5)
        started = time.perf_counter()
        cache["new"] = 1
        assert time.perf_counter() - started < 0.05  # one set pays for 16 entries at most
        assert len(cache) == n + 1 - 16
        assert cache.expire() == n - 16
        assert cache.keys() == ["new"]


class TestTheTimer:
    def test_read_once_at_construction(self, engine: Twin, clock: FakeClock) -> None:
        engine.Cache(4, 1, timer=clock)
        assert clock.calls == 1

    def test_not_read_where_there_is_no_ttl(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(4, timer=clock)
        cache["a"] = 1
        cache.get("a")
        cache.get("b")
        cache.set_many({"x": 1, "y": 2})
        cache.get_many(["a", "x"])
        cache.setdefault("z")
        assert "a" in cache
        cache.peek("x")
        cache.items()
        list(cache)
        cache.expires_in("x")
        cache.touch("x")
        cache.pop("x")
        cache.popitem()
        cache.expire()
        cache.evict(1)
        cache.clear()
        assert clock.calls == 1

    @pytest.mark.parametrize(
        "do",
        [
            lambda c: c.get("a"),
            lambda c: c["a"],
            lambda c: c.peek("a"),
            lambda c: "a" in c,
            lambda c: c.set("a", 1),
            lambda c: c.set("new", 1),
            lambda c: c.get_many(["a", "b", "c", "a"]),
            lambda c: c.setdefault("a", 1),
            lambda c: c.pop("a"),
            lambda c: c.touch("a"),
            lambda c: c.keys(),
            lambda c: c.values(),
            lambda c: c.items(),
            lambda c: c.expire(),
            lambda c: c.evict(1),
            lambda c: c.resize(1),
            lambda c: c.popitem(),
            lambda c: c.expires_in("a"),
            lambda c: c.set_many({"a": 1, "d": 2, "e": 3}),
            lambda c: c.delete_many(["a", "b", "c"]),
        ],
    )
    def test_read_at_most_once_per_operation(self, engine: Twin, clock: FakeClock, do: Any) -> None:
        cache = engine.Cache(3, 10, timer=clock)
        for key in "abc":
            cache[key] = key
        before = clock.calls
        do(cache)
        assert clock.calls - before == 1

    ANSWERS = pytest.mark.parametrize(
        ("answer", "error"),
        [
            (math.nan, ValueError),
            (math.inf, ValueError),
            (-math.inf, ValueError),
            ("1", TypeError),
            (None, TypeError),
            (b"1", TypeError),
            ([1.0], TypeError),
        ],
    )

    @ANSWERS
    def test_a_bad_answer_at_construction(
        self, engine: Twin, answer: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error) as caught:
            engine.Cache(4, timer=lambda: answer)
        assert str(caught.value) == f"timer() must return seconds as a float, got {answer!r}"

    @ANSWERS
    def test_a_bad_answer_changes_nothing(
        self, engine: Twin, answer: Any, error: type[Exception]
    ) -> None:
        def fail() -> Any:
            return answer

        text = f"timer() must return seconds as a float, got {answer!r}"
        self.check_failing_timer(engine, fail, error, text)

    def test_a_timer_that_raises_changes_nothing(self, engine: Twin) -> None:
        def fail() -> Any:
            raise OSError("no clock")

        self.check_failing_timer(engine, fail, OSError, "no clock")

    def check_failing_timer(
        self, engine: Twin, fail: Any, error: type[Exception], text: str
    ) -> None:
        broken = False

        def timer() -> Any:
            return fail() if broken else 1.0

        cache = engine.Cache(3, 10, timer=timer)
        for key in "abc":
            cache[key] = key
        before = cache.items(), cache.stats()
        for do in (
            lambda: cache.get("a"),
            lambda: cache["a"],
            lambda: cache.get_many(["a", "b"]),
            lambda: cache.peek("a"),
            lambda: "a" in cache,
            lambda: cache.set("a", 1),
            lambda: cache.set("d", 1),
            lambda: cache.set_many({"a": 1, "d": 2}),
            lambda: cache.setdefault("a", 1),
            lambda: cache.pop("a"),
            lambda: cache.popitem(),
            lambda: cache.__delitem__("a"),
            lambda: cache.delete_many(["a"]),
            lambda: cache.touch("a"),
            lambda: cache.expires_in("a"),
            lambda: cache.expire(),
            lambda: cache.evict(1),
            lambda: cache.resize(1),
            lambda: cache.items(),
            lambda: list(cache),
            lambda: cache == {},
        ):
            broken = True
            with pytest.raises(error) as caught:
                do()
            assert str(caught.value) == text
            broken = False
            cache._check()
            assert (cache.items(), cache.stats()) == before
        assert cache.maxsize == 3

    def test_any_number_will_do(self, engine: Twin) -> None:
        class Seconds:
            def __float__(self) -> float:
                return 7.5

        for answer in (3, 2.5, Seconds()):
            cache = engine.Cache(4, 1, timer=lambda answer=answer: answer)
            cache["a"] = 1
            assert cache.expires_in("a") == 1

    def test_negative_times_are_fine(self, engine: Twin, clock: FakeClock) -> None:
        clock.now = -1e6
        cache = engine.Cache(4, 10, timer=clock)
        cache["a"] = 1
        clock.advance(9)
        assert cache.expires_in("a") == 1
        clock.now = -1.0
        assert "a" not in cache

    def test_a_clock_that_runs_backwards(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(4, 10, timer=clock)
        clock.advance(100)
        cache["a"] = 1
        clock.advance(-50)
        assert cache["a"] == 1
        assert cache.expires_in("a") == 60
        clock.advance(-1000)  # before the construction: it stands at 0
        assert cache["a"] == 1
        assert cache.expires_in("a") == 110
        cache["b"] = 1
        assert cache.expires_in("b") == 10
        clock.now = 1109.9
        assert "a" in cache
        assert "b" not in cache
        clock.now = 1110.0
        assert "a" not in cache

    @pytest.mark.parametrize("years", [0.9, 1.06, 1.07, 2.2, 10, 100, 5000])
    def test_a_clock_that_jumps_forward(self, engine: Twin, clock: FakeClock, years: float) -> None:
        cache = engine.Cache(9, 10, timer=clock)
        cache["a"] = 1
        cache.set("endless", 1, None)
        cache.set("year", 1, YEAR)
        clock.advance(math.floor(years * YEAR))
        assert cache.keys() == (["endless", "year"] if years < 1 else ["endless"])
        cache.set("b", 2, YEAR)
        cache["c"] = 3
        assert cache.expires_in("b") == YEAR
        clock.advance(9)
        assert cache.expires_in("c") == 1
        clock.advance(1)
        assert "c" not in cache
        assert cache.expires_in("b") == YEAR - 10
        clock.advance(YEAR - 11)
        assert "b" in cache
        clock.advance(1)
        assert "b" not in cache
        assert cache["endless"] == 1
        cache.expire()
        assert cache.keys() == ["endless"]

    def test_a_century_in_small_steps(self, engine: Twin, clock: FakeClock) -> None:
        cache = engine.Cache(400, timer=clock)
        for day in range(0, 36_500, 100):
            cache.set(day, 1, 300 * DAY)
            assert cache.expires_in(day) == 300 * DAY
            assert cache.keys() == list(range(max(0, day - 200), day + 1, 100))
            clock.advance(100 * DAY)
        cache._check()

    def test_absurd_times(self, engine: Twin, clock: FakeClock) -> None:
        for now in (1e18, 1e19, 1e200, 1.7e308):
            clock.now = 0.0
            cache = engine.Cache(4, 10, timer=clock)
            cache["a"] = 1
            clock.now = now
            assert "a" not in cache
            cache["b"] = 1
            assert len(cache.keys()) <= 1
            cache._check()

    def test_the_built_in_clock(self, engine: Twin) -> None:
        cache = engine.Cache(4, 0.25)
        started = time.monotonic()
        cache["a"] = 1
        left = cache.expires_in("a")
        assert 0 < left <= 0.25 + 1 / 16
        while time.monotonic() - started < 0.24:
            if "a" not in cache:
                assert time.monotonic() - started >= 0.25
        while "a" in cache:
            assert time.monotonic() - started < 5
        assert time.monotonic() - started >= 0.25
