"""Reads of documents that have a transform pending: they wait for it, and are never guesses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode import (
    SERVER_TIMESTAMP,
    ArrayUnion,
    BeastModeOptimizer,
    Filter,
    Increment,
    Query,
    Request,
    Set,
    SQLiteStore,
    Update,
)
from beastmode.batcher import BeastModeBatcher
from beastmode.errors import (
    BreakerOpen,
    DocumentMissing,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.optimizer.parts import committed_document
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Document, freeze
from layer.faulty_store import Failing, FaultyStore, Gate
from store_support import wait_until

Ask = Callable[..., Any]
NEVER_MS = 3_600_000  # only what a test asks for is flushed


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultyStore]:
    inner = SQLiteStore(tmp_path / "app.db")
    inner.commit([Set("u/a", {"n": 1, "w": 1}), Set("u/b", {"n": 1})])
    made = FaultyStore(inner)
    yield made
    made.close()


@pytest.fixture
def optimizer(store: FaultyStore, tmp_path: Path) -> Iterator[BeastModeOptimizer]:
    with BeastModeOptimizer(
        store, journal_path=tmp_path / "app.journal", batch_max_delay_ms=NEVER_MS
    ) as made:
        yield made
        store.before = store.after = None


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, optimizer: BeastModeOptimizer) -> Ask:
    """Send a request by thread or by coroutine: every behaviour holds for both."""

    def by_thread(what: Request, deadline: float | None = None) -> Any:
        return optimizer.handle_request_sync(None, what, deadline=deadline)

    def by_coroutine(what: Request, deadline: float | None = None) -> Any:
        return asyncio.run(optimizer.handle_request(None, what, deadline=deadline))

    return by_thread if request.param == "sync" else by_coroutine


def eventually_a_hit(ask: Ask) -> None:
    """A change that is heard of during a load keeps that one load out of the cache."""
    end = time.monotonic() + 20
    while ask(Request.get("u/a")).source != "hit":
        assert time.monotonic() < end, "the document is never cached"


COUNT = Request.merge("u/a", {"n": Increment(1)})


def test_a_read_has_the_transform_committed_first(ask: Ask, store: FaultyStore) -> None:
    eventually_a_hit(ask)
    assert ask(COUNT).source == "journal"
    assert not store.commits
    assert ask(Request.get("u/a")).data == {"n": 2, "w": 1}
    assert len(store.commits) == 1
    eventually_a_hit(ask)
    ask(COUNT)
    ask(Request.update("u/a", {"t": SERVER_TIMESTAMP, "l": ArrayUnion([1])}))
    ask(Request.merge("u/a", {"w": 2}))
    answer = ask(Request.get("u/a"))
    assert (answer.data["n"], answer.data["l"], answer.data["w"]) == (3, [1], 2)
    assert answer.data["t"].tzinfo is not None


def test_many_reads_and_queries_too(ask: Ask, store: FaultyStore) -> None:
    paths = ["u/a", "u/b", "u/none", "u/a"]
    ask(Request.get_many(paths))
    ask(COUNT)
    ask(Request.set("u/none", {"n": Increment(5)}))
    documents = ask(Request.get_many(paths)).documents
    assert [document.data["n"] for document in documents] == [2, 1, 5, 2]
    ask(COUNT)
    found = ask(Request.query(Query("u", (Filter("n", "==", 3),)))).documents
    assert [document.path for document in found] == ["u/a"]


def test_only_the_documents_with_a_transform_wait(ask: Ask, store: FaultyStore) -> None:
    ask(Request.get("u/b"))
    ask(Request.merge("u/b", {"x": 1}))
    ask(COUNT)
    assert ask(Request.get("u/b")).data == {"n": 1, "x": 1}
    assert not store.commits


def test_what_replaces_the_result_is_known_at_once(ask: Ask, store: FaultyStore) -> None:
    gate = store.before = Gate()
    ask(COUNT)
    reader = threading.Thread(target=lambda: ask(Request.get("u/a")))
    reader.start()
    assert gate.arrived.wait(20)
    ask(Request.set("u/a", {"n": 9}))  # while the transform is being committed
    assert ask(Request.get("u/a")).data == {"n": 9}
    ask(COUNT)
    gate.open.set()
    assert ask(Request.get("u/a")).data == {"n": 10}
    reader.join()


def test_the_deadline_bounds_the_wait(ask: Ask, store: FaultyStore) -> None:
    store.before = Failing(*[StoreUnavailable("down")] * 10_000)
    ask(COUNT)
    ask(Request.merge("u/b", {"x": 1}))
    for request in (Request.get("u/a"), Request.get_many(["u/b", "u/a"])):
        began = time.monotonic()
        # Late, or refused at once after five failures in a row.
        with pytest.raises((StoreTimeout, BreakerOpen), match="down"):
            ask(request, deadline_in(0.2))
        assert time.monotonic() - began < 5
    store.before = None

    def is_counted() -> bool:
        try:
            return bool(ask(Request.get("u/a")).data == {"n": 2, "w": 1})
        except BreakerOpen:
            return False

    wait_until(is_counted)


def test_a_transform_that_the_store_rejects(ask: Ask, store: FaultyStore) -> None:
    ask(Request.update("u/none", {"n": Increment(1)}))
    assert ask(Request.get("u/none")).data is None
    ask(Request.update("u/none", {"n": Increment(1)}))
    ask(Request.set("u/none", {"n": 1}))
    ask(COUNT)
    assert ask(Request.get("u/none")).data == {"n": 1}


def test_past_beast_mode_as_well(
    ask: Ask, optimizer: BeastModeOptimizer, store: FaultyStore
) -> None:
    ask(COUNT)
    optimizer.disable_beast_mode()
    assert ask(Request.get("u/a")).data["n"] == 2
    assert ask(COUNT).source == "store"
    assert ask(Request.get_many(["u/a"])).documents[0].data["n"] == 3
    optimizer.enable_beast_mode()
    ask(Request.get("u/a"))
    answer = ask(Request.commit([Set("u/a", {"n": 7}), Update("u/a", {"n": Increment(1)})]))
    assert len(answer.versions) == 2
    assert ask(Request.get("u/a")).data == {"n": 8}


def test_a_restart_commits_what_the_journal_has(store: FaultyStore, tmp_path: Path) -> None:
    journal = tmp_path / "restart.journal"
    store.before = Failing(*[StoreUnavailable("down")] * 10_000)
    first = BeastModeOptimizer(store, journal_path=journal).start()
    first.handle_request_sync(None, COUNT)
    with pytest.raises(Exception, match="operations"):
        first.close(deadline_in(0.2))
    store.before = None
    with BeastModeOptimizer(store, journal_path=journal) as second:
        assert second.handle_request_sync(None, Request.get("u/a")).data == {"n": 2, "w": 1}


def test_a_cached_document_from_before_the_commit_is_not_shown(
    ask: Ask, optimizer: BeastModeOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(Request.get_many(["u/a", "u/b"]))
    cache = optimizer._parts.cache
    gate, finish = Gate(), cache.write_finished

    def late(*arguments: Any, **named: Any) -> None:
        gate(())
        finish(*arguments, **named)

    monkeypatch.setattr(cache, "write_finished", late)
    monkeypatch.setattr(cache, "apply_change", lambda change: None)  # nor has the watch told it
    ask(COUNT)
    flush = threading.Thread(target=optimizer.flush)
    flush.start()
    assert gate.arrived.wait(20)  # it is in the store, and the cache does not know
    assert cache.get("u/a").document.to_dict() == {"n": 1, "w": 1}
    assert ask(Request.get("u/a")).data == {"n": 2, "w": 1}
    many = ask(Request.get_many(["u/b", "u/a", "u/a"])).documents
    assert [document.data["n"] for document in many] == [1, 2, 2]
    gate.open.set()
    flush.join()
    assert ask(Request.get("u/a")).data == {"n": 2, "w": 1}


def test_a_callback_of_the_batcher_does_not_wait_for_itself(store: FaultyStore) -> None:
    raised: list[BaseException] = []

    def committed(operation: Any, version: int) -> None:
        try:
            batcher.drain(["u/b"])
        except RequestError as error:
            raised.append(error)

    batcher = BeastModeBatcher(store, max_delay_s=3600.0, max_ops=1, on_committed=committed)
    with batcher:
        batcher.write([Update("u/b", {"n": Increment(1)}), Update("u/b", {"n": Increment(1)})])
        batcher.flush()
    assert "wait for itself" in str(raised[0])
    assert store.inner.get("u/b").data == {"n": 3}


def test_counters_under_load_lose_nothing(optimizer: BeastModeOptimizer) -> None:
    optimizer.configure(batch_max_delay_ms=5)
    backwards: list[tuple[int, int]] = []

    def count() -> None:
        seen = 0
        for _ in range(40):
            optimizer.handle_request_sync(None, COUNT)
            now = optimizer.handle_request_sync(None, Request.get("u/a")).data["n"]
            if now <= seen:
                backwards.append((seen, now))
            seen = now

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not backwards  # each saw its own increment, and never fewer than before
    assert optimizer.handle_request_sync(None, Request.get("u/a")).data["n"] == 161


def test_only_the_store_knows_what_a_transform_made() -> None:
    plain = Set("u/a", {"n": 1})
    assert committed_document(plain, 5) == Document("u/a", freeze({"n": 1}), 5)
    assert committed_document(Set("u/a", {"n": Increment(1)}), 5) is None


def test_a_write_through_transform_is_answered_with_its_version(store: FaultyStore) -> None:
    with BeastModeOptimizer(store, write_mode="write-through") as made:
        (version,) = made.handle_request_sync(None, COUNT).versions or [0]
        answer = made.handle_request_sync(None, Request.get("u/a"))
        assert (answer.data, answer.document and answer.document.version) == (
            {"n": 2, "w": 1},
            version,
        )
        with pytest.raises(DocumentMissing):
            made.handle_request_sync(None, Request.update("u/none", {"n": Increment(1)}))
