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

from beastmode.errors import PreconditionFailed, StoreCorrupt
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
from beastmode.stores.fields import check_text, field_name, not_kept, refused, utc
from beastmode.stores.firestore._google import Google
from beastmode.stores.firestore.limits import check_operation, check_value
from beastmode.stores.foreign import adopted
from beastmode.stores.matching import Matcher
from beastmode.stores.ordering import is_nan
from beastmode.stores.transforms import (
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Increment,
    Maximum,
    Transform,
)
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector, split_time

__all__ = ["Converter", "field_path", "version_of"]

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
            if len(fields) == 2 and _is_vector(fields):
                values = fields["value"].array_value.values
                return Vector(tuple(item.double_value for item in values))
            return FrozenDict({key: self.value(item) for key, item in fields.items()})
        if kind == "array_value":
            return FrozenList([self.value(item) for item in message.array_value.values])
        if kind == "double_value":
            return message.double_value
        if kind == "boolean_value":
            return message.boolean_value
        if kind == "timestamp_value":
            stamp = message.timestamp_value
            seconds, nanos = stamp.seconds, stamp.nanos
            if nanos % 1000:
                return Timestamp.of(seconds, nanos)
            return _EPOCH + timedelta(0, seconds, nanos // 1000)
        if kind == "null_value":
            return None
        if kind == "bytes_value":
            return message.bytes_value
        if kind == "reference_value":
            return self._reference(message.reference_value)
        if kind == "geo_point_value":
            point = message.geo_point_value
            return GeoPoint(point.latitude, point.longitude)
        raise StoreCorrupt(f"the server sent a value of the unknown kind {kind!r}")

    def _reference(self, name: str) -> Reference:
        if name.startswith(self.documents):
            return Reference(name[self._cut :])
        try:
            _, project, _, database, _, path = name.split("/", 5)
        except ValueError as error:
            raise StoreCorrupt(f"the server sent the reference {name!r}") from error
        return Reference(path, project, database)

    # -- to the server ---------------------------------------------------------------------------

    def name(self, path: str) -> str:
        """Return the full name of the document at `path`."""
        return self.documents + path

    def write(self, operation: Operation) -> Any:
        """Return an operation as a raw `Write` message; RequestError for what cannot be kept.

        Nothing of it is made where `check_operation` refuses it.
        """
        check_operation(operation)
        message = self._google.Write()
        if isinstance(operation, Delete):
            message.delete = self.documents + operation.path
        else:
            message.update.name = self.documents + operation.path
            transforms: list[tuple[list[str], Any]] = []
            if isinstance(operation, Set):
                data = operation.data
                if operation.transforms:
                    data = _split(data, [], transforms, merge=False)
                self._fields(message.update.fields, data, operation.path)
            elif isinstance(operation, Merge):
                data = operation.data
                if operation.transforms:
                    data = _split(data, [], transforms, merge=True)
                message.update_mask.SetInParent()
                mask = message.update_mask.field_paths
                self._merge(message.update.fields, data, [], mask, operation.path)
            else:
                self._update(message, operation, transforms)
            for names, transform in transforms:
                self._transform(message.update_transforms.add(), names, transform, operation.path)
        self._precondition(message, operation)
        return message

    def query(self, query: Query) -> tuple[str, Any]:
        """Return the parent and the raw `StructuredQuery`; RequestError for a bad filter."""
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
        elif condition.exists is False and isinstance(operation, Update):
            raise PreconditionFailed(
                f"Update of {operation.path!r}: it must not exist, and an Update needs it to exist"
            )
        elif condition.version is not None:
            stamp = message.current_document.update_time
            stamp.seconds, stamp.nanos = divmod(condition.version, 1_000_000_000)
            stamp.SetInParent()
        else:
            message.current_document.exists = bool(condition.exists)

    def _fields(self, fields: Any, data: Mapping[str, Any], path: str) -> None:
        for key, item in data.items():
            self.encode(fields[field_name(key, "", path)], item, key, path)

    def _merge(
        self, fields: Any, data: Mapping[str, Any], parents: list[str], mask: Any, path: str
    ) -> None:
        for key, item in data.items():
            names = [*parents, key]
            field = ".".join(names)
            field_name(key, field, path)
            if item is DELETE_FIELD:
                mask.append(field_path(names))
            elif isinstance(item, Mapping) and item:
                inner = fields[key].map_value
                inner.SetInParent()
                self._merge(inner.fields, item, names, mask, path)
            else:
                mask.append(field_path(names))
                self.encode(fields[key], item, field, path)

    def _update(self, message: Any, operation: Update, transforms: Any) -> None:
        message.update_mask.SetInParent()
        for dotted, item in operation.data.items():
            names = dotted.split(".")
            if not dotted.isascii():
                check_text(dotted, dotted, operation.path)
            if isinstance(item, Transform):
                transforms.append((names, item))
                continue
            value = item
            if operation.transforms and isinstance(item, Mapping):
                value = _split(item, names, transforms, merge=False)
            message.update_mask.field_paths.append(field_path(names))
            if item is DELETE_FIELD:
                continue
            fields = message.update.fields
            for name in names[:-1]:
                fields = fields[field_name(name, dotted, operation.path)].map_value.fields
            last = field_name(names[-1], dotted, operation.path)
            self.encode(fields[last], value, dotted, operation.path)

    def _transform(self, message: Any, names: list[str], transform: Any, path: str) -> None:
        field = ".".join(names)
        for name in names:
            field_name(name, field, path)
        message.field_path = field_path(names)
        if transform is SERVER_TIMESTAMP:
            message.set_to_server_value = message.REQUEST_TIME
        elif isinstance(transform, (ArrayUnion, ArrayRemove)):
            is_union = isinstance(transform, ArrayUnion)
            items = message.append_missing_elements if is_union else message.remove_all_from_array
            for index, item in enumerate(transform.values):
                self.encode(items.values.add(), item, f"{field}[{index}]", path)
        else:
            kind = type(transform)
            number = "increment" if kind is Increment else "minimum"
            number = "maximum" if kind is Maximum else number
            self.encode(getattr(message, number), transform.value, field, path)

    def encode(self, message: Any, value: Any, field: str, path: str) -> None:
        """Write `value` into a raw `Value` message; `field` and `path` name it in errors."""
        kind = type(value)
        if kind is str:
            if not value.isascii():
                check_text(value, field, path)
            message.string_value = value
        elif kind is bool:
            message.boolean_value = value
        elif kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                raise refused(path, field, f"integers have 64 bits with a sign, got {value!r:.60}")
            message.integer_value = value
        elif kind is float:
            message.double_value = value
        elif value is None:
            message.null_value = 0
        elif isinstance(value, Mapping):
            message.map_value.SetInParent()
            fields = message.map_value.fields
            for key, item in value.items():
                name = field_name(key, field, path)
                self.encode(fields[name], item, f"{field}.{name}", path)
        elif isinstance(value, (list, tuple)):
            message.array_value.SetInParent()
            values = message.array_value.values
            for index, item in enumerate(value):
                self.encode(values.add(), item, f"{field}[{index}]", path)
        else:
            self._encode_other(message, value, field, path)

    def _encode_other(self, message: Any, value: Any, field: str, path: str) -> None:
        value = adopted(value)
        if isinstance(value, datetime):
            stamp = message.timestamp_value
            stamp.seconds, stamp.nanos = split_time(utc(value, field, path))
            stamp.SetInParent()
        elif isinstance(value, (bytes, bytearray, memoryview)):
            message.bytes_value = bytes(value)
        elif isinstance(value, GeoPoint):
            point = message.geo_point_value
            point.latitude, point.longitude = value.latitude, value.longitude
            point.SetInParent()
        elif isinstance(value, Reference):
            message.reference_value = self._full_name(value, field, path)
        elif isinstance(value, Vector):
            fields = message.map_value.fields
            fields["__type__"].string_value = "__vector__"
            items = fields["value"].array_value.values
            for item in value.values:
                items.add().double_value = item
        # Enumerations and other subclasses are kept as the plain value they stand for.
        elif isinstance(value, str):
            self.encode(message, str.__str__(value), field, path)
        elif isinstance(value, int):
            self.encode(message, int.__int__(value), field, path)
        elif isinstance(value, float):
            self.encode(message, float.__float__(value), field, path)
        else:
            raise not_kept(value, field, path)

    def _full_name(self, reference: Reference, field: str, path: str) -> str:
        _, project, _, database, _ = self.documents.split("/", 4)
        name = (
            f"projects/{reference.project or project}/databases/{reference.database or database}"
            f"/documents/{reference.path}"
        )
        check_text(name, field, path)
        return name

    def _filter(self, message: Any, item: Filter, query: Any) -> None:
        name = field_path(item.field.split("."))
        value = item.value
        is_special = item.op in ("==", "!=") and (value is None or is_nan(value))
        if is_special or (item.op == "not-in" and not value):
            negation = "" if item.op == "==" else "NOT_"
            special = "NAN" if is_nan(value) else "NULL"
            message.unary_filter.op = getattr(query.UnaryFilter, f"IS_{negation}{special}")
            message.unary_filter.field.field_path = name
            return
        found = message.field_filter
        found.field.field_path = name
        found.op = getattr(query.FieldFilter, _COMPARISONS[item.op])
        what = f"{item.field} {item.op}"
        if item.op not in ("in", "not-in"):
            check_value(value, what)
            self.encode(found.value, value, what, "")
            return
        found.value.array_value.SetInParent()
        # The server takes no empty list; None among the values of "in" finds nothing.
        for index, one in enumerate(value or [None]):
            check_value(one, f"{what}[{index}]")
            self.encode(found.value.array_value.values.add(), one, f"{what}[{index}]", "")


def _is_vector(fields: Any) -> bool:
    return "__type__" in fields and fields["__type__"].string_value == "__vector__"


def _split(
    data: Mapping[str, Any], names: list[str], found: list[tuple[list[str], Any]], *, merge: bool
) -> dict[str, Any]:
    """Return `data` without its transforms, which go to `found` with their field paths.

    With `merge` a map of nothing but transforms goes as well, because an empty one would replace
    what is there.
    """
    plain: dict[str, Any] = {}
    for key, item in data.items():
        if isinstance(item, Transform):
            found.append(([*names, key], item))
        elif isinstance(item, Mapping) and item:
            inner = _split(item, [*names, key], found, merge=merge)
            if inner or not merge:
                plain[key] = inner
        else:
            plain[key] = item
    return plain
