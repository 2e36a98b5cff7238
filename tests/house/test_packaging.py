"""The sdist and the wheel: what is inside, what their checkers say, and that the wheel works alone.

They are built from a copy of the project's files, as a fresh clone has them. Optimisation is off:
how the modules are compiled does not matter here, how long it takes does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest

Run = Callable[..., CompletedProcess[str]]
MODULES = ["_batch", "_cache", "_connections", "_latency", "_memo"]
FAST = {"CFLAGS": "-O0"}
LINUX = sys.platform.startswith("linux")
pytestmark = [pytest.mark.compiled_only, pytest.mark.timeout(600)]

PROBE = """
import sys, sysconfig, os, importlib.util
assert sys.implementation.name == "cpython" and sys.version_info >= (3, 11)
assert importlib.util.find_spec("ensurepip")
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(sysconfig.get_config_var("EXT_SUFFIX"))
"""


def find_pythons() -> list[str]:
    """Return one usable interpreter (venv, headers) for each CPython >= 3.11 but this one.

    Looks on PATH and where pyenv keeps its versions.
    """
    found: dict[str, str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [str(path) for path in sorted(pyenv.glob("versions/*/bin/python"))]
    candidates += filter(None, (shutil.which(f"python3.{minor}") for minor in range(11, 20)))
    for candidate in candidates:
        try:
            done = subprocess.run(
                [candidate, "-c", PROBE], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), candidate)
    found.pop(sysconfig.get_config_var("EXT_SUFFIX"), None)
    return [found[suffix] for suffix in sorted(found)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "other_python" in metafunc.fixturenames:
        metafunc.parametrize("other_python", find_pythons())


class Built(NamedTuple):
    """What a build made."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def tree(copy_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, as a fresh clone has it."""
    return copy_project(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def built(run: Run, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree),
        env=FAST,
        timeout=500,
    )
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return Built(sdist, wheel)


def names_in(wheel: Path) -> list[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_wheel_holds_exactly_what_it_should(built: Built, root: Path) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    expected = {f"beastcore/{name}{suffix}" for name in MODULES}
    for folder in ("src", "python"):
        for path in (root / folder).rglob("*"):
            if path.suffix in {".py", ".pyi"} or path.name == "py.typed":
                expected.add(path.relative_to(root / folder).as_posix())
    info = next(name for name in names_in(built.wheel) if name.endswith("/METADATA")).split("/")[0]
    for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"):
        expected.add(f"{info}/{name}")
    expected.add(f"{info}/licenses/LICENSE")
    assert names_in(built.wheel) == sorted(expected)


def test_sdist_holds_what_a_build_and_a_test_need(built: Built, project_files: list[Path]) -> None:
    with tarfile.open(built.sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {
        path.as_posix()
        for path in project_files
        if path.parts[0] in {"src", "python", "tests"} or path.suffix == ".toml"
    }
    wanted |= {"setup.py", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO"}
    assert wanted - inside == set()
    made = {name for name in inside if name.endswith((".c", ".so", ".pyd", ".pyc"))}
    assert made - {path.as_posix() for path in project_files} == set()


def test_sdist_and_checkout_build_the_same_wheel(
    built: Built, run: Run, tree: Path, tmp_path: Path
) -> None:
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path)
    run(*command, tree, env=FAST, timeout=500)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == built.wheel.name
    assert names_in(wheel) == names_in(built.wheel)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(built.wheel) as other:
        for name in names_in(wheel):
            if not name.endswith(("RECORD", sysconfig.get_config_var("SHLIB_SUFFIX"))):
                assert one.read(name) == other.read(name), name


def test_metadata(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        (entry,) = (n for n in archive.namelist() if n.endswith("/entry_points.txt"))
        scripts = archive.read(entry).decode()
    assert metadata["Name"] == "beastcore"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    requires = metadata.get_all("Requires-Dist") or []
    assert [r for r in requires if "extra ==" not in r] == [], "the package needs nothing"
    extras = {"all", "cli", "dashboard", "firestore", "gateway", "metrics", "redis"}
    assert set(metadata.get_all("Provides-Extra") or []) == extras
    assert "beastmode = beastmode.__main__:main" in scripts


def test_twine_accepts_the_metadata(built: Built, run: Run) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel)


def test_check_wheel_contents(built: Built, run: Run, root: Path) -> None:
    run("check-wheel-contents", "--config", root / "pyproject.toml", built.wheel)


@pytest.mark.parametrize("stray", ["beastcore/_cache.pyx", "beastcore/_cache.c", "tests/x.py"])
def test_a_stray_file_is_caught(built: Built, root: Path, tmp_path: Path, stray: str) -> None:
    bad = tmp_path / built.wheel.name
    shutil.copy(built.wheel, bad)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(stray, "")
    with pytest.raises(AssertionError):
        test_wheel_holds_exactly_what_it_should(Built(built.sdist, bad), root)


@pytest.mark.skipif(not LINUX, reason="another operating system: auditwheel is for Linux")
def test_auditwheel_repairs_to_manylinux(built: Built, run: Run, tmp_path: Path) -> None:
    shown = run(sys.executable, "-m", "auditwheel", "show", built.wheel).stdout
    assert re.search(r"(many|musl)linux_\d+_\d+_\w+", shown), shown
    repair = (sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path)
    run(*repair, built.wheel)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.search(r"(many|musl)linux", wheel.name)
    # Nothing was grafted in: the modules need the C library alone.
    assert not [name for name in names_in(wheel) if ".libs/" in name]


def install_and_smoke(run: Run, python: str, wheel: Path, root: Path, folder: Path) -> None:
    """Install a wheel into an empty environment, away from the checkout, and use it."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(inside, *install, wheel, cwd=folder)
    shutil.copy(root / "tests" / "wheel" / "smoke.py", folder / "smoke.py")
    unset = ("PYTHONPATH", "BEASTCORE_TRACES")
    done = run(inside, "-I", "smoke.py", root, cwd=folder, unset=unset)
    assert "the wheel works" in done.stdout
    missing = run(inside, "-I", "-m", "beastmode", "demo", cwd=folder, unset=unset, ok=False)
    assert missing.returncode != 0
    assert 'pip install "beastcore[cli]"' in missing.stdout + missing.stderr
    assert "Traceback" not in missing.stderr


def test_wheel_works_in_an_empty_environment(
    built: Built, run: Run, root: Path, tmp_path: Path
) -> None:
    install_and_smoke(run, sys.executable, built.wheel, root, tmp_path / "empty")


@pytest.mark.timeout(1200)
def test_wheel_of_another_python(
    other_python: str, built: Built, run: Run, root: Path, tmp_path: Path
) -> None:
    """Build the sdist with each other CPython of this machine; use the wheel, test the engine."""
    run(other_python, "-m", "venv", tmp_path / "builder", cwd=tmp_path)
    builder = tmp_path / "builder" / "bin" / "python"
    install = (builder, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for job in ("demo", "pytest"):
        pins = root / "requirements" / f"{job}.txt"
        run(*install, "--require-hashes", "-r", pins, cwd=tmp_path)
    wheel = (builder, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*wheel, "--wheel-dir", tmp_path / "wheel", built.sdist, cwd=tmp_path, env=FAST, timeout=500)
    (made,) = (tmp_path / "wheel").glob("*.whl")
    install_and_smoke(run, other_python, made, root, tmp_path / "empty")

    shutil.unpack_archive(built.sdist, tmp_path / "sdist")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    shutil.rmtree(unpacked / "src")
    shutil.rmtree(unpacked / "python")
    run(*install, "--no-deps", "--no-index", made, cwd=tmp_path)
    suite = (builder, "-m", "pytest", "--quiet", "tests/engine", "tests/leaks", "tests/wheel")
    run(*suite, cwd=unpacked, timeout=1000, unset=("PYTHONPATH",))
