"""From a write elsewhere to the cache, and what a change costs the process that listens.

*Latency*: a process of its own writes 20 documents a second with Google's client; this one holds
1,000 documents that are listened to one by one. The time runs from the moment at which the writer
began its call, to that at which the cache holds what was written.

*CPU*: our listener and Google's `Watch` in turn follow the same collection (the same kind of
target) while another process writes one document a second; CPU time of the whole process, over a
fixed number of changes. The emulator sends every document of such a target anew at each change,
to both alike; documents of their own targets are what our cache listens to, hence the last column.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.firestore.stores import google_client
from benchmarks.program import say
from benchmarks.worker import ROOT, call

MOST_P50_MS = 10.0
MOST_P99_MS = 100.0
TARGETS = 1_000
RATE = 20
_SIZES = (100, 1_000, 5_000)


def latency(project: str, seconds: float) -> dict[str, Any]:
    """Follow `TARGETS` documents for `seconds`; return how soon the cache had each change."""
    from beastmode import BeastModeOptimizer, Change, Set
    from beastmode.stores.firestore import FirestoreStore

    say(f"sync: {TARGETS:,} documents, {RATE} writes a second for {seconds:g} s")
    paths = [f"sync/d{number}" for number in range(TARGETS)]
    store = FirestoreStore(project)
    for first in range(0, TARGETS, 500):
        operations = [Set(path, {"at": 0, "text": "x" * 300}) for path in paths[first:][:500]]
        store.commit(operations, deadline=time.monotonic() + 30)
    took: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        optimizer = BeastModeOptimizer(
            store, journal_path=str(Path(folder) / "journal.db"), listen_max_documents=TARGETS
        )
        cache = optimizer.cache
        apply_change = cache.apply_change

        def timed(change: Change) -> Any:
            answer = apply_change(change)
            data = change.document.data
            if data is not None and data["at"]:
                held = cache.lookup(change.path)
                assert held is not None, change.path
                assert held.version >= change.document.version
                took.append((time.monotonic_ns() - data["at"]) / 1e6)
            return answer

        cache.apply_change = timed  # type: ignore[method-assign]
        with optimizer:
            cache.warm(paths, deadline=time.monotonic() + 60)
            wait_for(lambda: optimizer.get_stats().sync.current >= TARGETS, 60)
            began = time.process_time()
            writer = _writer(project, "sync", TARGETS, RATE, seconds)
            written = int(writer.communicate()[0].split()[-1])
            wait_for(lambda: len(took) >= written, 10)
            cpu = time.process_time() - began
    store.close()
    ordered = sorted(took)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99))
    return {
        "targets": TARGETS,
        "writes": written,
        "heard": len(took),
        "rate": RATE,
        "p50_ms": round(p50, 2),
        "p90_ms": round(ordered[int(len(ordered) * 0.9)], 2),
        "p99_ms": round(p99, 2),
        "max_ms": round(ordered[-1], 2),
        "cpu_us": round(1e6 * cpu / written, 1),
        "met": p50 < MOST_P50_MS and p99 < MOST_P99_MS,
    }


def cpu(project: str, changes: int) -> list[dict[str, Any]]:
    """Return the CPU time of a change beside `Watch`, by the number of documents."""
    rows = []
    for size in _SIZES:
        say(f"sync: CPU of a change among {size:,} documents")
        _fill(project, f"watched{size}", size)
        row: dict[str, Any] = {"documents": size, "changes": changes}
        for name, function in (("ours", ours), ("watch", watch), ("single", single)):
            found = call(
                function, project=project, collection=f"watched{size}", size=size, changes=changes
            )
            row[f"{name}_ms"] = round(found["cpu_ms"], 3)
            row[f"{name}_heard"] = found["heard"]
        row["times"] = round(row["watch_ms"] / row["ours_ms"], 2)
        rows.append(row)
    return rows


def _fill(project: str, collection: str, size: int) -> None:
    from beastmode import Set
    from beastmode.stores.firestore import FirestoreStore

    store = FirestoreStore(project)
    for first in range(0, size, 500):
        numbers = range(first, min(first + 500, size))
        operations = [Set(f"{collection}/d{n}", {"at": 0, "text": "x" * 300}) for n in numbers]
        store.commit(operations, deadline=time.monotonic() + 30)
    store.close()


class _Ears:
    """Notes the documents whose change was heard."""

    def __init__(self) -> None:
        self.heard: set[int] = set()
        self.current = 0
        self.changed = threading.Event()

    def on_change(self, change: Any) -> None:
        self.note(change.document.data)

    def note(self, data: Any) -> None:
        if data is not None and data["at"]:
            self.heard.add(data["at"])

    def on_current(self, _target: Any) -> None:
        self.current += 1

    def on_doubt(self, _targets: Any, _why: str) -> None:
        """Whatever is doubted comes again."""

    def on_unknown(self, _paths: Any, _why: str) -> None:
        """As doubt."""


def ours(project: str, collection: str, size: int, changes: int) -> dict[str, Any]:
    """Follow the collection with our listener."""
    from beastmode import Target

    return _follow(project, collection, size, changes, [Target(collection=collection)])


def single(project: str, collection: str, size: int, changes: int) -> dict[str, Any]:
    """Follow each document of the collection by a target of its own, on one stream."""
    from beastmode import Target

    targets = [Target(document=f"{collection}/d{number}") for number in range(size)]
    return _follow(project, collection, size, changes, targets)


def _follow(
    project: str, collection: str, size: int, changes: int, targets: list[Any]
) -> dict[str, Any]:
    from beastmode.stores.firestore import FirestoreStore

    store = FirestoreStore(project)
    ears = _Ears()
    feed = store.open_feed(ears)
    for target in targets:
        feed.add(target)
    wait_for(lambda: ears.current >= len(targets), 60)
    found = _measure(project, collection, size, changes, ears)
    feed.close()
    store.close()
    return found


def watch(project: str, collection: str, size: int, changes: int) -> dict[str, Any]:
    """Follow the collection with Google's own listener."""
    client = google_client(project)
    ears = _Ears()

    def on_snapshot(_documents: Any, changed: Any, _at: Any) -> None:
        ears.current = 1
        for change in changed:
            ears.note(change.document.to_dict())

    watching = client.collection(collection).on_snapshot(on_snapshot)
    wait_for(lambda: ears.current, 60)
    found = _measure(project, collection, size, changes, ears)
    watching.unsubscribe()
    client.close()
    return found


def _measure(project: str, collection: str, size: int, changes: int, ears: _Ears) -> dict[str, Any]:
    time.sleep(1.0)
    ears.heard.clear()
    began = time.process_time()
    writer = _writer(project, collection, size, 1, float(changes))
    writer.communicate()
    wait_for(lambda: len(ears.heard) >= changes, 15)
    return {
        "cpu_ms": 1e3 * (time.process_time() - began) / changes,
        "heard": len(ears.heard),
    }


def _writer(
    project: str, collection: str, size: int, rate: float, seconds: float
) -> subprocess.Popen[str]:
    """Start a process that writes; it prints how often it did."""
    arguments = [project, collection, str(size), str(rate), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.firestore.sync", *arguments],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )


def write(project: str, collection: str, size: int, rate: float, seconds: float) -> int:
    """Write documents of the collection at an even rate, each with the time at which it began."""
    import random

    rng = random.Random(1)
    client = google_client(project)
    client.document(f"{collection}-other/d").set(
        {"at": 0}
    )  # connected, before the first one counts
    count = round(rate * seconds)
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        reference = client.document(f"{collection}/d{rng.randrange(size)}")
        reference.set({"at": time.monotonic_ns(), "text": "y" * 300})
    client.close()
    return count


def wait_for(condition: Any, seconds: float) -> None:
    """Return once `condition()` is true; TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not happen within {seconds} s")
        time.sleep(0.01)


if __name__ == "__main__":
    name, folder, size, rate, seconds = sys.argv[1:]
    print(write(name, folder, int(size), float(rate), float(seconds)))
