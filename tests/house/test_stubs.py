"""The stubs say what the compiled modules are (mypy's stubtest), one .pyi per .pyx."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ALLOWED = Path(__file__).parent / "stubtest-allowed.txt"
pytestmark = pytest.mark.compiled_only


def test_every_extension_has_a_stub(root: Path) -> None:
    engine = root / "src" / "beastcore"
    assert {p.stem for p in engine.glob("*.pyx")} == {p.stem for p in engine.glob("*.pyi")}


def test_stubs_match_the_modules(run: Callable[..., object], root: Path) -> None:
    # The folder decides what mypy reads and what Python imports: the checkout for both.
    path = f"{root / 'src'}:{root / 'python'}"
    run(
        *(sys.executable, "-m", "mypy.stubtest", "beastcore", "--allowlist", ALLOWED),
        env={"MYPYPATH": path.replace(":", ":" if sys.platform != "win32" else ";")},
        timeout=110,
    )


def test_a_wrong_stub_is_caught(run: Callable[..., object], root: Path, tmp_path: Path) -> None:
    for path in (root / "src" / "beastcore").rglob("*.py*"):
        if path.suffix in {".py", ".pyi", ".typed"} and "__pycache__" not in path.parts:
            target = tmp_path / path.relative_to(root / "src")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    with (tmp_path / "beastcore" / "_latency.pyi").open("a") as stub:
        stub.write("\nclass Ghost:\n    def haunt(self) -> None: ...\n")
    done = run(
        *(sys.executable, "-m", "mypy.stubtest", "beastcore._latency", "--allowlist", ALLOWED),
        "--ignore-unused-allowlist",
        env={"MYPYPATH": str(tmp_path)},
        ok=False,
        timeout=110,
    )
    assert done.returncode != 0
    assert "Ghost" in done.stdout
