"""The benchmarks themselves: they measure what they say, and fail where they cannot."""

from __future__ import annotations

import json
import random
import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

Run = Callable[..., CompletedProcess[str]]
Load = Callable[[str], Any]


def stream(n: int = 4000, unique: int = 500, seed: int = 3) -> list[int]:
    """Return skewed requests with a loop in the middle."""
    rng = random.Random(seed)
    skewed = [min(int(rng.paretovariate(0.8)), unique) for _ in range(n // 2)]
    return [*skewed, *range(1000, 1000 + n // 8), *range(1000, 1000 + n // 8), *skewed[: n // 4]]


def hits_of_lru(keys: list[int], capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in keys:
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            if len(held) == capacity:
                held.popitem(last=False)
            held[key] = None
    return hits


def hits_of_belady(keys: list[int], capacity: int) -> int:
    """Belady's rule as it is told: look ahead from every miss."""
    held: set[int] = set()
    hits = 0
    for i, key in enumerate(keys):
        if key in held:
            hits += 1
            continue
        if len(held) == capacity:
            ahead = keys[i + 1 :]
            held.remove(max(held, key=lambda k: ahead.index(k) if k in ahead else len(keys)))
        held.add(key)
    return hits


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A folder with two traces and the true ratios of LRU and Belady for one of them."""
    keys = stream()
    np.savez_compressed(tmp_path / "known.npz", keys=np.array(keys, dtype=np.uint32))
    np.savez(tmp_path / "other.npz", keys=np.array(stream(seed=4)[::-1], dtype=np.int64) + 2**40)
    write_reference(tmp_path, keys)
    return tmp_path


def write_reference(folder: Path, keys: list[int], wrong: float = 0.0) -> None:
    unique = len(set(keys))
    lines = ["trace,size_fraction,capacity,policy,hit_ratio_percent"]
    for fraction in (0.05, 0.10, 0.25):
        capacity = round(fraction * unique)
        assert capacity >= 20
        for policy, hits in (("lru", hits_of_lru), ("opt", hits_of_belady), ("fifo", hits_of_lru)):
            ratio = 100 * hits(keys, capacity) / len(keys) + wrong
            lines.append(f"known,{fraction},{capacity},{policy},{ratio:.4f}")
    (folder / "reference_hit_ratios.csv").write_text("\n".join(lines) + "\n")


def hitrate(run: Run, folder: Path | None, *arguments: object, ok: bool = True) -> Any:
    env = {} if folder is None else {"BEASTCORE_TRACES": str(folder)}
    command = [sys.executable, "-m", "benchmarks.hitrate", *arguments]
    return run(*command, env=env, unset=() if folder else ("BEASTCORE_TRACES",), ok=ok)


@pytest.mark.compiled_only
def test_hitrate_replays_every_trace(run: Run, traces: Path) -> None:
    file = traces / "out.json"
    done = hitrate(run, traces, "--json", file, "--processes", 2, "--repeats", 2)
    results = json.loads(file.read_text())
    assert results["differs"] == []
    assert results["whole_reference"]
    cells = {(cell["trace"], cell["capacity"]): cell for cell in results["cells"]}
    assert {trace for trace, _ in cells} == {"known", "other"}
    for (trace, capacity), cell in cells.items():
        with np.load(traces / f"{trace}.npz") as archive:
            keys = archive["keys"].tolist()
        lru = 100 * hits_of_lru(keys, capacity) / len(keys)
        belady = 100 * hits_of_belady(keys, capacity) / len(keys)
        measured = cell["measured"]
        assert measured["beastcore, lru"] == [pytest.approx(lru, abs=0.001)]
        assert measured["Belady"] == [pytest.approx(belady, abs=0.001)]
        assert len(measured["beastcore"]) == 2
        assert all(lru - 10 < ratio < belady for ratio in measured["beastcore"])
    standing = {one["policy"]: one for one in results["summary"][0]["standing"]}
    assert standing["beastcore, lru"]["gap"] == 0
    assert standing["Belady"]["gap"] == 100
    assert "simulated: fifo" not in standing  # the other trace has none
    assert "| known" in done.stdout
    assert "worst cell against LRU" in done.stdout


@pytest.mark.compiled_only
def test_hitrate_tells_where_the_reference_differs(run: Run, traces: Path) -> None:
    write_reference(traces, stream(), wrong=0.5)
    done = hitrate(run, traces, "known", "--repeats", 1, "--processes", 1)
    assert "differs: Belady on known with" in done.stderr
    assert "**The replay differs from the reference: beastcore, lru on known" in done.stdout


@pytest.mark.compiled_only
def test_hitrate_says_what_is_wrong(run: Run, traces: Path, tmp_path: Path) -> None:
    done = hitrate(run, None, ok=False)
    assert done.returncode == 2
    assert "set BEASTCORE_TRACES to a folder of recorded traces" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = hitrate(run, empty, ok=False)
    assert done.returncode == 2
    assert f"BEASTCORE_TRACES is {str(empty)!r}: no folder with .npz files" in done.stderr
    done = hitrate(run, traces, "unknown", ok=False)
    assert done.returncode == 2
    assert "there is no trace 'unknown'; there are known, other" in done.stderr


@pytest.mark.parametrize("capacity", [1, 2, 7, 40, 1000])
def test_belady(benchmark_module: Load, capacity: int) -> None:
    replay = benchmark_module("hitrate.replay")
    for seed in range(5):
        labels: dict[int, int] = {}
        keys = [labels.setdefault(key, len(labels)) for key in stream(800, 90, seed)]
        assert replay.belady_hits(array("Q", keys), capacity) == hits_of_belady(keys, capacity)


def test_bars_compare_within_rounds(benchmark_module: Load) -> None:
    bars = benchmark_module("bars")
    times = {
        "get": {
            bars.DICT: [10.0, 20.0, 10.0],
            bars.ADAPTIVE: [12.0, 24.0, 13.0],
            bars.CACHEBOX: [13.2, 26.4, 26.0],
        },
        "miss": {
            bars.DICT: [1.0] * 3,
            bars.ADAPTIVE: [10.0] * 3,
            bars.CACHEBOX: [12.0] * 3,
            bars.LRU_DICT: [8.0] * 3,
        },
    }
    rows = {(row["contender"], row["against"]): row for row in bars.rows_of(10_000, times)}
    over_dict = rows[bars.ADAPTIVE, bars.DICT]
    assert (over_dict["ratio"], over_dict["met"]) == (1.2, True)  # at most 1.25
    faster = rows[bars.ADAPTIVE, bars.CACHEBOX]
    assert (faster["ratio"], faster["met"]) == (1.1, False)  # at least 1.2
    fastest = rows[bars.ADAPTIVE, bars.LRU_DICT]  # dict is no peer
    assert (fastest["ratio"], fastest["met"]) == (1.25, False)
    assert len(rows) == 3


@pytest.mark.compiled_only
def test_bars_measure_every_case(benchmark_module: Load) -> None:
    bars = benchmark_module("bars")
    found = bars.measure(1000, list(bars.CASES), 1, 1)
    assert set(found["times"]) == set(bars.CASES)
    for case, times in found["times"].items():
        assert set(times) <= set(bars.CASES[case])
        assert len([name for name in times if name.startswith("beastcore")]) >= 1
        assert all(value > 0 for values in times.values() for value in values)
    rows = bars.rows_of(1000, found["times"])
    assert [row["target"] for row in rows] == [0.8]


@pytest.mark.compiled_only
def test_the_slowest_call_is_found(benchmark_module: Load) -> None:
    worst = benchmark_module("worst")

    def work(item: int) -> None:
        sum(range(100_000 if item == 7 else 1))

    calls = worst.clocked(work, range(20))
    assert len(calls) == 20
    assert calls.index(max(calls)) == 7
    assert worst.shortest(calls, calls) == calls
    least = worst.shortest(calls, worst.clocked(lambda item: None, range(20)))
    assert max(least) < max(calls), "what one repeat alone had is gone"
    assert worst.noise(calls) >= 0


@pytest.mark.compiled_only
@pytest.mark.parametrize("contender", ["beastcore, TTL", "beastcore, lru, TTL", "dict"])
def test_every_scenario_of_single_calls(benchmark_module: Load, contender: str) -> None:
    worst = benchmark_module("worst")
    call = benchmark_module("worker").call
    found = call(worst.measure, contender=contender, size=5000, repeats=2)
    assert list(found) == worst.CONTENDERS[contender]
    for figures in found.values():
        assert len(figures) == 2
        assert 0 < figures[0]["median"] <= figures[0]["high"] <= figures[0]["worst"]
        assert figures[0]["repeatable"] == figures[0]["worst"]
        assert figures[1]["repeatable"] <= min(figure["worst"] for figure in figures)


@pytest.mark.compiled_only
def test_the_keys_of_the_flood_collide(benchmark_module: Load) -> None:
    flood = benchmark_module("flood")
    for keys in flood.SETS:
        made = keys.make()
        assert len(set(made)) == len(made)
        assert (len(set(map(hash, made))) == 1) == keys.identical
    run = flood.whole(dict, list(range(10)))
    run.work([None])
    run.check([None])
    broken = flood.whole(lambda: {-1: True}, list(range(10)))
    broken.work([None])
    with pytest.raises(AssertionError):
        broken.check([None])


@pytest.mark.compiled_only
def test_bytes_and_collections(benchmark_module: Load) -> None:
    memory = benchmark_module("memory")
    call = benchmark_module("worker").call
    found = call(memory.bytes_held, name="beastcore, TTL", size=100_000)
    assert found["entries"] == 100_000
    assert 0.8 * found["estimate"] < found["bytes"] < 1.5 * found["estimate"]
    names = ["beastcore, TTL"]
    times = call(memory.collection, names=names, content="dict", size=20_000, rounds=1)
    assert times["beastcore, TTL"][0] > times["nothing"][0] > 0


def test_a_worker_that_fails_tells_why(benchmark_module: Load) -> None:
    worst = benchmark_module("worst")
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks\.worst measure .*KeyError: 'nobody'"):
        benchmark_module("worker").call(worst.measure, contender="nobody", size=1, repeats=1)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["record", "frobnicate"]])
def test_an_unknown_program_is_refused(run: Run, arguments: list[str]) -> None:
    done = run(sys.executable, "-m", "benchmarks", *arguments, ok=False)
    assert done.returncode == 2
    assert "'frobnicate'" in done.stderr


def test_help_names_every_program(run: Run, benchmark_module: Load) -> None:
    text = run(sys.executable, "-m", "benchmarks", "help").stdout
    for name in [*benchmark_module("__init__").PROGRAMS, "record"]:
        assert f"\n  {name} " in text


@pytest.mark.compiled_only
def test_the_pure_twin_is_not_measured(run: Run) -> None:
    command = [sys.executable, "-c", "from benchmarks.flood import main; main([])"]
    code = "import os; os.environ['BEASTCORE_PURE'] = '1'; "
    command[-1] = code + command[-1]
    done = run(*command, ok=False)
    assert done.returncode != 0
    assert "the compiled engine is measured; unset BEASTCORE_PURE" in done.stderr
