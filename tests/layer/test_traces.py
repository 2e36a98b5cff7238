"""Reading .npz traces: everything that numpy writes for integers, and nothing that is not sound."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from beastmode.demo.traces import read_trace
from beastmode.errors import BeastError, TraceError

DTYPES = ["|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", ">u4", ">i8"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.npz"


def npy(
    dtype: str = "<u4", shape: str = "(3,)", data: bytes = bytes(12), version: int = 1
) -> bytes:
    """Return a .npy file with any header."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + data


def put(file: Path, content: bytes, name: str = "keys.npy") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_numpy_writes(file: Path, dtype: str, save: object) -> None:
    keys = np.array([0, 1, 100, 7, 0], dtype=dtype)
    if "i" in dtype:
        keys[2] = -100
    save(file, other=np.zeros((2, 2)), keys=keys)  # type: ignore[operator]
    assert read_trace(file).tolist() == keys.tolist()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_reads_every_version_of_the_format(file: Path, version: int) -> None:
    data = struct.pack("<3I", 5, 6, 2**32 - 1)
    assert list(read_trace(put(file, npy(data=data, version=version)))) == [5, 6, 2**32 - 1]


def test_there_is_no_such_file(file: Path) -> None:
    with pytest.raises(TraceError, match=rf"trace {file} cannot be read: No such file"):
        read_trace(file)
    assert issubclass(TraceError, BeastError)
    assert issubclass(TraceError, ValueError)


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)


def test_not_a_zip_archive(file: Path) -> None:
    file.write_bytes(b"keys")
    with pytest.raises(TraceError, match=r"is no \.npz file"):
        read_trace(file)


def test_no_keys(file: Path) -> None:
    np.savez(file, requests=np.zeros(3, dtype=np.uint32))
    with pytest.raises(TraceError, match=r"no array 'keys' \(it holds requests\)"):
        read_trace(file)


@pytest.mark.parametrize("dtype", ["<f8", "|b1", "<c16", "<U4", "|S3", "<M8[s]", "|V4"])
def test_keys_that_are_no_integers(file: Path, dtype: str) -> None:
    np.savez(file, keys=np.zeros(3, dtype=dtype))
    with pytest.raises(TraceError, match="must be integers"):
        read_trace(file)


def test_keys_with_fields(file: Path) -> None:
    np.savez(file, keys=np.zeros(3, dtype=[("a", "<u4"), ("b", "<u4")]))
    with pytest.raises(TraceError, match="several fields"):
        read_trace(file)


def test_pickled_objects_are_refused_and_not_loaded(file: Path) -> None:
    loaded = []

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (loaded.append, (1,))

    np.savez(file, keys=np.array([Trap()], dtype=object))
    with pytest.raises(TraceError, match="pickled Python objects, which are never loaded"):
        read_trace(file)
    assert loaded == []


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_keys_of_other_dimensions(file: Path, shape: tuple[int, ...]) -> None:
    np.savez(file, keys=np.zeros(shape, dtype=np.uint32))
    with pytest.raises(TraceError, match="must have one dimension"):
        read_trace(file)


@pytest.mark.parametrize("shape", ["(-1,)", "(True,)", "(1.0,)", "[3]", "3", "('3',)"])
def test_a_shape_that_numpy_never_writes(file: Path, shape: str) -> None:
    with pytest.raises(TraceError, match="must have one dimension"):
        read_trace(put(file, npy(shape=shape)))


def test_no_request(file: Path) -> None:
    np.savez(file, keys=np.zeros(0, dtype=np.uint32))
    with pytest.raises(TraceError, match="holds no request"):
        read_trace(file)


def test_fewer_or_more_keys_than_the_header_says(file: Path) -> None:
    with pytest.raises(TraceError, match="is truncated: 2 of 3 keys"):
        read_trace(put(file, npy(data=bytes(11))))
    with pytest.raises(TraceError, match="more behind its 3 keys"):
        read_trace(put(file, npy(data=bytes(13))))


def test_a_claim_of_too_many_keys_is_refused_before_reading(file: Path) -> None:
    with pytest.raises(TraceError, match=r"has 1,000,000,000,000 keys; at most 100,000,000"):
        read_trace(put(file, npy(shape="(1000000000000,)")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\xff\xff{}",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}",
        b"\x93NUMPX\x01\x00\x02\x00{}",
        npy(shape="__import__('os')"),
        npy(shape="(" * 3000),
        npy().replace(b"descr", b"other"),
        npy().replace(b"{", b"["),
    ],
)
def test_a_damaged_header(file: Path, content: bytes) -> None:
    with pytest.raises(TraceError, match="is damaged"):
        read_trace(put(file, content))


def test_an_unknown_version(file: Path) -> None:
    with pytest.raises(TraceError, match=r"version 9\.0"):
        read_trace(put(file, npy(version=9)))


def test_every_truncation_and_flip_is_an_error_or_harmless(file: Path) -> None:
    np.savez_compressed(file, keys=np.arange(50, dtype=np.uint32))
    whole = file.read_bytes()
    damaged = [whole[:end] for end in range(0, len(whole), 17)]
    damaged += [
        whole[:i] + bytes((whole[i] ^ 0xFF,)) + whole[i + 1 :] for i in range(0, len(whole), 3)
    ]
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            # A flip of a field that nobody reads, a time say, changes nothing.
            assert read_trace(file).tolist() == list(range(50))
        except TraceError:
            refused += 1
    assert refused > len(damaged) / 2


def test_a_password_is_an_error(file: Path) -> None:
    np.savez(file, keys=np.zeros(3, dtype=np.uint32))
    content = bytearray(file.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1  # "encrypted"
    file.write_bytes(content)
    with pytest.raises(TraceError, match="cannot be unpacked"):
        read_trace(file)


def test_a_recorded_trace() -> None:
    folder = os.environ.get("BEASTCORE_TRACES")
    if not folder:
        pytest.skip("BEASTCORE_TRACES does not name the folder of the recorded traces (web07.npz)")
    path = Path(folder) / "web07.npz"
    with np.load(io.BytesIO(path.read_bytes())) as archive:
        assert read_trace(path).tolist() == archive["keys"].tolist()
