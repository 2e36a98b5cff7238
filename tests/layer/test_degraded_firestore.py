"""Degraded mode over the real Firestore emulator: killed, frozen, and back again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode import BeastModeOptimizer, Query, Request, Set
from beastmode.errors import BreakerOpen, StoreError, StoreUnavailable
from beastmode.requests import Response
from beastmode.stores.base import deadline_in
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore
from beastmode.testing import Emulator, fresh_project, start_emulator

BACK_S = 5.0
"""Within so many seconds of the server serving again, requests are answered by it."""


@pytest.fixture(scope="module")
def faulty(emulator: Emulator) -> Iterator[Emulator]:
    """An emulator of its own, wherever there is one: others must not feel its faults."""
    with start_emulator() as started:
        yield started


class Service:
    """An optimizer over both Firestore stores, asked from a thread or an event loop."""

    def __init__(self, emulator: Emulator, tmp_path: Path, *, is_async: bool) -> None:
        project = fresh_project()
        self.store = FirestoreStore(project, emulator_host=emulator.host)
        self.async_store = AsyncFirestoreStore(project, emulator_host=emulator.host)
        self.is_async = is_async
        self.loop = asyncio.new_event_loop()
        self.optimizer = BeastModeOptimizer(
            self.store,
            async_store=self.async_store,
            journal_path=str(tmp_path / "journal.db"),
            cache_ttl_s=0.2,
            negative_ttl_s=0.001,
            batch_max_delay_ms=20.0,
        ).start()

    def ask(self, what: Request, seconds: float = 2.0) -> Response:
        """Ask, and hold that the answer or error comes within the deadline and 0.5 s."""
        began = time.monotonic()
        try:
            if not self.is_async:
                return self.optimizer.handle_request_sync(None, what, deadline=began + seconds)
            return self.loop.run_until_complete(
                self.optimizer.handle_request(None, what, deadline=began + seconds)
            )
        finally:
            assert time.monotonic() - began < seconds + 0.5, what

    def close(self) -> None:
        self.optimizer.close(deadline_in(5.0))
        self.loop.run_until_complete(self.async_store.close())
        self.loop.close()
        self.store.close()


@pytest.fixture(params=[False, True], ids=["threads", "coroutines"])
def service(request: pytest.FixtureRequest, faulty: Emulator, tmp_path: Path) -> Iterator[Service]:
    if not faulty.running:
        faulty.restart()
    service = Service(faulty, tmp_path, is_async=request.param)
    yield service
    service.close()


def until(check: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"did not happen within {seconds} s"
        time.sleep(0.01)


def answered(service: Service, what: Request) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return service.ask(what).source == "store"
        except StoreUnavailable:
            return False

    return check


def degrade(service: Service, *sources: str) -> None:
    """Ask for what is not held until the breaker opens; then look at everything it answers."""
    for number in range(20):
        with pytest.raises(StoreError):
            answer = service.ask(Request.get(f"users/none{number}"), 0.4)
            pytest.fail(f"request {number} was answered: {answer}")
        if not service.optimizer.get_stats().signal.ok:
            break
    signal = service.optimizer.get_stats().signal
    assert not signal.ok, signal
    answer = service.ask(Request.get("users/1"))
    assert answer.source in sources
    assert answer.data == {"n": 1}
    for what in (Request.get("users/other"), Request.query(Query("users"))):
        began = time.monotonic()
        with pytest.raises(BreakerOpen, match="next try in") as caught:
            service.ask(what)
        assert time.monotonic() - began < 0.25
        assert caught.value.retry_after_s is not None
    for number in range(5):
        assert service.ask(Request.set("users/1", {"n": -number})).source == "journal"
    assert service.ask(Request.get("users/1")).data == {"n": -4}


def prepare(service: Service) -> None:
    assert service.ask(Request.commit([Set("users/1", {"n": 1})])).source == "store"
    until(lambda: service.ask(Request.get("users/1")).data == {"n": 1}, 5.0)
    time.sleep(0.25)


def came_back(service: Service) -> None:
    """Hold that it answers again by itself, within the bound, and has sent what waited."""
    began = time.monotonic()
    until(answered(service, Request.get("users/unknown")), BACK_S)
    until(lambda: service.optimizer.get_stats().batcher.pending == 0, BACK_S)
    assert time.monotonic() - began < BACK_S
    assert service.store.get("users/1").data == {"n": -4}
    until(lambda: service.optimizer.get_stats().signal.ok, 3.0)


def test_a_killed_server(service: Service, faulty: Emulator) -> None:
    prepare(service)
    faulty.kill()
    degrade(service, "stale")
    faulty.restart()
    came_back(service)


def test_a_frozen_server(service: Service, faulty: Emulator) -> None:
    prepare(service)
    faulty.freeze()
    time.sleep(0.2)  # a signal takes its time to stop every thread
    try:
        # Its listener vouches for what is held until the silence has lasted too long.
        degrade(service, "stale", "hit")
        time.sleep(1.0)
    finally:
        faulty.thaw()
    came_back(service)
