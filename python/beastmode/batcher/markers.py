"""Markers: documents that make a commit count once.

Sending an operation with a transform twice is not the same as sending it once. A batch that holds
one gets a name, and one more write in the same atomic commit: the document `_bm/<name>`, which
must not exist before. So the store takes the batch at most once, however often it is sent.

Plain operations need one as well where a commit can outlive its deadline: the network may hold an
attempt up until newer writes of the same documents are in the store, and it would undo them. With
a marker it is refused: nothing behind a batch is sent before its outcome is settled, and from then
on its marker is there, put by the batch itself or by us. A marker whose state is "void" was written
alone, to make sure that the store never takes the batch.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from beastmode.batcher.outside import WriteJournal
from beastmode.stores.documents import Document, Operation, Precondition, Set, has_transforms

__all__ = [
    "MARKERS",
    "MARKER_BYTES",
    "MarkerBin",
    "MarkerMode",
    "is_void",
    "marker_path",
    "marker_rule",
    "marker_write",
]

MarkerMode = Literal["auto", "transforms", "always"]

MARKERS: Final = "_bm"
"""The collection of the markers."""

MARKER_BYTES: Final = 512
"""What a marker takes of a commit, generously."""

_Item = tuple[float, int, str, WriteJournal | None]
_LINGER_S: Final = 1.0
_MANY: Final = 100


def marker_rule(mode: MarkerMode, store: object) -> Callable[[Operation], bool]:
    """Return what tells whether a batch with that operation needs a marker.

    A store with `commit_limits` is a server: what it was sent may arrive there at any time.
    """
    if mode == "always" or (mode == "auto" and getattr(store, "commit_limits", None) is not None):
        return lambda _operation: True
    return has_transforms


def marker_path(name: str) -> str:
    """Return the path of a batch's marker."""
    return f"{MARKERS}/{name}"


def marker_write(name: str, operations: Sequence[Operation], *, void: bool = False) -> Set:
    """Return the write that makes a batch's marker, or (void) makes the batch impossible."""
    fields = {
        "state": "void" if void else "sent",
        "operations": len(operations),
        "at": datetime.fromtimestamp(time.time(), UTC),
    }
    return Set(marker_path(name), fields, Precondition(exists=False))


def is_void(marker: Document) -> bool:
    """Return whether a marker that exists says that its batch will never be applied."""
    return marker.data is not None and marker.data.get("state") == "void"


class MarkerBin:
    """Markers to be deleted, each from its time on. Called with the batcher's lock held.

    `timer` is a clock in seconds. Deletions wait up to a second for each other.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self._later: list[_Item] = []  # a heap
        self._due: deque[_Item] = deque()  # in the order of their times
        self._count = 0

    def __len__(self) -> int:
        return len(self._later) + len(self._due)

    def add(self, name: str, journal: WriteJournal | None, delay_s: float) -> None:
        """Have the marker of batch `name`, noted in `journal`, deleted in `delay_s` seconds.

        O(log n).
        """
        self._count += 1
        heapq.heappush(self._later, (self._timer() + delay_s, self._count, name, journal))

    def due_at(self) -> float | None:
        """Return when `take` is worth calling; None when there is nothing.

        Each marker costs O(log n) once, however often it is asked.
        """
        self._sort()
        if len(self._due) >= _MANY:
            return self._due[0][0]  # of now: who asks has read the clock before
        if self._due:
            return self._due[0][0] + _LINGER_S
        return self._later[0][0] + _LINGER_S if self._later else None

    def has_due(self) -> bool:
        """Whether `take` has something to give."""
        self._sort()
        return bool(self._due)

    def take(self, limit: int) -> dict[WriteJournal | None, list[str]]:
        """Take markers whose time has come, at most `limit`, by the journals of their batches."""
        self._sort()
        taken: dict[WriteJournal | None, list[str]] = {}
        for _ in range(min(limit, len(self._due))):
            _, _, name, journal = self._due.popleft()
            taken.setdefault(journal, []).append(name)
        return taken

    def _sort(self) -> None:
        now = self._timer()
        while self._later and self._later[0][0] <= now:
            self._due.append(heapq.heappop(self._later))
