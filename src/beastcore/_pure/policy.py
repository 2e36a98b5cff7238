"""The policy "adaptive" in pure Python: the twin of `beastcore._policy`, step for step.

Lazy W-TinyLFU: records live in three queues: a window FIFO for newcomers, a probation FIFO and a
protected CLOCK. A hit only marks its record and counts up in it; queues move when something
enters or leaves. A newcomer that falls out of the window must have been used more often than the
main queues' next victim to take its place. How large the window is, and from which count on more
use no longer counts, follow from five shadow caches of sampled keys that try fixed rules; the
rules, their reasons and the sources are in _policy.pxd.

Integers wrap where the compiled twin's do (32 and 64 bits) and scores are doubles, so that both
decide alike from the same salt.

Foreign code may run at any call or loop and may come back here. Sections marked "operators only"
(see cache.py) move a record from one queue to another; each verifies first that the record is
still held, and the loops look anew after each step. The sketch holds estimates, which a step lost
does not harm. Shadows are played by one request at a time; one that arrives meanwhile is not
sampled, and one that an error interrupts makes the shadows start anew.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from beastcore._types import PolicyState

__all__ = ["PROBATION", "PROTECTED", "WINDOW", "Adaptive", "Queues", "Record", "mix", "sampled"]

WINDOW, PROBATION, PROTECTED = 0, 1, 2
DEFER = 10_000
"""Caches of at least so many entries begin to adapt when they are half full."""

_M32, _M64 = 2**32 - 1, 2**64 - 1
_MOST = 15  # of a four-bit counter
_WINDOW_TURNS, _VICTIM_TURNS, _DEMOTE_TURNS, _MOVES = 64, 64, 128, 16
_WARM, _CHANCE = 6, 128
_RULES = ((0.01, 0), (0.10, 3), (0.35, 0), (0.40, 2), (1.0, 0))
"""What the shadows try: the share of the window, and `Queues.alike`."""
_SHADOW_MOST, _SHADOW_LEAST, _SHADOW_SHIFT = 4095, 96, 5
_AGING = 20


def mix(hashed: int, salt: int) -> int:
    """Return 32 bits of a hash, salted; the folded multiplication of _hash.pxd."""
    mixed = (hashed & _M64) ^ salt
    mixed = ((mixed ^ (mixed >> 32)) * 0x9E3779B97F4A7C15) & _M64
    return (mixed ^ (mixed >> 32)) & 0xFFFFFFFF


class Record:
    """What the policy keeps about one entry of the cache, or about one key of a shadow."""

    __slots__ = ("age", "count", "mark", "mixed", "queue", "weight")

    def __init__(self, mixed: int, weight: int, age: int = 0) -> None:
        self.mixed = mixed
        self.weight = weight
        self.queue = WINDOW
        self.mark = False
        """Used since the queues last looked at it."""
        self.count = 1
        """How often it was used, at most 15, halved whenever the sketch is."""
        self.age = age
        """The sketch's age when `count` was last looked at."""


R = TypeVar("R", bound=Record)


class Sketch:
    """A count-min sketch of four-bit counters, each key's four in one block of eight words."""

    __slots__ = ("_increments", "_limit", "_mask", "_sweep", "age", "words")

    def __init__(self, size: int, age: int = 0) -> None:
        n = 256
        while n < size:
            n *= 2
        self.words = [0] * n
        self._mask = n // 8 - 1
        self._sweep = n // 8  # the next block to halve
        self._limit = _AGING * max(256, size)
        self._increments = 0
        self.age = age
        """Number of halvings, modulo 256."""

    def _places(self, mixed: int) -> list[tuple[int, int]]:
        x = (mixed * 0x9E3779B97F4A7C15) & _M64
        x ^= x >> 29
        block = 8 * ((x >> 40) & self._mask)
        return [(block + 2 * i + (x >> 8 * i & 1), 4 * (x >> 8 * i + 1 & _MOST)) for i in range(4)]

    def estimate(self, mixed: int) -> int:
        """Return how often a key was used, 0 to 15."""
        words = self.words
        return min([words[word] >> shift & _MOST for word, shift in self._places(mixed)])

    def add(self, mixed: int, n: int) -> None:
        """Count `n` uses of a key, and go on halving if that was begun."""
        words = self.words
        for word, shift in self._places(mixed):
            count = min(_MOST, (words[word] >> shift & _MOST) + n)
            words[word] = (words[word] & ~(_MOST << shift)) | count << shift
        if self._sweep <= self._mask:
            self._halve_block()

    def tally(self, n: int) -> None:
        """Note `n` increments; begin to halve all counters when there were enough."""
        self._increments += n
        if self._increments >= self._limit:
            self._increments = self._limit // 2
            while self._sweep <= self._mask:  # the sweep before must be done first
                self._halve_block()
            self._sweep = 0
            self.age = (self.age + 1) & 255

    def _halve_block(self) -> None:
        first = 8 * self._sweep
        self._sweep += 1
        for word in range(first, first + 8):
            self.words[word] = self.words[word] >> 1 & 0x7777777777777777


class Queues(Generic[R]):
    """The three queues, oldest first, and the weight of each; "lru" uses the first one alone.

    Invariant: a record is on at most one queue, `record.queue`; `weight` has the sum of the
    weights of each queue, where a record weighs at least 1.
    """

    __slots__ = (
        *("_protected_target", "_random", "alike", "limit", "moves", "queues", "sketch"),
        *("weight", "window_target"),
    )

    def __init__(self, limit: int, seed: int) -> None:
        self.queues: list[OrderedDict[R, None]] = [OrderedDict() for _ in range(3)]
        self.weight = [0, 0, 0]
        self.sketch: Sketch | None = None
        """Set: records carry counts, which the sketch completes."""
        self.limit = self.window_target = limit
        self._protected_target = 0
        self._random = seed
        self.alike = 0
        """Counts from here on are alike, and ties win; 0: none are, and ties lose."""
        self.moves = 0

    def share(self, window: int) -> None:
        """Set how much of the limit the window is to have; queues follow by and by."""
        self.window_target = min(max(window, 1), self.limit)
        self._protected_target = (self.limit - self.window_target) * 4 // 5

    def push(self, record: R) -> None:
        """Put a newcomer into the window."""
        # Operators only.
        self.queues[WINDOW][record] = None
        record.queue = WINDOW
        self.weight[WINDOW] += record.weight or 1

    def drop(self, record: R) -> None:
        """Take a record off its queue."""
        # Operators only.
        if record in self.queues[record.queue]:
            del self.queues[record.queue][record]
            self.weight[record.queue] -= record.weight or 1

    def move(self, record: R, target: int) -> None:
        """Make a record the newest of a queue, without its mark, if it is still held."""
        # Operators only, at the most one call at the end.
        source = record.queue
        if record not in self.queues[source]:
            return
        self.moves += 1
        record.mark = False
        if source == target:
            self.queues[target].move_to_end(record)
            return
        self.queues[target][record] = None
        del self.queues[source][record]
        record.queue = target
        self.weight[source] -= record.weight or 1
        self.weight[target] += record.weight or 1

    def oldest(self, queue: int) -> R | None:
        """Return the oldest record of a queue."""
        for record in self.queues[queue]:
            return record
        return None

    def _newest(self, queue: int) -> R | None:
        """Return the newest record of a queue."""
        while True:
            backwards = reversed(self.queues[queue])
            try:
                return next(backwards, None)
            except RuntimeError:  # foreign code changed the queue between these calls
                continue

    def walk(self) -> list[R]:
        """Return all records in the order of leaving: exact for "lru", roughly so otherwise."""
        while True:
            moves = self.moves
            probation, window, protected = (self.queues[i] for i in (PROBATION, WINDOW, PROTECTED))
            found = [*probation, *window, *protected]
            if moves == self.moves:
                return found

    def first(self) -> R | None:
        """Return the first record of `walk`."""
        for queue in (PROBATION, WINDOW, PROTECTED):
            record = self.oldest(queue)
            if record is not None:
                return record
        return None

    # -- counts --------------------------------------------------------------------------------

    @property
    def age(self) -> int:
        """Number of halvings of the counts, modulo 256."""
        return 0 if self.sketch is None else self.sketch.age

    def count(self, record: R) -> int:
        """Return a record's own count."""
        age = self.age
        late = (age - record.age) & 255
        if late:
            record.count = record.count >> late if late < 5 else 0
            record.age = age
        return record.count

    def hit(self, record: R) -> bool:
        """Note a hit in the record itself; tell whether its count went up."""
        count = self.count(record)
        record.mark = True
        record.count = min(_MOST, count + 1)
        return count < _MOST

    def left(self, record: R) -> None:
        """Remember in the sketch how often a record that leaves was used."""
        if self.sketch is not None:
            self.sketch.add(record.mixed, self.count(record))

    # -- who leaves ----------------------------------------------------------------------------

    def estimate(self, record: R) -> int:
        """Return how often a record was used, at most 15."""
        if self.sketch is None:
            return 0
        return min(_MOST, self.sketch.estimate(record.mixed) + self.count(record))

    def window_oldest(self) -> R | None:
        """Return the oldest of the window, giving marked ones another turn."""
        turns = 0
        while True:
            record = self.oldest(WINDOW)
            if record is None or not record.mark or turns == _WINDOW_TURNS:
                return record
            self.move(record, WINDOW)
            turns += 1

    def _demote(self) -> None:
        """Bring protected back to its share: its oldest go to probation, marked ones around."""
        turns = 0
        while self.weight[PROTECTED] > self._protected_target:
            record = self.oldest(PROTECTED)
            if record is None:
                return
            if record.mark and turns < _DEMOTE_TURNS:
                self.move(record, PROTECTED)
                turns += 1
            else:
                self.move(record, PROBATION)

    def _main_victim(self) -> R | None:
        """Return the record of probation that is next to leave; it stays where it is."""
        turns = 0
        while True:
            record = self.oldest(PROBATION)
            if record is None:
                record = self.oldest(PROTECTED)
                if record is not None:
                    self.move(record, PROBATION)
                return record
            if not record.mark or turns == _VICTIM_TURNS:
                return record
            self.move(record, PROTECTED)
            self._demote()
            turns += 1

    def _window_is_over(self) -> bool:
        """Tell whether the window is over its share by more than its newest record.

        The oldest may be one too heavy for the window, which is still to be tested.
        """
        if self.weight[WINDOW] <= self.window_target + 1:
            return False
        oldest = self.oldest(WINDOW)
        if oldest is None or (oldest.weight or 1) > self.window_target:
            return False
        newest = self._newest(WINDOW)
        if newest is None:
            return False
        return self.weight[WINDOW] > self.window_target + (newest.weight or 1)

    def _adjust(self) -> None:
        """Move some records towards the present shares; nothing leaves.

        The window may be over its share by its newest record, or by one too heavy for it. They
        have not been tested yet: in probation a heavy one would push out everything before it.
        """
        for _ in range(_MOVES):
            if self.weight[PROTECTED] > self._protected_target:
                record, target = self.oldest(PROTECTED), PROBATION
            elif self._window_is_over():
                record, target = self.oldest(WINDOW), PROBATION
            elif self.weight[WINDOW] + 1 < self.window_target:
                record, target = self._main_victim(), WINDOW
            else:
                return
            if record is None:
                return
            self.move(record, target)

    def overflow(self) -> None:
        """While the cache is not full, what falls out of the window enters probation."""
        for _ in range(_MOVES):
            if self.weight[WINDOW] <= self.window_target:
                return
            record = self.window_oldest()
            if record is None:
                return
            self.move(record, PROBATION)

    def evict(self, *, counts: bool = True) -> R | None:
        """Return who leaves a cache that is over its limit; it is still on its queue.

        A candidate that wins stays the window's oldest, and has to win against each further
        victim that it displaces; frequencies are compared per weight, so that one heavy newcomer
        does not push out many light entries. A shadow's records have no `counts`.
        """
        self._adjust()
        if self.weight[WINDOW] <= self.window_target:
            victim = self._main_victim()
            return self.oldest(WINDOW) if victim is None else victim
        candidate = self.window_oldest()
        victim = self._main_victim()
        if victim is None or candidate is None:
            return candidate or victim
        if counts or self.sketch is None:
            of_candidate, of_victim = self.estimate(candidate), self.estimate(victim)
        else:
            of_candidate = self.sketch.estimate(candidate.mixed)
            of_victim = self.sketch.estimate(victim.mixed)
        alike = self.alike
        gain = (min(of_candidate, alike) if alike else of_candidate) * (victim.weight or 1)
        loss = (min(of_victim, alike) if alike else of_victim) * (candidate.weight or 1)
        if gain > loss or (gain == loss and alike and of_candidate >= 2):
            return victim
        if of_candidate >= _WARM and self._chance() % _CHANCE == 0:
            return victim
        return candidate

    def _chance(self) -> int:
        """Return 32 random bits (xorshift of Marsaglia)."""
        x = self._random
        x ^= x << 13 & _M64
        x ^= x >> 7
        x ^= x << 17 & _M64
        self._random = x
        return x >> 32


class Shadow:
    """A cache of sampled keys, without values, that tries one rule."""

    __slots__ = ("_capacity", "_queues", "_records", "alike", "hits", "score", "share")

    def __init__(self, capacity: int, rule: tuple[float, int], sketch: Sketch, seed: int) -> None:
        share, alike = rule
        self._capacity = capacity
        self._records: dict[int, Record] = {}
        self._queues: Queues[Record] = Queues(capacity, seed)
        self._queues.sketch = sketch
        self._queues.alike = self.alike = alike
        self._queues.share(int(share * float(capacity)))
        self.share = share
        self.hits = 0
        """Of this epoch."""
        self.score = 0.0
        """Hits, of older epochs less."""

    def request(self, mixed: int) -> None:
        """Play one request: a hit, or a miss followed by an insertion."""
        record = self._records.get(mixed)
        if record is not None:
            record.mark = True
            self.hits += 1
            return
        record = self._records[mixed] = Record(mixed, 1)
        self._queues.push(record)
        if len(self._records) > self._capacity:
            out = self._queues.evict(counts=False)
            if out is not None:
                self._queues.drop(out)
                del self._records[out.mixed]
        self._queues.overflow()


class Adaptive:
    """The sketch of a cache of about `entries`, and the shadows that choose its window's share."""

    __slots__ = (
        *("_asked", "_best", "_busy", "_capacity", "_epoch", "_epoch_length", "_salt"),
        *("_shadow_sketch", "_shadows", "_whole", "sample_mask", "sample_step", "sketch"),
    )

    def __init__(self, entries: int, salt: int, age: int) -> None:
        shift = _SHADOW_SHIFT
        while entries >> shift > _SHADOW_MOST:
            shift += 1
        while shift > 0 and entries >> shift < _SHADOW_LEAST:
            shift -= 1
        self.sketch = Sketch(entries, age)
        self.sample_mask = ((1 << shift) - 1) << (32 - shift)
        """A key is sampled if these bits of its second hash are zero."""
        self.sample_step = 1 << shift
        """Requests that a sampled one stands for."""
        self._capacity = max(1, entries >> shift)
        self._salt = salt
        self._epoch = 0
        self._epoch_length = max(125, entries // 8)
        self._asked = 0.0
        self._best = 0
        self._busy = False
        self._start()

    def _start(self) -> None:
        """Make empty shadows."""
        self._shadow_sketch = Sketch(self._capacity)
        self._shadows = [
            Shadow(self._capacity, rule, self._shadow_sketch, (self._salt * 31 + i + 1) & _M64)
            for i, rule in enumerate(_RULES)
        ]
        self._whole = True

    @property
    def size(self) -> int:
        """Number of words and of shadows' records, to estimate the memory taken."""
        words = len(self.sketch.words) + len(self._shadow_sketch.words)
        return words + len(_RULES) * self._capacity

    def ratios(self) -> tuple[tuple[float, float], ...]:
        """Return each shadow's share of the window and hit ratio; () before the first request."""
        asked = self._asked + float(self._epoch // self.sample_step)
        if asked == 0.0:
            return ()
        return tuple([(s.share, (s.score + float(s.hits)) / asked) for s in self._shadows])

    def fit(self, queues: Queues[R], limit: int) -> None:
        """Follow the weight that a full cache holds, which its number of entries may bound."""
        if queues.limit != limit:
            queues.limit = limit
            queues.share(int(_RULES[self._best][0] * float(limit)))

    def request(self, queues: Queues[R], mixed: int, *, rose: bool) -> None:
        """Count a sampled request for all that it stands for; after an epoch choose anew.

        `rose`: the request raised a count, which ages the counts.
        """
        if self._busy:  # no pause between these two lines
            return
        self._busy = True
        try:
            if not self._whole:
                self._start()
            self._whole = False
            self._shadow_sketch.add(mixed, 1)
            self._shadow_sketch.tally(1)
            for shadow in self._shadows:
                shadow.request(mixed)
            self._whole = True
            if rose:
                self.sketch.tally(self.sample_step)
            self._epoch += self.sample_step
            if self._epoch >= self._epoch_length:
                self._choose(queues)
        finally:
            self._busy = False

    def _choose(self, queues: Queues[R]) -> None:
        """Take the rule that served best, if it leads by more than 2 %."""
        shadows, best = self._shadows, 0
        self._asked = 0.99 * self._asked + float(self._epoch // self.sample_step)
        self._epoch = 0
        for i, shadow in enumerate(shadows):
            shadow.score = 0.99 * shadow.score + float(shadow.hits)
            shadow.hits = 0
            if shadow.score > shadows[best].score:
                best = i
        if best != self._best and shadows[best].score > 1.02 * shadows[self._best].score:
            self._follow(queues, best)

    def _follow(self, queues: Queues[R], best: int) -> None:
        """Let the queues do as one of the shadows does."""
        self._best = best
        queues.alike = self._shadows[best].alike
        queues.share(int(self._shadows[best].share * float(queues.limit)))

    def learnt(self) -> PolicyState:
        """Return what a dump of the cache carries on."""
        shadows = self._shadows
        scores = tuple([(shadow.share, shadow.score) for shadow in shadows])
        return shadows[self._best].share, self._asked, scores

    def recall(self, queues: Queues[R], policy: PolicyState) -> None:
        """Take over what another policy of the same shadows had learnt.

        No more of it than this one's own epochs would hold, lest it take long to learn better.
        """
        chosen, asked, scores = policy
        shares = [share for share, _ in scores]
        if shares != [shadow.share for shadow in self._shadows] or chosen not in shares:
            return
        most = 100.0 * float(self._epoch_length // self.sample_step)
        scale = most / asked if asked > most else 1.0
        for shadow, (_, score) in zip(self._shadows, scores, strict=True):
            shadow.score = score * scale
            shadow.hits = 0
        self._asked = asked * scale
        self._epoch = 0
        self._follow(queues, shares.index(chosen))


def sampled(adaptive: Adaptive, mixed: int) -> bool:
    """Tell whether a key is one of those that the shadows play."""
    return (mixed * 0x85EBCA6B & _M32) & adaptive.sample_mask == 0
