"""The optimizer as a whole under a scheduler: who runs next is drawn, step by step, without sleeps.

One process reads and writes a document through the optimizer, another one writes it in the store,
and the store's stream tells of everything in its order, late. A read stops between what it read and
its return, a commit before it is applied and before it is answered. Meanwhile the document may be
evicted, and the stream may be lost and come back. The rules, for every answer:

* it shows every own write that was accepted before the read began (C3);
* it shows nothing older than an answer that was complete before (C2), nor than what the stream had
  told before (C1, C4, C5) and told anew when it came back (C6);
* when everybody has finished, it shows what the store has (C4, C5).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from beastmode import BeastModeOptimizer, Request
from beastmode.requests import Response
from beastmode.stores.base import (
    Change,
    FeedListener,
    Query,
    QueryResult,
    StoreHealth,
    Target,
    deadline_in,
)
from beastmode.stores.documents import Document, Merge, Operation, Set, apply, freeze
from played_feed import PlayedFeed
from scripted import WAIT_S
from store_support import wait_until

SCHEDULES = 150
Ask = Callable[[BeastModeOptimizer, Request], "Future[Response]"]


class Gate:
    """A call that says where it has come to and waits to be let on."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.go = threading.Event()

    def stop(self) -> None:
        self.arrived.set()
        assert self.go.wait(WAIT_S), "nobody let it on"

    def pass_on(self) -> None:
        assert self.arrived.wait(WAIT_S), "it has not come here"
        self.go.set()


class StagedStore:
    """Documents in memory, as Firestore keeps them; reads and commits of `path` stop at gates."""

    def __init__(self) -> None:
        self.path = ""
        self.documents: dict[str, Document] = {}
        self.version = 0
        self.lock = threading.Lock()
        self.reading: Gate | None = None
        self.commits: deque[tuple[Gate, Gate]] = deque()
        self.gates: list[Gate] = []
        self.free = False
        self.listener: Any = None
        self.feed: Any = None
        self.untold: deque[Document] = deque()
        self.followed = False

    def apply(self, operations: Sequence[Operation]) -> list[int]:
        with self.lock:
            self.version += 1
            for operation in operations:
                held = self.documents.get(operation.path)
                data = apply(operation, None if held is None else held.data)
                fields = None if data is None else freeze(data)
                self.documents[operation.path] = Document(operation.path, fields, self.version)
            if self.followed and any(operation.path == self.path for operation in operations):
                self.untold.append(self.documents[self.path])  # a commit is one change
            return [self.version] * len(operations)

    def read(self, path: str) -> Document:
        with self.lock:
            held = self.documents.get(path)
            return held if held and held.exists else Document(path, None, self.version)

    # -- the protocol of a store

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        found = self.read(path)
        gate, self.reading = self.reading, None
        if gate is not None:
            self.gates.append(gate)
            gate.stop()
        return found

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        return [self.get(path) for path in paths]

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        raise NotImplementedError

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        if all(operation.path != self.path for operation in operations):
            return self.apply(operations)  # markers
        before, after = Gate(), Gate()
        if self.free:
            return self.apply(operations)
        self.commits.append((before, after))
        self.gates += before, after
        before.stop()
        versions = self.apply(operations)
        after.stop()
        return versions

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Any:
        raise NotImplementedError

    def health(self) -> StoreHealth:
        return StoreHealth(ok=True, latency_s=0.0)

    def close(self) -> None: ...

    def open_feed(self, listener: FeedListener) -> PlayedFeed:
        clock: Any = time.monotonic
        self.listener, self.feed = listener, PlayedFeed(listener, clock)
        self.feed.hear()
        return self.feed

    def let_go(self) -> None:
        """Stop nobody any more, at the end."""
        self.free = True
        for gate in self.gates:
            gate.go.set()

    # -- what the stream does

    def follow(self) -> None:
        """Tell what the document is now, as the server does at first and after a loss."""
        with self.lock:
            self.followed = True
            self.untold.clear()
        self.feed.change(self.read(self.path))
        self.feed.current(self.path)

    def lose(self) -> None:
        with self.lock:
            self.followed = False
            self.untold.clear()
        self.feed.lose(self.path)


class Run:
    """One schedule: `step()` lets one of those that can go on do so."""

    def __init__(
        self, optimizer: BeastModeOptimizer, store: StagedStore, ask: Ask, kind: str, seed: int
    ) -> None:
        self.optimizer, self.store, self.ask, self.kind = optimizer, store, ask, kind
        self.random = random.Random(f"{kind}{seed}")
        self.path = store.path = f"u/{kind}{seed}"
        store.followed = False
        store.untold.clear()
        store.apply([Set(self.path, {"own": 0, "foreign": 0})])
        self.left = {"read": 4, "write": 3, "foreign": 3, "evict": 1, "lose": 1}
        self.accepted = 0
        self.seen = self.told = (0, 0)
        self.begun: tuple[Gate, Future[Response], tuple[int, int]] | None = None
        self.open: deque[tuple[Gate, Gate]] = deque()
        self.applied = self.followed = False
        self.history: list[str] = []

    def can(self) -> list[str]:
        """Return who can go on."""
        able = [what for what, left in self.left.items() if left]
        if self.begun is not None:
            able = [*(what for what in able if what != "read"), "return"]
        if self.open:
            able.append("answer" if self.applied else "commit")
        if self.store.untold:
            able.append("tell")
        is_asked = self.path in self.store.feed.asked
        if not self.store.followed:
            able.append("follow")
        if not (is_asked and self.store.followed) and "lose" in able:
            able.remove("lose")
        return able

    def step(self, what: str) -> None:
        self.history.append(what)
        if what in self.left:
            self.left[what] -= 1
        getattr(self, what if what != "return" else "end")()

    def read(self) -> None:
        gate = self.store.reading = Gate()
        # What the answer must not fall behind.
        floor = (max(self.accepted, self.seen[0]), max(self.seen[1], self.told[1]))
        answer = self.ask(self.optimizer, Request.get(self.path))
        wait_until(lambda: answer.done() or gate.arrived.is_set())
        self.begun = (gate, answer, floor)
        if not gate.arrived.is_set():
            self.store.reading = None
            self.end()

    def end(self) -> None:
        assert self.begun is not None
        gate, answer, (own, foreign) = self.begun
        self.begun = None
        if gate.arrived.is_set():
            gate.pass_on()
        response = answer.result(WAIT_S)
        data = response.data
        assert data is not None, "; ".join(self.history)
        assert data["own"] >= own, (data, own, response.source, "; ".join(self.history))
        if self.kind != "set":  # which takes the others' fields away
            assert data["foreign"] >= foreign, (
                data,
                foreign,
                response.source,
                "; ".join(self.history),
            )
            self.seen = (max(self.seen[0], data["own"]), max(self.seen[1], data["foreign"]))

    def write(self) -> None:
        self.accepted += 1
        make = {"set": Request.set, "merge": Request.merge, "update": Request.update}[self.kind]
        request = make(self.path, {"own": self.accepted})
        assert self.ask(self.optimizer, request).result(WAIT_S).source == "journal"
        self.next_commit()

    def next_commit(self) -> None:
        """Take up the commit that the batcher begins, if it is free to begin one."""
        if not self.open and self.optimizer.get_stats().batcher.pending:
            wait_until(lambda: self.store.commits)
            self.open.append(self.store.commits.popleft())
            self.applied = False

    def commit(self) -> None:
        before, after = self.open[0]
        before.pass_on()
        assert after.arrived.wait(WAIT_S)
        self.applied = True

    def answer(self) -> None:
        settled = self.optimizer.get_stats().batcher.commits
        self.open.popleft()[1].pass_on()
        wait_until(lambda: self.optimizer.get_stats().batcher.commits > settled)
        self.next_commit()

    def foreign(self) -> None:
        self.store.apply([Merge(self.path, {"foreign": 3 - self.left["foreign"]})])

    def tell(self) -> None:
        self.heard(self.store.untold[0])
        self.store.feed.change(self.store.untold.popleft())

    def follow(self) -> None:
        self.optimizer.sync.tick()
        if self.path in self.store.feed.asked:
            self.heard(self.store.read(self.path))
            self.store.follow()

    def heard(self, document: Document) -> None:
        assert document.data is not None
        self.told = (0, max(self.told[1], document.data.get("foreign", 0)))

    def evict(self) -> None:
        self.optimizer.cache._engine.pop(self.path, None)

    def lose(self) -> None:
        self.store.lose()

    def play(self) -> None:
        """Draw until nobody has anything to do, then compare with the store."""
        idle = {"follow", "lose", "evict"}
        while set(able := self.can()) - idle:
            self.step(self.random.choice(able))
        self.step("follow")
        held = self.store.read(self.path)
        answer = self.ask(self.optimizer, Request.get(self.path)).result(WAIT_S)
        assert answer.source in ("hit", "store")
        assert answer.data is not None
        assert answer.data["own"] == self.accepted
        self.followed = self.path in self.store.feed.asked
        if self.followed:
            # What was only written, and never loaded, lives by time: nobody tells of the others.
            assert answer.data == held.data, (answer, held, "; ".join(self.history))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT_S)
    loop.close()


@pytest.fixture(params=["threads", "coroutines"])
def ask(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> Iterator[Ask]:
    if request.param == "coroutines":
        yield lambda optimizer, what: asyncio.run_coroutine_threadsafe(
            optimizer.handle_request(None, what, deadline=deadline_in(WAIT_S)), loop
        )
        return
    with ThreadPoolExecutor(4) as pool:
        yield lambda optimizer, what: pool.submit(
            optimizer.handle_request_sync, None, what, deadline=deadline_in(WAIT_S)
        )


@pytest.mark.parametrize("kind", ["merge", "update", "set"])
def test_no_order_of_steps_shows_anything_old_or_loses_anything(
    tmp_path: Path, ask: Ask, kind: str
) -> None:
    store = StagedStore()
    with BeastModeOptimizer(
        store,
        journal_path=str(tmp_path / "journal.db"),
        batch_max_delay_ms=1,
        sync_interval_ms=3_600_000,
        healing_interval_s=3_600,
    ) as optimizer:
        assert optimizer.active
        steps: set[str] = set()
        followed = 0
        try:
            for seed in range(SCHEDULES):
                run = Run(optimizer, store, ask, kind, seed)
                run.play()
                steps.update(run.history)
                followed += run.followed
        finally:
            store.let_go()
        assert steps == {*run.left, "return", "commit", "answer", "tell", "follow"}
        assert followed > 20, "enough of them were followed to their end"
        assert optimizer.get_stats().cache.discarded > 0, "loads were overtaken"
