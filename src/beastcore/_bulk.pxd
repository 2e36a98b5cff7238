# cython: cdivision=True
"""Many keys at once, inline: what `get_many`, `set_many` and `delete_many` share.

In a large cache a lookup mostly waits for memory: for the key, a word of the index, the slot, the
value, one after the other. Here a block of keys takes each step together, and what the next step
reads is fetched ahead, so that a block waits hardly longer than one key ("group prefetching":
Chen, Ailamaki, Gibbons, Mowry, "Improving hash join performance through prefetching", ICDE 2004).

Nothing here but `split_pairs` runs Python code. Exact str, bytes and int need none; another key
stops `bulk_hash` or `bulk_find`, which return its number: the caller takes that step in Python,
having called `bulk_own` before, and goes on with the next key.
"""

from cpython.dict cimport PyDict_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

from beastcore._hash cimport hash_plain, mix_hash, same_key
from beastcore._table cimport (
    LAST,
    Index,
    Slot,
    index_fits,
    index_home,
    index_line,
    index_next,
    lowest,
    prefetch,
)

cdef extern from *:
    """
    /* The items of an exact list or tuple. */
    static inline PyObject **beast_items(PyObject *keys) { return PySequence_Fast_ITEMS(keys); }

    /* A list with an unset item for each of `keys`, an exact list or tuple. Until it is filled
       and published nothing else can see it. */
    static PyObject *beast_answers(PyObject *keys) {
        for (;;) {
            Py_ssize_t n = PySequence_Fast_GET_SIZE(keys);
            PyObject *answers = PyList_New(n);
            if (answers == NULL) return NULL;
            PyObject_GC_UnTrack(answers);
            if (n == PySequence_Fast_GET_SIZE(keys)) return answers;
            Py_DECREF(answers); /* a collection that PyList_New started changed the keys */
        }
    }
    static inline void beast_answer(PyObject *answers, Py_ssize_t i, PyObject *value) {
        Py_INCREF(value);
        PyList_SET_ITEM(answers, i, value);
    }
    """
    PyObject** items_of "beast_items"(object keys) noexcept
    list empty_answers "beast_answers"(object keys)
    void put_answer "beast_answer"(list answers, Py_ssize_t i, PyObject* value) noexcept
    void publish "PyObject_GC_Track"(list answers) noexcept
    void hide "PyObject_GC_UnTrack"(list things) noexcept

cdef extern from "<stdint.h>":
    const uint32_t UNSURE "UINT32_MAX"  # no slot: Python must compare

cdef enum:
    BLOCK = 64          # keys that take a step together
    NEAR = 256          # keys of one call that need no memory from the heap


cdef struct Room:
    PyObject* keys[NEAR]
    uint32_t mixed[NEAR]
    uint32_t slots[NEAR]


cdef struct Bulk:
    PyObject** keys     # borrowed from a list or tuple; in `copy` and owned after `bulk_own`
    PyObject** copy
    uint32_t* mixed     # their mixed hashes
    uint32_t* slots     # where they were found; 0: nowhere
    Py_ssize_t n
    void* heap          # NULL while the room on the caller's stack is enough


cdef inline object keys_in_a_row(object keys):
    """Return an exact list or tuple of `keys`, an iterable."""
    if PyList_CheckExact(keys) or PyTuple_CheckExact(keys):
        return keys
    return tuple(keys)


cdef inline int bulk_start(Bulk* b, Room* room, PyObject** keys, Py_ssize_t n) noexcept:
    """Prepare for `n` keys; -1 when memory is short. `bulk_end` must follow on success."""
    b.keys = keys
    b.n = n
    b.heap = NULL
    b.copy = room.keys
    b.mixed = room.mixed
    b.slots = room.slots
    if n > NEAR:
        b.heap = PyMem_Malloc(<size_t>n * (sizeof(PyObject*) + 2 * sizeof(uint32_t)))
        if b.heap == NULL:
            return -1
        b.copy = <PyObject**>b.heap
        b.mixed = <uint32_t*>(b.copy + n)
        b.slots = b.mixed + n
    return 0


cdef inline void bulk_own(Bulk* b) noexcept:
    """Hold the keys: Python code is about to run, which may change the list that holds them."""
    cdef Py_ssize_t i
    if b.keys == b.copy:
        return
    for i in range(b.n):
        b.copy[i] = b.keys[i]
        Py_INCREF(<object>b.copy[i])
    b.keys = b.copy


cdef inline void bulk_end(Bulk* b) noexcept:
    """Release everything; what was owned may run its destructors."""
    cdef Py_ssize_t i
    if b.keys == b.copy:
        for i in range(b.n):
            Py_XDECREF(b.copy[i])
    PyMem_Free(b.heap)


cdef inline Py_ssize_t bulk_hash(Bulk* b, Py_ssize_t i, uint64_t salt) noexcept:
    """Hash the keys from `i` on; return the number of the first that needs Python, or `n`."""
    cdef Py_ssize_t j, end
    cdef Py_hash_t hash
    while i < b.n:
        end = min(i + BLOCK, b.n)
        for j in range(i, end):
            prefetch(b.keys[j])
        for j in range(i, end):
            if not hash_plain(b.keys[j], &hash):
                return j
            b.mixed[j] = mix_hash(hash, salt)
        i = end
    return b.n


cdef inline uint32_t bulk_probe(Index* x, Slot* slots, PyObject* key, uint32_t mixed,
                                uint32_t fits) noexcept nogil:
    """Return the slot of `key`, 0 if there is none, UNSURE if Python must tell.

    `fits` tells which words of its home line have its tag.
    """
    cdef uint32_t at = index_home(x, mixed), s
    cdef uint32_t* line = index_line(x, at)
    cdef int same
    while True:
        while fits != 0:
            s = line[lowest(fits)] & x.slot_mask
            fits &= fits - 1
            if slots[s].key == key:
                return s
            if slots[s].hash == mixed and s != 0:
                same = same_key(slots[s].key, key)
                if same != 0:
                    return s if same == 1 else UNSURE
        if line[LAST] == 0:
            return 0
        at = index_next(x, at)
        line = index_line(x, at)
        fits = index_fits(x, line, mixed)


cdef inline Py_ssize_t bulk_fetch(Bulk* b, Py_ssize_t i, Index* x, Slot* slots,
                                  uint32_t* fits) noexcept nogil:
    """Fetch what finding the keys from `i` on reads, for a block; return how many these are.

    Sets which words of each home line have the key's tag.
    """
    cdef Py_ssize_t j, m = min(<Py_ssize_t>BLOCK, b.n - i)
    cdef uint32_t candidates[BLOCK]
    cdef uint32_t* line
    cdef Slot* slot
    for j in range(m):
        prefetch(index_line(x, index_home(x, b.mixed[i + j])))
    for j in range(m):
        line = index_line(x, index_home(x, b.mixed[i + j]))
        fits[j] = index_fits(x, line, b.mixed[i + j])
        candidates[j] = line[lowest(fits[j] | 1 << LAST)] & x.slot_mask
        prefetch(slots + candidates[j])
    for j in range(m):
        slot = slots + candidates[j]
        if slot.key != b.keys[i + j]:
            prefetch(slot.key)
        prefetch(slot.value)
    return m


cdef inline Py_ssize_t bulk_find(Bulk* b, Py_ssize_t i, Index* x, Slot* slots) noexcept nogil:
    """Find the keys from `i` on; return the number of the first that needs Python, or `n`."""
    cdef uint32_t fits[BLOCK]
    cdef uint32_t s
    cdef Py_ssize_t j, m
    while i < b.n:
        m = bulk_fetch(b, i, x, slots, fits)
        for j in range(m):
            s = bulk_probe(x, slots, b.keys[i + j], b.mixed[i + j], fits[j])
            if s == UNSURE:
                return i + j
            b.slots[i + j] = s
        i += m
    return b.n


cdef inline int split_pairs(object items, list keys, list values) except -1:
    """Append what a mapping, or an iterable of (key, value) pairs, holds."""
    cdef Py_ssize_t i = 0
    if PyDict_CheckExact(items):
        for key, value in (<dict>items).items():
            keys.append(key)
            values.append(value)
        return 0
    if not PyList_CheckExact(items) and hasattr(items, "items"):
        items = items.items()
    for item in items:
        if PyTuple_CheckExact(item) and PyTuple_GET_SIZE(item) == 2:
            keys.append((<tuple>item)[0])
            values.append((<tuple>item)[1])
        else:
            try:
                key, value = item
            except (TypeError, ValueError):
                raise ValueError(
                    f"set_many item {i} must be a (key, value) pair, got {item!r}"
                ) from None
            keys.append(key)
            values.append(value)
        i += 1
    return 0
