"""Single-flight: one load per key over threads and event loops, and every way it can end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beastmode.cache import Answer, BeastModeCache
from beastmode.cache.flights import AbandonedError
from beastmode.errors import CacheError, ClosedError, LoadError, StoreTimeout, StoreUnavailable
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Document
from scripted import WAIT_S, ScriptedAsyncStore, ScriptedStore
from support import FakeClock

KEY = "users/1"


class Reader(threading.Thread):
    """A thread that makes one read and keeps what came of it."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._read()
        except BaseException as error:
            self.error = error

    def done(self) -> Any:
        self.join(WAIT_S)
        assert not self.is_alive(), "a reader hangs"
        if self.error is not None:
            raise self.error
        return self.result


class LoopThread:
    """An event loop running in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def end(self) -> None:
        """Cancel everything and close, as `asyncio.run` does."""
        if self.loop.is_closed():
            return
        if self._thread.is_alive():
            self.stop()
        self.loop.run_until_complete(self._cancel_all())
        self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def store() -> ScriptedStore:
    store = ScriptedStore()
    store.put(KEY, n=1)
    store.put("users/2", n=2)
    return store


@pytest.fixture
def cache(store: ScriptedStore) -> Iterator[BeastModeCache]:
    cache = BeastModeCache(store, ScriptedAsyncStore(store), load_deadline_s=WAIT_S)
    yield cache
    cache.close()


@pytest.fixture
def loops() -> Iterator[Callable[[], LoopThread]]:
    made: list[LoopThread] = []

    def make() -> LoopThread:
        made.append(LoopThread())
        return made[-1]

    yield make
    for one in made:
        one.end()


def wait_until(condition: Callable[[], bool]) -> None:
    tick = threading.Event()
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        tick.wait(0.001)


def joined(cache: BeastModeCache, count: int) -> Callable[[], bool]:
    return lambda: cache.get_stats().coalesced >= count


# -- one load ----------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["thread", "task"])
def test_fifty_threads_and_fifty_tasks_share_one_load(
    cache: BeastModeCache, store: ScriptedStore, loops: Any, leader: str
) -> None:
    held = store.hold(KEY)
    first, second = loops(), loops()
    lead: Any = (
        Reader(lambda: cache.get(KEY)) if leader == "thread" else first.start(cache.aget(KEY))
    )
    held.wait_entered()
    threads = [Reader(lambda: cache.get(KEY)) for _ in range(50)]
    tasks = [loop.start(cache.aget(KEY)) for loop in (first, second) for _ in range(25)]
    wait_until(joined(cache, 100))
    held.release()
    answers = [thread.done() for thread in threads] + [task.result(WAIT_S) for task in tasks]
    answers.append(lead.done() if leader == "thread" else lead.result(WAIT_S))
    assert answers == [Answer(store.documents[KEY], "store")] * 101
    assert store.loads_of(KEY) == 1
    report = cache.get_stats()
    assert (report.loads, report.coalesced, report.in_flight) == (1, 100, 0)


async def test_tasks_of_one_loop_share_one_load(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    answers = await asyncio.gather(*(cache.aget(KEY) for _ in range(50)))
    assert len(set(map(id, (answer.document for answer in answers)))) == 1
    assert store.gets == [KEY]


def test_keys_do_not_wait_for_each_other(cache: BeastModeCache, store: ScriptedStore) -> None:
    held = store.hold(KEY)
    slow = Reader(lambda: cache.get(KEY))
    held.wait_entered()
    assert cache.get("users/2").source == "store"
    held.release()
    slow.done()


def test_crossing_batches_do_not_deadlock(cache: BeastModeCache, store: ScriptedStore) -> None:
    first_held, second_held = store.hold("a/1"), store.hold("b/1")
    first = Reader(lambda: cache.get_many(["a/1"]))
    second = Reader(lambda: cache.get_many(["b/1"]))
    first_held.wait_entered()
    second_held.wait_entered()
    third = Reader(lambda: cache.get_many(["a/1", "c/1", "b/1"]))
    fourth = Reader(lambda: cache.get_many(["b/1", "d/1", "c/1", "a/1"]))
    wait_until(lambda: all(cache.lookup(path) for path in ("c/1", "d/1")))
    first_held.release()
    second_held.release()
    assert [len(reader.done()) for reader in (first, second, third, fourth)] == [1, 1, 3, 4]
    assert all(store.loads_of(path) == 1 for path in ("a/1", "b/1", "c/1", "d/1"))


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StoreUnavailable("down"), ValueError("strange"), TimeoutError("its own")]
)
def test_an_error_wakes_every_waiter_and_is_not_kept(
    cache: BeastModeCache, store: ScriptedStore, loops: Any, error: Exception
) -> None:
    held = store.hold(KEY)
    lead = Reader(lambda: cache.get(KEY))
    held.wait_entered()

    async def failing() -> list[Any]:
        return await asyncio.gather(cache.aget(KEY), return_exceptions=True)

    thread = Reader(lambda: cache.get(KEY))
    task = loops().start(failing())
    wait_until(joined(cache, 2))
    held.fail(error)
    for reader in (lead, thread):
        with pytest.raises(type(error), match=str(error)):
            reader.done()
        assert reader.error is error
    assert task.result(WAIT_S) == [error]
    assert cache.get(KEY).source == "store"
    assert cache.get_stats().load_errors == 1


@pytest.mark.parametrize(
    "error", [StoreUnavailable("down"), ValueError("strange"), TimeoutError("its own")]
)
async def test_an_error_of_an_async_load(
    cache: BeastModeCache, store: ScriptedStore, error: Exception
) -> None:
    store.error = error
    results = await asyncio.gather(*(cache.aget(KEY) for _ in range(5)), return_exceptions=True)
    assert all(result is error for result in results)
    assert store.gets == [KEY]
    store.error = None
    assert (await cache.aget(KEY)).source == "store"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"n": 1},
        Document("users/2", None, 1),
        [Document(KEY, None, 1)],
    ],
)
async def test_a_wrong_result_is_a_load_error(
    cache: BeastModeCache, store: ScriptedStore, wrong: Any
) -> None:
    store.answer = lambda _: wrong
    with pytest.raises(LoadError, match=KEY):
        cache.get(KEY)
    with pytest.raises(LoadError, match=KEY):
        await cache.aget(KEY)
    with pytest.raises(LoadError, match=KEY):
        cache.get_many([KEY])
    with pytest.raises(LoadError, match=KEY):
        await cache.aget_many([KEY])
    assert cache.lookup(KEY) is None
    store.answer = None
    assert cache.get(KEY).source == "store"


@pytest.mark.parametrize("wrong", [None, [], [Document(KEY, None, 1)] * 2, 7])
def test_a_wrong_batch_is_a_load_error_of_each(
    cache: BeastModeCache, store: ScriptedStore, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "get_many", lambda paths, deadline=None: wrong)
    with pytest.raises(LoadError, match="asked for 1 documents"):
        cache.get_many([KEY])
    assert cache.get_stats().in_flight == 0


# -- cancellation ------------------------------------------------------------------------------


async def test_cancelling_readers_disturbs_nobody(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    held = store.hold(KEY)
    leader = asyncio.create_task(cache.aget(KEY))
    while not held.entered.is_set():
        await asyncio.sleep(0)
    waiters = [asyncio.create_task(cache.aget(KEY)) for _ in range(3)]
    thread = Reader(lambda: cache.get(KEY))
    while cache.get_stats().coalesced < 4:
        await asyncio.sleep(0)
    leader.cancel()
    waiters[0].cancel()
    cancelled = await asyncio.gather(leader, waiters[0], return_exceptions=True)
    assert [type(one) for one in cancelled] == [asyncio.CancelledError] * 2
    held.release()
    answers = await asyncio.gather(*waiters[1:])
    assert [answer.source for answer in answers] == ["store", "store"]
    assert (await asyncio.to_thread(thread.done)).source == "store"
    assert store.gets == [KEY]
    assert cache.lookup(KEY) is not None


def test_a_cancelled_load_is_taken_over_by_its_waiters(
    cache: BeastModeCache, store: ScriptedStore, loops: Any
) -> None:
    held = store.hold(KEY)
    leading = loops()
    lead = leading.start(cache.aget(KEY))
    held.wait_entered()
    thread = Reader(lambda: cache.get(KEY))
    task = loops().start(cache.aget(KEY))
    wait_until(joined(cache, 2))
    leading.loop.call_soon_threadsafe(lambda: [one.cancel() for one in cache._loader._tasks])
    assert thread.done().document == task.result(WAIT_S).document == store.documents[KEY]
    try:
        assert lead.result(WAIT_S).document == store.documents[KEY], "the others were faster"
    except AbandonedError as error:
        assert "was cancelled" in str(error)
    assert store.loads_of(KEY) == 2
    assert cache.get_stats().abandoned == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt("stop")])
def test_an_interrupted_thread_hands_over(
    cache: BeastModeCache, store: ScriptedStore, error: BaseException
) -> None:
    held = store.hold(KEY)
    lead = Reader(lambda: cache.get(KEY))
    held.wait_entered()
    waiter = Reader(lambda: cache.get(KEY))
    wait_until(joined(cache, 1))
    held.fail(error)
    with pytest.raises(type(error)):
        lead.done()
    assert waiter.done().source == "store"


async def test_a_loader_that_always_cancels_itself_ends(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    store.error = asyncio.CancelledError()
    results = await asyncio.gather(*(cache.aget(KEY) for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {AbandonedError}
    assert len(store.gets) <= 3
    assert cache.get_stats().in_flight == 0


async def test_a_load_cancelled_before_its_first_step_hangs_nobody(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    leader = asyncio.create_task(cache.aget(KEY))
    await asyncio.sleep(0)  # the leader has run, its load has not
    (load,) = cache._loader._tasks
    load.cancel()
    with pytest.raises(AbandonedError):
        await leader
    assert store.gets == []
    assert (await cache.aget(KEY)).source == "store"


@pytest.mark.parametrize("held", [False, True])
async def test_to_who_asked_a_load_that_was_given_up_is_a_late_store(
    cache: BeastModeCache, store: ScriptedStore, held: bool
) -> None:
    if held:
        cache = BeastModeCache(store, ScriptedAsyncStore(store), max_stale_s=60)
        await cache.aget(KEY)
        cache.doubt([KEY])
    store.error = asyncio.CancelledError()
    if held:
        assert (await cache.aget(KEY)).source == "stale"
        cache.close()
        return
    with pytest.raises(StoreTimeout, match="was cancelled"):
        await cache.aget(KEY)


# -- deadlines ---------------------------------------------------------------------------------


def test_each_waiter_has_its_own_deadline(
    cache: BeastModeCache, store: ScriptedStore, loops: Any
) -> None:
    held = store.hold(KEY)
    lead = Reader(lambda: cache.get(KEY))
    held.wait_entered()
    loop = loops()
    patient = Reader(lambda: cache.get(KEY))
    patient_task = loop.start(cache.aget(KEY))
    hasty_task = loop.start(cache.aget(KEY, deadline=deadline_in(0.05)))
    started = time.monotonic()
    with pytest.raises(StoreTimeout, match=KEY):
        cache.get(KEY, deadline=deadline_in(0.05))
    with pytest.raises(StoreTimeout, match=KEY):
        hasty_task.result(WAIT_S)
    assert time.monotonic() - started < 5
    assert patient.is_alive()
    held.release()
    assert [lead.done().source, patient.done().source] == ["store", "store"]
    assert patient_task.result(WAIT_S).source == "store"
    assert store.gets == [KEY]


async def test_a_hasty_leader_does_not_fail_the_others(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    held = store.hold(KEY)
    hasty = asyncio.create_task(cache.aget(KEY, deadline=deadline_in(0.02)))
    while not held.entered.is_set():
        await asyncio.sleep(0)
    patient = asyncio.create_task(cache.aget(KEY))
    with pytest.raises(StoreTimeout):
        await hasty
    held.release()
    assert (await patient).source == "store"
    assert store.gets == [KEY]
    assert store.deadlines[0] is not None
    assert store.deadlines[0] > time.monotonic() + 1, "the load has the cache's deadline"


def test_a_patient_waiter_takes_over_from_a_hasty_thread(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    held = store.hold(KEY)
    hasty = Reader(lambda: cache.get(KEY, deadline=deadline_in(0.01)))
    held.wait_entered()
    patient = Reader(lambda: cache.get(KEY))
    wait_until(joined(cache, 1))
    held.fail(StoreTimeout("the store kept the hasty one's deadline"))
    with pytest.raises(StoreTimeout):
        hasty.done()
    assert patient.done().source == "store"
    assert store.loads_of(KEY) == 2


async def test_a_store_that_ignores_its_deadline_is_given_up(store: ScriptedStore) -> None:
    cache = BeastModeCache(store, ScriptedAsyncStore(store), load_deadline_s=0.05)
    store.hold(KEY)
    started = time.monotonic()
    with pytest.raises(StoreTimeout):
        await cache.aget(KEY)
    assert time.monotonic() - started < 5
    while cache.get_stats().in_flight:
        await asyncio.sleep(0.01)
    assert time.monotonic() - started < 5
    assert (await cache.aget(KEY)).source == "store"
    cache.close()


async def test_close_wakes_readers_whose_loads_never_got_a_thread(store: ScriptedStore) -> None:
    cache = BeastModeCache(store, load_deadline_s=WAIT_S)  # no async store: a few threads load
    held = [store.hold(f"slow/{number}") for number in range(4)]
    slow = [asyncio.create_task(cache.aget(f"slow/{number}")) for number in range(4)]
    for hold in held:
        assert await asyncio.to_thread(hold.entered.wait, WAIT_S)
    waiting = asyncio.create_task(cache.aget(KEY))
    overtaken = asyncio.create_task(cache.aget("users/2"))
    while cache.get_stats().in_flight < 6:
        await asyncio.sleep(0)
    cache.invalidate("users/2")
    closing = asyncio.create_task(asyncio.to_thread(cache.close))
    for task in (waiting, overtaken, *slow):
        with pytest.raises(ClosedError):
            await asyncio.wait_for(task, WAIT_S / 2)
    for hold in held:
        hold.release()
    await closing
    assert store.loads_of(KEY) == store.loads_of("users/2") == 0


def test_the_cache_may_be_closed_by_its_own_thread(store: ScriptedStore) -> None:
    clock = FakeClock()
    closed = threading.Event()

    def close(_: BaseException) -> None:
        cache.close()
        closed.set()

    cache = BeastModeCache(store, ttl_s=1, stale_while_revalidate_s=5, timer=clock, on_error=close)
    cache.get(KEY)
    clock.advance(2)
    store.error = StoreUnavailable("down")
    assert cache.get(KEY).source == "stale"
    assert closed.wait(WAIT_S)


async def test_closing_the_cache_ends_its_tasks(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    held = store.hold(KEY)
    reader = asyncio.create_task(cache.aget(KEY))
    while not held.entered.is_set():
        await asyncio.sleep(0)
    cache.close()
    with pytest.raises(ClosedError):
        await reader
    while cache._loader._tasks:
        await asyncio.sleep(0)


# -- event loops that end ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["cancelled", "stopped", "closed"])
def test_a_loop_that_ends_with_a_load_in_the_air_hangs_nobody(
    cache: BeastModeCache, store: ScriptedStore, loops: Any, how: str
) -> None:
    held = store.hold(KEY)
    dying = loops()
    dying.start(cache.aget(KEY))
    held.wait_entered()
    thread = Reader(lambda: cache.get(KEY))
    task = loops().start(cache.aget(KEY))
    wait_until(joined(cache, 2))
    if how == "cancelled":
        dying.end()
    else:
        dying.stop()
        if how == "closed":
            dying.loop.close()
    assert thread.done().document == task.result(WAIT_S).document == store.documents[KEY]
    assert store.loads_of(KEY) == 2, "one of the waiters took over, for both"
    assert cache.get_stats().in_flight == 0
    assert cache.get(KEY).source == "hit"
    if how == "closed":
        cache.cleanup()
        assert not cache._loader._tasks


@pytest.mark.parametrize("waiter", ["thread", "task"])
def test_any_waiter_notices_a_stopped_loop_by_itself(
    cache: BeastModeCache, store: ScriptedStore, loops: Any, waiter: str
) -> None:
    held = store.hold(KEY)
    dying = loops()
    dying.start(cache.aget(KEY))
    held.wait_entered()
    if waiter == "thread":
        done = Reader(lambda: cache.get(KEY, deadline=deadline_in(5))).done
    else:
        task = loops().start(cache.aget(KEY, deadline=deadline_in(5)))
        done = lambda: task.result(WAIT_S)  # noqa: E731
    wait_until(joined(cache, 1))
    dying.stop()
    assert done().document == store.documents[KEY]


def test_a_loop_closed_with_only_waiters_disturbs_nobody(
    cache: BeastModeCache, store: ScriptedStore, loops: Any
) -> None:
    held = store.hold(KEY)
    lead = Reader(lambda: cache.get(KEY))
    held.wait_entered()
    dying = loops()
    dying.start(cache.aget(KEY))
    wait_until(joined(cache, 1))
    dying.end()
    held.release()
    assert lead.done().source == "store"


def test_a_flight_of_an_idle_loop_is_replaced(cache: BeastModeCache, store: ScriptedStore) -> None:
    held = store.hold(KEY)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        reader = asyncio.ensure_future(cache.aget(KEY))
        while not held.entered.is_set():
            await asyncio.sleep(0)
        reader.cancel()

    loop.run_until_complete(begin())
    assert cache.get_stats().in_flight == 1
    assert cache.get(KEY).source == "store"
    cache.invalidate(KEY)
    held.release()

    async def finish() -> None:
        await asyncio.gather(*cache._loader._tasks)

    loop.run_until_complete(finish())
    assert cache.lookup(KEY) is None, "the old load comes back too late to be installed"
    loop.close()


async def test_a_blocking_read_on_the_loop_that_leads_does_not_hang(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    held = store.hold(KEY)
    task = asyncio.create_task(cache.aget(KEY))
    while not held.entered.is_set():
        await asyncio.sleep(0)
    assert cache.get(KEY).source == "store"
    held.release()
    assert (await task).document == store.documents[KEY]


# -- recursion ---------------------------------------------------------------------------------


def test_a_load_that_asks_for_itself_is_told(cache: BeastModeCache, store: ScriptedStore) -> None:
    store.answer = lambda document: cache.get(document.path)
    with pytest.raises(CacheError, match="itself"):
        cache.get(KEY)
    store.answer = lambda document: cache.get_many(["users/3", document.path])
    with pytest.raises(CacheError, match="itself"):
        cache.get_many([KEY, "users/2"])
    store.answer = None
    assert cache.get_stats().in_flight == 0
    assert cache.get(KEY).source == "store"


def test_a_load_that_asks_for_itself_by_a_detour_is_told(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    other = {KEY: "users/2", "users/2": KEY}
    store.answer = lambda document: cache.get(other[document.path])
    with pytest.raises(CacheError, match="itself"):
        cache.get(KEY)


def test_a_load_may_ask_for_another_document(cache: BeastModeCache, store: ScriptedStore) -> None:
    def answer(document: Document) -> Document:
        if document.path == KEY:
            assert cache.get("users/2").document.data == {"n": 2}
        return document

    store.answer = answer
    assert cache.get(KEY).document.data == {"n": 1}
    assert cache.lookup("users/2") is not None


async def test_an_async_load_that_asks_for_itself_is_told(store: ScriptedStore) -> None:
    class Recursive(ScriptedAsyncStore):
        async def get(self, path: str, *, deadline: float | None = None) -> Any:
            # By way of another task, which inherits the context.
            return (await asyncio.create_task(cache.aget(other.get(path, path)))).document

    cache = BeastModeCache(store, Recursive(store))
    other: dict[str, str] = {}
    with pytest.raises(CacheError, match="itself"):
        await cache.aget(KEY)
    other = {KEY: "users/2", "users/2": KEY}
    with pytest.raises(CacheError, match="itself"):
        await cache.aget(KEY)
    assert cache.get_stats().in_flight == 0
    cache.close()


async def test_work_that_outlives_a_load_may_read_it(store: ScriptedStore) -> None:
    started: list[asyncio.Task[Answer]] = []
    go = asyncio.Event()

    class Spawning(ScriptedAsyncStore):
        async def get(self, path: str, *, deadline: float | None = None) -> Any:
            async def later() -> Answer:
                await go.wait()
                return await cache.aget(path)

            if not started:
                started.append(asyncio.create_task(later()))
            return await super().get(path, deadline=deadline)

    cache = BeastModeCache(store, Spawning(store))
    await cache.aget(KEY)
    cache.invalidate(KEY)
    go.set()
    assert (await started[0]).source == "store"
    cache.close()


# -- under load --------------------------------------------------------------------------------


def test_threads_and_loops_hammering_few_keys(loops: Any) -> None:
    store = ScriptedStore()
    keys = [f"k/{number}" for number in range(8)]
    for key in keys:
        store.put(key, n=0)
    cache = BeastModeCache(store, ScriptedAsyncStore(store), load_deadline_s=WAIT_S)

    def versions_grow(seen: dict[str, int], answer: Answer) -> None:
        document = answer.document
        assert document.version >= seen.get(document.path, 0), "a reader went back in time"
        seen[document.path] = document.version

    def thread(number: int) -> None:
        seen: dict[str, int] = {}
        for step in range(150):
            key = keys[(number + step) % len(keys)]
            if step % 17 == number % 17:
                store.put(key, n=step)
                cache.invalidate(key)
            elif step % 5 == 0:
                for answer in cache.get_many(keys):
                    versions_grow(seen, answer)
            else:
                versions_grow(seen, cache.get(key))

    async def task(number: int) -> None:
        seen: dict[str, int] = {}
        for step in range(150):
            key = keys[(number + step) % len(keys)]
            versions_grow(seen, await cache.aget(key))
            if step % 7 == 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(cache.aget_many(keys), 0.0001)

    loop_threads = [loops(), loops()]
    readers = [Reader(lambda number=number: thread(number)) for number in range(6)]
    tasks = [loop.start(task(number)) for number in range(6) for loop in loop_threads]
    for reader in readers:
        reader.done()
    for one in tasks:
        one.result(WAIT_S)
    wait_until(lambda: cache.get_stats().in_flight == 0)
    for key in keys:
        cache.invalidate(key)
        assert cache.get(key).document == store.documents[key]
    cache.close()
