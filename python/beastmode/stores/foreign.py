"""Values of Google's client taken over: told by their class's name, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from beastmode.errors import RequestError
from beastmode.stores.transforms import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Increment,
    Maximum,
    Minimum,
)
from beastmode.stores.values import GeoPoint, Reference, Vector, split_time, time_of

__all__ = ["adopted"]


def adopted(value: Any) -> Any:
    """Return our own value for one of Google's client, and every other as it is.

    Known are GeoPoint, Vector, document references (sync and async), DatetimeWithNanoseconds, and
    what stands for a field's value: Increment, Maximum, Minimum, ArrayUnion, ArrayRemove,
    SERVER_TIMESTAMP, DELETE_FIELD. Subclasses count. RequestError where our own refuses it.
    """
    for kind in type(value).__mro__:
        if kind.__module__.startswith("google."):
            adopt = _KNOWN.get(kind.__name__)
            if adopt is not None:
                return adopt(value)
    return value


def _time(value: datetime) -> datetime:
    seconds, nanos = split_time(value)
    # It is 0 where the time was made with microseconds.
    given: int = value.nanosecond  # type: ignore[attr-defined]
    return time_of(seconds, given or nanos)


def _reference(value: Any) -> Reference:
    try:
        # projects/p/databases/d/documents/...; ValueError without a client
        full: str = value._document_path  # noqa: SLF001 -- the only way to its database
        _, project, _, database, _, path = full.split("/", 5)
    except ValueError:
        return Reference(value.path)
    return Reference(path, project, database)


def _sentinel(value: Any) -> Any:
    theirs = sys.modules.get("google.cloud.firestore_v1.transforms")
    for name, ours in (("SERVER_TIMESTAMP", SERVER_TIMESTAMP), ("DELETE_FIELD", DELETE_FIELD)):
        if value is getattr(theirs, name, None):
            return ours
    raise RequestError(f"no field can take the sentinel {value!r}")


_KNOWN: Final[dict[str, Callable[[Any], Any]]] = {
    "ArrayRemove": lambda value: ArrayRemove(value.values),
    "ArrayUnion": lambda value: ArrayUnion(value.values),
    "BaseDocumentReference": _reference,
    "DatetimeWithNanoseconds": _time,
    "GeoPoint": lambda value: GeoPoint(value.latitude, value.longitude),
    "Increment": lambda value: Increment(value.value),
    "Maximum": lambda value: Maximum(value.value),
    "Minimum": lambda value: Minimum(value.value),
    "Sentinel": _sentinel,
    "Vector": lambda value: Vector(tuple(value)),
}
