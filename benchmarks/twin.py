"""Runs bench_twin.py through pytest-benchmark and reads its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run(rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return, for each operation, the figures of both twins and their ratio."""
    say("compiled against pure, through pytest-benchmark")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "twin.json")
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(ROOT / "benchmarks" / "bench_twin.py"),
            f"--rootdir={ROOT}",
            f"--config-file={ROOT / 'pyproject.toml'}",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=300",
            f"--benchmark-json={path}",
            "--benchmark-quiet",
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "BEASTCORE_BENCH_ROUNDS": str(max(rounds, 3))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        found = json.loads(path.read_text(encoding="utf-8"))
    return pair(found["benchmarks"])


def pair(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the two twins of each operation side by side; times in nanoseconds per operation."""
    rows: dict[str, dict[str, Any]] = {}
    for benchmark in benchmarks:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        row = rows.setdefault(info["operation"], {"operation": info["operation"]})
        for name, statistic in (("", "median"), ("_low", "q1"), ("_high", "q3")):
            nanoseconds = stats[statistic] * 1e9 / info["operations"]
            row[f"{info['engine']}_ns{name}"] = round(nanoseconds, 4)
    for row in rows.values():
        row["ratio"] = round(row["pure_ns"] / row["compiled_ns"], 2)
    return list(rows.values())
