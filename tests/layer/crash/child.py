"""The process that is killed: writes from threads and tasks, and tells of each acknowledgement.

usage: child.py STORE JOURNAL RUN SEED KILL_AT NTH

Prints "ready" once an earlier run's writes are visible, then "key n" after each acknowledged
write, unbuffered. It dies by the parent's hand, or by its own at the NTH arrival at the point
KILL_AT ("-" for none); the points are around the store's commit and the journal's transaction.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from typing import Any

from beastmode.batcher import BeastModeBatcher
from beastmode.journal import Journal
from beastmode.stores.sqlite import SQLiteStore
from layer.crash.workload import ASYNC_WRITERS, SYNC_WRITERS, keys_of, operation
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
        return super()._transact(appends, notes, settled)

    def _answer(self, append: Any, seqs: Any, error: Any) -> None:
        self.death.at("after-journal")  # on disk, and nobody knows
        super()._answer(append, seqs, error)


def tell(key: str, n: int) -> None:
    os.write(1, f"{key} {n}\n".encode())  # one call, shorter than PIPE_BUF: whole or not at all


def plan(rng: random.Random) -> dict[str, Any]:
    return {"until": "store" if rng.random() < 0.1 else "journal"}


def write_from_thread(batcher: BeastModeBatcher, run: int, writer: int, seed: int) -> None:
    rng = random.Random(seed * 100 + writer)
    keys = keys_of(run, writer)
    counts = dict.fromkeys(keys, 0)
    while True:
        chosen = rng.sample(keys, rng.choice((1, 1, 1, 2, 3)))
        for key in chosen:
            counts[key] += 1
        batcher.write([operation(key, counts[key]) for key in chosen], **plan(rng))
        for key in chosen:
            tell(key, counts[key])


async def write_from_task(batcher: BeastModeBatcher, run: int, writer: int, seed: int) -> None:
    rng = random.Random(seed * 100 + writer)
    keys = keys_of(run, writer)
    counts = dict.fromkeys(keys, 0)
    while True:
        key = rng.choice(keys)
        counts[key] += 1
        await batcher.awrite([operation(key, counts[key])], **plan(rng))
        tell(key, counts[key])


async def write_from_tasks(batcher: BeastModeBatcher, run: int, seed: int) -> None:
    writers = range(SYNC_WRITERS, SYNC_WRITERS + ASYNC_WRITERS)
    await asyncio.gather(*(write_from_task(batcher, run, writer, seed) for writer in writers))


def main() -> None:
    store_path, journal_path, run, seed, point, nth = sys.argv[1:]
    death = Death(point, int(nth))
    store = FaultyStore(SQLiteStore(store_path))
    store.before = lambda operations: death.at("before-commit")
    store.after = lambda operations: death.at("after-commit")
    journal = DyingJournal(journal_path)
    journal.death = death
    batcher = BeastModeBatcher(store, journal, max_ops=40, max_delay_s=0.02)
    batcher.start()
    os.write(1, b"ready\n")
    for writer in range(SYNC_WRITERS):
        threading.Thread(
            target=write_from_thread, args=(batcher, int(run), writer, int(seed)), daemon=True
        ).start()
    asyncio.run(write_from_tasks(batcher, int(run), int(seed)))


if __name__ == "__main__":
    main()
