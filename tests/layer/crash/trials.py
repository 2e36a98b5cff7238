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
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from beastmode.batcher import BeastModeBatcher
from beastmode.batcher.markers import MARKERS
from beastmode.journal import Journal
from beastmode.optimizer import BeastModeOptimizer
from beastmode.stores.base import Query
from beastmode.testing import FaultProxy
from layer.crash.stores import firestore_name, open_store, sqlite_name
from layer.crash.workload import POISON, all_keys, expected

HERE = Path(__file__).resolve().parent
POINTS: Sequence[str] = (
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
COUNTING_POINTS: Sequence[str] = (
    "after-commit",
    "sent-noted",
    "-",
    "acknowledged",
    "before-note",
    "markers-deleted",
    "before-acknowledge",
    "-",
    "confirmed",
    "before-commit",
    "forgotten",
    "after-journal",
)
"""The same with transforms: every state that the journal has of a batch with a marker."""
RARE_POINTS = frozenset({"confirmed", "markers-deleted", "forgotten"})


@dataclass
class Outcome:
    """What one trial saw."""

    kills: int = 0
    acknowledged: int = 0
    replayed: int = 0
    counted: int = 0
    """Those of the acknowledged writes that count with transforms."""
    confirmed: int = 0
    """Batches found in the store by their marker, by the process that recovered."""

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class LostWrite(AssertionError):
    """A document is not what its acknowledged writes make."""


def run_trial(
    number: int, seed: int, *, counting: bool = False, store: str | None = None
) -> Outcome:
    """Run trial `number`; LostWrite names the document, what it is and what it must be.

    `store` names a store of `stores.open_store` that is empty; None for a file of its own. With
    `counting` there are transforms, lost answers and refused operations among the writes.
    """
    rng = random.Random(seed * 1_000_003 + number)
    points = COUNTING_POINTS if counting else POINTS
    point = points[number % len(points)]
    outcome = Outcome()
    acknowledged: dict[str, int] = {}
    directory = Path(tempfile.mkdtemp(prefix="beastmode-crash-"))
    name = store or sqlite_name(directory / "store")
    try:
        runs = rng.choice((1, 1, 2, 3)) if point == "-" else 1
        for run in range(runs):
            acknowledged |= dict.fromkeys(all_keys(run, counting=counting), 0)
            # A later run may be killed while it still replays what the earlier one left.
            hasty = run > 0 and rng.random() < 0.5
            nth = rng.randint(1, 5) if point in RARE_POINTS else rng.randint(2, 25)
            what = "counting" if counting else "plain"
            arguments = [name, directory / "journal", run, rng.randrange(10**6), point, nth, what]
            acknowledged |= _kill("child.py", arguments, rng, point, hasty=hasty)
            outcome.kills += 1
        outcome.acknowledged = sum(acknowledged.values())
        outcome.counted = sum(n for key, n in acknowledged.items() if key.endswith("-count"))
        outcome.replayed, outcome.confirmed = _recover(directory, name, counting=counting)
        _check(name, acknowledged, f"trial {number}, seed {seed}, point {point}, {name}")
    finally:
        shutil.rmtree(directory)
    return outcome


def run_faulty_trial(
    number: int, seed: int, host: str, project: str, *, counting: bool = True
) -> Outcome:
    """Cut and hold up the connection to an emulator that stays up, kill the writer, and recover.

    What was held back arrives after the recovery. Without `counting` all writes are plain: one
    that arrives late would undo newer ones.
    """
    rng = random.Random(seed * 1_000_003 + number)
    acknowledged = dict.fromkeys(all_keys(0, counting=counting), 0)
    directory = Path(tempfile.mkdtemp(prefix="beastmode-crash-"))
    direct = firestore_name(host, project)
    try:
        with FaultProxy(host) as proxy:

            def disturb() -> None:
                for _ in range(rng.randint(2, 5)):
                    time.sleep(rng.uniform(0.05, 0.4))
                    rng.choice((proxy.hold, proxy.cut, proxy.hold, proxy.pass_on))()
                    time.sleep(rng.uniform(0.05, 0.8))
                    if rng.random() < 0.7:
                        proxy.pass_on()

            arguments = [firestore_name(proxy.host, project), directory / "journal", 0]
            what = "faulty" if counting else "faulty-plain"
            arguments += [rng.randrange(10**6), "-", 0, what]
            acknowledged |= _kill("child.py", arguments, rng, "-", hasty=False, disturb=disturb)
            replayed, confirmed = _recover(directory, direct, counting=counting, grace_s=600.0)
            proxy.pass_on()
            time.sleep(0.2)
            _check(direct, acknowledged, f"trial {number}, seed {seed}, {what}", markers=True)
    finally:
        shutil.rmtree(directory)
    counted = sum(n for key, n in acknowledged.items() if key.endswith("-count"))
    return Outcome(1, sum(acknowledged.values()), replayed, counted, confirmed)


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
        what = f"trial {number}, seed {seed}, point {at}, {mode}"
        _check(sqlite_name(directory / "store"), acknowledged, what)
    finally:
        shutil.rmtree(directory)
    return Outcome(kills=1, acknowledged=sum(acknowledged.values()), replayed=replayed)


def _kill(
    script: str,
    arguments: list[Any],
    rng: random.Random,
    point: str,
    *,
    hasty: bool,
    disturb: Callable[[], None] | None = None,
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
        if disturb is not None:
            disturb()
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


def _recover(
    directory: Path, name: str, *, counting: bool, grace_s: float = 0.0
) -> tuple[int, int]:
    """Start again as an application would; return how many operations were replayed, and how
    many batches the store had although their answer was lost."""
    store = open_store(name)
    journal = Journal(directory / "journal")
    try:
        batcher = BeastModeBatcher(store, journal, marker_grace_s=grace_s)
        batcher.start()
        batcher.close()
        journal.sync()
        report = batcher.get_stats()
        refused = {letter.operation.path for letter in journal.dead_letters()} - {POISON}
        settled = journal.is_settled or (grace_s and not journal.recover())
        if report.journal_corrupt or not settled or refused:
            raise LostWrite(f"after the recovery: {report}, refused: {refused}")
        if report.failed and not counting:
            raise LostWrite(f"after the recovery: {report}")
        return report.replayed, report.confirmed
    finally:
        journal.close()
        store.close()


def _check(name: str, acknowledged: dict[str, int], what: str, *, markers: bool = False) -> None:
    """Compare the store's documents; with `markers` some of those may still be there."""
    store = open_store(name)
    try:
        found = {document.path: document for document in store.get_many([*acknowledged, POISON])}
        for key, n in acknowledged.items():
            data = found[key].to_dict()
            if data not in (expected(key, n), expected(key, n + 1)):
                raise LostWrite(
                    f"{what}: {key!r} is {data}, operation {n} was acknowledged, which makes it "
                    f"{expected(key, n)}, or with the next one {expected(key, n + 1)}"
                )
        if found[POISON].exists:
            raise LostWrite(f"{what}: a refused operation was applied")
        if not markers and (left := store.query(Query(MARKERS)).documents):
            raise LostWrite(f"{what}: {len(left)} markers were left: {left[:3]}")
    finally:
        store.close()
