"""Firestore's own types of field values, beside those that Python has: immutable, hashable.

| Firestore    | here                                                            |
|--------------|-----------------------------------------------------------------|
| timestamp    | an aware `datetime`; `Timestamp` where microseconds do not do   |
| geopoint     | `GeoPoint`                                                      |
| reference    | `Reference`                                                     |
| vector       | `Vector`                                                        |

The other types are Python's: None, bool, int, float, str, bytes, list and dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from math import isnan
from typing import Any, Final, Self, SupportsIndex, overload

from beastmode.errors import RequestError
from beastmode.stores.paths import check_path

__all__ = ["GeoPoint", "Reference", "Timestamp", "Vector", "split_time", "time_of"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_NANOS: Final = 1_000_000_000


class Timestamp(datetime):
    """A time with nanoseconds, in UTC; an aware `datetime` to everything that knows only those.

    Made by `Timestamp.of(seconds, nanos)` or as `Timestamp(2024, 5, 1, nanosecond=1)`. It
    compares and hashes with all its digits, also beside a plain `datetime`, and keeps them when a
    `timedelta` is added or subtracted. The difference of two times, `replace`, and `astimezone`
    to another zone than UTC are a plain `datetime`'s, to the microsecond.
    """

    __slots__ = ("_below",)

    _below: int

    def __new__(
        cls,
        year: SupportsIndex,
        month: SupportsIndex,
        day: SupportsIndex,
        hour: SupportsIndex = 0,
        minute: SupportsIndex = 0,
        second: SupportsIndex = 0,
        microsecond: SupportsIndex = 0,
        tzinfo: tzinfo | None = UTC,
        *,
        fold: int = 0,
        nanosecond: int | None = None,
    ) -> Self:
        """Return the time; `nanosecond` (0 to 999,999,999) stands in place of `microsecond`."""
        if tzinfo is not UTC or fold:
            raise RequestError(f"a Timestamp's tzinfo must be datetime.UTC, got {tzinfo!r}")
        below = 0
        if nanosecond is not None:
            _check_nanos("nanosecond", nanosecond)
            if microsecond != 0:
                raise RequestError(
                    "a Timestamp takes microsecond or nanosecond, not both, "
                    f"got {microsecond!r} and {nanosecond!r}"
                )
            microsecond, below = divmod(nanosecond, 1000)
        made = super().__new__(cls, year, month, day, hour, minute, second, microsecond, UTC)
        made._below = below
        return made

    @classmethod
    def of(cls, seconds: int, nanos: int = 0) -> Self:
        """Return the time `seconds` after 1970 began (before it: negative), and `nanos` more."""
        _check_nanos("nanos", nanos)
        return cls._made(_plain(seconds, nanos // 1000), nanos % 1000)

    @classmethod
    def _made(cls, plain: datetime, below: int) -> Self:
        made = cls(
            plain.year,
            plain.month,
            plain.day,
            plain.hour,
            plain.minute,
            plain.second,
            plain.microsecond,
        )
        made._below = below
        return made

    @property
    def nanosecond(self) -> int:
        """Nanoseconds within the second, 0 to 999,999,999."""
        return self.microsecond * 1000 + self._below

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        """Return the ISO 8601 text; nine digits with "auto" where it has as many."""
        if timespec != "nanoseconds" and not (timespec == "auto" and self._below):
            return super().isoformat(sep, timespec)
        text = super().isoformat(sep, "microseconds")
        return f"{text[:26]}{self._below:03}{text[26:]}"

    def __repr__(self) -> str:
        return (
            f"Timestamp({self.year}, {self.month}, {self.day}, {self.hour}, {self.minute}, "
            f"{self.second}, nanosecond={self.nanosecond})"
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return (type(self).of, split_time(self))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def _datetime(self) -> datetime:
        return datetime.combine(self.date(), self.timetz())

    def replace(self, *arguments: Any, **fields: Any) -> datetime:  # type: ignore[override]
        """Return a plain `datetime` with some fields changed."""
        return self._datetime().replace(*arguments, **fields)

    def astimezone(self, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """Return itself for UTC, and for other zones a plain `datetime` to the microsecond."""
        return self if tz is UTC else self._datetime().astimezone(tz)

    def __add__(self, other: timedelta) -> Self:
        if not isinstance(other, timedelta):
            return NotImplemented
        return self._made(self._datetime() + other, self._below)

    __radd__ = __add__

    @overload  # type: ignore[override]
    def __sub__(self, other: datetime) -> timedelta: ...
    @overload
    def __sub__(self, other: timedelta) -> Self: ...
    def __sub__(self, other: datetime | timedelta) -> timedelta | Self:
        if isinstance(other, timedelta):
            return self._made(self._datetime() - other, self._below)
        return self._datetime() - other

    def _compare(self, other: datetime) -> int:
        """Return what is below, at or above 0 as this is earlier than, at or after `other`."""
        below = other.nanosecond % 1000 if isinstance(other, Timestamp) else 0
        distance = self._datetime() - other
        if distance:
            return -1 if distance < timedelta() else 1
        return self._below - below

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, datetime):
            return NotImplemented
        return other.utcoffset() is not None and self._compare(other) == 0

    def __ne__(self, other: object) -> bool:
        if not isinstance(other, datetime):
            return NotImplemented
        return not self == other

    def __lt__(self, other: object) -> bool:
        return NotImplemented if not isinstance(other, datetime) else self._compare(other) < 0

    def __le__(self, other: object) -> bool:
        return NotImplemented if not isinstance(other, datetime) else self._compare(other) <= 0

    def __gt__(self, other: object) -> bool:
        return NotImplemented if not isinstance(other, datetime) else self._compare(other) > 0

    def __ge__(self, other: object) -> bool:
        return NotImplemented if not isinstance(other, datetime) else self._compare(other) >= 0

    def __hash__(self) -> int:
        plain = super().__hash__()  # a plain datetime's, which it may be equal to
        return hash((plain, self._below)) if self._below else plain


def time_of(seconds: int, nanos: int) -> datetime:
    """Return a time after 1970: a plain aware `datetime` in UTC where its digits suffice.

    `nanos`, 0 to 999,999,999, count forwards, also from negative seconds. Otherwise a `Timestamp`.
    """
    _check_nanos("nanos", nanos)
    if nanos % 1000:
        return Timestamp.of(seconds, nanos)
    return _plain(seconds, nanos // 1000)


def split_time(value: datetime) -> tuple[int, int]:
    """Return the seconds since 1970 (before it: negative) and the nanoseconds after those.

    RequestError for a `datetime` without a time zone.
    """
    if value.utcoffset() is None:
        raise RequestError(f"a datetime needs a time zone (tzinfo), got the naive {value!r}")
    below = value.nanosecond % 1000 if isinstance(value, Timestamp) else 0
    seconds, rest = divmod(value - _EPOCH, _SECOND)
    return seconds, rest // _MICROSECOND * 1000 + below


def _plain(seconds: int, microseconds: int) -> datetime:
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise RequestError(f"seconds must be an int, got {seconds!r}")
    try:
        return _EPOCH + timedelta(seconds=seconds, microseconds=microseconds)
    except OverflowError:
        raise RequestError(
            f"seconds must be those of a time in the years 1 to 9999, got {seconds!r}"
        ) from None


def _check_nanos(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _NANOS:
        raise RequestError(f"{name} must be an int from 0 to 999,999,999, got {value!r}")


@dataclass(frozen=True, slots=True)
class GeoPoint:
    """A place: degrees of latitude, -90 to 90, and of longitude, -180 to 180; kept as floats."""

    latitude: float
    longitude: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "latitude", _degrees("latitude", self.latitude, 90))
        object.__setattr__(self, "longitude", _degrees("longitude", self.longitude, 180))


def _degrees(name: str, value: object, limit: int) -> float:
    number = _float(value)
    if number is None or not -limit <= number <= limit:
        raise RequestError(
            f"a GeoPoint's {name} must be a number from -{limit} to {limit}, got {value!r}"
        )
    return number


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of a document as a value: its path in `database` of `project`.

    None for either stands for the store's own.
    """

    path: str
    project: str | None = None
    database: str | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        for name in ("project", "database"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value or "/" in value):
                raise RequestError(
                    f"a Reference's {name} must be a non-empty str without a slash or None, "
                    f"got {value!r}"
                )


@dataclass(frozen=True, slots=True)
class Vector:
    """An embedding: one number or more, nan not among them, kept as a tuple of floats."""

    values: Sequence[float]

    def __post_init__(self) -> None:
        values: object = self.values
        if isinstance(values, (str, bytes, bytearray)) or not hasattr(values, "__iter__"):
            raise RequestError(f"a Vector's values must be a sequence of numbers, got {values!r}")
        numbers: list[float] = []
        for index, value in enumerate(values):
            number = _float(value)
            if number is None or isnan(number):
                raise RequestError(
                    f"a Vector's values must be numbers other than nan, got {value!r} at {index}"
                )
            numbers.append(number)
        if not numbers:
            raise RequestError("a Vector takes at least one number, got none")
        object.__setattr__(self, "values", tuple(numbers))

    def __len__(self) -> int:
        return len(self.values)


def _float(value: object) -> float | None:
    """Return an int, a float or what counts as one (numpy's) as a float; None for others."""
    if isinstance(value, (bool, str, bytes, bytearray)):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
