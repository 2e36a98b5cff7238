"""`python -m beastmode`: the way in, and what it says where a library is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def without(module: str) -> subprocess.CompletedProcess[str]:
    """Run the program where `import module` fails as if it were not installed."""
    return python(
        "-c",
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['beastmode', 'config']\n"
        "from beastmode.__main__ import main\n"
        "sys.exit(main())",
    )


def test_it_runs_as_a_module() -> None:
    done = python("-m", "beastmode", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("beastmode ")


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_its_libraries_it_names_the_extra(library: str) -> None:
    done = without(library)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f'{library} is not installed; it comes with: pip install "beastcore[cli]"\n'
    )


def test_a_module_of_its_own_that_is_missing_is_no_missing_extra() -> None:
    done = without("beastmode.demo")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr
