"""`ConnectionTable`, compiled: who is connected, and since when each has been silent.

Structure: a connection is a slot number into flat arrays (`Block`): the time of its last activity
in 32 bits of milliseconds, a generation, and what else is known of it. Noting activity is one
store. There is no recency list: a sweep scans the array of times in order, 64 slots at a step,
from where the last sweep stopped; a million slots take well under a millisecond. Freed slots are
reused last in, first out. The index leads from the hash of an id to its slot, a second one from
the hash of a user to the user's number; ids, payloads and users are in Python lists.

A handle (`Conn`) remembers slot and generation. Freeing a slot raises its generation, so an old
handle never means a later connection (until one slot has been reused 2**32 times).

Times count from an epoch. Before 2**31 ms (24.8 days) have passed, the epoch moves forward and
all times move back (`shift`), so 32 bits never wrap; 2**30 ms (12.4 days) of the past remain.

Whether a connection is suspected is never stored: it is suspected when it has been silent for
its timeout and was not pinged since its last activity.

Numbered invariants, verified by `_check()`:

1. The slots in use are those below `high` whose time is not FREE; their number is `active`, and
   each stands in the index under the tag of its id. All others below `high` are on the free
   stack, each once, and hold None in the lists.
2. active == added - removed - expired, and is at most `max_connections`.
3. Times lie between 0 and the present time since the epoch, which is below 2**31.
4. The counts per user and per class are those of the slots in use; a user without connections is
   not in the index.
5. high <= peak <= capacity; the lists reach to `high`; the cursor is below `high`, or 0.

Ownership: the table owns the block (which counts its references: a scan without the GIL holds
one, so that a block replaced meanwhile stays readable), `users`, the two arrays by class and the
cells of both indexes; they come from PyMem_RawMalloc and are released in `__dealloc__`. Python
objects are owned by the three lists, which the garbage collector sees. A handle owns its table,
id, payload and user.

User code (`__hash__`, `__eq__`, the timer, iterables, finalizers, the garbage collector where
something is allocated) runs only while all invariants hold; what was found before it ran is
looked up again.

Threads: with the GIL every method is atomic, except where it runs user code. A sweep of more than
65,536 slots releases the GIL while it scans; it takes what it found only if that still holds.

The table is `no_gc_clear`: a cycle through it always passes through one of the lists, or through
a container of the user's, which break it; so the lists are never missing.
"""

cimport cython
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.string cimport memcpy

from beastcore._clock cimport COARSE_SLACK_NS, clock_coarse_ns
from beastcore._hash cimport hash_key, mix_hash, same_key
from beastcore._index cimport (
    NO_SLOT, Index, index_clear, index_free, index_init, index_insert, index_next, index_remove,
    index_reserve, index_start,
)

import math
from bisect import bisect_right
from types import GenericAlias

from beastcore._idle import (
    DEFAULT_BOUNDS, EXPIRED, NOT_CONSTRUCTIBLE, SUSPECT, check_bounds, check_class_id, check_idle,
    check_late_after, check_size, default_late_after, duplicate, foreign_conn, milliseconds,
    not_a_conn, table_full,
)
from beastcore._types import ConnInfo, TableStats
from beastcore._validate import check_callable, check_count, check_time

__all__ = ["Conn", "ConnectionTable"]

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

cdef extern from *:
    """
    #define BEAST_REBASE_AT 0x80000000LL
    #define BEAST_KEEP 0x40000000LL
    #define BEAST_MAX_ELAPSED 8796093022208.0   /* 2**43 */
    """
    const int64_t REBASE_AT "BEAST_REBASE_AT"
    const int64_t KEEP "BEAST_KEEP"
    const double MAX_ELAPSED "BEAST_MAX_ELAPSED"
    const uint32_t FREE "UINT32_MAX"

cdef enum:
    CLASSES = 1 << 16
    MAX_RESTARTS = 64
    HITS = 1024                # slots that one step of a sweep looks at closely
    KEEP_GIL_UP_TO = 1 << 16   # giving up the GIL can cost 5 ms until it comes back

cdef enum Stage:
    ACTIVE
    IS_SUSPECT
    IS_EXPIRED

cdef str S_SUSPECT = SUSPECT
cdef str S_EXPIRED = EXPIRED


# ---- blocks

cdef Block* block_new(uint32_t capacity) noexcept nogil:
    """Make a block of zeros with one reference; NULL when memory is short."""
    cdef size_t n = capacity
    cdef Block* block = <Block*>PyMem_RawCalloc(1, sizeof(Block) + n * (7 * sizeof(uint32_t) + 2))
    if block == NULL:
        return NULL
    block.refs = 1
    block.capacity = capacity
    block.last = <uint32_t*>(block + 1)
    block.gen = block.last + n
    block.pinged = block.gen + n
    block.created = block.pinged + n
    block.owner = block.created + n
    block.tag = block.owner + n
    block.free = block.tag + n
    block.class_id = <uint16_t*>(block.free + n)
    return block


cdef void block_release(Block* block) noexcept nogil:
    """Give back one reference."""
    if block != NULL:
        block.refs -= 1
        if block.refs == 0:
            PyMem_RawFree(block)


cdef void block_copy(
    Block* to, const Block* source, uint32_t slots, uint32_t n_free
) noexcept nogil:
    """Copy the slots below `slots` and the stack of free ones."""
    cdef size_t n = slots
    memcpy(to.last, source.last, n * sizeof(uint32_t))
    memcpy(to.gen, source.gen, n * sizeof(uint32_t))
    memcpy(to.pinged, source.pinged, n * sizeof(uint32_t))
    memcpy(to.created, source.created, n * sizeof(uint32_t))
    memcpy(to.owner, source.owner, n * sizeof(uint32_t))
    memcpy(to.tag, source.tag, n * sizeof(uint32_t))
    memcpy(to.class_id, source.class_id, n * sizeof(uint16_t))
    memcpy(to.free, source.free, <size_t>n_free * sizeof(uint32_t))


# ---- scanning

cdef inline int scan_stage(const Scan* scan, uint32_t slot) noexcept nogil:
    """Return the stage of one slot."""
    cdef const Block* block = scan.block
    cdef uint32_t last = block.last[slot]
    cdef uint32_t timeout = 0
    if last == FREE or last > scan.now:
        return ACTIVE
    if scan.timeouts != NULL:
        timeout = scan.timeouts[block.class_id[slot]]
        if timeout:
            timeout += scan.slack
    if scan.now - last < (timeout or scan.timeout):
        return ACTIVE
    if scan.grace == 0:
        return IS_EXPIRED
    if block.pinged[slot] <= last:
        return IS_SUSPECT
    # Not a difference: a ping of another thread may be later than this scan.
    return IS_EXPIRED if scan.now >= block.pinged[slot] + scan.grace else ACTIVE


cdef inline bint any_until(const uint32_t* times, uint32_t cut) noexcept nogil:
    """Tell whether one of 64 times is `cut` or earlier; the C compiler takes several at once."""
    cdef uint32_t found = 0
    cdef size_t at
    for at in range(64):
        found |= times[at] <= cut
    return found != 0


cdef uint32_t scan_slots(Scan* scan, uint32_t* hits, uint32_t room) noexcept nogil:
    """Write the slots to report, from `position` to `end`, to `hits`; return their number.

    Stops behind the last hit when there is no more room. Whole steps of 64 slots are first
    compared with the shortest timeout alone.
    """
    cdef const uint32_t* last = scan.block.last
    cdef uint32_t found = 0, cut
    cdef size_t at = scan.position, end = scan.end, stop
    if room == 0:
        return 0
    if scan.now < scan.shortest:
        scan.position = scan.end
        return 0
    cut = scan.now - scan.shortest
    while at < end:
        if end - at >= 64 and not any_until(last + at, cut):
            at += 64
            continue
        stop = min(at + 64, end)
        while at < stop:
            if last[at] <= cut and scan_stage(scan, <uint32_t>at) != ACTIVE:
                hits[found] = <uint32_t>at
                found += 1
                if found == room:
                    scan.position = <uint32_t>at + 1
                    return found
            at += 1
    scan.position = scan.end
    return found


cdef void keys_sift(uint64_t* heap, uint32_t at, uint32_t size) noexcept nogil:
    """Let the key at `at` sink to its place in a heap with the largest key on top."""
    cdef uint64_t key = heap[at]
    cdef uint32_t child = 2 * at + 1
    while child < size:
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = key


cdef inline uint32_t as_class(object value) except? 0:
    cdef int overflow = 0
    cdef int64_t number
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and 0 <= number < CLASSES:
            return <uint32_t>number
    return check_class_id(value)


# ---- handles

@cython.final
@cython.freelist(256)
cdef class Conn:
    """Handle to one connection of a `ConnectionTable`, made by its `add`.

    It stays valid as an object after the connection is gone: then `alive` is False, `touch()`
    does nothing and returns False, `idle` is None, and the other attributes are as before. A
    handle never comes to mean a later connection that reuses the slot. Two handles are equal when
    they mean the same connection.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError(NOT_CONSTRUCTIBLE)

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    def touch(self):
        """Note activity now; return False, and do nothing, when the connection is gone. O(1)."""
        cdef int64_t now
        if not conn_alive(self):
            return False
        now = self.table.now()
        if not conn_alive(self):  # the timer may have removed it
            return False
        self.table.block.last[self.slot] = <uint32_t>now
        return True

    @property
    def alive(self):
        """Whether the table still holds the connection."""
        return conn_alive(self)

    @property
    def idle(self):
        """Seconds since the last activity, to the millisecond; None when it is gone."""
        cdef int64_t now
        if not conn_alive(self):
            return None
        now = self.table.now()
        if not conn_alive(self):
            return None
        return <double>(now - self.table.block.last[self.slot]) / 1000.0

    @property
    def conn_id(self):
        """What the connection was added as."""
        return self.id_

    @property
    def payload(self):
        """The object that was given to `add`."""
        return self.payload_

    @property
    def user(self):
        """Who the connection belongs to, or None."""
        return self.user_

    @property
    def class_id(self):
        """The class of the connection."""
        return self.class_

    def __eq__(self, other):
        if type(other) is not Conn:
            return NotImplemented
        if self is other:
            return True
        return (
            self.table is not None and self.table is (<Conn>other).table
            and self.slot == (<Conn>other).slot and self.gen == (<Conn>other).gen
        )

    def __hash__(self):
        cdef uint64_t where = <uint64_t><size_t><void*>self.table
        return mix_hash(<Py_hash_t>((<uint64_t>self.gen << 32) | self.slot), where)

    def __repr__(self):
        return f"Conn(conn_id={self.id_!r}, alive={bool(conn_alive(self))})"

    def __reduce__(self):
        raise TypeError("cannot pickle 'Conn' object")


# ---- the table

@cython.final
@cython.no_gc_clear
cdef class ConnectionTable:
    """Tracks when each of at most `max_connections` connections was last active.

    A connection that has been silent for `idle_timeout` seconds is reported by `sweep()`: as
    SUSPECT until `mark_pinged` names it, and when `grace` seconds have passed since that without
    any activity, as EXPIRED, which removes it. With `grace=0` it expires at once, without the
    first stage. A class of connections can have its own timeout (`set_class_timeout`).

    When a sweep comes more than `late_after` seconds after the one before (the process was
    suspended or stuck, and heartbeats may be waiting unread), every deadline is extended once by
    that time, instead of expiring everyone. The default is twice `idle_timeout + grace` and at
    least 60 s. A second late sweep in a row extends nothing, so a table that is always swept
    seldom still expires its connections.

    `timer` returns seconds as a float and must not run backwards (an earlier time than before is
    taken as the latest one seen). Times are kept to the millisecond: a deadline may be met up to
    1 ms early. Times of activity older than 12.4 days may be read as 12.4 days ago. Without
    `timer` a coarse clock of the system is read, and deadlines are met up to 20 ms late.

    `idle_timeout`, `grace` and `late_after` may be assigned at any time. Timeouts and grace are at
    most 7 days; a table has at most 2**24 slots.
    """

    SUSPECT = SUSPECT
    EXPIRED = EXPIRED

    def __cinit__(
        self, max_connections=100_000, idle_timeout=30.0, *, grace=10.0, late_after=None,
        timer=None,
    ):
        # Everything is zero here, so __dealloc__ is safe whatever raises. User code, which runs
        # from the first check on, may find the table through `gc.get_objects()`.
        self.block = block_new(0)
        self.class_counts = <uint32_t*>PyMem_RawCalloc(CLASSES, sizeof(uint32_t))
        if (self.block == NULL or self.class_counts == NULL or index_init(&self.index) < 0
                or index_init(&self.user_index) < 0):
            raise MemoryError
        self.salt = <uint64_t>hash("slots") ^ <uint64_t><size_t><void*>self
        self.base_ms = <int64_t>1 << 62  # until then its time stands still
        self.ids = []
        self.payloads = []
        self.user_objects = []
        self.user_free = NO_SLOT
        self.swept = -1
        self.sweep_in_time = True
        self.max_connections_ = check_size(max_connections)
        self.idle_timeout_ = check_idle("idle_timeout", idle_timeout)
        self.grace_ = check_idle("grace", grace, zero=True)
        self.late_after_ = check_late_after(late_after)
        check_callable("timer", timer)
        if timer is None:
            self.base_ms = clock_coarse_ns() // 1_000_000
            self.slack_ms = <uint32_t>((COARSE_SLACK_NS + 999_999) // 1_000_000)
        else:
            self.base_s = check_time(timer())
            self.timer_ = timer
        self.set_timeouts()

    def __dealloc__(self):
        block_release(self.block)
        PyMem_RawFree(self.users)
        PyMem_RawFree(self.class_counts)
        PyMem_RawFree(self.class_timeouts)
        index_free(&self.index)
        index_free(&self.user_index)

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    # ---- settings

    @property
    def max_connections(self):
        """Most connections that may be held; see `resize`."""
        return self.max_connections_

    @property
    def idle_timeout(self):
        """Seconds of silence after which a connection is reported."""
        return self.idle_timeout_

    @idle_timeout.setter
    def idle_timeout(self, value):
        self.idle_timeout_ = check_idle("idle_timeout", value)
        self.set_timeouts()

    @property
    def grace(self):
        """Seconds of silence after a ping after which a connection expires; 0: without a ping."""
        return self.grace_

    @grace.setter
    def grace(self, value):
        self.grace_ = check_idle("grace", value, zero=True)
        self.set_timeouts()

    @property
    def late_after(self):
        """Seconds between two sweeps above which the second is late; assign None for default."""
        if self.late_after_ is None:
            return default_late_after(self.idle_timeout_, self.grace_)
        return self.late_after_

    @late_after.setter
    def late_after(self, value):
        self.late_after_ = check_late_after(value)
        self.set_timeouts()

    @property
    def timer(self):
        """The clock that was given, or None for the built-in one."""
        return self.timer_

    def set_class_timeout(self, class_id, seconds):
        """Give the connections of one class their own idle timeout; None takes it back."""
        cdef uint32_t number = as_class(class_id)
        cdef uint32_t wanted = 0
        if seconds is not None:
            wanted = milliseconds(check_idle("seconds", seconds))
        if self.class_timeouts == NULL:
            # Never moved or freed before the table is: a scan without the GIL may read it.
            self.class_timeouts = <uint32_t*>PyMem_RawCalloc(CLASSES, sizeof(uint32_t))
            if self.class_timeouts == NULL:
                raise MemoryError
        self.class_timeouts[number] = wanted
        self.set_timeouts()

    cdef int set_timeouts(self) except -1:
        """Derive what a sweep compares with from the settings."""
        cdef uint32_t number
        self.timeout_ms = milliseconds(self.idle_timeout_)
        self.grace_ms = milliseconds(self.grace_)
        self.late_ms = milliseconds(self.late_after)
        self.shortest_ms = self.timeout_ms
        if self.class_timeouts != NULL:
            for number in range(<uint32_t>CLASSES):
                if 0 < self.class_timeouts[number] < self.shortest_ms:
                    self.shortest_ms = self.class_timeouts[number]
        return 0

    def resize(self, max_connections):
        """Change how many connections may be held.

        ValueError, and no change, when more than that are held now: none is dropped for it.
        """
        cdef uint32_t wanted = check_size(max_connections, self.active)
        if wanted < self.active:  # asking the argument for its value has added some: raise
            check_size(wanted, self.active)
        if max(wanted, self.peak) < self.block.capacity:
            self.set_capacity(max(wanted, self.peak))
        self.max_connections_ = wanted

    cdef int set_capacity(self, uint32_t capacity) except -1:
        """Replace the block by one of another capacity, at least `peak`. Calls no Python."""
        cdef Block* block = block_new(capacity)
        if block == NULL:
            raise MemoryError
        block_copy(block, self.block, self.peak, self.n_free)
        block_release(self.block)
        self.block = block
        return 0

    # ---- time

    cdef int64_t now(self) except -1:
        """Return the time in milliseconds since the epoch, which moves when that grows too large.

        A thousandth of a millisecond is added so that the rounding of floats does not turn the
        30 s between two readings into 29.999. Runs user code when a timer was given.
        """
        cdef int64_t elapsed
        cdef double seconds
        if self.timer_ is None:
            elapsed = clock_coarse_ns() // 1_000_000 - self.base_ms
        else:
            value = self.timer_()
            if type(value) is float and isfinite(<double>value):
                seconds = <double>value
            else:
                seconds = check_time(value)
            seconds -= self.base_s
            if not seconds > 0.0:
                seconds = 0.0
            elif seconds > MAX_ELAPSED:
                seconds = MAX_ELAPSED
            elapsed = <int64_t>(seconds * 1000.0 + 0.001)
        if elapsed > self.latest:
            self.latest = elapsed
        elapsed = self.latest - self.epoch
        if elapsed >= REBASE_AT:
            self.epoch += elapsed - KEEP
            self.shift(0, elapsed, elapsed - KEEP)
            return KEEP
        return elapsed

    cdef void shift(self, int64_t gap, int64_t now, int64_t delta) noexcept:
        """Bring all activity and pings nearer by `gap`, not beyond `now`; then take off `delta`.

        With `delta`, whether a ping came after the last activity stays true.
        """
        cdef Block* block = self.block
        cdef uint32_t slot
        cdef int64_t last, pinged, least
        for slot in range(self.high):
            if block.last[slot] == FREE:
                continue
            last = min(<int64_t>block.last[slot] + gap, now)
            pinged = min(<int64_t>block.pinged[slot] + gap, now)
            least = 1 if delta and pinged > last else 0
            block.last[slot] = <uint32_t>max(last - delta, <int64_t>0)
            block.pinged[slot] = <uint32_t>max(pinged - delta, least)
            block.created[slot] = <uint32_t>max(<int64_t>block.created[slot] - delta, <int64_t>0)

    # ---- finding

    cdef int64_t find(self, object conn_id, uint32_t tag) except -2:
        """Return the slot of an id, or -1."""
        return self.search(&self.index, False, conn_id, tag)

    cdef int64_t find_user(self, object user, uint32_t tag) except -2:
        """Return the number of a user, or -1."""
        return self.search(&self.user_index, True, user, tag)

    cdef int64_t search(self, Index* index, bint of_users, object key, uint32_t tag) except -2:
        """Return the place of `key`, or -1; starts again when a comparison changed the table."""
        cdef uint64_t version, position
        cdef int64_t place
        cdef PyObject* candidate
        cdef list keys
        cdef int _attempt, same
        for _attempt in range(MAX_RESTARTS):
            version = self.version
            keys = self.user_objects if of_users else self.ids  # `clear` makes new lists
            position = index_start(index, tag)
            while True:
                place = index_next(index, tag, &position)
                if place < 0:
                    return -1
                candidate = PyList_GET_ITEM(keys, place)
                if candidate == <PyObject*>key:
                    return place
                same = same_key(candidate, <PyObject*>key)
                if same == 2:
                    stored = <object>candidate
                    same = PyObject_RichCompareBool(stored, key, Py_EQ)
                    if version != self.version:
                        # These may be the last references, so destructors run before the
                        # next search and not after it.
                        stored = keys = None
                        break
                if same:
                    return place
        raise RuntimeError("the table changed again and again while a key's __eq__ ran")

    cdef Conn handle(self, uint32_t slot):
        """Return a new handle to the connection in `slot`, which the allocation may have freed."""
        cdef Conn conn = Conn.__new__(Conn)
        if slot >= self.high:  # by `clear`, even; the handle belongs to no table
            return conn
        conn.table = self
        conn.slot = slot
        conn.gen = self.block.gen[slot]
        conn.class_ = self.block.class_id[slot]
        conn.id_ = self.ids[slot]
        conn.payload_ = self.payloads[slot]
        if self.block.owner[slot] != NO_SLOT:
            conn.user_ = self.user_objects[self.block.owner[slot]]
        return conn

    # ---- connections

    def add(self, conn_id, payload=None, *, user=None, class_id=0):
        """Add a connection, active now, and return its handle.

        `payload` is any object, usually what to close; `user` a hashable object to count
        connections by, or None; `class_id` an int from 0 to 65535.

        ValueError when `conn_id` is held already, TableFullError when every slot is taken. O(1).
        """
        cdef uint32_t class_ = as_class(class_id)
        cdef uint32_t tag = mix_hash(hash_key(conn_id), self.salt)
        cdef uint32_t user_tag = 0
        cdef uint32_t slot
        cdef int64_t now, owner = -1, found = -1
        cdef uint64_t version
        cdef int _attempt
        cdef Block* block
        cdef Conn conn
        if user is not None:
            user_tag = mix_hash(hash_key(user), self.salt)
        now = self.now()
        conn = Conn.__new__(Conn)
        for _attempt in range(MAX_RESTARTS):
            version = self.version
            if user is not None:
                owner = self.find_user(user, user_tag)
            found = self.find(conn_id, tag)
            if version == self.version:
                break
        else:
            raise RuntimeError("the table changed again and again while a key's __eq__ ran")
        if found >= 0:
            raise duplicate(conn_id)
        if self.active >= self.max_connections_:
            self.rejected += 1
            raise table_full(conn_id, self.max_connections_)
        self.reserve()
        if user is not None and owner < 0:
            self.reserve_user()
        # From here on nothing fails and no user code runs.
        self.version += 1
        block = self.block
        if self.n_free:
            self.n_free -= 1
            slot = block.free[self.n_free]
        else:
            slot = self.high
            self.high += 1
            if self.high > self.peak:
                self.peak = self.high
        if user is not None:
            if owner < 0:
                if self.user_free != NO_SLOT:
                    owner = self.user_free
                    self.user_free = self.users[owner].next_free
                else:
                    owner = self.user_high
                    self.user_high += 1
                self.users[owner].tag = user_tag
                self.users[owner].count = 0
                self.user_objects[owner] = user  # in place of None
                index_insert(&self.user_index, user_tag, <uint32_t>owner)
            self.users[owner].count += 1
        block.last[slot] = block.created[slot] = <uint32_t>now
        if block.last[slot] > <uint32_t>(self.latest - self.epoch):  # the epoch moved meanwhile
            block.last[slot] = block.created[slot] = <uint32_t>(self.latest - self.epoch)
        block.pinged[slot] = 0
        block.class_id[slot] = <uint16_t>class_
        block.owner[slot] = NO_SLOT if user is None else <uint32_t>owner
        block.tag[slot] = tag
        self.ids[slot] = conn_id      # in place of None
        self.payloads[slot] = payload
        index_insert(&self.index, tag, slot)
        self.class_counts[class_] += 1
        self.active += 1
        self.added += 1
        conn.table = self
        conn.slot = slot
        conn.gen = block.gen[slot]
        conn.class_ = class_
        conn.id_ = conn_id
        conn.payload_ = payload
        if user is not None:
            conn.user_ = self.user_objects[owner]
        return conn

    cdef int reserve(self) except -1:
        """See to it that a slot can be taken. Calls no Python; may fail."""
        cdef uint64_t capacity
        if index_reserve(&self.index) < 0:
            raise MemoryError
        if self.n_free:
            return 0
        while <uint64_t>PyList_GET_SIZE(self.ids) <= self.high:
            self.ids.append(None)
        while <uint64_t>PyList_GET_SIZE(self.payloads) <= self.high:
            self.payloads.append(None)
        if self.high >= self.block.capacity:
            capacity = max(<uint64_t>self.block.capacity * 2, <uint64_t>64)
            capacity = min(capacity, <uint64_t>max(self.max_connections_, self.high + 1))
            self.set_capacity(<uint32_t>capacity)
        return 0

    cdef int reserve_user(self) except -1:
        """See to it that a user can be entered. Calls no Python; may fail."""
        cdef uint64_t capacity
        cdef User* users
        if index_reserve(&self.user_index) < 0:
            raise MemoryError
        if self.user_free != NO_SLOT or self.user_high < self.user_capacity:
            return 0
        capacity = max(<uint64_t>self.user_capacity * 2, <uint64_t>16)
        while <uint64_t>PyList_GET_SIZE(self.user_objects) < capacity:
            self.user_objects.append(None)
        users = <User*>PyMem_RawRealloc(self.users, <size_t>capacity * sizeof(User))
        if users == NULL:
            raise MemoryError
        self.users = users
        self.user_capacity = <uint32_t>capacity
        return 0

    cdef void unlink(self, uint32_t slot) noexcept:
        """Free a slot in use; its objects are released on return. No key is compared."""
        cdef Block* block = self.block
        cdef uint32_t owner = block.owner[slot]
        _id = self.ids[slot]
        _payload = self.payloads[slot]
        _user = None
        self.version += 1
        index_remove(&self.index, block.tag[slot], slot)
        self.ids[slot] = None
        self.payloads[slot] = None
        block.last[slot] = FREE
        block.gen[slot] += 1
        block.free[self.n_free] = slot
        self.n_free += 1
        self.active -= 1
        self.class_counts[block.class_id[slot]] -= 1
        if owner != NO_SLOT:
            self.users[owner].count -= 1
            if self.users[owner].count == 0:
                _user = self.user_objects[owner]
                self.user_objects[owner] = None
                index_remove(&self.user_index, self.users[owner].tag, owner)
                self.users[owner].next_free = self.user_free
                self.user_free = owner

    def get(self, conn_id, /):
        """Return the handle of a connection, or None. No activity is noted. O(1)."""
        cdef int64_t slot
        cdef Conn conn
        cdef uint32_t tag = mix_hash(hash_key(conn_id), self.salt)
        cdef int _attempt
        cdef uint64_t version
        for _attempt in range(MAX_RESTARTS):
            slot = self.find(conn_id, tag)
            if slot < 0:
                return None
            version = self.version
            conn = self.handle(<uint32_t>slot)
            if version == self.version:
                return conn
        raise RuntimeError("the table changed again and again while a key's __eq__ ran")

    def remove(self, conn_id, /):
        """Remove a connection; return whether it was there. O(1)."""
        cdef int64_t slot = self.find(conn_id, mix_hash(hash_key(conn_id), self.salt))
        if slot < 0:
            return False
        self.removed += 1
        self.unlink(<uint32_t>slot)
        return True

    def clear(self):
        """Remove every connection; they count as removed."""
        cdef uint32_t slot
        cdef list ids = [], payloads = [], user_objects = []
        self.version += 1
        # The old lists are released on return, with the table already empty.
        self.ids, ids = ids, self.ids
        self.payloads, payloads = payloads, self.payloads
        self.user_objects, user_objects = user_objects, self.user_objects
        for slot in range(self.high):
            if self.block.last[slot] != FREE:
                self.block.last[slot] = FREE
                self.block.gen[slot] += 1
                self.class_counts[self.block.class_id[slot]] -= 1
        self.removed += self.active
        self.active = self.high = self.n_free = self.cursor = 0
        index_clear(&self.index)
        index_clear(&self.user_index)
        PyMem_RawFree(self.users)
        self.users = NULL
        self.user_capacity = self.user_high = 0
        self.user_free = NO_SLOT

    # ---- activity

    def update_activity(self, conn_id, /):
        """Note activity of a connection now; return whether it was there. O(1)."""
        cdef uint32_t tag = mix_hash(hash_key(conn_id), self.salt)
        cdef int64_t now = self.now()
        cdef int64_t slot = self.find(conn_id, tag)
        if slot < 0:
            return False
        if now > self.latest - self.epoch:  # the epoch moved while the key was compared
            now = self.latest - self.epoch
        self.block.last[slot] = <uint32_t>now
        return True

    def touch_many(self, conns, /):
        """Note activity of many connections now; return how many of them were still there.

        TypeError for an item that is no Conn, ValueError for one of another table; then nothing
        was noted. O(conns).
        """
        return self.note_many(conns, False)

    def mark_pinged(self, conns, /):
        """Note that these connections were really sent a ping now; return how many were there.

        The grace of a connection begins now; any later activity ends it. Errors as in
        `touch_many`. O(conns).
        """
        return self.note_many(conns, True)

    cdef Py_ssize_t note_many(self, object conns, bint pinged) except -1:
        """Write the present time as that of the last activity, or ping, of many connections."""
        cdef list handles = self.given(conns)
        cdef uint32_t now = <uint32_t>self.now()
        cdef Py_ssize_t at, alive = 0
        cdef Conn conn
        cdef uint32_t* times
        self.check_conns(handles)
        times = self.block.pinged if pinged else self.block.last
        for at in range(PyList_GET_SIZE(handles)):
            conn = <Conn>PyList_GET_ITEM(handles, at)
            if conn_alive(conn):
                times[conn.slot] = now
                alive += 1
        return alive

    cdef list given(self, object conns):
        """Return the items as a list that no user code changes while they are gone through."""
        return <list>conns if self.timer_ is None and type(conns) is list else list(conns)

    cdef int check_conns(self, list conns) except -1:
        """Raise unless all are handles of this table. No user code runs when they are."""
        cdef Py_ssize_t at
        for at in range(PyList_GET_SIZE(conns)):
            conn = <object>PyList_GET_ITEM(conns, at)
            if type(conn) is not Conn:
                raise not_a_conn(at, conn)
            if (<Conn>conn).table is not self:
                raise foreign_conn(at, conn)
        return 0

    # ---- sweeping

    cdef int stage(self, uint32_t slot, int64_t now) noexcept:
        cdef Scan scan = self.scan_at(now)
        return scan_stage(&scan, slot)

    cdef Scan scan_at(self, int64_t now) noexcept:
        """Return what a scan at this time needs, for the present settings and block."""
        cdef Scan scan
        scan.block = self.block
        scan.timeouts = self.class_timeouts
        scan.now = <uint32_t>now
        scan.shortest = self.shortest_ms + self.slack_ms
        scan.timeout = self.timeout_ms + self.slack_ms
        scan.grace = self.grace_ms + self.slack_ms if self.grace_ms else 0
        scan.slack = self.slack_ms
        scan.position = scan.end = 0
        return scan

    def sweep(self, limit=None):
        """Report silent connections as a list of `(conn_id, conn, stage)`, and remove dead ones.

        Stage SUSPECT: silent for its timeout, and not pinged since its last activity; it is
        reported by every sweep until `mark_pinged` names it. Stage EXPIRED: silent for `grace`
        since the ping, or for its timeout where `grace` is 0; it has been removed, and the handle
        still gives its payload. Nothing is called back.

        At most `limit` connections are reported (None: all). The slots are visited in order,
        each at most once, from where the last sweep stopped. O(slots), fast ones.
        """
        cdef uint32_t hits[HITS]
        cdef uint32_t count, at, room, remaining, position, start
        cdef int64_t now, epoch
        cdef uint64_t most = <uint64_t>1 << 63
        cdef Scan scan
        cdef Block* block
        cdef Conn conn
        cdef int stage
        cdef list found = []
        if limit is not None:
            limit = check_count("limit", limit, minimum=0, maximum=None)
            if limit <= self.high:
                most = limit
        now = self.now()
        epoch = self.epoch
        self.guard(now)
        remaining = self.high
        position = self.cursor
        while remaining and <uint64_t>PyList_GET_SIZE(found) < most:
            scan = self.scan_at(now)
            scan.position = start = position
            scan.end = min(position + remaining, self.high)
            if position >= scan.end:  # user code emptied the table
                break
            room = <uint32_t>min(most - <uint64_t>PyList_GET_SIZE(found), <uint64_t>HITS)
            if scan.end - position > KEEP_GIL_UP_TO:
                block = self.block
                block.refs += 1
                with nogil:
                    count = scan_slots(&scan, hits, room)
                block_release(block)
            else:
                count = scan_slots(&scan, hits, room)
            position = scan.position
            remaining -= position - start
            if position >= self.high:
                position = 0
            for at in range(count):
                if hits[at] < self.high:
                    stage = self.stage(hits[at], now)
                    if stage != ACTIVE:
                        conn = self.handle(hits[at])
                        found.append(
                            (conn.id_, conn, S_EXPIRED if stage == IS_EXPIRED else S_SUSPECT)
                        )
        # Nothing has been removed so far, so where memory is short nothing is lost.
        self.cursor = position if position < self.high else 0
        self.take(found, now - (self.epoch - epoch))
        return found

    cdef int take(self, list found, int64_t now) except -1:
        """Remove what a sweep reports as expired, and count.

        What no longer holds, because an allocation ran user code or because another thread came
        between, leaves the list. No user code runs before the end: the handles keep alive what
        is taken out of the table.
        """
        cdef Py_ssize_t at, kept = 0
        cdef tuple item
        cdef Conn conn
        cdef int stage
        for at in range(PyList_GET_SIZE(found)):
            item = <tuple>found[at]
            conn = <Conn>item[1]
            stage = self.stage(conn.slot, now) if conn_alive(conn) else ACTIVE
            if stage == IS_EXPIRED and item[2] is S_EXPIRED:
                self.expired += 1
                self.unlink(conn.slot)
            elif stage == IS_SUSPECT and item[2] is S_SUSPECT:
                self.suspected += 1
            else:
                continue
            if kept != at:
                found[kept], found[at] = found[at], found[kept]
            kept += 1
        while PyList_GET_SIZE(found) > kept:
            found.pop()
        return 0

    cdef int guard(self, int64_t now) except -1:
        """Extend every deadline by the time since the last sweep, if that was too long."""
        cdef int64_t gap = 0 if self.swept < 0 else self.latest - self.swept
        self.swept = self.latest
        if gap <= self.late_ms:
            self.sweep_in_time = True
        elif self.sweep_in_time:
            self.sweep_in_time = False
            self.late_sweeps += 1
            self.shift(gap, now, 0)
        return 0

    # ---- asking

    def idlest(self, k, /):
        """Return the `k` connections that have been silent longest, longest first.

        Ties come in the order of their slots. O(connections * log k).
        """
        cdef uint32_t slot, wanted, size = 0, at
        cdef uint64_t key
        cdef uint64_t* heap
        cdef list found = []
        cdef Conn conn
        k = check_count("k", k, minimum=0, maximum=None)
        wanted = self.active if k > self.active else k
        if wanted == 0:
            return found
        heap = <uint64_t*>PyMem_RawMalloc(<size_t>wanted * sizeof(uint64_t))
        if heap == NULL:
            raise MemoryError
        for slot in range(self.high):
            if self.block.last[slot] == FREE:
                continue
            key = (<uint64_t>self.block.last[slot] << 32) | slot
            if size < wanted:  # the `wanted` smallest so far, the largest of them on top
                heap[size] = key
                size += 1
                if size == wanted:
                    for at in range(wanted // 2):
                        keys_sift(heap, wanted // 2 - 1 - at, wanted)
            elif key < heap[0]:
                heap[0] = key
                keys_sift(heap, 0, wanted)
        for at in range(size - 1):  # heap sort
            heap[0], heap[size - 1 - at] = heap[size - 1 - at], heap[0]
            keys_sift(heap, 0, size - 1 - at)
        try:
            for at in range(size):
                slot = <uint32_t>(heap[at] & 0xFFFFFFFFu)
                if slot < self.high and self.block.last[slot] != FREE:
                    conn = self.handle(slot)
                    if conn_alive(conn) and self.block.last[slot] != FREE:
                        found.append(conn)
        finally:
            PyMem_RawFree(heap)
        return found

    def count(self, *, user=None, class_id=None):
        """Return how many connections there are, of one user or one class where given.

        O(1); O(slots) where both are given.
        """
        cdef uint32_t class_ = 0, slot, counted = 0
        cdef int64_t owner
        if class_id is not None:
            class_ = as_class(class_id)
        if user is None:
            return self.active if class_id is None else self.class_counts[class_]
        owner = self.find_user(user, mix_hash(hash_key(user), self.salt))
        if owner < 0:
            return 0
        if class_id is None:
            return self.users[owner].count
        for slot in range(self.high):
            if (self.block.last[slot] != FREE and self.block.owner[slot] == <uint32_t>owner
                    and self.block.class_id[slot] == class_):
                counted += 1
        return counted

    def snapshot(self):
        """Return what is known of every connection, in the order of the slots. O(slots)."""
        cdef int64_t now = self.now()
        cdef uint32_t slot = 0, last, owner
        cdef list found = []
        while slot < self.high:  # an allocation may run user code that changes the table
            last = self.block.last[slot]
            if last != FREE:
                owner = self.block.owner[slot]
                found.append(ConnInfo(
                    self.ids[slot],
                    None if owner == NO_SLOT else self.user_objects[owner],
                    self.block.class_id[slot],
                    <double>max(now - <int64_t>last, <int64_t>0) / 1000.0,
                    <double>max(now - <int64_t>self.block.created[slot], <int64_t>0) / 1000.0,
                    self.block.pinged[slot] > last,
                ))
            slot += 1
        return found

    def idle_histogram(self, bounds=DEFAULT_BOUNDS, /):
        """Return how many connections have been silent how long, as `(upper bound, count)`.

        `bounds` are rising seconds; a count is of the connections silent for less than its bound
        and not less than the bound before. The last bound is inf. O(slots * log bounds).
        """
        cdef list checked = check_bounds(bounds)
        cdef list limits = list(map(milliseconds, checked))
        cdef list counts = [0] * (len(limits) + 1)
        cdef int64_t now = self.now()
        cdef uint32_t slot = 0
        while slot < self.high:
            if self.block.last[slot] != FREE:
                counts[bisect_right(limits, now - <int64_t>self.block.last[slot])] += 1
            slot += 1
        return list(zip(checked + [math.inf], counts, strict=True))

    def stats(self):
        """Return the counters and the present content."""
        return TableStats(
            active=self.active,
            max_connections=self.max_connections_,
            added=self.added,
            removed=self.removed,
            suspected=self.suspected,
            expired=self.expired,
            rejected=self.rejected,
            late_sweeps=self.late_sweeps,
        )

    def __len__(self):
        return self.active

    def __contains__(self, conn_id):
        return self.find(conn_id, mix_hash(hash_key(conn_id), self.salt)) >= 0

    def __iter__(self):
        """Iterate over the ids held at the beginning, in the order of their slots."""
        cdef uint32_t slot
        cdef list found = []
        for slot in range(self.high):  # appending runs no user code
            if self.block.last[slot] != FREE:
                found.append(self.ids[slot])
        return iter(found)

    def __repr__(self):
        return (
            f"ConnectionTable(max_connections={self.max_connections_}, "
            f"idle_timeout={self.idle_timeout_}, grace={self.grace_}, active={self.active})"
        )

    def __reduce__(self):
        raise TypeError("cannot pickle 'ConnectionTable' object")

    def _check(self):
        """Verify the numbered invariants; AssertionError names the broken one."""
        cdef Block* block = self.block
        cdef uint32_t slot, owner
        cdef int64_t place, now = self.latest - self.epoch
        cdef uint64_t position, in_classes = 0
        owners = {}
        classes = {}
        used = set()
        assert self.high <= self.peak <= block.capacity, "invariant 5: high"
        assert self.cursor < self.high or self.cursor == 0, "invariant 5: cursor"
        assert len(self.ids) >= self.high <= len(self.payloads), "invariant 5: lists"
        assert 0 <= now < REBASE_AT, "invariant 3: epoch"
        for slot in range(self.high):
            if block.last[slot] == FREE:
                assert self.ids[slot] is None, "invariant 1: a free slot holds an id"
                assert self.payloads[slot] is None, "invariant 1: a free slot holds a payload"
                continue
            used.add(slot)
            position = index_start(&self.index, block.tag[slot])
            place = index_next(&self.index, block.tag[slot], &position)
            while place >= 0 and place != slot:
                place = index_next(&self.index, block.tag[slot], &position)
            assert place == slot, "invariant 1: a slot is not in the index"
            assert block.last[slot] <= now, "invariant 3: last activity"
            assert block.created[slot] <= now, "invariant 3: creation"
            assert block.pinged[slot] <= now, "invariant 3: ping"
            classes[block.class_id[slot]] = classes.get(block.class_id[slot], 0) + 1
            if block.owner[slot] != NO_SLOT:
                owners[block.owner[slot]] = owners.get(block.owner[slot], 0) + 1
        assert <uint64_t>len(used) == self.active == self.index.used, \
            "invariant 1: number of connections"
        unused = {block.free[slot] for slot in range(self.n_free)}
        assert len(unused) == self.n_free, "invariant 1: a slot is free twice"
        assert unused | used == set(range(self.high)), "invariant 1: a slot is lost"
        assert not unused & used, "invariant 1: a slot in use is free"
        assert self.active == self.added - self.removed - self.expired, "invariant 2: counters"
        assert self.active <= self.max_connections_, "invariant 2: maximum"
        assert <uint64_t>len(owners) == self.user_index.used, "invariant 4: number of users"
        for owner, number in owners.items():
            assert self.users[owner].count == number, "invariant 4: users"
        for class_, number in classes.items():
            assert self.class_counts[<uint32_t>class_] == number, "invariant 4: classes"
        for slot in range(<uint32_t>CLASSES):
            in_classes += self.class_counts[slot]
        assert in_classes == self.active, "invariant 4: sum of the classes"
