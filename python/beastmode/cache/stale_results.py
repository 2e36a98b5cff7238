"""Results of queries that were right until doubt: what may be served while the store fails.

Nothing here may be known to be outdated. What is heard, read or written of a collection ends the
results that may lack it, so that nobody is shown less than somebody has seen, nor misses an own
write. The owner's lock guards it. No I/O, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from beastmode.stores.documents import Document, collection_of

__all__ = ["StaleResult", "StaleResults"]


class StaleResult(NamedTuple):
    """A result, served as stale before `until` (the cache's timer)."""

    collection: str
    version: int
    documents: dict[str, Document]
    until: float


class StaleResults:
    """Results by key, at most `max_queries` with `max_documents` in them; the oldest go first."""

    def __init__(self, max_queries: int, max_documents: int) -> None:
        self._max_queries = max_queries
        self._max_documents = max_documents
        self._results: OrderedDict[Hashable, StaleResult] = OrderedDict()
        self._keys: dict[str, set[Hashable]] = {}
        self._oldest: dict[str, int] = {}
        """A version that no result of a collection is below."""
        self._documents = 0

    def __len__(self) -> int:
        return len(self._results)

    @property
    def collections(self) -> list[str]:
        """The collections that results are of."""
        return list(self._keys)

    def put(self, key: Hashable, result: StaleResult) -> None:
        """Keep `result`, in the place of an older one. O(1) amortised."""
        self.discard(key)
        self._results[key] = result
        collection = result.collection
        self._keys.setdefault(collection, set()).add(key)
        oldest = self._oldest.get(collection, result.version)
        self._oldest[collection] = min(oldest, result.version)
        self._documents += len(result.documents)
        while len(self._results) > self._max_queries or self._documents > self._max_documents:
            self.discard(next(iter(self._results)))

    def find(self, key: Hashable, now: float) -> StaleResult | None:
        """Return what may be served at `now`, or None. O(1)."""
        result = self._results.get(key)
        if result is None:
            return None
        if now < result.until:
            return result
        self.discard(key)
        return None

    def discard(self, key: Hashable) -> None:
        """Forget a result. O(1)."""
        result = self._results.pop(key, None)
        if result is None:
            return
        self._documents -= len(result.documents)
        keys = self._keys[result.collection]
        keys.discard(key)
        if not keys:
            del self._keys[result.collection], self._oldest[result.collection]

    def changed(self, collection: str, version: int | None) -> None:
        """End what is older than `version` of a collection, all with None.

        O(its results), but O(1) where none is older: so it is for most of what is read.
        """
        oldest = self._oldest.get(collection)
        if oldest is None or (version is not None and version <= oldest):
            return
        for key in list(self._keys[collection]):
            if version is None or self._results[key].version < version:
                self.discard(key)
        if left := self._keys.get(collection):
            self._oldest[collection] = min(self._results[key].version for key in left)

    def seen(self, document: Document) -> None:
        """End what shows less than `document`, which was read. As `changed`, O(its results)."""
        collection = collection_of(document.path)
        if document.data is not None:
            self.changed(collection, document.version)
            return
        # A tombstone's version is the time of the load: it ends what shows the document only.
        for key in list(self._keys.get(collection, ())):
            if document.path in self._results[key].documents:
                self.discard(key)

    def expire(self, now: float) -> None:
        """Forget what is too old to be served. O(results)."""
        for key in [key for key, one in self._results.items() if now >= one.until]:
            self.discard(key)

    def clear(self) -> None:
        """Forget everything."""
        self._results.clear()
        self._keys.clear()
        self._oldest.clear()
        self._documents = 0
