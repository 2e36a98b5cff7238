# cython: cdivision=True
"""Cache: a bounded mapping with times to live, on an arena of slots.

Data structure
    `slots`   an array of 32-byte slots: key, value, mixed hash, expiry, flags, weight. Slots
              FIRST_SLOT..high have been used; free ones are chained through `links.next`. There
              is one slot more than entries may be held, for the newcomer of a full cache.
    `index`   open addressing over lines of 16 words of 32 bits that hold a slot number, the
              distance from home and a tag of the mixed hash; described in _table.pxd.
    `links`   three circular queues through the sentinels 0 to 2 (WINDOW, PROBATION, PROTECTED):
              a sentinel's `next` is the newest slot, its `prev` the oldest. Which entry leaves is
              decided in _policy.pxd; "lru" uses the first queue alone, in order of use.
    Many keys at once go through it in blocks, as described in _bulk.pxd.
    Caches of up to SMALL entries grow their arrays by doubling; larger ones take all memory at
    once (the system supplies untouched pages lazily), so that no single `set` pays for a rehash.
    `wheel`   which entries' time has passed; made by the first time to live (_wheel.pxd). A write
              first takes up to WHEEL_STEPS steps on it and removes up to WHEEL_TAKES entries: so a
              full cache drops what has expired before it evicts.
    Layout after CacheLib (index, order and expiry are separate structures) and CPython's dict.

Invariants (`_check()` verifies them by number)
    1  size == slots in use == entries on the queues <= maxsize; free and used slots together are
       all up to high, and no more than capacity.
    2  The queues are circular and doubly linked over exactly the used slots, each of which knows
       its queue; the policy knows each queue's weight.
    3  Each used slot is found in the index from its home line on without passing a line that is
       not full, under its own number, distance and tag; the index holds no other words, and those
       of a line that is not full are not in its last place.
    4  weight_ is the sum of the weights, <= max_weight_; each weight <= max_weight_.
    5  n_ttl and n_gc count the slots with HAS_TTL and HAS_GC; HAS_GC is set if the type of the
       key or the value takes part in garbage collection.
    6  A used slot has a key and a value, a free one neither.
    7  The slots that are FILED, free ones included, are on the wheel's lists, once each; a list's
       time is not after the expiry of its slots or the wheel's position; slots with HAS_TTL are
       FILED; a list's bit tells whether it is empty.

Ownership
    A used slot owns one reference to its key and one to its value. An operation that removes
    moves both into a `Gone` array and releases them last, when the structure is consistent. The
    garbage collector sees the arena through two functions that are put into the type at import
    (_cache_collect.pxd), because Cython cannot know of the raw pointers.

Python code
    runs only where the structure is consistent: hashing, comparing, the weigher and the timer
    before anything changes; removal listeners and destructors afterwards. A comparison may change
    the cache: `version` counts structural changes and the probe starts again, RESTARTS times.

Threads
    The interpreter's lock protects everything; no method releases it.

Files
    This one holds the class, and what single keys and blocks of keys go through. Compiled with
    it, as inline functions over `Cache`, are _cache_arrays.pxd (the arrays made anew, emptied,
    given back), _cache_check.pxd, _cache_collect.pxd, _cache_doors.pxd (how `get` and `set` are
    called), _cache_dump.pxd and _cache_whole.pxd (what goes through all entries); _removed.pxd
    keeps the pairs that left until they are released.
"""

cimport cython
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport INFINITY, floor
from libc.stdint cimport int64_t, uint32_t, uint64_t

from beastcore._bulk cimport (
    BLOCK,
    Bulk,
    Room,
    bulk_end,
    bulk_fetch,
    bulk_find,
    bulk_hash,
    bulk_own,
    bulk_start,
    empty_answers,
    hide,
    items_of,
    keys_in_a_row,
    publish,
    put_answer,
    split_pairs,
)
from beastcore._cache_arrays cimport FIRST_CAPACITY, SMALL, cache_free, cache_rebuild
from beastcore._cache_check cimport check_cache
from beastcore._cache_collect cimport collect_arena, is_gc
from beastcore._cache_doors cimport open_doors
from beastcore._cache_dump cimport cache_export, cache_import
from beastcore._cache_whole cimport (
    ITEMS,
    KEYS,
    VALUES,
    cache_clear,
    cache_evict,
    cache_list,
    cache_popitem,
    cache_resize,
)
from beastcore._clock cimport COARSE_SLACK_NS, clock_coarse_ns
from beastcore._hash cimport ask_key, hash_key, mix_hash, same_key
from beastcore._policy cimport (
    BY_SIZE,
    DEFER,
    FIRST_SLOT,
    PROBATION,
    PROTECTED,
    QUEUE_MASK,
    QUEUE_SHIFT,
    SHADOWS,
    WINDOW,
    Adaptive,
    Link,
    adaptive_bytes,
    adaptive_fit,
    adaptive_ratios,
    adaptive_request,
    adaptive_start,
    bulk,
    is_sampled,
    oldest,
    policy_enter,
    policy_count,
    policy_estimate,
    policy_evict,
    policy_hit,
    policy_left,
    policy_overflow,
    policy_share,
    policy_window_oldest,
    lru_hit,
    lru_slack,
    lru_stamp,
    queue_drop,
    queue_push,
    sketch_block,
    spread,
)
from beastcore._removed cimport (
    EXPIRED,
    EXPLICIT,
    ON_STACK,
    REPLACED,
    SIZE,
    allocate_gone,
    batch_room,
)
from beastcore._wheel cimport (
    FILED,
    LISTS,
    SECONDS,
    SPAN_BITS,
    TICK_BITS,
    Wheel,
    wheel_file,
    wheel_hold,
    wheel_rebase,
    wheel_reset,
    wheel_seek,
    wheel_unfile,
    wheel_waits,
)
from beastcore._table cimport (
    LAST,
    ROOMY,
    Index,
    Slot,
    index_add,
    index_bytes,
    index_drop,
    index_fits,
    index_guess,
    index_home,
    index_is_roomy,
    index_line,
    index_next,
    lines_calloc,
    lines_free,
    lowest,
    prefetch,
)

from collections.abc import Mapping
from os import urandom
from types import GenericAlias

from beastcore._types import CacheStats, RemovalCause
from beastcore._validate import (
    MAX_TTL as _MAX_TTL,
    check_callable,
    check_count,
    check_policy,
    check_slack,
    check_time,
    check_ttl,
    check_weight,
    check_weight_pair,
)

cdef extern from *:
    """
    /* Call a removal listener; its failure, answered by 1, is not the caller's. */
    static int beast_tell(PyObject *listener, PyObject *key, PyObject *value, PyObject *cause) {
        PyObject *answer = NULL;
        int room = 0, i;
        /* A listener that comes back for ever is stopped while there is room for the report. */
        while (room < 4 && Py_EnterRecursiveCall(" in a removal listener") == 0) room++;
        for (i = 0; i < room; i++) Py_LeaveRecursiveCall();
        if (room == 4)
            answer = PyObject_CallFunctionObjArgs(listener, key, value, cause, NULL);
        if (answer == NULL) {
            PyErr_WriteUnraisable(listener);
            return 1;
        }
        Py_DECREF(answer);
        return 0;
    }
    """
    int tell "beast_tell"(object listener, PyObject* key, PyObject* value,
                          object cause) noexcept

cdef enum:
    RESTARTS = 64
    BATCH_RESTARTS = 4
    WHEEL_STEPS = 64        # timers looked at, at most, before a write
    WHEEL_TAKES = 16        # entries that it then removes, at most: to free them costs more
    SWEEP = 1024            # entries that `expire` removes before it tells the listener

cdef double TICKS = 64.0
cdef double LAG = 1.0 / 64.0 + <double>COARSE_SLACK_NS * 1e-9  # of the built-in clock, in seconds
cdef double LONGEST_TTL = _MAX_TTL
cdef int64_t REBASE_TICK = 0x80000000
cdef tuple CAUSES = (
    RemovalCause.EXPLICIT, RemovalCause.REPLACED, RemovalCause.EXPIRED, RemovalCause.SIZE
)


@cython.final
@cython.auto_pickle(False)
@cython.trashcan(True)
cdef class Cache:
    """A mapping of at most `maxsize` entries that forgets the least useful ones.

    maxsize     most entries held, 1 to 2**30.
    ttl         seconds until an entry expires, unless `set` says otherwise; None (or inf) never.
                Resolution 1/64 s; an entry never expires early, and at most 1/15 s late.
    policy      "adaptive" (the default) keeps what is used often or recently, whichever serves
                this cache better; it may let a newcomer leave at once, with cause SIZE, which
                `stats().rejections` counts. "lru" evicts the least recently used entry, within
                the slack. The algorithm of "adaptive" and its sources are described in
                _policy.pxd.
    slack       for "lru": an entry that is used again while fewer than so many others have
                become the newest since it did is not moved, so a hit costs no more than a look;
                the order of leaving is wrong by at most so many places. None: an eighth of
                the entries held. 0: the order is that of the last uses exactly.
    max_weight  most weight held in all, with `weigher(key, value)`, which returns an entry's
                weight as an int from 0 to 2**32 - 1. Both are given or neither.
    timer       a function that returns seconds as a float; by default a monotonic clock.
    on_removal  called as `on_removal(key, value, cause)`, cause a `RemovalCause`, after each
                operation that removed entries; it may use the cache. An exception that it raises
                goes to `sys.unraisablehook`, and `stats().listener_errors` counts it.

    `get`, `c[k]`, `get_many` and `setdefault` count a hit or a miss; these and writes are uses of
    an entry, which the policy notes. An expired entry is absent everywhere, but `len()` may still
    count it until an operation meets it, or a write sweeps it: each looks first at up to 64
    entries whose second is over, so that a full cache drops what has expired before it evicts.
    All single-key operations are O(1). Iteration is over a live view of the keys in no particular
    order and raises RuntimeError when entries come or go; `keys()`, `values()` and `items()` are
    lists, the next to leave first: exactly so for "lru", roughly for "adaptive".

    Raises TypeError or ValueError, naming the argument, for what is not allowed; and whatever
    `__hash__`, `__eq__`, the weigher or the timer raise, before anything has changed.
    """

    # All of the construction is in __cinit__: no half-made cache can be had from __new__.
    def __cinit__(self, maxsize, ttl=None, *, policy="adaptive", slack=None, max_weight=None,
                  weigher=None, timer=None, on_removal=None):
        self.slots = NULL
        self.links = NULL
        self.index.words = NULL
        self.adaptive = self.spare = NULL
        self.sample_mask = 0xFFFFFFFF
        self.wheel.links = NULL
        # User code runs from the first check on and may find the cache through
        # `gc.get_objects()`: it is a cache of one entry until all is known.
        self.salt = int.from_bytes(urandom(8), "little")
        self.base_ns = clock_coarse_ns()
        self.maxsize_ = 1
        self.policy_state.stride = sizeof(Slot)
        self.policy_state.sketch = &self.cold
        self.policy_state.counts = True
        self.policy_state.random = self.salt | 1
        self.policy_state.limit = self.policy_state.window_target = 1
        cache_rebuild(self, FIRST_CAPACITY)
        cdef uint32_t most = check_count("maxsize", maxsize)
        cdef object seconds = check_ttl(ttl)
        cdef str name = check_policy(policy)
        cdef object laziness = check_slack(slack, name)
        cdef object heaviest = check_weight_pair(max_weight, weigher)
        check_callable("timer", timer)
        check_callable("on_removal", on_removal)
        cdef double base = 0.0 if timer is None else seconds_of(timer())
        if most > SMALL or most < FIRST_CAPACITY:
            cache_rebuild(self, most + 1)
        self.maxsize_ = most
        self.is_adaptive = name == "adaptive"
        if self.is_adaptive and most >= DEFER and weigher is None:
            self.adaptive_room = adaptive_bytes(most)
            self.spare = <Adaptive*>lines_calloc(1, self.adaptive_room)
            if self.spare == NULL:
                raise MemoryError(f"no memory for the adaptive policy of {most} entries")
        self.policy_state.limit = most if heaviest is None else heaviest
        self.policy_state.window_target = self.policy_state.limit
        self.policy_state.slack = BY_SIZE if laziness is None else laziness
        self.has_default_ttl = seconds is not None
        self.default_ttl = seconds if self.has_default_ttl else 0.0
        self.default_span = self.span_of(self.default_ttl)
        self.policy_ = name
        self.weigher = weigher
        self.max_weight_ = heaviest if weigher is not None else 0
        self.timer_ = timer
        self.base_s = base
        self.on_removal = on_removal
        self.is_plain = timer is None and weigher is None and on_removal is None

    def __dealloc__(self):
        cache_free(self)

    # -- clock ---------------------------------------------------------------------------------

    cdef uint32_t read_clock(self, double* now_s) except 0xFFFFFFFF:
        """Return the ticks since creation and set them, in seconds. May call the timer.

        By the built-in clock the seconds are those of the tick's begin.
        """
        cdef double now
        if self.timer_ is None:
            now_s[0] = <double>self.plain_tick() / TICKS
            return self.tick
        now = seconds_of(self.timer_()) - self.base_s
        if not now > 0.0:
            now = 0.0
        if now * TICKS >= <double>REBASE_TICK:
            self.rebase(now, &now)
        now_s[0] = now
        return <uint32_t>(now * TICKS)

    cdef void next_tick(self, int64_t ns) noexcept:
        """Find the tick of the built-in clock that `ns` is in, and how long it lasts."""
        cdef double now = <double>(ns - self.base_ns) * 1e-9 - self.base_s
        if now * TICKS >= <double>REBASE_TICK:
            self.rebase(now, &now)
        self.tick = <uint32_t>(now * TICKS) if now > 0.0 else 0
        self.tick_begin = ns
        # A microsecond for rounding: a tick may end late, never early.
        self.tick_end = ns + 1000 + <int64_t>((<double>(self.tick + 1) / TICKS - now) * 1e9)

    cdef void rebase(self, double now_s, double* shifted) noexcept:
        """Move the origin of time near to now, so that ticks fit 32 bits; O(slots), once a year.

        By a multiple of the wheel's span, so that its lists stay as they are; one span of the
        past remains, for clocks that run back a little.
        """
        cdef double span = <double>(1 << SPAN_BITS), whole = (floor(now_s / span) - 1.0) * span
        cdef double ticks = whole * TICKS
        cdef uint32_t s
        for s in range(FIRST_SLOT, self.high + 1):
            if self.slots[s].flags & (HAS_TTL | FILED):
                if <double>self.slots[s].expiry > ticks:
                    self.slots[s].expiry -= <uint32_t>ticks
                else:
                    self.slots[s].expiry = 0
        wheel_rebase(&self.wheel, <int64_t>min(whole, 1e18))
        self.base_s += whole
        shifted[0] = now_s - whole

    cdef inline uint32_t plain_tick(self) noexcept:
        """Return the tick by the built-in clock."""
        cdef int64_t ns = clock_coarse_ns()
        if not self.tick_begin <= ns < self.tick_end:
            self.next_tick(ns)
        return self.tick

    cdef inline uint32_t span_of(self, double ttl) noexcept:
        """Return after how many ticks an entry expires that is stored now, by the built-in clock.

        The tick may be nearly over, and the clock behind.
        """
        return ticks_of(ttl + LAG)

    cdef int deadline(self, double now_s, double ttl, uint32_t* tick) except -1:
        """Set the first tick at which an entry stored now with `ttl` is expired."""
        if self.timer_ is None:
            tick[0] = <uint32_t>(now_s * TICKS) + self.span_of(ttl)
        else:
            tick[0] = ticks_of(now_s + ttl)
        return 0

    cdef int parse_ttl(self, object ttl, double* seconds) except -1:
        """Set `seconds` and return 1, or return 0 for an entry that never expires."""
        cdef double given
        if ttl is ...:  # the argument was left out
            seconds[0] = self.default_ttl
            return self.has_default_ttl
        if ttl is None:
            return 0
        if PyFloat_CheckExact(ttl):
            given = PyFloat_AS_DOUBLE(ttl)
            if 0.0 < given <= LONGEST_TTL:
                seconds[0] = given
                return 1
        ttl = check_ttl(ttl)
        if ttl is None:
            return 0
        seconds[0] = ttl
        return 1

    # -- finding -------------------------------------------------------------------------------

    cdef inline uint32_t find(self, object key, uint32_t mixed) except 0xFFFFFFFF:
        """Return the slot of `key`, expired or not, or 0. No Python code runs after the answer."""
        cdef Index* x = &self.index
        cdef uint32_t* line = index_line(x, index_home(x, mixed))
        cdef uint32_t fits, s
        if index_is_roomy(x):
            s = index_guess(x, line, mixed)
            if s != 0 and self.slots[s].key == <PyObject*>key:  # mostly it is this very object
                return s
        fits = index_fits(x, line, mixed)
        if fits == 0:
            if line[LAST] == 0:
                return 0
        else:
            s = line[lowest(fits)] & x.slot_mask
            if self.slots[s].key == <PyObject*>key:
                return s
        return self.probe(key, mixed)

    cdef uint32_t probe(self, object key, uint32_t mixed) except 0xFFFFFFFF:
        """`find` where the first look has not told."""
        cdef Index* x = &self.index
        cdef uint32_t at = index_home(x, mixed), fits, s
        cdef uint32_t* line
        cdef uint64_t version
        cdef PyObject* held
        cdef int same
        while True:
            line = index_line(x, at)
            fits = index_fits(x, line, mixed)
            while fits != 0:
                s = line[lowest(fits)] & x.slot_mask
                fits &= fits - 1
                held = self.slots[s].key
                if held == <PyObject*>key:
                    return s
                if self.slots[s].hash == mixed and s != 0:
                    same = same_key(held, <PyObject*>key)
                    if same == 1:
                        return s
                    if same == 2:
                        version = self.version
                        same = ask_key(held, key)
                        if self.version != version and not self.holds_at(s, held):
                            same = 2
                        Py_XDECREF(held)
                        if same == 1:
                            return s
                        if self.version != version:
                            return self.find_again(key, mixed)
            if line[LAST] == 0:
                return 0
            at = index_next(x, at)

    cdef uint32_t find_again(self, object key, uint32_t mixed) except 0xFFFFFFFF:
        """`find` once a comparison, or another thread during it, has changed the cache.

        Starts over after each further change. Keys known to differ are not compared again, so
        that busy threads cannot keep this from an end; a key that renews itself can.
        """
        cdef list different = []
        cdef object candidate
        cdef Index* x = &self.index
        cdef uint32_t at, fits, s
        cdef uint32_t* line
        cdef uint64_t version
        cdef int same = 0
        for _ in range(RESTARTS):
            at = index_home(x, mixed)
            line = index_line(x, at)
            fits = index_fits(x, line, mixed)
            while True:
                if fits == 0:
                    s = same = 0
                    if line[LAST] == 0:
                        break
                    at = index_next(x, at)
                    line = index_line(x, at)
                    fits = index_fits(x, line, mixed)
                    continue
                s = line[lowest(fits)] & x.slot_mask
                fits &= fits - 1
                if self.slots[s].hash == mixed and s != 0:
                    if self.slots[s].key == <PyObject*>key:
                        same = 1
                        break
                    same = same_key(self.slots[s].key, <PyObject*>key)
                    if same == 1:
                        break
                    candidate = <object>self.slots[s].key
                    if same == 2 and not holds(different, candidate):
                        version = self.version
                        same = self.ask(s, key)
                        if same != 0:
                            break
                        different.append(candidate)
                        if self.version != version:
                            same = 2
                            break
            candidate = None
            if same != 2:
                # Forgetting keys may run their destructors.
                version = self.version
                different.clear()
                if self.version == version:
                    return s
        raise RuntimeError("cache changed during key comparison")

    cdef int ask(self, uint32_t s, object key) except -1:
        """Compare the key in slot `s` by Python: 1 equal, 0 different, 2 no longer there.

        Other threads may change the rest meanwhile; an equal key that is still in its slot has
        been found all the same, as in dict.
        """
        cdef PyObject* held = self.slots[s].key
        cdef int same = ask_key(held, key)
        if not self.holds_at(s, held):
            same = 2
        Py_XDECREF(held)
        return same

    cdef inline bint holds_at(self, uint32_t s, PyObject* key) noexcept:
        """Tell whether `key` itself is in slot `s`; the arena may have been exchanged."""
        return s <= self.high and self.slots[s].key == key

    cdef uint32_t find_timed(self, object key, double* now_s, uint32_t* tick) except 0xFFFFFFFF:
        """Return the slot of `key`, expired or not, or 0, and the time if the entry has a TTL."""
        cdef uint32_t mixed = mix_hash(hash_key(key), self.salt)
        return self.time_of(self.find(key, mixed), key, mixed, now_s, tick)

    cdef uint32_t time_of(self, uint32_t s, object key, uint32_t mixed, double* now_s,
                          uint32_t* tick) except 0xFFFFFFFF:
        """Set the time if the entry in slot `s`, just found, has a TTL; return its slot."""
        cdef uint64_t version
        cdef double origin
        tick[0] = 0
        if s == 0 or not self.slots[s].flags & HAS_TTL:
            return s
        while True:
            version = self.version
            tick[0] = self.read_clock(now_s)
            if self.version == version:
                return s
            # The timer changed the cache: find again, and start over if comparing did so too.
            origin = self.base_s
            s = self.find(key, mixed)
            if self.base_s == origin:
                return s

    cdef uint32_t find_live(self, object key, bint drop) except 0xFFFFFFFF:
        """Return the slot of a live entry or 0; with `drop`, remove an expired one."""
        cdef double now_s
        cdef uint32_t tick
        cdef uint32_t s = self.find_timed(key, &now_s, &tick)
        if s == 0 or self.cause_of(s, tick) == SIZE:
            return s
        if drop:
            self.drop(s, EXPIRED)
        return 0

    cdef uint32_t find_at(self, object key, uint32_t mixed, bint timed, double* now_s,
                          uint32_t* tick, Batch* batch) except 0xFFFFFFFF:
        """Return the slot of `key`, expired or not, or 0, and the time, read if it can matter.

        A `batch` reads the time once, for its first key that needs it.
        """
        cdef uint32_t s
        cdef double origin
        while True:
            origin = self.base_s
            if timed or self.n_ttl:
                if batch == NULL:
                    tick[0] = self.read_clock(now_s)
                else:
                    if not batch.timed or batch.origin != origin:
                        self.read_clock(&batch.now_s)
                        batch.timed = True
                        batch.origin = self.base_s
                    now_s[0] = batch.now_s
                    tick[0] = <uint32_t>(batch.now_s * TICKS)
                origin = self.base_s
            s = self.find(key, mixed)
            if self.base_s == origin:  # else comparing moved the origin of time
                return s

    cdef inline uint32_t hit_or_miss(self, object key) except 0xFFFFFFFF:
        """Return the slot of a live entry, promoted and counted, or 0."""
        cdef uint32_t mixed = mix_hash(hash_key(key), self.salt)
        cdef uint32_t s = self.find(key, mixed)
        cdef int64_t ns
        if s == 0:
            self.misses += 1
            return 0
        if self.slots[s].flags & HAS_TTL:
            ns = 0 if self.timer_ is not None else clock_coarse_ns()
            if not (self.tick_begin <= ns < self.tick_end and self.tick < self.slots[s].expiry):
                return self.hit_if_live(s, key, mixed)
        self.hits += 1
        self.promote(s)
        return s

    cdef uint32_t hit_if_live(self, uint32_t s, object key, uint32_t mixed) except 0xFFFFFFFF:
        """Go on with `hit_or_miss` where the tick must be found first, or has come."""
        cdef double now_s
        cdef uint32_t tick
        s = self.time_of(s, key, mixed, &now_s, &tick)
        if s != 0 and self.cause_of(s, tick) == SIZE:
            self.hits += 1
            self.promote(s)
            return s
        self.misses += 1
        if s != 0:
            self.drop(s, EXPIRED)
        return 0

    cdef bint find_many(self, Bulk* b, uint32_t* tick) except -1:
        """Find all keys of `b` in one state of the cache, expired or not, and read the time.

        False if the cache kept changing. No Python code runs after the answer.
        """
        cdef Py_ssize_t i = bulk_hash(b, 0, self.salt)
        cdef bint timed = False
        cdef uint64_t version
        cdef double now_s, origin
        while i < b.n:
            bulk_own(b)
            b.mixed[i] = mix_hash(hash_key(<object>b.keys[i]), self.salt)
            i = bulk_hash(b, i + 1, self.salt)
        tick[0] = 0
        for _ in range(BATCH_RESTARTS):
            if self.n_ttl and b.n and not timed:
                if self.timer_ is not None:
                    bulk_own(b)
                tick[0] = self.read_clock(&now_s)
                timed = True
            version = self.version
            origin = self.base_s
            i = bulk_find(b, 0, &self.index, self.slots)
            while i < b.n:
                bulk_own(b)
                b.slots[i] = self.find(<object>b.keys[i], b.mixed[i])
                i = bulk_find(b, i + 1, &self.index, self.slots)
            if self.base_s != origin:
                timed = False
            elif self.version == version and (timed or not self.n_ttl):
                return True
        return False

    # -- the structures: nothing below runs Python code ----------------------------------------

    cdef inline void promote(self, uint32_t s) noexcept:
        """Note a hit: a write to the slot alone, but for one sampled key among many."""
        cdef bint rose
        if not self.is_adaptive:
            lru_hit(&self.policy_state, s, self.size)
            return
        rose = policy_hit(&self.policy_state, s)
        if is_sampled(self.sample_mask, self.slots[s].hash):
            self.sample(self.slots[s].hash, rose)

    cdef void sample(self, uint32_t mixed, bint rose) noexcept:
        """Show a request of a sampled key to the shadows."""
        if self.adaptive != NULL:
            adaptive_request(self.adaptive, &self.policy_state, mixed, rose)

    cdef uint32_t walk(self, uint32_t s) noexcept:
        """Return the slot after `s` in the order of leaving, 0 after the last; starts at PROBATION.

        Exact for "lru", roughly so for "adaptive".
        """
        s = self.links[s].prev
        while s < FIRST_SLOT:
            if s == PROTECTED:
                return 0
            s = self.links[WINDOW if s == PROBATION else PROTECTED].prev
        return s

    cdef inline bint has_room(self) noexcept:
        """Whether there is a slot for one more."""
        return self.free != 0 or self.high < self.capacity + FIRST_SLOT - 1

    cdef bint is_over(self) noexcept:
        """Whether something must leave."""
        return self.size > self.maxsize_ or (
            self.weigher is not None and self.weight_ > self.max_weight_
        )

    cdef uint32_t next_out(self) noexcept:
        """Return the slot that must leave next."""
        if self.adaptive != NULL:
            return policy_evict(&self.policy_state)
        if self.is_adaptive:  # all are in the window still
            return policy_window_oldest(&self.policy_state)
        return oldest(&self.policy_state, WINDOW)

    cdef inline bint lacks_adaptive(self) noexcept:
        """Whether the policy has not begun to adapt, and may have to."""
        return self.adaptive == NULL and self.is_adaptive

    cdef int adapt(self, uint64_t entries) except -1:
        """Begin to adapt, to a cache of about so many entries, or begin anew after a resize."""
        cdef size_t room = adaptive_bytes(entries)
        cdef Adaptive* fresh = self.spare if self.adaptive_room == room else NULL
        if fresh != NULL:
            self.spare = NULL
        else:
            fresh = <Adaptive*>lines_calloc(1, room)
        if fresh == NULL:
            raise MemoryError(f"no memory for the adaptive policy of {entries} entries")
        adaptive_start(fresh, entries, self.salt)
        fresh.sketch.age = self.policy_state.sketch.age  # the entries' counts go on
        lines_free(self.adaptive)
        lines_free(self.spare)
        self.spare = NULL
        self.adaptive = fresh
        self.sample_mask = fresh.sample_mask
        self.adaptive_room = room
        self.policy_state.sketch = &fresh.sketch
        self.policy_state.alike = 0
        policy_share(&self.policy_state, self.policy_state.limit // 100)
        return 0

    cdef int start_wheel(self, uint32_t tick) except -1:
        """Make the wheel, for the first time to live."""
        cdef uint32_t base = self.capacity + FIRST_SLOT
        cdef Link* links = <Link*>PyMem_Malloc((<size_t>base + LISTS) * sizeof(Link))
        if links == NULL:
            raise MemoryError(f"no memory for the times to live of {self.capacity} entries")
        self.wheel.links = links
        self.wheel.base = base
        self.wheel.position = tick >> TICK_BITS
        wheel_reset(&self.wheel)
        return 0

    cdef Py_ssize_t fire(self, uint32_t tick, uint64_t* steps, Py_ssize_t most, bint whole,
                         Gone* gone) noexcept:
        """Remove what has expired by `tick`, at most `most` entries; return how many.

        Looks at no more than `steps` slots, and counts them off; entries of the second that is
        not over yet are looked at if `whole`.
        """
        cdef Wheel* w = &self.wheel
        cdef uint32_t list_, s, after, number, again = 0
        cdef Py_ssize_t n = 0
        w.behind = True  # unless the end is met
        while n < most and steps[0] > 0:
            list_ = wheel_seek(w, tick >> TICK_BITS)
            if list_ == 0:
                list_ = w.base + <uint32_t>(w.position & (SECONDS - 1))
                s = w.links[list_].next
                if not whole or s == list_ or s == again:
                    break
            else:
                s = w.links[list_].next
            after = w.links[s].next
            if after < w.base:  # fetched itself a turn ago
                self.foresee_entry(after)
                prefetch(&self.links[self.links[after].prev])
                prefetch(&self.links[self.links[after].next])
                after = w.links[after].next
                prefetch(&w.links[after])
                if after < w.base:
                    self.foresee_slot(after)
            steps[0] -= 1
            wheel_unfile(w, self.slots, s)
            if self.slots[s].key == NULL or not self.slots[s].flags & HAS_TTL:
                continue
            if tick >= self.slots[s].expiry:
                self.take(s, EXPIRED, &gone[n])
                n += 1
                continue
            number = wheel_file(w, self.slots, s)
            if again == 0 and w.base + number == list_:
                again = s
        return n

    cdef void take(self, uint32_t s, int cause, Gone* gone) noexcept:
        """Remove slot `s`, handing its references to `gone`."""
        cdef Slot* slot = &self.slots[s]
        if self.adaptive != NULL:
            policy_left(&self.policy_state, s)
        index_drop(&self.index, self.slots, s)
        queue_drop(&self.policy_state, s)
        gone.key = slot.key
        gone.value = slot.value
        gone.cause = cause
        if slot.flags & HAS_TTL:
            self.n_ttl -= 1
        if slot.flags & HAS_GC:
            self.n_gc -= 1
        self.weight_ -= slot.weight
        slot.key = NULL
        slot.value = NULL
        self.links[s].next = self.free
        self.free = s
        self.size -= 1
        self.version += 1
        if cause == SIZE:
            self.evictions += 1
        elif cause == EXPIRED:
            self.expirations += 1
        else:
            self.removals += 1

    cdef int cause_of(self, uint32_t s, uint32_t tick) noexcept:
        """Why slot `s` is evicted: EXPIRED if its time has passed anyway, else SIZE."""
        if self.slots[s].flags & HAS_TTL and tick >= self.slots[s].expiry:
            return EXPIRED
        return SIZE

    # -- removing: Python code runs in `release`, last -----------------------------------------

    cdef void release(self, Gone* gone, Py_ssize_t n) noexcept:
        """Tell the listener of removed pairs and drop their references."""
        cdef Py_ssize_t i
        self.releasing += 1
        if self.on_removal is not None:
            listener = self.on_removal
            for i in range(n):
                if tell(listener, gone[i].key, gone[i].value, <object>CAUSES[gone[i].cause]):
                    self.listener_errors += 1
        for i in range(n):
            Py_XDECREF(gone[i].key)
            Py_XDECREF(gone[i].value)
        self.releasing -= 1

    cdef int drop(self, uint32_t s, int cause) except -1:
        """Remove one entry."""
        cdef Gone gone
        self.take(s, cause, &gone)
        self.release(&gone, 1)
        return 0

    # -- storing -------------------------------------------------------------------------------

    cdef uint32_t weigh(self, object key, object value) except? 0xFFFFFFFF:
        """Return the weight of an entry; ValueError if it can never fit."""
        if self.weigher is None:
            return 1
        cdef uint64_t weight = check_weight(self.weigher(key, value))
        if weight > self.max_weight_:
            self.rejections += 1
            raise ValueError(
                f"weight of the value under {key!r} is {weight}, above max_weight "
                f"{self.max_weight_}"
            )
        return <uint32_t>weight

    cdef inline int assign(self, object key, uint32_t mixed, object value, bint has_ttl,
                           double ttl, uint32_t span) except -1:
        """Store one entry, for `span` ticks by the built-in clock."""
        cdef uint32_t s, tick = 0, expiry = 0
        cdef PyObject* old
        if not self.is_plain:
            return self.put(key, mixed, value, has_ttl, ttl, self.weigh(key, value), NULL)
        s = self.find(key, mixed)
        # From here to the releases no Python code runs.
        if has_ttl or self.n_ttl:
            tick = self.plain_tick()
            if has_ttl:
                expiry = tick + span
            if self.wheel.links == NULL or wheel_waits(&self.wheel, tick >> TICK_BITS):
                return self.settle(s, key, mixed, value, has_ttl, expiry, tick, 1, NULL)
        if s == 0 or self.cause_of(s, tick) == EXPIRED or self.lacks_adaptive():
            return self.bring(s, key, mixed, value, has_ttl, expiry, tick)
        old = self.replace(s, value, has_ttl, expiry, 1)
        if self.is_adaptive:  # the hit may have changed the window's share
            policy_overflow(&self.policy_state)
        Py_DECREF(<object>old)
        return 0

    cdef int bring(self, uint32_t s, object key, uint32_t mixed, object value, bint has_ttl,
                   uint32_t expiry, uint32_t tick) except -1:
        """Go on with `assign` for a new entry: the short way where it is clear who leaves."""
        cdef uint32_t victim
        cdef Gone gone
        if s != 0 or self.size < self.maxsize_ or not self.has_room() or self.lacks_adaptive():
            return self.settle(s, key, mixed, value, has_ttl, expiry, tick, 1, NULL)
        s = self.insert(key, mixed, value, has_ttl, expiry, 1)
        victim = self.next_out()
        self.rejections += victim == s
        self.take(victim, self.cause_of(victim, tick), &gone)
        if self.is_adaptive:
            policy_overflow(&self.policy_state)
        self.fetch_ahead()
        Py_XDECREF(gone.key)
        Py_XDECREF(gone.value)
        return 0

    cdef int put(self, object key, uint32_t mixed, object value, bint has_ttl, double ttl,
                 uint32_t weight, Batch* batch) except -1:
        """Store an entry and let leave what must.

        With a `batch`, its time counts, and what leaves is handed to it instead of released; the
        slot that is returned is then still that of the entry, or 0 for one turned away.
        """
        cdef double now_s = 0.0
        cdef uint32_t tick = 0, expiry = 0
        cdef uint32_t s = self.find_at(key, mixed, has_ttl, &now_s, &tick, batch)
        if has_ttl:
            self.deadline(now_s, ttl, &expiry)
        return self.settle(s, key, mixed, value, has_ttl, expiry, tick, weight, batch)

    cdef int settle(self, uint32_t s, object key, uint32_t mixed, object value, bint has_ttl,
                    uint32_t expiry, uint32_t tick, uint32_t weight, Batch* batch) except -1:
        """Go on with `put` once slot `s` has been found to hold `key`, or 0 that none does."""
        cdef Gone on_stack[ON_STACK]
        cdef Batch alone
        cdef Batch* out = batch
        cdef PyObject* old
        cdef uint32_t victim
        cdef uint64_t steps = WHEEL_STEPS
        cdef bint replaces, waits
        # From here to `release` no Python code runs. First what can fail: memory.
        if has_ttl and self.wheel.links == NULL:
            self.start_wheel(tick)
        if s == 0 and not self.has_room():
            cache_rebuild(self, min(self.maxsize_ + 1, 2 * self.capacity))
        if self.is_adaptive and self.adaptive == NULL and self.must_adapt(weight):
            self.adapt(self.entries_expected())
        # Not from a listener, or its writes would call it ever deeper.
        waits = (has_ttl or self.n_ttl) and not self.releasing
        waits = waits and wheel_waits(&self.wheel, tick >> TICK_BITS)
        replaces = s != 0 and self.cause_of(s, tick) == SIZE
        if batch == NULL:
            out = &alone
            alone.gone = on_stack
            alone.n = 0
            alone.room = ON_STACK
            alone.fixed = True
        batch_room(out, 3 + self.leaving(s, weight) + (WHEEL_TAKES if waits else 0))
        if waits:
            out.n += self.fire(tick, &steps, WHEEL_TAKES, False, out.gone + out.n)
            if s != 0 and self.slots[s].key == NULL:
                s = 0
        if replaces:  # the wheel does not take what has not expired
            Py_INCREF(<object>self.slots[s].key)  # the key stored first stays, as in dict
            old = self.replace(s, value, has_ttl, expiry, weight)
            out.gone[out.n] = Gone(self.slots[s].key, old, REPLACED)
            out.n += 1
        else:
            if s != 0:
                self.take(s, EXPIRED, &out.gone[out.n])
                out.n += 1
            s = self.insert(key, mixed, value, has_ttl, expiry, weight)
        if self.weigher is not None and self.adaptive != NULL and self.is_over():
            adaptive_fit(self.adaptive, &self.policy_state, self.weight_when_full())
        while self.is_over():
            if out.n + 2 > out.room:  # one more than this victim: the newcomer, should this fail
                try:
                    batch_room(out, 2)
                except MemoryError:
                    if s != 0:
                        self.take(s, SIZE, &out.gone[out.n])
                        out.n += 1
                    self.hand_out(batch, out)
                    raise
            victim = self.next_out()
            if victim == s and replaces:  # what was held stays: the next in order leaves
                victim = self.walk(PROBATION)
                if victim == s:
                    victim = self.walk(s)
            elif victim == s:
                self.rejections += 1
                s = 0
            self.take(victim, self.cause_of(victim, tick), &out.gone[out.n])
            out.n += 1
        if self.is_adaptive:
            policy_overflow(&self.policy_state)
        self.fetch_ahead()
        self.hand_out(batch, out)
        return <int>s

    cdef inline void fetch_ahead(self) noexcept:
        """Fetch what the next eviction of a large, full cache reads."""
        if self.capacity >= ROOMY and self.size == self.maxsize_:
            self.foresee(WINDOW)
            self.foresee(PROBATION)

    cdef inline void foresee(self, uint32_t queue) noexcept:
        """Fetch ahead what the next eviction reads of a queue's oldest, and the one after it."""
        cdef uint32_t s = self.links[queue].prev
        if s < FIRST_SLOT:
            return
        self.foresee_entry(s)  # was the one after, an insertion ago
        self.foresee_slot(self.links[s].prev)

    cdef inline void foresee_entry(self, uint32_t s) noexcept:
        """Fetch ahead what a removal reads by way of a slot that has been fetched."""
        cdef Slot* slot = &self.slots[s]
        prefetch(index_line(&self.index, index_home(&self.index, slot.hash)))
        if self.adaptive != NULL:
            prefetch(sketch_block(&self.adaptive.sketch, spread(slot.hash)))
        prefetch(slot.key)
        prefetch(slot.value)

    cdef inline void foresee_slot(self, uint32_t s) noexcept:
        prefetch(&self.slots[s])
        prefetch(&self.links[s])

    cdef inline PyObject* replace(self, uint32_t s, object value, bint has_ttl, uint32_t expiry,
                                  uint32_t weight) noexcept:
        """Give a live entry another value; return the old one, which is the caller's."""
        cdef Slot* slot = &self.slots[s]
        cdef PyObject* old = slot.value
        cdef uint32_t queue
        if slot.weight != weight:
            queue = (slot.flags & QUEUE_MASK) >> QUEUE_SHIFT
            self.policy_state.weight[queue] -= bulk(slot.weight)
            self.policy_state.weight[queue] += bulk(weight)
            self.weight_ -= slot.weight
            self.weight_ += weight
        self.fill_slot(s, value, has_ttl, expiry, weight)
        self.promote(s)
        return old

    cdef uint32_t insert(self, object key, uint32_t mixed, object value, bint has_ttl,
                         uint32_t expiry, uint32_t weight) noexcept:
        """Put a new entry into a free slot, of which there is one, and return it."""
        cdef uint32_t s
        cdef Slot* slot
        if self.free != 0:
            s = self.free
            self.free = self.links[s].next
        else:
            self.high += 1
            s = self.high
        slot = &self.slots[s]
        slot.key = <PyObject*>key
        Py_INCREF(key)
        slot.hash = mixed
        slot.flags = (slot.flags & FILED) | (HAS_GC if is_gc(slot.key) else 0)
        self.n_gc += slot.flags & HAS_GC != 0
        index_add(&self.index, mixed, s)
        self.size += 1
        self.version += 1
        self.weight_ += weight
        self.fill_slot(s, value, has_ttl, expiry, weight)
        if not self.is_adaptive:
            queue_push(&self.policy_state, WINDOW, s)
            lru_stamp(&self.policy_state, s)
        else:
            policy_enter(&self.policy_state, s)
            if is_sampled(self.sample_mask, mixed):
                self.sample(mixed, True)
        return s

    cdef inline void fill_slot(self, uint32_t s, object value, bint has_ttl, uint32_t expiry,
                               uint32_t weight) noexcept:
        """Write what a new value brings: itself, its weight and its time to live."""
        cdef Slot* slot = &self.slots[s]
        cdef uint32_t flags = slot.flags, had = flags & (HAS_TTL | HAS_GC), has = has_ttl
        Py_INCREF(value)
        slot.value = <PyObject*>value
        slot.weight = weight
        if is_gc(slot.value) or (had & HAS_GC and is_gc(slot.key)):
            has |= HAS_GC
        if had != has:
            self.n_ttl += has_ttl - (had & HAS_TTL)
            self.n_gc += (has & HAS_GC) // HAS_GC - (had & HAS_GC) // HAS_GC
            slot.flags = flags ^ had ^ has
        if has_ttl:
            if flags & FILED and expiry >= slot.expiry:
                slot.expiry = expiry
            else:
                wheel_hold(&self.wheel, self.slots, s, expiry)
        self.sets += 1

    cdef Py_ssize_t leaving(self, uint32_t s, uint32_t weight) noexcept:
        """How many leave to make room for `weight` in slot `s`, or in a new one: "lru" exactly."""
        cdef uint64_t total
        cdef uint32_t count, t
        cdef Py_ssize_t n = 0
        if self.weigher is None:
            return 0
        total = self.weight_ + weight - (self.slots[s].weight if s != 0 else 0)
        count = self.size + (s == 0)
        t = self.walk(PROBATION)
        while t != 0 and (total > self.max_weight_ or count > self.maxsize_):
            if t != s:
                total -= self.slots[t].weight
                count -= 1
                n += 1
            t = self.walk(t)
        return n

    cdef bint must_adapt(self, uint32_t weight) noexcept:
        """Whether the cache is so full that the policy needs its sketch and shadows.

        At the latest when the entry that comes, of `weight`, makes another leave.
        """
        if self.weigher is not None:
            if self.weight_ + weight > self.max_weight_:
                return True
            if self.size >= 16 and self.weight_ >= self.max_weight_ - self.max_weight_ // 2:
                return True
        if self.maxsize_ >= DEFER:
            return self.size >= self.maxsize_ // 2
        return self.size >= min(<uint32_t>16, self.maxsize_ // 2)

    cdef uint64_t entries_expected(self) noexcept:
        """How many entries a full cache will hold, as far as its weights tell."""
        cdef double expected
        if self.weigher is None or self.weight_ == 0:
            return self.maxsize_
        expected = <double>self.size * <double>self.max_weight_ / <double>self.weight_
        if expected >= <double>self.maxsize_:
            return self.maxsize_
        return min(<uint64_t>self.maxsize_, max(<uint64_t>16, <uint64_t>expected))

    cdef uint64_t weight_when_full(self) noexcept:
        """Return what all weigh for the policy, at most `max_weight`, when nothing more fits."""
        cdef uint64_t* weight = self.policy_state.weight
        return min(self.max_weight_, weight[WINDOW] + weight[PROBATION] + weight[PROTECTED])

    cdef void hand_out(self, Batch* batch, Batch* out) noexcept:
        """Release what left, unless it goes to the caller's batch."""
        if batch == NULL:
            self.release(out.gone, out.n)
            if not out.fixed:
                PyMem_Free(out.gone)

    # -- C doors -------------------------------------------------------------------------------

    cdef object lookup(self, object key, object default):
        """`get` for other modules of the engine."""
        cdef uint32_t s = self.hit_or_miss(key)
        return default if s == 0 else <object>self.slots[s].value

    cdef object lookup_left(self, object key, object default, double* left):
        """`lookup` that also sets the seconds, in whole ticks, which the entry has left to live."""
        cdef uint32_t s = self.hit_or_miss(key)
        cdef object value
        cdef double now_s, origin
        left[0] = INFINITY
        if s == 0:
            return default
        value = <object>self.slots[s].value
        if self.slots[s].flags & HAS_TTL:
            left[0] = <double>self.slots[s].expiry / TICKS
            if self.timer_ is None:
                left[0] -= <double>self.tick / TICKS  # read a moment ago
            else:
                # The timer may change the cache: the slot is not looked at again.
                origin = self.base_s
                left[0] -= <double>self.read_clock(&now_s) / TICKS + (self.base_s - origin)
        return value

    cdef int store(self, object key, object value) except -1:
        """`set` with the cache's time to live for other modules of the engine."""
        cdef uint32_t mixed = mix_hash(hash_key(key), self.salt)
        return self.assign(key, mixed, value, self.has_default_ttl, self.default_ttl,
                           self.default_span)

    cdef inline int write(self, object key, object value, PyObject* ttl) except -1:
        """`set`, with NULL for a `ttl` that is left out."""
        cdef double seconds = 0.0
        cdef uint32_t mixed = mix_hash(hash_key(key), self.salt)
        cdef bint has_ttl
        if ttl == NULL:
            return self.assign(key, mixed, value, self.has_default_ttl, self.default_ttl,
                               self.default_span)
        has_ttl = self.parse_ttl(<object>ttl, &seconds)
        return self.assign(key, mixed, value, has_ttl, seconds, self.span_of(seconds))

    # -- mapping -------------------------------------------------------------------------------

    def __getitem__(self, key):
        cdef uint32_t s = self.hit_or_miss(key)
        if s == 0:
            raise KeyError(key)
        return <object>self.slots[s].value

    def __setitem__(self, key, value):
        cdef uint32_t mixed = mix_hash(hash_key(key), self.salt)
        self.assign(key, mixed, value, self.has_default_ttl, self.default_ttl, self.default_span)

    def __delitem__(self, key):
        cdef uint32_t s = self.find_live(key, True)
        if s == 0:
            raise KeyError(key)
        self.drop(s, EXPLICIT)

    def __contains__(self, key):
        return self.find_live(key, False) != 0

    def __len__(self):
        return self.size

    def __iter__(self):
        return _CacheIterator(self)

    def __eq__(self, other):
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    def __repr__(self):
        weights = ""
        if self.weigher is not None:
            weights = f", max_weight={self.max_weight_}, weight={self.weight_}"
        return (f"Cache(maxsize={self.maxsize_}, ttl={self.ttl!r}, policy={self.policy_!r}"
                f"{weights}, currsize={self.size})")

    def __reduce__(self):
        raise TypeError("cannot pickle 'Cache' object")

    __class_getitem__ = classmethod(GenericAlias)

    # -- single keys ---------------------------------------------------------------------------

    def get(self, key, default=None, /):
        """Return the value of `key`, or `default`; counts, and is a use of the entry."""
        return self.lookup(key, default)

    def peek(self, key, default=None, /):
        """Return the value of `key`, or `default`, without counting or changing anything."""
        cdef uint32_t s = self.find_live(key, False)
        if s == 0:
            return default
        return <object>self.slots[s].value

    def set(self, key, value, ttl=..., /):
        """Store `value` under `key` for `ttl` seconds (None: for ever; default: the cache's).

        Replaces what was there, its time to live included. Raises ValueError, leaving the old
        entry, when the value is heavier than `max_weight`.
        """
        self.write(key, value, <PyObject*>ttl)

    def setdefault(self, key, default=None, /):
        """Return the value of `key`; store and return `default` if it is absent."""
        cdef uint32_t s = self.hit_or_miss(key)
        if s != 0:
            return <object>self.slots[s].value
        self.store(key, default)
        return default

    def pop(self, key, /, *default):
        """Remove `key` and return its value; `default` if it is absent, or KeyError.

        Counts neither a hit nor a miss.
        """
        if len(default) > 1:
            raise TypeError(f"pop expected at most 2 arguments, got {1 + len(default)}")
        cdef uint32_t s = self.find_live(key, True)
        if s == 0:
            if default:
                return default[0]
            raise KeyError(key)
        value = <object>self.slots[s].value
        self.drop(s, EXPLICIT)
        return value

    def popitem(self):
        """Remove a live entry, the next to leave, and return (key, value); KeyError if none.

        Removes the expired entries before it, too.
        """
        return cache_popitem(self)

    def expires_in(self, key, /):
        """Return the seconds until `key` expires, None if it never does; KeyError if absent."""
        cdef double now_s
        cdef uint32_t tick
        cdef uint32_t s = self.find_timed(key, &now_s, &tick)
        if s == 0 or self.cause_of(s, tick) == EXPIRED:
            raise KeyError(key)
        if not self.slots[s].flags & HAS_TTL:
            return None
        return self.seconds_left(s, now_s)

    def frequency(self, key, /):
        """Return about how often the entry of `key` was used, 0 to 15; changes and counts nothing.

        What "adaptive" goes by: storing it is one use, each hit another. A count stops at 15. Once
        the cache is half full all counts are halved whenever they have risen by 20 for each
        entry; until then they only grow. 0 for an absent key, and always with "lru", which counts
        nothing. O(1).
        """
        cdef uint32_t s = self.find_live(key, False)
        if s == 0 or not self.is_adaptive:
            return 0
        if self.adaptive == NULL:
            return policy_count(&self.policy_state, s)
        return policy_estimate(&self.policy_state, s)

    def touch(self, key, ttl=..., /):
        """Give a live entry a new time to live; False if it is absent.

        Neither counts nor is a use of the entry.
        """
        cdef double now_s, seconds = 0.0
        cdef bint has_ttl = self.parse_ttl(ttl, &seconds)
        cdef uint32_t expiry = 0, mixed, tick = 0, s
        mixed = mix_hash(hash_key(key), self.salt)
        s = self.find_at(key, mixed, has_ttl, &now_s, &tick, NULL)
        if s == 0:
            return False
        if has_ttl:
            self.deadline(now_s, seconds, &expiry)
        if self.cause_of(s, tick) == EXPIRED:
            self.drop(s, EXPIRED)
            return False
        if has_ttl:
            if self.wheel.links == NULL:
                self.start_wheel(tick)
            wheel_hold(&self.wheel, self.slots, s, expiry)
        self.n_ttl += has_ttl - (self.slots[s].flags & HAS_TTL)
        self.slots[s].flags = (self.slots[s].flags & ~<uint32_t>HAS_TTL) | has_ttl
        return True

    # -- many keys -----------------------------------------------------------------------------

    def get_many(self, keys, default=None, /):
        """Return the values of `keys` as a list aligned with them, `default` for absent ones.

        Counts and promotes like `get`; O(number of keys).
        """
        cdef object wanted = keys_in_a_row(keys)
        cdef list found = empty_answers(wanted)
        cdef Py_ssize_t i, n = len(found), n_gone = 0
        cdef uint32_t s, tick
        cdef Gone* gone = NULL
        cdef Room room
        cdef Bulk b
        cdef PyObject* held
        if bulk_start(&b, &room, items_of(wanted), n) < 0:
            raise MemoryError(f"get_many: no memory for {n} keys")
        try:
            if not self.find_many(&b, &tick):  # other threads are busy: one by one
                for i in range(n):
                    s = self.hit_or_miss(<object>b.keys[i])
                    value = default if s == 0 else <object>self.slots[s].value
                    put_answer(found, i, <PyObject*>value)
                publish(found)
                return found
            if self.n_ttl:
                for i in range(n):
                    n_gone += b.slots[i] != 0 and self.cause_of(b.slots[i], tick) == EXPIRED
            if n_gone:
                gone = allocate_gone(n_gone)
                n_gone = 0
            for i in range(n):
                s = b.slots[i]
                held = <PyObject*>default
                if s == 0 or self.slots[s].key == NULL:  # NULL: an expired key was given twice
                    self.misses += 1
                elif self.cause_of(s, tick) == EXPIRED:
                    self.misses += 1
                    self.take(s, EXPIRED, &gone[n_gone])
                    n_gone += 1
                else:
                    self.hits += 1
                    self.promote(s)
                    held = self.slots[s].value
                put_answer(found, i, held)
            publish(found)
            self.release(gone, n_gone)
            return found
        finally:
            bulk_end(&b)
            PyMem_Free(gone)

    def set_many(self, items, ttl=..., /):
        """Store the pairs of a mapping or of an iterable of (key, value), in order.

        Everything is checked first: a bad pair, key, weight or time to live leaves the cache as
        it was.
        """
        cdef double seconds = 0.0
        cdef bint has_ttl = self.parse_ttl(ttl, &seconds)
        cdef list keys = []
        cdef list values = []
        hide(keys)  # from `gc.get_objects`: the items' addresses are kept while Python code runs
        hide(values)
        split_pairs(items, keys, values)
        cdef Py_ssize_t i = 0, n = len(keys)
        cdef bint weighs = self.weigher is not None
        cdef Batch batch = Batch(NULL, 0, 0, False, 0.0, 0.0, False)
        cdef uint32_t places[BLOCK]
        cdef uint32_t* weights
        cdef Room room
        cdef Bulk b
        if bulk_start(&b, &room, items_of(keys), n) < 0:
            raise MemoryError(f"set_many: no memory for {n} items")
        weights = b.slots
        try:
            while i < n:
                if not weighs:
                    i = bulk_hash(&b, i, self.salt)
                    if i == n:
                        break
                b.mixed[i] = mix_hash(hash_key(<object>b.keys[i]), self.salt)
                if weighs:
                    weights[i] = self.weigh(<object>b.keys[i], values[i])
                i += 1
            for i in range(n):
                if i % BLOCK == 0:
                    bulk_fetch(&b, i, &self.index, self.slots, places)
                self.put(<object>b.keys[i], b.mixed[i], values[i], has_ttl, seconds,
                         weights[i] if weighs else 1, &batch)
        finally:
            self.release(batch.gone, batch.n)
            PyMem_Free(batch.gone)
            bulk_end(&b)

    def delete_many(self, keys, /):
        """Remove `keys` and return how many of them were there."""
        cdef object wanted = keys_in_a_row(keys)
        cdef Py_ssize_t i, n = len(wanted), n_gone = 0, removed = 0
        cdef uint32_t s, tick
        cdef int cause
        cdef Gone* gone = NULL
        cdef Room room
        cdef Bulk b
        if bulk_start(&b, &room, items_of(wanted), n) < 0:
            raise MemoryError(f"delete_many: no memory for {n} keys")
        try:
            if not self.find_many(&b, &tick):  # other threads are busy: one by one
                for i in range(n):
                    s = self.find_live(<object>b.keys[i], True)
                    if s != 0:
                        self.drop(s, EXPLICIT)
                        removed += 1
                return removed
            gone = allocate_gone(n)
            for i in range(n):
                s = b.slots[i]
                if s == 0 or self.slots[s].key == NULL:  # NULL: the key was given twice
                    continue
                cause = self.cause_of(s, tick)
                if cause == SIZE:
                    cause = EXPLICIT
                    removed += 1
                self.take(s, cause, &gone[n_gone])
                n_gone += 1
            self.release(gone, n_gone)
            return removed
        finally:
            bulk_end(&b)
            PyMem_Free(gone)

    # -- the whole -----------------------------------------------------------------------------

    def expire(self, limit=None, /):
        """Remove expired entries, at most `limit`, and return how many.

        Without a limit, all of them; O(their number). With one, at most 64 + 2 * limit entries
        are looked at: so fewer than `limit` may be removed although there are more, and another
        call goes on from there. They leave in the order of their times to live, to the second.
        Each 1024 removals `on_removal` is told.
        """
        cdef Gone* gone
        cdef uint32_t tick
        cdef uint64_t most, left, steps
        cdef Py_ssize_t room, n, total = 0
        cdef double now_s, origin
        most = 0xFFFFFFFF if limit is None else min(
            check_count("limit", limit, minimum=0, maximum=None), 0xFFFFFFFF
        )
        if not self.n_ttl or not most:
            return 0
        tick = self.read_clock(&now_s)
        left = min(most, <uint64_t>self.n_ttl)
        if left == 0:  # the timer removed them
            return 0
        steps = ~<uint64_t>0 if limit is None else WHEEL_STEPS + 2 * most
        room = min(left, <uint64_t>SWEEP)
        gone = allocate_gone(room)
        try:
            while left:
                origin = self.base_s
                room = min(left, <uint64_t>SWEEP)
                n = self.fire(tick, &steps, room, True, gone)
                total += n
                left -= n
                self.release(gone, n)
                if n < room:
                    break
                if self.base_s != origin:  # a listener, or a destructor, moved the origin of time
                    now_s = max(0.0, now_s - (self.base_s - origin))
                    tick = <uint32_t>(now_s * TICKS)
        finally:
            PyMem_Free(gone)
        return total

    def evict(self, n, /):
        """Evict the `n` entries that are next to leave and return how many there were."""
        return cache_evict(
            self, min(check_count("n", n, minimum=0, maximum=None), <Py_ssize_t>self.size)
        )

    def resize(self, maxsize, /):
        """Change the most entries that may be held; return how many were evicted. O(entries)."""
        return cache_resize(self, check_count("maxsize", maxsize))

    def clear(self):
        """Remove every entry, cause EXPLICIT; counters stay. O(entries)."""
        cache_clear(self)

    def keys(self):
        """Return the live keys, the next to leave first, as a list."""
        return cache_list(self, KEYS)

    def values(self):
        """Return the live values, the next to leave first, as a list."""
        return cache_list(self, VALUES)

    def items(self):
        """Return the live (key, value) pairs, the next to leave first, as a list."""
        return cache_list(self, ITEMS)

    def stats(self):
        """Return a `CacheStats`."""
        arrays = (<uint64_t>self.capacity + FIRST_SLOT) * (sizeof(Slot) + sizeof(Link))
        arrays += self.adaptive_room
        arrays += index_bytes(&self.index)
        if self.wheel.links != NULL:
            arrays += (<uint64_t>self.wheel.base + LISTS) * sizeof(Link)
        weighs = self.weigher is not None
        cdef double shares[SHADOWS]
        cdef double ratios[SHADOWS]
        cdef bint decides = self.adaptive != NULL
        cdef bint rated = decides and adaptive_ratios(self.adaptive, shares, ratios)
        cdef uint64_t window = self.policy_state.window_target
        cdef list shadows = []
        cdef uint32_t i
        if rated:  # a collection that the tuples start may change the cache: all is copied
            for i in range(SHADOWS):
                shadows.append((shares[i], ratios[i]))
        return CacheStats(
            self.hits, self.misses, self.sets, self.evictions, self.expirations, self.removals,
            self.rejections, self.size, self.maxsize_, self.weight_,
            self.max_weight_ if weighs else None, arrays + type(self).__basicsize__,
            window if decides else None, tuple(shadows), self.listener_errors,
        )

    def reset_stats(self):
        """Set the counters to zero."""
        self.hits = self.misses = self.sets = 0
        self.evictions = self.expirations = self.removals = self.rejections = 0
        self.listener_errors = 0

    @property
    def maxsize(self):
        """Most entries that may be held."""
        return self.maxsize_

    @property
    def ttl(self):
        """Seconds that entries live unless `set` says otherwise; None: for ever."""
        return self.default_ttl if self.has_default_ttl else None

    @property
    def policy(self):
        """Name of the eviction policy."""
        return self.policy_

    @property
    def slack(self):
        """Places by which the order of "lru" may be wrong; None for other policies."""
        return None if self.is_adaptive else lru_slack(&self.policy_state, self.size)

    @property
    def max_weight(self):
        """Most weight that may be held in all; None without a weigher."""
        return None if self.weigher is None else self.max_weight_

    @property
    def weight(self):
        """Sum of the entries' weights; their number without a weigher."""
        return self.weight_

    @property
    def timer(self):
        """The timer given, None for the built-in monotonic clock."""
        return self.timer_

    def _check(self):
        """Raise AssertionError if an invariant, named by its number, does not hold. O(slots)."""
        check_cache(self)

    # -- dumps: what _snapshot.py needs --------------------------------------------------------

    def dump(self, path, *, value_encoder=None, key_encoder=None, wall_clock=None):
        """Write the live entries to a file, for `load` after a restart; return how many.

        path            of the file, which is replaced at one stroke when all is written; after an
                        error it is what it was. Mode 0600; a symbolic link is itself replaced.
        value_encoder   makes bytes of a value. It must be given: nothing is pickled.
        key_encoder     makes bytes of the keys that are not stored as they are: all but exact
                        str, int, bytes and tuples of them.
        wall_clock      returns seconds since the epoch; by default `time.time`.

        Stored for each entry: key, value, seconds left to live, and what the policy knows of it;
        for "adaptive" also the window's share. The entries are those of one moment; encoders run
        afterwards and may use the cache, as may other threads. O(entries), in blocks; 25 bytes an
        entry are held meanwhile. Raises TypeError or ValueError naming the argument, OSError, and
        whatever the encoders raise.
        """
        from beastcore._snapshot import dump
        return dump(self, path, value_encoder, key_encoder, wall_clock)

    def load(self, path, *, value_decoder=None, key_decoder=None, wall_clock=None):
        """Fill the free room with the entries that `dump` wrote; return how many came.

        Nothing leaves and nothing is overwritten: keys held already stay, and of what does not
        fit, what would leave first is passed over, without a word to `on_removal`. Loading counts
        neither as sets nor as uses. The weigher of this cache weighs anew; what is too heavy for
        the room left is passed over. Time since the dump counts as lived, by the wall clock; one
        that was set back does not lengthen lives. The dump of any policy and size will do.

        value_decoder and key_decoder undo what the encoders did; the second is needed if there
        was a first. Raises SnapshotError for a file that is no whole, undamaged dump of this
        format, before a decoder runs; ValueError or TypeError naming the argument, OSError, and
        whatever decoders, weigher, clocks and keys raise. The cache is then as it was, unless a
        key's `__eq__` or a want of memory stopped it half-way. O(entries of the file).
        """
        from beastcore._snapshot import load
        return load(self, path, value_decoder, key_decoder, wall_clock)

    def _export(self):
        """Return what is live in the order of leaving: keys, values, states, times and policy."""
        return cache_export(self)

    def _room(self):
        """Return how many entries and how much weight come in freely, and the weigher."""
        entries = self.maxsize_ - min(self.size, self.maxsize_)
        if self.weigher is None:
            return entries, None, None
        return entries, self.max_weight_ - self.weight_, self.weigher

    def _import(self, list keys not None, list values not None, bytes states not None,
                bytes left not None, list weights, double passed, tuple policy,
                uint64_t expected):
        """Put entries of `_export` back, the first to leave first; return how many came.

        `passed` seconds have passed since; an adaptive cache will hold about `expected` entries.
        """
        return cache_import(
            self, keys, values, states, left, weights, passed, policy, expected
        )

    cdef double seconds_left(self, uint32_t s, double now_s) noexcept:
        """Return the seconds until slot `s`, which has a time to live, expires."""
        if self.timer_ is None:
            now_s += LAG
        return max(0.0, <double>self.slots[s].expiry / TICKS - now_s)


@cython.final
@cython.auto_pickle(False)
cdef class _CacheIterator:
    """Walks the keys of a cache slot by slot; holds the cache."""

    cdef Cache cache
    cdef uint32_t s
    cdef uint64_t version

    def __cinit__(self, Cache cache not None):
        self.cache = cache
        self.s = FIRST_SLOT - 1
        self.version = cache.version

    def __iter__(self):
        return self

    def __next__(self):
        cdef Cache cache = self.cache
        cdef uint32_t tick = 0
        cdef double now_s
        if cache is None:
            raise StopIteration
        if cache.n_ttl:
            tick = cache.read_clock(&now_s)
        if cache.version != self.version:
            raise RuntimeError("cache changed size during iteration")
        while self.s < cache.high:
            self.s += 1
            if cache.slots[self.s].key != NULL and cache.cause_of(self.s, tick) == SIZE:
                return <object>cache.slots[self.s].key
        self.cache = None
        raise StopIteration


cdef bint holds(list things, object thing) noexcept:
    """Tell whether `thing` itself is among `things`."""
    cdef object other
    for other in things:
        if other is thing:
            return True
    return False


cdef inline uint32_t ticks_of(double seconds) noexcept:
    """Return how many ticks cover so many seconds; `ceil` is a call into another library."""
    cdef double ticks = seconds * TICKS
    cdef uint32_t whole = <uint32_t>ticks
    return whole + 1 if <double>whole < ticks else whole


cdef double seconds_of(object now) except? -1.0:
    """Return what a timer answered as a finite float."""
    if PyFloat_CheckExact(now) and -1e300 < PyFloat_AS_DOUBLE(now) < 1e300:
        return PyFloat_AS_DOUBLE(now)
    return check_time(now)


collect_arena(Cache)
open_doors(Cache)
Mapping.register(Cache)
