"""The batcher over a real store and a real journal: acknowledgement, order, visibility, life."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.batcher.waiting import ThreadWaiter
from beastmode.errors import (
    BufferFullError,
    ClosedError,
    ConfigError,
    DocumentMissing,
    JournalFull,
    PreconditionFailed,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.journal import Journal
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Document,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
)
from layer.faulty_store import Failing, FaultyStore, Gate
from support import FakeClock

Make = Callable[..., BeastModeBatcher]
LONG = 3600.0  # a delay that never comes: only what the test asks for is flushed


@pytest.fixture
def make(store: FaultyStore) -> Iterator[Make]:
    """Make batchers that the test need not close; what they hold at its end is thrown away."""
    made: list[BeastModeBatcher] = []

    def build(*args: Any, **kwargs: Any) -> BeastModeBatcher:
        kwargs.setdefault("max_delay_s", LONG)
        made.append(BeastModeBatcher(store, *args, **kwargs))
        return made[-1]

    yield build
    store.before = store.after = None
    for batcher in made:
        with contextlib.suppress(StoreTimeout):
            batcher.close(deadline_in(5))
    assert not [t for t in threading.enumerate() if t.name == "beastmode-batcher"]


def visible(batcher: BeastModeBatcher, store: FaultyStore, path: str) -> Any:
    return batcher.overlay(store.get(path)).data


# Interrupts.


@pytest.mark.parametrize("came", [False, True], ids=["no room yet", "room at that moment"])
def test_an_interrupted_wait_for_room_gives_it_back(
    make: Make, store: FaultyStore, journal: Journal, monkeypatch: pytest.MonkeyPatch, came: bool
) -> None:
    gate = store.before = Gate()
    batcher = make(journal, max_pending_ops=1)
    batcher.write([Set("k/1", {})])
    wait = ThreadWaiter.wait

    def interrupted(waiter: ThreadWaiter, until: float) -> bool:
        monkeypatch.setattr(ThreadWaiter, "wait", wait)
        if came:
            gate.open.set()
            assert wait(waiter, deadline_in(10))
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadWaiter, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batcher.write([Set("k/2", {})], deadline=deadline_in(30))
    gate.open.set()
    batcher.write([Set("k/3", {})], deadline=deadline_in(10))
    batcher.close(deadline_in(10))
    assert not store.get("k/2").exists
    assert store.get("k/3").exists


# When a batch is due.


def test_a_write_is_acknowledged_by_the_journal_and_seen_before_the_store_has_it(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    batcher = make(journal)
    assert not batcher.has_pending
    assert batcher.write([Set("users/1", {"name": "a"})]) is None
    assert [op for _, op in journal.recover()] == [Set("users/1", {"name": "a"})]
    assert store.attempts == []
    assert batcher.has_pending
    assert visible(batcher, store, "users/1") == {"name": "a"}
    assert batcher.pending("users/1") == [Set("users/1", {"name": "a"})]
    assert batcher.pending_in("users")
    assert not batcher.pending_in("groups")
    batcher.flush()
    assert store.get("users/1").data == {"name": "a"}
    assert batcher.pending("users/1") == []
    assert not batcher.pending_in("users")
    journal.sync()
    assert journal.recover() == []


def test_flush_on_count(make: Make, store: FaultyStore, journal: Journal) -> None:
    batcher = make(journal, max_ops=10)
    committed = threading.Event()
    store.after = lambda operations: committed.set()
    for n in range(9):
        batcher.write([Set(f"k/{n}", {"n": n})])
    assert not committed.is_set()
    batcher.write([Set("k/9", {"n": 9})])
    assert committed.wait(10)
    batcher.flush()
    assert [len(commit) for commit in store.commits] == [10]


def test_flush_on_bytes_and_commits_below_that_size(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    batcher = make(journal, max_bytes=10_000)
    committed = threading.Event()
    store.after = lambda operations: committed.set()
    batcher.write([Set("k/1", {"text": "x" * 4000})])
    assert not committed.is_set()
    batcher.write([Set(f"k/{n}", {"text": "x" * 4000}) for n in range(2, 8)])
    assert committed.wait(10)
    batcher.flush()
    assert [len(commit) for commit in store.commits] == [2, 2, 2, 1]
    batcher.write([Set("k/9", {"text": "x" * 50_000})])  # too large for any limit: alone
    batcher.flush()
    assert store.get("k/9").exists


def test_flush_on_age(make: Make, store: FaultyStore, clock: FakeClock) -> None:
    batcher = make(max_delay_s=1.0, timer=clock)
    committed = threading.Event()
    store.after = lambda operations: committed.set()
    batcher.write([Set("k/1", {}), Set("k/2", {})])
    clock.advance(0.9)
    batcher.configure()  # wakes the flushing thread, which reads the clock
    batcher.write([Set("k/3", {})])
    assert not committed.is_set()
    assert batcher.get_stats().oldest_age_s == pytest.approx(0.9)
    clock.advance(0.1)
    batcher.configure()
    assert committed.wait(10)
    batcher.flush()
    assert [len(commit) for commit in store.commits] == [3]
    assert batcher.get_stats().oldest_age_s == 0.0


def test_real_time_flushes_too(make: Make, store: FaultyStore) -> None:
    batcher = make(max_delay_s=0.05)
    committed = threading.Event()
    store.after = lambda operations: committed.set()
    batcher.write([Set("k/1", {})])
    assert committed.wait(10)


def test_until_store_returns_versions_and_flushes_at_once(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    batcher = make(journal)
    versions = batcher.write([Set("k/1", {"n": 1}), Merge("k/2", {"n": 2})], until="store")
    assert versions == [store.get("k/1").version, store.get("k/2").version]


def test_configure_is_all_or_nothing(make: Make, store: FaultyStore) -> None:
    batcher = make()
    batcher.write([Set(f"k/{n}", {}) for n in range(5)])
    with pytest.raises(ConfigError, match="max_delay_s"):
        batcher.configure(max_ops=5, max_delay_s=-1.0)
    assert not store.attempts
    batcher.configure(max_ops=5)
    batcher.flush()
    assert store.commits


# Merging.


def test_writes_to_one_document_become_one_with_one_outcome_each(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    outcomes: list[tuple[Operation, int]] = []
    batcher = make(journal, on_committed=lambda op, version: outcomes.append((op, version)))
    writes: list[Operation] = [
        Set("k/1", {"a": 1, "b": 1}),
        Merge("k/1", {"b": DELETE_FIELD, "c": {"d": 1}}),
        Update("k/1", {"c.e": 2}),
    ]
    for write in writes:
        batcher.write([write])
    assert visible(batcher, store, "k/1") == {"a": 1, "c": {"d": 1, "e": 2}}
    batcher.flush()
    assert store.commits == [[Set("k/1", {"a": 1, "c": {"d": 1, "e": 2}})]]
    version = store.get("k/1").version
    assert outcomes == [(write, version) for write in writes]
    report = batcher.get_stats()
    assert (report.accepted, report.committed, report.written, report.coalesced) == (3, 3, 1, 2)
    journal.sync()
    assert journal.get_stats().records == 0


def test_what_cannot_be_merged_keeps_its_order(make: Make, store: FaultyStore) -> None:
    batcher = make()
    writes: list[Operation] = [
        Merge("k/1", {"a": 1}),
        Update("k/1", {"a": 2}),
        Merge("k/1", {"b": 3}),
        Delete("k/1"),
        Merge("k/1", {"c": 4}),
    ]
    batcher.write(writes)
    assert visible(batcher, store, "k/1") == {"c": 4}
    batcher.flush()
    assert store.get("k/1").data == {"c": 4}


def test_the_caller_may_change_his_own_data_afterwards(make: Make, store: FaultyStore) -> None:
    batcher = make()
    data: dict[str, Any] = {"list": [1], "map": {"a": 1}}
    batcher.write([Set("k/1", data)])
    data["list"].append(2)
    data["map"]["a"] = 2
    batcher.flush()
    assert store.get("k/1").data == {"list": [1], "map": {"a": 1}}


# Read your writes.


def test_an_operation_stays_visible_until_committed_and_told(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    gate, telling = Gate(), Gate()
    old = store.get("k/1")
    batcher = make(journal, on_committed=lambda op, version: telling([op]))
    store.before = gate
    batcher.write([Set("k/1", {"n": 1})])
    flusher = threading.Thread(target=batcher.flush)
    flusher.start()
    assert gate.arrived.wait(10)  # taken from the buffer, not committed
    assert batcher.pending("k/1") == [Set("k/1", {"n": 1})]
    assert batcher.overlay(old).data == {"n": 1}
    batcher.write([Merge("k/1", {"m": 2})])  # newer than what is on its way
    assert batcher.overlay(old).data == {"n": 1, "m": 2}
    store.before = None
    gate.open.set()
    assert telling.arrived.wait(10)  # committed, and the cache does not know yet
    assert store.get("k/1").data == {"n": 1}
    assert batcher.pending("k/1") == [Merge("k/1", {"m": 2})]
    assert batcher.overlay(store.get("k/1")).data == {"n": 1, "m": 2}
    assert batcher.overlay(old).data == {"n": 1, "m": 2}  # such as the cache may hold
    store.inner.commit([Set("k/1", {"n": 5})])  # newer: what was committed must not hide it
    assert batcher.overlay(store.get("k/1")).data == {"n": 5, "m": 2}
    telling.open.set()
    flusher.join(10)
    batcher.flush()
    assert store.get("k/1").data == {"n": 5, "m": 2}


def test_a_reader_who_asked_the_store_before_the_commit_sees_the_write(
    make: Make, store: FaultyStore, clock: FakeClock
) -> None:
    batcher = make(timer=clock, read_grace_s=5.0)
    store.inner.commit([Set("k/1", {"n": 0})])
    before = store.get("k/1")
    batcher.write([Merge("k/1", {"a": 1})], until="store")
    between = store.get("k/1")
    batcher.write([Update("k/1", {"b": 2})], until="store")
    assert not batcher.pending("k/1")
    assert batcher.overlay(before).data == {"n": 0, "a": 1, "b": 2}
    assert batcher.overlay(between).data == {"n": 0, "a": 1, "b": 2}
    current = store.get("k/1")
    assert batcher.overlay(current) is current
    store.inner.commit([Set("k/1", {"foreign": True})])
    foreign = store.get("k/1")
    assert batcher.overlay(foreign) is foreign
    assert batcher.has_pending
    clock.advance(5.0)
    batcher.write([Set("k/2", {})], until="store")
    assert batcher.overlay(before) is before
    clock.advance(5.0)
    batcher.configure()
    batcher.write([], until="store")
    deadline = deadline_in(10)
    while batcher.has_pending and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not batcher.has_pending


def test_overlay_of_what_the_store_will_refuse(make: Make, store: FaultyStore) -> None:
    batcher = make()
    batcher.write([Update("k/1", {"a": 1})])
    absent = store.get("k/1")
    assert batcher.overlay(absent) is absent
    assert batcher.pending("k/1") == [Update("k/1", {"a": 1})]


def test_overlay_makes_read_only_documents(make: Make, store: FaultyStore) -> None:
    batcher = make()
    batcher.write([Merge("k/1", {"a": {"b": [1]}})])
    seen = batcher.overlay(Document("k/1", {"a": {"c": 1}}, 7))
    assert seen == Document("k/1", {"a": {"b": [1], "c": 1}}, 7)
    with pytest.raises(TypeError, match="read-only"):
        seen.data["a"]["b"] = 2  # type: ignore[index]


# One commit: preconditions and write-through.


def test_a_precondition_is_committed_after_what_waits_for_its_document(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    batcher = make(journal)
    batcher.write([Set("k/1", {"n": 1})])
    batcher.write([Set("other/1", {})])
    (version,) = batcher.write([Merge("k/1", {"m": 2}, Precondition(exists=True))]) or [0]
    assert store.get("k/1") == Document("k/1", {"n": 1, "m": 2}, version)
    with pytest.raises(PreconditionFailed):
        batcher.write([Delete("k/1", Precondition(version=version - 1))])
    batcher.write([Delete("k/1", Precondition(version=version))])
    assert not store.get("k/1").exists
    journal.sync()
    assert journal.get_stats().appended == 2, "an operation with a precondition is never journaled"


def test_a_precondition_alone_does_not_flush_other_documents(
    make: Make, store: FaultyStore
) -> None:
    batcher = make()
    batcher.write([Set("other/1", {})])
    batcher.write([Set("k/1", {}, Precondition(exists=False))])
    assert [[op.path for op in commit] for commit in store.commits] == [["k/1"]]


def test_writes_of_several_operations_with_a_precondition_are_atomic(
    make: Make, store: FaultyStore
) -> None:
    told: list[tuple[str, str]] = []
    batcher = make(
        on_accepted=lambda op: told.append(("accepted", op.path)),
        on_committed=lambda op, version: told.append(("committed", op.path)),
        on_failed=lambda op, error: told.append(("failed", op.path)),
    )
    with pytest.raises(PreconditionFailed):
        batcher.write([Set("k/1", {}), Set("k/2", {}, Precondition(exists=True))])
    assert not store.get("k/1").exists
    assert told == [("accepted", "k/1"), ("accepted", "k/2"), ("failed", "k/1"), ("failed", "k/2")]


def test_a_direct_commit_gets_the_stores_error(make: Make, store: FaultyStore) -> None:
    batcher = make()
    store.before = Failing(StoreUnavailable("down"))
    with pytest.raises(StoreUnavailable, match="down"):
        batcher.write([Set("k/1", {}, Precondition(exists=False))])
    assert batcher.write([Set("k/1", {}, Precondition(exists=False))])


def test_a_direct_commit_behind_what_cannot_be_flushed(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    batcher = make(journal)
    batcher.write([Set("k/1", {"n": 1})])
    store.before = Failing(StoreUnavailable("down"))
    with pytest.raises(StoreUnavailable, match=r"earlier writes of \['k/1'\].*down"):
        batcher.write([Merge("k/1", {"m": 1}, Precondition(exists=True))])
    batcher.flush()
    assert store.get("k/1").data == {"n": 1}


def test_a_direct_commit_that_waits_too_long_is_not_carried_out(
    make: Make, store: FaultyStore
) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(mode="write-through")
    first = threading.Thread(target=lambda: batcher.write([Set("k/1", {})]))
    first.start()
    assert gate.arrived.wait(10)
    with pytest.raises(StoreTimeout, match="was not committed and will not be"):
        batcher.write([Set("k/2", {})], deadline=deadline_in(0.05))
    gate.open.set()
    first.join(10)
    batcher.write([Set("k/3", {})])
    assert not store.get("k/2").exists


def test_write_through_commits_whole_writes_and_shares_commits(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(journal, mode="write-through")
    versions: dict[int, list[int] | None] = {}

    def write(n: int) -> None:
        versions[n] = batcher.write([Set(f"k/{n}", {"n": n}), Set(f"l/{n}", {"n": n})])

    writers = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    writers[0].start()
    assert gate.arrived.wait(10)
    for writer in writers[1:]:
        writer.start()
    while len(batcher._flusher.direct) < 5:
        time.sleep(0.001)
    gate.open.set()
    for writer in writers:
        writer.join(10)
    assert [len(commit) for commit in store.commits] == [2, 10]
    for n in range(6):
        assert versions[n] == [store.get(f"k/{n}").version, store.get(f"l/{n}").version]
    assert journal.get_stats().appended == 0


def test_write_through_refusal_hits_one_writer_alone(make: Make, store: FaultyStore) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(mode="write-through")
    outcomes: dict[int, object] = {}

    def write(n: int) -> None:
        try:
            operation = Update(f"k/{n}", {"n": n}) if n == 3 else Set(f"k/{n}", {"n": n})
            outcomes[n] = batcher.write([Set(f"l/{n}", {}), operation])
        except DocumentMissing as error:
            outcomes[n] = error

    writers = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    writers[0].start()
    assert gate.arrived.wait(10)
    for writer in writers[1:]:
        writer.start()
    while len(batcher._flusher.direct) < 5:
        time.sleep(0.001)
    gate.open.set()
    for writer in writers:
        writer.join(10)
    assert [n for n, outcome in outcomes.items() if isinstance(outcome, Exception)] == [3]
    assert not store.get("l/3").exists
    assert all(store.get(f"l/{n}").exists for n in (0, 1, 2, 4, 5))


# Room.


def test_a_full_buffer_waits_and_then_refuses(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(journal, max_pending_ops=3)
    batcher.write([Set("k/1", {}), Set("k/2", {})])
    with pytest.raises(BufferFullError, match="at most max_pending_ops = 3 operations, got 4"):
        batcher.write([Set("k/9", {})] * 4)
    started = time.monotonic()
    with pytest.raises(BufferFullError, match="2 operations of .* bytes wait for the store"):
        batcher.write([Set("k/3", {}), Set("k/4", {})], deadline=deadline_in(0.1))
    assert 0.1 <= time.monotonic() - started < 2.0
    batcher.write([Set("k/3", {})])
    done = threading.Event()

    def wait_for_room() -> None:
        batcher.write([Set("k/5", {})], deadline=deadline_in(20))
        done.set()

    waiter = threading.Thread(target=wait_for_room)
    waiter.start()
    assert not done.wait(0.05)
    flusher = threading.Thread(target=batcher.flush)
    flusher.start()
    gate.open.set()
    assert done.wait(10)
    waiter.join(10)
    flusher.join(10)
    batcher.flush()
    assert not store.get("k/4").exists
    assert store.get("k/5").exists


def test_bytes_are_bounded_too(make: Make, store: FaultyStore) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(max_pending_bytes=10_000)
    batcher.write([Set("k/1", {"text": "x" * 50_000})])  # alone it may
    with pytest.raises(BufferFullError, match="max_pending_bytes = 10000"):
        batcher.write([Set("k/2", {})], deadline=deadline_in(0.02))
    gate.open.set()
    batcher.write([Set("k/2", {})])


def test_who_waits_for_room_has_the_buffer_flushed(make: Make, store: FaultyStore) -> None:
    batcher = make(max_pending_ops=2)  # less than a batch, and no age: nothing else would flush
    for n in range(10):
        batcher.write([Set(f"k/{n}", {"n": n})])
    assert store.get("k/7").exists


def test_a_full_journal_acknowledges_nothing_and_recovers(
    make: Make, store: FaultyStore, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "small", max_bytes=512 * 1024)
    accepted: list[str] = []
    batcher = make(journal, on_accepted=lambda op: accepted.append(op.path))
    written: list[str] = []
    with pytest.raises(JournalFull):
        for n in range(100):
            batcher.write([Set(f"k/{n}", {"text": "x" * 20_000})])
            written.append(f"k/{n}")
    assert accepted == written
    assert not batcher.pending(f"k/{len(written)}")
    batcher.flush()
    journal.sync()
    batcher.write([Set("k/last", {"text": "x" * 20_000})])
    batcher.close()
    assert all(store.get(path).exists for path in [*written, "k/last"])
    journal.close()


# Its life.


def test_bad_input_changes_nothing(make: Make, store: FaultyStore) -> None:
    batcher = make()
    good = Set("k/1", {})
    for operations, options, text in [
        ([good, "k/2"], {}, "operation 1 must be a Set, Merge, Update or Delete, got 'k/2'"),
        ([good, Set("k/2", {"x": {1, 2}})], {}, "field 'x' of document 'k/2'"),
        ([good], {"until": "disk"}, "until must be 'journal' or 'store', got 'disk'"),
        ([good], {"deadline": float("nan")}, "deadline must be seconds"),
        ([good], {"deadline": True}, "deadline must be seconds"),
    ]:
        with pytest.raises(RequestError, match=text):
            batcher.write(operations, **options)
    assert not batcher.has_pending
    assert batcher.get_stats().accepted == 0
    assert batcher.write([]) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_ops", 0),
        ("max_ops", True),
        ("max_delay_s", -0.1),
        ("max_delay_s", float("nan")),
        ("max_bytes", 0),
        ("max_pending_ops", 1.5),
        ("max_pending_bytes", -1),
        ("mode", "write-around"),
        ("commit_deadline_s", 0.0),
        ("read_grace_s", float("inf")),
    ],
)
def test_settings_are_checked(store: FaultyStore, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        BeastModeBatcher(store, **{name: value})


def test_close_flushes_and_refuses_what_comes_later(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    batcher = make(journal)
    batcher.write([Set(f"k/{n}", {"n": n}) for n in range(1200)])
    batcher.close()
    batcher.close()
    assert store.get("k/1199").data == {"n": 1199}
    for use in (
        lambda: batcher.write([Set("k/1", {})]),
        batcher.flush,
        batcher.start,
        lambda: batcher.configure(max_ops=1),
    ):
        with pytest.raises(ClosedError):
            use()
    journal.sync()
    assert journal.get_stats().records == 0
    assert not batcher.get_stats().running


def test_close_wakes_those_who_wait_for_room(make: Make, store: FaultyStore) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(max_pending_ops=1)
    batcher.write([Set("k/1", {})])
    errors: list[BaseException] = []

    def write() -> None:
        try:
            batcher.write([Set("k/2", {})], deadline=deadline_in(30))
        except ClosedError as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    while not batcher._pending._queue:
        time.sleep(0.001)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    writer.join(10)
    assert "not accepted" in str(errors[0])
    gate.open.set()
    closer.join(10)
    assert store.get("k/1").exists
    assert not store.get("k/2").exists


def test_close_with_unflushed_writes_names_them_and_the_next_start_replays_them(
    make: Make, store: FaultyStore, tmp_path: Path
) -> None:
    place = tmp_path / "j"
    journal = Journal(place)
    store.inner.commit([Set("k/1", {"n": 0})])

    def down(operations: object) -> None:
        raise StoreUnavailable("down for the night")

    store.before = down
    outcomes: list[Operation] = []
    batcher = make(
        journal,
        on_committed=lambda op, version: outcomes.append(op),
        on_failed=lambda op, error: outcomes.append(op),
    )
    batcher.write([Set("k/1", {"n": 1}), Set("k/2", {"n": 2})])
    batcher.write([Merge("k/1", {"m": 3})])
    with pytest.raises(StoreTimeout, match="closed with 3 operations") as caught:
        batcher.close(deadline_in(0.2))
    assert "next start" in str(caught.value)
    assert "down for the night" in str(caught.value)
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    assert outcomes == []
    journal.close()

    gate = Gate()
    store.before = gate
    journal = Journal(place)
    accepted: list[Operation] = []
    committed: list[Operation] = []
    again = make(
        journal,
        on_accepted=accepted.append,
        on_committed=lambda op, version: committed.append(op),
    )
    again.start()
    assert [op.path for op in accepted] == ["k/1", "k/2", "k/1"]
    assert visible(again, store, "k/1") == {"n": 1, "m": 3}  # before any commit
    assert visible(again, store, "k/2") == {"n": 2}
    again.write([Merge("k/1", {"m": 4})])
    assert visible(again, store, "k/1") == {"n": 1, "m": 4}
    gate.open.set()
    again.flush()
    assert store.get("k/1").data == {"n": 1, "m": 4}
    assert store.get("k/2").data == {"n": 2}
    assert [op for op in committed if op.path == "k/1"] == [
        Set("k/1", {"n": 1}),
        Merge("k/1", {"m": 3}),
        Merge("k/1", {"m": 4}),
    ]
    assert again.get_stats().replayed == 3
    again.close()
    assert journal.recover() == []
    journal.close()


def test_close_without_a_journal_tells_what_is_lost(make: Make, store: FaultyStore) -> None:
    def down(operations: object) -> None:
        raise StoreUnavailable("down")

    store.before = down
    failed: list[tuple[str, str]] = []
    batcher = make(on_failed=lambda op, error: failed.append((op.path, type(error).__name__)))
    batcher.write([Set("k/1", {}), Set("k/2", {})])
    with pytest.raises(StoreTimeout, match="2 operations .* lost, for there is no journal"):
        batcher.close(deadline_in(0.1))
    assert failed == [("k/1", "StoreTimeout"), ("k/2", "StoreTimeout")]
    assert not batcher.has_pending


def test_close_with_a_stuck_store_is_bounded(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(journal)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            batcher.write([Set("k/2", {})], until="store", deadline=deadline_in(30))
        except StoreTimeout as error:
            errors.append(error)

    batcher.write([Set("k/1", {})])
    waiter = threading.Thread(target=wait)
    waiter.start()
    assert gate.arrived.wait(10)
    started = time.monotonic()
    with pytest.raises(StoreTimeout, match="2 operations .* still busy with a commit"):
        batcher.close(deadline_in(0.1))
    assert time.monotonic() - started < 3
    waiter.join(10)
    assert "closed with 2" in str(errors[0])
    assert len(journal.recover()) == 2
    gate.open.set()  # a commit that comes through late is still noted
    for thread in threading.enumerate():
        if thread.name == "beastmode-batcher":
            thread.join(10)
    journal.sync()
    assert len(journal.recover()) < 2


def test_flush_at_its_deadline_names_what_is_left(make: Make, store: FaultyStore) -> None:
    gate = Gate()
    store.before = gate
    batcher = make()
    batcher.write([Set("k/1", {}), Set("k/2", {})])
    with pytest.raises(StoreTimeout, match="2 operations are not in the store"):
        batcher.flush(deadline_in(0.05))
    gate.open.set()
    batcher.flush()
    assert store.get("k/2").exists


def test_waiting_for_the_store_in_vain_leaves_the_write_accepted(
    make: Make, store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    batcher = make(journal)
    with pytest.raises(StoreTimeout, match="is accepted and will be committed later"):
        batcher.write([Set("k/1", {})], until="store", deadline=deadline_in(0.05))
    gate.open.set()
    batcher.flush()
    assert store.get("k/1").exists


def test_callbacks_may_raise_and_may_not_write(make: Make, store: FaultyStore) -> None:
    errors: list[BaseException] = []

    def write_again(operation: Operation, version: int) -> None:
        for use in (
            lambda: batcher.write([Set("k/2", {})], until="store"),
            batcher.flush,
            batcher.close,
        ):
            with pytest.raises(RequestError, match="would wait for itself"):
                use()
        raise KeyError("from a callback")

    batcher = make(on_committed=write_again, on_error=errors.append)
    batcher.write([Set("k/1", {})], until="store")
    assert [type(error) for error in errors] == [KeyError]
    assert batcher.get_stats().errors == 1
    batcher.write([Set("k/3", {})], until="store")


def test_context_managers(store: FaultyStore, journal: Journal) -> None:
    with BeastModeBatcher(store, journal, max_delay_s=LONG) as batcher:
        assert batcher.get_stats().running
        batcher.write([Set("k/1", {})])
    assert store.get("k/1").exists


def test_report(make: Make, store: FaultyStore, journal: Journal) -> None:
    batcher = make(journal)
    batcher.write([Set("k/1", {"text": "x" * 100}), Update("k/2", {"a": 1})])
    report = batcher.get_stats()
    assert (report.pending, report.accepted, report.journal_records) == (2, 2, 2)
    assert report.pending_bytes > 100
    assert report.journal_bytes > 0
    batcher.flush()
    journal.sync()
    report = batcher.get_stats()
    assert (report.pending, report.pending_bytes) == (0, 0)
    assert (report.committed, report.failed, report.journal_dead_letters) == (1, 1, 1)
    assert report.mode == "write-behind"
    assert report.flushes == 1


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork of a process with threads: the point
from beastmode.batcher import BeastModeBatcher
from beastmode.errors import ForkedError
from beastmode.journal import Journal
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Document, Set
from beastmode.stores.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1] + ".store")
journal = Journal(sys.argv[1])
batcher = BeastModeBatcher(store, journal, max_delay_s=3600)
batcher.write([Set("k/1", {"n": 1})])
batcher._changed.acquire()       # as if another thread held it at the fork
child = os.fork()
if child == 0:
    try:
        for use in (
            lambda: batcher.write([Set("k/1", {})]), batcher.flush, batcher.start,
            lambda: batcher.overlay(Document("k/1", None, 0)), batcher.get_stats,
            lambda: batcher.pending("k/1"), lambda: batcher.pending_in("k"),
        ):
            try:
                use()
            except ForkedError as error:
                assert str(os.getppid()) in str(error), error
            else:
                raise AssertionError("ForkedError expected")
        batcher.close()
        os._exit(0)
    except BaseException as error:
        print("child:", repr(error), flush=True)
        os._exit(1)
batcher._changed.release()
_, status = os.waitpid(child, 0)
assert status == 0, status
batcher.close()
assert store.get("k/1").data == {"n": 1}
journal.close()
store.close()
print("ok")
"""


@pytest.mark.skipif(os.name != "posix", reason="another operating system: it has no fork")
def test_after_a_fork(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "j")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr
