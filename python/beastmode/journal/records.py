"""The columns of one journal record: a format, an encoded operation, and their checksum.

What is read back is not trusted: types, format, checksum, size and every value are checked, and
an operation is made again through its own constructor.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final

from beastmode.errors import StoreCorrupt
from beastmode.stores.documents import Operation
from beastmode.stores.operation_codec import EncodedOperation, decode_operation

__all__ = ["FORMAT", "DeadLetter", "RecordError", "read_record", "to_record"]

FORMAT: Final = 1
"""The version of what `to_record` makes."""

_HEAD = struct.Struct("<BBQQQ")


class RecordError(ValueError):
    """A record is damaged, or of a format that this version does not read."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An operation that the store rejected for good."""

    seq: int
    operation: Operation
    reason: str
    rejected_at: float
    """Seconds since the epoch."""


def to_record(encoded: EncodedOperation) -> tuple[int, int, bytes, bytes, bytes, bytes]:
    """Return the columns (format, kind, path, fields, removed, checksum)."""
    return FORMAT, *encoded, _checksum(FORMAT, encoded)


def read_record(values: tuple[Any, ...]) -> Operation:
    """Return the operation of those columns; RecordError saying what is wrong with them."""
    version, kind, path, fields, removed, checksum = values
    if type(version) is not int or type(kind) is not int:
        raise RecordError("its format or kind is no integer")
    if not all(type(item) is bytes for item in (path, fields, removed, checksum)):
        raise RecordError("a column has the wrong type")
    if version != FORMAT:
        raise RecordError(f"its format is {version}, this version reads {FORMAT}")
    if not 0 <= kind <= 255:
        raise RecordError(f"its kind {kind} is out of range")
    encoded = EncodedOperation(kind, path, fields, removed)
    if checksum != _checksum(version, encoded):
        raise RecordError("its checksum does not match")
    try:
        return decode_operation(encoded)
    except StoreCorrupt as error:
        raise RecordError(str(error)) from error


def _checksum(version: int, encoded: EncodedOperation) -> bytes:
    # The lengths are part of it, so that bytes cannot move from one column to the next.
    kind, path, fields, removed = encoded
    head = _HEAD.pack(version, kind, len(path), len(fields), len(removed))
    return hashlib.blake2b(head + path + fields + removed, digest_size=8).digest()
