"""The state of one Listen stream, message by message."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import pytest

from beastmode.stores.base import Change, Filter, Query, Target
from beastmode.stores.documents import Document
from beastmode.stores.firestore.listen import ListenFeed
from beastmode.stores.firestore.targets import (
    PROBE,
    Request,
    TargetChange,
    TargetTable,
    UnexpectedMessageError,
)
from support import FakeClock

ADD, REMOVE, CURRENT, RESET = (
    TargetChange.ADD,
    TargetChange.REMOVE,
    TargetChange.CURRENT,
    TargetChange.RESET,
)
A, B = Target(document="u/a"), Target(document="u/b")
USERS = Target(collection="u")
GROWN = Target(query=Query("u", (Filter("age", ">", 17),)))


class Log:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.inferred: list[str] = []

    def on_change(self, change: Change) -> None:
        document = change.document
        if change.inferred:
            self.inferred.append(change.path)
        self.said.append((document.path, document.version if document.exists else None))

    def on_current(self, target: Target) -> None:
        self.said.append(("current", target.key))

    def on_doubt(self, targets: Sequence[Target] | None, why: str) -> None:
        assert why
        assert targets is not None
        self.said.append(("doubt", *[one.key for one in targets]))

    def on_unknown(self, paths: Sequence[str], why: str) -> None:
        assert why
        self.said.append(("unknown", *paths))

    def take(self) -> list[Any]:
        said, self.said = self.said, []
        return said


class Stream:
    """A table, its log and a server that a test plays."""

    def __init__(self, clock: FakeClock, **options: Any) -> None:
        self.clock = clock
        self.log = Log()
        self.table = TargetTable(self.log, silence_s=60.0, timer=clock, **options)
        self.table.opened(clock())

    def follow(self, *targets: Target) -> list[int]:
        for target in targets:
            self.table.add(target)
        return self.asked()

    def asked(self) -> list[int]:
        return [one.target_id for one in self.table.requests() if one.target is not None]

    def change(self, kind: int, *ids: int, **details: Any) -> None:
        self.table.heard(self.clock())
        self.table.target_change(kind, ids, **details)

    def put(self, path: str, version: int, *ids: int, removed: Sequence[int] = ()) -> None:
        self.table.heard(self.clock())
        self.table.document(Document(path, {}, version), ids, removed)

    def settle(self, *targets: Target) -> list[int]:
        """Follow documents that exist at version 1, and let them become current."""
        ids = self.follow(*targets)
        for target, one in zip(targets, ids, strict=True):
            self.change(ADD, one)
            if target.document is not None:
                self.put(target.document, 1, one)
            self.change(CURRENT, one, token=b"t1", version=1)
        self.log.take()
        return ids

    def reopen(self) -> list[Request]:
        self.table.opened(self.clock())
        return self.table.requests()


@pytest.fixture
def stream(clock: FakeClock) -> Stream:
    return Stream(clock)


def test_a_document_is_told_and_then_current(stream: Stream) -> None:
    (one,) = stream.follow(A)
    assert not stream.table.all_current
    stream.change(ADD, one)
    stream.put("u/a", 5, one)
    stream.change(CURRENT, one, token=b"t", version=6)
    stream.put("u/a", 7, one)
    stream.table.deleted("u/a", 8, [one])
    assert stream.log.said == [("u/a", 5), ("current", "u/a"), ("u/a", 7), ("u/a", None)]
    assert stream.table.all_current
    assert stream.table.documents_read == 2


def test_ids_are_never_used_twice(stream: Stream) -> None:
    (first,) = stream.settle(A)
    stream.table.remove(A)
    stream.table.add(A)
    off, on = stream.table.requests()
    assert off == Request(first, None)
    assert on == Request(first + 1, A)
    # What the server still says about the first is about nothing that is followed.
    stream.put("u/a", 2, first)
    stream.change(REMOVE, first)
    assert stream.log.said == []
    stream.put("u/a", 2, first + 1)
    assert stream.log.said == [("u/a", 2)]


def test_used_up_ids_end_the_stream_and_lose_no_target(clock: FakeClock) -> None:
    stream = Stream(clock, last_id=2)
    assert stream.follow(A, B) == [1, 2]
    stream.table.add(USERS)
    with pytest.raises(UnexpectedMessageError):
        stream.table.requests()
    stream.table.failed("used up")
    stream.table.remove(A)
    assert [one.target for one in stream.reopen()] == [B, USERS]


def test_an_id_that_was_never_given_is_no_message_to_trust(stream: Stream) -> None:
    stream.settle(A)
    for call in (
        lambda: stream.put("u/a", 2, 99),
        lambda: stream.change(CURRENT, 99),
        lambda: stream.table.filter(99, 0),
        lambda: stream.change(77),
    ):
        with pytest.raises(UnexpectedMessageError):
            call()


def test_a_document_that_is_missing_is_told_as_a_tombstone(stream: Stream) -> None:
    (one,) = stream.follow(A)
    stream.change(ADD, one)
    stream.table.deleted("u/a", 4, [one])
    stream.change(CURRENT, one, version=5)
    assert stream.log.take() == [("u/a", None), ("current", "u/a")]
    assert stream.log.inferred == []
    stream.put("u/a", 6, one)
    assert stream.log.take() == [("u/a", 6)]


def test_a_document_of_which_nothing_is_said_does_not_exist(stream: Stream) -> None:
    one, two = stream.follow(A, B)
    stream.change(CURRENT, one, version=5)
    assert stream.log.take() == [("u/a", None), ("current", "u/a")]
    assert stream.log.inferred == ["u/a"]
    # Without a version there is no tombstone, but a doubt.
    stream.change(CURRENT, two)
    assert stream.log.take() == [("current", "u/b"), ("unknown", "u/b")]


@pytest.mark.parametrize("target", [A, USERS, GROWN])
def test_a_document_that_cannot_be_read_is_unknown_and_not_missing(
    stream: Stream, target: Target
) -> None:
    (one,) = stream.follow(target)
    stream.put("u/a", 1, one)
    stream.change(CURRENT, one, token=b"t", version=2)
    stream.change(RESET, one)
    stream.log.take()
    stream.table.unreadable("u/a", [one], [], "it has a value of an unknown kind")
    stream.table.filter(one, 1)
    stream.change(CURRENT, one, version=4)
    assert stream.log.take() == [("unknown", "u/a"), ("current", target.key)]
    stream.table.unreadable("u/a", [one], [], "still")
    assert stream.log.take() == [("unknown", "u/a")]
    stream.put("u/a", 1, one)
    assert stream.log.take() == [("u/a", 1)], "it can be read again"
    stream.table.unreadable("u/a", [], [one], "it left, with a value of an unknown kind")
    stream.table.filter(one, 0)
    assert stream.log.take() == [("unknown", "u/a")]
    assert stream.table.documents_read == 5, "as it is billed"


def test_an_unreadable_document_of_others_is_not_told(stream: Stream) -> None:
    (one,) = stream.settle(A)
    stream.table.remove(A)
    stream.table.unreadable("u/a", [one], [], "late")
    assert stream.log.take() == []


def test_a_reset_is_doubt_until_current(stream: Stream) -> None:
    (one,) = stream.follow(USERS)
    for path in ("u/a", "u/b", "u/c"):
        stream.put(path, 1, one)
    stream.change(CURRENT, one, token=b"t", version=2)
    stream.log.take()
    stream.change(RESET, one, token=b"x")
    assert stream.log.take() == [("doubt", "u")]
    assert not stream.table.all_current
    stream.put("u/a", 1, one)
    stream.put("u/b", 3, one)
    assert stream.log.take() == [("u/b", 3)], "what is known is not told again"
    stream.change(CURRENT, one, version=4)
    assert stream.log.take() == [("u/c", None), ("current", "u")]


def test_what_a_query_does_not_tell_again_after_a_reset_is_doubtful(stream: Stream) -> None:
    (one,) = stream.follow(GROWN)
    stream.put("u/a", 1, one)
    stream.change(CURRENT, one, version=2)
    stream.change(RESET, one)
    stream.log.take()
    stream.change(CURRENT, one, version=3)
    assert stream.log.take() == [("current", GROWN.key), ("unknown", "u/a")]


def test_a_second_reset_before_current_forgets_nothing(stream: Stream) -> None:
    (one,) = stream.follow(USERS)
    for path in ("u/a", "u/b", "u/c"):
        stream.put(path, 1, one)
    stream.change(CURRENT, one, version=2)
    stream.change(RESET, one)
    stream.put("u/a", 1, one)
    stream.change(RESET, one)
    stream.log.take()
    stream.put("u/b", 1, one)
    stream.change(CURRENT, one, version=3)
    *gone, last = stream.log.take()
    assert sorted(gone) == [("u/a", None), ("u/c", None)]
    assert last == ("current", "u")


def test_no_ids_are_all_targets(stream: Stream) -> None:
    stream.settle(A, B)
    stream.change(RESET)
    assert stream.log.take() == [("doubt", "u/a"), ("doubt", "u/b")]
    stream.put("u/a", 1, 1)
    stream.put("u/b", 1, 2)
    stream.change(CURRENT)
    assert stream.log.take() == [("current", "u/a"), ("current", "u/b")]
    stream.change(REMOVE, code=13, message="all of it")
    assert stream.log.take() == [("doubt", "u/a"), ("doubt", "u/b")]


def test_a_document_that_leaves_a_query_is_doubtful(stream: Stream) -> None:
    (one,) = stream.follow(GROWN)
    stream.put("u/a", 1, one)
    stream.put("u/b", 1, one)
    stream.change(CURRENT, one, version=2)
    stream.log.take()
    stream.table.left("u/a", [one])
    assert stream.log.take() == [("unknown", "u/a")]
    stream.put("u/b", 3, removed=[one])
    assert stream.log.take() == [("u/b", 3)], "its new state came with it"
    stream.table.filter(one, 0)
    assert stream.log.take() == []


def test_a_change_for_two_targets_is_told_once(stream: Stream) -> None:
    one, two = stream.settle(A, USERS)
    stream.put("u/a", 2, one, two)
    assert stream.log.take() == [("u/a", 2)]
    stream.put("u/a", 2, one, two)
    assert stream.log.take() == []


def test_a_filter_that_does_not_match_starts_the_target_anew(stream: Stream) -> None:
    one, two = stream.settle(A, B)
    stream.table.filter(one, 1)
    assert stream.log.take() == []
    stream.table.filter(one, 0)
    assert stream.log.take() == [("doubt", "u/a")]
    assert stream.table.requests() == [Request(one, None), Request(two + 1, A, b"")]
    stream.change(CURRENT, two + 1, version=9)
    assert stream.log.take() == [("u/a", None), ("current", "u/a")]


def test_a_refused_target_concerns_itself_alone(stream: Stream, clock: FakeClock) -> None:
    one, _two = stream.settle(A, B)
    stream.change(REMOVE, one, code=7, message="no")
    assert stream.log.take() == [("doubt", "u/a")]
    assert stream.asked() == []
    waits = []
    for _ in range(9):
        since = clock()
        request = None
        while request is None:
            for asked in stream.table.requests():
                if asked.target == A:
                    request = asked
                elif asked.target == PROBE:
                    stream.change(ADD, asked.target_id)
            if request is None:
                clock.now = stream.table.due_at
                stream.table.heard(clock())
                assert stream.table.check(clock()) == ""
        waits.append(clock() - since)
        stream.change(REMOVE, request.target_id, code=7, message="no")
    assert 0.8 <= waits[0] <= 1.2
    assert 45 <= waits[-1] <= 72
    assert waits[3] > waits[0]
    stream.log.take()
    stream.put("u/b", 2, 2)
    assert stream.log.take() == [("u/b", 2)]


def test_a_lost_stream_is_doubt_and_goes_on_from_its_tokens(stream: Stream) -> None:
    stream.settle(A, B)
    (users,) = stream.follow(USERS)
    stream.change(ADD, users)
    stream.table.failed("gone")
    # The collection was not current, so nothing of it was relied on.
    assert stream.log.take() == [("doubt", "u/a", "u/b")]
    stream.table.failed("gone again")
    assert stream.log.take() == []
    assert stream.reopen() == [Request(1, A, b"t1"), Request(2, B, b"t1"), Request(3, USERS)]
    stream.change(CURRENT, 1, token=b"t2", version=9)
    assert stream.log.take() == [("current", "u/a")], "it had not changed"
    stream.put("u/b", 4, 2)
    stream.change(CURRENT, 2, token=b"t2", version=9)
    assert stream.log.take() == [("u/b", 4), ("current", "u/b")]


def test_a_token_for_all_counts_for_those_that_were_current(stream: Stream) -> None:
    stream.settle(A)
    (two,) = stream.follow(B)
    stream.change(TargetChange.NO_CHANGE, token=b"all")
    stream.change(CURRENT, two, token=b"b", version=1)
    stream.table.failed("gone")
    assert [one.token for one in stream.reopen()] == [b"all", b"b"]
    stream.change(CURRENT, 1, token=b"a", version=1)
    stream.change(TargetChange.NO_CHANGE, 1, token=b"only a")
    stream.table.failed("gone")
    assert [one.token for one in stream.reopen()] == [b"only a", b"b"]


def test_a_token_is_dropped_at_a_reset(stream: Stream) -> None:
    (one,) = stream.settle(A)
    stream.change(RESET, one, token=b"half way")
    stream.change(TargetChange.NO_CHANGE, token=b"all")
    stream.change(TargetChange.NO_CHANGE, one, token=b"one")
    stream.table.failed("gone")
    assert [request.token for request in stream.reopen()] == [b""]
    stream.change(CURRENT, 1, version=7)
    assert stream.log.said[-2:] == [("u/a", None), ("current", "u/a")]


def test_the_window_bounds_what_waits_for_the_server(clock: FakeClock) -> None:
    stream = Stream(clock, window=2)
    targets = [Target(document=f"u/{n}") for n in range(5)]
    assert stream.follow(*targets) == [1, 2]
    assert stream.asked() == []
    stream.change(CURRENT, 1, version=1)
    assert stream.asked() == [3]
    stream.table.remove(targets[1])
    assert [one.target for one in stream.table.requests()] == [None, targets[3]]


def test_a_target_that_ends_the_stream_is_found_and_put_aside(
    stream: Stream, clock: FakeClock
) -> None:
    stream.settle(A)
    targets = [Target(document=f"u/{n}") for n in range(100)]
    bad = targets[63]
    for target in targets:
        stream.table.add(target)
    ends = 0
    while ends < 50:
        asked = [one for one in stream.table.requests() if one.target is not None]
        if not asked:
            break
        # The server makes what comes before the bad one current, then ends the stream.
        for request in asked:
            if request.target == bad:
                ends += 1
                stream.table.failed("UNKNOWN", suspicious=True)
                stream.table.opened(clock())
                break
            stream.change(CURRENT, request.target_id, version=1)
    assert 2 <= ends <= 12
    assert stream.table.targets == [A, *targets]
    assert ("doubt", bad.key) in stream.log.said
    # It alone is missing, and is tried again in a minute, though it disturbs the others then.
    assert not stream.table.all_current
    assert 40 < stream.table.due_at - clock() <= 72
    stream.table.remove(bad)
    assert stream.table.all_current


def test_the_server_going_away_puts_no_lonely_target_aside(stream: Stream) -> None:
    stream.follow(A)
    stream.table.failed("UNKNOWN", suspicious=True)
    assert stream.reopen() == [Request(1, A)]
    stream.change(CURRENT, 1, version=1)
    assert stream.table.all_current


def test_silence_is_probed_and_then_a_failure(stream: Stream, clock: FakeClock) -> None:
    assert stream.table.due_at == inf
    stream.settle(A)
    assert stream.table.due_at == clock() + 45
    clock.advance(44)
    assert stream.table.check(clock()) == ""
    assert stream.table.requests() == []
    clock.advance(2)
    assert stream.table.check(clock()) == ""
    (probe,) = stream.table.requests()
    assert probe == Request(2, PROBE)
    assert stream.table.check(clock()) == ""
    assert stream.table.requests() == []
    clock.advance(13)
    assert stream.table.due_at == clock() + 1
    assert stream.table.check(clock()) == ""
    clock.advance(1)
    assert "60.0 s" in stream.table.check(clock())


def test_an_answered_probe_is_taken_back_and_told_to_nobody(
    stream: Stream, clock: FakeClock
) -> None:
    stream.settle(A)
    clock.advance(50)
    stream.table.check(clock())
    (probe,) = stream.table.requests()
    stream.change(ADD, probe.target_id)
    assert stream.table.requests() == [Request(probe.target_id, None)]
    stream.table.deleted("_bm/probe", 9, [probe.target_id])
    stream.change(CURRENT, probe.target_id, version=9)
    stream.change(REMOVE, probe.target_id)
    assert stream.log.take() == []
    assert stream.table.check(clock.advance(59)) == ""
    assert [one.target for one in stream.table.requests()] == [PROBE]


def test_what_was_read_late_is_no_sign_of_life(stream: Stream, clock: FakeClock) -> None:
    """A process that stood still finds messages that were sent long ago."""
    (one,) = stream.settle(A)
    asked_at = clock()
    assert stream.table.alive_at == asked_at
    clock.advance(3600)
    stream.put("u/a", 2, one)
    stream.change(TargetChange.NO_CHANGE, token=b"t")
    assert stream.table.heard_at == clock()
    assert stream.table.alive_at == asked_at
    assert stream.table.check(clock()) == "", "it is heard, but must answer now"
    probed_at = clock()
    (probe,) = stream.table.requests()
    assert probe.target == PROBE
    clock.advance(5)
    stream.put("u/a", 3, one)
    assert stream.table.alive_at == asked_at
    stream.change(ADD, probe.target_id)
    assert stream.table.alive_at == probed_at, "not when the answer was read"


def test_a_stream_that_is_never_silent_must_answer_too(stream: Stream, clock: FakeClock) -> None:
    (one,) = stream.settle(A)
    probes = []
    for second in range(1, 201):
        clock.advance(1)
        stream.put("u/a", second + 1, one)
        assert stream.table.check(clock()) == ""
        for request in stream.table.requests():
            if request.target is not None:
                probes.append(second)
                stream.change(ADD, request.target_id)
    assert probes == [45, 90, 135, 180]


def test_answers_to_other_questions_count_too(stream: Stream, clock: FakeClock) -> None:
    stream.settle(A)
    clock.advance(40)
    (two,) = stream.follow(B)
    asked_at = clock()
    clock.advance(3)
    stream.change(ADD, two)
    assert stream.table.alive_at == asked_at
    assert stream.table.due_at == asked_at + 45
    clock.advance(10)
    stream.change(CURRENT, two, version=1)
    assert stream.table.alive_at == asked_at, "that was not asked for"
    stream.table.failed("gone")
    stream.reopen()
    assert stream.table.alive_at == -inf


def test_a_stream_of_refused_targets_holds_up_no_other(clock: FakeClock) -> None:
    """What is asked of nobody is answered by nobody; other streams are followed all the same."""
    feed = ListenFeed(None, None, Log())  # type: ignore[arg-type]
    refused, fine = Stream(clock), Stream(clock)
    feed._streams = [refused, fine]  # type: ignore[list-item]
    assert feed.heard_at == -inf
    (one,) = refused.settle(A)
    assert feed.heard_at == clock()
    clock.advance(10)
    fine.settle(B)
    assert feed.heard_at == clock() - 10
    refused.change(REMOVE, one, code=7, message="no")
    assert feed.heard_at == clock()
    fine.change(RESET)
    assert feed.heard_at == -inf, "nothing is current any more"


def test_a_stream_that_is_heard_but_does_not_answer_is_given_up(
    stream: Stream, clock: FakeClock
) -> None:
    stream.settle(A)
    clock.advance(45)
    assert stream.table.check(clock()) == ""
    stream.table.requests()
    (users,) = stream.follow(USERS)
    for _ in range(60):
        clock.advance(1)
        stream.put("u/b", 1, users)
        assert stream.table.check(clock()) == "", "it is busy telling a collection"
    stream.change(CURRENT, users, version=1)
    assert "has not answered for 60.0 s" in stream.table.check(clock())
    clock.advance(-1)
    assert stream.table.due_at == clock() + 1


def test_a_stream_that_never_answers_is_given_up_sooner(stream: Stream, clock: FakeClock) -> None:
    stream.follow(A)
    assert stream.table.check(clock.advance(9.9)) == ""
    assert not stream.table.healthy
    assert stream.table.check(clock.advance(0.2)) != ""


def test_a_stream_with_nothing_to_follow_may_be_silent(stream: Stream, clock: FakeClock) -> None:
    stream.settle(A)
    stream.table.remove(A)
    stream.table.requests()
    assert stream.table.due_at == inf
    assert stream.table.check(clock.advance(1000)) == ""


def test_a_message_without_targets_is_not_dropped(stream: Stream) -> None:
    stream.settle(A)
    stream.table.document(Document("u/z", {}, 3), [], [])
    stream.table.deleted("u/y", 4, [])
    stream.table.left("u/x", [])
    assert stream.log.said == [("u/z", 3), ("u/y", None), ("unknown", "u/x")]


def test_targets_are_told_apart_by_what_they_watch(stream: Stream) -> None:
    same = Target(query=Query("u", (Filter("age", ">", 17),)))
    other = Target(query=Query("u", (Filter("age", "in", [17]),)))
    assert stream.follow(GROWN, same, other, USERS, A, A) == [1, 2, 3, 4]
    stream.table.remove(same)
    assert len(stream.table) == 3
