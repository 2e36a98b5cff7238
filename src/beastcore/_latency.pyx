"""`LatencyHistogram`, compiled: latencies in fixed memory, log-linear.

Structure: one flat array of counters inside the object, one for each bucket of
`beastcore._buckets`; values below 256 ns have a bucket each, every octave above is cut into 128
(HdrHistogram, Tene). The bucket is computed from the position of the highest bit, so recording is
a handful of instructions. The index cannot leave the array: values are clamped to one hour first.

Numbered invariants, verified by `_check()`:

1. The sum of the counters is `count`.
2. `least` and `most` lie in the first and the last bucket that is not empty.
3. The sum of the values is possible: between the sums of the buckets' lower and upper bounds.

Ownership: there are no pointers; the object holds no other object, so it is in no cycle and the
garbage collector does not track it.

Threads: with the GIL every method is atomic. `histogram_record` may run without the GIL while
nothing else uses the same histogram.
"""

cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.long cimport PyLong_CheckExact
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

import sys

from beastcore._buckets import (
    LAYOUT, MAX_COUNT, check_content, check_ns, check_percent, check_values, lower_bound,
    percentile_rank, upper_bound,
)

__all__ = ["LatencyHistogram"]

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

cdef tuple NATIVE = ("", "@", "=", "<" if sys.byteorder == "little" else ">")


cdef inline int64_t as_ns(object value) except -1:
    """Return nanoseconds from 0 to MAX_NS."""
    cdef int overflow = 0
    cdef int64_t ns
    if not PyLong_CheckExact(value):
        return check_ns(value)
    ns = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return MAX_NS if overflow > 0 else 0
    if ns < 0:
        return 0
    return ns if ns < MAX_NS else MAX_NS


@cython.final
cdef class LatencyHistogram:
    """Counts latencies in nanoseconds; answers percentiles to within 0.8 %.

    Range: 0 ns to 1 h. A negative value counts as 0, a longer one as 1 h. Values below 256 ns are
    exact; above, a percentile is the upper end of its bucket and so at most 0.79 % too long,
    never too short, and never beyond `max`. Memory is fixed (4,562 counters), whatever is
    recorded. Histograms merge without loss: merging equals recording into one.
    """

    def __cinit__(self):
        self.data.least = MAX_NS  # all else is zero

    # ---- recording

    def record(self, ns, /):
        """Count one latency of `ns` nanoseconds. TypeError when it is no int. O(1)."""
        histogram_record(&self.data, as_ns(ns))

    def record_many(self, values, /):
        """Count every latency in `values` and return how many there were.

        `values` is a one-dimensional buffer of 64-bit integers (`array('q')`, a memoryview, a
        numpy array of int64 or uint64) or any iterable of ints. All values are checked before
        one is counted. O(values).
        """
        cdef list checked = []
        cdef Py_ssize_t counted
        check_values(values)
        if PyObject_CheckBuffer(values):
            counted = self.record_buffer(values)
            if counted >= 0:
                return counted
        for value in values:
            checked.append(as_ns(value))
        for ns in checked:
            histogram_record(&self.data, <int64_t>ns)
        return len(checked)

    cdef Py_ssize_t record_buffer(self, object values) except -2:
        """Count the values of a buffer of 64-bit integers; -1 for any other buffer."""
        cdef Py_buffer view
        cdef Py_ssize_t _at, count
        cdef const char* item
        cdef int64_t ns
        cdef uint64_t unsigned_ns
        cdef str format_
        if PyObject_GetBuffer(values, &view, PyBUF_STRIDES | PyBUF_FORMAT) < 0:
            return -2
        try:
            format_ = "B" if view.format == NULL else view.format.decode("ascii", "replace")
            if (view.ndim != 1 or view.itemsize != 8 or format_[-1:] not in tuple("qQlLnN")
                    or format_[:-1] not in NATIVE):
                return -1
            count = view.shape[0]
            item = <const char*>view.buf
            if format_[-1] in "QLN":
                for _at in range(count):
                    memcpy(&unsigned_ns, item, 8)  # the buffer may be unaligned
                    ns = MAX_NS if unsigned_ns > <uint64_t>MAX_NS else <int64_t>unsigned_ns
                    histogram_record(&self.data, ns)
                    item += view.strides[0]
            else:
                for _at in range(count):
                    memcpy(&ns, item, 8)
                    histogram_record(&self.data, ns)
                    item += view.strides[0]
            return count
        finally:
            PyBuffer_Release(&view)

    def merge(self, other, /):
        """Add everything that `other` has counted; `other` stays as it is. O(buckets)."""
        cdef Histogram* a = &self.data
        cdef Histogram* b
        cdef size_t at
        cdef uint64_t low
        if not isinstance(other, LatencyHistogram):
            raise TypeError(f"other must be a LatencyHistogram, got {other!r}")
        b = &(<LatencyHistogram>other).data
        if a.count + b.count > <uint64_t>MAX_COUNT:
            raise OverflowError(f"a histogram counts at most {MAX_COUNT} values")
        for at in range(<size_t>BUCKETS):
            a.counts[at] += b.counts[at]
        a.count += b.count
        a.least = min(a.least, b.least)
        a.most = max(a.most, b.most)
        low = b.sum_low
        a.sum_high += b.sum_high
        a.sum_low += low
        if a.sum_low < low:
            a.sum_high += 1

    def reset(self):
        """Forget everything counted."""
        memset(&self.data, 0, sizeof(Histogram))
        self.data.least = MAX_NS

    # ---- asking

    @property
    def count(self):
        """Number of values counted."""
        return self.data.count

    @property
    def sum(self):
        """Sum of the values in nanoseconds."""
        return (<object>self.data.sum_high << 64) | self.data.sum_low

    @property
    def mean(self):
        """Arithmetic mean in nanoseconds (exact, not from the buckets); None when empty."""
        return self.sum / <object>self.data.count if self.data.count else None

    @property
    def min(self):
        """Shortest value in nanoseconds (exact); None when empty."""
        return self.data.least if self.data.count else None

    @property
    def max(self):
        """Longest value in nanoseconds (exact); None when empty."""
        return self.data.most if self.data.count else None

    def percentile(self, p, /):
        """Return the nanoseconds that `p` percent of the values do not exceed.

        That is the value of rank ceil(p/100 * count), to within its bucket; `p` = 0 gives `min`,
        100 gives `max`. None when empty. ValueError unless 0 <= p <= 100. O(buckets).
        """
        cdef uint64_t rank, seen = 0
        cdef size_t at
        cdef int64_t bound
        p = check_percent(p)
        if not self.data.count:
            return None
        if p == 0.0:
            return self.data.least
        rank = percentile_rank(p, self.data.count)
        for at in range(<size_t>BUCKETS):
            seen += self.data.counts[at]
            if seen >= rank:
                bound = upper_bound(at)
                return min(max(bound, self.data.least), self.data.most)
        raise AssertionError("invariant 1: the counters sum to count")

    def to_dict(self):
        """Return the content as a dict that JSON can hold; `from_dict` restores it.

        Keys: "layout", "unit" ("ns"), "count", "sum", "min", "max" (None when empty) and
        "buckets", a list of [lower bound in ns, count] for each bucket that is not empty, rising.
        """
        cdef size_t at
        cdef list buckets = []
        for at in range(<size_t>BUCKETS):
            if self.data.counts[at]:
                buckets.append([lower_bound(at), self.data.counts[at]])
        return {
            "layout": LAYOUT,
            "unit": "ns",
            "count": self.data.count,
            "sum": self.sum,
            "min": self.min,
            "max": self.max,
            "buckets": buckets,
        }

    @classmethod
    def from_dict(cls, data, /):
        """Return a histogram with the content of a `to_dict()`, of either engine.

        ValueError names what is missing or contradicts itself.
        """
        cdef LatencyHistogram self = LatencyHistogram()
        content = check_content(data)
        for index, count in content.buckets:
            if not 0 <= index < BUCKETS:  # a subclass of int may lie about its bits
                raise ValueError(f"buckets must be below {BUCKETS}, got {index}")
            self.data.counts[<size_t>index] = count
        self.data.count = content.total
        self.data.sum_low = content.sum & 0xFFFFFFFFFFFFFFFF
        self.data.sum_high = content.sum >> 64
        self.data.least = content.min
        self.data.most = content.max
        return self

    def __repr__(self):
        mean = self.mean
        about = "None" if mean is None else f"{mean:.1f}"
        return (
            f"LatencyHistogram(count={self.count}, mean={about}, min={self.min}, max={self.max})"
        )

    def __reduce__(self):
        raise TypeError("cannot pickle 'LatencyHistogram' object")

    def _check(self):
        """Verify the numbered invariants; AssertionError names the broken one."""
        cdef size_t at, first = BUCKETS, last = 0
        count = low = high = 0
        for at in range(<size_t>BUCKETS):
            if self.data.counts[at]:
                first = min(first, at)
                last = at
                count += self.data.counts[at]
                low += lower_bound(at) * self.data.counts[at]
                high += upper_bound(at) * self.data.counts[at]
        assert count == self.data.count, "invariant 1: count"
        if not count:
            assert (self.sum, self.data.least, self.data.most) == (0, MAX_NS, 0), \
                "invariant 2: empty"
            return
        assert bucket_of(self.data.least) == first, "invariant 2: min"
        assert bucket_of(self.data.most) == last, "invariant 2: max"
        assert low <= self.sum <= high, "invariant 3: sum"
