"""`LatencyHistogram`: accuracy, limits, merging, JSON, both twins alike, bad input."""

from __future__ import annotations

import array
import copy
import itertools
import json
import math
import pickle
import random
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beastcore import _buckets
from engine_tools import every_allocation_fails
from support import Twin

HOUR = 3_600_000_000_000
ANY_NS = st.one_of(
    st.integers(-5, 600),
    st.integers(0, HOUR + 10),
    st.sampled_from([2**k + d for k in range(66) for d in (-1, 0, 1)]),
    st.sampled_from([-(2**63), -(2**64), 2**63 - 1, 2**63, 2**64, 2**200]),
)


class TestBuckets:
    def test_they_cover_everything_once(self) -> None:
        bounds = [
            (_buckets.lower_bound(i), _buckets.upper_bound(i)) for i in range(_buckets.BUCKETS)
        ]
        assert bounds[0] == (0, 0)
        assert bounds[-1][1] == HOUR == _buckets.MAX_NS
        for (_, high), (low, _) in itertools.pairwise(bounds):
            assert low == high + 1
        for index, (low, high) in enumerate(bounds):
            assert _buckets.bucket_of(low) == _buckets.bucket_of(high) == index

    def test_the_error_is_at_most_0_8_percent(self) -> None:
        for i in range(1, _buckets.BUCKETS):
            low, high = _buckets.lower_bound(i), _buckets.upper_bound(i)
            assert (high - low) / low < 0.008


class TestRecording:
    def test_empty(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        assert (h.count, h.sum, h.mean, h.min, h.max) == (0, 0, None, None, None)
        assert h.percentile(50) is None
        assert repr(h) == "LatencyHistogram(count=0, mean=None, min=None, max=None)"

    @given(ns=ANY_NS)
    @settings(deadline=None)
    def test_one_value(self, ns: int) -> None:
        expected = min(max(ns, 0), HOUR)
        for compiled in (True, False):
            h = Twin(compiled=compiled).raw.LatencyHistogram()
            h.record(ns)
            assert (h.count, h.sum, h.mean, h.min, h.max) == (1, *[expected] * 4)
            assert [h.percentile(p) for p in (0, 1, 50, 100)] == [expected] * 4
            h._check()

    def test_both_ends_saturate(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        for ns in (-1, -(2**80), 2**41, HOUR, HOUR + 1, 2**62, 2**80):
            h.record(ns)
        assert (h.count, h.min, h.max) == (7, 0, HOUR)
        assert h.to_dict()["buckets"][0] == [0, 2]
        assert h.percentile(99) == HOUR

    def test_percentiles_of_many_values(self, engine: Twin) -> None:
        draw = random.Random(7)
        values = sorted(int(draw.lognormvariate(13, 3)) for _ in range(5000))
        h = engine.LatencyHistogram()
        for ns in values:
            h.record(ns)
        for p in (0.01, 1, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100):
            true = min(values[max(math.ceil(p * 5000 / 100), 1) - 1], HOUR)
            assert true <= h.percentile(p) <= true * 1.008
        assert h.percentile(0) == values[0]
        assert h.mean == sum(min(v, HOUR) for v in values) / 5000

    @pytest.mark.parametrize("count", [1000, 10_000, 3, 7])
    def test_exact_ranks(self, engine: Twin, count: int) -> None:
        h = engine.LatencyHistogram()
        for ns in range(1, min(count, 250) + 1):
            h.record(ns)
        n = h.count
        for tenths in range(1001):
            p = tenths / 10
            assert h.percentile(p) == max(-(-tenths * n // 1000), 1)

    def test_a_percentile_stays_between_min_and_max(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        h.record(404_100_000)
        h.record(404_000_001)
        assert h.percentile(99) == 404_100_000
        assert h.percentile(1) <= 404_100_000

    @pytest.mark.parametrize("bad", [1.5, "1", None, True, b"1", 1j])
    def test_bad_values(self, engine: Twin, bad: Any) -> None:
        h = engine.LatencyHistogram()
        with pytest.raises(TypeError) as caught:
            h.record(bad)
        assert str(caught.value) == f"ns must be an int, got {bad!r}"
        assert h.count == 0

    def test_what_has_an_index_is_an_int(self, engine: Twin) -> None:
        class Number:
            def __index__(self) -> int:
                return 77

        h = engine.LatencyHistogram()
        h.record(Number())
        assert h.max == 77


class TestRecordMany:
    @pytest.mark.parametrize("code", "qQlLiIhHbB")
    def test_arrays(self, engine: Twin, code: str) -> None:
        values = [0, 1, 100] + ([] if code.isupper() else [-7])
        h = engine.LatencyHistogram()
        assert h.record_many(array.array(code, values)) == len(values)
        assert (h.count, h.sum, h.max) == (len(values), 101, 100)

    def test_extremes_in_a_buffer(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        h.record_many(array.array("Q", [2**64 - 1, HOUR + 1]))
        h.record_many(array.array("q", [2**63 - 1, -(2**63)]))
        assert (h.count, h.min, h.max, h.sum) == (4, 0, HOUR, 3 * HOUR)

    def test_views(self, engine: Twin) -> None:
        data = array.array("q", range(10))
        h = engine.LatencyHistogram()
        assert h.record_many(memoryview(data)[::3]) == 4
        assert h.sum == 0 + 3 + 6 + 9
        assert h.record_many(memoryview(data.tobytes()).cast("q")) == 10
        assert h.record_many(memoryview(data)[::-1]) == 10
        assert h.record_many(array.array("q")) == 0
        data.append(5)  # the buffer was given back

    def test_numpy(self, engine: Twin) -> None:
        numpy = pytest.importorskip("numpy", reason="numpy is not installed")
        h = engine.LatencyHistogram()
        matrix = numpy.arange(12, dtype=numpy.int64).reshape(3, 4)
        assert h.record_many(matrix[:, 1]) == 3
        assert h.sum == 1 + 5 + 9
        assert h.record_many(numpy.array([3], dtype=numpy.uint64)) == 1
        assert h.record_many(numpy.array([4], dtype=">i8")) == 1
        assert h.record_many(numpy.array([5], dtype=numpy.int16)) == 1
        assert h.sum == 15 + 12
        for bad in (matrix, numpy.array([1.5])):
            with pytest.raises(TypeError):
                h.record_many(bad)
        assert h.count == 6

    def test_iterables(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        assert h.record_many(x for x in (1, 2, 2**70)) == 3
        assert h.record_many({5, 6}) == 2
        assert h.sum == 14 + HOUR

    @pytest.mark.parametrize("bad", [[1, 2.5], [1, None], (1, "2")])
    def test_all_or_nothing(self, engine: Twin, bad: Any) -> None:
        h = engine.LatencyHistogram()
        with pytest.raises(TypeError, match="ns must be an int, got"):
            h.record_many(bad)
        assert h.count == 0

    @pytest.mark.parametrize("bad", [b"12345678", "12", bytearray(8)])
    def test_no_series_of_latencies(self, engine: Twin, bad: Any) -> None:
        with pytest.raises(TypeError) as caught:
            engine.LatencyHistogram().record_many(bad)
        assert str(caught.value) == (
            "record_many needs a buffer of int64 or uint64 or an iterable of ints, "
            f"got {type(bad).__name__}"
        )
        with pytest.raises(TypeError, match="not iterable"):
            engine.LatencyHistogram().record_many(5)


class TestMerging:
    def test_merging_equals_recording_into_one(self, engine: Twin) -> None:
        draw = random.Random(3)
        parts = [[draw.randrange(10 ** draw.randrange(1, 14)) for _ in range(200)] for _ in "abc"]
        one, merged = engine.LatencyHistogram(), engine.LatencyHistogram()
        for part in parts:
            h = engine.LatencyHistogram()
            h.record_many(part)
            one.record_many(part)
            before = h.to_dict()
            merged.merge(h)
            assert h.to_dict() == before
        assert merged.to_dict() == one.to_dict()

    def test_with_empty_and_with_itself(self, engine: Twin) -> None:
        h, empty = engine.LatencyHistogram(), engine.LatencyHistogram()
        empty.merge(h)
        assert empty.min is None
        h.record(5)
        h.merge(empty)
        h.merge(h)
        assert (h.count, h.sum, h.min, h.max) == (2, 10, 5, 5)
        empty.merge(h)
        assert (empty.count, empty.min) == (2, 5)

    def test_bad_input(self, engine: Twin) -> None:
        with pytest.raises(TypeError, match="other must be a LatencyHistogram, got 3"):
            engine.LatencyHistogram().merge(3)

    def test_too_many_values(self, engine: Twin) -> None:
        huge = {
            "layout": "log-linear-128",
            "count": 2**63 - 1,
            "sum": (2**63 - 1) * HOUR,
            "min": HOUR,
            "max": HOUR,
            "buckets": [[_buckets.lower_bound(_buckets.BUCKETS - 1), 2**63 - 1]],
        }
        a = engine.LatencyHistogram.from_dict(huge)
        assert a.sum == (2**63 - 1) * HOUR
        assert a.mean == HOUR
        b = engine.LatencyHistogram()
        b.record(1)
        with pytest.raises(OverflowError, match="at most 9223372036854775807 values"):
            a.merge(b)
        assert a.count == 2**63 - 1

    def test_the_sum_carries_beyond_64_bits(self, engine: Twin) -> None:
        count = 2**63 // HOUR * 3
        data = {
            "layout": "log-linear-128",
            "count": count,
            "sum": count * HOUR,
            "min": HOUR,
            "max": HOUR,
            "buckets": [[_buckets.lower_bound(_buckets.BUCKETS - 1), count]],
        }
        h = engine.LatencyHistogram.from_dict(data)
        h.merge(h)
        for _ in range(5):
            h.record(HOUR)
        assert h.sum == (2 * count + 5) * HOUR > 2**64

    def test_reset(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        h.record_many(range(1000))
        h.reset()
        assert h.to_dict() == engine.LatencyHistogram().to_dict()
        h.record(9)
        assert (h.min, h.max) == (9, 9)


class TestDicts:
    def test_round_trip_through_json(self, engine: Twin) -> None:
        h = engine.LatencyHistogram()
        h.record_many([0, 5, 255, 256, 257, 10**9, HOUR])
        data = json.loads(json.dumps(h.to_dict()))
        assert data["unit"] == "ns"
        assert data["buckets"] == [
            [0, 1],
            [5, 1],
            [255, 1],
            [256, 2],
            [_buckets.lower_bound(_buckets.bucket_of(10**9)), 1],
            [_buckets.lower_bound(_buckets.BUCKETS - 1), 1],
        ]
        again = engine.LatencyHistogram.from_dict(data)
        assert again.to_dict() == h.to_dict()
        assert engine.LatencyHistogram.from_dict(engine.LatencyHistogram().to_dict()).count == 0

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"layout": "linear"}, "layout must be 'log-linear-128', got 'linear'"),
            ({"count": 3}, "count must be the sum of the buckets, got 3"),
            ({"count": -1}, "count must be zero or a positive int, got -1"),
            (
                {"count": 2**63},
                "count must be at most 9223372036854775807, got 9223372036854775808",
            ),
            ({"sum": "1"}, "sum must be zero or a positive int, got '1'"),
            ({"sum": 999}, "sum must agree with the buckets (305 to 306), got 999"),
            ({"min": 6}, "min must lie in the outermost bucket, got 6"),
            ({"max": 5}, "max must lie in the outermost bucket, got 5"),
            ({"min": None}, "min must be zero or a positive int, got None"),
            ({"buckets": 5}, "buckets must be a list of [lower bound, count], got 5"),
            (
                {"buckets": [[5, 1], [301, 1]]},
                "buckets must be rising [lower bound, count] pairs, got [301, 1]",
            ),
            (
                {"buckets": [[300, 1], [5, 1]]},
                "buckets must be rising [lower bound, count] pairs, got [5, 1]",
            ),
            (
                {"buckets": [[5, 0], [300, 2]]},
                "buckets must be rising [lower bound, count] pairs, got [5, 0]",
            ),
            (
                {"buckets": [[HOUR * 2, 2]]},
                f"buckets must be rising [lower bound, count] pairs, got [{HOUR * 2}, 2]",
            ),
        ],
    )
    def test_contradictions(self, engine: Twin, change: Any, text: str) -> None:
        h = engine.LatencyHistogram()
        h.record_many([5, 301])
        with pytest.raises(ValueError) as caught:
            engine.LatencyHistogram.from_dict(h.to_dict() | change)
        assert str(caught.value) == text

    def test_other_bad_input(self, engine: Twin) -> None:
        with pytest.raises(TypeError, match="data must be a mapping made by"):
            engine.LatencyHistogram.from_dict([])
        with pytest.raises(ValueError, match="data lacks layout, count, sum, min, max, buckets"):
            engine.LatencyHistogram.from_dict({})
        empty = engine.LatencyHistogram().to_dict()
        with pytest.raises(ValueError, match="min and max must be None and sum 0 when count is 0"):
            engine.LatencyHistogram.from_dict(empty | {"min": 0})


class TestBadInput:
    @pytest.mark.parametrize("p", [-1, 100.1, math.nan, math.inf])
    def test_percent(self, engine: Twin, p: float) -> None:
        for values in ([], [1]):
            h = engine.LatencyHistogram()
            h.record_many(values)
            with pytest.raises(ValueError) as caught:
                h.percentile(p)
            assert str(caught.value) == f"p must be a number from 0 to 100, got {p!r}"

    @pytest.mark.parametrize("p", ["50", None, True])
    def test_percent_of_a_wrong_type(self, engine: Twin, p: Any) -> None:
        with pytest.raises(TypeError, match="p must be a number from 0 to 100, got"):
            engine.LatencyHistogram().percentile(p)

    def test_no_pickle_no_copy_no_subclass(self, engine: Twin) -> None:
        h = engine.raw.LatencyHistogram()
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle 'LatencyHistogram' object"):
                call(h)
        with pytest.raises(TypeError, match="is not an acceptable base type"):
            type("Sub", (type(h),), {})
        assert weakref.ref(h)() is h


def test_references(engine: Twin) -> None:
    h = engine.LatencyHistogram()
    h.record(10**12)  # the pure engine keeps the longest
    value, data = 10**9 + 1, array.array("q", range(50))
    before = sys.getrefcount(value), sys.getrefcount(data)
    for _ in range(20):
        h.record(value)
        h.record_many([value, value])
        h.record_many(data)
        h.to_dict()
    assert (sys.getrefcount(value), sys.getrefcount(data)) == before


@pytest.mark.compiled_only
def test_memory_is_short(engine: Twin) -> None:
    h = engine.LatencyHistogram()
    other = engine.LatencyHistogram()
    other.record_many(range(0, 10**6, 50_000))
    counts = set()
    values = [x * 1000 for x in range(200)]

    def body() -> None:
        h.record_many(iter(values))
        counts.add(h.count)

    def check() -> None:
        h._check()
        assert h.count in (0, 200)

    assert every_allocation_fails(body, check) > 5
    assert every_allocation_fails(lambda: type(h).from_dict(other.to_dict()), h._check) > 20


class HistogramMachine(RuleBasedStateMachine):
    """Compiled, pure and a sorted list in lockstep."""

    def __init__(self) -> None:
        super().__init__()
        self.twins = [Twin(compiled=compiled).raw for compiled in (True, False)]
        self.both = [twin.LatencyHistogram() for twin in self.twins]
        self.model: list[int] = []

    def note(self, values: list[int]) -> None:
        self.model = sorted(self.model + [min(max(v, 0), HOUR) for v in values])

    @rule(ns=ANY_NS)
    def record(self, ns: int) -> None:
        for h in self.both:
            assert h.record(ns) is None
        self.note([ns])

    @rule(values=st.lists(ANY_NS, max_size=20))
    def record_many(self, values: list[int]) -> None:
        for h in self.both:
            assert h.record_many(values) == len(values)
        self.note(values)

    @rule(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
    def record_buffer(self, values: list[int]) -> None:
        for h in self.both:
            assert h.record_many(array.array("q", values)) == len(values)
        self.note(values)

    @rule(values=st.lists(ANY_NS, max_size=5))
    def merge(self, values: list[int]) -> None:
        for h, twin in zip(self.both, self.twins, strict=True):
            other = twin.LatencyHistogram()
            other.record_many(values)
            h.merge(other)
        self.note(values)

    @rule()
    def exchange(self) -> None:
        compiled, pure = (h.to_dict() for h in self.both)
        self.both = [
            self.twins[0].LatencyHistogram.from_dict(pure),
            self.twins[1].LatencyHistogram.from_dict(compiled),
        ]

    @rule()
    def reset(self) -> None:
        for h in self.both:
            h.reset()
        self.model = []

    @rule(p=st.floats(0, 100))
    def percentile(self, p: float) -> None:
        compiled, pure = (h.percentile(p) for h in self.both)
        assert compiled == pure
        if self.model and p:
            low = self.model[max(math.ceil(p * len(self.model) / 100 * (1 - 1e-14)), 1) - 1]
            assert low <= compiled <= low * 1.008

    @invariant()
    def agree(self) -> None:
        assert self.both[0].to_dict() == self.both[1].to_dict()
        for h in self.both:
            assert (h.count, h.sum) == (len(self.model), sum(self.model))
            assert h.min == (self.model[0] if self.model else None)
            assert h.max == (self.model[-1] if self.model else None)
            assert h.mean == (sum(self.model) / len(self.model) if self.model else None)
            h._check()


@pytest.mark.compiled_only
class TestLockstep(HistogramMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_nothing_leaks(engine: Twin, isolated: Callable[..., str]) -> None:
    isolated("latency_leaks.py", engine.name, pure=not engine.compiled, timeout=100)
