"""Transforms: what may stand where, what Google's own become, what is merged and what is not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beastmode.errors import DocumentMissing, RequestError
from beastmode.stores.base import Filter
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Operation,
    Set,
    Update,
    apply,
    combine,
    detached,
    freeze,
    has_transforms,
)
from beastmode.stores.transforms import (
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Increment,
    Maximum,
    Minimum,
)
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector

NOW = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize("kind", [Increment, Maximum, Minimum])
@pytest.mark.parametrize("value", ["1", None, True, 1j, 2**63, -(2**63) - 1, [1]], ids=repr)
def test_operands_that_are_no_numbers(kind: Any, value: Any) -> None:
    with pytest.raises(RequestError, match=kind.__name__) as caught:
        kind(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("kind", [ArrayUnion, ArrayRemove])
@pytest.mark.parametrize("values", ["ab", 1, None, [], (), {1}, {"a": 1}], ids=repr)
def test_operands_that_are_no_lists(kind: Any, values: Any) -> None:
    with pytest.raises(RequestError, match=f"{kind.__name__} takes a list") as caught:
        kind(values)
    assert repr(values) in str(caught.value)


@pytest.mark.parametrize("make", [Set, Merge, Update])
@pytest.mark.parametrize(
    "value",
    [
        [Increment(1)],
        [{"x": [SERVER_TIMESTAMP]}],
        ({"x": Increment(1)},),
        ArrayUnion([SERVER_TIMESTAMP]),
        ArrayRemove([{"x": Increment(1)}]),
    ],
    ids=repr,
)
def test_no_transform_stands_in_a_list(make: Any, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{make.__name__} takes transforms .* not inside lists"):
        make("u/a", {"ok": 1, "v": {"w": value}})


def test_a_filter_takes_no_transform() -> None:
    from beastmode.stores.base import Query
    from beastmode.stores.matching import Matcher

    with pytest.raises(RequestError, match="'n ==': Increment"):
        Matcher(Query("u", (Filter("n", "==", Increment(1)),)))


def test_which_operations_have_transforms() -> None:
    assert not has_transforms(Delete("u/a"))
    assert not has_transforms(Merge("u/a", {"x": DELETE_FIELD, "l": [{}], "t": NOW}))
    for make in (Set, Merge, Update):
        assert not has_transforms(make("u/a", {"x": {"y": 1}}))
        made = make("u/a", {"x": {"y": {"z": Increment(1)}}})
        assert has_transforms(made)
        assert has_transforms(detached(made))
        assert has_transforms(pickle.loads(pickle.dumps(made)))
        assert detached(made) == made
    own = detached(Merge("u/a", {"l": [1]}))
    assert detached(own) is own


def test_what_stands_for_itself_is_itself_after_a_copy() -> None:
    for value in (SERVER_TIMESTAMP, DELETE_FIELD):
        for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert again is value
    assert repr(SERVER_TIMESTAMP) == "SERVER_TIMESTAMP"


def test_the_writer_keeps_its_own_lists() -> None:
    mine = [1, [2]]
    operation = detached(Merge("u/a", {"l": ArrayUnion(mine)}))
    mine[1].append(3)  # type: ignore[attr-defined]
    after = apply(operation, {"l": [0]})
    assert after == {"l": [0, 1, [2]]}
    assert after is not None
    after["l"][2].append(9)
    assert apply(operation, None) == {"l": [1, [2]]}


def test_the_time_is_needed_where_it_is_asked_for() -> None:
    operation = Merge("u/a", {"m": {"t": SERVER_TIMESTAMP}})
    assert apply(operation, None, now=NOW) == {"m": {"t": NOW}}
    with pytest.raises(RequestError, match="SERVER_TIMESTAMP"):
        apply(operation, None)


def test_transforms_are_not_merged_with_what_they_depend_on() -> None:
    plain, count = Set("u/a", {"n": 1}), Merge("u/a", {"n": Increment(1)})
    assert combine(plain, count) is None
    assert combine(count, count) is None
    assert combine(count, Merge("u/a", {"m": 1})) is None
    assert combine(Set("u/a", {"n": Increment(1)}), Merge("u/a", {"m": 1})) is None
    assert combine(count, plain) is plain
    assert combine(count, Delete("u/a")) == Delete("u/a")
    # A reader who began in between must see the first, and cannot be shown the second.
    assert combine(plain, Set("u/a", {"t": SERVER_TIMESTAMP})) is None


names = st.sampled_from(["a", "b"])
values: Any = (
    st.integers(0, 3)
    | st.builds(Increment, st.integers(0, 3))
    | st.builds(ArrayUnion, st.lists(st.integers(0, 2), min_size=1, max_size=2))
    | st.just(SERVER_TIMESTAMP)
)
fields = st.dictionaries(names, values | st.dictionaries(names, values, max_size=2), max_size=2)
operations = st.one_of(
    st.builds(Set, st.just("u/a"), fields),
    st.builds(Merge, st.just("u/a"), fields),
    st.builds(Update, st.just("u/a"), st.dictionaries(names, values, max_size=2)),
    st.builds(Delete, st.just("u/a")),
)


@given(
    older=operations,
    newer=operations,
    held=st.none() | st.dictionaries(names, st.integers(0, 3) | st.just([1]), max_size=2),
)
def test_combine_does_what_both_do(older: Operation, newer: Operation, held: Any) -> None:
    both = combine(older, newer)
    if both is None:
        return
    try:
        after: Any = apply(newer, apply(older, held, now=NOW), now=NOW)
    except DocumentMissing:
        with pytest.raises(DocumentMissing):
            apply(both, held, now=NOW)
    else:
        assert apply(both, held, now=NOW) == after


# -- Google's own classes --------------------------------------------------------------------------


def google_values() -> list[tuple[Any, Any]]:
    """Return values of Google's client, each with our own that it stands for."""
    firestore = pytest.importorskip("google.cloud.firestore", reason="google-cloud-firestore")
    from google.api_core.datetime_helpers import DatetimeWithNanoseconds
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.firestore_v1 import transforms
    from google.cloud.firestore_v1.vector import Vector as TheirVector

    def client(make: Callable[..., Any]) -> Any:
        return make(project="p", database="d", credentials=AnonymousCredentials())

    return [
        (firestore.GeoPoint(1, 2), GeoPoint(1, 2)),
        (TheirVector([1, 2.5]), Vector((1, 2.5))),
        (client(firestore.Client).document("u/a"), Reference("u/a", "p", "d")),
        (client(firestore.AsyncClient).document("u/a/b/c"), Reference("u/a/b/c", "p", "d")),
        (firestore.DocumentReference("u", "a"), Reference("u/a")),
        (
            DatetimeWithNanoseconds(2024, 5, 1, nanosecond=123_456_789, tzinfo=UTC),
            Timestamp(2024, 5, 1, nanosecond=123_456_789),
        ),
        (
            DatetimeWithNanoseconds(2024, 5, 1, microsecond=5, tzinfo=UTC),
            datetime(2024, 5, 1, 0, 0, 0, 5, tzinfo=UTC),
        ),
        (firestore.Increment(2.5), Increment(2.5)),
        (transforms.Maximum(3), Maximum(3)),
        (transforms.Minimum(3), Minimum(3)),
        (firestore.ArrayUnion([1, firestore.GeoPoint(1, 2)]), ArrayUnion((1, GeoPoint(1, 2)))),
        (firestore.ArrayRemove([[1]]), ArrayRemove(([1],))),
        (firestore.SERVER_TIMESTAMP, SERVER_TIMESTAMP),
        (firestore.DELETE_FIELD, DELETE_FIELD),
    ]


def test_values_of_googles_client_become_our_own() -> None:
    for theirs, ours in google_values():
        adopted = freeze({"m": {"v": theirs}})
        assert adopted == {"m": {"v": ours}}
        assert type(adopted["m"]["v"]) is type(ours)
        for make in (Set, Merge, Update):
            operation = make("u/a", {"m": {"v": theirs}, "w": 1})
            assert operation.data == {"m": {"v": ours}, "w": 1}
            assert operation.transforms is has_transforms(make("u/a", {"m": {"v": ours}}))
        if not has_transforms(Merge("u/a", {"v": ours})) and ours is not DELETE_FIELD:
            assert Merge("u/a", {"l": [theirs]}).data == {"l": [ours]}
            assert Filter("a", "==", theirs).value == ours
            assert Filter("a", "in", [theirs]).value == [ours]


def test_values_of_googles_client_that_are_refused() -> None:
    firestore = pytest.importorskip("google.cloud.firestore", reason="google-cloud-firestore")
    from google.api_core.datetime_helpers import DatetimeWithNanoseconds
    from google.cloud.firestore_v1.transforms import Sentinel

    for value, text in (
        (firestore.GeoPoint(91, 0), "latitude"),
        (Sentinel("another"), "Sentinel: another"),
        (DatetimeWithNanoseconds(2024, 5, 1, nanosecond=1), "time zone"),
        ([firestore.Increment(1)], "not inside lists"),
    ):
        with pytest.raises(RequestError, match=text):
            Merge("u/a", {"v": value})


def test_a_list_in_a_filter_is_the_filters_own() -> None:
    mine = [1]
    item = Filter("a", "in", mine)
    mine.append(2)
    assert item.value == [1]
