"""Every allocation of every public operation fails once; a process each, as the hook is global."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ENGINE_NAMES, Twin

ISOLATED = Path(__file__).parent / "isolated"
pytestmark = pytest.mark.compiled_only


def cases(script: str) -> list[str]:
    """Return the first item of each row of a script's CASES without running it."""
    for node in ast.parse((ISOLATED / script).read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CASES":
            assert isinstance(node.value, ast.List)
            return [ast.literal_eval(row.elts[0]) for row in node.value.elts]  # type: ignore[attr-defined]
    raise LookupError(f"{script} has no CASES")


@pytest.mark.parametrize(
    ("script", "fewest"), [("cache_nomemory.py", 150), ("engine_nomemory.py", 1000)]
)
def test_every_allocation_may_fail(
    engine: Twin, isolated: Callable[..., str], script: str, fewest: int
) -> None:
    lines = isolated(script, timeout=110).splitlines()
    assert [line.rsplit(": ", 1)[0] for line in lines] == cases(script)
    assert sum(int(line.rsplit(": ", 1)[1]) for line in lines) > fewest


@pytest.mark.parametrize("name", ["BatchBuffer", "ConnectionTable", "LatencyHistogram"])
def test_no_operation_is_left_out(engine: Twin, name: str) -> None:
    public = {n for n in dir(getattr(engine.raw, name)) if not n.startswith("_")}
    constants = {n for n in public if n.isupper()}
    tried = {case.split(" ")[0].removeprefix(f"{name}.") for case in cases("engine_nomemory.py")}
    shown = {"sum", "min", "max", "mean"}  # in the row of LatencyHistogram.count
    assert public - constants - tried - shown - {"timer"} == set()


def test_every_class_has_its_rows() -> None:
    rows = [*cases("engine_nomemory.py"), "Cache", "Conn"]
    assert all(any(row.startswith(name) for row in rows) for name in ENGINE_NAMES)


def test_no_operation_of_the_cache_is_left_out(engine: Twin) -> None:
    rows = " ".join(cases("cache_nomemory.py"))
    public = {n for n in dir(engine.raw.Cache) if not n.startswith("_")}
    properties = {"maxsize", "ttl", "policy", "slack", "weight", "max_weight", "timer"}
    properties.add("reset_stats")
    assert [name for name in sorted(public - properties) if name not in rows] == []
