"""How the garbage collector sees the arena of a `Cache`, inline: Cython cannot know of it.

`collect_arena` puts two functions into the type, which go on from those that Cython made.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject, PyTypeObject, visitproc
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint32_t

from beastcore._cache cimport HAS_GC, Cache
from beastcore._cache_arrays cimport cache_forget
from beastcore._policy cimport FIRST_SLOT
from beastcore._table cimport Slot

cdef extern from "Python.h":
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    int PyType_IS_GC(PyTypeObject*) noexcept
    PyTypeObject* Py_TYPE(PyObject*) noexcept

cdef extern from *:
    """
    static traverseproc beast_base_traverse = NULL;
    static inquiry beast_base_clear = NULL;
    static void beast_patch(PyTypeObject *type, traverseproc traverse, inquiry clear) {
        beast_base_traverse = type->tp_traverse;
        beast_base_clear = type->tp_clear;
        type->tp_traverse = traverse;
        type->tp_clear = clear;
        PyType_Modified(type);
    }
    static int beast_visit(PyObject *o, visitproc visit, void *arg) { return visit(o, arg); }
    """
    traverseproc base_traverse "beast_base_traverse"
    inquiry base_clear "beast_base_clear"
    void patch_type "beast_patch"(PyTypeObject*, traverseproc, inquiry) noexcept
    int call_visit "beast_visit"(PyObject*, visitproc, void*) noexcept


cdef inline bint is_gc(PyObject* thing) noexcept:
    return PyType_IS_GC(Py_TYPE(thing))


cdef inline int arena_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    """tp_traverse: what Cython generates, then the arena. Must not touch reference counts."""
    cdef uint32_t s
    cdef int answer = base_traverse(self, visit, arg)
    if answer or not (<Cache>self).n_gc:
        return answer
    for s in range(FIRST_SLOT, (<Cache>self).high + 1):
        if (<Cache>self).slots[s].flags & HAS_GC and (<Cache>self).slots[s].key != NULL:
            answer = call_visit((<Cache>self).slots[s].key, visit, arg)
            if answer:
                return answer
            answer = call_visit((<Cache>self).slots[s].value, visit, arg)
            if answer:
                return answer
    return 0


cdef inline int arena_clear(PyObject* self) noexcept:
    """tp_clear: break cycles by emptying the cache; the listener is not told."""
    cdef Cache cache = <Cache>self
    cdef Slot* slots
    cdef uint32_t s, high
    base_clear(self)
    if cache.slots == NULL or cache.size == 0:
        return 0
    # The arena's references move to a copy, so that destructors find an empty cache.
    high = cache.high
    slots = <Slot*>PyMem_Calloc(<size_t>high + 1, sizeof(Slot))
    if slots == NULL:
        return 0  # the collector will try again
    for s in range(FIRST_SLOT, high + 1):
        slots[s].key = cache.slots[s].key
        slots[s].value = cache.slots[s].value
    cache_forget(cache)
    for s in range(FIRST_SLOT, high + 1):
        Py_XDECREF(slots[s].key)
        Py_XDECREF(slots[s].value)
    PyMem_Free(slots)
    return 0


cdef inline void collect_arena(type cache) noexcept:
    """Let the collector see the arenas of the instances of `cache`."""
    patch_type(<PyTypeObject*>cache, arena_traverse, arena_clear)
