"""How one operation is kept in the journal, with a checksum of its own.

A record is the operation's kind, its document's path, its fields in the text of the store codec
and the places of `DELETE_FIELD`, which the codec does not know because no document holds it.
What is read back is not trusted: format, checksum, sizes and every value are checked, and an
operation is made again through its own constructor.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from beastmode.errors import BeastError, RequestError
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

__all__ = [
    "FORMAT",
    "MAX_RECORD_BYTES",
    "DeadLetter",
    "JournalRecord",
    "RecordError",
    "decode_record",
    "encode_record",
]

FORMAT: Final = 1
"""The version of what `encode_record` makes."""
MAX_RECORD_BYTES: Final = 64 * 1024 * 1024
"""A longer record is refused when written, and taken for damaged when read."""

_KINDS: Final[dict[type[Operation], int]] = {Set: 1, Merge: 2, Update: 3, Delete: 4}
_HEAD = struct.Struct("<BBIII")


class RecordError(ValueError):
    """A record is damaged, or of a format that this version does not read."""


class JournalRecord(NamedTuple):
    """One operation as the journal keeps it."""

    format: int
    kind: int
    path: bytes
    fields: bytes
    """The fields as the store codec writes them; empty for a Delete."""
    removed: bytes
    """JSON list of the key lists that lead to a `DELETE_FIELD`; empty for none."""
    checksum: bytes

    @property
    def size(self) -> int:
        """Bytes of path and fields."""
        return len(self.path) + len(self.fields) + len(self.removed)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An operation that the store rejected for good."""

    seq: int
    operation: Operation
    reason: str
    rejected_at: float
    """Seconds since the epoch."""


def encode_record(operation: Operation) -> JournalRecord:
    """Return `operation` as a record; O(size).

    Raises RequestError, naming the field or the limit, for what cannot be kept, and for a
    precondition: applying such an operation twice is not the same as once.
    """
    kind = _KINDS.get(type(operation))
    if kind is None:
        raise RequestError(f"a journal takes Set, Merge, Update or Delete, got {operation!r}")
    if operation.precondition is not None:
        raise RequestError(f"a journal takes no operation with a precondition, got {operation!r}")
    fields = removed = b""
    if not isinstance(operation, Delete):
        data = operation.data
        if not isinstance(operation, Set):
            places: list[list[str]] = []
            data = _without_removals(data, [], places)
            if places:
                removed = json.dumps(places).encode()
        fields = codec.encode(data, operation.path).encode()
    try:
        path = operation.path.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"a document path must be encodable as UTF-8: {error}") from error
    size = len(path) + len(fields) + len(removed)
    if size > MAX_RECORD_BYTES:
        raise RequestError(
            f"the operation on {operation.path!r} takes {size} bytes, "
            f"allowed are {MAX_RECORD_BYTES}"
        )
    checksum = _checksum(FORMAT, kind, path, fields, removed)
    return JournalRecord(FORMAT, kind, path, fields, removed, checksum)


def decode_record(values: tuple[Any, ...]) -> Operation:
    """Return the operation of a record's columns; RecordError saying what is wrong with it."""
    version, kind, path, fields, removed, checksum = values
    if type(version) is not int or type(kind) is not int:
        raise RecordError("its format or kind is no integer")
    if not all(type(item) is bytes for item in (path, fields, removed, checksum)):
        raise RecordError("a column has the wrong type")
    if version != FORMAT:
        raise RecordError(f"its format is {version}, this version reads {FORMAT}")
    if not 0 <= kind <= 255 or len(path) + len(fields) + len(removed) > MAX_RECORD_BYTES:
        raise RecordError("its kind or size is out of range")
    if checksum != _checksum(version, kind, path, fields, removed):
        raise RecordError("its checksum does not match")
    try:
        return _make(kind, path.decode(), fields.decode(), removed)
    except (BeastError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"it cannot be read: {error}") from error


def _make(kind: int, path: str, fields: str, removed: bytes) -> Operation:
    if kind == _KINDS[Delete]:
        return Delete(path)
    data = codec.decode(fields, path)
    for *parents, last in json.loads(removed) if removed else ():
        place = data
        for name in parents:
            place = place[name]
        place[last] = DELETE_FIELD
    frozen: Mapping[str, Any] = freeze(data)
    if kind == _KINDS[Set]:
        return Set(path, frozen)
    if kind == _KINDS[Merge]:
        return Merge(path, frozen)
    if kind == _KINDS[Update]:
        return Update(path, frozen)
    raise RecordError(f"its kind {kind} is unknown")


def _checksum(version: int, kind: int, path: bytes, fields: bytes, removed: bytes) -> bytes:
    # The lengths are part of it, so that bytes cannot move from one column to the next.
    head = _HEAD.pack(version, kind, len(path), len(fields), len(removed))
    return hashlib.blake2b(head + path + fields + removed, digest_size=8).digest()


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
