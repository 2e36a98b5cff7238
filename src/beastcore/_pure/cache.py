"""`Cache` in pure Python: the twin of `beastcore._cache` and the oracle of its tests.

Structure
    `_index` maps a key's hash to the tuple of the entries that have it, nearly always one.
    `_queues` holds the entries (policy.py): for "lru" in one queue, least recently used first;
    for "adaptive" in three, which `_adaptive` completes once there is something to decide.
    Entries compare by identity. So the only calls of a key's `__hash__` and `__eq__` are those of
    `hash(key)` and `_find`; what is evicted leaves without being searched for.

Invariants, verified by `_check()`
    1. An entry is on the queue that it names iff it is in the chain of its hash, and then carries
       the epoch; it is on no other queue.
    2. `_count`, `_weight` and `_timed` are the number of entries, the sum of their weights and
       the number of those with a time to live.
    3. `_count <= _maxsize`, and `_weight <= max_weight` where that is given, unless a store is
       under way: what comes competes with what is there before one of them leaves.
    4. No chain is empty or holds two entries with the identical key.
    5. The queues' weights are the sums of their entries' weights, each at least 1.
    6. Each entry with a time to live has a timer of its own on the wheel (wheel.py), on a list
       whose time is not after its deadline or the wheel's position. `_spare` holds the timers of
       entries that left, the last one on top, as the compiled twin chains its free slots.

Why no lock is needed
    Keys, values, callbacks, the weigher and the timer may run any code, which may come back here;
    so may finalizers that the garbage collector starts, signal handlers and other threads.
    CPython starts those only at calls, at backward jumps and at allocations that it tracks.
    Every section marked "operators only" has none of them: it takes the structure from one valid
    state to the next without a pause. Sections verify first that what was found is still there;
    if not, their callers look again. What leaves the structure is released, and told to
    `on_removal`, after the operation is complete.
"""

from __future__ import annotations

import math
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike, urandom
from types import EllipsisType, GenericAlias
from typing import (
    Any,
    ClassVar,
    Generic,
    NoReturn,
    TypeVar,
    final,
)

from beastcore._pure.policy import (
    DEFER,
    PROBATION,
    PROTECTED,
    WINDOW,
    Adaptive,
    Queues,
    Record,
    mix,
    sampled,
)
from beastcore._pure.wheel import SWEEP, TICK_BITS, UNFILED, WHEEL_STEPS, WHEEL_TAKES, Timer, Wheel
from beastcore._types import CacheStats, PolicyState, RemovalCause
from beastcore._unraisable import report_unraisable
from beastcore._validate import (
    MAX_SLACK,
    MAX_WEIGHT_EACH,
    MAX_WEIGHT_TOTAL,
    TICKS_PER_SECOND,
    check_callable,
    check_count,
    check_policy,
    check_slack,
    check_time,
    check_ttl,
    check_weight,
    check_weight_pair,
)

__all__ = ["Cache"]

K = TypeVar("K")
V = TypeVar("V")
Ttl = float | None | EllipsisType
OnRemoval = Callable[[Any, Any, RemovalCause], object]

MAX_RESTARTS = 64
"""How often a search starts again because a comparison changed the chain that it was reading."""
MAX_ELAPSED = 2.0**40
"""Seconds since construction beyond which the clock stands still (35,000 years)."""
DEAD = -1
"""Epoch of an entry that has left."""
STATE_MARK, STATE_COUNT = 1 << 2, 3
"""Where an entry's state in a dump has its mark and its count; the queue is in front."""
UNREAD = -1.0
"""A time before every deadline: the clock was not needed."""

_MISSING: Any = object()


class _Entry(Record):
    """A key, its value and what is kept about them."""

    __slots__ = ("deadline", "epoch", "hashed", "key", "stamp", "timer", "value")

    def __init__(
        self, hashed: int, key: Any, value: Any, deadline: int | None, weight: int
    ) -> None:
        super().__init__(0, weight)
        self.hashed = hashed
        self.key = key
        self.value = value
        self.deadline = deadline
        """Tick (1/64 s since construction of the cache) from which on the entry is expired."""
        self.stamp = 0
        """Number of its last move to the newest end, for "lru"."""
        self.epoch = DEAD
        """The cache's epoch while the entry is in it; `clear` makes all old at one stroke."""
        self.timer: Timer | None = None

    def expired(self, ticks: float) -> bool:
        """Tell whether the time to live has passed at `ticks`."""
        deadline = self.deadline
        return deadline is not None and deadline <= ticks


Removed = list[tuple[Any, Any, RemovalCause]]


@final
class Cache(Generic[K, V]):
    """A mapping that holds at most `maxsize` entries, each with a time to live.

    When it is full, an entry makes room, which the policy chooses. `get`, `c[key]`, `get_many`,
    `setdefault` and every write count as uses of an entry; `peek`, `key in c`, `expires_in`,
    `touch` and iteration do not.

    `maxsize`
        most entries held, 1 to 2**30
    `ttl`
        seconds after its last write at which an entry expires, unless `set` is given another;
        None or inf never. An entry never expires early, and at most 1/64 s late (the compiled
        engine's own clock: 1/32 s). Expired entries are misses and are removed when a lookup or
        a write meets them, by `expire()`, and by writes: each looks first at up to 64 entries
        whose second is over, so that a full cache drops what has expired before it evicts
    `policy`
        "adaptive" (the default) keeps what is used often or recently, whichever serves this cache
        better; it may let a newcomer leave at once (counted in `stats().rejections`, cause SIZE).
        "lru" evicts the least recently used entry, within the slack
    `slack`
        for "lru": an entry that is used again while fewer than so many others have become the
        newest since it did is not moved; the order of leaving is wrong by at most so many places.
        None: an eighth of the entries held. 0: the order is that of the last uses exactly
    `max_weight`, `weigher`
        `weigher(key, value)` returns an int from 0 to 2**32 - 1; the weights held never add up to
        more than `max_weight`. A value heavier than that is refused with ValueError
    `timer`
        returns monotonic seconds as a float; the default is the system's monotonic clock
    `on_removal`
        called as `on_removal(key, value, cause)` after the operation that removed the entry is
        complete, in the order of removal. What it raises goes to `sys.unraisablehook`, and
        `stats().listener_errors` counts it

    Every operation on one key takes O(1) time. An error raised by a key's `__hash__` or `__eq__`,
    the weigher or the timer leaves the cache as it was. Where a key's `__eq__` changes the cache,
    the search starts again, at most 64 times, then RuntimeError is raised.
    """

    __slots__ = (
        *("_timer", "_read_timer", "_base", "_weigher", "_on_removal", "_ttl", "_policy"),
        *("_index", "_queues", "_epoch", "_version", "_count", "_weight", "_timed"),
        *("_is_adaptive", "_adaptive", "_salt", "_slack", "_moves"),
        *("_wheel", "_spare", "_telling"),
        *("_maxsize", "_max_weight", "_limit", "_hits", "_misses", "_sets"),
        *("_evictions", "_expirations", "_removals", "_rejections"),
        *("_listener_errors", "__weakref__"),
    )

    __hash__: ClassVar[None]  # type: ignore[assignment]
    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    _timer: Callable[[], float] | None
    _read_timer: Callable[[], float]
    _base: float
    _weigher: Callable[[Any, Any], int] | None
    _on_removal: OnRemoval | None
    _ttl: float | None
    _policy: str
    _max_weight: int | None
    _limit: int
    _index: dict[int, tuple[_Entry, ...]]
    _queues: Queues[_Entry]
    _slack: int | None
    _moves: int
    _is_adaptive: bool
    _adaptive: Adaptive | None
    _salt: int
    _wheel: Wheel[_Entry] | None
    _spare: list[Timer | None]
    _telling: int
    _epoch: int
    _version: int
    _count: int
    _maxsize: int
    _weight: int
    _timed: int

    def __new__(
        cls,
        maxsize: int,
        ttl: float | None = None,
        *,
        policy: str = "adaptive",
        slack: int | None = None,
        max_weight: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        timer: Callable[[], float] | None = None,
        on_removal: OnRemoval | None = None,
    ) -> Cache[K, V]:
        """Make an empty cache; bad arguments raise TypeError or ValueError."""
        self = super().__new__(cls)
        self._maxsize = check_count("maxsize", maxsize)
        self._ttl = check_ttl(ttl)
        self._policy = check_policy(policy)
        self._slack = check_slack(slack, self._policy)
        self._max_weight = check_weight_pair(max_weight, weigher)
        self._limit = MAX_WEIGHT_TOTAL if self._max_weight is None else self._max_weight
        self._weigher = weigher
        check_callable("timer", timer)
        check_callable("on_removal", on_removal)
        self._timer = timer
        self._read_timer = time.monotonic if timer is None else timer
        self._on_removal = on_removal
        self._index = {}
        self._salt = int.from_bytes(urandom(8), "little")
        self._is_adaptive = self._policy == "adaptive"
        self._adaptive = None
        self._wheel = None
        self._spare = []
        self._telling = 0
        bound = self._maxsize if self._max_weight is None else self._max_weight
        self._queues = Queues(bound, self._salt | 1)
        self._moves = 0
        self._epoch = self._version = self._count = self._weight = self._timed = 0
        self.reset_stats()
        self._base = check_time(self._read_timer())
        return self

    def __init_subclass__(cls, **kwargs: object) -> NoReturn:
        """Refuse to be subclassed."""
        raise TypeError("type 'beastcore._pure.cache.Cache' is not an acceptable base type")

    # -- what the cache is ---------------------------------------------------------------------

    @property
    def maxsize(self) -> int:
        """Most entries that may be held."""
        return self._maxsize

    @property
    def ttl(self) -> float | None:
        """Time to live in seconds of entries that are given none of their own; None: endless."""
        return self._ttl

    @property
    def policy(self) -> str:
        """Name of the eviction policy."""
        return self._policy

    @property
    def slack(self) -> int | None:
        """Places by which the order of "lru" may be wrong; None for other policies."""
        if self._is_adaptive:
            return None
        return min(self._count >> 3, MAX_SLACK) if self._slack is None else self._slack

    @property
    def max_weight(self) -> int | None:
        """Most weight that may be held; None where there is no weigher."""
        return self._max_weight

    @property
    def timer(self) -> Callable[[], float] | None:
        """The timer given at construction; None where the built-in clock is used."""
        return self._timer

    @property
    def weight(self) -> int:
        """Sum of the entries' weights; the number of entries where there is no weigher."""
        return self._weight

    def __repr__(self) -> str:
        weights = (
            ""
            if self._max_weight is None
            else f"max_weight={self._max_weight}, weight={self._weight}, "
        )
        return (
            f"Cache(maxsize={self._maxsize}, ttl={self._ttl}, policy={self._policy!r}, "
            f"{weights}currsize={self._count})"
        )

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled."""
        raise TypeError("cannot pickle 'Cache' object")

    # -- lookups -------------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None, /) -> Any:
        """Return the live value under `key`, else `default`; counts a hit or a miss. O(1)."""
        entry = self._read(key)
        return default if entry is None else entry.value

    def __getitem__(self, key: K) -> V:
        """Return the live value under `key`, counting a hit or a miss; KeyError if absent."""
        entry = self._read(key)
        if entry is None:
            raise KeyError(key)
        value: V = entry.value
        return value

    def peek(self, key: Any, default: Any = None, /) -> Any:
        """Return the live value under `key`, else `default`; neither counts nor promotes. O(1)."""
        entry, ticks = self._seek(hash(key), key)
        return default if entry is None or entry.expired(ticks) else entry.value

    def __contains__(self, key: object) -> bool:
        entry, ticks = self._seek(hash(key), key)
        return entry is not None and not entry.expired(ticks)

    def get_many(self, keys: Iterable[Any], default: Any = None, /) -> list[Any]:
        """Return the live values under `keys` in their order, `default` where there is none.

        Counts a hit or a miss for each key. The clock is read once. O(len(keys)).
        """
        found, ticks = self._seek_many(keys)
        removed: Removed = []
        values: list[Any] = []
        for entry in found:
            if entry is not None and entry.expired(ticks):
                self._remove(entry, RemovalCause.EXPIRED, removed)
            if entry is None or entry.epoch != self._epoch:
                self._misses += 1
                values.append(default)
            else:
                self._promote(entry)
                self._hits += 1
                values.append(entry.value)
        self._notify(removed)
        return values

    def expires_in(self, key: Any, /) -> float | None:
        """Return the seconds that `key` has left to live, None for ever; KeyError if absent."""
        entry, ticks = self._seek(hash(key), key)
        if entry is None or entry.expired(ticks):
            raise KeyError(key)
        return None if entry.deadline is None else (entry.deadline - ticks) / TICKS_PER_SECOND

    def frequency(self, key: Any, /) -> int:
        """Return about how often the entry of `key` was used, 0 to 15; changes and counts nothing.

        What "adaptive" goes by: storing it is one use, each hit another. A count stops at 15. Once
        the cache is half full all counts are halved whenever they have risen by 20 for each
        entry; until then they only grow. 0 for an absent key, and always with "lru", which counts
        nothing. O(1).
        """
        entry, ticks = self._seek(hash(key), key)
        if entry is None or entry.expired(ticks) or not self._is_adaptive:
            return 0
        if self._adaptive is None:
            return self._queues.count(entry)
        return self._queues.estimate(entry)

    # -- writes --------------------------------------------------------------------------------

    def set(self, key: Any, value: Any, ttl: Ttl = ..., /) -> None:
        """Store `value` under `key` for `ttl` seconds (default: the cache's; None: for ever).

        An entry that is there keeps its key and gets the new value, time to live and weight.
        Errors: ValueError for a bad ttl or weight, whatever the key or the weigher raises; then
        the old value stays. O(1).
        """
        hashed = hash(key)
        self._set(hashed, key, value, self._ttl if ttl is ... else check_ttl(ttl))

    def __setitem__(self, key: K, value: V) -> None:
        self._set(hash(key), key, value, self._ttl)

    def set_many(self, items: Any, ttl: Ttl = ..., /) -> None:
        """Store each pair of `items`, a mapping or an iterable of (key, value) pairs.

        All are checked and weighed first: an item that is no pair, an unhashable key or a value
        too heavy leaves the cache as it was. Then they are stored in order; only a key's `__eq__`
        can raise then, and what precedes that key stays stored. O(len(items)).
        """
        seconds = self._ttl if ttl is ... else check_ttl(ttl)
        checked: list[tuple[int, Any, Any, int]] = []
        for key, value in _pairs(items):
            checked.append((hash(key), key, value, self._weigh(key, value)))
        if not checked:
            return
        ticks = self._ticks() if seconds is not None or self._timed else UNREAD
        removed: Removed = []
        try:
            for hashed, key, value, weight in checked:
                self._store(hashed, key, value, seconds, weight, ticks, removed)
        finally:
            self._notify(removed)

    def setdefault(self, key: Any, default: Any = None, /) -> Any:
        """Return the live value under `key` (a hit), or store `default` and return it (a miss)."""
        entry = self._read(key)
        if entry is not None:
            return entry.value
        self._set(hash(key), key, default, self._ttl)
        return default

    def touch(self, key: Any, ttl: Ttl = ..., /) -> bool:
        """Give the live entry under `key` a new time to live; False if there is none. O(1)."""
        seconds = self._ttl if ttl is ... else check_ttl(ttl)
        hashed = hash(key)
        ticks = self._ticks() if seconds is not None or self._timed else UNREAD
        deadline = _deadline(ticks, seconds)
        while (entry := self._find(hashed, key)) is not None:
            if entry.expired(ticks):
                self._remove_one(entry, RemovalCause.EXPIRED)
                return False
            self._hold(entry, deadline, ticks)
            # Operators only, after one call at the start.
            if self._holds(entry, deadline) and entry.epoch == self._epoch:
                self._timed += (deadline is not None) - (entry.deadline is not None)
                entry.deadline = deadline
                return True
        return False

    # -- removals ------------------------------------------------------------------------------

    def pop(self, key: Any, default: Any = _MISSING, /) -> Any:
        """Remove `key` and return its live value; else return `default` or raise KeyError."""
        entry = self._take(key)
        if entry is not None:
            return entry.value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def __delitem__(self, key: K) -> None:
        if self._take(key) is None:
            raise KeyError(key)

    def popitem(self) -> tuple[K, V]:
        """Remove and return a live (key, value), the next to leave; KeyError if none.

        Expired entries met on the way are removed. O(1) and O(1) for each of those.
        """
        ticks = self._ticks() if self._timed else UNREAD
        removed: Removed = []
        while (entry := self._queues.first()) is not None:
            cause = RemovalCause.EXPIRED if entry.expired(ticks) else RemovalCause.EXPLICIT
            if self._remove(entry, cause, removed) and cause is RemovalCause.EXPLICIT:
                break
        self._notify(removed)
        if entry is None:
            raise KeyError("popitem(): cache is empty")
        return entry.key, entry.value

    def delete_many(self, keys: Iterable[Any], /) -> int:
        """Remove `keys` and return how many had a live entry. All are hashed first."""
        found, ticks = self._seek_many(keys)
        removed: Removed = []
        deleted = 0
        for entry in found:
            if entry is not None:
                expired = entry.expired(ticks)
                cause = RemovalCause.EXPIRED if expired else RemovalCause.EXPLICIT
                deleted += self._remove(entry, cause, removed) and not expired
        self._notify(removed)
        return deleted

    def expire(self, limit: int | None = None, /) -> int:
        """Remove expired entries, at most `limit`, and return how many.

        Without a limit, all of them; O(their number). With one, at most 64 + 2 * limit entries
        are looked at: so fewer than `limit` may be removed although there are more, and another
        call goes on from there. They leave in the order of their times to live, to the second.
        Each 1024 removals `on_removal` is told.
        """
        allowed = (
            math.inf if limit is None else check_count("limit", limit, minimum=0, maximum=None)
        )
        if not self._timed or not allowed:
            return 0
        ticks = self._ticks()
        left = min(allowed, self._timed)
        steps = WHEEL_STEPS + 2 * allowed
        total = 0
        while left:
            removed: Removed = []
            room = min(left, SWEEP)
            steps = self._fire(ticks, steps, room, removed, whole=True)
            total += len(removed)
            left -= len(removed)
            self._notify(removed)
            if len(removed) < room:
                break
        return total

    def evict(self, n: int, /) -> int:
        """Evict the `n` entries that are next to leave and return how many there were."""
        n = check_count("n", n, minimum=0, maximum=None)
        ticks = self._ticks() if n and self._timed else UNREAD
        removed: Removed = []
        while len(removed) < n and self._evict_next(ticks, removed):
            pass
        self._notify(removed)
        return len(removed)

    def resize(self, maxsize: int, /) -> int:
        """Allow `maxsize` entries from now on and return how many were evicted for that."""
        maxsize = check_count("maxsize", maxsize)
        ticks = self._ticks() if self._timed and maxsize < self._count else UNREAD
        if self._weigher is None and maxsize != self._maxsize:
            if self._adaptive is not None:
                self._adapt(maxsize)
            self._queues.limit = self._queues.window_target = maxsize
            if self._adaptive is not None:
                self._queues.share(maxsize // 100)
        self._maxsize = maxsize
        removed: Removed = []
        while self._count > maxsize and self._evict_next(ticks, removed):
            pass
        while (timer := self._spare_timer()) is not None or self._spare:
            if timer is not None and self._wheel is not None:
                self._wheel.unfile(timer, None)
        self._notify(removed)
        return len(removed)

    def clear(self) -> None:
        """Remove every entry, with cause EXPLICIT. O(len(self))."""
        index: dict[int, tuple[_Entry, ...]] = {}
        queues: list[OrderedDict[_Entry, None]] = [OrderedDict() for _ in range(3)]
        weight = [0, 0, 0]
        wheel: Wheel[_Entry] = Wheel(0)
        spare: list[Timer | None] = []
        # Operators only.
        if self._wheel is not None and self._count:
            wheel.position = self._wheel.position
            self._wheel = wheel
            self._spare = spare
        index, self._index = self._index, index
        queues, self._queues.queues = self._queues.queues, queues
        self._queues.weight = weight
        self._queues.moves += 1
        if self._count:
            self._version += 1
        self._removals += self._count
        self._epoch += 1
        self._count = self._weight = self._timed = 0
        # The rest concerns nobody else.
        if self._on_removal is not None:
            old = [*queues[PROBATION], *queues[WINDOW], *queues[PROTECTED]]
            self._notify([(e.key, e.value, RemovalCause.EXPLICIT) for e in old])

    # -- snapshots -----------------------------------------------------------------------------

    def keys(self) -> list[K]:
        """Return the keys of the live entries, the next to leave first."""
        return [entry.key for entry in self._live()]

    def values(self) -> list[V]:
        """Return the values of the live entries, the next to leave first."""
        return [entry.value for entry in self._live()]

    def items(self) -> list[tuple[K, V]]:
        """Return the (key, value) pairs of the live entries, the next to leave first."""
        return [(entry.key, entry.value) for entry in self._live()]

    def __len__(self) -> int:
        """Return the number of entries, expired ones that nothing has met yet included."""
        return self._count

    def __iter__(self) -> Iterator[K]:
        """Iterate over the live keys in no particular order.

        RuntimeError is raised when an entry was inserted or removed meanwhile.
        """
        return _KeyIterator(self)

    def __eq__(self, other: object) -> bool:
        """Tell whether another Cache or Mapping holds equal live items, in whatever order."""
        if self is other:
            return True
        if isinstance(other, Mapping):
            return dict(self.items()) == dict(other.items())
        return NotImplemented

    # -- dumps ---------------------------------------------------------------------------------

    def dump(
        self,
        path: str | bytes | PathLike[str] | PathLike[bytes],
        *,
        value_encoder: Callable[[V], bytes] | None = None,
        key_encoder: Callable[[K], bytes] | None = None,
        wall_clock: Callable[[], float] | None = None,
    ) -> int:
        """Write the live entries to a file, for `load` after a restart; return how many.

        The file at `path` is replaced at one stroke when all is written, and after an error is
        what it was. `value_encoder` makes bytes of a value and must be given; `key_encoder` does
        so for keys that are not exact str, int, bytes or tuples of them. `wall_clock` returns
        seconds since the epoch. The entries are those of one moment. O(len(self)).
        """
        from beastcore._snapshot import dump  # noqa: PLC0415 - seldom needed

        return dump(self, path, value_encoder, key_encoder, wall_clock)

    def load(
        self,
        path: str | bytes | PathLike[str] | PathLike[bytes],
        *,
        value_decoder: Callable[[bytes], V] | None = None,
        key_decoder: Callable[[bytes], K] | None = None,
        wall_clock: Callable[[], float] | None = None,
    ) -> int:
        """Fill the free room with the entries that `dump` wrote; return how many came.

        Nothing leaves and nothing is overwritten; of what does not fit, what would leave first is
        passed over. Time since the dump counts as lived. SnapshotError for a file that is no
        whole, undamaged dump; then, and after an error of a decoder or the weigher, the cache is
        as it was. O(entries of the file).
        """
        from beastcore._snapshot import load  # noqa: PLC0415 - seldom needed

        return load(self, path, value_decoder, key_decoder, wall_clock)

    def _export(self) -> tuple[list[K], list[V], bytes, bytes, PolicyState | None]:
        """Return what is live in the order of leaving: keys, values, states, times and policy."""
        ticks = self._ticks() if self._timed else UNREAD
        queues = self._queues
        keys: list[K] = []
        values: list[V] = []
        states = bytearray()
        left = array("d")
        for entry in queues.walk():
            deadline = entry.deadline
            if deadline is not None and deadline <= ticks:
                continue
            keys.append(entry.key)
            values.append(entry.value)
            state = 0
            if self._is_adaptive:
                state = queues.count(entry) << STATE_COUNT | entry.queue
                state |= STATE_MARK if entry.mark else 0
            states.append(state)
            left.append(-1.0 if deadline is None else (deadline - ticks) / TICKS_PER_SECOND)
        policy = None if self._adaptive is None else self._adaptive.learnt()
        return keys, values, bytes(states), left.tobytes(), policy

    def _room(self) -> tuple[int, int | None, Callable[[K, V], int] | None]:
        """Return how many entries and how much weight come in freely, and the weigher."""
        entries = max(0, self._maxsize - self._count)
        weight = None if self._weigher is None else self._limit - self._weight
        return entries, weight, self._weigher

    def _import(
        self,
        keys: list[K],
        values: list[V],
        states: bytes,
        left: bytes,
        weights: list[int] | None,
        passed: float,
        policy: PolicyState | None,
        expected: int,
    ) -> int:
        """Put entries of `_export` back, the first to leave first; return how many came.

        `passed` seconds have passed since; an adaptive cache will hold about `expected` entries.
        """
        seconds = memoryview(left).cast("d")
        if not len(keys) == len(values) == len(states) == len(seconds):
            raise ValueError("_import: the columns are of different lengths")
        if not 1 <= expected <= self._maxsize:
            raise ValueError(f"_import: expected must be 1 to maxsize, got {expected}")
        hashes = [hash(key) for key in keys]  # one that cannot be hashed changes nothing
        fresh = self._is_adaptive and self._adaptive is None and policy is not None
        if fresh:
            self._adapt(expected)
            self._recall(policy)
        # Without a share of the window all go there, in order; else each to its queue, the
        # window's last, which the others pass through.
        placed = self._adaptive is not None
        order = [i for i in range(len(keys)) if not placed]
        for queue in (PROTECTED, PROBATION, WINDOW):
            order += [i for i in range(len(keys)) if placed and states[i] & 3 == queue]
        removed: Removed = []
        count = 0
        ticks: float | None = None
        try:
            for i in order:
                key, weight = keys[i], 1 if weights is None else weights[i]
                ttl = None if seconds[i] < 0 else seconds[i] - passed
                if ttl is not None and ttl <= 0:
                    continue
                if ticks is None and (ttl is not None or self._timed):
                    ticks = self._ticks()
                now = UNREAD if ticks is None else ticks
                entry = self._find(hashes[i], key)
                if entry is not None and entry.expired(now):
                    self._remove(entry, RemovalCause.EXPIRED, removed)
                elif entry is not None:
                    continue
                if self._count >= self._maxsize or self._weight + weight > self._limit:
                    continue
                self._store(hashes[i], key, values[i], ttl, weight, now, removed)
                self._sets -= 1
                count += 1
                if self._is_adaptive:
                    self._place(hashes[i], key, states[i], placed=placed)
        finally:
            self._notify(removed)
        if fresh:
            self._recall(policy)  # the entries have filled the shadows, and aged the scores
        return count

    def _place(self, hashed: int, key: K, state: int, *, placed: bool) -> None:
        """Give what was just put its queue, mark and count."""
        for entry in self._index.get(hashed, ()):
            if entry.key is key:
                if placed:
                    self._queues.move(entry, state & 3)
                entry.count = state >> STATE_COUNT
                entry.mark = bool(state & STATE_MARK)

    def _recall(self, policy: PolicyState | None) -> None:
        """Take over what another policy of the same shadows had learnt."""
        if self._adaptive is not None and policy is not None:
            self._adaptive.recall(self._queues, policy)

    # -- statistics ----------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """Return the counters and the present size."""
        size = sys.getsizeof(self) + sys.getsizeof(self._index)
        size += sum([sys.getsizeof(queue) for queue in self._queues.queues])
        if self._adaptive is not None:
            size += 16 * self._adaptive.size
        if self._wheel is not None:
            size += sum([sys.getsizeof(timers) for timers in [*self._wheel.lists.values()]])
        oldest = self._queues.first()
        if oldest is not None:
            size += self._count * (sys.getsizeof(oldest) + sys.getsizeof((oldest,)))
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            sets=self._sets,
            evictions=self._evictions,
            expirations=self._expirations,
            removals=self._removals,
            rejections=self._rejections,
            currsize=self._count,
            maxsize=self._maxsize,
            weight=self._weight,
            max_weight=self._max_weight,
            bytes=size,
            window=None if self._adaptive is None else self._queues.window_target,
            shadows=() if self._adaptive is None else self._adaptive.ratios(),
            listener_errors=self._listener_errors,
        )

    def reset_stats(self) -> None:
        """Set the counters to 0."""
        self._hits = self._misses = self._sets = 0
        self._evictions = self._expirations = self._removals = self._rejections = 0
        self._listener_errors = 0

    # -- the clock -----------------------------------------------------------------------------

    def _ticks(self) -> float:
        """Read the timer and return the time since construction in ticks of 1/64 s."""
        elapsed = check_time(self._read_timer()) - self._base
        return min(max(elapsed, 0.0), MAX_ELAPSED) * TICKS_PER_SECOND

    # -- searching; these run the keys' code ---------------------------------------------------

    def _find(self, hashed: int, key: Any) -> _Entry | None:
        """Return the entry of `key`, expired or not.

        The entry was in the cache when this returned; None means that the key was not.
        """
        for _ in range(MAX_RESTARTS + 1):
            chain = self._index.get(hashed, ())
            for entry in chain:
                if entry.key is key or entry.key == key:
                    if entry.epoch == self._epoch:
                        return entry
                    break
                if self._index.get(hashed, ()) is not chain:
                    break
            else:
                if self._index.get(hashed, ()) is chain:
                    return None
        raise RuntimeError("cache changed during key comparison")

    def _seek(self, hashed: int, key: Any) -> tuple[_Entry | None, float]:
        """Return the entry of `key` and the time, read only if the entry has a deadline."""
        entry = self._find(hashed, key)
        if entry is None or entry.deadline is None:
            return entry, UNREAD
        ticks = self._ticks()
        if entry.epoch != self._epoch:  # the timer removed it
            entry = self._find(hashed, key)
        return entry, ticks

    def _seek_many(self, keys: Iterable[Any]) -> tuple[list[_Entry | None], float]:
        """Return the entries of `keys` and the time, read once if any entry has a deadline."""
        wanted = [(hash(key), key) for key in list(keys)]
        ticks = self._ticks() if wanted and self._timed else UNREAD
        return [self._find(hashed, key) for hashed, key in wanted], ticks

    def _read(self, key: Any) -> _Entry | None:
        """Return the live entry of `key`, counted and promoted; remove an expired one."""
        entry, ticks = self._seek(hash(key), key)
        if entry is None:
            self._misses += 1
            return None
        if entry.expired(ticks):
            self._misses += 1
            self._remove_one(entry, RemovalCause.EXPIRED)
            return None
        self._promote(entry)
        self._hits += 1
        return entry

    def _take(self, key: Any) -> _Entry | None:
        """Remove the entry of `key` and return it if it was live."""
        hashed = hash(key)
        while True:
            entry, ticks = self._seek(hashed, key)
            if entry is None:
                return None
            expired = entry.expired(ticks)
            cause = RemovalCause.EXPIRED if expired else RemovalCause.EXPLICIT
            if self._remove_one(entry, cause):
                return None if expired else entry

    def _weigh(self, key: Any, value: Any) -> int:
        """Return the weight of an entry to be; ValueError if it is more than the cache holds."""
        if self._weigher is None:
            return 1
        weight = self._weigher(key, value)
        if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT_EACH:
            weight = check_weight(weight)
        if weight > self._limit:
            self._rejections += 1
            raise ValueError(
                f"weight of the value under {key!r} is {weight}, above max_weight {self._limit}"
            )
        return weight

    # -- changing ------------------------------------------------------------------------------

    def _set(self, hashed: int, key: Any, value: Any, ttl: float | None) -> None:
        """Weigh and store one value."""
        weight = self._weigh(key, value)
        ticks = self._ticks() if ttl is not None or self._timed else UNREAD
        removed: Removed = []
        try:
            self._store(hashed, key, value, ttl, weight, ticks, removed)
        finally:
            self._notify(removed)

    def _store(
        self,
        hashed: int,
        key: Any,
        value: Any,
        ttl: float | None,
        weight: int,
        ticks: float,
        removed: Removed,
    ) -> None:
        """Store a value that was weighed; what leaves is appended to `removed`.

        An error from nowhere, as of a signal handler, must not leave the cache over its limits.
        """
        deadline = _deadline(ticks, ttl)
        fresh = _Entry(hashed, key, value, deadline, weight)
        entry: _Entry | None = None
        swept = False
        if self._is_adaptive:
            fresh.mixed = mix(hashed, self._salt)
        try:
            while True:
                chain = self._index.get(hashed, ())
                entry = self._find(hashed, key)
                if self._is_adaptive and self._adaptive is None and self._must_adapt(weight):
                    self._adapt(self._entries_expected())
                if not swept and self._waits(ticks):
                    self._fire(ticks, WHEEL_STEPS, WHEEL_TAKES, removed, whole=False)
                    swept = True
                elif entry is not None and entry.expired(ticks):
                    self._remove(entry, RemovalCause.EXPIRED, removed)
                elif entry is None:
                    if self._enter(fresh, chain, ticks, removed):
                        self._sets += 1
                        if self._is_adaptive:
                            self._settle(fresh, ticks, removed, rose=True)
                        return
                else:
                    self._hold(entry, deadline, ticks)
                    old = self._overwrite(entry, value, deadline, weight)
                    if old is not _MISSING:
                        self._sets += 1
                        removed.append((entry.key, old, RemovalCause.REPLACED))
                        if self._is_adaptive:
                            rose = self._queues.hit(entry)
                            self._settle(entry, ticks, removed, rose=rose, held=True)
                        else:
                            self._promote(entry)
                            self._make_room(0, 0, ticks, removed)
                        return
        except BaseException:
            if self._is_over():
                self._remove(fresh if entry is None else entry, RemovalCause.SIZE, removed)
            raise

    # -- times to live -------------------------------------------------------------------------

    def _waits(self, ticks: float) -> bool:
        """Tell whether the wheel has something to look at, where the clock was read.

        Not from a listener, or its writes would call it ever deeper.
        """
        wheel = self._wheel
        if wheel is None or self._telling:
            return False
        return ticks >= 0.0 and wheel.waits(int(ticks) >> TICK_BITS)

    def _hold(self, entry: _Entry, deadline: int | None, ticks: float) -> None:
        """See that an entry's timer is on the wheel, before it gets that deadline."""
        if deadline is None:
            return
        if self._wheel is None:
            self._wheel = Wheel(int(ticks) >> TICK_BITS)
        timer = Timer()
        # Operators only.
        if entry.timer is None:
            entry.timer = timer
        else:
            timer = entry.timer
        self._wheel.hold(entry, timer, deadline)

    def _holds(self, entry: _Entry, deadline: int | None) -> bool:
        """Tell whether `_hold` was done and is still true; of operators only."""
        if deadline is None:
            return True
        return self._wheel is not None and self._wheel.holds(entry.timer, deadline)

    def _spare_timer(self) -> Timer | None:
        """Take the timer of the entry that left last, which may be none."""
        spare = self._spare
        # Operators only.
        if not spare:
            return None
        timer = spare[-1]
        del spare[-1]
        return timer

    def _free_timer(self, entry: _Entry) -> None:
        """Lay aside the timer of an entry that is not in the cache; it stays on the wheel."""
        spare = [entry.timer]
        # Operators only.
        timer = entry.timer
        if timer is not None and self._wheel is not None:
            lists = self._wheel.lists
            if timer.number in lists and timer in lists[timer.number]:
                lists[timer.number][timer] = None
        entry.timer = None
        self._spare += spare

    def _fire(
        self, ticks: float, steps: float, most: float, removed: Removed, *, whole: bool
    ) -> float:
        """Remove what has expired by `ticks`, at most `most` entries; return the steps left.

        Looks at no more than `steps` timers; those of the second that is not over yet are looked
        at if `whole`.
        """
        wheel = self._wheel
        if wheel is None:
            return steps
        wheel.behind = True  # unless the end is met
        goal = len(removed) + most
        turned: Timer | None = None
        while len(removed) < goal and steps > 0:
            number = wheel.seek(int(ticks) >> TICK_BITS)
            at_end = number == UNFILED
            if at_end:
                number = wheel.present()
            found = wheel.first(number) if whole or not at_end else None
            if found is None or (at_end and found[0] is turned):
                if at_end:
                    break
                continue
            steps -= 1
            timer, entry = found
            deadline = None if entry is None or entry.epoch != self._epoch else entry.deadline
            if entry is None or deadline is None:
                wheel.unfile(timer, entry)
            elif deadline <= ticks:
                self._remove(entry, RemovalCause.EXPIRED, removed)
                wheel.unfile(timer, None)
            elif wheel.again(entry, timer, deadline) == number and turned is None:
                turned = timer
        return steps

    # -- linking -------------------------------------------------------------------------------

    def _enter(
        self, fresh: _Entry, chain: tuple[_Entry, ...], ticks: float, removed: Removed
    ) -> bool:
        """Give a newcomer its timer and link it, for "lru" into room made for it; see `_link`."""
        try:
            fresh.timer = self._spare_timer()
            self._hold(fresh, fresh.deadline, ticks)
            fresh.age = self._queues.age
            if not self._is_adaptive:
                self._make_room(1, fresh.weight, ticks, removed)
            return self._link(fresh, chain)
        finally:
            if fresh.epoch == DEAD:
                self._free_timer(fresh)

    def _link(self, entry: _Entry, chain: tuple[_Entry, ...]) -> bool:
        """Insert `entry` as the newest; False if `chain` is stale or, for "lru", room is short."""
        hashed = entry.hashed
        longer = (*chain, entry)
        # Operators only, after one call at the start.
        if not self._holds(entry, entry.deadline):
            return False
        current = self._index[hashed] if hashed in self._index else ()  # noqa: SIM401
        if current is not chain:
            return False
        if not self._is_adaptive and (
            self._count >= self._maxsize or self._weight + entry.weight > self._limit
        ):
            return False
        self._queues.queues[WINDOW][entry] = None
        try:
            self._index[hashed] = longer
        except MemoryError:
            del self._queues.queues[WINDOW][entry]
            raise
        self._queues.weight[WINDOW] += entry.weight or 1
        entry.epoch = self._epoch
        self._moves += 1
        entry.stamp = self._moves
        self._count += 1
        self._weight += entry.weight
        self._timed += entry.deadline is not None
        self._version += 1
        if self._is_adaptive and (entry.weight or 1) > self._queues.window_target:
            # Too heavy for the window, it is tested first (as in Caffeine): one call, at the end.
            self._queues.queues[WINDOW].move_to_end(entry, last=False)
        return True

    def _unlink(self, entry: _Entry) -> bool:
        """Take `entry` out of the structure; False when it is no longer in it."""
        hashed = entry.hashed
        while True:
            chain = self._index.get(hashed, ())
            shorter = tuple([e for e in chain if e is not entry]) if len(chain) > 1 else ()
            # Operators only, then one call.
            if entry.epoch != self._epoch:
                return False
            if self._index[hashed] is chain:
                if shorter:
                    self._index[hashed] = shorter
                else:
                    del self._index[hashed]
                del self._queues.queues[entry.queue][entry]
                self._queues.weight[entry.queue] -= entry.weight or 1
                entry.epoch = DEAD
                self._count -= 1
                self._weight -= entry.weight
                self._timed -= entry.deadline is not None
                self._version += 1
                if entry.timer is not None or self._spare:
                    self._free_timer(entry)
                return True

    def _overwrite(self, entry: _Entry, value: Any, deadline: int | None, weight: int) -> Any:
        """Give `entry` another value and return the old; _MISSING when it is no longer there."""
        # Operators only, after one call at the start.
        if not self._holds(entry, deadline) or entry.epoch != self._epoch:
            return _MISSING
        old = entry.value
        entry.value = value
        self._timed += (deadline is not None) - (entry.deadline is not None)
        entry.deadline = deadline
        self._weight += weight - entry.weight
        self._queues.weight[entry.queue] += (weight or 1) - (entry.weight or 1)
        entry.weight = weight
        return old

    def _promote(self, entry: _Entry) -> None:
        """Note a hit of `entry`: "lru" makes it the most recently used, if it is still there."""
        if self._is_adaptive:
            self._sample(entry, rose=self._queues.hit(entry))
        elif entry.epoch == self._epoch:
            # Operators only, then one call.
            late = self._moves - entry.stamp
            if late == 0 or late < (self._count >> 3 if self._slack is None else self._slack):
                return
            self._moves += 1
            entry.stamp = self._moves
            self._queues.queues[WINDOW].move_to_end(entry)

    def _sample(self, entry: _Entry, *, rose: bool) -> None:
        """Let the shadows play a request, if its key is sampled."""
        adaptive = self._adaptive
        if adaptive is not None and sampled(adaptive, entry.mixed):
            adaptive.request(self._queues, entry.mixed, rose=rose)

    def _must_adapt(self, weight: int) -> bool:
        """Tell whether the cache is so full that the policy needs its sketch and shadows.

        At the latest when the entry that comes, of `weight`, makes another leave.
        """
        if self._weigher is not None:
            if self._weight + weight > self._limit:
                return True
            if self._count >= 16 and self._weight >= self._limit - self._limit // 2:
                return True
        if self._maxsize >= DEFER:
            return self._count >= self._maxsize // 2
        return self._count >= min(16, self._maxsize // 2)

    def _entries_expected(self) -> int:
        """Return how many entries a full cache will hold, as far as its weights tell."""
        if self._weigher is None or self._weight == 0:
            return self._maxsize
        expected = float(self._count) * float(self._limit) / float(self._weight)
        if expected >= float(self._maxsize):
            return self._maxsize
        return min(self._maxsize, max(16, int(expected)))

    def _adapt(self, entries: int) -> None:
        """Begin to adapt, to a cache of about so many entries, or begin anew after a resize."""
        queues = self._queues
        self._adaptive = Adaptive(entries, self._salt, queues.age)
        queues.sketch = self._adaptive.sketch
        queues.alike = 0
        queues.share(queues.limit // 100)

    def _next_out(self) -> _Entry | None:
        """Return the entry that must leave next."""
        if self._adaptive is not None:
            return self._queues.evict()
        if self._is_adaptive:  # all are in the window still
            return self._queues.window_oldest()
        return self._queues.oldest(WINDOW)

    def _is_over(self) -> bool:
        """Tell whether something must leave."""
        return self._count > self._maxsize or self._weight > self._limit

    def _settle(
        self, entry: _Entry, ticks: float, removed: Removed, *, rose: bool, held: bool = False
    ) -> None:
        """Note the use of an entry just stored and let leave what must.

        That may be the newcomer itself, but not an entry that was `held` already.
        """
        queues = self._queues
        self._sample(entry, rose=rose)
        if self._weigher is not None and self._adaptive is not None and self._is_over():
            self._adaptive.fit(queues, min(self._limit, sum(queues.weight)))
        while self._is_over():
            victim = self._next_out()
            if victim is entry and held:
                others = (other for other in queues.walk() if other is not entry)
                victim = next(others, None)
            if victim is None:
                break
            cause = RemovalCause.EXPIRED if victim.expired(ticks) else RemovalCause.SIZE
            if self._remove(victim, cause, removed) and victim is entry:
                self._rejections += 1
        queues.overflow()

    def _remove(self, entry: _Entry, cause: RemovalCause, removed: Removed) -> bool:
        """Unlink, count and note `entry`; False when it is no longer in the cache."""
        if not self._unlink(entry):
            return False
        self._queues.left(entry)
        if cause is RemovalCause.EXPLICIT:
            self._removals += 1
        elif cause is RemovalCause.EXPIRED:
            self._expirations += 1
        else:
            self._evictions += 1
        removed.append((entry.key, entry.value, cause))
        return True

    def _remove_one(self, entry: _Entry, cause: RemovalCause) -> bool:
        """Remove `entry` as the last step of an operation."""
        removed: Removed = []
        done = self._remove(entry, cause, removed)
        self._notify(removed)
        return done

    def _evict_next(self, ticks: float, removed: Removed) -> bool:
        """Remove the entry that must leave next; False if there is none."""
        entry = self._next_out()
        if entry is None:
            return False
        cause = RemovalCause.EXPIRED if entry.expired(ticks) else RemovalCause.SIZE
        self._remove(entry, cause, removed)
        return True

    def _make_room(self, count: int, weight: int, ticks: float, removed: Removed) -> None:
        """Evict until `count` more entries of `weight` in all fit."""
        while self._count + count > self._maxsize or self._weight + weight > self._limit:
            if not self._evict_next(ticks, removed):
                return

    def _notify(self, removed: Removed) -> None:
        """Tell `on_removal` what left, in order."""
        callback = self._on_removal
        if callback is None or not removed:
            return
        self._telling += 1
        try:
            for key, value, cause in removed:
                try:
                    callback(key, value, cause)
                except BaseException as error:  # noqa: BLE001 - as from a finalizer: to the hook
                    self._listener_errors += 1
                    report_unraisable(error, callback)
        finally:
            self._telling -= 1

    def _live(self) -> list[_Entry]:
        """Return the live entries, the next to leave first."""
        if not self._timed:
            return self._queues.walk()
        ticks = self._ticks()
        return [entry for entry in self._queues.walk() if not entry.expired(ticks)]

    def _check(self) -> None:
        """Raise AssertionError naming the first broken invariant."""
        ordered = self._queues.walk()
        chained = [entry for chain in self._index.values() for entry in chain]
        assert set(map(id, ordered)) == set(map(id, chained)), "invariant 1: order and index differ"
        assert len(ordered) == len(chained), "invariant 1: an entry is chained or queued twice"
        for number, queue in enumerate(self._queues.queues):
            assert all(e.queue == number for e in queue), "invariant 1: entry on a wrong queue"
            total = sum(e.weight or 1 for e in queue)
            assert total == self._queues.weight[number], "invariant 5: weight of a queue"
            assert not queue or number == WINDOW or self._is_adaptive, "invariant 1: lru, one queue"
        for hashed, chain in self._index.items():
            assert all(e.hashed == hashed for e in chain), "invariant 1: entry in a wrong chain"
            assert chain, "invariant 4: empty chain"
            assert len({id(e.key) for e in chain}) == len(chain), "invariant 4: key twice"
        assert all(e.epoch == self._epoch for e in ordered), "invariant 1: dead entry"
        assert self._count == len(ordered), "invariant 2: count"
        assert self._weight == sum(e.weight for e in ordered), "invariant 2: weight"
        timed = sum(e.deadline is not None for e in ordered)
        assert self._timed == timed, "invariant 2: number of entries with a deadline"
        assert self._count <= self._maxsize, "invariant 3: maxsize"
        assert self._weight <= self._limit, "invariant 3: max_weight"
        filed = {} if self._wheel is None else self._wheel.check()
        for entry in ordered:
            deadline = entry.deadline
            if deadline is not None:
                assert entry.timer in filed, "invariant 6: an entry is not on the wheel"
                assert filed[entry.timer] is entry, "invariant 6: another entry's timer"
                assert self._wheel is not None
                assert entry.timer is not None
                second = max(self._wheel.position, deadline >> TICK_BITS)
                assert self._wheel.time(entry.timer.number) <= second, "invariant 6: a late timer"
        timers = {id(e.timer) for e in ordered if e.timer is not None}
        spare = {id(timer) for timer in self._spare if timer is not None}
        assert not timers & spare, "invariant 6: a spare timer is in use"


Mapping.register(Cache)


class _KeyIterator(Iterator[K]):
    """Walks the live keys of a cache; holds the cache until it is exhausted."""

    __slots__ = ("_cache", "_entries", "_version")

    def __init__(self, cache: Cache[K, Any]) -> None:
        self._cache: Cache[K, Any] | None = cache
        self._version = cache._version  # noqa: SLF001
        chains = cache._index.values()  # noqa: SLF001
        self._entries = (entry for chain in chains for entry in chain)

    def __next__(self) -> K:
        cache = self._cache
        if cache is None:
            raise StopIteration
        ticks = cache._ticks() if cache._timed else UNREAD  # noqa: SLF001
        while True:
            if cache._version != self._version:  # noqa: SLF001
                raise RuntimeError("cache changed size during iteration")
            try:
                entry = next(self._entries, None)
            except RuntimeError:  # another thread changed the index just now
                continue
            if entry is None:
                self._cache = None
                raise StopIteration
            if not entry.expired(ticks):
                key: K = entry.key
                return key


def _pairs(items: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a mapping or of an iterable of pairs; ValueError if one is none."""
    pairs: list[tuple[Any, Any]] = []
    for number, item in enumerate(items.items() if hasattr(items, "items") else items):
        try:
            key, value = item
        except (TypeError, ValueError):
            raise ValueError(
                f"set_many item {number} must be a (key, value) pair, got {item!r}"
            ) from None
        pairs.append((key, value))
    return pairs


def _deadline(ticks: float, ttl: float | None) -> int | None:
    """Return the first tick at which `ttl` seconds from `ticks` have surely passed."""
    return None if ttl is None else math.ceil(ticks + ttl * TICKS_PER_SECOND)
