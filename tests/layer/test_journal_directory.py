"""Several workers on one machine: a journal each, and the orphans of the dead adopted."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.errors import ConfigError, JournalError, StoreUnavailable
from beastmode.journal import Journal, JournalDirectory
from beastmode.optimizer import BeastModeOptimizer
from beastmode.requests import Request
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Merge, Operation, Set, Update
from beastmode.stores.operation_codec import encode_operation
from beastmode.stores.sqlite import SQLiteStore
from layer.faulty_store import FaultyStore
from store_support import Child, wait_until

posix = pytest.mark.skipif(os.name != "posix", reason="another operating system: POSIX rules")

ACCEPT = """
    import os, sys, time
    from beastmode.batcher import BeastModeBatcher
    from beastmode.journal import JournalDirectory
    from beastmode.stores.documents import Merge, Set
    from beastmode.stores.sqlite import SQLiteStore
    store, directory, *names = sys.argv[1:]
    batcher = BeastModeBatcher(
        SQLiteStore(store), JournalDirectory(directory).open(), max_delay_s=3600.0
    )
    for name in names:
        path, _, n = name.partition("=")
        batcher.write([Set(path, {"n": int(n)})])
    print("accepted", flush=True)
    sys.stdin.readline()
    os._exit(1)
"""


def dead_worker(store: Path, directory: Path, *writes: str) -> None:
    """A process that accepts writes such as "k/1=5", and dies before it commits them."""
    with Child(ACCEPT, store, directory, *writes) as child:
        assert child.line() == "accepted"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultyStore]:
    made = FaultyStore(SQLiteStore(tmp_path / "store"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every journal at the end: their threads must not outlive the test."""
    opened: list[Journal] = []
    make = JournalDirectory._journal

    def track(self: JournalDirectory, name: str, **kwargs: Any) -> Journal:
        opened.append(make(self, name, **kwargs))
        return opened[-1]

    monkeypatch.setattr(JournalDirectory, "_journal", track)
    yield
    for journal in opened:
        journal.close()


def journals(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir() if entry.name != "adopt.lock")


def test_each_gets_its_own_and_leaves_nothing_behind(place: Path) -> None:
    directory = JournalDirectory(place)
    first, second = directory.open(), directory.open()
    assert first.path != second.path
    assert first.path < second.path, "sorted by time"
    assert directory.adopt() == [], "both live"
    first.append([Set("k/1", {})])
    assert not directory.release(first)
    assert directory.release(second)
    first.close()
    (orphan,) = directory.adopt()
    assert orphan.path == first.path
    assert [seq for seq, _ in orphan.recover()] == [1]
    orphan.acknowledge([1])
    orphan.sync()
    assert directory.release(orphan)
    assert journals(place) == []


@posix
def test_files_and_directory_are_private(tmp_path: Path) -> None:
    place = tmp_path / "new" / "journals"
    journal = JournalDirectory(place).open()
    assert place.stat().st_mode & 0o777 == 0o700
    assert Path(journal.path).stat().st_mode & 0o777 == 0o600
    journal.close()
    place.chmod(0o777)
    with pytest.raises(JournalError, match="everybody may write"):
        JournalDirectory(place)
    for bad in ("", "a\0b"):
        with pytest.raises(JournalError, match="journal_dir"):
            JournalDirectory(bad)


def test_orphans_are_replayed_oldest_first_and_before_own_writes(
    store: FaultyStore, tmp_path: Path, place: Path
) -> None:
    dead_worker(tmp_path / "store", place, "k/1=1", "k/2=1")
    dead_worker(tmp_path / "store", place, "k/1=2", "k/3=2")
    directory = JournalDirectory(place)
    own = directory.open()
    with BeastModeBatcher(store, own, max_delay_s=3600.0) as warm:
        orphans = directory.adopt()
        assert len(orphans) == 2
        warm.write([Set("k/2", {"n": 9})])
        assert warm.adopt(orphans) == 4
        warm._pending._check()
        read = {path: warm.overlay(store.get(path)).data for path in ("k/1", "k/2", "k/3")}
        assert read == {"k/1": {"n": 2}, "k/2": {"n": 9}, "k/3": {"n": 2}}
        warm.flush()
        assert {path: store.get(path).data for path in read} == read
        assert warm.get_stats().replayed == 4
        for orphan in orphans:
            orphan.sync()
            warm.let_go(orphan)
            assert directory.release(orphan)
    own.sync()
    assert directory.release(own)
    assert journals(place) == []


@pytest.mark.parametrize("started", [False, True])
def test_orphans_are_read_as_there_is_room(store: FaultyStore, place: Path, started: bool) -> None:
    """However many workers have died: no more is held than one of them was allowed to hold."""
    directory = JournalDirectory(place)
    for n in range(5):
        journal = directory.open()
        journal.append([Set(f"k/{m}", {"n": n}) for m in range(3)])
        journal.close()
    own = directory.open()
    store.down = StoreUnavailable("down")
    batcher = BeastModeBatcher(store, own, max_pending_ops=7, max_delay_s=3600.0)
    if started:
        batcher.start()
        batcher.write([Set("k/own", {}), Set("k/own", {})])
    taken = batcher.adopt(directory.adopt())
    batcher.start()
    first = 3 if started else 6
    assert batcher.get_stats().replayed == first
    assert taken == (first if started else 0)
    assert batcher.adopt([]) == 0, "they have not reached the store"
    assert batcher.overlay(store.inner.get("k/0")).data == {"n": first // 3 - 1}
    store.down = None
    seen = 0
    while batcher.get_stats().replayed < 15:
        batcher.flush()
        seen = max(seen, batcher.adopt([]))
        batcher._pending._check()
        assert batcher.get_stats().pending <= 7
    batcher.flush()
    assert seen == 6
    written = [op.data["n"] for commit in store.commits for op in commit if op.path == "k/0"]
    assert written == sorted(written), "the oldest first"
    assert store.get("k/0").data == {"n": 4}
    batcher.close()


def test_an_orphan_larger_than_all_room_is_read_alone(store: FaultyStore, place: Path) -> None:
    directory = JournalDirectory(place)
    for n in range(2):
        journal = directory.open()
        journal.append([Set(f"k/{m}", {"n": n, "text": "x" * 100}) for m in range(9)])
        assert journal.content() == (
            9,
            sum(encode_operation(op).size for _, op in journal.recover()),
        )
        journal.close()
    with BeastModeBatcher(store, directory.open(), max_pending_bytes=300) as batcher:
        orphans = directory.adopt()
        assert batcher.adopt(orphans) == 9
        assert batcher.get_stats().replayed == 9
        batcher.flush()
        assert batcher.adopt([]) == 9
        batcher.flush()
        assert store.get("k/8").data["n"] == 1


def test_an_orphan_that_cannot_be_read_stops_no_other(
    store: FaultyStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = JournalDirectory(place)
    for n in range(2):
        journal = directory.open()
        journal.append([Set(f"k/{n}", {})])
        journal.close()
    with BeastModeBatcher(store, directory.open()) as batcher:
        orphans = directory.adopt()

        def recover() -> list[tuple[int, Operation]]:
            raise JournalError("no disk")

        monkeypatch.setattr(orphans[0], "recover", recover)
        with pytest.raises(JournalError, match="no disk"):
            batcher.adopt(orphans)
        assert batcher.adopt(orphans[1:]) == 1


def test_an_orphans_marked_batch_is_sent_under_its_name(store: FaultyStore, place: Path) -> None:
    """And what an older orphan holds beside goes before it."""
    directory = JournalDirectory(place)
    older, newer = directory.open(), directory.open()
    older.append([Set("k/1", {"n": 1})])
    writes: list[Operation] = [Update("k/1", {"m": 2}), Merge("k/2", {"m": 2})]
    newer.note_sent("ab" * 16, newer.append(writes))
    newer.append([Merge("k/2", {"last": 3})])
    older.close()
    newer.close()
    own = directory.open()
    batcher = BeastModeBatcher(store, own, marker_grace_s=0.0)
    batcher.adopt(directory.adopt())
    with batcher:
        batcher.flush()
    names = [[op.path for op in commit] for commit in store.commits]
    assert names[:3] == [["k/1"], ["k/1", "k/2", "_bm/" + "ab" * 16], ["k/2"]]
    assert store.get("k/1").data == {"n": 1, "m": 2}
    assert store.get("k/2").data == {"m": 2, "last": 3}
    assert store.commits[-1][0].path == "_bm/" + "ab" * 16, "and its marker is gone"


def test_batches_of_two_journals_are_never_mixed(store: FaultyStore, place: Path) -> None:
    directory = JournalDirectory(place)
    for n in range(2):
        journal = directory.open()
        journal.append([Merge(f"k/{n}", {"n": n}), Merge("k/same", {f"n{n}": n})])
        journal.close()
    batcher = BeastModeBatcher(store, directory.open(), markers="always")
    batcher.adopt(directory.adopt())
    with batcher:
        batcher.flush()
    sent = [{op.path for op in commit} & {"k/0", "k/1"} for commit in store.commits[:2]]
    assert sent == [{"k/0"}, {"k/1"}]
    assert store.get("k/same").data == {"n0": 0, "n1": 1}


def test_what_stands_before_a_sent_batch_is_not_overtaken_by_it(
    store: FaultyStore, place: Path
) -> None:
    directory = JournalDirectory(place)
    older, newer = directory.open(), directory.open()
    older.append([Set("k/1", {"n": 1})])
    newer.note_sent("ab" * 16, newer.append([Merge("k/1", {"m": 2})]))
    older.close()
    newer.close()
    failures = [StoreUnavailable("down"), StoreUnavailable("still")]

    def fail(operations: Sequence[Operation]) -> None:
        if failures:
            raise failures.pop()

    store.before = fail
    batcher = BeastModeBatcher(store, directory.open())
    batcher.adopt(directory.adopt())
    with batcher:
        batcher._pending._check()
        batcher.flush(deadline_in(20))
    assert store.get("k/1").data == {"n": 1, "m": 2}


def test_a_damaged_orphan_is_set_aside_aloud(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []
    directory = JournalDirectory(place, on_error=errors.append)
    journal, other = directory.open(), directory.open()
    for each in (journal, other):
        each.append([Set("k/1", {"text": "x" * 9000})])
        each.close()
    file = Path(journal.path)
    file.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    (alive,) = directory.adopt()
    assert alive.path == other.path
    assert f"{file.name}.damaged" in journals(place)
    assert file.name not in journals(place)
    assert "set aside" in caplog.text
    assert [type(error) for error in errors] == [JournalError]
    assert directory.adopt() == []
    alive.close()


def test_a_file_of_something_else_is_left_alone_and_told_once(place: Path) -> None:
    errors: list[BaseException] = []
    directory = JournalDirectory(place, on_error=errors.append)
    SQLiteStore(place / "users.journal").close()
    before = (place / "users.journal").read_bytes()
    assert directory.adopt() == directory.adopt() == []
    assert len(errors) == 1
    assert "something else" in str(errors[0])
    assert (place / "users.journal").read_bytes() == before


def test_what_the_store_rejected_stays_readable(place: Path, store: FaultyStore) -> None:
    directory = JournalDirectory(place)
    journal = directory.open()
    journal.append([Update("k/none", {"n": 1})])
    journal.close()
    (orphan,) = directory.adopt()
    batcher = BeastModeBatcher(store, directory.open())
    batcher.adopt([orphan])
    with batcher:
        batcher.flush()
        orphan.sync()
        batcher.let_go(orphan)
        assert directory.release(orphan)
    assert directory.adopt() == []
    kept = Journal(f"{journal.path}.rejected")
    assert [letter.operation.path for letter in kept.dead_letters()] == ["k/none"]
    kept.close()


def test_one_adopts_at_a_time(place: Path) -> None:
    directory = JournalDirectory(place)
    journal = directory.open()
    journal.append([Set("k/1", {})])
    journal.close()
    script = """
        import sys
        from pathlib import Path
        from beastmode.journal.files import LifetimeLock
        lock = LifetimeLock(Path(sys.argv[1]) / "adopt")
        print("locked", flush=True)
        sys.stdin.readline()
    """
    with Child(script, place) as child:
        assert child.line() == "locked"
        assert directory.adopt() == []
    (orphan,) = directory.adopt()
    orphan.close()


# Through the optimizer.


def test_an_optimizer_adopts_at_its_start(tmp_path: Path, place: Path) -> None:
    dead_worker(tmp_path / "store", place, "users/1=1", "users/2=2")
    with BeastModeOptimizer(tmp_path / "store", journal_dir=str(place)) as optimizer:
        answer = optimizer.handle_request_sync(None, Request.get("users/1"))
        assert answer.document is not None
        assert answer.document.data == {"n": 1}
        assert optimizer.get_stats().batcher.replayed == 2
    assert journals(place) == []
    with SQLiteStore(tmp_path / "store") as inner:
        assert inner.get("users/2").data == {"n": 2}


def test_an_optimizer_adopts_while_it_runs(tmp_path: Path, place: Path) -> None:
    with BeastModeOptimizer(
        tmp_path / "store", journal_dir=str(place), healing_interval_s=0.1
    ) as optimizer:
        dead_worker(tmp_path / "store", place, "users/1=1")
        wait_until(lambda: optimizer.get_stats().batcher.replayed == 1)
        optimizer.flush()
        answer = optimizer.handle_request_sync(None, Request.get("users/1"))
        assert answer.document is not None
        assert answer.document.data == {"n": 1}
        wait_until(lambda: len([name for name in journals(place) if name.endswith("nal")]) == 1)


def test_one_journal_or_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        BeastModeOptimizer(
            tmp_path / "store", journal_path=str(tmp_path / "j"), journal_dir=str(tmp_path)
        )


# Forks.


def work(store: str, place: str, number: int) -> None:
    """What a worker does, each in its own process: write, and be killed or end well."""
    optimizer = BeastModeOptimizer(store, journal_dir=place, batch_max_delay_ms=3_600_000).start()
    for n in range(5):
        optimizer.handle_request_sync(None, Request.set(f"users/{number}-{n}", {"n": n}))
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    optimizer.close()


@posix
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_that_construct_after_the_fork(tmp_path: Path, method: str) -> None:
    """As a pre-forking server has them: some end well, some are killed, none loses a write."""
    context = multiprocessing.get_context(method)
    arguments = (str(tmp_path / "store"), str(tmp_path / "journals"))
    SQLiteStore(tmp_path / "store").close()
    workers: list[Any] = [context.Process(target=work, args=(*arguments, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, -signal.SIGKILL, 0, -signal.SIGKILL]
    BeastModeOptimizer(arguments[0], journal_dir=arguments[1]).start().close()
    with SQLiteStore(tmp_path / "store") as store:
        for number in range(4):
            for n in range(5):
                assert store.get(f"users/{number}-{n}").data == {"n": n}
    assert journals(tmp_path / "journals") == []


PREFORK = """
    import os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from beastmode.errors import ForkedError
    from beastmode.journal import JournalDirectory
    from beastmode.optimizer import BeastModeOptimizer
    from beastmode.requests import Request
    store, place = sys.argv[1:]
    master = BeastModeOptimizer(store, journal_dir=place, batch_max_delay_ms=3_600_000).start()
    master.handle_request_sync(None, Request.set("users/master", {"n": 1}))
    children = []
    for number in range(2):
        child = os.fork()
        if not child:
            try:
                master.handle_request_sync(None, Request.set("users/child", {"n": 1}))
            except ForkedError as error:
                assert "after the fork" in str(error), error
            else:
                os._exit(3)
            master.close()                      # harmless: it is the parent's
            own = BeastModeOptimizer(store, journal_dir=place).start()
            if own.get_stats().batcher.replayed:
                os._exit(4)                     # the parent's journal is not an orphan
            own.handle_request_sync(None, Request.set(f"users/{number}", {"n": number}))
            own.close()
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0], codes
    master.close()
    print("done", len([name for name in os.listdir(place) if name.endswith(".journal")]))
"""


@posix
def test_an_optimizer_made_before_the_fork_says_so(tmp_path: Path) -> None:
    with Child(PREFORK, tmp_path / "store", tmp_path / "journals") as child:
        assert child.finish().strip() == "done 0"
    with SQLiteStore(tmp_path / "store") as store:
        for name in ("master", "0", "1"):
            assert store.get(f"users/{name}").exists
        assert not store.get("users/child").exists
