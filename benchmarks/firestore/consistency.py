"""The randomized run: processes that read and write the same documents, every answer judged.

Two processes with four workers each (threads and coroutines) share one database; entries fall
due, are evicted, invalidated and cleared meanwhile. `checker` tells the rules. At the end every
counter must hold exactly the increments that were acknowledged.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.firestore.mixed import TASKS, THREADS
from benchmarks.firestore.stores import open_store
from benchmarks.program import say
from benchmarks.worker import ROOT

PROCESSES = 2


def run(store: str, operations: int, seed: int = 1, timeout: float = 3600.0) -> dict[str, Any]:
    """Let the workers do `operations` in all on an empty `store`; return what was found."""
    each = -(-operations // (PROCESSES * (THREADS + TASKS)))
    with tempfile.TemporaryDirectory() as folder:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.firestore.mixed", json.dumps(plan)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for plan in (
                {
                    "store": store,
                    "me": me,
                    "processes": PROCESSES,
                    "operations": each,
                    "seed": seed,
                    "journal": str(Path(folder) / f"journal{me}.db"),
                }
                for me in range(PROCESSES)
            )
        ]
        outcomes = []
        try:
            for process in running:
                out, err = process.communicate(timeout=timeout)
                if process.returncode != 0:
                    raise RuntimeError(f"a process of the run failed:\n{out}\n{err}")
                outcomes.append(json.loads(out.splitlines()[-1]))
        finally:
            for process in running:
                process.kill()
                process.wait()
    return _summed(outcomes, _miscounted(store, outcomes))


def _miscounted(store: str, outcomes: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the counters, as the store itself has them."""
    wrong = []
    with open_store(store) as (source, _):
        for path in outcomes[0]["counted"]:
            acknowledged = sum(outcome["counted"][path] for outcome in outcomes)
            found = source.get(path).data
            count = 0 if found is None else found["c"]
            if count != acknowledged:
                wrong.append(f"{path}: {acknowledged} acknowledged, {count} in the store")
    return wrong


def _summed(outcomes: list[dict[str, Any]], miscounted: list[str]) -> dict[str, Any]:
    done: Counter[str] = Counter()
    for outcome in outcomes:
        done.update(outcome["done"])
    result = {
        "workers": PROCESSES * (THREADS + TASKS),
        "processes": PROCESSES,
        "operations": done.total(),
        "done": dict(done),
        "seconds": max(outcome["seconds"] for outcome in outcomes),
        "reads_judged": sum(outcome["reads"] for outcome in outcomes),
        "increments": sum(sum(outcome["counted"].values()) for outcome in outcomes),
        "violations": sum(outcome["violated"] for outcome in outcomes) + len(miscounted),
        "examples": [v for outcome in outcomes for v in outcome["violations"]][:20] + miscounted,
        "errors": [error for outcome in outcomes for error in outcome["errors"]],
    }
    say(f"consistency: {result['operations']:,} operations, {result['violations']} violations")
    return result
