"""Builds of the engine for the tools: with sanitizers, and for a debug CPython.

Each build is a folder build/KIND that holds the whole package `beastcore`, compiled its way, and
the module `seeded` of bugs on purpose. It is made anew when a source has changed.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEEDED = Path(__file__).with_name("seeded.c")
PACKAGE = ROOT / "src" / "beastcore"
IS_DEBUG = """
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (hasattr(sys, "gettotalrefcount") and sys.version_info >= (3, 11)
              and os.path.exists(header)))
"""


class Missing(Exception):
    """A program that this machine does not have."""


def run(*command: object, env: dict[str, str] | None = None) -> str:
    """Run a command in the checkout; its output is shown if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(f"{done.stdout}\n{done.stderr}\n")
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def compiler() -> list[str]:
    """Return the command of the C compiler, as setuptools finds it."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def runtime() -> list[Path]:
    """Return the libraries of the sanitizers, which have to be loaded before the interpreter."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        answer = run(*compiler(), f"-print-file-name={name}").strip()
        if not Path(answer).is_absolute():
            raise Missing(f"{name} of the compiler {compiler()[0]} (package libgcc-12-dev or so)")
        found.append(Path(answer).resolve())
    return found


def find_debug_python() -> Path:
    """Return a debug CPython with its headers; where it may, apt installs it first."""
    found = _debug_python()
    if found is None and os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-qq", env=quiet)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-dbg", env=quiet)
        found = _debug_python()
    if found is None:
        raise Missing("a debug CPython with its headers, which needs root: apt install python3-dbg")
    return found


def _debug_python() -> Path | None:
    names = [os.environ.get("BEASTCORE_DEBUG_PYTHON", ""), "python3-dbg"]
    names += [f"python3.{minor}{end}" for minor in range(15, 10, -1) for end in ("-dbg", "d")]
    for name in names:
        path = shutil.which(name) if name else None
        if path and subprocess.run([path, "-c", IS_DEBUG], check=False).returncode == 0:
            return Path(path)
    return None


def build_sanitized() -> Path:
    """Build with AddressSanitizer and UndefinedBehaviorSanitizer; return the folder."""
    flags = runpy.run_path(str(ROOT / "setup.py"), run_name="flags")["SANITIZED"]
    folder = _build("asan", Path(sys.executable), {"BEASTCORE_SANITIZE": "1"}, flags)
    for library in sorted(folder.rglob("*.so")):
        if b"__asan_" not in library.read_bytes():
            raise SystemExit(f"{library} is not instrumented")
    return folder


def build_debug() -> tuple[Path, Path]:
    """Build for a debug CPython; return the folder and the interpreter, which can run pytest."""
    base = find_debug_python()
    folder = ROOT / "build" / "debug"
    python = folder / "venv" / "bin" / "python"
    requirements = [ROOT / "requirements" / f"{job}.txt" for job in ("engine", "pytest")]
    stamp = folder / "venv" / "stamp"
    wanted = _digest(requirements) + str(base)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder / "venv", ignore_errors=True)
        run(base, "-m", "venv", "--without-pip", folder / "venv")
        words: list[Any] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        for path in requirements:
            words += ["--require-hashes", "-r", path]
        run(*words, env={"PIP_CONSTRAINT": os.devnull})
        stamp.write_text(wanted)
    return _build("debug", python, {"BEASTCORE_DEBUG": "1"}, ["-O0", "-g"]), python


def _build(kind: str, python: Path, switches: dict[str, str], flags: list[str]) -> Path:
    folder = ROOT / "build" / kind
    stamp = folder / "stamp"
    sources = [ROOT / "setup.py", SEEDED, *sorted(PACKAGE.glob("*.p*")), *PACKAGE.rglob("*.py")]
    wanted = _digest([path for path in sources if path.is_file()]) + str(python)
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder / "beastcore", ignore_errors=True)
    words = [python, "setup.py", "--quiet", "build_ext", "--parallel", os.cpu_count() or 1]
    run(*words, "--build-lib", folder, "--build-temp", folder / "temp", env=switches)
    skipped = shutil.ignore_patterns("*.so", "*.pyd", "*.pyx", "*.pxd", "__pycache__")
    shutil.copytree(PACKAGE, folder / "beastcore", ignore=skipped, dirs_exist_ok=True)
    names = "import sysconfig as s; print(s.get_path('include')); print(s.get_config_var('{}'))"
    include, suffix = run(python, "-c", names.format("EXT_SUFFIX")).split()
    library = folder / f"seeded{suffix}"
    run(*compiler(), *flags, "-shared", "-fPIC", f"-I{include}", SEEDED, "-o", library)
    stamp.write_text(wanted)
    return folder


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
