# cython: cdivision=True
"""Eviction policies, inline: which entry leaves a full cache.

"lru" keeps everything in one queue, WINDOW, in order of use. A hit moves its entry to the newest
end only if as many others as the slack have gone there since the entry did: until then it can be
no further behind. The rest is "adaptive":

Lazy W-TinyLFU: entries live in three queues: a window FIFO for newcomers, a probation FIFO and a
protected CLOCK. A hit only marks its entry and counts up in the entry itself; queues move when
something enters or leaves. A newcomer that falls out of the window must have been used more often
than the main queues' next victim to take its place. How large the window is, and from which count
on more use no longer counts, follow from five shadow caches of sampled keys that try fixed rules:

    share of the window   counts are alike from   a tie
    0.01                  -                       loses     use counts most: loops, stable hot sets
    0.10                  3                       wins, if the newcomer was used before
    0.35                  -                       loses
    0.40                  2                       wins, if used before: whatever returned comes in
    1.00                                                    all is window: use of late alone

The rule that would have had the most hits of late serves the cache; another replaces it if it
leads by 2 %. Rules are compared eight times while as many requests come as the cache has entries
and older hits fade by 1 % each time: soon right after a start, steady later on.

Sources: TinyLFU (Einziger, Friedman, Manes, ACM ToS 2017) for admission by estimated frequency;
its adaptive window (Einziger et al., Middleware 2018), here by shadow caches instead of climbing;
CLOCK marks on the way to eviction after S3-FIFO (Yang et al., SOSP 2023), whose ghost queue, like
that of 2Q (Johnson, Shasha, VLDB 1994), lets in what returns: "counts are alike from 2" does so by
the sketch; choosing among rules by shadows after mini-simulations (Waldspurger et al., ATC 2017).

The functions work on any array of records that hold a `Meta`; nothing here allocates, fails or
runs Python code.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    WINDOW = 0              # queue numbers are also the numbers of the queues' sentinels
    PROBATION = 1
    PROTECTED = 2
    FIRST_SLOT = 3
    # Meta.flags
    QUEUE_SHIFT = 2
    QUEUE_MASK = 3 << 2
    MARK = 1 << 4
    COUNT_SHIFT = 5
    COUNT_MASK = 15 << 5
    COUNT_ONE = 1 << 5
    AGE_SHIFT = 9
    AGE_MASK = 255 << 9
    # of "lru", which has no counts: number of the entry's last move to the newest end
    STAMP_SHIFT = 5
    STAMP_MASK = (1 << 25) - 1
    MOST_SLACK = 1 << 24
    BY_SIZE = 0xFFFFFFFF
    # bounds of the work of one eviction
    WINDOW_TURNS = 64
    VICTIM_TURNS = 64
    DEMOTE_TURNS = 128
    MOVES = 16
    WARM = 6                # an estimate from which a rejected candidate may win by chance
    CHANCE = 128
    SHADOWS = 5
    SHADOW_MOST = 4095      # entries of one shadow of a large cache
    SHADOW_LEAST = 96
    SHADOW_SHIFT = 5        # of the keys of a large cache at most one in 32 is sampled
    AGING = 20              # counts are halved after so many requests for each entry
    DEFER = 10_000          # smaller caches feed their shadows from the start


cdef struct Link:
    uint32_t prev
    uint32_t next


cdef struct Meta:
    uint32_t hash
    uint32_t expiry
    uint32_t flags
    uint32_t weight


cdef struct Sketch:
    uint64_t* words         # 16 four-bit counters each; blocks of 8 words
    uint32_t block_mask
    uint32_t sweep          # next block to halve; block_mask + 1 when done
    uint64_t increments
    uint64_t limit
    uint32_t age            # number of halvings, modulo 256


cdef struct Policy:
    char* metas             # records of `stride` bytes that begin with a Meta
    size_t stride
    Link* links
    Sketch* sketch
    uint64_t weight[3]
    uint64_t limit
    uint64_t window_target
    uint64_t protected_target
    uint64_t random
    uint32_t slack          # of "lru"; BY_SIZE: an eighth of the entries held
    uint32_t moves          # to the newest end, of "lru"
    uint32_t alike          # counts from here on are alike, and ties win; 0: none are, ties lose
    bint counts             # whether entries carry their own counts (a shadow's do not)


cdef inline Meta* meta(Policy* p, uint32_t s) noexcept nogil:
    return <Meta*>(p.metas + s * p.stride)


cdef struct Shadow:
    Policy policy
    Meta* metas
    uint32_t* index         # open addressing over slots, by hash; 0 = empty
    uint32_t index_mask
    uint32_t size, capacity, high, free
    uint64_t hits           # of this epoch
    double score            # hits, of older epochs less
    double share            # of the window


cdef struct Adaptive:
    Sketch sketch           # of the cache
    Sketch shadow_sketch    # of all shadows together
    Shadow shadows[SHADOWS]
    uint32_t sample_mask    # a key is sampled if these bits of its second hash are zero
    uint32_t sample_step    # requests that a sampled one stands for
    uint64_t epoch, epoch_length
    double asked            # sampled requests that the scores are of
    uint32_t best


cdef inline size_t adaptive_head() noexcept nogil:
    """Return the bytes before the sketch, whose blocks are to be cache lines."""
    return (sizeof(Adaptive) + 63) // 64 * 64


cdef inline uint32_t bulk(uint32_t weight) noexcept nogil:
    """Return what an entry weighs for the policy: at least 1, for it takes a place."""
    return weight if weight != 0 else 1


# -- queues: circular, the sentinel's next is the newest, its prev the oldest ----------------------

cdef inline void queue_push(Policy* p, uint32_t queue, uint32_t s) noexcept nogil:
    cdef Meta* m = meta(p, s)
    cdef uint32_t newest = p.links[queue].next
    p.links[s].prev = queue
    p.links[s].next = newest
    p.links[newest].prev = s
    p.links[queue].next = s
    m.flags = (m.flags & ~<uint32_t>(QUEUE_MASK | MARK)) | (queue << QUEUE_SHIFT)
    p.weight[queue] += bulk(m.weight)


cdef inline void queue_drop(Policy* p, uint32_t s) noexcept nogil:
    cdef Meta* m = meta(p, s)
    cdef uint32_t before = p.links[s].prev, after = p.links[s].next
    p.links[before].next = after
    p.links[after].prev = before
    p.weight[(m.flags & QUEUE_MASK) >> QUEUE_SHIFT] -= bulk(m.weight)


cdef inline void queue_move(Policy* p, uint32_t queue, uint32_t s) noexcept nogil:
    queue_drop(p, s)
    queue_push(p, queue, s)


cdef inline void lru_stamp(Policy* p, uint32_t s) noexcept nogil:
    """Number the move of a slot to the newest end."""
    cdef Meta* m = meta(p, s)
    p.moves += 1
    m.flags &= ~<uint32_t>(STAMP_MASK << STAMP_SHIFT)
    m.flags |= (p.moves & STAMP_MASK) << STAMP_SHIFT


cdef inline uint32_t lru_slack(Policy* p, uint32_t size) noexcept nogil:
    """Return the slack in force in a cache that holds `size` entries."""
    return min(size >> 3, <uint32_t>MOST_SLACK) if p.slack == BY_SIZE else p.slack


cdef inline void lru_hit(Policy* p, uint32_t s, uint32_t size) noexcept nogil:
    """Make an entry the newest, if as many as the slack have become so since it did."""
    cdef uint32_t late = (p.moves - (meta(p, s).flags >> STAMP_SHIFT)) & STAMP_MASK
    # The last one moved is the newest, unless the numbers have been used up and begun anew.
    if late >= lru_slack(p, size) if late != 0 else p.links[WINDOW].next != s:
        queue_move(p, WINDOW, s)
        lru_stamp(p, s)


cdef inline uint32_t oldest(Policy* p, uint32_t queue) noexcept nogil:
    """Return the oldest slot of a queue; its sentinel, below FIRST_SLOT, if it is empty."""
    return p.links[queue].prev


# -- sketch ----------------------------------------------------------------------------------------

cdef inline uint64_t spread(uint32_t hash) noexcept nogil:
    cdef uint64_t x = <uint64_t>hash * <uint64_t>0x9E3779B97F4A7C15
    return x ^ (x >> 29)


cdef inline uint64_t* sketch_block(Sketch* k, uint64_t x) noexcept nogil:
    """Return the 64 bytes that hold the counters of a hash that has been spread to `x`."""
    return k.words + 8 * ((x >> 40) & k.block_mask)


cdef inline uint32_t sketch_estimate(Sketch* k, uint32_t hash) noexcept nogil:
    cdef uint64_t x = spread(hash)
    cdef uint64_t* block = sketch_block(k, x)
    cdef uint32_t least = 15, i, byte, c
    for i in range(4):
        byte = (x >> (8 * i)) & 31
        c = (block[2 * i + (byte & 1)] >> (4 * (byte >> 1))) & 15
        if c < least:
            least = c
    return least


cdef inline void sketch_halve_block(Sketch* k, uint32_t block) noexcept nogil:
    cdef uint64_t* words = k.words + 8 * <size_t>block
    cdef uint32_t i
    for i in range(8):
        words[i] = (words[i] >> 1) & <uint64_t>0x7777777777777777


cdef inline void sketch_tally(Sketch* k, uint64_t n) noexcept nogil:
    """Count effective increments; begin to halve when there were enough."""
    k.increments += n
    if k.increments >= k.limit:
        k.increments = k.limit // 2
        while k.sweep <= k.block_mask:  # the sweep before must be done first
            sketch_halve_block(k, k.sweep)
            k.sweep += 1
        k.sweep = 0
        k.age = (k.age + 1) & 255


cdef inline void sketch_add(Sketch* k, uint32_t hash, uint32_t n) noexcept nogil:
    cdef uint64_t x = spread(hash)
    cdef uint64_t* block = sketch_block(k, x)
    cdef uint32_t i, byte, shift, c
    cdef uint64_t* word
    for i in range(4):
        byte = (x >> (8 * i)) & 31
        word = block + 2 * i + (byte & 1)
        shift = 4 * (byte >> 1)
        c = (word[0] >> shift) & 15
        c = c + n if c + n < 15 else 15
        word[0] = (word[0] & ~(<uint64_t>15 << shift)) | (<uint64_t>c << shift)
    if k.sweep <= k.block_mask:
        sketch_halve_block(k, k.sweep)
        k.sweep += 1


# -- an entry's own count --------------------------------------------------------------------------

cdef inline uint32_t aged(uint32_t flags, uint32_t age) noexcept nogil:
    """Return `flags` with the count halved once for each halving since it was last looked at."""
    cdef uint32_t late = (age - (flags >> AGE_SHIFT)) & 255
    cdef uint32_t count
    if late == 0:
        return flags
    count = (flags & COUNT_MASK) >> COUNT_SHIFT
    count = count >> late if late < 5 else 0
    flags &= ~<uint32_t>(COUNT_MASK | AGE_MASK)
    return flags | (count << COUNT_SHIFT) | (age << AGE_SHIFT)


cdef inline uint32_t policy_count(Policy* p, uint32_t s) noexcept nogil:
    cdef Meta* m = meta(p, s)
    m.flags = aged(m.flags, p.sketch.age)
    return (m.flags & COUNT_MASK) >> COUNT_SHIFT


cdef inline bint policy_hit(Policy* p, uint32_t s) noexcept nogil:
    """Note a hit in the entry itself; tell whether its count went up."""
    cdef Meta* m = meta(p, s)
    cdef uint32_t flags = aged(m.flags, p.sketch.age) | MARK
    cdef bint rises = flags & COUNT_MASK != COUNT_MASK
    m.flags = flags + (<uint32_t>rises << COUNT_SHIFT)
    return rises


cdef inline uint32_t policy_estimate(Policy* p, uint32_t s) noexcept nogil:
    cdef uint32_t estimate = sketch_estimate(p.sketch, meta(p, s).hash)
    if p.counts:
        estimate += policy_count(p, s)
    return estimate if estimate < 15 else 15


cdef inline void policy_left(Policy* p, uint32_t s) noexcept nogil:
    """Remember in the sketch how often an entry that leaves was used."""
    sketch_add(p.sketch, meta(p, s).hash, policy_count(p, s))


# -- the policy ------------------------------------------------------------------------------------

cdef inline uint32_t policy_random(Policy* p) noexcept nogil:
    p.random ^= p.random << 13
    p.random ^= p.random >> 7
    p.random ^= p.random << 17
    return <uint32_t>(p.random >> 32)


cdef inline void policy_share(Policy* p, uint64_t window) noexcept nogil:
    if window < 1:
        window = 1
    if window > p.limit:
        window = p.limit
    p.window_target = window
    p.protected_target = (p.limit - window) * 4 // 5


cdef inline void policy_enter(Policy* p, uint32_t s) noexcept nogil:
    """Put a newcomer into the window; one too heavy for it is tested first (as in Caffeine)."""
    cdef Meta* m = meta(p, s)
    cdef uint32_t last
    m.flags &= ~<uint32_t>(COUNT_MASK | AGE_MASK)
    m.flags |= COUNT_ONE | (p.sketch.age << AGE_SHIFT)
    queue_push(p, WINDOW, s)
    if bulk(m.weight) > p.window_target and p.links[s].next != WINDOW:
        queue_drop(p, s)
        last = p.links[WINDOW].prev
        p.links[s].prev = last
        p.links[s].next = WINDOW
        p.links[last].next = s
        p.links[WINDOW].prev = s
        p.weight[WINDOW] += bulk(m.weight)


cdef inline uint32_t policy_window_oldest(Policy* p) noexcept nogil:
    """Return the oldest of the window, giving marked ones another turn; 0 if it is empty."""
    cdef uint32_t s, turns = 0
    while True:
        s = oldest(p, WINDOW)
        if s < FIRST_SLOT:
            return 0
        if not meta(p, s).flags & MARK or turns == WINDOW_TURNS:
            return s
        queue_move(p, WINDOW, s)
        turns += 1


cdef inline void policy_demote(Policy* p) noexcept nogil:
    """Bring protected back to its share: its oldest go to probation, marked ones around."""
    cdef uint32_t s, turns = 0
    while p.weight[PROTECTED] > p.protected_target:
        s = oldest(p, PROTECTED)
        if s < FIRST_SLOT:
            return
        if meta(p, s).flags & MARK and turns < DEMOTE_TURNS:
            queue_move(p, PROTECTED, s)
            turns += 1
        else:
            queue_move(p, PROBATION, s)


cdef inline uint32_t policy_main_victim(Policy* p) noexcept nogil:
    """Return the entry of probation that is next to leave, or 0; it stays where it is."""
    cdef uint32_t s, turns = 0
    while True:
        s = oldest(p, PROBATION)
        if s < FIRST_SLOT:
            s = oldest(p, PROTECTED)
            if s < FIRST_SLOT:
                return 0
            queue_move(p, PROBATION, s)
            return s
        if not meta(p, s).flags & MARK or turns == VICTIM_TURNS:
            return s
        queue_move(p, PROTECTED, s)
        policy_demote(p)
        turns += 1


cdef inline void policy_adjust(Policy* p) noexcept nogil:
    """Move some entries towards the present shares; nothing leaves.

    The window may be over its share by its newest entry, or by one too heavy for it. They have
    not been tested yet: in probation a heavy one would push out everything before it.
    """
    cdef uint32_t s, _i
    for _i in range(MOVES):
        if p.weight[PROTECTED] > p.protected_target:
            queue_move(p, PROBATION, oldest(p, PROTECTED))
        elif (
            p.weight[WINDOW] > p.window_target + bulk(meta(p, p.links[WINDOW].next).weight)
            and bulk(meta(p, oldest(p, WINDOW)).weight) <= p.window_target
        ):
            queue_move(p, PROBATION, oldest(p, WINDOW))
        elif p.weight[WINDOW] + 1 < p.window_target:
            s = policy_main_victim(p)
            if s == 0:
                return
            queue_move(p, WINDOW, s)
        else:
            return


cdef inline void policy_shrink(Policy* p) noexcept nogil:
    """Let some of what falls out of the window enter probation."""
    cdef uint32_t s, _i
    for _i in range(MOVES):
        if p.weight[WINDOW] <= p.window_target:
            return
        s = policy_window_oldest(p)
        if s == 0:
            return
        queue_move(p, PROBATION, s)


cdef inline void policy_overflow(Policy* p) noexcept nogil:
    """While the cache is not full, what falls out of the window enters probation."""
    if p.weight[WINDOW] > p.window_target:
        policy_shrink(p)


cdef inline uint32_t policy_evict(Policy* p) noexcept nogil:
    """Return who leaves a cache that is over its limit; it is still on its queue.

    A candidate that wins stays the window's oldest, and has to win against each further victim
    that it displaces; frequencies are compared per weight, so that one heavy newcomer does not
    push out many light entries.
    """
    cdef uint32_t candidate, victim, of_candidate, of_victim, alike = p.alike
    cdef uint64_t gain, loss
    policy_adjust(p)
    if p.weight[WINDOW] <= p.window_target:
        victim = policy_main_victim(p)
        return victim if victim != 0 else oldest(p, WINDOW)
    candidate = policy_window_oldest(p)
    victim = policy_main_victim(p)
    if victim == 0:
        return candidate
    of_candidate = policy_estimate(p, candidate)
    of_victim = policy_estimate(p, victim)
    gain = <uint64_t>(min(of_candidate, alike) if alike else of_candidate)
    loss = <uint64_t>(min(of_victim, alike) if alike else of_victim)
    gain *= bulk(meta(p, victim).weight)
    loss *= bulk(meta(p, candidate).weight)
    if gain > loss or (gain == loss and alike and of_candidate >= 2):
        return victim
    if of_candidate >= WARM and policy_random(p) % CHANCE == 0:
        return victim
    return candidate


# -- shadows: caches of sampled keys that try shares of the window ---------------------------------

cdef inline uint64_t sketch_words(uint64_t size) noexcept nogil:
    cdef uint64_t n = 256
    while n < size:
        n *= 2
    return n


cdef inline uint32_t shadow_shift(uint64_t size) noexcept nogil:
    """Return the power of two by which a shadow is smaller than a cache of `size` entries."""
    cdef uint32_t shift = SHADOW_SHIFT
    while size >> shift > SHADOW_MOST:
        shift += 1
    while shift > 0 and size >> shift < SHADOW_LEAST:
        shift -= 1
    return shift


cdef inline uint64_t shadow_index(uint64_t capacity) noexcept nogil:
    cdef uint64_t n = 8
    while n < 2 * capacity:
        n *= 2
    return n


cdef inline size_t adaptive_bytes(uint64_t size) noexcept nogil:
    """Return the memory for an `Adaptive` of a cache of `size` entries and all it points to."""
    cdef uint64_t capacity = max(<uint64_t>1, size >> shadow_shift(size))
    cdef size_t shadow = (capacity + 1 + FIRST_SLOT) * (sizeof(Meta) + sizeof(Link))
    shadow += shadow_index(capacity) * sizeof(uint32_t)
    return adaptive_head() + 8 * (sketch_words(size) + sketch_words(capacity)) + SHADOWS * shadow


cdef inline void sketch_start(Sketch* k, uint64_t* words, uint64_t size) noexcept nogil:
    k.words = words
    k.block_mask = <uint32_t>(sketch_words(size) // 8 - 1)
    k.sweep = k.block_mask + 1
    k.limit = AGING * max(<uint64_t>256, size)


cdef inline void adaptive_start(Adaptive* a, uint64_t size, uint64_t seed) noexcept nogil:
    """Lay out `a`, which lies at the start of `adaptive_bytes(size)` zeroed bytes (lines)."""
    cdef uint32_t shift = shadow_shift(size), i, queue
    cdef uint64_t capacity = max(<uint64_t>1, size >> shift)
    cdef char* room = <char*>a + adaptive_head()
    cdef Shadow* h
    cdef double[SHADOWS] shares
    shares[0] = 0.01
    shares[1] = 0.10
    shares[2] = 0.35
    shares[3] = 0.40
    shares[4] = 1.0
    sketch_start(&a.sketch, <uint64_t*>room, size)
    room += 8 * sketch_words(size)
    sketch_start(&a.shadow_sketch, <uint64_t*>room, capacity)
    room += 8 * sketch_words(capacity)
    for i in range(SHADOWS):
        h = &a.shadows[i]
        h.share = shares[i]
        h.capacity = <uint32_t>capacity
        h.high = FIRST_SLOT - 1
        h.metas = <Meta*>room
        room += (capacity + 1 + FIRST_SLOT) * sizeof(Meta)
        h.policy.links = <Link*>room
        room += (capacity + 1 + FIRST_SLOT) * sizeof(Link)
        h.index = <uint32_t*>room
        room += shadow_index(capacity) * sizeof(uint32_t)
        h.index_mask = <uint32_t>(shadow_index(capacity) - 1)
        for queue in range(FIRST_SLOT):
            h.policy.links[queue].prev = h.policy.links[queue].next = queue
        h.policy.metas = <char*>h.metas
        h.policy.stride = sizeof(Meta)
        h.policy.sketch = &a.shadow_sketch
        h.policy.limit = capacity
        h.policy.random = seed * 31 + i + 1
        h.policy.counts = False
        h.policy.alike = 3 if i == 1 else 2 if i == 3 else 0
        policy_share(&h.policy, <uint64_t>(h.share * <double>capacity))
    a.sample_mask = 0 if shift == 0 else ((<uint32_t>1 << shift) - 1) << (32 - shift)
    a.sample_step = <uint32_t>1 << shift
    a.epoch_length = max(<uint64_t>125, size // 8)


cdef inline void shadow_request(Shadow* h, uint32_t hash) noexcept nogil:
    """Play one request: a hit, or a miss followed by an insertion."""
    cdef uint32_t place = hash & h.index_mask, s, hole, home
    while True:
        s = h.index[place]
        if s == 0:
            break
        if h.metas[s].hash == hash:
            h.metas[s].flags |= MARK
            h.hits += 1
            return
        place = (place + 1) & h.index_mask
    if h.free != 0:
        s = h.free
        h.free = h.policy.links[s].next
    else:
        h.high += 1
        s = h.high
    h.index[place] = s
    h.metas[s].hash = hash
    h.metas[s].weight = 1
    h.metas[s].flags = 0
    queue_push(&h.policy, WINDOW, s)
    h.size += 1
    if h.size <= h.capacity:
        policy_overflow(&h.policy)
        return
    s = policy_evict(&h.policy)
    queue_drop(&h.policy, s)
    policy_overflow(&h.policy)
    place = h.metas[s].hash & h.index_mask
    while h.index[place] != s:
        place = (place + 1) & h.index_mask
    hole = place
    while True:
        place = (place + 1) & h.index_mask
        if h.index[place] == 0:
            break
        home = h.metas[h.index[place]].hash & h.index_mask
        if (place - home) & h.index_mask >= (place - hole) & h.index_mask:
            h.index[hole] = h.index[place]
            hole = place
    h.index[hole] = 0
    h.policy.links[s].next = h.free
    h.free = s
    h.size -= 1


cdef inline void adaptive_follow(Adaptive* a, Policy* p, uint32_t best) noexcept nogil:
    """Let the policy do as one of the shadows does."""
    a.best = best
    p.alike = a.shadows[best].policy.alike
    policy_share(p, <uint64_t>(a.shadows[best].share * <double>p.limit))


cdef inline bint is_sampled(uint32_t sample_mask, uint32_t hash) noexcept nogil:
    return (hash * <uint32_t>0x85EBCA6B) & sample_mask == 0


cdef inline void adaptive_request(Adaptive* a, Policy* p, uint32_t hash, bint rose) noexcept nogil:
    """Count a sampled request for all that it stands for; at the end of an epoch choose anew.

    `rose`: the request raised a count, which ages the counts.
    """
    cdef uint32_t i, best = 0
    cdef Shadow* h
    sketch_add(&a.shadow_sketch, hash, 1)
    sketch_tally(&a.shadow_sketch, 1)
    for i in range(SHADOWS):
        shadow_request(&a.shadows[i], hash)
    if rose:
        sketch_tally(&a.sketch, a.sample_step)
    a.epoch += a.sample_step
    if a.epoch < a.epoch_length:
        return
    a.asked = 0.99 * a.asked + <double>(a.epoch // a.sample_step)
    a.epoch = 0
    for i in range(SHADOWS):
        h = &a.shadows[i]
        h.score = 0.99 * h.score + <double>h.hits
        h.hits = 0
        if h.score > a.shadows[best].score:
            best = i
    if best != a.best and a.shadows[best].score > 1.02 * a.shadows[a.best].score:
        adaptive_follow(a, p, best)


cdef inline void adaptive_fit(Adaptive* a, Policy* p, uint64_t limit) noexcept nogil:
    """Follow the weight that a full cache holds, which its number of entries may bound."""
    if p.limit != limit:
        p.limit = limit
        policy_share(p, <uint64_t>(a.shadows[a.best].share * <double>limit))


cdef inline bint adaptive_ratios(Adaptive* a, double* shares, double* ratios) noexcept nogil:
    """Set each shadow's share of the window and hit ratio; False before the first request."""
    cdef double asked = a.asked + <double>(a.epoch // a.sample_step)
    cdef uint32_t i
    if asked == 0.0:
        return False
    for i in range(SHADOWS):
        shares[i] = a.shadows[i].share
        ratios[i] = (a.shadows[i].score + <double>a.shadows[i].hits) / asked
    return True
