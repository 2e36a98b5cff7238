# cython: cdivision=True
"""The arena's records and the hash index over them, inline: how a `Cache` finds a key's slot.

The index is an array of 32-bit words, 0 = empty, in lines of 16: one line of a processor's cache.
From its low bits up, a word is

    a slot number | how many lines it is from its home | a tag: the low bits of the mixed hash

A key's home is a line. A word goes into its home or, where that is full, into the next line that is
not; the last place of a line is used last. So a probe ends at the first line whose last word is 0,
nearly always the home itself: it reads one line of memory, compares all tags in it at once and has
hardly a branch to guess, and a processor that guesses right waits for the memory of several lookups
at a time ("F14", Bronson and Shi, 2019, has such lines, with tags of a byte). A probe looks into a
slot only when the tag fits.

Within a line a word goes to the first free place from its pair on, which three bits of the hash
choose. While the index is roomy three in four are in their pair, or more, and a lookup tries that
first: where the line is in a processor's cache, comparing all of it takes longer than reading it.

A removal leaves a hole. Only out of a full line it fills that: with a word that probed past it,
from a later line, whose hole it fills in the same way (Knuth 6.4, algorithm R), or else with the
last word of the line. So there are no tombstones. The distance in the word tells, without a look
into the slots, which have not probed past; the largest that fits stands for "this or more", and
then, as in an index so large that the words have no bits to spare, the slot's hash is asked.

Home is hash * lines / 2**32 (Lemire, "Fast random integer generation in an interval", 2019), so
that the number of lines need not be a power of two. At most 3/5 of the words are in use, 6.7 bytes
a slot, where one line in 20 is full; 2/5 where all fit into a processor's cache, so that next to
none is.
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

cdef extern from *:
    """
    /* Which words of a line are `wanted` as far as `mask` goes: bit i for word i. Without SSE2 by
       the vectors of the compiler, for whatever instructions there are, or one by one. */
    #if (defined(__SSE2__) || defined(_M_X64)) && !defined(BEAST_NO_SSE2)
      #include <emmintrin.h>
      static inline __m128i beast_part(const uint32_t *line, int i, __m128i w, __m128i m) {
          __m128i part = _mm_load_si128((const __m128i *)line + i);
          return _mm_cmpeq_epi32(_mm_and_si128(part, m), w);
      }
      static inline uint32_t beast_words(const uint32_t *line, uint32_t wanted, uint32_t mask) {
          __m128i w = _mm_set1_epi32((int)wanted), m = _mm_set1_epi32((int)mask);
          __m128i low = _mm_packs_epi32(beast_part(line, 0, w, m), beast_part(line, 1, w, m));
          __m128i high = _mm_packs_epi32(beast_part(line, 2, w, m), beast_part(line, 3, w, m));
          return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high));
      }
    #elif (defined(__GNUC__) || defined(__clang__)) && !defined(BEAST_NO_VECTORS)
      typedef uint32_t beast_four __attribute__((vector_size(16), may_alias));
      static inline uint32_t beast_words(const uint32_t *line, uint32_t wanted, uint32_t mask) {
          const beast_four *parts = (const beast_four *)line, bits = {1, 2, 4, 8};
          beast_four w = {wanted, wanted, wanted, wanted}, m = {mask, mask, mask, mask};
          beast_four found = (beast_four)((parts[0] & m) == w) & bits;
          found |= (beast_four)((parts[1] & m) == w) & (bits << 4);
          found |= (beast_four)((parts[2] & m) == w) & (bits << 8);
          found |= (beast_four)((parts[3] & m) == w) & (bits << 12);
          return found[0] | found[1] | found[2] | found[3];
      }
    #else
      static inline uint32_t beast_words(const uint32_t *line, uint32_t wanted, uint32_t mask) {
          uint32_t found = 0;
          int i;
          for (i = 0; i < 16; i++) found |= (uint32_t)((line[i] & mask) == wanted) << i;
          return found;
      }
    #endif

    /* The number of the lowest bit that is set; there is one. */
    #if defined(__GNUC__) || defined(__clang__)
      #define beast_lowest(bits) ((uint32_t)__builtin_ctz(bits))
    #else
      static inline uint32_t beast_lowest(uint32_t bits) {
          uint32_t n = 0;
          while (!(bits >> n & 1)) n++;
          return n;
      }
    #endif
    """
    uint32_t line_words "beast_words"(const uint32_t* line, uint32_t wanted,
                                      uint32_t mask) noexcept nogil
    uint32_t lowest "beast_lowest"(uint32_t bits) noexcept nogil

cdef enum:
    LINE = 64           # bytes of a processor's cache line
    WORDS = 16          # of the index in it
    LAST = WORDS - 1
    EVERY = 0xFFFFFFFF  # bits of a word


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
    ROOMY = 1 << 16     # an index for fewer slots is emptier


cdef struct Slot:
    PyObject* key       # owned; NULL in a free slot
    PyObject* value     # owned
    # from here on the record is a `Meta` of the policy
    uint32_t hash       # mixed hash: its high bits are the home position, its low bits the tag
    uint32_t expiry     # tick from which on the entry is expired; meaningful with HAS_TTL
    uint32_t flags      # HAS_TTL, HAS_GC, and the policy's
    uint32_t weight     # 1 without a weigher


cdef struct Index:
    uint32_t* words     # begin with a cache line
    uint32_t lines
    uint32_t slot_mask  # the bits of a slot number
    uint32_t slot_bits
    uint32_t far        # the largest distance that a word can tell; 0: none
    uint32_t tag_shift
    uint32_t tag_mask   # the bits of a tag


cdef inline void index_shape(Index* x, uint32_t slots) noexcept nogil:
    """Set everything but the words for slot numbers below `slots`."""
    cdef uint64_t words = <uint64_t>slots * 5 // (2 if slots < ROOMY else 3)
    cdef uint32_t bits = 1, distance
    while (<uint64_t>1 << bits) < slots:
        bits += 1
    distance = 1 if bits <= 30 else 0
    x.lines = <uint32_t>(words // WORDS) + 1
    x.slot_bits = bits
    x.slot_mask = (<uint32_t>1 << bits) - 1
    x.far = (<uint32_t>1 << distance) - 1
    x.tag_shift = bits + distance
    x.tag_mask = <uint32_t>EVERY << x.tag_shift


cdef inline size_t index_bytes(Index* x) noexcept nogil:
    """Return the size of the words."""
    return <size_t>x.lines * LINE


cdef inline uint32_t index_home(Index* x, uint32_t hash) noexcept nogil:
    return <uint32_t>((<uint64_t>hash * x.lines) >> 32)


cdef inline uint32_t* index_line(Index* x, uint32_t line) noexcept nogil:
    return x.words + <size_t>line * WORDS


cdef inline uint32_t index_next(Index* x, uint32_t line) noexcept nogil:
    line += 1
    return 0 if line == x.lines else line


cdef inline bint index_is_roomy(Index* x) noexcept nogil:
    return x.slot_mask < ROOMY


cdef inline uint32_t index_fits(Index* x, uint32_t* line, uint32_t hash) noexcept nogil:
    """Return which words of a line have the tag of the hash; 0 is a tag, too, of empty words."""
    return line_words(line, hash << x.tag_shift, x.tag_mask)


cdef inline uint32_t index_pair(uint32_t hash) noexcept nogil:
    """Return the first place of the pair in which a word had best be."""
    return (hash & 7) * 2


cdef inline uint32_t index_guess(Index* x, uint32_t* line, uint32_t hash) noexcept nogil:
    """Return the slot of the word in the pair that has the tag of the hash; 0 if none has it."""
    cdef uint32_t* pair = line + index_pair(hash)
    cdef uint32_t first = pair[0], second = pair[1], tag = hash << x.tag_shift
    # Without a branch to guess between the two.
    cdef uint32_t chosen = -<uint32_t>((first ^ tag) >> x.tag_shift == 0)
    cdef uint32_t word = second ^ ((first ^ second) & chosen)
    return word & x.slot_mask if (word ^ tag) >> x.tag_shift == 0 else 0


cdef inline uint32_t index_word(Index* x, uint32_t hash, uint32_t distance,
                                uint32_t s) noexcept nogil:
    return (hash << x.tag_shift) | (min(distance, x.far) << x.slot_bits) | s


cdef inline void index_add(Index* x, uint32_t hash, uint32_t s) noexcept nogil:
    cdef uint32_t at = index_home(x, hash), distance = 0, free
    cdef uint32_t near = index_pair(hash)
    cdef uint32_t* line = index_line(x, at)
    while line[LAST] != 0:
        distance += 1
        at = index_next(x, at)
        line = index_line(x, at)
    free = line_words(line, 0, EVERY) & ~(<uint32_t>1 << LAST)
    if free == 0:
        near = LAST
    else:
        free |= free << WORDS  # round the line
        near = (near + lowest(free >> near)) & LAST
    line[near] = index_word(x, hash, distance, s)


cdef inline uint32_t index_distance(Index* x, Slot* slots, uint32_t word,
                                    uint32_t at) noexcept nogil:
    """Return how far a word of line `at` is from its home."""
    cdef uint32_t distance = (word >> x.slot_bits) & x.far, home
    if distance < x.far:
        return distance
    home = index_home(x, slots[word & x.slot_mask].hash)
    return at - home if at >= home else at + x.lines - home


cdef inline uint32_t* index_find(Index* x, uint32_t hash, uint32_t s, uint32_t* at) noexcept nogil:
    """Return the word of slot `s` and set its line; NULL if it is not there."""
    cdef uint32_t* line
    cdef uint32_t found
    at[0] = index_home(x, hash)
    while True:
        line = index_line(x, at[0])
        found = line_words(line, s, x.slot_mask)
        if found != 0:
            return line + lowest(found)
        if line[LAST] == 0:
            return NULL
        at[0] = index_next(x, at[0])


cdef inline uint32_t* index_past(Index* x, Slot* slots, uint32_t* at,
                                 uint32_t* distance) noexcept nogil:
    """Return a word that probed past the full line `at` and set its line; NULL if none did.

    The distance that is set is what the word's will be in the line where the search began.
    """
    cdef uint32_t* line
    cdef uint32_t gap = 0, i, away
    while True:
        at[0] = index_next(x, at[0])
        gap += 1
        line = index_line(x, at[0])
        for i in range(WORDS):
            if line[i] == 0:
                continue
            away = index_distance(x, slots, line[i], at[0])
            if away >= gap:
                distance[0] = away - gap
                return line + i
        if line[LAST] == 0:
            return NULL


cdef inline void index_drop(Index* x, Slot* slots, uint32_t s) noexcept nogil:
    """Remove the word of slot `s`, which is there."""
    cdef uint32_t at, end, distance = 0
    cdef uint32_t* hole = index_find(x, slots[s].hash, s, &at)
    cdef uint32_t* line = index_line(x, at)
    cdef uint32_t* past
    while line[LAST] != 0:
        end = at
        past = index_past(x, slots, &end, &distance)
        if past == NULL:
            hole[0] = line[LAST]
            line[LAST] = 0
            return
        hole[0] = past[0] & ~(x.far << x.slot_bits) | (min(distance, x.far) << x.slot_bits)
        hole = past
        at = end
        line = index_line(x, at)
    hole[0] = 0
