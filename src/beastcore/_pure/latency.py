"""`LatencyHistogram` in pure Python: latencies in fixed memory, log-linear.

Structure: one flat list of counters, one for each bucket of `beastcore._buckets`. The index of a
value is computed from its bit length alone, so recording is O(1).

Numbered invariants, verified by `_check()`:

1. There are `BUCKETS` counters, none negative, and their sum is `count`.
2. `min` and `max` lie in the first and the last bucket that is not empty.
3. The sum of the values is possible: between the sums of the buckets' lower and upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, final

from beastcore._buckets import (
    BUCKETS,
    LAYOUT,
    MAX_COUNT,
    MAX_NS,
    bucket_of,
    check_content,
    check_ns,
    check_percent,
    check_values,
    lower_bound,
    percentile_rank,
    upper_bound,
)

__all__ = ["LatencyHistogram"]


@final
class LatencyHistogram:
    """Counts latencies in nanoseconds; answers percentiles to within 0.8 %.

    Range: 0 ns to 1 h. A negative value counts as 0, a longer one as 1 h. Values below 256 ns are
    exact; above, a percentile is the upper end of its bucket and so at most 0.79 % too long,
    never too short, and never beyond `max`. Memory is fixed (4,562 counters), whatever is
    recorded. Histograms merge without loss: merging equals recording into one.
    """

    __slots__ = ("__weakref__", "_count", "_counts", "_max", "_min", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._count = 0
        self._sum = 0
        self._min = MAX_NS
        self._max = 0

    def __init_subclass__(cls, **kwargs: Any) -> NoReturn:
        raise TypeError("type 'beastcore.LatencyHistogram' is not an acceptable base type")

    # ---- recording

    def record(self, ns: int, /) -> None:
        """Count one latency of `ns` nanoseconds. TypeError when it is no int. O(1)."""
        ns = check_ns(ns)
        self._counts[bucket_of(ns)] += 1
        self._count += 1
        self._sum += ns
        self._min = min(self._min, ns)
        self._max = max(self._max, ns)

    def record_many(self, values: Iterable[int], /) -> int:
        """Count every latency in `values` and return how many there were.

        `values` is a one-dimensional buffer of 64-bit integers (`array('q')`, a memoryview, a
        numpy array of int64 or uint64) or any iterable of ints. All values are checked before
        one is counted. O(values).
        """
        check_values(values)
        checked = [check_ns(value) for value in values]
        for ns in checked:
            self.record(ns)
        return len(checked)

    def merge(self, other: LatencyHistogram, /) -> None:
        """Add everything that `other` has counted; `other` stays as it is. O(buckets)."""
        if not isinstance(other, LatencyHistogram):
            raise TypeError(f"other must be a LatencyHistogram, got {other!r}")
        if self._count + other._count > MAX_COUNT:
            raise OverflowError(f"a histogram counts at most {MAX_COUNT} values")
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self._count += other._count
        self._sum += other._sum
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)

    def reset(self) -> None:
        """Forget everything counted."""
        self._counts = [0] * BUCKETS
        self._count = self._sum = self._max = 0
        self._min = MAX_NS

    # ---- asking

    @property
    def count(self) -> int:
        """Number of values counted."""
        return self._count

    @property
    def sum(self) -> int:
        """Sum of the values in nanoseconds."""
        return self._sum

    @property
    def mean(self) -> float | None:
        """Arithmetic mean in nanoseconds (exact, not from the buckets); None when empty."""
        return self._sum / self._count if self._count else None

    @property
    def min(self) -> int | None:
        """Shortest value in nanoseconds (exact); None when empty."""
        return self._min if self._count else None

    @property
    def max(self) -> int | None:
        """Longest value in nanoseconds (exact); None when empty."""
        return self._max if self._count else None

    def percentile(self, p: float, /) -> int | None:
        """Return the nanoseconds that `p` percent of the values do not exceed.

        That is the value of rank ceil(p/100 * count), to within its bucket; `p` = 0 gives `min`,
        100 gives `max`. None when empty. ValueError unless 0 <= p <= 100. O(buckets).
        """
        p = check_percent(p)
        if not self._count:
            return None
        if p == 0.0:
            return self._min
        rank = percentile_rank(p, self._count)
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(max(upper_bound(index), self._min), self._max)
        raise AssertionError("invariant 1: the counters sum to count")  # pragma: no cover

    def to_dict(self) -> dict[str, Any]:
        """Return the content as a dict that JSON can hold; `from_dict` restores it.

        Keys: "layout", "unit" ("ns"), "count", "sum", "min", "max" (None when empty) and
        "buckets", a list of [lower bound in ns, count] for each bucket that is not empty, rising.
        """
        buckets = [[lower_bound(i), count] for i, count in enumerate(self._counts) if count]
        return {
            "layout": LAYOUT,
            "unit": "ns",
            "count": self._count,
            "sum": self._sum,
            "min": self.min,
            "max": self.max,
            "buckets": buckets,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> LatencyHistogram:
        """Return a histogram with the content of a `to_dict()`, of either engine.

        ValueError names what is missing or contradicts itself.
        """
        content = check_content(data)
        self = cls()
        for index, count in content.buckets:
            self._counts[index] = count
        self._count, self._sum = content.total, content.sum
        self._min, self._max = content.min, content.max
        return self

    def __repr__(self) -> str:
        mean = self.mean
        about = "None" if mean is None else f"{mean:.1f}"
        return (
            f"LatencyHistogram(count={self._count}, mean={about}, min={self.min}, max={self.max})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'LatencyHistogram' object")

    def _check(self) -> None:
        """Verify the numbered invariants; AssertionError names the broken one."""
        assert len(self._counts) == BUCKETS, "invariant 1: number of counters"
        assert all(count >= 0 for count in self._counts), "invariant 1: negative counter"
        assert sum(self._counts) == self._count, "invariant 1: count"
        used = [index for index, count in enumerate(self._counts) if count]
        if not used:
            assert (self._sum, self._min, self._max) == (0, MAX_NS, 0), "invariant 2: empty"
            return
        assert bucket_of(self._min) == used[0], "invariant 2: min"
        assert bucket_of(self._max) == used[-1], "invariant 2: max"
        low = sum(lower_bound(index) * self._counts[index] for index in used)
        high = sum(upper_bound(index) * self._counts[index] for index in used)
        assert low <= self._sum <= high, "invariant 3: sum"
