"""What is listened to, covered and doubted, with a feed that the test plays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from beastmode.cache import BeastModeCache
from beastmode.cache.lease import Lease
from beastmode.errors import StoreUnavailable
from beastmode.stores.base import Change, FeedListener, Query, Target
from beastmode.stores.documents import Document
from beastmode.sync.interest import Interest
from played_feed import PlayedFeed, Ranked
from scripted import ScriptedStore
from support import FakeClock


class Scene:
    """A cache over a scripted store, and the interest that follows it."""

    def __init__(self, clock: FakeClock, cache: Any = None, **options: Any) -> None:
        self.clock = clock
        self.store = ScriptedStore()
        self.cache: Any = cache or BeastModeCache(
            self.store,  # type: ignore[arg-type]
            ttl_s=300,
            max_entries=options.pop("max_entries", 100),
            timer=clock,
        )
        self.feeds: list[PlayedFeed] = []
        self.changes: list[Change] = []
        self.doubts: list[str] = []
        self.interest = Interest(
            self.open,
            self.cache,
            lease=Lease,
            max_documents=options.pop("max_documents", 10),
            timer=clock,
            clock=clock,
            on_change=self.changes.append,
            on_current=lambda _target: None,
            on_doubt=self.doubts.append,
        )

    def open(self, listener: FeedListener) -> PlayedFeed:
        self.feeds.append(PlayedFeed(listener, self.clock))
        return self.feeds[-1]

    @property
    def feed(self) -> PlayedFeed:
        return self.feeds[-1]

    def tell(self, *paths: str) -> None:
        """Have the feed tell documents as they are, as it does before a target is current."""
        for path in paths:
            self.feed.change(self.store.documents[path])

    def read(self, *paths: str) -> list[str]:
        """Read documents through the cache; where each came from."""
        return [self.cache.get(path).source for path in paths]


@pytest.fixture
def scene(clock: FakeClock) -> Scene:
    made = Scene(clock)
    for path in ("u/a", "u/b", "v/a"):
        made.store.put(path, n=0)
    made.interest.start()
    return made


def test_what_is_installed_is_followed_and_stays_fresh(scene: Scene, clock: FakeClock) -> None:
    scene.read("u/a", "u/b")
    scene.interest.turn()
    assert scene.feed.log == ["+u/a", "+u/b"]
    scene.feed.current("u/a")
    for _ in range(20):
        clock.advance(40)
        scene.feed.hear()
        scene.interest.turn()
    assert scene.read("u/a", "u/b") == ["hit", "store"], "far beyond the time to live"
    assert scene.interest.counts() == (1, 0, 1), "the other was too old, and is let go"


def test_the_lease_ends_with_the_silence(scene: Scene, clock: FakeClock) -> None:
    scene.read("u/a")
    scene.interest.turn()
    scene.feed.current("u/a")
    clock.advance(301)
    scene.feed.hear()
    scene.interest.turn()
    clock.advance(59)
    scene.interest.turn()  # turning alone is no sign of life
    assert scene.read("u/a") == ["hit"]
    clock.advance(1)
    scene.interest.turn()
    assert scene.read("u/a") == ["store"]


def test_a_pause_while_the_clocks_are_read_makes_no_lease_longer(clock: FakeClock) -> None:
    scene = Scene(clock)
    scene.store.put("u/a", n=0)
    scene.interest.start()
    scene.read("u/a")
    scene.interest.turn()
    scene.feed.current("u/a")
    clock.advance(400)
    scene.feed.hear()
    heard_at = scene.feed.heard_at

    def slow() -> float:
        clock.advance(7)
        return clock.now

    scene.interest._timer = scene.interest._clock = slow
    scene.interest.turn()
    clock.now = heard_at + 59 - 7
    assert scene.read("u/a") == ["hit"]
    clock.now = heard_at + 60
    assert scene.read("u/a") == ["store"]


def test_doubt_is_in_force_before_the_next_read(scene: Scene) -> None:
    scene.read("u/a", "u/b")
    scene.interest.turn()
    scene.feed.current()
    assert scene.read("u/a") == ["hit"]
    scene.feed.lose("u/a")
    assert scene.read("u/a", "u/b") == ["store", "hit"]
    assert scene.doubts == ["lost"]
    assert scene.interest.counts()[2] == 1
    # It was loaded again, but nothing vouches for it until its target is current again.
    scene.interest.turn()
    scene.clock.advance(250)
    scene.feed.hear()
    scene.interest.turn()
    scene.clock.advance(51)
    assert scene.read("u/a", "u/b") == ["store", "hit"]
    assert scene.feed.log == ["+u/a", "+u/b"], "the feed goes on with its targets by itself"


def test_what_had_not_changed_is_not_loaded_again(scene: Scene) -> None:
    scene.read("u/a", "u/b")
    scene.interest.turn()
    scene.feed.current()
    scene.feed.lose()
    changed = scene.store.put("u/b", n=1)
    scene.feed.change(changed)
    scene.feed.current()
    before = len(scene.store.gets)
    assert scene.read("u/a", "u/b") == ["hit", "hit"]
    assert scene.cache.get("u/b").document == changed
    assert len(scene.store.gets) == before


def test_doubt_of_everything(scene: Scene, clock: FakeClock) -> None:
    scene.interest.want(Target(collection="v"))
    scene.read("u/a", "v/a")
    scene.interest.turn()
    scene.tell("v/a")
    scene.feed.current()
    scene.feed.listener.on_doubt(None, "all of it")
    assert scene.read("u/a", "v/a") == ["store", "store"]
    assert scene.interest.counts() == (1, 1, 0)
    scene.feed.current()
    clock.advance(290)
    scene.feed.hear()
    scene.interest.turn()
    clock.advance(20)
    assert scene.read("u/a", "v/a") == ["hit", "hit"]


def test_changes_reach_the_cache_and_are_told(scene: Scene) -> None:
    scene.read("u/a")
    changed = scene.store.put("u/a", n=1)
    scene.feed.change(changed)
    assert scene.cache.get("u/a").document == changed
    assert [one.path for one in scene.changes] == ["u/a"]
    scene.feed.change(Document("u/a", {"n": 0}, 0))
    assert scene.cache.get("u/a").document == changed, "older than what is held"


def test_evicted_documents_are_let_go(clock: FakeClock) -> None:
    scene = Scene(clock, max_entries=100, max_documents=1000)
    scene.interest.start()
    scene.read(*[f"u/{n}" for n in range(50)])
    scene.interest.turn()
    scene.cache.invalidate("u/7")
    scene.cache.invalidate("u/8")
    scene.interest.turn()
    assert scene.feed.log[-2:] == ["-u/7", "-u/8"]
    assert scene.feed.targets == 48
    scene.read("u/7")
    scene.interest.turn()
    assert scene.feed.log[-1] == "+u/7"


def test_no_more_documents_than_allowed(clock: FakeClock) -> None:
    scene = Scene(clock, max_documents=2)
    scene.interest.start()
    scene.read("u/a", "u/b", "u/c")
    scene.interest.turn()
    assert scene.feed.log == ["+u/a", "+u/b"]
    assert scene.interest.not_followed == 1
    # A place becomes free when the cache has dropped what had it.
    scene.cache.invalidate("u/a")
    scene.read("u/d")
    scene.interest.turn()
    assert scene.feed.log[2:] == ["-u/a", "+u/d"]
    assert scene.interest.counts() == (2, 0, 0)


def test_none_is_allowed(clock: FakeClock) -> None:
    scene = Scene(clock, max_documents=0)
    scene.interest.start()
    scene.read("u/a")
    scene.interest.turn()
    assert scene.feed.log == []


def test_the_hot_ones_win(clock: FakeClock) -> None:
    cache = Ranked()
    scene = Scene(clock, cache, max_documents=2)
    scene.interest.start()
    cache.reads = {"u/a": 5, "u/b": 3, "u/c": 5, "u/d": 9}
    cache.installed = ["u/a", "u/b", "u/c", "u/d"]
    scene.interest.turn()
    assert scene.feed.log == ["+u/a", "+u/b", "-u/b", "+u/d"]
    assert ("uncover", "u/b") in cache.log
    assert (scene.interest.not_followed, scene.interest.forgotten) == (1, 1)


def test_those_read_most_win_whoever_came_first(clock: FakeClock) -> None:
    scene = Scene(clock, max_documents=5)
    scene.interest.start()
    cold, hot = [f"u/{n}" for n in range(20)], [f"v/{n}" for n in range(5)]
    for path in cold + hot:
        scene.store.put(path)
    scene.read(*cold)
    scene.interest.turn()
    assert len(scene.feed.asked) == 5
    for _ in range(4):
        scene.read(*hot)
    scene.interest.turn()
    assert sorted(scene.feed.asked) == hot
    assert scene.interest.not_followed == 15
    # What was hot and is read no more makes room, however high it has counted.
    scene.read(*hot * 20)
    for step in range(40):
        clock.advance(60)
        scene.feed.current()
        scene.interest.turn()
        if step > 30:
            scene.read(*cold[:5])
    assert sorted(scene.feed.asked) == cold[:5]


def test_a_skewed_workload_is_followed_where_it_is_read(clock: FakeClock) -> None:
    scene = Scene(clock, max_documents=30, max_entries=1000)
    scene.interest.start()
    paths = [f"u/{n}" for n in range(300)]
    for path in paths:
        scene.store.put(path)
    scene.read(*reversed(paths))  # the coldest come first
    rng = random.Random(5)
    weights = [1 / (rank + 1) for rank in range(300)]
    for _ in range(600):
        clock.advance(10)
        scene.read(*rng.choices(paths, weights, k=10))
        scene.interest.turn()
        scene.feed.current()
    followed = set(scene.feed.asked)
    assert len(followed) == 30
    share = sum(weight for path, weight in zip(paths, weights, strict=True) if path in followed)
    best = sum(weights[:30])
    assert share / best > 0.7
    # A place does not change hands for nothing: each change costs a read.
    assert len(scene.feed.log) < 800


def test_what_is_only_written_is_not_followed(scene: Scene, clock: FakeClock) -> None:
    def write(path: str) -> None:
        scene.cache.write_started(path)
        scene.cache.write_finished(path, scene.store.put(path, n=1))

    write("u/a")
    write("u/new")
    scene.interest.turn()
    assert scene.feed.log == []
    assert scene.read("u/a", "u/b") == ["hit", "store"]
    write("u/b")
    scene.interest.turn()
    assert scene.feed.log == ["+u/b"], "it was read, whoever wrote it then"
    clock.advance(300)
    assert scene.read("u/a") == ["store"]
    scene.interest.turn()
    assert scene.feed.log == ["+u/b", "+u/a"], "it is read, too"


def test_a_change_that_cannot_be_applied_is_told_and_raised(clock: FakeClock) -> None:
    scene = Scene(clock, Ranked())
    scene.interest.start()
    with pytest.raises(ValueError, match="on purpose"):
        scene.feed.change(Document("u/a", {}, 1))
    assert len(scene.changes) == 1
    scene.feed.listener.on_unknown(["u/a"], "its change could not be taken")
    assert scene.cache.log == [("doubt", "u/a")]


def test_an_unknown_document_is_loaded_and_covered_again(scene: Scene, clock: FakeClock) -> None:
    scene.read("u/a")
    scene.interest.turn()
    scene.feed.current()
    scene.feed.listener.on_unknown(["u/a"], "it left a query")
    assert scene.read("u/a") == ["store"]
    scene.interest.turn()
    clock.advance(290)
    scene.feed.hear()
    scene.interest.turn()
    clock.advance(20)
    assert scene.read("u/a") == ["hit"]


@pytest.mark.parametrize("whole", [False, True])
def test_being_current_does_not_make_up_for_what_is_unknown(
    scene: Scene, clock: FakeClock, whole: bool
) -> None:
    key = "u" if whole else "u/a"
    if whole:
        scene.interest.want(Target(collection="u"))
    scene.read("u/a")
    scene.interest.turn()
    scene.tell("u/a")
    scene.feed.listener.on_unknown(["u/a"], "its change could not be taken")
    scene.feed.current(key)
    assert scene.cache.lookup("u/a") is None, "it is unknown, though its target is current"
    scene.feed.lose(key)
    scene.feed.current(key)
    assert scene.cache.lookup("u/a") is None, "and still is after the stream came back"
    newest = scene.store.put("u/a", n=7)
    assert scene.cache.get("u/a").document is newest
    scene.interest.turn()
    scene.feed.current(key)
    clock.advance(290)
    scene.feed.hear()
    scene.interest.turn()
    clock.advance(20)
    assert scene.read("u/a") == ["hit"], "what was loaded is covered"


def test_a_note_from_before_a_doubt_covers_nothing(scene: Scene) -> None:
    scene.read("u/a")
    scene.interest.turn()
    scene.feed.current()
    scene.cache.invalidate("u/a")
    scene.read("u/a")  # noted, and about to be covered
    scene.feed.listener.on_unknown(["u/a"], "it was not told again")
    scene.interest.turn()
    assert scene.cache.lookup("u/a") is None


def test_an_unknown_document_is_known_again_once_it_is_told(scene: Scene) -> None:
    scene.read("u/a", "u/b")
    scene.interest.turn()
    scene.feed.current()
    scene.feed.listener.on_unknown(["u/a", "u/b"], "they left a query")
    changed = scene.store.put("u/b", n=1)
    scene.tell("u/a", "u/b")
    assert scene.read("u/a", "u/b") == ["hit", "hit"]
    assert scene.cache.get("u/b").document is changed


def test_a_collection_answers_for_its_documents(scene: Scene, clock: FakeClock) -> None:
    scene.read("u/a")
    scene.interest.turn()
    scene.feed.current()
    assert scene.interest.want(Target(collection="u")) is False
    assert scene.feed.log == ["+u/a", "+u", "-u/a"]
    scene.read("u/b", "v/a")
    scene.interest.turn()
    assert scene.feed.log[3:] == ["+v/a"], "no listener of its own"
    scene.tell("u/a", "u/b")
    scene.feed.current("u")
    clock.advance(290)
    scene.feed.hear()
    scene.interest.turn()
    clock.advance(20)
    assert scene.read("u/a", "u/b", "v/a") == ["hit", "hit", "store"]
    scene.feed.lose("u")
    assert scene.read("u/a", "u/b") == ["store", "store"]
    assert scene.interest.want(Target(collection="u")) is False
    scene.interest.unwant(Target(collection="u"))
    assert "u" in scene.feed.asked
    scene.interest.unwant(Target(collection="u"))
    assert scene.feed.log[-1] == "-u"


@pytest.mark.parametrize("prefix", [None, "u", "u/a"])
def test_doubt_raised_by_others_does_not_end_what_is_followed(
    scene: Scene, clock: FakeClock, prefix: str | None
) -> None:
    """As when the optimizer is enabled again: everything is doubtful, but the feed is healthy."""
    scene.interest.want(Target(collection="u"))
    scene.read("u/a", "v/a")
    scene.interest.turn()
    scene.tell("u/a", "u/b")
    scene.feed.current()
    scene.cache.mark_unverified(prefix)
    assert scene.read("u/a", "v/a") == ["store", "hit" if prefix else "store"]
    scene.interest.turn()
    assert scene.cache.query(Query("u")).source == "store"
    for _ in range(10):
        clock.advance(50)
        scene.feed.hear()
        scene.interest.turn()
    assert scene.read("u/a", "u/b", "v/a") == ["hit", "hit", "hit"]
    assert scene.cache.query(Query("u")).source == "hit"
    # And the end of the lease is the end of it all.
    scene.feed.lose("u")
    assert scene.read("u/a") == ["store"]
    assert scene.cache.query(Query("u")).source == "store"
    assert scene.cache.query(Query("u")).source == "store"


def test_collections_are_followed_from_the_start(clock: FakeClock) -> None:
    scene = Scene(clock)
    scene.interest.want(Target(collection="u"))
    scene.interest.want(Target(query=Query("w")))
    assert scene.feeds == []
    scene.interest.start()
    scene.interest.start()
    assert scene.feed.log == ["+u", f"+{Target(query=Query('w')).key}"]


def test_queries_are_held_while_their_collection_is_followed(
    scene: Scene, clock: FakeClock
) -> None:
    cache = Ranked()
    scene = Scene(clock, cache)
    scene.interest.want(Target(collection="u"))
    scene.interest.want(Target(query=Query("w")))
    scene.interest.start()
    cache.apply_change = lambda _change: None  # type: ignore[method-assign]
    scene.feed.change(Document("u/a", {}, 1))
    scene.feed.change(Document("u/b", {}, 1))
    scene.feed.change(Document("u/b", None, 2))
    scene.feed.current()
    scene.feed.current()
    assert cache.log == [("cover all of", "u"), ("cover", "u/a")]
    cache.log.clear()
    scene.feed.lose()
    assert cache.log == [("doubt",), ("doubt all of", "u")]
    cache.log.clear()
    scene.interest.close()
    assert cache.log == [("uncover",), ("uncover all of", "u")]


def test_a_pinned_document_is_followed_whether_it_is_held_or_not(scene: Scene) -> None:
    assert scene.interest.want(Target(document="x/1")) is False
    for _ in range(3):
        scene.interest.turn()
    assert scene.feed.log == ["+x/1"]
    scene.feed.current("x/1")
    assert scene.interest.want(Target(document="x/1")) is True
    scene.interest.unwant(Target(document="x/1"))
    scene.interest.turn()
    assert scene.feed.log == ["+x/1"]
    scene.interest.unwant(Target(document="x/1"))
    scene.interest.turn()
    assert scene.feed.log == ["+x/1", "-x/1"]


def test_what_is_closed_vouches_for_nothing(scene: Scene, clock: FakeClock) -> None:
    scene.read("u/a")
    scene.interest.turn()
    scene.feed.current()
    clock.advance(299)
    scene.feed.hear()
    scene.interest.turn()
    scene.interest.close()
    scene.interest.close()
    assert not scene.interest.active
    clock.advance(400)
    assert scene.read("u/a") == ["store"]
    scene.interest.turn()


def test_a_refused_addition_leaves_nothing_behind(scene: Scene) -> None:
    def refuse(target: Target) -> None:
        raise StoreUnavailable("no")

    add: Callable[[Target], None] = scene.feed.add
    scene.feed.add = refuse  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        scene.interest.want(Target(collection="w"))
    scene.feed.add = add  # type: ignore[method-assign]
    assert scene.interest.counts()[1] == 0


def test_errors_and_activity_are_the_feeds(scene: Scene) -> None:
    assert scene.interest.active
    assert scene.interest.error == ""
    scene.feed.active, scene.feed.error = False, StoreUnavailable("gone")
    assert not scene.interest.active
    assert scene.interest.error == "gone"


def test_a_played_feed_is_a_feed(scene: Scene) -> None:
    from beastmode.stores.base import Feed

    assert isinstance(scene.feed, Feed)
    assert isinstance([Target()], Sequence)
