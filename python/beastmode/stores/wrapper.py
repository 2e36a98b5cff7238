"""What wrappers of a store have in common: whatever they do not change is the store's own."""

from __future__ import annotations

from typing import Any

from beastmode.stores.base import Feed, FeedListener

__all__ = ["StoreWrapper"]


class StoreWrapper:
    """Passes on what `store` offers beyond the protocol.

    It is a FeedStore and a TransactionStore exactly where `store` is one.
    """

    def __init__(self, store: Any) -> None:
        self._inner = store
        if hasattr(store, "open_feed"):
            # An attribute, because a method would make every wrapper a FeedStore.
            self.open_feed = self._open_feed
        if hasattr(store, "begin_transaction"):
            self.begin_transaction = self._begin_transaction

    def __getattr__(self, name: str) -> Any:
        """Return what the store offers beyond the protocol."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def _open_feed(self, listener: FeedListener) -> Feed:
        feed: Feed = self._inner.open_feed(listener)
        return feed

    def _begin_transaction(self, *, retry_of: bytes = b"", deadline: float | None = None) -> Any:
        """Return what the store does, in the same wrapper: a transaction is called as a store."""
        return self._inner.begin_transaction(retry_of=retry_of, deadline=deadline)
