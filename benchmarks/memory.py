"""`python -m benchmarks memory [--size N] [--rounds N] [--json FILE]`: bytes and collections.

Bytes per entry are what the resident memory of a fresh process grows by when a cache is filled,
keys and values excluded: they are made before. The time of a full garbage collection is taken with
nothing but one cache and its content alive, the caches taking turns in one process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.markdown import conditions, number, table, verdict
from benchmarks.measure import quartiles
from benchmarks.peers import BEASTCORE, TTL, Peer, available, beastcore_store
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
ROUNDS = 5
TURNOVER = 10
"""One in so many keys is new after the cache is full, so that what eviction needs is there."""
MOST_BYTES = 64
MOST_OVER_CACHEBOX = 1.5
ADAPTIVE = "beastcore, TTL"
CACHEBOX = "cachebox LRUCache"
LRU_TTL = "beastcore, lru, TTL"
NOTHING = "nothing"
CONTENT: dict[str, Callable[[int], Any]] = {
    "str": lambda n: f"value {n}",
    "tuple": lambda n: (n, f"value {n}"),
    "list": lambda n: [n, n],
    "dict": lambda n: {"id": n, "tags": [n]},
}
"""Values, from those that a collection has not to look at to those of several objects each."""


def peers() -> dict[str, Peer]:
    """Return the caches by name."""
    found = {peer.name: peer for peer in available()[0]}
    found[LRU_TTL] = Peer(LRU_TTL, BEASTCORE, "beastcore", beastcore_store(TTL, "lru"), ttl=True)
    return found


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    gc.collect()
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # glibc: what is free goes back first
            library.malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.Process().memory_info().rss)


def bytes_held(name: str, size: int) -> dict[str, Any]:
    """Fill one cache in this interpreter; return what it took."""
    peer = peers()[name]
    keys = [f"item:{number:08d}" for number in range(size + size // TURNOVER)]
    for key in keys:
        hash(key)
    value = "value"
    module = peer.load()
    before = resident()
    estimate = None
    if peer.store is None:
        assert peer.decorate is not None
        cache = peer.decorate(module, size, len)
        for key in keys:
            cache(key)
        held = cache.cache_info().currsize
    else:
        store = peer.store(module, size)
        store.fill(keys[:size] if not peer.bounded else keys, value)
        assert store.size is not None
        held = store.size()
        if peer.distribution == BEASTCORE:
            estimate = store.cache.stats().bytes
    after = resident()
    assert held == size or not peer.exact, f"{name} holds {held} of {size}"
    return {"bytes": after - before, "estimate": estimate, "entries": held}


def collection(names: list[str], content: str, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of a full collection by round, for each cache and for none.

    In every round each cache in turn, in a new order, is filled with new keys and values that
    nothing else holds; a first collection is not timed (it sorts out what need not be tracked),
    and the shortest of three that follow is.
    """
    found = peers()
    make = CONTENT[content]
    order = [NOTHING, *names]
    times: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(1).shuffle
    gc.disable()
    gc.collect()
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            cache = None
            if name != NOTHING:
                peer = found[name]
                assert peer.store is not None
                store = peer.store(peer.load(), size)
                cache, put = store.cache, store.set or store.cache.__setitem__
                for n in range(size):
                    put(f"item:{n:08d}", make(n))
            gc.collect()
            taken = []
            for _ in range(3):
                start = time.perf_counter_ns()
                gc.collect()
                taken.append((time.perf_counter_ns() - start) / 1e6)
            times[name].append(min(taken))
            del cache
            store = put = None  # type: ignore[assignment]
    return times


def run(size: int, rounds: int) -> dict[str, Any]:
    """Measure; return what the JSON file holds."""
    require_compiled()
    missing = missing_peers(available()[1])
    held = []
    for name, peer in peers().items():
        say(f"bytes: {name}")
        runs = [call(bytes_held, name=name, size=size) for _ in range(2 if peer.exact else 1)]
        per_entry = [found["bytes"] / found["entries"] for found in runs]
        estimate = runs[0]["estimate"]
        held.append(
            {
                "contender": name,
                "ttl": peer.ttl,
                "bytes": round(quartiles(per_entry)[1], 1),
                "estimate": None if estimate is None else round(estimate / size, 1),
                "entries": runs[0]["entries"],
            }
        )
    collections = []
    names = [name for name in (ADAPTIVE, CACHEBOX) if name in peers()]
    for content in CONTENT:
        say(f"collections: {content} values")
        times = call(collection, names=names, content=content, size=size, rounds=rounds)
        row: dict[str, Any] = {"content": content}
        row |= {name: [round(q, 2) for q in quartiles(values)] for name, values in times.items()}
        if CACHEBOX in times:
            pairs = zip(times[ADAPTIVE], times[CACHEBOX], strict=True)
            row["ratio"] = round(quartiles([mine / theirs for mine, theirs in pairs])[1], 3)
        collections.append(row)
    return {
        **head(),
        "size": size,
        "rounds": rounds,
        "missing": missing,
        "held": held,
        "collections": collections,
    }


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of both tables."""
    size = results["size"]
    command = "./dev bench memory" + f" --size {size}" * (size != SIZE)
    lines = conditions(results, command)
    rows = []
    for row in sorted(results["held"], key=lambda row: row["bytes"]):
        target = row["contender"] == ADAPTIVE and size == SIZE
        rows.append(
            [
                f"**{row['contender']}**" if target else row["contender"],
                f"{row['bytes']:.1f}",
                "-" if row["estimate"] is None else f"{row['estimate']:.1f}",
                f"{row['entries']:,}",
                verdict(row["bytes"] <= MOST_BYTES, f"≤ {MOST_BYTES}") if target else "",
            ]
        )
    names = ["", "bytes per entry", "`stats().bytes`", "entries held", "target"]
    lines += [f"#### Bytes per entry at {size:,} entries, keys and values excluded", ""]
    lines += [*table(names, rows), ""]
    lines += [
        f"#### Full collection with a cache of {size:,} entries alive, milliseconds",
        "",
        (
            f"Medians of {results['rounds']} interleaved rounds, in brackets the quartiles; the "
            "cache alone holds its keys (str) and values."
        ),
        "",
    ]
    contenders = [
        name for name in (NOTHING, ADAPTIVE, CACHEBOX) if name in results["collections"][0]
    ]
    rows = []
    for row in results["collections"]:
        times = [
            f"{number(row[name][1])} [{number(row[name][0])}-{number(row[name][2])}]"
            for name in contenders
        ]
        ratio, text = "-", ""
        if "ratio" in row:
            ratio = f"**{number(row['ratio'])}**"
            text = verdict(row["ratio"] <= MOST_OVER_CACHEBOX, f"≤ {MOST_OVER_CACHEBOX}")
        rows.append([row["content"], *times, ratio, text])
    lines += table(["values", *contenders, "ratio", "target"], rows)
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks memory",
        description="Bytes per entry, and the time of a full garbage collection.",
    )
    parser.add_argument("--size", type=positive, default=SIZE, help=f"entries ({SIZE:,})")
    parser.add_argument(
        "--rounds", type=positive, default=ROUNDS, help=f"rounds of the collections ({ROUNDS})"
    )
    add_json(parser)
    found = parser.parse_args(arguments)
    results = run(found.size, found.rounds)
    return finish(results, render(results), found.json)
