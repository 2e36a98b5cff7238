"""When a call is tried again, and what each answer of the server is raised as; no server here."""

from __future__ import annotations

import random
from typing import Any

import pytest

from beastmode.errors import (
    CommitTooLarge,
    DocumentMissing,
    PreconditionFailed,
    RequestError,
    StoreCorrupt,
    StoreError,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    TransactionConflict,
    WriteRejected,
)
from beastmode.stores.documents import Delete, Merge, Precondition, Set, Update
from beastmode.stores.firestore._google import load
from beastmode.stores.firestore.base import is_repeatable
from beastmode.stores.firestore.calls import Attempts, RetryPolicy, Silence
from beastmode.stores.firestore.errors import commit_failure, conflict, failure
from beastmode.stores.transforms import Increment
from support import FakeClock

STATUS = load().grpc.StatusCode


class RpcError(Exception):
    def __init__(self, code: Any, details: str = "said so") -> None:
        super().__init__(code, details)
        self.code, self.details = (lambda: code), (lambda: details)


READS = {
    "CANCELLED": StoreUnavailable,
    "UNKNOWN": StoreUnavailable,
    "INVALID_ARGUMENT": RequestError,
    "DEADLINE_EXCEEDED": StoreTimeout,
    "NOT_FOUND": StoreRefused,
    "ALREADY_EXISTS": StoreRefused,
    "PERMISSION_DENIED": StoreRefused,
    "RESOURCE_EXHAUSTED": StoreUnavailable,
    "FAILED_PRECONDITION": RequestError,
    "ABORTED": StoreUnavailable,
    "OUT_OF_RANGE": StoreError,
    "UNIMPLEMENTED": StoreRefused,
    "INTERNAL": StoreUnavailable,
    "UNAVAILABLE": StoreUnavailable,
    "DATA_LOSS": StoreCorrupt,
    "UNAUTHENTICATED": StoreRefused,
}
COMMITS = {**READS, "INVALID_ARGUMENT": WriteRejected, "FAILED_PRECONDITION": StoreRefused}
UNKNOWN_OUTCOME = {
    "CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"
}  # fmt: skip


def test_every_code_is_known() -> None:
    assert {code.name for code in STATUS} == {"OK", *READS}


@pytest.mark.parametrize("name", READS)
def test_every_code_is_raised_as_one_of_our_errors(name: str) -> None:
    read = failure(RpcError(STATUS[name]), "get")
    assert type(read) is READS[name]
    for part in ("get", name, "said so"):
        assert part in str(read)
    commit = commit_failure(RpcError(STATUS[name]), [Set("u/a", {})])
    assert type(commit) is COMMITS[name]
    assert commit.maybe_applied is (name in UNKNOWN_OUTCOME)


def test_hints_say_what_to_do() -> None:
    assert "roles/datastore.user" in str(failure(RpcError(STATUS.PERMISSION_DENIED), "get"))
    assert "gcloud auth" in str(failure(RpcError(STATUS.UNAUTHENTICATED), "get"))


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: refused",
        "DNS resolution failed for x:1: C-ares status is not ARES_SUCCESS",
        "Getting metadata from plugin failed with error: invalid_grant",
    ],
)
def test_what_was_never_sent_was_not_applied(details: str) -> None:
    error = commit_failure(RpcError(STATUS.UNAVAILABLE, details), [Set("u/a", {})])
    assert type(error) is StoreUnavailable
    assert not error.maybe_applied
    assert commit_failure(RpcError(STATUS.UNAVAILABLE, "Socket closed"), []).maybe_applied


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 5000000"),
        ("RESOURCE_EXHAUSTED", "Sent message larger than max (5 vs. 4)"),
        ("INVALID_ARGUMENT", "Request payload size exceeds the limit: 11534336 bytes."),
        ("INVALID_ARGUMENT", "Transaction too big. Decrease transaction size."),
    ],
)
def test_a_commit_that_is_too_large_is_told_from_others(code: str, details: str) -> None:
    error = commit_failure(RpcError(STATUS[code], details), [Set("u/a", {})])
    assert type(error) is CommitTooLarge
    assert isinstance(error, WriteRejected)


PRODUCTION = "No document to update: projects/p/databases/(default)/documents/u/gone"
EMULATOR = 'no entity to update: app: "dev~p"\npath <\n  Element {\n    type: "u"\n    name: "gone"'
TAKEN = "entity already exists: EntityRef{partitionRef=dev~p, path=/u/a}"


@pytest.mark.parametrize("details", [PRODUCTION, EMULATOR])
def test_the_operation_whose_document_is_missing_is_named(details: str) -> None:
    operations = [Update("u/a", {"n": 1}), Update("u/gone", {"n": 1}), Set("u/b", {})]
    error = commit_failure(RpcError(STATUS.NOT_FOUND, details), operations)
    assert type(error) is DocumentMissing
    assert "'u/gone'" in str(error)
    assert "u/a" not in str(error)


@pytest.mark.parametrize(
    ("details", "is_over"),
    [
        ("The referenced transaction has expired or is no longer valid.", True),
        ("Invalid transaction.", True),
        ('The transaction "projects/p" was closed', True),
        ("projects/p/databases/d/documents/transaction/x has an invalid field", False),
        ("projects/p/databases/d/documents/users/transaction: invalid field", False),
        ("projects/p/databases/d/documents/my-transaction/x: invalid field", False),
    ],
)
def test_a_document_named_like_a_transaction_is_none(details: str, is_over: bool) -> None:
    error = conflict(RpcError(STATUS.INVALID_ARGUMENT, details), "commit")
    assert isinstance(error, TransactionConflict) is is_over


def test_the_operation_whose_condition_failed_is_named() -> None:
    absent, present = Precondition(exists=False), Precondition(exists=True)
    operations = [Set("u/a", {}, absent), Set("u/b", {}, absent), Merge("u/c", {}, present)]
    error = commit_failure(RpcError(STATUS.ALREADY_EXISTS, TAKEN), operations)
    assert type(error) is PreconditionFailed
    assert str(error) == "Set of 'u/a': it must not exist"
    error = commit_failure(RpcError(STATUS.NOT_FOUND, "no entity"), operations)
    assert str(error) == "Merge of 'u/c': it must exist"
    # where the server does not say which, all that it can be are named
    error = commit_failure(RpcError(STATUS.ALREADY_EXISTS, "?"), operations)
    assert type(error) is PreconditionFailed
    assert "'u/a', 'u/b'" in str(error)
    old = [Set("u/a", {}, Precondition(version=17)), Delete("u/b")]
    error = commit_failure(RpcError(STATUS.FAILED_PRECONDITION, "stored version (18)"), old)
    assert type(error) is PreconditionFailed
    assert "17" in str(error)
    assert "18" in str(error)
    missing = [Update("u/a", {"n": 1}), Update("u/b", {"n": 1})]
    assert type(commit_failure(RpcError(STATUS.NOT_FOUND, "?"), missing)) is DocumentMissing


NO_DATABASE = (
    "The database (default) does not exist for project p Please visit "
    "https://console.cloud.google.com/datastore/setup?project=p to add a Cloud Datastore or Cloud "
    "Firestore database. "
)
DATASTORE_MODE = (
    "The Cloud Firestore API is not available for Firestore in Datastore Mode database "
    "projects/p/databases/(default)."
)
OF_THE_WHOLE = [
    ("NOT_FOUND", NO_DATABASE),
    ("NOT_FOUND", "The database 'other' does not exist for project p"),
    ("NOT_FOUND", "Project p not found."),
    ("FAILED_PRECONDITION", DATASTORE_MODE),
    ("FAILED_PRECONDITION", "Project p requires billing to be enabled"),
    ("INVALID_ARGUMENT", "Missing routing header. Please fill in the request header with ..."),
    ("PERMISSION_DENIED", "Cloud Firestore API has not been used in project 7 before or ..."),
    ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
]


@pytest.mark.parametrize(("code", "details"), OF_THE_WHOLE)
def test_what_is_wrong_with_the_whole_store_is_no_fault_of_an_operation(
    code: str, details: str
) -> None:
    operations = [
        Update("u/a", {"n": 1}),
        Set("u/b", {}, Precondition(exists=False)),
        Set("u/c", {}, Precondition(version=17)),
    ]
    for error in (
        commit_failure(RpcError(STATUS[code], details), operations),
        failure(RpcError(STATUS[code], details), "get"),
    ):
        assert type(error) is StoreRefused
        assert details in str(error)
        assert not error.maybe_applied


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        ("NOT_FOUND", PRODUCTION.replace("gone", "the database x does not exist"), DocumentMissing),
        ("NOT_FOUND", EMULATOR.replace("gone", "project not found"), DocumentMissing),
        ("INVALID_ARGUMENT", "Property billing contains an invalid nested entity.", WriteRejected),
        ("INVALID_ARGUMENT", 'The value of "API key not valid" is too long', WriteRejected),
    ],
)
def test_names_in_a_document_do_not_look_like_the_whole_store(
    code: str, details: str, expected: type[Exception]
) -> None:
    operations = [Update("u/a", {"n": 1}), Update("u/b", {"n": 1})]
    assert type(commit_failure(RpcError(STATUS[code], details), operations)) is expected


def test_what_may_be_applied_twice() -> None:
    assert is_repeatable([Set("u/a", {}), Merge("u/a", {}), Update("u/a", {"n": 1}), Delete("u/a")])
    assert not is_repeatable([Set("u/a", {}), Set("u/a", {}, Precondition(exists=False))])
    assert not is_repeatable([Update("u/a", {"n": Increment(1)})])
    assert is_repeatable([Update("u/a", {"n": Increment(1)})], b"transaction"), "committed once"
    assert is_repeatable(None), "a read"


# -- attempts --------------------------------------------------------------------------------------


def policy(clock: FakeClock, **options: Any) -> RetryPolicy:
    return RetryPolicy(rng=random.Random(1), timer=clock, **options)


def test_pauses_grow_and_end(clock: FakeClock) -> None:
    attempts = Attempts(policy(clock), clock.now + 100)
    waits = [attempts.pause(StoreUnavailable("down")) for _ in range(5)]
    for wait, longest in zip(waits, [0.05, 0.1, 0.2, 0.4, 0.5], strict=True):
        assert wait is not None
        assert longest / 2 <= wait <= longest
    assert attempts.pause(StoreUnavailable("down")) is None
    assert attempts.retries == 5


def test_no_pause_reaches_the_deadline(clock: FakeClock) -> None:
    attempts = Attempts(policy(clock, max_retries=1000), clock.now + 2.0)
    end = clock.now + 2.0
    while (wait := attempts.pause(StoreUnavailable("down"))) is not None:
        clock.advance(wait)
        assert clock.now < end
    assert end - clock.now < 0.55
    assert attempts.retries >= 4


@pytest.mark.parametrize(
    "error", [StoreTimeout("late"), StoreError("no"), WriteRejected("no"), RequestError("no")]
)
def test_only_what_may_pass_is_tried_again(clock: FakeClock, error: Any) -> None:
    assert Attempts(policy(clock), clock.now + 100).pause(error) is None


def test_a_commit_of_unknown_outcome_is_tried_again_only_if_it_may_be_applied_twice(
    clock: FakeClock,
) -> None:
    error = StoreUnavailable("lost")
    attempts = Attempts(policy(clock), clock.now + 100)
    assert attempts.pause(error, repeatable=False) is not None
    error.maybe_applied = True
    assert attempts.pause(error, repeatable=False) is None
    assert attempts.pause(error, repeatable=True) is not None


def test_what_may_have_been_applied_once_stays_so(clock: FakeClock) -> None:
    lost, refused = StoreUnavailable("lost"), StoreUnavailable("never sent")
    lost.maybe_applied = True
    attempts = Attempts(policy(clock), clock.now + 100)
    assert attempts.pause(refused) is not None
    assert not refused.maybe_applied
    assert attempts.pause(lost) is not None
    assert attempts.pause(refused) is not None
    assert refused.maybe_applied


def test_many_calls_together_repeat_within_the_budget(clock: FakeClock) -> None:
    shared = policy(clock)
    repeated = 0
    for _ in range(1000):
        attempts = Attempts(shared, clock.now + 100)
        while attempts.pause(StoreUnavailable("down")) is not None:
            repeated += 1
    assert 100 <= repeated <= 350, "about one in ten, and some at first"


def test_a_connection_is_left_after_two_calls_in_a_row_that_heard_nothing(clock: FakeClock) -> None:
    silence = Silence(timer=clock)
    assert not silence.kept(2.0)
    silence.broken()
    assert not silence.kept(2.0)
    assert not silence.kept(0.1), "too short to tell"
    assert silence.kept(2.0)
    for _ in range(5):
        assert not silence.kept(1.0), "not again so soon"
        clock.advance(0.9)
    clock.advance(1.0)
    assert silence.kept(1.0)
