"""The data of a `Cache`; its design is described in _cache.pyx."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from beastcore._bulk cimport Bulk
from beastcore._policy cimport Adaptive, Link, Policy, Sketch
from beastcore._removed cimport Batch, Gone
from beastcore._table cimport Index, Slot
from beastcore._wheel cimport Wheel

cdef enum:              # Slot.flags
    HAS_TTL = 1
    HAS_GC = 2


cdef class Cache:
    cdef object __weakref__
    # hot: what a hit reads
    cdef Slot* slots
    cdef Index index
    cdef uint64_t salt
    cdef Link* links
    cdef Policy policy_state
    cdef Adaptive* adaptive     # NULL for "lru", and until there is something to decide
    cdef Adaptive* spare        # memory for it, so that no write has to wait for it
    cdef size_t adaptive_room   # bytes of whichever there is
    cdef bint is_adaptive
    cdef uint32_t sample_mask   # of `adaptive`; all ones without one
    cdef Sketch cold            # stands in for the adaptive sketch until there is one
    cdef uint64_t hits, misses
    cdef object timer_
    cdef int64_t base_ns
    cdef double base_s
    cdef int64_t tick_begin, tick_end   # of the built-in clock's last reading, in its ns
    cdef uint32_t tick
    # size and order
    cdef uint32_t size, maxsize_, capacity, high, free
    cdef uint64_t version
    cdef uint32_t n_ttl, n_gc
    cdef Wheel wheel
    cdef uint32_t releasing     # calls of `release` under way
    cdef bint has_default_ttl
    cdef double default_ttl
    cdef uint32_t default_span  # the same in ticks, by the built-in clock
    # weights
    cdef object weigher
    cdef uint64_t max_weight_, weight_
    # counters off the hot path
    cdef uint64_t sets, evictions, expirations, removals, rejections, listener_errors
    cdef object on_removal
    cdef bint is_plain          # no timer, no weigher, no listener
    cdef str policy_

    # C doors for the other modules of the engine
    cdef object lookup(self, object key, object default)
    cdef object lookup_left(self, object key, object default, double* left)
    cdef int store(self, object key, object value) except -1
    cdef inline int write(self, object key, object value, PyObject* ttl) except -1

    cdef inline uint32_t find(self, object key, uint32_t mixed) except 0xFFFFFFFF
    cdef uint32_t probe(self, object key, uint32_t mixed) except 0xFFFFFFFF
    cdef uint32_t find_again(self, object key, uint32_t mixed) except 0xFFFFFFFF
    cdef int ask(self, uint32_t s, object key) except -1
    cdef bint holds_at(self, uint32_t s, PyObject* key) noexcept
    cdef bint find_many(self, Bulk* b, uint32_t* tick) except -1
    cdef uint32_t find_timed(self, object key, double* now_s, uint32_t* tick) except 0xFFFFFFFF
    cdef uint32_t time_of(self, uint32_t s, object key, uint32_t mixed, double* now_s,
                          uint32_t* tick) except 0xFFFFFFFF
    cdef uint32_t find_live(self, object key, bint drop) except 0xFFFFFFFF
    cdef uint32_t find_at(self, object key, uint32_t mixed, bint timed, double* now_s,
                          uint32_t* tick, Batch* batch) except 0xFFFFFFFF
    cdef inline uint32_t hit_or_miss(self, object key) except 0xFFFFFFFF
    cdef uint32_t hit_if_live(self, uint32_t s, object key, uint32_t mixed) except 0xFFFFFFFF
    cdef uint32_t read_clock(self, double* now_s) except 0xFFFFFFFF
    cdef void next_tick(self, int64_t ns) noexcept
    cdef void rebase(self, double now_s, double* shifted) noexcept
    cdef inline uint32_t plain_tick(self) noexcept
    cdef inline uint32_t span_of(self, double ttl) noexcept
    cdef int deadline(self, double now_s, double ttl, uint32_t* tick) except -1
    cdef int parse_ttl(self, object ttl, double* seconds) except -1
    cdef uint32_t weigh(self, object key, object value) except? 0xFFFFFFFF
    cdef inline int assign(self, object key, uint32_t mixed, object value, bint has_ttl,
                           double ttl, uint32_t span) except -1
    cdef int bring(self, uint32_t s, object key, uint32_t mixed, object value, bint has_ttl,
                   uint32_t expiry, uint32_t tick) except -1
    cdef inline bint lacks_adaptive(self) noexcept
    cdef int put(self, object key, uint32_t mixed, object value, bint has_ttl, double ttl,
                 uint32_t weight, Batch* batch) except -1
    cdef inline void promote(self, uint32_t s) noexcept
    cdef void sample(self, uint32_t mixed, bint rose) noexcept
    cdef inline bint has_room(self) noexcept
    cdef bint is_over(self) noexcept
    cdef uint32_t next_out(self) noexcept
    cdef int adapt(self, uint64_t entries) except -1
    cdef uint32_t walk(self, uint32_t s) noexcept
    cdef int settle(self, uint32_t s, object key, uint32_t mixed, object value, bint has_ttl,
                    uint32_t expiry, uint32_t tick, uint32_t weight, Batch* batch) except -1
    cdef inline PyObject* replace(self, uint32_t s, object value, bint has_ttl, uint32_t expiry,
                                  uint32_t weight) noexcept
    cdef uint32_t insert(self, object key, uint32_t mixed, object value, bint has_ttl,
                         uint32_t expiry, uint32_t weight) noexcept
    cdef inline void fill_slot(self, uint32_t s, object value, bint has_ttl, uint32_t expiry,
                               uint32_t weight) noexcept
    cdef inline void fetch_ahead(self) noexcept
    cdef inline void foresee(self, uint32_t queue) noexcept
    cdef inline void foresee_entry(self, uint32_t s) noexcept
    cdef inline void foresee_slot(self, uint32_t s) noexcept
    cdef Py_ssize_t leaving(self, uint32_t s, uint32_t weight) noexcept
    cdef bint must_adapt(self, uint32_t weight) noexcept
    cdef uint64_t entries_expected(self) noexcept
    cdef uint64_t weight_when_full(self) noexcept
    cdef void hand_out(self, Batch* batch, Batch* out) noexcept
    cdef int start_wheel(self, uint32_t tick) except -1
    cdef Py_ssize_t fire(self, uint32_t tick, uint64_t* steps, Py_ssize_t most, bint whole,
                         Gone* gone) noexcept
    cdef void take(self, uint32_t s, int cause, Gone* gone) noexcept
    cdef int drop(self, uint32_t s, int cause) except -1
    cdef void release(self, Gone* gone, Py_ssize_t n) noexcept
    cdef int cause_of(self, uint32_t s, uint32_t tick) noexcept
    cdef double seconds_left(self, uint32_t s, double now_s) noexcept
