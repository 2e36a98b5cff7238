"""What may stand for a field's value in an operation, and is worked out from the field it meets.

`Set`, `Merge` and `Update` take these as values of fields, also inside maps, never inside lists:

| value                  | the field is afterwards                                          |
|------------------------|------------------------------------------------------------------|
| `Increment(n)`         | its number plus n; n where there was no number                   |
| `Maximum(n)`           | the greater of its number and n; n where there was no number     |
| `Minimum(n)`           | the smaller one                                                  |
| `ArrayUnion(values)`   | its list, and after it those values that it did not hold         |
| `ArrayRemove(values)`  | its list without those values                                    |
| `SERVER_TIMESTAMP`     | the time at which the store applied the operation                |
| `DELETE_FIELD`         | gone; in `Merge` and `Update` alone                              |

The rules are Firestore's (google.firestore.v1.DocumentTransform). Adding two integers ends at the
smallest or largest of 64 bits; with a float among them both are floats. Of equal numbers `Maximum`
and `Minimum` keep the one that is there, and anything with nan is nan. In lists 1 and 1.0 are
equal, as are nan and nan; what is no list counts as an empty one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from beastmode.errors import RequestError

__all__ = [
    "DELETE_FIELD",
    "SERVER_TIMESTAMP",
    "ArrayRemove",
    "ArrayUnion",
    "Increment",
    "Maximum",
    "Minimum",
    "Transform",
    "transformed",
]

_INT_MAX: Final = 2**63 - 1
_INT_MIN: Final = -(2**63)


class _Sentinel:
    """A value that is recognised by being itself, also after a copy or a pickle."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __copy__(self) -> _Sentinel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Sentinel:
        return self

    def __reduce__(self) -> str:
        return self._name


class _DeleteField(_Sentinel):
    """The type of `DELETE_FIELD`."""

    __slots__ = ()


class _ServerTimestamp(_Sentinel):
    """The type of `SERVER_TIMESTAMP`."""

    __slots__ = ()


DELETE_FIELD: Final = _DeleteField("DELETE_FIELD")
"""As a value in `Merge` or `Update`: removes the field. Compare with `is`."""

SERVER_TIMESTAMP: Final = _ServerTimestamp("SERVER_TIMESTAMP")
"""The time at which the store applied the operation, to the millisecond. Compare with `is`."""


@dataclass(frozen=True, slots=True)
class _OfNumber:
    value: float

    def __post_init__(self) -> None:
        value: object = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{_named(self)} takes an int or a float, got {value!r}")
        if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
            raise RequestError(f"{_named(self)} takes integers of 64 bits, got {value!r}")


@dataclass(frozen=True, slots=True)
class _OfList:
    values: Sequence[Any]

    def __post_init__(self) -> None:
        values: object = self.values
        if not isinstance(values, (list, tuple)) or not values:
            raise RequestError(f"{_named(self)} takes a list of at least one value, got {values!r}")
        object.__setattr__(self, "values", tuple(values))


@dataclass(frozen=True, slots=True)
class Increment(_OfNumber):
    """Add `value` to the field's number."""


@dataclass(frozen=True, slots=True)
class Maximum(_OfNumber):
    """Raise the field's number to `value` if it is smaller."""


@dataclass(frozen=True, slots=True)
class Minimum(_OfNumber):
    """Lower the field's number to `value` if it is greater."""


@dataclass(frozen=True, slots=True)
class ArrayUnion(_OfList):
    """Append those of `values` that the field's list does not hold, in order, each once."""


@dataclass(frozen=True, slots=True)
class ArrayRemove(_OfList):
    """Take every item equal to one of `values` out of the field's list."""


Transform = (Increment, Maximum, Minimum, ArrayUnion, ArrayRemove, _ServerTimestamp)
"""The types of all transforms, for `isinstance`."""


def transformed(
    transform: Any, held: Any, now: datetime | None, identity: Callable[[Any], object]
) -> Any:
    """Return what a field that holds `held` (any other type: no number, no list) holds then.

    `identity` gives equal, hashable objects for list items that are equal; `now` is the time for
    `SERVER_TIMESTAMP`, which is a RequestError without it. O(size of the lists).
    """
    if transform is SERVER_TIMESTAMP:
        if now is None:
            raise RequestError("SERVER_TIMESTAMP cannot be applied without the store's time")
        return now
    if isinstance(transform, _OfNumber):
        if isinstance(held, bool) or not isinstance(held, (int, float)):
            return transform.value
        return _NUMBERS[type(transform)](held, transform.value)
    items = held if isinstance(held, list) else []
    if isinstance(transform, ArrayRemove):
        removed = {identity(value) for value in transform.values}
        return [item for item in items if identity(item) not in removed]
    if isinstance(transform, ArrayUnion):
        known = {identity(item) for item in items}
        result = list(items)
        for value in transform.values:
            key = identity(value)
            if key not in known:
                known.add(key)
                result.append(value)
        return result
    raise TypeError(f"{transform!r} is no transform")


def _increment(held: float, value: float) -> float:
    if isinstance(held, int) and isinstance(value, int):
        return max(_INT_MIN, min(held + value, _INT_MAX))
    return float(held) + float(value)


def _maximum(held: float, value: float) -> float:
    if held != held or value != value:  # noqa: PLR0124 -- nan
        return math.nan
    return max(held, value)  # of equal ones the first


def _minimum(held: float, value: float) -> float:
    if held != held or value != value:  # noqa: PLR0124 -- nan
        return math.nan
    return min(held, value)


_NUMBERS: Final[dict[type, Callable[[float, float], float]]] = {
    Increment: _increment,
    Maximum: _maximum,
    Minimum: _minimum,
}


def _named(transform: object) -> str:
    return type(transform).__name__
