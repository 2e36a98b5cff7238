"""The seven key figures (KPIs) as frozen snapshots: formulas and ratings, no I/O, no clock.

`PerformanceStats.compute(measurements)` turns raw counters into figures. docs/kpis.md states each
formula and rating for readers. Two rules hold throughout:

1. What nothing was measured of is None and shown as 'not yet known', never as 0 or 100 %.
2. A value exactly on a threshold gets the better rating.

Shares are ratios from 0 to 1; they are shown in percent, rounded down, so that 100 % is shown
only when nothing is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, Protocol

from beastmode.cost import MeterReport, Prices, reduction

__all__ = [
    "NOT_YET_KNOWN",
    "Histogram",
    "Kpi",
    "KpiRow",
    "LatencySummary",
    "Measurements",
    "PerformanceStats",
    "Rating",
    "rate_efficiency",
    "rate_hit_rate",
    "rate_response_time",
    "rate_utilisation",
]

Rating = Literal["excellent", "good", "fair", "needs improvement", "idle"]
Scalar = float | int | str | None

NOT_YET_KNOWN: Final = "not yet known"
"""How a figure is shown that nothing was measured of."""

_GRADES: Final[tuple[Rating, ...]] = ("excellent", "good", "fair")
_RESPONSE_MS: Final = (-10.0, -50.0, -100.0)  # negated: less is better
_HIT_RATE: Final = (0.95, 0.80, 0.60)
_UTILISATION: Final = ((0.50, 0.80), (0.30, 0.90), (0.20, 0.95))
_EFFICIENCY: Final = (0.90, 0.70, 0.50)


def rate_response_time(mean_ms: float) -> Rating:
    """Rate a mean response time: up to 10, 50 and 100 ms."""
    return _rate(-mean_ms, _RESPONSE_MS)


def rate_hit_rate(share: float) -> Rating:
    """Rate a hit rate: at least 95, 80 and 60 %."""
    return _rate(share, _HIT_RATE)


def rate_efficiency(share: float) -> Rating:
    """Rate the overall efficiency: at least 90, 70 and 50 %."""
    return _rate(share, _EFFICIENCY)


def rate_utilisation(share: float) -> Rating:
    """Rate used connections: 50 to 80, else 30 to 90, else 20 to 95 %; below that 'idle'."""
    for grade, (low, high) in zip(_GRADES, _UTILISATION, strict=True):
        if low <= share <= high:
            return grade
    return "idle" if share < _UTILISATION[-1][0] else "needs improvement"


def _rate(value: float, limits: tuple[float, ...]) -> Rating:
    for grade, limit in zip(_GRADES, limits, strict=True):
        if value >= limit:
            return grade
    return "needs improvement"


class Histogram(Protocol):
    """What is asked of a `beastcore.LatencyHistogram`: nanoseconds, None while it is empty."""

    @property
    def count(self) -> int:
        """Values recorded."""
        ...

    @property
    def mean(self) -> float | None:
        """Their mean."""
        ...

    @property
    def max(self) -> int | None:
        """The largest of them."""
        ...

    def percentile(self, p: float, /) -> float | None:
        """Return the value that `p` percent of them do not exceed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Response times in milliseconds; None where nothing was recorded."""

    count: int = 0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)

    @classmethod
    def of(cls, histogram: Histogram) -> LatencySummary:
        """Return the summary of a `beastcore.LatencyHistogram`, which records nanoseconds."""
        return cls(
            count=histogram.count,
            mean_ms=_ms(histogram.mean),
            p50_ms=_ms(histogram.percentile(50)),
            p95_ms=_ms(histogram.percentile(95)),
            p99_ms=_ms(histogram.percentile(99)),
            max_ms=_ms(histogram.max),
        )


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What the figures are computed from: counters of one window of time, and present states.

    Counters may be read one after another while requests run; where one that is part of another
    is a little ahead, the share counts as 1.
    """

    window_s: float
    """Length of the window."""
    target_response_ms: float
    memory_limit_bytes: int
    latency: LatencySummary = field(default_factory=LatencySummary)
    """Response times of all requests of the window."""
    requests: int = 0
    """Requests answered, those that failed included."""
    errors: int = 0
    """Requests that failed."""
    reads: int = 0
    """Documents asked for."""
    reads_without_store: int = 0
    """Those answered without a read of the store."""
    active_connections: int | None = None
    """Connections now; None where connections are not tracked, or there never was one."""
    max_connections: int | None = None
    memory_bytes: int | None = None
    """Resident memory of the process now; None where it cannot be found out."""
    cost: MeterReport = field(default_factory=MeterReport)
    """Units and calls of the window."""
    prices: Prices | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)


def _check_numbers(values: LatencySummary | Measurements) -> None:
    for item in fields(values):
        value = getattr(values, item.name)
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{item.name} must be zero or positive and finite, got {value!r}")


@dataclass(frozen=True, slots=True)
class Kpi:
    """One figure. `value` is in `unit` ('ratio': 0 to 1); None is 'not yet known'."""

    title: str
    value: float | None
    unit: str
    rating: Rating | None = None
    """None: not rated, or not yet known."""
    measured: tuple[tuple[str, Scalar], ...] = ()
    """What it was computed from, as pairs of name (with unit) and value."""

    @property
    def detail(self) -> dict[str, Scalar]:
        """`measured` as a new dict."""
        return dict(self.measured)

    @property
    def text(self) -> str:
        """The value as people read it."""
        return _show(self.value, self.unit)

    def to_dict(self) -> dict[str, Any]:
        """Return it fit for JSON: value, unit, rating, text, detail."""
        return {
            "value": self.value,
            "unit": self.unit,
            "rating": self.rating,
            "text": self.text,
            "detail": self.detail,
        }


class KpiRow(NamedTuple):
    """One line of a table of figures, ready to print."""

    title: str
    value: str
    rating: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceStats:
    """The seven figures of one window of time."""

    window_s: float
    response_time: Kpi
    throughput: Kpi
    hit_rate: Kpi
    connection_utilisation: Kpi
    memory: Kpi
    cost_reduction: Kpi
    overall_efficiency: Kpi

    @classmethod
    def compute(cls, measured: Measurements) -> PerformanceStats:
        """Return the figures; a pure function of `measured`."""
        hit_rate = _hit_rate(measured)
        cost_reduction = _cost_reduction(measured)
        return cls(
            window_s=measured.window_s,
            response_time=_response_time(measured),
            throughput=_throughput(measured),
            hit_rate=hit_rate,
            connection_utilisation=_utilisation(measured),
            memory=_memory(measured),
            cost_reduction=cost_reduction,
            overall_efficiency=_efficiency(measured, hit_rate.value, cost_reduction.value),
        )

    @property
    def kpis(self) -> dict[str, Kpi]:
        """The seven figures by name, in the order of declaration."""
        return {item.name: getattr(self, item.name) for item in fields(self)[1:]}

    def to_dict(self) -> dict[str, Any]:
        """Return everything fit for JSON: no NaN, no infinity, None for what is not known."""
        figures = {name: kpi.to_dict() for name, kpi in self.kpis.items()}
        return {"window_s": self.window_s, **figures}

    def rows(self) -> list[KpiRow]:
        """Return the figures as text, one row each."""
        return [
            KpiRow(
                kpi.title,
                kpi.text,
                kpi.rating or "",
                ", ".join(_label(name, value) for name, value in kpi.measured),
            )
            for kpi in self.kpis.values()
        ]


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None


def _response_time(m: Measurements) -> Kpi:
    mean = m.latency.mean_ms
    return Kpi(
        "Response time",
        mean,
        "ms",
        None if mean is None else rate_response_time(mean),
        (
            ("p50_ms", m.latency.p50_ms),
            ("p95_ms", m.latency.p95_ms),
            ("p99_ms", m.latency.p99_ms),
            ("max_ms", m.latency.max_ms),
            ("requests", m.latency.count),
        ),
    )


def _throughput(m: Measurements) -> Kpi:
    known = m.requests > 0 and m.window_s > 1e-9  # no clock measures less
    rate = m.requests / m.window_s if known else None
    measured = (("requests", m.requests), ("window_s", m.window_s))
    return Kpi("Throughput", rate, "requests/s", measured=measured)


def _hit_rate(m: Measurements) -> Kpi:
    share = _share(m.reads_without_store, m.reads)
    return Kpi(
        "Hit rate",
        share,
        "ratio",
        None if share is None else rate_hit_rate(share),
        (("reads_without_store", m.reads_without_store), ("reads", m.reads)),
    )


def _utilisation(m: Measurements) -> Kpi:
    share = None
    if m.active_connections is not None and m.max_connections:
        # More than the maximum can be held after it was lowered: not clamped.
        share = m.active_connections / m.max_connections
    return Kpi(
        "Connection utilisation",
        share,
        "ratio",
        None if share is None else rate_utilisation(share),
        (("active", m.active_connections), ("maximum", m.max_connections)),
    )


def _memory(m: Measurements) -> Kpi:
    share = None
    if m.memory_bytes is not None and m.memory_limit_bytes:
        share = m.memory_bytes / m.memory_limit_bytes
    return Kpi(
        "Memory",
        m.memory_bytes,
        "bytes",
        measured=(("limit_bytes", m.memory_limit_bytes), ("share_of_limit_ratio", share)),
    )


def _cost_reduction(m: Measurements) -> Kpi:
    baseline, actual = m.cost.baseline, m.cost.actual
    most = actual.units + m.cost.possibly_billed
    measured: tuple[tuple[str, Scalar], ...] = (
        ("units", actual.units.total),
        ("possible_units", m.cost.possibly_billed.total),
        ("baseline_units", baseline.units.total),
        ("calls", actual.calls),
        ("baseline_calls", baseline.calls),
        ("calls_saved_ratio", reduction(baseline.calls, actual.calls)),
        ("listener_units", m.cost.listener.total),
        ("marker_units", m.cost.markers.total),
        ("auditor_units", m.cost.auditor.total),
        ("probe_units", m.cost.probes.total),
    )
    if m.prices is not None:
        spent, without = m.prices.cost(most), m.prices.cost(baseline.units)
        measured += (("cost", spent), ("baseline_cost", without), ("currency", m.prices.currency))
    share = reduction(baseline.units.total, most.total)
    return Kpi("Cost reduction", share, "ratio", measured=measured)


def _efficiency(m: Measurements, hit_rate: float | None, cost_reduction: float | None) -> Kpi:
    mean = m.latency.mean_ms
    speed = None
    if mean is not None:
        speed = 1.0 if mean <= m.target_response_ms else m.target_response_ms / mean
    failed = _share(m.errors, m.requests)
    parts = (
        ("response_time_ratio", speed),
        ("hit_rate_ratio", hit_rate),
        ("cost_reduction_ratio", None if cost_reduction is None else max(0.0, cost_reduction)),
        ("without_error_ratio", None if failed is None else 1.0 - failed),
    )
    known = [value for _, value in parts if value is not None]
    value = math.prod(known) ** (1 / len(parts)) if len(known) == len(parts) else None
    return Kpi(
        "Overall efficiency",
        value,
        "ratio",
        None if value is None else rate_efficiency(value),
        (*parts, ("target_ms", m.target_response_ms)),
    )


def _show(value: Scalar, unit: str) -> str:
    """Return a value in `unit` as people read it."""
    if value is None:
        return NOT_YET_KNOWN
    if isinstance(value, str):
        return value
    if unit == "ratio":
        # Exact, because in binary 0.57 * 1000 is not 570; 400 digits hold every float.
        import decimal  # noqa: PLC0415 - only who shows figures needs it

        with decimal.localcontext(prec=400):
            percent = decimal.Decimal(repr(float(value))) * 100
            return f"{percent.quantize(decimal.Decimal('0.1'), decimal.ROUND_FLOOR):,} %"
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    return f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    if value == int(value) or value >= 1000:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.6f}".rstrip("0")


def _label(name: str, value: Scalar) -> str:
    """Return a measured value with its name, such as 'p95 1.20 ms' from ('p95_ms', 1.2)."""
    for unit in ("ratio", "bytes", "ms", "s"):
        if name.endswith(f"_{unit}"):
            return f"{name.removesuffix(f'_{unit}').replace('_', ' ')} {_show(value, unit)}"
    return f"{name.replace('_', ' ')} {_show(value, '')}"
