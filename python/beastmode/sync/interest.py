"""Follows by a feed what the cache holds: its documents one by one, collections as a whole.

A document that the cache installs is listened to, and let go when the cache has evicted it. What
is listened to and current is covered by a lease, so it stays fresh beyond its time to live. The
lease moves on as long as the store answers what the feed asks, and counts from the asking. What
is doubtful is doubted in the cache before the feed goes on. A collection that is listened to as a
whole has a lease of its own; its documents need no listener, and queries of it can be held.

The feed calls with its own lock held, and `_lock` is taken inside it; so nothing here calls the
feed while it holds `_lock`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import Any, Final, Protocol

from beastmode.stores.base import Change, Feed, FeedListener, Target
from beastmode.stores.documents import collection_of

__all__ = ["Coverable", "Interest", "LeaseLike"]

_DRAIN: Final = 500
"""Documents that begin to be listened to in one turn."""
_SWEEP: Final = 256
"""Documents of which one turn looks whether the cache still has them."""
_RIVALS: Final = 8
"""Documents that a newcomer is compared with where all places are taken."""


class LeaseLike(Protocol):
    """The part of `cache.lease.Lease` that is needed here."""

    valid_until: float

    def cancel(self) -> None:
        """Promise nothing any more."""
        ...


class Coverable(Protocol):
    """The part of `BeastModeCache` that is needed here."""

    def apply_change(self, change: Change) -> Any:
        """Take notice of a change."""
        ...

    def cover(self, path: str, lease: Any) -> bool:
        """Keep what is held of `path` fresh while `lease` is valid."""
        ...

    def uncover(self, paths: Collection[str]) -> Any:
        """Let what is held of `paths` live by its time again."""
        ...

    def cover_collection(self, collection: str, lease: Any) -> Any:
        """Keep what is read of `collection` from now on fresh while `lease` is valid."""
        ...

    def uncover_collection(self, collection: str) -> Any:
        """End `cover_collection`."""
        ...

    def doubt(self, paths: Collection[str], *, unknown: bool = False) -> Any:
        """Doubt what is held of `paths`; if `unknown`, until it is loaded or told anew."""
        ...

    def doubt_collection(self, collection: str) -> Any:
        """End `cover_collection`, and doubt what it covers."""
        ...

    def drain_interest(self, limit: int) -> tuple[list[str], bool]:
        """Take out paths that were installed; whether some were forgotten."""
        ...

    def holds(self, path: str) -> bool:
        """Whether something is held of `path`."""
        ...

    def read_gap(self, path: str) -> float:
        """About how many seconds pass until somebody reads `path`."""
        ...


class _Whole:
    """A collection or query that is listened to, and for how many."""

    __slots__ = ("current", "lease", "members", "name", "target", "users")

    def __init__(self, target: Target, lease: LeaseLike) -> None:
        self.target = target
        self.name = target.collection
        """The collection; None for a query, which vouches for nothing."""
        self.lease = lease
        self.users = 0
        self.current = False
        self.members: set[str] = set()
        """The collection's documents, as told."""


class Interest:
    """The listener of the sync's feed; see the module.

    `timer` is the cache's and runs as fast as `time.monotonic`, on which the feed's times are.
    `on_change` and `on_current` are called after the cache has been told.
    """

    def __init__(
        self,
        open_feed: Callable[[FeedListener], Feed],
        cache: Coverable,
        *,
        lease: Callable[[], LeaseLike],
        max_documents: int,
        timer: Callable[[], float],
        clock: Callable[[], float],
        on_change: Callable[[Change], None],
        on_current: Callable[[Target], None],
        on_doubt: Callable[[str], None],
    ) -> None:
        self._open_feed = open_feed
        self._cache = cache
        self._new_lease = lease
        self._max_documents = max_documents
        self._timer = timer
        self._clock = clock
        self._tell_change = on_change
        self._tell_current = on_current
        self._tell_doubt = on_doubt
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._feed: Feed | None = None
        self._lease = lease()
        self._until = -inf
        self._documents: dict[str, bool] = {}
        """Followed one by one, and whether they are current."""
        self._pinned: dict[str, int] = {}
        """Of these, those that subscribers want, and how many."""
        self._ring: deque[str] = deque()
        """The same paths, in the order of being looked at."""
        self._wholes: dict[str, _Whole] = {}
        self.changes = self.not_followed = self.forgotten = 0

    # -- what is wanted ------------------------------------------------------------------------

    def start(self) -> None:
        """Open the feed and ask for what is wanted so far."""
        with self._turn:
            if self._feed is None:
                self._feed = self._open_feed(self)
                with self._lock:
                    wanted = [one.target for one in self._wholes.values()]
                    wanted += [Target(document=path) for path in self._documents]
                for target in wanted:
                    self._feed.add(target)

    def want(self, target: Target) -> bool:
        """Follow `target` for one more who wants it; return whether it is current already.

        Documents of a collection that are followed one by one are handed over to it. O(followed).
        """
        handed: list[str] = []
        with self._turn:
            with self._lock:
                if target.document is not None:
                    path = target.document
                    self._pinned[path] = self._pinned.get(path, 0) + 1
                    current = self._documents.get(path, False)
                    is_new = path not in self._documents
                    if is_new:
                        self._take_up(path)
                else:
                    whole = self._wholes.get(target.key)
                    is_new = whole is None
                    if whole is None:
                        whole = self._wholes[target.key] = _Whole(target, self._new_lease())
                        handed = self._hand_over(whole)
                    whole.users += 1
                    current = whole.current
            if is_new and self._feed is not None:
                try:
                    self._feed.add(target)
                except BaseException:
                    self._drop(target)
                    raise
                for path in handed:
                    self._feed.remove(Target(document=path))
        return current

    def _hand_over(self, whole: _Whole) -> list[str]:
        """Let a collection that will be followed answer for its documents; return which."""
        handed = [
            path
            for path in self._documents
            if path not in self._pinned and collection_of(path) == whole.name
        ]
        for path in handed:
            del self._documents[path]
        if handed:
            self._cache.uncover(handed)
            self._ring = deque(self._documents)
        return handed

    def unwant(self, target: Target) -> None:
        """Take back a `want`; what nobody wants any more is let go."""
        with self._turn:
            if self._drop(target) and self._feed is not None:
                self._feed.remove(target)

    def _drop(self, target: Target) -> bool:
        """Take back a `want`; whether the feed must let go of `target`."""
        with self._lock:
            if target.document is not None:
                left = self._pinned.get(target.document, 0) - 1
                if left > 0:
                    self._pinned[target.document] = left
                else:
                    self._pinned.pop(target.document, None)
                return False  # the sweep lets go of what the cache does not hold
            whole = self._wholes.get(target.key)
            if whole is None:
                return False
            whole.users -= 1
            if whole.users > 0:
                return False
            del self._wholes[target.key]
            if whole.name is not None:
                self._cache.uncover_collection(whole.name)
            whole.lease.cancel()
            return True

    # -- from the feed -------------------------------------------------------------------------

    def on_change(self, change: Change) -> None:
        """Carry a change into the cache; see `FeedListener.on_change`."""
        self.changes += 1
        path = change.path
        whole = self._wholes.get(collection_of(path))
        if whole is not None:
            if change.document.exists:
                whole.members.add(path)
            else:
                whole.members.discard(path)
        try:
            self._cache.apply_change(change)
        finally:
            self._tell_change(change)

    def on_current(self, target: Target) -> None:
        """Cover what `target` vouches for; see `FeedListener.on_current`."""
        self._extend()
        with self._lock:
            if target.document is not None:
                if target.document in self._documents:
                    self._documents[target.document] = True
                    self._cache.cover(target.document, self._lease)
            else:
                whole = self._wholes.get(target.key)
                if whole is not None and not whole.current:
                    whole.current = True
                    self._prolong()
                    if whole.name is not None:
                        self._cache.cover_collection(whole.name, whole.lease)
                        for path in whole.members:
                            self._cache.cover(path, whole.lease)
        self._tell_current(target)

    def on_doubt(self, targets: Sequence[Target] | None, why: str) -> None:
        """Doubt what `targets` vouched for; see `FeedListener.on_doubt`."""
        with self._lock:
            if targets is None:
                self._lease.cancel()
                self._lease = self._new_lease()
                paths = list(self._documents)
                wholes = list(self._wholes.values())
            else:
                paths = [one.document for one in targets if one.document is not None]
                keys = [one.key for one in targets if one.document is None]
                wholes = [self._wholes[key] for key in keys if key in self._wholes]
            for path in paths:
                if path in self._documents:
                    self._documents[path] = False
            self._cache.doubt(paths)
            for whole in wholes:
                whole.current = False
                whole.lease.cancel()
                whole.lease = self._new_lease()
                if whole.name is not None:
                    self._cache.doubt_collection(whole.name)
        self._tell_doubt(why)

    def on_unknown(self, paths: Sequence[str], why: str) -> None:
        """Have documents loaded again; see `FeedListener.on_unknown`."""
        # They are followed all the same: what is loaded is covered when it is installed.
        with self._lock:
            for path in paths:
                whole = self._wholes.get(collection_of(path))
                if whole is not None:
                    whole.members.discard(path)
            self._cache.doubt(list(paths), unknown=True)

    # -- in turn -------------------------------------------------------------------------------

    def turn(self) -> None:
        """Extend the lease, follow what was installed, let go of what was evicted.

        At most 500 begin and 256 end in one turn, whatever is followed.
        """
        with self._turn:
            feed = self._feed
            if feed is None:
                return
            self._extend()
            paths, lost = self._cache.drain_interest(_DRAIN)
            self.forgotten += lost
            for path in paths:
                self._meet(path, feed)
            self._sweep(feed)

    def _extend(self) -> None:
        feed = self._feed
        if feed is None:
            return
        heard_at = feed.heard_at
        # The cache's clock first: a pause between the two must make the lease shorter.
        ahead = self._timer() - self._clock()
        with self._lock:
            self._until = heard_at + feed.silence_s + ahead
            self._prolong()

    def _prolong(self) -> None:
        """Move the leases on. One that was cancelled has been replaced, and covers nothing yet."""
        leases = [whole.lease for whole in self._wholes.values() if whole.current]
        for lease in (self._lease, *leases):
            lease.valid_until = max(lease.valid_until, self._until)

    def _meet(self, path: str, feed: Feed) -> None:
        """Cover a path that was installed, or begin to follow it."""
        victim = None
        with self._lock:
            whole = self._wholes.get(collection_of(path))
            if whole is not None:
                if whole.current and path in whole.members:
                    self._cache.cover(path, whole.lease)
                return
            if path in self._documents:
                if self._documents[path]:
                    self._cache.cover(path, self._lease)
                return
            if len(self._documents) >= self._max_documents:
                victim = self._victim(path)
                if victim is None:
                    self.not_followed += 1
                    return
                self._let_go(victim)
            self._take_up(path)
        if victim is not None:
            feed.remove(Target(document=victim))
        feed.add(Target(document=path))

    def _take_up(self, path: str) -> None:
        self._documents[path] = False
        self._ring.append(path)

    def _victim(self, path: str) -> str | None:
        """Return who makes room for `path`: one that is not held, else one read half as often."""
        if not self._max_documents:
            return None
        loser, longest = None, 2 * self._cache.read_gap(path)
        rivals = [self._ring.popleft() for _ in range(min(_RIVALS, len(self._ring)))]
        for rival in rivals:
            if rival in self._pinned:
                continue
            if not self._cache.holds(rival):
                loser = rival
                break
            gap = self._cache.read_gap(rival)
            if gap > longest:
                loser, longest = rival, gap
        self._ring.extend(rival for rival in rivals if rival != loser)
        return loser

    def _let_go(self, path: str) -> None:
        del self._documents[path]
        self._cache.uncover([path])

    def _sweep(self, feed: Feed) -> None:
        """Let go of some of what the cache does not hold any more."""
        gone = []
        with self._lock:
            for _ in range(min(_SWEEP, len(self._ring))):
                path = self._ring.popleft()
                if path in self._pinned or self._cache.holds(path):
                    self._ring.append(path)
                else:
                    self._let_go(path)
                    gone.append(path)
        for path in gone:
            feed.remove(Target(document=path))

    # -- how it is -----------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether everything that is followed can be heard."""
        return self._feed is not None and self._feed.active

    @property
    def error(self) -> str:
        """Why it cannot, or empty."""
        error = None if self._feed is None else self._feed.error
        return "" if error is None else str(error)

    def counts(self) -> tuple[int, int, int]:
        """Return how many documents and wholes are followed, and how many are current. O(n)."""
        with self._lock:
            current = sum(self._documents.values())
            current += sum(whole.current for whole in self._wholes.values())
            return len(self._documents), len(self._wholes), current

    def close(self) -> None:
        """End the feed; what it vouched for lives by its time again. Idempotent."""
        with self._turn:
            feed, self._feed = self._feed, None
        if feed is None:
            return
        feed.close()
        with self._lock:
            paths = list(self._documents)
            names = [whole.name for whole in self._wholes.values() if whole.name is not None]
            leases = [self._lease, *(whole.lease for whole in self._wholes.values())]
            self._documents.clear()
            self._ring.clear()
            self._wholes.clear()
        self._cache.uncover(paths)
        for name in names:
            self._cache.uncover_collection(name)
        for lease in leases:  # last: what they have promised is kept
            lease.cancel()
