"""A frozen, dead, restarted and cut-off server: every call ends in time, and answers again soon."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beastmode.errors import (
    ClosedError,
    PreconditionFailed,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores.base import Query, Target, deadline_in
from beastmode.stores.documents import Precondition, Set, Update
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore
from beastmode.stores.transforms import Increment
from beastmode.testing import Emulator, FaultProxy, fresh_project, start_emulator
from store_support import AwaitedStore, wait_until

LATE_S = 0.5
"""How much later than its deadline a call may end."""


@pytest.fixture(scope="module")
def own(emulator: Emulator) -> Iterator[Emulator]:
    """An emulator for faults; `emulator` has skipped the test where there is none."""
    with start_emulator() as started:
        yield started


def sync_store(host: str, project: str) -> Any:
    return FirestoreStore(project, emulator_host=host)


def async_store(host: str, project: str) -> Any:
    return AwaitedStore(AsyncFirestoreStore(project, emulator_host=host))


KINDS = {"sync": sync_store, "async": async_store}


@pytest.fixture(params=list(KINDS))
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []
    project = fresh_project()

    def make_store(host: str) -> Any:
        made.append(KINDS[request.param](host, project))
        return made[-1]

    yield make_store
    for store in made:
        store.stop() if isinstance(store, AwaitedStore) else store.close()


CALLS: dict[str, Callable[[Any, float], object]] = {
    "get": lambda store, end: store.get("u/a", deadline=end),
    "get_many": lambda store, end: store.get_many(["u/a", "u/b"], deadline=end),
    "query": lambda store, end: store.query(Query("u"), deadline=end),
    "commit": lambda store, end: store.commit([Set("u/a", {"n": 1})], deadline=end),
    "increment": lambda store, end: store.commit(
        [Update("u/a", {"n": Increment(1)})], deadline=end
    ),
}


def late(call: Callable[[Any, float], object], store: Any, seconds: float) -> tuple[float, Any]:
    """Return how much later than its deadline a call ended, and how it failed."""
    end = deadline_in(seconds)
    try:
        call(store, end)
    except (StoreTimeout, StoreUnavailable) as error:
        return time.monotonic() - end, error
    return time.monotonic() - end, None


def test_calls_of_a_frozen_server_end_at_their_deadline(
    own: Emulator, make: Callable[..., Any]
) -> None:
    warm = make(own.host)
    warm.commit([Set("u/a", {"n": 0})])
    own.freeze()
    try:
        cold = make(own.host)
        for store in (warm, cold):
            for name, call in CALLS.items():
                lateness, error = late(call, store, 0.3)
                assert isinstance(error, StoreTimeout), name
                assert lateness < LATE_S, name
                assert error.maybe_applied or name not in ("commit", "increment")
            began = time.monotonic()
            assert not store.health().ok
            assert time.monotonic() - began < 2.0 + LATE_S
    finally:
        own.thaw()
    thawed = time.monotonic()
    for store in (warm, cold):
        wait_until(lambda store=store: late(CALLS["get"], store, 2.0)[1] is None, 5)
    assert time.monotonic() - thawed < 5


def test_many_calls_of_a_frozen_server_end_at_their_deadlines(
    own: Emulator, make: Callable[..., Any]
) -> None:
    store = make(own.host)
    store.get("u/a")
    results: list[tuple[float, Any]] = []

    def work(number: int) -> None:
        call = list(CALLS.values())[number % len(CALLS)]
        results.append(late(call, store, 0.2 + number % 4 / 10))

    own.freeze()
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        own.thaw()
    assert len(results) == 20
    assert all(isinstance(error, StoreTimeout) for _, error in results)
    assert max(lateness for lateness, _ in results) < LATE_S


def test_a_killed_server_is_told_at_once_and_answers_soon_after_its_restart(
    own: Emulator, make: Callable[..., Any]
) -> None:
    store = make(own.host)
    store.commit([Set("u/a", {"n": 0})])
    own.kill()
    for name, call in CALLS.items():
        began = time.monotonic()
        lateness, error = late(call, store, 2.0)
        assert isinstance(error, StoreUnavailable), name
        assert time.monotonic() - began < 2.0, "an answer before the deadline: it is not there"
        assert lateness < LATE_S
    lateness, error = late(CALLS["increment"], store, 0.5)
    assert not error.maybe_applied, "it was never sent"
    assert not store.health().ok
    own.restart()
    serving = time.monotonic()
    wait_until(lambda: late(CALLS["get"], store, 2.0)[1] is None, 10)
    assert time.monotonic() - serving < 5
    assert not store.get("u/a").exists, "it restarts empty"
    assert store.health().ok


def test_a_kill_while_frozen(own: Emulator, make: Callable[..., Any]) -> None:
    store = make(own.host)
    store.get("u/a")
    own.freeze()
    assert late(CALLS["get"], store, 0.2)[0] < LATE_S
    own.restart()
    serving = time.monotonic()
    wait_until(lambda: late(CALLS["get"], store, 2.0)[1] is None, 10)
    assert time.monotonic() - serving < 5


@pytest.fixture
def proxy(emulator: Emulator) -> Iterator[FaultProxy]:
    with FaultProxy(emulator.host) as made:
        yield made


def test_reads_and_plain_writes_outlive_a_cut_connection(
    proxy: FaultProxy, make: Callable[..., Any]
) -> None:
    store = make(proxy.host)
    for n in range(5):
        store.commit([Set("u/a", {"n": n})], deadline=deadline_in(10))
        proxy.cut()
        assert store.get("u/a", deadline=deadline_in(10)).data == {"n": n}
        proxy.cut()


def test_a_lost_answer_of_an_increment_is_told_as_unknown(
    proxy: FaultProxy, make: Callable[..., Any]
) -> None:
    store = make(proxy.host)
    store.commit([Set("u/a", {"n": 0})])
    outcomes: list[Any] = []

    def add() -> None:
        try:
            outcomes.append(store.commit([Update("u/a", {"n": Increment(1)})]))
        except StoreUnavailable as error:
            outcomes.append(error)

    proxy.hold()  # the request goes no further, or its answer comes no further
    adding = threading.Thread(target=add)
    adding.start()
    time.sleep(0.2)
    proxy.cut()
    adding.join(10)
    proxy.pass_on()
    (error,) = outcomes
    assert isinstance(error, StoreUnavailable), error
    assert error.maybe_applied, "it must not be sent again unasked"
    held = store.get("u/a", deadline=deadline_in(10)).data["n"]
    assert held in (0, 1)
    store.commit([Update("u/a", {"n": Increment(1)})], deadline=deadline_in(10))
    assert store.get("u/a").data["n"] == held + 1


def test_a_precondition_is_checked_once(proxy: FaultProxy, make: Callable[..., Any]) -> None:
    store = make(proxy.host)
    store.commit([Set("u/new", {}, Precondition(exists=False))])
    with pytest.raises(PreconditionFailed):
        store.commit([Set("u/new", {}, Precondition(exists=False))])


def test_a_black_hole_is_left_behind(proxy: FaultProxy, make: Callable[..., Any]) -> None:
    store = make(proxy.host)
    store.commit([Set("u/a", {"n": 1})])
    proxy.hold()
    for call in CALLS.values():
        lateness, error = late(call, store, 0.2)
        assert isinstance(error, StoreTimeout)
        assert lateness < LATE_S
    proxy.pass_on()
    healed = time.monotonic()
    wait_until(lambda: late(CALLS["get"], store, 1.0)[1] is None, 10)
    assert time.monotonic() - healed < 5


def forget_connections(proxy: FaultProxy) -> None:
    """Let nothing more through on the connections that are, and everything on new ones."""

    def forget() -> None:
        proxy._open = asyncio.Event()  # those that wait go on waiting for the former one
        proxy._open.set()

    proxy._loop.call_soon_threadsafe(forget)


def test_a_connection_that_the_network_forgot_is_left(
    proxy: FaultProxy, make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = make(proxy.host)
    store.commit([Set("u/a", {"n": 1})])
    proxy.hold()
    assert isinstance(late(CALLS["get"], store, 0.3)[1], StoreTimeout)
    forget_connections(proxy)
    assert isinstance(late(CALLS["get"], store, 0.5)[1], StoreTimeout)
    assert isinstance(late(CALLS["get"], store, 0.5)[1], StoreTimeout)
    assert proxy.accepted == 1
    assert store.get("u/a").data == {"n": 1}
    assert proxy.accepted == 2
    assert "nothing is heard on the connection" in caplog.text


def test_close_ends_calls_that_wait_for_a_frozen_server(
    proxy: FaultProxy, make: Callable[..., Any]
) -> None:
    store = make(proxy.host)
    store.get("u/a")
    proxy.hold()
    outcomes: list[BaseException] = []

    def read(call: Callable[[Any, float], object]) -> None:
        try:
            call(store, deadline_in(20))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=read, args=(call,)) for call in CALLS.values()]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    store.close()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 2
    assert [type(outcome) for outcome in outcomes] == [ClosedError] * len(CALLS)


def test_a_watch_that_cannot_begin_ends_at_the_deadline(
    proxy: FaultProxy, make: Callable[..., Any]
) -> None:
    store = make(proxy.host)
    store.get("u/a")
    proxy.hold()
    began = time.monotonic()
    earlier = set(threading.enumerate())
    with pytest.raises(StoreTimeout):
        store.watch(Target(document="u/a"), print)
    assert time.monotonic() - began < 2.0 + LATE_S

    def left() -> list[str]:
        started = [thread.name for thread in threading.enumerate() if thread not in earlier]
        return [name for name in started if name.startswith("beastmode-listen")]

    wait_until(lambda: not left(), 5)  # by itself: the server says nothing, the store stays open


async def test_cancelling_a_call_leaves_the_others(proxy: FaultProxy) -> None:
    async with AsyncFirestoreStore(fresh_project(), emulator_host=proxy.host) as store:
        await store.get("u/a")
        proxy.hold()
        one = asyncio.create_task(store.get("u/a"))
        other = asyncio.create_task(store.get("u/b", deadline=deadline_in(10)))
        await asyncio.sleep(0.1)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        proxy.pass_on()
        assert not (await other).exists
