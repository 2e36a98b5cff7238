"""What the store bills: units, prices, and a meter that compares with and without beast mode.

A unit is one document read, written or deleted, as Firestore bills it: a commit of 500 operations
is one call and 500 units, so calls saved and cost saved are two numbers. The *baseline* is what
the same requests would have been billed straight at the store; the *actual* is what was billed.

    cost reduction = 1 - actual units / baseline units

The actual usage has everything in it that is billed, also what beast mode itself causes: documents
that a listener is sent, markers by which a batch of writes is known again, reads of the auditor.
Each of these is told apart as well.

No I/O, no clock.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, Literal

from beastmode.errors import ConfigError

__all__ = ["Account", "Meter", "MeterReport", "Prices", "Units", "Usage", "reduction"]


Account = Literal["requests", "markers", "auditor", "probes"]
"""What a call of the store was made for."""

_ACCOUNTS: Final[tuple[Account, ...]] = ("requests", "markers", "auditor", "probes")


@dataclass(frozen=True, slots=True)
class Units:
    """Billed units: documents read, written and deleted."""

    reads: int = 0
    writes: int = 0
    deletes: int = 0

    @property
    def total(self) -> int:
        """All units together, whatever their kind."""
        return self.reads + self.writes + self.deletes

    def __add__(self, other: Units) -> Units:
        return Units(
            self.reads + other.reads, self.writes + other.writes, self.deletes + other.deletes
        )

    def __mul__(self, times: int) -> Units:
        return Units(self.reads * times, self.writes * times, self.deletes * times)

    def __sub__(self, other: Units) -> Units:
        return Units(
            self.reads - other.reads, self.writes - other.writes, self.deletes - other.deletes
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Billed units and the calls that carried them."""

    units: Units = Units()
    calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.units + other.units, self.calls + other.calls)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.units - other.units, self.calls - other.calls)


@dataclass(frozen=True, slots=True)
class MeterReport:
    """What a `Meter` has counted: `later - earlier` is what happened between two reports."""

    baseline: Usage = Usage()
    """What the requests would have been billed straight at the store."""
    actual: Usage = Usage()
    """What was billed for certain, whatever for; the next four are parts of it."""
    listener: Units = Units()
    """Documents that listeners were sent: at first, added, updated or gone from a query."""
    markers: Units = Units()
    """Documents by which a batch is known again: written, read and deleted."""
    auditor: Units = Units()
    """Reads by which the cache was compared with the store."""
    probes: Units = Units()
    """Reads by which the store was asked how it is."""
    possibly_billed: Units = Units()
    """What was asked without hearing an answer, repetitions included: whether the store did it,
    and billed it, is not known. The bill lies between `actual` and `actual` with this."""

    def __sub__(self, other: MeterReport) -> MeterReport:
        return MeterReport(
            *(getattr(self, item.name) - getattr(other, item.name) for item in fields(self))
        )


def reduction(baseline: int, actual: int) -> float | None:
    """Return 1 - actual / baseline; None where nothing was asked for yet.

    Negative where more was billed than the requests alone would have been.
    """
    return 1 - actual / baseline if baseline > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What 100,000 units of each kind cost, in `currency`.

    The defaults are Firestore's list prices of the multi-region locations (Standard edition,
    without the free daily quota). Prices differ by location and change: set your own.
    """

    currency: str = "USD"
    reads: float = 0.06
    writes: float = 0.18
    deletes: float = 0.02

    def __post_init__(self) -> None:
        currency: object = self.currency
        if not isinstance(currency, str) or not re.fullmatch("[A-Z]{3}", currency):
            raise ConfigError(f"currency must be an ISO 4217 code such as 'USD', got {currency!r}")
        for name in ("reads", "writes", "deletes"):
            price = getattr(self, name)
            if isinstance(price, bool) or not isinstance(price, (int, float)):
                raise ConfigError(f"price of {name} must be a number, got {price!r}")
            if not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"price of {name} must be zero or positive, got {price!r}")

    def cost(self, units: Units) -> float:
        """Return what `units` cost, in `currency`."""
        return (
            units.reads * self.reads + units.writes * self.writes + units.deletes * self.deletes
        ) / 100_000


class Meter:
    """Counts baseline and actual usage, exactly, from any number of threads.

    Every count takes a lock, which is nothing beside the store call that it is about. A request
    that asks no store is not counted here but wherever it is counted anyway, and added to the
    report when it is read: `report.baseline + Usage(Units(reads=hits), hits)`.
    """

    __slots__ = ("_actual", "_baseline", "_listeners", "_lock", "_possible")

    def __init__(self) -> None:
        self._baseline = [0, 0, 0, 0]  # reads, writes, deletes, calls
        self._actual = {account: [0, 0, 0, 0] for account in _ACCOUNTS}
        self._possible = [0, 0, 0, 0]
        self._listeners: list[Callable[[], int]] = []
        self._lock = threading.Lock()

    def count_baseline(
        self, *, reads: int = 0, writes: int = 0, deletes: int = 0, calls: int = 1
    ) -> None:
        """Count what a request would have been billed straight at the store."""
        self._count(self._baseline, reads, writes, deletes, calls)

    def count_actual(
        self,
        *,
        reads: int = 0,
        writes: int = 0,
        deletes: int = 0,
        calls: int = 1,
        account: Account = "requests",
    ) -> None:
        """Count what the store was asked for, and what for."""
        self._count(self._actual[account], reads, writes, deletes, calls)

    def count_possible(self, units: Units) -> None:
        """Count what the store may have done and billed, of which nothing was heard."""
        self._count(self._possible, units.reads, units.writes, units.deletes, 0)

    def add_listener(self, documents_read: Callable[[], int]) -> None:
        """Add a listener; `documents_read` tells how many documents it was sent, as billed.

        It is kept, and asked at each report: what a listener was sent stays billed at its end.
        """
        with self._lock:
            self._listeners.append(documents_read)

    def _count(self, counters: list[int], *amounts: int) -> None:
        if min(amounts) < 0:
            raise ValueError(f"counts must be zero or positive, got {amounts!r}")
        with self._lock:  # += on a list element is not atomic
            for index, amount in enumerate(amounts):
                counters[index] += amount

    def report(self) -> MeterReport:
        """Return everything counted since construction."""
        with self._lock:
            baseline = _usage(self._baseline)
            accounts = {account: _usage(counted) for account, counted in self._actual.items()}
            possible = _usage(self._possible).units
            listeners = list(self._listeners)
        # Without the lock: a listener has one of its own, under which it may count here.
        heard = Units(reads=sum(documents_read() for documents_read in listeners))
        return MeterReport(
            baseline,
            sum(accounts.values(), Usage(heard)),
            heard,
            accounts["markers"].units,
            accounts["auditor"].units,
            accounts["probes"].units,
            possible,
        )


def _usage(counted: list[int]) -> Usage:
    reads, writes, deletes, calls = counted
    return Usage(Units(reads, writes, deletes), calls)
