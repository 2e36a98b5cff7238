"""Firestore's raw protobuf messages as our values, and ours as messages: no I/O.

Versions are a document's `update_time` in nanoseconds since 1970; that of a document which does
not exist is the `read_time` at which it did not. Values that Firestore cannot keep are refused
before anything is sent, with the field's name; see `docs/firestore.md` for where its rules are
narrower than those of other stores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from beastmode.errors import RequestError, StoreCorrupt
from beastmode.stores.base import Filter, Query
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Document,
    FrozenDict,
    FrozenList,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
)
from beastmode.stores.firestore._google import Google
from beastmode.stores.matching import Matcher, is_nan

__all__ = ["Converter", "field_path", "version_of"]

MAX_DEPTH: Final = 20
"""How deep Firestore lets maps and lists nest."""
_INT_MAX: Final = 2**63 - 1
_INT_MIN: Final = -(2**63)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SIMPLE: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_COMPARISONS: Final = {
    "==": "EQUAL",
    "!=": "NOT_EQUAL",
    "<": "LESS_THAN",
    "<=": "LESS_THAN_OR_EQUAL",
    ">": "GREATER_THAN",
    ">=": "GREATER_THAN_OR_EQUAL",
    "in": "IN",
    "not-in": "NOT_IN",
    "array-contains": "ARRAY_CONTAINS",
}


def version_of(timestamp: Any) -> int:
    """Return a protobuf timestamp as nanoseconds since 1970."""
    return int(timestamp.seconds) * 1_000_000_000 + int(timestamp.nanos)


def field_path(names: list[str]) -> str:
    """Return a field path as the server reads it: names that are no plain words in backticks."""
    return ".".join(
        name
        if _SIMPLE.fullmatch(name)
        else "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
        for name in names
    )


class Converter:
    """Converts for one database, whose documents' full names begin with `documents`."""

    __slots__ = ("_cut", "_google", "documents")

    def __init__(self, google: Google, documents: str) -> None:
        self._google = google
        self.documents = documents
        self._cut = len(documents)

    # -- from the server -------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """Return the path of a document's full name."""
        if not name.startswith(self.documents):
            raise StoreCorrupt(f"the server named {name!r}, which is not in {self.documents!r}")
        return name[self._cut :]

    def document(self, message: Any) -> Document:
        """Return a raw `Document` message as a document. O(size)."""
        stamp = message.update_time
        return Document(
            self.path(message.name),
            FrozenDict({key: self.value(item) for key, item in message.fields.items()}),
            stamp.seconds * 1_000_000_000 + stamp.nanos,
        )

    def value(self, message: Any) -> Any:
        """Return a raw `Value` message as a read-only value. O(size)."""
        kind = message.WhichOneof("value_type")
        if kind == "string_value":
            return message.string_value
        if kind == "integer_value":
            return message.integer_value
        if kind == "map_value":
            fields = message.map_value.fields
            return FrozenDict({key: self.value(item) for key, item in fields.items()})
        if kind == "array_value":
            return FrozenList([self.value(item) for item in message.array_value.values])
        if kind == "double_value":
            return message.double_value
        if kind == "boolean_value":
            return message.boolean_value
        if kind == "timestamp_value":
            stamp = message.timestamp_value
            return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
        if kind == "null_value":
            return None
        if kind == "bytes_value":
            return message.bytes_value
        raise StoreCorrupt(f"the server sent a value of the unknown kind {kind!r}")

    # -- to the server ---------------------------------------------------------------------------

    def name(self, path: str) -> str:
        """Return the full name of the document at `path`."""
        return self.documents + path

    def write(self, operation: Operation) -> Any:
        """Return an operation as a raw `Write` message; RequestError for what cannot be kept."""
        message = self._google.Write()
        name = self.documents + operation.path
        if isinstance(operation, Delete):
            message.delete = name
        else:
            message.update.name = name
            fields = message.update.fields
            if isinstance(operation, Set):
                message.update.SetInParent()
                self._fields(fields, operation.data, operation.path)
            elif isinstance(operation, Merge):
                message.update_mask.SetInParent()
                paths: list[str] = []
                self._merge(fields, operation.data, [], paths, operation.path)
                message.update_mask.field_paths.extend(paths)
            else:
                message.update_mask.SetInParent()
                self._update(message, operation)
        self._precondition(message, operation)
        return message

    def query(self, query: Query) -> tuple[str, Any]:
        """Return the parent and the raw `StructuredQuery`; RequestError for a bad filter.

        A filter that finds nothing by our rules, whatever the documents (see `finds_nothing`), is
        not for the server.
        """
        matcher = Matcher(query)
        message = self._google.StructuredQuery()
        parent, _, collection = query.collection.rpartition("/")
        message.from_.add().collection_id = collection
        if matcher.filters:
            message.where.composite_filter.op = message.CompositeFilter.AND
            filters = message.where.composite_filter.filters
            for item in matcher.filters:
                self._filter(filters.add(), item, message)
        for order in query.order_by:
            part = message.order_by.add()
            part.field.field_path = field_path(order.field.split("."))
            part.direction = message.DESCENDING if order.descending else message.ASCENDING
        if query.limit is not None:
            message.limit.value = query.limit
        return (self.documents + parent).rstrip("/"), message

    def _precondition(self, message: Any, operation: Operation) -> None:
        condition: Precondition | None = operation.precondition
        if condition is None:
            if isinstance(operation, Update):
                message.current_document.exists = True
        elif condition.version is not None:
            stamp = message.current_document.update_time
            stamp.seconds, stamp.nanos = divmod(condition.version, 1_000_000_000)
            stamp.SetInParent()
        else:
            message.current_document.exists = bool(condition.exists)

    def _fields(self, fields: Any, data: Mapping[str, Any], path: str) -> None:
        for key, item in data.items():
            self.encode(fields[_name(key, "", path)], item, key, path, 1)

    def _merge(
        self, fields: Any, data: Mapping[str, Any], parents: list[str], paths: list[str], path: str
    ) -> None:
        for key, item in data.items():
            names = [*parents, key]
            field = ".".join(names)
            _name(key, field, path)
            if item is DELETE_FIELD:
                paths.append(field_path(names))
            elif isinstance(item, Mapping) and item:
                self._depth(len(names), field, path)
                inner = fields[key].map_value
                inner.SetInParent()
                self._merge(inner.fields, item, names, paths, path)
            else:
                paths.append(field_path(names))
                self.encode(fields[key], item, field, path, len(names))

    def _update(self, message: Any, operation: Update) -> None:
        for dotted, item in operation.data.items():
            names = dotted.split(".")
            self._depth(len(names) - 1, dotted, operation.path)
            message.update_mask.field_paths.append(field_path(names))
            if item is DELETE_FIELD:
                continue
            fields = message.update.fields
            for name in names[:-1]:
                fields = fields[_name(name, dotted, operation.path)].map_value.fields
            last = _name(names[-1], dotted, operation.path)
            self.encode(fields[last], item, dotted, operation.path, len(names))

    def encode(self, message: Any, value: Any, field: str, path: str, depth: int) -> None:
        """Write `value` into a raw `Value` message; `field` and `path` name it in errors."""
        kind = type(value)
        if kind is str:
            message.string_value = _text(value, field, path)
        elif kind is bool:
            message.boolean_value = value
        elif kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                raise _refused(path, field, f"integers have 64 bits with a sign, got {value!r:.60}")
            message.integer_value = value
        elif kind is float:
            message.double_value = value
        elif value is None:
            message.null_value = 0
        elif isinstance(value, Mapping):
            self._depth(depth, field, path)
            message.map_value.SetInParent()
            fields = message.map_value.fields
            for key, item in value.items():
                name = _name(key, field, path)
                self.encode(fields[name], item, f"{field}.{name}", path, depth + 1)
        elif isinstance(value, (list, tuple)):
            self._depth(depth, field, path)
            message.array_value.SetInParent()
            values = message.array_value.values
            for index, item in enumerate(value):
                where = f"{field}[{index}]"
                if isinstance(item, (list, tuple)):
                    raise _refused(path, where, "Firestore keeps no list directly inside a list")
                self.encode(values.add(), item, where, path, depth + 1)
        else:
            self._encode_other(message, value, field, path, depth)

    def _encode_other(self, message: Any, value: Any, field: str, path: str, depth: int) -> None:
        if isinstance(value, datetime):
            _time(message.timestamp_value, value, field, path)
        elif isinstance(value, (bytes, bytearray, memoryview)):
            message.bytes_value = bytes(value)
        # Enumerations and other subclasses are kept as the plain value they stand for.
        elif isinstance(value, str):
            self.encode(message, str.__str__(value), field, path, depth)
        elif isinstance(value, int):
            self.encode(message, int.__int__(value), field, path, depth)
        elif isinstance(value, float):
            self.encode(message, float.__float__(value), field, path, depth)
        else:
            raise _refused(
                path,
                field,
                f"a {type(value).__name__} cannot be kept; allowed are None, bool, int, float, "
                "str, bytes, aware datetime, list and dict",
            )

    def _depth(self, depth: int, field: str, path: str) -> None:
        if depth > MAX_DEPTH:
            raise _refused(path, field, f"maps and lists nest at most {MAX_DEPTH} deep")

    def _filter(self, message: Any, item: Filter, query: Any) -> None:
        name = field_path(item.field.split("."))
        value = item.value
        if item.op in ("==", "!=") and (value is None or is_nan(value)):
            special = "NULL" if value is None else "NAN"
            message.unary_filter.op = getattr(
                query.UnaryFilter, f"IS_{'NOT_' if item.op == '!=' else ''}{special}"
            )
            message.unary_filter.field.field_path = name
            return
        found = message.field_filter
        found.field.field_path = name
        found.op = getattr(query.FieldFilter, _COMPARISONS[item.op])
        self.encode(found.value, value, f"{item.field} {item.op}", "", 1)


def _refused(path: str, field: str, why: str) -> RequestError:
    where = f" of document {path!r}" if path else ""
    return RequestError(f"field {field!r}{where}: {why}")


def _name(key: Any, field: str, path: str) -> str:
    if not isinstance(key, str) or not key:
        raise _refused(path, field, f"field names are non-empty str, got {key!r}")
    return _text(str.__str__(key), f"{field}.{key}" if field else key, path)


def _text(value: str, field: str, path: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _refused(path, field, f"text must be encodable as UTF-8: {error}") from error
    return value


def _time(message: Any, value: datetime, field: str, path: str) -> None:
    if value.utcoffset() is None:
        raise _refused(
            path, field, f"a datetime needs a time zone (tzinfo), got the naive {value!r}"
        )
    try:
        since = value.astimezone(UTC) - _EPOCH
    except OverflowError as error:
        raise _refused(path, field, f"{value!r} is out of range in UTC") from error
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1000
    message.SetInParent()
