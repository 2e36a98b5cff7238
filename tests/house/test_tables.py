"""The tables of the README and of docs/ are those that the committed results give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def tables(benchmark_module: Callable[[str], Any]) -> Any:
    """The generator, imported from the checkout."""
    return benchmark_module("tables")


def test_the_committed_tables_are_those_of_the_results(tables: Any) -> None:
    for path, (before, now) in tables.renewed().items():
        assert before == now, f"{path.name}: run ./dev run python -m benchmarks.tables"


def test_every_program_has_tables(tables: Any, benchmark_module: Callable[[str], Any]) -> None:
    programs = benchmark_module("__init__").PROGRAMS
    assert {section.program for section in tables.SECTIONS} == set(programs)
    assert {path.stem for path in tables.RESULTS.glob("*.json")} == set(programs)


def test_a_changed_figure_is_seen(tables: Any) -> None:
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "compare": lambda results: results["results"][-1].update(ns=12345.0),
        "bars": lambda results: [row.update(ratio=123.0) for row in results["rows"]],
        "memory": lambda results: results["held"][0].update(bytes=1234.5),
        "worst": lambda results: results["rows"][0].update(worst_us=12345.0),
        "flood": lambda results: results["rows"][0].update(ns=12345.0),
        "firestore": lambda results: results["parts"]["latency"]["found"]["sync"].update(
            hit_us=99.9
        ),
        "hitrate": lambda results: results["summary"][-1]["standing"][0].update(mean=99.9),
    }
    for section in tables.SECTIONS:
        page = (tables.ROOT / section.page).read_text(encoding="utf-8")
        results = section.results()
        changes[section.program](results)
        assert page != section.filled(page, results), section.name


def test_the_comparison_is_complete(tables: Any) -> None:
    section = next(section for section in tables.SECTIONS if section.name == "compare")
    results = section.results()
    assert {result["case"] for result in results["results"]} == set(tables.compare.CASES)
    assert {row["operation"].split(".")[0].split(" ")[0] for row in results["twin"]} >= {
        "Cache",
        "BatchBuffer",
        "ConnectionTable",
        "LatencyHistogram",
    }


def test_the_results_are_complete(tables: Any) -> None:
    for section in tables.SECTIONS:
        results = section.results()
        assert results.get("missing", []) == [], section.name
        assert {"cpu", "cores", "python"} <= set(results["machine"])
        assert set(results["versions"]) >= {
            "cachetools",
            "cachebox",
            "lru-dict",
            "moka-py",
            "theine",
        }


def test_every_row_of_the_targets_was_measured(tables: Any) -> None:
    bars = tables.bars
    rows = {(row["row"], row["size"]) for row in section_named(tables, "bars").results()["rows"]}
    slack = {row.title for row in bars.ROWS if row.contender == bars.LRU_0}
    wanted = {(row.title, size) for row in bars.ROWS for size in bars.sizes_of(row.case)}
    assert {(title, size) for title, size in wanted if title not in slack} <= rows
    assert rows <= wanted


def test_the_hit_ratios_agree_with_the_reference(tables: Any) -> None:
    results = section_named(tables, "hitrate").results()
    assert results["whole_reference"]
    assert results["differs"] == []
    theine = [cell for cell in results["cells"] if "theine" in cell["measured"]]
    assert len(theine) >= 40


def section_named(tables: Any, name: str) -> Any:
    return next(section for section in tables.SECTIONS if section.name == name)


def test_a_page_without_its_markers_is_refused(tables: Any) -> None:
    section = section_named(tables, "bars")
    with pytest.raises(ValueError, match=r"performance\.md must hold, once and in this order"):
        section.filled("no markers", {})
