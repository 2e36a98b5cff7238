"""`python -m benchmarks flood [--rounds N] [--json FILE]`: keys made to collide.

Fills an empty cache with each set of keys and reads every key again. Sets whose hashes share their
low bits, or lie a stride apart, must cost what random keys cost; keys of one and the same Python
hash cannot be told apart by any mixing, and must cost no more than `dict` pays for them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.markdown import conditions, number, table, verdict
from benchmarks.measure import Quiet, Run, quartiles, run_rounds
from benchmarks.peers import TTL
from benchmarks.program import add_json, finish, head, positive, require_compiled, say

MANY = 100_000
COLLIDING = 2_000
"""Keys of one hash: each costs as many comparisons as there are before it."""
MOST_OVER_RANDOM = 2.0
MOST_OVER_DICT = 1.0


class Colliding:
    """A key of an ordinary class whose instances all have one hash."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Colliding) and self.number == other.number


@dataclass(frozen=True)
class KeySet:
    """Keys, and what `dict` and the cache must be near to."""

    title: str
    make: Callable[[], list[Any]]
    identical: bool = False
    """Whether their Python hashes are identical."""


def _random(bits: int = 60) -> list[Any]:
    numbers = random.Random(5)
    return [numbers.getrandbits(bits) for _ in range(MANY)]


RANDOM = KeySet("random ints", _random)
SETS = [
    RANDOM,
    KeySet("ints, low 20 bits equal", lambda: [n << 20 for n in range(MANY)]),
    KeySet("ints, low 40 bits equal", lambda: [n << 40 for n in range(MANY)]),
    KeySet("ints, high bits only differ", lambda: [(n << 44) | 0xFFF for n in range(MANY)]),
    KeySet("ints, a stride of 131,072", lambda: [n * 131_072 for n in range(MANY)]),
    KeySet("ints, a stride of 1,000,003", lambda: [n * 1_000_003 for n in range(MANY)]),
    KeySet("ints, one after the other", lambda: list(range(MANY))),
    KeySet(
        "ints of one hash",
        lambda: [n * sys.hash_info.modulus + 7 for n in range(1, COLLIDING + 1)],
        identical=True,
    ),
    KeySet(
        "objects of one hash, `__eq__` in Python",
        lambda: [Colliding(n) for n in range(COLLIDING // 4)],
        identical=True,
    ),
]


def run(rounds: int) -> dict[str, Any]:
    """Measure; return what the JSON file holds."""
    require_compiled()
    import beastcore

    quiet = Quiet()
    rows: list[dict[str, Any]] = []
    plain: list[float] = []
    for keys in SETS:
        say(keys.title)
        made = keys.make()
        n_keys = len(made)
        size = len(set(map(hash, made)))
        assert (size == 1) == keys.identical, keys.title
        makers: dict[str, Callable[[], Any]] = {
            "dict": dict,
            "beastcore": lambda n=n_keys: beastcore.Cache(n, TTL),  # type: ignore[misc]
        }
        # One item of the input is the whole set: its work is not to be cut into slices.
        runs = {name: whole(make, made) for name, make in makers.items()}
        times = run_rounds(
            runs, lambda number: [None], rounds=rounds, quiet=quiet, per_item=2 * n_keys
        )
        mine, theirs = times["beastcore"], times["dict"]
        if keys is RANDOM:
            plain = mine
        low, middle, high = quartiles([a / b for a, b in zip(mine, theirs, strict=True)])
        over_random = quartiles(mine)[1] / quartiles(plain)[1]
        met = middle <= MOST_OVER_DICT if keys.identical else over_random <= MOST_OVER_RANDOM
        rows.append(
            {
                "keys": keys.title,
                "n": n_keys,
                "identical": keys.identical,
                "ns": round(quartiles(mine)[1], 2),
                "dict_ns": round(quartiles(theirs)[1], 2),
                "over_dict": round(middle, 3),
                "over_dict_low": round(low, 3),
                "over_dict_high": round(high, 3),
                "over_random": None if keys.identical else round(over_random, 2),
                "target": MOST_OVER_DICT if keys.identical else MOST_OVER_RANDOM,
                "met": None if keys is RANDOM else met,
            }
        )
    return {**head(), "rounds": rounds, "interrupted": quiet.share, "rows": rows}


def whole(make: Callable[[], Any], keys: list[Any]) -> Run:
    """Return a run whose only item stands for all the keys.

    An empty cache gets every key, and is asked for each.
    """
    made: list[Any] = []

    def work(items: list[Any]) -> None:
        if not items:
            return
        cache = make()
        made.append(cache)
        for key in keys:
            cache[key] = True
        get = cache.get
        for key in keys:
            get(key)

    def check(items: list[Any]) -> None:
        cache = made.pop()
        assert len(cache) == len(keys)
        assert all(cache.get(key) for key in keys[:: max(1, len(keys) // 20)])

    return Run(work, check, warm=False)


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of the table."""
    lines = conditions(results, f"./dev bench flood --rounds {results['rounds']}")
    rows = []
    for row in results["rows"]:
        spread = f"[{number(row['over_dict_low'])}-{number(row['over_dict_high'])}]"
        what = "over dict" if row["identical"] else "over random"
        rows.append(
            [
                row["keys"],
                f"{row['n']:,}",
                f"{number(row['ns'])} ns",
                f"{number(row['over_dict'])} {spread}",
                "-" if row["over_random"] is None else number(row["over_random"]),
                verdict(row["met"], f"{what} ≤ {row['target']}"),
            ]
        )
    names = ["keys", "how many", "per operation", "over `dict`", "over random keys", "target"]
    lines += [
        (
            f"Filling an empty cache and reading every key again, time of one operation; medians "
            f"of {results['rounds']} interleaved rounds, in brackets the quartiles."
        ),
        "",
        *table(names, rows),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks flood", description="Keys made to collide."
    )
    parser.add_argument("--rounds", type=positive, default=9, help="interleaved rounds (9)")
    add_json(parser)
    found = parser.parse_args(arguments)
    results = run(found.rounds)
    return finish(results, render(results), found.json)
