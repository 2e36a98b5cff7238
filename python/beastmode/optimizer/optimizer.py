"""BeastModeOptimizer: answers requests out of the cache where it can, out of the store where not.

The way of a request: cache check, else one load shared by all who ask (process, cache result);
writes go into the journal and the batch buffer and are visible to this process at once; changes
made elsewhere come in through the store's watch (real-time sync); response. docs/request-path.md
tells it in full.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, Self

from beastmode.cache import Answer, BeastModeCache, Rule
from beastmode.config import SETTINGS, BeastModeConfig
from beastmode.connections import BeastModeConnectionPool
from beastmode.errors import ClosedError, ConfigError, ForkedError, RequestError, WriteRejected
from beastmode.forking import tell_after_fork
from beastmode.optimizer.parts import Parts, PartsReport, check_store
from beastmode.optimizer.tally import Tally
from beastmode.optimizer.transactions import Transacting
from beastmode.optimizer.ways import Ways
from beastmode.process import ProcessProbe
from beastmode.requests import Request, Response, Source
from beastmode.stats import LatencySummary, Measurements, PerformanceStats
from beastmode.stores.base import AsyncStore, Store, check_deadline
from beastmode.stores.documents import Document
from beastmode.stores.metered import commit_units
from beastmode.sync import BeastModeRealTimeSync

__all__ = ["BeastModeOptimizer"]

logger = logging.getLogger(__name__)


class BeastModeOptimizer(Transacting):
    """Serves documents of `store` to threads and event loops, with beast mode on or off.

    `store`        a `Store`, the path of a SQLite file, or None for `config.store_path`
    `async_store`  the same store for coroutines; without it `store` is called in a few threads
    `config`       a `BeastModeConfig`; without it, or beside it, settings may be given by keyword
    `rules`        `Rule` objects that give collections their own times to live
    `on_error`     called with the exceptions of background work, which are also logged

    Use it as a context manager, sync or async, or call `start()` and `close()`:

        with BeastModeOptimizer("app.db") as optimizer:
            optimizer.handle_request_sync("user-1", Request.set("users/1", {"name": "Ada"}))
            response = optimizer.handle_request_sync("user-1", Request.get("users/1"))

    Beast mode becomes active by itself once the store answers. Until then reads go straight to the
    store, while writes are taken as always: an outage at the start loses none. While beast mode is
    disabled every request goes straight to the store. Must be made after a fork, not before.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str] | None = None,
        *,
        async_store: AsyncStore | None = None,
        config: BeastModeConfig | None = None,
        rules: Iterable[Rule] = (),
        on_error: Callable[[BaseException], object] | None = None,
        **settings: Any,
    ) -> None:
        given = check_store(store, async_store)
        if config is None:
            config = BeastModeConfig()
        elif not isinstance(config, BeastModeConfig):
            raise ConfigError(f"config must be a BeastModeConfig or None, got {config!r}")
        if given is not None and "store_path" in settings:
            raise ConfigError(
                f"store={store!r} and store_path={settings['store_path']!r} both name the store; "
                "give one of them"
            )
        if isinstance(given, (str, os.PathLike)):
            settings.setdefault("store_path", os.fspath(given))
            given = None
        if settings:
            config = config.replace(**settings)
        self._parts = Parts(config, given, async_store, rules, on_error)
        self._ways = Ways(self._parts)
        self._tally = Tally(self._parts.meter)
        self._probe = ProcessProbe()
        self._lifecycle = threading.RLock()
        # Apart from the life cycle: a flush may take long, and nothing else must wait for it.
        self._mode = threading.RLock()
        self._switch = threading.Lock()
        self._wanted = True  # not disabled: writes are buffered
        self._active = False  # and the store has answered: reads are served by the cache
        self._started = False
        self._closed = False
        self._forked = False
        self._since = time.monotonic()
        # What the hot path needs, without a chain of attributes.
        self._lookup: Callable[[str, str | None], Document | None] = self._parts.cache.lookup
        if self._parts.auditor is not None:
            self._lookup = self._parts.auditor.watch(self._lookup)
        self._unflushed = self._parts.unflushed
        self._touch = self._parts.connections.touch
        self._record_hit = self._tally.record_hit
        self._parts.housekeeper.add("activation", 0.25, self._activate)
        self._parts.housekeeper.add("commits", 5.0, self._ways.forget_closed_loops)
        tell_after_fork(self)

    # -- life ----------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether requests are served by beast mode now."""
        return self._active

    @property
    def config(self) -> BeastModeConfig:
        """The settings in force."""
        return self._parts.config

    @property
    def cache(self) -> BeastModeCache:
        """The cache, to warm it or to invalidate documents that others changed."""
        return self._parts.cache

    @property
    def connections(self) -> BeastModeConnectionPool:
        """The connected users; each request of a user who is in it counts as activity."""
        return self._parts.connections

    @property
    def sync(self) -> BeastModeRealTimeSync:
        """The real-time sync; `sync.subscribe` tells a callback of changes."""
        return self._parts.sync

    def start(self) -> Self:
        """Replay the journal, follow the store's changes, become active if the store answers."""
        with self._lifecycle:
            self._check_usable()
            if not self._started:
                self._parts.start()
                self._started = True
                self._activate()
        return self

    def close(self, deadline: float | None = None) -> None:
        """Flush what is buffered and end everything; idempotent.

        Raises what kept a write from the store by `deadline` (`time.monotonic`); it stays in the
        journal for the next start. Everything is ended all the same.
        """
        check_deadline(deadline)
        with self._lifecycle:
            if self._closed:
                return
            with self._switch:
                self._closed = True
                self._active = False
            if not self._forked:
                self._parts.close(deadline)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            try:
                self.close()
            except Exception:  # what kept it from starting says more
                logger.exception("closing after a start that failed")
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def enable_beast_mode(self) -> bool:
        """Serve requests by beast mode, from now on or once the store answers; whether it is on."""
        with self._mode:
            self._check_usable()
            self._wanted = True
            self._activate()
            return self._active

    async def aenable_beast_mode(self) -> bool:
        """As `enable_beast_mode`, without blocking the event loop."""
        return await asyncio.to_thread(self.enable_beast_mode)

    def disable_beast_mode(self, deadline: float | None = None) -> None:
        """Send every request straight to the store, after flushing what is buffered.

        Over a store that is followed document by document (Firestore) the cache is emptied and its
        documents are listened to no more; collections and what subscribers want still are. Where
        the flush fails, its error is raised and beast mode stays as it was.
        """
        with self._mode:
            self._check_usable()
            with self._switch:
                was_wanted, was_active = self._wanted, self._active
                self._wanted = self._active = False
            try:
                self._parts.batcher.flush(deadline)
            except BaseException:
                with self._switch:
                    self._wanted = was_wanted
                    self._active = was_active and not self._closed
                raise
            if not self._parts.sync.follows_everything:
                # Nobody reads it, each change of it would be billed, and it would be in doubt.
                self._parts.cache.clear()

    async def adisable_beast_mode(self, deadline: float | None = None) -> None:
        """As `disable_beast_mode`, without blocking the event loop."""
        await asyncio.to_thread(self.disable_beast_mode, deadline)

    def configure(self, **changes: Any) -> BeastModeConfig:
        """Change settings of the running system, all or none, and return those in force.

        ConfigError for a setting that is unknown, not allowed, or fixed at the start.
        """
        with self._lifecycle:
            self._check_usable()
            config = self.config.replace(**changes)
            for name, value in changes.items():
                present = getattr(self.config, name)
                if not SETTINGS[name].live and getattr(config, name) != present:
                    raise ConfigError(
                        f"{name} is fixed at the start; make another optimizer to change it "
                        f"from {present!r} to {value!r}"
                    )
            self._parts.configure(config)
            return config

    def flush(self, deadline: float | None = None) -> None:
        """Return once every write accepted so far is in the store."""
        self._check_usable()
        self._parts.batcher.flush(deadline)

    def _activate(self) -> None:
        if self._active or not self._wanted or not self._started or self._closed:
            return
        health = self._parts.health
        if health is None or not health.ok:
            health = self._parts.probe()
        if health.ok:
            # What changed while requests went past the cache was seen only if it was followed.
            if not self._parts.sync.follows_everything:
                self._parts.cache.mark_unverified()
            self._switch_on()

    def _switch_on(self) -> None:
        with self._switch:  # it may have been disabled or closed during the probe
            self._active = self._wanted and not self._closed

    def _check_usable(self) -> None:
        if self._forked:
            raise ForkedError(
                "this BeastModeOptimizer was made before a fork and its threads did not come "
                "along; make one in each process after the fork"
            )
        if self._closed:
            raise ClosedError("BeastModeOptimizer was used after close()")

    # -- figures -------------------------------------------------------------------------------

    def get_performance_stats(self) -> PerformanceStats:
        """Return the seven key figures since the start; docs/kpis.md has the formulas."""
        latencies = self._tally.latencies()
        reads, without_store = self._tally.reads()
        connections = self._parts.connections.get_stats()
        tracked = connections.added > 0
        return PerformanceStats.compute(
            Measurements(
                window_s=time.monotonic() - self._since,
                target_response_ms=self.config.target_response_ms,
                memory_limit_bytes=self.config.memory_limit_bytes,
                latency=LatencySummary.of(latencies),
                requests=latencies.count,
                errors=self._tally.failed,
                reads=reads,
                reads_without_store=without_store,
                active_connections=connections.active if tracked else None,
                max_connections=connections.max_connections if tracked else None,
                memory_bytes=self._probe.read().memory_bytes,
                cost=self._tally.usage(),
                prices=self.config.prices,
            )
        )

    def get_stats(self) -> PartsReport:
        """Return the reports of all components."""
        return self._parts.report()

    # -- requests ------------------------------------------------------------------------------

    async def handle_request(
        self,
        user_id: str | None,
        request: Request | Mapping[str, Any],
        *,
        deadline: float | None = None,
    ) -> Response:
        """Answer one request of a user; a cache hit does not suspend.

        `deadline` is a time of `time.monotonic`; without it each component's own holds. Raises
        RequestError for a malformed request, WriteRejected for a write that the store turns
        down, StoreError when the store cannot answer and nothing may be served stale.
        """
        began = perf_counter_ns()
        try:
            parsed = request if type(request) is Request else Request.parse(request)
            if parsed.op == "get":
                response = self._hit(user_id, parsed.path, began)
                if response is not None:
                    return response
            self._admit(user_id, deadline)
            if parsed.op == "get":
                return self._read_one(
                    *await self._ways.aget(user_id, parsed, deadline, active=self._active), began
                )
            if parsed.op == "get_many":
                return self._read_many(
                    *await self._ways.aget_many(user_id, parsed, deadline, active=self._active),
                    began,
                )
            if parsed.op == "query":
                return self._queried(
                    *await self._ways.aquery(parsed, deadline, active=self._active), began
                )
            if parsed.op == "heartbeat":
                return self._beat(began)
            return self._written(
                parsed, *await self._ways.awrite(parsed, deadline, active=self._wanted), began
            )
        except Exception as error:
            self._count_error(error, began)
            raise

    def handle_request_sync(
        self,
        user_id: str | None,
        request: Request | Mapping[str, Any],
        *,
        deadline: float | None = None,
    ) -> Response:
        """As `handle_request`, for threads; blocks while the store is asked."""
        began = perf_counter_ns()
        try:
            parsed = request if type(request) is Request else Request.parse(request)
            if parsed.op == "get":
                response = self._hit(user_id, parsed.path, began)
                if response is not None:
                    return response
            self._admit(user_id, deadline)
            if parsed.op == "get":
                return self._read_one(
                    *self._ways.get(user_id, parsed, deadline, active=self._active), began
                )
            if parsed.op == "get_many":
                return self._read_many(
                    *self._ways.get_many(user_id, parsed, deadline, active=self._active), began
                )
            if parsed.op == "query":
                return self._queried(
                    *self._ways.query(parsed, deadline, active=self._active), began
                )
            if parsed.op == "heartbeat":
                return self._beat(began)
            return self._written(
                parsed, *self._ways.write(parsed, deadline, active=self._wanted), began
            )
        except Exception as error:
            self._count_error(error, began)
            raise

    def _hit(self, user_id: str | None, path: str | None, began: int) -> Response | None:
        """Answer from the cache, or return None: no lock, no wait, few allocations."""
        if not self._active or path is None or path in self._unflushed:
            return None
        document = self._lookup(path, user_id)
        if document is None:
            return None
        if user_id is not None:
            try:
                self._touch(user_id)
            except TypeError as error:
                raise _bad_user(user_id) from error
        self._record_hit(perf_counter_ns() - began)
        return Response("hit", document)

    def _admit(self, user_id: str | None, deadline: float | None) -> None:
        self._check_usable()
        if not self._started:
            raise ClosedError("BeastModeOptimizer was used before start()")
        check_deadline(deadline)
        if user_id is not None:
            try:
                self._touch(user_id)
            except TypeError as error:
                raise _bad_user(user_id) from error

    # -- answers, counted ----------------------------------------------------------------------

    def _read_one(self, document: Document, source: Source, began: int) -> Response:
        elapsed = perf_counter_ns() - began
        if source == "hit":
            self._record_hit(elapsed)
        else:
            self._tally.read(source, elapsed, 1, int(source != "store"), 1)
        return Response(source, document)

    def _read_many(
        self, documents: list[Document], answers: Sequence[Answer] | None, began: int
    ) -> Response:
        sources = {"store"} if answers is None else {answer.source for answer in answers}
        source: Source = "hit"
        for candidate in ("store", "stale"):
            if candidate in sources:
                source = candidate
                break
        held = 0 if answers is None else sum(answer.source != "store" for answer in answers)
        # Not record_hit: the histogram of hits counts single reads.
        kind = "other" if source == "hit" else source
        count = len(documents)
        once = len({document.path for document in documents})
        self._tally.read(kind, perf_counter_ns() - began, count, held, once)
        return Response(source, documents=documents)

    def _queried(self, documents: list[Document], source: Source, began: int) -> Response:
        count = max(1, len(documents))
        # Not record_hit: the histogram of hits counts single reads.
        kind = "other" if source == "hit" else source
        held = 0 if source == "store" else count
        self._tally.read(kind, perf_counter_ns() - began, count, held, count)
        return Response(source, documents=documents)

    def _written(
        self, request: Request, source: Source, versions: list[int] | None, began: int
    ) -> Response:
        units = commit_units(request.operations)
        self._tally.write(perf_counter_ns() - began, units)
        return Response(source, versions=versions)

    def _beat(self, began: int) -> Response:
        self._tally.end("other", perf_counter_ns() - began)
        return Response("table")

    def after_fork_in_child(self) -> None:
        """Refuse work in a forked child, where the threads do not run. See `tell_after_fork`."""
        self._forked = True
        self._active = False

    def _count_error(self, error: Exception, began: int) -> None:
        refused = isinstance(error, (RequestError, WriteRejected))
        self._tally.end("refused" if refused else "failed", perf_counter_ns() - began)


def _bad_user(user_id: object) -> RequestError:
    return RequestError(f"user_id must be hashable, or None; got {user_id!r}")
