# cython: cdivision=True
"""Pairs that left a `Cache` and are still to be released, inline.

What removes entries collects their references here and releases them last, when the structure is
consistent: only then do listeners and destructors run.
"""

from cpython.mem cimport PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.string cimport memcpy

cdef enum:
    ON_STACK = 24           # removed pairs kept without an allocation
    EXPLICIT = 0            # why one left, as in `RemovalCause`
    REPLACED = 1
    EXPIRED = 2
    SIZE = 3


cdef struct Gone:
    PyObject* key       # owned reference that left the structure and is still to be released
    PyObject* value
    int cause


cdef struct Batch:          # what the writes of one call share
    Gone* gone
    Py_ssize_t n, room
    bint timed          # now_s has been read, as seconds since `origin`
    double now_s, origin
    bint fixed          # `gone` is not from the heap


cdef inline Gone* allocate_gone(Py_ssize_t n) except NULL:
    cdef Gone* gone = <Gone*>PyMem_Malloc(<size_t>n * sizeof(Gone))
    if gone == NULL:
        raise MemoryError(f"no memory to remove {n} entries")
    return gone


cdef inline Gone* batch_room(Batch* batch, Py_ssize_t n) except NULL:
    """Return the place for `n` more removed pairs."""
    cdef Py_ssize_t room = 2 * batch.n + n + ON_STACK
    cdef Gone* gone
    if batch.n + n > batch.room:
        gone = <Gone*>PyMem_Realloc(
            NULL if batch.fixed else batch.gone, <size_t>room * sizeof(Gone)
        )
        if gone == NULL:
            raise MemoryError(f"no memory to remove {n} entries")
        if batch.fixed:
            memcpy(gone, batch.gone, <size_t>batch.n * sizeof(Gone))
            batch.fixed = False
        batch.gone = gone
        batch.room = room
    return batch.gone + batch.n
