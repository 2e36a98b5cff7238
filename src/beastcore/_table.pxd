# cython: cdivision=True
"""The arena's records and the hash index over them, inline: how a `Cache` finds a key's slot.

Open addressing with linear probing over 32-bit words, 0 = empty. From its low bits up, a word is

    a slot number | how far the word is from its home | a tag: the low bits of the mixed hash

A probe looks into a slot only when the tag fits. A removal shifts back the words behind it (Knuth
6.4, algorithm R), so there are no tombstones; the distance in the word tells it, without a look
into their slots, where they may go. The largest distance that fits stands for "this or more":
then, and in an index so large that the words have no bits to spare, the slot's hash is asked.

Home is hash * words / 2**32 (Lemire, "Fast random integer generation in an interval", 2019), so
that the number of words need not be a power of two. At most 3/5 are in use, 6.7 bytes a slot; 2/5
where all words fit into a processor's cache, and a wrong guess of where a probe ends is what costs.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
      /* Without the empty statement GCC takes a function that only fetches ahead for one that does
         nothing, and drops the calls of it. */
      #define beast_prefetch(address) do { __builtin_prefetch(address); __asm__ volatile(""); } \\
          while (0)
    #else
      #define beast_prefetch(address) ((void)(address))
    #endif
    """
    void prefetch "beast_prefetch"(const void* address) noexcept nogil

cdef enum:
    LINE = 64           # bytes of a processor's cache line


cdef inline void* lines_calloc(size_t n, size_t size) noexcept:
    """Return zeroed memory that begins with a cache line, or NULL.

    What malloc maps begins 16 bytes into one: every second slot would lie on two lines.
    """
    cdef size_t start, extra = LINE + sizeof(void*)
    cdef char* raw = NULL
    if n <= (~<size_t>0 - extra) // size:  # else more than there are addresses, of 32 bits
        raw = <char*>PyMem_Calloc(n * size + extra, 1)
    if raw == NULL:
        return NULL
    start = (<size_t>raw + sizeof(void*) + LINE - 1) // LINE * LINE
    (<char**>start)[-1] = raw
    return <void*>start


cdef inline void lines_free(void* memory) noexcept:
    """Release what `lines_calloc` returned."""
    if memory != NULL:
        PyMem_Free((<char**>memory)[-1])

cdef enum:
    ROOMY = 1 << 16     # smaller indexes are emptier


cdef struct Slot:
    PyObject* key       # owned; NULL in a free slot
    PyObject* value     # owned
    # from here on the record is a `Meta` of the policy
    uint32_t hash       # mixed hash: its high bits are the home position, its low bits the tag
    uint32_t expiry     # tick from which on the entry is expired; meaningful with HAS_TTL
    uint32_t flags      # HAS_TTL, HAS_GC, and the policy's
    uint32_t weight     # 1 without a weigher


cdef struct Index:
    uint32_t* words     # and one more, always 0
    uint32_t size       # number of words
    uint32_t slot_mask  # the bits of a slot number
    uint32_t slot_bits
    uint32_t far        # the largest distance that a word can tell; 0: none
    uint32_t tag_shift


cdef inline void index_shape(Index* x, uint32_t slots) noexcept nogil:
    """Set everything but the words for slot numbers below `slots`."""
    cdef uint64_t size = <uint64_t>slots * 5 // (2 if slots < ROOMY else 3) + 1
    cdef uint32_t bits = 1, spare, distance
    while (<uint64_t>1 << bits) < slots:
        bits += 1
    spare = 32 - bits
    distance = 3 if spare >= 6 else spare // 2
    x.size = <uint32_t>min(size, <uint64_t>0xFFFFFFFF)
    x.slot_bits = bits
    x.slot_mask = (<uint32_t>1 << bits) - 1
    x.far = (<uint32_t>1 << distance) - 1
    x.tag_shift = bits + distance


cdef inline uint32_t index_home(Index* x, uint32_t hash) noexcept nogil:
    return <uint32_t>((<uint64_t>hash * x.size) >> 32)


cdef inline bint index_fits(Index* x, uint32_t word, uint32_t hash) noexcept nogil:
    """Whether the tag of a word, which may be 0, is that of the hash."""
    return (word ^ (hash << x.tag_shift)) >> x.tag_shift == 0


cdef inline uint32_t index_guess(Index* x, uint32_t hash, uint32_t place) noexcept nogil:
    """Return the word at `place` if its tag fits, else the next one, without a branch to guess."""
    cdef uint32_t first = x.words[place], second = x.words[place + 1]
    cdef uint32_t chosen = -<uint32_t>index_fits(x, first, hash)
    return second ^ ((first ^ second) & chosen)


cdef inline uint32_t index_word(Index* x, uint32_t hash, uint32_t distance,
                                uint32_t s) noexcept nogil:
    return (hash << x.tag_shift) | (min(distance, x.far) << x.slot_bits) | s


cdef inline void index_add(Index* x, uint32_t hash, uint32_t s) noexcept nogil:
    cdef uint32_t place = index_home(x, hash), distance = 0
    while x.words[place] != 0:
        distance += 1
        place += 1
        if place == x.size:
            place = 0
    x.words[place] = index_word(x, hash, distance, s)


cdef inline uint32_t index_distance(Index* x, Slot* slots, uint32_t place) noexcept nogil:
    """Return how far the word at `place` is from its home."""
    cdef uint32_t word = x.words[place], home
    cdef uint32_t distance = (word >> x.slot_bits) & x.far
    if distance < x.far:
        return distance
    home = index_home(x, slots[word & x.slot_mask].hash)
    return place - home if place >= home else place + x.size - home


cdef inline uint32_t index_place(Index* x, uint32_t hash, uint32_t s) noexcept nogil:
    """Return where the word of slot `s` is, or the end of its probe if it is not there."""
    cdef uint32_t place = index_home(x, hash)
    while x.words[place] & x.slot_mask != s and x.words[place] != 0:
        place += 1
        if place == x.size:
            place = 0
    return place


cdef inline void index_drop(Index* x, Slot* slots, uint32_t s) noexcept nogil:
    """Remove the word of slot `s`, shifting back what probed past it."""
    cdef uint32_t hole = index_place(x, slots[s].hash, s)
    cdef uint32_t place = hole, gap = 0, distance, word
    while True:
        place += 1
        gap += 1
        if place == x.size:
            place = 0
        word = x.words[place]
        if word == 0:
            break
        distance = index_distance(x, slots, place)
        if distance >= gap:
            word &= ~(x.far << x.slot_bits)
            x.words[hole] = word | (min(distance - gap, x.far) << x.slot_bits)
            hole = place
            gap = 0
    x.words[hole] = 0
