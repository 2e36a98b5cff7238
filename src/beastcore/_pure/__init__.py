"""The pure-Python twin of the engine: same names, arguments, results, errors and `repr`.

It is the oracle of the tests and the baseline of the benchmarks, so it is written as good
Python; it imports nothing compiled. Select it with the environment variable BEASTCORE_PURE=1.
"""

from __future__ import annotations

from beastcore._pure.batch import BatchBuffer
from beastcore._pure.cache import Cache
from beastcore._pure.connections import Conn, ConnectionTable
from beastcore._pure.latency import LatencyHistogram
from beastcore._pure.memo import cached

__all__ = ["BatchBuffer", "Cache", "Conn", "ConnectionTable", "LatencyHistogram", "cached"]
