"""The cache follows the real emulator: external writes, faults, collections, subscribers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("google.cloud.firestore", reason="google-cloud-firestore is not installed")

from beastmode.cache import BeastModeCache, Lease
from beastmode.optimizer import BeastModeOptimizer
from beastmode.requests import Request
from beastmode.stores.base import Change
from beastmode.stores.documents import Delete, Merge, Set
from beastmode.stores.firestore.store import FirestoreStore
from beastmode.sync import BeastModeRealTimeSync
from beastmode.testing import FaultProxy
from beastmode.testing.pytest_plugin import Firestore
from store_support import wait_until


class Followed:
    """A cache with a short time to live over a store, and another client that writes."""

    def __init__(self, firestore: Firestore, host: str | None = None, **options: Any) -> None:
        self.other = FirestoreStore(firestore.project, emulator_host=firestore.host)
        self.store = FirestoreStore(firestore.project, emulator_host=host or firestore.host)
        self.cache = BeastModeCache(self.store, ttl_s=1.0, max_stale_s=30.0)
        self.sync = BeastModeRealTimeSync(
            self.store, self.cache, lease=Lease, interval_s=0.02, **options
        )

    def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        def turned() -> object:
            self.sync.tick()
            return condition()

        wait_until(turned, seconds)

    def current(self, number: int) -> None:
        self.until(lambda: self.sync.get_stats().current == number)

    def source(self, path: str) -> str:
        return self.cache.get(path).source

    def data(self, path: str) -> Any:
        return self.cache.get(path).document.data

    def close(self) -> None:
        self.sync.close()
        self.cache.close()
        self.store.close()
        self.other.close()


@pytest.fixture
def followed(firestore: Firestore) -> Iterator[Followed]:
    made = Followed(firestore)
    yield made
    made.close()


def test_external_writes_reach_the_cache_and_nothing_is_loaded_again(followed: Followed) -> None:
    followed.other.commit([Set(f"u/{n}", {"n": n}) for n in range(20)])
    followed.sync.start()
    for n in range(21):
        followed.cache.get(f"u/{n}")
    followed.current(21)
    followed.other.commit([Set("u/1", {"n": 100}), Merge("u/2", {"m": 1}), Delete("u/3")])
    followed.other.commit([Set("u/20", {"n": 20})])
    followed.until(lambda: followed.data("u/20") == {"n": 20})
    time.sleep(1.2)  # beyond the time to live
    followed.sync.tick()
    sources = {followed.source(f"u/{n}") for n in range(21)}
    assert sources == {"hit"}
    assert followed.data("u/1") == {"n": 100}
    assert followed.data("u/2") == {"n": 2, "m": 1}
    assert followed.data("u/3") is None
    assert followed.sync.active


def test_a_collection_is_followed_as_a_whole(firestore: Firestore) -> None:
    followed = Followed(firestore, collections=["u"])
    followed.other.commit([Set(f"u/{n}", {"n": n}) for n in range(5)])
    followed.sync.start()
    followed.current(1)
    for path in ("u/1", "u/none", "v/1"):
        followed.cache.get(path)
    followed.current(2)
    report = followed.sync.get_stats()
    assert (report.collections, report.documents) == (1, 1)
    followed.other.commit([Set("u/none", {"n": 7}), Set("u/1", {"n": 8})])
    followed.until(lambda: followed.data("u/none") == {"n": 7})
    followed.until(lambda: followed.data("u/1") == {"n": 8})
    followed.other.commit([Delete("u/1")])
    followed.until(lambda: followed.data("u/1") is None)
    followed.close()


def test_a_lost_connection_is_doubt_and_then_made_good(firestore: Firestore) -> None:
    port = int(firestore.host.rpartition(":")[2])
    with FaultProxy(f"127.0.0.1:{port}") as proxy:
        followed = Followed(firestore, proxy.host)
        followed.other.commit([Set("u/a", {"n": 1}), Set("u/b", {"n": 1})])
        followed.sync.start()
        seen: list[Change] = []
        followed.sync.subscribe("u/a", seen.append)
        assert (followed.source("u/a"), followed.source("u/b")) == ("store", "store")
        followed.current(2)
        proxy.cut(refuse=True)
        followed.until(lambda: not followed.sync.active)
        assert followed.sync.get_stats().failures >= 1
        # The change is made while nobody hears; what is served meanwhile says that it is old.
        followed.other.commit([Set("u/a", {"n": 2})])
        assert followed.source("u/b") == "stale"
        proxy.pass_on()
        healed = time.monotonic()
        followed.current(2)
        assert time.monotonic() - healed < 5
        assert followed.data("u/a") == {"n": 2}
        wait_until(lambda: [one.document.data for one in seen] == [{"n": 2}])
        assert followed.sync.get_stats().last_error
        followed.close()


def test_the_optimizer_follows_and_tells_subscribers(firestore: Firestore) -> None:
    other = FirestoreStore(firestore.project, emulator_host=firestore.host)
    store = FirestoreStore(firestore.project, emulator_host=firestore.host)
    other.commit([Set("u/a", {"n": 1})])
    seen: list[Change] = []
    with BeastModeOptimizer(
        store, write_mode="write-through", cache_ttl_s=1, sync_interval_ms=20
    ) as optimizer:
        wait_until(lambda: optimizer.active)
        optimizer.sync.subscribe("u/a", seen.append)

        def read() -> Any:
            response = optimizer.handle_request_sync("user", Request.get("u/a"))
            return response.data, response.source

        read()
        wait_until(lambda: optimizer.get_stats().sync.current == 1)

        def read_late() -> Any:
            time.sleep(1.2)  # beyond the time to live
            return read()

        wait_until(lambda: read_late() == ({"n": 1}, "hit"), 20)
        other.commit([Set("u/a", {"n": 2})])
        wait_until(lambda: read() == ({"n": 2}, "hit"))
        wait_until(lambda: len(seen) == 1)
        assert optimizer.get_stats().sync.documents == 1
    store.close()
    other.close()


def test_disabled_beast_mode_listens_to_no_document(firestore: Firestore) -> None:
    """Straight to the store costs what it costs without us: no reads of listeners beside it."""
    store = FirestoreStore(firestore.project, emulator_host=firestore.host)
    with BeastModeOptimizer(store, write_mode="write-through", sync_interval_ms=20) as optimizer:

        def ask(request: Request) -> Any:
            return optimizer.handle_request_sync(None, request)

        wait_until(lambda: optimizer.active)
        store.commit([Set(f"u/{number}", {"n": number}) for number in range(30)])
        for number in range(30):
            ask(Request.get(f"u/{number}"))
        wait_until(lambda: optimizer.get_stats().sync.current == 30)
        optimizer.disable_beast_mode()
        wait_until(lambda: optimizer.get_stats().sync.documents == 0)
        before = optimizer.get_performance_stats().cost_reduction.detail["listener_units"]
        for number in range(30, 50):
            ask(Request.set(f"u/{number}", {"n": 0}))
            ask(Request.get(f"u/{number}"))
            ask(Request.commit([Merge(f"u/{number}", {"m": 0}), Set(f"v/{number}", {})]))
        optimizer.sync.tick()
        stats = optimizer.get_stats()
        assert (stats.cache.engine.currsize, stats.sync.documents) == (0, 0)
        after = optimizer.get_performance_stats().cost_reduction.detail["listener_units"]
        assert after == before
        assert optimizer.enable_beast_mode()
        assert ask(Request.get("u/30")).source == "store"
        assert ask(Request.get("u/30")).source == "hit"
    store.close()
