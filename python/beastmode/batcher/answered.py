"""Documents with an answer of the store that a loss of power could take back from a journal."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from beastmode.batcher.outside import WriteJournal
from beastmode.errors import ClosedError

__all__ = ["Answered"]

_MANY: Final = 10_000


class Answered:
    """Remembers, by journal, of which documents writes were answered that had no marker.

    Until those answers are on the disk itself, the next start may find such a write in the
    journal, and apply it over whatever newer write the store has of its document. Used by the
    flushing thread alone; `forget` by any.
    """

    def __init__(self) -> None:
        self._paths: dict[WriteJournal, set[str]] = {}

    def add(self, journal: WriteJournal, paths: Collection[str]) -> None:
        """Note that writes of these documents, which are in `journal`, were answered."""
        self._paths.setdefault(journal, set()).update(paths)

    def settle(
        self, paths: Collection[str], deadline: float, source: WriteJournal | None = None
    ) -> None:
        """Have the answers about these documents on the disk, before newer writes are sent.

        Those newer writes are in `source`, or in no journal. Costs a sync where there is such an
        answer, which covers all others as well. Raises JournalError where the disk refuses it.
        """
        for journal, answered in list(self._paths.items()):
            if len(answered) < _MANY and (
                answered.isdisjoint(paths)
                # Or the newer write is on the disk too, and comes after the older one.
                or (journal is source and journal.syncs_each)
            ):
                continue
            try:
                if journal.has_unnoted:
                    journal.wait_noted(deadline)
            except ClosedError:
                if journal in self._paths:
                    raise
                continue  # forgotten meanwhile: it was empty, and closing it has synced it
            answered.clear()

    def forget(self, journal: WriteJournal) -> None:
        """Forget a journal that is empty, and about to be closed."""
        self._paths.pop(journal, None)
