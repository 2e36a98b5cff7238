# cython: cdivision=True
"""What leaves a `Cache` for a dump and comes back from it, inline; _snapshot.py does the rest."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from beastcore._cache cimport HAS_TTL, Cache
from beastcore._hash cimport hash_key, mix_hash
from beastcore._policy cimport (
    COUNT_MASK,
    COUNT_SHIFT,
    FIRST_SLOT,
    MARK,
    PROBATION,
    PROTECTED,
    QUEUE_MASK,
    QUEUE_SHIFT,
    SHADOWS,
    Adaptive,
    adaptive_follow,
    policy_count,
    queue_move,
)
from beastcore._removed cimport EXPIRED, Batch

cdef enum:
    STATE_MARK = 1 << 2     # an entry's state in a dump: queue, mark, count
    STATE_COUNT = 3


cdef inline tuple cache_export(Cache self):
    """`_export` of a cache."""
    cdef list keys = [], values = [], scores = []
    cdef double* left = NULL
    cdef unsigned char* states = NULL
    cdef double now_s = 0.0
    cdef uint32_t s, i, tick = 0
    cdef size_t n = 0
    if self.n_ttl:
        tick = self.read_clock(&now_s)
    try:
        left = <double*>PyMem_Malloc((<size_t>self.size + 1) * sizeof(double))
        states = <unsigned char*>PyMem_Malloc(<size_t>self.size + 1)
        if left == NULL or states == NULL:
            raise MemoryError(f"no memory to dump {self.size} entries")
        # Appending to a list starts no collection, so nothing can change the cache here.
        s = self.walk(PROBATION)
        while s != 0:
            if self.cause_of(s, tick) != EXPIRED:
                keys.append(<object>self.slots[s].key)
                values.append(<object>self.slots[s].value)
                states[n] = 0
                if self.is_adaptive:
                    states[n] = policy_count(&self.policy_state, s) << STATE_COUNT
                    states[n] |= STATE_MARK if self.slots[s].flags & MARK else 0
                    states[n] |= (self.slots[s].flags & QUEUE_MASK) >> QUEUE_SHIFT
                left[n] = -1.0
                if self.slots[s].flags & HAS_TTL:
                    left[n] = self.seconds_left(s, now_s)
                n += 1
            s = self.walk(s)
        all_states = states[:n]
        all_left = (<char*>left)[:n * sizeof(double)]
    finally:
        PyMem_Free(left)
        PyMem_Free(states)
    policy = None
    if self.adaptive != NULL:
        for i in range(SHADOWS):
            scores.append((self.adaptive.shadows[i].share, self.adaptive.shadows[i].score))
        chosen = self.adaptive.shadows[self.adaptive.best].share
        policy = (chosen, self.adaptive.asked, tuple(scores))
    return keys, values, all_states, all_left, policy


cdef inline void place(Cache self, uint32_t s, uint32_t state, bint placed) noexcept:
    """Give what was just put into slot `s` its queue, mark and count."""
    if s == 0 or not self.is_adaptive:
        return
    if placed:
        queue_move(&self.policy_state, state & 3, s)
    self.slots[s].flags &= ~<uint32_t>(COUNT_MASK | MARK)
    self.slots[s].flags |= ((state >> STATE_COUNT) & 15) << COUNT_SHIFT
    self.slots[s].flags |= MARK if state & STATE_MARK else 0


cdef inline int recall(Cache self, tuple policy) except -1:
    """Take over what another policy of the same shadows had learnt (see `PolicyState`).

    No more of it than this one's own epochs would hold, lest it take long to learn better.
    """
    cdef double chosen = policy[0], asked = policy[1], share, score, scale = 1.0
    cdef Adaptive* a = self.adaptive
    cdef double most = 100.0 * <double>(a.epoch_length // a.sample_step)
    cdef uint32_t i, best = SHADOWS
    cdef tuple shadows = policy[2]
    if len(shadows) != SHADOWS:
        return 0
    for i in range(SHADOWS):
        share = shadows[i][0]
        if share != a.shadows[i].share:
            return 0
        if share == chosen:
            best = i
    if best == SHADOWS:
        return 0
    if asked > most:
        scale = most / asked
    for i in range(SHADOWS):
        score = shadows[i][1]
        a.shadows[i].score = score * scale
        a.shadows[i].hits = 0
    a.asked = asked * scale
    a.epoch = 0
    adaptive_follow(a, &self.policy_state, best)
    return 0


cdef inline Py_ssize_t cache_import(
    Cache self, list keys, list values, bytes states, bytes left, list weights, double passed,
    tuple policy, uint64_t expected
) except -1:
    """`_import` of a cache."""
    cdef Py_ssize_t i, n = len(keys)
    cdef Batch batch = Batch(NULL, 0, 0, False, 0.0, 0.0, False)
    cdef const unsigned char* state = states
    cdef const char* times = left
    cdef bint fresh, placed
    cdef double ttl
    cdef uint32_t mixed, weight, turn, s, count = 0
    if not (n == len(values) == len(states) and len(left) == n * sizeof(double)):
        raise ValueError("_import: the columns are of different lengths")
    if not 1 <= expected <= self.maxsize_:
        raise ValueError(f"_import: expected must be 1 to maxsize, got {expected}")
    for key in keys:
        hash_key(key)  # one that cannot be hashed leaves the cache as it was
    fresh = self.is_adaptive and self.adaptive == NULL and policy is not None
    if fresh:
        self.adapt(expected)
        recall(self, policy)
    # Without a share of the window all go there, in order; else each to its queue, the
    # window's last, which the others pass through.
    placed = self.adaptive != NULL
    try:
        for turn in range(FIRST_SLOT if placed else 1):
            for i in range(n):
                if placed and state[i] & 3 != PROTECTED - turn:
                    continue
                memcpy(&ttl, times + i * sizeof(double), sizeof(double))
                weight = 1 if weights is None else weights[i]
                if ttl >= 0.0:
                    ttl -= passed
                    if not ttl > 0.0:
                        continue
                if self.find_live(keys[i], True) != 0 or self.size >= self.maxsize_ or (
                    self.weigher is not None and self.weight_ + weight > self.max_weight_
                ):
                    continue
                mixed = mix_hash(hash_key(keys[i]), self.salt)
                s = self.put(keys[i], mixed, values[i], ttl > 0.0, ttl, weight, &batch)
                self.sets -= 1
                place(self, s, state[i], placed)
                count += 1
    finally:
        self.release(batch.gone, batch.n)
        PyMem_Free(batch.gone)
    if fresh and self.adaptive != NULL:
        recall(self, policy)  # the entries have filled the shadows, and aged the scores
    return count
