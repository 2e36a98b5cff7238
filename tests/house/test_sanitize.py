"""The fast part of `./dev sanitize`: the engine under memory checkers, on what provokes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]


@pytest.mark.compiled_only
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="another operating system: no libasan to preload"
)
@pytest.mark.timeout(900)
def test_the_engine_under_sanitizers(run: Run, root: Path) -> None:
    done = run(sys.executable, root / "tests" / "sanitize", "--fast", ok=False, timeout=880)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert "asan: passed" in done.stdout


def test_an_unknown_step(run: Run, root: Path) -> None:
    done = run(sys.executable, root / "tests" / "sanitize", "frobnicate", ok=False)
    assert done.returncode == 2
    assert "no step 'frobnicate'" in done.stderr
