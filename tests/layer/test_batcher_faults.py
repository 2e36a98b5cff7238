"""The batcher over a store that fails: nothing lost, nothing overtaken, a poison fails alone."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.batcher.committing import Backoff, commit_in_order
from beastmode.batcher.failures import Failures
from beastmode.errors import (
    BreakerOpen,
    DocumentMissing,
    JournalFull,
    RequestError,
    StoreCorrupt,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.journal import Journal
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Delete, Merge, Operation, Set, Update
from beastmode.stores.firestore.errors import commit_failure
from layer.faulty_store import Failing, FaultyStore, Gate, batching
from support import FakeClock

# Failures that pass.


def test_an_unavailable_store_is_tried_again_until_it_answers(
    store: FaultyStore, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [StoreUnavailable(f"down {n}") for n in range(4)] + [StoreTimeout("late")]
    store.before = Failing(*failures)
    errors: list[BaseException] = []
    with batching(store, journal, on_error=errors.append) as batcher:
        batcher.write([Set("k/1", {"n": 1}), Set("k/2", {"n": 2})])
        batcher.flush()
        report = batcher.get_stats()
    assert [len(attempt) for attempt in store.attempts] == [2, 2, 2, 2, 2, 1, 1], "late: halved"
    assert store.get("k/2").data == {"n": 2}
    assert (report.retries, report.commits, report.failed, report.last_error) == (5, 2, 0, "")
    assert errors == failures
    assert caplog.text.count("will be repeated") == 1, "one outage, one warning"


def test_what_comes_during_an_outage_merges_and_keeps_its_order(
    store: FaultyStore, journal: Journal
) -> None:
    failed = threading.Event()

    def down(operations: Sequence[Operation]) -> None:
        failed.set()
        raise StoreUnavailable("down")

    store.before = down
    with batching(store, journal) as batcher:
        batcher.write([Merge("k/1", {"log": [1]}), Update("k/1", {"a": 1})])
        with pytest.raises(StoreTimeout, match="down"):
            batcher.flush(deadline_in(0.2))
        assert failed.is_set()
        for n in range(2, 50):
            batcher.write([Set("k/2", {"n": n}), Merge("k/1", {"log": [n]})])
        assert batcher.overlay(store.get("k/1")).data == {"log": [49], "a": 1}
        assert batcher.get_stats().last_error == "StoreUnavailable: down"
        store.before = None
        batcher.flush()
        report = batcher.get_stats()
    assert store.get("k/1").data == {"log": [49], "a": 1}
    assert store.get("k/2").data == {"n": 49}
    assert report.committed == 98
    assert report.written < 55
    journal.sync()
    assert journal.get_stats().records == 0


class _Answer(Exception):
    """What gRPC raises, as far as it is looked at."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = lambda: SimpleNamespace(name=code)
        self.details = lambda: details


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("NOT_FOUND", "The database (default) does not exist for project p"),
        ("FAILED_PRECONDITION", "not available for Firestore in Datastore Mode database x."),
        ("PERMISSION_DENIED", "Missing or insufficient permissions."),
    ],
)
def test_a_store_that_refuses_everything_costs_no_write(
    store: FaultyStore, journal: Journal, caplog: pytest.LogCaptureFixture, code: str, details: str
) -> None:
    wrong = 3

    def refuse(operations: Sequence[Operation]) -> None:
        nonlocal wrong
        if wrong:
            wrong -= 1
            raise commit_failure(_Answer(code, details), operations)

    store.inner.commit([Set(f"k/{n}", {}) for n in range(4)])
    store.before = refuse
    errors: list[BaseException] = []
    with batching(store, journal, on_error=errors.append) as batcher:
        batcher.write([Update(f"k/{n}", {"n": n}) for n in range(4)])
        batcher.flush()
        report = batcher.get_stats()
    assert [len(attempt) for attempt in store.attempts] == [4] * 4, "never taken apart"
    assert (report.failed, report.committed, report.retries) == (0, 4, 3)
    assert [type(error) for error in errors] == [StoreRefused] * 3
    assert journal.dead_letters() == []
    assert store.get("k/3").data == {"n": 3}
    assert caplog.text.count("refuses all commits; the writes are kept") == 1
    assert report.errors == 0, "no surprise: it is said what it is"


def test_a_commit_that_happened_although_it_timed_out(store: FaultyStore, journal: Journal) -> None:
    store.after = Failing(StoreTimeout("the answer was lost"))
    outcomes: list[Operation] = []
    with batching(store, journal, on_committed=lambda op, version: outcomes.append(op)) as batcher:
        writes = [Set("k/1", {"n": 1}), Update("k/1", {"m": 2}), Delete("k/2")]
        batcher.write(writes, until="store")
    assert store.get("k/1").data == {"n": 1, "m": 2}
    assert sorted(map(repr, outcomes)) == sorted(map(repr, writes)), "told once each"


@pytest.mark.parametrize(
    "error", [StoreCorrupt("broken page"), RuntimeError("a bug"), TypeError("another")]
)
def test_an_unexpected_failure_drops_nothing(
    store: FaultyStore, journal: Journal, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store.before = Failing(error, error)
    errors: list[BaseException] = []
    with batching(store, journal, on_error=errors.append) as batcher:
        batcher.write([Set("k/1", {"n": 1})])
        batcher.flush()
        assert batcher.get_stats().errors == 2
    assert errors == [error, error]
    assert "nothing is dropped" in caplog.text
    assert store.get("k/1").exists


def test_a_store_that_answers_nonsense(store: FaultyStore, journal: Journal) -> None:
    class Lying(FaultyStore):
        lies = 2

        def commit(self, operations: Any, *, deadline: float | None = None) -> list[int]:
            versions = super().commit(operations, deadline=deadline)
            self.lies -= 1
            return versions if self.lies < 0 else versions[:-1]

    with batching(Lying(store.inner), journal) as batcher:
        batcher.write([Set("k/1", {"n": 1}), Set("k/2", {})])
        batcher.flush()
        assert batcher.get_stats().errors == 2
    assert store.get("k/2").exists


def test_the_flushing_thread_survives_its_own_failure(
    store: FaultyStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with batching(store, journal) as batcher:
        flusher = batcher._flusher
        real, calls = flusher._tell, []

        def broken(*args: Any) -> None:
            calls.append(args)
            if len(calls) == 1:
                raise MemoryError("at a bad moment")
            real(*args)

        monkeypatch.setattr(flusher, "_tell", broken)
        batcher.write([Set("k/1", {"n": 1})], until="store")
        assert len(calls) == 2
        assert batcher.get_stats().errors == 1
    assert store.get("k/1").exists


def test_a_dead_flushing_thread_is_replaced(
    store: FaultyStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Suicide(BaseException):
        pass

    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    with batching(store, journal) as batcher:

        def die(operations: Sequence[Operation]) -> None:
            raise Suicide

        store.before = die
        batcher.write([Set("k/1", {"n": 1})])
        with pytest.raises(StoreTimeout):
            batcher.flush(deadline_in(0.2))
        assert not batcher.get_stats().running
        assert [args.exc_type for args in seen] == [Suicide]
        assert batcher.overlay(store.get("k/1")).data == {"n": 1}
        store.before = None
        batcher.write([Merge("k/1", {"m": 2})])
        assert batcher.get_stats().running
        batcher.flush()
    assert store.get("k/1").data == {"n": 1, "m": 2}


# Failures that last.


class Most(random.Random):
    """Draws the longest pause each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize("error", [StoreRefused("no permission"), RuntimeError("a bug")])
def test_pauses_after_an_error_that_lasts_grow_and_it_is_logged_once(
    store: FaultyStore, journal: Journal, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    failed = threading.Semaphore(0)

    def refuse(operations: Sequence[Operation]) -> None:
        failed.release()
        raise error

    store.before = refuse
    with batching(store, journal, timer=clock, rng=Most(), max_ops=1) as batcher:
        batcher.write([Set("k/1", {})])
        pauses = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0)
        for count, pause in enumerate(pauses, 1):
            assert failed.acquire(timeout=10)
            settle(batcher, count)
            clock.now += pause * 0.99
            wake(batcher)
            assert not failed.acquire(timeout=0.02), "too early"
            clock.now += pause * 0.02
            wake(batcher)
        assert failed.acquire(timeout=10)
        settle(batcher, 13)
        report = batcher.get_stats()
        assert (report.retries, report.failures_in_row) == (13, 13)
        told = [record for record in caplog.records if record.name.startswith("beastmode.batcher")]
        assert [record.levelname for record in told] == ["ERROR"], "once, not at each attempt"
        with pytest.raises(StoreTimeout):
            batcher.flush(deadline_in(0.1))
        assert failed.acquire(timeout=10), "who flushes may have put it right"
        store.before = None
        batcher.flush()
        assert batcher.get_stats().failures_in_row == 0
    assert store.get("k/1").exists


def settle(batcher: BeastModeBatcher, failures: int) -> None:
    """Wait until the flushing thread has counted so many failures and pauses."""
    end = deadline_in(10)
    while batcher.get_stats().failures_in_row < failures:
        assert time.monotonic() < end
        time.sleep(0.001)


def wake(batcher: BeastModeBatcher) -> None:
    with batcher._changed:
        batcher._changed.notify_all()


def test_failures_are_logged_when_they_change(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(Backoff())
    caplog.set_level(logging.INFO)
    errors: list[Exception] = [
        StoreUnavailable("port 4711"),
        StoreTimeout("late"),
        StoreRefused("denied after 12 ms"),
        StoreRefused("denied after 15 ms"),
        RuntimeError("a bug"),
        RuntimeError("a bug"),
        RuntimeError("another"),
        BreakerOpen("not asked"),
        StoreUnavailable("port 4712"),
    ]
    told = []
    for error in errors:
        caplog.clear()
        failures.tell(error)
        failures.failed(error)
        told.append([record.levelname for record in caplog.records])
    assert told == [["WARNING"], [], ["ERROR"], [], ["ERROR"], [], ["ERROR"], ["WARNING"], []]
    assert failures.in_a_row == 9
    failures.tell_success()
    failures.succeeded()
    assert "again after 9 failures" in caplog.text
    caplog.clear()
    failures.tell_success()
    failures.tell(StoreUnavailable("anew"))
    assert len(caplog.records) == 1


class UsingLogs(logging.Handler):
    """A handler of logs that uses the batcher of which it is told."""

    def __init__(self, batcher: BeastModeBatcher) -> None:
        super().__init__(logging.INFO)
        self.batcher = batcher
        self.told: list[tuple[str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        free = self.batcher._changed.acquire(timeout=2.0)
        if free:
            self.batcher._changed.release()
        self.told.append((record.getMessage(), free))


def test_nothing_is_logged_under_the_lock(store: FaultyStore) -> None:
    store.before = Failing(StoreUnavailable("down"), StoreRefused("no"), RuntimeError("a bug"))
    logs = logging.getLogger("beastmode.batcher")
    level = logs.level
    with batching(store) as batcher:
        handler = UsingLogs(batcher)
        logs.addHandler(handler)
        logs.setLevel(logging.INFO)
        try:
            batcher.write([Set("k/1", {"n": 1})])
            batcher.flush(deadline_in(10))
        finally:
            logs.removeHandler(handler)
            logs.setLevel(level)
    assert [text for text, free in handler.told if not free] == []
    assert len(handler.told) == 4
    assert "again after 3 failures" in handler.told[-1][0]


def test_only_what_lasts_is_paused_for_long() -> None:
    def pause(error: Exception) -> float:
        failures = Failures(Backoff(rng=Most()))
        return [failures.failed(error) for _ in range(20)][-1]

    assert pause(StoreUnavailable("down")) == 1.0
    assert pause(JournalFull("a disk may have room again at any moment")) == 1.0
    assert pause(StoreRefused("no")) == pause(TypeError("a bug")) == 30.0
    assert pause(BreakerOpen("not asked", 0.7)) == 0.7


# Operations that the store refuses.


def test_one_poison_among_500_fails_alone(store: FaultyStore, journal: Journal) -> None:
    poison = "k/321"

    def refuse(operations: Sequence[Operation]) -> None:
        if any(op.path == poison for op in operations):
            raise WriteRejected("poison")

    store.before = refuse
    failed: list[tuple[Operation, str]] = []
    committed: list[Operation] = []
    with batching(
        store,
        journal,
        on_committed=lambda op, version: committed.append(op),
        on_failed=lambda op, error: failed.append((op, str(error))),
    ) as batcher:
        batcher.write([Set(f"k/{n}", {"n": n}) for n in range(500)])
        batcher.flush()
        assert not batcher.has_pending or not batcher.pending(poison)
        report = batcher.get_stats()
        assert len(store.attempts) <= 2 * 9 + 1
        assert not store.get(poison).exists
        assert [op.path for op in committed] == [f"k/{n}" for n in range(500) if n != 321]
        assert failed == [(Set(poison, {"n": 321}), "poison")]
        assert (report.committed, report.failed, report.retries) == (499, 1, 0)
        journal.sync()
        (letter,) = journal.dead_letters()
        assert letter.operation == Set(poison, {"n": 321})
        assert letter.reason == "WriteRejected: poison"
        assert journal.get_stats().records == 0


def test_each_waiter_gets_the_outcome_of_his_own_operations(
    store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    outcomes: dict[int, Any] = {}
    with batching(store, journal) as batcher:

        def write(n: int) -> None:
            operations = [Set(f"k/{n}", {"n": n}), Update(f"l/{n}", {"n": n})]
            if n % 2:
                operations[1] = Set(f"l/{n}", {"n": n})
            try:
                outcomes[n] = batcher.write(operations, until="store")
            except DocumentMissing as error:
                outcomes[n] = error

        writers = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for writer in writers:
            writer.start()
        assert gate.arrived.wait(10)
        gate.open.set()
        for writer in writers:
            writer.join(10)
        for n in range(8):
            assert store.get(f"k/{n}").exists, "a write of several operations is not atomic"
            if n % 2:
                assert outcomes[n] == [store.get(f"k/{n}").version, store.get(f"l/{n}").version]
            else:
                assert isinstance(outcomes[n], DocumentMissing)


def test_merged_writes_share_the_refusal(store: FaultyStore, journal: Journal) -> None:
    store.before = Failing(RequestError("too large"))
    failed: list[Operation] = []
    with batching(store, journal, on_failed=lambda op, error: failed.append(op)) as batcher:
        batcher.write([Set("k/1", {"n": 1}), Merge("k/1", {"m": 2})])
        batcher.flush()
        assert failed == [Set("k/1", {"n": 1}), Merge("k/1", {"m": 2})]
        journal.sync()
        assert len(journal.dead_letters()) == 2


def test_the_store_fails_in_the_middle_of_the_search_for_the_poison(
    store: FaultyStore, journal: Journal
) -> None:
    calls = 0

    def hook(operations: Sequence[Operation]) -> None:
        nonlocal calls
        calls += 1
        if calls in (4, 5, 9):
            raise StoreUnavailable("down")
        if any(op.path == "k/13" for op in operations):
            raise WriteRejected("poison")

    store.before = hook
    committed: list[Operation] = []
    failed: list[Operation] = []
    with batching(
        store,
        journal,
        on_committed=lambda op, version: committed.append(op),
        on_failed=lambda op, error: failed.append(op),
    ) as batcher:
        batcher.write([Set(f"k/{n}", {}) for n in range(20)])
        batcher.flush()
        assert batcher.get_stats().retries == 3
    assert [op.path for op in committed] == [f"k/{n}" for n in range(20) if n != 13]
    assert [op.path for op in failed] == ["k/13"]


def test_acknowledgements_that_a_full_journal_refuses_are_made_up_for(
    store: FaultyStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = journal._database.write, []

    def full(groups: Any, notes: Any, settled: Any, limit: int) -> Any:
        if settled and len(refused) < 3:
            refused.append(settled)
            raise JournalFull("no room")
        return real(groups, notes, settled, limit)

    monkeypatch.setattr(journal._database, "write", full)
    with batching(store, journal) as batcher:
        batcher.write([Set("k/1", {"n": 1})], until="store")
        for n in range(3):
            batcher.write([Set("k/2", {"n": n})], until="store")
    journal.sync()
    journal.sync()
    assert len(refused) == 3
    assert journal.recover() == []


# The parts alone.


def bisect(
    units: Sequence[Sequence[int]], poison: set[int], down_at: int = -1
) -> tuple[list[str], int, Exception | None, int]:
    calls = 0
    told: list[str] = []

    def commit(batch: list[Any]) -> list[int]:
        nonlocal calls
        calls += 1
        if down_at in batch and not poison & set(batch):
            raise StoreUnavailable("down")
        if poison & set(batch):
            raise WriteRejected("poison")
        return list(batch)

    settled, error = commit_in_order(
        units,
        lambda unit: unit,  # type: ignore[arg-type,return-value]
        commit,
        lambda group, versions: told.append(
            f"ok {[n for unit in group for n in unit] == versions and versions}"
        ),
        lambda unit, failure: told.append(f"no {unit}"),
    )
    return told, settled, error, calls


def test_commit_in_order() -> None:
    assert bisect([], set()) == ([], 0, None, 0)
    assert bisect([[1], [2, 3]], set()) == (["ok [1, 2, 3]"], 2, None, 1)
    assert bisect([[1], [2, 3], [4]], {3})[0] == ["ok [1]", "no [2, 3]", "ok [4]"]
    assert bisect([[1], [2], [3]], {1, 2, 3})[0] == ["no [1]", "no [2]", "no [3]"]
    told, settled, error, _ = bisect([[n] for n in range(8)], {1}, down_at=5)
    assert told == ["ok [0]", "no [1]", "ok [2, 3]"]
    assert settled == 4
    assert isinstance(error, StoreUnavailable)


@pytest.mark.parametrize("seed", range(20))
def test_commit_in_order_settles_a_prefix_whatever_fails(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(1, 60)
    poison = set(rng.sample(range(size), rng.randint(0, min(size, 5))))
    down_at = rng.choice([-1, rng.randrange(size)])
    told, settled, error, _ = bisect([[n] for n in range(size)], poison, down_at)
    order: list[int] = []
    for line in told:
        numbers = [int(part) for part in line[3:].strip("[]").split(",")]
        assert line.startswith("no") == (numbers[0] in poison)
        order += numbers
    assert order == list(range(settled))
    assert (error is None) == (settled == size)
    if down_at in poison:
        assert error is None


def test_backoff_is_full_jitter_with_a_cap() -> None:
    backoff = Backoff(0.05, 1.0, random.Random(1))
    for ceiling in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert 0.0 <= backoff.fail() <= ceiling
    for _ in range(5000):
        assert backoff.fail() <= 1.0
    assert backoff.failures == 5007
    backoff.succeed()
    draws = [Backoff(0.05, 1.0, random.Random(seed)).fail() for seed in range(200)]
    assert min(draws) < 0.005 < 0.045 < max(draws) <= 0.05
    assert backoff.fail() <= 0.05


def test_pauses_between_attempts_follow_the_injected_clock(
    store: FaultyStore, journal: Journal
) -> None:
    clock = FakeClock()
    failed = threading.Semaphore(0)

    def down(operations: Sequence[Operation]) -> None:
        failed.release()
        raise StoreUnavailable("down")

    store.before = down
    with batching(store, journal, timer=clock, rng=Most(), max_ops=1) as batcher:
        batcher.write([Set("k/1", {})])
        for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
            assert failed.acquire(timeout=10)
            while batcher.get_stats().retries < len(store.attempts):
                pass
            clock.advance(pause * 0.99)
            batcher.configure()
            assert not failed.acquire(timeout=0.005)
            clock.advance(pause * 0.01 + 1e-9)
            batcher.configure()
        assert failed.acquire(timeout=10)
        store.before = None
        clock.advance(1.0)
