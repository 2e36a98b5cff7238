"""`./dev`, the one entrance: from a fresh clone, again, with something missing, two at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]
APT = "sudo apt install python3-venv python3-dev gcc libc6-dev"
TOOLS = ["sh", "dirname", "cat", "sed", "mkdir", "rm", "env", "uname"]
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="another operating system: ./dev is a POSIX script"
)

# What a Python without a package of Debian's looks like: found at start-up through PYTHONPATH.
LAME = {
    "ensurepip": """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "ensurepip" else real(name, *rest)
""",
    "Python.h": """
import sysconfig
real = sysconfig.get_path
sysconfig.get_path = lambda name, *r: "/nowhere" if name == "include" else real(name, *r)
""",
    "3.11 or newer": "import sys\nsys.version_info = (3, 10, 9, 'final', 0)\n",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder for PATH that holds a few basic tools, and no python3 and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    return folder


@pytest.fixture
def clone(copy_project: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of the project, as a fresh clone has it."""
    return copy_project(tmp_path / "clone")


def listing(folder: Path) -> list[tuple[str, int]]:
    """Return every file of a folder with the time of its last change."""
    return sorted(
        (str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*")
    )


def wrap_python(path: Path, start_up: str) -> None:
    """Put a python3 on `path` that runs `start_up` first."""
    site = path.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(start_up)
    script = path / "python3"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec "{BASE_PYTHON}" "$@"\n')
    script.chmod(0o755)


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_syntax(run: Run, root: Path, shell: str) -> None:
    if shutil.which(shell):  # sh is there always, and it is one of the others
        run(shell, "-n", root / "dev")


def test_it_can_be_executed(root: Path) -> None:
    assert os.access(root / "dev", os.X_OK)
    assert os.access(root / ".ci" / "run", os.X_OK)


def test_gate_syntax(run: Run, root: Path) -> None:
    if shutil.which("bash"):
        run("bash", "-n", root / ".ci" / "run")


def test_help_names_every_command(run: Run, root: Path) -> None:
    text = run(root / "dev", "help").stdout
    for command in ("demo", "test", "bench", "sanitize", "check", "build", "help"):
        assert f"\n  {command} " in text
    assert run(root / "dev").stdout == text


def test_unknown_command(run: Run, root: Path) -> None:
    done = run(root / "dev", "frobnicate", ok=False)
    assert done.returncode == 2
    assert "no command 'frobnicate'" in done.stderr


def test_unknown_job(run: Run, root: Path) -> None:
    done = run(root / "dev", "setup", "frobnicate", ok=False)
    assert done.returncode == 2
    assert "no job 'frobnicate'" in done.stderr


@pytest.mark.parametrize("command", ["demo", "test", "bench", "sanitize", "check", "build"])
def test_without_python(run: Run, clone: Path, path: Path, command: str) -> None:
    before = listing(clone)
    env = {"PATH": str(path)}
    done = run(clone / "dev", command, env=env, unset=("BEASTCORE_PYTHON",), ok=False)
    assert done.returncode == 2
    assert APT in done.stderr.splitlines()
    assert "no command python3" in done.stderr
    assert listing(clone) == before


def test_without_compiler(run: Run, clone: Path, path: Path) -> None:
    wrap_python(path, "")
    before = listing(clone)
    env = {"PATH": str(path)}
    done = run(clone / "dev", "test", env=env, unset=("BEASTCORE_PYTHON", "CC"), ok=False)
    assert done.returncode == 2
    assert APT in done.stderr.splitlines()
    assert "C compiler" in done.stderr
    assert listing(clone) == before


def test_without_c_library_headers(run: Run, clone: Path, path: Path) -> None:
    wrap_python(path, "")
    (path / "lamecc").write_text("#!/bin/sh\nexit 1\n")
    (path / "lamecc").chmod(0o755)
    env = {"PATH": str(path), "CC": "lamecc"}
    done = run(clone / "dev", "test", env=env, unset=("BEASTCORE_PYTHON",), ok=False)
    assert done.returncode == 2
    assert APT in done.stderr.splitlines()
    assert "libc6-dev" in done.stderr


@pytest.mark.parametrize("what", LAME)
def test_with_a_lame_python(run: Run, clone: Path, path: Path, what: str) -> None:
    wrap_python(path, LAME[what])
    before = listing(clone)
    env = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = run(clone / "dev", "demo", env=env, unset=("BEASTCORE_PYTHON",), ok=False)
    assert done.returncode == 2
    assert APT in done.stderr.splitlines()
    assert what in done.stderr
    assert listing(clone) == before


@pytest.fixture(scope="session")
def fresh(
    copy_project: Callable[[Path], Path], run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fresh clone in which two `./dev setup` were started at once, and which is now ready."""
    clone = copy_project(tmp_path_factory.mktemp("fresh clone"))  # a blank in its name, too
    env = os.environ | {"BEASTCORE_PYTHON": BASE_PYTHON, "CFLAGS": "-O0"}
    for name in ("BEASTCORE_PURE", "PYTHONPATH", "VIRTUAL_ENV"):
        env.pop(name, None)
    both = [
        subprocess.Popen(
            [clone / "dev", "setup", "demo"],
            cwd=clone.parent,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(texts)
    assert sum("making the virtual environment" in text for text in texts) == 1, texts
    return clone


@pytest.fixture
def again(fresh: Path, run: Run) -> Callable[..., CompletedProcess[str]]:
    """Run `./dev` in the clone that is set up."""

    def call(*words: str, **options: object) -> CompletedProcess[str]:
        env = {"BEASTCORE_PYTHON": BASE_PYTHON, "BEASTCORE_JOB": "demo", "CFLAGS": "-O0"}
        unset = ("PYTHONPATH", "VIRTUAL_ENV")
        return run(fresh / "dev", *words, cwd=fresh, env=env, unset=unset, **options)

    return call


IMPORTS = "import beastcore, beastmode, click; assert beastcore.compiled; print(beastcore.__file__)"


@pytest.mark.compiled_only
@pytest.mark.timeout(600)
def test_fresh_clone_is_set_up_by_two_at_once(fresh: Path, again: Run) -> None:
    done = again("run", "python", "-c", IMPORTS)
    assert done.stdout.strip() == str(fresh / "src" / "beastcore" / "__init__.py")


@pytest.mark.compiled_only
@pytest.mark.timeout(600)
def test_second_set_up_is_quick_and_does_nothing(fresh: Path, again: Run) -> None:
    before = listing(fresh / ".venv")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = again("setup", "demo")
        times.append(time.perf_counter() - start)
        assert (done.stdout, done.stderr) == ("", "")
    assert min(times) < 2.0
    assert listing(fresh / ".venv") == before


@pytest.mark.compiled_only
@pytest.mark.timeout(600)
def test_an_edited_pyx_is_rebuilt_and_alone(fresh: Path, again: Run) -> None:
    pyx = fresh / "src" / "beastcore" / "_latency.pyx"
    times = pyx.stat()
    text = pyx.read_text("utf-8")
    pyx.write_text(f'{text}\nEDITED = "yes"\n', encoding="utf-8")
    os.utime(pyx, ns=(times.st_atime_ns, times.st_mtime_ns))  # not the time decides, the content
    script = "import beastcore._latency as module; print(getattr(module, 'EDITED', 'no'))"
    done = again("run", "python", "-c", script)
    assert done.stdout.strip() == "yes"
    assert done.stderr.strip() == "dev: building the engine: _latency"
    pyx.write_text(text, encoding="utf-8")
    assert again("run", "python", "-c", script).stdout.strip() == "no"


@pytest.mark.compiled_only
@pytest.mark.timeout(600)
def test_a_failed_build_is_tried_again(fresh: Path, again: Run) -> None:
    pyx = fresh / "src" / "beastcore" / "_latency.pyx"
    text = pyx.read_text("utf-8")
    pyx.write_text(f"{text}\ncdef int broken(:\n", encoding="utf-8")
    try:
        for _ in range(2):
            done = again("setup", "demo", ok=False)
            assert done.returncode == 1
            assert "_latency.pyx" in done.stderr
    finally:
        pyx.write_text(text, encoding="utf-8")
    again("run", "python", "-c", IMPORTS)


@pytest.mark.compiled_only
@pytest.mark.timeout(600)
def test_pip_does_the_work_where_uv_cannot(fresh: Path, again: Run) -> None:
    uv = fresh / ".venv" / "bin" / "uv"
    uv.rename(uv.with_name("uv-away"))
    uv.write_text("#!/bin/sh\nexit 1\n")
    uv.chmod(0o755)
    try:
        (fresh / ".venv" / ".beastcore" / "demo").unlink()
        done = again("setup", "demo")
        assert "installing with pip" in done.stderr
    finally:
        uv.with_name("uv-away").replace(uv)
