"""The stores that a demonstration can play on: a SQLite file, or a Firestore emulator.

The emulator is the one that FIRESTORE_EMULATOR_HOST names, else one that is started for the
demonstration. A Firestore that is billed is never touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from beastmode.config import BeastModeConfig
from beastmode.optimizer import BeastModeOptimizer
from beastmode.stores.base import Store, deadline_in
from beastmode.stores.documents import Set
from beastmode.stores.sqlite import SQLiteStore

__all__ = ["Backend", "open_backend"]

EMULATOR_VARIABLE: Final = "FIRESTORE_EMULATOR_HOST"
_COMMIT: Final = 500
_COMMIT_S: Final = 30.0
_Documents = Iterable[tuple[str, Mapping[str, Any]]]


class Backend(Protocol):
    """What a demonstration needs of the store that it plays on."""

    title: str
    """What it is, with its article."""

    def fill(self, documents: _Documents, chunk: int) -> int:
        """Write the documents, `chunk` at a time, and return how many there were."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what is to be told of the store, once it is filled."""
        ...

    def optimizer(
        self, config: BeastModeConfig, journal: Path
    ) -> AbstractContextManager[BeastModeOptimizer]:
        """Return an optimizer over the store."""
        ...

    def store(self) -> AbstractContextManager[Store]:
        """Return the store itself, to see what it holds."""
        ...


class _SQLite:
    title = "a SQLite store"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "demo.db"

    def fill(self, documents: _Documents, chunk: int) -> int:
        with SQLiteStore(self._path) as store:
            return store.load(documents, chunk=chunk)

    def facts(self) -> dict[str, Any]:
        size = self._path.stat().st_size
        return {
            "kind": "sqlite",
            "bytes": size,
            "software": f"SQLite {sqlite3.sqlite_version}",
            "about": (
                f"an embedded SQLite file on this machine ({size / 2**20:,.0f} MiB, warm in the "
                "system's page cache). A store behind a network answers more slowly: not "
                "measured here."
            ),
        }

    def optimizer(
        self, config: BeastModeConfig, journal: Path
    ) -> AbstractContextManager[BeastModeOptimizer]:
        return BeastModeOptimizer(
            config=config.replace(store_path=str(self._path), journal_path=str(journal))
        )

    def store(self) -> AbstractContextManager[Store]:
        return SQLiteStore(self._path)


class _Firestore:
    title = "a database of the Firestore emulator"

    def __init__(self, host: str, project: str) -> None:
        self._host = host
        self._project = project

    def fill(self, documents: _Documents, chunk: int) -> int:
        count = 0
        left = iter(documents)
        with self.store() as store:
            while batch := list(itertools.islice(left, min(chunk, _COMMIT))):
                operations = [Set(path, fields) for path, fields in batch]
                store.commit(operations, deadline=deadline_in(_COMMIT_S))
                count += len(batch)
        return count

    def facts(self) -> dict[str, Any]:
        return {
            "kind": "firestore",
            "bytes": None,
            "software": f"Firestore emulator at {self._host}",
            "about": (
                "the Firestore emulator on this machine, over loopback and through gRPC; its "
                "documents are in memory. Firestore itself is farther away: not measured here."
            ),
        }

    @contextlib.contextmanager
    def optimizer(self, config: BeastModeConfig, journal: Path) -> Iterator[BeastModeOptimizer]:
        from beastmode.stores.firestore import AsyncFirestoreStore  # noqa: PLC0415 - slow

        # One for threads, one for coroutines, over the same database.
        with self.store() as store:
            async_store = AsyncFirestoreStore(self._project, emulator_host=self._host)
            with BeastModeOptimizer(
                store, async_store=async_store, config=config.replace(journal_path=str(journal))
            ) as optimizer:
                yield optimizer

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        from beastmode.stores.firestore import FirestoreStore  # noqa: PLC0415 - slow

        store = FirestoreStore(self._project, emulator_host=self._host)
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def open_backend(kind: str, folder: Path) -> Iterator[Backend]:
    """Open the backend `kind`, "sqlite" or "firestore"; files go into `folder`.

    Raises EmulatorMissing where there is no Firestore emulator and none can be started.
    """
    if kind == "sqlite":
        yield _SQLite(folder)
        return
    from beastmode.testing import fresh_project, start_emulator  # noqa: PLC0415 - not for SQLite

    host = os.environ.get(EMULATOR_VARIABLE, "").strip()
    if host:
        yield _Firestore(host, fresh_project())
        return
    with start_emulator() as emulator:
        yield _Firestore(emulator.host, fresh_project())
