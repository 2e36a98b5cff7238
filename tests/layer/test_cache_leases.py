"""Leases: what a healthy stream keeps fresh, what doubt ends, and what is told to be followed."""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from beastcore import Cache
from beastmode.cache import Answer, BeastModeCache, Lease, Rule
from beastmode.cache.lease import Interest
from beastmode.errors import ClosedError, ConfigError, RequestError, StoreUnavailable
from beastmode.stores.base import Change
from beastmode.stores.documents import Merge
from scripted import ScriptedStore
from support import FakeClock

KEY = "users/1"
TTL = 100.0
STALE = 10.0


@pytest.fixture
def store() -> ScriptedStore:
    store = ScriptedStore()
    store.put(KEY, n=1)
    return store


@pytest.fixture
def cache(store: ScriptedStore, clock: FakeClock) -> Iterator[BeastModeCache]:
    cache = BeastModeCache(store, ttl_s=TTL, negative_ttl_s=20, max_stale_s=STALE, timer=clock)
    yield cache
    cache.close()


def test_a_lease_keeps_a_document_fresh_beyond_its_time(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    lease = Lease()
    assert cache.cover(KEY, lease) is False, "nothing is held"
    document = cache.get(KEY).document
    assert cache.cover(KEY, lease)
    clock.advance(TTL)
    assert cache.lookup(KEY) is None, "the lease promises nothing yet"
    for _ in range(5):
        lease.valid_until = clock.now + 60
        for _ in range(3):
            assert cache.lookup(KEY) is document
            assert cache.get_many([KEY]) == [Answer(document, "hit")]
            assert cache.load(KEY) == Answer(document, "hit")
        clock.advance(59)
        assert cache.cleanup() == 0
    clock.advance(1)
    assert cache.lookup(KEY) is None, "silence for longer than was promised"
    assert cache.get_stats().prolonged == 3, "once for each promise that was needed"
    assert store.loads_of(KEY) == 1


def test_a_tombstone_is_kept_by_a_lease_too(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    gone = cache.get("users/2").document
    assert not gone.exists
    lease = Lease(math.inf)
    assert cache.cover("users/2", lease)
    clock.advance(10_000)
    assert cache.lookup("users/2") is gone
    assert cache.get_stats().negative_hits == 1


@pytest.mark.parametrize("how", ["paths", "prefix", "all"])
def test_doubt_is_stronger_than_a_lease(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock, how: str
) -> None:
    lease = Lease(math.inf)
    cache.get(KEY)
    cache.cover(KEY, lease)
    clock.advance(TTL)
    assert cache.lookup(KEY) is not None
    new = store.put(KEY, n=2)  # and its notice was lost
    doubts: dict[str, Callable[[], None]] = {
        "paths": lambda: cache.doubt([KEY]),
        "prefix": lambda: cache.mark_unverified("users"),
        "all": cache.mark_unverified,
    }
    doubts[how]()
    assert cache.lookup(KEY) is None, "although the lease is valid"
    store.error = StoreUnavailable("down")
    clock.advance(STALE - 1)
    assert cache.get(KEY).source == "stale"
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)
    store.error = None
    assert cache.get(KEY) == Answer(new, "store")
    clock.advance(TTL)
    assert cache.lookup(KEY) is None, "the lease has to be given anew"
    assert cache.get_stats().doubted == 1


@pytest.mark.parametrize("how", ["paths", "prefix", "unknown"])
def test_what_nobody_read_for_long_is_stale_from_the_moment_of_doubt(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock, how: str
) -> None:
    lease = Lease()
    document = cache.get(KEY).document
    cache.cover(KEY, lease)
    clock.advance(50 * TTL)
    lease.valid_until = clock.now + 60
    clock.advance(1)
    lease.cancel()
    if how == "prefix":
        cache.mark_unverified("users")
    else:
        cache.doubt([KEY], unknown=how == "unknown")
    store.error = StoreUnavailable("down")
    assert cache.get(KEY) == Answer(document, "stale")
    clock.advance(STALE - 1)
    assert cache.get(KEY) == Answer(document, "stale")
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)


@pytest.mark.parametrize("doubted", [False, True])
def test_what_a_lease_stopped_vouching_for_is_stale_from_then_on(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock, doubted: bool
) -> None:
    """As when the whole process stood still: doubt comes late, and gives no more time."""
    lease = Lease()
    document = cache.get(KEY).document
    cache.cover(KEY, lease)
    clock.advance(50 * TTL)
    lease.valid_until = clock.now + 60
    store.error = StoreUnavailable("down")
    clock.advance(60 + STALE - 1)
    if doubted:
        lease.cancel()
        cache.doubt([KEY])
    assert cache.get(KEY) == Answer(document, "stale")
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)


def test_a_guess_is_stale_from_the_write_on(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.get(KEY)
    cache.cover(KEY, Lease(math.inf))
    clock.advance(50 * TTL)
    cache.write_started(KEY)
    both = store.put(KEY, n=1, m=2)
    cache.write_finished(KEY, None, version=both.version, operation=Merge(KEY, {"m": 2}))
    store.error = StoreUnavailable("down")
    clock.advance(STALE - 1)
    assert cache.get(KEY).source == "stale"
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)


def test_a_lease_is_cancelled_once(cache: BeastModeCache) -> None:
    lease = Lease(5.0)
    assert (lease.cancelled, lease.promised_until) == (False, 5.0)
    for _ in range(2):
        lease.cancel()
        assert (lease.cancelled, lease.promised_until, lease.valid_until) == (True, 5.0, -math.inf)


def test_a_stream_that_resumes_ends_the_doubt_without_a_load(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    document = cache.get(KEY).document
    other = cache.get("users/2").document
    lease = Lease(clock.now + 60)
    cache.cover(KEY, lease)
    cache.cover("users/2", lease)
    lease.cancel()
    cache.doubt([KEY, "users/2"])
    clock.advance(25)  # longer than max_stale_s
    newer = store.put("users/2", n=2)
    cache.apply_change(Change(newer))  # what was missed, delivered late
    lease = Lease(clock.now + 60)
    assert cache.cover(KEY, lease)
    assert cache.cover("users/2", lease)
    assert cache.lookup(KEY) is document
    assert cache.lookup("users/2") is newer
    assert other.version < newer.version
    assert store.loads_of(KEY) == store.loads_of("users/2") == 1


def test_no_cover_ends_the_doubt_of_what_is_unknown(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.get(KEY)
    assert cache.drain_interest(9) == ([KEY], False)
    lease = Lease(math.inf)
    cache.cover(KEY, lease)
    cache.get("users/2")
    cache.doubt([KEY, "users/2"], unknown=True)
    assert cache.drain_interest(9) == ([], False), "what is in doubt was not just loaded"
    assert cache.cover(KEY, lease)
    assert cache.lookup(KEY) is None
    store.error = StoreUnavailable("down")
    clock.advance(STALE - 1)
    assert cache.get(KEY).source == "stale"
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        cache.get(KEY)
    store.error = None
    cache.get(KEY)
    clock.advance(TTL)
    assert cache.lookup(KEY) is not None, "what was loaded is covered as before"


def test_a_cancelled_lease_counts_up_to_its_last_promise_and_doubt_ends_that(
    cache: BeastModeCache, clock: FakeClock
) -> None:
    cache.get(KEY)
    lease = Lease(clock.now + TTL + 60)
    cache.cover(KEY, lease)
    clock.advance(TTL)
    assert cache.lookup(KEY) is not None, "it is prolonged by 60 s"
    lease.cancel()
    clock.advance(1)
    assert cache.lookup(KEY) is not None
    cache.doubt([KEY])
    assert cache.lookup(KEY) is None


def test_what_replaces_a_covered_entry_is_covered(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    lease = Lease(math.inf)
    cache.get(KEY)
    cache.cover(KEY, lease)
    changed = store.put(KEY, n=2)
    cache.apply_change(Change(changed))
    clock.advance(TTL)
    assert cache.lookup(KEY) is changed
    cache.write_started(KEY)
    own = store.put(KEY, n=3)
    cache.write_finished(KEY, own)
    clock.advance(TTL)
    assert cache.lookup(KEY) == own
    assert cache.set(store.put(KEY, n=4))
    clock.advance(TTL)
    assert cache.lookup(KEY) is not None
    cache.drain_interest(10)
    cache.invalidate(KEY)
    cache.get(KEY)
    assert cache.drain_interest(10) == ([KEY], False)
    clock.advance(TTL)
    assert cache.lookup(KEY) is None, "it was dropped, and its cover with it"


def test_a_provisional_entry_is_not_made_fresh_by_a_lease(
    cache: BeastModeCache, store: ScriptedStore, clock: FakeClock
) -> None:
    cache.get(KEY)
    cache.cover(KEY, Lease(math.inf))
    cache.write_started(KEY)
    both = store.put(KEY, n=1, m=2, foreign=3)
    cache.write_finished(KEY, None, version=both.version, operation=Merge(KEY, {"m": 2}))
    assert cache.lookup(KEY) is None
    cache.cover(KEY, Lease(math.inf))
    assert cache.lookup(KEY) is None
    cache.apply_change(Change(both))
    clock.advance(TTL)
    assert cache.lookup(KEY) is both


def test_a_change_during_a_write_is_not_kept_back_from_what_a_lease_covers(
    cache: BeastModeCache, store: ScriptedStore
) -> None:
    """Else the lease would vouch for what is older for as long as the store takes no writes."""
    cache.get(KEY)
    assert cache.cover(KEY, Lease(math.inf))
    cache.write_started(KEY)
    foreign = store.put(KEY, n=2)
    cache.apply_change(Change(foreign))
    assert cache.lookup(KEY) is foreign
    own = store.put(KEY, n=3)
    cache.write_finished(KEY, own)
    assert cache.lookup(KEY) == own


def test_uncovered_documents_live_by_their_time_again(
    cache: BeastModeCache, clock: FakeClock
) -> None:
    document = cache.get(KEY).document
    cache.get("users/2")
    lease = Lease(clock.now + 500)
    cache.cover(KEY, lease)
    cache.uncover(["users/2", "users/3"])  # never covered, not held
    clock.advance(300)
    cache.uncover([KEY])
    clock.advance(TTL - 1)
    assert cache.lookup(KEY) is document, "it was vouched for until just now"
    clock.advance(1)
    assert cache.lookup(KEY) is None
    lease.valid_until = math.inf
    assert cache.lookup(KEY) is None
    assert cache.lookup("users/2") is None

    cache.get(KEY)
    cache.cover(KEY, Lease(clock.now + 5))
    clock.advance(TTL)
    cache.uncover([KEY])
    assert cache.lookup(KEY) is None, "the promise was over"
    clock.advance(60)
    cache.cleanup()
    assert not cache.holds(KEY)


def test_a_lease_promises_no_more_after_uncover_than_before(
    cache: BeastModeCache, clock: FakeClock
) -> None:
    cache.get(KEY)
    cache.cover(KEY, Lease(clock.now + TTL + 7))
    clock.advance(TTL)
    cache.uncover([KEY])
    clock.advance(6)
    assert cache.lookup(KEY) is not None
    clock.advance(1)
    assert cache.lookup(KEY) is None


def test_entries_of_users_are_covered_and_dropped_on_change(
    store: ScriptedStore, clock: FakeClock
) -> None:
    cache = BeastModeCache(store, ttl_s=TTL, rules=[Rule("users", per_user=True)], timer=clock)
    for user in ("ann", "bob"):
        cache.get(KEY, user=user)
    assert cache.holds(KEY)
    assert cache.drain_interest(9) == ([KEY], False)
    assert cache.cover(KEY, Lease(math.inf))
    clock.advance(TTL)
    assert cache.lookup(KEY, "ann") is not None
    assert cache.lookup(KEY, "bob") is not None
    cache.doubt([KEY])
    assert cache.lookup(KEY, "ann") is None
    assert cache.lookup(KEY, "bob") is None
    cache.apply_change(Change(store.put(KEY, n=2)))
    assert not cache.holds(KEY)
    cache.close()


def test_users_that_come_while_a_path_is_asked_about_disturb_nobody(store: ScriptedStore) -> None:
    cache = BeastModeCache(store, rules=[Rule("users", per_user=True)])
    for number in range(200):
        cache.get(KEY, user=f"old {number}")
    ended = threading.Event()

    def come() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            cache.get(KEY, user=f"new {number}")

    readers = [threading.Thread(target=come) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for reader in readers:
            reader.start()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert cache.holds(KEY)
            assert cache.read_gap(KEY) < math.inf
    finally:
        sys.setswitchinterval(before)
        ended.set()
        for reader in readers:
            reader.join()
    cache.close()


def test_what_was_installed_is_told_once(
    store: ScriptedStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beastmode.cache.readthrough.Cache", functools.partial(Cache, policy="lru"))
    cache = BeastModeCache(
        store, ttl_s=TTL, rules=[Rule("raw", cacheable=False)], max_entries=3, timer=clock
    )
    paths = [f"users/{number}" for number in range(4)]
    cache.get_many([*paths, "raw/1"])
    assert cache.drain_interest(3) == (paths[:3], False)
    assert cache.drain_interest(3) == (paths[3:], False)
    assert cache.drain_interest(3) == ([], False)
    assert [cache.holds(path) for path in paths] == [False, True, True, True]
    clock.advance(TTL)
    cache.get_many(paths[:2])
    assert cache.drain_interest(9) == (paths[:2], False), "loaded again: still wanted"
    cache.cover(paths[0], Lease(math.inf))
    cache.apply_change(Change(store.put(paths[0], n=2)))
    cache.set(store.put(paths[0], n=3))
    assert cache.drain_interest(9) == ([], False), "covered already"
    clock.advance(TTL)
    cache.get(paths[1])
    cache.uncover([paths[1]])
    assert cache.drain_interest(9) == ([], False), "not wanted any more"
    cache.close()


def test_how_far_apart_a_document_is_read(store: ScriptedStore, clock: FakeClock) -> None:
    cache = BeastModeCache(
        store,
        ttl_s=TTL,
        max_stale_s=10_000,
        rules=[Rule("mine", per_user=True), Rule("ever", ttl_s=math.inf)],
        timer=clock,
    )
    lease = Lease()
    assert cache.read_gap(KEY) == math.inf
    for path in (KEY, "ever/1", "users/2"):
        store.put(path)
        cache.get(path)
    assert cache.read_gap(KEY) == TTL, "nothing is known but that it was read once"
    cache.get(KEY)
    assert cache.read_gap(KEY) == TTL / 2
    assert cache.read_gap("ever/1") == 3600
    cache.cover(KEY, lease)
    clock.advance(TTL)
    for _ in range(60):
        clock.advance(7)  # since what was promised is over
        lease.valid_until = clock.now + 3
        cache.get(KEY)
        clock.advance(3)
    assert cache.read_gap(KEY) == pytest.approx(7)
    clock.advance(50)
    assert cache.read_gap(KEY) == pytest.approx(50), "nobody has come for so long"
    clock.advance(450)
    cache.get(KEY)
    assert cache.read_gap(KEY) == pytest.approx(0.75 * 7 + 0.25 * 500, rel=1e-3)
    cache.get("users/2")  # loaded again, without a lease
    gap = cache.read_gap("users/2")
    assert gap == 0.75 * TTL / 2 + 0.25 * (60 * 10 + 500)
    cache.invalidate("ever/1")
    cache.set(store.put("users/2"))
    assert cache.read_gap("users/2") == gap, "it was fresh: that tells nothing"
    for user in ("ann", "bob", "bob"):
        cache.get("mine/1", user=user)
    assert cache.read_gap("mine/1") == 15, "half of its time to live"
    hits = cache.get_stats().engine.hits
    cache.read_gap(KEY)
    assert cache.get_stats().engine.hits == hits
    with pytest.raises(RequestError, match="users"):
        cache.read_gap("users")
    cache.close()


def test_interest_is_bounded_and_says_so() -> None:
    interest = Interest(most=3)
    for number in (1, 2, 1, 3, 4):
        interest.note(f"users/{number}")
    assert len(interest) == 3
    assert interest.drain(2) == (["users/2", "users/3"], True)
    assert interest.drain(2) == (["users/4"], False)


def test_a_large_doubt_lets_others_in_and_reaches_all(
    store: ScriptedStore, clock: FakeClock
) -> None:
    cache = BeastModeCache(store, ttl_s=TTL, timer=clock)
    paths = [f"users/{number}" for number in range(2500)]
    cache.get_many(paths)
    lease = Lease(math.inf)
    assert all(cache.cover(path, lease) for path in paths)
    cache.doubt(dict.fromkeys(paths))
    assert not any(map(cache.lookup, paths))
    assert cache.get_stats().doubted == 2500
    cache.close()


class WatchedLock:
    """A cache's lock that counts what is done each time that it is held."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.done = self.most = 0

    def acquire(self) -> bool:
        self.done = 0
        return self.lock.acquire()

    def release(self) -> None:
        self.most = max(self.most, self.done)
        self.lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_free(self) -> bool:
        """Whether another thread could have it."""
        with ThreadPoolExecutor(1) as pool:
            free = pool.submit(self.lock.acquire, blocking=False).result()
            if free:
                pool.submit(self.lock.release).result()
        return free


@pytest.mark.parametrize("how", ["uncover", "doubt", "doubt prefix"])
def test_nobody_waits_while_a_collection_is_looked_through(
    store: ScriptedStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cache = BeastModeCache(store, ttl_s=TTL, timer=clock)
    lock = WatchedLock()
    state, held = cache._state, cache._state.held
    monkeypatch.setattr(state.gate, "lock", lock)
    lease = Lease(math.inf)
    cache.cover_collection("users", lease)
    paths = [f"users/{number}" for number in range(2500)]
    store.put("rooms/1")
    cache.get_many([*paths, "rooms/1"])
    free = []

    def watch(name: str, *, scans: bool) -> None:
        method = getattr(held, name)

        def watched(*arguments: object) -> object:
            if scans:
                free.append(lock.is_free())
            lock.done += 1
            return method(*arguments)

        monkeypatch.setattr(held, name, watched)

    watch("covered_by", scans=True)
    watch("paths_under", scans=True)
    watch("doubt", scans=False)
    watch("uncover", scans=False)
    lock.most = 0
    clock.advance(TTL - 1)
    if how == "uncover":
        cache.uncover_collection("users")
    elif how == "doubt":
        cache.doubt_collection("users")
    else:
        cache.mark_unverified("users")
    assert free == [True]
    assert 1000 < lock.most <= 1024
    assert any(map(cache.lookup, paths)) == (how == "uncover")
    assert cache.lookup("rooms/1")
    clock.advance(TTL)
    assert not any(map(cache.lookup, paths)), "the lease covers none of them any more"
    cache.close()


def test_doubt_of_a_collection_concerns_what_its_lease_covers(
    cache: BeastModeCache, clock: FakeClock
) -> None:
    other, lease = Lease(math.inf), Lease(math.inf)
    cache.get_many(["users/old", "users/own", "users/told", "users/1/pets/1"])
    cache.cover_collection("users", lease)
    cache.get("users/new")
    cache.cover("users/own", other)
    cache.cover("users/told", lease)
    cache.cover("users/1/pets/1", lease)
    lease.cancel()
    cache.doubt_collection("users")
    assert cache.get_stats().doubted == 2
    held = {path for path in ("old", "own", "told", "new") if cache.lookup(f"users/{path}")}
    assert held == {"old", "own"}
    assert cache.lookup("users/1/pets/1")
    cache.doubt_collection("users")
    assert cache.get_stats().doubted == 2


def test_a_doubt_that_has_returned_is_not_undone_by_a_reader(
    cache: BeastModeCache, clock: FakeClock
) -> None:
    """Who looked at the lease before has not yet written down what it promises."""

    class Hooked(Lease):
        hook: Callable[[], object] | None = None

        def read(self) -> float:
            if self.hook is not None:
                hook, self.hook = self.hook, None
                hook()
            return clock.now + 1000

        def ignore(self, value: float) -> None: ...

        valid_until = property(read, ignore)  # type: ignore[assignment]

    lease = Hooked()
    cache.get(KEY)
    cache.cover(KEY, lease)
    clock.advance(TTL)
    doubting = threading.Thread(target=cache.mark_unverified)

    def doubt() -> None:
        doubting.start()
        doubting.join(0.2)  # it has to wait for the reader

    lease.hook = doubt
    cache.lookup(KEY)
    doubting.join()
    assert cache.lookup(KEY) is None


def test_a_doubt_that_has_returned_is_not_undone_by_a_shorter_time_to_live(
    cache: BeastModeCache,
) -> None:
    cache.get(KEY)
    doubting = threading.Thread(target=cache.doubt, args=([KEY],))

    class Hooked(float):
        def __add__(self, other: float) -> float:
            """`fresh_until` was read, and is written next."""
            doubting.start()
            doubting.join(0.2)  # it has to wait
            return float(self) + other

    entry = cache._state.engine.peek(KEY)
    assert entry is not None
    entry.loaded_at = Hooked(entry.loaded_at)
    cache.configure(ttl_s=TTL / 2)
    doubting.join()
    assert cache.lookup(KEY) is None


def test_a_note_after_a_doubt_is_kept(cache: BeastModeCache) -> None:
    cache.get_many([KEY, "users/2", "rooms/1"])
    notes = Interest.forget_notes

    def forget(self: Interest, found: list[tuple[str, int]]) -> None:
        self.note("users/2")  # loaded after the doubt had begun
        notes(self, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interest, "forget_notes", forget)
        cache.mark_unverified("users")
    assert cache.drain_interest(9) == (["users/2", "rooms/1"], False)


def test_bad_arguments_change_nothing(cache: BeastModeCache) -> None:
    cache.get(KEY)
    for call in (
        lambda: cache.cover(KEY, None),  # type: ignore[arg-type]
        lambda: cache.cover("users", Lease()),
        lambda: cache.doubt([KEY, "users"]),
        lambda: cache.doubt(KEY),
        lambda: cache.uncover(7),  # type: ignore[arg-type]
        lambda: cache.holds("users"),
    ):
        with pytest.raises(RequestError, match=r"users|Lease|7"):
            call()
    with pytest.raises(ConfigError, match="limit"):
        cache.drain_interest(0)
    assert cache.lookup(KEY) is not None
    assert repr(Lease(5.0)) == "Lease(valid_until=5.0)"
    cache.close()
    for late in (
        lambda: cache.cover(KEY, Lease()),
        lambda: cache.doubt([KEY]),
        lambda: cache.drain_interest(1),
    ):
        with pytest.raises(ClosedError):
            late()
