"""What the cache holds: entries in the engine, and the index of entries kept per user.

No rule about versions or tokens is known here; `state` decides, under its lock, what may be
installed. Readers look at entries without a lock.

How long an entry is fresh: until `fresh_until`, which a load or a change sets by the time to
live, and which doubt sets to now. An entry with a lease is prolonged, when it is read past that
time, up to the time for which the lease promises; doubt takes the lease away, so that no
promise given before can undo it. What is not fresh is overdue since the end of its time or of its
lease's promise, whichever was later, or since doubt: from then on `max_stale` counts.
"""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Iterable
from typing import Final, cast

from beastcore import Cache
from beastmode.cache.lease import Interest, Lease
from beastmode.cache.rules import Key, Policy, RuleBook
from beastmode.errors import RequestError
from beastmode.stores.documents import Document, collection_of

__all__ = [
    "DOUBTED",
    "PROVISIONAL",
    "UNKNOWN",
    "Entry",
    "Holdings",
    "Shelf",
    "check_prefix",
    "is_unclear",
    "is_under",
]

DOUBTED: Final = 1
"""Flag of an entry that may lack a change: a source of changes failed."""
PROVISIONAL: Final = 2
"""Flag of an entry whose content is our own guess at what the store has at that version."""
UNKNOWN: Final = 4
"""Flag of an entry whose state its stream does not know: only a load or a change replaces it."""

_MAX_ENGINE_TTL: Final = 31_536_000.0
_FEWEST_USERS: Final = 64
_SLICE: Final = 4096
_LONG_S: Final = 3600.0
"""Taken for a time to live that has no end, to tell how often something is read."""
_MOST_USES: Final = 4
"""Uses that count before that is known; more may be of long ago."""
_GAP_SHARE: Final = 0.25
"""Weight of the latest gap in the mean of all."""
_KEEP_S: Final = 30.0
"""How long what is not fresh is held at least, where a lease had kept it beyond its time."""


class Shelf:
    """The users for whom a `per_user` path is held; alive as long as one such entry is."""

    __slots__ = ("__weakref__", "prune_at", "users")

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.prune_at = _FEWEST_USERS


class Entry:
    """A held document. Readers look at it without a lock: `document` is written first.

    `lease` is who vouches for it beyond its time to live, `flags` are those of this module; both
    belong to the owner's lock. `gap` is the mean time from the moment at which it was not fresh
    any more to the next read, a measure of how often it is read that costs fresh reads nothing;
    0 while nothing is known.
    """

    __slots__ = ("document", "flags", "fresh_until", "gap", "lease", "loaded_at", "policy", "shelf")

    def __init__(
        self,
        document: Document,
        fresh_until: float,
        loaded_at: float,
        policy: Policy,
        shelf: Shelf | None,
        lease: Lease | None = None,
    ) -> None:
        self.document = document
        self.fresh_until = fresh_until
        self.loaded_at = loaded_at
        self.policy = policy
        self.shelf = shelf
        self.lease = lease
        self.flags = 0
        self.gap = 0.0

    def is_fresh(self, now: float) -> bool:
        """Return whether it is fresh, prolonged by its lease if need be; under the lock."""
        if now >= self.fresh_until and self.lease is not None and not self.flags:
            # Also where that is over: so long it was fresh, and since then it is overdue.
            before, self.fresh_until = (
                self.fresh_until,
                max(self.fresh_until, self.lease.valid_until),
            )
            if now < self.fresh_until:
                self.missed(now - before)
        return now < self.fresh_until

    def missed(self, gap: float) -> None:
        """Note that somebody read it `gap` seconds after it was fresh; under the lock."""
        self.gap += _GAP_SHARE * (gap - self.gap)

    def end(self, now: float) -> None:
        """Let it be overdue from `now` on, or since it was last vouched for; under the lock.

        What nobody has read since its time to live was over has been fresh by its lease, which
        may be cancelled by now.
        """
        until = self.fresh_until
        if self.lease is not None and not self.flags:
            until = max(until, self.lease.promised_until)
        self.fresh_until = min(until, now)


class Holdings:
    """The entries of one cache. Every change is made under the lock of its owner."""

    def __init__(self, engine: Cache[Key, Entry], book: RuleBook, *, jitter: float) -> None:
        self.engine = engine
        self.shares_keys = book.shares_keys
        """True when no rule is `per_user`: then a path is its own key."""
        self.interest = Interest()
        self.leases: dict[str, Lease] = {}
        """Who vouches for whole collections, and so for what is installed in them."""
        self._jitter = jitter
        self._shelves: weakref.WeakValueDictionary[str, Shelf] = weakref.WeakValueDictionary()

    def _lifetime(self, document: Document, policy: Policy) -> float:
        ttl = policy.ttl if document.data is not None else policy.negative_ttl
        if self._jitter and ttl < math.inf:
            # What was filled together must not all fall due together.
            ttl -= ttl * self._jitter * random.random()
        return ttl

    def _engine_ttl(self, ttl: float, policy: Policy) -> float | None:
        keep = ttl + policy.max_stale
        return None if ttl == math.inf else min(keep, _MAX_ENGINE_TTL)

    def install(
        self,
        key: Key,
        path: str,
        policy: Policy,
        document: Document,
        loaded_at: float,
        *,
        read: bool = True,
    ) -> None:
        """Hold `document`, known from the store since `loaded_at`, under `key`. O(1).

        `read`: somebody wants to have it, as opposed to having written it.
        Who vouched for what was held, or vouches for the collection, vouches for this too: it
        hears every later change.
        """
        ttl = self._lifetime(document, policy)
        if ttl <= 0:
            self.engine.pop(key, None)
            return
        before: Entry | None = self.engine.peek(key)
        lease = None if before is None else before.lease
        if lease is None and self.leases:
            lease = self.leases.get(collection_of(path))
        if lease is None and read:
            self.interest.note(path)
        shelf = None
        if isinstance(key, tuple):
            shelf = self._shelves.get(path)
            if shelf is None:
                shelf = self._shelves[path] = Shelf()
            self._put_on(shelf, path, key[1])
        entry = Entry(document, loaded_at + ttl, loaded_at, policy, shelf, lease)
        if before is not None:
            entry.gap = self._gap(key, before)
            if read and loaded_at >= before.fresh_until:
                entry.missed(loaded_at - before.fresh_until)
        self.engine.set(key, entry, self._engine_ttl(ttl, policy) if lease is None else None)

    def _put_on(self, shelf: Shelf, path: str, user: str) -> None:
        users = shelf.users
        if len(users) >= shelf.prune_at:  # evicted entries leave their user behind
            users.intersection_update([one for one in users if (path, one) in self.engine])
            shelf.prune_at = max(_FEWEST_USERS, 2 * len(users))
        users.add(user)

    def renew(self, key: Key, entry: Entry, document: Document, now: float) -> None:
        """Replace a held document in place: a change is no read, so nothing is promoted."""
        ttl = self._lifetime(document, entry.policy)
        if ttl <= 0:
            self.engine.pop(key, None)
            return
        entry.document = document
        entry.loaded_at = now
        entry.fresh_until = now + ttl
        entry.flags = 0
        self.engine.touch(key, self._engine_ttl(ttl, entry.policy) if entry.lease is None else None)

    def install_guess(self, key: Key, document: Document, now: float) -> None:
        """Let the entry of `key` be `document`, a guess: not fresh until the store confirms it."""
        entry: Entry | None = self.engine.peek(key)
        if entry is None:
            return
        entry.end(now)
        entry.document = document
        entry.flags |= PROVISIONAL
        self._limit(key, entry, now)

    def confirm(self, key: Key, entry: Entry, document: Document, now: float) -> None:
        """Replace a guess by what the store has at the same version; doubt of changes stays."""
        if entry.flags & DOUBTED:
            entry.document = document
            entry.flags &= ~(PROVISIONAL | UNKNOWN)
        else:
            self.renew(key, entry, document, now)

    # -- leases --------------------------------------------------------------------------------

    def cover(self, path: str, lease: Lease, newest: int) -> bool:
        """Let `lease` vouch for a path's entries; whether there are any.

        Ends doubt, but not of what is older than `newest`, a version that is known to exist.
        """
        covered = False
        for key in self.keys_of(path):
            entry: Entry | None = self.engine.peek(key)
            if entry is None:
                continue
            covered = True
            entry.gap = self._gap(key, entry)
            entry.lease = lease
            if entry.document.version < newest:
                entry.flags |= DOUBTED
            else:
                entry.flags &= ~DOUBTED
            self.engine.touch(key, None)  # who vouches for it may do so for ever
        if covered:
            self.interest.forget((path,))
        return covered

    def uncover(self, path: str, now: float, lease: Lease | None = None) -> None:
        """Let a path's entries live by time again, from now on where their lease still counts.

        Given a `lease`, only those that it covers.
        """
        for key in self.keys_of(path):
            entry: Entry | None = self.engine.peek(key)
            if entry is None or entry.lease is None or lease not in (None, entry.lease):
                continue
            if entry.is_fresh(now):
                entry.loaded_at = now
                until = now + self._lifetime(entry.document, entry.policy)
                entry.fresh_until = min(entry.fresh_until, until)
            entry.lease = None
            self._limit(key, entry, now)

    def doubt(
        self, path: str, now: float, lease: Lease | None = None, *, unknown: bool = False
    ) -> int:
        """Make a path's entries overdue from `now` on, whoever vouched for them; their number.

        Given a `lease`, only those that it covers. What is `unknown` keeps its lease, which
        vouches for what replaces it.
        """
        doubted = 0
        for key in self.keys_of(path):
            entry: Entry | None = self.engine.peek(key)
            if entry is None or (lease is not None and entry.lease is not lease):
                continue
            doubted += 1
            entry.end(now)
            if entry.lease is not None:
                self._limit(key, entry, now)
            if unknown:
                entry.flags |= UNKNOWN
            else:
                entry.lease = None
                entry.flags |= DOUBTED
        return doubted

    def covered_by(self, lease: Lease, collection: str) -> list[str]:
        """Return the paths directly in a collection that `lease` covers; needs no lock. O(entries).

        What it covers from now on is missing.
        """
        found = {entry.document.path for entry in self.engine.values() if entry.lease is lease}
        return [path for path in found if collection_of(path) == collection]

    def paths_under(self, prefix: str | None) -> list[str]:
        """Return the paths held at and under `prefix`; needs no lock. O(entries)."""
        keys = self.engine.keys()
        if self.shares_keys:
            paths: Iterable[str] = cast("list[str]", keys)
        else:
            paths = dict.fromkeys(key if isinstance(key, str) else key[0] for key in keys)
        return [path for path in paths if prefix is None or is_under(path, prefix)]

    def _limit(self, key: Key, entry: Entry, now: float) -> None:
        """Let the engine drop an entry once it is too old even to be served stale.

        Not at once: its version is worth something, and its stream may come back.
        """
        left = max(_KEEP_S, entry.fresh_until - now)
        self.engine.touch(key, self._engine_ttl(left, entry.policy))

    def keys_of(self, path: str) -> list[Key]:
        """Return the keys that may be held for a path; O(1), O(users) where kept per user."""
        keys: list[Key] = [path]
        if not self.shares_keys:
            shelf = self._shelves.get(path)
            if shelf is not None:
                # A copy at one stroke: who asks without the lock meets users that are added.
                keys = [(path, user) for user in tuple(shelf.users)]
        return keys

    def read_gap(self, path: str, now: float) -> float:
        """Return about how many seconds pass until somebody reads a path; inf if nothing is held.

        Before the first gap (see `Entry.gap`) it is judged by the engine's count of its uses.
        """
        least = math.inf
        for key in self.keys_of(path):
            entry: Entry | None = self.engine.peek(key)
            if entry is None:
                continue
            least = min(least, max(self._gap(key, entry), now - entry.fresh_until))
        return least

    def _gap(self, key: Key, entry: Entry) -> float:
        if entry.gap:
            return entry.gap
        ttl = entry.policy.ttl if entry.document.data is not None else entry.policy.negative_ttl
        return min(ttl, _LONG_S) / min(max(1, self.engine.frequency(key)), _MOST_USES)

    def newer(self, key: Key, version: int) -> Document | None:
        """Return the document held under `key` if its version is above `version`."""
        entry: Entry | None = self.engine.peek(key)
        if entry is None or entry.document.version <= version:
            return None
        return entry.document

    def is_guess(self, key: Key) -> bool:
        """Return whether what is held under `key` may lack what others have written."""
        entry: Entry | None = self.engine.peek(key)
        return entry is not None and bool(entry.flags & PROVISIONAL)

    def has(self, key: Key, version: int) -> bool:
        """Return whether something newer is held under `key`, or this version and beyond doubt."""
        entry: Entry | None = self.engine.peek(key)
        if entry is None or entry.document.version < version:
            return False
        return entry.document.version > version or not (entry.flags or entry.lease is None)

    def outdate(self, document: Document) -> None:
        """Drop a path's entries that may be older than `document`, which somebody has seen."""
        path, version = document.path, document.version
        for key in self.keys_of(path):
            entry = self.engine.peek(key)
            if entry is not None and (
                entry.document.version < version or is_unclear(entry.document, document)
            ):
                self.engine.pop(key, None)

    def drop(self, path: str) -> int:
        """Drop a path's entries, every user's; the number of them."""
        return self.engine.delete_many(self.keys_of(path))

    def drop_under(self, prefix: str) -> int:
        """Drop everything at and under `prefix`; needs no lock. O(entries)."""
        doomed = [
            key
            for key in self.engine.keys()  # noqa: SIM118 - a snapshot, not an iterator
            if is_under(key if isinstance(key, str) else key[0], prefix)
        ]
        # In slices, because other threads cannot run within one call of the engine, nor while
        # a long list of last references is released.
        dropped = 0
        while doomed:
            dropped += self.engine.delete_many(doomed[-_SLICE:])
            del doomed[-_SLICE:]
        return dropped

    def resize(self, max_entries: int) -> None:
        """Hold at most `max_entries` from now on; needs no lock. O(entries evicted)."""
        # In slices, as above. What is added meanwhile is left to the last step.
        for _ in range((len(self.engine) - max_entries) // _SLICE):
            self.engine.evict(_SLICE)
        self.engine.resize(max_entries)

    def shorten(self, entries: Iterable[Entry]) -> None:
        """Let no entry be fresh for longer than its policy says. O(entries)."""
        for entry in entries:
            if entry.document.data is not None:
                entry.fresh_until = min(entry.fresh_until, entry.loaded_at + entry.policy.ttl)


def is_unclear(one: Document, other: Document) -> bool:
    """Return whether it is unclear which of two states of a document is the later one.

    A tombstone that was read has the time of the look as its version, and some servers stamp it
    after they have looked: a document with a lower version may have been written meanwhile.
    """
    return (one.data is None) is not (other.data is None) and (
        (one.version > other.version) is (one.data is None)
    )


def is_under(path: str, prefix: str) -> bool:
    """Return whether `path` is `prefix` or lies beneath it, by whole parts."""
    return path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == "/")


def check_prefix(prefix: object) -> str:
    """Return `prefix` without a trailing slash; RequestError unless it names a place."""
    parts = prefix.removesuffix("/").split("/") if isinstance(prefix, str) else [""]
    if not all(parts):
        raise RequestError(
            f"prefix must be a collection or document path such as 'users', got {prefix!r}"
        )
    return "/".join(parts)
