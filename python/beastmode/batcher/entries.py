"""What a batcher passes from hand to hand: calls, their operations, and entries for the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from beastmode.batcher.outside import WriteJournal
from beastmode.batcher.waiting import Waiter
from beastmode.stores.documents import Operation, combine

__all__ = ["Entry", "Part", "WriteCall", "fold_entries", "merge_entries", "resolve"]


_MERGED_BYTES: Final = 250_000
"""As large may one operation be that is made of several.

Were it refused for its size, all of them would be, also those that the store takes alone. In the
journal's encoding a document has no less than a quarter of the bytes that Firestore counts, and
it takes 1 MiB.
"""


class WriteCall:
    """One call of `write`: its operations, and who waits for what became of them."""

    __slots__ = (
        "after",
        "deadline",
        "error",
        "known",
        "left",
        "operations",
        "sizes",
        "stage",
        "versions",
        "waiter",
    )

    def __init__(
        self, operations: Sequence[Operation], sizes: Sequence[int], deadline: float
    ) -> None:
        self.operations = operations
        self.sizes = sizes
        self.deadline = deadline
        self.waiter: Waiter | None = None
        self.stage = "waiting for room"
        self.after = 0
        self.versions = [0] * len(operations)
        self.known = True
        self.left = len(operations)
        self.error: BaseException | None = None

    @property
    def paths(self) -> set[str]:
        """The documents it changes."""
        return {operation.path for operation in self.operations}


def resolve(call: WriteCall, error: BaseException | None) -> None:
    """Give a call its answer, if it still waits for one."""
    waiter, call.waiter = call.waiter, None
    call.stage = "done"
    if waiter is not None:
        if error is None:
            waiter.resolve(call.versions if call.known else None)
        else:
            waiter.resolve(error=error)


class Part:
    """One accepted operation."""

    __slots__ = ("accepted_at", "call", "index", "number", "operation", "seq", "size")

    def __init__(
        self,
        operation: Operation,
        seq: int | None,
        size: int,
        *,
        call: WriteCall | None = None,
        index: int = 0,
    ) -> None:
        self.operation = operation
        self.seq = seq
        self.size = size
        self.call = call
        self.index = index
        self.number = 0
        self.accepted_at = 0.0


class Entry:
    """One operation for the store, which stands for one or more accepted ones.

    `source` is the journal that all of them are in, None for none.
    """

    __slots__ = ("operation", "parts", "size", "source")

    def __init__(
        self,
        operation: Operation,
        parts: list[Part],
        size: int,
        source: WriteJournal | None = None,
    ) -> None:
        self.operation = operation
        self.parts = parts
        self.size = size
        self.source = source


def merge_entries(older: Entry, newer: Entry) -> Entry | None:
    """Return one entry for both, or None; `older` is given up. Amortised O(parts of `newer`)."""
    if older.source is not newer.source:
        return None
    operation = combine(older.operation, newer.operation)
    if operation is None:
        return None
    if operation is not newer.operation and older.size + newer.size > _MERGED_BYTES:
        return None
    older.parts.extend(newer.parts)
    if operation is newer.operation:
        newer.parts = older.parts
        return newer  # the same object, so the buffer takes its size alone
    return Entry(operation, older.parts, older.size + newer.size, older.source)


def fold_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Merge what can be merged of recovered entries, as the buffer did when they came."""
    last: dict[str, Entry] = {}
    order: dict[int, Entry] = {}
    for entry in entries:
        path = entry.operation.path
        held = last.get(path)
        merged = None if held is None else merge_entries(held, entry)
        if merged is None:
            merged = entry
        order[id(merged.parts)] = merged  # a merged entry has the list of the older one
        last[path] = merged
    return list(order.values())
