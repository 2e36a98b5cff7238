"""Firestore as a store. Google's libraries are loaded when a store is made, and only here."""

from __future__ import annotations

from beastmode.stores.firestore.astore import AsyncFirestoreStore
from beastmode.stores.firestore.store import FirestoreStore

__all__ = ["AsyncFirestoreStore", "FirestoreStore"]
