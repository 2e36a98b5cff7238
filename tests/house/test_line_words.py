"""The C that compares a line of the index at once: every variant of it, of which one is in use.

Which one depends on the processor and the compiler. Here each is compiled for itself and compared
with what it is to compute; so that the others work is known before somebody has such a machine.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = 16
FULL = 0xFFFFFFFF
LineWords = Callable[[list[int], int, int], int]
HEAD = "#include <stdint.h>\n"
TAIL = """
uint32_t words(const uint32_t *line, uint32_t wanted, uint32_t mask) {
    return beast_words(line, wanted, mask);
}
uint32_t lowest(uint32_t bits) { return beast_lowest(bits); }
"""
VARIANTS = {
    "as it is": [],
    "of the compiler's vectors": ["-DBEAST_NO_SSE2"],
    "one by one": ["-DBEAST_NO_SSE2", "-DBEAST_NO_VECTORS"],
}


def source(root: Path) -> str:
    text = (root / "src" / "beastcore" / "_table.pxd").read_text("utf-8")
    blocks = re.findall(r'cdef extern from \*:\n    """\n(.*?)"""', text, re.DOTALL)
    (block,) = (block for block in blocks if "beast_words" in block)
    return str(block).replace("\\\\", "\\")


@pytest.fixture(scope="module", params=VARIANTS)
def library(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if os.name != "posix":
        pytest.skip("another operating system: its compiler takes other options")
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C compiler, which needs root: apt install gcc libc6-dev")
    folder = tmp_path_factory.mktemp("variant")
    (folder / "line.c").write_text(HEAD + source(root) + TAIL)
    flags = ["-O3", "-Wall", "-Werror", "-fPIC", "-shared", *VARIANTS[request.param]]
    command = [*compiler, *flags, "line.c", "-o", "line.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = ctypes.CDLL(str(folder / "line.so"))
    found.words.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
    found.words.restype = found.lowest.restype = ctypes.c_uint32
    found.lowest.argtypes = [ctypes.c_uint32]
    return found


@pytest.fixture(scope="module")
def line_words(library: ctypes.CDLL) -> LineWords:
    room = (ctypes.c_uint32 * (2 * WORDS))()
    start = -(-ctypes.addressof(room) // 64) * 64  # a line of the cache
    line = (ctypes.c_uint32 * WORDS).from_address(start)

    def compare(words: list[int], wanted: int, mask: int) -> int:
        line[:] = words
        return int(library.words(start, wanted, mask))

    compare.room = room  # type: ignore[attr-defined]
    return compare


def test_each_place_alone(line_words: LineWords) -> None:
    for word in (1, 0x80000000, 0x7FFFFFFF, FULL, 0x00018000, 0xFFFF0000):
        for place in range(WORDS):
            words = [0] * WORDS
            words[place] = word
            assert line_words(words, word, FULL) == 1 << place
            assert line_words(words, 0, FULL) == 0xFFFF ^ 1 << place


def test_any_words_under_any_mask(line_words: LineWords) -> None:
    chance = random.Random(1)
    for _ in range(3000):
        shift = chance.randrange(32)
        mask = chance.choice([FULL, FULL << shift & FULL, FULL >> shift])
        few = [chance.getrandbits(32) for _ in range(4)] + [0, FULL]
        words = [chance.choice(few) ^ (chance.getrandbits(32) & ~mask) for _ in range(WORDS)]
        wanted = chance.choice(few) & mask
        found = sum(1 << i for i, word in enumerate(words) if word & mask == wanted)
        assert line_words(words, wanted, mask) == found


def test_the_lowest_bit(library: ctypes.CDLL) -> None:
    for bit in range(32):
        for above in (0, FULL, 0xAAAAAAAA):
            assert library.lowest((above << bit | 1 << bit) & FULL) == bit
