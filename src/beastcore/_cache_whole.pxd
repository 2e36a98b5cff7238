# cython: cdivision=True
"""What goes through a `Cache` from end to end, inline: lists of it, evictions, another size."""

from cpython.mem cimport PyMem_Free
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint32_t

from beastcore._cache cimport Cache
from beastcore._cache_arrays cimport (
    FIRST_CAPACITY,
    SMALL,
    cache_forget,
    cache_rebuild,
    cache_unfile_free,
)
from beastcore._policy cimport PROBATION, policy_share
from beastcore._removed cimport EXPIRED, EXPLICIT, ON_STACK, Gone, allocate_gone

cdef extern from *:
    void hide "PyObject_GC_UnTrack"(tuple pair) noexcept
    void publish "PyObject_GC_Track"(tuple pair) noexcept

cdef enum:
    KEYS = 0
    VALUES = 1
    ITEMS = 2


cdef inline list cache_list(Cache self, int what):
    """List what is live, the next to leave first (see `walk`)."""
    cdef list result = []
    cdef uint32_t s, tick = 0
    cdef double now_s
    if self.n_ttl:
        tick = self.read_clock(&now_s)
    s = self.walk(PROBATION)
    # Appending to a list starts no collection, so nothing can change the cache on the way.
    while s != 0:
        if self.cause_of(s, tick) != EXPIRED:
            if what != VALUES:
                result.append(<object>self.slots[s].key)
            if what != KEYS:
                result.append(<object>self.slots[s].value)
        s = self.walk(s)
    if what == ITEMS:
        # No comprehension: Cython 3.3 releases its items twice where appending fails.
        return list(zip(result[::2], result[1::2]))
    return result


cdef inline Py_ssize_t cache_evict(Cache self, Py_ssize_t n) except -1:
    """Evict `n` entries and return their number."""
    cdef Gone on_stack[ON_STACK]
    cdef Gone* gone = on_stack
    cdef double now_s
    cdef uint32_t tick = 0, s
    cdef Py_ssize_t i
    if self.n_ttl:
        tick = self.read_clock(&now_s)
    n = min(n, <Py_ssize_t>self.size)
    if n > ON_STACK:
        gone = allocate_gone(n)
    for i in range(n):
        s = self.next_out()
        self.take(s, self.cause_of(s, tick), &gone[i])
    self.release(gone, n)
    if gone != on_stack:
        PyMem_Free(gone)
    return n


cdef inline Py_ssize_t cache_resize(Cache self, uint32_t most) except -1:
    """`resize` of a cache to at most `most` entries."""
    cdef double now_s
    cdef Gone on_stack[ON_STACK]
    cdef Gone* gone = on_stack
    cdef uint32_t tick = 0, n, i, s
    if self.n_ttl:
        tick = self.read_clock(&now_s)
    n = self.size - min(self.size, most)
    if n > ON_STACK:
        gone = allocate_gone(n)
    try:  # what needs memory; without it nothing changes
        if self.adaptive != NULL and self.weigher is None and most != self.maxsize_:
            self.adapt(most)
        if most > SMALL and most >= self.capacity:
            cache_rebuild(self, most + 1)
    except BaseException:
        if gone != on_stack:
            PyMem_Free(gone)
        raise
    if self.weigher is None and most != self.maxsize_:
        self.policy_state.limit = most
        if self.adaptive != NULL:
            policy_share(&self.policy_state, most // 100)
        else:
            self.policy_state.window_target = most
    self.maxsize_ = most
    for i in range(n):
        s = self.next_out()
        self.take(s, self.cause_of(s, tick), &gone[i])
    cache_unfile_free(self)
    if most + 1 < self.capacity:
        try:
            cache_rebuild(
                self,
                most + 1 if most > SMALL else max(self.size, min(most + 1, FIRST_CAPACITY)),
            )
        except MemoryError:
            pass  # the larger arrays serve as well
    self.release(gone, n)
    if gone != on_stack:
        PyMem_Free(gone)
    return n


cdef inline int cache_clear(Cache self) except -1:
    """`clear` of a cache."""
    cdef uint32_t n = self.size, i = 0, s
    cdef Gone* gone
    if n == 0:
        return 0
    gone = allocate_gone(n)
    s = self.walk(PROBATION)
    while s != 0:
        gone[i].key = self.slots[s].key
        gone[i].value = self.slots[s].value
        gone[i].cause = EXPLICIT
        i += 1
        s = self.walk(s)
    cache_forget(self)
    self.removals += n
    self.release(gone, n)
    PyMem_Free(gone)
    return 0


cdef inline tuple cache_popitem(Cache self):
    """`popitem` of a cache."""
    cdef Gone on_stack[ON_STACK]
    cdef Gone* gone = on_stack
    cdef uint32_t s, i, n = 0, tick = 0
    cdef double now_s
    cdef tuple pair = PyTuple_New(2)  # first, for nothing may fail once the entry is out
    hide(pair)  # from `gc.get_objects` until it is filled: the timer may look there
    if self.n_ttl:
        tick = self.read_clock(&now_s)
    s = self.walk(PROBATION)
    while s != 0 and self.cause_of(s, tick) == EXPIRED:
        n += 1
        s = self.walk(s)
    if n + 1 > ON_STACK:
        gone = allocate_gone(n + 1)
    for i in range(n):
        self.take(self.walk(PROBATION), EXPIRED, &gone[i])
    if s != 0:
        Py_INCREF(<object>self.slots[s].key)  # SET_ITEM takes over a reference
        PyTuple_SET_ITEM(pair, 0, <object>self.slots[s].key)
        Py_INCREF(<object>self.slots[s].value)
        PyTuple_SET_ITEM(pair, 1, <object>self.slots[s].value)
        self.take(s, EXPLICIT, &gone[n])
        publish(pair)
    self.release(gone, n + 1 if s != 0 else n)
    if gone != on_stack:
        PyMem_Free(gone)
    if s == 0:
        raise KeyError("popitem(): cache is empty")
    return pair
