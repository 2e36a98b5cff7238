"""The traces of a folder, the sizes of cache to try on them, and what is known of them."""

from __future__ import annotations

import csv
import os
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from beastmode.demo.traces import read_trace

VARIABLE = "BEASTCORE_TRACES"
FRACTIONS = (0.001, 0.01, 0.05, 0.10, 0.25)
"""Sizes of the caches, as shares of a trace's unique keys."""
SMALLEST = 20
"""Smaller caches are left out."""
REFERENCE = "reference_hit_ratios.csv"


@dataclass(frozen=True)
class Cell:
    """A trace and a size of cache."""

    trace: str
    fraction: float
    capacity: int
    requests: int
    unique: int


class TracesError(Exception):
    """There are no traces where the environment says."""


def folder() -> Path:
    """Return the folder of the traces; TracesError says what to set."""
    named = os.environ.get(VARIABLE)
    if not named:
        raise TracesError(
            f"set {VARIABLE} to a folder of recorded traces: .npz files (numpy.savez_compressed) "
            "whose array 'keys' holds one integer for each read request, in order"
        )
    path = Path(named)
    if not any(path.glob("*.npz")):
        raise TracesError(f"{VARIABLE} is {named!r}: no folder with .npz files")
    return path


@lru_cache(maxsize=1)
def trace(path: Path) -> array[int]:
    """Return the keys of a trace relabelled by first appearance (0, 1, 2, ...)."""
    labels: dict[int, int] = {}
    return array("Q", (labels.setdefault(key, len(labels)) for key in read_trace(path)))


def cells(path: Path, names: list[str]) -> list[Cell]:
    """Return the cells of the traces in a folder, or of those named; TracesError for a wrong one.

    A capacity is the fraction of the unique keys, rounded.
    """
    found = sorted(file.stem for file in path.glob("*.npz"))
    for name in names:
        if name not in found:
            raise TracesError(f"there is no trace {name!r}; there are {', '.join(found)}")
    made = []
    for name in names or found:
        keys = trace(path / f"{name}.npz")
        unique = max(keys) + 1
        for fraction in FRACTIONS:
            capacity = round(fraction * unique)
            if capacity >= SMALLEST:
                made.append(Cell(name, fraction, capacity, len(keys), unique))
    return made


def reference(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Return the reference simulations, (trace, capacity) -> policy -> hit ratio in percent.

    Empty where the folder has none.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    try:
        file = (path / REFERENCE).open(encoding="utf-8", newline="")
    except FileNotFoundError:
        return found
    with file:
        for row in csv.DictReader(file):
            cell = found.setdefault((row["trace"], int(row["capacity"])), {})
            cell[row["policy"]] = float(row["hit_ratio_percent"])
    return found
