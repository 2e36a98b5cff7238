"""How a document's fields are written as text and read back: plain functions, no I/O.

JSON carries None, bool, str, finite floats, lists and maps. What it lacks is written as a map of
one field whose name starts with a dollar sign:

| value                  | text                                     |
|------------------------|------------------------------------------|
| nan, inf, -inf         | `{"$f": "nan"}`                          |
| bytes                  | `{"$b": "aGk="}`, base64                 |
| datetime (aware)       | `{"$t": "2024-05-01T12:00:00.000000+00:00"}`, always UTC |
| Timestamp              | `{"$t": "2024-05-01T12:00:00.000000001+00:00"}`, nine digits if needed |
| GeoPoint               | `{"$g": [48.1, 11.6]}`, latitude and longitude |
| Reference              | `{"$r": ["users/7", null, null]}`, path, project, database |
| Vector                 | `{"$v": [0.5, 1.0]}`                     |
| a map `{"$x": value}`  | `{"$$x": value}`                         |

The last line is what makes every map come back: a map of one field whose name starts with a
dollar sign gains another one, so a user's `{"$b": "x"}` is never taken for bytes. Times sort as
their texts do, because a plus sign comes before all digits. The document
itself is always a map and is written as it is. Integers are those of 64 bits with a sign and maps
nest `MAX_DEPTH` deep, so that SQLite reads the same values out of the text as Python does.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from beastmode.errors import StoreCorrupt
from beastmode.stores.documents import MAX_DEPTH, FrozenDict, freeze
from beastmode.stores.fields import check_text, field_name, not_kept, refused, utc
from beastmode.stores.foreign import adopted
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector, split_time, time_of

__all__ = ["decode", "decode_frozen", "encode", "normal", "same_content", "time_text"]

_NANO_TEXT: Final = len("2024-05-01T12:00:00.000000001+00:00")
_INT_MAX: Final = 2**63 - 1
_INT_MIN: Final = -(2**63)
_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_loads = json.JSONDecoder().decode
_sorted_text = json.JSONEncoder(sort_keys=True).encode


def encode(data: Mapping[str, Any], path: str) -> str:
    """Return the text of a document's fields; `path` names the document in errors.

    Raises RequestError that names the field and the type for a value that cannot be kept.
    O(size).
    """
    fields = {field_name(key, "", path): _encode(item, key, path, 2) for key, item in data.items()}
    return _dumps(fields)


def decode(text: str, path: str) -> dict[str, Any]:
    """Return the fields that `encode` wrote, as ordinary dicts and lists that the caller owns.

    Raises StoreCorrupt for text that `encode` cannot have written. O(size).
    """
    try:
        data: dict[str, Any] = _loads(text)
        items = dict.items(data)  # TypeError for what is no map
        if '"$' in text:
            for key, item in items:
                data[key] = _decode(item)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(
            f"what is stored as document {path!r} cannot be read ({error}); "
            "write or delete the document to repair it"
        ) from error
    return data


def decode_frozen(text: str, path: str) -> FrozenDict:
    """Return the fields that `encode` wrote, read-only all the way down; see `decode`."""
    frozen: FrozenDict = freeze(decode(text, path))
    return frozen


def same_content(one: str, other: str) -> bool:
    """Return whether two texts hold the same fields; the order of a map's fields is nothing."""
    if one == other:
        return True
    if len(one) != len(other):
        return False
    try:
        first, second = _loads(one), _loads(other)
    except ValueError:  # a damaged text, which the other one replaces
        return False
    # Python holds 1, 1.0 and True for equal; the texts do not.
    return bool(first == second) and _sorted_text(first) == _sorted_text(second)


def normal(value: Any, what: str) -> Any:
    """Return `value` as it would come back from the store; RequestError as for `encode`.

    `what` names the value in errors. Used for the values of a query's filters, which are compared
    with what was stored.
    """
    return _decode(_loads(_dumps(_encode(value, what, "", 1))))


def time_text(value: datetime) -> str:
    """Return the text of an aware time in UTC; texts sort as their times do."""
    return value.isoformat(timespec="microseconds" if not _below(value) else "nanoseconds")


def _below(value: datetime) -> int:
    return value.nanosecond % 1000 if type(value) is Timestamp else 0


def _encode(value: Any, field: str, path: str, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        if not value.isascii():
            check_text(value, field, path)
        return value
    if value is None or kind is bool:
        return value
    if kind is int:
        if not _INT_MIN <= value <= _INT_MAX:
            raise refused(path, field, f"integers have 64 bits with a sign, got {value!r:.60}")
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$f": repr(value)}
    if kind is dict or isinstance(value, Mapping):
        if depth > MAX_DEPTH:
            raise refused(path, field, f"maps and lists nest at most {MAX_DEPTH} deep")
        fields = {
            field_name(key, field, path): _encode(item, f"{field}.{key}", path, depth + 1)
            for key, item in value.items()
        }
        if len(fields) == 1:
            (key,) = fields
            if key[0] == "$":
                return {"$" + key: fields[key]}
        return fields
    if isinstance(value, (list, tuple)):
        if depth > MAX_DEPTH:
            raise refused(path, field, f"maps and lists nest at most {MAX_DEPTH} deep")
        return [
            _encode(item, f"{field}[{index}]", path, depth + 1) for index, item in enumerate(value)
        ]
    return _encode_other(value, field, path, depth)


def _encode_other(value: Any, field: str, path: str, depth: int) -> Any:
    value = adopted(value)
    kind = type(value)
    if isinstance(value, datetime):
        return {"$t": time_text(utc(value, field, path))}
    if kind is GeoPoint:
        return {"$g": [value.latitude, value.longitude]}
    if kind is Reference:
        for text in (value.path, value.project, value.database):
            if text is not None:
                check_text(text, field, path)
        return {"$r": [value.path, value.project, value.database]}
    if kind is Vector:
        return {"$v": [_encode(item, field, path, depth) for item in value.values]}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$b": base64.b64encode(value).decode("ascii")}
    # Enumerations and other subclasses are kept as the plain value they stand for.
    if isinstance(value, str):
        return _encode(str.__str__(value), field, path, depth)
    if isinstance(value, int):
        return _encode(int.__int__(value), field, path, depth)
    if isinstance(value, float):
        return _encode(float.__float__(value), field, path, depth)
    raise not_kept(value, field, path)


def _decode(value: Any) -> Any:
    """Undo `_encode` on what JSON gave, in place where it can."""
    if type(value) is dict:
        if len(value) == 1:
            ((key, item),) = value.items()
            if key[:1] == "$":
                return _decode_tag(key, item)
        for key, item in value.items():
            value[key] = _decode(item)
    elif type(value) is list:
        for index, item in enumerate(value):
            value[index] = _decode(item)
    return value


def _decode_tag(key: str, item: Any) -> Any:
    if key == "$t":
        return _time(item)
    if key == "$b":
        return base64.b64decode(item, validate=True)
    if key == "$f":
        return float(item)
    if key[:2] == "$$":
        return {key[1:]: _decode(item)}
    if key == "$g":
        return GeoPoint(*item)
    if key == "$r":
        return Reference(*item)
    if key == "$v":
        return Vector(_decode(item))
    raise ValueError(f"the tag {key!r} is unknown")


def _time(text: str) -> datetime:
    plain = datetime.fromisoformat(text).astimezone(UTC)
    if len(text) == _NANO_TEXT:
        return time_of(split_time(plain)[0], int(text[20:29]))
    return plain
