"""Billed units, prices, and the meter that several threads count on."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beastmode.cost import Meter, MeterReport, Prices, Units, Usage, reduction
from beastmode.errors import ConfigError

UNITS = st.builds(Units, *[st.integers(0, 10**12)] * 3)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Switch between threads as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    yield
    sys.setswitchinterval(before)


@given(UNITS, UNITS)
def test_units_add_and_subtract_by_kind(a: Units, b: Units) -> None:
    assert (a + b) - b == a
    assert (a + b).total == a.total + b.total
    assert Usage(a, 3) + Usage(b, 4) == Usage(a + b, 7)
    assert MeterReport(Usage(a, 3), Usage(b, 4)) - MeterReport(Usage(a, 1), Usage(b, 1)) == (
        MeterReport(Usage(Units(), 2), Usage(Units(), 3))
    )


@pytest.mark.parametrize(
    ("baseline", "actual", "expected"),
    [(0, 0, None), (0, 5, None), (10, 10, 0.0), (10, 0, 1.0), (10, 1, 0.9), (10, 15, -0.5)],
)
def test_reduction(baseline: int, actual: int, expected: float | None) -> None:
    assert reduction(baseline, actual) == expected


def test_prices_are_per_100_000_units() -> None:
    units = Units(reads=200_000, writes=100_000, deletes=50_000)
    assert Prices().cost(units) == pytest.approx(2 * 0.06 + 0.18 + 0.5 * 0.02)
    assert Prices(reads=1, writes=0, deletes=0).cost(units) == 2.0
    assert Prices().cost(Units()) == 0.0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"currency": "dollars"}, "currency must be an ISO 4217 code .* got 'dollars'"),
        ({"currency": None}, "currency .* got None"),
        ({"reads": -1}, "price of reads must be zero or positive, got -1"),
        ({"writes": math.nan}, "price of writes .* got nan"),
        ({"deletes": math.inf}, "price of deletes .* got inf"),
        ({"reads": "1"}, "price of reads must be a number, got '1'"),
        ({"reads": True}, "price of reads must be a number, got True"),
    ],
)
def test_prices_that_are_not_allowed(values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Prices(**values)


def test_the_meter_keeps_baseline_and_actual_apart() -> None:
    meter = Meter()
    assert meter.report() == MeterReport()
    meter.count_baseline(reads=3)
    meter.count_baseline(writes=2, deletes=1, calls=2)
    meter.count_actual(writes=1, deletes=1)
    expected = MeterReport(Usage(Units(3, 2, 1), 3), Usage(Units(0, 1, 1), 1))
    assert meter.report() == expected


def test_the_difference_of_two_reports_is_what_happened_between() -> None:
    meter = Meter()
    meter.count_baseline(reads=1)
    meter.count_actual(reads=1)
    earlier = meter.report()
    meter.count_baseline(reads=1)
    meter.count_baseline(writes=1)
    assert meter.report() - earlier == MeterReport(Usage(Units(1, 1), 2), Usage())


def test_negative_counts_are_refused_and_change_nothing() -> None:
    meter = Meter()
    with pytest.raises(ValueError, match=r"counts must be zero or positive, got \(1, -1, 0, 1\)"):
        meter.count_actual(reads=1, writes=-1)
    assert meter.report() == MeterReport()


def test_threads_lose_no_count(hasty_threads: None) -> None:
    meter = Meter()
    threads, rounds = 4, 3_000
    start = threading.Barrier(threads + 1)
    seen: list[int] = []

    def work() -> None:
        start.wait()
        for _ in range(rounds):
            meter.count_baseline(reads=1, calls=0)
            meter.count_baseline(writes=1)
            meter.count_actual(deletes=1, calls=2)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    while any(worker.is_alive() for worker in workers):
        seen.append(meter.report().baseline.units.reads)
    for worker in workers:
        worker.join()
    total = threads * rounds
    assert meter.report() == MeterReport(
        Usage(Units(reads=total, writes=total), total),
        Usage(Units(deletes=total), 2 * total),
    )
    assert seen == sorted(seen)


def test_what_beast_mode_causes_itself_is_billed_and_told_apart() -> None:
    meter = Meter()
    heard = [3, 0]
    for number in range(2):
        meter.add_listener(lambda number=number: heard[number])  # type: ignore[misc]
    meter.count_actual(reads=2)
    meter.count_actual(writes=1, calls=0, account="markers")
    meter.count_actual(deletes=1, account="markers")
    meter.count_actual(reads=4, account="auditor")
    report = meter.report()
    assert report == MeterReport(
        Usage(),
        Usage(Units(reads=2 + 3 + 4, writes=1, deletes=1), 3),
        Units(reads=3),
        Units(writes=1, deletes=1),
        Units(reads=4),
    )
    heard[1] = 5
    later = meter.report()
    assert later - report == MeterReport(actual=Usage(Units(reads=5)), listener=Units(reads=5))


def test_a_listener_may_count_while_it_is_asked() -> None:
    meter = Meter()

    def documents_read() -> int:
        meter.count_actual(reads=1)
        return 1

    meter.add_listener(documents_read)
    assert meter.report().listener == Units(reads=1)
    assert meter.report().actual == Usage(Units(reads=2), 1)
