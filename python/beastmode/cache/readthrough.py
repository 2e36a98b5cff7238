"""`BeastModeCache`: documents of a store, read through a bounded cache, sync and async."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from beastcore import Cache
from beastcore._validate import check_callable, check_count, check_seconds
from beastmode.cache.holdings import Entry
from beastmode.cache.loader import Loader
from beastmode.cache.query_loader import QueryAnswer, QueryLoader
from beastmode.cache.report import Answer, CacheReport
from beastmode.cache.rules import Key, Rule, RuleBook, check_lifetime, setting
from beastmode.cache.state import CacheState
from beastmode.cache.table import Read
from beastmode.cache.upkeep import Upkeep
from beastmode.errors import ClosedError, ConfigError, RequestError
from beastmode.stores.base import AsyncStore, Query, Store
from beastmode.stores.documents import Document, check_path

__all__ = ["BeastModeCache"]

_WARM_CHUNK: Final = 500


class BeastModeCache(Upkeep):
    """A read-through cache of a store's documents, shared by threads and event loops.

    `store`, `async_store`
        where documents come from; the second is used for coroutines, which without it have
        their loads done by a few threads of the cache. Neither is closed by the cache
    `max_entries`
        most documents held
    `ttl_s`, `negative_ttl_s`
        seconds for which a document, or the knowledge that there is none, is fresh; None or inf
        for ever; `negative_ttl_s=0` does not keep that knowledge
    `max_stale_s`
        seconds by which an overdue document may still be served while the store cannot be
        reached or does not answer in time; beyond it the error is raised
    `stale_while_revalidate_s`
        for so many seconds an overdue document is served at once while one background load
        renews it; at most `max_stale_s`
    `rules`
        `Rule` objects per collection; the first that matches counts
    `load_deadline_s`
        how long a load may take, where the reader gives no deadline
    `ttl_jitter`
        share from 0 to 1 by which times to live are shortened at random, so that documents
        loaded together do not all fall due together
    `reload_rate`
        documents in a second, and at once, that are loaded because they are in doubt; further
        readers of such documents are served stale meanwhile, for at most `max_stale_s`. After an
        outage this keeps a cache full of doubt from asking for everything at once
    `coalesce_reads`
        whether single reads that coroutines begin in one turn of their event loop are asked of
        `async_store` in one `get_many`
    `max_queries`, `max_query_documents`
        most results of queries that are held, and most documents in all of them
    `timer`
        monotonic seconds for freshness. Deadlines are times of `time.monotonic` always
    `on_error`
        called with the exception of each background load that failed, from the thread or loop
        that ran it

    A document is fresh for its time to live from the moment its load began. All readers of one
    key at one moment share one load, whether they are threads or coroutines: each keeps its own
    deadline, cancelling one disturbs none, and an error reaches all and is not kept. A load that
    a write, change or invalidation has overtaken is given to the readers who were waiting for it
    (they began before) and is not installed; readers who come later start a new one.

    Bad settings raise ConfigError; after `close()` everything but `get_stats` raises ClosedError.
    """

    def __init__(
        self,
        store: Store,
        async_store: AsyncStore | None = None,
        *,
        max_entries: int = 1_000_000,
        ttl_s: float | None = 300.0,
        negative_ttl_s: float | None = 30.0,
        max_stale_s: float = 60.0,
        stale_while_revalidate_s: float = 0.0,
        rules: Iterable[Rule] = (),
        load_deadline_s: float = 2.0,
        ttl_jitter: float = 0.0,
        reload_rate: float = 1000.0,
        coalesce_reads: bool = False,
        max_queries: int = 1000,
        max_query_documents: int = 100_000,
        timer: Callable[[], float] = time.monotonic,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        max_entries = setting(check_count, "max_entries", max_entries)
        max_stale = setting(check_seconds, "max_stale_s", max_stale_s, zero=True)
        revalidate = setting(
            check_seconds, "stale_while_revalidate_s", stale_while_revalidate_s, zero=True
        )
        if revalidate > max_stale:
            raise ConfigError(
                f"stale_while_revalidate_s must be at most max_stale_s ({max_stale}), "
                f"got {stale_while_revalidate_s!r}"
            )
        jitter = setting(check_seconds, "ttl_jitter", ttl_jitter, zero=True)
        if jitter >= 1:
            raise ConfigError(f"ttl_jitter must be from 0 to below 1, got {ttl_jitter!r}")
        setting(check_callable, "on_error", on_error)
        if not callable(timer):
            raise ConfigError(f"timer must be callable, got {timer!r}")
        load_deadline_s = setting(check_seconds, "load_deadline_s", load_deadline_s)
        rate = setting(check_seconds, "reload_rate", reload_rate)
        if rate < 1:
            raise ConfigError(f"reload_rate must be at least 1 in a second, got {reload_rate!r}")
        if not isinstance(coalesce_reads, bool):
            raise ConfigError(f"coalesce_reads must be True or False, got {coalesce_reads!r}")
        book = RuleBook(
            rules,
            ttl=check_lifetime("ttl_s", ttl_s),
            negative_ttl=check_lifetime("negative_ttl_s", negative_ttl_s, zero=True),
            max_stale=max_stale,
        )
        # The engine's built-in clock is cheaper than a Python timer.
        self._engine: Cache[Key, Entry] = Cache(
            max_entries, timer=None if timer is time.monotonic else timer
        )
        state = CacheState(
            self._engine,
            book,
            revalidate_s=revalidate,
            jitter=jitter,
            reload_rate=rate,
            max_queries=setting(check_count, "max_queries", max_queries),
            max_query_documents=setting(check_count, "max_query_documents", max_query_documents),
        )
        super().__init__(state, timer)
        self._loader = Loader(
            state,
            store,
            async_store,
            deadline_s=load_deadline_s,
            timer=timer,
            on_error=on_error,
            gather=coalesce_reads,
        )
        self._queries = QueryLoader(state, self._loader, store, async_store, timer=timer)
        self._find: Callable[[Key], Entry | None] = self._engine.get
        self._shares_keys = book.shares_keys

    # -- reads ---------------------------------------------------------------------------------

    def lookup(
        self, path: str, user: str | None = None, now: float | None = None
    ) -> Document | None:
        """Return the fresh document held for `path`, else None; never waits for a load.

        Takes no lock, except where a lease has to prolong what it finds.
        `now` is the cache's timer, for a caller who has just read it. O(1).
        """
        entry = self._find(path if self._shares_keys else self._book.key_of(path, user))
        if entry is None:
            return None
        if now is None:
            now = self._timer()
        if now < entry.fresh_until or (entry.lease is not None and self._state.prolong(entry, now)):
            document = entry.document
            if document.data is None:
                self._state.negative_hits += 1
            return document
        self._state.overdue_lookups += 1
        return None

    def get(self, path: str, *, user: str | None = None, deadline: float | None = None) -> Answer:
        """Return the document, from the cache or loaded from the store.

        `deadline` is a time of `time.monotonic` (default: `load_deadline_s` from now).
        Errors: RequestError for a bad path, or no `user` where a rule needs one; StoreTimeout
        and StoreUnavailable when nothing can be served stale; LoadError when the store returned
        something else; CacheError when the load asks the cache for this very document; and
        whatever else the store raised. A load that was cancelled counts as late (StoreTimeout).
        """
        document = self.lookup(path, user)
        if document is not None:
            return Answer(document, "hit")
        return self.load(path, user=user, deadline=deadline)

    async def aget(
        self, path: str, *, user: str | None = None, deadline: float | None = None
    ) -> Answer:
        """As `get`; a hit does not suspend."""
        document = self.lookup(path, user)
        if document is not None:
            return Answer(document, "hit")
        return await self.aload(path, user=user, deadline=deadline)

    def load(self, path: str, *, user: str | None = None, deadline: float | None = None) -> Answer:
        """As `get`, for a caller whose `lookup` has just answered None: counts no second miss."""
        read = Read(*self._resolve(path, user))
        self._loader.read([read], deadline, one=True)
        return _answer(read)

    async def aload(
        self, path: str, *, user: str | None = None, deadline: float | None = None
    ) -> Answer:
        """As `aget`, for a caller whose `lookup` has just answered None."""
        read = Read(*self._resolve(path, user))
        await self._loader.aread([read], deadline, one=True)
        return _answer(read)

    def get_many(
        self, paths: Sequence[str], *, user: str | None = None, deadline: float | None = None
    ) -> list[Answer]:
        """Return the documents in the order of `paths`; what must be loaded is loaded at once.

        Documents that other readers are loading are waited for, all others are asked of the
        store in one `get_many`. Errors as for `get`; an error of any document is raised, what
        was loaded stays cached.
        """
        found, missing = self._look_up_many(paths, user)
        if missing:
            self._loader.read(list(missing.values()), deadline)
        return [_answer(missing[key]) if answer is None else answer for key, answer in found]

    async def aget_many(
        self, paths: Sequence[str], *, user: str | None = None, deadline: float | None = None
    ) -> list[Answer]:
        """As `get_many`; does not suspend when all are held."""
        found, missing = self._look_up_many(paths, user)
        if missing:
            await self._loader.aread(list(missing.values()), deadline)
        return [_answer(missing[key]) if answer is None else answer for key, answer in found]

    def query(self, query: Query, *, deadline: float | None = None) -> QueryAnswer:
        """Return the documents that `query` describes, from a held result or from the store.

        Results are held for collections that `cover_collection` covers, until something in them
        changes. Readers of the same query at one moment share one call of the store, unless the
        collection was written to in between. The caller's own writes must be in the store.
        While the store cannot be reached or is late, a result that was right until doubt, or until
        its lease ended, is served as stale for `max_stale_s` from then, unless something in the
        collection has been seen or written since. `deadline` is a time of `time.monotonic`
        (default: the store's). Errors: what the store raised, StoreTimeout, LoadError.
        """
        return self._queries.query(_check_query(query), deadline)

    async def aquery(self, query: Query, *, deadline: float | None = None) -> QueryAnswer:
        """As `query`; a held result does not suspend."""
        return await self._queries.aquery(_check_query(query), deadline)

    def warm(
        self, paths: Iterable[str], *, user: str | None = None, deadline: float | None = None
    ) -> int:
        """Load what is not held fresh, 500 documents at a time; return how many were loaded.

        `deadline` is for all of it (default: `load_deadline_s` for each 500). Errors as for
        `get`; what was loaded before stays.
        """
        loaded = 0
        for chunk in _chunks(paths):
            answers = self.get_many(chunk, user=user, deadline=deadline)
            loaded += sum(answer.source == "store" for answer in answers)
        return loaded

    async def awarm(
        self, paths: Iterable[str], *, user: str | None = None, deadline: float | None = None
    ) -> int:
        """As `warm`."""
        loaded = 0
        for chunk in _chunks(paths):
            answers = await self.aget_many(chunk, user=user, deadline=deadline)
            loaded += sum(answer.source == "store" for answer in answers)
        return loaded

    # -- room and settings ---------------------------------------------------------------------

    def cleanup(self, limit: int | None = None) -> int:
        """Remove at most `limit` entries that are too old even to be served stale; the number."""
        self._state.gate.check()
        self._state.reap(self._timer())
        self._loader.forget_closed_loops()
        return self._engine.expire(limit)

    def clear(self) -> None:
        """Drop every entry; loads in the air are not installed. Pending writes stay pending."""
        self._state.clear()

    def configure(self, *, ttl_s: float | None = None, max_entries: int | None = None) -> None:
        """Change settings of the running cache, all or nothing; None leaves one as it is.

        A shorter `ttl_s` counts for what is held already (this scans all entries), a longer one
        for what is loaded from now on. Fewer `max_entries` evict at once. ConfigError for bad
        values.
        """
        self._state.gate.check()
        ttl = None if ttl_s is None else check_lifetime("ttl_s", ttl_s)
        if max_entries is not None:
            self._state.held.resize(setting(check_count, "max_entries", max_entries))
        if ttl is not None:
            self._state.set_ttl(ttl)

    # -- ends ----------------------------------------------------------------------------------

    def get_stats(self) -> CacheReport:
        """Return the counters since construction; works after `close()` too."""
        return self._state.report()

    def close(self) -> None:
        """Drop everything, wake all waiting readers with ClosedError, stop the threads.

        Waits for background loads that run in the cache's threads, which end by their
        deadline; from an event loop call it by `asyncio.to_thread`. Idempotent.
        """
        if not self._state.close():
            return
        self._find = _closed
        self._loader.close()

    def _look_up_many(
        self, paths: Sequence[str], user: str | None
    ) -> tuple[list[tuple[Key, Answer | None]], dict[Key, Read]]:
        """Return each path's key and fresh answer, and a read for each key that has none."""
        self._state.gate.check()
        if isinstance(paths, str):
            raise RequestError(f"paths must be a sequence of document paths, got {paths!r}")
        paths = list(paths)
        keys = (
            [check_path(path) for path in paths]
            if self._shares_keys
            else [self._resolve(path, user)[0] for path in paths]
        )
        now = self._timer()
        found: list[tuple[Key, Answer | None]] = []
        missing: dict[Key, Read] = {}
        for path, key, entry in zip(paths, keys, self._engine.get_many(keys), strict=True):
            if entry is not None and (
                now < entry.fresh_until
                or (entry.lease is not None and self._state.prolong(entry, now))
            ):
                if entry.document.data is None:
                    self._state.negative_hits += 1
                found.append((key, Answer(entry.document, "hit")))
                continue
            self._state.overdue_lookups += entry is not None
            found.append((key, None))
            if key not in missing:
                missing[key] = Read(*self._resolve(path, user))
        return found, missing


def _answer(read: Read) -> Answer:
    assert read.answer is not None
    return read.answer


def _chunks(paths: Iterable[str]) -> Iterable[list[str]]:
    if isinstance(paths, str):
        raise RequestError(f"paths must be an iterable of document paths, got {paths!r}")
    rest = iter(paths)
    while chunk := list(itertools.islice(rest, _WARM_CHUNK)):
        yield chunk


def _check_query(query: object) -> Query:
    if not isinstance(query, Query):
        raise RequestError(f"query must be a Query, got {query!r}")
    return query


def _closed(_key: Key) -> Entry | None:
    raise ClosedError("the cache is closed")
