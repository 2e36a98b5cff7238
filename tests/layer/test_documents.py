"""Documents and operations as values: frozen data, Firestore's semantics, bad input."""

from __future__ import annotations

import copy
import pickle
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beastmode.errors import DocumentMissing, RequestError
from beastmode.stores.documents import (
    DELETE_FIELD,
    MAX_DEPTH,
    Delete,
    Document,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
    apply,
    check_collection,
    check_path,
    collection_of,
    combine,
    freeze,
    thaw,
)
from beastmode.stores.transforms import Increment

DATA = {"a": 1, "m": {"x": [1, {"y": 2}], "z": None}, "l": [[1], 2]}


def frozen() -> Any:
    return freeze(copy.deepcopy(DATA))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("a", 2),
        lambda d: d.__delitem__("a"),
        lambda d: d.update(a=2),
        lambda d: d.clear(),
        lambda d: d.pop("a"),
        lambda d: d.popitem(),
        lambda d: d.setdefault("b", 1),
        lambda d: d.__ior__({"b": 1}),
        lambda d: d["m"].update(x=1),
        lambda d: d["m"]["x"].append(1),
        lambda d: d["m"]["x"][1].update(y=3),
        lambda d: d["l"].__setitem__(0, 1),
        lambda d: d["l"].__delitem__(0),
        lambda d: d["l"].__iadd__([1]),
        lambda d: d["l"].__imul__(2),
        lambda d: d["l"].clear(),
        lambda d: d["l"].extend([1]),
        lambda d: d["l"].insert(0, 1),
        lambda d: d["l"].pop(),
        lambda d: d["l"].remove(2),
        lambda d: d["l"].reverse(),
        lambda d: d["l"].sort(),
        lambda d: d["l"][0].append(1),
    ],
)
def test_what_is_frozen_cannot_be_changed(change: Any) -> None:
    held = frozen()
    with pytest.raises(TypeError, match="to_dict"):
        change(held)
    assert held == DATA


def test_frozen_data_is_data() -> None:
    held = frozen()
    assert held == DATA
    assert repr(held) == repr(DATA)
    assert freeze(held) is held
    for own in (thaw(held), copy.deepcopy(held), Document("u/a", held, 1).to_dict()):
        assert own == DATA
        assert type(own) is dict
        own["m"]["x"][1]["y"] = 5
        own["l"][0].append(1)
    assert held == DATA
    assert pickle.loads(pickle.dumps(held)) == DATA
    assert freeze((1, [2])) == [1, [2]]


def test_any_mapping_and_sequence_is_taken() -> None:
    given_map = types.MappingProxyType({"m": types.MappingProxyType({"t": ([1], 2)})})
    for make in (freeze, thaw):
        assert make(given_map) == {"m": {"t": [[1], 2]}}
    own = thaw(given_map)
    own["m"]["t"][0].append(3)
    assert given_map["m"]["t"][0] == [1]
    with pytest.raises(TypeError):
        freeze(given_map)["m"]["t"][0].append(3)


def test_a_document_tells_whether_it_exists() -> None:
    assert Document("u/a", freeze({}), 1).exists
    assert not Document("u/a", None, 1).exists
    assert Document("u/a", None, 1).to_dict() is None
    with pytest.raises(AttributeError):
        Document("u/a", None, 1).version = 2  # type: ignore[misc]


@pytest.mark.parametrize("path", ["u", "u/a/b", "", "/", "u/", "/a", "u//a/b", None, 5, b"u/a"])
def test_paths_that_name_no_document(path: Any) -> None:
    with pytest.raises(RequestError, match="document path"):
        check_path(path)
    for make in (Set, Merge, Update):
        with pytest.raises(RequestError):
            make(path, {})
    with pytest.raises(RequestError):
        Delete(path)


def test_paths() -> None:
    assert check_path("u/a/b/c") == "u/a/b/c"
    assert check_collection("u/a/b") == "u/a/b"
    assert collection_of("u/a/b/c") == "u/a/b"
    for path in ("u/a", "", "u//a", None):
        with pytest.raises(RequestError, match="collection path"):
            check_collection(path)


@pytest.mark.parametrize("make", [Set, Merge, Update])
@pytest.mark.parametrize(
    "data", [None, [], "x", {"": 1}, {1: 1}, {"a": {"": 1}}, {"a": [{2: 1}]}], ids=repr
)
def test_data_that_is_no_map_of_names(make: Any, data: Any) -> None:
    with pytest.raises(RequestError, match=make.__name__):
        make("u/a", data)


@pytest.mark.parametrize("field", ["a..b", ".a", "a.", "."])
def test_updates_of_empty_names(field: str) -> None:
    with pytest.raises(RequestError, match="empty field name"):
        Update("u/a", {field: 1})


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("x", "a.b.c", "a.b", "a-b")])
@pytest.mark.parametrize("value", [1, {"x": 1}, DELETE_FIELD, Increment(1)], ids=repr)
def test_updates_of_a_field_and_of_what_is_in_it(names: tuple[str, ...], value: Any) -> None:
    """Readers would be shown what the order makes of them, and the store is sent no order."""
    with pytest.raises(
        RequestError, match=r"Update of 'u/a' .* leads .*'a(\.b)?' and 'a\.b(\.c)?'"
    ):
        Update("u/a", dict.fromkeys(names, value))
    Update("u/a", dict.fromkeys(["a.b", "a.c", "a-b", "ab", "b.a"], value))


def test_nesting_is_bounded_and_loops_are_told() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    Set("u/a", {"d": deep})
    with pytest.raises(RequestError, match=str(MAX_DEPTH)):
        Set("u/a", {"d": [deep]})
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(RequestError, match=str(MAX_DEPTH)):
        Merge("u/a", loop)


def test_preconditions_say_one_thing() -> None:
    for arguments in ({}, {"exists": True, "version": 1}):
        with pytest.raises(RequestError, match="exactly one"):
            Precondition(**arguments)


def test_apply() -> None:
    held = {"a": 1, "m": {"x": 1, "y": {"z": 2}}}
    before = copy.deepcopy(held)
    cases: list[tuple[Operation, Any]] = [
        (Set("u/a", {"b": (1, 2)}), {"b": [1, 2]}),
        (Delete("u/a"), None),
        (Merge("u/a", {}), before),
        (Merge("u/a", {"m": {"x": DELETE_FIELD, "n": 3}}), {"a": 1, "m": {"y": {"z": 2}, "n": 3}}),
        (Merge("u/a", {"m": {}}), {"a": 1, "m": {}}),
        (Merge("u/a", {"a": {"b": 1}}), {"a": {"b": 1}, "m": before["m"]}),
        (Update("u/a", {"m.y.z": 5}), {"a": 1, "m": {"x": 1, "y": {"z": 5}}}),
        (Update("u/a", {"m": {"n": 1}}), {"a": 1, "m": {"n": 1}}),
        (Update("u/a", {"a.b.c": 1}), {"a": {"b": {"c": 1}}, "m": before["m"]}),
        (Update("u/a", {"a": DELETE_FIELD, "no.way": DELETE_FIELD}), {"m": before["m"]}),
    ]
    for operation, after in cases:
        assert apply(operation, held) == after, operation
        assert held == before
    assert apply(Merge("u/a", {"x": {"y": 1}}), None) == {"x": {"y": 1}}
    with pytest.raises(DocumentMissing, match="u/a"):
        apply(Update("u/a", {"x": 1}), None)
    assert repr(DELETE_FIELD) == "DELETE_FIELD"
    assert copy.deepcopy(DELETE_FIELD) is copy.copy(DELETE_FIELD) is DELETE_FIELD


def test_apply_shares_nothing_with_its_operation() -> None:
    given_list = [1]
    for operation in (
        Set("u/a", {"l": given_list}),
        Merge("u/a", {"l": given_list}),
        Update("u/a", {"l": given_list}),
    ):
        after = apply(operation, {})
        assert after is not None
        after["l"].append(2)
        assert given_list == [1]


names = st.sampled_from(["a", "b", "c"])
values = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(names, inner, max_size=2))
holes = st.recursive(
    st.integers(0, 3) | st.just(DELETE_FIELD),
    lambda inner: st.dictionaries(names, inner, max_size=2),
)
dotted = st.sampled_from(["a", "a.b", "b.c", "c.a.b"])
operations = st.one_of(
    st.builds(Set, st.just("u/a"), st.dictionaries(names, values, max_size=2)),
    st.builds(Merge, st.just("u/a"), st.dictionaries(names, holes, max_size=2)),
    st.builds(
        Update,
        st.just("u/a"),
        st.dictionaries(dotted, values, max_size=2).filter(
            lambda fields: not {"a", "a.b"} <= fields.keys()
        ),
    ),
    st.builds(Delete, st.just("u/a")),
)


@given(
    older=operations,
    newer=operations,
    held=st.none() | st.dictionaries(names, values, max_size=3),
)
def test_combine_does_what_both_do(older: Operation, newer: Operation, held: Any) -> None:
    both = combine(older, newer)
    if both is None:
        return
    try:
        after: Any = apply(newer, apply(older, held))
    except DocumentMissing:
        with pytest.raises(DocumentMissing):
            apply(both, held)
    else:
        assert apply(both, held) == after


def test_combine_keeps_apart_what_must_stay_apart() -> None:
    there = Precondition(exists=True)
    make, change = Set("u/a", {"n": 1}), Update("u/a", {"n": 2})
    assert combine(make, change) == Set("u/a", {"n": 2})
    assert combine(make, Delete("u/a")) == Delete("u/a")
    assert combine(Merge("u/a", {"n": 1}), make) == make
    assert combine(change, make) is None
    assert combine(make, Set("u/a", {}, there)) is None
    assert combine(Set("u/a", {}, there), make) is None
    assert combine(Merge("u/a", {"n": 1}), Merge("u/a", {"m": 1})) is None
    assert combine(Delete("u/a"), Merge("u/a", {"m": 1})) is None
