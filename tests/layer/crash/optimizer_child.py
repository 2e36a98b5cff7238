"""The process that is killed while it uses an optimizer: every kind of write, threads and tasks.

usage: optimizer_child.py STORE MODE SEED KILL_AT NTH

As `child.py`, but each writer mixes buffered writes, commits past the buffer, writes with a
precondition and beast mode off and on. At the point "before-acknowledge" the journal is slow,
so that what is acknowledged meanwhile is told before the process dies.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from typing import Any

from beastmode.optimizer import BeastModeOptimizer, journals
from beastmode.requests import Request
from beastmode.stores.documents import Operation, Precondition, Set
from layer.crash.child import Death, DyingJournal, tell
from layer.crash.workload import ASYNC_WRITERS, SYNC_WRITERS, keys_of, operation

SLOW_S = 0.05


class SlowJournal(DyingJournal):
    """A dying journal whose last acknowledgement takes a while."""

    def _transact(self, appends: Any, notes: Any, settled: Any) -> Any:
        last = self.death.point == "before-acknowledge" and self.death.left <= 1
        if settled.acknowledged and last:
            time.sleep(SLOW_S)
        return super()._transact(appends, notes, settled)


def request(key: str, n: int, rng: random.Random) -> Request:
    """The n-th operation on `key`, sent in one of the three ways."""
    made: Operation = operation(key, n)
    way = rng.random()
    if way < 0.3:
        return Request.commit([made])
    if way < 0.4 and isinstance(made, Set):
        return Request.set(key, made.data, Precondition(exists=n > 1 and (n - 1) % 13 != 0))
    return Request(made_op(made), path=key, operations=(made,))


def made_op(made: Operation) -> Any:
    return type(made).__name__.lower()


def write_from_thread(optimizer: BeastModeOptimizer, writer: int, seed: int) -> None:
    rng = random.Random(seed + writer)
    counts = dict.fromkeys(keys_of(0, writer), 0)
    while True:
        key = rng.choice(list(counts))
        optimizer.handle_request_sync(None, request(key, counts[key] + 1, rng))
        counts[key] += 1
        tell(key, counts[key])


async def write_from_tasks(optimizer: BeastModeOptimizer, seed: int) -> None:
    async def write(writer: int) -> None:
        rng = random.Random(seed + writer)
        counts = dict.fromkeys(keys_of(0, writer), 0)
        while True:
            key = rng.choice(list(counts))
            await optimizer.handle_request(None, request(key, counts[key] + 1, rng))
            counts[key] += 1
            tell(key, counts[key])

    writers = range(SYNC_WRITERS, SYNC_WRITERS + ASYNC_WRITERS)
    await asyncio.gather(*(write(writer) for writer in writers))


def switch(optimizer: BeastModeOptimizer, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        time.sleep(rng.uniform(0.0, 0.03))
        optimizer.disable_beast_mode()
        optimizer.enable_beast_mode()


def main() -> None:
    store_path, mode, seed, point, nth = sys.argv[1:]
    SlowJournal.death = Death(point, int(nth))
    journals.Journal = SlowJournal  # type: ignore[misc]
    optimizer = BeastModeOptimizer(
        store_path, write_mode=mode, batch_max_ops=40, batch_max_delay_ms=20
    )
    optimizer.start()
    os.write(1, b"ready\n")
    threads: list[tuple[Any, tuple[Any, ...]]] = [
        (write_from_thread, (optimizer, writer, int(seed))) for writer in range(SYNC_WRITERS)
    ]
    if int(seed) % 2:
        threads.append((switch, (optimizer, int(seed))))
    for target, args in threads:
        threading.Thread(target=target, args=args, daemon=True).start()
    asyncio.run(write_from_tasks(optimizer, int(seed)))


if __name__ == "__main__":
    main()
