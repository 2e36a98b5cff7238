"""What every store must do. A new kind of store joins by a line in `KINDS`."""

from __future__ import annotations

import enum
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from beastmode.errors import (
    ClosedError,
    DocumentMissing,
    PreconditionFailed,
    RequestError,
    StoreTimeout,
    WriteRejected,
)
from beastmode.stores.base import (
    AsyncStore,
    Change,
    Filter,
    Order,
    Query,
    Store,
    Subscription,
    Target,
    deadline_in,
)
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Precondition,
    Set,
    Update,
)
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore
from beastmode.stores.transforms import (
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Increment,
    Maximum,
    Minimum,
)
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector
from beastmode.testing.pytest_plugin import Firestore
from store_support import AwaitedStore, brute_force, wait_until


class Kind:
    """Makes stores of one kind over the same documents; `shared` when two may be made.

    `is_firestore`: it is Google's, whose rules are narrower in places, and whose times are rounded
    down to microseconds.
    """

    def __init__(
        self, make: Callable[[], Any], *, shared: bool, is_firestore: bool = False
    ) -> None:
        self._make = make
        self.shared = shared
        self.is_firestore = is_firestore
        self._made: list[Any] = []

    def make(self) -> Any:
        store = self._make()
        self._made.append(store)
        return store

    def end(self) -> None:
        for store in self._made:
            store.stop() if isinstance(store, AwaitedStore) else store.close()


def threaded(path: Path) -> AwaitedStore:
    return AwaitedStore(ThreadedAsyncStore(SQLiteStore(path), close_store=True))


def firestore_kind(request: pytest.FixtureRequest, store: Callable[[str, str], Any]) -> Kind:
    found: Firestore = request.getfixturevalue("firestore")
    return Kind(lambda: store(found.project, found.host), shared=True, is_firestore=True)


def google(project: str, host: str) -> FirestoreStore:
    return FirestoreStore(project, emulator_host=host, deadline_s=20.0)


def awaited_google(project: str, host: str) -> AwaitedStore:
    return AwaitedStore(AsyncFirestoreStore(project, emulator_host=host, deadline_s=20.0))


KINDS: dict[str, Callable[[Path, pytest.FixtureRequest], Kind]] = {
    "file": lambda path, _: Kind(lambda: SQLiteStore(path / "store.db"), shared=True),
    "memory": lambda _path, _: Kind(lambda: SQLiteStore(":memory:"), shared=False),
    "threaded": lambda path, _: Kind(lambda: threaded(path / "store.db"), shared=True),
    "firestore": lambda _, request: firestore_kind(request, google),
    "async firestore": lambda _, request: firestore_kind(request, awaited_google),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        names = list(KINDS)
        if hasattr(metafunc.function, "hypothesis"):
            names.remove("async firestore")  # it converts as the other one does
        metafunc.parametrize("kind", names, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    made = KINDS[request.param](tmp_path, request)
    yield made
    made.end()


@pytest.fixture
def store(kind: Kind) -> Any:
    return kind.make()


def fields(store: Any, path: str) -> Any:
    return store.get(path).to_dict()


# -- documents -------------------------------------------------------------------------------------


def test_keeps_the_protocol(store: Any) -> None:
    assert isinstance(store, Store)
    if isinstance(store, AwaitedStore):
        assert isinstance(store.inner, AsyncStore)


def test_a_missing_document_is_a_tombstone_with_a_comparable_version(store: Any) -> None:
    before = store.get("users/1")
    assert (before.path, before.data, before.exists) == ("users/1", None, False)
    (made,) = store.commit([Set("users/1", {"a": 1})])
    assert before.version < made
    assert store.get("users/2").version >= made
    (removed,) = store.commit([Delete("users/1")])
    after = store.get("users/1")
    assert not after.exists
    assert made < removed <= after.version
    (again,) = store.commit([Set("users/1", {"a": 1})])
    assert again > after.version


def test_commit_returns_the_versions_that_get_tells(store: Any) -> None:
    versions = store.commit([Set("u/a", {"n": 1}), Set("u/b", {"n": 2})])
    assert [store.get("u/a").version, store.get("u/b").version] == versions
    assert store.commit([]) == []


def test_versions_are_near_the_time_and_grow(store: Any) -> None:
    seen = [store.commit([Set("u/a", {"n": n})])[0] for n in range(50)]
    assert seen == sorted(set(seen))
    assert abs(seen[-1] - time.time_ns()) < 60e9


def test_a_write_that_changes_nothing_keeps_the_version(store: Any) -> None:
    data = {"a": 1, "b": {"c": [1, 2], "d": "x"}}
    (first,) = store.commit([Set("u/a", data)])
    reordered = {"b": {"d": "x", "c": [1, 2]}, "a": 1}
    for same in (
        Set("u/a", data),
        Set("u/a", reordered),
        Merge("u/a", {"b": {"d": "x"}}),
        Update("u/a", {"b.d": "x"}),
        Update("u/a", {"no.such": DELETE_FIELD}),
    ):
        assert store.commit([same]) == [first]
    assert store.get("u/a").version == first
    for other in ({**data, "a": 1.0}, {**data, "a": True}, {**data, "b": {"c": [2, 1], "d": "x"}}):
        (version,) = store.commit([Set("u/a", other)])
        assert version > first
        assert repr(fields(store, "u/a")["a"]) == repr(other["a"])
        first = version


def test_a_delete_of_nothing_changes_nothing(store: Any) -> None:
    (version,) = store.commit([Set("u/a", {})])
    (at,) = store.commit([Delete("u/none")])
    # Firestore answers with the time of the commit, SQLite with the newest version of the file.
    assert at >= version
    assert store.get("u/a").version == version


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


BERLIN = timezone(timedelta(hours=2))
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.5,
    1e308,
    5e-324,
    0.1 + 0.2,
    math.inf,
    -math.inf,
    "",
    "text",
    "\0",
    "a\0b",
    "\U0001f600 \u2028 \ufeff é",
    '"\\/\b',
    b"",
    bytes(range(256)),
    datetime(2024, 5, 1, 12, 30, 15, 123456, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    GeoPoint(48.1, 11.6),
    GeoPoint(-90, 180),
    Reference("users/1"),
    Reference("users/1/posts/2", "other-project", "other-database"),
    Vector((0.5, -1.0, 1e300)),
    [GeoPoint(0, -0.0), {"r": Reference("ü/ß")}],
    [],
    {},
    [1, {"a": [2, {"b": [None]}]}],
    {"a": {"b": {"c": 1}}},
    {"$b": "x"},
    {"$t": "2024"},
    {"$f": "nan"},
    {"$$b": "x"},
    {"$": 1},
    {"$b": {"$b": b"x"}},
    [{"$b": "x"}, {"$b": b"y", "z": 1}],
    {"a.b": 1, "é": 2, '"': 3, "[0]": 4, " ": 5},
]


def plain(value: Any) -> str:
    """Return a text that differs wherever two values do; the order of a map's fields is nothing."""
    if isinstance(value, dict):
        return repr(sorted((key, plain(item)) for key, item in value.items()))
    if isinstance(value, list):
        return repr([plain(item) for item in value])
    return value.isoformat() if isinstance(value, datetime) else repr(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:40])
def test_values_come_back(store: Any, value: Any) -> None:
    store.commit([Set("u/a", {"v": value, "$b": value}), Merge("u/b", {"v": value})])
    assert plain(fields(store, "u/a")) == plain({"v": value, "$b": value})
    if not isinstance(value, dict):
        assert plain(fields(store, "u/b")) == plain({"v": value})


def test_lists_inside_lists(store: Any, kind: Kind) -> None:
    operation = Set("u/a", {"v": [1, [2, [3]]]})
    if kind.is_firestore:
        with pytest.raises(RequestError, match=r"'v\[1\]' of document 'u/a': .*no list directly"):
            store.commit([operation])
        assert not store.get("u/a").exists
    else:
        store.commit([operation])
        assert fields(store, "u/a") == operation.data


def test_values_that_come_back_as_what_they_stand_for(store: Any) -> None:
    local = datetime(2024, 5, 1, 14, 0, tzinfo=BERLIN)
    data = {"n": math.nan, "t": local, "p": (1, 2), "c": Colour.RED, "i": Number.TWO}
    store.commit([Set("u/a", data), Set("u/b", {"x": bytearray(b"abc")})])
    back = fields(store, "u/a")
    assert math.isnan(back["n"])
    assert (back["t"], back["t"].tzinfo) == (local, UTC)
    assert (back["p"], back["c"], back["i"]) == ([1, 2], "red", 2)
    assert (type(back["c"]), type(back["i"])) == (str, int)
    assert fields(store, "u/b") == {"x": b"abc"}


names = st.text(min_size=1, max_size=6) | st.sampled_from(["$b", "$t", "$f", "$$b", "$", "a.b"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.datetimes(timezones=st.just(UTC))
    | st.builds(GeoPoint, st.floats(-90, 90), st.floats(-180, 180))
    | st.builds(Reference, st.sampled_from(["u/a", "ü/ß/c/$"]))
    | st.builds(Vector, st.lists(st.floats(allow_nan=False), min_size=1, max_size=3))
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)


def has_nested_lists(value: Any, *, inside: bool = False) -> bool:
    """Whether a list or a vector stands in a list."""
    if isinstance(value, Vector):
        return inside
    if isinstance(value, list):
        return inside or any(has_nested_lists(item, inside=True) for item in value)
    return isinstance(value, dict) and any(map(has_nested_lists, value.values()))


SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(data=st.dictionaries(names, values, max_size=4))
def test_any_document_comes_back(kind: Kind, store: Any, data: dict[str, Any]) -> None:
    assume(not (kind.is_firestore and has_nested_lists(data)))
    store.commit([Set("u/a", data)])
    assert plain(fields(store, "u/a")) == plain(data)
    (version,) = store.commit([Set("u/a", data)])
    assert version == store.get("u/a").version
    assert store.query(Query("u")).documents[0].to_dict() == data


NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001 -- refused


class Custom:
    pass


REFUSED: list[tuple[Any, str]] = [
    (Custom(), "Custom"),
    (object, "type"),
    ({1, 2}, "set"),
    (1j, "complex"),
    (timedelta(1), "timedelta"),
    (date(2024, 1, 1), "date"),
    (NAIVE, "time zone"),
    (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=3))), "out of range"),
    (2**63, "64 bits"),
    (-(2**63) - 1, "64 bits"),
    ("\ud800", "UTF-8"),
    (DELETE_FIELD, "DeleteField"),
]


@pytest.mark.parametrize(("value", "text"), REFUSED, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("make", [Set, Merge, Update])
def test_values_that_cannot_be_kept_are_refused_by_field(
    store: Any, make: Any, value: Any, text: str
) -> None:
    (version,) = store.commit([Set("u/a", {"old": 1})])
    with pytest.raises(RequestError, match=r"'deep(\.|\[)") as caught:
        store.commit([Set("u/b", {}), make("u/a", {"deep": [{"in": value}]})])
    assert text in str(caught.value)
    assert "'u/a'" in str(caught.value)
    assert "deep[0].in" in str(caught.value)
    assert fields(store, "u/a") == {"old": 1}
    assert store.get("u/a").version == version
    assert not store.get("u/b").exists


def test_nesting_and_names_are_bounded(store: Any, kind: Kind) -> None:
    # A document's own fields count as the first level, except in Firestore's figure.
    most, stated = (21, "20 deep") if kind.is_firestore else (100, "100 deep")
    deep: Any = 1
    for _ in range(most - 1):
        deep = {"d": deep}
    store.commit([Set("u/a", {"d": deep}), Merge("u/b", deep)])
    assert fields(store, "u/a") == {"d": deep}
    assert fields(store, "u/b") == deep
    for too_deep in (
        lambda: Set("u/a", {"d": {"d": deep}}),
        lambda: Merge("u/a", {"d": {"d": deep}}),
        lambda: Update("u/a", {".".join("d" * (most + 1)): 1}),
        lambda: Update("u/a", {"d.d": deep}),
    ):
        with pytest.raises(RequestError, match=stated):
            store.commit([too_deep()])
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(RequestError, match="100 deep"):
        store.commit([Set("u/a", {"loop": loop})])
    with pytest.raises(RequestError, match="UTF-8"):
        store.commit([Set("u/a", {"\ud800": 1})])
    with pytest.raises(RequestError, match="UTF-8"):
        store.commit([Update("u/a", {"x.\ud800": 1})])
    for asks in (
        lambda: Query("u", where=(Filter("\ud800", "==", 1),)),
        lambda: Query("u", order_by=(Order("x.\ud800"),)),
    ):
        with pytest.raises(RequestError, match="UTF-8"):
            store.query(asks())
    assert fields(store, "u/a") == {"d": deep}


@pytest.mark.parametrize("path", ["users", "a/b/c", "", "/", "a//b/c", 7, None, "a/\ud800"])
def test_bad_paths_are_refused(store: Any, path: Any) -> None:
    with pytest.raises(RequestError):
        store.get(path)
    with pytest.raises(RequestError):
        store.get_many(["u/a", path])


@pytest.mark.parametrize("path", ["ü/ß", "a/b c", "a/x'--", 'a/"', "a/%", "a/\0", "a/b/c/d"])
def test_odd_paths_name_documents(store: Any, path: str) -> None:
    store.commit([Set(path, {"p": path})])
    assert fields(store, path) == {"p": path}
    assert [d.path for d in store.query(Query(path.rpartition("/")[0])).documents] == [path]


def test_what_is_no_operation_is_refused_before_anything_changes(store: Any) -> None:
    with pytest.raises(RequestError, match="'no operation'"):
        store.commit([Set("u/a", {}), "no operation"])
    with pytest.raises(RequestError):
        store.get_many("u/a")
    assert not store.get("u/a").exists


def test_documents_are_read_only_and_the_writer_keeps_its_own(store: Any) -> None:
    mine = {"list": [1], "map": {"a": 1}}
    store.commit([Set("u/a", mine)])
    mine["list"].append(2)
    held = store.get("u/a")
    for change in (
        lambda: held.data.update(x=1),
        lambda: held.data["list"].append(3),
        lambda: held.data["map"].pop("a"),
    ):
        with pytest.raises(TypeError):
            change()
    copy = held.to_dict()
    copy["list"].append(9)
    assert fields(store, "u/a") == {"list": [1], "map": {"a": 1}}


def test_get_many_keeps_order_and_repeats(store: Any) -> None:
    store.commit([Set(f"u/{n}", {"n": n}) for n in range(700)])
    store.commit([Set("other/1", {"o": 1})])
    paths = [f"u/{n}" for n in range(699, -1, -1)] + ["u/none", "other/1", "u/5", "u/none"]
    found = store.get_many(paths)
    assert [d.path for d in found] == paths
    assert [d.data["n"] for d in found[:700]] == list(range(699, -1, -1))
    assert [d.exists for d in found[700:]] == [False, True, True, False]
    assert found[700].version >= found[701].version
    assert store.get_many([]) == []


def test_times_keep_the_digits_that_the_store_has(kind: Kind) -> None:
    store = kind.make()
    made = Timestamp(2024, 5, 1, 12, nanosecond=123_456_789)
    store.commit([Set("u/a", {"t": made, "l": [Timestamp(2024, 5, 1, nanosecond=1000)]})])
    back = fields(store, "u/a")
    assert back["t"].replace(microsecond=0) == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert type(back["l"][0]) is datetime
    if not kind.is_firestore:
        assert back["t"] == made
        assert back["t"].nanosecond == 123_456_789
        (version,) = store.commit([Merge("u/a", {"t": made + timedelta()})])
        assert version == store.get("u/a").version
    else:  # rounded down
        assert back["t"] == datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


# -- operations ------------------------------------------------------------------------------------


def test_set_merge_update_delete(store: Any) -> None:
    store.commit([Set("u/a", {"x": 1, "m": {"p": 1, "q": 2}})])
    store.commit([Merge("u/a", {"m": {"q": DELETE_FIELD, "r": 3}, "y": [1]})])
    assert fields(store, "u/a") == {"x": 1, "m": {"p": 1, "r": 3}, "y": [1]}
    store.commit([Update("u/a", {"m.p": 9, "m.r": DELETE_FIELD, "new.deep": True})])
    assert fields(store, "u/a") == {"x": 1, "m": {"p": 9}, "y": [1], "new": {"deep": True}}
    store.commit([Merge("u/new", {"a": {"b": 1}})])
    assert fields(store, "u/new") == {"a": {"b": 1}}
    store.commit([Set("u/a", {"z": 0}), Delete("u/new")])
    assert fields(store, "u/a") == {"z": 0}
    assert not store.get("u/new").exists


def test_one_document_many_times_in_one_commit(store: Any) -> None:
    versions = store.commit(
        [
            Set("u/a", {"n": 1}),
            Update("u/a", {"n": 2}),
            Delete("u/a"),
            Set("u/a", {"n": 3}),
            Merge("u/a", {"m": 4}),
            Merge("u/a", {"m": 4}),
        ]
    )
    assert versions == sorted(versions)
    assert versions[5] == versions[4]
    assert store.get("u/a").version == versions[-1]
    assert fields(store, "u/a") == {"n": 3, "m": 4}


def test_nothing_is_applied_when_one_operation_fails(store: Any) -> None:
    store.commit([Set("u/a", {"n": 1}), Set("u/gone", {"n": 1})])
    with pytest.raises(DocumentMissing, match="u/missing"):
        store.commit(
            [
                Set("u/a", {"n": 2}),
                Delete("u/gone"),
                Set("u/new", {}),
                Update("u/missing", {"n": 1}),
                Set("u/later", {}),
            ]
        )
    assert fields(store, "u/a") == {"n": 1}
    assert fields(store, "u/gone") == {"n": 1}
    assert not store.get("u/new").exists
    assert not store.get("u/later").exists
    store.commit([Set("u/a", {"n": 3})])
    assert fields(store, "u/a") == {"n": 3}


@pytest.mark.parametrize("make", [Set, Merge, Update])
def test_preconditions_on_existence(store: Any, make: Any) -> None:
    with pytest.raises(PreconditionFailed, match="'u/a'.*must exist"):
        store.commit([make("u/a", {"n": 1}, Precondition(exists=True))])
    with pytest.raises(PreconditionFailed, match="must exist"):
        store.commit([Delete("u/a", Precondition(exists=True))])
    store.commit([Set("u/a", {"n": 1}, Precondition(exists=False))])
    with pytest.raises(PreconditionFailed, match="must not exist"):
        store.commit([make("u/a", {"n": 2}, Precondition(exists=False))])
    store.commit([make("u/a", {"n": 2}, Precondition(exists=True))])
    assert fields(store, "u/a") == {"n": 2}
    assert issubclass(PreconditionFailed, WriteRejected)


def test_preconditions_on_version(store: Any) -> None:
    (version,) = store.commit([Set("u/a", {"n": 1})])
    store.commit([Update("u/a", {"n": 2}, Precondition(version=version))])
    for late in (
        Update("u/a", {"n": 3}, Precondition(version=version)),
        Delete("u/a", Precondition(version=version)),
        Set("u/none", {}, Precondition(version=version)),
    ):
        with pytest.raises(PreconditionFailed, match=str(version)):
            store.commit([late])
    # an operation sees what those before it in the same commit did
    store.commit([Delete("u/a"), Set("u/a", {"n": 9}, Precondition(exists=False))])
    assert fields(store, "u/a") == {"n": 9}


# -- transforms ------------------------------------------------------------------------------------

ABSENT = object()
MOST, LEAST = 2**63 - 1, -(2**63)
NAN = math.nan
TRANSFORMS: list[tuple[Any, Any, Any]] = [
    (ABSENT, Increment(1), 1),
    ("x", Increment(1.5), 1.5),
    (None, Increment(1), 1),
    (True, Increment(1), 1),
    ([1], Increment(1), 1),
    (1, Increment(2), 3),
    (1, Increment(-2), -1),
    (1, Increment(2.5), 3.5),
    (2.5, Increment(1), 3.5),
    (2**53 + 1, Increment(0.0), float(2**53)),
    (MOST, Increment(1), MOST),
    (MOST, Increment(-1), MOST - 1),
    (LEAST, Increment(-1), LEAST),
    (LEAST, Increment(LEAST), LEAST),
    (NAN, Increment(1), NAN),
    (1e308, Increment(1e308), math.inf),
    (ABSENT, Maximum(-3), -3),
    ("x", Maximum(1), 1),
    (3, Maximum(2), 3),
    (3, Maximum(4.5), 4.5),
    (3, Maximum(3.0), 3),
    (3.0, Maximum(3), 3.0),
    (-0.0, Maximum(0), -0.0),
    (0, Maximum(-0.0), 0),
    (2**53 + 1, Maximum(float(2**53)), 2**53 + 1),
    (1, Maximum(NAN), NAN),
    (NAN, Maximum(1), NAN),
    (ABSENT, Minimum(3), 3),
    (False, Minimum(1), 1),
    (3, Minimum(2.0), 2.0),
    (3, Minimum(3.0), 3),
    (3, Minimum(4), 3),
    (NAN, Minimum(1), NAN),
    (1, Minimum(NAN), NAN),
    (ABSENT, ArrayUnion([NAN, NAN, None, None]), [NAN, None]),
    ("x", ArrayUnion([1, 1.0]), [1]),
    ([1, 2], ArrayUnion([2.0, 3, 3.0, 3]), [1, 2, 3]),
    ([1, 1], ArrayUnion([1]), [1, 1]),
    ([True], ArrayUnion([1]), [True, 1]),
    ([0], ArrayUnion([-0.0]), [0]),
    ([NAN], ArrayUnion([NAN]), [NAN]),
    ([{"a": 1}], ArrayUnion([{"a": 1.0}, {"a": 2}]), [{"a": 1}, {"a": 2}]),
    (["b"], ArrayUnion(["a", b"b", "c"]), ["b", "a", b"b", "c"]),
    (
        [GeoPoint(1, 2)],
        ArrayUnion([GeoPoint(1.0, 2.0), Reference("u/b")]),
        [
            GeoPoint(1, 2),
            Reference("u/b"),
        ],
    ),
    ([2**53], ArrayUnion([float(2**53), 2**53 + 1]), [2**53, 2**53 + 1]),
    (ABSENT, ArrayRemove([1]), []),
    ("x", ArrayRemove([1]), []),
    ([1, 1.0, 2, True], ArrayRemove([1]), [2, True]),
    ([NAN, None, 0, 5], ArrayRemove([NAN, None, -0.0]), [5]),
    ([{"a": 1}, {"a": 1.0, "b": 1}], ArrayRemove([{"a": 1.0}]), [{"a": 1.0, "b": 1}]),
]


@pytest.mark.parametrize(
    ("held", "transform", "after"),
    TRANSFORMS,
    ids=[f"{'nothing' if held is ABSENT else held!r}-{do!r}" for held, do, _ in TRANSFORMS],
)
def test_transforms(store: Any, held: Any, transform: Any, after: Any) -> None:
    before = {"w": 1} if held is ABSENT else {"w": 1, "v": held, "m": {"v": held}}
    alone = Set("u/s", {"m": {"v": transform}})
    store.commit([Set("u/m", before), Set("u/u", before), alone])
    store.commit(
        [
            Merge("u/m", {"v": transform, "m": {"v": transform}}),
            Update("u/u", {"v": transform, "m.v": transform}),
        ]
    )
    expected = {"v": after, "m": {"v": after}, "w": 1}
    for path in ("u/m", "u/u"):
        assert plain(fields(store, path)) == plain(expected)
    if held is ABSENT:
        assert plain(fields(store, "u/s")) == plain({"m": {"v": after}})


def test_where_transforms_stand(store: Any) -> None:
    held = {"n": 5, "m": {"a": 1, "x": 3}, "s": 7}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (Set("u/a", {"n": Increment(1)}), {"n": 1}),
        (Set("u/a", {"m": {"x": Increment(2), "b": 1}}), {"m": {"x": 2, "b": 1}}),
        (Merge("u/a", {"m": {"x": Increment(2)}}), {**held, "m": {"a": 1, "x": 5}}),
        (
            Merge("u/a", {"m": {"x": Increment(2), "a": DELETE_FIELD, "y": {"z": Increment(1)}}}),
            {**held, "m": {"x": 5, "y": {"z": 1}}},
        ),
        (Merge("u/a", {"s": {"x": Increment(2)}}), {**held, "s": {"x": 2}}),
        (Update("u/a", {"m": {"x": Increment(2), "b": 1}}), {**held, "m": {"x": 2, "b": 1}}),
        (Update("u/a", {"m": {"x": Increment(2)}}), {**held, "m": {"x": 2}}),
        (
            Update("u/a", {"m.x": Increment(2), "m.b.c": Increment(1), "n": DELETE_FIELD}),
            {"m": {"a": 1, "x": 5, "b": {"c": 1}}, "s": 7},
        ),
        (Update("u/a", {"s.x": Increment(2)}), {**held, "s": {"x": 2}}),
    ]
    for operation, after in cases:
        store.commit([Set("u/a", held)])
        store.commit([operation])
        assert fields(store, "u/a") == after, operation
    store.commit([Merge("u/new", {"m": {"n": Increment(2)}})])
    assert fields(store, "u/new") == {"m": {"n": 2}}


def test_what_only_removes_makes_no_map(store: Any) -> None:
    store.commit([Set("u/a", {"s": 7}), Set("u/b", {"s": 7})])
    store.commit([Merge("u/a", {"m": {"x": DELETE_FIELD}, "s": {"y": {"x": DELETE_FIELD}}})])
    store.commit([Update("u/b", {"m.x": DELETE_FIELD, "s.y.x": DELETE_FIELD})])
    assert fields(store, "u/a") == fields(store, "u/b") == {"s": 7}


def test_transforms_follow_each_other_in_one_commit(store: Any) -> None:
    versions = store.commit(
        [
            Merge("u/a", {"n": Increment(1), "l": ArrayUnion(["a"])}),
            Merge("u/a", {"n": Increment(1), "l": ArrayUnion(["b"])}),
            Update("u/a", {"n": Maximum(10), "l": ArrayRemove(["a"])}, Precondition(exists=True)),
        ]
    )
    assert versions == sorted(versions)
    assert store.get("u/a").version == versions[-1]
    assert fields(store, "u/a") == {"n": 10, "l": ["b"]}
    with pytest.raises(DocumentMissing, match="u/none"):
        store.commit([Merge("u/a", {"n": Increment(1)}), Update("u/none", {"n": Increment(1)})])
    assert fields(store, "u/a")["n"] == 10
    found = store.query(Query("u", (Filter("l", "array-contains", "b"),))).documents
    assert [document.path for document in found] == ["u/a"]


def test_a_transform_that_changes_nothing_keeps_the_version(store: Any) -> None:
    (version,) = store.commit([Set("u/a", {"n": 1, "l": [1]})])
    for same in (
        Merge("u/a", {"n": Increment(0)}),
        Update("u/a", {"n": Maximum(1.0), "l": ArrayUnion([1.0])}),
        Merge("u/a", {"l": ArrayRemove([2])}),
    ):
        assert store.commit([same]) == [version]


def test_the_time_of_the_server(store: Any) -> None:
    store.commit([Set("u/a", {"t": 1})])
    versions = store.commit(
        [
            Update("u/a", {"t": SERVER_TIMESTAMP, "m.t": SERVER_TIMESTAMP}),
            Set("u/b", {"l": {"t": SERVER_TIMESTAMP}}),
        ]
    )
    a, b = fields(store, "u/a"), fields(store, "u/b")
    assert a["t"] == a["m"]["t"] == b["l"]["t"]
    assert type(a["t"]) is datetime
    assert a["t"].tzinfo is UTC
    assert a["t"].microsecond % 1000 == 0
    assert abs(a["t"].timestamp() - versions[0] / 1e9) < 1.0
    (later,) = store.commit([Merge("u/a", {"t": SERVER_TIMESTAMP})])
    assert fields(store, "u/a")["t"] >= a["t"]
    assert later >= versions[0]


@pytest.mark.parametrize("make", [Set, Merge, Update])
@pytest.mark.parametrize(("value", "text"), REFUSED[:-1], ids=lambda value: repr(value)[:30])
def test_operands_that_cannot_be_kept_are_refused_by_field(
    store: Any, make: Any, value: Any, text: str
) -> None:
    store.commit([Set("u/a", {"old": 1})])
    for transform in (ArrayUnion([1, {"x": value}]), ArrayRemove([1, {"x": value}])):
        with pytest.raises(RequestError, match=r"deep\.in\[1\]\.x") as caught:
            store.commit([Set("u/b", {}), make("u/a", {"deep": {"in": transform}})])
        assert text in str(caught.value)
        assert "'u/a'" in str(caught.value)
    assert fields(store, "u/a") == {"old": 1}
    assert not store.get("u/b").exists


# -- queries ---------------------------------------------------------------------------------------


def ids(store: Any, query: Query) -> list[str]:
    return [d.path.rpartition("/")[2] for d in store.query(query).documents]


def test_a_query_finds_a_collection_and_nothing_else(store: Any) -> None:
    store.commit([Set("u/b", {}), Set("u/a", {}), Set("u/a/sub/x", {}), Set("u2/c", {})])
    (last,) = store.commit([Set("v/z", {})])
    result = store.query(Query("u"))
    assert [d.path for d in result.documents] == ["u/a", "u/b"]
    assert result.version >= last
    assert result.documents[0].version == store.get("u/a").version
    assert ids(store, Query("u/a/sub")) == ["x"]
    assert ids(store, Query("none")) == []
    assert ids(store, Query("u", limit=1)) == ["a"]


def test_types_are_never_mixed(store: Any) -> None:
    held = {"int": 1, "real": 1.0, "bool": True, "text": "1", "null": None, "list": [1]}
    store.commit([Set(f"u/{name}", {"v": value}) for name, value in held.items()])
    store.commit([Set("u/missing", {"w": 1})])
    find = lambda op, value: ids(store, Query("u", (Filter("v", op, value),)))  # noqa: E731
    assert find("==", 1) == ["int", "real"]
    assert find("==", True) == ["bool"]
    assert find("==", "1") == ["text"]
    assert find("==", None) == ["null"]
    # An inequality sorts by its field, as in Firestore.
    assert find("!=", None) == ["bool", "int", "real", "text", "list"]
    assert find("!=", 1) == ["bool", "text", "list"]
    assert find(">=", 0) == ["int", "real"]
    assert find(">=", "") == ["text"]
    assert find("<", 5) == ["int", "real"]
    assert find("in", [1, "1"]) == ["int", "real", "text"]
    assert find("in", [None]) == []
    assert find("not-in", [1]) == ["bool", "text", "list"]
    assert find("not-in", []) == ["bool", "int", "real", "text", "list"]
    assert find("in", []) == []
    assert find("not-in", [1, None]) == []
    assert find("array-contains", 1.0) == ["list"]
    order = ids(store, Query("u", order_by=(Order("v"),)))
    assert order == ["null", "bool", "int", "real", "text", "list"]
    order = ids(store, Query("u", order_by=(Order("v", descending=True),)))
    assert order == ["list", "text", "real", "int", "bool", "null"]


def test_firestore_types_in_queries(store: Any) -> None:
    held = {
        "time": datetime(2024, 1, 1, tzinfo=UTC),
        "ref-a": Reference("u/a"),
        "ref-b": Reference("u/b"),
        "deep": Reference("u/a/c/d"),
        "south": GeoPoint(-1, 9),
        "west": GeoPoint(1, 1),
        "east": GeoPoint(1, 2),
        "short": Vector((9.0,)),
        "long": Vector((0.5, 1.0)),
        "text": "u/a",
        "bytes": b"x",
        "list": [Reference("u/a"), GeoPoint(1, 1)],
        "map": {"a": 1},
    }
    store.commit([Set(f"q/{name}", {"v": value}) for name, value in held.items()])
    find = lambda op, value: ids(store, Query("q", (Filter("v", op, value),)))  # noqa: E731
    assert find("==", Reference("u/a")) == ["ref-a"]
    assert sorted(find(">=", Reference("u/a/c/d"))) == ["deep", "ref-b"]
    assert sorted(find("<", Reference("u/b"))) == ["deep", "ref-a"]
    assert find("==", GeoPoint(1, 2)) == ["east"]
    assert sorted(find(">", GeoPoint(-1, 9))) == ["east", "west"]
    assert find("==", Vector((9.0,))) == ["short"]
    assert sorted(find(">=", Vector((9.0,)))) == ["long", "short"]
    assert find("in", [GeoPoint(1, 1), Reference("u/b")]) == ["ref-b", "west"]
    assert find("array-contains", Reference("u/a")) == ["list"]
    order = ids(store, Query("q", order_by=(Order("v"),)))
    assert order == [
        "time",
        "text",
        "bytes",
        "ref-a",
        "deep",
        "ref-b",
        "south",
        "west",
        "east",
        "list",
        "short",
        "long",
        "map",
    ]


def test_numbers_that_lie_close_together(store: Any) -> None:
    held = {"a": 2**53, "b": 2**53 + 1, "c": float(2**53), "d": 0.1 + 0.2, "e": 0.3, "f": 2**63 - 1}
    store.commit([Set(f"u/{name}", {"v": value}) for name, value in held.items()])
    find = lambda op, value: ids(store, Query("u", (Filter("v", op, value),)))  # noqa: E731
    assert find("==", 2**53) == ["a", "c"]
    assert find("==", 2**53 + 1) == ["b"]
    assert find(">", float(2**53)) == ["b", "f"]
    assert find("<", 0.1 + 0.2) == ["e"]
    assert find("==", 0.3) == ["e"]
    assert find("<", math.inf) == list("edacbf")
    assert find(">=", 2**63 - 1) == ["f"]


def test_a_limit_with_an_order_over_many_documents(store: Any) -> None:
    store.commit([Set(f"u/{n:05}", {"n": n * 7919 % 3001, "same": 1}) for n in range(3001)])
    top = store.query(Query("u", order_by=(Order("n", descending=True),), limit=5))
    assert [d.data["n"] for d in top.documents] == [3000, 2999, 2998, 2997, 2996]
    tied = ids(store, Query("u", order_by=(Order("same", descending=True),), limit=3))
    assert tied == ["03000", "02999", "02998"]  # ties go the way of the last order, as in Firestore


@pytest.mark.parametrize(
    "item",
    [
        Filter("v", "<", None),
        Filter("v", ">=", math.nan),
        Filter("v", "array-contains", None),
        Filter("v", "==", Custom()),
        Filter("v", "in", [1, Custom()]),
        Filter("v", "==", NAIVE),
        Filter("v", "==", 2**64),
    ],
    ids=str,
)
def test_filters_that_mean_nothing_are_refused(store: Any, item: Filter) -> None:
    with pytest.raises(RequestError, match="v"):
        store.query(Query("u", (item,)))


def test_what_is_no_query_is_refused(store: Any) -> None:
    with pytest.raises(RequestError):
        store.query("u")
    for make in (
        lambda: Filter("a..b", "==", 1),
        lambda: Order(""),
        lambda: Filter("a", "~", 1),  # type: ignore[arg-type]
        lambda: Filter("a", "in", 1),
        lambda: Query("u/a"),
        lambda: Query("u", order_by=(Order("a"), Order("a", descending=True))),
        lambda: Query("u", limit=0),
    ):
        with pytest.raises(RequestError):
            make()


FIELDS = ["a", "b", "a.b", "é", "$b", "a.$t", 'q"q', "a b", "\t", "0", "a.0"]
INTS = [0, 1, -1, 2, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
REALS = [0.0, -0.0, 1.0, 1.5, 0.1 + 0.2, 0.3, 2.0**53, 1e308, 5e-324, math.nan, math.inf, -math.inf]
TEXTS = ["", "a", "b", "a\0", "a\0b", "ab", "é", "\U0001f600", "\uffff", "nan", "true"]
TIMES = [datetime(2024, 1, 1, tzinfo=zone) for zone in (UTC, BERLIN)]
TIMES.append(datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC))
OWN = [
    GeoPoint(1, 2),
    GeoPoint(-0.0, 0),
    Reference("u/a"),
    Reference("u/a", "zz", "d"),
    Vector((1,)),
]
held_scalars = st.sampled_from(
    [None, True, False, *INTS, *REALS, *TEXTS, *TIMES, *OWN, b"", b"a", b"\xff"]
)
held_names = st.sampled_from(["a", "b", "é", "$b", "$t", "$$b", 'q"q', "a b", "\t", "0"])
held_values = st.recursive(
    held_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(held_names, inner, max_size=2),
    max_leaves=5,
)


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not-in", "array-contains"]))
    if op in ("in", "not-in"):
        value: Any = draw(st.lists(held_values, max_size=4))
    elif op in ("==", "!="):
        value = draw(held_values)
    else:
        value = draw(held_values.filter(lambda v: v is not None and v == v))
    return Filter(draw(st.sampled_from(FIELDS)), op, value)  # type: ignore[arg-type]


def is_for_firestore(documents: dict[str, Any], where: tuple[Filter, ...]) -> bool:
    """Return whether Firestore takes these documents and filters; see docs/firestore.md."""
    ops = [item.op for item in where]
    values = [
        one
        for item in where
        for one in (item.value if item.op in ("in", "not-in") else [item.value])
    ]
    return not (
        any(map(has_nested_lists, [*documents.values(), *values]))
        or sum(op in ("!=", "not-in") for op in ops) > 1
        or ("not-in" in ops and "in" in ops)
        or ops.count("array-contains") > 1
    )


@settings(max_examples=400, deadline=None, suppress_health_check=SLOW)
@given(
    documents=st.dictionaries(
        st.sampled_from(["1", "2", "10", "a", "B", "é", "\uffff", "\U0001f600"]),
        st.dictionaries(held_names, held_values, max_size=4),
        max_size=8,
    ),
    where=st.lists(filters(), max_size=2).map(tuple),
    order_by=st.lists(
        st.builds(Order, st.sampled_from(FIELDS), st.booleans()),
        max_size=2,
        unique_by=lambda order: order.field,
    ).map(tuple),
    limit=st.none() | st.integers(1, 4),
)
@example({"1": {"a": "a\0b"}}, (Filter("a", ">", "a"),), (), None)
@example({"1": {"a": "a\0b"}}, (Filter("a", "<", "a\0c"),), (), None)
@example({"1": {"a": -math.inf}}, (Filter("a", "<", 0),), (), None)
@example({"1": {"a": math.nan}}, (Filter("a", "<=", 0),), (), None)
@example({"1": {"a": {"$t": 1}}}, (Filter("a.$t", "==", 1),), (), None)
def test_a_query_finds_what_brute_force_finds(
    kind: Kind,
    store: Any,
    documents: dict[str, dict[str, Any]],
    where: tuple[Filter, ...],
    order_by: tuple[Order, ...],
    limit: int | None,
) -> None:
    if kind.is_firestore:
        assume(is_for_firestore(documents, where))
    store.commit([Delete(d.path) for d in store.query(Query("u")).documents])
    store.commit([Set(f"u/{doc_id}", data) for doc_id, data in documents.items()])
    query = Query("u", where, order_by, limit)
    assert ids(store, query) == brute_force(documents, query)


# -- watching --------------------------------------------------------------------------------------


class Seen:
    """Collects changes."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def __call__(self, change: Change) -> None:
        self.changes.append(change)

    @property
    def paths(self) -> list[str]:
        return [change.path for change in self.changes]

    def newest(self, path: str) -> Any:
        held = [change.document for change in self.changes if change.path == path]
        return held[-1] if held else None


def test_watches_hear_of_what_they_watch_in_commit_order(store: Any, kind: Kind) -> None:
    everything, users, one = Seen(), Seen(), Seen()
    store.commit([Set("users/old", {"before": True})])
    all_of_it = Target()
    if kind.is_firestore:
        with pytest.raises(RequestError, match="cannot follow everything"):
            store.watch(all_of_it, everything)
    watches = [
        *([] if kind.is_firestore else [store.watch(all_of_it, everything)]),
        store.watch(Target(collection="users"), users),
        store.watch(Target(document="users/1"), one),
    ]
    assert all(isinstance(watch, Subscription) and watch.active for watch in watches)
    paths = ["users/1", "users/2", "other/1", "users/1/sub/x", "users/3"]
    versions = [store.commit([Set(path, {"p": path})])[0] for path in paths]
    if not kind.is_firestore:
        wait_until(lambda: len(everything.changes) == len(paths))
        assert everything.paths == paths
        assert [c.document.version for c in everything.changes] == versions
    wait_until(lambda: len(users.changes) == 3 and one.changes)
    assert users.paths == ["users/1", "users/2", "users/3"]
    assert one.paths == ["users/1"]
    assert one.changes[0].document == store.get("users/1")
    with pytest.raises(TypeError):
        one.changes[0].document.data["x"] = 1  # type: ignore[index]
    (removed,) = store.commit([Delete("users/1")])
    wait_until(lambda: len(one.changes) == 2)
    gone = one.changes[1].document
    # Firestore tells a time at which it was gone, SQLite that of the removal.
    assert not gone.exists
    assert gone.version >= removed if kind.is_firestore else gone.version == removed


def test_a_watch_ends_with_the_newest_state_however_fast_it_changes(store: Any) -> None:
    seen = Seen()
    store.watch(Target(collection="u"), seen)
    for n in range(200):
        store.commit([Set("u/a", {"n": n}), Set("u/b", {"n": n})])
    store.commit([Delete("u/b")])
    wait_until(lambda: seen.newest("u/b") is not None and not seen.newest("u/b").exists)
    wait_until(lambda: seen.newest("u/a").data["n"] == 199)
    versions = [c.document.version for c in seen.changes]
    assert versions == sorted(versions)


def test_writes_that_change_or_apply_nothing_are_not_told(store: Any) -> None:
    seen = Seen()
    store.commit([Set("u/a", {"n": 1})])
    store.watch(Target(collection="u"), seen)
    store.commit([Set("u/a", {"n": 1}), Delete("u/none")])
    with pytest.raises(DocumentMissing):
        store.commit([Set("u/b", {}), Update("u/none", {"n": 1})])
    store.commit([Set("u/last", {})])
    wait_until(lambda: "u/last" in seen.paths)
    assert seen.paths == ["u/last"]


def test_an_on_change_that_raises_stops_nobody(
    store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen, calls = Seen(), []

    def raises(change: Change) -> None:
        calls.append(change)
        raise ValueError("on purpose")

    watch = store.watch(Target(collection="u"), raises)
    store.watch(Target(collection="u"), seen)
    store.commit([Set("u/a", {})])
    store.commit([Set("u/b", {})])
    wait_until(lambda: len(seen.changes) == 2 and len(calls) == 2)
    assert watch.active
    assert watch.error is None
    assert "ValueError: on purpose" in caplog.text


def test_a_closed_watch_is_told_nothing(store: Any) -> None:
    closed, seen = Seen(), Seen()
    watch = store.watch(Target(collection="u"), closed)
    store.watch(Target(collection="u"), seen)
    store.commit([Set("u/a", {})])
    wait_until(lambda: closed.changes and seen.changes)
    watch.close()
    watch.close()
    assert not watch.active
    assert watch.error is None
    store.commit([Set("u/b", {})])
    wait_until(lambda: len(seen.changes) == 2)
    assert len(closed.changes) == 1


def test_close_of_a_watch_waits_for_the_call_that_runs(store: Any) -> None:
    entered, go, left = threading.Event(), threading.Event(), threading.Event()

    def slow(_change: Change) -> None:
        entered.set()
        go.wait(10)
        left.set()

    watch = store.watch(Target(collection="u"), slow)
    store.commit([Set("u/a", {})])
    assert entered.wait(10)
    closing = threading.Thread(target=watch.close)
    closing.start()
    assert not left.is_set()
    go.set()
    closing.join(10)
    assert left.is_set()


def test_a_watch_may_close_itself_and_read_the_store(store: Any) -> None:
    seen: list[Any] = []

    def once(change: Change) -> None:
        watch.close()
        seen.append(change)

    watch = store.watch(Target(collection="u"), once)
    store.commit([Set("u/a", {})])
    store.commit([Set("u/b", {})])
    wait_until(lambda: seen)
    other = Seen()
    store.watch(Target(collection="u"), other)
    store.commit([Set("u/c", {})])
    wait_until(lambda: other.paths == ["u/c"])
    assert len(seen) == 1


def test_two_clients_of_the_same_documents(kind: Kind) -> None:
    if not kind.shared:
        # A second client of this kind has documents of its own; that must hold as well.
        one, other = kind.make(), kind.make()
        one.commit([Set("u/a", {})])
        assert not other.get("u/a").exists
        return
    one, other = kind.make(), kind.make()
    seen = Seen()
    other.watch(Target(collection="u"), seen)
    (version,) = one.commit([Set("u/a", {"n": 1})])
    assert other.get("u/a").version == version
    wait_until(lambda: seen.paths == ["u/a"])
    with pytest.raises(PreconditionFailed):
        other.commit([Set("u/a", {}, Precondition(exists=False))])
    assert other.commit([Set("u/b", {})])[0] > version


def test_bad_watches_are_refused(store: Any) -> None:
    with pytest.raises(RequestError):
        store.watch("u/a", print)
    with pytest.raises(RequestError):
        store.watch(Target(collection="u"), "not callable")
    for make in (
        lambda: Target(document="u"),
        lambda: Target(collection="u/a"),
        lambda: Target("u/a", "u"),
    ):
        with pytest.raises(RequestError):
            make()


# -- threads, deadlines, ends ----------------------------------------------------------------------


def test_commits_from_threads_lose_nothing(store: Any) -> None:
    versions: list[int] = []
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def add(name: int) -> None:
        try:
            start.wait()
            for n in range(30):
                versions.extend(store.commit([Set(f"t{name}/{n}", {"n": n})]))
                while True:
                    held = store.get("count/all")
                    value = held.data["n"] + 1 if held.exists else 1
                    wanted = (
                        Precondition(version=held.version)
                        if held.exists
                        else Precondition(exists=False)
                    )
                    try:
                        versions.extend(store.commit([Set("count/all", {"n": value}, wanted)]))
                        break
                    except PreconditionFailed:
                        continue
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert fields(store, "count/all") == {"n": 180}
    assert len(set(versions)) == 360
    assert sum(len(ids(store, Query(f"t{name}"))) for name in range(6)) == 180


def test_readers_never_see_half_a_commit(store: Any, kind: Kind) -> None:
    store.commit([Set("u/a", {"n": 0}), Set("u/b", {"n": 0})])
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            store.commit([Set("u/a", {"n": n}), Set("u/b", {"n": n})])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            one, other = store.get_many(["u/a", "u/b"])
            result = store.query(Query("u"))
            # The emulator reads one document after the other, and says that it was one moment.
            if not kind.is_firestore:
                assert one.data["n"] == other.data["n"]
                assert result.documents[0].data == result.documents[1].data
            assert result.version >= max(d.version for d in result.documents)
    finally:
        stop.set()
        writer.join(30)


def test_a_deadline_that_has_passed(store: Any) -> None:
    past = time.monotonic() - 1
    for call in (
        lambda: store.get("u/a", deadline=past),
        lambda: store.get_many(["u/a"], deadline=past),
        lambda: store.query(Query("u"), deadline=past),
        lambda: store.commit([Set("u/a", {})], deadline=past),
    ):
        with pytest.raises(StoreTimeout):
            call()
    assert not store.get("u/a", deadline=deadline_in(5)).exists


def test_a_long_query_ends_at_its_deadline(store: Any, kind: Kind) -> None:
    big = {f"f{n}": "x" * 50 for n in range(40)}
    for part in range(5 if kind.is_firestore else 10):
        store.commit([Set(f"u/{part}-{n}", big) for n in range(400)])
    began = time.monotonic()
    filters = 1 if kind.is_firestore else 40  # it takes one inequality of the kind "!="
    query = Query("u", tuple(Filter(f"f{n}", "!=", "y") for n in range(filters)), (Order("f1"),))
    with pytest.raises(StoreTimeout):
        store.query(query, deadline=deadline_in(0.05))
    assert time.monotonic() - began < 0.55
    assert len(ids(store, Query("u", limit=3))) == 3


def test_health(store: Any) -> None:
    health = store.health()
    assert health.ok
    assert 0 <= health.latency_s < 5
    store.close()
    health = store.health()
    assert not health.ok
    assert "closed" in health.detail


def threads_of_stores() -> list[str]:
    """Name the threads that run, without those that an event loop keeps for `to_thread`."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if not name.startswith("asyncio_")]


def test_close_ends_everything(store: Any) -> None:
    seen = Seen()
    watch = store.watch(Target(collection="u"), seen)
    store.commit([Set("u/a", {})])
    before = threads_of_stores()
    store.close()
    store.close()
    assert len(threads_of_stores()) < len(before)
    assert not watch.active
    assert watch.error is None
    for call in (
        lambda: store.get("u/a"),
        lambda: store.get_many(["u/a"]),
        lambda: store.query(Query("u")),
        lambda: store.commit([Set("u/a", {})]),
        lambda: store.commit([]),
        lambda: store.watch(Target(collection="u"), seen),
    ):
        with pytest.raises(ClosedError):
            call()
    watch.close()


def test_close_while_calls_run(store: Any) -> None:
    outcomes: list[BaseException | None] = []
    running = threading.Barrier(5)

    def work(number: int) -> None:
        running.wait()
        try:
            for n in range(100_000):
                if number % 2:
                    store.get(f"u/{n}")
                else:
                    store.commit([Set(f"u/{number}", {"n": n})])
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    running.wait()
    wait_until(lambda: store.get("u/0").exists)
    store.close()
    for thread in threads:
        thread.join(30)
    assert [type(outcome) for outcome in outcomes] == [ClosedError] * 4
