"""The claims of the data path, in short: the programs of `./dev bench firestore`, few repetitions.

What a busy machine cannot make true or false is asserted: counts, orders, deadlines; no times.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beastmode.testing.pytest_plugin import Firestore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def measure(firestore: Firestore, tmp_path: Path) -> Any:
    """Run one part on the emulator and return what it found."""

    def run(part: str) -> Any:
        results = tmp_path / "results.json"
        done = subprocess.run(
            [
                sys.executable, "-m", "benchmarks", "firestore", part,
                "--quick", "--json", str(results),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(results.read_text(encoding="utf-8"))["parts"][part]["found"]

    return run


@pytest.mark.timeout(300)
def test_no_answer_is_older_than_it_may_be(measure: Any) -> None:
    found = measure("consistency")
    assert found["errors"] == []
    assert found["examples"] == []
    assert found["violations"] == 0
    assert found["operations"] == 20_000
    assert found["increments"] > 100


@pytest.mark.timeout(300)
def test_a_network_that_fails_loses_and_doubles_nothing(measure: Any) -> None:
    found = measure("network")
    assert found["examples"] == []
    assert found["faults"] > 2
    assert found["acknowledged_writes"] > 50
    assert found["acknowledged_increments"] > 10


@pytest.mark.timeout(300)
def test_calls_end_in_time_while_the_server_is_dead_or_frozen(measure: Any) -> None:
    found = measure("recovery")
    for kind in ("kill", "freeze"):
        assert found[kind]["late_s"]["max"] <= 0.5, found[kind]
        assert found[kind]["calls"] > 100
        assert all(row["max"] < 30 for row in found[kind]["recovery_s"].values())


@pytest.mark.timeout(300)
def test_the_bill_of_the_stated_workload(measure: Any) -> None:
    listening, _, lifetime, small = measure("workload")
    assert listening["reduction"] >= 0.99
    assert listening["hit_rate"] >= 0.999
    assert listening["listener_reads"] > 0
    assert lifetime["listener_reads"] == 0
    assert small["reduction"] < listening["reduction"]


@pytest.mark.timeout(300)
def test_a_hit_beside_the_clients_own_get(measure: Any) -> None:
    found = measure("latency")
    assert found["sync"]["times"] > 20
    assert found["async"]["times"] > 20
