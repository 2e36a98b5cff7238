"""The stores of these programs, by a text that can be handed to another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from beastmode import AsyncStore, SQLiteStore, Store

__all__ = ["google_async_client", "google_client", "open_store"]


@contextmanager
def open_store(text: str) -> Iterator[tuple[Store, AsyncStore | None]]:
    """Open `sqlite:FILE` or `firestore:PROJECT` (at FIRESTORE_EMULATOR_HOST); closed at the end."""
    kind, _, name = text.partition(":")
    if kind == "sqlite":
        store: Store = SQLiteStore(name)
        try:
            yield store, None
        finally:
            store.close()
        return
    from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore

    store = FirestoreStore(name)
    try:
        yield store, AsyncFirestoreStore(name)
    finally:
        store.close()


def google_client(project: str) -> Any:
    """Return Google's own client, to compare with; it finds the emulator by itself."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import firestore

    return firestore.Client(project=project, credentials=AnonymousCredentials())


def google_async_client(project: str) -> Any:
    """As `google_client`, for coroutines."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import firestore

    return firestore.AsyncClient(project=project, credentials=AnonymousCredentials())
