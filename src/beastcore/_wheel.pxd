# cython: cdivision=True
"""A timing wheel over the slots of a `Cache`, inline: which entries' time has passed.

Hashed and hierarchical (Varghese and Lauck, "Hashed and hierarchical timing wheels", SOSP 1987):
512 lists of one second each, 64 of 512 seconds, and what is further away in an overflow list.
When the clock enters a block of 512 seconds, that block's list is dealt out to the seconds; when
it enters a new turn of 64 blocks, so is the overflow list, to both. There are two overflow lists,
of odd and of even turns: newly filed slots never join the one that is being dealt out. A bit for
each list lets the position leap over empty ones.

A timer belongs to a slot, not to an entry, and is lazy: a slot is on a list whose time is not
after its `expiry`. An entry that leaves takes nothing off the wheel; its slot stays FILED and
keeps its `expiry`. A later `expiry` for a slot that is filed is a write to the slot alone: when
its list's time has passed, the slot is looked at and, if it is not due, filed again. So a full
cache with one time to live touches the wheel once in that time for each slot.

All times are seconds here, an `expiry` is in ticks of 1/64 s. The position is the second whose
list is next: all before it are empty. It never runs back; what should have been filed before it
is filed at it. Nothing here allocates, fails or runs Python code.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from beastcore._policy cimport Link
from beastcore._table cimport Slot

cdef enum:
    FILED = 1 << 30         # Slot.flags: the slot is on the wheel
    TICK_BITS = 6           # ticks of a second
    BLOCK_BITS = 9          # seconds of a block
    TURN_BITS = 15          # seconds of a turn of all blocks
    SECONDS = 512           # lists of a second
    BLOCKS = 64
    COARSE = SECONDS        # the first list of a block
    OVERFLOW = COARSE + BLOCKS
    LISTS = OVERFLOW + 2
    SPAN_BITS = TURN_BITS + 1   # moving the origin of time by this much changes no list


cdef struct Wheel:
    Link* links             # of the slots, then of the lists' sentinels; NULL until there is a TTL
    uint32_t base           # the sentinel of the first list
    uint32_t filed          # slots on the wheel
    int64_t position
    bint behind             # lists before the clock are not empty: the last look ran out of steps
    uint64_t seconds[8]     # a bit for each list that is not empty
    uint64_t blocks


cdef inline void wheel_reset(Wheel* w) noexcept nogil:
    """Empty all lists, without a look at the slots."""
    cdef uint32_t i, list_
    for i in range(LISTS):
        list_ = w.base + i
        w.links[list_].prev = w.links[list_].next = list_
    for i in range(8):
        w.seconds[i] = 0
    w.blocks = 0
    w.filed = 0
    w.behind = False


cdef inline uint32_t wheel_place(Wheel* w, uint32_t expiry) noexcept nogil:
    """Return the number of the list for an expiry."""
    cdef int64_t second = expiry >> TICK_BITS
    if second < w.position:
        second = w.position
    if second - w.position < SECONDS:
        return <uint32_t>(second & (SECONDS - 1))
    if (second >> BLOCK_BITS) - (w.position >> BLOCK_BITS) < BLOCKS:
        return COARSE + <uint32_t>((second >> BLOCK_BITS) & (BLOCKS - 1))
    return OVERFLOW + <uint32_t>((w.position >> TURN_BITS) & 1)


cdef inline uint32_t wheel_file(Wheel* w, Slot* slots, uint32_t s) noexcept nogil:
    """File a slot, as the last of its list; return the list's number."""
    cdef uint32_t number = wheel_place(w, slots[s].expiry), list_ = w.base + number
    cdef uint32_t last = w.links[list_].prev
    w.links[s].prev = last
    w.links[s].next = list_
    w.links[last].next = s
    w.links[list_].prev = s
    if number < COARSE:
        w.seconds[number >> 6] |= <uint64_t>1 << (number & 63)
    elif number < OVERFLOW:
        w.blocks |= <uint64_t>1 << (number - COARSE)
    w.filed += 1
    slots[s].flags |= FILED
    return number


cdef inline void wheel_unfile(Wheel* w, Slot* slots, uint32_t s) noexcept nogil:
    cdef uint32_t before = w.links[s].prev, after = w.links[s].next, number
    w.links[before].next = after
    w.links[after].prev = before
    if before == after and before >= w.base:  # the list is empty now
        number = before - w.base
        if number < COARSE:
            w.seconds[number >> 6] &= ~(<uint64_t>1 << (number & 63))
        elif number < OVERFLOW:
            w.blocks &= ~(<uint64_t>1 << (number - COARSE))
    w.filed -= 1
    slots[s].flags &= ~<uint32_t>FILED


cdef inline void wheel_hold(Wheel* w, Slot* slots, uint32_t s, uint32_t expiry) noexcept nogil:
    """Set a slot's expiry and see that it is filed no later."""
    cdef bint filed = slots[s].flags & FILED != 0
    cdef bint sooner = expiry < slots[s].expiry
    slots[s].expiry = expiry
    if filed and sooner:
        wheel_unfile(w, slots, s)
        filed = False
    if not filed:
        wheel_file(w, slots, s)


cdef inline bint wheel_waits(Wheel* w, int64_t second) noexcept nogil:
    """Whether there may be a list before `second` to look at."""
    return w.links != NULL and (w.behind or second > w.position)


cdef inline uint32_t wheel_lowest(uint64_t bits) noexcept nogil:
    """Return the number of the lowest bit set; there is one."""
    cdef uint32_t n = 0
    while not bits & 1:
        bits >>= 1
        n += 1
    return n


cdef inline uint32_t wheel_second(Wheel* w, uint32_t first) noexcept nogil:
    """Return the first list of a second from `first` on that is not empty, SECONDS if none."""
    cdef uint32_t word = first >> 6
    cdef uint64_t bits = w.seconds[word] & (~<uint64_t>0 << (first & 63))
    while bits == 0:
        word += 1
        if word == 8:
            return SECONDS
        bits = w.seconds[word]
    return 64 * word + wheel_lowest(bits)


cdef inline int64_t wheel_block(Wheel* w) noexcept nogil:
    """Return the next block with anything to look at; with none, one past all."""
    cdef int64_t block = w.position >> BLOCK_BITS, turn
    cdef uint32_t here = <uint32_t>(block & (BLOCKS - 1)), list_
    cdef uint64_t bits
    if wheel_second(w, 0) < SECONDS:
        return block + 1
    # The lists of the blocks that follow, the next one first; that of this block is empty.
    bits = w.blocks >> here
    if here:
        bits |= w.blocks << (BLOCKS - here)
    turn = ((w.position >> TURN_BITS) + 1) * (<int64_t>1 << (TURN_BITS - BLOCK_BITS))
    list_ = w.base + OVERFLOW + <uint32_t>((w.position >> TURN_BITS) & 1)
    if w.links[list_].next == list_:
        turn = <int64_t>1 << 50
    return min(turn, block + wheel_lowest(bits)) if bits else turn


cdef inline uint32_t wheel_seek(Wheel* w, int64_t second) noexcept nogil:
    """Move on towards `second`, to a list that is to be emptied; return it, 0 at the end. O(1)."""
    cdef uint32_t list_, n
    cdef int64_t block
    while True:
        list_ = w.base + OVERFLOW + <uint32_t>(~(w.position >> TURN_BITS) & 1)
        if w.links[list_].next != list_:
            return list_
        block = w.position >> BLOCK_BITS
        list_ = w.base + COARSE + <uint32_t>(block & (BLOCKS - 1))
        if w.links[list_].next != list_:
            return list_
        if w.position >= second:
            break
        n = wheel_second(w, <uint32_t>(w.position & (SECONDS - 1)))
        if n < SECONDS:
            w.position = min(second, block * (<int64_t>1 << BLOCK_BITS) + n)
            if w.position == second:
                break
            return w.base + n
        block = wheel_block(w)
        w.position = min(second, block * (<int64_t>1 << BLOCK_BITS))
    w.behind = False
    return 0


cdef inline void wheel_rebase(Wheel* w, int64_t seconds) noexcept nogil:
    """Follow the origin of time, which moved by a multiple of 2**SPAN_BITS seconds."""
    cdef int64_t far = <int64_t>1 << 40
    w.position -= min(seconds, far)
    if w.position < -far:  # further behind than any timer: so many turns look the same
        w.position = (w.position & ((1 << SPAN_BITS) - 1)) - far


cdef inline void wheel_move(Wheel* w, Wheel* old, Slot* old_slots, Link* moved) noexcept nogil:
    """Take over the timers of used slots in their order; slot s is now moved[s].next."""
    cdef uint32_t i, s, n, list_, last
    wheel_reset(w)
    w.behind = old.behind
    for i in range(LISTS):
        list_ = w.base + i
        s = old.links[old.base + i].next
        while s != old.base + i:
            if old_slots[s].key != NULL:
                n = moved[s].next
                last = w.links[list_].prev
                w.links[n].prev = last
                w.links[n].next = list_
                w.links[last].next = n
                w.links[list_].prev = n
                w.filed += 1
            s = old.links[s].next
        if w.links[list_].next != list_:
            if i < COARSE:
                w.seconds[i >> 6] |= <uint64_t>1 << (i & 63)
            elif i < OVERFLOW:
                w.blocks |= <uint64_t>1 << (i - COARSE)


cdef inline int64_t wheel_time(Wheel* w, uint32_t number) noexcept nogil:
    """Return the second at which a list is looked at, as seen from the position."""
    cdef int64_t block = w.position >> BLOCK_BITS, turn = w.position >> TURN_BITS
    if number < COARSE:
        return w.position + ((<int64_t>number - w.position) & (SECONDS - 1))
    if number < OVERFLOW:
        block += (<int64_t>(number - COARSE) - block) & (BLOCKS - 1)
        return block * (<int64_t>1 << BLOCK_BITS)
    if number - OVERFLOW == <uint32_t>(turn & 1):
        return (turn + 1) * (<int64_t>1 << TURN_BITS)
    return w.position
