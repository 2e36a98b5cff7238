"""The SQLite file under a store: other processes, crashes, full disks, files that are not ours."""

from __future__ import annotations

import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode.errors import (
    ClosedError,
    ConfigError,
    RequestError,
    StoreCorrupt,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.stores.base import Filter, Query, Target, deadline_in
from beastmode.stores.documents import Delete, Set, Update
from beastmode.stores.sqlite import SQLiteStore
from store_support import Child

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path) as made:
        yield made


# -- files -----------------------------------------------------------------------------------------


def test_documents_stay_across_restarts(path: Path) -> None:
    with SQLiteStore(path) as store:
        versions = store.commit([Set("u/a", {"n": 1}), Set("u/b", {"n": 2})])
        store.commit([Delete("u/b")])
    assert [item.name for item in path.parent.iterdir()] == ["store.db"]
    with SQLiteStore(str(path)) as store:
        held = store.get("u/a")
        assert (held.to_dict(), held.version) == ({"n": 1}, versions[0])
        assert store.commit([Set("u/c", {})])[0] > store.get("u/b").version - 1


@POSIX
def test_a_new_file_is_private(store: SQLiteStore, path: Path) -> None:
    store.commit([Set("u/a", {})])
    for item in path.parent.iterdir():
        assert stat.S_IMODE(item.stat().st_mode) == 0o600, item


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with SQLiteStore("x.db") as store:
        monkeypatch.chdir("/")
        store.commit([Set("u/a", {})])
        assert store.path == str(tmp_path / "x.db")
        assert repr(store) == f"SQLiteStore({str(tmp_path / 'x.db')!r})"
    assert (tmp_path / "x.db").exists()


@pytest.mark.parametrize("name", ["a b.db", "ü.db", "a%20b?mode=ro.db", "a#b.db", "file:x.db"])
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        with SQLiteStore(tmp_path / name, connections=3) as store:
            store.commit([Set("u/a", {"n": 1})])
            assert store.get("u/a").to_dict() == {"n": 1}
    assert [item.name for item in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"path": ""}, "path"),
        ({"path": b"x"}, "path"),
        ({"path": None}, "path"),
        ({"path": 7}, "path"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"durability": "none"}, "durability"),
        ({"connections": 0}, "connections"),
        ({"connections": True}, "connections"),
        ({"max_changes": -1}, "max_changes"),
        ({"max_changes": 1.5}, "max_changes"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SQLiteStore(**{"path": tmp_path / "x.db", **arguments})
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, reason in (
        (tmp_path, "directory"),
        (tmp_path / "none" / "x.db", "No such file"),
        (tmp_path / "file" / "x.db", "Not a directory"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "x\0.db", "null"),
    ):
        with pytest.raises(StoreError, match=reason) as caught:
            SQLiteStore(place)
        assert str(place) in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@POSIX
def test_a_directory_and_a_file_that_are_read_only() -> None:
    """As a user without rights over them; root, who has all rights, becomes another user first."""
    script = """
        import os, pathlib, sys
        from beastmode.errors import StoreError
        from beastmode.stores.sqlite import SQLiteStore
        from beastmode.stores.documents import Set
        base = pathlib.Path(sys.argv[1])
        with SQLiteStore(base / "closed/held.db") as store:
            store.commit([Set("u/a", {})])
        with SQLiteStore(base / "open/held.db") as store:
            store.commit([Set("u/a", {})])
        (base / "open").chmod(0o777)
        (base / "open/held.db").chmod(0o444)
        (base / "closed/held.db").chmod(0o666)
        (base / "closed").chmod(0o555)
        if not os.getuid():
            os.setuid(65534)
        for name in ("closed/new.db", "closed/held.db", "open/held.db"):
            try:
                SQLiteStore(base / name)
            except StoreError as error:
                print(type(error).__name__, error)
            else:
                print("opened")
        print(sorted(item.name for item in base.rglob("*")))
        (base / "closed").chmod(0o755) if os.getuid() != 65534 else None
    """
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        for part in ("closed", "open"):
            (base / part).mkdir()
        lines = Child(script, base).finish().splitlines()
    assert "StoreError" in lines[0]
    assert "Permission denied" in lines[0]
    assert f"{base}/closed/new.db" in lines[0]
    assert "its directory cannot be written" in lines[1]
    assert "Permission denied" in lines[2]
    assert lines[3] == "['closed', 'held.db', 'held.db', 'open']"


@POSIX
def test_a_place_where_nothing_can_be_made() -> None:
    with pytest.raises(StoreError, match="/proc/x.db|/x/none/x.db"):
        SQLiteStore("/proc/x.db" if Path("/proc/self").exists() else "/x/none/x.db")


def test_a_file_of_another_application_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another application"):
        SQLiteStore(path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["store.db"]


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with SQLiteStore(path) as store:
        store.commit([Set("u/a", {})])


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    SQLiteStore(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(StoreError, match="newer version.*schema 99"):
        SQLiteStore(path)


@pytest.mark.parametrize(
    "content", [b"not a database, " * 500, b"SQLite format 3\0" + b"\7" * 9000]
)
def test_a_file_that_is_no_sound_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="restore it from a backup") as caught:
        SQLiteStore(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_file_damaged_in_its_pages(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.load((f"u/{n}", {"text": "x" * 300}) for n in range(2000))
    content = bytearray(path.read_bytes())
    for offset in range(3 * 4096, len(content), 4096):
        content[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(content)
    with SQLiteStore(path) as store:
        with pytest.raises(StoreCorrupt, match=r"store\.db.*\.recover"):
            store.query(Query("u"))
        with pytest.raises(StoreCorrupt):
            store.commit([Set(f"u/{n}", {}) for n in range(2000)])


@pytest.mark.parametrize(
    "body", ["{", '{"n":x}', "[1]", "7", '{"a":{"$t":"soon"}}', '{"a":{"$x":1}}', '{"a":{"$b":5}}']
)
def test_a_damaged_document_is_told_by_name(path: Path, body: str) -> None:
    with SQLiteStore(path) as store:
        store.commit([Set("u/a", {"n": 1}), Set("u/b", {"n": 1})])
        raw = sqlite3.connect(path)
        raw.execute("UPDATE docs SET body = ? WHERE id = 'a'", [body])
        raw.commit()
        raw.close()
        for call in (
            lambda: store.get("u/a"),
            lambda: store.get_many(["u/b", "u/a"]),
            lambda: store.query(Query("u")),
        ):
            with pytest.raises(StoreCorrupt, match="'u/a'"):
                call()
        with pytest.raises(WriteRejected, match="'u/a'"):
            store.commit([Update("u/a", {"n": 2})])
        if body == "{":
            with pytest.raises(StoreCorrupt, match=r"store\.db"):
                store.query(Query("u", (Filter("n", "==", 1),)))
        assert store.get("u/b").exists
        store.commit([Set("u/a", {"n": 3})])
        assert store.get("u/a").to_dict() == {"n": 3}


@POSIX
def test_a_file_that_was_replaced_or_removed(path: Path, store: SQLiteStore) -> None:
    store.commit([Set("u/a", {})])
    path.rename(path.with_name("moved.db"))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="moved, removed or replaced"):
            store.commit([Set("u/b", {})])
        health = store.health()
        assert not health.ok
        assert str(path) in health.detail
        path.touch()
    path.unlink()
    path.with_name("moved.db").rename(path)
    store.commit([Set("u/b", {})])
    assert store.health().ok


def test_a_clock_that_goes_backwards(path: Path) -> None:
    now = 5_000_000
    with SQLiteStore(path, clock_ns=lambda: now) as store:
        assert store.commit([Set("u/a", {}), Set("u/b", {})]) == [5_000_000, 5_000_001]
        now = 7
        assert store.commit([Set("u/c", {})]) == [5_000_002]
        now = 6_000_000
        assert store.commit([Set("u/d", {})]) == [6_000_000]
    with SQLiteStore(path, clock_ns=lambda: 1) as store:
        assert store.commit([Set("u/e", {})]) == [6_000_001]


def test_load_fills_a_store(store: SQLiteStore) -> None:
    assert store.load((f"u/{n}", {"n": n}) for n in range(5001)) == 5001
    assert store.load([]) == 0
    assert store.get("u/5000").to_dict() == {"n": 5000}
    with pytest.raises(RequestError):
        store.load([("u/x", {"n": object()})])
    with pytest.raises(ConfigError, match="chunk"):
        store.load([], chunk=0)


def test_power_durability_works_the_same(path: Path) -> None:
    with SQLiteStore(path, durability="power") as store:
        store.commit([Set("u/a", {"n": 1})])
        assert store.get("u/a").to_dict() == {"n": 1}


# -- other processes -------------------------------------------------------------------------------

HOLD_THE_LOCK = """
    import sqlite3, sys
    raw = sqlite3.connect(sys.argv[1], isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
    input()
    raw.execute("ROLLBACK")
    print("free", flush=True)
    input()
"""


def test_another_process_that_holds_the_lock(store: SQLiteStore, path: Path) -> None:
    store.commit([Set("u/a", {"n": 1})])
    with Child(HOLD_THE_LOCK, path) as child:
        assert child.line() == "locked"
        began = time.monotonic()
        with pytest.raises(StoreTimeout, match="nothing was done"):
            store.commit([Set("u/a", {"n": 2})], deadline=deadline_in(0.3))
        assert 0.25 < time.monotonic() - began < 0.8
        # readers never wait, and a new store can be made
        assert store.get("u/a").to_dict() == {"n": 1}
        assert len(store.query(Query("u")).documents) == 1
        with SQLiteStore(path) as second:
            assert second.get("u/a").exists
        waiting = threading.Timer(0.2, child.say)
        waiting.start()
        store.commit([Set("u/a", {"n": 3})], deadline=deadline_in(10))
        waiting.join()
        assert child.line() == "free"
    assert store.get("u/a").to_dict() == {"n": 3}


def test_commits_from_processes_lose_nothing(path: Path) -> None:
    script = """
        import sys
        from beastmode.errors import PreconditionFailed
        from beastmode.stores.documents import Precondition, Set
        from beastmode.stores.sqlite import SQLiteStore
        with SQLiteStore(sys.argv[1], deadline_s=30) as store:
            print("ready", flush=True)
            input()
            for n in range(40):
                print(*store.commit([Set(f"p{sys.argv[2]}/{n}", {"n": n})]))
                while True:
                    held = store.get("count/all")
                    value = held.data["n"] + 1 if held.exists else 1
                    wanted = (Precondition(version=held.version) if held.exists
                              else Precondition(exists=False))
                    try:
                        print(*store.commit([Set("count/all", {"n": value}, wanted)]))
                        break
                    except PreconditionFailed:
                        pass
    """
    children = [Child(script, path, number) for number in range(3)]
    for child in children:
        assert child.line() == "ready"
    for child in children:
        child.say()
    told = [[int(line) for line in child.finish().split()] for child in children]
    for versions in told:
        assert versions == sorted(versions)
    assert len({version for versions in told for version in versions}) == 240
    with SQLiteStore(path) as store:
        assert store.get("count/all").to_dict() == {"n": 120}
        assert [len(store.query(Query(f"p{n}")).documents) for n in range(3)] == [40] * 3


WRITE_PAIRS = """
    import sys
    from beastmode.stores.documents import Set
    from beastmode.stores.sqlite import SQLiteStore
    store = SQLiteStore(sys.argv[1], max_changes=50)
    n = int(sys.argv[2])
    while True:
        n += 1
        pair = [Set("pair/a", {"n": n}), Set("pair/b", {"n": n})]
        big = [Set(f"big/{n % 7}-{i}", {"n": n, "x": "y" * 3000}) for i in range(9)]
        store.commit(pair + big)
        print(n, flush=True)
"""


@POSIX
def test_kill_9_of_a_writer_leaves_a_sound_file(path: Path) -> None:
    chance = random.Random(7)
    reached = 0
    for _ in range(5):
        with Child(WRITE_PAIRS, path, reached) as child:
            for _ in range(chance.randrange(1, 12)):
                reached = int(child.line())
            time.sleep(chance.random() * 0.02)
            child.process.kill()
            rest, _ = child.process.communicate()
            whole = rest[: rest.rfind("\n") + 1].split()
            reached = int(whole[-1]) if whole else reached
        with SQLiteStore(path) as store:
            one, other = store.get_many(["pair/a", "pair/b"])
            assert one.data == other.data
            assert one.data is not None
            # what was acknowledged is there; one more may have been under way
            assert reached <= one.data["n"] <= reached + 1
            reached = one.data["n"]
            store.commit([Set("pair/c", {})])
        raw = sqlite3.connect(path)
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        raw.close()


FILL_THE_DISK = """
    import sys
    from beastmode.errors import StoreUnavailable
    from beastmode.stores.base import Query
    from beastmode.stores.documents import Set
    from beastmode.stores.sqlite import SQLiteStore
    where, limit = sys.argv[1], int(sys.argv[2])
    store = SQLiteStore(where)
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    n, failures = 0, 0
    while failures < 3:
        try:
            store.commit([Set(f"u/{n}-{part}", {"n": n, "x": "y" * 3000}) for part in range(5)])
        except StoreUnavailable as error:
            failures += 1
            assert where in str(error), error
            assert store.health().ok
            found = store.query(Query("u")).documents
            assert len(found) == 5 * n, (len(found), n)
            assert not store.get(f"u/{n}-0").exists
        else:
            assert not failures
            n += 1
        assert n < 1000
    print(n, flush=True)
    store.close()
    with SQLiteStore(where) as again:
        assert len(again.query(Query("u")).documents) == 5 * n
"""


@POSIX
def test_a_full_disk_applies_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """Files that may not grow: writes come short, then fail. Needs no rights."""
    assert int(Child(FILL_THE_DISK, tmp_path / "x.db", 300_000).finish()) > 3


def may_mount() -> bool:
    """Whether this user may mount a file system of its own; then the true thing is tested too."""
    if not sys.platform.startswith("linux"):
        return False
    with tempfile.TemporaryDirectory() as name:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", name]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


if may_mount():

    def test_a_full_file_system(tmp_path: Path) -> None:
        mount = 'mount -t tmpfs -o size=400k none "$0" && exec "$@"'
        prefix = ["unshare", "-rm", "sh", "-c", mount, tmp_path]
        script = FILL_THE_DISK.replace("assert store.health().ok", "store.health()")
        assert int(Child(script, tmp_path / "x.db", 0, prefix=prefix).finish()) > 3


# -- forks, ends, threads --------------------------------------------------------------------------


@POSIX
def test_a_child_of_a_fork_is_refused(path: Path) -> None:
    script = """
        import os, sys
        from beastmode.errors import ForkedError
        from beastmode.stores.base import Query, Target
        from beastmode.stores.documents import Set
        from beastmode.stores.sqlite import SQLiteStore
        store = SQLiteStore(sys.argv[1])
        store.commit([Set("u/a", {})])
        if not os.fork():
            refused = 0
            for call in (lambda: store.get("u/a"), lambda: store.get_many(["u/a"]),
                         lambda: store.query(Query("u")), lambda: store.commit([Set("u/b", {})]),
                         lambda: store.watch(Target(), print)):
                try:
                    call()
                except ForkedError as error:
                    assert "after the fork" in str(error)
                    refused += 1
            assert not store.health().ok
            store.close()
            own = SQLiteStore(sys.argv[1])
            own.commit([Set("u/child", {})])
            own.close()
            print("child", refused, flush=True)
            os._exit(0)
        os.wait()
        assert store.get("u/child").exists
        store.commit([Set("u/b", {})])
        store.close()
        print("parent")
    """
    assert Child(script, path).finish().split() == ["child", "5", "parent"]


def test_a_call_that_runs_too_long_is_interrupted_at_close(path: Path) -> None:
    store = SQLiteStore(path, deadline_s=60)
    store.load((f"u/{n}", {f"f{i}": n for i in range(30)}) for n in range(3000))
    outcome: list[BaseException] = []
    began = threading.Event()

    def search() -> None:
        # Nothing passes the last filter, so all the work is one statement of SQLite's.
        where = tuple(Filter(f"f{i % 30}", ">=", 0) for i in range(300))
        began.set()
        try:
            while True:
                store.query(Query("u", (*where, Filter("f1", "<", -1))))
        except ClosedError as error:
            outcome.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    began.wait()
    time.sleep(0.05)
    start = time.monotonic()
    store.close()
    assert time.monotonic() - start < 8
    thread.join(10)
    assert len(outcome) == 1


def test_connections_are_bounded_and_shared_fairly(path: Path) -> None:
    with SQLiteStore(path, connections=1) as store:
        store.commit([Set("u/a", {"n": 0})])
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                store.get("u/a")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for n in range(50):
                store.commit([Set("u/a", {"n": n})], deadline=deadline_in(5))
        finally:
            stop.set()
            for reader in readers:
                reader.join(10)


@POSIX
def test_nothing_is_left_open(path: Path) -> None:
    fds = Path("/proc/self/fd")
    if not fds.exists():
        fds = Path("/dev/fd")
    before = len(list(fds.iterdir()))
    for _ in range(5):
        store = SQLiteStore(path)
        watch = store.watch(Target(), lambda _change: None)
        store.commit([Set("u/a", {"t": time.time()})])
        threads = [threading.Thread(target=store.get, args=("u/a",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        store.close()
        assert not watch.active
    assert len(list(fds.iterdir())) == before
    assert [item.name for item in path.parent.iterdir()] == ["store.db"]


@POSIX
def test_a_failed_construction_leaves_nothing_open(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)
    fds = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    before = len(list(fds.iterdir()))
    for _ in range(5):
        with pytest.raises(StoreCorrupt):
            SQLiteStore(path)
    assert len(list(fds.iterdir())) == before


def test_names_are_quoted_in_errors_of_a_closed_store(path: Path) -> None:
    store = SQLiteStore(path)
    store.close()
    with pytest.raises(ClosedError, match=r"get: the store over .*store\.db is closed"):
        store.get("u/a")
    assert "closed" in repr(store)
    assert path.exists()
