"""The data of a `LatencyHistogram`, and recording into it from other modules of the engine."""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(_MSC_VER)
      #include <intrin.h>
    #endif
    #define BEAST_MAX_NS 3600000000000LL   /* one hour */
    #define BEAST_BUCKETS 4562

    /* The bucket of ns, 0 to BEAST_MAX_NS: exact below 256, then 128 for each octave. */
    static inline uint32_t beast_bucket(uint64_t ns) {
        uint32_t shift;
        if (ns < 256) return (uint32_t)ns;
    #if defined(__GNUC__) || defined(__clang__)
        shift = 56u - (uint32_t)__builtin_clzll(ns);
    #elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_ARM64))
        { unsigned long high; _BitScanReverse64(&high, ns); shift = (uint32_t)high - 7u; }
    #else
        for (shift = 1; (ns >> shift) >= 256; shift++) {}
    #endif
        return (shift << 7) + (uint32_t)(ns >> shift);
    }
    """
    const int64_t MAX_NS "BEAST_MAX_NS"
    enum: BUCKETS "BEAST_BUCKETS"
    size_t bucket_of "beast_bucket"(uint64_t ns) noexcept nogil


cdef struct Histogram:
    uint64_t count
    uint64_t sum_low       # sum of the values, 128 bits
    uint64_t sum_high
    int64_t least          # meaningful when count > 0
    int64_t most
    uint64_t counts[BUCKETS]


cdef inline void histogram_record(Histogram* h, int64_t ns) noexcept nogil:
    """Count one latency; what lies outside 0 to MAX_NS counts as the end it lies beyond."""
    if ns < 0:
        ns = 0
    elif ns > MAX_NS:
        ns = MAX_NS
    h.counts[bucket_of(<uint64_t>ns)] += 1
    h.count += 1
    h.sum_low += <uint64_t>ns
    if h.sum_low < <uint64_t>ns:
        h.sum_high += 1
    if ns < h.least:
        h.least = ns
    if ns > h.most:
        h.most = ns


cdef class LatencyHistogram:
    cdef object __weakref__
    cdef Histogram data

    cdef Py_ssize_t record_buffer(self, object values) except -2


cdef inline void latency_record(LatencyHistogram histogram, int64_t ns) noexcept:
    """Count one latency, from another module of the engine."""
    histogram_record(&histogram.data, ns)
