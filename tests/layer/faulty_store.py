"""A store that fails, waits or lies when a test says so, and keeps a list of its commits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from beastmode.batcher import BeastModeBatcher
from beastmode.stores.base import (
    Change,
    Query,
    QueryResult,
    Store,
    StoreHealth,
    Subscription,
    Target,
    deadline_in,
)
from beastmode.stores.documents import Document, Operation

Hook = Callable[[Sequence[Operation]], object]
LONG = 3600.0


class FaultyStore:
    """Wraps `inner`: `before` and `after` are called around each commit and may raise or wait.

    `attempts` lists the operations of every commit tried, `commits` of every one carried out.
    While `down` is set, every call fails with it, also the health probe; `asked` counts calls.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.attempts: list[list[Operation]] = []
        self.commits: list[list[Operation]] = []
        self.down: Exception | None = None
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        if name not in ("commit_limits", "commit_size"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _ask(self) -> None:
        self.asked += 1
        if self.down is not None:
            raise self.down

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        self.attempts.append(list(operations))
        self._ask()
        if self.before is not None:
            self.before(operations)
        versions = self.inner.commit(operations, deadline=deadline)
        self.commits.append(list(operations))
        if self.after is not None:
            self.after(operations)
        return versions

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        self._ask()
        return self.inner.get(path, deadline=deadline)

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        self._ask()
        return self.inner.get_many(paths, deadline=deadline)

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        self._ask()
        return self.inner.query(query, deadline=deadline)

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        return self.inner.watch(target, on_change)

    def health(self) -> StoreHealth:
        if self.down is not None:
            return StoreHealth(ok=False, latency_s=0.0, detail=str(self.down), error=self.down)
        return self.inner.health()

    def close(self) -> None:
        self.inner.close()


class Gate:
    """A hook that holds commits back: `arrived` is set by the first, `open` lets all go on."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.open = threading.Event()

    def __call__(self, operations: Sequence[Operation]) -> None:
        self.arrived.set()
        assert self.open.wait(30), "the test never opened the gate"


class Failing:
    """A hook that raises each of `errors` once, in order, and then lets everything pass."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, operations: Sequence[Operation]) -> None:
        if self.errors:
            raise self.errors.pop(0)


@contextlib.contextmanager
def batching(store: FaultyStore, *args: Any, **settings: Any) -> Iterator[BeastModeBatcher]:
    """Have a batcher that sends when it is told to; at the end the store is well again."""
    batcher = BeastModeBatcher(store, *args, **{"max_delay_s": LONG, **settings})
    try:
        yield batcher
    finally:
        store.before = store.after = None
        batcher.close(deadline_in(10))
