"""What the cache may install and must not: interleavings of loads, writes, changes and doubt.

Nothing sleeps. A load is stopped between its read and its return, the other party acts, and the
load goes on.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beastcore import Cache
from beastmode.cache import Answer, BeastModeCache, Lease, Rule
from beastmode.errors import ConfigError, StoreUnavailable
from beastmode.stores.base import Change, Query, QueryResult
from beastmode.stores.documents import Document, Merge, Update, freeze
from scripted import WAIT_S, Asking, Hold, ScriptedAsyncStore, ScriptedStore
from store_support import wait_until
from support import FakeClock

KEY = "users/1"

Act = Callable[[BeastModeCache, ScriptedStore], object]


def finish_write(cache: BeastModeCache, store: ScriptedStore, document: Document | None) -> None:
    cache.write_started(KEY)
    cache.write_finished(KEY, document)


OVERTAKERS: dict[str, Act] = {
    "invalidate": lambda cache, store: cache.invalidate(KEY),
    "invalidate prefix": lambda cache, store: cache.invalidate(prefix="users"),
    "clear": lambda cache, store: cache.clear(),
    "doubt": lambda cache, store: cache.mark_unverified(),
    "doubt prefix": lambda cache, store: cache.mark_unverified("users"),
    "doubt path": lambda cache, store: cache.doubt([KEY]),
    "change": lambda cache, store: cache.apply_change(Change(store.documents[KEY])),
    "write": lambda cache, store: finish_write(cache, store, None),
    "known write": lambda cache, store: finish_write(cache, store, store.documents[KEY]),
    "set": lambda cache, store: cache.set(store.documents[KEY]),
}


@pytest.fixture
def store() -> ScriptedStore:
    store = ScriptedStore()
    store.put(KEY, n=1)
    return store


@pytest.fixture
def cache(store: ScriptedStore, clock: FakeClock) -> Iterator[BeastModeCache]:
    cache = BeastModeCache(
        store,
        ScriptedAsyncStore(store),
        ttl_s=100,
        max_stale_s=10,
        load_deadline_s=WAIT_S,
        timer=clock,
    )
    yield cache
    cache.close()


class Loading:
    """A read in another thread whose load has read its document and not yet returned it."""

    def __init__(
        self,
        cache: BeastModeCache,
        store: ScriptedStore,
        path: str = KEY,
        *,
        user: str | None = None,
    ) -> None:
        self._held: Hold = store.hold(path)
        self.answer: Answer | None = None

        def read() -> None:
            self.answer = cache.get(path, user=user)

        self._thread = threading.Thread(target=read, daemon=True)
        self._thread.start()
        self._held.wait_entered()

    def end(self, document: Document | None = None) -> Document:
        """Let it bring what it read, or `document` if the store read later than it was asked."""
        self._held.release(None if document is None else lambda _: document)
        self._thread.join(WAIT_S)
        assert self.answer is not None
        return self.answer.document


# -- C1: nothing is installed after its token died ---------------------------------------------


@pytest.mark.parametrize("name", OVERTAKERS)
def test_an_overtaken_load_is_not_installed(
    cache: BeastModeCache, store: ScriptedStore, name: str
) -> None:
    old = store.documents[KEY]
    loading = Loading(cache, store)
    new = store.put(KEY, n=2)
    OVERTAKERS[name](cache, store)
    # Who comes now does not join the overtaken load.
    assert cache.get(KEY).document == new
    assert loading.end() in (old, new), "who was waiting may get either"
    assert cache.get(KEY) == Answer(new, "hit")


@pytest.mark.parametrize("name", OVERTAKERS)
def test_an_overtaken_load_is_not_installed_after_its_successor_left(
    cache: BeastModeCache, store: ScriptedStore, name: str
) -> None:
    loading = Loading(cache, store)
    store.put(KEY, n=2)
    OVERTAKERS[name](cache, store)
    cache.get(KEY)
    cache._engine.clear()  # evicted: its version is no longer known
    loading.end()
    assert cache.lookup(KEY) is None


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", OVERTAKERS)
async def test_every_order_of_load_commit_and_notice_converges(
    store: ScriptedStore, name: str, held: bool
) -> None:
    """Load (begin, end) against commit, then notice: every order ends with the truth or nothing."""
    steps = list(itertools.permutations(("begin", "end", "commit", "notice")))
    orders = [
        order
        for order in steps
        if order.index("begin") < order.index("end")
        and order.index("commit") < order.index("notice")
    ]
    assert len(orders) == 6
    for order in orders:
        clock = FakeClock()
        cache = BeastModeCache(
            store, ScriptedAsyncStore(store), ttl_s=100, load_deadline_s=WAIT_S, timer=clock
        )
        if held:
            await cache.aget(KEY)
            clock.advance(101)
        hold: Hold | None = None
        reader: asyncio.Task[Answer] | None = None
        for step in order:
            if step == "begin":
                hold = store.hold(KEY)
                reader = asyncio.create_task(cache.aget(KEY))
                while not (hold.entered.is_set() or reader.done()):
                    await asyncio.sleep(0)
            elif step == "commit":
                store.put(KEY, n=order)
            elif step == "notice":
                OVERTAKERS[name](cache, store)
            else:
                assert hold is not None
                assert reader is not None
                hold.release()
                await reader
        store._holds.clear()
        found = cache.lookup(KEY)
        assert found in (None, store.documents[KEY]), order
        assert (await cache.aget(KEY)).document == store.documents[KEY], order
        cache.close()


def test_an_overtaken_batch_installs_the_rest(cache: BeastModeCache, store: ScriptedStore) -> None:
    other = store.put("users/2", n=2)
    held = store.hold("users/2")
    got: list[list[Answer]] = []
    reader = threading.Thread(target=lambda: got.append(cache.get_many([KEY, "users/2"])))
    reader.start()
    held.wait_entered()
    cache.invalidate(KEY)
    held.release()
    reader.join(WAIT_S)
    assert len(got[0]) == 2
    assert cache.lookup(KEY) is None
    assert cache.lookup("users/2") == other
    assert cache.get_stats().discarded == 1


# -- C2: versions never go back ----------------------------------------------------------------


def test_a_lagging_store_does_not_turn_back_time(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    old = store.documents[KEY]
    new = store.put(KEY, n=2)
    cache.get(KEY)
    clock.advance(101)
    store.documents[KEY] = old
    assert cache.get(KEY) == Answer(new, "store")
    assert cache.lookup(KEY) is None, "what is held was not confirmed"
    assert cache.set(old) is False
    cache.apply_change(Change(old))
    store.documents[KEY] = new
    assert cache.get(KEY) == Answer(new, "store")
    assert cache.get(KEY) == Answer(new, "hit")


def test_tombstones_have_versions_too(cache: BeastModeCache, store: ScriptedStore) -> None:
    old = store.documents[KEY]
    gone = store.delete(KEY)
    assert not cache.get(KEY).document.exists
    assert cache.set(old) is False
    back = store.put(KEY, n=3)
    cache.apply_change(Change(back))
    assert cache.lookup(KEY) == back
    cache.apply_change(Change(gone))
    assert cache.lookup(KEY) == back


# A tombstone's version is the time of a look, and a server may stamp it after it has looked: then
# a document that was written meanwhile has a lower version.


def late_look(store: ScriptedStore) -> Document:
    """Return a tombstone that says it was read after the next write of the store."""
    return Document(KEY, None, store.version + 2)


def test_a_change_below_a_tombstone_is_loaded(cache: BeastModeCache, store: ScriptedStore) -> None:
    cache.set(late_look(store))
    new = store.put(KEY, n=2)
    cache.apply_change(Change(new))
    assert cache.lookup(KEY) is None
    assert cache.get(KEY).document == new


def test_an_inferred_deletion_is_loaded(cache: BeastModeCache, store: ScriptedStore) -> None:
    gone = late_look(store)
    new = store.put(KEY, n=2)
    cache.get(KEY)
    cache.apply_change(Change(gone, inferred=True))
    assert cache.lookup(KEY) is None
    assert cache.get(KEY).document == new


def test_an_inferred_deletion_during_a_write_is_loaded(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    gone = late_look(store)
    cache.write_started(KEY)
    new = store.put(KEY, n=2)
    cache.apply_change(Change(gone, inferred=True))
    cache.write_finished(KEY, new)
    assert cache.lookup(KEY) is None
    assert cache.get(KEY).document == new


def test_a_load_below_an_overdue_tombstone_counts(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.set(late_look(store))
    new = store.put(KEY, n=2)
    clock.advance(1000)
    assert cache.get(KEY) == Answer(new, "store")
    cache.get(KEY)
    assert cache.get(KEY) == Answer(new, "hit")


def test_a_document_seen_elsewhere_ends_a_tombstone_above_it(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.set(late_look(store))
    cache.observe([store.put(KEY, n=2)])
    assert cache.lookup(KEY) is None


@pytest.mark.parametrize("missing_first", [False, True])
def test_who_joins_a_load_late_begins_again_where_the_order_is_unclear(
    cache: BeastModeCache, store: ScriptedStore, missing_first: bool
) -> None:
    gone = late_look(store)
    new = store.put(KEY, n=2)
    first, second = (gone, new) if missing_first else (new, gone)
    overtaken = Loading(cache, store)
    cache.invalidate(KEY)
    successor = Loading(cache, store)
    assert overtaken.end(first) == first
    late = threading.Thread(target=lambda: answers.append(cache.get(KEY)), daemon=True)
    answers: list[Answer] = []
    late.start()
    wait_until(lambda: cache.get_stats().coalesced == 1)
    assert successor.end(second) == second, "it began before anybody had seen anything"
    late.join(WAIT_S)
    assert answers == [Answer(new, "store")], "loaded anew"
    assert store.gets.count(KEY) == 3


# -- changes -----------------------------------------------------------------------------------


def test_a_change_replaces_what_is_held_and_installs_nothing_else(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.apply_change(Change(store.documents[KEY]))
    assert cache.lookup(KEY) is None
    cache.get(KEY)
    clock.advance(90)
    new = store.put(KEY, n=2)
    cache.apply_change(Change(new))
    assert cache.lookup(KEY) is new
    clock.advance(99)
    assert cache.lookup(KEY) is new, "its life began anew"
    assert cache.get_stats().changes_applied == 1
    cache.apply_change(Change(store.delete(KEY)))
    found = cache.lookup(KEY)
    assert found is not None
    assert not found.exists
    clock.advance(31)
    assert cache.lookup(KEY) is None, "a tombstone has its own time to live"


def test_a_change_does_not_make_an_entry_recently_used(
    store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With "lru" the order of use decides alone who leaves.
    monkeypatch.setattr("beastmode.cache.readthrough.Cache", functools.partial(Cache, policy="lru"))
    cache = BeastModeCache(store, max_entries=2)
    store.put("users/2", n=2)
    cache.get(KEY)
    cache.get("users/2")
    cache.apply_change(Change(store.put(KEY, n=3)))
    cache.get("users/3")
    assert cache.lookup(KEY) is None
    assert cache.lookup("users/2") is not None
    cache.close()


# -- C3: own writes ----------------------------------------------------------------------------


def test_while_a_write_is_pending_nothing_read_is_installed(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    base = cache.get(KEY).document
    cache.write_started(KEY)
    assert cache.lookup(KEY) is base, "the base stays: pending writes are laid over it"
    cache.invalidate(KEY)
    new = store.put(KEY, n=2)
    assert [cache.get(KEY) for _ in range(2)] == [Answer(new, "store")] * 2
    assert cache.set(new) is False
    assert cache.get_stats().pending_writes == 1
    cache.write_finished(KEY, new)
    assert cache.get(KEY) == Answer(new, "hit")
    assert cache.get_stats().pending_writes == 0


def test_a_load_that_spans_a_write_is_not_installed(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.write_started(KEY)
    loading = Loading(cache, store)  # it reads the state before the write
    new = store.put(KEY, n=2)
    cache.write_finished(KEY, None)
    loading.end()
    assert cache.lookup(KEY) is None
    assert cache.get(KEY).document == new


def test_a_finished_write_shows_even_if_nothing_was_held(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.write_started(KEY)
    new = store.put(KEY, n=2)
    cache.write_finished(KEY, new)
    assert cache.lookup(KEY) == new


def test_a_write_of_unknown_outcome_drops_the_entry(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.get(KEY)
    cache.write_started(KEY)
    cache.write_finished(KEY, None)
    assert cache.lookup(KEY) is None


def test_with_another_write_pending_the_base_takes_up_the_finished_one(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.get(KEY)
    cache.write_started(KEY)
    cache.write_started(KEY)
    first = store.put(KEY, n=2)
    cache.write_finished(KEY, first)
    found = cache.lookup(KEY)
    assert found is not None
    assert found.data == first.data, "the overlay no longer shows the first write"
    assert found.version < first.version, "the second write may have become the same version"
    second = store.put(KEY, n=3)
    cache.write_finished(KEY, second)
    assert cache.lookup(KEY) == second

    cache.clear()
    cache.write_started(KEY)
    cache.write_started(KEY)
    cache.write_finished(KEY, store.put(KEY, n=4))
    assert cache.lookup(KEY) is None, "no new key while a write is pending"
    cache.write_finished(KEY, None)
    assert cache.lookup(KEY) is None


def test_an_outdated_acknowledgement_does_not_turn_back_time(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    own = store.put(KEY, n=2)
    newer = store.put(KEY, n=3)
    cache.get(KEY)
    cache.write_started(KEY)
    cache.write_finished(KEY, own)
    assert cache.lookup(KEY) == newer


# -- C4 and C5: others' changes while a write is pending ---------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_a_newer_foreign_change_during_a_write_is_not_lost(
    cache: BeastModeCache, store: ScriptedStore, known: bool
) -> None:
    cache.get(KEY)
    cache.write_started(KEY)
    own = store.put(KEY, n=2)
    foreign = store.put(KEY, n=3)
    cache.apply_change(Change(foreign))
    cache.apply_change(Change(own))  # the order of notices does not matter
    cache.write_finished(KEY, own if known else None, version=own.version)
    assert cache.lookup(KEY) is foreign
    assert cache.get_stats().changes_kept == 1


def test_a_foreign_change_during_a_write_of_unknown_outcome_is_loaded(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.get(KEY)
    cache.write_started(KEY)
    foreign = store.put(KEY, n=3)
    cache.apply_change(Change(foreign))
    newest = store.put(KEY, n=4)  # ours, of which the answer was lost
    cache.write_finished(KEY, None)
    assert cache.lookup(KEY) is None
    assert cache.get(KEY).document == newest


def test_a_foreign_change_in_doubt_is_not_taken_up(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    for doubt in (cache.mark_unverified, lambda: cache.doubt([KEY])):
        cache.get(KEY)
        cache.write_started(KEY)
        own = store.put(KEY, n=2)
        cache.apply_change(Change(store.put(KEY, n=3)))
        newest = store.put(KEY, n=4)  # and its notice was lost
        doubt()
        cache.write_finished(KEY, own)
        assert cache.get(KEY) == Answer(newest, "store")


def test_the_echo_of_an_own_write_changes_nothing(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.get(KEY)
    foreign = store.put(KEY, n=2)
    cache.write_started(KEY)
    cache.apply_change(Change(foreign))
    own = store.put(KEY, n=3)
    cache.apply_change(Change(own))
    cache.write_finished(KEY, own)
    assert cache.lookup(KEY) == own
    cache.apply_change(Change(own))
    cache.apply_change(Change(foreign))
    assert cache.lookup(KEY) == own


def test_a_merge_converges_after_a_foreign_merge(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.get(KEY)
    cache.write_started(KEY)
    store.put(KEY, n=1, foreign=True)
    both = store.put(KEY, n=1, foreign=True, own=True)
    cache.apply_change(Change(both))
    # What a merge resulted in is not known; its echo has told.
    cache.write_finished(KEY, None, version=both.version, operation=Merge(KEY, {"own": True}))
    assert cache.lookup(KEY) is both


MERGE = Merge(KEY, {"own": True})


def merged(cache: BeastModeCache, store: ScriptedStore) -> Document:
    """A merge over a foreign one that nobody has told of; return what the store then has."""
    cache.get(KEY)
    store.put(KEY, n=1, foreign=True)
    cache.write_started(KEY)
    both = store.put(KEY, n=1, foreign=True, own=True)
    cache.write_finished(KEY, None, version=both.version, operation=MERGE)
    assert cache.get_stats().guesses == 1
    assert cache.lookup(KEY) is None, "it may lack the foreign field"
    return both


def test_a_provisional_entry_takes_an_equal_version(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    both = merged(cache, store)
    cache.apply_change(Change(both))
    assert cache.lookup(KEY) is both
    assert store.loads_of(KEY) == 1, "the echo spared the load"
    assert cache.get_stats().confirmed == 1
    cache.apply_change(Change(Document(KEY, None, both.version)))
    assert cache.lookup(KEY) is both, "only once"
    clock.advance(100)
    assert cache.lookup(KEY) is None


def test_a_provisional_entry_takes_a_load_or_a_newer_change_and_no_older_one(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    both = merged(cache, store)
    cache.apply_change(Change(Document(KEY, {"n": 0}, both.version - 1)))
    assert cache.lookup(KEY) is None
    assert cache.get(KEY) == Answer(both, "store")
    assert cache.get(KEY) == Answer(both, "hit")
    cache.clear()
    merged_again = store.put(KEY, n=5)
    cache.get(KEY)
    cache.write_started(KEY)
    cache.write_finished(KEY, None, version=merged_again.version + 1, operation=MERGE)
    newer = Document(KEY, {"n": 6}, merged_again.version + 2)
    cache.apply_change(Change(newer))
    assert cache.lookup(KEY) is newer


def test_a_provisional_entry_shows_the_own_write_while_the_store_fails(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    merged(cache, store)
    store.error = StoreUnavailable("down")
    answer = cache.get(KEY)
    assert answer.source == "stale"
    assert answer.document.data == {"n": 1, "own": True}
    clock.advance(10)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)


def test_what_the_store_said_is_not_exchanged_for_a_guess(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    """A guess has the newer version, but lacks what others wrote: who asked the store gets that."""
    cache.get(KEY)
    cache.doubt([KEY])
    foreign = store.put(KEY, n=1, m=5)  # unheard
    loading = Loading(cache, store)
    cache.write_started(KEY)
    own = store.put(KEY, n=2, m=5)
    cache.write_finished(KEY, None, version=own.version, operation=Merge(KEY, {"n": 2}))
    assert cache.get_stats().guesses == 1
    assert loading.end() == foreign
    assert cache.get(KEY) == Answer(own, "store")
    assert cache.get_stats().discarded == 1


def test_doubt_outlives_the_confirmation_of_a_provisional_entry(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    both = merged(cache, store)
    cache.mark_unverified()
    cache.apply_change(Change(both))
    assert cache.lookup(KEY) is None
    assert cache.get(KEY) == Answer(both, "store")


def test_writes_that_become_one_version_converge(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.get(KEY)
    for _ in range(2):
        cache.write_started(KEY)
    both = store.put(KEY, a=1, own=True)
    cache.write_finished(KEY, Document(KEY, freeze({"a": 1}), both.version))
    between = cache.lookup(KEY)
    assert between is not None
    assert between.version < both.version, "or who waits for that version took it for whole"
    cache.write_finished(KEY, None, version=both.version, operation=MERGE)
    store.error = StoreUnavailable("down")
    assert cache.get(KEY) == Answer(both, "stale")
    cache.apply_change(Change(both))
    assert cache.get(KEY) == Answer(both, "hit")


def test_a_guess_needs_its_base(cache: BeastModeCache, store: ScriptedStore) -> None:
    cache.write_started(KEY)
    cache.write_finished(KEY, None, version=5, operation=MERGE)
    assert cache.lookup(KEY) is None, "nothing was held"
    cache.set(Document(KEY, None, 6))
    cache.write_started(KEY)
    cache.write_finished(KEY, None, version=7, operation=Update(KEY, {"n": 1}))
    assert not cache.holds(KEY), "an update of nothing tells nothing"
    assert cache.get_stats().guesses == 0


# -- C6: doubt ---------------------------------------------------------------------------------


def test_doubt_comes_before_the_next_read(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.get(KEY)
    new = store.put(KEY, n=2)  # and its notice was lost
    cache.mark_unverified()
    assert cache.get(KEY) == Answer(new, "store")


def test_a_load_in_the_air_does_not_end_doubt(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.get(KEY)
    clock.advance(101)
    loading = Loading(cache, store)
    store.put(KEY, n=2)
    cache.mark_unverified()
    loading.end()
    assert cache.lookup(KEY) is None


def test_doubt_twice_does_not_prolong_staleness(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.get(KEY)
    store.error = StoreUnavailable("down")
    for _ in range(2):
        cache.mark_unverified()
        assert cache.get(KEY).source == "stale"
        clock.advance(6)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)


def test_a_write_past_the_cache_keeps_it_out(cache: BeastModeCache, store: ScriptedStore) -> None:
    cache.get(KEY)
    with cache.writing(KEY, "users/2"):
        new = store.put(KEY, n=2)
        loading = Loading(cache, store, "users/2")
        other = store.put("users/2", n=2)
    loading.end()
    assert cache.get_stats().pending_writes == 0
    assert cache.lookup("users/2") is None
    assert cache.get(KEY).document == new
    assert cache.get("users/2").document == other
    with pytest.raises(ZeroDivisionError), cache.writing(KEY):
        newest = store.put(KEY, n=3)
        raise ZeroDivisionError
    assert cache.get(KEY).document == newest


# -- C14: after an outage not everything is loaded at once --------------------------------------


def test_loads_of_what_is_in_doubt_are_limited(store: ScriptedStore, clock: FakeClock) -> None:
    cache = BeastModeCache(store, ttl_s=100, max_stale_s=10, reload_rate=20, timer=clock)
    paths = [f"users/{number}" for number in range(100)]
    for path in paths:
        store.put(path, n=1)
    cache.get_many(paths)
    for path in paths:
        store.put(path, n=2)  # during the outage, and nobody heard of it
    cache.mark_unverified()
    store.gets.clear()

    def sources() -> dict[str, int]:
        found = [cache.get(path).source for path in paths]
        return {source: found.count(source) for source in ("hit", "stale", "store")}

    assert sources() == {"hit": 0, "stale": 80, "store": 20}
    assert sources() == {"hit": 20, "stale": 80, "store": 0}
    clock.advance(0.5)
    assert [answer.source for answer in cache.get_many(paths)].count("store") == 10
    clock.advance(60)  # the bucket holds no more than a second's, and max_stale_s has passed
    assert sources() == {"hit": 30, "stale": 0, "store": 70}, "nothing is older than its bound"
    assert {cache.get(path).document.data["n"] for path in paths} == {2}  # type: ignore[index]
    assert cache.get_stats().reloads_limited == 80 + 80 + 70
    assert store.loads_of(paths[0]) == 2
    cache.close()


def test_what_is_merely_old_or_new_is_not_limited(store: ScriptedStore, clock: FakeClock) -> None:
    cache = BeastModeCache(store, ttl_s=100, max_stale_s=10, reload_rate=1, timer=clock)
    paths = [f"users/{number}" for number in range(9)]
    for _ in range(2):
        assert {cache.get(path).source for path in paths} == {"store"}
        clock.advance(100)
    with pytest.raises(ConfigError, match="reload_rate"):
        BeastModeCache(store, reload_rate=0.5)
    cache.close()


def test_background_loads_of_what_is_in_doubt_are_limited_too(
    store: ScriptedStore, clock: FakeClock
) -> None:
    cache = BeastModeCache(
        store, max_stale_s=10, stale_while_revalidate_s=10, reload_rate=3, timer=clock
    )
    paths = [f"users/{number}" for number in range(9)]
    cache.get_many(paths)
    cache.mark_unverified()
    assert {cache.get(path).source for path in paths} == {"stale"}
    assert cache.get_stats().refreshes == 3
    assert cache.get_stats().reloads_limited == 6
    cache.close()


# -- uncacheable and re-entrant ----------------------------------------------------------------


def test_uncacheable_readers_after_a_write_do_not_join_an_older_load(
    store: ScriptedStore,
) -> None:
    cache = BeastModeCache(store, rules=[Rule("users", cacheable=False)], load_deadline_s=WAIT_S)
    loading = Loading(cache, store)
    cache.write_started(KEY)
    new = store.put(KEY, n=2)
    assert cache.get(KEY).document == new
    cache.write_finished(KEY, new)
    assert loading.end() != new
    cache.close()


# -- what somebody has seen is not taken back ------------------------------------------------------


def test_a_load_that_may_not_be_installed_ends_what_is_older(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    lease = Lease(math.inf)
    cache.get(KEY)
    cache.cover(KEY, lease)
    cache.doubt([KEY])
    new = store.put(KEY, n=2)
    loading = Loading(cache, store)
    cache.doubt([KEY])  # the stream was lost once more: the load may not be installed
    assert loading.end() == new
    cache.cover(KEY, lease)  # it is back, and has not told of the change yet
    assert cache.get(KEY).document == new


def test_documents_read_past_the_cache_end_what_is_older(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    held = cache.get(KEY).document
    cache.observe([held, store.put("users/2", n=1)])
    assert cache.lookup(KEY) is held
    assert not cache.holds("users/2")
    cache.observe([store.put(KEY, n=2)])
    assert cache.lookup(KEY) is None


def test_a_query_ends_what_is_older(cache: BeastModeCache, store: ScriptedStore) -> None:
    cache.get(KEY)
    new = store.put(KEY, n=2)
    assert cache.query(Query("users"), deadline=None).documents == [new]
    assert cache.get(KEY).document == new


SEERS: dict[str, Callable[[BeastModeCache, ScriptedStore, Document], object]] = {
    "read past the cache": lambda cache, store, new: cache.observe([new]),
    "query": lambda cache, store, new: cache.query(Query("users")),
}


@pytest.mark.parametrize("name", SEERS)
@pytest.mark.parametrize("per_user", [False, True])
def test_a_load_in_the_air_shows_nothing_older_than_was_seen_elsewhere(
    cache: BeastModeCache, store: ScriptedStore, name: str, per_user: bool
) -> None:
    if per_user:
        cache.close()
        cache = BeastModeCache(store, rules=[Rule("users", per_user=True)], load_deadline_s=WAIT_S)
    user = "me" if per_user else None
    loading = Loading(cache, store, user=user)
    new = store.put(KEY, n=2)
    SEERS[name](cache, store, new)
    loading.end()
    assert cache.get(KEY, user=user).document == new
    cache.close()


def test_a_load_in_the_air_shows_nothing_older_than_an_overtaken_one(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    overtaken = Loading(cache, store)
    cache.invalidate(KEY)
    successor = Loading(cache, store)
    new = store.put(KEY, n=2)
    assert overtaken.end(new) == new
    assert cache.lookup(KEY) is None, "its token is dead"
    assert successor.end() == new
    assert cache.get(KEY) == Answer(new, "hit")


def test_a_query_ends_with_a_read_past_the_cache(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    cache.cover_collection("users", Lease(math.inf))
    assert cache.query(Query("users")).source == "store"
    cache.observe([store.put(KEY, n=2)])
    assert cache.query(Query("users")).documents == [store.documents[KEY]]


def test_a_query_in_the_air_shows_nothing_older_than_an_overtaken_one(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    overtaken = Asking(cache, store)
    cache.invalidate(KEY)
    successor = Asking(cache, store)
    new = store.put(KEY, n=2)
    result = QueryResult([new], store.version)
    assert overtaken.end(lambda _: result) == [new]
    assert successor.end() == [new]


def test_a_finalizer_may_use_the_cache(store: ScriptedStore) -> None:
    cache = BeastModeCache(store, max_entries=1)
    seen: list[int] = []

    class Evil(dict[str, Any]):
        def __del__(self) -> None:
            seen.append(cache.invalidate("users/9"))
            cache.write_started("users/8")
            cache.write_finished("users/8", None)

    for number in range(5):
        assert cache.set(Document(f"things/{number}", Evil(), 1))
    assert len(seen) == 4
    assert cache.get_stats().engine.currsize == 1
    cache.clear()
    assert len(seen) == 5
    cache.close()
