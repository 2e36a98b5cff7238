"""Sending a batch: what is noted before, and what is believed after.

The answers of a store to a commit are yes, no, and no answer. After no answer the same commit is
sent again; where twice would not be the same as once it carries a marker (see `markers`), and a
no is believed only after the marker has been looked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from beastmode.batcher.batches import Batch
from beastmode.batcher.committing import REJECTIONS, check_answer
from beastmode.batcher.markers import is_void, marker_path, marker_write
from beastmode.batcher.outside import WriteJournal
from beastmode.errors import BreakerOpen, PreconditionFailed, StoreError, StoreUnavailable
from beastmode.stores.base import Store, deadline_in
from beastmode.stores.documents import Delete, Operation

__all__ = ["Refused", "Sender", "is_doubtful"]

logger = logging.getLogger(__name__)


class Refused(Exception):
    """The store will not take a batch, and has not taken it; `reason` is what it raised."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Sender:
    """Sends batches to `store`, each call at most `deadline_s` seconds long.

    Markers of batches whose attempts all had an answer may be deleted at once, the others after
    `grace_s` seconds: until then an attempt without an answer may still be on its way.
    """

    def __init__(self, store: Store, deadline_s: float, grace_s: float) -> None:
        self.store = store
        self.deadline_s = deadline_s
        self._grace_s = grace_s
        self.markers = self.confirmed = 0

    def send(self, batch: Batch) -> tuple[list[int] | None, int]:
        """Commit a batch; return its versions, None when they are not known, and the greatest.

        Raises `Refused`, or whatever left the outcome open: then the batch has to be sent again
        if it is `fixed`, and may be made anew if it is not.
        """
        if batch.name is None:
            versions = self._send_plain(batch)
            return versions, versions[-1]
        if not batch.noted:
            # An attempt to note it may succeed later, so it is fixed from here on.
            batch.fixed = True
            if batch.source is not None:
                batch.source.note_sent(batch.name, batch.seqs, deadline_in(self.deadline_s))
            batch.noted = True
        before, batch.doubtful = batch.doubtful, True
        operations = batch.operations
        try:
            versions = self._commit([*operations, marker_write(batch.name, operations)])
        except REJECTIONS as error:
            version = self._find(batch, before)
            if version is None:
                raise Refused(error) from error
            self.confirmed += 1
            logger.info("a commit whose answer was lost is in the store: %s", batch.name)
            return None, version
        except StoreError as error:
            batch.doubtful = before or is_doubtful(error)
            raise
        # An earlier attempt without an answer may still arrive: the marker must be there then.
        batch.marker_stays = self._grace_s if before else 0.0
        self.markers += 1
        return versions[:-1], versions[-1]

    def _send_plain(self, batch: Batch) -> list[int]:
        try:
            return self._commit(batch.operations)
        except REJECTIONS as error:
            raise Refused(error) from error

    def _commit(self, operations: list[Operation]) -> list[int]:
        versions = self.store.commit(operations, deadline=deadline_in(self.deadline_s))
        check_answer(versions, operations)
        return versions

    def _find(self, batch: Batch, earlier: bool) -> int | None:
        """Return the marker's version if the store has a batch that it refused, else None.

        None is final: the store will never have it. `earlier` says that an attempt before had no
        answer. That one may still be under way, so the absence of its marker proves nothing until
        a marker of our own has taken the name.
        """
        assert batch.name is not None
        batch.marker_stays = self._grace_s
        if earlier:
            try:
                self._commit([marker_write(batch.name, batch.operations, void=True)])
            except PreconditionFailed:
                pass  # it is there: the batch's, or that of an earlier claim
            else:
                return None
        marker = self.store.get(marker_path(batch.name), deadline=deadline_in(self.deadline_s))
        if marker.exists:
            return None if is_void(marker) else marker.version
        if earlier:
            raise StoreUnavailable(
                f"the marker {marker.path!r} could neither be made nor found; to be tried again"
            )
        batch.marker_stays = None
        return None

    # What the journal is told of a batch. It never waits, and neither do these.

    def acknowledged(self, batch: Batch) -> None:
        """Tell that the store has it."""
        if batch.source is not None and batch.seqs:
            batch.source.acknowledge(batch.seqs, batch.name, _due(batch.marker_stays))

    def rejected(self, batch: Batch, reason: str) -> None:
        """Tell that the store will never have it."""
        if batch.source is None or not batch.seqs:
            return
        if batch.name is not None and batch.marker_stays is None:
            batch.source.reject(batch.seqs, reason)
            batch.source.forget([batch.name])
        else:
            batch.source.reject(batch.seqs, reason, batch.name, _due(batch.marker_stays))

    def released(self, batch: Batch) -> None:
        """Tell that it will never be applied as it is: its operations are free again."""
        if batch.source is None or batch.name is None:
            return
        if batch.marker_stays is None:
            batch.source.forget([batch.name])
        else:
            batch.source.release(batch.name, _due(batch.marker_stays))

    def delete_markers(
        self, names: Mapping[WriteJournal | None, Sequence[str]], deadline: float
    ) -> None:
        """Delete markers of finished batches, once no loss of power can bring those back."""
        for journal, batches in names.items():
            if journal is not None:
                journal.confirm(batches, deadline)
        paths = [marker_path(name) for batches in names.values() for name in batches]
        self.store.commit([Delete(path) for path in paths], deadline=deadline)
        for journal, batches in names.items():
            if journal is not None:
                journal.forget(batches)


def is_doubtful(error: Exception) -> bool:
    """Return whether the store may have a commit that failed so; True unless it says no."""
    return not isinstance(error, BreakerOpen) and bool(vars(error).get("maybe_applied", True))


def _due(delay: float | None) -> float:
    return 0.0 if delay is None else time.time() + delay
