"""Every operation of `LatencyHistogram`, many times over; exit code 1 if memory remains."""

from __future__ import annotations

import array
import sys
from typing import Any

import beastcore
from beastcore import LatencyHistogram
from engine_tools import leaking
from leak_tools import refused

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"


def recording() -> None:
    h = LatencyHistogram()
    for i in range(50):
        h.record(i * 10**7)
    h.record_many(i * 10**9 for i in range(50))
    h.record_many(array.array("q", range(50)))
    h.record_many(array.array("i", range(50)))
    h.reset()


def asking() -> None:
    h = LatencyHistogram()
    h.record_many(range(1000, 100_000, 1000))
    (h.count, h.sum, h.mean, h.min, h.max, h.percentile(99.9), repr(h))
    other = LatencyHistogram.from_dict(h.to_dict())
    other.merge(h)


def refusals() -> None:
    h: Any = LatencyHistogram()
    refused(TypeError, lambda: h.record(1.5))
    refused(TypeError, lambda: h.record_many([10**12, 1.5]))
    refused(TypeError, lambda: h.record_many(b"12"))
    refused(TypeError, lambda: h.record_many(array.array("d", [1.5])))
    refused(ValueError, lambda: h.percentile(101))
    refused(TypeError, lambda: h.merge(5))
    refused(ValueError, lambda: LatencyHistogram.from_dict({}))


found = leaking([recording, asking, refusals])
if found:
    sys.exit("leaked: " + "; ".join(found))
