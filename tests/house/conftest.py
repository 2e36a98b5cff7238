"""What the tests of the house share: the project's files, its programs, a copy of the checkout."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = {".git", ".venv", ".dev", "build", "dist", "wheelhouse", "node_modules"}


def list_project_files(root: Path) -> list[Path]:
    """Return the files that belong to the project (git's, where it is one), relative to `root`."""
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
        found = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
    else:
        found = {
            path.relative_to(root)
            for path in root.rglob("*")
            if not NOT_SOURCES & set(path.relative_to(root).parts)
            and not any(part.endswith(("_cache", "__", ".egg-info")) for part in path.parts)
            and path.suffix not in {".so", ".pyd", ".pyc"}
        }
    return sorted(path for path in found if (root / path).is_file())


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file of the project, relative to its root."""
    return list_project_files(ROOT)


@pytest.fixture(scope="session")
def copy_project() -> Callable[[Path], Path]:
    """Copy the project's files, without what was built from them, as a fresh clone has them."""

    def copy(target: Path) -> Path:
        for path in list_project_files(ROOT):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target / path)
        return target

    return copy


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program and return it with its output; the environment's programs come first."""

    def call(
        *command: object,
        cwd: Path = ROOT,
        ok: bool = True,
        timeout: float = 300,
        env: dict[str, str] | None = None,
        unset: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        environ = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PIP_CONSTRAINT": os.devnull,
        }
        environ |= env or {}
        for name in ("PYTEST_ADDOPTS", "BEASTCORE_PURE", *unset):
            environ.pop(name, None)
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if ok and done.returncode != 0:
            words = " ".join(map(str, command))
            pytest.fail(f"{words} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return call


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of benchmarks/ from the checkout; `__init__` is the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.{name}".removesuffix(".__init__"))

    return load
