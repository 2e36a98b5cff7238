# cython: cdivision=True
"""The arrays of a `Cache` as a whole, inline: made anew, emptied, given back."""

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint32_t
from libc.string cimport memset

from beastcore._cache cimport Cache
from beastcore._policy cimport FIRST_SLOT, Link
from beastcore._table cimport (
    LINE,
    Index,
    Slot,
    index_add,
    index_bytes,
    index_shape,
    lines_calloc,
    lines_free,
)
from beastcore._wheel cimport FILED, LISTS, Wheel, wheel_move, wheel_reset, wheel_unfile

cdef enum:
    SMALL = 4096            # a larger cache takes all memory at once
    FIRST_CAPACITY = 8


cdef inline int cache_rebuild(Cache self, uint32_t capacity) except -1:
    """Move everything to arrays for `capacity` entries, in order of use; O(size)."""
    cdef uint32_t s, queue, n = FIRST_SLOT - 1
    cdef Index index
    index_shape(&index, capacity + FIRST_SLOT)
    cdef Slot* slots = <Slot*>lines_calloc(<size_t>capacity + FIRST_SLOT, sizeof(Slot))
    cdef Link* links = <Link*>PyMem_Calloc(<size_t>capacity + FIRST_SLOT, sizeof(Link))
    cdef Wheel wheel = self.wheel
    if wheel.links != NULL:
        wheel.base = capacity + FIRST_SLOT
        wheel.links = <Link*>PyMem_Malloc((<size_t>wheel.base + LISTS) * sizeof(Link))
    index.words = <uint32_t*>lines_calloc(index.lines, LINE)
    if (
        slots == NULL or links == NULL or index.words == NULL
        or (wheel.links == NULL and self.wheel.links != NULL)
    ):
        PyMem_Free(wheel.links)
        lines_free(slots)
        PyMem_Free(links)
        lines_free(index.words)
        raise MemoryError(f"a cache of {capacity - 1} entries does not fit into memory")
    cdef Slot* old_slots = self.slots
    cdef Link* old_links = self.links
    lines_free(self.index.words)
    self.slots = slots
    self.links = links
    self.index = index
    self.capacity = capacity
    self.policy_state.metas = <char*>&slots[0].hash
    self.policy_state.links = links
    self.free = 0
    self.version += 1
    for queue in range(FIRST_SLOT):
        links[queue].prev = links[queue].next = queue
        if old_slots == NULL:
            continue
        s = old_links[queue].prev  # the oldest first
        while s >= FIRST_SLOT:
            n += 1
            slots[n] = old_slots[s]
            links[n].prev = queue
            links[n].next = links[queue].next
            links[links[n].next].prev = n
            links[queue].next = n
            index_add(&self.index, slots[n].hash, n)
            old_links[s].next = n  # where it went
            s = old_links[s].prev
    if wheel.links != NULL:
        wheel_move(&wheel, &self.wheel, old_slots, old_links)
        PyMem_Free(self.wheel.links)
        self.wheel = wheel
    lines_free(old_slots)
    PyMem_Free(old_links)
    self.high = n
    return 0


cdef inline void cache_unfile_free(Cache self) noexcept:
    """Take free slots off the wheel; O(slots)."""
    cdef uint32_t s
    for s in range(FIRST_SLOT, self.high + 1):
        if self.slots[s].key == NULL and self.slots[s].flags & FILED:
            wheel_unfile(&self.wheel, self.slots, s)


cdef inline void cache_forget(Cache self) noexcept:
    """Become empty without releasing anything; the caller holds the references."""
    cdef uint32_t queue
    memset(self.slots, 0, (<size_t>self.high + 1) * sizeof(Slot))
    memset(self.index.words, 0, index_bytes(&self.index))
    for queue in range(FIRST_SLOT):
        self.links[queue].prev = self.links[queue].next = queue
        self.policy_state.weight[queue] = 0
    self.size = self.free = self.n_ttl = self.n_gc = 0
    self.high = FIRST_SLOT - 1
    if self.wheel.links != NULL:
        wheel_reset(&self.wheel)
    self.weight_ = 0
    self.version += 1


cdef inline int cache_free(Cache self) except -1:
    """Release everything for good, without telling the listener."""
    cdef Slot* slots = self.slots
    cdef uint32_t high = self.high, s
    PyMem_Free(self.links)
    lines_free(self.index.words)
    lines_free(self.adaptive)
    lines_free(self.spare)
    PyMem_Free(self.wheel.links)
    self.wheel.links = NULL
    self.adaptive = self.spare = NULL
    self.slots = NULL
    self.links = NULL
    self.index.words = NULL
    self.size = self.high = 0
    if slots != NULL:
        for s in range(FIRST_SLOT, high + 1):
            Py_XDECREF(slots[s].key)
            Py_XDECREF(slots[s].value)
        lines_free(slots)
    return 0
