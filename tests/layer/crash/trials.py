"""Trials of kill -9: every write that was acknowledged is in the store after a restart.

One trial kills a writing process one to three times on the same files, at a random moment or at
a named point, and then recovers: journal replayed, flushed, closed. Each document must be what
its operations 1 to n make, where n is the last acknowledged one, or the one after it, which was
under way. So a lost, a reordered and a doubled write are all seen.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beastmode.batcher import BeastModeBatcher
from beastmode.journal import Journal
from beastmode.optimizer import BeastModeOptimizer
from beastmode.stores.sqlite import SQLiteStore
from layer.crash.workload import all_keys, expected

HERE = Path(__file__).resolve().parent
POINTS = (
    "-",
    "after-commit",
    "before-acknowledge",
    "-",
    "after-journal",
    "before-commit",
    "-",
    "before-journal",
)
"""Where the process dies, trial by trial; "-" is a random moment."""


@dataclass
class Outcome:
    """What one trial saw."""

    kills: int = 0
    acknowledged: int = 0
    replayed: int = 0


class LostWrite(AssertionError):
    """A document is not what its acknowledged writes make."""


def run_trial(number: int, seed: int) -> Outcome:
    """Run trial `number`; LostWrite names the document, what it is and what it must be."""
    rng = random.Random(seed * 1_000_003 + number)
    point = POINTS[number % len(POINTS)]
    outcome = Outcome()
    acknowledged: dict[str, int] = {}
    directory = Path(tempfile.mkdtemp(prefix="beastmode-crash-"))
    try:
        runs = rng.choice((1, 1, 2, 3)) if point == "-" else 1
        for run in range(runs):
            acknowledged |= dict.fromkeys(all_keys(run), 0)
            # A later run may be killed while it still replays what the earlier one left.
            hasty = run > 0 and rng.random() < 0.5
            acknowledged |= _run_and_kill(directory, run, rng, point, hasty=hasty)
            outcome.kills += 1
        outcome.acknowledged = sum(acknowledged.values())
        outcome.replayed = _recover(directory)
        _check(directory, acknowledged, f"trial {number}, seed {seed}, point {point}")
    finally:
        shutil.rmtree(directory)
    return outcome


def _run_and_kill(
    directory: Path, run: int, rng: random.Random, point: str, *, hasty: bool
) -> dict[str, int]:
    """Return each document's last acknowledged operation."""
    arguments = [directory / "store", directory / "journal", run, rng.randrange(10**6), point]
    return _kill("child.py", [*arguments, rng.randint(2, 25)], rng, point, hasty=hasty)


def run_optimizer_trial(number: int, seed: int, point: str = "") -> Outcome:
    """As `run_trial`, through an optimizer, killed once; it recovers by being started again."""
    rng = random.Random(seed * 1_000_003 + number)
    point = point or POINTS[number % len(POINTS)]
    mode = "write-through" if point == "-" and rng.random() < 0.3 else "write-behind"
    acknowledged = dict.fromkeys(all_keys(0), 0)
    directory = Path(tempfile.mkdtemp(prefix="beastmode-crash-"))
    try:
        # Without the store's points, which are in a wrapper, this one dies at a random moment.
        at = point if "commit" not in point else "-"
        arguments = [directory / "store", mode, rng.randrange(10**6), at, rng.randint(2, 25)]
        acknowledged |= _kill("optimizer_child.py", arguments, rng, at, hasty=False)
        with BeastModeOptimizer(directory / "store") as optimizer:
            replayed = optimizer.get_stats().batcher.replayed
        _check(directory, acknowledged, f"trial {number}, seed {seed}, point {at}, {mode}")
    finally:
        shutil.rmtree(directory)
    return Outcome(kills=1, acknowledged=sum(acknowledged.values()), replayed=replayed)


def _kill(
    script: str, arguments: list[Any], rng: random.Random, point: str, *, hasty: bool
) -> dict[str, int]:
    """Run `script`, kill it, and return each document's last acknowledged operation."""
    environ = dict(os.environ)
    paths = [str(HERE.parent.parent), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        bufsize=0,  # readline() must not read ahead: communicate() would not see that
        env=environ,
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        if ready != b"ready\n":
            raise RuntimeError(f"the writing process did not start: {ready!r}")
        if point == "-":
            time.sleep(rng.uniform(0.0, 0.02 if hasty else 0.4))
            process.kill()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writing process ended by itself, with {process.returncode}")
    last: dict[str, int] = {}
    for line in output.decode().splitlines():
        key, n = line.split()
        if int(n) != last.get(key, 0) + 1:
            raise RuntimeError(f"acknowledged out of turn: {line!r} after {last.get(key, 0)}")
        last[key] = int(n)
    return last


def _recover(directory: Path) -> int:
    """Start again as an application would, and return how many operations were replayed."""
    store = SQLiteStore(directory / "store")
    journal = Journal(directory / "journal")
    try:
        batcher = BeastModeBatcher(store, journal)
        batcher.start()
        batcher.close()
        journal.sync()
        report = batcher.get_stats()
        if report.journal_corrupt or report.journal_records or report.failed:
            raise LostWrite(f"after the recovery: {report}")
        return report.replayed
    finally:
        journal.close()
        store.close()


def _check(directory: Path, acknowledged: dict[str, int], what: str) -> None:
    store = SQLiteStore(directory / "store")
    try:
        for key, n in acknowledged.items():
            data = store.get(key).to_dict()
            if data not in (expected(key, n), expected(key, n + 1)):
                raise LostWrite(
                    f"{what}: {key!r} is {data}, operation {n} was acknowledged, which makes it "
                    f"{expected(key, n)}, or with the next one {expected(key, n + 1)}"
                )
    finally:
        store.close()
