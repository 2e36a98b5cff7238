"""The program: what is run, what comes out of it, and the tables."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hitrate.replay import (
    ADAPTIVE,
    BELADY,
    CONTENDERS,
    LRU,
    SLOW,
    THEINE,
    Contender,
    run_cell,
)
from benchmarks.hitrate.traces import Cell, TracesError, cells, folder, reference
from benchmarks.markdown import conditions, table, verdict
from benchmarks.peers import available
from benchmarks.program import (
    add_json,
    finish,
    head,
    missing_peers,
    positive,
    require_compiled,
    say,
)

REPEATS = 3
LEAST_MEAN = 56.4
LEAST_GAP = 40.5
LEAST_OVER_THEINE = 1.5
MOST_BELOW_LRU = 2.0
EXACT = {LRU: "lru", BELADY: "opt"}
"""Policies that are both replayed and in the reference, under its name for them."""
SAME = 0.011
"""Two exact replays of one policy may differ by so much: the reference is rounded."""


def jobs_of(
    path: Path, wanted: list[Cell], names: list[Contender], repeats: int, longest: int
) -> list[tuple[str, str, Cell]]:
    """Return what is to run, the longest first, so that no process is busy when others are done.

    The cells of a trace stand together, so that a process reads it once.
    """
    jobs = []
    for cell in sorted(wanted, key=lambda cell: (-cell.requests, cell.trace)):
        for contender in names:
            if contender.slow and cell.requests > longest:
                continue
            n_runs = repeats if contender.random else 1
            jobs += [(str(path), contender.name, cell)] * n_runs
    return jobs


def run(names: list[str], repeats: int, longest: int, processes: int) -> dict[str, Any]:
    """Replay; return what the JSON file holds. TracesError if there is nothing to replay."""
    require_compiled()
    path = folder()
    wanted = cells(path, names)
    peers, missing = available()
    installed = {peer.distribution for peer in peers} | {None}
    missing_peers(missing)
    chosen = [c for c in CONTENDERS if c.peer is None or c.peer.distribution in installed]
    longer = sorted({cell.trace for cell in wanted if cell.requests > longest})
    if longer:
        slow = ", ".join(one.name for one in chosen if one.slow)
        say(f"left out: {slow} on {', '.join(longer)}, longer than {longest:,} requests")
    jobs = jobs_of(path, wanted, chosen, repeats, longest)
    say(f"{len(wanted)} cells, {len(jobs)} replays in {processes} processes")
    ratios: dict[tuple[str, int], dict[str, list[float]]] = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = pool.imap_unordered(run_cell, jobs, chunksize=4)
        for count, (name, cell, ratio) in enumerate(done, 1):
            key = cell.trace, cell.capacity
            ratios.setdefault(key, {}).setdefault(name, []).append(round(ratio, 3))
            if count % 100 == 0:
                say(f"{count} of {len(jobs)} replays")
    known = reference(path)
    rows = [
        {
            "trace": cell.trace,
            "fraction": cell.fraction,
            "capacity": cell.capacity,
            "requests": cell.requests,
            "measured": ratios[cell.trace, cell.capacity],
            "reference": known.get((cell.trace, cell.capacity), {}),
        }
        for cell in wanted
    ]
    differs = differences(rows)
    for text in differs:
        say(f"differs: {text}")
    return {
        **head(),
        "repeats": repeats,
        "longest": longest,
        "missing": missing,
        "differs": differs,
        "whole_reference": bool(known) and set(known) <= set(ratios),
        "cells": rows,
        "summary": summary(rows),
    }


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """Check the replay itself: exact policies must give what the reference gives."""
    found = []
    for row in rows:
        for name, policy in EXACT.items():
            wanted = row["reference"].get(policy)
            ratio = row["measured"][name][0]
            if wanted is not None and abs(ratio - wanted) > SAME:
                found.append(
                    f"{name} on {row['trace']} with {row['capacity']} entries has {ratio:.2f} %, "
                    f"the reference {wanted:.2f} %"
                )
    return found


Values = dict[str, Callable[[dict[str, Any]], float | None]]


def values_of(rows: list[dict[str, Any]]) -> Values:
    """Return, for each policy, what gives its hit ratio in a row."""

    def measured(name: str) -> Callable[[dict[str, Any]], float | None]:
        return lambda row: (
            statistics.fmean(row["measured"][name]) if name in row["measured"] else None
        )

    def simulated(name: str) -> Callable[[dict[str, Any]], float | None]:
        return lambda row: row["reference"].get(name)

    names = dict.fromkeys(name for row in rows for name in row["measured"])
    policies = dict.fromkeys(
        name for row in rows for name in row["reference"] if name not in EXACT.values()
    )
    found: Values = {name: measured(name) for name in names}
    found |= {f"simulated: {name}": simulated(name) for name in policies}
    return found


def mean_of(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> float:
    """Return the mean over sizes, then over traces, so that every trace counts the same."""
    by_trace: dict[str, list[float]] = {}
    for row in rows:
        ratio = value(row)
        assert ratio is not None
        by_trace.setdefault(row["trace"], []).append(ratio)
    return statistics.fmean(map(statistics.fmean, by_trace.values()))


def standing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each policy that all rows have, mean, gap closed and worst cell against LRU."""
    values = {
        name: value
        for name, value in values_of(rows).items()
        if all(value(row) is not None for row in rows)
    }
    lru, best = mean_of(rows, values[LRU]), mean_of(rows, values[BELADY])
    found = []
    for name, value in values.items():
        mean = mean_of(rows, value)
        below = {
            f"{row['trace']} {row['capacity']}": (value(row) or 0.0) - (values[LRU](row) or 0.0)
            for row in rows
        }
        worst = min(below, key=lambda cell: below[cell])
        found.append(
            {
                "policy": name,
                "mean": round(mean, 2),
                "gap": round(100 * (mean - lru) / (best - lru), 1) if best > lru else None,
                "worst": round(below[worst], 2),
                "worst_cell": worst,
            }
        )
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the standings over all cells, and over those that every other cache ran."""
    groups = [("all cells", rows)]
    most = max(len(row["measured"]) for row in rows)
    common = [row for row in rows if len(row["measured"]) == most]
    if len(common) < len(rows):
        groups.append(("the cells that every cache ran", common))
    return [
        {
            "group": title,
            "cells": len(group),
            "traces": len({row["trace"] for row in group}),
            "standing": standing(group),
        }
        for title, group in groups
    ]


def targets(results: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the table of targets: what, figure, target."""
    every, common = results["summary"][0], results["summary"][-1]
    mine = next(one for one in every["standing"] if one["policy"] == ADAPTIVE)
    lines = []
    if results["whole_reference"]:
        # The mean says how hard the traces are: its target belongs to those of the reference.
        text = verdict(mine["mean"] >= LEAST_MEAN, f"≥ {LEAST_MEAN} %")
        lines.append(["mean hit ratio", f"{mine['mean']:.2f} %", text])
    if mine["gap"] is not None:
        text = verdict(mine["gap"] >= LEAST_GAP, f"≥ {LEAST_GAP} %")
        lines.append(["of the gap from LRU to Belady closed", f"{mine['gap']:.1f} %", text])
    text = verdict(mine["worst"] >= -MOST_BELOW_LRU, f"≥ {-MOST_BELOW_LRU}")
    lines.append(["worst cell against LRU", f"{mine['worst']:+.2f} ({mine['worst_cell']})", text])
    by = {one["policy"]: one for one in common["standing"]}
    if THEINE in by:
        over = by[ADAPTIVE]["mean"] - by[THEINE]["mean"]
        text = verdict(over >= LEAST_OVER_THEINE, f"≥ {LEAST_OVER_THEINE}")
        what = f"points above theine, {common['cells']} cells that both ran"
        lines.append([what, f"{over:+.2f}", text])
    return lines


def standing_table(group: dict[str, Any]) -> list[str]:
    """Return title and table of a standing, the best policy first."""
    ordered = sorted(group["standing"], key=lambda one: -one["mean"])
    rows = [
        [
            f"**{one['policy']}**" if one["policy"] == ADAPTIVE else one["policy"],
            f"{one['mean']:.2f}",
            "-" if one["gap"] is None else f"{one['gap']:.1f}",
            f"{one['worst']:+.2f} ({one['worst_cell']})",
        ]
        for one in ordered
    ]
    head_ = ["", "mean hit ratio, %", "gap closed, %", "worst cell against LRU, points"]
    title = f"### {group['cells']} cells of {group['traces']} traces: {group['group']}"
    return [title, "", *table(head_, rows), ""]


def cell_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of every cell."""
    lines = []
    for row in rows:
        measured, simulated = row["measured"], row["reference"]
        others = {name: ratio for name, ratio in simulated.items() if name != "opt"}
        best = max(others, key=lambda name: others[name]) if others else None
        mine = measured[ADAPTIVE]
        spread = f" [{min(mine):.2f}-{max(mine):.2f}]" if len(mine) > 1 else ""
        lines.append(
            [
                row["trace"],
                f"{row['capacity']:,}",
                f"{measured[LRU][0]:.2f}",
                f"{statistics.fmean(mine):.2f}{spread}",
                f"{measured[THEINE][0]:.2f}" if THEINE in measured else "-",
                f"{others[best]:.2f} ({best})" if best else "-",
                f"{measured[BELADY][0]:.2f}",
            ]
        )
    names = ["trace", "entries", "LRU", "beastcore", "theine", "best simulated policy", "Belady"]
    return ["### Every cell: hit ratio in percent", "", *table(names, lines), ""]


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of all tables."""
    lines = conditions(results, "./dev bench hitrate")
    lines += [
        (
            f"beastcore: mean of {results['repeats']} replays of each cell, each cache with a "
            "salt of its own; in brackets the lowest and the highest."
        ),
        "",
        *table(["", "measured", "target"], targets(results)),
        "",
    ]
    if results["differs"]:
        lines += [f"**The replay differs from the reference: {results['differs'][0]}.**", ""]
    for group in results["summary"]:
        lines += standing_table(group)
    lines += cell_table(results["cells"])
    return "\n".join(lines).rstrip() + "\n"


def render_short(results: dict[str, Any]) -> str:
    """Return the table of the README: the caches that ran everywhere, without the simulated."""
    group = results["summary"][-1]
    chosen = [one for one in group["standing"] if not one["policy"].startswith("simulated")]
    rows = [
        [
            one["policy"],
            f"{one['mean']:.1f} %",
            "-" if one["gap"] is None else f"{one['gap']:.0f} %",
        ]
        for one in sorted(chosen, key=lambda one: -one["mean"])
    ]
    names = [f"{group['cells']} cells of {group['traces']} traces", "hit ratio", "gap closed"]
    return "\n".join(table(names, rows)) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hitrate",
        description="Hit ratio on the traces of the folder that BEASTCORE_TRACES names.",
    )
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="all unless some are named")
    parser.add_argument(
        "--repeats", type=positive, default=REPEATS, help=f"salts to try ({REPEATS})"
    )
    parser.add_argument(
        "--longest",
        type=positive,
        default=SLOW,
        metavar="REQUESTS",
        help=f"leave slow peers out on longer traces ({SLOW:,})",
    )
    parser.add_argument(
        "--processes", type=positive, default=os.cpu_count() or 1, help="replays at a time"
    )
    add_json(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    found = parse(arguments)
    try:
        results = run(found.traces, found.repeats, found.longest, found.processes)
    except TracesError as error:
        say(str(error))
        return 2
    return finish(results, render(results), found.json)
