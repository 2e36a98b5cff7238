"""`python -m benchmarks.tables [--check]`: the tables of docs/performance.md.

They are made from benchmarks/results.json alone, between the markers of the page, so that a figure
in the documentation is always one that was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench_cache import CASES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- tables: begin; made by python -m benchmarks.tables, do not edit -->"
BUSY = 0.1
"""Share of interrupted slices above which the page warns."""
END = "<!-- tables: end -->"


def number(value: float) -> str:
    """Return a ratio or a time with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(result: dict[str, Any]) -> str:
    """Return ratio, its quartiles and the time."""
    time = f"{number(result['ns'])} ns"
    if result["ratio"] is None:
        return time
    if result["contender"] == result["base"]:
        return f"1 ({time})"
    spread = f"{number(result['ratio_low'])}-{number(result['ratio_high'])}"
    return f"**{number(result['ratio'])}** [{spread}] ({time})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table with padded columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *rows]
    ]


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


def conditions(results: dict[str, Any]) -> list[str]:
    """Return where, when and how it was measured."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        (
            f"Measured on {results['date']} with `./dev bench{' --quick' * results['quick']}`: "
            f"{machine['cpu']}, {machine['cores']} cores, {machine['system']} "
            f"({machine['architecture']}), {machine['python']} ({machine['compiler']}); {versions}."
        ),
        "",
        (
            f"Medians of {results['rounds']} interleaved rounds, in brackets the quartiles, loop "
            "overhead subtracted (not between the twins); str keys, Zipf 1.0 accesses. Ratios are "
            "taken within a round; times of other machines differ."
        ),
        "",
    ]
    if results["interrupted"] > BUSY:
        lines += [
            (
                f"**The machine was busy: {100 * results['interrupted']:.0f} % of the work was "
                "interrupted, so these figures are rough.**"
            ),
            "",
        ]
    if results["missing"]:
        lines += [f"Not installed, so not measured: {', '.join(results['missing'])}.", ""]
    return lines


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of all tables."""
    lines = conditions(results)
    for case in CASES:
        lines += case_table(results, case)
    lines += twin_table(results)
    return "\n".join(lines).rstrip() + "\n"


def filled_page(page: str, results: dict[str, Any]) -> str:
    """Return the page with its tables made anew; ValueError if it lacks the markers."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{PAGE.name} must hold, once and in this order: {BEGIN!r}, {END!r}")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{render(results)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or with --check tell whether it is as it would be written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    check = parser.parse_args(arguments).check
    page = PAGE.read_text(encoding="utf-8")
    wanted = filled_page(page, json.loads(RESULTS.read_text(encoding="utf-8")))
    if check:
        if page != wanted:
            print(f"{PAGE} is out of date: run python -m benchmarks.tables", file=sys.stderr)
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
