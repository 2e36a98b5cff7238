"""What a demonstration found out, fit for JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beastmode.errors import ConfigError
from beastmode.stats import PerformanceStats

__all__ = ["DemoResult", "Phase", "check_target", "write_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase: the figures of an optimizer that served nothing else."""

    name: str
    """'disabled' or 'enabled'."""
    stats: PerformanceStats
    elapsed_s: float
    """From the first request to the last answer."""
    flush_s: float
    """How long it took afterwards until the store had every buffered write."""
    ended_by: str
    """'time' or 'requests'."""
    requests: int
    failed: int
    first_error: str
    reads: int
    writes: int
    heartbeats: int
    sources: Mapping[str, int]
    """Answered reads by where the answer came from."""
    first_reads: int
    """Reads of documents that no request before had read or written."""
    store_reads: int
    """Documents that the store was asked for."""
    last_second: tuple[float, float] | None
    """Requests per second and hit rate in the last second."""
    writes_found: int
    """Acknowledged writes that the store had afterwards, or a later one of the same document."""
    writes_acknowledged: int
    write_operations: int
    """Writes that the store carried out; fewer where several of one document were merged."""
    cache_entries: int
    evictions: int
    connections: int
    zombies: int

    @property
    def reads_saved(self) -> float | None:
        """Share of the reads that the store was not asked for; None without reads."""
        return 1 - self.store_reads / self.reads if self.reads else None

    @property
    def bound(self) -> float | None:
        """The highest hit rate possible: 1 - first reads / reads; None without reads."""
        return 1 - self.first_reads / self.reads if self.reads else None

    def to_dict(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        rate, hit_rate = self.last_second or (None, None)
        return {
            "kpis": self.stats.to_dict(),
            "elapsed_s": self.elapsed_s,
            "flush_s": self.flush_s,
            "ended_by": self.ended_by,
            "requests": self.requests,
            "failed": self.failed,
            "first_error": self.first_error,
            "reads": self.reads,
            "writes": self.writes,
            "heartbeats": self.heartbeats,
            "read_sources": dict(self.sources),
            "first_reads": self.first_reads,
            "highest_hit_rate": self.bound,
            "store_reads": self.store_reads,
            "reads_saved": self.reads_saved,
            "last_second": {"requests_per_s": rate, "hit_rate": hit_rate},
            "writes_acknowledged": self.writes_acknowledged,
            "writes_found": self.writes_found,
            "write_operations": self.write_operations,
            "cache_entries": self.cache_entries,
            "evictions": self.evictions,
            "connections": self.connections,
            "zombies": self.zombies,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Both phases and the conditions under which they were measured."""

    disabled: Phase
    enabled: Phase
    conditions: Mapping[str, Any]
    store: Mapping[str, Any]
    """What was made before: documents, bytes, seconds, path (None where it was temporary)."""
    trace: Mapping[str, Any] | None
    """File, requests and unique keys of the trace; None for the mixed stream."""

    @property
    def problems(self) -> list[str]:
        """What must not happen and did, one sentence each."""
        found = []
        for phase in (self.disabled, self.enabled):
            if phase.failed:
                found.append(
                    f"with beast mode {phase.name}, {phase.failed:,} of {phase.requests:,} "
                    f"requests failed; the first one: {phase.first_error}"
                )
            lost = phase.writes_acknowledged - phase.writes_found
            if lost:
                found.append(
                    f"with beast mode {phase.name}, {lost:,} of {phase.writes_acknowledged:,} "
                    "acknowledged writes are not in the store"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return {
            "schema": 1,
            "conditions": dict(self.conditions),
            "store": dict(self.store),
            "trace": None if self.trace is None else dict(self.trace),
            "phases": {"disabled": self.disabled.to_dict(), "enabled": self.enabled.to_dict()},
            "problems": self.problems,
        }


def check_target(path: Path) -> None:
    """Raise ConfigError unless a file could be written at `path`."""
    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigError(f"--json must name a file; {path} is a folder")
    if not folder.is_dir():
        raise ConfigError(f"--json: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--json: the folder {folder} cannot be written")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except FileExistsError:
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
