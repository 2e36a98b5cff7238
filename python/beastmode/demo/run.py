"""Runs a demonstration: makes the store, plays both phases, checks what was written."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple

from beastcore import __version__, compiled
from beastmode.config import BeastModeConfig
from beastmode.demo.backends import Backend, open_backend
from beastmode.demo.options import DemoOptions
from beastmode.demo.play import Moment, Player, Written
from beastmode.demo.results import DemoResult, Phase
from beastmode.demo.show import percent
from beastmode.demo.traces import read_trace
from beastmode.demo.workload import (
    HEARTBEAT,
    HEARTBEAT_SHARE,
    READ,
    WRITE,
    WRITE_SHARE,
    ZIPF,
    Mix,
    Trace,
    Workload,
)
from beastmode.errors import ConfigError, JournalError
from beastmode.journal.files import resolve_location
from beastmode.optimizer import BeastModeOptimizer
from beastmode.stats import Measurements, PerformanceStats

__all__ = ["Progress", "run_demo"]

_DEFAULT_REQUESTS: Final = 1_000_000
_SHORTEST_S: Final = 1.0
_CHECKED_AT_ONCE: Final = 500
_CHUNK: Final = 2_000


class Progress(NamedTuple):
    """What is being done, how far it is and what can be told of it."""

    title: str
    share: float
    """From 0 to 1."""
    text: str
    finished: bool = False


OnProgress = Callable[[Progress], object]


def run_demo(
    options: DemoOptions,
    config: BeastModeConfig | None = None,
    on_progress: OnProgress = lambda _progress: None,
) -> DemoResult:
    """Run a demonstration and return what it measured; blocks until it is over.

    `config` (default: `BeastModeConfig.load()`) gives the settings; the paths in it are not used.
    `on_progress` is called several times a second, from this thread. Raises ConfigError and
    TraceError before anything has begun, StoreError where the store cannot be made. Whatever
    happens, KeyboardInterrupt included, the temporary store is removed.
    """
    began = time.monotonic()
    config = BeastModeConfig.load() if config is None else config
    if options.cache_entries is not None:
        config = config.replace(cache_max_entries=options.cache_entries)
    if options.trace is None and options.users > config.max_connections:
        raise ConfigError(
            f"users must be at most max_connections ({config.max_connections:,}), "
            f"got {options.users:,}"
        )
    keys = None if options.trace is None else read_trace(options.trace)
    with _folder(options.keep) as folder, open_backend(options.store, folder) as backend:
        journal = folder / "demo.db-journal.db"
        if keys is None:
            workload: Workload = _draw(options, on_progress)
        else:
            workload = Trace(keys, options.requests)
        store = _fill(backend, workload, on_progress)
        seconds = options.seconds
        if options.total_seconds is not None:
            left = options.total_seconds - (time.monotonic() - began)
            seconds = min(seconds, max(_SHORTEST_S, left / (2 if keys is None else 1)))
        with _unburdened():
            disabled = _phase(
                "disabled",
                backend.optimizer(config, journal),
                backend,
                workload,
                options.workers,
                seconds,
                on_progress,
            )
            enabled = _phase(
                "enabled",
                backend.optimizer(config, journal),
                backend,
                workload,
                options.workers,
                seconds if keys is None else None,
                on_progress,
            )
    return DemoResult(
        disabled=disabled,
        enabled=enabled,
        conditions=_conditions(options, config, seconds),
        store=store | {"path": str(folder / "demo.db") if options.keep else None},
        trace=_trace(options.trace, workload),
    )


@contextlib.contextmanager
def _unburdened() -> Iterator[None]:
    """Keep what exists now, the prepared requests above all, out of the collector's passes.

    They would make pauses longer that an application without them does not have.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="beastmode-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"keep: {keep} cannot be made: {error.strerror or error}") from error
    try:
        resolve_location(keep / "demo.db-journal.db")
    except JournalError as error:
        raise ConfigError(f"keep: {error}") from error
    for name in ("demo.db", "demo.db-journal.db"):
        if (keep / name).exists():
            raise ConfigError(f"keep: {keep / name} exists already; remove it or name another one")
    yield keep


def _draw(options: DemoOptions, on_progress: OnProgress) -> Mix:
    requests = options.requests or _DEFAULT_REQUESTS
    title = "drawing the requests"

    def tell(done: int) -> None:
        on_progress(Progress(title, done / requests, f"{done:,} of {requests:,}", done == requests))

    return Mix(options.documents, options.users, requests, options.seed, tell)


def _fill(backend: Backend, workload: Workload, on_progress: OnProgress) -> dict[str, Any]:
    """Make the store; return what is to be told of it."""
    title = f"making {backend.title}"
    total = workload.unique
    began = time.perf_counter()

    def told() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for done, document in enumerate(workload.documents()):
            if not done % _CHUNK:
                on_progress(Progress(title, done / total, f"{done:,} of {total:,} documents"))
            yield document

    count = backend.fill(told(), _CHUNK)
    seconds = time.perf_counter() - began
    on_progress(Progress(title, 1.0, f"{count:,} documents in {seconds:.1f} s", finished=True))
    return {"documents": count, "seconds": seconds, **backend.facts()}


def _phase(
    name: str,
    opened: AbstractContextManager[BeastModeOptimizer],
    backend: Backend,
    workload: Workload,
    workers: int,
    seconds: float | None,
    on_progress: OnProgress,
) -> Phase:
    """Play the workload on an optimizer of its own, so that its figures are those of the phase."""
    title = f"beast mode {name}"

    def tell(moment: Moment, *, finished: bool = False) -> None:
        share = moment.done / workload.requests
        if seconds is not None:
            share = max(share, moment.elapsed_s / seconds)
        rate = moment.done / moment.elapsed_s if moment.elapsed_s > 0 else 0.0
        hits = f", hit rate {percent(moment.without_store / moment.reads)}" if moment.reads else ""
        text = f"{moment.done:,} requests, {rate:,.0f}/s{hits}"
        on_progress(Progress(title, min(1.0, share), text, finished))

    with opened as optimizer:
        if name == "disabled":
            optimizer.disable_beast_mode()
        for user in workload.users:
            optimizer.connections.add_connection(user, user)
        player = Player(
            optimizer,
            workload.operations(name),
            workers=workers,
            seconds=seconds,
            on_moment=tell,
        )
        asyncio.run(player.play())
        began = time.perf_counter()
        optimizer.flush()
        flush_s = time.perf_counter() - began
        stats = _of_window(optimizer.get_performance_stats(), player)
        parts = optimizer.get_stats()
    tell(player.moments[-1], finished=True)
    found, acknowledged = _check_writes(backend, player.written)
    reads = player.sources[READ]
    read_count = reads.total()
    return Phase(
        name=name,
        stats=stats,
        elapsed_s=player.elapsed_s,
        flush_s=flush_s,
        ended_by="time" if player.out_of_time else "requests",
        requests=player.issued,
        failed=player.failed,
        first_error=player.first_error,
        reads=read_count,
        writes=player.sources[WRITE].total(),
        heartbeats=player.sources[HEARTBEAT].total(),
        sources=reads,
        first_reads=workload.first_reads(player.issued),
        store_reads=parts.cache.loads if name == "enabled" else read_count,
        last_second=player.last_second(),
        writes_found=found,
        writes_acknowledged=acknowledged,
        write_operations=parts.batcher.written if name == "enabled" else acknowledged,
        cache_entries=parts.cache.engine.currsize,
        evictions=parts.cache.engine.evictions,
        connections=parts.connections.active,
        zombies=parts.connections.zombies,
    )


def _of_window(stats: PerformanceStats, player: Player) -> PerformanceStats:
    """Return `stats` with the window of the requests alone, without start and connecting."""
    counted = stats.throughput.detail["requests"]
    window = Measurements(
        window_s=player.elapsed_s,
        target_response_ms=1.0,
        memory_limit_bytes=0,
        requests=counted if isinstance(counted, int) else 0,
    )
    throughput = PerformanceStats.compute(window).throughput
    return dataclasses.replace(stats, window_s=player.elapsed_s, throughput=throughput)


def _check_writes(backend: Backend, written: Mapping[str, list[Written]]) -> tuple[int, int]:
    """Return how many acknowledged writes the store shows, and how many there were.

    A document shows its writes if it holds one of them and none began after that one was
    acknowledged: which of two that overlapped came last is the store's to say.
    """
    found = acknowledged = 0
    paths = list(written)
    with backend.store() as store:
        for start in range(0, len(paths), _CHECKED_AT_ONCE):
            for document in store.get_many(paths[start : start + _CHECKED_AT_ONCE]):
                writes = written[document.path]
                acknowledged += len(writes)
                edit = (document.data or {}).get("edit")
                held = next((write for write in writes if write.edit == edit), None)
                if held is not None:
                    found += sum(write.began < held.ended for write in writes)
    return found, acknowledged


def _conditions(options: DemoOptions, config: BeastModeConfig, seconds: float) -> dict[str, Any]:
    changed = {
        row.name: {"value": config.to_dict()[row.name], "source": row.source}
        for row in config.explain()
        if row.source != "default" and row.name not in ("store_path", "journal_path")
    }
    return {
        "users": options.users if options.trace is None else 0,
        "workers": options.workers,
        "seed": options.seed if options.trace is None else None,
        "zipf_exponent": ZIPF if options.trace is None else None,
        "write_share": WRITE_SHARE if options.trace is None else 0,
        "heartbeat_share": HEARTBEAT_SHARE if options.trace is None else 0,
        "most_seconds_of_a_phase": seconds,
        "cache_max_entries": config.cache_max_entries,
        "changed_settings": changed,
        "version": __version__,
        "engine": "compiled" if compiled else "pure Python",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processors": _processors(),
    }


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _trace(file: Path | None, workload: Workload) -> dict[str, Any] | None:
    if file is None or not isinstance(workload, Trace):
        return None
    return {"file": file.name, "requests": workload.requests, "unique_keys": workload.unique}
