"""The log-linear buckets of `LatencyHistogram`, and the checks that both twins share.

Values below 256 ns have a bucket each; every octave above is cut into 128 equal buckets, as in
HdrHistogram (Tene), so the widest bucket is 1/128 of its lower bound. The compiled engine does
the arithmetic of `bucket_of` in C on its hot path; the rest is not hot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

__all__ = [
    "BUCKETS",
    "LAYOUT",
    "MAX_COUNT",
    "MAX_NS",
    "Content",
    "bucket_of",
    "check_content",
    "check_ns",
    "check_percent",
    "check_values",
    "lower_bound",
    "percentile_rank",
    "upper_bound",
]

MAX_NS = 3_600_000_000_000
"""Largest value that is told apart: one hour. Longer ones count as this."""
_SUB_BITS = 7
LAYOUT = "log-linear-128"
"""Name of the layout in `to_dict()`; histograms of one layout can be merged."""
MAX_COUNT = 2**63 - 1
"""Most values that one histogram counts."""


def bucket_of(ns: int) -> int:
    """Return the index of the bucket of `ns`, 0 to MAX_NS."""
    shift = max(ns.bit_length() - _SUB_BITS - 1, 0)
    return (shift << _SUB_BITS) + (ns >> shift)


def lower_bound(index: int) -> int:
    """Return the smallest value of the bucket `index`."""
    shift = max((index >> _SUB_BITS) - 1, 0)
    return (index - (shift << _SUB_BITS)) << shift


def upper_bound(index: int) -> int:
    """Return the largest value of the bucket `index`."""
    shift = max((index >> _SUB_BITS) - 1, 0)
    return min(lower_bound(index) + (1 << shift) - 1, MAX_NS)


BUCKETS = bucket_of(MAX_NS) + 1


def check_ns(value: object) -> int:
    """Return `value` as nanoseconds from 0 to MAX_NS; what lies beyond is clamped."""
    # The exact type goes first: asking for a protocol takes microseconds.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
        raise TypeError(f"ns must be an int, got {value!r}")
    return min(max(value.__index__(), 0), MAX_NS)


def check_values(values: object) -> None:
    """Raise TypeError for what is iterable, but surely no series of latencies."""
    if isinstance(values, (str, bytes, bytearray)):
        raise TypeError(
            "record_many needs a buffer of int64 or uint64 or an iterable of ints, "
            f"got {type(values).__name__}"
        )


def check_percent(value: object) -> float:
    """Return `value` as a float from 0 to 100."""
    if isinstance(value, (bool, str, bytes)) or not isinstance(
        value, (SupportsFloat, SupportsIndex)
    ):
        raise TypeError(f"p must be a number from 0 to 100, got {value!r}")
    number = float(value)
    if not 0.0 <= number <= 100.0:  # also refuses NaN
        raise ValueError(f"p must be a number from 0 to 100, got {value!r}")
    return number


def percentile_rank(p: float, count: int) -> int:
    """Return the rank, from 1, of the value that `p` percent of `count` values do not exceed.

    The factor takes off what the rounding of floats may have put on: 99.9 % of 1000 is rank 999.
    """
    return min(max(math.ceil(p * count / 100.0 * (1.0 - 1e-14)), 1), count)


class Content(NamedTuple):
    """What a `to_dict()` says, checked."""

    total: int
    """Number of values."""
    sum: int
    min: int
    max: int
    buckets: list[tuple[int, int]]
    """(index, count), rising."""


def check_content(data: Mapping[str, Any]) -> Content:
    """Return the content of a `to_dict()`; ValueError says what is wrong with it."""
    if not isinstance(data, Mapping):
        raise TypeError(f"data must be a mapping made by to_dict(), got {data!r}")
    needed = ("layout", "count", "sum", "min", "max", "buckets")
    missing = [name for name in needed if name not in data]
    if missing:
        raise ValueError(f"data lacks {', '.join(missing)}")
    if data["layout"] != LAYOUT:
        raise ValueError(f"layout must be {LAYOUT!r}, got {data['layout']!r}")
    count, total = _int(data, "count"), _int(data, "sum")
    if count > MAX_COUNT:
        raise ValueError(f"count must be at most {MAX_COUNT}, got {count}")
    buckets = _check_buckets(data["buckets"])
    # Lists, not generators: CPython 3.12.1 and 3.13.0 crash where there is no memory to make one.
    if sum([n for _, n in buckets]) != count:
        raise ValueError(f"count must be the sum of the buckets, got {count}")
    if not buckets:
        if (data["min"], data["max"], total) != (None, None, 0):
            raise ValueError("min and max must be None and sum 0 when count is 0")
        return Content(0, 0, MAX_NS, 0, [])
    least, most = _int(data, "min"), _int(data, "max")
    for name, ns, index in (("min", least, buckets[0][0]), ("max", most, buckets[-1][0])):
        if not lower_bound(index) <= ns <= upper_bound(index):
            raise ValueError(f"{name} must lie in the outermost bucket, got {ns}")
    low = sum([lower_bound(index) * n for index, n in buckets])
    high = sum([upper_bound(index) * n for index, n in buckets])
    if not (low <= total <= high and least <= most):
        raise ValueError(f"sum must agree with the buckets ({low} to {high}), got {total}")
    return Content(count, total, least, most, buckets)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _int(data: Mapping[str, Any], name: str) -> int:
    value = data[name]
    if not _is_int(value) or value < 0:
        raise ValueError(f"{name} must be zero or a positive int, got {value!r}")
    return int(value)


def _check_buckets(pairs: object) -> list[tuple[int, int]]:
    if not isinstance(pairs, (list, tuple)):
        raise ValueError(f"buckets must be a list of [lower bound, count], got {pairs!r}")  # noqa: TRY004
    buckets: list[tuple[int, int]] = []
    for pair in pairs:
        if (
            not isinstance(pair, (list, tuple))
            or len(pair) != 2
            or not (_is_int(pair[0]) and _is_int(pair[1]))
            or not 0 <= pair[0] <= MAX_NS
            or pair[1] < 1
            or lower_bound(bucket_of(pair[0])) != pair[0]
            or (buckets and buckets[-1][0] >= bucket_of(pair[0]))
        ):
            raise ValueError(f"buckets must be rising [lower bound, count] pairs, got {pair!r}")
        buckets.append((bucket_of(pair[0]), pair[1]))
    return buckets
