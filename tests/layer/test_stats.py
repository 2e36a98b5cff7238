"""The seven key figures: formulas, ratings at their thresholds, what is not yet known."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beastcore import LatencyHistogram
from beastmode.cost import MeterReport, Prices, Units, Usage
from beastmode.stats import (
    NOT_YET_KNOWN,
    LatencySummary,
    Measurements,
    PerformanceStats,
    rate_efficiency,
    rate_hit_rate,
    rate_response_time,
    rate_utilisation,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kpis.md"


def report(baseline: int, actual: int, baseline_calls: int = 0, calls: int = 0) -> MeterReport:
    return MeterReport(Usage(Units(reads=baseline), baseline_calls), Usage(Units(actual), calls))


def measured(**changes: Any) -> Measurements:
    """Ten seconds of a system that does well; `changes` replace parts of it."""
    values: dict[str, Any] = {
        "window_s": 10.0,
        "target_response_ms": 10.0,
        "memory_limit_bytes": 2**30,
        "latency": LatencySummary(
            count=1000, mean_ms=2.0, p50_ms=1.0, p95_ms=4.0, p99_ms=8.0, max_ms=9.0
        ),
        "requests": 1000,
        "errors": 0,
        "reads": 1000,
        "reads_without_store": 960,
        "active_connections": 60,
        "max_connections": 100,
        "memory_bytes": 2**28,
        "cost": report(1000, 40, 900, 30),
    }
    return Measurements(**{**values, **changes})


def stats(**changes: Any) -> PerformanceStats:
    return PerformanceStats.compute(measured(**changes))


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


# -- ratings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean_ms", "rating"),
    [
        (0.0, "excellent"), (10.0, "excellent"), (above(10.0), "good"), (50.0, "good"),
        (above(50.0), "fair"), (100.0, "fair"), (above(100.0), "needs improvement"),
        (1e9, "needs improvement"),
    ],
)  # fmt: skip
def test_rating_of_the_response_time(mean_ms: float, rating: str) -> None:
    assert rate_response_time(mean_ms) == rating


@pytest.mark.parametrize(
    ("share", "rating"),
    [
        (1.0, "excellent"), (0.95, "excellent"), (below(0.95), "good"), (0.80, "good"),
        (below(0.80), "fair"), (0.60, "fair"), (below(0.60), "needs improvement"),
        (0.0, "needs improvement"),
    ],
)  # fmt: skip
def test_rating_of_the_hit_rate(share: float, rating: str) -> None:
    assert rate_hit_rate(share) == rating


@pytest.mark.parametrize(
    ("share", "rating"),
    [
        (0.0, "idle"), (below(0.20), "idle"), (0.20, "fair"), (below(0.30), "fair"),
        (0.30, "good"), (below(0.50), "good"), (0.50, "excellent"), (0.80, "excellent"),
        (above(0.80), "good"), (0.90, "good"), (above(0.90), "fair"), (0.95, "fair"),
        (above(0.95), "needs improvement"), (1.0, "needs improvement"),
    ],
)  # fmt: skip
def test_rating_of_the_utilisation(share: float, rating: str) -> None:
    assert rate_utilisation(share) == rating


@pytest.mark.parametrize(
    ("share", "rating"),
    [
        (1.0, "excellent"), (0.90, "excellent"), (below(0.90), "good"), (0.70, "good"),
        (below(0.70), "fair"), (0.50, "fair"), (below(0.50), "needs improvement"),
        (0.0, "needs improvement"),
    ],
)  # fmt: skip
def test_rating_of_the_efficiency(share: float, rating: str) -> None:
    assert rate_efficiency(share) == rating


@pytest.mark.parametrize(("hits", "reads"), [(19, 20), (95, 100), (950_000, 1_000_000)])
def test_exactly_95_percent_counted_in_reads_is_excellent(hits: int, reads: int) -> None:
    assert stats(reads=reads, reads_without_store=hits).hit_rate.rating == "excellent"
    assert stats(reads=reads, reads_without_store=hits - 1).hit_rate.rating == "good"


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_a_longer_response_time_is_never_rated_better(a: float, b: float) -> None:
    order = ["excellent", "good", "fair", "needs improvement"]
    low, high = sorted((a, b))
    assert order.index(rate_response_time(low)) <= order.index(rate_response_time(high))


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_is_never_rated_worse(a: float, b: float) -> None:
    order = ["needs improvement", "fair", "good", "excellent"]
    low, high = sorted((a, b))
    for rate in (rate_hit_rate, rate_efficiency):
        assert order.index(rate(low)) <= order.index(rate(high))


# -- formulas -------------------------------------------------------------------------------------


def test_all_seven_figures() -> None:
    figures = stats(prices=Prices())
    values = {name: kpi.value for name, kpi in figures.kpis.items()}
    assert values == {
        "response_time": 2.0,
        "throughput": 100.0,
        "hit_rate": 0.96,
        "connection_utilisation": 0.6,
        "memory": 2**28,
        "cost_reduction": 0.96,
        "overall_efficiency": pytest.approx((0.96 * 0.96) ** 0.25),
    }
    ratings = {name: kpi.rating for name, kpi in figures.kpis.items()}
    assert ratings == {
        "response_time": "excellent",
        "throughput": None,
        "hit_rate": "excellent",
        "connection_utilisation": "excellent",
        "memory": None,
        "cost_reduction": None,
        "overall_efficiency": "excellent",
    }
    assert figures.response_time.detail["p99_ms"] == 8.0
    assert figures.memory.detail == {"limit_bytes": 2**30, "share_of_limit_ratio": 0.25}
    assert figures.cost_reduction.detail == {
        "units": 40,
        "possible_units": 0,
        "baseline_units": 1000,
        "calls": 30,
        "baseline_calls": 900,
        "calls_saved_ratio": pytest.approx(1 - 30 / 900),
        "listener_units": 0,
        "marker_units": 0,
        "auditor_units": 0,
        "probe_units": 0,
        "cost": pytest.approx(40 * 0.06 / 100_000),
        "baseline_cost": pytest.approx(1000 * 0.06 / 100_000),
        "currency": "USD",
    }


def test_what_may_have_been_billed_is_taken_for_billed() -> None:
    cost = MeterReport(
        Usage(Units(reads=100), 100), Usage(Units(reads=40), 40), possibly_billed=Units(reads=10)
    )
    figure = stats(cost=cost).cost_reduction
    assert figure.value == 0.5
    assert (figure.detail["units"], figure.detail["possible_units"]) == (40, 10)


def test_fewer_calls_are_not_a_lower_cost() -> None:
    """500 writes in one commit: one call instead of 500, and the same 500 units."""
    cost = MeterReport(Usage(Units(writes=500), 500), Usage(Units(writes=500), 1))
    figure = stats(cost=cost).cost_reduction
    assert figure.value == 0.0
    assert figure.detail["calls_saved_ratio"] == pytest.approx(0.998)


def test_efficiency_is_the_geometric_mean_of_four_shares() -> None:
    figure = stats(
        target_response_ms=1.0,  # mean 2 ms: 0.5
        reads_without_store=800,  # 0.8
        cost=report(1000, 400),  # 0.6
        errors=100,  # 0.9
    ).overall_efficiency
    assert figure.value == pytest.approx((0.5 * 0.8 * 0.6 * 0.9) ** 0.25)
    assert figure.rating == "fair"
    assert list(figure.detail.values()) == pytest.approx([0.5, 0.8, 0.6, 0.9, 1.0])


def test_a_higher_bill_than_the_baseline_is_shown_and_counts_as_zero_efficiency() -> None:
    figures = stats(cost=report(1000, 1200))
    assert figures.cost_reduction.value == pytest.approx(-0.2)
    assert figures.cost_reduction.text == "-20.0 %"
    assert figures.overall_efficiency.value == 0.0
    assert figures.overall_efficiency.rating == "needs improvement"


def test_more_connections_than_a_lowered_maximum_need_improvement() -> None:
    figure = stats(active_connections=150).connection_utilisation
    assert (figure.value, figure.rating) == (1.5, "needs improvement")


def test_no_connection_of_a_tracked_table_is_idle() -> None:
    figure = stats(active_connections=0).connection_utilisation
    assert (figure.value, figure.rating, figure.text) == (0.0, "idle", "0.0 %")


def test_a_part_counted_a_little_ahead_of_its_whole_is_all_of_it() -> None:
    figures = stats(reads=10, reads_without_store=11, requests=5, errors=6)
    assert figures.hit_rate.value == 1.0
    assert figures.overall_efficiency.value == 0.0


def test_the_summary_of_a_real_histogram() -> None:
    histogram = LatencyHistogram()
    assert LatencySummary.of(histogram) == LatencySummary()
    for milliseconds in range(1, 101):
        histogram.record(milliseconds * 1_000_000)
    summary = LatencySummary.of(histogram)
    assert (summary.count, summary.max_ms) == (100, 100.0)
    assert summary.mean_ms == pytest.approx(50.5, rel=0.008)
    assert summary.p50_ms == pytest.approx(50, rel=0.008)
    assert summary.p95_ms == pytest.approx(95, rel=0.008)
    assert summary.p99_ms == pytest.approx(99, rel=0.008)


# -- what is not known ----------------------------------------------------------------------------


def test_nothing_measured_is_not_yet_known() -> None:
    empty = Measurements(window_s=0, target_response_ms=10, memory_limit_bytes=2**30)
    figures = PerformanceStats.compute(empty)
    for kpi in figures.kpis.values():
        assert (kpi.value, kpi.rating, kpi.text) == (None, None, NOT_YET_KNOWN)
    assert {row.value for row in figures.rows()} == {NOT_YET_KNOWN}
    assert "p50 not yet known" in figures.rows()[0].detail


@pytest.mark.parametrize(
    "changes",
    [
        {"latency": LatencySummary()},
        {"reads": 0, "reads_without_store": 0},
        {"cost": MeterReport()},
        {"requests": 0},
    ],
)
def test_efficiency_is_unknown_while_any_part_is(changes: dict[str, Any]) -> None:
    figure = stats(**changes).overall_efficiency
    assert (figure.value, figure.rating) == (None, None)


def test_unknown_memory_and_connections_do_not_hide_the_efficiency() -> None:
    figures = stats(memory_bytes=None, active_connections=None)
    assert figures.memory.text == NOT_YET_KNOWN
    assert figures.connection_utilisation.text == NOT_YET_KNOWN
    assert figures.overall_efficiency.value is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"window_s": -1.0}, "window_s must be zero or positive and finite, got -1.0"),
        ({"window_s": math.nan}, "window_s .* got nan"),
        ({"reads": -3}, "reads must be zero or positive and finite, got -3"),
        ({"target_response_ms": math.inf}, "target_response_ms .* got inf"),
        ({"memory_bytes": -1}, "memory_bytes"),
    ],
)
def test_impossible_measurements_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        measured(**changes)
    with pytest.raises(ValueError, match="mean_ms must be zero or positive and finite, got -0.5"):
        LatencySummary(mean_ms=-0.5)


# -- what is handed out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"reads": 10_000, "reads_without_store": 9_999}, "hit_rate", "99.9 %"),
        ({"reads": 100_000, "reads_without_store": 99_999}, "hit_rate", "99.9 %"),
        ({"reads": 10, "reads_without_store": 10}, "hit_rate", "100.0 %"),
        ({"reads": 1000, "reads_without_store": 949}, "hit_rate", "94.9 %"),
        ({"reads": 100, "reads_without_store": 57}, "hit_rate", "57.0 %"),
        ({"requests": 12_345_678}, "throughput", "1,234,568 requests/s"),
        ({"requests": 15}, "throughput", "1.50 requests/s"),
        ({"latency": LatencySummary(count=1, mean_ms=0.000412)}, "response_time", "0.000412 ms"),
        ({"latency": LatencySummary(count=1, mean_ms=3.14159)}, "response_time", "3.14 ms"),
        ({"memory_bytes": 3 * 2**19}, "memory", "1.5 MiB"),
    ],
)
def test_values_as_people_read_them(changes: dict[str, Any], name: str, text: str) -> None:
    assert stats(**changes).kpis[name].text == text


def test_rows_have_everything_as_text() -> None:
    rows = stats(prices=Prices(currency="EUR")).rows()
    assert [row.title for row in rows] == [
        "Response time",
        "Throughput",
        "Hit rate",
        "Connection utilisation",
        "Memory",
        "Cost reduction",
        "Overall efficiency",
    ]
    assert rows[0][1:] == (
        "2 ms",
        "excellent",
        "p50 1 ms, p95 4 ms, p99 8 ms, max 9 ms, requests 1,000",
    )
    assert "currency EUR" in rows[5].detail


def test_snapshots_are_frozen() -> None:
    figures = stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.hit_rate = figures.memory
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.hit_rate.value = 1.0
    figures.hit_rate.detail["reads"] = 0
    assert figures.hit_rate.detail["reads"] == 1000


COUNTS = st.integers(0, 10**30)
TIMES = st.none() | st.floats(0, allow_nan=False, allow_infinity=False)


@given(
    window_s=st.floats(0, 1e9),
    target=st.floats(1e-6, 1e9),
    latency=st.builds(LatencySummary, count=COUNTS, mean_ms=TIMES, p50_ms=TIMES, max_ms=TIMES),
    counts=st.lists(COUNTS, min_size=8, max_size=8),
    connections=st.tuples(st.none() | COUNTS, st.none() | COUNTS),
    memory=st.none() | COUNTS,
)
def test_any_measurement_gives_sound_figures(
    window_s: float,
    target: float,
    latency: LatencySummary,
    counts: list[int],
    connections: tuple[int | None, int | None],
    memory: int | None,
) -> None:
    figures = PerformanceStats.compute(
        Measurements(
            window_s=window_s,
            target_response_ms=target,
            memory_limit_bytes=2**30,
            latency=latency,
            requests=counts[0],
            errors=counts[1],
            reads=counts[2],
            reads_without_store=counts[3],
            active_connections=connections[0],
            max_connections=connections[1],
            memory_bytes=memory,
            cost=report(*counts[4:]),
            prices=Prices(),
        )
    )
    text = json.dumps(figures.to_dict(), allow_nan=False)
    assert set(json.loads(text)) == {"window_s", *figures.kpis}
    for kpi in figures.kpis.values():
        assert (kpi.value is None) == (kpi.text == NOT_YET_KNOWN)
        assert kpi.value is not None or kpi.rating is None
    for share in (figures.hit_rate.value, figures.overall_efficiency.value):
        assert share is None or 0.0 <= share <= 1.0
    for row in figures.rows():
        assert all(isinstance(cell, str) for cell in row)
    parts = list(figures.overall_efficiency.detail.values())[:4]
    assert (figures.overall_efficiency.value is None) == (None in parts)


def test_the_documentation_names_every_figure_and_threshold() -> None:
    text = re.sub(r"\s+", " ", DOCUMENT.read_text(encoding="utf-8"))
    for row in stats().rows():
        assert f"## {row.title}" in text, row.title
    for words in ("not yet known", "10 ms", "50 ms", "100 ms", "95 %", "80 %", "60 %", "'idle'"):
        assert words in text, words
