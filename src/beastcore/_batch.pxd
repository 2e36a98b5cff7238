"""The data of a `BatchBuffer`; its design is described in _batch.pyx."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from beastcore._index cimport Index


cdef struct Op:
    int64_t number       # order of age, over all operations
    double added_at      # seconds by the timer
    uint32_t size
    int32_t priority
    uint32_t lane
    uint32_t next        # in the lane, towards newer; chains free and detached slots
    uint32_t older       # over all operations
    uint32_t newer
    uint32_t peak_prev   # among the peaks of the lane
    uint32_t peak_next


cdef struct Lane:
    uint32_t head        # oldest operation
    uint32_t tail
    uint32_t peak_head   # operation of the highest priority
    uint32_t peak_tail
    uint32_t tag         # of the key, in the index
    uint32_t place       # in the heap; chains free lanes
    uint32_t pins        # calls and detached operations that still need the lane


cdef class BatchBuffer:
    cdef object __weakref__
    # operations
    cdef Op* ops
    cdef list op_objects
    cdef uint32_t op_capacity, op_high, op_free, op_idle, detached
    cdef uint32_t oldest, newest, held
    cdef int64_t next_number, front_number
    # lanes
    cdef Lane* lanes
    cdef list lane_keys
    cdef uint32_t* heap
    cdef uint32_t lane_capacity, lane_high, lane_free, heap_size
    cdef Index index
    cdef uint64_t salt
    cdef uint64_t version
    # settings
    cdef uint32_t max_ops_
    cdef int64_t max_bytes_
    cdef double max_delay_
    cdef object merge
    cdef object timer_
    cdef double latest
    # counters
    cdef int64_t bytes_
    cdef uint64_t added, coalesced, drained, restored, cleared

    cdef double read_clock(self) except? -1.0
    cdef bint is_due(self, double now) noexcept
    cdef int64_t find(self, object key, uint32_t tag) except -2
    cdef uint32_t new_lane(self, object key, uint32_t tag) except 0xFFFFFFFF
    cdef int reserve_ops(self, uint32_t wanted) except -1
    cdef int reserve_lane(self) except -1
    cdef uint32_t take_slot(self) noexcept
    cdef void give_slot(self, uint32_t slot) noexcept
    cdef void give_lane_if_idle(self, uint32_t lane) noexcept
    cdef void unpin(self, uint32_t lane) noexcept
    cdef void append_op(self, uint32_t slot) noexcept
    cdef void prepend_op(self, uint32_t slot) noexcept
    cdef uint32_t detach_first(self, uint32_t lane) noexcept
    cdef void raise_peak(self, uint32_t slot) noexcept
    cdef bint before(self, uint32_t a, uint32_t b) noexcept
    cdef void sift_up(self, uint32_t at) noexcept
    cdef void sift_down(self, uint32_t at) noexcept
    cdef void heap_add(self, uint32_t lane) noexcept
    cdef void heap_drop_first(self) noexcept
    cdef object ask(self, uint32_t lane, object op)
    cdef int replace(self, uint32_t lane, object merged, object op, uint32_t size,
                     int32_t priority) except -1
