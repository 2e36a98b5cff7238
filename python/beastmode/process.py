"""Memory, descriptors and CPU time of this process: with psutil, else from the standard library.

What cannot be found out is None. `ProcessStats.source` tells where the figures come from, and
`missing` how to get those that are None.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

__all__ = ["ProcessProbe", "ProcessStats"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """What is known about this process at one moment."""

    pid: int
    memory_bytes: int | None
    """Resident memory (RSS)."""
    open_descriptors: int | None
    """Open file descriptors; open handles on Windows."""
    cpu_seconds: float
    """CPU time used since its start, all threads, user and system."""
    source: str
    """'psutil' or 'standard library'."""

    @property
    def missing(self) -> str:
        """What is not known here and what would bring it; empty when nothing is missing."""
        unknown = [
            words
            for words, value in (
                ("memory", self.memory_bytes),
                ("open descriptors", self.open_descriptors),
            )
            if value is None
        ]
        if not unknown:
            return ""
        names = " and ".join(unknown)
        if self.source == "psutil":
            return f"{names}: this system does not tell"
        return f'{names}: psutil is not installed; it comes with: pip install "beastcore[cli]"'


class ProcessProbe:
    """Reads the figures of the process that calls it, of a child after a fork too.

    `use_psutil=False` takes the standard library even where psutil is installed.
    """

    def __init__(self, *, use_psutil: bool = True) -> None:
        self._psutil: Any = _find_psutil() if use_psutil else None
        self._process: psutil.Process | None = None
        if self._psutil is None and use_psutil:
            _log.info(
                "psutil is not installed; memory and descriptors of the process come from the "
                "standard library, as far as it knows them"
            )

    def read(self) -> ProcessStats:
        """Return the present figures; some 50 microseconds, more with many descriptors open."""
        pid = os.getpid()
        cpu_seconds = time.process_time()
        if self._psutil is None:
            return ProcessStats(
                pid, _resident_bytes(), _open_descriptors(), cpu_seconds, "standard library"
            )
        if self._process is None or self._process.pid != pid:
            self._process = self._psutil.Process(pid)
        process = self._process
        try:
            memory: int | None = process.memory_info().rss
        except self._psutil.Error as error:
            _log.debug("psutil cannot tell the memory of process %d: %s", pid, error)
            memory = None
        descriptors = _open_descriptors()
        if descriptors is None:
            descriptors = self._count_descriptors(process)
        return ProcessStats(pid, memory, descriptors, cpu_seconds, "psutil")

    def _count_descriptors(self, process: psutil.Process) -> int | None:
        """Return psutil's count; on Linux it would count the one that it counts with."""
        # Each system has one of the two methods.
        count: Any = getattr(process, "num_fds", None) or getattr(process, "num_handles", None)
        try:
            return None if count is None else int(count())
        except self._psutil.Error as error:
            _log.debug("psutil cannot count the open descriptors: %s", error)
            return None


def _find_psutil() -> Any:
    try:
        import psutil  # noqa: PLC0415 - optional, and nowhere else
    except ImportError:
        return None
    return psutil


def _resident_bytes() -> int | None:
    """Return the resident memory as Linux tells it; peaks, which others tell, are no answer."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError) as error:
        _log.debug("the system does not tell the resident memory: %s", error)
        return None


def _open_descriptors() -> int | None:
    # Elsewhere /dev/fd may list the first three only.
    folder = {"linux": "/proc/self/fd", "darwin": "/dev/fd"}.get(sys.platform)
    if folder is None:
        return None
    try:
        return len(os.listdir(folder)) - 1  # noqa: PTH208 - less the one that lists
    except OSError as error:
        _log.debug("%s does not list the open descriptors: %s", folder, error)
        return None
