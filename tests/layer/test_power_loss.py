"""A loss of power takes back what the journal did since its last sync, never what the store has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.batcher.answered import Answered
from beastmode.batcher.batches import Batch
from beastmode.batcher.entries import Entry, Part
from beastmode.batcher.sending import Sender
from beastmode.errors import ClosedError, JournalFull, StoreError
from beastmode.journal import Journal
from beastmode.journal.work import Note
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Merge, Operation, Precondition, Set, Update
from beastmode.stores.transforms import Increment
from layer.faulty_store import FaultyStore

LONG = 3600.0


class Disk:
    """Keeps every state in which a loss of power may leave the file of `journal`.

    Those are the states after each transaction since the last one that was synced, which is among
    them. That SQLite syncs those is a promise of SQLite.
    """

    def __init__(self, journal: Journal, folder: Path) -> None:
        self.folder = folder
        self.database = database = journal._database
        self.states = [database.connection.serialize()]
        self.synced = False
        database.connection.set_trace_callback(self.heard)
        write = database.write

        def written(*arguments: Any) -> Any:
            answer = write(*arguments)
            if self.synced or database.full_sync:
                self.states.clear()
                self.synced = False
            self.states.append(database.connection.serialize())
            return answer

        database.write = written  # type: ignore[method-assign]

    def heard(self, statement: str) -> None:
        self.synced = self.synced or statement == "PRAGMA synchronous = FULL"

    def replay(self, store: FaultyStore) -> Iterator[None]:
        """Start again once after each such loss of power."""
        for number, state in enumerate(list(self.states)):
            path = self.folder / f"{number}.journal"
            path.write_bytes(state)
            journal = Journal(path)
            with BeastModeBatcher(store, journal, max_delay_s=LONG) as batcher:
                batcher.flush()
                yield
            journal.close()


@pytest.fixture
def disk(journal: Journal, tmp_path: Path) -> Disk:
    folder = tmp_path / "after"
    folder.mkdir(mode=0o700)
    return Disk(journal, folder)


def batching(store: FaultyStore, journal: Journal, **settings: Any) -> BeastModeBatcher:
    return BeastModeBatcher(store, journal, max_delay_s=LONG, **settings)


FIRST: list[Operation] = [Set("k/1", {"n": 1})]


def test_the_states_include_that_which_would_be_replayed(
    store: FaultyStore, journal: Journal, disk: Disk
) -> None:
    """Or the tests below would show nothing."""
    with batching(store, journal) as batcher:
        batcher.write(FIRST, until="store")
        journal.sync()
        assert journal.has_unnoted
    store.inner.commit([Set("k/1", {"n": 2})])
    seen = [store.get("k/1").data for _ in disk.replay(store)]
    assert {"n": 1} in seen


@pytest.mark.parametrize("markers", ["transforms", "always"])
@pytest.mark.parametrize("how", ["precondition", "past it"])
def test_no_replay_undoes_a_commit_past_the_buffer(
    store: FaultyStore, journal: Journal, disk: Disk, markers: Any, how: str
) -> None:
    with batching(store, journal, markers=markers) as batcher:
        batcher.write(FIRST, until="store")
        journal.sync()
        assert journal.has_unnoted == (markers == "transforms")
        if how == "precondition":
            batcher.write([Set("k/1", {"n": 2}, Precondition(exists=True))])
        else:
            batcher.wait_noted()
            store.commit([Set("k/1", {"n": 2})])
        for _ in disk.replay(store):
            assert store.get("k/1").data == {"n": 2}
    assert not journal.has_unnoted


@pytest.mark.parametrize("markers", ["transforms", "always"])
def test_nor_a_later_write_from_the_buffer(
    store: FaultyStore, journal: Journal, disk: Disk, markers: Any
) -> None:
    with batching(store, journal, markers=markers) as batcher:
        batcher.write([Set("k/0", {}), *FIRST], until="store")
        batcher.write([Merge("k/0", {"n": Increment(1)})], until="store")
        batcher.write([Set("k/2", {"n": 1})], until="store")
        for n in (2, 3):
            batcher.write([Set("k/1", {"n": n})], until="store")
            journal.sync()
            for _ in disk.replay(store):
                assert store.get("k/1").data == {"n": n}
                assert store.get("k/0").data == {"n": 1}


def test_nor_does_a_refused_write_come_back(
    store: FaultyStore, journal: Journal, disk: Disk
) -> None:
    with batching(store, journal) as batcher:
        with pytest.raises(StoreError):
            batcher.write([Update("k/1", {"n": 1})], until="store")
        journal.sync()
        batcher.write([Set("k/1", {"n": 2})], until="store")
        for _ in disk.replay(store):
            assert store.get("k/1").data == {"n": 2}


def test_writes_of_other_documents_wait_for_no_sync(
    store: FaultyStore, journal: Journal, disk: Disk
) -> None:
    with batching(store, journal) as batcher:
        for n in range(20):
            batcher.write([Set(f"k/{n}", {})], until="store")
        batcher.write([Set("k/20", {}, Precondition(exists=False))])
        journal.sync()
        assert len(disk.states) > 20, "never synced"
        batcher.write([Set("k/7", {"n": 1})], until="store")
        assert len(disk.states) < 6, "synced once"


def test_a_journal_that_syncs_each_write_syncs_none_again(
    store: FaultyStore, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "synced.journal", durability="power")
    notes: list[Sequence[Note]] = []
    write = journal._database.write
    journal._database.write = lambda *given: (notes.append(given[1]), write(*given))[1]  # type: ignore[method-assign]
    with batching(store, journal) as batcher:
        for n in range(5):
            batcher.write([Set("k/1", {"n": n})], until="store")
        batcher.wait_noted()
        assert not journal.has_unnoted
    journal.close()
    assert not any(notes)


def test_a_sync_writes_what_can_be_synced(journal: Journal) -> None:
    """SQLite does not sync a transaction that changed nothing."""
    log = Path(journal.path + "-wal")
    journal.acknowledge(journal.append(FIRST))
    journal.sync()
    assert journal.has_unnoted
    before = log.stat().st_size
    journal.wait_noted(deadline_in(10))
    assert not journal.has_unnoted
    assert log.stat().st_size > before
    journal.wait_noted(deadline_in(0))


class Noting:
    """A journal as `Answered` sees it."""

    syncs_each = False
    has_unnoted = True

    def __init__(self, at_wait: Callable[[], object] = lambda: None) -> None:
        self.waits = 0
        self._at_wait = at_wait

    def wait_noted(self, deadline: float) -> None:
        self.waits += 1
        self._at_wait()


def test_what_is_remembered_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beastmode.batcher.answered._MANY", 10)
    answered, journal = Answered(), cast(Any, Noting())
    for n in range(9):
        answered.add(journal, [f"k/{n}"])
        answered.settle(["k/other"], deadline_in(1))
    assert journal.waits == 0
    answered.add(journal, ["k/9"])
    for _ in range(3):
        answered.settle(["k/other"], deadline_in(1))
    assert journal.waits == 1


def test_it_is_bounded_where_each_write_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beastmode.batcher.answered._MANY", 10)
    answered, journal = Answered(), cast(Any, Noting())
    journal.syncs_each = True
    for n in range(35):
        answered.add(journal, [f"k/{n}"])
        answered.settle([f"k/{n}"], deadline_in(1), journal)
    assert journal.waits == 3
    assert sum(map(len, answered._paths.values())) < 10


def test_a_repetition_settles_what_the_first_attempt_could_not(store: FaultyStore) -> None:
    sender = Sender(store, 5.0, 0.0)
    adopted, own = cast(Any, Noting()), cast(Any, Noting())
    own.note_sent = lambda *_: None
    sender.answered.add(adopted, ["k/1"])
    operation = Set("k/1", {"n": 2})
    batch = Batch([Entry(operation, [Part(operation, 1, 10)], 10, own)], "ab" * 16)

    def full() -> None:
        if adopted.waits < 3:
            raise JournalFull("no room")

    adopted._at_wait = full
    with pytest.raises(JournalFull):
        sender.send(batch)
    assert batch.fixed
    with pytest.raises(JournalFull):
        sender.send(batch)
    assert not store.get("k/1").exists
    sender.send(batch)
    assert adopted.waits == 3
    assert store.get("k/1").exists


def test_a_journal_that_is_let_go_meanwhile_holds_nothing_up() -> None:
    answered = Answered()
    forgets = True

    def closed() -> None:
        if forgets:
            answered.forget(journal)
        raise ClosedError("closed")

    journal = cast(Any, Noting(closed))
    answered.add(journal, ["k/1"])
    answered.settle(["k/1"], deadline_in(1))
    forgets = False
    answered.add(journal, ["k/1"])
    with pytest.raises(ClosedError):
        answered.settle(["k/1"], deadline_in(1))
