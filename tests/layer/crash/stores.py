"""The stores of the crash trials, by a name that parent and child can pass on."""

from __future__ import annotations

from pathlib import Path

from beastmode.stores.base import Store
from beastmode.stores.sqlite import SQLiteStore


def sqlite_name(path: Path) -> str:
    return f"sqlite:{path}"


def firestore_name(host: str, project: str) -> str:
    return f"firestore:{host}/{project}"


def open_store(name: str) -> Store:
    kind, _, rest = name.partition(":")
    if kind == "sqlite":
        return SQLiteStore(rest)
    host, _, project = rest.rpartition("/")
    from beastmode.stores.firestore.store import FirestoreStore

    return FirestoreStore(project, emulator_host=host)
