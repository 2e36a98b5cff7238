"""Which of two values comes first, and which are equal: Firestore's order of types and values.

The types follow each other: None, bool, numbers (int and float are one type, nan before all
others), datetime, str (by code point), bytes, Reference (by project, database, and the parts of
the path), GeoPoint (by latitude, then longitude), lists (item by item, then length), Vector (by
length, then item by item), maps (by sorted fields).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from beastmode.stores.values import GeoPoint, Reference, Vector

__all__ = ["is_nan", "order_key"]

_NULL, _BOOL, _NUMBER, _TIME, _TEXT, _BYTES, _REFERENCE, _PLACE, _LIST, _VECTOR, _MAP = range(11)


def is_nan(value: Any) -> bool:
    """Return whether `value` is a float that is not a number."""
    return isinstance(value, float) and value != value  # noqa: PLR0124


def order_key(value: Any) -> tuple[Any, ...]:
    """Return a tuple that sorts as `value` does in Firestore; equal for equal values. O(size).

    It can be hashed. TypeError for what is no value of a document.
    """
    kind = type(value)
    if kind is str:
        return (_TEXT, value)
    if kind is bool:
        return (_BOOL, value)
    if kind is int:
        return (_NUMBER, 1, value)
    if kind is float:
        return (_NUMBER, 0) if is_nan(value) else (_NUMBER, 1, value)
    if value is None:
        return (_NULL,)
    if isinstance(value, datetime):
        return (_TIME, value)
    if kind is bytes:
        return (_BYTES, value)
    if isinstance(value, (list, tuple)):
        return (_LIST, tuple(order_key(item) for item in value))
    if isinstance(value, dict):
        return (_MAP, tuple((key, order_key(value[key])) for key in sorted(value)))
    if kind is Reference:
        parts = tuple(value.path.split("/"))
        return (_REFERENCE, value.project or "", value.database or "", parts)
    if kind is GeoPoint:
        return (_PLACE, value.latitude, value.longitude)
    if kind is Vector:
        return (_VECTOR, len(value.values), value.values)
    raise TypeError(f"a {kind.__name__} is no value of a document: {value!r}")
