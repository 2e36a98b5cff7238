"""`python -m benchmarks worst [--size N] [--repeats N] [--json FILE]`: the slowest single call.

Every call of a scenario is timed on its own: the smaller of its time on the clock and on the
processor, so that what the system ran in between is left out. The garbage collector is off, the
cache is full and its memory has been touched, except where it grows from empty.

Where the processor is shared, with interrupts or with other guests of the machine, either time has
outliers that are not the call's. So each repeat makes the same calls in the same order on a new
cache with the same salt, and three figures stand side by side: the slowest call of each repeat; the
slowest of the calls' shortest times, each in all repeats, which is what a call costs every time it
is made and what counts against the target; and by how much an empty loop, run as often and on
average as long, was slower than usual in one call.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from array import array
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

from benchmarks.markdown import conditions, number, table, verdict
from benchmarks.measure import quartiles
from benchmarks.peers import DICT, PEERS, available
from benchmarks.program import (
    add_json,
    finish,
    head,
    missing_peers,
    positive,
    require_compiled,
    say,
)
from benchmarks.worker import call

SIZE = 1_000_000
REPEATS = 5
DUE = 5
"""One in so many entries falls due at once."""
CALLS = 50_000
MOST_US = 200
ADAPTIVE = "beastcore, TTL"
LRU = "beastcore, lru, TTL"
ENGINES = (ADAPTIVE, LRU)
CACHETOOLS = "cachetools TTLCache"
SHORT, LONG, DAY = 10.0, 7200.0, 86_400.0
SWEEP = 1_000
"""Entries that one call of `expire` may remove."""


class Clock:
    """A timer that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def clocked(work: Callable[[Any], object], items: Iterable[Any]) -> array[int]:
    """Return the nanoseconds of `work(item)` for each item."""
    found = array("q")
    note = found.append
    wall, processor = time.perf_counter_ns, time.thread_time_ns
    for item in items:
        used = processor()
        start = wall()
        work(item)
        elapsed = wall() - start
        used = processor() - used
        note(min(elapsed, used))
    return found


def _spin(loops: int) -> None:
    for _ in range(loops):
        pass


def noise(calls: array[int]) -> int:
    """Return by how many nanoseconds one of as many empty loops, of their mean time, was longer."""
    loops = 10_000
    each = min(clocked(_spin, [loops] * 20)) / loops
    mean = sum(calls) / len(calls)
    spins = sorted(clocked(_spin, [max(1, round(mean / each))] * len(calls)))
    return spins[-1] - spins[len(spins) // 2]


def shortest(before: array[int], calls: array[int]) -> array[int]:
    """Return the shorter time of each call."""
    return array("q", map(min, zip(before, calls, strict=True)))


class Bench:
    """The keys, and how a contender's caches are made and filled."""

    def __init__(self, contender: str, size: int) -> None:
        self.contender = contender
        self.size = size
        self.keys = [f"item:{number:08d}" for number in range(size)]
        self.new = [f"new:{number:09d}" for number in range(max(size // 4, CALLS))]
        for key in [*self.keys, *self.new]:
            hash(key)
        self.clock = Clock()
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Choose what falls due, and all else that is random, anew."""
        self.rng = random.Random(seed)
        self.salts = random.Random(seed)
        self.due = self.rng.sample(self.keys, self.size // DUE)

    def empty(self) -> Any:
        """Return an empty cache."""
        self.clock.now = 1000.0
        if self.contender in ENGINES:
            import beastcore

            policy = "lru" if self.contender == LRU else "adaptive"
            with mock.patch("beastcore._cache.urandom", self.salts.randbytes):
                return beastcore.Cache(self.size, LONG, policy=policy, timer=self.clock)
        if self.contender == CACHETOOLS:
            import cachetools

            return cachetools.TTLCache(self.size, LONG, timer=self.clock)
        peer = next(peer for peer in PEERS if peer.name == self.contender)
        assert peer.store is not None
        return peer.store(peer.load(), self.size).cache

    def full(self) -> Any:
        """Return a full cache that has evicted before."""
        cache = self.empty()
        for key in self.keys:
            cache[key] = "value"
        for n in range(CALLS // 10):
            cache[f"before:{n}"] = "value"
        for key in self.keys:
            cache[key] = "value"  # those that had to leave come back
        return cache

    def with_due(self) -> Any:
        """Return a full cache of which one in DUE entries has just fallen due."""
        if self.contender == CACHETOOLS:  # one time to live for all: the first ones fall due
            cache = self.empty()
            for key in self.due:
                cache[key] = "value"
            self.clock.now += SHORT
            due = set(self.due)
            for key in self.keys:
                if key not in due:
                    cache[key] = "value"
            self.clock.now += LONG - SHORT / 2
            return cache
        cache = self.full()
        for key in self.due:
            cache.set(key, "value", SHORT)
        self.clock.now += SHORT + 1
        return cache


def _put(cache: Any) -> Callable[[Any], object]:
    def put(key: Any) -> None:
        cache[key] = "new"

    return put


def insert_due(bench: Bench) -> array[int]:
    return clocked(_put(bench.with_due()), bench.new[:CALLS])


def insert_freeing(bench: Bench) -> array[int]:
    """What falls due is held by the cache alone and lies side by side in memory."""
    cache, due = bench.empty(), bench.size // DUE
    for n in range(bench.size - due):
        cache[f"own:{n:08d}"] = f"value:{n:060d}"
    for n in range(due):
        cache.set(f"due:{n:08d}", f"value:{n:060d}", SHORT)
    bench.clock.now += SHORT + 1
    return clocked(_put(cache), bench.new[:CALLS])


def overwrite_due(bench: Bench) -> array[int]:
    return clocked(_put(bench.with_due()), bench.rng.choices(bench.keys, k=CALLS))


def read_due(bench: Bench) -> array[int]:
    return clocked(bench.with_due().get, bench.rng.sample(bench.keys, min(CALLS, bench.size)))


def mixed_due(bench: Bench) -> array[int]:
    """Reads, writes and deletes in turn, a tenth of them of new keys."""
    cache, rng = bench.with_due(), bench.rng
    doors: list[Callable[[Any], object]] = [
        cache.get,
        _put(cache),
        lambda key: cache.pop(key, None),
    ]
    keys = [rng.choice(bench.new if rng.random() < 0.1 else bench.keys) for _ in range(CALLS)]
    return clocked(lambda pair: pair[0](pair[1]), [(rng.choice(doors), key) for key in keys])


def expire_due(bench: Bench) -> array[int]:
    cache = bench.with_due()
    calls = clocked(cache.expire, [SWEEP] * (2 * len(bench.due) // SWEEP + 1))
    assert not any(key in cache for key in bench.due)
    return calls


def insert_after_jump(bench: Bench) -> array[int]:
    """All entries, with times to live of a second to an hour, are due after a day's jump."""
    cache, rng = bench.full(), bench.rng
    for key in bench.keys:
        cache.set(key, "value", 1 + 3599 * rng.random())
    bench.clock.now += DAY
    return clocked(_put(cache), bench.new[:CALLS])


def insert(bench: Bench) -> array[int]:
    return clocked(_put(bench.full()), bench.new)


def grow(bench: Bench) -> array[int]:
    return clocked(_put(bench.empty()), bench.keys)


def delete(bench: Bench) -> array[int]:
    cache = bench.full()
    if bench.contender == DICT:  # it evicted nothing
        return clocked(cache.__delitem__, bench.due)
    present = [key for key in bench.due if key in cache]
    calls = clocked(cache.__delitem__, present)
    assert not any(key in cache for key in bench.due)
    return calls


def touch(bench: Bench) -> array[int]:
    cache, rng = bench.full(), bench.rng
    ttls = [1 + 3599 * rng.random() for _ in range(CALLS)]
    pairs = list(zip(rng.choices(bench.keys, k=CALLS), ttls, strict=True))
    return clocked(lambda pair: cache.touch(*pair), pairs)


def shrink(bench: Bench) -> array[int]:
    return clocked(bench.full().resize, [bench.size // 2])


def after_shrink(bench: Bench) -> array[int]:
    cache = bench.full()
    cache.resize(bench.size // 2)
    return clocked(_put(cache), bench.new[:CALLS])


def enlarge(bench: Bench) -> array[int]:
    return clocked(bench.full().resize, [2 * bench.size])


def after_enlarge(bench: Bench) -> array[int]:
    cache = bench.full()
    cache.resize(2 * bench.size)
    return clocked(_put(cache), bench.new)


def clear(bench: Bench) -> array[int]:
    cache = bench.full()
    return clocked(lambda _: cache.clear(), [None])


SCENARIOS: dict[str, tuple[str, Callable[[Bench], array[int]], bool]] = {
    "insert_due": ("insert after 200,000 fell due", insert_due, True),
    "insert_freeing": (
        "insert after 200,000 fell due that nothing else holds",
        insert_freeing,
        True,
    ),
    "overwrite_due": ("overwrite after 200,000 fell due", overwrite_due, True),
    "read_due": ("read after 200,000 fell due", read_due, True),
    "mixed_due": ("reads, writes, deletes after 200,000 fell due", mixed_due, True),
    "expire_due": (f"`expire({SWEEP:,})` after 200,000 fell due", expire_due, False),
    "insert_after_jump": ("insert after the clock jumped a day", insert_after_jump, True),
    "insert": ("insert with eviction", insert, True),
    "delete": ("delete in the middle", delete, True),
    "touch": ("`touch` with other times to live", touch, True),
    "grow": ("insert, from empty to full", grow, False),
    "shrink": ("`resize` to half", shrink, False),
    "after_shrink": ("insert after `resize` to half", after_shrink, True),
    "enlarge": ("`resize` to the double", enlarge, False),
    "after_enlarge": ("insert after `resize` to the double", after_enlarge, False),
    "clear": ("`clear`", clear, False),
}
"""Name -> title, how it is run, whether the target is for it."""

CONTENDERS: dict[str, list[str]] = {
    ADAPTIVE: list(SCENARIOS),
    LRU: list(SCENARIOS),
    DICT: ["grow", "delete", "clear"],
    "cachebox LRUCache": ["grow", "insert", "delete", "clear"],
    "cachebox TTLCache": ["grow", "insert", "delete", "clear"],
    "lru-dict": ["grow", "insert", "delete", "clear"],
    CACHETOOLS: ["grow", "insert_due", "read_due"],
}
"""What of it each contender has."""
COSTLY = {("cachebox TTLCache", "delete"): 500}
"""Calls after which a scenario ends, where one call alone takes milliseconds."""


def measure(contender: str, size: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of every repeat of every scenario that the contender has."""
    found: dict[str, list[dict[str, Any]]] = {}
    gc.disable()
    bench = Bench(contender, size)
    for name in CONTENDERS[contender]:
        least = array("q")
        for _ in range(repeats):
            bench.begin(0)
            if (contender, name) in COSTLY:
                bench.due = bench.due[: COSTLY[contender, name]]
            calls = SCENARIOS[name][1](bench)
            least = shortest(least, calls) if least else calls
            ordered = sorted(calls)
            found.setdefault(name, []).append(
                {
                    "calls": len(calls),
                    "median": ordered[len(calls) // 2] / 1000,
                    "high": ordered[int(0.999 * (len(calls) - 1))] / 1000,
                    "worst": ordered[-1] / 1000,
                    "worst_call": calls.index(ordered[-1]),
                    "repeatable": max(least) / 1000,
                    "noise": noise(calls) / 1000,
                }
            )
            gc.collect()
    return found


def run(size: int, repeats: int, only: list[str]) -> dict[str, Any]:
    """Measure; return what the JSON file holds."""
    require_compiled()
    peers, missing = available()
    missing_peers(missing)
    installed = {peer.name for peer in peers} | {LRU}
    rows = []
    for contender in CONTENDERS:
        if contender not in installed or (only and contender not in only):
            continue
        say(contender)
        times = repeats if contender in ENGINES else 1
        found = call(measure, contender=contender, size=size, repeats=times)
        for name, figures in found.items():
            worst = [figure["worst"] for figure in figures]
            repeatable = figures[-1]["repeatable"]
            rows.append(
                {
                    "scenario": name,
                    "contender": contender,
                    "calls": figures[0]["calls"],
                    "median_us": round(quartiles([f["median"] for f in figures])[1], 2),
                    "high_us": round(quartiles([f["high"] for f in figures])[1], 2),
                    "worst_us": round(quartiles(worst)[1], 1),
                    "worst_low_us": round(min(worst), 1),
                    "worst_high_us": round(max(worst), 1),
                    "worst_calls": [figure["worst_call"] for figure in figures],
                    "repeatable_us": round(repeatable, 1) if times > 1 else None,
                    "noise_us": round(quartiles([f["noise"] for f in figures])[1], 1),
                    "met": repeatable < MOST_US
                    if contender in ENGINES and SCENARIOS[name][2]
                    else None,
                }
            )
    return {**head(), "size": size, "repeats": repeats, "missing": missing, "rows": rows}


def _time(us: float | None) -> str:
    return "" if us is None else f"{number(us)} µs"


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of the table."""
    size = results["size"]
    lines = conditions(results, "./dev bench worst" + f" --size {size}" * (size != SIZE))
    lines += [
        (
            f"{size:,} entries; the figures are those of the median of {results['repeats']} "
            "repeats (other caches run once), in brackets the slowest call of the best and of the "
            'worst repeat. "Every time": the slowest of the shortest times that each call took in '
            'all repeats, which make the same calls. "Empty loop": by how much the slowest of as '
            "many empty loops, as long as a call on average, was longer than the median one."
        ),
        "",
    ]
    cells = []
    for name, (title, _, _) in SCENARIOS.items():
        mine = [row for row in results["rows"] if row["scenario"] == name]
        for place, row in enumerate(mine):
            spread = f"[{number(row['worst_low_us'])}-{number(row['worst_high_us'])}]"
            cells.append(
                [
                    "" if place else title.replace("200,000", f"{size // DUE:,}"),
                    f"**{row['contender']}**" if row["contender"] in ENGINES else row["contender"],
                    f"{row['calls']:,}",
                    f"{number(row['median_us'])} µs",
                    f"{number(row['high_us'])} µs",
                    f"{number(row['worst_us'])} {spread} µs",
                    _time(row.get("repeatable_us")),
                    _time(row.get("noise_us")),
                    verdict(row["met"], f"< {MOST_US} µs"),
                ]
            )
    names = ["", "", "calls", "median", "99.9 %", "slowest", "every time", "empty loop", "target"]
    lines += table(names, cells)
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks worst", description="The slowest single call."
    )
    parser.add_argument("--size", type=positive, default=SIZE, help=f"entries ({SIZE:,})")
    parser.add_argument("--repeats", type=positive, default=REPEATS, help=f"({REPEATS})")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="one of the contenders")
    add_json(parser)
    found = parser.parse_args(arguments)
    results = run(found.size, found.repeats, found.only or [])
    return finish(results, render(results), found.json)
