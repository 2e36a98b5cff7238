"""What tests of stores share: an AsyncStore seen as a Store, other processes, and an oracle."""

from __future__ import annotations

import asyncio
import functools
import math
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from beastmode.stores.base import Change, Filter, Query, QueryResult, StoreHealth, Target
from beastmode.stores.documents import Document
from beastmode.stores.values import GeoPoint, Reference, Vector


class AwaitedStore:
    """A `Store` whose calls await those of an AsyncStore, in a loop in a thread of its own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        return self.run(self.inner.get(path, deadline=deadline))

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        return self.run(self.inner.get_many(paths, deadline=deadline))

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        return self.run(self.inner.query(query, deadline=deadline))

    def commit(self, operations: Sequence[Any], *, deadline: float | None = None) -> list[int]:
        return self.run(self.inner.commit(operations, deadline=deadline))

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Any:
        return self.run(self.inner.watch(target, on_change))

    def health(self) -> StoreHealth:
        return self.run(self.inner.health())

    def close(self) -> None:
        self.run(self.inner.close())

    def stop(self) -> None:
        """Close, and end the loop's thread."""
        self.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class Child:
    """Another Python process running `script`, which may read lines from us and print lines."""

    def __init__(self, script: str, *arguments: object, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        """Return the next line it prints, "" when it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, text: str = "go") -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def finish(self, timeout: float = 60) -> str:
        """Wait for its end and return what it printed; it must have ended well."""
        out, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, out
        return out


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Return as soon as `condition()` is true; fail when it does not become so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


# -- the oracle: Firestore's rules once more, in another way than beastmode.stores.matching --------

RANKS: list[tuple[int, Callable[[Any], bool]]] = [
    (0, lambda v: v is None),
    (1, lambda v: isinstance(v, bool)),
    (2, lambda v: isinstance(v, (int, float))),
    (3, lambda v: hasattr(v, "utcoffset")),
    (4, lambda v: isinstance(v, str)),
    (5, lambda v: isinstance(v, bytes)),
    (6, lambda v: isinstance(v, Reference)),
    (7, lambda v: isinstance(v, GeoPoint)),
    (8, lambda v: isinstance(v, list)),
    (9, lambda v: isinstance(v, Vector)),
    (10, lambda v: isinstance(v, dict)),
]


def rank(value: Any) -> int:
    return next(number for number, test in RANKS if test(value))


def compare(one: Any, other: Any) -> int:
    """Return -1, 0 or 1: how Firestore sorts two values."""
    if rank(one) != rank(other):
        return -1 if rank(one) < rank(other) else 1
    if one is None:
        return 0
    if isinstance(one, list):
        for a, b in zip(one, other, strict=False):
            if result := compare(a, b):
                return result
        return (len(one) > len(other)) - (len(one) < len(other))
    if isinstance(one, dict):
        flat = [[x for key in sorted(v) for x in (key, v[key])] for v in (one, other)]
        return compare(flat[0], flat[1])
    if isinstance(one, Reference):
        named = [[v.project or "", v.database or "", *v.path.split("/")] for v in (one, other)]
        return compare(named[0], named[1])
    if isinstance(one, GeoPoint):
        places = [[v.latitude, v.longitude] for v in (one, other)]
        return compare(places[0], places[1])
    if isinstance(one, Vector):
        flat = [[len(v), *v.values] for v in (one, other)]
        return compare(flat[0], flat[1])
    if isinstance(one, float) and math.isnan(one):
        return 0 if isinstance(other, float) and math.isnan(other) else -1
    if isinstance(other, float) and math.isnan(other):
        return 1
    return (one > other) - (one < other)


NOTHING = object()
UNEQUAL = ("<", "<=", ">", ">=", "!=", "not-in")


def pick(data: Any, field: str) -> Any:
    for part in field.split("."):
        if not isinstance(data, dict) or part not in data:
            return NOTHING
        data = data[part]
    return data


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def passes(data: Any, item: Filter) -> bool:
    held, op, value = pick(data, item.field), item.op, item.value
    if held is NOTHING:
        return False
    if op == "==":
        return compare(held, value) == 0
    if op == "!=":
        return held is not None and compare(held, value) != 0
    if op == "in":
        return any(compare(held, v) == 0 for v in value if v is not None and not is_nan(v))
    if op == "not-in":
        return (
            held is not None
            and not any(v is None for v in value)
            and all(compare(held, v) != 0 for v in value)
        )
    if op == "array-contains":
        return isinstance(held, list) and any(compare(v, value) == 0 for v in held)
    if rank(held) != rank(value) or is_nan(held):
        return False
    result = compare(held, value)
    return {"<": result < 0, "<=": result <= 0, ">": result > 0, ">=": result >= 0}[op]


def brute_force(documents: dict[str, dict[str, Any]], query: Query) -> list[str]:
    """Return the ids that `query` finds among id -> fields, in its order."""
    orders = [(order.field, order.descending) for order in query.order_by]
    down = orders[-1][1] if orders else False
    for field in sorted({item.field for item in query.where if item.op in UNEQUAL}):
        if field not in [name for name, _ in orders]:
            orders.append((field, down))
    found = [
        doc_id
        for doc_id, data in documents.items()
        if all(passes(data, item) for item in query.where)
        and all(pick(data, field) is not NOTHING for field, _ in orders)
    ]

    def by(one: str, other: str) -> int:
        for field, descending in orders:
            if result := compare(pick(documents[one], field), pick(documents[other], field)):
                return -result if descending else result
        result = (one > other) - (one < other)
        return -result if down else result

    return sorted(found, key=functools.cmp_to_key(by))[: query.limit]
