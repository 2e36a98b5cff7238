"""A hit through `handle_request` beside the Google client's own `get`, in one run.

Both read the same 100 documents, in turns; the time of a hit is that of the whole call of the
handler, counting and judging included. The client asks the emulator over loopback, which is
nearer than any real database, so the true ratio is larger.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.firestore.stores import google_async_client, google_client, open_store
from benchmarks.measure import quartiles
from benchmarks.program import say

LEAST_TIMES = 200.0
DOCUMENTS = 100
_HITS = 20_000
_GETS = 100


def run(project: str, rounds: int) -> dict[str, Any]:
    """Measure on the database of `project`; return times and ratios, for threads and for tasks."""
    from beastmode import BeastModeOptimizer, Request, Set

    say("latency: hits beside the client's own get")
    paths = [f"latency/d{number}" for number in range(DOCUMENTS)]
    body = {"name": "Ada Lovelace", "text": "x" * 700, "tags": ["a", "b", "c"], "n": 1}
    with tempfile.TemporaryDirectory() as folder, open_store(f"firestore:{project}") as stores:
        store, async_store = stores
        store.commit([Set(path, body) for path in paths], deadline=time.monotonic() + 30)
        optimizer = BeastModeOptimizer(
            store, async_store=async_store, journal_path=str(Path(folder) / "journal.db")
        )
        requests = [Request.get(path) for path in paths] * (_HITS // DOCUMENTS)
        with optimizer:
            sync = _sync(optimizer, requests, project, paths, rounds)
            tasks = asyncio.run(_async(optimizer, requests, project, paths, rounds))
    return {"sync": sync, "async": tasks, "documents": DOCUMENTS, "rounds": rounds}


def _sync(
    optimizer: Any, requests: list[Any], project: str, paths: list[str], rounds: int
) -> dict[str, Any]:
    client = google_client(project)
    references = [client.document(path) for path in paths]
    handle = optimizer.handle_request_sync
    for request in requests[:DOCUMENTS]:
        handle("u", request)
    hits, gets = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        for request in requests:
            answer = handle("u", request)
        hits.append((time.perf_counter() - began) / len(requests))
        assert answer.source == "hit"
        each = []
        for reference in references[:_GETS]:
            began = time.perf_counter()
            snapshot = reference.get()
            each.append(time.perf_counter() - began)
            assert snapshot.exists
        gets.append(statistics.median(each))
    client.close()
    return _compared(hits, gets)


async def _async(
    optimizer: Any, requests: list[Any], project: str, paths: list[str], rounds: int
) -> dict[str, Any]:
    client = google_async_client(project)
    references = [client.document(path) for path in paths]
    handle = optimizer.handle_request
    for request in requests[:DOCUMENTS]:
        await handle("u", request)
    hits, gets = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        for request in requests:
            answer = await handle("u", request)
        hits.append((time.perf_counter() - began) / len(requests))
        assert answer.source == "hit"
        each = []
        for reference in references[:_GETS]:
            began = time.perf_counter()
            snapshot = await reference.get()
            each.append(time.perf_counter() - began)
            assert snapshot.exists
        gets.append(statistics.median(each))
    client.close()
    return _compared(hits, gets)


def _compared(hits: list[float], gets: list[float]) -> dict[str, Any]:
    low, middle, high = quartiles([get / hit for hit, get in zip(hits, gets, strict=True)])
    return {
        "times": round(middle, 1),
        "times_low": round(low, 1),
        "times_high": round(high, 1),
        "hit_us": round(1e6 * quartiles(hits)[1], 2),
        "get_us": round(1e6 * quartiles(gets)[1], 1),
        "target": LEAST_TIMES,
        "met": middle >= LEAST_TIMES,
    }
