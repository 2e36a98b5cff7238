"""Following many targets of the real emulator over raw Listen streams."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("google.cloud.firestore", reason="google-cloud-firestore is not installed")

from beastmode.errors import ClosedError, RequestError, StoreCorrupt, StoreError, StoreTimeout
from beastmode.stores.base import Change, Feed, Filter, Query, Subscription, Target
from beastmode.stores.documents import Delete, Operation, Set
from beastmode.stores.firestore import listen, stream
from beastmode.stores.firestore._google import load
from beastmode.stores.firestore.channel import Connection, find_place
from beastmode.stores.firestore.convert import Converter
from beastmode.stores.firestore.feeds import Feeds
from beastmode.stores.firestore.listen import ListenFeed
from beastmode.testing import Emulator, fresh_project, start_emulator
from beastmode.testing.pytest_plugin import Firestore
from store_support import wait_until
from support import FakeClock

A, B, USERS = Target(document="u/a"), Target(document="u/b"), Target(collection="u")


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.current: list[str] = []
        self.doubts: list[list[str]] = []
        self.unknown: list[str] = []
        self.hook: Callable[[Change], object] = lambda _change: None

    def on_change(self, change: Change) -> None:
        self.changes.append(change)
        self.hook(change)

    def on_current(self, target: Target) -> None:
        self.current.append(target.key)

    def on_doubt(self, targets: Sequence[Target] | None, why: str) -> None:
        assert targets is not None
        assert why
        self.doubts.append([one.key for one in targets])

    def on_unknown(self, paths: Sequence[str], why: str) -> None:
        assert why
        self.unknown.extend(paths)

    def newest(self, path: str) -> Any:
        found = [change.document for change in self.changes if change.path == path]
        return (found[-1].data if found[-1].exists else "deleted") if found else None


class Side:
    """A database and its feeds, with a connection of their own to write by."""

    def __init__(self, host: str, project: str, **options: Any) -> None:
        self.google = load()
        self.place = find_place(self.google, project, "(default)", emulator_host=host)
        self.convert = Converter(self.google, self.place.documents)
        self.writer = Connection(self.google, self.place)
        self.reader = Connection(self.google, self.place)
        self.feeds = Feeds(lambda: self.reader, self.convert, **options)

    def follow(self, *targets: Target) -> tuple[Feed, Heard]:
        heard = Heard()
        feed = self.feeds.open(heard)
        for target in targets:
            feed.add(target)
        wait_until(lambda: len(set(heard.current)) == len(targets), 20)
        return feed, heard

    def commit(self, *operations: Operation) -> list[int]:
        request = self.google.CommitRequest(
            database=self.writer.database,
            writes=[self.convert.write(operation) for operation in operations],
        )
        for attempt in range(5):
            try:
                self.writer.commit(
                    request, metadata=self.writer.metadata, timeout=10, wait_for_ready=True
                )
            except self.google.grpc.RpcError as error:
                # The emulator fails a commit that it tells a stream of which is just ending.
                if error.code().name != "UNKNOWN" or attempt == 4:
                    raise
            else:
                break
        return []

    def close(self) -> None:
        self.feeds.close()
        self.reader.close()
        self.writer.close()


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _earlier() -> None:
    """Note the threads that are there already: those are another test's."""
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def listening() -> list[str]:
    """Return the names of the threads of this test's feeds."""
    names = [thread.name for thread in threading.enumerate() if thread not in EARLIER]
    return [name for name in names if name.startswith("beastmode-listen")]


@pytest.fixture
def side(firestore: Firestore) -> Iterator[Side]:
    made = Side(firestore.host, firestore.project)
    yield made
    made.close()


@pytest.fixture(scope="module")
def mortal(emulator: Emulator) -> Iterator[Emulator]:
    """An emulator that tests may freeze and kill; asked for after the one that may be missing."""
    with start_emulator() as started:
        yield started


def test_documents_collections_and_queries_on_one_stream(side: Side) -> None:
    side.commit(Set("u/a", {"n": 1}), Set("v/a", {"n": 1}))
    grown = Target(query=Query("w", (Filter("n", ">", 17),)))
    feed, heard = side.follow(A, B, Target(collection="v"), grown)
    assert isinstance(feed, Feed)
    assert (feed.targets, feed.streams, feed.active, feed.error) == (4, 1, True, None)
    assert (heard.newest("u/a"), heard.newest("u/b")) == ({"n": 1}, "deleted")
    assert heard.newest("v/a") == {"n": 1}
    side.commit(Set("u/b", {"n": 2}), Delete("u/a"), Set("v/b", {"n": 2}), Set("w/a", {"n": 18}))
    wait_until(lambda: heard.newest("u/a") == "deleted")
    wait_until(lambda: heard.newest("u/b") == {"n": 2})
    wait_until(lambda: heard.newest("v/b") == {"n": 2})
    wait_until(lambda: heard.newest("w/a") == {"n": 18})
    side.commit(Delete("v/a"), Set("w/a", {"n": 1}))
    wait_until(lambda: heard.newest("v/a") == "deleted")
    wait_until(lambda: heard.unknown == ["w/a"])  # it has left the query; what it is, is not told
    assert feed.documents_read >= 6
    assert 0 <= time.monotonic() - feed.heard_at < 10


def test_targets_come_and_go_while_it_runs(side: Side) -> None:
    feed, heard = side.follow(A)
    feed.add(A)
    feed.add(B)
    wait_until(lambda: "u/b" in heard.current)
    feed.remove(A)
    feed.remove(A)
    assert feed.targets == 1
    side.commit(Set("u/a", {"n": 1}))
    side.commit(Set("u/b", {"n": 1}))
    wait_until(lambda: heard.newest("u/b") == {"n": 1})
    assert heard.newest("u/a") == "deleted"
    feed.add(A)
    wait_until(lambda: heard.newest("u/a") == {"n": 1})
    wait_until(lambda: heard.current.count("u/a") == 2)
    feed.remove(A)
    feed.remove(B)
    assert (feed.targets, feed.streams, feed.active) == (0, 0, True)
    feed.add(A)
    wait_until(lambda: heard.current.count("u/a") == 3)


@pytest.mark.parametrize("error", [StoreCorrupt("a new kind"), OverflowError("a bug")])
def test_a_document_that_cannot_be_read_is_unknown_and_not_deleted(
    side: Side, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    side.commit(Set("u/a", {"n": 1}), Set("u/b", {"n": 1}))
    read = Converter.document

    def document(self: Converter, message: Any) -> Any:
        if message.name.endswith("/u/a"):
            raise error
        return read(self, message)

    monkeypatch.setattr(Converter, "document", document)
    _, heard = side.follow(USERS, A)
    assert set(heard.unknown) == {"u/a"}
    assert heard.newest("u/a") is None
    assert heard.newest("u/b") == {"n": 1}
    monkeypatch.undo()
    side.commit(Set("u/a", {"n": 2}))
    wait_until(lambda: heard.newest("u/a") == {"n": 2})
    assert not any("u/a" in one for one in heard.doubts), "the stream has lived on"


def test_what_cannot_be_followed_is_refused(side: Side) -> None:
    feed, _ = side.follow()
    with pytest.raises(RequestError, match="everything"):
        feed.add(Target())
    with pytest.raises(RequestError, match="Target"):
        feed.add("u/a")  # type: ignore[arg-type]
    assert feed.targets == 0
    feed.close()
    with pytest.raises(ClosedError):
        feed.add(A)


def test_a_target_that_the_server_refuses_disturbs_no_other(side: Side) -> None:
    feed, heard = side.follow(A)
    reserved = Target(document="u/__no__")
    feed.add(reserved)
    wait_until(lambda: ["u/__no__"] in heard.doubts)
    assert not feed.active
    assert "reserved" in str(feed.error)
    assert heard.doubts == [["u/__no__"]]
    side.commit(Set("u/a", {"n": 1}))
    wait_until(lambda: heard.newest("u/a") == {"n": 1})
    feed.remove(reserved)
    assert (feed.active, feed.error) == (True, None)


def test_targets_are_spread_over_streams(firestore: Firestore) -> None:
    side = Side(firestore.host, firestore.project, targets_per_stream=10)
    targets = [Target(document=f"u/{n}") for n in range(25)]
    feed, heard = side.follow(*targets)
    assert feed.streams == 3
    side.commit(*[Set(f"u/{n}", {"n": n}) for n in range(25)])
    wait_until(lambda: all(heard.newest(f"u/{n}") == {"n": n} for n in range(25)))
    for target in targets[:10]:
        feed.remove(target)
    assert (feed.streams, feed.targets) == (2, 15)
    assert feed.documents_read == 25
    began = time.monotonic()
    feed.close()
    feed.close()
    assert time.monotonic() - began < 4
    assert (feed.active, feed.error, feed.targets) == (False, None, 0)
    wait_until(lambda: not listening())
    side.close()


def test_a_listener_that_raises_stops_nothing(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    feed, heard = side.follow(A, B)

    def raises(change: Change) -> None:
        if change.path == "u/a":
            raise ValueError("on purpose")

    heard.hook = raises
    side.commit(Set("u/a", {"n": 1}))
    side.commit(Set("u/b", {"n": 1}))
    wait_until(lambda: heard.newest("u/b") == {"n": 1})
    assert feed.active
    assert feed.listener_errors == 1
    assert (heard.unknown, heard.doubts) == (["u/a"], [])
    assert "ValueError: on purpose" in caplog.text


def test_nothing_is_told_after_close_which_may_be_called_by_the_listener(side: Side) -> None:
    feed, heard = side.follow(A)
    heard.hook = lambda _change: feed.close()
    side.commit(Set("u/a", {"n": 1}))
    wait_until(lambda: not feed.active)
    side.commit(Set("u/a", {"n": 2}))
    _, other = side.follow(A)
    assert other.newest("u/a") == {"n": 2}
    assert heard.newest("u/a") == {"n": 1}


def test_a_server_that_dies_and_returns_empty(mortal: Emulator) -> None:
    side = Side(mortal.host, fresh_project())
    side.commit(Set("u/a", {"n": 1}), Set("v/a", {"n": 1}))
    feed, heard = side.follow(A, B, Target(collection="v"))
    mortal.kill()
    wait_until(lambda: len(heard.doubts) == 1)
    assert sorted(heard.doubts[0]) == ["u/a", "u/b", "v"]
    wait_until(lambda: not feed.active and feed.error is not None)
    assert feed.heard_at == -float("inf")
    heard.current.clear()
    mortal.restart()
    served = time.monotonic()
    wait_until(lambda: len(set(heard.current)) == 3, 5)
    assert time.monotonic() - served < 5
    assert (feed.active, feed.error) == (True, None)
    # It came back with nothing, and all of that was told.
    assert (heard.newest("u/a"), heard.newest("v/a")) == ("deleted", "deleted")
    side.commit(Set("u/a", {"n": 2}))
    wait_until(lambda: heard.newest("u/a") == {"n": 2})
    side.close()


class Dropping:
    """A connection whose streams say one thing and end, `lives` seconds after they began."""

    def __init__(self, clock: FakeClock, lives: list[float]) -> None:
        self.google = load()
        self.place = find_place(self.google, "p", "(default)", emulator_host="localhost:1")
        self.database = self.place.database
        self.opened = 0
        self.over = threading.Event()
        self._clock = clock
        self._lives = lives

    def listen(self, _requests: Iterator[Any]) -> Any:
        if self.opened == len(self._lives):
            self.over.set()
        life = self._lives[self.opened] if self.opened < len(self._lives) else 0.0
        self.opened += 1
        return _Call(self.google.ListenResponse(target_change={}), self._clock, life)


class _Call:
    def __init__(self, message: Any, clock: FakeClock, life: float) -> None:
        self._message, self._clock, self._life = message, clock, life

    def __iter__(self) -> Iterator[Any]:
        yield self._message
        self._clock.advance(self._life)

    def cancel(self) -> None:
        """End, which it does by itself."""


def test_streams_that_end_at_once_are_opened_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: clock.now))
    longest: list[float] = []

    class Waits:
        def uniform(self, least: float, most: float) -> float:
            assert least == 0.1
            longest.append(most)
            return 0.001

    monkeypatch.setattr(stream.random, "Random", Waits)
    connection: Any = Dropping(clock, [0.0, 0.5, 0.5, 0.5, 1.9, 2.0, 0.1, 60.0])
    converter = Converter(connection.google, connection.place.documents)
    feed = ListenFeed(connection, converter, Heard())
    feed.add(A)
    assert connection.over.wait(20)
    feed.close()
    assert longest[:8] == [0.2, 0.4, 0.8, 1.0, 1.0, 0.2, 0.4, 0.2]


def test_a_frozen_server_is_noticed_by_its_silence(mortal: Emulator) -> None:
    side = Side(mortal.host, fresh_project(), silence_s=3.0)
    feed, heard = side.follow(A)
    time.sleep(3.5)  # silence for longer than that, but the probe is answered
    assert feed.active
    assert heard.doubts == []
    mortal.freeze()
    try:
        frozen = time.monotonic()
        wait_until(lambda: heard.doubts == [["u/a"]], 5)
        assert time.monotonic() - frozen < 4
        assert not feed.active
        began = time.monotonic()
        Side(mortal.host, fresh_project()).feeds.open(Heard()).close()
        assert time.monotonic() - began < 0.5
    finally:
        mortal.thaw()
    wait_until(lambda: heard.current == ["u/a", "u/a"], 5)
    side.commit(Set("u/a", {"n": 1}))
    wait_until(lambda: heard.newest("u/a") == {"n": 1})
    side.close()


# -- plain watches -----------------------------------------------------------------------------


def test_a_watch_tells_what_changes_from_then_on(side: Side) -> None:
    side.commit(Set("u/old", {"n": 0}))
    seen: list[Change] = []
    watch = side.feeds.watch(USERS, seen.append, time.monotonic() + 10)
    assert isinstance(watch, Subscription)
    assert watch.active
    side.commit(Set("u/a", {"n": 1}))
    side.commit(Delete("u/old"))
    wait_until(lambda: len(seen) == 2)
    assert [(one.path, one.document.exists) for one in seen] == [("u/a", True), ("u/old", False)]
    watch.close()
    watch.close()
    assert (watch.active, watch.error) == (False, None)


def test_a_watch_that_cannot_be_had_is_an_error(side: Side) -> None:
    with pytest.raises(StoreTimeout, match="not followed"):
        side.feeds.watch(USERS, print, time.monotonic() - 1)
    with pytest.raises(StoreError, match="reserved"):
        side.feeds.watch(Target(document="u/__no__"), print, time.monotonic() + 10)
    with pytest.raises(RequestError):
        side.feeds.watch(USERS, "print", time.monotonic() + 10)  # type: ignore[arg-type]
    side.feeds.close()
    with pytest.raises(ClosedError):
        side.feeds.watch(USERS, print, time.monotonic() + 10)
    # The caller's time was over, so the server is parted from in the background.
    wait_until(lambda: not listening())


# -- a server that a test plays ----------------------------------------------------------------


class PlayedServer:
    """A connection whose streams say what `script` makes of each request."""

    def __init__(self, script: Callable[[Any, Callable[..., None]], None]) -> None:
        self.google = load()
        place = find_place(self.google, "p", "(default)", emulator_host="nowhere:1")
        self.database, self.documents = place.database, place.documents
        self.convert = Converter(self.google, self.documents)
        self.script = script
        self.streams = 0
        self.requests: list[Any] = []

    def listen(self, requests: Iterator[Any]) -> Any:
        self.streams += 1
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def say(**fields: Any) -> None:
            answers.put(self.google.ListenResponse(**fields))

        def play() -> None:
            try:
                for request in requests:
                    self.requests.append(request)
                    self.script(request, say)
            except OSError as error:
                answers.put(error)
            answers.put(None)

        threading.Thread(target=play, daemon=True).start()
        return PlayedCall(answers)

    def feed(self) -> tuple[Any, Heard]:
        heard = Heard()
        made: Any = self
        return ListenFeed(made, self.convert, heard), heard


class PlayedCall:
    def __init__(self, answers: queue.SimpleQueue[Any]) -> None:
        self.answers = answers

    def __iter__(self) -> Iterator[Any]:
        while (answer := self.answers.get()) is not None:
            if isinstance(answer, OSError):
                raise answer
            yield answer

    def cancel(self) -> None:
        self.answers.put(None)


class ServerError(OSError):
    """What gRPC raises: an error with a code and details."""

    def code(self) -> Any:
        return type("Code", (), {"name": "UNKNOWN"})

    def details(self) -> str:
        return ""


def tell_current(target_id: int, say: Callable[..., None]) -> None:
    say(target_change={"target_change_type": 3, "target_ids": [target_id], "resume_token": b"t"})


def test_a_target_that_ends_every_stream_is_put_aside_and_the_rest_goes_on() -> None:
    def script(request: Any, say: Callable[..., None]) -> None:
        added = request.add_target
        if added.documents.documents and added.documents.documents[0].endswith("/u/bad"):
            raise ServerError
        if added.target_id:
            tell_current(added.target_id, say)

    server = PlayedServer(script)
    feed, heard = server.feed()
    for n in range(20):
        feed.add(Target(document=f"u/{n}"))
    feed.add(Target(document="u/bad"))
    for n in range(20, 40):
        feed.add(Target(document=f"u/{n}"))
    wait_until(lambda: ["u/bad"] in heard.doubts, 20)
    wait_until(lambda: len(set(heard.current)) == 40, 20)
    assert "u/bad" in str(feed.error)
    assert server.streams < 12
    tokens = [one.add_target.resume_token for one in server.requests if one.add_target.target_id]
    assert b"t" in tokens, "what was current goes on from there"
    feed.close()


def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def script(request: Any, say: Callable[..., None]) -> None:
        if server.streams < 5:
            raise OSError("nobody is there")
        tell_current(request.add_target.target_id, say)

    server = PlayedServer(script)
    feed, heard = server.feed()
    feed.add(A)
    wait_until(lambda: heard.current == ["u/a"], 20)
    assert caplog.text.count("a Listen stream failed: ") == 1
    feed.close()


def test_what_makes_no_sense_begins_a_new_stream_and_is_doubt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strange = iter(
        [
            {"target_change": {"target_change_type": 3, "target_ids": [99]}},
            {"target_change": {"target_change_type": 77, "target_ids": [1]}},
            {"document_delete": {"document": "projects/other/databases/x/documents/u/a"}},
        ]
    )

    def script(request: Any, say: Callable[..., None]) -> None:
        tell_current(request.add_target.target_id, say)
        nonsense = next(strange, None)
        if nonsense is not None:
            say(**nonsense)

    server = PlayedServer(script)
    feed, heard = server.feed()
    feed.add(A)
    wait_until(lambda: server.streams == 4 and heard.current.count("u/a") == 4, 20)
    assert heard.doubts == [["u/a"]] * 3
    assert (feed.active, feed.error) == (True, None)
    assert caplog.text.count("a Listen stream failed") == 3
    feed.close()


def test_a_document_that_cannot_be_read_is_unknown_and_the_stream_goes_on() -> None:
    def script(request: Any, say: Callable[..., None]) -> None:
        target_id = request.add_target.target_id
        name = server.documents + "u/a"
        for fields in ({"n": {}}, {"n": {"integer_value": 7}}):
            document = {"name": name, "fields": fields, "update_time": {"seconds": 1}}
            say(document_change={"document": document, "target_ids": [target_id]})
        say()  # a kind of message that is not known yet
        tell_current(target_id, say)

    server = PlayedServer(script)
    feed, heard = server.feed()
    feed.add(A)
    wait_until(lambda: heard.current == ["u/a"])
    assert heard.unknown == ["u/a"]
    assert heard.newest("u/a") == {"n": 7}
    assert server.streams == 1
    feed.close()


def test_close_does_not_wait_for_ever_for_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_CALLBACK_PATIENCE_S", 0.1)
    monkeypatch.setattr(listen, "_JOIN_S", 0.1)
    go = threading.Event()

    def script(request: Any, say: Callable[..., None]) -> None:
        document = {"name": server.documents + "u/a", "update_time": {"seconds": 1}}
        say(document_change={"document": document, "target_ids": [request.add_target.target_id]})

    server = PlayedServer(script)
    feed, heard = server.feed()
    heard.hook = lambda _change: go.wait(10)
    feed.add(A)
    wait_until(lambda: heard.changes)
    began = time.monotonic()
    feed.close()
    assert time.monotonic() - began < 2
    go.set()
