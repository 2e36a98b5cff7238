"""A transaction over a SQLite file: it holds no lock, and is checked when it is read and committed.

"Optimistic concurrency control" (H. T. Kung and J. T. Robinson, 1981): nobody waits for the code
that runs between the reads and the commit, and who loses runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from beastmode.errors import TransactionConflict
from beastmode.stores.base import Query, QueryResult
from beastmode.stores.documents import Document, Operation
from beastmode.stores.sqlite_commit import Key, look_up
from beastmode.stores.sqlite_file import Connection

__all__ = ["ReadSet", "SQLiteTransaction"]

Versions = list[tuple[str, int]]
"""Id and version of each document that a query found, in its order."""


class ReadSet:
    """What a transaction has read: the version of each document, the outcome of each query.

    `rerun(held, query, deadline)` asks a query again, within a transaction of `held`.
    """

    def __init__(self, rerun: Callable[[Connection, Query, float], Versions]) -> None:
        self._rerun = rerun
        self.documents: dict[str, Document] = {}
        self.queries: list[tuple[Query, Versions]] = []

    def __bool__(self) -> bool:
        return bool(self.documents or self.queries)

    def check(self, held: Connection, deadline: float) -> None:
        """Raise TransactionConflict unless all of it is so still; O(documents), and the queries."""
        keys: dict[Key, Document] = {}
        for path, document in self.documents.items():
            parent, _, doc_id = path.rpartition("/")
            keys[parent, doc_id] = document
        states = look_up(held, list(keys))
        for key, document in keys.items():
            version, _ = states.get(key, (None, None))
            if version != (document.version if document.exists else None):
                raise TransactionConflict(
                    f"the document {document.path!r} was written after the transaction read it"
                )
        for query, found in self.queries:
            if self._rerun(held, query, deadline) != found:
                raise TransactionConflict(
                    f"documents of {query.collection!r} were written after the transaction "
                    "asked for them"
                )


class SQLiteTransaction:
    """See `StoreTransaction`; made by `SQLiteStore.begin_transaction`.

    `check` verifies a ReadSet at one moment, `commit` verifies it and applies operations.
    """

    token: Final = b""

    def __init__(
        self,
        *,
        get_many: Callable[[Sequence[str], float | None], list[Document]],
        query: Callable[[Query, float | None], QueryResult],
        check: Callable[[ReadSet, float | None], None],
        commit: Callable[[Sequence[Operation], float | None, ReadSet], list[int]],
        reads: ReadSet,
    ) -> None:
        self._get_many = get_many
        self._query = query
        self._check = check
        self._commit = commit
        self._reads = reads

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """Return the documents; all that was read so far is of one moment, or it is a conflict."""
        known = self._reads.documents
        # A path that was read before is told again as it was, which the check confirms.
        new = paths if isinstance(paths, str) else [path for path in paths if path not in known]
        documents = self._get_many(new, deadline)
        self._confirm(deadline)
        known.update((document.path, document) for document in documents)
        return [known[path] for path in paths]

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """Return what a query finds; all that was read so far is of one moment, as above."""
        result = self._query(query, deadline)
        self._confirm(deadline)
        found = [(one.path.rpartition("/")[2], one.version) for one in result.documents]
        self._reads.queries.append((query, found))
        return result

    def _confirm(self, deadline: float | None) -> None:
        if self._reads:
            self._check(self._reads, deadline)

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """Apply all operations, if all that was read is so still; see `StoreTransaction`."""
        return self._commit(operations, deadline, self._reads)

    def rollback(self, *, deadline: float | None = None) -> None:
        """Do nothing: it holds nothing."""
