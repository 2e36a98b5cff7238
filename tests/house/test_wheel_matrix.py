"""The wheels that the workflow builds are those of the committed list, platform by platform."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

EXPECTED = Path(__file__).parent / "wheel_matrix.txt"
ARCHS = {
    "linux": ["x86_64", "aarch64"],
    "macos": ["x86_64", "arm64"],
    "windows": ["AMD64", "ARM64"],
}


def expected(platform: str) -> list[str]:
    """Return the identifiers of a platform in the committed list."""
    marks = {"linux": "linux", "macos": "macosx", "windows": "-win"}
    lines = EXPECTED.read_text("utf-8").splitlines()
    return sorted(line for line in lines if marks[platform] in line and not line.startswith("#"))


@pytest.mark.parametrize("platform", ARCHS)
def test_identifiers(run: Callable[..., CompletedProcess[str]], root: Path, platform: str) -> None:
    done = run(
        *(sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"),
        *("--platform", platform, "--archs", ",".join(ARCHS[platform]), root),
    )
    assert sorted(done.stdout.split()) == expected(platform)


def test_the_list_holds_every_python_and_platform() -> None:
    names = [name for platform in ARCHS for name in expected(platform)]
    assert len(names) == len(set(names))
    assert {name.split("-")[0] for name in names} == {f"cp3{minor}" for minor in range(11, 16)}
    # Linux: manylinux and musllinux for two architectures; macOS and Windows: two each.
    assert [len(expected(platform)) for platform in ARCHS] == [20, 10, 10]


def test_the_workflow_builds_each_platform(root: Path) -> None:
    text = (root / ".github" / "workflows" / "wheels.yml").read_text("utf-8")
    rows = re.findall(r"\{ os: ([\w.-]+), platform: (\w+), arch: (\w+) \}", text)
    assert sorted((platform, arch) for _, platform, arch in rows) == sorted(
        (platform, arch) for platform, archs in ARCHS.items() for arch in archs
    )
    assert len({runner for runner, _, _ in rows}) == len(rows), "each runs on its own hardware"
