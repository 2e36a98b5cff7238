"""What the journal's writing thread is given to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from beastmode.stores.operation_codec import EncodedOperation

__all__ = ["Append", "Done", "Note", "Noted", "Settled"]

Done = Callable[[list[int] | None, BaseException | None], object]
"""Called with the sequence numbers, or with None and the error."""

Noted = Callable[[BaseException | None], object]
"""Called with None, or with the error."""


class Append(NamedTuple):
    """Operations to be made durable together."""

    operations: Sequence[EncodedOperation]
    done: Done


class Note(NamedTuple):
    """Something about batches that must be on the disk itself before the caller goes on."""

    sent: tuple[str, Sequence[int]] | None
    """A batch about to be sent, and its records."""
    confirmed: Sequence[str]
    """Batches whose end must not be forgotten any more."""
    done: Noted


@dataclass(slots=True)
class Settled:
    """Answers of the store that are not on disk yet."""

    acknowledged: list[int] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    finished: list[tuple[str, float]] = field(default_factory=list)
    """Batches that need not be sent again, and when their markers may be deleted."""
    forgotten: list[str] = field(default_factory=list)
    """Batches whose markers are gone."""
    unmarked: int = 0
    """How many of the operations would be applied once more if their answer were forgotten."""

    def __len__(self) -> int:
        return (
            len(self.acknowledged) + len(self.rejected) + len(self.finished) + len(self.forgotten)
        )

    @property
    def operations(self) -> int:
        """How many operations were answered."""
        return len(self.acknowledged) + len(self.rejected)

    def put_back(self, older: Settled) -> None:
        """Take `older` in again, in front."""
        self.acknowledged[:0] = older.acknowledged
        self.rejected[:0] = older.rejected
        self.finished[:0] = older.finished
        self.forgotten[:0] = older.forgotten
        self.unmarked += older.unmarked
