"""Checks of single fields that all encodings of documents share; errors name field and document."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from beastmode.errors import RequestError
from beastmode.stores.transforms import Transform
from beastmode.stores.values import Timestamp

__all__ = ["check_text", "field_name", "not_kept", "refused", "utc"]


def utc(value: datetime, field: str, path: str) -> datetime:
    """Return an aware time in UTC."""
    if value.utcoffset() is None:
        raise refused(
            path, field, f"a datetime needs a time zone (tzinfo), got the naive {value!r}"
        )
    if type(value) is not Timestamp and getattr(value, "nanosecond", 0) % 1000:
        raise refused(path, field, f"times with nanoseconds are kept as Timestamp, got {value!r}")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise refused(path, field, f"{value!r} is out of range in UTC") from error


def field_name(key: Any, field: str, path: str) -> str:
    """Return the name `key` of a field inside `field` ("": of the document itself)."""
    if not isinstance(key, str) or not key:
        raise refused(path, field, f"field names are non-empty str, got {key!r}")
    if not key.isascii():
        check_text(key, f"{field}.{key}" if field else key, path)
    return str.__str__(key)


def check_text(value: str, field: str, path: str) -> None:
    """Raise unless `value` can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise refused(path, field, f"text must be encodable as UTF-8: {error}") from error


def refused(path: str, field: str, why: str) -> RequestError:
    """Return the error that says why a field cannot be kept; `path` may be ""."""
    where = f" of document {path!r}" if path else ""
    return RequestError(f"field {field!r}{where}: {why}")


def not_kept(value: object, field: str, path: str) -> RequestError:
    """Return the error that says that no document holds such a value."""
    if isinstance(value, Transform):
        return refused(
            path, field, f"{value!r} stands for what the store works out, and is no value itself"
        )
    return refused(
        path,
        field,
        f"a {type(value).__name__} cannot be kept; allowed are None, bool, int, float, str, "
        "bytes, aware datetime, list, dict, GeoPoint, Reference and Vector",
    )
