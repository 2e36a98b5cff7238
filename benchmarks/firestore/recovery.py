"""The server dies or freezes: does every call end in time, and how soon is all well again?

Each trial kills the emulator (it comes back empty), or stops its processes, while threads and
coroutines read and write with deadlines. Measured are by how much a call returned later than its
deadline, and the time from the moment at which the server serves again until a fresh answer, a
commit, and a change of the listener come through.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import quartiles
from benchmarks.program import say

MOST_LATE_S = 0.5
MOST_RECOVERY_S = 5.0
_OUTAGE_S = (1.0, 6.0)
_THREADS = _TASKS = 4


class _Calls:
    """The calls that were made: by how much each was late, and how it ended."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.outcomes: dict[str, int] = {}
        self.latest = ("", float("-inf"))
        self._lock = threading.Lock()

    def note(self, what: str, deadline: float, outcome: str) -> None:
        late = time.monotonic() - deadline
        with self._lock:
            if late > self.latest[1]:
                self.latest = (f"{what}: {outcome}", late)
            self.late.append(late)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def run(trials: int, seed: int = 3) -> dict[str, Any]:
    """Do `trials` of each fault on an emulator of their own."""
    return {
        "kill": _fault("kill", trials, seed),
        "freeze": _fault("freeze", trials, seed + 1),
    }


def _fault(kind: str, trials: int, seed: int) -> dict[str, Any]:
    from beastmode.testing import fresh_project, start_emulator

    rng = random.Random(seed)
    calls = _Calls()
    recoveries: dict[str, list[float]] = {"read": [], "write": [], "listener": []}
    with start_emulator() as emulator:
        for trial in range(trials):
            outage = rng.uniform(*_OUTAGE_S)
            found = _trial(emulator, fresh_project(), kind, outage, calls, rng.randrange(2**30))
            for name, seconds in found.items():
                recoveries[name].append(seconds)
            shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items())
            say(f"recovery: {kind} {trial + 1}/{trials}, outage {outage:.1f} s: {shown}")
    late = sorted(calls.late)
    return {
        "trials": trials,
        "calls": len(late),
        "outcomes": calls.outcomes,
        "latest": calls.latest[0],
        "late_s": {
            "p50": round(late[len(late) // 2], 4),
            "p99": round(late[int(len(late) * 0.99)], 4),
            "p999": round(late[int(len(late) * 0.999)], 4),
            "max": round(late[-1], 4),
        },
        "recovery_s": {
            name: {
                "p50": round(quartiles(seconds)[1], 2),
                "max": round(max(seconds), 2),
            }
            for name, seconds in recoveries.items()
        },
        "met": late[-1] <= MOST_LATE_S
        and all(max(seconds) <= MOST_RECOVERY_S for seconds in recoveries.values()),
    }


def _trial(
    emulator: Any, project: str, kind: str, outage: float, calls: _Calls, seed: int
) -> dict[str, float]:
    from beastmode import BeastModeOptimizer, Set
    from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore

    store = FirestoreStore(project, emulator_host=emulator.host)
    async_store = AsyncFirestoreStore(project, emulator_host=emulator.host)
    paths = [f"items/d{number}" for number in range(50)]
    store.commit([Set(path, {"n": 0}) for path in paths])
    stop = threading.Event()
    heard = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        optimizer = BeastModeOptimizer(
            store,
            async_store=async_store,
            journal_path=str(Path(folder) / "journal.db"),
            cache_ttl_s=0.2,
            max_stale_s=1.0,
        )
        with optimizer:
            subscription = optimizer.sync.subscribe("items/beacon", lambda _: heard.set())
            threads = [
                threading.Thread(
                    target=_thread, args=(optimizer, paths, stop, calls, seed + number)
                )
                for number in range(_THREADS)
            ]
            threads.append(
                threading.Thread(
                    target=lambda: asyncio.run(_tasks(optimizer, paths, stop, calls, seed))
                )
            )
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            if kind == "kill":
                emulator.kill()
                time.sleep(outage)
                emulator.restart()
            else:
                emulator.freeze()
                time.sleep(outage)
                emulator.thaw()
            serving = time.monotonic()
            other = FirestoreStore(project, emulator_host=emulator.host)
            found = {
                "read": _until(serving, lambda: _reads(optimizer)),
                "write": _until(serving, lambda: _writes(optimizer)),
                "listener": _until(serving, lambda: _hears(other, heard)),
            }
            stop.set()
            for thread in threads:
                thread.join()
            other.close()
            subscription.close()
    store.close()
    return found


def _until(serving: float, done: Callable[[], bool]) -> float:
    while not done():
        if time.monotonic() > serving + 60:
            return 60.0
        time.sleep(0.01)
    return time.monotonic() - serving


def _reads(optimizer: Any) -> bool:
    """Tell whether a document that nobody has asked for before is answered."""
    from beastmode import BeastError, Request

    path = f"fresh/d{time.monotonic_ns()}"
    try:
        request = Request.get(path)
        answer = optimizer.handle_request_sync("u", request, deadline=time.monotonic() + 0.5)
    except BeastError:
        return False
    return bool(answer.source == "store")


def _writes(optimizer: Any) -> bool:
    """Tell whether a commit reaches the store."""
    from beastmode import BeastError, Request, Set

    operations = [Set(f"fresh/w{time.monotonic_ns()}", {"n": 1})]
    try:
        optimizer.handle_request_sync(
            "u", Request.commit(operations), deadline=time.monotonic() + 0.5
        )
    except BeastError:
        return False
    return True


def _hears(other: Any, heard: threading.Event) -> bool:
    """Write past the optimizer, and tell whether its listener has told of a write."""
    from beastmode import BeastError, Set

    try:
        other.commit(
            [Set("items/beacon", {"n": time.monotonic_ns()})], deadline=time.monotonic() + 0.5
        )
    except BeastError:
        return False
    return heard.wait(0.2)


def _request(rng: random.Random, paths: list[str]) -> tuple[str, Any]:
    from beastmode import Request, Set

    path = rng.choice(paths)
    draw = rng.random()
    if draw < 0.6:
        return "get", Request.get(path)
    if draw < 0.7:
        return "get_many", Request.get_many(rng.sample(paths, 5))
    if draw < 0.8:
        return "set", Request.set(path, {"n": rng.randrange(1000)})
    if draw < 0.9:
        return "commit", Request.commit([Set(path, {"n": rng.randrange(1000)})])
    return "get of nothing held", Request.get(f"items/x{rng.randrange(10**9)}")


def _thread(
    optimizer: Any, paths: list[str], stop: threading.Event, calls: _Calls, seed: int
) -> None:
    from beastmode import BeastError

    rng = random.Random(seed)
    while not stop.is_set():
        what, request = _request(rng, paths)
        deadline = time.monotonic() + rng.uniform(0.05, 2.0)
        try:
            outcome = optimizer.handle_request_sync("u", request, deadline=deadline).source
        except BeastError as error:
            outcome = type(error).__name__
        calls.note(f"sync {what}", deadline, outcome)
        time.sleep(0.005)


async def _tasks(
    optimizer: Any, paths: list[str], stop: threading.Event, calls: _Calls, seed: int
) -> None:
    await asyncio.gather(
        *(_task(optimizer, paths, stop, calls, seed + 100 + number) for number in range(_TASKS))
    )


async def _task(
    optimizer: Any, paths: list[str], stop: threading.Event, calls: _Calls, seed: int
) -> None:
    from beastmode import BeastError

    rng = random.Random(seed)
    while not stop.is_set():
        what, request = _request(rng, paths)
        deadline = time.monotonic() + rng.uniform(0.05, 2.0)
        try:
            outcome = (await optimizer.handle_request("u", request, deadline=deadline)).source
        except BeastError as error:
            outcome = type(error).__name__
        calls.note(f"async {what}", deadline, outcome)
        await asyncio.sleep(0.005)
