"""The process that is killed: writes from threads and tasks, and tells of each acknowledgement.

usage: child.py STORE JOURNAL RUN SEED KILL_AT NTH WHAT

STORE is a name of `stores.open_store`. WHAT is "plain", or "counting": then some documents are
counted with transforms, answers of the store get lost, and some operations are refused. "faulty"
is the same over a network that the parent cuts and holds up: what was sent may arrive late;
"faulty-plain" has only the network's faults, and no transforms.

Prints "ready" once an earlier run's writes are visible, then "key n" after each acknowledged
write, unbuffered. It dies by the parent's hand, or by its own at the NTH arrival at the point
KILL_AT ("-" for none); the points are around the store's commit and the journal's transaction:
accepted, queued, noted as sent, committed, noted as committed, marker deleted, forgotten.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from beastmode.batcher import BeastModeBatcher, markers
from beastmode.errors import StoreTimeout, StoreUnavailable
from beastmode.journal import Journal
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Delete, Operation
from layer.crash.stores import open_store
from layer.crash.workload import ASYNC_WRITERS, SYNC_WRITERS, keys_of, operation, poison
from layer.faulty_store import FaultyStore


class Death:
    """Kills this process, as the operating system would, at the NTH arrival at a point."""

    def __init__(self, point: str, nth: int) -> None:
        self.point = point
        self.left = nth

    def at(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


class DyingJournal(Journal):
    """A journal with the named points in it."""

    death: Death

    def _transact(self, appends: Any, notes: Any, settled: Any) -> Any:
        if settled.acknowledged:
            self.death.at("before-acknowledge")
        if appends:
            self.death.at("before-journal")
        error = super()._transact(appends, notes, settled)
        if settled.acknowledged and error is None:
            self.death.at("acknowledged")
        if settled.forgotten and error is None:
            self.death.at("forgotten")
        return error

    def note_sent(self, *args: Any) -> None:
        self.death.at("before-note")
        super().note_sent(*args)
        self.death.at("sent-noted")

    def confirm(self, *args: Any) -> None:
        super().confirm(*args)
        self.death.at("confirmed")

    def _answer(self, append: Any, seqs: Any, error: Any) -> None:
        self.death.at("after-journal")  # on disk, and nobody knows
        super()._answer(append, seqs, error)


class Faults:
    """The hooks around each commit: dies at the named points, and loses answers."""

    def __init__(self, death: Death, seed: int, *, lossy: bool) -> None:
        self.death = death
        self.rng = random.Random(seed)
        self.lossy = lossy

    def before(self, operations: Sequence[Operation]) -> None:
        self.death.at("before-commit")
        if self.lossy and self.rng.random() < 0.05:
            raise StoreUnavailable("lost on its way")

    def after(self, operations: Sequence[Operation]) -> None:
        self.death.at("after-commit")
        if isinstance(operations[0], Delete) and operations[0].path.startswith(markers.MARKERS):
            self.death.at("markers-deleted")
        if self.lossy and self.rng.random() < 0.1:
            raise StoreTimeout("the answer was lost")


def tell(key: str, n: int) -> None:
    os.write(1, f"{key} {n}\n".encode())  # one call, shorter than PIPE_BUF: whole or not at all


def plan(rng: random.Random) -> dict[str, Any]:
    return {"until": "store" if rng.random() < 0.1 else "journal"}


def write(batcher: BeastModeBatcher, operations: list[Operation], plan: dict[str, Any]) -> None:
    """Write with patience: the store may be out of reach for a while."""
    batcher.write(operations, deadline=deadline_in(60), **plan)


def write_from_thread(
    batcher: BeastModeBatcher, run: int, writer: int, seed: int, *, counting: bool
) -> None:
    rng = random.Random(seed * 100 + writer)
    keys = keys_of(run, writer, counting=counting)
    counts = dict.fromkeys(keys, 0)
    while True:
        chosen = rng.sample(keys, rng.choice((1, 1, 1, 2, 3)))
        for key in chosen:
            counts[key] += 1
        write(batcher, [operation(key, counts[key]) for key in chosen], plan(rng))
        for key in chosen:
            tell(key, counts[key])
        if counting and rng.random() < 0.02:
            batcher.write([poison()])


async def write_from_task(
    batcher: BeastModeBatcher, run: int, writer: int, seed: int, *, counting: bool
) -> None:
    rng = random.Random(seed * 100 + writer)
    keys = keys_of(run, writer, counting=counting)
    counts = dict.fromkeys(keys, 0)
    while True:
        key = rng.choice(keys)
        counts[key] += 1
        await batcher.awrite([operation(key, counts[key])], deadline=deadline_in(60), **plan(rng))
        tell(key, counts[key])


async def write_from_tasks(
    batcher: BeastModeBatcher, run: int, seed: int, *, counting: bool
) -> None:
    writers = range(SYNC_WRITERS, SYNC_WRITERS + ASYNC_WRITERS)
    await asyncio.gather(
        *(write_from_task(batcher, run, writer, seed, counting=counting) for writer in writers)
    )


def main() -> None:
    store_name, journal_path, run, seed, point, nth, what = sys.argv[1:]
    death = Death(point, int(nth))
    counting, faulty = what in ("counting", "faulty"), what.startswith("faulty")
    faults = Faults(death, int(seed), lossy=counting)
    store = FaultyStore(open_store(store_name))
    store.before, store.after = faults.before, faults.after
    journal = DyingJournal(journal_path)
    journal.death = death
    markers._LINGER_S = 0.0  # type: ignore[misc]
    batcher = BeastModeBatcher(
        store,
        journal,
        max_ops=40,
        max_delay_s=0.02,
        commit_deadline_s=0.5 if faulty else 5.0,
        # Where only answers are lost, their commits have ended, and no marker is needed any more.
        marker_grace_s=600.0 if faulty else 0.0,
    )
    batcher.start()
    os.write(1, b"ready\n")
    for writer in range(SYNC_WRITERS):
        threading.Thread(
            target=write_from_thread,
            args=(batcher, int(run), writer, int(seed)),
            kwargs={"counting": counting},
            daemon=True,
        ).start()
    asyncio.run(write_from_tasks(batcher, int(run), int(seed), counting=counting))


if __name__ == "__main__":
    main()
