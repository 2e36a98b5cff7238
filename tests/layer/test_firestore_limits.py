"""What Firestore never takes is refused before it is acknowledged, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.breaker import Breaker
from beastmode.cost import Meter
from beastmode.errors import BeastError, RequestError
from beastmode.journal import Journal
from beastmode.stores.base import Filter, Query
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Operation,
    Set,
    Update,
)
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore, convert
from beastmode.stores.firestore.limits import check_operation
from beastmode.stores.guarded import GuardedStore
from beastmode.stores.metered import MeteredStore
from beastmode.stores.transforms import SERVER_TIMESTAMP, ArrayRemove, ArrayUnion, Increment
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector
from beastmode.testing.pytest_plugin import Firestore

MIB = 1024 * 1024

NEVER = ("WriteRejected", "CommitTooLarge")


@pytest.fixture
def store(firestore: Firestore) -> Iterator[FirestoreStore]:
    with FirestoreStore(firestore.project, deadline_s=10.0) as made:
        made.commit([Set("u/a", {"old": 1})])
        yield made


def maps(depth: int, inmost: Any = 1) -> Any:
    for _ in range(depth):
        inmost = {"m": inmost}
    return inmost


def filled(total: int, fields: dict[str, Any], counted: int) -> Set:
    """Return a Set of u/a with these fields, which count so much, and text up to `total`."""
    text = total - counted - (2 + 2 + 16) - 32 - (2 + 1) - (2 + 500_000 + 1)
    return Set("u/a", {**fields, "p": "x" * 500_000, "q": "x" * text})


def thousand(value: Any) -> dict[str, Any]:
    return {"b": {f"{n:03}": value for n in range(1000)}}


REFUSED: list[tuple[str, Operation, str]] = [
    ("a list in a list", Set("u/a", {"a": [[1]]}), r"'a\[0\]'.*list directly"),
    ("deeper, in a merge", Merge("u/a", {"a": {"b": [{"c": [1, [2]]}]}}), r"c\[1\]'.*list dir"),
    ("21 maps", Set("u/a", {"a": maps(21)}), "20 deep"),
    ("21 maps and lists", Set("u/a", {"a": [maps(20)]}), "20 deep"),
    ("21 maps merged", Merge("u/a", maps(21)), "20 deep"),
    ("20 maps in an update", Update("u/a", {"a.b": maps(20)}), "20 deep"),
    ("21 names", Update("u/a", {".".join("a" * 21): 1}), "20 deep"),
    ("a reserved name", Set("u/a", {"__x__": 1}), "'__x__' are Firestore's own"),
    ("one further in", Set("u/a", {"a": [{"__name__": 1}]}), r"'a\[0\].__name__'"),
    ("one that is updated", Update("u/a", {"a.__x__": 1}), "'__x__'"),
    ("one that is removed", Merge("u/a", {"__x__": DELETE_FIELD}), "'__x__'"),
    ("a name of 1501 bytes", Set("u/a", {"é" * 750 + "e": 1}), "1500 bytes, this one has 1501"),
    ("a path of 1501 bytes", Set("u/a", {"a": {"x" * 1499: 1}}), "1500 bytes"),
    ("one through a list", Set("u/a", {"a": [{"x" * 1499: 1}]}), "1500 bytes"),
    ("one of 1500 that is named", Update("u/a", {"a." + "x" * 1498: 1}), "1499 bytes"),
    ("the same merged", Merge("u/a", {"a": {"x" * 1498: 1}}), "1499 bytes"),
    ("text of 1 MiB", Set("u/a", {"a": {"b": "x" * (MIB - 88)}}), r"'a.b'.*1048487 bytes"),
    ("bytes of 1 MiB", Merge("u/a", {"a": b"x" * (MIB - 88)}), "1048487 bytes"),
    ("1 byte over 1 MiB", filled(MIB + 1, {}, 0), "1048577 bytes"),
    ("an update over 1 MiB", Update("u/a", {"a": "x" * 600_000, "b": "é" * 300_000}), "at least"),
    ("a union over 1 MiB", Merge("u/a", {"a": ArrayUnion(["x" * MIB, "y"])}), "1048487"),
    (
        "two halves in a union",
        Merge("u/a", {"a": ArrayUnion(["x" * 600_000, "y" * 600_000])}),
        "least",
    ),
    ("2049 dimensions", Set("u/a", {"a": Vector((1.0,) * 2049)}), "2048 dimensions, got 2049"),
    ("a vector in a list", Set("u/a", {"a": [Vector((1.0,))]}), "no vector inside"),
    ("a reference to what cannot be", Set("u/a", {"a": Reference("u/__x__")}), "'a' of 'u/a'"),
    ("a reserved id", Set("u/__x__", {}), "document 'u/__x__'"),
    ("deleted", Delete("u/__x__"), "'__x__'"),
    ("a reserved collection", Set("__u__/a", {}), "'__u__'"),
    ("a numbered collection", Set("__id7__/a", {}), "'__id7__'"),
    ("one dot", Set("u/.", {}), "no id is '.'"),
    ("two dots", Delete("../a"), "no id is '..'"),
    ("an id of 1501 bytes", Set("u/" + "é" * 750 + "e", {}), "1500 bytes"),
    ("101 collections", Set("/".join(["c", "d"] * 101), {}), "200 parts, got 202"),
]
STRICTER: list[tuple[str, Operation, str]] = [
    # Refused by the rules of Firestore, and taken by its emulator.
    ("a list in a union", Merge("u/a", {"a": ArrayUnion([[1]])}), r"'a\[0\]'.*list directly"),
    ("a list in a removal", Update("u/a", {"a": ArrayRemove([[1]])}), "list directly"),
    ("a transform 21 deep", Merge("u/a", maps(21, Increment(1))), "20 deep"),
    ("501 transforms", Merge("u/a", {f"f{n}": Increment(1) for n in range(501)}), "500 transf"),
    ("nothing between underscores", Set("u/a", {"____": 1}), "'____'"),
    ("such an id", Set("u/____", {}), "'____'"),
    ("a name over 6 KiB", Delete("/".join(["x" * 1024] * 6)), "6144 bytes, got 6149"),
]
TAKEN: list[tuple[str, Operation]] = [
    ("a list in a map in a list", Set("u/a", {"a": [{"b": [1]}]})),
    ("20 maps", Set("u/a", {"a": maps(20)})),
    ("20 maps and lists", Set("u/a", {"a": [maps(19)]})),
    ("20 maps merged", Merge("u/a", maps(20))),
    ("20 maps, the last empty", Merge("u/a", maps(19, {"m": {}}))),
    ("19 maps in an update", Update("u/a", {"a.b": maps(19)})),
    ("20 names", Update("u/a", {".".join("a" * 20): 1})),
    ("nearly reserved names", Set("u/a", {"__": 1, "___": 1, "__a": 1, "a__": 1, "_a_": 1})),
    ("a name of 1500 bytes", Set("u/a", {"é" * 750: 1})),
    ("a path of 1500 bytes", Set("u/a", {"a": [{"x" * 1498: 1}]})),
    ("one of 1499 that is named", Update("u/a", {"a." + "x" * 1497: 1})),
    ("the same merged", Merge("u/a", {"a": {"x" * 1497: 1}})),
    ("the longest text", Set("u/a", {"a": {"b": "x" * (MIB - 89)}})),
    ("1 MiB of text", filled(MIB, {}, 0)),
    ("1 MiB with integers", filled(MIB, thousand(2**62), 2 + 12 * 1000)),
    ("1 MiB with floats", filled(MIB, thousand(0.5), 2 + 12 * 1000)),
    ("1 MiB with booleans", filled(MIB, thousand(True), 2 + 5 * 1000)),
    ("1 MiB with nothing", filled(MIB, thousand(None), 2 + 5 * 1000)),
    ("1 MiB with points", filled(MIB, thousand(GeoPoint(1, 2)), 2 + 20 * 1000)),
    ("1 MiB with times", filled(MIB, thousand(Timestamp.of(1, 1000)), 2 + 12 * 1000)),
    ("1 MiB with references", filled(MIB, thousand(Reference("c/é")), 2 + 25 * 1000)),
    ("1 MiB with maps", filled(MIB, thousand({"é": True}), 2 + 8 * 1000)),
    ("1 MiB with empty maps", filled(MIB, thousand({}), 2 + 5 * 1000)),
    ("1 MiB with lists", filled(MIB, thousand([1, "é"]), 2 + 15 * 1000)),
    ("1 MiB with empty lists", filled(MIB, thousand([]), 2 + 5 * 1000)),
    ("1 MiB with a vector", filled(MIB, {"v": Vector((1.0,) * 2048)}, 2 + 8 * 2048)),
    ("1 MiB with bytes", filled(MIB, {"b": b"\0" * 1000}, 2 + 1000)),
    ("500 transforms", Merge("u/a", {f"f{n}": Increment(1) for n in range(500)})),
    ("the time of the server", Update("u/a", {"a.b": SERVER_TIMESTAMP})),
    ("a numbered id", Set("u/__id7__", {})),
    ("an id of 1500 bytes", Set("u/" + "é" * 750, {})),
    ("100 collections", Set("/".join(["c", "d"] * 100), {})),
    ("an id of dots", Set("u/...", {"...": 1})),
]


def ids(case: Any) -> str:
    return case if isinstance(case, str) else ""


@pytest.mark.parametrize(("_what", "operation", "text"), REFUSED + STRICTER, ids=ids)
def test_what_is_never_taken_is_refused_with_the_reason(
    _what: str, operation: Operation, text: str
) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        check_operation(operation)
    assert operation.path[:50] in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("_what", "operation"), TAKEN, ids=ids)
def test_what_is_taken_is_let_pass(store: FirestoreStore, _what: str, operation: Operation) -> None:
    check_operation(operation)
    store.commit([operation])


def test_one_byte_more_than_each_document_that_is_just_taken_is_refused() -> None:
    full = [operation for what, operation in TAKEN if what.startswith("1 MiB")]
    assert len(full) > 10
    for operation in full:
        assert isinstance(operation, Set)
        with pytest.raises(RequestError, match="at least 1048577 bytes"):
            check_operation(Set("u/a", {**operation.data, "p": operation.data["p"] + "x"}))


def test_the_server_refuses_the_same(
    store: FirestoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what it takes would be refused; the exceptions are those of the emulator alone."""
    monkeypatch.setattr(convert, "check_operation", lambda operation: None)
    answers: dict[str, str] = {}
    for what, operation, _ in REFUSED:
        try:
            store.commit([operation])
        except BeastError as error:
            answers[what] = type(error).__name__
        else:
            answers[what] = "taken"
    assert {what: answer for what, answer in answers.items() if answer not in NEVER} == {}
    store.commit([operation for what, operation, _ in STRICTER if "name" not in what])


def test_nothing_of_it_is_acknowledged(store: FirestoreStore, tmp_path: Path) -> None:
    guarded = GuardedStore(MeteredStore(store, Meter()), Breaker())
    journal = Journal(tmp_path / "writes.journal")
    for mode in ("write-behind", "write-through"):
        with BeastModeBatcher(guarded, journal, mode=mode, max_delay_s=3600.0) as batcher:  # type: ignore[arg-type]
            for _, operation, text in REFUSED + STRICTER:
                with pytest.raises(RequestError, match=text):
                    batcher.write([Set("u/b", {}), operation])
            assert batcher.get_stats().pending == batcher.get_stats().accepted == 0
    assert journal.recover() == []
    journal.close()
    assert not store.get("u/b").exists
    assert store.get("u/a").data == {"old": 1}


async def test_tasks_are_told_as_well(firestore: Firestore, store: FirestoreStore) -> None:
    bad = Set("u/a", {"a": [[1]]})
    async with BeastModeBatcher(store) as batcher:
        with pytest.raises(RequestError, match="list directly"):
            await batcher.awrite([bad])
    other = AsyncFirestoreStore(firestore.project, deadline_s=10.0)
    try:
        for refuse in (store.check_operation, other.check_operation):
            with pytest.raises(RequestError, match="list directly"):
                refuse(bad)
        with pytest.raises(RequestError, match="list directly"):
            await other.commit([bad])
    finally:
        await other.close()


def test_a_write_too_much_takes_no_other_with_it(store: FirestoreStore) -> None:
    """Joined with those before it, it would have all of them refused."""
    writes: list[Operation] = [
        Set("u/a", {"a": "x" * 600_000}),
        Merge("u/a", {"b": 1}),
        Merge("u/a", {"c": "x" * 600_000}),
        Merge("u/a", {"d": 1}),
    ]
    failed: list[Operation] = []
    with BeastModeBatcher(
        store,
        max_delay_s=3600.0,
        commit_deadline_s=20.0,
        on_failed=lambda operation, error: failed.append(operation),
    ) as batcher:
        batcher.write(writes)
        batcher.flush()
    assert failed == [writes[2]]
    assert set(store.get("u/a").data or ()) == {"a", "b", "d"}


def test_many_small_integers_are_joined_only_so_far(store: FirestoreStore) -> None:
    """They take four times the bytes of the journal's encoding."""
    with BeastModeBatcher(store, max_delay_s=3600.0, commit_deadline_s=20.0) as batcher:
        batcher.write([Set("u/a", {"a0": [1] * 60_000})])
        batcher.write([Merge("u/a", {"a1": [1] * 64_900})])
        assert batcher.get_stats().coalesced == 1
        batcher.write([Merge("u/a", {"a2": [1] * 60_000})])
        assert batcher.get_stats().coalesced == 1
        batcher.flush()
    held = store.get("u/a").data or {}
    assert [len(held[name]) for name in ("a0", "a1")] == [60_000, 64_900]
    assert "a2" not in held


def test_filters_are_bounded_as_values_are(store: FirestoreStore) -> None:
    for op, value, text in [
        ("==", [[1]], "list directly"),
        ("in", [maps(21)], "20 deep"),
        ("array-contains", {"__x__": 1}, "'__x__'"),
        ("==", Reference("u/.."), r"no id is '\.\.'"),
    ]:
        with pytest.raises(RequestError, match=text):
            store.query(Query("u", (Filter("a", op, value),)))  # type: ignore[arg-type]
