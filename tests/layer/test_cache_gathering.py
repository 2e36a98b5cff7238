"""Reads that coroutines begin in one turn of their event loop, asked of the store together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beastmode.cache import BeastModeCache
from beastmode.errors import ConfigError, StoreUnavailable, WriteRejected
from beastmode.optimizer import BeastModeOptimizer
from beastmode.requests import Request
from beastmode.stores.documents import Document
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.threaded import ThreadedAsyncStore
from scripted import WAIT_S, ScriptedAsyncStore, ScriptedStore

PATHS = [f"users/{number}" for number in range(5)]


@pytest.fixture
def store() -> ScriptedStore:
    store = ScriptedStore()
    for path in PATHS:
        store.put(path, n=1)
    return store


@pytest.fixture
def cache(store: ScriptedStore) -> Iterator[BeastModeCache]:
    cache = BeastModeCache(
        store, ScriptedAsyncStore(store), load_deadline_s=WAIT_S, coalesce_reads=True
    )
    yield cache
    cache.close()


async def test_reads_of_one_turn_are_one_call(cache: BeastModeCache, store: ScriptedStore) -> None:
    answers = await asyncio.gather(*(cache.aget(path) for path in [*PATHS, PATHS[0]]))
    assert [answer.document.path for answer in answers] == [*PATHS, PATHS[0]]
    assert (store.gets, store.batches) == ([], [PATHS])
    stats = cache.get_stats()
    assert (stats.loads, stats.gathered, stats.coalesced) == (5, 5, 1)
    assert [cache.lookup(path) for path in PATHS] == [store.documents[path] for path in PATHS]


async def test_a_lone_read_is_a_get_and_waits_no_turn_longer(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    async def turns(cache: BeastModeCache) -> int:
        """Turns of the loop from the start of a read to the call of the store."""
        store.gets.clear()
        reader = asyncio.ensure_future(cache.aget(PATHS[0]))
        count = 0
        while not store.gets:
            await asyncio.sleep(0)
            count += 1
        await reader
        return count

    plain = BeastModeCache(store, ScriptedAsyncStore(store))
    assert await turns(cache) == await turns(plain)
    assert store.batches == []
    assert cache.get_stats().gathered == 0
    plain.close()


async def test_reads_of_later_turns_are_later_calls(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    async def later(path: str) -> None:
        for _ in range(int(path[-1]) // 2 * 3):
            await asyncio.sleep(0)
        await cache.aget(path)

    await asyncio.gather(*map(later, PATHS))
    assert store.batches == [PATHS[:2], PATHS[2:4]]
    assert store.gets == PATHS[4:]


async def test_a_turn_with_very_many_reads_is_several_calls(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    await asyncio.gather(*(cache.aget(f"rooms/{number}") for number in range(1201)))
    assert list(map(len, store.batches)) == [500, 500, 201]


async def test_an_error_of_one_document_is_no_other_readers_business(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    def answer(document: Document) -> Any:
        if document.path == PATHS[1]:
            raise WriteRejected("no")
        return document

    store.answer = answer
    results = await asyncio.gather(*(cache.aget(path) for path in PATHS), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Answer", "WriteRejected"] + 3 * [
        "Answer"
    ]
    assert (len(store.batches), store.gets) == (1, PATHS)
    assert cache.get_stats().load_errors == 1


async def test_a_store_that_fails_is_asked_once(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    store.error = StoreUnavailable("down")
    results = await asyncio.gather(*(cache.aget(path) for path in PATHS), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    assert (len(store.batches), store.gets) == (1, [])
    assert cache.get_stats().in_flight == 0


async def test_cancelling_the_first_reader_disturbs_no_other(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    readers = [asyncio.create_task(cache.aget(path)) for path in PATHS]
    await asyncio.sleep(0)
    readers[0].cancel()
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [type(result).__name__ for result in results[1:]] == ["Answer"] * 4
    assert cache.lookup(PATHS[0]) is not None, "its load went on"


async def test_a_read_that_is_overtaken_in_a_batch_is_not_installed(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    hold = store.hold(PATHS[0])
    readers = asyncio.gather(*(cache.aget(path) for path in PATHS))
    while not hold.entered.is_set():
        await asyncio.sleep(0)
    cache.invalidate(PATHS[1])
    hold.release()
    await readers
    assert cache.lookup(PATHS[1]) is None
    assert cache.lookup(PATHS[2]) is not None


def test_a_loop_that_is_closed_first_leaves_nothing_behind(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    loop = asyncio.new_event_loop()

    async def start() -> None:
        reader = asyncio.ensure_future(cache.aget(PATHS[0]))
        await asyncio.sleep(0)
        reader.cancel()

    loop.run_until_complete(start())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    cache.cleanup()
    assert not cache._loader._turns
    assert cache.get(PATHS[0]).source == "store"


class Telling(ThreadedAsyncStore):
    """A store for which one call for many is worth it."""

    coalesce_reads = True


@pytest.mark.parametrize(
    ("setting", "kind", "batched"),
    [
        ("auto", ThreadedAsyncStore, False),
        ("auto", Telling, True),
        ("on", ThreadedAsyncStore, True),
        ("off", Telling, False),
    ],
)
async def test_the_setting_decides(
    tmp_path: Path, setting: str, kind: type[ThreadedAsyncStore], batched: bool
) -> None:
    with SQLiteStore(str(tmp_path / "a.db")) as store:
        optimizer = BeastModeOptimizer(store, async_store=kind(store), coalesce_reads=setting)
        async with optimizer:
            requests = [Request.get(path) for path in PATHS]
            await asyncio.gather(*(optimizer.handle_request(None, request) for request in requests))
            assert optimizer.get_stats().cache.gathered == (len(PATHS) if batched else 0)


def test_bad_settings_are_refused(store: ScriptedStore) -> None:
    with pytest.raises(ConfigError, match="coalesce_reads"):
        BeastModeCache(store, coalesce_reads="on")  # type: ignore[arg-type]
