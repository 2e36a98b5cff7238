"""`Cache` of both twins, driven in lockstep and compared after each step.

With "lru" of slack 0 a model of lists and dicts is a third, which is told when the wheel removed an
entry and sees to it that it had expired. Otherwise there is no model: the twins, given the same
salt, must agree on every entry that leaves.

`python tests/cache_lockstep.py STEPS [SEED]` plays that many random steps and prints how many it
played; the first difference ends it with the steps that led there. The tests of hypothesis
(tests/engine/test_cache_model.py) use the same operations.
"""

from __future__ import annotations

import math
import operator
import random
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from beastcore import RemovalCause
from support import FakeClock, Twin


class Slow:
    """A key that only Python can compare; all have the hash of 7."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slow) and self.name == other.name

    def __repr__(self) -> str:
        return f"Slow({self.name})"


M61 = 2**61 - 1
KEYS: list[Any] = [0, 0.0, False, 1, True, 1.0, -1, -2, math.inf, None, M61, 2 * M61, 3 * M61]
KEYS += ["", "a", "b", b"a", "\u20ac", (1, 2), 1 << 20, 2 << 20, 1 << 40, 2.5, frozenset({1}), 7]
KEYS += [Slow(1), Slow(2), Slow(1), 7 + M61, (7,), ("a", 7 + M61), ("a", 7)]
TTLS: list[Any] = [None, 0.01, 0.25, 1, 3.0, 60, 1000, 40_000, 900_000.0, math.inf]
BAD_TTLS: list[Any] = [0, -1, math.nan, "1"]
STEPS_OF_TIME = [0.0, 1 / 128, 1 / 64, 0.1, 0.25, 1, 1, 5, 100, 600, 40_000, 3e6, -0.25, -3]
OWN: Any = ...


class Model:
    """What `Cache` promises with "lru" and slack 0, plainly: every operation scans."""

    def __init__(
        self,
        maxsize: int,
        ttl: float | None,
        *,
        max_weight: int | None,
        weigher: Callable[[Any, Any], int] | None,
        timer: Callable[[], float],
        on_removal: Callable[[Any, Any, RemovalCause], None],
    ) -> None:
        self.maxsize, self.ttl, self.max_weight = maxsize, ttl, max_weight
        self.weigher, self.timer, self.on_removal = weigher, timer, on_removal
        self.base = timer()
        self.entries: list[list[Any]] = []  # [key, value, deadline, weight], oldest first
        self.seen: list[Any] = []  # what a twin told of the operation that comes
        self.hits = self.misses = self.sets = 0
        self.evictions = self.expirations = self.removals = self.rejections = 0

    def now(self) -> float:
        return max(0.0, self.timer() - self.base)

    def expired(self, entry: list[Any]) -> bool:
        return entry[2] is not None and math.floor(self.now() * 64) >= entry[2]

    def find(self, key: Any) -> list[Any] | None:
        hash(key)
        for entry in self.entries:
            if entry[0] is key or (hash(entry[0]) == hash(key) and entry[0] == key):
                return entry
        return None

    def remove(self, entry: list[Any], cause: RemovalCause, told: list[Any]) -> None:
        self.entries = [e for e in self.entries if e is not entry]
        if cause is RemovalCause.SIZE:
            self.evictions += 1
        elif cause is RemovalCause.EXPIRED:
            self.expirations += 1
        else:
            self.removals += 1
        told.append((entry[0], entry[1], cause))

    def sweep(self, told: list[Any], most: int) -> None:
        """Remove up to `most` expired entries, those that the twin removed at this point."""
        for _ in range(most):
            seen = self.seen[len(told) : len(told) + 1]
            swept = [
                entry
                for entry in self.entries
                if seen == [(repr(entry[0]), entry[1], RemovalCause.EXPIRED)]
                and self.expired(entry)
            ]
            if not swept:
                return
            self.remove(swept[0], RemovalCause.EXPIRED, told)

    def tell(self, told: list[Any]) -> None:
        self.seen = self.seen[len(told) :]
        for key, value, cause in told:
            self.on_removal(key, value, cause)

    def live(self, key: Any, told: list[Any] | None = None) -> list[Any] | None:
        entry = self.find(key)
        if entry is None or not self.expired(entry):
            return entry
        if told is not None:
            self.remove(entry, RemovalCause.EXPIRED, told)
        return None

    def lookup(self, key: Any, told: list[Any]) -> list[Any] | None:
        entry = self.live(key, told)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self.promote(entry)
        return entry

    def promote(self, entry: list[Any]) -> None:
        self.entries = [e for e in self.entries if e is not entry] + [entry]

    def get(self, key: Any, default: Any = None) -> Any:
        told: list[Any] = []
        entry = self.lookup(key, told)
        self.tell(told)
        return default if entry is None else entry[1]

    def __getitem__(self, key: Any) -> Any:
        missing = object()
        value = self.get(key, missing)
        if value is missing:
            raise KeyError(key)
        return value

    def peek(self, key: Any, default: Any = None) -> Any:
        entry = self.live(key)
        return default if entry is None else entry[1]

    def __contains__(self, key: Any) -> bool:
        return self.live(key) is not None

    def get_many(self, keys: Any, default: Any = None) -> list[Any]:
        told: list[Any] = []
        found = [self.lookup(key, told) for key in keys]
        self.tell(told)
        return [default if entry is None else entry[1] for entry in found]

    def expires_in(self, key: Any) -> float | None:
        entry = self.live(key)
        if entry is None:
            raise KeyError(key)
        return None if entry[2] is None else entry[2] / 64 - self.now()

    def frequency(self, key: Any) -> int:
        self.live(key)
        return 0  # "lru" counts nothing

    def seconds(self, ttl: Any) -> float | None:
        if ttl is OWN:
            return self.ttl
        if ttl is None or ttl == math.inf:
            return None
        if not isinstance(ttl, (int, float)):
            allowed = "a positive number of seconds or None"
            raise TypeError(f"ttl must be {allowed}, got {ttl!r}")
        if math.isnan(ttl):
            raise ValueError("ttl must be a positive number of seconds or None, got nan")
        if ttl <= 0:
            raise ValueError(f"ttl must be positive (None never expires), got {ttl!r}")
        return float(ttl)

    def deadline(self, seconds: float | None) -> int | None:
        return None if seconds is None else math.ceil((self.now() + seconds) * 64)

    def weigh(self, key: Any, value: Any) -> int:
        if self.weigher is None or self.max_weight is None:
            return 1
        weight = self.weigher(key, value)
        if weight > self.max_weight:
            self.rejections += 1
            raise ValueError(
                f"weight of the value under {key!r} is {weight}, above max_weight {self.max_weight}"
            )
        return weight

    @property
    def weight(self) -> int:
        return sum(e[3] for e in self.entries)

    def fits(self, count: int, weight: int) -> bool:
        if len(self.entries) + count > self.maxsize:
            return False
        return self.max_weight is None or self.weight + weight <= self.max_weight

    def evict_oldest(self, told: list[Any]) -> None:
        entry = self.entries[0]
        cause = RemovalCause.EXPIRED if self.expired(entry) else RemovalCause.SIZE
        self.remove(entry, cause, told)

    def store(
        self, key: Any, value: Any, seconds: float | None, weight: int, told: list[Any]
    ) -> None:
        self.sweep(told, 64)
        entry = self.live(key, told)
        if entry is not None:
            told.append((entry[0], entry[1], RemovalCause.REPLACED))
            entry[1:] = [value, self.deadline(seconds), weight]
            self.promote(entry)
            while not self.fits(0, 0):
                self.evict_oldest(told)
        else:
            while not self.fits(1, weight):
                self.evict_oldest(told)
            self.entries.append([key, value, self.deadline(seconds), weight])
        self.sets += 1

    def set(self, key: Any, value: Any, ttl: Any = OWN) -> None:
        hash(key)
        self.set_many([(key, value)], ttl)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def set_many(self, items: Any, ttl: Any = OWN) -> None:
        seconds = self.seconds(ttl)
        told: list[Any] = []
        weighed = [(hash(k), k, v, self.weigh(k, v)) for k, v in dict_items(items)]
        for _, key, value, weight in weighed:
            self.store(key, value, seconds, weight, told)
        self.tell(told)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        told: list[Any] = []
        entry = self.lookup(key, told)
        self.tell(told)
        if entry is not None:
            return entry[1]
        self.set(key, default)
        return default

    def touch(self, key: Any, ttl: Any = OWN) -> bool:
        seconds = self.seconds(ttl)
        told: list[Any] = []
        entry = self.live(key, told)
        self.tell(told)
        if entry is None:
            return False
        entry[2] = self.deadline(seconds)
        return True

    def pop(self, key: Any, *default: Any) -> Any:
        told: list[Any] = []
        entry = self.live(key, told)
        if entry is not None:
            self.remove(entry, RemovalCause.EXPLICIT, told)
        self.tell(told)
        if entry is not None:
            return entry[1]
        if default:
            return default[0]
        raise KeyError(key)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def popitem(self) -> tuple[Any, Any]:
        told: list[Any] = []
        while self.entries and self.expired(self.entries[0]):
            self.remove(self.entries[0], RemovalCause.EXPIRED, told)
        entry = self.entries[0] if self.entries else None
        if entry is not None:
            self.remove(entry, RemovalCause.EXPLICIT, told)
        self.tell(told)
        if entry is None:
            raise KeyError("popitem(): cache is empty")
        return entry[0], entry[1]

    def delete_many(self, keys: Any) -> int:
        told: list[Any] = []
        deleted = 0
        for key in keys:
            entry = self.live(key, told)
            if entry is not None:
                self.remove(entry, RemovalCause.EXPLICIT, told)
                deleted += 1
        self.tell(told)
        return deleted

    def expire(self, limit: int | None = None) -> int:
        told: list[Any] = []
        expired = sum(map(self.expired, self.entries))
        self.sweep(told, expired if limit is None else min(expired, limit))
        assert limit is not None or len(told) == expired, "expire() left some"
        self.tell(told)
        return len(told)

    def evict(self, n: int) -> int:
        told: list[Any] = []
        while self.entries and len(told) < n:
            self.evict_oldest(told)
        self.tell(told)
        return len(told)

    def resize(self, maxsize: int) -> int:
        self.maxsize = maxsize
        return self.evict(max(0, len(self.entries) - maxsize))

    def clear(self) -> None:
        told: list[Any] = []
        for entry in list(self.entries):
            self.remove(entry, RemovalCause.EXPLICIT, told)
        self.tell(told)

    def items(self) -> list[Any]:
        return [(e[0], e[1]) for e in self.entries if not self.expired(e)]

    def keys(self) -> list[Any]:
        return [key for key, _ in self.items()]

    def values(self) -> list[Any]:
        return [value for _, value in self.items()]

    def __iter__(self) -> Any:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return dict(self.items()) == other

    __hash__ = None  # type: ignore[assignment]

    def reset_stats(self) -> None:
        self.hits = self.misses = self.sets = 0
        self.evictions = self.expirations = self.removals = self.rejections = 0

    def counters(self) -> tuple[Any, ...]:
        counted = (self.hits, self.misses, self.sets, self.evictions, self.expirations)
        counted += (self.removals, self.rejections)
        return (*counted, len(self.entries), self.maxsize, self.weight, self.max_weight)


def dict_items(items: Any) -> Any:
    return items.items() if isinstance(items, dict) else items


OPERATORS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "in": operator.contains,
    "len": len,
    "iter": lambda c: sorted(map(repr, c)),
    "eq": operator.eq,
}


def random_step(rng: random.Random, more: int = 0, top: int = 20) -> tuple[Any, ...]:
    """Return one operation: its name and arguments.

    Keys are KEYS and, if `more`, so many ints, the lower ones often; sizes are about `top`.
    """

    def pick() -> Any:
        return int(more * rng.random() ** 3) if more and rng.random() < 0.9 else rng.choice(KEYS)

    key = pick()
    value = rng.randrange(12)
    ttl = rng.choice(BAD_TTLS) if rng.random() < 0.02 else rng.choice(TTLS)
    some = [pick() for _ in range(rng.randrange(6))]
    sizes = [top, top, top // 2, 2 * top, 1 + top // 10] if more else [1, 2, 3, 5, 8, 20]
    # A large cache has to fill up for its policy to have anything to decide.
    rare = 1 if more == 0 or rng.random() < 10 / top else 0
    pairs = [(k, rng.randrange(12)) for k in some]
    steps: list[tuple[int, tuple[Any, ...]]] = [
        (14, ("get", key)),
        (6, ("getitem", key)),
        (8, ("setitem", key, value)),
        (8, ("set", key, value)),
        (8, ("set", key, value, ttl)),
        (4, ("peek", key, "none")),
        (3, ("in", key)),
        (4, ("setdefault", key, value)),
        (4, ("get_many", some, "none")),
        (3, ("set_many", pairs)),
        (2, ("set_many", dict(pairs), ttl)),
        (2, ("delete_many", some)),
        (2, ("pop", key)),
        (2, ("pop", key, "none")),
        (2, ("delitem", key)),
        (2, ("popitem",)),
        (3, ("touch", key)),
        (3, ("touch", key, ttl)),
        (3, ("expires_in", key)),
        (3, ("frequency", key)),
        (1, ("expire",)),
        (2, ("expire", rng.randrange(4))),
        (1, ("evict", rng.randrange(3))),
        (rare, ("resize", rng.choice(sizes))),
        (rare if rng.random() < 0.2 else 0, ("clear",)),
        (1, ("keys",)),
        (1, ("values",)),
        (1, ("iter",)),
        (1, ("len",)),
        (1, ("eq", dict(pairs))),
        (1 if rng.random() < 0.2 else 0, ("reset_stats",)),
        (1, ("get", [])),
        (10, ("time", rng.choice(STEPS_OF_TIME))),
    ]
    return rng.choices([s for _, s in steps], [w for w, _ in steps])[0]


POLICIES: dict[str, dict[str, Any]] = {
    "lru": {"policy": "lru", "slack": 0},
    "lazy lru": {"policy": "lru"},
    "lazier lru": {"policy": "lru", "slack": 30},
    "adaptive": {},
}
Configuration = tuple[str, int, float | None, int | None]


class Lockstep:
    """The twins, and for "lru" the model, made alike and compared after each step.

    What a cache holds is compared whole after each step; above LARGE entries it is every
    LARGE-th one.
    """

    LARGE = 1000

    def __init__(
        self,
        policy: str,
        maxsize: int,
        ttl: float | None,
        max_weight: int | None,
        *,
        twins: tuple[bool, ...],
        salt: int = 0x9D2C_5680_1234_ABCD,
    ) -> None:
        self.clock = FakeClock(5.5)
        self.large = maxsize > self.LARGE
        self.history: list[Any] = [("Cache", policy, maxsize, ttl, max_weight, salt)]
        self.told: list[list[Any]] = []
        kwargs: dict[str, Any] = {"timer": self.clock, "max_weight": max_weight}
        kwargs["weigher"] = None if max_weight is None else (lambda key, value: value)
        self.subjects: list[Any] = []
        if policy == "lru":
            self.subjects.append(Model(maxsize, ttl, on_removal=self._logger(), **kwargs))
        for compiled in twins:
            twin = Twin(compiled=compiled, tracked=False)
            with salted(twin, salt):
                kwargs |= POLICIES[policy]
                cache = twin.Cache(maxsize, ttl, on_removal=self._logger(), **kwargs)
            self.subjects.append(cache)

    def _logger(self) -> Callable[[Any, Any, RemovalCause], None]:
        log: list[Any] = []
        self.told.append(log)
        return lambda key, value, cause: log.append((repr(key), value, cause))

    def step(self, name: str, *args: Any) -> None:
        """Do one operation on each and compare everything that can be seen."""
        self.history.append((name, *args))
        if name == "time":
            self.clock.now += args[0]
        else:
            for log in self.told:
                log.clear()
            answers = [self._do(subject, name, args) for subject in reversed(self.subjects)]
            answers.reverse()
            self._same(answers, "answer")
            self._same([[*log] for log in self.told], "calls of on_removal")
        if not self.large or len(self.history) % self.LARGE == 0:
            self._same([repr(s.items()) for s in self.subjects], "items")
        counters = [
            (*s.counters(), 0, None, (), 0)
            if isinstance(s, Model)
            else tuple(s.stats()._replace(bytes=0))
            for s in self.subjects
        ]
        self._same(counters, "stats")

    def check(self) -> None:
        """Verify the invariants of the twins."""
        for subject in self.subjects:
            if not isinstance(subject, Model):
                subject._check()

    def _do(self, subject: Any, name: str, args: tuple[Any, ...]) -> Any:
        if isinstance(subject, Model):
            subject.seen = self.told[-1]
        try:
            if name in OPERATORS:
                answer = OPERATORS[name](subject, *args)
            else:
                answer = getattr(subject, name)(*args)
        except (KeyError, ValueError, TypeError) as error:
            return type(error), str(error)
        return repr(answer if not isinstance(answer, float) else round(answer, 9))

    def _same(self, seen: list[Any], what: str) -> None:
        if any(one != seen[0] for one in seen[1:]):
            steps = "\n".join(map(repr, self.history[-60:]))
            lines = "\n".join(map(repr, seen))
            raise AssertionError(
                f"{what} differ (model or compiled first):\n{lines}\nafter\n{steps}"
            )


CONFIGURATIONS: list[Configuration] = [
    ("lru", 1, None, None),
    ("lru", 2, 1.0, None),
    ("lru", 5, None, None),
    ("lru", 5, 0.25, 20),
    ("lru", 8, 3.0, None),
    ("lru", 20, None, 30),
    ("lru", 20, 60.0, None),
    ("lazy lru", 30, None, None),
    ("lazier lru", 100, 5.0, 300),
    ("adaptive", 1, None, None),
    ("adaptive", 2, 1.0, None),
    ("adaptive", 3, None, None),
    ("adaptive", 8, 0.25, 20),
    ("adaptive", 20, 3.0, None),
    ("adaptive", 20, None, 60),
]
FILLING: list[Configuration] = [
    ("adaptive", 20, None, None),
    ("adaptive", 40, 60.0, None),
    ("lru", 40, 3.0, None),
    ("adaptive", 40, None, 100),
    ("adaptive", 40, None, 100_000),
    ("adaptive", 64, None, None),
    ("adaptive", 200, 300.0, None),
    ("adaptive", 200, None, 90),
    ("adaptive", 900, None, None),
    ("adaptive", 5000, None, 2000),
]
"""Played with many keys, so that the policy has something to decide."""
HUGE: Configuration = ("adaptive", 12_000, None, None)
"""Large enough to put off its sketch until it is half full."""


def salted(twin: Twin, salt: int) -> Any:
    """Return a context in which caches of `twin` are made with `salt`."""
    return mock.patch.object(twin.module("cache"), "urandom", lambda n: salt.to_bytes(n, "little"))


def play(steps: int, seed: int, twins: tuple[bool, ...]) -> int:
    """Play random steps in runs of 500 over all configurations; return how many were played."""
    rng = random.Random(seed)
    played = 0
    while played < steps:
        configuration = rng.choice(CONFIGURATIONS)
        played += run(rng, Lockstep(*configuration, twins=twins, salt=rng.getrandbits(64)), 500)
    return played


def play_filling(
    steps: int, seed: int, twins: tuple[bool, ...], configurations: list[Configuration]
) -> int:
    """Play runs over each configuration with about three times as many keys as fit."""
    rng = random.Random(seed)
    played = 0
    while played < steps:
        for configuration in configurations:
            _, maxsize, _, max_weight = configuration
            fits = min(maxsize, max_weight or maxsize)
            lockstep = Lockstep(*configuration, twins=twins, salt=rng.getrandbits(64))
            n = steps // len(configurations) + 1
            played += run(rng, lockstep, n, more=3 * fits, top=maxsize)
    return played


def run(rng: random.Random, lockstep: Lockstep, steps: int, **what: int) -> int:
    """Play so many steps, checking the invariants on the way.

    With many keys most steps are requests: a lookup, then a write if it missed.
    """
    every = 2000 if lockstep.large else 25
    more = what.get("more", 0)
    for number in range(steps):
        if more and rng.random() < 0.9:
            key = int(more * rng.random() ** 3)
            lockstep.step("get", key)
            if key not in lockstep.subjects[0]:
                lockstep.step("setitem", key, rng.randrange(12))
        else:
            lockstep.step(*random_step(rng, **what))
        if number % every == 0:
            lockstep.check()
    lockstep.check()
    return steps


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    print(play(wanted, seed, (True, False)))
    print(play_filling(wanted, seed, (True, False), [*FILLING, HUGE]))
