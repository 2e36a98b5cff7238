"""Documents and operations as text and back: everything returns as it was, or is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beastmode.errors import RequestError, StoreCorrupt
from beastmode.stores import codec
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
    freeze,
)
from beastmode.stores.operation_codec import (
    EncodedOperation,
    decode_operation,
    encode_operation,
    normal_operation,
)
from beastmode.stores.transforms import (
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Increment,
    Maximum,
    Minimum,
)
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector, split_time, time_of

names = st.text(min_size=1, max_size=5) | st.sampled_from(
    ["$b", "$g", "$r", "$v", "$t", "$$g", "$"]
)
words = st.text("ab-ü", min_size=1, max_size=4)
times = st.builds(time_of, st.integers(-62_135_596_800, 253_402_300_799), st.integers(0, 10**9 - 1))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | times
    | st.builds(GeoPoint, st.floats(-90, 90), st.floats(-180, 180))
    | st.builds(Reference, st.just("u/a"), st.none() | words, st.none() | words)
    | st.builds(Vector, st.lists(st.floats(allow_nan=False), min_size=1, max_size=3))
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
documents = st.dictionaries(names, values, max_size=4)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
transforms = (
    st.builds(Increment, numbers)
    | st.builds(Maximum, numbers)
    | st.builds(Minimum, numbers)
    | st.builds(ArrayUnion, st.lists(values, min_size=1, max_size=3))
    | st.builds(ArrayRemove, st.lists(values, min_size=1, max_size=3))
    | st.just(SERVER_TIMESTAMP)
)
leaves = values | transforms
fields = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3))
holes = st.recursive(
    leaves | st.just(DELETE_FIELD), lambda inner: st.dictionaries(names, inner, max_size=3)
)
operations = (
    st.builds(Set, st.just("u/a"), st.dictionaries(names, fields, max_size=3))
    | st.builds(Merge, st.just("u/a"), st.dictionaries(names, holes, max_size=3))
    | st.builds(
        Update,
        st.just("u/a"),
        st.dictionaries(st.sampled_from(["a.b", "c"]), fields | st.just(DELETE_FIELD), max_size=2),
    )
    | st.builds(Delete, st.just("u/a"))
)


@settings(max_examples=60)
@given(documents)
def test_any_document_returns(data: dict[str, Any]) -> None:
    text = codec.encode(data, "u/a")
    back = codec.decode(text, "u/a")
    assert repr(back) == repr(data) or back == data
    assert codec.encode(back, "u/a") == text
    assert codec.decode_frozen(text, "u/a") == freeze(data)


@given(one=times, other=times)
def test_texts_of_times_sort_as_times_do(one: datetime, other: datetime) -> None:
    texts = codec.time_text(one), codec.time_text(other)
    assert (texts[0] < texts[1]) is (split_time(one) < split_time(other))
    assert (texts[0] == texts[1]) is (split_time(one) == split_time(other))


def test_the_text_of_each_type() -> None:
    data = {
        "g": GeoPoint(48.1, 11.6),
        "r": Reference("users/7"),
        "s": Reference("u/a", "p", "d"),
        "v": Vector((0.5, float("inf"))),
        "t": Timestamp(2024, 5, 1, 12, nanosecond=1),
        "u": Timestamp(2024, 5, 1, 12, nanosecond=1000),
    }
    assert json.loads(codec.encode(data, "u/a")) == {
        "g": {"$g": [48.1, 11.6]},
        "r": {"$r": ["users/7", None, None]},
        "s": {"$r": ["u/a", "p", "d"]},
        "v": {"$v": [0.5, {"$f": "inf"}]},
        "t": {"$t": "2024-05-01T12:00:00.000000001+00:00"},
        "u": {"$t": "2024-05-01T12:00:00.000001+00:00"},
    }
    earlier = codec.decode('{"t":{"$t":"2024-05-01T12:00:00.000001+00:00"}}', "u/a")
    assert type(earlier["t"]) is datetime


@pytest.mark.parametrize(
    "value",
    [
        {"$g": [1]},
        {"$g": [100, 0]},
        {"$g": 5},
        {"$r": ["users"]},
        {"$r": "u/a"},
        {"$r": ["u/a", 5, None]},
        {"$v": []},
        {"$v": "12"},
        {"$v": [None]},
        {"$t": "2024-05-01T12:00:00.00000000x+00:00"},
        {"$t": 5},
        {"$?": 1},
    ],
    ids=str,
)
def test_damaged_texts_are_told(value: Any) -> None:
    with pytest.raises(StoreCorrupt, match="u/a"):
        codec.decode(json.dumps({"v": value}), "u/a")


@settings(max_examples=60)
@given(operations)
def test_any_operation_returns(operation: Operation) -> None:
    back = decode_operation(encode_operation(operation))
    assert back == operation
    assert decode_operation(encode_operation(back)) == back
    normal = normal_operation(operation)
    assert normal is operation or normal == back


def test_operations_written_before_there_were_transforms_are_read() -> None:
    old = EncodedOperation(2, b"u/a", b'{"m":{"x":1}}', b'[["m", "gone"], ["all"]]')
    assert decode_operation(old) == Merge(
        "u/a", {"m": {"x": 1, "gone": DELETE_FIELD}, "all": DELETE_FIELD}
    )
    assert encode_operation(Merge("u/a", {"x": 1})).removed == b""


@pytest.mark.parametrize(
    "removed",
    [
        b"{}",
        b"[5]",
        b"[[]]",
        b'[{"at": [], "do": "time"}]',
        b'[{"at": ["x"]}]',
        b'[{"do": "time"}]',
        b'[{"at": ["x"], "do": "nothing", "with": "{\\"x\\":1}"}]',
        b'[{"at": ["x"], "do": "increment"}]',
        b'[{"at": ["x"], "do": "increment", "with": "{}"}]',
        b'[{"at": ["x"], "do": "increment", "with": "{\\"x\\":\\"1\\"}"}]',
        b'[{"at": ["x"], "do": "union", "with": "{\\"x\\":5}"}]',
        b'[{"at": ["no", "x"], "do": "time"}]',
    ],
    ids=str,
)
def test_damaged_places_are_told(removed: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        decode_operation(EncodedOperation(2, b"u/a", b"{}", removed))


@pytest.mark.parametrize(
    "operation",
    [
        Set("u/a", {"m": {"x": DELETE_FIELD}}),
        Update("u/a", {"m": {"x": DELETE_FIELD}}),
        Merge("u/a", {"m": {"x": [DELETE_FIELD]}}),
    ],
    ids=repr,
)
def test_a_removal_where_nothing_can_be_removed(operation: Operation) -> None:
    with pytest.raises(RequestError, match=r"'m\.x.*u/a.*DeleteField"):
        encode_operation(operation)


def test_normal_operations() -> None:
    plain = Merge("u/a", {"x": (1, 2)})
    assert normal_operation(plain) is plain
    assert normal_operation(Delete("u/a")) == Delete("u/a")
    there = Precondition(exists=True)
    operation = Update("u/a", {"l": ArrayUnion([(1, 2), bytearray(b"x")])}, there)
    normal = normal_operation(operation)
    assert normal == Update("u/a", {"l": ArrayUnion(([1, 2], b"x"))}, there)
    with pytest.raises(RequestError, match=r"'m\.l\[0\]' of document 'u/a'.*time zone"):
        normal_operation(Set("u/a", {"m": {"l": ArrayUnion([datetime(2024, 1, 1)])}}))  # noqa: DTZ001
    local = datetime(2024, 1, 1, tzinfo=UTC)
    assert normal_operation(Merge("u/a", {"l": ArrayRemove([local])})) == Merge(
        "u/a", {"l": ArrayRemove([local])}
    )
