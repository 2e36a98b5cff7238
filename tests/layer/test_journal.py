"""The write journal: what is appended comes back, whatever happens to the process or the file."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from beastmode.errors import (
    ClosedError,
    ConfigError,
    ForkedError,
    JournalError,
    JournalFull,
    JournalLocked,
    RequestError,
)
from beastmode.journal import Journal
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
)

posix = pytest.mark.skipif(os.name != "posix", reason="another operating system: POSIX rules")


def run_child(script: str, *args: object, timeout: float = 60.0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def reopened(place: Path) -> list[tuple[int, Operation]]:
    again = Journal(place)
    try:
        return again.recover()
    finally:
        again.close()


def test_every_kind_of_operation_comes_back_in_order(journal: Journal, place: Path) -> None:
    written = [
        Set("users/1", {"name": "Zoë", "n": 2**62, "f": float("inf"), "raw": b"\x00\xff"}),
        Merge("users/1", {"a": {"b": DELETE_FIELD, "c": [1, {"d": None}]}, "gone": DELETE_FIELD}),
        Update("users/1", {"a.c": DELETE_FIELD, "x": {"$b": "not bytes"}}),
        Merge("users/1", {"only": {"removed": DELETE_FIELD}}),
        Delete("users/1"),
    ]
    assert journal.append(written[:3]) == [1, 2, 3]
    assert journal.append(written[3:]) == [4, 5]
    journal.close()
    recovered = reopened(place)
    assert [seq for seq, _ in recovered] == [1, 2, 3, 4, 5]
    assert [operation for _, operation in recovered] == written
    merged = recovered[1][1]
    assert isinstance(merged, Merge)
    assert merged.data["gone"] is DELETE_FIELD


def test_acknowledged_operations_do_not_come_back(journal: Journal, place: Path) -> None:
    seqs = journal.append([Set(f"k/{n}", {"n": n}) for n in range(5)])
    journal.acknowledge(seqs[1:4])
    journal.acknowledge([10**9])
    journal.sync()
    assert journal.get_stats().records == 2
    assert journal.get_stats().acknowledged == 3
    journal.close()
    assert [seq for seq, _ in reopened(place)] == [seqs[0], seqs[4]]


def test_sequence_numbers_never_come_again(place: Path) -> None:
    first = Journal(place)
    seqs = first.append([Delete("k/1"), Delete("k/2")])
    first.reject(seqs, "refused")
    first.close()
    second = Journal(place)
    assert second.append([Delete("k/3")]) == [3]
    assert [letter.seq for letter in second.dead_letters()] == [2, 1]
    second.close()


def test_dead_letters_keep_operation_and_reason_and_are_bounded(place: Path) -> None:
    journal = Journal(place, max_dead_letters=3)
    seqs = journal.append([Set(f"k/{n}", {"n": n}) for n in range(5)])
    journal.reject(seqs[:2], "PreconditionFailed: no")
    journal.sync()
    (newest, oldest) = journal.dead_letters()
    assert (newest.seq, oldest.seq) == (2, 1)
    assert oldest.operation == Set("k/0", {"n": 0})
    assert oldest.reason == "PreconditionFailed: no"
    journal.reject(seqs[2:], "x")
    journal.sync()
    assert [letter.seq for letter in journal.dead_letters()] == [5, 4, 3]
    assert journal.get_stats().dead_letters == 3
    assert journal.get_stats().records == 0
    assert journal.discard_dead_letters() == 3
    assert journal.dead_letters() == []
    journal.close()


def test_concurrent_appends_share_transactions_and_keep_each_threads_order(
    journal: Journal,
) -> None:
    threads, each = 8, 60
    barrier = threading.Barrier(threads)
    seqs: list[list[int]] = [[] for _ in range(threads)]

    def work(who: int) -> None:
        barrier.wait()
        for n in range(each):
            seqs[who] += journal.append([Set(f"t/{who}", {"n": n})])

    workers = [threading.Thread(target=work, args=(who,)) for who in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    report = journal.get_stats()
    assert report.appended == threads * each
    assert report.transactions < report.appended, "group commit shares transactions"
    assert all(line == sorted(line) for line in seqs)
    found: dict[str, list[int]] = {}
    for _, operation in journal.recover():
        assert isinstance(operation, Set)
        found.setdefault(operation.path, []).append(operation.data["n"])
    assert found == {f"t/{who}": list(range(each)) for who in range(threads)}


def test_submit_calls_back_in_the_order_of_the_numbers(journal: Journal) -> None:
    from beastmode.stores.operation_codec import encode_operation

    heard: list[int] = []
    for n in range(300):
        encoded = [encode_operation(Set("k/1", {"n": n}))]
        journal.submit(encoded, lambda seqs, error: heard.extend(seqs or [-1]))
    journal.sync()
    assert heard == list(range(1, 301))


def test_a_raising_callback_does_not_end_the_writer(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    from beastmode.stores.operation_codec import encode_operation

    def bad(seqs: object, error: object) -> None:
        raise RuntimeError("callback")

    journal.submit([encode_operation(Delete("k/1"))], bad)
    assert journal.append([Delete("k/2")]) == [2]
    assert "a callback of the journal" in caplog.text


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (Set("k/1", {"x": object()}), "field 'x' of document 'k/1'"),
        (Set("k/1", {"x": DELETE_FIELD}), "field 'x' of document 'k/1'"),
        (Set("k/1", {"x": 2**64}), "64 bits"),
        (Delete("k/\udc80"), "UTF-8"),
        (Delete("k/1", Precondition(exists=True)), "precondition"),
        ("k/1", "Set, Merge, Update or Delete"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    journal: Journal, operation: Operation, text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        journal.append([Set("k/2", {}), operation])
    assert journal.recover() == []


def test_settings_are_checked(place: Path) -> None:
    with pytest.raises(ConfigError, match="durability must be 'process' or 'power', got 'disk'"):
        Journal(place, durability="disk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_bytes must be an int of at least 262144, got 5"):
        Journal(place, max_bytes=5)
    with pytest.raises(ConfigError, match="max_dead_letters"):
        Journal(place, max_dead_letters=-1)
    assert not place.exists()


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_durability_is_sqlites_sync_level(place: Path, durability: str, level: int) -> None:
    journal = Journal(place, durability=durability)  # type: ignore[arg-type]
    assert journal._database.connection.execute("PRAGMA synchronous").fetchone() == (level,)
    assert journal.append([Delete("k/1")]) == [1]
    assert journal.get_stats().durability == durability
    journal.close()


# Its life.


def test_use_after_close(journal: Journal) -> None:
    journal.close()
    journal.close()
    with pytest.raises(ClosedError, match="is closed"):
        journal.append([Delete("k/1")])
    with pytest.raises(ClosedError):
        journal.acknowledge([1])
    with pytest.raises(ClosedError):
        journal.recover()


def test_close_writes_what_was_handed_over(journal: Journal, place: Path) -> None:
    seqs = journal.append([Delete(f"k/{n}") for n in range(100)])
    journal.acknowledge(seqs[:50])
    journal.reject(seqs[50:60], "no")
    journal.close()
    assert not any(thread.name == "beastmode-journal" for thread in threading.enumerate())
    assert [seq for seq, _ in reopened(place)] == seqs[60:]


def test_one_process_at_a_time(journal: Journal, place: Path) -> None:
    with pytest.raises(JournalLocked, match=f"in use by process {os.getpid()}"):
        Journal(place)
    output = run_child(
        """
        import sys
        from beastmode.errors import JournalLocked
        from beastmode.journal import Journal
        try:
            Journal(sys.argv[1])
        except JournalLocked as error:
            print(error)
        """,
        place,
    )
    assert f"in use by process {os.getpid()}" in output
    assert repr(str(place)) in output
    journal.close()
    assert reopened(place) == []


def test_the_lock_ends_with_its_process(place: Path) -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sys, time\nfrom beastmode.journal import Journal\n"
                "from beastmode.stores.documents import Delete\n"
                "j = Journal(sys.argv[1]); print(j.append([Delete('k/1')]), flush=True)\n"
                "time.sleep(60)"
            ),
            str(place),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "[1]\n"
    with pytest.raises(JournalLocked, match=f"process {child.pid}"):
        Journal(place)
    child.kill()
    child.wait(30)
    child.stdout.close()
    assert reopened(place) == [(1, Delete("k/1"))]


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork of a process with threads: the point
from beastmode.errors import ForkedError, JournalLocked
from beastmode.journal import Journal
from beastmode.stores.documents import Delete
path = sys.argv[1]
journal = Journal(path)
journal.append([Delete("k/1")])
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    code = 1
    try:
        for use in (
            lambda: journal.append([Delete("k/2")]), journal.recover, journal.get_stats,
            lambda: journal.acknowledge([1]), lambda: journal.reject([1], ""), journal.sync,
        ):
            try:
                use()
            except ForkedError as error:
                assert str(os.getppid()) in str(error), error
            else:
                raise AssertionError("ForkedError expected")
        journal.close()          # the parent's: does nothing
        try:
            Journal(path)
        except JournalLocked as error:
            assert str(os.getppid()) in str(error), error
        else:
            raise AssertionError("JournalLocked expected")
        del journal
        os.write(ready[1], b"x")
        os.read(go[0], 1)        # lives on while the parent goes on and closes
        code = 0
    except BaseException as error:
        print("child:", repr(error), flush=True)
    finally:
        if code == 0:
            sys.exit(0)          # a whole interpreter exit, with all its finalizers
        os._exit(code)
os.read(ready[0], 1)
for n in range(50):
    journal.append([Delete("k/3")])
journal.close()
again = Journal(path)            # the child must not have kept the lock
assert len(again.recover()) == 51, len(again.recover())
os.write(go[1], b"x")
_, status = os.waitpid(child, 0)
assert status == 0, status
again.append([Delete("k/4")])
again.close()
last = Journal(path)
assert len(last.recover()) == 52, len(last.recover())
last.close()
print("ok")
"""


@posix
def test_a_forked_child_can_neither_use_nor_harm_it(place: Path) -> None:
    assert run_child(FORK, place) == "ok\n"


# Damage.


def damage(place: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(place)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "values", "reason"),
    [
        ("UPDATE records SET fields = ? WHERE seq = 3", (b'{"n":99}',), "checksum"),
        ("UPDATE records SET checksum = zeroblob(8) WHERE seq = 3", (), "checksum"),
        ("UPDATE records SET path = ? WHERE seq = 3", (b"k/77",), "checksum"),
        ("UPDATE records SET kind = 4 WHERE seq = 3", (), "checksum"),
        ("UPDATE records SET kind = 'x' WHERE seq = 3", (), "no integer"),
        ("UPDATE records SET kind = 1000 WHERE seq = 3", (), "out of range"),
        ("UPDATE records SET format = 9 WHERE seq = 3", (), "format is 9, this version reads 1"),
        ("UPDATE records SET fields = NULL WHERE seq = 3", (), "wrong type"),
        ("UPDATE records SET fields = CAST(x'ff80' AS TEXT) WHERE seq = 3", (), "checksum"),
    ],
)
def test_a_damaged_record_is_set_aside_and_the_rest_replayed(
    place: Path,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    values: tuple[object, ...],
    reason: str,
) -> None:
    journal = Journal(place)
    journal.append([Set(f"k/{n}", {"n": n}) for n in range(1, 6)])
    journal.close()
    damage(place, statement, *values)

    journal = Journal(place)
    with caplog.at_level(logging.WARNING):
        recovered = journal.recover()
    assert [operation.path for _, operation in recovered] == ["k/1", "k/2", "k/4", "k/5"]
    assert "1 damaged record" in caplog.text
    assert reason in caplog.text
    assert journal.get_stats().corrupt == 1
    assert journal.get_stats().records == 4
    assert journal.append([Delete("k/9")]) == [6]
    journal.close()

    connection = sqlite3.connect(place)
    assert connection.execute("SELECT seq FROM quarantine").fetchall() == [(3,)]
    connection.close()
    again = Journal(place)  # reported once, kept for good
    assert len(again.recover()) == 5
    assert again.get_stats().corrupt == 1
    again.close()


def test_a_flipped_byte_on_the_disk_is_found(place: Path) -> None:
    journal = Journal(place)
    marks = [f"mark-{n}-{'x' * 40}" for n in range(4)]
    journal.append([Set("k/1", {"text": mark}) for mark in marks])
    journal.close()
    content = bytearray(place.read_bytes())
    at = content.index(marks[1].encode())
    content[at + 10] ^= 0x01
    place.write_bytes(content)
    texts = [dict(operation.data)["text"] for _, operation in reopened(place)]  # type: ignore[union-attr]
    assert texts == [marks[0], *marks[2:]]


def test_a_valid_checksum_does_not_make_a_record_trusted(place: Path) -> None:
    from beastmode.journal.records import to_record
    from beastmode.stores.operation_codec import EncodedOperation

    Journal(place).close()
    forged = [
        EncodedOperation(1, b"no-document-path", b"{}", b""),
        EncodedOperation(1, b"k/1", b"[1]", b""),
        EncodedOperation(2, b"k/1", b"{}", b'[["a", "b"]]'),
        EncodedOperation(2, b"k/1", b"{}", b"[[]]"),
        EncodedOperation(2, b"k/1", b"{}", b'{"a": 1}'),
        EncodedOperation(3, b"k/1", b'{"a..b":1}', b""),
        EncodedOperation(9, b"k/1", b"{}", b""),
        EncodedOperation(1, b"k/\xff", b"{}", b""),
        EncodedOperation(1, b"k/1", b"[" * 100_000, b""),
    ]
    connection = sqlite3.connect(place)
    for encoded in forged:
        connection.execute(
            "INSERT INTO records(format, kind, path, fields, removed, checksum) "
            "VALUES(?, ?, ?, ?, ?, ?)",
            to_record(encoded),
        )
    connection.commit()
    connection.close()
    journal = Journal(place)
    assert journal.recover() == []
    assert journal.get_stats().corrupt == len(forged)
    journal.close()


@pytest.mark.parametrize("where", ["header", "pages", "short"])
def test_a_damaged_file_is_named_explained_and_left_alone(place: Path, where: str) -> None:
    journal = Journal(place)
    journal.append([Set(f"k/{n}", {"text": "x" * 500}) for n in range(200)])
    journal.close()
    content = bytearray(place.read_bytes())
    if where == "header":
        content[:64] = b"\xa5" * 64
    elif where == "pages":
        content[8192:] = b"\xa5" * (len(content) - 8192)
    else:
        del content[len(content) // 2 :]
    place.write_bytes(content)
    with pytest.raises(JournalError) as caught:
        Journal(place)
    text = str(caught.value)
    assert repr(str(place)) in text
    assert "damaged" in text
    assert ".recover" in text
    assert "move it" in text
    assert place.read_bytes() == content
    with pytest.raises(JournalError, match="damaged"):  # the lock was given back
        Journal(place)


def test_a_file_of_something_else_is_refused(place: Path) -> None:
    connection = sqlite3.connect(place)
    connection.execute("CREATE TABLE users(id)")
    connection.commit()
    connection.close()
    before = place.read_bytes()
    with pytest.raises(JournalError, match="something else"):
        Journal(place)
    assert place.read_bytes() == before


def test_a_file_of_a_newer_version_is_refused(place: Path) -> None:
    Journal(place).close()
    damage(place, "PRAGMA user_version = 7")
    with pytest.raises(JournalError, match="newer version"):
        Journal(place)


# Privacy.


@posix
def test_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        place = tmp_path / "new" / "deeper" / "j"
        journal = Journal(place)
        journal.append([Delete("k/1")])
        names = sorted(path.name for path in place.parent.iterdir())
        assert names == ["j", "j-shm", "j-wal", "j.lock"]
        for path in place.parent.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        journal.close()
        place.chmod(0o644)
        Journal(place).close()
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
    finally:
        os.umask(old)


@posix
def test_places_that_others_control_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(JournalError, match="symbolic link"):
        Journal(tmp_path / "link")
    (tmp_path / "j.lock").symlink_to(target)
    with pytest.raises(JournalError, match="symbolic link"):
        Journal(tmp_path / "j")
    (tmp_path / "directory").mkdir()
    with pytest.raises(JournalError, match="cannot be opened for writing"):
        Journal(tmp_path / "directory")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(JournalError, match="regular file"):
        Journal(tmp_path / "fifo")
    shared = tmp_path / "shared"
    shared.mkdir()
    for mode in (0o777, 0o1777):
        shared.chmod(mode)
        with pytest.raises(JournalError, match="everybody may write"):
            Journal(shared / "j")
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(target / "below" / "j")
    with pytest.raises(JournalError, match="non-empty"):
        Journal("")


# No room.


def test_beyond_max_bytes_nothing_is_acknowledged_until_there_is_room(place: Path) -> None:
    journal = Journal(place, max_bytes=512 * 1024)
    kept: list[int] = []
    with pytest.raises(JournalFull, match="has no room"):
        while True:
            kept += journal.append([Set("k/1", {"text": "x" * 20_000})])
    assert 10 < len(kept) < 30
    assert [seq for seq, _ in journal.recover()] == kept
    with pytest.raises(JournalFull):
        journal.append([Set("k/1", {"text": "x" * 200_000})])
    journal.acknowledge(kept)
    journal.sync()
    assert journal.append([Set("k/2", {"text": "x" * 20_000})])
    report = journal.get_stats()
    assert report.failures > 0
    assert report.records == 1
    journal.close()
    assert [operation.path for _, operation in reopened(place)] == ["k/2"]


def test_an_append_without_room_does_not_fail_those_beside_it(place: Path) -> None:
    from beastmode.stores.operation_codec import encode_operation

    journal = Journal(place, max_bytes=512 * 1024)
    outcomes: dict[int, object] = {}
    with journal._io:  # all three wait for one transaction
        journal.submit([encode_operation(Delete("k/0"))], lambda seqs, error: None)
        for n, size in enumerate((100, 1_000_000, 100)):
            encoded = [encode_operation(Set("k/1", {"n": n, "text": "x" * size}))]
            journal.submit(encoded, lambda seqs, error, n=n: outcomes.__setitem__(n, error or seqs))
    journal.sync()
    assert isinstance(outcomes[1], JournalFull)
    assert isinstance(outcomes[0], list)
    assert isinstance(outcomes[2], list)
    assert [dict(op.data)["n"] for _, op in journal.recover()[1:]] == [0, 2]  # type: ignore[union-attr]
    journal.close()


DISK_FULL = """
import resource, sys
from beastmode.errors import JournalFull
from beastmode.journal import Journal
from beastmode.stores.documents import Set
path, limit = sys.argv[1], int(sys.argv[2])
journal = Journal(path)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
kept, refused = [], 0
for n in range(60):
    try:
        kept += [(n, *journal.append([Set(f"k/{n}", {"text": "x" * 5000})]))]
    except JournalFull as error:
        assert path in str(error), error
        refused += 1
assert kept and refused > 5, (kept, refused)
assert [seq for seq, _ in journal.recover()] == [seq for _, seq in kept]
journal.acknowledge([kept[0][1]])          # may be refused too: kept and tried again
journal.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
kept += [(100, *journal.append([Set("k/100", {})]))]
journal.sync()
assert journal.get_stats().records == len(kept) - 1, journal.get_stats()
journal.close()
again = Journal(path)
assert [op.path for _, op in again.recover()] == [f"k/{n}" for n, _ in kept[1:]]
again.close()
print("ok")
"""


@posix
@pytest.mark.parametrize("limit", [100_000, 150_000, 150_001, 151_313])
def test_a_full_disk_short_writes_included(place: Path, limit: int) -> None:
    # A limit inside a page or a frame makes the kernel write only part of it.
    assert run_child(DISK_FULL, place, limit) == "ok\n"


def test_an_emptied_journal_gives_its_disk_back(place: Path) -> None:
    journal = Journal(place)
    seqs = journal.append([Set(f"k/{n}", {"text": "x" * 100_000}) for n in range(250)])
    assert journal.get_stats().bytes > 20_000_000
    journal.acknowledge(seqs)
    journal.sync()
    assert journal.get_stats().bytes < 1_000_000
    journal.close()


@posix
def test_a_fork_while_the_writer_writes(journal: Journal) -> None:
    # The connection's mutex may be held at that moment; the child must not wait for it.
    output = run_child(
        """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from beastmode.journal import Journal
        from beastmode.stores.documents import Set
        journal = Journal(sys.argv[1])
        stop = threading.Event()
        count = 0
        def work():
            global count
            while not stop.is_set():
                count += len(journal.append([Set("k/1", {"text": "x" * 1000})] * 20))
        worker = threading.Thread(target=work)
        worker.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        worker.join()
        journal.close()
        again = Journal(sys.argv[1])
        assert len(again.recover()) == count
        again.close()
        print("ok")
        """,
        str(journal.path) + ".other",
    )
    assert output == "ok\n"


def test_forked_error_is_a_closed_error() -> None:
    assert issubclass(ForkedError, ClosedError)
