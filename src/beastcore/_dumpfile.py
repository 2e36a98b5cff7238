"""The file format of `Cache.dump`: writing it whole or not at all, reading it with mistrust.

Layout, little endian:

    header    magic (8 bytes), version u16, number of shadows u16, entries u64, time of the dump
              f64 (seconds since the epoch), share of the window f64 (-1: none was chosen yet),
              sampled requests f64; for each shadow its share f64 and its score f64; digest
    block     length of the records in bytes u64, number of records u32; records; digest
    end       a block of length 0; then the file ends

    record    state u8, kind of the key u8, seconds left to live f64 (-1: for ever), length of the
              key u32, length of the value u32; key; value
    key       str: UTF-8 (lone surrogates too); int: two's complement; bytes; tuple: for each
              item kind u8, length u32, item; or what a key encoder returned

A digest is the BLAKE2b (16 bytes) of everything before it, so that damage of any kind, blocks
missing or out of order included, is found before anything is made of what follows. It is no
signature: who can write the file can write a valid one.
"""

from __future__ import annotations

import math
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from beastcore._errors import SnapshotError
from beastcore._types import PolicyState

__all__ = ["ENDLESS", "Header", "Reader", "Record", "Writer", "open_to_read", "write_whole"]

ENDLESS = -1.0
"""Stands for "never expires" where seconds left to live are stored."""

_MAGIC = b"\x89BCACHE\n"
_VERSION = 1
_HEADER = struct.Struct("<8sHHQddd")
_SHADOW = struct.Struct("<dd")
_BLOCK = struct.Struct("<QI")
_RECORD = struct.Struct("<BBdII")
_ITEM = struct.Struct("<BI")
_DIGEST = 16
_CHUNK = 1 << 18  # bytes: a block is closed at this length; nothing longer is read at once
_LONGEST = 2**32 - 1
_DEPTH = 32  # tuples in tuples
_STR, _INT, _BYTES, _TUPLE, _ENCODED = range(5)


class Header(NamedTuple):
    """What precedes the records."""

    entries: int
    """Number of records."""
    written: float
    """When the dump was made, in seconds since the epoch."""
    policy: PolicyState | None
    """What the policy had learnt, if it had begun to."""


class Record(NamedTuple):
    """One entry."""

    key: Any
    value: bytes
    state: int
    """Queue (2 bits), mark (1), count (4)."""
    left: float
    """Seconds left to live when it was dumped; ENDLESS: it does not expire."""


def write_whole(path: str, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a new file, mode 0600, which then replaces `path` at one stroke.

    It reaches the disk first. After an error, from `write` too, `path` is what it was. Where
    `path` is a symbolic link, the link is replaced and not what it points to. A process killed
    meanwhile leaves a `.beastcore-*.tmp` beside `path`.
    """
    folder = Path(path).parent
    handle, name = tempfile.mkstemp(".tmp", ".beastcore-", folder)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems know no fsync of a folder
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_to_read(path: str) -> BinaryIO:
    """Open a regular file; SnapshotError for anything else, which might block or have no end."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SnapshotError(f"{path!r} is no regular file")
    return os.fdopen(descriptor, "rb")


class Writer:
    """Writes a dump to a file, block by block."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._hash = blake2b(digest_size=_DIGEST)
        self._block = bytearray()
        self._records = 0
        share, asked, shadows = (-1.0, 0.0, ()) if header.policy is None else header.policy
        numbers = (header.entries, header.written, share, asked)
        self._put(_HEADER.pack(_MAGIC, _VERSION, len(shadows), *numbers))
        self._put(b"".join([_SHADOW.pack(*shadow) for shadow in shadows]))
        self._sign()

    def add(
        self,
        key: Any,
        value: bytes,
        state: int,
        left: float,
        key_encoder: Callable[[Any], bytes] | None,
    ) -> None:
        """Write one entry."""
        kind, encoded = _encode_key(key, key_encoder)
        if len(value) > _LONGEST:
            raise ValueError(
                f"value_encoder must return at most {_LONGEST} bytes, got {len(value)} for the "
                f"value under {key!r}"
            )
        block = self._block
        block += _RECORD.pack(state, kind, left, len(encoded), len(value))
        block += encoded
        block += value
        self._records += 1
        if len(block) >= _CHUNK:
            self._flush()

    def end(self) -> None:
        """Write what is left, and the end."""
        if self._records:
            self._flush()
        self._put(_BLOCK.pack(0, 0))
        self._sign()

    def _flush(self) -> None:
        self._put(_BLOCK.pack(len(self._block), self._records))
        self._put(self._block)
        self._sign()
        self._block = bytearray()
        self._records = 0

    def _put(self, data: bytes | bytearray) -> None:
        self._hash.update(data)
        self._file.write(data)

    def _sign(self) -> None:
        self._put(self._hash.digest())


class Reader:
    """Reads a dump. Every size is checked against what the file still holds before it is used."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._rest = os.fstat(self._file.fileno()).st_size
        self._hash = blake2b(digest_size=_DIGEST)

    def header(self) -> Header:
        """Return the header of a file that is whole: all of it is read, nothing is decoded.

        SnapshotError says what is wrong with the file.
        """
        self._rewind()
        header = self._header()
        entries = 0
        for length, records in self._blocks():
            entries += records
            for start in range(0, length, _CHUNK):
                self._take(min(_CHUNK, length - start))
            self._verify()
        if entries != header.entries:
            raise self._wrong(f"damaged: it holds {entries} entries instead of {header.entries}")
        return header

    def records(self, key_decoder: Callable[[bytes], Any] | None) -> Iterator[Record]:
        """Yield the records; what `key_decoder` raises comes through."""
        self._rewind()
        self._header()
        for length, records in self._blocks():
            block = b"".join(
                [self._take(min(_CHUNK, length - at)) for at in range(0, length, _CHUNK)]
            )
            self._verify()
            at = 0
            for _ in range(records):
                start = at + _RECORD.size
                if start > length:
                    raise self._wrong("damaged: a record is cut")
                state, kind, left, of_key, of_value = _RECORD.unpack_from(block, at)
                middle = start + of_key
                at = middle + of_value
                if at > length:
                    raise self._wrong("damaged: a record is cut")
                if state & 3 == 3 or state > 127 or not (left == ENDLESS or 0 <= left < math.inf):
                    raise self._wrong("damaged: a record makes no sense")
                if kind == _ENCODED:
                    if key_decoder is None:
                        raise ValueError(
                            "key_decoder must be given: the dump holds keys that a key_encoder "
                            "encoded"
                        )
                    key = key_decoder(block[start:middle])
                else:
                    key = self._plain_key(kind, block[start:middle])
                yield Record(key, block[middle:at], state, left)
            if at != length:
                raise self._wrong("damaged: a block is longer than its records")

    def _header(self) -> Header:
        if self._rest < _HEADER.size:
            start = self._take(min(self._rest, len(_MAGIC)))
            if start != _MAGIC:
                raise self._wrong("no dump of a Cache")
            raise self._wrong("truncated")
        fields = _HEADER.unpack(self._take(_HEADER.size))
        magic, version, n, entries, written, share, asked = fields
        if magic != _MAGIC:
            raise self._wrong("no dump of a Cache")
        if version != _VERSION:
            raise self._wrong(
                f"of format version {version}; this release reads version {_VERSION} only"
            )
        shadows = tuple([_SHADOW.unpack(self._take(_SHADOW.size)) for _ in range(n)])
        self._verify()
        floats = [written, share, asked, *[number for shadow in shadows for number in shadow]]
        if not all(map(math.isfinite, floats)):
            raise self._wrong("damaged: its header makes no sense")
        return Header(entries, written, None if share < 0 else (share, asked, shadows))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yield length and number of records of each block; the caller reads it and verifies."""
        while True:
            length, records = _BLOCK.unpack(self._take(_BLOCK.size))
            if length == 0:
                break
            if length > self._rest:
                raise self._wrong("truncated or damaged")
            yield length, records
        self._verify()
        if self._rest:
            raise self._wrong("damaged: something follows its end")

    def _take(self, size: int) -> bytes:
        """Read the next bytes, at most _CHUNK of them."""
        data = self._file.read(size) if size <= self._rest else b""
        if len(data) != size:
            raise self._wrong("truncated or damaged")
        self._rest -= size
        self._hash.update(data)
        return data

    def _verify(self) -> None:
        expected = self._hash.digest()
        if self._take(_DIGEST) != expected:
            raise self._wrong("damaged: a checksum does not fit")

    def _plain_key(self, kind: int, data: bytes, depth: int = _DEPTH) -> Any:
        """Return the key that `_encode_plain` made `data` of."""
        if kind == _STR:
            try:
                return data.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                raise self._wrong("damaged: a key is no UTF-8") from None
        if kind == _INT:
            return int.from_bytes(data, "little", signed=True)
        if kind == _BYTES:
            return data
        if kind != _TUPLE or depth == 0:
            raise self._wrong("damaged: a key of an unknown kind")
        items = []
        at = 0
        while at < len(data):
            start = at + _ITEM.size
            if start > len(data):
                raise self._wrong("damaged: a key is cut")
            of_item, length = _ITEM.unpack_from(data, at)
            at = start + length
            if at > len(data):
                raise self._wrong("damaged: a key is cut")
            items.append(self._plain_key(of_item, data[start:at], depth - 1))
        return tuple(items)

    def _wrong(self, what: str) -> SnapshotError:
        return SnapshotError(f"{self._path!r} is {what}")


def _encode_key(key: Any, key_encoder: Callable[[Any], bytes] | None) -> tuple[int, bytes]:
    """Return a key's kind and its bytes."""
    kind, encoded = _encode_plain(key, _DEPTH)
    if encoded is None:
        if key_encoder is None:
            raise TypeError(
                f"key_encoder must be given for the key {key!r}: only exact str, int, bytes and "
                f"tuples of them, at most {_DEPTH} deep, are stored as they are"
            )
        kind, encoded = _ENCODED, key_encoder(key)
        if not isinstance(encoded, bytes):
            raise TypeError(f"key_encoder must return bytes, got {encoded!r} for the key {key!r}")
    if len(encoded) > _LONGEST:
        raise ValueError(f"keys must be at most {_LONGEST} bytes long, got {len(encoded)}")
    return kind, encoded


def _encode_plain(key: Any, depth: int) -> tuple[int, bytes | None]:
    """Return the kind and the bytes of a key that needs no encoder; None for another."""
    exact = type(key)
    if exact is str:
        return _STR, key.encode("utf-8", "surrogatepass")
    if exact is int:
        return _INT, key.to_bytes(key.bit_length() // 8 + 1, "little", signed=True)
    if exact is bytes:
        return _BYTES, key
    if exact is not tuple or depth == 0:
        return _ENCODED, None
    parts = []
    for item in key:
        kind, encoded = _encode_plain(item, depth - 1)
        if encoded is None or len(encoded) > _LONGEST:
            return _ENCODED, None
        parts += [_ITEM.pack(kind, len(encoded)), encoded]
    return _TUPLE, b"".join(parts)
