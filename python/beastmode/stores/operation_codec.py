"""How an operation is written as bytes and read back: plain functions, no I/O.

The fields are in the text of `codec`. That has no word for `DELETE_FIELD`, because no document
holds one, so the places of those are kept beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
)

__all__ = ["MAX_OPERATION_BYTES", "EncodedOperation", "decode_operation", "encode_operation"]

MAX_OPERATION_BYTES: Final = 64 * 1024 * 1024
"""A longer operation is refused when written, and taken for damaged when read."""

_KINDS: Final[dict[type[Operation], int]] = {Set: 1, Merge: 2, Update: 3, Delete: 4}


class EncodedOperation(NamedTuple):
    """One operation as bytes."""

    kind: int
    """1 Set, 2 Merge, 3 Update, 4 Delete."""
    path: bytes
    fields: bytes
    """The fields in the text of `codec`; empty for a Delete."""
    removed: bytes
    """JSON list of the key lists that lead to a `DELETE_FIELD`; empty for none."""

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
        if not isinstance(operation, Set):
            places: list[list[str]] = []
            kept = _without_removals(data, [], places)
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


def _make(kind: int, path: str, fields: str, removed: bytes) -> Operation:
    if kind == _KINDS[Delete]:
        return Delete(path)
    data = codec.decode(fields, path)
    for trail in _read_places(removed):
        place = data
        for name in trail[:-1]:
            place = place[name]
        place[trail[-1]] = DELETE_FIELD
    frozen: Mapping[str, Any] = freeze(data)
    if kind == _KINDS[Set]:
        return Set(path, frozen)
    if kind == _KINDS[Merge]:
        return Merge(path, frozen)
    if kind == _KINDS[Update]:
        return Update(path, frozen)
    raise ValueError(f"its kind {kind} is unknown")


def _read_places(removed: bytes) -> list[list[str]]:
    places: list[list[str]] = json.loads(removed) if removed else []
    for trail in [places, *places]:
        if type(trail) is not list or (trail is not places and not trail):
            raise ValueError("the places of removed fields are lists of names")
    return places


def _without_removals(
    data: Mapping[str, Any], trail: list[str], places: list[list[str]]
) -> dict[str, Any]:
    """Copy the maps of `data` without `DELETE_FIELD`, noting where each one was."""
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if value is DELETE_FIELD:
            places.append([*trail, key])
        elif isinstance(value, Mapping):
            kept[key] = _without_removals(value, [*trail, key], places)
        else:
            kept[key] = value
    return kept
