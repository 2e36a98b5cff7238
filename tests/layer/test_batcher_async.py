"""The batcher from event loops: nothing blocks them, cancelling one fails no other."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from beastmode.batcher import BeastModeBatcher
from beastmode.errors import (
    BufferFullError,
    ClosedError,
    PreconditionFailed,
    RequestError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.journal import Journal
from beastmode.stores.base import deadline_in
from beastmode.stores.documents import Merge, Precondition, Set
from layer.faulty_store import FaultyStore, Gate

LONG = 3600.0


async def test_awrite_until_journal_and_until_store(store: FaultyStore, journal: Journal) -> None:
    async with BeastModeBatcher(store, journal, max_delay_s=LONG) as batcher:
        assert await batcher.awrite([]) is None
        assert await batcher.awrite([Set("k/1", {"n": 1})]) is None
        assert not store.get("k/1").exists
        assert batcher.overlay(store.get("k/1")).data == {"n": 1}
        versions = await batcher.awrite([Merge("k/1", {"m": 1})], until="store")
        assert versions == [store.get("k/1").version]
        (version,) = await batcher.awrite([Merge("k/1", {}, Precondition(exists=True))]) or [0]
        assert version == store.get("k/1").version
        with pytest.raises(PreconditionFailed):
            await batcher.awrite([Merge("k/1", {}, Precondition(exists=False))])
        with pytest.raises(RequestError, match="until"):
            await batcher.awrite([Set("k/1", {})], until="moon")  # type: ignore[arg-type]
        await batcher.awrite([Set("k/2", {})])
        await batcher.aflush()
        assert store.get("k/2").exists
        await batcher.awrite([Set("k/3", {})])
    assert store.get("k/3").exists
    with pytest.raises(ClosedError):
        await batcher.awrite([Set("k/4", {})])


async def test_concurrent_awrites_share_journal_transactions(
    store: FaultyStore, journal: Journal
) -> None:
    async with BeastModeBatcher(store, journal, max_delay_s=LONG) as batcher:
        await asyncio.gather(*(batcher.awrite([Set(f"k/{n}", {"n": n})]) for n in range(1000)))
        assert journal.get_stats().appended == 1000
        assert journal.get_stats().transactions < 300
    assert store.get("k/999").data == {"n": 999}


async def test_the_loop_goes_on_while_disk_and_store_stand_still(
    store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    batcher = BeastModeBatcher(store, journal, max_delay_s=LONG, max_pending_ops=2)
    longest, ticking = 0.0, True

    async def tick() -> None:
        nonlocal longest
        while ticking:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    ticker = asyncio.create_task(tick())
    journal._io.acquire()  # the disk does not answer
    first = asyncio.create_task(batcher.awrite([Set("k/1", {})]))
    starter = asyncio.create_task(asyncio.to_thread(batcher.start))
    await asyncio.sleep(0.1)
    assert not first.done()
    journal._io.release()
    await starter
    await first
    committed = asyncio.create_task(batcher.awrite([Set("k/2", {})], until="store"))
    while not gate.arrived.is_set():
        await asyncio.sleep(0.001)
    no_room = asyncio.create_task(batcher.awrite([Set("k/3", {})], deadline=deadline_in(0.1)))
    with pytest.raises(BufferFullError):
        await no_room
    flush = asyncio.create_task(batcher.aflush(deadline_in(0.05)))
    with pytest.raises(StoreTimeout):
        await flush
    assert not committed.done()
    ticking = False
    await ticker
    gate.open.set()
    await committed
    await batcher.aclose()
    assert longest < 0.09, "the loop stood still while something waited"
    assert not store.get("k/3").exists


async def test_a_cancelled_wait_for_room_gives_nothing_away(
    store: FaultyStore, journal: Journal
) -> None:
    gate = Gate()
    store.before = gate
    batcher = BeastModeBatcher(store, journal, max_delay_s=LONG, max_pending_ops=1)
    await batcher.awrite([Set("k/1", {})])
    waiting = [
        asyncio.create_task(batcher.awrite([Set(f"k/{n}", {})], deadline=deadline_in(30)))
        for n in (2, 3, 4)
    ]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    waiting[2].cancel()
    flush = asyncio.create_task(batcher.aflush())
    gate.open.set()
    await flush
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1] is None
    assert isinstance(outcomes[2], asyncio.CancelledError)
    await batcher.awrite([Set("k/5", {})])  # all the room is back
    await batcher.aclose()
    batcher._pending._check()
    assert batcher._pending.ops_held == 0
    assert [store.get(f"k/{n}").exists for n in range(1, 6)] == [True, False, True, False, True]


async def test_cancelling_a_writer_fails_no_other(store: FaultyStore, journal: Journal) -> None:
    gate = Gate()
    store.before = gate
    batcher = BeastModeBatcher(store, journal, max_delay_s=LONG)
    tasks = [
        asyncio.create_task(batcher.awrite([Set(f"k/{n}", {})], until="store")) for n in range(4)
    ]
    while not gate.arrived.is_set():
        await asyncio.sleep(0.001)
    tasks[1].cancel()
    gate.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert all(isinstance(outcomes[n], list) for n in (0, 2, 3))
    await batcher.aclose()
    assert store.get("k/1").exists, "it had been accepted"


async def test_awrite_gives_up_at_its_deadline(store: FaultyStore, journal: Journal) -> None:
    gate = Gate()
    store.before = gate
    batcher = BeastModeBatcher(store, journal, max_delay_s=LONG)
    started = time.monotonic()
    with pytest.raises(StoreTimeout, match="accepted and will be committed later"):
        await batcher.awrite([Set("k/1", {})], until="store", deadline=deadline_in(0.05))
    with pytest.raises(StoreTimeout, match="not committed|may be committed"):
        await batcher.awrite(
            [Set("k/2", {}, Precondition(exists=False))], deadline=deadline_in(0.05)
        )
    assert time.monotonic() - started < 2
    gate.open.set()
    await batcher.aclose()


def test_a_loop_that_ends_while_it_waits_harms_nobody(store: FaultyStore, journal: Journal) -> None:
    gate = Gate()
    store.before = gate
    batcher = BeastModeBatcher(store, journal, max_delay_s=LONG)

    async def main() -> None:
        task = asyncio.create_task(batcher.awrite([Set("k/1", {})], until="store"))
        while not gate.arrived.is_set():
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(main())
    gate.open.set()
    batcher.write([Set("k/2", {})], until="store")
    batcher.close()
    assert store.get("k/1").exists


def test_threads_and_loops_together_see_their_own_writes_and_keep_their_order(
    store: FaultyStore, journal: Journal
) -> None:
    """Every writer reads back each write at once, while the store fails and answers late."""
    rng = random.Random(7)

    def shaky(operations: object) -> None:
        if rng.random() < 0.3:
            raise (StoreUnavailable if rng.random() < 0.5 else StoreTimeout)("shaky")

    class NoPause(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return a

    store.before = store.after = shaky
    batcher = BeastModeBatcher(
        store, journal, max_ops=7, max_delay_s=0.002, max_pending_ops=40, rng=NoPause()
    )
    problems: list[str] = []

    def look(path: str, n: int) -> None:
        seen = batcher.overlay(store.get(path)).data
        if seen is None or seen["n"] != n:
            problems.append(f"{path}: wrote {n}, saw {seen}")

    def from_thread(who: int) -> None:
        for n in range(120):
            path = f"t/{who}-{n % 3}"
            batcher.write([Merge(path, {"n": n, f"f{n % 4}": n})], deadline=deadline_in(30))
            look(path, n)

    async def from_task(who: int) -> None:
        for n in range(120):
            path = f"a/{who}-{n % 3}"
            await batcher.awrite([Merge(path, {"n": n, f"f{n % 4}": n})], deadline=deadline_in(30))
            look(path, n)

    async def loop() -> None:
        await asyncio.gather(*(from_task(who) for who in range(3)))

    threads = [threading.Thread(target=from_thread, args=(who,)) for who in range(3)]
    threads.append(threading.Thread(target=lambda: asyncio.run(loop())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    batcher.close()
    for collection in "ta":
        for who in range(3):
            for key in range(3):
                numbers = range(key, 120, 3)
                want = {"n": numbers[-1]} | {
                    f"f{f}": max(n for n in numbers if n % 4 == f) for f in range(4)
                }
                assert store.get(f"{collection}/{who}-{key}").data == want
