"""`ThreadedAsyncStore` over a store that the test holds up, and over a real one from many loops."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode.errors import CapacityError, ClosedError, ConfigError, StoreTimeout
from beastmode.stores.base import Change, Query, Target, deadline_in
from beastmode.stores.documents import Set, Update
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore
from store_support import Child, wait_until


class HeldStore(SQLiteStore):
    """A store in memory whose calls wait until the test opens `gate`."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls: list[str] = []

    def hold(self, what: str) -> None:
        self.calls.append(what)
        self.entered.release()
        assert self.gate.wait(20)

    def get(self, path: str, *, deadline: float | None = None) -> Any:
        self.hold(path)
        return super().get(path)

    def commit(self, operations: Any, *, deadline: float | None = None) -> list[int]:
        self.hold("commit")
        return super().commit(operations)

    def watch(self, target: Any, on_change: Any) -> Any:
        self.hold("watch")
        return super().watch(target, on_change)


@pytest.fixture
def held() -> Iterator[HeldStore]:
    store = HeldStore()
    yield store
    store.gate.set()
    store.close()


async def entered(store: HeldStore) -> None:
    assert await asyncio.to_thread(store.entered.acquire, timeout=10)


async def test_no_thread_before_the_first_call_and_few_after(held: HeldStore) -> None:
    before = threading.active_count()
    store = ThreadedAsyncStore(held, threads=2)
    assert threading.active_count() == before
    calls = [asyncio.create_task(store.get(f"u/{n}")) for n in range(6)]
    await entered(held)
    await entered(held)
    await asyncio.sleep(0.05)
    assert len(held.calls) == 2
    ours = [t for t in threading.enumerate() if t.name.startswith("beastmode-store")]
    assert len(ours) == 2
    held.gate.set()
    assert [d.path for d in await asyncio.gather(*calls)] == [f"u/{n}" for n in range(6)]
    await store.close()
    wait_until(lambda: not any(t.is_alive() for t in ours))


async def test_the_loop_runs_on_while_a_call_waits(held: HeldStore) -> None:
    async with ThreadedAsyncStore(held) as store:
        call = asyncio.create_task(store.get("u/a"))
        await entered(held)
        ticks = 0
        while ticks < 100:
            await asyncio.sleep(0)
            ticks += 1
        assert not call.done()
        held.gate.set()
        assert not (await call).exists


async def test_a_store_that_ignores_its_deadline_does_not_keep_the_caller(held: HeldStore) -> None:
    async with ThreadedAsyncStore(held, close_patience_s=0.1) as store:
        began = time.monotonic()
        with pytest.raises(StoreTimeout, match="get: the store did not answer"):
            await store.get("u/a", deadline=deadline_in(0.1))
        assert 0.09 < time.monotonic() - began < 0.6
        with pytest.raises(StoreTimeout, match="deadline passed"):
            await store.get("u/b", deadline=time.monotonic() - 1)
        assert held.calls == ["u/a"]
        held.gate.set()


async def test_a_call_without_a_deadline_gets_one(held: HeldStore) -> None:
    async with ThreadedAsyncStore(held, deadline_s=0.1) as store:
        with pytest.raises(StoreTimeout):
            await store.get("u/a")
        held.gate.set()


async def test_the_deadline_is_handed_down() -> None:
    class Spy(SQLiteStore):
        seen: float | None = None

        def get(self, path: str, *, deadline: float | None = None) -> Any:
            self.seen = deadline
            return super().get(path, deadline=deadline)

    with Spy(":memory:") as spy:
        async with ThreadedAsyncStore(spy) as store:
            end = deadline_in(3)
            await store.get("u/a", deadline=end)
            assert spy.seen == end
            await store.get("u/a")
            assert spy.seen is not None
            assert 9 < spy.seen - time.monotonic() <= 10


async def test_a_read_that_is_cancelled_before_it_begins_is_dropped(held: HeldStore) -> None:
    async with ThreadedAsyncStore(held, threads=1) as store:
        first = asyncio.create_task(store.get("u/first"))
        await entered(held)
        second = asyncio.create_task(store.get("u/second"))
        third = asyncio.create_task(store.get("u/third"))
        await asyncio.sleep(0.01)
        second.cancel()
        first.cancel()
        for task in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        held.gate.set()
        assert (await third).path == "u/third"
        assert held.calls == ["u/first", "u/third"]


async def test_a_commit_is_carried_to_its_end_whoever_stops_waiting(
    held: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = ThreadedAsyncStore(held, threads=1)
    running = asyncio.create_task(store.commit([Set("u/a", {"n": 1})]))
    await entered(held)
    operations = [Set("u/b", {"n": 2})]
    queued = asyncio.create_task(store.commit(operations))
    failing = asyncio.create_task(store.commit([Update("u/none", {"n": 3})]))
    await asyncio.sleep(0.01)
    operations.clear()  # the call has its own list
    for task in (running, queued, failing):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(StoreTimeout, match="may still commit"):
        await store.commit([Set("u/c", {"n": 4})], deadline=deadline_in(0.05))
    held.gate.set()
    await store.close()
    assert held.calls == ["commit"] * 4
    documents = held.get_many(["u/a", "u/b", "u/none", "u/c"])
    assert [d.exists for d in documents] == [True, True, False, True]
    wait_until(lambda: store.unheard_commits == 4)
    assert caplog.text.count("a commit succeeded after its caller stopped waiting") == 3
    assert "a commit failed after its caller stopped waiting for it: Update" in caplog.text


async def test_a_watch_whose_caller_is_gone_is_closed(held: HeldStore) -> None:
    store = ThreadedAsyncStore(held)
    seen: list[Change] = []
    call = asyncio.create_task(store.watch(Target(), seen.append))
    await entered(held)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    held.gate.set()
    await store.close()
    wait_until(lambda: held._watcher._thread is None)
    held.commit([Set("u/a", {})])
    assert seen == []


async def test_more_calls_than_allowed_are_refused(held: HeldStore) -> None:
    async with ThreadedAsyncStore(held, threads=1, max_waiting=3) as store:
        calls = [asyncio.create_task(store.get(f"u/{n}")) for n in range(3)]
        await entered(held)
        with pytest.raises(CapacityError, match="max_waiting"):
            await store.get("u/x")
        health = await store.health()
        assert not health.ok
        held.gate.set()
        await asyncio.gather(*calls)
        assert (await store.get("u/x")).path == "u/x"
        assert (await store.health()).ok


async def test_close_is_bounded_and_final(
    held: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = ThreadedAsyncStore(held, close_patience_s=0.2)
    call = asyncio.create_task(store.get("u/a"))
    await entered(held)
    began = time.monotonic()
    await store.close()
    assert 0.15 < time.monotonic() - began < 2
    assert "1 calls of the store still run" in caplog.text
    await store.close()
    with pytest.raises(ClosedError):
        await store.get("u/b")
    health = await store.health()
    assert "closed" in health.detail
    held.gate.set()
    assert (await call).path == "u/a"
    assert held.health().ok  # only closed when asked


async def test_close_waits_for_what_runs(held: HeldStore) -> None:
    store = ThreadedAsyncStore(held, close_store=True)
    call = asyncio.create_task(store.commit([Set("u/a", {})]))
    await entered(held)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    held.gate.set()
    await closing
    assert len(await call) == 1
    with pytest.raises(ClosedError):
        held.get_many(["u/a"])


def test_many_loops_in_many_threads(tmp_path: Path) -> None:
    shared = ThreadedAsyncStore(SQLiteStore(tmp_path / "s.db"), close_store=True)
    failures: list[BaseException] = []

    async def work(name: int) -> None:
        for n in range(20):
            await shared.commit([Set(f"u/{name}-{n}", {"n": n})])
            document = await shared.get(f"u/{name}-{n}")
            assert document.data == {"n": n}
        found = await asyncio.gather(*(shared.get(f"u/{name}-{n}") for n in range(20)))
        assert all(document.exists for document in found)

    def run(name: int) -> None:
        try:
            asyncio.run(work(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures

    async def end() -> int:
        count = len((await shared.query(Query("u"))).documents)
        await shared.close()
        return count

    assert asyncio.run(end()) == 80


def test_a_loop_that_ends_before_its_call(held: HeldStore) -> None:
    store = ThreadedAsyncStore(held, close_patience_s=0.2)

    async def begin() -> None:
        call = asyncio.create_task(store.commit([Set("u/a", {"n": 1})]))
        await entered(held)
        call.cancel()

    asyncio.run(begin())
    held.gate.set()
    wait_until(lambda: store.unheard_commits == 1)
    assert held.get_many(["u/a"])[0].exists
    asyncio.run(store.close())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"close_patience_s": float("inf")}, "close_patience_s"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(held: HeldStore, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ThreadedAsyncStore(held, **arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")
def test_a_child_of_a_fork_is_refused(tmp_path: Path) -> None:
    script = """
        import asyncio, os, sys
        from beastmode.errors import ForkedError
        from beastmode.stores.sqlite import SQLiteStore
        from beastmode.stores.threaded import ThreadedAsyncStore
        store = ThreadedAsyncStore(SQLiteStore(sys.argv[1]), close_store=True)
        if not os.fork():
            try:
                asyncio.run(store.get("u/a"))
            except ForkedError:
                print("refused", flush=True)
            asyncio.run(store.close())
            os._exit(0)
        os.wait()
        assert not asyncio.run(store.get("u/a")).exists
        asyncio.run(store.close())
        print("parent")
    """
    assert Child(script, tmp_path / "s.db").finish().split() == ["refused", "parent"]
