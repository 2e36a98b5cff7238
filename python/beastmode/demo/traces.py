"""Reads request traces from .npz files, with the standard library alone.

A trace is a numpy archive that holds `keys`: a one-dimensional array of integers, one element for
each read request, in order. `numpy.savez_compressed("web.npz", keys=keys)` writes one. The format
is a zip archive of .npy files, described in numpy's documentation (numpy.lib.format). Pickled
Python objects, which the format allows too, are refused: reading them would run code.
"""

from __future__ import annotations

import array
import ast
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Final

from beastmode.errors import TraceError

__all__ = ["MAX_REQUESTS", "read_trace"]

MAX_REQUESTS: Final = 100_000_000
"""The longest trace that is read: a small archive can claim to hold any number."""

_MEMBER: Final = "keys.npy"
_MAGIC: Final = b"\x93NUMPY"
_LONGEST_HEADER: Final = 10_000  # numpy's own bound for untrusted files
_DTYPE: Final = re.compile(r"([<>|])([iu])([1248])")
_CODES: Final = {
    kind + str(array.array(code).itemsize): code
    for kind, codes in (("i", "bhilq"), ("u", "BHILQ"))
    for code in codes
}


def read_trace(path: Path) -> array.array[int]:
    """Return the keys of a trace, in order; O(requests).

    TraceError names the file and what is wrong with it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if _MEMBER not in names:
                held = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "nothing"
                raise _wrong(path, f"holds no array 'keys' (it holds {held})")
            with archive.open(_MEMBER) as file:
                return _read_array(file, path)
    except zipfile.BadZipFile as error:
        what = "is no .npz file" if "not a zip" in str(error) else "is damaged"
        raise _wrong(path, f"{what}: {error}") from error
    except (EOFError, zlib.error) as error:
        raise _wrong(path, f"is damaged: {str(error) or 'it ends too early'}") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression unknown here, a password
        raise _wrong(path, f"cannot be unpacked: {error}") from error
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror or error}") from error


def _wrong(path: Path, what: str) -> TraceError:
    return TraceError(f"the trace {path} {what}")


def _read_array(file: IO[bytes], path: Path) -> array.array[int]:
    dtype, count = _read_header(file, path)
    match = _DTYPE.fullmatch(dtype)
    if match is None:
        if "O" in dtype:
            raise _wrong(path, "has keys that are pickled Python objects, which are never loaded")
        raise _wrong(path, f"has keys of dtype {dtype!r}; they must be integers, such as '<u4'")
    order, kind, size = match.groups()
    if count > MAX_REQUESTS:
        raise _wrong(path, f"has {count:,} keys; at most {MAX_REQUESTS:,} are read")
    if count == 0:
        raise _wrong(path, "holds no request: its 'keys' are empty")
    keys = array.array(_CODES[kind + size])
    wanted = count * keys.itemsize
    data = file.read(wanted)
    if len(data) < wanted:
        raise _wrong(path, f"is truncated: {len(data) // keys.itemsize:,} of {count:,} keys")
    if file.read(1):
        raise _wrong(path, f"is damaged: there is more behind its {count:,} keys")
    keys.frombytes(data)
    if order != "|" and (order == "<") != (sys.byteorder == "little"):
        keys.byteswap()
    return keys


def _read_header(file: IO[bytes], path: Path) -> tuple[str, int]:
    """Return dtype and length of the one-dimensional array that follows."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8:
        raise _wrong(path, "is damaged: its 'keys' are no .npy file")
    form = {1: "<H", 2: "<I", 3: "<I"}.get(start[6])
    if form is None:
        raise _wrong(path, f"uses version {start[6]}.{start[7]} of the .npy format, not 1 to 3")
    field = file.read(struct.calcsize(form))
    length = struct.unpack(form, field)[0] if len(field) == struct.calcsize(form) else 0
    header = file.read(min(length, _LONGEST_HEADER))
    if not length or len(header) < length:
        raise _wrong(path, "is damaged: the header of its 'keys' is cut off or too long")
    try:
        found: Any = ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _wrong(path, "is damaged: the header of its 'keys' cannot be read") from error
    if not isinstance(found, dict) or not {"descr", "shape"} <= found.keys():
        raise _wrong(path, "is damaged: the header of its 'keys' lacks descr or shape")
    dtype, shape = found["descr"], found["shape"]
    if not isinstance(dtype, str):
        raise _wrong(path, "has keys with several fields; they must be integers")
    one_dimension = isinstance(shape, tuple) and len(shape) == 1
    if not one_dimension or type(shape[0]) is not int or shape[0] < 0:
        raise _wrong(path, f"has keys of shape {shape!r}; they must have one dimension")
    return dtype, shape[0]
