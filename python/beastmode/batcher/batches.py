"""Batches: entries that are committed together, no more of them than a commit may hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

from beastmode.batcher.entries import Entry
from beastmode.batcher.markers import MARKER_BYTES
from beastmode.batcher.outside import WriteJournal
from beastmode.stores.documents import Delete, Operation, Update

__all__ = ["Batch", "Limits", "make_batches"]


class Batch:
    """Entries for one commit; all of them from one journal.

    `name` is None where no marker is needed. `fixed` says that an attempt has begun, so that it
    may only be repeated as it is; `noted` that its journal knows of it; `doubtful` that the store
    may have it; `late` that it was too slow for its deadline and is not to be repeated whole.
    `marker_stays` is for how many seconds its marker must not be deleted, None when
    it has left none.
    """

    __slots__ = ("doubtful", "entries", "fixed", "late", "marker_stays", "name", "noted")

    def __init__(self, entries: list[Entry], name: str | None) -> None:
        self.entries = entries
        self.name = name
        self.noted = False
        self.fixed = False
        self.doubtful = False
        self.late = False
        self.marker_stays: float | None = None

    @property
    def source(self) -> WriteJournal | None:
        """The journal that its operations are in."""
        return self.entries[0].source

    @property
    def operations(self) -> list[Operation]:
        """What it asks of the store, without the marker."""
        return [entry.operation for entry in self.entries]

    @property
    def paths(self) -> list[str]:
        """The documents that it changes."""
        return [entry.operation.path for entry in self.entries]

    @property
    def seqs(self) -> list[int]:
        """The numbers of its operations in `source`."""
        return [part.seq for entry in self.entries for part in entry.parts if part.seq is not None]

    def pieces(self, needs_marker: Callable[[Operation], bool]) -> list[Batch]:
        """Return new batches for one that the store will never have: halves, or one for one entry.

        In order, each under a name of its own.
        """
        middle = len(self.entries) // 2
        halves = (self.entries[:middle], self.entries[middle:])
        return [_named(half, needs_marker) for half in halves if half]


class Limits:
    """The largest commit that the store takes.

    A store tells by its attribute `commit_limits`, an object with `max_operations` and `max_bytes`
    (int, or None), and by `commit_size(operations)`: the bytes of a commit as the store sends it.
    Without that method the bytes of the journal's encoding count.
    """

    def __init__(self, store: object) -> None:
        told: Any = getattr(store, "commit_limits", None)
        self.max_operations: int | None = getattr(told, "max_operations", None)
        self.max_bytes: int | None = getattr(told, "max_bytes", None)
        self._size: Callable[[Sequence[Operation]], int] | None = getattr(
            store, "commit_size", None
        )

    def cap(self, operations: int) -> int:
        """Return `operations`, or what the store takes beside a marker where that is less."""
        if self.max_operations is None:
            return operations
        return max(1, min(operations, self.max_operations - 1))

    def oversize(self, operation: Operation, encoded_bytes: int) -> int | None:
        """Return the bytes of an operation that no commit can hold; None for any other."""
        if self.max_bytes is None or _at_most(encoded_bytes) <= self.max_bytes:
            return None
        size = self._measure(operation, encoded_bytes)
        return size if size > self.max_bytes else None

    def sizes(self, entries: Sequence[Entry]) -> list[int]:
        """Return what each entry takes of `max_bytes`; 0 where all of them fit for certain.

        O(entries), and only where they come near the limit O(their size): measuring costs as much
        as sending.
        """
        cap = self.max_bytes
        if cap is None or sum(_at_most(entry.size) for entry in entries) + MARKER_BYTES <= cap:
            return [0] * len(entries)
        return [self._measure(entry.operation, entry.size) for entry in entries]

    def _measure(self, operation: Operation, encoded_bytes: int) -> int:
        return encoded_bytes if self._size is None else self._size([operation])


def _at_most(encoded_bytes: int) -> int:
    """Return more than an operation takes in protocol buffers, from its bytes in the journal.

    The worst is a list of negative numbers: 13 bytes for the 3 of "-1,". Names are full paths.
    """
    return 5 * encoded_bytes + 1024


def make_batches(
    entries: Sequence[Entry],
    *,
    max_ops: int,
    max_bytes: int | None,
    limits: Limits,
    needs_marker: Callable[[Operation], bool],
) -> Iterator[Batch]:
    """Split entries, in order, so that no batch exceeds a limit, but for one entry that does alone.

    There is room for the marker in each. O(entries), and their size where the store tells it.
    """
    max_ops = limits.cap(max_ops)
    ours = inf if max_bytes is None else max_bytes
    theirs = inf if limits.max_bytes is None else limits.max_bytes
    chunk: list[Entry] = []
    size, sent = 0, MARKER_BYTES
    marked = False
    for entry, bytes_sent in zip(entries, limits.sizes(entries), strict=True):
        needs = needs_marker(entry.operation)
        if chunk and (
            len(chunk) == max_ops
            or size + entry.size > ours
            or sent + bytes_sent > theirs
            or chunk[0].source is not entry.source
        ):
            yield _made(chunk, marked=marked)
            chunk, size, sent, marked = [], 0, MARKER_BYTES, False
        chunk.append(entry)
        size += entry.size
        sent += bytes_sent
        marked = marked or needs
    if chunk:
        yield _made(chunk, marked=marked)


def _named(entries: list[Entry], needs_marker: Callable[[Operation], bool]) -> Batch:
    return _made(entries, marked=any(needs_marker(entry.operation) for entry in entries))


def _made(entries: list[Entry], *, marked: bool) -> Batch:
    return Batch(entries, os.urandom(16).hex() if marked or _undoes_itself(entries) else None)


def _undoes_itself(entries: Sequence[Entry]) -> bool:
    """Return whether a repetition is refused because of what the first time did.

    That is an `Update` of a document that a later operation deletes: without a marker it would be
    taken for one that was never carried out.
    """
    updated: set[str] = set()
    for entry in entries:
        if isinstance(entry.operation, Update):
            updated.add(entry.operation.path)
        elif isinstance(entry.operation, Delete) and entry.operation.path in updated:
            return True
    return False
