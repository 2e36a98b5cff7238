"""Commits without an answer, and markers: nothing lost, nothing applied twice.

All batches carry a marker here (`markers="always"`), and a counting store tells a second
application of the same operation from the first, as an Increment would.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.batcher.batches import Limits
from beastmode.batcher.markers import MARKERS, MarkerBin, marker_path, marker_write
from beastmode.breaker import Breaker
from beastmode.cost import Meter
from beastmode.errors import (
    BreakerOpen,
    BufferFullError,
    ConfigError,
    JournalError,
    PreconditionFailed,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.journal import Journal
from beastmode.stores.base import Query, deadline_in
from beastmode.stores.documents import Delete, Merge, Operation, Precondition, Set, Update
from beastmode.stores.guarded import GuardedStore
from beastmode.stores.metered import MeteredStore
from beastmode.stores.sqlite import SQLiteStore
from layer import faulty_store
from layer.faulty_store import LONG, Failing, FaultyStore, Gate
from support import FakeClock

batching = functools.partial(faulty_store.batching, markers="always", marker_grace_s=0.0)


class CountingStore(FaultyStore):
    """Counts how often each operation was applied. `zombies` lets attempts arrive later."""

    def __init__(self, path: Path) -> None:
        super().__init__(SQLiteStore(path))
        self.applied: Counter[str] = Counter()
        self.zombies: list[list[Operation]] = []
        self.gets = 0

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        self.attempts.append(list(operations))
        if self.before is not None:
            self.before(operations)
        versions = self.inner.commit(operations, deadline=deadline)
        self.commits.append(list(operations))
        for operation in operations:
            if not operation.path.startswith(f"{MARKERS}/"):
                self.applied[repr(operation)] += 1
        if self.after is not None:
            self.after(operations)
        return versions

    def get(self, path: str, *, deadline: float | None = None) -> Any:
        self.gets += 1
        return super().get(path, deadline=deadline)

    def markers(self) -> list[str]:
        return [found.path for found in self.inner.query(Query(MARKERS)).documents]

    def lose(self, operations: Sequence[Operation]) -> None:
        """A hook: the commit does not happen now, but the network may still deliver it."""
        self.zombies.append(list(operations))
        raise StoreTimeout("no answer")

    def deliver(self) -> list[str]:
        """Have the lost attempts arrive; return what became of each."""
        outcomes = []
        for operations in self.zombies:
            try:
                self.commit(operations)
            except WriteRejected as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("applied")
        return outcomes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountingStore]:
    made = CountingStore(tmp_path / "store")
    yield made
    made.close()


def sets(count: int) -> list[Operation]:
    return [Merge(f"k/{n}", {"n": n}) for n in range(count)]


def marks(operations: Sequence[Operation]) -> list[str]:
    """The names of the markers that a commit makes."""
    return [
        operation.path.rpartition("/")[2]
        for operation in operations
        if operation.path.startswith(f"{MARKERS}/") and isinstance(operation, Set)
    ]


def assert_once(store: CountingStore, operations: Sequence[Operation]) -> None:
    assert {repr(op): store.applied[repr(op)] for op in operations} == {
        repr(op): 1 for op in operations
    }


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_marker_is_one_more_write_and_goes_afterwards(
    store: CountingStore, journal: Journal, with_journal: bool
) -> None:
    with batching(store, journal if with_journal else None) as batcher:
        assert batcher.write(sets(3), until="store") is not None
        assert len(store.commits[0]) == 4
        assert isinstance(store.commits[0][-1], Set)
        assert store.commits[0][-1].precondition == Precondition(exists=False)
        assert len(store.markers()) == 1
    assert store.markers() == []
    if with_journal:
        journal.sync()
        assert journal.recover() == []
        assert journal.recover_batches() == ([], [])


def test_plain_operations_have_none(store: CountingStore, journal: Journal) -> None:
    with batching(store, journal, markers="transforms") as batcher:
        batcher.write(sets(3), until="store")
    assert [len(commit) for commit in store.commits] == [3]


def test_on_a_server_every_commit_has_one_unless_told_otherwise(
    store: CountingStore, journal: Journal
) -> None:
    def sizes(**kwargs: Any) -> list[int]:
        store.commits.clear()
        with batching(store, journal, **kwargs) as batcher:
            batcher.write(sets(3), until="store")
            return [len(commit) for commit in store.commits]

    assert sizes(markers="auto") == [3], "the embedded store carries out nothing late"
    store.commit_limits = Limit()  # type: ignore[attr-defined]
    assert sizes(markers="auto") == [4]
    assert sizes(markers="transforms") == [3]


def test_a_plain_commit_that_was_held_up_does_not_undo_newer_writes(
    store: CountingStore, journal: Journal
) -> None:
    store.commit_limits = Limit()  # type: ignore[attr-defined]
    lost: list[Sequence[Operation]] = []

    def lose_twice(operations: Sequence[Operation]) -> None:
        if len(lost) < 2:
            lost.append(operations)
            store.lose(operations)

    store.before = lose_twice
    with batching(store, journal, markers="auto", marker_grace_s=LONG) as batcher:
        batcher.write([Set("k/1", {"n": 1}), Set("k/2", {"n": 1})])
        batcher.flush(deadline_in(20))
        batcher.write([Set("k/1", {"n": 2})], until="store", deadline=deadline_in(20))
        store.before = None
        assert "applied" not in store.deliver()
        assert [store.get(f"k/{n}").data for n in (1, 2)] == [{"n": 2}, {"n": 1}]


@pytest.mark.parametrize("error", [StoreTimeout("late"), StoreUnavailable("cut")])
@pytest.mark.parametrize("with_journal", [True, False])
def test_applied_but_unanswered_is_not_applied_again(
    store: CountingStore, journal: Journal, with_journal: bool, error: Exception
) -> None:
    store.after = Failing(error)
    told: list[tuple[str, int | None]] = []
    with batching(
        store,
        journal if with_journal else None,
        on_committed=lambda operation, version: told.append((operation.path, version)),
    ) as batcher:
        assert batcher.write(sets(3), until="store", deadline=deadline_in(20)) is None
        assert batcher.get_stats().pending == 0
        batcher.write([Set("k/other", {})], until="store")
    assert told == [("k/0", None), ("k/1", None), ("k/2", None), ("k/other", told[-1][1])]
    assert told[-1][1] is not None
    assert_once(store, sets(3))
    assert len({tuple(marks(attempt)) for attempt in store.attempts[:2]}) == 1, "the same name"
    assert store.markers() == []


def test_readers_of_the_time_before_still_see_what_was_confirmed(
    store: CountingStore, journal: Journal
) -> None:
    old = store.get("k/0")
    store.after = Failing(StoreTimeout("late"))
    with batching(store, journal) as batcher:
        batcher.write(sets(1), until="store", deadline=deadline_in(20))
        assert batcher.overlay(old).data == {"n": 0}
        newer = store.inner.commit([Set("k/0", {"n": "foreign"})])[0]
        now = store.get("k/0")
        assert now.version == newer
        assert batcher.overlay(now).data == {"n": "foreign"}


def test_a_batch_in_doubt_takes_nothing_in_and_lets_nothing_past(
    store: CountingStore, journal: Journal
) -> None:
    store.before = store.lose
    with batching(store, journal) as batcher:
        batcher.write([Set("k/1", {"n": 1})])
        with pytest.raises(StoreTimeout):
            batcher.flush(deadline_in(0.2))
        batcher.write([Set("k/1", {"n": 2}), Set("k/2", {"n": 2})])
        assert batcher.overlay(store.inner.get("k/1")).data == {"n": 2}
        batcher._pending._check()
        with pytest.raises(StoreUnavailable, match="earlier writes"):
            batcher.write([Set("k/1", {"n": 3}, Precondition(exists=True))])
        store.before = None
        batcher.flush()
        assert [max(op.path for op in commit) for commit in store.commits] == ["k/1", "k/2"]
        assert store.get("k/1").data == {"n": 2}
        first = {tuple(marks(attempt)) for attempt in store.attempts if attempt[0].data == {"n": 1}}
        assert len(first) == 1
    assert_once(store, [Set("k/1", {"n": 1}), Set("k/1", {"n": 2})])


def test_what_arrives_after_its_repetition_is_refused_by_the_marker(
    store: CountingStore, journal: Journal
) -> None:
    lost = threading.Event()

    def lose_once(operations: Sequence[Operation]) -> None:
        if not lost.is_set():
            lost.set()
            store.lose(operations)

    store.before = lose_once
    with batching(store, journal, marker_grace_s=LONG) as batcher:
        batcher.write(sets(3), until="store", deadline=deadline_in(20))
        assert store.deliver() == ["PreconditionFailed"]
    assert_once(store, sets(3))
    assert len(store.markers()) == 1, "it stays as long as an attempt may be under way"
    (left,) = journal.recover_batches()[1]
    assert f"{MARKERS}/{left[0]}" == store.markers()[0]


def test_a_refused_batch_whose_attempt_is_under_way_is_made_impossible_first(
    store: CountingStore, journal: Journal
) -> None:
    """Else the halves and the late arrival would both be applied."""
    writes: list[Operation] = [*sets(3), Update("k/none", {"n": 1}), Merge("k/9", {"n": 9})]
    calls = 0

    def lose_first(operations: Sequence[Operation]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            store.lose(operations)

    store.before = lose_first
    failed: list[str] = []
    with batching(
        store,
        journal,
        marker_grace_s=LONG,
        on_failed=lambda operation, error: failed.append(operation.path),
    ) as batcher:
        batcher.write(writes)
        batcher.flush()
        assert failed == ["k/none"]
        store.inner.commit([Set("k/none", {})])  # now the lost attempt could be applied
        assert store.deliver() == ["PreconditionFailed"]
    assert_once(store, [op for op in writes if op.path != "k/none"])
    assert store.get("k/none").data == {}
    void = [store.get(path).to_dict() for path in store.markers()]
    assert [marker["state"] for marker in void if marker is not None].count("void") == 1


def test_an_unanswered_claim_is_found_again(store: CountingStore, journal: Journal) -> None:
    writes: list[Operation] = [*sets(2), Update("k/none", {"n": 1})]
    attempts = 0

    def lose_first(operations: Sequence[Operation]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            store.lose(operations)

    def lose_the_claims_answer(operations: Sequence[Operation]) -> None:
        if operations[0].path.startswith(MARKERS) and len(operations) == 1 and attempts < 4:
            raise StoreTimeout("late")

    store.before, store.after = lose_first, lose_the_claims_answer
    with batching(store, journal, marker_grace_s=LONG) as batcher:
        batcher.write(writes)
        batcher.flush()
    assert_once(store, sets(2))
    assert "applied" not in store.deliver()


def test_one_poison_among_marked_operations_fails_alone(
    store: CountingStore, journal: Journal
) -> None:
    writes: list[Operation] = [*sets(40), Update("k/none", {"n": 1})]
    with batching(store, journal) as batcher:
        batcher.write(writes)
        batcher.flush()
        report = batcher.get_stats()
    assert (report.failed, report.committed) == (1, 40)
    assert_once(store, sets(40))
    assert store.markers() == []
    assert [letter.operation.path for letter in journal.dead_letters()] == ["k/none"]
    assert journal.recover_batches() == ([], [])


def test_a_users_own_create_of_the_same_commit_is_no_proof(
    store: CountingStore, journal: Journal
) -> None:
    """PreconditionFailed without our marker is a refusal as any other."""
    poison = Set("k/poison", {})

    def refuse(operations: Sequence[Operation]) -> None:
        if poison in operations:
            raise PreconditionFailed("it must not exist")

    store.before = refuse
    with batching(store, journal) as batcher:
        batcher.write([*sets(3), poison])
        batcher.flush()
        assert batcher.get_stats().failed == 1
    assert_once(store, sets(3))


def test_a_batch_is_not_sent_before_the_journal_has_noted_it(
    store: CountingStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refuse = journal.note_sent, [JournalError("no room"), JournalError("still none")]
    names: list[str] = []

    def note(batch: str, seqs: Sequence[int], deadline: float | None = None) -> None:
        names.append(batch)
        if refuse:
            assert not store.attempts
            raise refuse.pop()
        real(batch, seqs, deadline)

    monkeypatch.setattr(journal, "note_sent", note)
    with batching(store, journal) as batcher:
        batcher.write(sets(2))
        batcher.flush()
    assert len(names) == 3
    assert len(set(names)) == 1, "a note that failed may be there all the same"
    assert_once(store, sets(2))


# After the end of the process.


def left_behind(tmp_path: Path, operations: Sequence[Operation], name: str) -> Journal:
    """A journal in which a process noted `operations` as sent, and ended."""
    journal = Journal(tmp_path / "writes.journal")
    seqs = journal.append(operations)
    journal.note_sent(name, seqs)
    journal.close()
    return Journal(tmp_path / "writes.journal")


UNDONE: list[Operation] = [Update("k/1", {"n": 1}), Merge("k/2", {"n": 1}), Delete("k/1")]
"""Once carried out it is refused, for the document is gone."""


@pytest.mark.parametrize("markers", ["transforms", "always"])
def test_an_update_of_what_is_deleted_next_is_not_told_as_rejected(
    store: CountingStore, journal: Journal, markers: str
) -> None:
    store.inner.commit([Set("k/1", {})])
    store.after = Failing(StoreUnavailable("cut"))
    told: list[Operation] = []
    with batching(
        store,
        journal,
        markers=markers,
        on_committed=lambda operation, version: told.append(operation),
    ) as batcher:
        batcher.write(UNDONE, until="store", deadline=deadline_in(20))
        report = batcher.get_stats()
    assert (report.failed, report.confirmed) == (0, 1)
    assert sorted(map(repr, told)) == sorted(map(repr, UNDONE))
    assert journal.dead_letters() == []
    assert_once(store, UNDONE)


@pytest.mark.parametrize("noted", [True, False])
def test_a_replay_of_it_does_not_tell_it_as_rejected_either(
    store: CountingStore, tmp_path: Path, noted: bool
) -> None:
    """Noted or not: its commits may have been two, and none of them noted as answered."""
    store.inner.commit([Set("k/1", {})])
    journal = Journal(tmp_path / "left.journal")
    name = "ab" * 16
    seqs = journal.append(UNDONE)
    if noted:
        journal.note_sent(name, seqs)
    store.inner.commit([*UNDONE, marker_write(name, UNDONE)] if noted else UNDONE)
    told: list[str] = []
    with batching(
        store,
        journal,
        markers="transforms",
        on_committed=lambda operation, version: told.append(repr(operation)),
    ) as batcher:
        batcher.start()
        assert batcher.overlay(store.get("k/1")).data is None
        batcher.flush(deadline_in(20))
        assert batcher.get_stats().failed == 0
    assert sorted(told) == sorted(map(repr, UNDONE))
    assert journal.dead_letters() == []
    assert not store.get("k/1").exists
    journal.close()


@pytest.mark.parametrize("arrived", [True, False])
def test_a_restart_sends_the_noted_batch_under_its_name(
    store: CountingStore, tmp_path: Path, arrived: bool
) -> None:
    name = "ab" * 16
    if arrived:
        store.commit([*sets(3), marker_write(name, sets(3))])
    journal = left_behind(tmp_path, sets(3), name)
    with batching(store, journal) as batcher:
        batcher.start()
        assert batcher.overlay(store.get("k/2")).data == {"n": 2}
        batcher._pending._check()
        batcher.write([Merge("k/2", {"after": 1})])
        batcher.flush()
    journal.sync()
    assert_once(store, [*sets(3), Merge("k/2", {"after": 1})])
    named = [attempt for attempt in store.attempts if marks(attempt) == [name]]
    assert [len(attempt) for attempt in named] == [4, 4, 1] if arrived else [4]
    assert journal.recover() == []
    assert store.markers() == []
    journal.close()


def test_a_restart_deletes_the_markers_that_a_crash_left(
    store: CountingStore, tmp_path: Path
) -> None:
    name = "cd" * 16
    journal = left_behind(tmp_path, sets(2), name)
    store.commit([*sets(2), marker_write(name, sets(2))])
    journal.acknowledge([1, 2], name, 0.0)
    journal.close()
    journal = Journal(tmp_path / "writes.journal")
    assert journal.recover_batches() == ([], [(name, 0.0)])
    assert store.markers() == [marker_path(name)]
    with batching(store, journal) as batcher:
        batcher.start()
    journal.sync()
    assert store.markers() == []
    assert journal.recover_batches() == ([], [])
    assert_once(store, sets(2))
    journal.close()


def test_a_restart_that_is_refused_bisects_under_new_names(
    store: CountingStore, tmp_path: Path
) -> None:
    name = "ef" * 16
    writes: list[Operation] = [*sets(3), Update("k/none", {"n": 1})]
    journal = left_behind(tmp_path, writes, name)
    with batching(store, journal, marker_grace_s=LONG) as batcher:
        batcher.flush()
        assert store.get(marker_path(name)).to_dict()["state"] == "void"  # type: ignore[index]
    assert_once(store, sets(3))
    assert [letter.operation.path for letter in journal.dead_letters()] == ["k/none"]
    journal.close()


def test_the_flushing_thread_fails_between_the_answer_and_its_note(
    store: CountingStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with batching(store, journal) as batcher:
        real, calls = batcher._flusher._tell, []

        def broken(*args: Any) -> None:
            calls.append(args)
            if len(calls) == 1:
                raise MemoryError("at a bad moment")
            real(*args)

        monkeypatch.setattr(batcher._flusher, "_tell", broken)
        batcher.write(sets(3), until="store", deadline=deadline_in(20))
    assert_once(store, sets(3))


# Markers go when they may.


def test_the_bin_waits_for_grace_and_company() -> None:
    clock = FakeClock(100.0)
    markers = MarkerBin(clock)
    assert markers.due_at() is None
    markers.add("a", None, 0.0)
    markers.add("late", None, 60.0)
    assert markers.due_at() == 101.0
    assert markers.take(10) == {None: ["a"]}
    assert not markers.has_due()
    assert markers.due_at() == 161.0
    for n in range(100):
        markers.add(f"n{n}", None, 0.0)
    assert markers.due_at() == 100.0, "many at once are not kept waiting"
    assert len(markers.take(7)[None]) == 7
    assert len(markers) == 94


def test_many_markers_are_due_for_who_read_the_clock_before() -> None:
    ticks = itertools.count(100)
    markers = MarkerBin(lambda: float(next(ticks)))
    for n in range(100):
        markers.add(f"n{n}", None, 0.0)
    now = float(next(ticks))
    due = markers.due_at()
    assert due is not None
    assert due <= now, "else the flusher waits no time, again and again"


def test_markers_are_deleted_while_it_runs_and_after_a_failure(
    store: CountingStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beastmode.batcher.flusher._SWEEP_AGAIN_S", 0.0)
    monkeypatch.setattr("beastmode.batcher.markers._LINGER_S", 0.0)
    errors: list[BaseException] = []
    gone = threading.Event()

    def hook(operations: Sequence[Operation]) -> None:
        if operations[0].path.startswith(MARKERS):
            if not errors:
                raise StoreUnavailable("down")
            gone.set()

    store.before = hook
    with batching(store, journal, on_error=errors.append) as batcher:
        batcher.write(sets(3), until="store")
        assert gone.wait(10)
        store.before = None
        batcher.flush()
    assert [type(error) for error in errors] == [StoreUnavailable]
    assert store.markers() == []


def test_markers_have_a_turn_while_there_is_always_something_to_flush(
    store: CountingStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beastmode.batcher.markers._LINGER_S", 0.0)
    with batching(store, journal, max_ops=1) as batcher:
        gate = Gate()
        store.before = gate
        batcher.write(sets(100))
        assert gate.arrived.wait(10)
        gate.open.set()
        batcher.flush()
        sweeps = [
            at
            for at, commit in enumerate(store.commits)
            if all(isinstance(operation, Delete) for operation in commit)
        ]
    assert len(sweeps) >= 3, "of 100 commits in a row"
    assert max(after - before for before, after in itertools.pairwise([0, *sweeps])) <= 26
    assert store.markers() == []


def test_markers_wait_while_commits_fail(
    store: CountingStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try to delete some would take the time of a try to commit."""
    monkeypatch.setattr("beastmode.batcher.markers._LINGER_S", 0.0)
    monkeypatch.setattr("beastmode.batcher.flusher._SWEEP_TURN", 1)
    tried: list[str] = []
    with batching(store, journal) as batcher:

        def down(operations: Sequence[Operation]) -> None:
            tried.append(operations[0].path)
            if len(tried) == 1:
                with batcher._changed:
                    batcher._flusher.markers.add("cd" * 16, None, 0.0)
            if len(tried) < 7:
                raise StoreUnavailable("down")

        store.before = down
        batcher.write([Set("k/1", {})], until="store", deadline=deadline_in(20))
    assert tried[:7] == ["k/1"] * 7


# Limits and settings.


class Limit:
    max_operations = 5
    max_bytes = 1000


def size_of(operations: Sequence[Operation]) -> int:
    return sum(200 if operation.path.startswith("big/") else 10 for operation in operations)


def test_commits_keep_to_the_stores_limits(store: CountingStore, journal: Journal) -> None:
    store.commit_limits = Limit()  # type: ignore[attr-defined]
    store.commit_size = size_of  # type: ignore[attr-defined]
    with batching(store, journal) as batcher:
        batcher.write(sets(11))
        batcher.write([Set(f"big/{n}", {"n": n}) for n in range(4)])
        batcher.flush()
    writes = [commit for commit in store.commits if len(marks(commit))]
    assert max(len(commit) for commit in writes) == 5, "marker included"
    sizes = [size_of(commit[:-1]) for commit in writes]
    assert 200 < max(sizes) <= 488, "of 1000 bytes, 512 are set aside for the marker"


def test_callers_are_not_held_up_while_a_batch_is_encoded(
    store: CountingStore, journal: Journal
) -> None:
    measuring, go_on = threading.Event(), threading.Event()

    def measure(operations: Sequence[Operation]) -> int:
        if threading.current_thread().name == "beastmode-batcher":
            measuring.set()
            assert go_on.wait(10)
        return 10

    store.commit_limits = Limit()  # type: ignore[attr-defined]
    store.commit_size = measure  # type: ignore[attr-defined]
    with batching(store, journal, max_ops=4) as batcher:
        batcher.write(sets(4))
        assert measuring.wait(10)
        done = threading.Event()

        def use() -> None:
            batcher.write([Set("k/other", {})])
            assert batcher.overlay(store.get("k/0")).data == {"n": 0}
            assert batcher.get_stats().pending == 5
            done.set()

        threading.Thread(target=use, daemon=True).start()
        assert done.wait(10), "somebody held the lock"
        with batcher._changed:
            batcher._pending._check()
        go_on.set()
        batcher.flush()
    assert_once(store, [*sets(4), Set("k/other", {})])


def test_an_operation_that_no_commit_can_hold_is_refused_to_its_caller(
    store: CountingStore, journal: Journal
) -> None:
    store.commit_limits = Limit()  # type: ignore[attr-defined]
    store.commit_size = lambda operations: 1001  # type: ignore[attr-defined]
    with batching(store, journal) as batcher:
        with pytest.raises(RequestError, match=r"'k/1', takes 1001 bytes .* at most 1000"):
            batcher.write([Set("k/1", {"n": 1}), Set("k/2", {})])
        assert batcher.get_stats().pending == 0
    assert store.attempts == []
    assert journal.recover() == []


def test_a_full_buffer_raises_at_once_where_asked(store: CountingStore, journal: Journal) -> None:
    store.before = store.lose
    with batching(store, journal, max_pending_ops=3, when_full="raise") as batcher:
        batcher.write(sets(3))
        with pytest.raises(BufferFullError, match="no room for 1 operations"):
            batcher.write([Set("k/9", {})], deadline=deadline_in(LONG))
        store.before = None
        batcher.flush()
        batcher.write([Set("k/9", {})])


@pytest.mark.parametrize(
    "setting", [{"markers": "never"}, {"when_full": True}, {"marker_grace_s": -1}]
)
def test_settings_are_checked(store: CountingStore, setting: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        BeastModeBatcher(store, None, **setting)


@pytest.mark.parametrize("error", [StoreTimeout("late"), StoreUnavailable("cut")])
def test_a_direct_commit_without_an_answer_says_so(store: CountingStore, error: Exception) -> None:
    store.after = Failing(error)
    unanswered = pytest.raises(type(error), match="may be committed or not")
    with batching(store, None, mode="write-through") as batcher, unanswered:
        batcher.write([Set("k/1", {"n": 1})])
    assert store.get("k/1").exists


@pytest.mark.parametrize(
    "error", [BreakerOpen("not asked"), StoreUnavailable("refused before it was sent")]
)
def test_a_store_that_certainly_has_it_not_leaves_no_doubt(
    store: CountingStore, journal: Journal, error: StoreUnavailable
) -> None:
    """The next refusal is then final, and its marker need not stay."""
    error.__dict__["maybe_applied"] = False
    store.before = Failing(error)
    with batching(store, journal, marker_grace_s=LONG) as batcher:
        batcher.write([Update("k/none", {"n": 1}), *sets(1)])
        batcher.flush()
    assert store.markers() == []
    assert_once(store, sets(1))


def test_the_limits_are_seen_through_the_wrappers(store: CountingStore) -> None:
    wrapped = GuardedStore(MeteredStore(store, Meter()), Breaker())
    assert Limits(wrapped).max_operations is None
    store.commit_limits = Limit()  # type: ignore[attr-defined]
    store.commit_size = size_of  # type: ignore[attr-defined]
    assert Limits(wrapped).oversize(Set("big/1", {}), 1000) is None
    assert Limits(wrapped).max_operations == 5
