"""How an operation is written as bytes and read back: plain functions, no I/O.

The fields are in the text of `codec`. That has no word for `DELETE_FIELD` and transforms, because
no document holds one, so their places are kept beside it: a JSON list whose items are

| item                                                  | stands for                          |
|-------------------------------------------------------|-------------------------------------|
| `["a", "b"]`                                          | a `DELETE_FIELD` in `b` of map `a`  |
| `{"at": ["a"], "do": "increment", "with": "{...}"}`   | a transform with this operand       |

An operand is text of `codec` with one field. `SERVER_TIMESTAMP`, "time", has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from beastmode.errors import BeastError, RequestError, StoreCorrupt
from beastmode.stores import codec
from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Operation,
    Set,
    Update,
    freeze,
    has_transforms,
)
from beastmode.stores.transforms import (
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Increment,
    Maximum,
    Minimum,
    Transform,
)

__all__ = [
    "MAX_OPERATION_BYTES",
    "EncodedOperation",
    "decode_operation",
    "encode_operation",
    "normal_operation",
]

MAX_OPERATION_BYTES: Final = 64 * 1024 * 1024
"""A longer operation is refused when written, and taken for damaged when read."""

_KINDS: Final[dict[type[Operation], int]] = {Set: 1, Merge: 2, Update: 3, Delete: 4}
_OF_NUMBER: Final = {"increment": Increment, "maximum": Maximum, "minimum": Minimum}
_OF_LIST: Final = {"union": ArrayUnion, "remove": ArrayRemove}
_WORDS: Final = {kind: word for word, kind in {**_OF_NUMBER, **_OF_LIST}.items()}


class EncodedOperation(NamedTuple):
    """One operation as bytes."""

    kind: int
    """1 Set, 2 Merge, 3 Update, 4 Delete."""
    path: bytes
    fields: bytes
    """The fields in the text of `codec`; empty for a Delete."""
    removed: bytes
    """JSON list of what stands for values, with its place (see the module); empty for none."""

    @property
    def size(self) -> int:
        """Bytes of path and fields."""
        return len(self.path) + len(self.fields) + len(self.removed)


def encode_operation(operation: Operation) -> EncodedOperation:
    """Return `operation` as bytes; O(size).

    Raises RequestError, naming the field or the limit, for what cannot be kept, and for a
    precondition: applying such an operation later, or twice, is not the same as now and once.
    """
    kind = _KINDS.get(type(operation))
    if kind is None:
        raise RequestError(f"an operation is a Set, Merge, Update or Delete, got {operation!r}")
    if operation.precondition is not None:
        raise RequestError(f"an operation with a precondition cannot be kept: {operation!r}")
    fields = removed = b""
    if not isinstance(operation, Delete):
        data = operation.data
        if not isinstance(operation, Set) or operation.transforms:
            places: list[Any] = []
            kept = _without_places(operation, data, [], places)
            if places:
                data, removed = kept, json.dumps(places).encode()
        fields = codec.encode(data, operation.path).encode()
    try:
        path = operation.path.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"a document path must be encodable as UTF-8: {error}") from error
    encoded = EncodedOperation(kind, path, fields, removed)
    if encoded.size > MAX_OPERATION_BYTES:
        raise RequestError(
            f"the operation on {operation.path!r} takes {encoded.size} bytes, "
            f"allowed are {MAX_OPERATION_BYTES}"
        )
    return encoded


def decode_operation(encoded: EncodedOperation) -> Operation:
    """Return the operation, its fields read-only; StoreCorrupt for what `encode` cannot make."""
    kind, path, fields, removed = encoded
    if encoded.size > MAX_OPERATION_BYTES:
        raise StoreCorrupt(
            f"an operation of {encoded.size} bytes, allowed are {MAX_OPERATION_BYTES}"
        )
    try:
        return _make(kind, path.decode(), fields.decode(), removed)
    except (BeastError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise StoreCorrupt(f"an operation cannot be read: {error}") from error


def normal_operation(operation: Operation) -> Operation:
    """Return an operation with transforms as it would be read back, its precondition kept.

    Its values are then those that a store holds, with which lists can be compared. Others are
    returned as they are. RequestError as for `encode_operation`. O(size).
    """
    if not has_transforms(operation):
        return operation
    plain = replace(operation, precondition=None)
    normal = decode_operation(encode_operation(plain))
    return replace(normal, precondition=operation.precondition)


def _make(kind: int, path: str, fields: str, removed: bytes) -> Operation:
    if kind == _KINDS[Delete]:
        return Delete(path)
    data = codec.decode(fields, path)
    for trail, value in _read_places(removed, path):
        place = data
        for name in trail[:-1]:
            place = place[name]
        place[trail[-1]] = value
    frozen: Mapping[str, Any] = freeze(data)
    if kind == _KINDS[Set]:
        return Set(path, frozen)
    if kind == _KINDS[Merge]:
        return Merge(path, frozen)
    if kind == _KINDS[Update]:
        return Update(path, frozen)
    raise ValueError(f"its kind {kind} is unknown")


def _read_places(removed: bytes, path: str) -> Iterator[tuple[list[str], Any]]:
    places = json.loads(removed) if removed else []
    if type(places) is not list:
        raise ValueError("the places of removed fields are a list")
    for item in places:
        trail = item["at"] if type(item) is dict else item
        if type(trail) is not list or not trail:
            raise ValueError("the place of a removed field is a list of names")
        yield trail, DELETE_FIELD if trail is item else _read_transform(item, path)


def _read_transform(item: dict[str, Any], path: str) -> Any:
    word = item["do"]
    if word == "time":
        return SERVER_TIMESTAMP
    (operand,) = codec.decode(item["with"], path).values()
    if word in _OF_LIST:
        return _OF_LIST[word](operand)
    return _OF_NUMBER[word](operand)


def _transform_item(value: Any, trail: list[str], path: str) -> dict[str, Any]:
    if value is SERVER_TIMESTAMP:
        return {"at": trail, "do": "time"}
    operand = list(value.values) if isinstance(value, (ArrayUnion, ArrayRemove)) else value.value
    # The field's name is for the text of an error.
    text = codec.encode({".".join(trail): operand}, path)
    return {"at": trail, "do": _WORDS[type(value)], "with": text}


def _without_places(
    operation: Operation, data: Mapping[str, Any], trail: list[str], places: list[Any]
) -> dict[str, Any]:
    """Copy the maps of `data` without what stands for values, noting where each one was.

    A `DELETE_FIELD` stays for `codec` to refuse in a Set, and in a map that an Update sets whole.
    """
    may_remove = isinstance(operation, Merge) or (isinstance(operation, Update) and not trail)
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Transform):
            places.append(_transform_item(value, [*trail, key], operation.path))
        elif value is DELETE_FIELD and may_remove:
            places.append([*trail, key])
        elif isinstance(value, Mapping):
            kept[key] = _without_places(operation, value, [*trail, key], places)
        else:
            kept[key] = value
    return kept
