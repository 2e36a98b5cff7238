"""Parts: the components that an optimizer runs on, made, started, configured and ended together."""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from beastmode.auditor import AuditReport, ConsistencyAuditor
from beastmode.batcher import BatcherReport, BeastModeBatcher
from beastmode.breaker import Breaker, StoreSignal
from beastmode.cache import BeastModeCache, CacheReport, Lease, Rule
from beastmode.config import BeastModeConfig
from beastmode.connections import BeastModeConnectionPool, ConnectionReport
from beastmode.cost import Meter
from beastmode.errors import ConfigError
from beastmode.housekeeping import Housekeeper, JobReport
from beastmode.optimizer.journals import Journals
from beastmode.stores.base import AsyncStore, Store, StoreHealth
from beastmode.stores.documents import Delete, Document, Operation, Set, freeze, has_transforms
from beastmode.stores.guarded import GuardedAsyncStore, GuardedStore
from beastmode.stores.metered import MeteredAsyncStore, MeteredStore
from beastmode.stores.probing import Prober
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore
from beastmode.sync import BeastModeRealTimeSync, SyncReport

__all__ = ["Parts", "PartsReport", "check_store", "committed_document"]

_AUDIT_S = 0.25
_CLEANUP_S = 1.0
_CLEANUP_ENTRIES = 10_000
_CLEANUP_ZOMBIES = 5_000
_BILLED_PROBE_S = 60.0
"""A store that bills probes and answers requests is asked only after so long without one."""
_USER_GRACE_S = 1.0
"""How long a probe of a failing store may be overdue before a user's request is spent on it."""


@dataclass(frozen=True, slots=True)
class PartsReport:
    """The reports of all components at one moment."""

    cache: CacheReport
    batcher: BatcherReport
    connections: ConnectionReport
    sync: SyncReport
    jobs: list[JobReport]
    store: StoreHealth | None
    """What the store's last probe found; None before the first."""
    signal: StoreSignal
    """How the store fares, as the circuit breaker sees it."""
    audit: AuditReport | None
    """How often the cache was behind the store; None where `audit_one_in` is 0."""


def committed_document(operation: Operation, version: int) -> Document | None:
    """Return what the store holds after `operation`, or None where that is not certain.

    Only a `Set` without transforms and a `Delete` tell: the others may have met another writer's
    fields.
    """
    if has_transforms(operation):
        return None
    if isinstance(operation, Set):
        return Document(operation.path, freeze(operation.data), version)
    if isinstance(operation, Delete):
        return Document(operation.path, None, version)
    return None


class Parts:
    """Makes every component from a config and wires them; owns those that it made.

    `store` given as an object stays its owner's; given as a path, or left out, it is a
    `SQLiteStore` that is closed here.
    """

    def __init__(
        self,
        config: BeastModeConfig,
        store: Store | None,
        async_store: AsyncStore | None,
        rules: Iterable[Rule],
        on_error: Callable[[BaseException], object] | None,
    ) -> None:
        self.meter = Meter()
        self.health: StoreHealth | None = None
        self.unflushed: dict[str, int] = {}
        """Paths with writes that the store does not have yet, and how many."""
        self._lock = threading.Lock()
        self._owned: Store | None = None
        with contextlib.ExitStack() as undo:
            if store is None:
                store = self._owned = SQLiteStore(config.store_path, durability=config.durability)
                undo.callback(store.close)
            elif isinstance(store, SQLiteStore):
                config = config.replace(store_path=str(store.path))
            elif config.write_mode == "write-behind" and not (
                config.journal_path or config.journal_dir
            ):
                # A default would let the writes meant for one store be replayed into another.
                raise ConfigError(
                    "journal_path must be given with a store of your own in write-behind mode: "
                    "the file that keeps its acknowledged writes until the store has them, or "
                    "journal_dir for several processes; or choose write_mode='write-through'"
                )
            self.config = config
            # The breaker outside the meter: what it refuses is neither asked nor billed.
            self.breaker = Breaker(user_grace_s=_USER_GRACE_S)
            metered = MeteredStore(store, self.meter)
            self.store: Store = GuardedStore(metered, self.breaker)
            self._bridge: ThreadedAsyncStore | None = None
            ametered: AsyncStore
            if async_store is None:
                ametered = self._bridge = ThreadedAsyncStore(metered)
            else:
                ametered = MeteredAsyncStore(async_store, self.meter)
            self.async_store: AsyncStore = GuardedAsyncStore(ametered, self.breaker)
            self.connections = BeastModeConnectionPool(
                config.max_connections, idle_timeout_s=config.idle_timeout_s
            )
            self.cache = BeastModeCache(
                self.store,
                None if async_store is None else self.async_store,
                max_entries=config.cache_max_entries,
                ttl_s=config.cache_ttl_s,
                negative_ttl_s=config.negative_ttl_s,
                max_stale_s=config.max_stale_s,
                rules=rules,
                reload_rate=config.reload_rate,
                coalesce_reads=_coalesces(config, async_store),
                on_error=on_error,
            )
            undo.callback(self.cache.close)
            self._journals = Journals(config, on_error)
            undo.callback(self._journals.close)
            self.batcher = BeastModeBatcher(
                self.store,
                self._journals.own,
                max_ops=config.batch_max_ops,
                max_delay_s=config.batch_max_delay_ms / 1000,
                mode=config.write_mode,
                commit_deadline_s=config.commit_deadline_s,
                markers=config.commit_markers,
                when_full=config.when_full,
                on_accepted=self._on_accepted,
                on_committed=self._on_committed,
                on_failed=self._on_failed,
                check_store=self.breaker.check,
                on_error=on_error,
            )
            self.sync = BeastModeRealTimeSync(
                self.store,
                self.cache,
                lease=Lease,
                max_documents=config.listen_max_documents,
                collections=config.listen_collections,
                interval_s=config.sync_interval_ms / 1000,
                on_error=on_error,
            )
            self.auditor: ConsistencyAuditor | None = None
            if config.audit_one_in:
                self.auditor = ConsistencyAuditor(
                    GuardedStore(MeteredStore(store, self.meter, account="auditor"), self.breaker),
                    self.cache.lookup,
                    one_in=config.audit_one_in,
                    max_per_minute=config.audit_max_per_minute,
                    is_pending=self.unflushed.__contains__,
                )
            self.housekeeper = Housekeeper(on_error=on_error)
            for name, (interval_s, job) in self._jobs(config).items():
                self.housekeeper.add(name, interval_s, job)
            self._prober = Prober(self.breaker, metered.health)
            self.breaker.subscribe(self._on_signal)
            undo.pop_all()

    def _jobs(self, config: BeastModeConfig) -> dict[str, tuple[float, Callable[[], Any]]]:
        jobs: dict[str, tuple[float, Callable[[], Any]]] = {
            "sync": (config.sync_interval_ms / 1000, self.sync.tick),
            "health": (config.healing_interval_s, self._keep_health),
            "orphans": (config.healing_interval_s, lambda: self._journals.tend(self.batcher)),
            "zombies": (config.zombie_cleanup_interval_s, self._cleanup_zombies),
            "expiry": (_CLEANUP_S, lambda: self.cache.cleanup(_CLEANUP_ENTRIES)),
        }
        if self.auditor is not None:
            jobs["audit"] = (_AUDIT_S, self.auditor.tick)
        return jobs

    def _cleanup_zombies(self) -> None:
        # In slices, because nothing else can run meanwhile, should all connections die at once.
        while self.connections.cleanup_zombies(_CLEANUP_ZOMBIES) == _CLEANUP_ZOMBIES:
            pass

    def _on_signal(self, signal: StoreSignal) -> None:
        """Have everybody who waits for the store go on now, not at their next turn."""
        self.housekeeper.run_soon("health")
        if signal.ok:
            self.batcher.retry_now()
            self.housekeeper.run_soon("sync")

    def start(self) -> None:
        """Replay the journals, begin to follow changes and to keep house."""
        self._journals.tend(self.batcher)
        self.batcher.start()
        self.probe()
        self.sync.start()
        self.housekeeper.start()

    def probe(self) -> StoreHealth:
        """Ask the store how it is."""
        self.health = self.store.health()
        return self.health

    def _keep_health(self) -> None:
        """Probe the store, unless that is billed and the store has answered requests lately."""
        if (
            getattr(self.store, "health_reads", 0)
            and self.health is not None
            and self.health.ok
            and self.breaker.state == "closed"
            and time.monotonic() - self.breaker.answered_at < _BILLED_PROBE_S
        ):
            return
        self.probe()

    def configure(self, config: BeastModeConfig) -> None:
        """Bring every component to `config`, or leave all as they were and raise."""
        before = self.config
        try:
            self._apply(config)
        except BaseException:
            self._apply(before)
            raise
        self.config = config

    def _apply(self, config: BeastModeConfig) -> None:
        self.connections.configure(
            max_connections=config.max_connections, idle_timeout_s=config.idle_timeout_s
        )
        self.cache.configure(ttl_s=config.cache_ttl_s, max_entries=config.cache_max_entries)
        self.sync.configure(interval_s=config.sync_interval_ms / 1000)
        self.batcher.configure(
            max_ops=config.batch_max_ops, max_delay_s=config.batch_max_delay_ms / 1000
        )
        if self.auditor is not None:
            self.auditor.configure(max_per_minute=config.audit_max_per_minute)
        for name, (interval_s, _) in self._jobs(config).items():
            self.housekeeper.set_interval(name, interval_s)

    def report(self) -> PartsReport:
        """Return every component's report."""
        return PartsReport(
            cache=self.cache.get_stats(),
            batcher=self.batcher.get_stats(),
            connections=self.connections.get_stats(),
            sync=self.sync.get_stats(),
            jobs=self.housekeeper.get_stats(),
            store=self.health,
            signal=self.breaker.signal(),
            audit=None if self.auditor is None else self.auditor.get_stats(),
        )

    def close(self, deadline: float | None) -> None:
        """Flush and end everything, in an order in which nothing is lost; then raise what failed.

        What could not be flushed stays in the journal for the next start.
        """
        with contextlib.ExitStack() as stack:  # unwinds from the bottom; every step is taken
            if self._owned is not None:
                stack.callback(self._owned.close)
            stack.callback(self._journals.close)
            if self._bridge is not None:
                stack.callback(self._bridge.shut_down)
            stack.callback(self.connections.close)
            stack.callback(self.cache.close)
            stack.callback(self.sync.close)
            stack.callback(self._prober.close)
            stack.callback(self.batcher.close, deadline)
            stack.callback(self.housekeeper.close)

    # -- between the batcher and the cache; called by the batcher, one operation at a time ------

    def _on_accepted(self, operation: Operation) -> None:
        path = operation.path
        with self._lock:
            self.unflushed[path] = self.unflushed.get(path, 0) + 1
        self.cache.write_started(path)

    def _on_committed(self, operation: Operation, version: int | None) -> None:
        if version is None:  # the store has it, and what it has made of it is not known
            self.cache.write_finished(operation.path, None)
        else:
            document = committed_document(operation, version)
            self.cache.write_finished(
                operation.path, document, version=version, operation=operation
            )
        self._finished(operation.path)

    def _on_failed(self, operation: Operation, error: BaseException) -> None:
        self.cache.write_finished(operation.path, None)
        self._finished(operation.path)

    def _finished(self, path: str) -> None:
        with self._lock:
            left = self.unflushed[path] - 1
            if left:
                self.unflushed[path] = left
            else:
                del self.unflushed[path]


def _coalesces(config: BeastModeConfig, async_store: AsyncStore | None) -> bool:
    """Return whether single reads of one turn go to `async_store` together.

    A store for which one call for many documents is much cheaper says so by a true attribute
    `coalesce_reads`.
    """
    if config.coalesce_reads == "auto":
        return bool(getattr(async_store, "coalesce_reads", False))
    return config.coalesce_reads == "on"


def check_store(store: object, async_store: object) -> Store | str | os.PathLike[str] | None:
    """Return `store` if it is a store, a path or None."""
    if async_store is not None and not (
        isinstance(async_store, AsyncStore) and inspect.iscoroutinefunction(async_store.get)
    ):
        raise ConfigError(
            f"async_store must be an AsyncStore, whose methods are awaited, or None; "
            f"got {async_store!r}"
        )
    # An AsyncStore has the same names, which is all that isinstance looks at.
    if isinstance(store, Store) and inspect.iscoroutinefunction(store.get):
        raise ConfigError(
            f"store must be a Store, whose methods are not awaited, got {store!r}; "
            "give an AsyncStore as async_store, beside the Store"
        )
    if store is None or isinstance(store, (str, os.PathLike, Store)):
        return store
    raise ConfigError(f"store must be a Store, the path of a SQLite file or None, got {store!r}")
