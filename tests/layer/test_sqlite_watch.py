"""Watches of a SQLite file: other processes, nudges that are lost, watchers that fall behind."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode.errors import ClosedError, StoreCorrupt, StoreError, StoreUnavailable
from beastmode.stores import sqlite_nudge, sqlite_watch
from beastmode.stores.base import Change, Target
from beastmode.stores.documents import Delete, Set
from beastmode.stores.sqlite import SQLiteStore
from store_support import Child, wait_until

SOCKETS = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX") or sys.platform == "win32",
    reason="this platform has no local datagram sockets",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path) as made:
        yield made


class Seen(list[Change]):
    """Collects changes; `numbers` are their field n, None for tombstones."""

    def __call__(self, change: Change) -> None:
        self.append(change)

    @property
    def numbers(self) -> list[Any]:
        return [None if c.document.data is None else c.document.data["n"] for c in self]


COMMIT = """
    import sys
    from beastmode.stores.documents import Delete, Set
    from beastmode.stores.sqlite import SQLiteStore
    with SQLiteStore(sys.argv[1]) as store:
        print("ready", flush=True)
        for line in sys.stdin:
            if line.startswith("delete"):
                print(*store.commit([Delete("u/a")]), flush=True)
            elif line.startswith("many"):
                for n in range(300):
                    store.commit([Set(f"many/{n}", {"n": n})])
                print("done", flush=True)
            else:
                print(*store.commit([Set("u/a", {"n": int(line)})]), flush=True)
"""


def test_changes_of_another_process_are_told(store: SQLiteStore, path: Path) -> None:
    seen, users = Seen(), Seen()
    store.watch(Target(), seen)
    store.watch(Target(document="u/a"), users)
    with Child(COMMIT, path) as child:
        assert child.line() == "ready"
        versions = []
        for n in (1, 2):
            child.say(str(n))
            versions.append(int(child.line()))
            wait_until(lambda n=n: len(users) == n)
        child.say("delete")
        versions.append(int(child.line()))
        wait_until(lambda: len(users) == 3)
        assert [c.document.version for c in users] == versions
        assert users.numbers == [1, 2, None]
        store.commit([Set("u/own", {"n": 5})])
        child.say("many")
        assert child.line() == "done"
        wait_until(lambda: len(seen) == 304)
    assert seen.numbers == [1, 2, None, 5, *range(300)]


@SOCKETS
def test_a_nudge_comes_long_before_the_next_reading(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_nudge, "POLL_NUDGED_S", 60.0)
    seen = Seen()
    store.watch(Target(), seen)
    directory = path.with_name("s.db-watch")
    wait_until(lambda: directory.exists() and list(directory.iterdir()))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with Child(COMMIT, path) as child:
        assert child.line() == "ready"
        for n in range(3):
            child.say(str(n))
            child.line()
            wait_until(lambda n=n: len(seen) == n + 1)
    store.close()
    assert [item.name for item in path.parent.iterdir()] == ["s.db"]


@SOCKETS
def test_a_lost_nudge_costs_time_and_nothing_else(store: SQLiteStore, path: Path) -> None:
    seen = Seen()
    store.watch(Target(), seen)
    directory = path.with_name("s.db-watch")
    wait_until(lambda: directory.exists() and list(directory.iterdir()))
    (name,) = directory.iterdir()
    name.unlink()
    with Child(COMMIT, path) as child:
        assert child.line() == "ready"
        child.say("1")
        child.line()
        wait_until(lambda: seen.numbers == [1], seconds=5)


@pytest.mark.parametrize("hurdle", ["long path", "file in the way", "open directory", "no sockets"])
def test_without_sockets_the_file_is_read_often(
    tmp_path: Path, hurdle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.db"
    if hurdle == "long path":
        path = tmp_path / ("d" * 90) / "s.db"
        path.parent.mkdir()
    elif hurdle == "file in the way":
        (tmp_path / "s.db-watch").touch()
    elif hurdle == "open directory":
        (tmp_path / "s.db-watch").mkdir()
        (tmp_path / "s.db-watch").chmod(0o777)
    else:
        monkeypatch.setattr(sqlite_nudge, "HAS_SOCKETS", False)
    seen = Seen()
    with SQLiteStore(path) as store:
        store.watch(Target(), seen)
        with Child(COMMIT, path) as child:
            assert child.line() == "ready"
            for n in range(3):
                child.say(str(n))
                child.line()
                wait_until(lambda n=n: len(seen) == n + 1, seconds=5)
        store.commit([Set("u/own", {"n": 9})])
        wait_until(lambda: len(seen) == 4)


@SOCKETS
def test_sockets_of_dead_processes_are_removed(store: SQLiteStore, path: Path) -> None:
    script = """
        import sys
        from beastmode.stores.base import Target
        from beastmode.stores.sqlite import SQLiteStore
        store = SQLiteStore(sys.argv[1])
        store.watch(Target(), print)
        print("ready", flush=True)
        input()
    """
    directory = path.with_name("s.db-watch")
    with Child(script, path) as child:
        assert child.line() == "ready"
        wait_until(lambda: directory.exists() and list(directory.iterdir()))
        child.process.kill()
        child.process.wait()
    assert len(list(directory.iterdir())) == 1
    store.commit([Set("u/a", {"n": 1})])
    assert list(directory.iterdir()) == []


def test_the_list_of_changes_is_bounded(path: Path) -> None:
    with SQLiteStore(path, max_changes=100) as store:
        for n in range(2_000):
            store.commit([Set(f"u/{n % 300}", {"n": n})])
    for _ in range(5):  # also by processes that live for one commit
        with SQLiteStore(path, max_changes=100) as store:
            store.commit([Set(f"u/{n}", {"n": -n}) for n in range(50)])
    raw = sqlite3.connect(path)
    ((count, newest),) = raw.execute("SELECT count(*), max(version) FROM changes")
    ((pruned,),) = raw.execute("SELECT value FROM meta WHERE name = 'pruned_through'")
    ((oldest,),) = raw.execute("SELECT min(version) FROM changes")
    raw.close()
    assert count <= 160
    assert 0 < pruned < oldest
    with SQLiteStore(path) as store:
        assert store.get("u/none").version == newest


def test_a_watch_that_fell_behind_ends_with_an_error(path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(_change: Change) -> None:
        entered.set()
        go.wait(20)

    with SQLiteStore(path, max_changes=100) as store:
        watch = store.watch(Target(), slow)
        store.commit([Set("u/first", {})])
        assert entered.wait(10)
        for n in range(150):
            store.commit([Set(f"u/{n}", {"n": n})])
        assert watch.active
        go.set()
        wait_until(lambda: not watch.active)
        assert isinstance(watch.error, StoreError)
        assert "fell behind" in str(watch.error)
        # a new watch works
        seen = Seen()
        store.watch(Target(), seen)
        store.commit([Set("u/after", {"n": -1})])
        wait_until(lambda: seen.numbers == [-1])


def test_a_document_that_was_made_and_removed_many_times(store: SQLiteStore) -> None:
    seen = Seen()
    store.watch(Target(), seen)
    for n in range(50):
        store.commit([Set("u/a", {"n": n})])
        store.commit([Delete("u/a")])
    store.commit([Set("u/a", {"n": 1}), Delete("u/a"), Set("u/a", {"n": 99})])
    wait_until(lambda: seen and seen.numbers[-1] == 99)
    versions = [c.document.version for c in seen]
    assert versions == sorted(set(versions))


def test_the_thread_lives_while_there_is_a_watch(store: SQLiteStore) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("beastmode-watch")]

    store.commit([Set("u/a", {"n": 1})])
    assert threads() == []
    watches = [store.watch(Target(), Seen()) for _ in range(3)]
    assert len(threads()) == 1
    for watch in watches:
        watch.close()
    wait_until(lambda: threads() == [])
    seen = Seen()
    store.watch(Target(), seen)
    store.commit([Set("u/a", {"n": 2})])
    wait_until(lambda: seen.numbers == [2])
    store.close()
    assert threads() == []


def test_watches_come_and_go_while_others_are_told_everything(store: SQLiteStore) -> None:
    seen = Seen()
    store.watch(Target(collection="u"), seen)
    for n in range(100):
        other = store.watch(Target(), Seen())
        store.commit([Set(f"u/{n}", {"n": n})])
        other.close()
    wait_until(lambda: len(seen) == 100)
    assert seen.numbers == list(range(100))


def test_each_watch_is_told_from_its_beginning_on(store: SQLiteStore) -> None:
    watched = []
    for n in range(40):
        seen = Seen()
        watched.append((n, seen))
        store.watch(Target(), seen)
        store.commit([Set(f"u/{n}", {"n": n})])
    for first, seen in watched:
        wait_until(lambda seen=seen: seen.numbers and seen.numbers[-1] == 39)
        assert seen.numbers == list(range(first, 40))


def test_a_damaged_document_ends_the_watches_of_it(store: SQLiteStore, path: Path) -> None:
    concerned, other = Seen(), Seen()
    ends = store.watch(Target(collection="u"), concerned)
    stays = store.watch(Target(collection="v"), other)
    raw = sqlite3.connect(path)
    raw.execute("INSERT INTO docs VALUES ('u', 'a', 9000000000000000000, '{')")
    raw.execute("INSERT INTO changes VALUES (9000000000000000000, 'u', 'a', 0)")
    raw.commit()
    raw.close()
    wait_until(lambda: not ends.active)
    assert isinstance(ends.error, StoreCorrupt)
    assert "u/a" in str(ends.error)
    store.commit([Set("v/b", {"n": 1})])
    wait_until(lambda: other.numbers == [1])
    assert stays.active
    assert concerned == []


def test_a_file_that_stays_away_ends_the_watches(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_watch, "_GIVE_UP_S", 0.2)
    watch = store.watch(Target(), Seen())
    path.rename(path.with_name("moved"))
    wait_until(lambda: not watch.active)
    assert isinstance(watch.error, StoreUnavailable)
    path.with_name("moved").rename(path)
    seen = Seen()
    store.watch(Target(), seen)
    store.commit([Set("u/a", {"n": 1})])
    wait_until(lambda: seen.numbers == [1])


def test_a_file_that_comes_back_goes_on(store: SQLiteStore, path: Path) -> None:
    seen = Seen()
    watch = store.watch(Target(), seen)
    path.rename(path.with_name("moved"))
    wait_until(lambda: store._watcher.read_errors)
    path.with_name("moved").rename(path)
    store.commit([Set("u/a", {"n": 1})])
    wait_until(lambda: seen.numbers == [1])
    assert watch.active


def test_a_thread_that_fails_ends_the_watches_and_another_starts(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> bool:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_watch.Watcher, "_read_page", broken)
        watch = store.watch(Target(), Seen())
        wait_until(lambda: not watch.active)
        assert "on purpose" in str(watch.error)
        wait_until(lambda: store._watcher._thread is None)
    seen = Seen()
    store.watch(Target(), seen)
    store.commit([Set("u/a", {"n": 1})])
    wait_until(lambda: seen.numbers == [1])


def test_close_from_an_on_change(path: Path) -> None:
    store = SQLiteStore(path)
    done = threading.Event()

    def close(_change: Change) -> None:
        store.close()
        done.set()

    store.watch(Target(), close)
    store.commit([Set("u/a", {})])
    assert done.wait(10)
    with pytest.raises(ClosedError):
        store.get("u/a")
    wait_until(lambda: store._watcher._thread is None)


def test_close_does_not_wait_for_ever_for_an_on_change(path: Path) -> None:
    store = SQLiteStore(path)
    entered, go = threading.Event(), threading.Event()

    def hangs(_change: Change) -> None:
        entered.set()
        go.wait(30)

    store.watch(Target(), hangs)
    store.commit([Set("u/a", {})])
    assert entered.wait(10)
    began = time.monotonic()
    store.close()
    assert time.monotonic() - began < 6
    go.set()
    wait_until(lambda: store._watcher._thread is None)


@SOCKETS
def test_a_linked_nudge_directory_is_not_followed(store: SQLiteStore, path: Path) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir(0o700)
    trap = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    trap.bind(os.fspath(elsewhere / "x.sock"))
    trap.setblocking(False)
    path.with_name("s.db-watch").symlink_to(elsewhere)
    store.commit([Set("u/a", {"n": 1})])
    with pytest.raises(BlockingIOError):
        trap.recv(10)
    trap.close()
