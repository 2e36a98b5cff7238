"""Leaks, each looked for in a process of its own; every public operation has its script run."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Twin

ISOLATED = Path(__file__).parent / "isolated"


def operations(script: str) -> list[str]:
    """Return the names in the `OPERATIONS` of a script without running it."""
    for node in ast.parse((ISOLATED / script).read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "OPERATIONS":
            assert isinstance(node.value, ast.Dict)
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    raise LookupError(f"{script} has no OPERATIONS")


@pytest.mark.parametrize("operation", operations("cache_leaks.py"))
def test_cache(engine: Twin, isolated: Callable[..., str], operation: str) -> None:
    isolated("cache_leaks.py", engine.name, operation, pure=not engine.compiled)


def test_a_leak_is_found(
    isolated: Callable[..., str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The script itself: an operation that keeps one list per call is called a leak."""
    source = (ISOLATED / "cache_leaks.py").read_text("utf-8")
    kept = '    "leaky": lambda: kept.append(Value()),\n'
    seeded = source.replace('    "construct": ', f'{kept}    "construct": ', 1)
    seeded = seeded.replace("clock = FakeClock()", "clock = FakeClock()\nkept: list[Any] = []", 1)
    script = tmp_path / "seeded.py"
    script.write_text(seeded, "utf-8")
    pure = bool(request.config.getoption("--no-compiled"))
    with pytest.raises(pytest.fail.Exception, match="leaky leaks"):
        isolated(str(script), "pure" if pure else "compiled", "leaky", pure=pure)


def test_the_end_of_a_process_is_silent(engine: Twin, isolated: Callable[..., str]) -> None:
    assert isolated("cache_exit.py", engine.name, pure=not engine.compiled) == ""
