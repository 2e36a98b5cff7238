"""The network fails, the server does not: is an acknowledged write lost, or applied twice?

A proxy stands before the emulator. In each trial it resets connections, refuses them, or lets
nothing through in either direction, at random moments while threads write documents and count up
counters through the optimizer. The server may then have done what it was asked without anybody
hearing of it. When the network is well again everything is flushed, and the emulator itself,
asked past the proxy, must hold each acknowledged write and exactly the acknowledged increments.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.program import say

_WRITERS = 4
_KEYS = 12
_SECONDS = 2.5


@dataclass(slots=True)
class _Ledger:
    """What one writer was promised. Its keys are its own, so their numbers only grow."""

    issued: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    increments: int = 0
    unsure: int = 0
    """Increments whose acknowledgement failed: they may be there or not."""


def run(trials: int, seed: int = 5) -> dict[str, Any]:
    """Do `trials` on one emulator; return what was acknowledged, lost and doubled."""
    from beastmode.testing import start_emulator

    rng = random.Random(seed)
    total: dict[str, int] = {}
    wrong: list[str] = []
    with start_emulator() as emulator:
        for trial in range(trials):
            found, errors = _trial(emulator.host, rng.randrange(2**30))
            wrong += [f"trial {trial + 1}: {error}" for error in errors]
            for name, count in found.items():
                total[name] = total.get(name, 0) + count
            say(f"network: trial {trial + 1}/{trials}: {found}, {len(errors)} wrong")
    return {
        "trials": trials,
        **total,
        "lost_or_doubled": len(wrong),
        "examples": wrong[:10],
        "met": not wrong,
    }


def _trial(host: str, seed: int) -> tuple[dict[str, int], list[str]]:
    from beastmode import BeastModeOptimizer
    from beastmode.stores.firestore import FirestoreStore
    from beastmode.testing import FaultProxy, fresh_project

    rng = random.Random(seed)
    project = fresh_project()
    stop = threading.Event()
    ledgers = [_Ledger() for _ in range(_WRITERS)]
    faults = 0
    with FaultProxy(host) as proxy, tempfile.TemporaryDirectory() as folder:
        store = FirestoreStore(project, emulator_host=proxy.host)
        optimizer = BeastModeOptimizer(
            store,
            journal_path=str(Path(folder) / "journal.db"),
            batch_max_ops=40,
            batch_max_delay_ms=20,
        )
        with optimizer:
            threads = [
                threading.Thread(target=_write, args=(optimizer, number, ledger, stop, seed))
                for number, ledger in enumerate(ledgers)
            ]
            for thread in threads:
                thread.start()
            end = time.monotonic() + _SECONDS
            while time.monotonic() < end:
                time.sleep(rng.uniform(0.05, 0.4))
                faults += 1
                draw = rng.random()
                if draw < 0.4:
                    proxy.cut()
                    continue
                if draw < 0.6:
                    proxy.cut(refuse=True)
                else:
                    proxy.hold()
                time.sleep(rng.uniform(0.05, 1.2))
                if draw > 0.85:
                    proxy.cut()  # what was held is lost for good
                proxy.pass_on()
            stop.set()
            for thread in threads:
                thread.join()
            optimizer.flush(time.monotonic() + 60)
        store.close()
    wrong = _compare(host, project, ledgers)
    return {
        "faults": faults,
        "acknowledged_writes": sum(sum(each.acknowledged.values()) for each in ledgers),
        "acknowledged_increments": sum(each.increments for each in ledgers),
        "unsure_increments": sum(each.unsure for each in ledgers),
    }, wrong


def _write(optimizer: Any, number: int, ledger: _Ledger, stop: threading.Event, seed: int) -> None:
    from beastmode import BeastError, Increment, Request, Set

    rng = random.Random(seed + number)
    while not stop.is_set():
        deadline = time.monotonic() + 1.5
        if rng.random() < 0.3:
            request = Request.merge(f"counters/w{number}", {"c": Increment(1)})
            try:
                optimizer.handle_request_sync("u", request, deadline=deadline)
                ledger.increments += 1
            except BeastError:
                ledger.unsure += 1
            continue
        path = f"docs/w{number}-{rng.randrange(_KEYS)}"
        n = ledger.issued[path] = ledger.issued.get(path, 0) + 1
        through = rng.random() < 0.1
        operation = Set(path, {"n": n})
        request = Request.commit([operation]) if through else Request.set(path, {"n": n})
        try:
            optimizer.handle_request_sync("u", request, deadline=deadline)
            ledger.acknowledged[path] = n
        except BeastError:
            continue
        time.sleep(0.001)


def _compare(host: str, project: str, ledgers: list[_Ledger]) -> list[str]:
    """Ask the server itself."""
    from beastmode.stores.firestore import FirestoreStore

    wrong = []
    store = FirestoreStore(project, emulator_host=host)
    for number, ledger in enumerate(ledgers):
        for path, acknowledged in ledger.acknowledged.items():
            data = store.get(path).data
            found = 0 if data is None else data["n"]
            if not acknowledged <= found <= ledger.issued[path]:
                wrong.append(f"{path}: {acknowledged} acknowledged, {found} in the store")
        data = store.get(f"counters/w{number}").data
        count = 0 if data is None else data["c"]
        if not ledger.increments <= count <= ledger.increments + ledger.unsure:
            wrong.append(
                f"counter {number}: {ledger.increments} acknowledged, {ledger.unsure} unsure, "
                f"{count} in the store"
            )
    store.close()
    return wrong
