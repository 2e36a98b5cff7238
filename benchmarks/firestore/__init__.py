"""`python -m benchmarks firestore [PART ...] [--quick] [--json FILE]`: claims of the data path.

Runs on the Firestore emulator (of FIRESTORE_EMULATOR_HOST, else one that is started), and on ones
of its own where the server itself is killed. Parts: {parts}. All of them take about {minutes}
minutes; --quick does the same with fewer repetitions, which proves less. With --json, parts that
were not run now are kept as the file has them, each with its own date.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.firestore import (
    consistency,
    imports,
    latency,
    network,
    recovery,
    report,
    sync,
    workload,
)
from benchmarks.program import add_json, finish, head, say
from benchmarks.worker import ROOT

__all__ = ["PARTS", "main", "render"]

render = report.render

_MINUTES = 40


def _consistency(quick: bool) -> Any:
    return consistency.run(f"firestore:{_project()}", 20_000 if quick else 1_000_000)


def _crashes(quick: bool) -> Any:
    """Run the program that kills a writing process again and again, and once over a bad network."""
    return [
        _crash("counting", 4 if quick else 200),
        _crash("faulty", 2 if quick else 50),
        _crash("faulty-plain", 2 if quick else 50),
    ]


def _crash(what: str, trials: int) -> Any:
    say(f"crashes: {trials} trials, {what}")
    command = [sys.executable, "-m", "tests.layer.crash", "--store", "firestore", "--json"]
    done = subprocess.run(
        [*command, "--what", what, "--trials", str(trials)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the crash trials failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _network(quick: bool) -> Any:
    return network.run(2 if quick else 50)


def _recovery(quick: bool) -> Any:
    return recovery.run(1 if quick else 20)


def _sync(quick: bool) -> Any:
    return {
        "latency": sync.latency(_project(), 3.0 if quick else 60.0),
        "cpu": sync.cpu(_project(), 2 if quick else 15),
    }


def _workload(quick: bool) -> Any:
    documents, requests = (1_000, 20_000) if quick else (100_000, 400_000)
    return workload.run(_project(), documents, requests)


def _latency(quick: bool) -> Any:
    return latency.run(_project(), 3 if quick else 15)


def _imports(quick: bool) -> Any:
    return imports.run(3 if quick else 21)


PARTS: dict[str, Callable[[bool], Any]] = {
    "consistency": _consistency,
    "crashes": _crashes,
    "network": _network,
    "recovery": _recovery,
    "sync": _sync,
    "workload": _workload,
    "latency": _latency,
    "imports": _imports,
}


def _project() -> str:
    from beastmode.testing import fresh_project

    return fresh_project()


@contextmanager
def _emulator() -> Iterator[None]:
    """Have an emulator, and let everything below find it by its variable."""
    from beastmode.testing import start_emulator

    if os.environ.get("FIRESTORE_EMULATOR_HOST"):
        yield
        return
    with start_emulator() as emulator:
        os.environ["FIRESTORE_EMULATOR_HOST"] = emulator.host
        try:
            yield
        finally:
            del os.environ["FIRESTORE_EMULATOR_HOST"]


def _measured_before(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert isinstance(parts, dict)
    return parts


def main(arguments: list[str] | None = None) -> int:
    described = (__doc__ or "").format(parts=", ".join(PARTS), minutes=_MINUTES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks firestore",
        description=described.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all unless some are named")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    add_json(parser)
    found = parser.parse_args(arguments)
    for name in found.parts:
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are {', '.join(PARTS)}")
    results: dict[str, Any] = {}
    with _emulator():
        for name in found.parts or PARTS:
            say(f"part {name}")
            began = time.monotonic()
            results[name] = {
                "date": dt.datetime.now(dt.UTC).date().isoformat(),
                "quick": found.quick,
                "found": PARTS[name](found.quick),
                "seconds": round(time.monotonic() - began, 1),
            }
    parts = {**_measured_before(found.json), **results}
    whole = {**head("google-cloud-firestore", "grpcio"), "parts": parts}
    return finish(whole, render(whole), found.json)
