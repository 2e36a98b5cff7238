"""Files of `Cache.dump`: what is stored, how it is written, what damage does."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import textwrap
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beastcore import BeastError, SnapshotError
from support import Twin

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = struct.Struct("<8sHHQddd")

plain_keys = st.recursive(
    st.one_of(
        st.text(st.characters(), max_size=5),
        st.text(st.characters(categories=["Cs"]), max_size=2),
        st.integers(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([0, -1, 127, 128, -128, -129, 255, 256, 2**63, -(2**63)]),
        st.binary(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
in_examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.dump"


def small(engine: Twin) -> Any:
    cache = engine.Cache(40)
    cache.set_many({f"key {i}": b"value %d" % i for i in range(3)})
    cache.set(("tuple", 5), b"", 60)
    return cache


def untouched(engine: Twin) -> Any:
    cache = engine.Cache(9)
    cache["mine"] = b"mine"
    return cache


def names(folder: Path) -> list[str]:
    return sorted([file.name for file in folder.iterdir()])


def signed(data: bytes) -> bytes:
    """Return a file of one block with digests that fit whatever it says."""
    header, rest = data[: HEADER.size], data[HEADER.size :]
    shadows = 16 * struct.unpack_from("<H", data, 10)[0]
    parts = [header + rest[:shadows]]
    at = shadows + 16
    length = struct.unpack_from("<Q", rest, at)[0]
    parts += [rest[at : at + 12 + length], rest[at + 28 + length : at + 40 + length]]
    digest = blake2b(digest_size=16)
    result = b""
    for part in parts:
        digest.update(part)
        result += part + digest.digest()
        digest.update(digest.digest())
    return result


@in_examples
@given(keys=st.lists(plain_keys, max_size=12))
def test_plain_keys_come_back(engine: Twin, path: Path, keys: list[Any]) -> None:
    cache = engine.raw.Cache(20, policy="lru")
    for i, key in enumerate(keys):
        cache[key] = b"%d" % i
    cache.dump(path, value_encoder=bytes)
    other = engine.raw.Cache(20, policy="lru")
    assert other.load(path, value_decoder=bytes) == len(cache)
    assert other.items() == cache.items()
    assert list(map(repr, other.keys())) == list(map(repr, cache.keys()))


def test_other_keys_need_an_encoder(engine: Twin, path: Path) -> None:
    class Text(str):
        __slots__ = ()

    deep: Any = 1
    for _ in range(32):
        deep = (deep,)
    for key in (True, None, 1.5, Text("a"), ("a", 1.5), frozenset(), (deep,), bytearray):
        cache = engine.Cache(4)
        cache["plain"] = b"1"
        cache[key] = b"2"
        with pytest.raises(TypeError, match="key_encoder must be given for the key"):
            cache.dump(path, value_encoder=bytes)
        assert not path.exists()
        cache.dump(path, value_encoder=bytes, key_encoder=lambda key: repr(key).encode())
        other = engine.Cache(4)
        with pytest.raises(ValueError, match="key_decoder must be given"):
            other.load(path, value_decoder=bytes)
        assert len(other) == 0
        assert other.load(path, value_decoder=bytes, key_decoder=lambda b, key=key: key) == 2
        assert other.items() == cache.items()
        path.unlink()
    cache = engine.Cache(1)
    cache[deep] = b"1"
    cache.dump(path, value_encoder=bytes)
    other.clear()
    assert other.load(path, value_decoder=bytes) == 1
    assert deep in other


def test_a_key_that_cannot_be_hashed(engine: Twin, path: Path) -> None:
    cache = engine.Cache(4)
    cache[1.5] = cache[2.5] = b"1"
    cache.dump(path, value_encoder=bytes, key_encoder=lambda key: repr(key).encode())
    other = untouched(engine)
    with pytest.raises(TypeError, match="unhashable"):
        other.load(path, value_decoder=bytes, key_decoder=lambda data: [data])
    assert other.items() == [("mine", b"mine")]


def test_bad_arguments(engine: Twin, path: Path) -> None:
    cache = small(engine)
    for value in (None, b"", 1):
        with pytest.raises(TypeError, match="value_encoder must be a function"):
            cache.dump(path, value_encoder=value)
        with pytest.raises(TypeError, match="value_decoder must be a function"):
            cache.load(path, value_decoder=value)
    with pytest.raises(TypeError, match="value_encoder must be a function that makes bytes"):
        cache.dump(path)
    with pytest.raises(TypeError, match="key_encoder must be callable or None"):
        cache.dump(path, value_encoder=bytes, key_encoder=1)
    with pytest.raises(TypeError, match="key_decoder must be callable or None"):
        cache.load(path, value_decoder=bytes, key_decoder=1)
    for clock, error in ((1, "wall_clock must be callable"), (str, r"wall_clock\(\) must return")):
        with pytest.raises(TypeError, match=error):
            cache.dump(path, value_encoder=bytes, wall_clock=clock)
    for bad in (None, 5, ["x"]):
        with pytest.raises(TypeError, match="path must be"):
            cache.dump(bad, value_encoder=bytes)
        with pytest.raises(TypeError, match="path must be"):
            cache.load(bad, value_decoder=bytes)
    for text in ("", "a\0b", b"\0"):
        with pytest.raises(ValueError, match="path must not be"):
            cache.load(text, value_decoder=bytes)
    for answer in ("text", None, bytearray(b"x")):
        with pytest.raises(TypeError, match="value_encoder must return bytes"):
            cache.dump(path, value_encoder=lambda value, a=answer: a)
        cache[1.5] = b""
        with pytest.raises(TypeError, match="key_encoder must return bytes"):
            cache.dump(path, value_encoder=bytes, key_encoder=lambda key, a=answer: a)
    assert not path.exists()


def test_paths_of_every_kind(engine: Twin, tmp_path: Path, monkeypatch: Any) -> None:
    cache = small(engine)
    monkeypatch.chdir(tmp_path)
    for path in ("a.dump", b"b.dump", Path("c.dump"), str(tmp_path / "d.dump")):
        assert cache.dump(path, value_encoder=bytes) == 4
        assert engine.Cache(9).load(path, value_decoder=bytes) == 4
    assert names(tmp_path) == ["a.dump", "b.dump", "c.dump", "d.dump"]


# -- writing ---------------------------------------------------------------------------------------


def test_an_error_leaves_the_old_file(engine: Twin, path: Path) -> None:
    cache = small(engine)
    cache.dump(path, value_encoder=bytes)
    before = path.read_bytes()

    def failing(value: bytes) -> bytes:
        if value == b"value 1":
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        cache.dump(path, value_encoder=failing)
    cache[1.5] = b""
    with pytest.raises(TypeError):
        cache.dump(path, value_encoder=bytes)
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]
    with pytest.raises(OSError, match=r"cache\.dump"):
        cache.dump(path / "below", value_encoder=bytes, key_encoder=lambda key: b"1.5")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"cache\.dump"):
        cache.dump(path, value_encoder=bytes, key_encoder=lambda key: b"1.5")
    assert names(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="another operating system: no modes, no links")
def test_the_file_is_private_and_links_are_not_followed(engine: Twin, path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"precious")
    target.chmod(0o644)
    path.symlink_to(target)
    old = os.umask(0)
    try:
        small(engine).dump(path, value_encoder=bytes)
    finally:
        os.umask(old)
    assert target.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="another operating system: no fsync of folders")
def test_data_reach_the_disk_before_the_name(
    engine: Twin, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)
        if steps[-1] == "folder":
            raise OSError(errno.EINVAL, "no fsync of folders here")

    def replaced(*args: Any) -> None:
        steps.append("name")
        replace(*args)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    assert small(engine).dump(path, value_encoder=bytes) == 4
    assert steps == ["file", "name", "folder"]


def test_a_full_disk_leaves_the_old_file(
    engine: Twin, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = small(engine)
    cache.dump(path, value_encoder=bytes)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.dump(path, value_encoder=bytes)
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="another operating system: no SIGKILL")
def test_a_kill_leaves_the_old_file(engine: Twin, path: Path) -> None:
    cache = small(engine)
    cache.dump(path, value_encoder=bytes)
    before = path.read_bytes()
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from support import Twin
        cache = Twin(compiled={engine.compiled}).Cache(2000)
        cache.set_many({{i: bytes(2000) for i in range(2000)}})
        calls = 0
        def encode(value):
            global calls
            calls += 1
            if calls == 1500:
                os.kill(os.getpid(), signal.SIGKILL)
            return value
        cache.dump({str(path)!r}, value_encoder=encode)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], timeout=60, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [name for name in path.parent.iterdir() if name != path]
    assert [name.name[:11] for name in left] == [".beastcore-"]
    assert left[0].stat().st_size > 1_000_000
    assert path.read_bytes() == before
    other = engine.Cache(9)
    assert other.load(path, value_decoder=bytes) == 4
    with pytest.raises(SnapshotError, match="truncated"):
        engine.Cache(9).load(left[0], value_decoder=bytes)


def test_many_blocks_and_large_values(engine: Twin, path: Path) -> None:
    cache = engine.Cache(3000, policy="lru")
    cache["large"] = bytes(range(256)) * 4096
    for i in range(1000):
        cache[i] = b"%d" % i * 300
    cache["larger"] = bytes(1_000_000)
    cache.dump(path, value_encoder=bytes)
    other = engine.Cache(3000, policy="lru")
    assert other.load(path, value_decoder=bytes) == 1002
    assert other.items() == cache.items()


# -- damage ----------------------------------------------------------------------------------------


def refused(engine: Twin, path: Path, data: bytes, match: str = "is ") -> None:
    """The file is refused by a clear error, before any decoder runs, and changes nothing."""
    path.write_bytes(data)
    cache = untouched(engine)
    with pytest.raises(SnapshotError, match=match) as caught:
        cache.load(path, value_decoder=lambda data: pytest.fail("decoded"))
    assert str(path) in str(caught.value)
    assert cache.items() == [("mine", b"mine")]


def test_the_error_is_a_value_error(engine: Twin, path: Path) -> None:
    path.write_bytes(b"x" * 500)
    with pytest.raises(ValueError, match="is no dump of a Cache") as caught:
        engine.Cache(1).load(path, value_decoder=bytes)
    assert isinstance(caught.value, BeastError)


@pytest.mark.compiled_only  # the twins share the code that reads
def test_every_byte_counts(engine: Twin, path: Path) -> None:
    small(engine).dump(path, value_encoder=bytes)
    data = path.read_bytes()
    for at in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            refused(engine.raw, path, data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        refused(engine.raw, path, data[:at])
        refused(engine.raw, path, data[:at] + data[at + 1 :])
    refused(engine.raw, path, data + b"\0", "something follows")
    refused(engine.raw, path, data + data)


@in_examples
@given(data=st.data())
def test_any_damage_is_found(engine: Twin, path: Path, data: st.DataObject) -> None:
    cache = engine.raw.Cache(200)
    cache.set_many({i: b"%d" % i * (i * 40) for i in range(120)})  # some blocks
    cache.dump(path, value_encoder=bytes)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        to = data.draw(st.integers(at, min(len(content), at + 5000)))
        new = data.draw(st.binary(max_size=8))
        if content[at:to] == new:
            new += b"\x55" if to == len(content) or content[to] != 0x55 else b"\xaa"
        content[at:to] = new
    if bytes(content) != path.read_bytes():
        refused(engine.raw, path, bytes(content))


@pytest.mark.compiled_only  # the twins share the code that reads
@settings(in_examples, max_examples=200)
@given(at=st.integers(0, 1 << 20), new=st.binary(min_size=1, max_size=9))
def test_nonsense_with_good_checksums(engine: Twin, path: Path, at: int, new: bytes) -> None:
    """Whoever writes the file can sign it too: still a clear error, or a cache that is sound."""
    cache = engine.raw.Cache(40)
    cache.set_many({f"k{i}": b"v%d" % i for i in range(3)})
    cache.set((1, (b"2", "3")), b"", 60)
    cache.dump(path, value_encoder=bytes)
    content = bytearray(path.read_bytes())
    body = HEADER.size + 16 * struct.unpack_from("<H", content, 10)[0] + 16
    length = struct.unpack_from("<Q", content, body)[0]
    start = body + 12 + at % (length - len(new))
    content[start : start + len(new)] = new
    path.write_bytes(signed(bytes(content)))
    other = untouched(engine.raw)
    try:
        loaded = other.load(path, value_decoder=bytes, key_decoder=bytes)
    except SnapshotError:
        assert other.items() == [("mine", b"mine")]
    else:
        assert len(other) == loaded + 1
        other._check()


def test_foreign_and_newer_files(engine: Twin, path: Path) -> None:
    small(engine).dump(path, value_encoder=bytes)
    data = path.read_bytes()
    assert signed(data) == data
    refused(engine, path, b"", "is no dump of a Cache")
    refused(engine, path, b"PK\x03\x04" * 100, "is no dump of a Cache")
    refused(engine, path, data[:20], "is truncated")
    newer = signed(data[:8] + b"\2\0" + data[10:])
    refused(engine, path, newer, "is of format version 2; this release reads version 1 only")
    more = signed(data[:12] + struct.pack("<Q", 5) + data[20:])
    refused(engine, path, more, "holds 4 entries instead of 5")
    no_time = signed(data[:20] + struct.pack("<d", float("nan")) + data[28:])
    refused(engine, path, no_time, "its header makes no sense")
    # Sizes that are lies are not believed.
    body = HEADER.size + 16
    for length in (2**63, 2**40, len(data)):
        lie = data[:body] + struct.pack("<Q", length) + data[body + 8 :]
        refused(engine, path, lie, "truncated or damaged")
    refused(engine, path, data[:10] + b"\xff\xff" + data[12:], "truncated or damaged")


def test_what_is_no_file(engine: Twin, path: Path) -> None:
    cache = untouched(engine)
    with pytest.raises(FileNotFoundError):
        cache.load(path, value_decoder=bytes)
    with pytest.raises((SnapshotError, PermissionError)):
        cache.load(path.parent, value_decoder=bytes)
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        with pytest.raises(SnapshotError, match="is no regular file"):
            cache.load(path, value_decoder=bytes)
    assert cache.items() == [("mine", b"mine")]
