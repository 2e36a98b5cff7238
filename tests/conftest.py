"""Fixtures of every test: the two twins of the engine, a clock, scripts in their own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from support import FakeClock, Twin

ROOT = Path(__file__).resolve().parent.parent
FAIL_ON_SKIP = os.environ.get("BEASTCORE_FAIL_ON_SKIP") == "1"
OTHER_SYSTEM = "another operating system"
"""A skip whose reason begins so concerns a system that this one is not; it never fails a run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-compiled",
        action="store_true",
        help="test the pure-Python engine only, where nothing was compiled",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    twins = ["compiled", "pure"]
    if metafunc.config.getoption("--no-compiled"):
        twins.remove("compiled")
    elif metafunc.definition.get_closest_marker("compiled_only"):
        twins.remove("pure")
    metafunc.parametrize("engine", twins, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--no-compiled"):
        dropped = [item for item in items if item.get_closest_marker("compiled_only")]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Twin]:
    """The engine under test, once compiled and once pure; after the test its objects `_check()`.

    The objects are held until then, so a test that watches them die carries
    `@pytest.mark.lifetime`, is recognised by its use of weakref, gc or getrefcount, or makes
    them with `engine.raw`.
    """
    code = getattr(request.function, "__code__", None)
    lifetime = request.node.get_closest_marker("lifetime") is not None
    watches = code is not None and _mentions(code, {"weakref", "gc", "getrefcount"})
    twin = Twin(compiled=request.param == "compiled", tracked=not (lifetime or watches))
    yield twin
    for obj in twin.objects():
        obj._check()


def _mentions(code: CodeType, names: set[str]) -> bool:
    """Tell whether a function, or one defined inside it, uses one of the global `names`."""
    return bool(names & set(code.co_names)) or any(
        _mentions(const, names) for const in code.co_consts if isinstance(const, CodeType)
    )


@pytest.fixture
def clock() -> FakeClock:
    """A timer that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def isolated() -> Callable[..., str]:
    """Run a script of tests/leaks/isolated in its own process; exit code 0 or the test fails."""

    def run(name: str, *args: Any, pure: bool = False, timeout: float = 60.0) -> str:
        folder = ROOT / "tests" / "leaks" / "isolated"
        script = folder / name
        environ = {key: value for key, value in os.environ.items() if key != "BEASTCORE_PURE"}
        if pure:
            environ["BEASTCORE_PURE"] = "1"
        paths = [str(ROOT / "tests"), str(folder), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        done = subprocess.run(
            [sys.executable, str(script), *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environ,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"{name} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    return run


def _forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Return the reason of a skip that this run does not allow."""
    if not (FAIL_ON_SKIP and report.skipped) or hasattr(report, "wasxfail"):
        return None
    longrepr = report.longrepr
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    reason = reason.removeprefix("Skipped: ")
    return None if reason.startswith(OTHER_SYSTEM) else reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    reason = _forbidden_skip(report)
    if reason is not None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which this run forbids: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    reason = _forbidden_skip(report)
    if reason is not None:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, which this run forbids: {reason}"
    return report
