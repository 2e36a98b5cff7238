"""One commit to a SQLite file: what each operation makes of its document, and writing that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from beastmode.errors import PreconditionFailed, StoreCorrupt, WriteRejected
from beastmode.stores import codec
from beastmode.stores.documents import Delete, Operation, apply
from beastmode.stores.sqlite_file import NEWEST, Connection
from beastmode.stores.values import time_of

__all__ = ["Changes", "Key", "State", "look_up", "prune"]

Key = tuple[str, str]
"""Collection and id of a document."""

State = tuple[int | None, str | None]
"""Version and text of a document; None, None: there is no such document."""

_PUT: Final = "INSERT OR REPLACE INTO docs VALUES (?, ?, ?, ?)"
_REMOVE: Final = "DELETE FROM docs WHERE parent = ? AND id = ?"
_RECORD: Final = "INSERT INTO changes VALUES (?, ?, ?, ?)"
_SECOND: Final = 1_000_000_000
_MS: Final = 1_000_000
_LOOKUP_SIZES: Final = (1, 8, 64, 512)
_LOOKUP: Final = "SELECT id, version, body FROM docs WHERE parent = ? AND id IN "
_LOOKUPS: Final = {size: f"{_LOOKUP} ({', '.join('?' * size)})" for size in _LOOKUP_SIZES}


class Changes:
    """What the operations of one commit change, in one transaction of `held`.

    The documents named by `keys` are read at once, `apply` works in memory, `write` writes each
    changed document once. Every change has its own version, greater than all in the file and not
    behind the clock; a `SERVER_TIMESTAMP` is that of the first, to the millisecond.
    """

    def __init__(self, held: Connection, keys: Sequence[Key], clock_ns: Callable[[], int]) -> None:
        self._held = held
        self._states = look_up(held, keys)
        self._newest: int = held.execute(NEWEST).fetchone()[0]
        self._next: int = max(clock_ns(), self._newest + 1)
        self._now = time_of(self._next // _SECOND, self._next % _SECOND // _MS * _MS)
        self.written: dict[Key, State] = {}

    def apply(self, operation: Operation, key: Key, body: str | None) -> int:
        """Apply one operation and return the resulting version.

        `body` is a Set's fields as text, where it has no transforms. Raises PreconditionFailed,
        DocumentMissing, and RequestError for a value that cannot be kept.
        """
        version, before = state = self._states.get(key, (None, None))
        _check_precondition(operation, version)
        after = _result(operation, state, body, self._now)
        if after is None and before is None:
            return self._newest
        if (
            version is not None
            and after is not None
            and before is not None
            and codec.same_content(after, before)
        ):
            return version
        changed: int = self._next
        self._newest = changed
        self._next += 1
        self.written[key] = (changed, after)
        self._states[key] = (None if after is None else changed, after)
        return changed

    def write(self) -> None:
        """Write each changed document's last state, and one row for watchers, oldest first."""
        if not self.written:
            return
        last = sorted(self.written.items(), key=lambda item: item[1][0] or 0)
        puts = [(*key, version, body) for key, (version, body) in last if body is not None]
        removed = [key for key, (_, body) in last if body is None]
        if puts:
            self._held.executemany(_PUT, puts)
        if removed:
            self._held.executemany(_REMOVE, removed)
        self._held.executemany(
            _RECORD, [(version, *key, int(body is None)) for key, (version, body) in last]
        )


def look_up(held: Connection, keys: Sequence[Key]) -> dict[Key, State]:
    """Return the documents that exist; few statements, each for many ids of one collection."""
    by_parent: dict[str, dict[str, None]] = {}
    for parent, doc_id in keys:
        by_parent.setdefault(parent, {})[doc_id] = None
    states: dict[Key, State] = {}
    for parent, ids in by_parent.items():
        left = list(ids)
        while left:
            size = next((size for size in _LOOKUP_SIZES if size >= len(left)), _LOOKUP_SIZES[-1])
            part, left = left[:size], left[size:]
            part += part[-1:] * (size - len(part))
            for doc_id, version, body in held.execute(_LOOKUPS[size], [parent, *part]):
                states[parent, doc_id] = (version, body)
    return states


def prune(held: Connection, keep: int) -> None:
    """Remove all but the newest `keep` rows of `changes`, and note how far; O(keep)."""
    row = held.execute(
        "SELECT version FROM changes ORDER BY version DESC LIMIT 1 OFFSET ?", [keep]
    ).fetchone()
    if row is not None:
        held.execute("DELETE FROM changes WHERE version <= ?", row)
        held.execute("UPDATE meta SET value = ? WHERE name = 'pruned_through'", row)


def _check_precondition(operation: Operation, version: int | None) -> None:
    wanted = operation.precondition
    if wanted is None:
        return
    what = f"{type(operation).__name__} of {operation.path!r}"
    if wanted.exists is not None and wanted.exists is not (version is not None):
        raise PreconditionFailed(f"{what}: it must {'' if wanted.exists else 'not '}exist")
    if wanted.version is not None and wanted.version != version:
        held = "it does not exist" if version is None else f"it is at {version}"
        raise PreconditionFailed(f"{what}: it must be at version {wanted.version}, {held}")


def _result(operation: Operation, before: State, given: str | None, now: datetime) -> str | None:
    """Return the document's text after `operation`, None when it does not exist then."""
    if isinstance(operation, Delete):
        return None
    if given is not None:
        return given
    body = before[1]
    try:
        held = None if body is None else codec.decode(body, operation.path)
    except StoreCorrupt as error:
        # One damaged document must not hold up the writes of all others.
        raise WriteRejected(f"{type(operation).__name__}: {error}") from error
    data = apply(operation, held, now=now)
    return None if data is None else codec.encode(data, operation.path)
