"""`BatchBuffer`, compiled: pending writes, due by count, bytes or age.

Structure: operations live in slots of an arena (`ops`, with the Python objects in the list
`op_objects`), keys with operations in lanes (`lanes`, keys in `lane_keys`). Links are slot
numbers. A lane chains its operations from the oldest to the newest, and among them its *peaks*:
those that no newer one of the lane equals or exceeds in priority, so the first peak has the
highest. All operations are chained by age. An indexed binary heap ranks the lanes by highest
priority, then by the number of their first operation; every lane knows its place in it. The
index (`_index.pxd`) leads from a key's hash to its lane.

Numbered invariants, verified by `_check()`:

1. Every lane in use stands in the index under the tag of its key, and either holds operations or
   is pinned. All other lanes below `lane_high` are on the free chain.
2. Numbers rise within a lane and along the chain of age; both chains name the same operations.
   All other slots below `op_high` are free, or detached by a `drain` or `clear` under way.
3. Times never fall along the chain of age.
4. The heap holds exactly the lanes with operations, each at its `place`, parents before children.
   The peaks of a lane are what its priorities say.
5. Count and bytes are the sums; held == added - coalesced - drained + restored - cleared.

Ownership: the object owns `ops`, `lanes`, `heap` and the cells of `index`, from PyMem_RawMalloc,
released in `__dealloc__`. Python objects are owned by the two lists, which the garbage collector
sees; a free place in them holds None.

User code (`__hash__`, `__eq__`, `merge`, the timer, finalizers, the garbage collector where
something is allocated) runs only while all invariants hold. A lane that a call still needs after
user code is pinned, so that it keeps its number. `drain` and `clear` first detach in C what they
take, then build or release Python objects.

Threads: with the GIL every method is atomic, except where it runs user code.

The class is `no_gc_clear`: a cycle through a buffer always passes through one of the two lists or
through a container of the user's, which break it; so the lists are never missing.
"""

cimport cython
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.string cimport memset

from beastcore._hash cimport hash_key, mix_hash, same_key
from beastcore._index cimport (
    NO_SLOT, index_free, index_init, index_insert, index_next, index_remove, index_reserve,
    index_start,
)

import time
from types import GenericAlias

from beastcore._errors import CapacityError
from beastcore._types import BatchItem, BatchStats
from beastcore._validate import (
    MAX_WEIGHT_TOTAL, check_callable, check_count, check_item, check_op_size, check_priority,
    check_seconds, check_time,
)

__all__ = ["BatchBuffer"]

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

cdef enum:
    MAX_OPS_HELD = 1 << 30
    MAX_RESTARTS = 64


cdef RuntimeError changed(str during):
    return RuntimeError(f"the buffer changed again and again while {during} ran")


cdef inline uint32_t as_size(object value) except? 0:
    cdef int overflow = 0
    cdef int64_t number
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and 0 <= number <= <int64_t>NO_SLOT:
            return <uint32_t>number
    return check_op_size(value)


cdef inline int32_t as_priority(object value) except? 0:
    cdef int overflow = 0
    cdef int64_t number
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0 and -0x80000000LL <= number <= 0x7FFFFFFF:
            return <int32_t>number
    return check_priority(value)


@cython.final
@cython.no_gc_clear
cdef class BatchBuffer:
    """Collects pending operations by key until a batch of them is due.

    A batch is due when `max_ops` operations are held, when their sizes reach `max_bytes` (None:
    no such limit), or when the oldest has waited `max_delay` seconds. Nothing is refused when
    it is due: the limits say when to drain, not how much may be held.

    Operations of one key are handed out in the order in which they were added, always. Between
    keys, those with a higher priority come first; a key's priority is the highest of its pending
    operations. Keys of equal priority come in the order of their first pending operation.

    `merge(old_op, new_op)` is asked when a key gets an operation while an earlier one is still
    held: it returns one operation that stands for both, or None to keep both in order. Only the
    last held operation of the key is offered. The merged operation keeps the place and age of
    the old one and takes the higher priority; its size is the new size when `merge` returned
    `new_op` itself, the old size when it returned `old_op`, else the sum of both.

    `timer` returns seconds as a float and must not run backwards (an earlier time than before is
    taken as the latest one seen); the default is `time.monotonic`.

    `max_ops`, `max_delay` and `max_bytes` may be assigned at any time.
    """

    def __cinit__(self, max_ops=500, max_delay=1.0, *, max_bytes=None, merge=None, timer=None):
        # Everything is zero here, so __dealloc__ is safe whatever raises. User code, which runs
        # from the first check on, may find the buffer through `gc.get_objects()`.
        self.op_free = self.oldest = self.newest = self.lane_free = NO_SLOT
        self.op_objects = []
        self.lane_keys = []
        if index_init(&self.index) < 0:
            raise MemoryError
        self.salt = <uint64_t>hash("lanes") ^ <uint64_t><size_t><void*>self
        self.max_ops = max_ops
        self.max_delay = max_delay
        self.max_bytes = max_bytes
        check_callable("merge", merge)
        check_callable("timer", timer)
        self.merge = merge
        self.timer_ = time.monotonic if timer is None else timer
        self.latest = check_time(self.timer_())

    def __dealloc__(self):
        PyMem_RawFree(self.ops)
        PyMem_RawFree(self.lanes)
        PyMem_RawFree(self.heap)
        index_free(&self.index)

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    # ---- settings

    @property
    def max_ops(self):
        """Number of operations that makes a batch due."""
        return self.max_ops_

    @max_ops.setter
    def max_ops(self, value):
        self.max_ops_ = check_count("max_ops", value)

    @property
    def max_delay(self):
        """Age of the oldest operation, in seconds, that makes a batch due; 0 means at once."""
        return self.max_delay_

    @max_delay.setter
    def max_delay(self, value):
        self.max_delay_ = check_seconds("max_delay", value, zero=True)

    @property
    def max_bytes(self):
        """Sum of sizes that makes a batch due, or None."""
        return None if self.max_bytes_ < 0 else self.max_bytes_

    @max_bytes.setter
    def max_bytes(self, value):
        if value is None:
            self.max_bytes_ = -1
        else:
            self.max_bytes_ = check_count("max_bytes", value, maximum=MAX_WEIGHT_TOTAL)

    @property
    def timer(self):
        """The clock: a callable that returns seconds."""
        return self.timer_

    # ---- adding

    def add(self, key, op, /, *, size=0, priority=0):
        """Hold `op` for `key`; return True when a batch is due now.

        `size` is in bytes, 0 to 2**32 - 1. `priority` is an int of 32 bits with sign.
        An error of `merge`, of the timer or of the key's `__hash__` or `__eq__` changes nothing.
        O(1), plus O(log keys) when the key's priority rises.
        """
        cdef uint32_t bytes_ = as_size(size)
        cdef int32_t rank = as_priority(priority)
        cdef uint32_t tag = mix_hash(hash_key(key), self.salt)
        cdef int64_t found
        cdef uint32_t slot, lane
        self.read_clock()
        found = self.find(key, tag)
        if found >= 0 and self.merge is not None and self.lanes[found].head != NO_SLOT:
            merged = self.ask(<uint32_t>found, op)
            if merged is not None:
                self.replace(<uint32_t>found, merged, op, bytes_, rank)
                return self.is_due(self.latest)
        self.reserve_ops(1)
        lane = <uint32_t>found if found >= 0 else self.new_lane(key, tag)
        slot = self.take_slot()
        self.ops[slot].lane = lane
        self.ops[slot].size = bytes_
        self.ops[slot].priority = rank
        self.ops[slot].added_at = self.latest  # user code may have read the clock again
        self.op_objects[slot] = op  # in place of None
        self.append_op(slot)
        self.added += 1
        return self.is_due(self.latest)

    cdef object ask(self, uint32_t lane, object op):
        """Return what `merge` makes of the lane's last operation and `op`, or None.

        Asks again when the buffer changed meanwhile: the last operation may be another one. On
        return there is a free slot, so an empty lane will get an operation.
        """
        cdef uint64_t version
        cdef int _attempt
        merged = None
        self.lanes[lane].pins += 1
        try:
            for _attempt in range(MAX_RESTARTS):
                version = self.version
                merged = self.merge(self.op_objects[self.lanes[lane].tail], op)
                if self.lanes[lane].head == NO_SLOT:
                    merged = None
                    break
                if version == self.version:
                    break
            else:
                raise changed("merge")
            self.reserve_ops(1)
        except BaseException:
            self.unpin(lane)
            raise
        self.lanes[lane].pins -= 1
        return merged

    cdef int replace(
        self, uint32_t lane, object merged, object op, uint32_t size, int32_t priority
    ) except -1:
        """Put `merged` in the place of the lane's last operation, which is released last."""
        cdef uint32_t slot = self.lanes[lane].tail
        cdef uint64_t total
        old = self.op_objects[slot]
        if merged is old:
            size = self.ops[slot].size
        elif merged is not op:
            total = <uint64_t>self.ops[slot].size + size
            size = <uint32_t>total if total < NO_SLOT else NO_SLOT
        self.version += 1
        self.bytes_ += <int64_t>size - <int64_t>self.ops[slot].size
        self.ops[slot].size = size
        self.op_objects[slot] = merged
        self.added += 1
        self.coalesced += 1
        if priority > self.ops[slot].priority:
            self.ops[slot].priority = priority
            self.raise_peak(slot)
            self.sift_up(self.lanes[lane].place)
        return 0

    cdef double read_clock(self) except? -1.0:
        """Return the time, which never runs backwards."""
        now = self.timer_()
        cdef double seconds
        if type(now) is float and isfinite(<double>now):
            seconds = <double>now
        else:
            seconds = check_time(now)
        if seconds > self.latest:
            self.latest = seconds
        return self.latest

    cdef int64_t find(self, object key, uint32_t tag) except -2:
        """Return the lane of `key`, or -1; starts again when a comparison changed the buffer."""
        cdef uint64_t version, position
        cdef int64_t lane
        cdef PyObject* candidate
        cdef int _attempt, same
        for _attempt in range(MAX_RESTARTS):
            version = self.version
            position = index_start(&self.index, tag)
            while True:
                lane = index_next(&self.index, tag, &position)
                if lane < 0:
                    return -1
                candidate = PyList_GET_ITEM(self.lane_keys, lane)
                if candidate == <PyObject*>key:
                    return lane
                same = same_key(candidate, <PyObject*>key)
                if same == 2:
                    stored = <object>candidate
                    same = PyObject_RichCompareBool(stored, key, Py_EQ)
                    if version != self.version:
                        # This may be the last reference, so its destructor runs before the
                        # next search and not after it.
                        stored = None
                        break
                if same:
                    return lane
        raise changed("a key's __eq__")

    cdef int reserve_ops(self, uint32_t wanted) except -1:
        """See to it that so many slots can be taken. Calls no Python; may fail."""
        cdef uint64_t capacity = self.op_capacity
        cdef uint64_t needed = self.op_high
        cdef Op* ops
        if wanted > self.op_idle:
            needed += wanted - self.op_idle
        if needed <= capacity:
            return 0
        if needed > MAX_OPS_HELD:
            raise CapacityError(f"a buffer holds at most {MAX_OPS_HELD} operations")
        capacity = max(capacity * 2, needed, <uint64_t>16)
        while <uint64_t>PyList_GET_SIZE(self.op_objects) < capacity:
            self.op_objects.append(None)
        ops = <Op*>PyMem_RawRealloc(self.ops, <size_t>capacity * sizeof(Op))
        if ops == NULL:
            raise MemoryError
        self.ops = ops
        self.op_capacity = <uint32_t>capacity
        return 0

    cdef int reserve_lane(self) except -1:
        """See to it that a lane can be taken and ranked. Calls no Python; may fail."""
        cdef uint64_t capacity
        cdef Lane* lanes
        cdef uint32_t* heap
        if index_reserve(&self.index) < 0:
            raise MemoryError
        if self.lane_free != NO_SLOT or self.lane_high < self.lane_capacity:
            return 0
        capacity = max(<uint64_t>self.lane_capacity * 2, <uint64_t>16)
        while <uint64_t>PyList_GET_SIZE(self.lane_keys) < capacity:
            self.lane_keys.append(None)
        heap = <uint32_t*>PyMem_RawRealloc(self.heap, <size_t>capacity * sizeof(uint32_t))
        if heap == NULL:
            raise MemoryError
        self.heap = heap
        lanes = <Lane*>PyMem_RawRealloc(self.lanes, <size_t>capacity * sizeof(Lane))
        if lanes == NULL:
            raise MemoryError
        self.lanes = lanes
        self.lane_capacity = <uint32_t>capacity
        return 0

    cdef uint32_t new_lane(self, object key, uint32_t tag) except 0xFFFFFFFF:
        """Return an empty lane for a key that has none. Calls no Python; may fail."""
        cdef uint32_t lane
        self.reserve_lane()
        if self.lane_free != NO_SLOT:
            lane = self.lane_free
            self.lane_free = self.lanes[lane].place
        else:
            lane = self.lane_high
            self.lane_high += 1
        memset(&self.lanes[lane], 0, sizeof(Lane))
        self.lanes[lane].head = self.lanes[lane].tail = NO_SLOT
        self.lanes[lane].peak_head = self.lanes[lane].peak_tail = NO_SLOT
        self.lanes[lane].place = NO_SLOT
        self.lanes[lane].tag = tag
        self.lane_keys[lane] = key  # in place of None
        index_insert(&self.index, tag, lane)
        self.version += 1
        return lane

    cdef void unpin(self, uint32_t lane) noexcept:
        self.lanes[lane].pins -= 1
        self.give_lane_if_idle(lane)

    cdef void give_lane_if_idle(self, uint32_t lane) noexcept:
        """Free a lane that nothing needs; its key is released last."""
        if self.lanes[lane].head != NO_SLOT or self.lanes[lane].pins:
            return
        _key = self.lane_keys[lane]  # released on return
        self.lane_keys[lane] = None
        index_remove(&self.index, self.lanes[lane].tag, lane)
        self.lanes[lane].place = self.lane_free
        self.lane_free = lane
        self.version += 1

    cdef uint32_t take_slot(self) noexcept:
        """Return a slot, for which there is room."""
        cdef uint32_t slot = self.op_free
        if slot != NO_SLOT:
            self.op_free = self.ops[slot].next
            self.op_idle -= 1
        else:
            slot = self.op_high
            self.op_high += 1
        return slot

    cdef void give_slot(self, uint32_t slot) noexcept:
        """Free a detached slot; its object is released last."""
        _op = self.op_objects[slot]  # released on return
        self.op_objects[slot] = None
        self.ops[slot].next = self.op_free
        self.op_free = slot
        self.op_idle += 1
        self.detached -= 1

    cdef void append_op(self, uint32_t slot) noexcept:
        """Hang a filled slot in as the newest of its lane and of all."""
        cdef Op* op = &self.ops[slot]
        cdef Lane* lane = &self.lanes[op.lane]
        self.version += 1
        op.number = self.next_number
        self.next_number += 1
        op.next = NO_SLOT
        op.newer = NO_SLOT
        op.older = self.newest
        if self.newest != NO_SLOT:
            self.ops[self.newest].newer = slot
        else:
            self.oldest = slot
        self.newest = slot
        self.held += 1
        self.bytes_ += op.size
        if lane.tail != NO_SLOT:
            self.ops[lane.tail].next = slot
        else:
            lane.head = slot
        lane.tail = slot
        self.raise_peak(slot)
        if lane.place == NO_SLOT:
            self.heap_add(op.lane)
        elif lane.peak_head == slot:
            self.sift_up(lane.place)

    cdef void prepend_op(self, uint32_t slot) noexcept:
        """Hang a filled slot in as the oldest of its lane and of all; its time is clamped."""
        cdef Op* op = &self.ops[slot]
        cdef Lane* lane = &self.lanes[op.lane]
        self.version += 1
        self.front_number -= 1
        op.number = self.front_number
        op.older = NO_SLOT
        op.newer = self.oldest
        if self.oldest != NO_SLOT:
            self.ops[self.oldest].older = slot
            if self.ops[self.oldest].added_at < op.added_at:
                op.added_at = self.ops[self.oldest].added_at
        else:
            self.newest = slot
        self.oldest = slot
        self.held += 1
        self.bytes_ += op.size
        op.next = lane.head
        lane.head = slot
        if lane.tail == NO_SLOT:
            lane.tail = slot
        if lane.peak_head == NO_SLOT or op.priority > self.ops[lane.peak_head].priority:
            op.peak_prev = NO_SLOT
            op.peak_next = lane.peak_head
            if lane.peak_head != NO_SLOT:
                self.ops[lane.peak_head].peak_prev = slot
            else:
                lane.peak_tail = slot
            lane.peak_head = slot
        if lane.place == NO_SLOT:
            self.heap_add(op.lane)
        else:
            self.sift_up(lane.place)

    cdef void raise_peak(self, uint32_t slot) noexcept:
        """Set the peaks right after the last operation of a lane came or rose in priority."""
        cdef Op* op = &self.ops[slot]
        cdef Lane* lane = &self.lanes[op.lane]
        cdef uint32_t peak = lane.peak_tail
        while peak != NO_SLOT and self.ops[peak].priority <= op.priority:
            peak = self.ops[peak].peak_prev
        op.peak_prev = peak
        op.peak_next = NO_SLOT
        if peak != NO_SLOT:
            self.ops[peak].peak_next = slot
        else:
            lane.peak_head = slot
        lane.peak_tail = slot

    cdef uint32_t detach_first(self, uint32_t number) noexcept:
        """Take the oldest operation out of a lane; its slot stays the caller's, the lane pinned.

        The heap is left as it is: the caller sets it right.
        """
        cdef Lane* lane = &self.lanes[number]
        cdef uint32_t slot = lane.head
        cdef Op* op = &self.ops[slot]
        self.version += 1
        self.detached += 1
        lane.pins += 1
        lane.head = op.next
        if lane.head == NO_SLOT:
            lane.tail = NO_SLOT
        if lane.peak_head == slot:
            lane.peak_head = op.peak_next
            if lane.peak_head != NO_SLOT:
                self.ops[lane.peak_head].peak_prev = NO_SLOT
            else:
                lane.peak_tail = NO_SLOT
        if op.older != NO_SLOT:
            self.ops[op.older].newer = op.newer
        else:
            self.oldest = op.newer
        if op.newer != NO_SLOT:
            self.ops[op.newer].older = op.older
        else:
            self.newest = op.older
        self.held -= 1
        self.bytes_ -= op.size
        return slot

    # ---- rank

    cdef bint before(self, uint32_t a, uint32_t b) noexcept:
        """Tell whether lane `a` is to be drained before lane `b`."""
        cdef int32_t priority_a = self.ops[self.lanes[a].peak_head].priority
        cdef int32_t priority_b = self.ops[self.lanes[b].peak_head].priority
        if priority_a != priority_b:
            return priority_a > priority_b
        return self.ops[self.lanes[a].head].number < self.ops[self.lanes[b].head].number

    cdef void heap_add(self, uint32_t lane) noexcept:
        self.heap[self.heap_size] = lane
        self.lanes[lane].place = self.heap_size
        self.heap_size += 1
        self.sift_up(self.heap_size - 1)

    cdef void heap_drop_first(self) noexcept:
        cdef uint32_t last
        self.lanes[self.heap[0]].place = NO_SLOT
        self.heap_size -= 1
        if self.heap_size:
            last = self.heap[self.heap_size]
            self.heap[0] = last
            self.lanes[last].place = 0
            self.sift_down(0)

    cdef void sift_up(self, uint32_t at) noexcept:
        cdef uint32_t lane = self.heap[at]
        cdef uint32_t parent
        while at > 0:
            parent = (at - 1) >> 1
            if not self.before(lane, self.heap[parent]):
                break
            self.heap[at] = self.heap[parent]
            self.lanes[self.heap[at]].place = at
            at = parent
        self.heap[at] = lane
        self.lanes[lane].place = at

    cdef void sift_down(self, uint32_t at) noexcept:
        cdef uint32_t lane = self.heap[at]
        cdef uint32_t child
        while True:
            child = 2 * at + 1
            if child >= self.heap_size:
                break
            if child + 1 < self.heap_size and self.before(self.heap[child + 1], self.heap[child]):
                child += 1
            if not self.before(self.heap[child], lane):
                break
            self.heap[at] = self.heap[child]
            self.lanes[self.heap[at]].place = at
            at = child
        self.heap[at] = lane
        self.lanes[lane].place = at

    # ---- due

    cdef bint is_due(self, double now) noexcept:
        if self.held >= self.max_ops_:
            return True
        if self.max_bytes_ >= 0 and self.bytes_ >= self.max_bytes_:
            return True
        return self.held > 0 and now >= self.ops[self.oldest].added_at + self.max_delay_

    def due(self):
        """Tell whether a batch is due, by count, bytes or age. O(1)."""
        return self.is_due(self.read_clock())

    def deadline(self):
        """Return the time, by the buffer's timer, at which a batch is due by age.

        Not later than now when a batch is due already, for whatever reason; None when nothing is
        held. `due()` is true from the returned time on. O(1).
        """
        cdef double now = self.read_clock()
        cdef double by_age
        if not self.held:
            return None
        by_age = self.ops[self.oldest].added_at + self.max_delay_
        return min(by_age, now) if self.is_due(now) else by_age

    # ---- draining

    def drain(self, limit=None):
        """Hand out at most `limit` operations (None: all) as a list of `(key, op)`.

        Keys come by priority, then by their first operation, each with its operations in order;
        with a limit, the last key may give only the first of its operations. The pairs remember
        size, priority and time (`.size`, `.priority`, `.added_at`) for `restore`.
        O(operations + log keys for each key).
        """
        cdef uint32_t count, taken, lane, slot
        cdef uint32_t* slots
        cdef list items = []
        wanted = None if limit is None else check_count("limit", limit, minimum=0, maximum=None)
        count = self.held if wanted is None or wanted > self.held else wanted
        if count == 0:
            return items
        slots = <uint32_t*>PyMem_RawMalloc(<size_t>count * sizeof(uint32_t))
        if slots == NULL:
            raise MemoryError
        taken = 0
        while taken < count:
            lane = self.heap[0]
            while taken < count and self.lanes[lane].head != NO_SLOT:
                slots[taken] = self.detach_first(lane)
                taken += 1
            if self.lanes[lane].head == NO_SLOT:
                self.heap_drop_first()
            else:
                self.sift_down(0)
        self.drained += count
        try:
            for taken in range(count):
                slot = slots[taken]
                item = BatchItem(
                    (self.lane_keys[self.ops[slot].lane], self.op_objects[slot])
                )
                if self.ops[slot].size:
                    item.size = self.ops[slot].size
                if self.ops[slot].priority:
                    item.priority = self.ops[slot].priority
                item.added_at = self.ops[slot].added_at
                items.append(item)
        except BaseException:  # memory is short: nothing is lost, all goes back to the front
            for taken in range(count):
                slot = slots[count - 1 - taken]
                self.prepend_op(slot)
                self.detached -= 1
                self.lanes[self.ops[slot].lane].pins -= 1
            self.drained -= count
            PyMem_RawFree(slots)
            raise
        for taken in range(count):
            slot = slots[taken]
            lane = self.ops[slot].lane
            self.give_slot(slot)
            self.unpin(lane)
        PyMem_RawFree(slots)
        return items

    def restore(self, items, /):
        """Put drained operations back, in front of everything newer of the same keys.

        `items` is what `drain` returned, or any part of it in the same order. Order, sizes and
        priorities are those of before, and the operations count as the oldest. A plain pair
        `(key, op)` has size 0, priority 0 and the age of the oldest operation held. Nothing is
        merged. When several drained lists are to be put back, put back the newest list first.

        All items are checked before anything changes: TypeError when one is no pair or its key
        cannot be hashed. O(items).
        """
        cdef list pairs = [], details = []
        cdef list hashes = []
        cdef Py_ssize_t at, pinned = 0, count
        cdef uint32_t slot, tag
        cdef uint32_t* lanes
        cdef int64_t found
        cdef double added_at
        cdef tuple pair
        for at, item in enumerate(items):
            details.append(check_item(at, item))
            pair = <tuple>item
            hashes.append(hash(pair[0]))
            pairs.append(pair)
        self.read_clock()
        count = len(pairs)
        if count == 0:
            return
        lanes = <uint32_t*>PyMem_RawMalloc(<size_t>count * sizeof(uint32_t))
        if lanes == NULL:
            raise MemoryError
        try:
            for at in range(count):
                pair = <tuple>pairs[at]
                tag = mix_hash(hashes[at], self.salt)
                found = self.find(pair[0], tag)
                lanes[at] = <uint32_t>found if found >= 0 else self.new_lane(pair[0], tag)
                self.lanes[lanes[at]].pins += 1
                pinned += 1
            if count > MAX_OPS_HELD:
                raise CapacityError(f"a buffer holds at most {MAX_OPS_HELD} operations")
            self.reserve_ops(<uint32_t>count)
        except BaseException:
            for at in range(pinned):
                self.unpin(lanes[at])
            PyMem_RawFree(lanes)
            raise
        for at in range(count - 1, -1, -1):
            pair = <tuple>pairs[at]
            size, priority, time_ = <tuple>details[at]
            added_at = (
                self.latest if self.oldest == NO_SLOT else self.ops[self.oldest].added_at
            )
            if time_ is not None and <double>time_ < added_at:
                added_at = <double>time_
            slot = self.take_slot()
            self.ops[slot].lane = lanes[at]
            self.ops[slot].size = <uint32_t>size
            self.ops[slot].priority = <int32_t>priority
            self.ops[slot].added_at = added_at
            self.op_objects[slot] = pair[1]  # in place of None
            self.prepend_op(slot)
            self.lanes[lanes[at]].pins -= 1
            self.restored += 1
        PyMem_RawFree(lanes)

    # ---- looking

    def pending(self, key, /):
        """Return the operations held for `key`, oldest first; [] when there are none."""
        cdef list found = []
        cdef int64_t lane = self.find(key, mix_hash(hash_key(key), self.salt))
        cdef uint32_t slot
        if lane >= 0:
            slot = self.lanes[lane].head
            while slot != NO_SLOT:
                found.append(self.op_objects[slot])
                slot = self.ops[slot].next
        return found

    def clear(self):
        """Drop every operation. The counters stay; the dropped ones count as `cleared`."""
        cdef uint32_t first = NO_SLOT, slot, lane
        self.cleared += self.held
        while self.heap_size:  # detach all, chained through `older`
            lane = self.heap[self.heap_size - 1]
            while self.lanes[lane].head != NO_SLOT:
                slot = self.detach_first(lane)
                self.ops[slot].older = first
                first = slot
            self.lanes[lane].place = NO_SLOT
            self.heap_size -= 1
        while first != NO_SLOT:  # the objects are released last, with the buffer already empty
            slot = first
            first = self.ops[slot].older
            lane = self.ops[slot].lane
            self.give_slot(slot)
            self.unpin(lane)

    def stats(self):
        """Return the counters and the present content."""
        return BatchStats(
            added=self.added,
            coalesced=self.coalesced,
            drained=self.drained,
            restored=self.restored,
            cleared=self.cleared,
            pending=self.held,
            keys=self.index.used,
            bytes=self.bytes_,
        )

    def __len__(self):
        return self.held

    def __contains__(self, key):
        cdef int64_t lane = self.find(key, mix_hash(hash_key(key), self.salt))
        return lane >= 0 and self.lanes[lane].head != NO_SLOT

    def __repr__(self):
        limits = f"max_ops={self.max_ops_}, max_delay={self.max_delay_}"
        if self.max_bytes_ >= 0:
            limits += f", max_bytes={self.max_bytes_}"
        return f"BatchBuffer({limits}, pending={self.held})"

    def __reduce__(self):
        raise TypeError("cannot pickle 'BatchBuffer' object")

    def _check(self):
        """Verify the numbered invariants; AssertionError names the broken one."""
        cdef uint32_t lane, slot, parent, older, peak
        cdef uint64_t position
        cdef int64_t found
        in_lanes = {}
        used = 0
        free_lanes = set()
        lane = self.lane_free
        while lane != NO_SLOT:
            assert lane not in free_lanes, "invariant 1: free chain runs in a circle"
            free_lanes.add(lane)
            lane = self.lanes[lane].place
        sizes = 0
        for lane in range(self.lane_high):
            if lane in free_lanes:
                assert self.lane_keys[lane] is None, "invariant 1: a free lane holds a key"
                continue
            used += 1
            position = index_start(&self.index, self.lanes[lane].tag)
            found = index_next(&self.index, self.lanes[lane].tag, &position)
            while found >= 0 and found != lane:
                found = index_next(&self.index, self.lanes[lane].tag, &position)
            assert found == lane, "invariant 1: a lane is not in the index"
            assert self.lanes[lane].head != NO_SLOT or self.lanes[lane].pins, \
                "invariant 1: an empty lane"
            number = None
            slot = self.lanes[lane].head
            priorities = []
            while slot != NO_SLOT:
                assert self.ops[slot].lane == lane, "invariant 2: lane of an operation"
                assert number is None or number < self.ops[slot].number, "invariant 2: order"
                number = self.ops[slot].number
                in_lanes[slot] = number
                sizes += self.ops[slot].size
                priorities.append((self.ops[slot].priority, slot))
                assert self.ops[slot].next != NO_SLOT or self.lanes[lane].tail == slot, \
                    "invariant 2: last operation of a lane"
                slot = self.ops[slot].next
            peaks = []
            for priority, slot in reversed(priorities):
                if not peaks or priority > peaks[-1][0]:
                    peaks.append((priority, slot))
            found_peaks = []
            peak = self.lanes[lane].peak_tail
            while peak != NO_SLOT:
                found_peaks.append((self.ops[peak].priority, peak))
                peak = self.ops[peak].peak_prev
            assert found_peaks == peaks, "invariant 4: peaks"
            assert (self.lanes[lane].peak_head if peaks else peak) == \
                (peaks[-1][1] if peaks else peak), "invariant 4: first peak"
            if priorities:
                assert self.heap[self.lanes[lane].place] == lane, "invariant 4: place"
            else:
                assert self.lanes[lane].place == NO_SLOT, "invariant 4: an empty lane is ranked"
        assert used == self.index.used, "invariant 1: number of keys"
        older = NO_SLOT
        slot = self.oldest
        walked = 0
        while slot != NO_SLOT:
            assert slot in in_lanes, "invariant 2: an operation without a lane"
            assert self.ops[slot].older == older, "invariant 2: chain of age"
            if older != NO_SLOT:
                assert self.ops[older].number < self.ops[slot].number, "invariant 2: age"
                assert self.ops[older].added_at <= self.ops[slot].added_at, "invariant 3: times"
            older = slot
            slot = self.ops[slot].newer
            walked += 1
        assert older == self.newest, "invariant 2: newest operation"
        assert walked == len(in_lanes) == self.held, "invariant 2: number of operations"
        slot = self.op_free
        while slot != NO_SLOT:
            assert slot not in in_lanes, "invariant 2: a free slot is in a lane"
            assert self.op_objects[slot] is None, "invariant 2: a free slot holds an object"
            walked += 1
            slot = self.ops[slot].next
        assert walked + self.detached == self.op_high, "invariant 2: a slot is lost"
        assert self.held + self.op_idle == walked, "invariant 2: number of free slots"
        for lane in range(1, self.heap_size):
            parent = (lane - 1) >> 1
            assert self.before(self.heap[parent], self.heap[lane]), "invariant 4: heap"
        assert sizes == self.bytes_, "invariant 5: bytes"
        assert self.held == (
            self.added - self.coalesced - self.drained + self.restored - self.cleared
        ), "invariant 5: counters"
