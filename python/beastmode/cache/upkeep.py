"""What a cache is told from outside: what to hold or drop, writes, changes, leases and doubt.

`Upkeep` is the half of `BeastModeCache` that keeps what is held true; reads are in `readthrough`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from beastcore._validate import check_count
from beastmode.cache.holdings import check_prefix
from beastmode.cache.lease import Lease
from beastmode.cache.rules import Key, Policy, setting
from beastmode.cache.state import CacheState, Guess
from beastmode.errors import ClosedError, DocumentMissing, RequestError
from beastmode.stores.base import Change
from beastmode.stores.documents import (
    Document,
    Operation,
    apply,
    check_collection,
    check_path,
    freeze,
    has_transforms,
)

__all__ = ["Upkeep"]


class Upkeep:
    """The methods of `BeastModeCache` by which others keep it true."""

    def __init__(self, state: CacheState, timer: Callable[[], float]) -> None:
        self._state = state
        self._book = state.book
        self._timer = timer

    # -- what is held --------------------------------------------------------------------------

    def set(self, document: Document, *, user: str | None = None) -> bool:
        """Install a document that the caller knows from the store; return whether it is held.

        False if something newer is held, a write of it is pending, or its rule does not cache
        it. RequestError if `document` is none or its rule needs a `user`. O(1).
        """
        _check_document(document)
        key, path, policy = self._resolve(document.path, user)
        return self._state.set(key, path, policy, document, self._timer())

    def observe(self, documents: Iterable[Document]) -> None:
        """Say that `documents` were read past the cache: what is held and older is dropped.

        Else somebody who has seen them could be answered with an older state. O(documents).
        """
        self._state.observe(documents)

    def invalidate(self, path: str | None = None, *, prefix: str | None = None) -> int:
        """Drop a document, or everything at and under `prefix`; return how many entries went.

        Loads that are in the air are not installed. `prefix` is a collection or document path
        and matches whole parts: "users/7" is not a prefix of "users/70". A path takes O(1); a
        prefix scans the keys of all entries, up to about a second for a million, during which
        other threads are served; from an event loop call it by `asyncio.to_thread`.
        """
        if (path is None) == (prefix is None):
            raise RequestError(
                "invalidate takes a path or a prefix (clear() drops everything), "
                f"got path={path!r}, prefix={prefix!r}"
            )
        if path is not None:
            return self._state.invalidate(check_path(path))
        return self._state.invalidate_under(check_prefix(prefix))

    def holds(self, path: str) -> bool:
        """Return whether something is held for `path`, fresh or not; for whoever follows it."""
        check_path(path)
        engine = self._state.engine
        return any(key in engine for key in self._state.held.keys_of(path))

    def read_gap(self, path: str) -> float:
        """Return about how many seconds pass until somebody reads `path`; inf if it is not held.

        For whoever can follow only a part of what is held. Known from the times at which it was
        found not to be fresh: how long after its time to live, or after its lease's promise, it
        was read next. O(1), where kept per user O(users). Counts as no use.
        """
        return self._state.held.read_gap(check_path(path), self._timer())

    # -- leases and doubt ----------------------------------------------------------------------

    def cover(self, path: str, lease: Lease) -> bool:
        """Let `lease` vouch for what is held of `path`; False, and no effect, if nothing is.

        Its entries are fresh, beyond their time to live, whenever `lease` is valid. Call it when
        the stream has delivered, by `apply_change`, every change of `path` up to a moment after
        the entry was loaded, and will deliver every later one: in practice, once the target is
        current, and again for each path that `drain_interest` tells. Doubt ends, so call it only
        if nothing was missed since what is held was loaded or heard. What replaces a covered
        entry is covered too. A provisional entry becomes fresh once the store has confirmed it,
        an unknown one (`doubt`) once it was loaded or told.
        O(1).
        """
        _check_lease(lease)
        return self._state.cover(check_path(path), lease)

    def uncover(self, paths: Collection[str]) -> None:
        """Let what is held of `paths` live by its time again: they are not listened to any more.

        What a lease still covers at this moment is fresh for its time to live from now, at most
        as long as the lease had promised. Also takes `paths` out of what `drain_interest` tells.
        O(paths).
        """
        self._state.uncover(_check_paths(paths), self._timer())

    def doubt(self, paths: Collection[str], *, unknown: bool = False) -> None:
        """Doubt what is held of `paths`: changes of them may have been missed.

        On return no such entry is fresh any more, whoever vouched for it: each is loaded at its
        next read, and served only as stale, for `max_stale_s` from now. Loads in the air are not
        installed, and what `drain_interest` would have told of them is forgotten. O(paths); all or
        nothing for a malformed path (RequestError).

        `unknown`: whoever follows them does not know their state, though it hears of every change
        from now on. No `cover` ends this doubt, but a load does, or a change; what that brings is
        covered as before.
        """
        self._state.doubt(_check_paths(paths), self._timer(), unknown=unknown)

    def mark_unverified(self, prefix: str | None = None) -> None:
        """Doubt what is held (at and under `prefix`): a source of changes has failed.

        As `doubt`, for all entries: scans them, as `invalidate` with a prefix does. Collections
        there stay covered (what is read of them from now on is), unless their lease was cancelled.
        """
        self._state.doubt_under(None if prefix is None else check_prefix(prefix), self._timer())

    def cover_collection(self, collection: str, lease: Lease) -> None:
        """Let `lease` vouch for a whole collection: all that is read of it from now on.

        Its documents are then fresh, and results of queries of it are held, while the lease is
        valid and nothing changes. Call it once the stream has delivered the collection, every
        change of which it will deliver from here on; loads in the air are not installed. What is
        held already is not covered by this, because a document that is gone may not have been
        told: `cover` those that were delivered. After the lease was cancelled doubt of the
        collection, or of all, ends it.
        """
        _check_lease(lease)
        self._state.cover_collection(check_collection(collection), lease)

    def uncover_collection(self, collection: str) -> None:
        """End `cover_collection`; what is held lives by its time again, as after `uncover`.

        That goes for documents that the same lease covers by themselves, too. O(entries), during
        which others are served.
        """
        self._state.uncover_collection(check_collection(collection), self._timer())

    def doubt_collection(self, collection: str) -> None:
        """Doubt what the lease of `cover_collection` covers, and end that: its stream was lost.

        As `doubt` for those documents; others of the collection live by their time as before.
        Cancel the lease first. O(entries), during which others are served.
        """
        self._state.doubt_collection(check_collection(collection), self._timer())

    def drain_interest(self, limit: int) -> tuple[list[str], bool]:
        """Take out the paths, oldest first, at most `limit`, that were installed without a lease.

        Each path is told once for each time that it is installed, except by a write of ours that
        nobody had read before. The second value is True when
        older ones were forgotten since the last call, because too many (65,536) were waiting:
        they are told again when they are next installed. O(limit).
        """
        return self._state.drain_interest(setting(check_count, "limit", limit))

    # -- writes and changes --------------------------------------------------------------------

    def write_started(self, path: str) -> None:
        """Say that a write of `path` is on its way to the store.

        Until each is finished nothing that was read from the store is installed for this path;
        what is held stays, as the base to which the caller applies the pending writes.
        """
        self._state.write_started(check_path(path))

    def write_finished(
        self,
        path: str,
        document: Document | None,
        *,
        version: int | None = None,
        operation: Operation | None = None,
    ) -> None:
        """Say that a write of `path` has ended: `document` is what the store holds now, or None.

        Pass a document only if its content is known to be the store's (after a `Set`, or an
        `Update` guarded by a version). Without one, `version` is that of the written document, if
        the store told it, and `operation` what was written: the entry then becomes provisional,
        which means not fresh, until a change or a load of that version or a newer one. With
        neither, the entry is dropped.

        A change heard while the write was pending is taken up now if it is not older; what is
        held of a version that is known to be outdated is dropped. While further writes are
        pending only what is held already is replaced. CacheError without `write_started`.
        """
        check_path(path)
        if document is not None:
            _check_document(document)
            if document.path != path:
                raise RequestError(f"the document of {path!r} cannot be {document.path!r}")
            version = document.version
        policy = self._book.policy_for(path)
        key = None if policy.per_user else path
        guess = None
        if document is None and version is not None and key is not None and operation is not None:
            guess = self._guess(key, operation)
        self._state.write_finished(
            key, path, policy, document, self._timer(), version=version, guess=guess
        )

    def _guess(self, key: Key, operation: Operation) -> Guess | None:
        """Return what `operation` makes of what is held; without the lock, for it takes long."""
        entry = self._state.engine.peek(key)
        if entry is None or has_transforms(operation):
            return None  # what a transform makes only the store can tell
        base = entry.document
        try:
            return Guess(base, freeze(apply(operation, base.data)))
        except DocumentMissing:
            return None

    @contextmanager
    def writing(self, *paths: str) -> Iterator[None]:
        """Keep `paths` out of the cache while something writes them past it, a transaction say.

        Inside, nothing that is read of them is installed; at the end, however it ends, what is
        held of them is dropped. Reads inside that must not be cached answers go to the store
        itself.
        """
        for path in paths:
            check_path(path)
        started: list[str] = []
        try:
            for path in paths:
                self._state.write_started(path)
                started.append(path)
            yield
        finally:
            for path in started:
                try:
                    self.write_finished(path, None)
                except ClosedError:
                    break  # nothing is held any more

    def apply_change(self, change: Change) -> None:
        """Take in a change that the store reported: an older entry is replaced in place.

        A document that nobody holds is not installed. While a write of it is pending the newest
        change is kept and compared when the write finishes.
        """
        self._state.apply_change(
            change.path, change.document, self._timer(), inferred=change.inferred
        )

    def _resolve(self, path: str, user: str | None) -> tuple[Key, str, Policy]:
        key, policy = self._book.resolve(path, user)
        return key, path, policy


def _check_lease(lease: object) -> None:
    if not isinstance(lease, Lease):
        raise RequestError(f"lease must be a Lease, got {lease!r}")


def _check_paths(paths: object) -> list[str]:
    if isinstance(paths, str) or not isinstance(paths, Collection):
        raise RequestError(f"paths must be a collection of document paths, got {paths!r}")
    return [check_path(path) for path in paths]


def _check_document(document: object) -> None:
    if not isinstance(document, Document):
        raise RequestError(f"document must be a Document, got {document!r}")
