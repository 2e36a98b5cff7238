"""Hit ratios of the compiled `Cache` on recorded traces, against the reference simulations."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from beastmode.demo.traces import read_trace
from cache_lockstep import salted
from support import Twin

TRACES = ["web07", "lirs_gli", "lirs_multi3", "lirs_sprite", "corda"]
"""The short ones."""
SALTS = [1, 2, 3]


def percent_of_hits(cache: Any, keys: list[int]) -> float:
    """Replay a trace: a lookup for each request, and a write if it missed."""
    get = cache.get
    for key in keys:
        if get(key) is None:
            cache[key] = True
    stats = cache.stats()
    assert stats.hits + stats.misses == len(keys)
    return 100 * stats.hits / len(keys)


@pytest.mark.compiled_only
def test_against_the_reference(engine: Twin) -> None:
    folder = os.environ.get("BEASTCORE_TRACES")
    if not folder:
        pytest.skip(f"BEASTCORE_TRACES does not name the folder of the recorded traces ({TRACES})")
    reference: dict[tuple[str, int], dict[str, float]] = {}
    with (Path(folder) / "reference_hit_ratios.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cell = reference.setdefault((row["trace"], int(row["capacity"])), {})
            cell[row["policy"]] = float(row["hit_ratio_percent"])
    seen: list[float] = []
    expected: list[float] = []
    for trace in TRACES:
        keys = read_trace(Path(folder) / f"{trace}.npz").tolist()
        for capacity in [size for name, size in reference if name == trace]:
            ratios = []
            for salt in SALTS:
                with salted(engine, salt):
                    cache = engine.raw.Cache(capacity)
                ratios.append(percent_of_hits(cache, keys))
                cache._check()
            ratio = sum(ratios) / len(ratios)
            cell = reference[trace, capacity]
            print(f"{trace} {capacity}: {ratio:.2f}, lru {cell['lru']}, {cell['adaptive']}")
            assert ratio >= cell["lru"] - 2, (trace, capacity, ratio, cell["lru"])
            seen.append(ratio)
            expected.append(cell["adaptive"])
    assert len(seen) >= 20
    mean, mean_expected = sum(seen) / len(seen), sum(expected) / len(expected)
    print(f"mean {mean:.2f}, reference {mean_expected:.2f}")
    assert mean >= mean_expected - 0.7, (mean, mean_expected)


@pytest.mark.compiled_only
def test_lru_agrees_with_the_reference(engine: Twin) -> None:
    """The replay itself: exact LRU must give the figures that the reference gives."""
    folder = os.environ.get("BEASTCORE_TRACES")
    if not folder:
        pytest.skip("BEASTCORE_TRACES does not name the folder of the recorded traces (web07.npz)")
    keys = read_trace(Path(folder) / "web07.npz").tolist()
    with (Path(folder) / "reference_hit_ratios.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["trace"] == "web07" and r["policy"] == "lru"]
    for row in rows:
        ratio = percent_of_hits(engine.raw.Cache(int(row["capacity"]), policy="lru", slack=0), keys)
        assert ratio == pytest.approx(float(row["hit_ratio_percent"]), abs=0.01)
