"""A demonstration's result as text: rows of a table and sentences, without any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from beastmode.demo.play import PATIENCE_S
from beastmode.demo.results import DemoResult, Phase
from beastmode.stats import NOT_YET_KNOWN, Kpi

__all__ = ["Row", "comparison", "findings", "method", "percent"]


class Row(NamedTuple):
    """One line of the table: what it is of, and for each phase the value and its rating."""

    title: str
    disabled: str
    enabled: str
    disabled_rating: str = ""
    enabled_rating: str = ""


def percent(share: float) -> str:
    """Return a share as the key figures show it."""
    return Kpi("", share, "ratio").text


def comparison(result: DemoResult) -> list[Row]:
    """Return the seven key figures side by side, with what they were computed from."""
    rows = []
    details: dict[str, list[tuple[str, Callable[[Phase], str]]]] = {
        "response_time": [
            ("  p50", lambda phase: _ms(phase, "p50_ms")),
            ("  p95", lambda phase: _ms(phase, "p95_ms")),
            ("  p99", lambda phase: _ms(phase, "p99_ms")),
            ("  longest", lambda phase: _ms(phase, "max_ms")),
        ],
        "throughput": [
            ("  requests", lambda phase: f"{phase.requests:,}"),
            ("  in", lambda phase: f"{phase.elapsed_s:.1f} s"),
        ],
        "hit_rate": [
            ("  reads", lambda phase: f"{phase.reads:,}"),
            ("  documents read of store", lambda phase: f"{phase.store_reads:,}"),
        ],
        "cost_reduction": [
            ("  calls of the store", lambda phase: _count(phase, "calls")),
            ("  units it billed", lambda phase: _count(phase, "units")),
        ],
    }
    off, on = result.disabled, result.enabled
    for name, kpi in off.stats.kpis.items():
        other = on.stats.kpis[name]
        title = f"{kpi.title}, mean" if name == "response_time" else kpi.title
        rows.append(Row(title, kpi.text, other.text, kpi.rating or "", other.rating or ""))
        rows += [Row(part, text(off), text(on)) for part, text in details.get(name, [])]
    return rows


def _ms(phase: Phase, name: str) -> str:
    value = phase.stats.response_time.detail[name]
    return f"{value:,.3f} ms" if isinstance(value, float) else NOT_YET_KNOWN


def _count(phase: Phase, name: str) -> str:
    value = phase.stats.cost_reduction.detail[name]
    return f"{value:,}" if isinstance(value, int) else NOT_YET_KNOWN


def findings(result: DemoResult) -> list[str]:
    """Return what the figures say, in sentences."""
    return list(_findings(result))


def _findings(result: DemoResult) -> Iterator[str]:
    off, on = result.disabled, result.enabled
    trace = result.trace
    if trace is not None:
        whole = on.requests == trace["requests"]
        yield (
            f"Trace {trace['file']}: {trace['requests']:,} requests of {trace['unique_keys']:,} "
            f"documents, {'played to the end' if whole else 'not played to the end'} with beast "
            f"mode enabled. Disabled, {_prefix(off, trace['requests'])}."
        )
    if on.reads_saved is not None and on.bound is not None:
        yield (
            f"Saved store reads: {on.reads - on.store_reads:,} of {on.reads:,} "
            f"({percent(on.reads_saved)}). {on.first_reads:,} reads were the first of their "
            f"document, so no cache that begins empty saves more than {percent(on.bound)} "
            "(1 - first reads / reads)."
        )
        waited = on.sources.get("store", 0) - on.store_reads
        if waited > 0:
            yield (
                f"{waited:,} reads waited for a load that another request had begun: they are no "
                "hits, and read nothing of the store."
            )
    if on.last_second is not None:
        rate, hit_rate = on.last_second
        yield (
            "The cache began empty. In the last second with beast mode enabled: "
            f"{rate:,.0f} requests/s, hit rate {percent(hit_rate)}."
        )
    heard = on.stats.cost_reduction.detail["listener_units"]
    if isinstance(heard, int) and heard:
        yield (
            f"{heard:,} of the billed units were sent to the listener: one for each document that "
            "the cache began to hold, one for each change of it. It saves the reads at the end "
            "of each time to live, which is longer than these phases."
        )
    if on.evictions:
        yield (
            f"The cache holds at most {result.conditions['cache_max_entries']:,} documents; it "
            f"evicted {on.evictions:,}."
        )
    if off.writes_acknowledged or on.writes_acknowledged:
        yield (
            f"Acknowledged writes found in the store afterwards: {off.writes_found:,} of "
            f"{off.writes_acknowledged:,} disabled, {on.writes_found:,} of "
            f"{on.writes_acknowledged:,} enabled (there {on.write_operations:,} writes of the "
            "store carried them)."
        )


def _prefix(phase: Phase, requests: int) -> str:
    if phase.requests >= requests:
        return "all of it too"
    return (
        f"only its first {phase.requests:,} requests, for {phase.elapsed_s:.1f} s (--seconds sets "
        "how long): compare the two with care"
    )


def method(result: DemoResult) -> list[str]:
    """Return what was measured how, in sentences."""
    return list(_method(result))


def _method(result: DemoResult) -> Iterator[str]:
    of = result.conditions
    off, on = result.disabled, result.enabled
    if result.trace is None:
        reads = 1 - of["write_share"] - of["heartbeat_share"]
        yield (
            f"Requests: {reads:.0%} reads (Zipf {of['zipf_exponent']}) of "
            f"{result.store['documents']:,} documents, {of['write_share']:.0%} writes, "
            f"{of['heartbeat_share']:.0%} heartbeats, of {of['users']:,} simulated users; drawn "
            f"beforehand, seed {of['seed']}, the same in both phases."
        )
    else:
        yield "Requests: the reads of the trace, in its order. It names no users: none connected."
    yield (
        f"Load: {of['workers']} concurrent workers in this process, on one event loop, each "
        "sends its next request when the last is answered (closed loop). So the store's queue "
        "is part of the response time. Nothing leaves this machine. Users wait for an answer up "
        f"to {PATIENCE_S:.0f} s."
    )
    yield f"Store: {result.store['about']}"
    yield (
        f"Phases: an optimizer each, over the same documents; {_ends(off, on)}. Prepared "
        "requests are kept out of Python's garbage collector; cached documents are not."
    )
    yield (
        "Memory: all of this process, simulated users and requests included. Billed units: one "
        "per document read or written."
    )
    if of["changed_settings"]:
        changed = ", ".join(
            f"{name}={entry['value']} ({entry['source']})"
            for name, entry in of["changed_settings"].items()
        )
        yield f"Settings that are not the defaults: {changed}."
    yield (
        f"Machine: {of['processors']} processors, {of['architecture']}, {of['system']}; "
        f"{of['python']}, {result.store['software']}, beastcore {of['version']}, "
        f"{of['engine']} engine."
    )


def _ends(off: Phase, on: Phase) -> str:
    words = {"time": "when its time was up", "requests": "with the last request"}
    return (
        f"disabled ended {words[off.ended_by]} ({off.elapsed_s:.1f} s), enabled "
        f"{words[on.ended_by]} ({on.elapsed_s:.1f} s)"
    )
