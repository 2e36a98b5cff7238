"""One process of the randomized run: threads and coroutines that read and write, and check.

usage: python -m benchmarks.firestore.mixed '{"store": ..., "me": 0, ...}'

The keys are of three kinds: `shared` ones, which every process writes; `own0`, `own1`, ... which
one process writes and deletes and all read; and `counters`, which everybody counts up, and which
are also asked for by a query of their collection, which is listened to. The last line that it
prints is a JSON object with what was done, acknowledged and found.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from beastmode import BeastModeOptimizer, Delete, Document, Increment, Merge, Query, Request, Set
from benchmarks.firestore.checker import Checker
from benchmarks.firestore.stores import open_store

THREADS = TASKS = 2
SHARED, OWN, COUNTERS = 300, 150, 30
COUNTED = Request.query(Query("counters"))


@dataclass(frozen=True)
class Plan:
    """What a process is to do; comes as JSON."""

    store: str
    me: int
    processes: int
    operations: int
    """By each worker."""
    seed: int
    journal: str


class Player:
    """One worker's dice; threads and coroutines play the same game."""

    def __init__(self, plan: Plan, checker: Checker, number: int, locks: dict[str, Any]) -> None:
        self.plan = plan
        self.checker = checker
        self.rng = random.Random(f"{plan.seed}-{plan.me}-{number}")
        self.locks = locks
        self.done: Counter[str] = Counter()

    def pick(self) -> str:
        draw = self.rng.random()
        index = int(self.rng.random() ** 2 * OWN)
        if draw < 0.5:
            return f"shared/k{int(self.rng.random() ** 2 * SHARED)}"
        if draw < 0.9:
            return f"own{self.rng.randrange(self.plan.processes)}/k{index}"
        return f"counters/k{self.rng.randrange(COUNTERS)}"

    def write(self) -> tuple[str, bool, bool]:
        """Return what to write, whether it is a deletion and whether it goes straight through."""
        path = self.pick()
        while path.startswith("own") and not path.startswith(f"own{self.plan.me}/"):
            path = self.pick()
        deletes = path.startswith("own") and self.rng.random() < 0.2
        return path, deletes, not path.startswith("counters") and self.rng.random() < 0.05

    def request(self, path: str, number: int, *, deletes: bool, through: bool) -> Request:
        if path.startswith("counters"):
            return Request.merge(path, {"c": Increment(1)})
        fields = {"p": self.plan.me, "n": number, "pad": "x" * self.rng.randrange(40)}
        operation: Any = Delete(path) if deletes else Set(path, fields)
        if not deletes and self.rng.random() < 0.3:
            operation = Merge(path, fields)
        if through:
            return Request.commit([operation])
        return Request(
            "delete" if deletes else "set" if isinstance(operation, Set) else "merge",
            path=path, operations=(operation,),
        )  # fmt: skip

    def judge(self, path: str, before: Any, document: Any, source: str) -> None:
        end = self.checker.end_counter if path.startswith("counters") else self.checker.end
        version = None if source == "buffer" else document.version
        end(path, before, document.data, version, source)

    def look(self) -> dict[str, Any]:
        """Return what is known of the counters, before they are asked for by a query."""
        paths = (f"counters/k{number}" for number in range(COUNTERS))
        return {path: self.checker.begin(path) for path in paths}

    def judge_query(self, before: dict[str, Any], answer: Any) -> None:
        found = {document.path: document for document in answer.documents}
        for path, snapshot in before.items():
            # Of what is not found nothing is known but that there is nothing to count yet.
            self.judge(path, snapshot, found.get(path) or Document(path, None, 0), "buffer")
        self.done[f"query {answer.source}"] += 1


def play(optimizer: BeastModeOptimizer, player: Player) -> None:
    """Do one thread's operations."""
    rng, checker = player.rng, player.checker
    for _ in range(player.plan.operations):
        draw = rng.random()
        if draw < 0.06:
            path, deletes, through = player.write()
            with player.locks[path]:
                number = checker.issue(path, delete=deletes)
                request = player.request(path, number, deletes=deletes, through=through)
                answer = optimizer.handle_request_sync("u", request, deadline=_deadline())
                version = answer.versions[0] if answer.versions else None
                checker.acknowledge(path, number, version)
            player.done["writes"] += 1
        elif draw < 0.08:
            paths = list({player.pick() for _ in range(5)})
            before = [checker.begin(path) for path in paths]
            answer = optimizer.handle_request_sync(
                "u", Request.get_many(paths), deadline=_deadline()
            )
            for path, snapshot, document in zip(paths, before, answer.documents or (), strict=True):
                player.judge(path, snapshot, document, "many")
            player.done["get_many"] += 1
        elif draw < 0.0805:
            _disturb(optimizer, player)
        elif draw < 0.0825:
            looked = player.look()
            answer = optimizer.handle_request_sync("u", COUNTED, deadline=_deadline())
            player.judge_query(looked, answer)
        else:
            path = player.pick()
            snapshot = checker.begin(path)
            answer = optimizer.handle_request_sync("u", Request.get(path), deadline=_deadline())
            player.judge(path, snapshot, answer.document, answer.source)
            player.done[answer.source] += 1


async def aplay(optimizer: BeastModeOptimizer, player: Player) -> None:
    """Do one coroutine's operations."""
    rng, checker = player.rng, player.checker
    for turn in range(player.plan.operations):
        if turn % 64 == 0:
            await asyncio.sleep(0)  # hits do not suspend, and there are others
        draw = rng.random()
        if draw < 0.06:
            path, deletes, through = player.write()
            lock = player.locks[path]
            while not lock.acquire(blocking=False):  # noqa: ASYNC110 - threads hold it, too
                await asyncio.sleep(0.0005)
            try:
                number = checker.issue(path, delete=deletes)
                request = player.request(path, number, deletes=deletes, through=through)
                answer = await optimizer.handle_request("u", request, deadline=_deadline())
                version = answer.versions[0] if answer.versions else None
                checker.acknowledge(path, number, version)
            finally:
                lock.release()
            player.done["writes"] += 1
        elif draw < 0.062:
            looked = player.look()
            answer = await optimizer.handle_request("u", COUNTED, deadline=_deadline())
            player.judge_query(looked, answer)
        else:
            path = player.pick()
            snapshot = checker.begin(path)
            answer = await optimizer.handle_request("u", Request.get(path), deadline=_deadline())
            player.judge(path, snapshot, answer.document, answer.source)
            player.done[answer.source] += 1


def _deadline() -> float:
    return time.monotonic() + 30.0


def _disturb(optimizer: BeastModeOptimizer, player: Player) -> None:
    """Do what an operator may do at any time."""
    draw = player.rng.random()
    if draw < 0.6:
        optimizer.cache.invalidate(player.pick())
    elif draw < 0.75:
        optimizer.cache.invalidate(prefix="shared")
    elif draw < 0.9:
        optimizer.cache.clear()
    elif player.plan.me == 0:
        optimizer.disable_beast_mode()
        optimizer.enable_beast_mode()
    player.done["disturbances"] += 1


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    checker = Checker(plan.me)
    paths = [f"shared/k{n}" for n in range(SHARED)] + [f"counters/k{n}" for n in range(COUNTERS)]
    paths += [f"own{plan.me}/k{n}" for n in range(OWN)]
    locks = {path: threading.Lock() for path in paths}
    players = [Player(plan, checker, number, locks) for number in range(THREADS + TASKS)]
    errors: list[str] = []
    started = time.monotonic()
    with open_store(plan.store) as (store, async_store):
        optimizer = BeastModeOptimizer(
            store, async_store=async_store, journal_path=plan.journal, cache_max_entries=400,
            cache_ttl_s=3.0, negative_ttl_s=3.0, batch_max_delay_ms=50, batch_max_ops=100,
            listen_collections=["counters"],
        )  # fmt: skip
        with optimizer:

            def thread(player: Player) -> None:
                try:
                    play(optimizer, player)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                    errors.append(repr(error))

            threads = [threading.Thread(target=thread, args=(p,)) for p in players[:THREADS]]
            for each in threads:
                each.start()

            async def tasks() -> None:
                await asyncio.gather(*(aplay(optimizer, player) for player in players[THREADS:]))

            try:
                asyncio.run(tasks())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                errors.append(repr(error))
            for each in threads:
                each.join()
            optimizer.flush(_deadline())
            stats = optimizer.get_stats()
    done: Counter[str] = Counter()
    for player in players:
        done.update(player.done)
    counted = {
        path: checker.of(path).acknowledged for path in paths if path.startswith("counters/")
    }
    print(
        json.dumps(
            {
                "errors": errors,
                "seconds": round(time.monotonic() - started, 2),
                "done": dict(done),
                "reads": checker.reads,
                "violated": checker.violated,
                "violations": [asdict(violation) for violation in checker.violations],
                "counted": counted,
                "commits": stats.batcher.commits,
            }
        )
    )


if __name__ == "__main__":
    main()
