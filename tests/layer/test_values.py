"""Firestore's own values: geopoints, references, vectors, and times with nanoseconds."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beastmode import GeoPoint, Reference, Timestamp, Vector
from beastmode.errors import RequestError
from beastmode.stores.ordering import order_key
from beastmode.stores.values import split_time, time_of

FIRST, LAST = -62_135_596_800, 253_402_300_799
BERLIN = timezone(timedelta(hours=2))
seconds = st.integers(FIRST, LAST)
nanos = st.integers(0, 999_999_999)


@given(at=seconds, rest=nanos, other_at=seconds, other_rest=nanos)
def test_times_sort_and_hash_as_their_digits(
    at: int, rest: int, other_at: int, other_rest: int
) -> None:
    for later, more in ((other_at, other_rest), (at, other_rest), (at, rest)):
        made = [Timestamp.of(at, rest), time_of(at, rest)]
        others = [Timestamp.of(later, more), time_of(later, more)]
        for one in made:
            assert split_time(one) == (at, rest)
            for other in others:
                exact, exact_other = (at, rest), (later, more)
                assert (one == other) is (exact == exact_other)
                assert (one != other) is (exact != exact_other)
                assert (one < other) is (exact < exact_other)
                assert (one <= other) is (exact <= exact_other)
                assert (one > other) is (exact > exact_other)
                assert (one >= other) is (exact >= exact_other)
                if one == other:
                    assert hash(one) == hash(other)


@given(at=seconds, rest=nanos)
def test_a_timestamp_is_a_datetime(at: int, rest: int) -> None:
    made = Timestamp.of(at, rest)
    assert isinstance(made, datetime)
    assert made.tzinfo is UTC
    assert made.nanosecond == rest
    assert made.microsecond == rest // 1000
    assert eval(repr(made)) == made
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made
        assert type(again) is Timestamp
    text = made.isoformat()
    assert datetime.fromisoformat(text) == datetime(
        made.year,
        made.month,
        made.day,
        made.hour,
        made.minute,
        made.second,
        made.microsecond,
        tzinfo=UTC,
    )
    assert made.isoformat(timespec="nanoseconds")[20:29] == f"{rest:09}"


def test_every_way_to_make_a_datetime_makes_one() -> None:
    at = Timestamp(2024, 5, 1, 12, microsecond=5)
    for made in (
        Timestamp.fromisoformat("2024-05-01T12:00:00.000005+00:00"),
        Timestamp.fromtimestamp(at.timestamp(), UTC),
        Timestamp.strptime("2024-05-01 12:00:00.000005+0000", "%Y-%m-%d %H:%M:%S.%f%z"),
        Timestamp.combine(at.date(), at.timetz()),
    ):
        assert type(made) is Timestamp
        assert (made, made.nanosecond) == (at, 5000)
    assert Timestamp.now(UTC) > at
    with pytest.raises(RequestError, match="tzinfo must be datetime.UTC, got None"):
        Timestamp.now()


def test_a_plain_datetime_is_given_where_it_suffices() -> None:
    assert type(time_of(0, 1000)) is datetime
    assert time_of(-1, 999_999_000) == datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert type(time_of(0, 1)) is Timestamp
    local = datetime(1970, 1, 1, 2, tzinfo=BERLIN)
    assert Timestamp.of(0) == local
    assert Timestamp.of(0, 1) > local
    assert split_time(local) == (0, 0)
    assert Timestamp.of(0, 1) != datetime(1970, 1, 1)  # noqa: DTZ001 -- a naive one
    assert Timestamp.of(0, 1) != "1970"
    with pytest.raises(TypeError):
        assert Timestamp.of(0, 1) < datetime(1970, 1, 1)  # noqa: DTZ001
    with pytest.raises(TypeError):
        assert Timestamp.of(0, 1) < "1970"


def test_arithmetic_keeps_the_digits() -> None:
    made = Timestamp.of(10, 5)
    second = timedelta(seconds=1)
    assert made + second == second + made == Timestamp.of(11, 5)
    assert made - second == Timestamp.of(9, 5)
    assert made - Timestamp.of(9, 3) == second
    assert made - datetime(1970, 1, 1, tzinfo=UTC) == 10 * second
    assert datetime(1970, 1, 1, 0, 0, 11, tzinfo=UTC) - made == second
    assert type(made.astimezone(BERLIN)) is type(made.replace(year=1971)) is datetime
    assert made.astimezone(BERLIN).hour == 2
    assert made.astimezone(UTC) is made
    assert str(made) == "1970-01-01 00:00:10.000000005+00:00"
    with pytest.raises(TypeError):
        made + 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda: Timestamp.of("1"), ["seconds", "'1'"]),  # type: ignore[arg-type]
        (lambda: Timestamp.of(LAST + 1), ["seconds", str(LAST + 1), "9999"]),
        (lambda: time_of(FIRST - 1, 0), ["seconds", str(FIRST - 1)]),
        (lambda: Timestamp.of(0, 10**9), ["nanos", "1000000000", "999,999,999"]),
        (lambda: time_of(0, -1), ["nanos", "-1"]),
        (lambda: Timestamp.of(0, True), ["nanos", "True"]),
        (lambda: Timestamp(2024, 1, 1, tzinfo=BERLIN), ["tzinfo", "UTC"]),
        (lambda: Timestamp(2024, 1, 1, tzinfo=None), ["tzinfo", "None"]),
        (lambda: Timestamp(2024, 1, 1, microsecond=1, nanosecond=5), ["not both", "1", "5"]),
        (lambda: Timestamp(2024, 1, 1, nanosecond=-5), ["nanosecond", "-5"]),
        (lambda: split_time(datetime(2024, 1, 1)), ["time zone", "2024"]),  # noqa: DTZ001
        (lambda: GeoPoint(90.1, 0), ["latitude", "90.1", "-90 to 90"]),
        (lambda: GeoPoint(float("nan"), 0), ["latitude", "nan"]),
        (lambda: GeoPoint(0, -181), ["longitude", "-181", "-180 to 180"]),
        (lambda: GeoPoint("1", 0), ["latitude", "'1'"]),  # type: ignore[arg-type]
        (lambda: GeoPoint(True, 0), ["latitude", "True"]),
        (lambda: Reference("users"), ["document path", "'users'"]),
        (lambda: Reference("u/a", project=""), ["project", "''"]),
        (lambda: Reference("u/a", database="a/b"), ["database", "'a/b'"]),
        (lambda: Reference("u/a", project=7), ["project", "7"]),  # type: ignore[arg-type]
        (lambda: Vector("12"), ["values", "'12'"]),  # type: ignore[arg-type]
        (lambda: Vector(7), ["values", "7"]),  # type: ignore[arg-type]
        (lambda: Vector((1, "x")), ["values", "'x'", "at 1"]),  # type: ignore[arg-type]
        (lambda: Vector((float("nan"),)), ["values", "nan", "at 0"]),
        (lambda: Vector((True,)), ["values", "True"]),
        (lambda: Vector((10**400,)), ["values", "at 0"]),
        (lambda: Vector(()), ["at least one", "none"]),
    ],
)
def test_bad_values_are_refused_by_name(make: Any, texts: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    for text in texts:
        assert text in str(caught.value)


def test_values_are_plain_and_immutable() -> None:
    assert GeoPoint(1, -0.0) == GeoPoint(1.0, 0.0)
    assert repr(GeoPoint(1, 2)) == "GeoPoint(latitude=1.0, longitude=2.0)"
    assert Vector([1, 2]).values == (1.0, 2.0)
    assert len(Vector((1, 2))) == 2
    assert Reference("u/a") != Reference("u/a", "p", "d")
    for value in (GeoPoint(1, 2), Vector((1,)), Reference("u/a")):
        assert value == pickle.loads(pickle.dumps(value)) == copy.deepcopy(value)
        assert hash(value) == hash(copy.copy(value))
        with pytest.raises(AttributeError):
            setattr(value, value.__slots__[0], 3)


def test_the_order_of_types_and_values() -> None:
    ordered: list[Any] = [
        None,
        False,
        True,
        float("nan"),
        float("-inf"),
        1,
        1.5,
        datetime(2024, 1, 1, tzinfo=UTC),
        Timestamp(2024, 1, 1, nanosecond=1),
        datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        "",
        "a",
        b"",
        b"a",
        Reference("t/z"),
        Reference("u/a"),
        Reference("u/a/c/d"),
        Reference("u/b"),
        GeoPoint(-1, 9),
        GeoPoint(1, 1),
        GeoPoint(1, 2),
        [],
        [1],
        Vector((1.0,)),
        Vector((9.0,)),
        Vector((0.5, 1.0)),
        {},
        {"a": 1},
        {"a": {}},
    ]
    keys = [order_key(value) for value in ordered]
    assert sorted(keys) == keys
    assert len(set(keys)) == len(keys)
