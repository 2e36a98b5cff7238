"""The cache over the emulator of Firestore: versions, tombstones, queries, gathered reads."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from beastmode.cache import BeastModeCache, Lease
from beastmode.stores.base import Change, Filter, Query
from beastmode.stores.documents import Delete, Document, Merge, Set
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore

KEY = "users/1"


@pytest.fixture
def store(firestore: Any) -> Iterator[FirestoreStore]:
    with FirestoreStore(firestore.project, deadline_s=20.0) as store:
        yield store


@pytest.fixture
def cache(store: FirestoreStore) -> Iterator[BeastModeCache]:
    cache = BeastModeCache(store, load_deadline_s=20.0)
    yield cache
    cache.close()


def test_versions_of_documents_and_tombstones_never_go_back(
    cache: BeastModeCache, store: FirestoreStore
) -> None:
    missing = cache.get(KEY).document
    (first,) = store.commit([Set(KEY, {"n": 1})])
    assert first > missing.version
    old = Document(KEY, {"n": 1}, first)
    cache.apply_change(Change(old))
    assert cache.lookup(KEY) is old
    cache.write_started(KEY)
    (deleted,) = store.commit([Delete(KEY)])
    gone = Document(KEY, None, deleted)
    cache.write_finished(KEY, gone)
    assert cache.set(old) is False
    assert cache.lookup(KEY) == gone
    again = store.get(KEY)
    assert not again.exists
    assert again.version >= deleted
    cache.apply_change(Change(old))  # an echo that comes late
    assert not cache.get(KEY).document.exists
    (back,) = store.commit([Set(KEY, {"n": 2})])
    assert back > again.version
    assert cache.set(Document(KEY, {"n": 2}, back))


def test_a_merge_is_confirmed_by_what_the_store_has_at_its_version(
    cache: BeastModeCache, store: FirestoreStore
) -> None:
    store.commit([Set(KEY, {"n": 1})])
    cache.get(KEY)
    store.commit([Merge(KEY, {"foreign": True})])
    cache.write_started(KEY)
    merge = Merge(KEY, {"own": True})
    (version,) = store.commit([merge])
    cache.write_finished(KEY, None, version=version, operation=merge)
    assert cache.lookup(KEY) is None
    echo = store.get(KEY)
    assert echo.version == version
    cache.apply_change(Change(echo))
    found = cache.lookup(KEY)
    assert found is not None
    assert found.data == {"n": 1, "foreign": True, "own": True}


def test_a_result_is_held_until_its_collection_changes(
    cache: BeastModeCache, store: FirestoreStore
) -> None:
    versions = store.commit([Set(f"users/{number}", {"n": number}) for number in range(5)])
    cache.cover_collection("users", Lease(math.inf))
    query = Query("users", (Filter("n", ">", 2),))
    assert [cache.query(query).source for _ in range(2)] == ["store", "hit"]
    cache.apply_change(Change(Document("users/3", {"n": 3}, versions[3])))
    assert cache.query(query).source == "hit", "it was in the result"
    (version,) = store.commit([Set("users/0", {"n": 9})])
    cache.apply_change(Change(Document("users/0", {"n": 9}, version)))
    found = cache.query(query)
    assert (found.source, len(found.documents)) == ("store", 3)
    assert cache.query(query).source == "hit"


async def test_reads_of_one_turn_are_gathered(store: FirestoreStore, firestore: Any) -> None:
    paths = [f"users/{number}" for number in range(50)]
    await asyncio.to_thread(store.commit, [Set(path, {"p": path}) for path in paths[:49]])
    async with AsyncFirestoreStore(firestore.project, deadline_s=20.0) as async_store:
        cache = BeastModeCache(
            store, async_store, load_deadline_s=20.0, coalesce_reads=async_store.coalesce_reads
        )
        limit = time.monotonic() + 20.0
        answers = await asyncio.gather(*(cache.aget(path, deadline=limit) for path in paths))
        assert [answer.document.exists for answer in answers] == [True] * 49 + [False]
        assert [answer.document.path for answer in answers] == paths
        assert cache.get_stats().gathered == 50
        await asyncio.to_thread(cache.close)
