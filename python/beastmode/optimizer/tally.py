"""Tally: what was answered, from where and how fast; cheap enough for every request."""

from __future__ import annotations

import dataclasses
import threading
from typing import Final

from beastcore import LatencyHistogram
from beastmode.cost import Meter, MeterReport, Units, Usage

__all__ = ["KINDS", "Tally"]

KINDS: Final = ("hit", "stale", "store", "buffer", "write", "other", "refused", "failed")
"""What a request ended as. The first four are reads by the source of their answer (`store` where
any document had to be read); `other` is a heartbeat, or a read of several documents that were all
held; `refused` is the caller's mistake or a write that the store turned down; `failed` is ours or
the store's."""


class Tally:
    """Response times by kind of answer, and the documents read.

    A request for one document that is a hit costs one call, `record_hit(ns)`; its number is the
    histogram's count. Everything else took a store call or a lock anyway and is counted under one.
    """

    __slots__ = ("_lock", "_reads", "_without_store", "histograms", "meter", "record_hit")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.histograms = {kind: LatencyHistogram() for kind in KINDS}
        self.record_hit = self.histograms["hit"].record
        self._lock = threading.Lock()
        self._reads = 0
        self._without_store = 0

    def read(
        self, kind: str, elapsed_ns: int, documents: int, without_store: int, billed: int
    ) -> None:
        """Count an answered read of `documents`, of which `without_store` asked no store.

        `billed` is what the same request would have been billed straight.
        """
        self.histograms[kind].record(elapsed_ns)
        with self._lock:
            self._reads += documents
            self._without_store += without_store
        self.meter.count_baseline(reads=billed)

    def write(self, elapsed_ns: int, units: Units) -> None:
        """Count an acknowledged write and what it would have been billed straight."""
        self.histograms["write"].record(elapsed_ns)
        self.meter.count_baseline(writes=units.writes, deletes=units.deletes, calls=1)

    def transaction(
        self, kind: str, elapsed_ns: int, documents: int, units: Units, calls: int
    ) -> None:
        """Count a transaction: what it read and wrote in `calls` would be billed straight, too."""
        self.histograms[kind].record(elapsed_ns)
        with self._lock:
            self._reads += documents
        self.meter.count_baseline(
            reads=units.reads, writes=units.writes, deletes=units.deletes, calls=calls
        )

    def end(self, kind: str, elapsed_ns: int) -> None:
        """Count a request that read and wrote nothing."""
        self.histograms[kind].record(elapsed_ns)

    def latencies(self) -> LatencyHistogram:
        """Return the response times of all requests together."""
        together = LatencyHistogram()
        for histogram in self.histograms.values():
            together.merge(histogram)
        return together

    @property
    def failed(self) -> int:
        """Requests that ended in an error which was not the caller's."""
        return self.histograms["failed"].count

    def reads(self) -> tuple[int, int]:
        """Return the documents read, and those of them that no store was asked for."""
        hits = self.histograms["hit"].count
        with self._lock:
            return self._reads + hits, self._without_store + hits

    def usage(self) -> MeterReport:
        """Return billed units; each single hit would have been one read in one call."""
        report = self.meter.report()
        hits = self.histograms["hit"].count
        baseline = report.baseline + Usage(Units(reads=hits), hits)
        return dataclasses.replace(report, baseline=baseline)
