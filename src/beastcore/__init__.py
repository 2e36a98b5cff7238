"""beastcore: bounded caches and their companions, compiled, with no dependency.

`Cache` holds at most `maxsize` entries with times to live, `cached` memoizes functions over it,
`BatchBuffer` collects pending writes until a batch is due, `ConnectionTable` tracks when each of
many connections was last active, and `LatencyHistogram` records latencies in fixed memory.

Each exists twice: compiled, and in pure Python with the same behaviour (`beastcore._pure`). The
compiled one is used unless the environment variable BEASTCORE_PURE=1 is set at import; there is
no silent fall-back. `compiled` tells which one is in use.

The compiled engine relies on the interpreter's lock and does not declare otherwise: a
free-threaded CPython turns the lock on again when it is imported (do not set PYTHON_GIL=0).
"""

from __future__ import annotations

import os as _os
import typing as _typing

from beastcore._errors import BeastError, CapacityError, SnapshotError, TableFullError
from beastcore._types import BatchStats, CacheInfo, CacheStats, RemovalCause, TableStats
from beastcore._version import __version__

compiled: bool
"""True when the compiled engine is in use, False for the pure-Python twin."""

if _typing.TYPE_CHECKING or _os.environ.get("BEASTCORE_PURE") != "1":
    compiled = True
    try:
        from beastcore._batch import BatchBuffer
        from beastcore._cache import Cache
        from beastcore._connections import Conn, ConnectionTable
        from beastcore._latency import LatencyHistogram
        from beastcore._memo import cached
    except ImportError as error:
        raise ImportError(
            f"the compiled engine of beastcore cannot be loaded ({error}). In a checkout, run "
            "./dev build; otherwise reinstall with: pip install --force-reinstall beastcore. "
            "To use the slower pure-Python engine, set the environment variable BEASTCORE_PURE=1."
        ) from error
else:
    compiled = False
    from beastcore._pure import (
        BatchBuffer,
        Cache,
        Conn,
        ConnectionTable,
        LatencyHistogram,
        cached,
    )

__all__ = [
    "BatchBuffer",
    "BatchStats",
    "BeastError",
    "Cache",
    "CacheInfo",
    "CacheStats",
    "CapacityError",
    "Conn",
    "ConnectionTable",
    "LatencyHistogram",
    "RemovalCause",
    "SnapshotError",
    "TableFullError",
    "TableStats",
    "__version__",
    "cached",
    "compiled",
]
