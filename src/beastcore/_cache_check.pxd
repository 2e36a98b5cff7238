# cython: cdivision=True
"""The check of a `Cache`'s invariants, inline; _cache.pyx lists them by number."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from beastcore._cache cimport HAS_GC, HAS_TTL, Cache
from beastcore._cache_collect cimport is_gc
from beastcore._policy cimport FIRST_SLOT, QUEUE_MASK, QUEUE_SHIFT, bulk
from beastcore._table cimport (
    WORDS,
    Slot,
    index_find,
    index_home,
    index_line,
    index_word,
)
from beastcore._wheel cimport COARSE, FILED, LISTS, OVERFLOW, TICK_BITS, Wheel, wheel_time


cdef inline int check_wheel(Cache self) except -1:
    """`_check` of invariant 7."""
    cdef Wheel* w = &self.wheel
    cdef uint32_t s, i, list_, before, filed = 0, seen = 0
    cdef int64_t latest
    cdef bint bit
    for s in range(FIRST_SLOT, self.high + 1):
        filed += self.slots[s].flags & FILED != 0
        if self.slots[s].key != NULL and self.slots[s].flags & HAS_TTL:
            assert self.slots[s].flags & FILED, f"7: slot {s} is not on the wheel"
    if w.links == NULL:
        assert filed == 0, "7: slots are filed without a wheel"
        return 0
    assert w.base == self.capacity + FIRST_SLOT, "7: the wheel has another size"
    for i in range(LISTS):
        before = list_ = w.base + i
        s = w.links[list_].next
        while s != list_:
            assert FIRST_SLOT <= s <= self.high, f"7: list {i} leads to {s}"
            assert self.slots[s].flags & FILED, f"7: slot {s} of list {i} is not FILED"
            assert w.links[s].prev == before, f"7: the link back from slot {s} is wrong"
            latest = max(w.position, <int64_t>(self.slots[s].expiry >> TICK_BITS))
            assert wheel_time(w, i) <= latest, f"7: slot {s} is on the later list {i}"
            seen += 1
            assert seen <= filed, "7: the lists are too long"
            before = s
            s = w.links[s].next
        assert w.links[list_].prev == before, f"7: list {i} is open"
        if i < COARSE:
            bit = (w.seconds[i >> 6] >> (i & 63)) & 1
        elif i < OVERFLOW:
            bit = (w.blocks >> (i - COARSE)) & 1
        assert i >= OVERFLOW or bit == (before != list_), f"7: the bit of list {i} is wrong"
    assert seen == filed == w.filed, f"7: {w.filed} filed, {seen} on lists, {filed} FILED"
    return 0


cdef inline int check_cache(Cache self) except -1:
    """Verify the invariants 1 to 7, which _cache.pyx lists; AssertionError names the broken one."""
    cdef uint32_t s, used = 0, freed = 0, seen = 0, before = 0, place, n_ttl = 0, n_gc = 0
    cdef uint32_t queue, where, far, word
    cdef uint64_t weight = 0, words = 0, total
    cdef uint32_t* found
    cdef Slot* slot
    for s in range(FIRST_SLOT, self.high + 1):
        slot = &self.slots[s]
        assert (slot.key == NULL) == (slot.value == NULL), f"6: slot {s} is half used"
        if slot.key == NULL:
            continue
        used += 1
        weight += slot.weight
        n_ttl += 1 if slot.flags & HAS_TTL else 0
        n_gc += 1 if slot.flags & HAS_GC else 0
        if self.weigher is None:
            assert slot.weight == 1, f"4: slot {s} weighs {slot.weight}"
        gc = is_gc(slot.key) or is_gc(slot.value)
        assert gc == bool(slot.flags & HAS_GC), f"5: slot {s} has a wrong HAS_GC"
        found = index_find(&self.index, slot.hash, s, &place)
        assert found != NULL, f"3: slot {s} cannot be found"
        far = place - index_home(&self.index, slot.hash)
        if place < index_home(&self.index, slot.hash):
            far += self.index.lines
        word = index_word(&self.index, slot.hash, far, s)
        assert found[0] == word, f"3: the word of slot {s} is wrong"
    for place in range(self.index.lines):
        found = index_line(&self.index, place)
        for where in range(WORDS):
            words += found[where] != 0
            if found[where] == 0:
                assert found[WORDS - 1] == 0, f"3: line {place} is not full"
    assert words == used, f"3: the index holds {words} words for {used} slots"
    s = self.free
    while s != 0:
        assert self.slots[s].key == NULL, f"1: free slot {s} is used"
        freed += 1
        assert freed <= self.high, "1: the free chain is circular"
        s = self.links[s].next
    assert used + freed == self.high - FIRST_SLOT + 1 <= self.capacity, "1: slots are lost"
    assert used == self.size <= self.maxsize_, f"1: size {self.size}, used {used}"
    for queue in range(FIRST_SLOT):
        total = 0
        before = queue
        s = self.links[queue].next
        while s >= FIRST_SLOT:
            slot = &self.slots[s]
            assert slot.key != NULL, f"2: free slot {s} is on queue {queue}"
            assert self.links[s].prev == before, f"2: the link back from slot {s} is wrong"
            where = (slot.flags & QUEUE_MASK) >> QUEUE_SHIFT
            assert where == queue, f"2: slot {s} of queue {queue} thinks it is on {where}"
            seen += 1
            assert seen <= used, "2: the queues are too long"
            total += bulk(slot.weight)
            before = s
            s = self.links[s].next
        assert s == queue and self.links[queue].prev == before, f"2: queue {queue} is open"
        assert total == self.policy_state.weight[queue], f"2: weight of queue {queue}"
    assert seen == used, "2: an entry is on no queue"
    assert weight == self.weight_, f"4: weight {self.weight_}, sum {weight}"
    if self.weigher is not None:
        assert self.weight_ <= self.max_weight_, "4: too heavy"
    assert n_ttl == self.n_ttl, f"5: n_ttl {self.n_ttl}, counted {n_ttl}"
    assert n_gc == self.n_gc, f"5: n_gc {self.n_gc}, counted {n_gc}"
    check_wheel(self)
    return 0
