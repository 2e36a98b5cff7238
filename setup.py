"""Describe the extension modules; everything else about the project is in pyproject.toml.

Set to 1 in the environment: BEASTCORE_TRACE (for coverage of the .pyx), BEASTCORE_ANNOTATE (HTML),
BEASTCORE_DEBUG (-O0 -g, the C macro), BEASTCORE_SANITIZE (gcc's or clang's checks at run time).
"""

import hashlib
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENGINE = Path("src/beastcore")  # relative: setuptools accepts no other paths
MODULES = ("_batch", "_cache", "_connections", "_latency", "_memo")
SWITCHES = ("TRACE", "ANNOTATE", "DEBUG", "SANITIZE")
TRACE, ANNOTATE, DEBUG, SANITIZE = (os.environ.get(f"BEASTCORE_{s}") == "1" for s in SWITCHES)
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Python's own flags define the overflow of signed numbers, which would hide it.
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", *SANITIZERS]
# Two arguments that were just pushed must not be read as one vector: that waits for the stores.
FAST = ["-O3", "-g0", "-fno-tree-slp-vectorize"]
CIMPORT = r"^\s*(?:from\s+(?:beastcore)?\.?(\w+)\s+cimport|cimport\s+beastcore\.(\w+))"
HEADER = r'^\s*(?:cdef\s+extern\s+from|#\s*include)\s*"([^"]+)"'


def sources(name):
    """Return the files that module `name` is compiled from: its .pyx, cimported .pxd, headers."""
    found, queue = set(), [f"{name}.pyx", f"{name}.pxd"]
    while queue:
        path = ENGINE / queue.pop()
        if path in found or not (ROOT / path).exists():
            continue
        found.add(path)
        text = (ROOT / path).read_text(encoding="utf-8")
        queue += [f"{a or b}.pxd" for a, b in re.findall(CIMPORT, text, re.MULTILINE)]
        queue += re.findall(HEADER, text, re.MULTILINE)
    return sorted(found)


def fingerprint(name):
    """Return a hash of everything that module `name` is compiled from."""
    digest = hashlib.sha256(f"{TRACE} {DEBUG} {SANITIZE}".encode())
    for path in (Path("setup.py"), *sources(name)):
        digest.update((ROOT / path).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def extension(name):
    """Return the extension module `name`; its fingerprint is compiled in, to tell a stale one."""
    from setuptools import Extension  # noqa: PLC0415

    stamp = ROOT / "build" / "stamps" / f"{name}.h"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f'const char beastcore_source{name}[] = "beastcore:{fingerprint(name)}";\n')
    level = SANITIZED if SANITIZE else ["-O0", "-g"] if DEBUG else FAST
    flags = ["-include", str(stamp), *level]
    if sys.platform == "win32":
        flags = [f"/FI{stamp}", *["/Od", "/Zi"] * DEBUG]
    trace = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    return Extension(
        f"beastcore.{name}",
        [str(ENGINE / f"{name}.pyx")],
        depends=[path.as_posix() for path in sources(name)],
        define_macros=trace * TRACE + [("BEASTCORE_DEBUG", "1")] * DEBUG,
        extra_compile_args=flags,
        extra_link_args=SANITIZERS * SANITIZE,
    )


if __name__ == "__main__":
    from Cython.Build import cythonize
    from setuptools import setup

    directives = {"language_level": 3, "binding": False, "embedsignature": True, "linetrace": TRACE}
    directives["embedsignature.format"] = "clinic"
    options = {"annotate": ANNOTATE, "force": TRACE or ANNOTATE, "compiler_directives": directives}
    options["build_dir"] = None if TRACE else "build/cython"
    setup(ext_modules=cythonize(list(map(extension, MODULES)), **options))
