"""The installed packages pass the smoke test, run by itself in an isolated process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_smoke(tmp_path: Path) -> None:
    script = Path(__file__).with_name("smoke.py")
    done = subprocess.run(
        [sys.executable, "-I", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the wheel works" in done.stdout
