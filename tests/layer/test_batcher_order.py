"""Interleavings of accepting, committing, failing and reading, without threads or sleeps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from beastmode.batcher.entries import Entry, WriteCall
from beastmode.batcher.pending import PendingWrites
from beastmode.errors import DocumentMissing
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Document,
    Merge,
    Operation,
    Set,
    Update,
    apply,
    has_transforms,
)
from beastmode.stores.transforms import ArrayUnion, Increment
from support import FakeClock

PATHS = ("a/1", "a/2", "b/1")
paths = st.sampled_from(PATHS)
values = st.one_of(st.integers(0, 3), st.just(DELETE_FIELD), st.just({"z": 1}))
transforms = st.sampled_from([Increment(1), Increment(2), ArrayUnion([1]), {"z": Increment(1)}])
plain = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=2)
fields = st.dictionaries(st.sampled_from("xyz"), values, max_size=2)
operations = st.one_of(
    st.builds(Set, paths, plain),
    st.builds(Merge, paths, fields),
    st.builds(Update, paths, fields),
    st.builds(Delete, paths),
    st.builds(Set, paths, st.dictionaries(st.sampled_from("xyz"), transforms, max_size=2)),
    st.builds(Merge, paths, st.dictionaries(st.sampled_from("xyz"), transforms, max_size=2)),
)


class Waiting:
    """A waiter that only notes that it was resolved."""

    error: BaseException | None = None

    def __init__(self) -> None:
        self.resolved = False

    def resolve(self, answer: Any = None, error: BaseException | None = None) -> None:
        assert not self.resolved
        self.resolved = True


def applied(operation: Operation, data: Any) -> Any:
    """What a store makes of it; a refused Update changes nothing."""
    try:
        return apply(operation, data)
    except DocumentMissing:
        return data


def is_undetermined(operations: list[Operation]) -> bool:
    """Whether what these make of a document depends on what a transform found there."""
    result = False
    for operation in operations:
        if has_transforms(operation):
            result = True
        elif isinstance(operation, (Set, Delete)):
            result = False
    return result


class Interleavings(RuleBasedStateMachine):
    """Model: per document the store's fields and the accepted, unsettled operations in order."""

    @initialize(room=st.integers(3, 12))
    def begin(self, room: int) -> None:
        self.clock = FakeClock()
        self.pending = PendingWrites(
            max_ops=4,
            max_delay_s=1.0,
            max_bytes=1000,
            max_pending_ops=room,
            max_pending_bytes=10**6,
            read_grace_s=50.0,
            timer=self.clock,
        )
        self.room = room
        self.version = 1
        self.stored: dict[str, Any] = dict.fromkeys(PATHS)
        self.open: dict[str, list[Operation]] = {path: [] for path in PATHS}
        self.taken: list[Entry] = []
        self.untold: set[str] = set()
        self.old: list[Document] = []  # what readers got from the store, some time ago
        self.reserved: list[WriteCall] = []  # on the way into the journal
        self.queue: list[tuple[WriteCall, Waiting]] = []

    @rule(batch=st.lists(operations, min_size=1, max_size=3))
    def ask_for_room(self, batch: list[Operation]) -> None:
        call, waiter = WriteCall(batch, [10] * len(batch), 0.0), Waiting()
        if self.pending.reserve(len(batch), 10 * len(batch), waiter):
            self.reserved.append(call)
        else:
            self.queue.append((call, waiter))

    @rule()
    def journaled(self) -> None:
        if self.reserved:
            call = self.reserved.pop(0)
            self.pending.accept(call, list(range(len(call.operations))))
            for operation in call.operations:
                self.open[operation.path].append(operation)

    @rule()
    def refused_by_the_journal(self) -> None:
        if self.reserved:
            call = self.reserved.pop()
            self.pending.unreserve(len(call.operations), sum(call.sizes))

    @rule(which=st.integers(0, 5))
    def give_up_waiting(self, which: int) -> None:
        if which < len(self.queue):
            _, waiter = self.queue.pop(which)
            assert self.pending.give_up(waiter)

    @rule(limit=st.integers(1, 6))
    def take(self, limit: int) -> None:
        if not self.taken:
            self.taken = self.pending.take(limit)
            assert len(self.taken) <= limit

    @rule(count=st.integers(1, 6), refuse=st.booleans())
    def settle(self, count: int, refuse: bool) -> None:
        """The first few of what was taken are committed, or refused alone."""
        for entry in self.taken[:count]:
            path = entry.operation.path
            merged = [part.operation for part in entry.parts]
            assert self.open[path][: len(merged)] == merged, "first in, first out"
            del self.open[path][: len(merged)]
            self.untold.add(path[0])
            missing = isinstance(entry.operation, Update) and self.stored[path] is None
            if refuse or missing:
                self.pending.settle(entry, None)
                continue
            one_by_one = self.stored[path]
            for operation in merged:
                one_by_one = applied(operation, one_by_one)
            assert applied(entry.operation, self.stored[path]) == one_by_one, "merging is exact"
            self.stored[path] = one_by_one
            self.version += 1
            self.pending.settle(entry, self.version)
        del self.taken[:count]

    @rule()
    def tell(self) -> None:
        self.pending.told()
        self.untold.clear()

    @rule()
    def fail_and_put_back(self) -> None:
        self.taken = []
        self.pending.put_back()

    @rule()
    def committed_but_the_answer_was_lost(self) -> None:
        """A prefix of what was taken is in the store, and all of it comes back."""
        for entry in self.taken[:2]:
            path = entry.operation.path
            missing = isinstance(entry.operation, Update) and self.stored[path] is None
            if missing:
                break
        else:
            for entry in self.taken[:2]:
                path = entry.operation.path
                self.stored[path] = applied(entry.operation, self.stored[path])
                self.version += 1
        self.fail_and_put_back()

    @rule(path=paths)
    def read_the_store(self, path: str) -> None:
        self.old.append(Document(path, self.stored[path], self.version))

    @rule(seconds=st.floats(0, 0.5))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def room_is_handed_on_in_order(self) -> None:
        if not hasattr(self, "pending"):
            return
        while self.queue and self.queue[0][1].resolved:
            self.reserved.append(self.queue.pop(0)[0])
        assert not any(waiter.resolved for _, waiter in self.queue)
        assert self.pending.ops_held <= self.room

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "pending"):
            return
        self.pending._check()
        for path in PATHS:
            want = self.stored[path]
            for operation in self.open[path]:
                want = applied(operation, want)
            now = Document(path, self.stored[path], self.version)
            owed = self.pending.owed(path)
            assert bool(owed) == is_undetermined(self.open[path])
            assert owed <= self.pending.accepted
            if not owed:
                assert self.pending.overlay(now).data == want
            assert not self.pending.is_outdated(now)
            assert bool(self.open[path]) == bool(self.pending.pending(path))
        for collection in ("a", "b"):
            waiting = any(ops for path, ops in self.open.items() if path[0] == collection)
            waiting = waiting or collection in self.untold
            assert (collection in self.pending.collections) == waiting

    @invariant()
    def flush_order_is_first_come(self) -> None:
        if not hasattr(self, "pending"):
            return
        oldest = self.pending.oldest()
        assert (oldest is None) == (not any(self.open.values()))


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


class StaleReaders(Interleavings):
    """The same, and readers whose document is older than commits still see all writes.

    Those that were accepted before they began, at least: where a transform came in meanwhile, they
    are shown the state before it or a later one. `states` has each document's after every write.

    Without refusals and lost answers: those leave no exact state to compare an old document with.
    """

    @initialize()
    def begin_states(self) -> None:
        self.states: dict[str, list[Any]] = {path: [None] for path in PATHS}
        self.begun: list[int] = []

    @rule()
    def journaled(self) -> None:
        if self.reserved:
            operations = self.reserved[0].operations
            super().journaled()
            for operation in operations:
                states = self.states[operation.path]
                states.append(applied(operation, states[-1]))

    @rule(path=paths)
    def read_the_store(self, path: str) -> None:
        if not self.pending.owed(path):  # other readers wait
            super().read_the_store(path)
            self.begun.append(len(self.states[path]) - 1)

    @rule(count=st.integers(1, 6))
    def settle(self, count: int) -> None:  # type: ignore[override]
        super().settle(count, refuse=False)

    @rule()
    def committed_but_the_answer_was_lost(self) -> None:
        self.fail_and_put_back()

    @rule(batch=st.lists(operations, min_size=1, max_size=3))
    def ask_for_room(self, batch: list[Operation]) -> None:
        super().ask_for_room([op for op in batch if not isinstance(op, Update)] or [Set("a/1", {})])

    @invariant()
    def nobody_misses_a_write(self) -> None:
        if not hasattr(self, "pending") or self.clock.now > 1040.0:
            return
        for document, begun in zip(self.old, self.begun, strict=True):
            path = document.path
            shown = self.pending.overlay(document).data
            now = Document(path, self.stored[path], self.version)
            if self.pending.is_outdated(document):
                shown = self.pending.overlay(now).data  # it reads again
            assert shown in self.states[path][begun:]
            if not self.pending.owed(path):
                assert shown == self.pending.overlay(now).data == self.states[path][-1]


TestStaleReaders = StaleReaders.TestCase
TestStaleReaders.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


def test_the_oldest_write_bounds_the_wait() -> None:
    clock = FakeClock()
    pending = PendingWrites(
        max_ops=100,
        max_delay_s=1.0,
        max_bytes=10**6,
        max_pending_ops=10**6,
        max_pending_bytes=10**9,
        read_grace_s=1.0,
        timer=clock,
    )
    for n in range(5):
        call = WriteCall([Set("k/hot", {"n": n}), Set(f"k/{n}", {})], [1, 1], 0.0)
        pending.reserve(2, 2, Waiting())
        pending.accept(call, None)
        clock.advance(0.2)
    assert pending.buffer.due(), "merging must not make a document younger"
    first = pending.take(1)[0]
    assert (first.operation, len(first.parts)) == (Set("k/hot", {"n": 4}), 5)


def test_memory_of_committed_operations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from beastmode.batcher import pending as module

    monkeypatch.setattr(module, "_MAX_RECENT", 10)
    pending = PendingWrites(
        max_ops=100,
        max_delay_s=1.0,
        max_bytes=10**6,
        max_pending_ops=100,
        max_pending_bytes=10**6,
        read_grace_s=1.0,
        timer=FakeClock(),
    )
    for n in range(100):
        pending.remember(Merge(f"k/{n % 3}", {"n": n}), n + 1)
    pending.expire_recent()  # as after each commit
    assert sum(map(len, pending._recent.values())) == 10
    assert len(pending._recent_order) == 10
