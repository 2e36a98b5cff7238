"""What Firestore never keeps, told by the operation alone: plain functions, no I/O, no messages.

Whatever passes here may still be refused for what is in the database already. The rules are those
of Firestore's page "Quotas and limits" and of "Storage size calculations"; where the emulator
takes more, the page wins, for an acknowledged write that the server then refuses is lost.
See `docs/firestore.md` for the list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from beastmode.errors import RequestError
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    FrozenDict,
    FrozenList,
    Merge,
    Operation,
    Set,
    Update,
)
from beastmode.stores.fields import refused
from beastmode.stores.transforms import ArrayRemove, ArrayUnion, Transform
from beastmode.stores.values import GeoPoint, Reference, Vector

__all__ = ["MAX_DOCUMENT_BYTES", "check_operation", "check_value"]

MAX_DEPTH: Final = 20
"""How deep maps and lists nest in a field, and how many names a field path has."""
MAX_DOCUMENT_BYTES: Final = 1024 * 1024
"""Of a document as Firestore counts them, its name included."""
_MAX_VALUE_BYTES: Final = 1024 * 1024 - 89
_MAX_FIELD_PATH: Final = 1500
_MAX_ID: Final = 1500
_MAX_NAME: Final = 6 * 1024
_MAX_PARTS: Final = 200  # 100 collections with a document in each
_MAX_TRANSFORMS: Final = 500
_MAX_DIMENSIONS: Final = 2048
_DOCUMENT_BYTES: Final = 32  # of each document, beside name and fields
_NAME_BYTES: Final = 16  # of each name, beside its parts
_NUMBERED: Final = re.compile("__id[1-9][0-9]{0,18}__")
"""Ids of documents that were numbers in Datastore."""


def check_operation(operation: Operation) -> None:
    """Raise RequestError, naming field and document, for what no commit can bring in. O(size)."""
    path = operation.path
    name = _check_name(path, "document")
    if isinstance(operation, Delete):
        return
    fields = _Fields(path, merges=not isinstance(operation, Set))
    if isinstance(operation, Update):
        size = fields.named(operation.data)
    else:
        size = fields.of(operation.data, "", 0, 1, merged=isinstance(operation, Merge))
    size += name + _DOCUMENT_BYTES
    if size > MAX_DOCUMENT_BYTES:
        raise RequestError(
            f"{type(operation).__name__} of {path!r}: with these fields the document has at least "
            f"{size} bytes, Firestore keeps at most {MAX_DOCUMENT_BYTES}"
        )


def check_value(value: Any, what: str) -> None:
    """Raise RequestError for a filter's value that no document holds; `what` names it in errors."""
    _Fields("", merges=False).value(value, what, 0, 1)


class _Fields:
    """Looks at the fields of one operation, and counts their bytes as Firestore does."""

    __slots__ = ("_longest", "_path", "_transforms")

    def __init__(self, path: str, *, merges: bool) -> None:
        self._path = path
        self._transforms = 0
        # The emulator takes one byte less where the path stands in a mask.
        self._longest = _MAX_FIELD_PATH - merges

    def named(self, data: Mapping[str, Any]) -> int:
        """Return the bytes of an Update's fields, of which maps may have more already."""
        size = 0
        for dotted, item in data.items():
            lengths = [self._name(name, dotted) for name in dotted.split(".")]
            depth = len(lengths)
            reach = sum(lengths) + depth - 1
            self._check_reach(reach, dotted)
            self._check_depth(depth, dotted)
            size += lengths[-1] + 1 + self.value(item, dotted, reach, depth)
        return size

    def of(
        self, data: Mapping[str, Any], field: str, begin: int, depth: int, *, merged: bool = False
    ) -> int:
        """Return the bytes of the fields of a map whose field path has `begin` bytes with its dot.

        `depth` is how many names lead to them; with `merged` maps among them are merged in turn.
        """
        size = 0
        for key, item in data.items():
            inner = f"{field}.{key}" if field else key
            length = self._name(key, inner)
            reach = begin + length
            if reach > self._longest:
                self._check_reach(reach, inner)
            size += length + 1
            if merged:
                self._check_depth(depth, inner)
                if isinstance(item, Mapping) and item:
                    size += self.of(item, inner, reach + 1, depth + 1, merged=True)
                    continue
            size += self.value(item, inner, reach, depth)
        return size

    def value(self, value: Any, field: str, reach: int, depth: int) -> int:
        """Return the bytes of a value at this depth, whose field path has `reach` bytes."""
        kind = type(value)
        if kind is str:
            return self._text(value, field)
        if kind is int or kind is float:
            return 8
        if kind is bool or value is None:
            return 1
        if kind is FrozenDict or isinstance(value, Mapping):
            self._check_nesting(depth, field)
            return self.of(value, field, reach + 1, depth + 1) or 1
        if kind is FrozenList or isinstance(value, (list, tuple)):
            self._check_nesting(depth, field)
            return self._items(value, field, reach, depth + 1) or 1
        return self._other(value, field, reach, depth)

    def _items(self, values: Any, field: str, reach: int, depth: int) -> int:
        size = 0
        for index, item in enumerate(values):
            if type(item) is int:
                size += 8
                continue
            place = f"{field}[{index}]"
            if isinstance(item, (list, tuple)):
                raise self._refused(place, "Firestore keeps no list directly inside a list")
            if isinstance(item, Vector):
                raise self._refused(place, "Firestore keeps no vector inside a list")
            size += self.value(item, place, reach, depth)
        return size

    def _other(self, value: Any, field: str, reach: int, depth: int) -> int:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._bounded(memoryview(value).nbytes, field)
        if isinstance(value, datetime):
            return 8
        if isinstance(value, GeoPoint):
            return 16
        if isinstance(value, Reference):
            return _check_name(value.path, f"field {field!r} of {self._path!r}: the referenced")
        if isinstance(value, Vector):
            count = len(value.values)
            if count > _MAX_DIMENSIONS:
                raise self._refused(
                    field, f"vectors have at most {_MAX_DIMENSIONS} dimensions, got {count}"
                )
            return 8 * count
        if isinstance(value, Transform):
            return self._transform(value, field, reach, depth)
        if isinstance(value, str):
            return self._text(str.__str__(value), field)
        # What is left is of a fixed size, takes a field away, or is refused where it is encoded.
        return 0 if value is DELETE_FIELD else 1

    def _transform(self, value: Any, field: str, reach: int, depth: int) -> int:
        self._transforms += 1
        if self._transforms > _MAX_TRANSFORMS:
            raise self._refused(
                field, f"one operation has at most {_MAX_TRANSFORMS} transforms, this is one more"
            )
        self._check_depth(depth, field)
        if not isinstance(value, (ArrayUnion, ArrayRemove)):
            return 8
        size = self._items(value.values, field, reach, depth)
        return size if isinstance(value, ArrayUnion) else 0

    def _name(self, name: str, field: str) -> int:
        """Return the bytes of a field's name."""
        if name[:2] == "__" and _is_reserved(name):
            raise self._refused(field, f"names like {name!r} are Firestore's own")
        return len(name) if name.isascii() else _utf8(name)

    def _text(self, text: str, field: str) -> int:
        return self._bounded(len(text) if text.isascii() else _utf8(text), field) + 1

    def _bounded(self, size: int, field: str) -> int:
        if size > _MAX_VALUE_BYTES:
            raise self._refused(
                field, f"a value has at most {_MAX_VALUE_BYTES} bytes, this one has {size}"
            )
        return size

    def _check_reach(self, reach: int, field: str) -> None:
        if reach > self._longest:
            raise self._refused(
                field, f"field paths have at most {self._longest} bytes, this one has {reach}"
            )

    def _check_nesting(self, depth: int, field: str) -> None:
        if depth > MAX_DEPTH:
            raise self._refused(field, f"maps and lists nest at most {MAX_DEPTH} deep")

    def _check_depth(self, depth: int, field: str) -> None:
        if depth > MAX_DEPTH:
            raise self._refused(
                field, f"maps nest and field paths lead at most {MAX_DEPTH} deep, here {depth}"
            )

    def _refused(self, field: str, why: str) -> RequestError:
        return refused(self._path, field if len(field) < 200 else field[:200] + "...", why)


def _check_name(path: str, what: str) -> int:
    """Return the bytes that a document's name counts; RequestError for one that cannot be."""
    parts = path.split("/")
    size = 0
    for index, part in enumerate(parts):
        length = len(part) if part.isascii() else _utf8(part)
        size += length + 1
        if part[0] in "._" or length > _MAX_ID:
            _check_id(part, length, path, what, is_document=bool(index % 2))
    if len(parts) > _MAX_PARTS:
        raise RequestError(
            f"{what} {path[:200]!r}...: paths have at most {_MAX_PARTS} parts, got {len(parts)}"
        )
    if size - 1 > _MAX_NAME:
        raise RequestError(
            f"{what} {path[:200]!r}...: paths have at most {_MAX_NAME} bytes, got {size - 1}"
        )
    return size + _NAME_BYTES


def _check_id(part: str, length: int, path: str, what: str, *, is_document: bool) -> None:
    why = ""
    if part in (".", ".."):
        why = f"no id is {part!r}"
    elif _is_reserved(part) and not (is_document and _NUMBERED.fullmatch(part)):
        why = f"ids like {part!r:.200} are Firestore's own"
    elif length > _MAX_ID:
        why = f"ids have at most {_MAX_ID} bytes, {part[:50]!r}... has {length}"
    if why:
        raise RequestError(f"{what} {path!r:.200}: {why}")


def _is_reserved(name: str) -> bool:
    return len(name) >= 4 and name.startswith("__") and name.endswith("__")


def _utf8(text: str) -> int:
    # What cannot be encoded is refused, with its place, where it is.
    return len(text.encode("utf-8", "surrogatepass"))
