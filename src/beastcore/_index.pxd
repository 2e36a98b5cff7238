"""A hash index from tags to slot numbers, inline: how the engine's tables find a key's slot.

Open addressing with linear probing. A cell is `tag << 32 | slot + 1`, or 0 when it is empty. The
tag is 32 bits of the key's mixed hash (`mix_hash`), its low bits say where probing begins. Cells
after a removed one move back, so there are no tombstones and clearing or removing leaves no
trace. The index knows no keys: it hands out the slots with a tag, and the caller compares. So
growing, inserting and removing call no Python, and inserting after `index_reserve` cannot fail.

At most 2/3 of the cells are in use: 12 to 24 bytes for each slot.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.string cimport memset

cdef extern from "<stdint.h>":
    const uint32_t NO_SLOT "UINT32_MAX"  # no slot has this number


cdef struct Index:
    uint64_t* cells  # owned
    uint64_t mask    # number of cells - 1; a power of two
    uint64_t used


cdef inline int index_init(Index* index) noexcept nogil:
    """Make an empty index; -1 when memory is short."""
    index.cells = <uint64_t*>PyMem_RawCalloc(8, sizeof(uint64_t))
    index.mask = 7
    index.used = 0
    return 0 if index.cells != NULL else -1


cdef inline void index_free(Index* index) noexcept nogil:
    """Release what the index owns; also one of zero bytes that was never made."""
    PyMem_RawFree(index.cells)
    index.cells = NULL


cdef inline void index_insert(Index* index, uint32_t tag, uint32_t slot) noexcept nogil:
    """Add a slot, for which `index_reserve` has made room."""
    cdef uint64_t at = tag & index.mask
    while index.cells[at] != 0:
        at = (at + 1) & index.mask
    index.cells[at] = (<uint64_t>tag << 32) | (<uint64_t>slot + 1)
    index.used += 1


cdef inline int index_reserve(Index* index) noexcept nogil:
    """Make room for one more slot; -1, and no change, when memory is short."""
    cdef uint64_t cells = index.mask + 1
    cdef uint64_t* old = index.cells
    cdef uint64_t* new
    cdef uint64_t at
    if (index.used + 1) * 3 <= cells * 2:
        return 0
    new = <uint64_t*>PyMem_RawCalloc(<size_t>cells * 2, sizeof(uint64_t))
    if new == NULL:
        return -1
    index.cells = new
    index.mask = cells * 2 - 1
    index.used = 0
    for at in range(cells):
        if old[at] != 0:
            index_insert(index, <uint32_t>(old[at] >> 32), <uint32_t>(old[at] - 1))
    PyMem_RawFree(old)
    return 0


cdef inline uint64_t index_start(const Index* index, uint32_t tag) noexcept nogil:
    """Return the position at which to begin a search with `index_next`."""
    return tag & index.mask


cdef inline int64_t index_next(
    const Index* index, uint32_t tag, uint64_t* position
) noexcept nogil:
    """Return the next slot with the tag from `position` on, which moves behind it, or -1."""
    cdef uint64_t at = position[0]
    cdef uint64_t cell
    while True:
        cell = index.cells[at]
        at = (at + 1) & index.mask
        if cell == 0:
            return -1
        if <uint32_t>(cell >> 32) == tag:
            position[0] = at
            return <int64_t>(cell & 0xFFFFFFFFu) - 1


cdef inline void index_remove(Index* index, uint32_t tag, uint32_t slot) noexcept nogil:
    """Remove a slot that is there. Later cells of the run move back into the gap."""
    cdef uint64_t wanted = (<uint64_t>tag << 32) | (<uint64_t>slot + 1)
    cdef uint64_t at = tag & index.mask
    cdef uint64_t gap, home
    while index.cells[at] != wanted:
        at = (at + 1) & index.mask
    gap = at
    while True:
        at = (at + 1) & index.mask
        if index.cells[at] == 0:
            break
        home = (index.cells[at] >> 32) & index.mask
        if ((at - home) & index.mask) >= ((at - gap) & index.mask):
            index.cells[gap] = index.cells[at]
            gap = at
    index.cells[gap] = 0
    index.used -= 1


cdef inline void index_clear(Index* index) noexcept nogil:
    """Remove every slot."""
    memset(index.cells, 0, <size_t>(index.mask + 1) * sizeof(uint64_t))
    index.used = 0
