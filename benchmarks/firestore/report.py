"""The tables of what was measured on Firestore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import conditions, number, table, verdict

__all__ = ["render"]


def render(results: dict[str, Any]) -> str:
    """Return the Markdown of every part that was measured."""
    lines = conditions(results, "./dev bench firestore")
    for name, show in _PARTS.items():
        part = results["parts"].get(name)
        if part is not None:
            quick = " with --quick" if part["quick"] else ""
            lines += [*show(part["found"]), ""]
            lines += [f"(`./dev bench firestore {name}`{quick}, {part['date']})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _consistency(found: dict[str, Any]) -> list[str]:
    return [
        (
            "**Consistency.** "
            f"{found['operations']:,} operations by {found['workers']} workers in "
            f"{found['processes']} processes, {found['reads_judged']:,} answers judged, "
            f"{found['increments']:,} increments counted: **{found['violations']} violations**"
            + (f", {len(found['errors'])} errors." if found["errors"] else ", no error.")
        )
    ]


def _crashes(found: list[dict[str, Any]]) -> list[str]:
    names = {
        "counting": "`kill -9` of the application, answers lost, operations refused",
        "faulty": "the same over a proxy that cuts and holds the connection",
        "faulty-plain": "over such a proxy without transforms: what is late undoes nothing",
    }
    rows = [
        [
            names[row["what"]],
            f"{row['trials']:,}",
            f"{row['kills']:,}",
            f"{row['acknowledged']:,}",
            f"{row['counted']:,}",
            f"{row['replayed']:,}",
            f"{row['confirmed']:,}",
        ]
        for row in found
    ]
    heads = [
        "", "trials", "kills", "acknowledged writes", "of them with transforms", "replayed",
        "commits found by their marker",
    ]  # fmt: skip
    return [
        (
            "**Crashes.** A run ends with an error at the first write that was acknowledged and is "
            "not in the database, and at the first transform that was applied twice; these did not."
        ),
        "",
        *table(heads, rows),
    ]


def _network(found: dict[str, Any]) -> list[str]:
    return [
        (
            "**Connections cut and held.** "
            f"{found['trials']} trials, {found['faults']:,} faults of the network: "
            f"{found['acknowledged_writes']:,} acknowledged writes and "
            f"{found['acknowledged_increments']:,} acknowledged increments, "
            f"**{found['lost_or_doubled']} lost or applied twice**."
        )
    ]


def _recovery(found: dict[str, Any]) -> list[str]:
    rows = []
    for kind, title in (("kill", "`kill -9`, then restarted"), ("freeze", "`SIGSTOP`, `SIGCONT`")):
        row = found[kind]
        late, back = row["late_s"], row["recovery_s"]
        rows.append(
            [
                title,
                str(row["trials"]),
                f"{row['calls']:,}",
                " / ".join(f"{1000 * late[name]:.0f}" for name in ("p50", "p99", "p999", "max")),
                *(f"{back[name]['p50']} / {back[name]['max']}" for name in back),
                verdict(row["met"], "late ≤ 500 ms, back ≤ 5 s"),
            ]
        )
    names = [
        "the server", "trials", "calls", "later than the deadline, ms: p50 / p99 / p99.9 / max",
        "fresh answer, s: p50 / max", "commit", "listener", "target",
    ]  # fmt: skip
    return [
        (
            "**Deadlines and recovery.** Negative: before its deadline. Times of recovery run from "
            "the moment at which the server serves again."
        ),
        "",
        *table(names, rows),
    ]


def _sync(found: dict[str, Any]) -> list[str]:
    late = found["latency"]
    rows = [
        [
            f"{row['documents']:,}",
            f"{row['ours_ms']:.2f} ms",
            f"{row['watch_ms']:.2f} ms",
            f"{number(row['times'])}",
            f"{row['single_ms']:.2f} ms",
        ]
        for row in found["cpu"]
    ]
    names = [
        "documents", "ours, collection", "`Watch`, collection", "times as fast",
        "ours, a target for each",
    ]  # fmt: skip
    return [
        (
            f"**From a write elsewhere to the cache.** {late['targets']:,} documents with a target "
            f"each, {late['rate']} writes a second, {late['writes']:,} writes: p50 "
            f"{late['p50_ms']} ms, p90 {late['p90_ms']} ms, p99 {late['p99_ms']} ms, longest "
            f"{late['max_ms']} ms; {verdict(late['met'], 'p50 < 10 ms, p99 < 100 ms')}."
        ),
        "",
        f"**CPU of one change**, one write a second, {found['cpu'][0]['changes']} changes.",
        "",
        *table(names, rows),
    ]


def _workload(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in found:
        paid = row["paid_back_after"]
        target = verdict(row["met"], "≥ 99 %, ≥ 99.9 %")
        if not row["met"] and row["why_not"]:
            target = f"not reached: {row['why_not']}"
        rows.append(
            [
                row["variant"],
                f"{row['straight_reads']:,}",
                f"{row['store_reads']:,} + {row['listener_reads']:,}",
                _percent(row["reduction"]),
                _percent(row["hit_rate"]),
                f"{row['initial_reads']:,} + {row['initial_listener_reads']:,}",
                "-" if paid is None else f"{paid:,}",
                target,
            ]
        )
    names = [
        "variant", "straight reads", "billed: store + listener", "fewer", "hit rate",
        "initially: store + listener", "paid back after", "target",
    ]  # fmt: skip
    return [
        (
            "**The stated workload, billed.** Zipf 1.0, steady state; *paid back after*: requests "
            "until the reads saved are as many as the initial ones."
        ),
        "",
        *table(names, rows),
    ]


def _latency(found: dict[str, Any]) -> list[str]:
    parts = []
    for name, title in (("sync", "threads"), ("async", "coroutines")):
        row = found[name]
        parts.append(
            f"{title}: {row['hit_us']} µs against {row['get_us']:,} µs, **{number(row['times'])}** "
            f"times [{number(row['times_low'])}-{number(row['times_high'])}], "
            f"{verdict(row['met'], '≥ 200')}"
        )
    return [
        f"**A hit through `handle_request` beside the client's own `get`.** {'; '.join(parts)}."
    ]


def _imports(found: dict[str, Any]) -> list[str]:
    loaded = ", ".join(found["third_party"] + found["google"]) or "nothing"
    told = "; ".join(
        f"`{row['what']}` {row['ratio']} [{row['ratio_low']}-{row['ratio_high']}] times as long "
        f"({row['ms']} / {row['stdlib_ms']} ms), {verdict(row['met'], '≤ 2')}"
        for row in found["rows"]
    )
    return [
        (
            f"**Import**, beside `import asyncio, sqlite3, json`: {told}. Of third parties it "
            f"loads {loaded}."
        )
    ]


_PARTS: dict[str, Callable[[Any], list[str]]] = {
    "consistency": _consistency,
    "crashes": _crashes,
    "network": _network,
    "recovery": _recovery,
    "sync": _sync,
    "workload": _workload,
    "latency": _latency,
    "imports": _imports,
}
