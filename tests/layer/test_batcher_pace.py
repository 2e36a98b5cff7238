"""Commits that are too slow for their deadline: halved once their outcome is settled."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.batcher.markers import MARKERS
from beastmode.batcher.pace import Pace
from beastmode.errors import StoreTimeout, StoreUnavailable, WriteRejected
from beastmode.journal import Journal
from beastmode.stores.base import Query, deadline_in
from beastmode.stores.documents import Merge, Operation, Set
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.transforms import Increment
from layer import faulty_store
from layer.faulty_store import LONG, FaultyStore
from support import FakeClock

batching = functools.partial(faulty_store.batching, markers="always", marker_grace_s=LONG)


class SlowStore(FaultyStore):
    """Takes no more than `fast` operations in time; what is `held` can be `delivered` later.

    With `carries_out` a commit that is too slow is carried out all the same.
    """

    def __init__(self, path: Path, fast: int) -> None:
        super().__init__(SQLiteStore(path))
        self.fast = fast
        self.carries_out = False
        self.held: list[list[Operation]] = []
        self.before = self.hold
        self.after = self.answer_late

    def is_slow(self, operations: Sequence[Operation]) -> bool:
        return len(plain(operations)) > self.fast

    def hold(self, operations: Sequence[Operation]) -> None:
        if self.is_slow(operations) and not self.carries_out:
            self.held.append(list(operations))
            raise StoreTimeout("too slow")

    def answer_late(self, operations: Sequence[Operation]) -> None:
        if self.is_slow(operations):
            raise StoreTimeout("too slow, but done")

    def deliver(self) -> list[str]:
        outcomes = []
        for operations in self.held:
            try:
                self.inner.commit(operations)
            except WriteRejected as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("applied")
        return outcomes


def plain(operations: Sequence[Operation]) -> list[Operation]:
    return [op for op in operations if not op.path.startswith(f"{MARKERS}/")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowStore]:
    made = SlowStore(tmp_path / "store", fast=10)
    yield made
    made.close()


def chains(count: int) -> list[Operation]:
    """Operations in pairs that are never merged, of which the second one has the last word."""
    return [
        op
        for n in range(count)
        for op in (Merge(f"k/{n}", {"a": n, "last": 1}), Merge(f"k/{n}", {"b": n, "last": 2}))
    ]


def assert_chains(store: FaultyStore, count: int) -> None:
    for n in range(count):
        assert store.inner.get(f"k/{n}").data == {"a": n, "b": n, "last": 2}


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_batch_that_is_too_slow_is_halved_until_it_is_fast_enough(
    store: SlowStore, journal: Journal, with_journal: bool
) -> None:
    with batching(store, journal if with_journal else None) as batcher:
        batcher.write(chains(40))
        batcher.flush(deadline_in(20))
        assert_chains(store, 40)
        sent = [plain(attempt) for attempt in store.attempts]
        slow = [tuple(map(repr, attempt)) for attempt in sent if len(attempt) > store.fast]
        assert slow, "the store was not slow"
        assert len(set(slow)) == len(slow), "none is repeated as it was"
        assert [op for commit in store.commits for op in plain(commit)] == chains(40)
        assert set(store.deliver()) == {"PreconditionFailed"}, "no attempt counts any more"
        assert_chains(store, 40)
    if with_journal:
        journal.sync()
        assert journal.recover() == []
        assert journal.recover_batches()[0] == []


def test_a_slow_batch_that_was_carried_out_is_not_sent_again(
    store: SlowStore, journal: Journal
) -> None:
    store.carries_out = True
    with batching(store, journal) as batcher:
        batcher.write(chains(10))
        batcher.flush(deadline_in(20))
        assert batcher.get_stats().confirmed == 1
    assert [len(plain(commit)) for commit in store.commits if plain(commit)] == [20]
    assert_chains(store, 10)


def test_nothing_is_sent_while_the_outcome_of_a_slow_batch_is_open(
    store: SlowStore, journal: Journal
) -> None:
    claims: list[str] = []

    def refuse_claims(operations: Sequence[Operation]) -> None:
        if plain(operations):
            store.hold(operations)
        elif len(claims) < 3:
            claims.append(operations[0].path)
            raise StoreUnavailable("cut")

    store.before = refuse_claims
    with batching(store, journal) as batcher:
        batcher.write(chains(10))
        batcher.flush(deadline_in(20))
    kinds = [len(plain(attempt)) for attempt in store.attempts]
    assert kinds[:5] == [20, 0, 0, 0, 0], "the claim was sent until it had an answer"
    assert len(set(claims)) == 1
    assert_chains(store, 10)


def test_a_claim_whose_answer_is_lost_counts(store: SlowStore, journal: Journal) -> None:
    lost: list[str] = []

    def lose(operations: Sequence[Operation]) -> None:
        if not plain(operations) and not lost:
            lost.append(operations[0].path)
            raise StoreTimeout("the claim was slow")

    store.after = lose
    with batching(store, journal) as batcher:
        batcher.write(chains(10))
        batcher.flush(deadline_in(20))
        assert set(store.deliver()) == {"PreconditionFailed"}
    assert lost
    assert_chains(store, 10)


def test_a_restart_after_the_claim_sends_the_operations_anew(
    store: SlowStore, tmp_path: Path
) -> None:
    """Also one alone, of which a plain repetition would say that it was refused."""
    from beastmode.batcher.markers import marker_write

    store.fast = 500
    path = tmp_path / "left.journal"
    journal = Journal(path)
    names = ("ab" * 16, "cd" * 16)
    writes = [[Set("k/1", {"n": 1})], [Set("k/2", {"n": 2}), Merge("k/3", {"n": 3})]]
    for name, operations in zip(names, writes, strict=True):
        journal.note_sent(name, journal.append(operations))
        store.inner.commit([marker_write(name, operations, void=True)])
    journal.close()
    journal = Journal(path)
    with batching(store, journal) as batcher:
        batcher.flush(deadline_in(20))
        assert batcher.get_stats().failed == 0
    assert [store.inner.get(f"k/{n}").data for n in (1, 2, 3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
    journal.close()


def test_plain_batches_become_smaller_and_keep_their_order(
    store: SlowStore, journal: Journal
) -> None:
    with batching(store, journal, markers="transforms") as batcher:
        batcher.write(chains(40))
        batcher.flush(deadline_in(20))
        assert_chains(store, 40)
    assert [op for commit in store.commits for op in plain(commit)] == chains(40)
    sizes = [len(attempt) for attempt in store.attempts]
    assert sizes[:4] == [80, 40, 20, 10], "and then what it has found out"
    assert store.inner.query(Query(MARKERS)).documents == []


def test_the_size_grows_again_when_the_store_is_fast_again(
    store: SlowStore, journal: Journal
) -> None:
    clock = FakeClock()
    with batching(store, journal, markers="transforms", timer=clock, max_ops=80) as batcher:
        store.before = None
        pace = batcher._flusher.sender.pace
        pace.late(80)
        store.fast = 500
        for _ in range(2):
            batcher.write(chains(40))
            batcher.flush(deadline_in(20))
        assert [len(commit) for commit in store.commits] == [40, 40, 80]


def test_the_pace() -> None:
    pace = Pace(deadline_s=4.0)
    assert pace.cap(500) == 500
    pace.answered(500, 0.1)
    pace.late(500)
    assert pace.cap(500) == 250
    pace.late(500)
    assert pace.cap(500) == 250, "another batch of the old size tells nothing new"
    pace.late(250)
    for _ in range(9):
        pace.answered(125, 1.1)
        assert pace.cap(500) == 125, "twice as much might take too long"
        pace.answered(100, 0.1)
        assert pace.cap(500) == 125, "nor does a smaller one tell anything"
    pace.late(1)
    assert pace.cap(500) == 125, "one alone is late for other reasons"
    pace.late(3)
    assert pace.cap(500) == 1
    assert pace.cap(1) == 1
    assert pace.cap(500) == 500, "all that was allowed: no limit of ours is left"


def test_a_size_that_was_too_slow_is_tried_again_less_and_less_often() -> None:
    """As where a network loses every large packet: small commits say nothing of large ones."""
    pace = Pace(deadline_s=4.0)
    late = [0]
    for commit in range(3000):
        size = pace.cap(64)
        if size > 10:
            pace.late(size)
            late.append(commit)
        else:
            pace.answered(size, 0.01)
    gaps = [after - before for before, after in itertools.pairwise(late[3:])]
    assert gaps == sorted(gaps)
    assert len(late) < 20
    for _ in range(3000):
        pace.answered(pace.cap(64), 0.01)
    assert pace.cap(64) == 64
    pace.answered(64, 0.01)
    pace.late(64)
    for _ in range(2):
        pace.answered(32, 0.01)
    assert pace.cap(64) == 64, "a new trouble starts anew"


def test_what_stands_before_a_batch_in_doubt_is_halved_too(
    store: SlowStore, tmp_path: Path
) -> None:
    with (
        contextlib.closing(Journal(tmp_path / "first")) as first,
        contextlib.closing(Journal(tmp_path / "second")) as second,
    ):
        first.append([Set(f"k/{n}", {"n": n}) for n in range(35)])
        doubtful = [Set("k/1", {"n": "new"}), Merge("k/2", {"n": Increment(1)})]
        second.note_sent("ab" * 16, second.append(doubtful))
        batcher = BeastModeBatcher(store, max_delay_s=LONG)
        batcher.adopt([first, second])
        with batcher:
            batcher.flush(deadline_in(10))
        assert batcher.get_stats().pending == 0
    sizes = [len(plain(operations)) for operations in store.held]
    assert sizes == [35, 17]
    assert store.get("k/1").data == {"n": "new"}
    assert store.get("k/2").data == {"n": 3}
    assert store.get("k/34").data == {"n": 34}
