"""The data of a `ConnectionTable` and its handles; the design is described in _connections.pyx."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from beastcore._index cimport Index


cdef struct Block:
    # The arrays of the slots, in one piece of memory behind this struct.
    uint32_t refs        # the table, and every scan that runs without the GIL
    uint32_t capacity
    uint32_t* last       # time of the last activity; FREE in a free slot
    uint32_t* gen        # how often the slot has been freed
    uint32_t* pinged     # time of the last ping, 0 for none
    uint32_t* created
    uint32_t* owner      # number of the user, or NO_SLOT
    uint32_t* tag        # of the connection's id, in the index
    uint32_t* free       # stack of free slots
    uint16_t* class_id


cdef struct User:
    uint32_t tag
    uint32_t count       # connections; 0 in a free place
    uint32_t next_free


cdef struct Scan:
    const Block* block
    const uint32_t* timeouts   # by class, 0 for the default; NULL: no class has its own
    uint32_t now
    uint32_t shortest          # with slack, as all below
    uint32_t timeout
    uint32_t grace
    uint32_t slack
    uint32_t position          # moves on
    uint32_t end


cdef class ConnectionTable:
    cdef object __weakref__
    # hot: what a touch reads
    cdef Block* block
    cdef object timer_   # None: the coarse clock
    cdef int64_t base_ms
    cdef int64_t latest  # milliseconds since the table was made
    cdef int64_t epoch   # the same, of the time 0 of the slots
    cdef double base_s
    # slots
    cdef uint32_t high   # slots below have been used since the last clear
    cdef uint32_t peak   # slots below have ever been used
    cdef uint32_t n_free, active, max_connections_
    cdef list ids, payloads
    cdef Index index
    cdef uint64_t salt
    cdef uint64_t version
    # users and classes
    cdef User* users
    cdef list user_objects
    cdef uint32_t user_capacity, user_high, user_free
    cdef Index user_index
    cdef uint32_t* class_counts
    cdef uint32_t* class_timeouts
    # settings
    cdef double idle_timeout_, grace_
    cdef object late_after_
    cdef uint32_t timeout_ms, shortest_ms, grace_ms, slack_ms
    cdef int64_t late_ms
    # sweeping
    cdef uint32_t cursor
    cdef int64_t swept   # time of the last sweep, or -1
    cdef bint sweep_in_time
    # counters
    cdef uint64_t added, removed, suspected, expired, rejected, late_sweeps

    cdef int64_t now(self) except -1
    cdef void shift(self, int64_t gap, int64_t now, int64_t delta) noexcept
    cdef int set_timeouts(self) except -1
    cdef int set_capacity(self, uint32_t capacity) except -1
    cdef int64_t find(self, object conn_id, uint32_t tag) except -2
    cdef int64_t find_user(self, object user, uint32_t tag) except -2
    cdef int64_t search(self, Index* index, bint of_users, object key, uint32_t tag) except -2
    cdef int reserve(self) except -1
    cdef int reserve_user(self) except -1
    cdef Conn handle(self, uint32_t slot)
    cdef void unlink(self, uint32_t slot) noexcept
    cdef Scan scan_at(self, int64_t now) noexcept
    cdef int stage(self, uint32_t slot, int64_t now) noexcept
    cdef int take(self, list found, int64_t now) except -1
    cdef int guard(self, int64_t now) except -1
    cdef list given(self, object conns)
    cdef Py_ssize_t note_many(self, object conns, bint pinged) except -1
    cdef int check_conns(self, list conns) except -1


cdef class Conn:
    cdef object __weakref__
    cdef ConnectionTable table
    cdef uint32_t slot
    cdef uint32_t gen
    cdef uint32_t class_
    cdef object id_
    cdef object payload_
    cdef object user_


cdef inline bint conn_alive(Conn conn) noexcept:
    """Tell whether the table still holds the connection that the handle means."""
    return conn.table is not None and conn.table.block.gen[conn.slot] == conn.gen
