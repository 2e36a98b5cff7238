"""`python -m benchmarks bars [--rounds N] [--sizes A,B] [--json FILE]`: speed against targets.

What `Cache` is meant to reach beside `dict` and the fastest other caches: str keys, a time to live,
the cache full. Fewer contenders than `compare` and more rounds. Every few rounds run in a fresh
interpreter with new keys, another hash seed and the caches filled in another order, because at a
million entries the place of the objects in memory moves a ratio more than the code does.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import bench_cache
from benchmarks.bench_cache import MANY, Filled, Keys, decorated
from benchmarks.markdown import conditions, number, table, verdict
from benchmarks.measure import Quiet, Run, quartiles, run_rounds
from benchmarks.peers import (
    BEASTCORE,
    DICT,
    LRU_CACHE,
    PEERS,
    TTL,
    Peer,
    available,
    beastcore_store,
)
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

SIZES = (10_000, 100_000, 1_000_000)
MANY_SIZES = (1_000, 100_000, 1_000_000)
COROUTINE_SIZES = (10_000,)
OPERATIONS = 100_000
"""Operations of a timed pass: far more than stay in the processor's caches from the last one."""
ROUNDS_EACH = 3
"""Rounds that run in one interpreter."""

ADAPTIVE = "beastcore, TTL"
LRU = "beastcore, lru, TTL"
LRU_0 = "beastcore, lru, slack 0, TTL"
METHOD = "beastcore, TTL, set(k, v)"
CACHEBOX = "cachebox LRUCache"
CACHEBOX_TTL = "cachebox TTLCache"
LRU_DICT = "lru-dict"
FASTEST = "the fastest peer"
CACHED = "beastcore.cached, TTL"
COROUTINE = "beastcore.cached, coroutine, TTL"
BARE = "await of a bare coroutine"

CASES = {
    "get": [DICT, ADAPTIVE, LRU, LRU_0, CACHEBOX, CACHEBOX_TTL],
    "overwrite": [ADAPTIVE, METHOD, CACHEBOX, LRU_DICT],
    "miss": [DICT, ADAPTIVE, CACHEBOX, CACHEBOX_TTL, LRU_DICT],
    "get_many": [DICT, ADAPTIVE],
    "insert": [ADAPTIVE, CACHEBOX, CACHEBOX_TTL, LRU_DICT],
    "cached": [LRU_CACHE, CACHED],
    "coroutine": [BARE, COROUTINE],
}
"""Case -> contenders. Insertion comes after what reads: it changes what the caches hold."""
DECORATORS = ("cached", "coroutine")


@dataclass(frozen=True)
class Row:
    """A ratio and what it is meant to be at each size."""

    title: str
    case: str
    contender: str
    against: str
    targets: tuple[float | None, ...]
    """For each size of the case."""
    faster: bool = False
    """Whether the ratio is how many times as fast (at least the target), not how many times as
    long (at most the target)."""


ROWS = [
    Row("hit, `get(k)`: time over `dict.get`", "get", ADAPTIVE, DICT, (1.25, 1.3, 1.25)),
    Row(
        "hit: times as fast as cachebox.LRUCache (no TTL)",
        "get",
        ADAPTIVE,
        CACHEBOX,
        (1.2, 1.2, 1.1),
        faster=True,
    ),
    Row(
        "hit: times as fast as cachebox.TTLCache",
        "get",
        ADAPTIVE,
        CACHEBOX_TTL,
        (1.7, 1.5, 1.25),
        faster=True,
    ),
    *(
        Row(
            f"overwrite, `{door}`: times as fast as {peer.replace(' ', '.')}",
            "overwrite",
            contender,
            peer,
            (1.1, 1.1, 1.05),
            faster=True,
        )
        for door, contender in (("set(k, v)", METHOD), ("c[k] = v", ADAPTIVE))
        for peer in (LRU_DICT, CACHEBOX)
    ),
    Row(f"miss: time over {FASTEST}", "miss", ADAPTIVE, FASTEST, (1.05, 1.05, 1.05)),
    Row(
        "insert with eviction: time over cachebox.LRUCache",
        "insert",
        ADAPTIVE,
        CACHEBOX,
        (1.9, 1.6, 1.6),
    ),
    *(
        Row(
            f"insert with eviction: times as fast as {peer.replace(' ', '.')}",
            "insert",
            ADAPTIVE,
            peer,
            (1.0, 1.0, 1.0),
            faster=True,
        )
        for peer in (LRU_DICT, CACHEBOX_TTL)
    ),
    Row('policy "lru", hit: time over `dict.get`', "get", LRU, DICT, (1.6, 1.6, 1.5)),
    Row(
        'policy "lru" with `slack=0`, hit: time over `dict.get`',
        "get",
        LRU_0,
        DICT,
        (None, None, None),
    ),
    Row(
        f"`get_many` of {MANY} random keys: time over a loop of `dict.get`",
        "get_many",
        ADAPTIVE,
        DICT,
        (0.8, 0.45, 0.35),
    ),
    Row(
        "`@cached`, hit: time over functools.lru_cache",
        "cached",
        CACHED,
        LRU_CACHE,
        (1.2, 1.2, 1.2),
    ),
    Row(f"`@cached` coroutine, hit: time over {BARE}", "coroutine", COROUTINE, BARE, (2.5,)),
]


def sizes_of(case: str) -> tuple[int, ...]:
    return {"get_many": MANY_SIZES, "coroutine": COROUTINE_SIZES}.get(case, SIZES)


def with_slack() -> bool:
    """Tell whether `Cache` can be told the slack of policy "lru"."""
    import beastcore

    try:
        beastcore.Cache(1, policy="lru", slack=0)
    except TypeError:  # an extension type has no signature to look at
        return False
    return True


def by_name(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def contenders(names: list[str]) -> dict[str, Peer]:
    """Return the stores of the cases by name, those that can be made here."""
    found = {peer.name: peer for peer in available()[0] if peer.store is not None}
    engine = by_name(ADAPTIVE)
    found[LRU] = replace(engine, name=LRU, store=beastcore_store(TTL, "lru"), exact=True)
    if with_slack():
        found[LRU_0] = replace(found[LRU], name=LRU_0, store=beastcore_store(TTL, "lru", slack=0))
    return {name: found[name] for name in names if name in found}


def other_door(filled: Filled) -> Filled:
    """Return the same filled cache, written to by its method `set`."""
    found = copy.copy(filled)
    found.store = replace(filled.store, set=filled.store.cache.set)
    return found


def measure(size: int, cases: list[str], rounds: int, seed: int) -> dict[str, Any]:
    """Return each contender's nanoseconds per operation by round, in this interpreter."""
    keys = Keys(size, seed, OPERATIONS)
    of_stores = [case for case in cases if case not in DECORATORS]
    names = sorted({name for case in of_stores for name in CASES[case]} - {METHOD})
    peers = list(contenders(names).values())
    random.Random(seed).shuffle(peers)
    filled = {peer.name: Filled(peer, keys) for peer in peers}
    if "overwrite" in cases:
        filled[METHOD] = other_door(filled[ADAPTIVE])
    quiet = Quiet()
    times = {}
    for case, chosen in CASES.items():
        if case not in cases:
            continue
        inputs = inputs_of(case, keys, seed)
        if case == "coroutine":
            times[case] = asyncio.run(measure_coroutine(keys, rounds, quiet, seed))
            continue
        if case == "cached":
            runs = {
                LRU_CACHE: decorated(by_name(LRU_CACHE), keys),
                CACHED: decorated(by_name(ADAPTIVE), keys),
            }
        else:
            make = bench_cache.CASES[case][1]
            assert make is not None
            runs = {name: make(filled[name], keys) for name in chosen if name in filled}
        times[case] = run_rounds(
            runs,
            inputs,
            rounds=rounds,
            quiet=quiet,
            per_item=MANY if case == "get_many" else 1,
            seed=seed,
            warm_up=None if case == "insert" else inputs,  # an insertion is not warmed up
        )
    return {"times": times, "slices": quiet.slices, "interrupted": quiet.interrupted}


async def measure_coroutine(
    keys: Keys, rounds: int, quiet: Quiet, seed: int
) -> dict[str, list[float]]:
    """Return the figures of awaiting a memoized coroutine function, and a bare one.

    The rounds run inside this coroutine, so that a loop runs, and each slice is driven by hand:
    nothing in it ever waits.
    """
    import beastcore

    n_runs = 0

    async def bare(key: str) -> str:
        return key

    async def counted(key: str) -> str:
        nonlocal n_runs
        n_runs += 1
        return key

    cached = beastcore.cached(maxsize=keys.size, ttl=TTL)(counted)
    for key in keys.held:
        await cached(key)

    def drive(function: Callable[[str], Any]) -> Callable[[list[str]], None]:
        async def await_all(items: list[str]) -> None:
            for item in items:
                await function(item)

        def work(items: list[str]) -> None:
            try:
                await_all(items).send(None)
            except StopIteration:
                return
            raise AssertionError("a hit waited")

        return work

    def check(items: list[str]) -> None:
        assert n_runs == keys.size, "the function ran"

    runs = {BARE: Run(drive(bare), check), COROUTINE: Run(drive(cached), check)}
    inputs = bench_cache.inputs_of("get", keys)
    return run_rounds(runs, inputs, rounds=rounds, quiet=quiet, seed=seed, warm_up=inputs)


def inputs_of(case: str, keys: Keys, seed: int) -> Callable[[int], list[Any]]:
    """Return what makes the input of a round; it warms up with another input of the same kind."""
    if case != "get_many":
        return bench_cache.inputs_of(case, keys)
    picker = random.Random(seed)

    def uniform(number: int) -> list[Any]:
        stream = picker.choices(keys.held, k=OPERATIONS)
        return [stream[i : i + MANY] for i in range(0, OPERATIONS, MANY)]

    return uniform


def rows_of(size: int, times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return the ratios of one size, each beside its target."""
    found = []
    for row in ROWS:
        case = times.get(row.case, {})
        if size not in sizes_of(row.case) or row.contender not in case:
            continue
        against = row.against
        if against == FASTEST:
            peers = [name for name in case if name != DICT and not name.startswith(BEASTCORE)]
            if not peers:
                continue
            against = min(peers, key=lambda name: quartiles(case[name])[1])
        if against not in case:
            continue
        mine, theirs = case[row.contender], case[against]
        pairs = zip(*((theirs, mine) if row.faster else (mine, theirs)), strict=True)
        low, middle, high = quartiles([one / other for one, other in pairs])
        target = row.targets[sizes_of(row.case).index(size)]
        met = None
        if target is not None:
            met = middle >= target if row.faster else middle <= target
        found.append(
            {
                "row": row.title,
                "size": size,
                "contender": row.contender,
                "against": against,
                "ns": round(quartiles(mine)[1], 2),
                "against_ns": round(quartiles(theirs)[1], 2),
                "ratio": round(middle, 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
                "ratio_of_fastest": round(fastest(row.faster, mine, theirs), 3),
                "faster": row.faster,
                "target": target,
                "met": met,
            }
        )
    return found


def fastest(faster: bool, mine: list[float], theirs: list[float]) -> float:
    """Return the ratio of either side's fastest round: what a busy machine disturbs least."""
    return min(theirs) / min(mine) if faster else min(mine) / min(theirs)


def run(rounds: int, only: tuple[int, ...]) -> dict[str, Any]:
    """Measure; return what the JSON file holds."""
    require_compiled()
    missing = missing_peers(available()[1])
    if not with_slack():
        say("missing: Cache has no argument 'slack', so slack 0 is left out")
    rows: list[dict[str, Any]] = []
    slices = interrupted = 0
    for size in sorted({*SIZES, *MANY_SIZES}):
        if only and size not in only:
            continue
        cases = [case for case in CASES if size in sizes_of(case)]
        times: dict[str, dict[str, list[float]]] = {}
        for seed, first in enumerate(range(0, rounds, ROUNDS_EACH), 1):
            say(f"{size:>9,}  rounds from {first + 1} of {rounds}")
            n_rounds = min(ROUNDS_EACH, rounds - first)
            found = call(measure, size=size, cases=cases, rounds=n_rounds, seed=seed)
            slices += found["slices"]
            interrupted += found["interrupted"]
            for case, by_name in found["times"].items():
                for name, values in by_name.items():
                    times.setdefault(case, {}).setdefault(name, []).extend(values)
        rows += rows_of(size, times)
    return {
        **head(),
        "rounds": rounds,
        "rounds_each": ROUNDS_EACH,
        "interrupted": round(interrupted / max(slices, 1), 3),
        "missing": missing,
        "rows": rows,
    }


def cell(row: dict[str, Any]) -> str:
    """Return ratio, quartiles, times and how it stands to its target."""
    spread = f"[{number(row['ratio_low'])}-{number(row['ratio_high'])}]"
    sign = "≥" if row["faster"] else "≤"
    target = verdict(row["met"], f"{sign} {row['target']}")
    times = f"{number(row['ns'])} / {number(row['against_ns'])} ns"
    return f"**{number(row['ratio'])}** {spread} ({times}){'; ' * bool(target)}{target}"


def ratio_table(rows: list[dict[str, Any]], show: Callable[[dict[str, Any]], str]) -> list[str]:
    """Return a table with a line for each row and a column for each size."""
    sizes = sorted({row["size"] for row in rows})
    by = {(row["row"], row["size"]): row for row in rows}
    titles = list(dict.fromkeys(row["row"] for row in rows))
    lines = [
        [title, *(show(by[title, size]) if (title, size) in by else "-" for size in sizes)]
        for title in titles
    ]
    return table(["", *(f"{size:,} entries" for size in sizes)], lines)


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of all tables."""
    lines = conditions(results, f"./dev bench bars --rounds {results['rounds']}")
    lines += [
        (
            f"Medians of {results['rounds']} interleaved rounds, at most "
            f"{results['rounds_each']} of them in one interpreter; in brackets the quartiles, "
            "then the time of either side; str keys, Zipf 1.0 accesses, a time to live, the "
            "cache full. Behind the semicolon: the target."
        ),
        "",
    ]
    many = [row for row in results["rows"] if row["row"].startswith("`get_many`")]
    memo = [row for row in results["rows"] if row["row"].startswith("`@cached`")]
    rest = [row for row in results["rows"] if row not in many + memo]
    for rows in (rest, many, memo):
        if rows:
            lines += [*ratio_table(rows, cell), ""]
    return "\n".join(lines).rstrip() + "\n"


def render_short(results: dict[str, Any]) -> str:
    """Return the table of the README: the ratios alone."""
    firsts = [
        row
        for row in results["rows"]
        if row["row"].split(":")[0].split(",")[0] in ("hit", "overwrite", "miss")
        or row["row"].startswith(("insert", "`get_many`"))
    ]
    rows = [row for row in firsts if row["size"] in SIZES]
    return "\n".join(ratio_table(rows, lambda row: number(row["ratio"]))) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks bars", description="Speed beside its targets."
    )
    parser.add_argument("--rounds", type=positive, default=15, help="interleaved rounds (15)")
    parser.add_argument("--sizes", default="", help="some of the sizes, separated by commas")
    add_json(parser)
    found = parser.parse_args(arguments)
    possible = {str(size): size for size in itertools.chain(SIZES, MANY_SIZES)}
    wanted = [text.replace("_", "") for text in found.sizes.split(",") if text]
    for text in wanted:
        if text not in possible:
            parser.error(f"--sizes must be of {', '.join(possible)}; got {text!r}")
    found.sizes = tuple(possible[text] for text in wanted)
    return found


def main(arguments: list[str] | None = None) -> int:
    found = parse(arguments)
    results = run(found.rounds, found.sizes)
    return finish(results, render(results), found.json)
