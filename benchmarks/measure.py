"""Interleaved rounds, loop overhead, medians with spread; what machine it was.

In every round each contender runs once, in a new random order, over the same input; an empty loop
over that input runs as one of them and is subtracted. What the system interrupted to run something
else is left out. A ratio is taken within a round, so what
slows the machine for a while slows both sides. The garbage collector is off while a clock runs.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOP = "empty loop"
SLICES = 100
"""Parts of a pass that are timed on their own."""


@dataclass
class Run:
    """One contender of a case: what is timed, and the proof that it happened."""

    work: Callable[[Any], object]
    """Timed; gets the round's input."""
    check: Callable[[Any], None]
    """Called after the clock has stopped; raises AssertionError if the work was not done."""
    prepare: Callable[[Any], Any] | None = None
    """Called before the clock starts; returns the input to use."""
    undo: Callable[[Any], None] | None = None
    """Called after `check`, to bring the next round into the same state."""
    warm: bool = True
    """Whether some input may run before the clock starts."""
    note: str | None = None
    """What to know when reading the figure."""


@dataclass
class Quiet:
    """Counts slices of passes, and those that the system interrupted: on the clock for longer
    than on the processor. Where many were, something else kept the machine busy."""

    slices: int = 0
    interrupted: int = 0

    def add(self, wall_ns: int, processor_ns: int) -> bool:
        """Count a slice; return whether it ran without interruption."""
        self.slices += 1
        clean = wall_ns <= 1.1 * processor_ns + 5_000
        self.interrupted += not clean
        return clean

    @property
    def share(self) -> float:
        """Interrupted slices / slices."""
        return round(self.interrupted / self.slices, 3) if self.slices else 0.0


@dataclass(frozen=True)
class Figure:
    """Median and quartiles of a contender's time per operation and of its ratio to the base."""

    contender: str
    ns: float
    ns_low: float
    ns_high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    note: str | None


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def run_rounds(
    runs: dict[str, Run],
    inputs: Callable[[int], list[Any]],
    *,
    rounds: int,
    quiet: Quiet,
    per_item: int = 1,
    seed: int = 1,
    warm_up: Callable[[int], list[Any]] | None = None,
) -> dict[str, list[float]]:
    """Run every contender in every round; return each one's nanoseconds per operation by round.

    `quiet` counts the passes. `inputs(round)` returns the list that the round's loops go over;
    each item of it counts as `per_item` operations. `warm_up(round)` returns the list that a
    contender handles before its clock starts; without it that is a first part of the input.
    """
    order = [*runs, LOOP]
    times: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(seed).shuffle
    contenders = {**runs, LOOP: Run(_empty_loop, lambda items: None)}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            items = inputs(number)
            warm = items[: len(items) // 4] if warm_up is None else warm_up(number)
            shuffle(order)
            for name in order:
                times[name].append(_time(contenders[name], items, warm, quiet) / per_item)
    finally:
        if was_enabled:
            gc.enable()
    return {
        name: [max(t - loop, 0.01) for t, loop in zip(times[name], times[LOOP], strict=True)]
        for name in runs
    }


def compare(
    runs: dict[str, Run],
    base: str,
    inputs: Callable[[int], list[Any]],
    *,
    rounds: int,
    quiet: Quiet,
    per_item: int = 1,
) -> list[Figure]:
    """Return the figures of `run_rounds` in the order of `runs`, with ratios to `base`."""
    net = run_rounds(runs, inputs, rounds=rounds, quiet=quiet, per_item=per_item)
    figures = []
    for name, run in runs.items():
        low, middle, high = quartiles(net[name])
        ratios: tuple[float | None, ...] = (None, None, None)
        if base in net:
            pairs = zip(net[name], net[base], strict=True)
            ratios = quartiles([mine / theirs for mine, theirs in pairs])
        rounded = [round(value, 2) for value in (middle, low, high)]
        r_low, r_middle, r_high = (None if r is None else round(r, 3) for r in ratios)
        figures.append(Figure(name, *rounded, r_middle, r_low, r_high, run.note))
    return figures


def _empty_loop(items: list[Any]) -> None:
    for _item in items:
        pass


def _time(run: Run, items: list[Any], warm: list[Any], quiet: Quiet) -> float:
    """Return the nanoseconds that an item took, on average over one pass.

    The pass is timed in slices; those that the system interrupted are left out, unless hardly
    any was not.
    """
    if run.prepare is not None:
        items = run.prepare(items)
    if run.warm:
        run.work(warm)
    step = max(1, len(items) // SLICES)
    slices = [items[i : i + step] for i in range(0, len(items), step)]
    wall, processor, work = time.perf_counter_ns, time.thread_time_ns, run.work
    every, clean, n_clean = 0, 0, 0
    for part in slices:
        used = processor()
        start = wall()
        work(part)
        elapsed = wall() - start
        used = processor() - used
        every += elapsed
        if quiet.add(elapsed, used):
            clean += elapsed
            n_clean += len(part)
    run.check(items)
    if run.undo is not None:
        run.undo(items)
    return clean / n_clean if n_clean > len(items) // 4 else every / len(items)


def machine() -> dict[str, Any]:
    """Describe processor, system and Python; nothing that names the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "huge_pages": _huge_pages(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _huge_pages() -> str | None:
    """Return when Linux gives large blocks of memory pages of 2 MiB; None elsewhere."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def versions(distributions: list[str]) -> dict[str, str]:
    """Return the installed versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
