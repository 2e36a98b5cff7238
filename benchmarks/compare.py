"""`python -m benchmarks compare [CASE ...] [--quick] [--json FILE] [--rounds N]`.

Every cache beside every other one in every case; what the cases are is in bench_cache.py.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks import twin
from benchmarks.bench_cache import CASES, SIZES, run_size
from benchmarks.markdown import conditions, number, table
from benchmarks.measure import Quiet
from benchmarks.peers import available
from benchmarks.program import add_json, finish, head, missing_peers, require_compiled, say

TWIN = "twin"
QUICK_SIZES = (10_000,)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="Compare with other caches, and the compiled engine with its pure twin.",
        epilog=f"Cases: {', '.join([*CASES, TWIN])}. All of them unless some are named.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="10,000 entries, fewer rounds")
    add_json(parser)
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each case")
    parser.add_argument("--sizes", help="sizes of the caches, separated by commas")
    found = parser.parse_args(arguments)
    unknown = [case for case in found.cases if case not in (*CASES, TWIN)]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join([*CASES, TWIN])}")
    if found.rounds is None:
        found.rounds = 5 if found.quick else 7
    if found.rounds < 1:
        parser.error(f"--rounds must be positive, got {found.rounds}")
    found.cases = found.cases or [*CASES, TWIN]
    found.sizes = sizes_of(parser, found)
    return found


def sizes_of(parser: argparse.ArgumentParser, found: argparse.Namespace) -> tuple[int, ...]:
    if found.sizes is None:
        return QUICK_SIZES if found.quick else SIZES
    try:
        sizes = tuple(int(size.replace("_", "")) for size in found.sizes.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1000:
        parser.error(f"--sizes must be integers of 1000 or more, got {found.sizes!r}")
    return sizes


def run(found: argparse.Namespace) -> dict[str, Any]:
    """Measure; return what the JSON file holds."""
    require_compiled()
    peers, missing = available()
    missing_peers(missing)
    results: list[dict[str, Any]] = []
    cases = [case for case in CASES if case in found.cases]
    quiet = Quiet()
    for size in found.sizes if cases else ():
        for case, base, figures in run_size(
            size, cases, peers, rounds=found.rounds, quiet=quiet, say=say
        ):
            results += [
                {"case": case, "size": size, "base": base, **asdict(figure)} for figure in figures
            ]
    twins = twin.run(found.rounds, say) if TWIN in found.cases else []
    titles = {peer.name: {"ttl": peer.ttl, "of": peer.distribution} for peer in peers}
    return {
        **head("pytest-benchmark"),
        "quick": found.quick,
        "rounds": found.rounds,
        "interrupted": quiet.share,
        "missing": missing,
        "peers": titles,
        "results": results,
        "twin": twins,
    }


def cell(result: dict[str, Any]) -> str:
    """Return ratio, its quartiles and the time."""
    time = f"{number(result['ns'])} ns"
    if result["ratio"] is None:
        return time
    if result["contender"] == result["base"]:
        return f"1 ({time})"
    spread = f"{number(result['ratio_low'])}-{number(result['ratio_high'])}"
    return f"**{number(result['ratio'])}** [{spread}] ({time})"


def case_table(results: dict[str, Any], case: str) -> list[str]:
    """Return title and table of one case: a row for each contender, a column for each size."""
    mine = [result for result in results["results"] if result["case"] == case]
    if not mine:
        return []
    sizes = sorted({result["size"] for result in mine})
    names = list(dict.fromkeys(result["contender"] for result in mine))
    by = {(result["contender"], result["size"]): result for result in mine}
    notes = list(dict.fromkeys(n for name in names if (n := _note(by, name, sizes))))
    rows = []
    for name in names:
        note = _note(by, name, sizes)
        mark = f" ({notes.index(note) + 1})" if note else ""
        cells = [cell(by[name, size]) if (name, size) in by else "-" for size in sizes]
        rows.append([name + mark, *cells])
    title = f"{CASES[case][0]}: times as long as `{mine[0]['base']}`"
    lines = [f"### {title}", "", *table(["", *(f"{s:,} entries" for s in sizes)], rows), ""]
    for i, note in enumerate(notes, 1):
        lines += [f"({i}) {note}", ""]
    return lines


def _note(by: dict[tuple[str, int], dict[str, Any]], name: str, sizes: list[int]) -> str | None:
    """Return the notes of a contender, those of different sizes together."""
    found = [by[name, size]["note"] for size in sizes if (name, size) in by]
    return "; ".join(dict.fromkeys(note for note in found if note)) or None


def twin_table(results: dict[str, Any]) -> list[str]:
    """Return the comparison of the two twins."""
    if not results["twin"]:
        return []
    rows = [
        [
            row["operation"],
            *(
                f"{number(row[f'{engine}_ns'])} ns [{number(row[f'{engine}_ns_low'])}"
                f"-{number(row[f'{engine}_ns_high'])}]"
                for engine in ("compiled", "pure")
            ),
            f"**{number(row['ratio'])}**",
        ]
        for row in results["twin"]
    ]
    head = ["", "compiled", "pure Python", "times as fast"]
    return ["### The compiled engine and its pure-Python twin", "", *table(head, rows), ""]


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of all tables."""
    lines = conditions(results, f"./dev bench{' --quick' * results['quick']}")
    lines += [
        (
            f"Medians of {results['rounds']} interleaved rounds, in brackets the quartiles, loop "
            "overhead subtracted (not between the twins); str keys, Zipf 1.0 accesses. Ratios are "
            "taken within a round; times of other machines differ."
        ),
        "",
    ]
    for case in CASES:
        lines += case_table(results, case)
    lines += twin_table(results)
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    found = parse(arguments)
    results = run(found)
    return finish(results, render(results), found.json)
