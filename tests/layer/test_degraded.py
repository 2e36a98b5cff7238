"""Degraded mode: what the optimizer answers while its store is down, and how it comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode import BeastModeOptimizer, Increment, Query, Request, Set, SQLiteStore
from beastmode.errors import BreakerOpen, StoreTimeout, StoreUnavailable
from beastmode.optimizer import parts
from beastmode.requests import Response
from beastmode.stores.base import Store, StoreHealth
from beastmode.stores.documents import Document
from layer.faulty_store import FaultyStore

GONE = StoreUnavailable("connection refused")


def eventually(check: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


@pytest.fixture(params=[False, True], ids=["threads", "coroutines"])
def ask(request: pytest.FixtureRequest) -> Callable[[BeastModeOptimizer, Request], Response]:
    if not request.param:
        return lambda optimizer, what: optimizer.handle_request_sync(None, what)
    return lambda optimizer, what: asyncio.run(optimizer.handle_request(None, what))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultyStore]:
    with SQLiteStore(tmp_path / "app.db") as inner:
        inner.commit([Set(f"users/{number}", {"n": number}) for number in range(50)])
        yield FaultyStore(inner)


def make(store: FaultyStore, tmp_path: Path, **settings: Any) -> BeastModeOptimizer:
    settings = {"batch_max_delay_ms": 20.0, "cache_ttl_s": 0.05, **settings}
    journal = str(tmp_path / "journal.db")
    return BeastModeOptimizer(store, journal_path=journal, **settings)


def take_down(optimizer: BeastModeOptimizer, store: FaultyStore) -> None:
    store.down = GONE
    for number in range(40, 45):
        with pytest.raises(StoreUnavailable):
            optimizer.handle_request_sync(None, Request.get(f"users/{number}"))
    assert optimizer.get_stats().signal.state != "closed"


def test_a_store_that_is_down(
    store: FaultyStore, tmp_path: Path, ask: Callable[[BeastModeOptimizer, Request], Response]
) -> None:
    with make(store, tmp_path) as optimizer:
        optimizer.handle_request_sync(None, Request.get("users/1"))
        time.sleep(0.06)
        take_down(optimizer, store)
        asked = store.asked
        billed = optimizer._tally.usage().actual

        # What is held is served, what is not is refused at once.
        answer = ask(optimizer, Request.get("users/1"))
        assert (answer.source, answer.data) == ("stale", {"n": 1})
        many = ask(optimizer, Request.get_many(["users/1"]))
        assert (many.source, len(many.documents or [])) == ("stale", 1)
        for what in (
            Request.get("users/2"),
            Request.query(Query("users")),
            Request.commit([Set("users/3", {})]),
        ):
            began = time.monotonic()
            with pytest.raises(BreakerOpen, match=r"connection refused.*next try in") as caught:
                ask(optimizer, what)
            assert time.monotonic() - began < 0.25
            assert caught.value.retry_after_s is not None
            assert 0 < caught.value.retry_after_s <= 2.4
        assert store.asked == asked
        assert optimizer._tally.usage().actual == billed

        # Writes are acknowledged by the journal and read back; a query of them does not wait.
        for number in range(10):
            assert ask(optimizer, Request.set("users/1", {"n": -number})).source == "journal"
        assert ask(optimizer, Request.get("users/1")).data == {"n": -9}
        began = time.monotonic()
        with pytest.raises(BreakerOpen):
            ask(optimizer, Request.query(Query("users")))
        with pytest.raises(BreakerOpen):
            ask(optimizer, Request.commit([Set("users/1", {})]))
        # What a transform makes of a document only the store can tell.
        assert ask(optimizer, Request.merge("users/5", {"n": Increment(1)})).source == "journal"
        for what in (Request.get("users/5"), Request.get_many(["users/5"])):
            with pytest.raises(BreakerOpen):
                ask(optimizer, what)
        assert time.monotonic() - began < 0.5

        # It comes back by itself.
        store.down = None
        back = time.monotonic()
        eventually(lambda: optimizer.get_stats().signal.ok, 5.0)
        eventually(lambda: optimizer.get_stats().batcher.pending == 0, 1.0)
        assert time.monotonic() - back < 3.0
        assert store.inner.get("users/1").data == {"n": -9}
        assert ask(optimizer, Request.get("users/2")).source == "store"
        assert ask(optimizer, Request.get("users/5")).data == {"n": 6}
        assert len(ask(optimizer, Request.query(Query("users"))).documents or []) == 50
        stats = optimizer.get_stats()
        assert stats.signal.opened >= 1
        assert stats.signal.refused >= 6
        eventually(lambda: (health := optimizer.get_stats().store) is not None and health.ok, 1.0)


def test_a_store_that_is_down_from_the_start(
    store: FaultyStore, tmp_path: Path, ask: Callable[[BeastModeOptimizer, Request], Response]
) -> None:
    """A process that starts in an outage takes writes like one that ran before it."""
    store.down = GONE
    optimizer = make(store, tmp_path).start()
    assert not optimizer.active
    assert ask(optimizer, Request.set("users/1", {"n": 100})).source == "journal"
    assert ask(optimizer, Request.merge("users/1", {"m": 1})).source == "journal"
    assert ask(optimizer, Request.merge("users/2", {"n": Increment(1)})).source == "journal"
    answer = ask(optimizer, Request.get("users/1"))
    assert (answer.source, answer.data) == ("buffer", {"n": 100, "m": 1})
    for what in (
        Request.get("users/2"),
        Request.get("users/3"),
        Request.query(Query("users")),
        Request.commit([Set("users/4", {})]),
    ):
        with pytest.raises((StoreUnavailable, StoreTimeout)):
            ask(optimizer, what)
    with pytest.raises(StoreTimeout, match="3 operations"):
        optimizer.close(time.monotonic() + 0.05)

    optimizer = make(store, tmp_path).start()  # again, and still in the outage
    assert ask(optimizer, Request.get("users/1")).data == {"n": 100, "m": 1}
    store.down = None
    eventually(lambda: optimizer.active)
    eventually(lambda: optimizer.get_stats().batcher.pending == 0)
    assert store.inner.get("users/1").data == {"n": 100, "m": 1}
    assert ask(optimizer, Request.get("users/2")).data == {"n": 3}
    optimizer.disable_beast_mode()
    assert ask(optimizer, Request.set("users/1", {"n": 0})).source == "store"
    optimizer.close()


def test_staleness_ends_at_its_bound(store: FaultyStore, tmp_path: Path) -> None:
    with make(store, tmp_path, max_stale_s=0.4) as optimizer:
        optimizer.handle_request_sync(None, Request.get("users/1"))
        loaded = time.monotonic()
        time.sleep(0.06)
        take_down(optimizer, store)
        while time.monotonic() < loaded + 0.4:
            assert optimizer.handle_request_sync(None, Request.get("users/1")).source == "stale"
            time.sleep(0.01)
        time.sleep(max(0.0, loaded + 0.5 - time.monotonic()))
        with pytest.raises(BreakerOpen):
            optimizer.handle_request_sync(None, Request.get("users/1"))


def test_the_flusher_neither_loses_nor_spins_while_it_is_open(
    store: FaultyStore, tmp_path: Path
) -> None:
    told: list[BaseException] = []
    optimizer = BeastModeOptimizer(
        store,
        journal_path=str(tmp_path / "journal.db"),
        batch_max_delay_ms=1.0,
        on_error=told.append,
    )
    with optimizer:
        store.down = GONE
        for number in range(100):
            optimizer.handle_request_sync(None, Request.merge("users/1", {f"f{number}": number}))
        eventually(lambda: not optimizer.get_stats().signal.ok)
        attempts, flushes = len(store.attempts), optimizer.get_stats().batcher.flushes
        time.sleep(1.5)
        assert len(store.attempts) == attempts  # the probes are not the flusher's
        assert optimizer.get_stats().batcher.flushes - flushes <= 20
        assert not any(isinstance(error, BreakerOpen) for error in told)
        assert optimizer.get_stats().batcher.pending == 100
        store.down = None
        eventually(lambda: optimizer.get_stats().batcher.pending == 0, 5.0)
        fields = store.inner.get("users/1").data
        assert fields == {"n": 1, **{f"f{number}": number for number in range(100)}}


def test_a_frozen_store_costs_no_request_more_than_its_deadline(
    store: FaultyStore, tmp_path: Path
) -> None:
    """Once it is open, nobody waits for a store that answers nothing."""

    class Frozen(FaultyStore):
        def get(self, path: str, *, deadline: float | None = None) -> Document:
            if self.down is not None:
                assert deadline is not None
                time.sleep(max(0.0, deadline - time.monotonic()))
            return super().get(path)

    frozen = Frozen(store.inner)
    with make(frozen, tmp_path) as optimizer:
        frozen.down = GONE
        slow = 0
        for number in range(40):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                optimizer.handle_request_sync(
                    None, Request.get(f"users/{number}"), deadline=began + 0.3
                )
            slow += time.monotonic() - began > 0.15
        assert slow == 5


class Billed(FaultyStore):
    """A store whose health probes are billed, as Firestore's are."""

    health_reads = 1

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.probes = 0

    def health(self) -> StoreHealth:
        self.probes += 1
        return super().health()


def test_billed_probes_are_made_only_where_requests_do_not_tell(
    store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed = Billed(store.inner)
    with make(billed, tmp_path, healing_interval_s=0.1) as optimizer:
        assert billed.probes == 1
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            optimizer.handle_request_sync(None, Request.get("users/1"))
            time.sleep(0.02)
        assert billed.probes == 1
        monkeypatch.setattr(parts, "_BILLED_PROBE_S", 0.05)
        eventually(lambda: billed.probes >= 3)
        assert optimizer._tally.usage().probes.reads == billed.probes
        monkeypatch.setattr(parts, "_BILLED_PROBE_S", 3600.0)
        take_down(optimizer, billed)
        eventually(lambda: (health := optimizer.get_stats().store) is not None and not health.ok)
        billed.down = None
        eventually(lambda: (health := optimizer.get_stats().store) is not None and health.ok)
