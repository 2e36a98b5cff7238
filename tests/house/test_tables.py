"""The tables of docs/performance.md are those that the committed results give."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The generator, imported from the checkout."""
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    import benchmarks.tables

    return benchmarks.tables


def test_the_committed_tables_are_those_of_the_results(tables: Any) -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    results = json.loads(tables.RESULTS.read_text(encoding="utf-8"))
    assert page == tables.filled_page(page, results), "run: ./dev run python -m benchmarks.tables"


def test_a_changed_figure_is_seen(tables: Any) -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    results = json.loads(tables.RESULTS.read_text(encoding="utf-8"))
    results["results"][-1]["ns"] *= 2
    assert page != tables.filled_page(page, results)


def test_the_results_are_complete(tables: Any) -> None:
    results = json.loads(tables.RESULTS.read_text(encoding="utf-8"))
    assert {result["case"] for result in results["results"]} == set(tables.CASES)
    assert {row["operation"].split(".")[0].split(" ")[0] for row in results["twin"]} >= {
        "Cache",
        "BatchBuffer",
        "ConnectionTable",
        "LatencyHistogram",
    }
    assert results["missing"] == []
    assert {"cpu", "cores", "python"} <= set(results["machine"])
    assert {"cachetools", "cachebox", "lru-dict", "moka-py", "theine"} <= set(results["versions"])


def test_a_page_without_its_markers_is_refused(tables: Any) -> None:
    with pytest.raises(ValueError, match=r"performance\.md must hold, once and in this order"):
        tables.filled_page("no markers", {})
