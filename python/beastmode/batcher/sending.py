"""Sending a batch: what is noted before, and what is believed after.

The answers of a store to a commit are yes, no, and no answer. After no answer the same commit is
sent again; where twice would not be the same as once it carries a marker (see `markers`), and a
no is believed only after the marker has been looked for.

A commit of several operations that had no answer at its deadline (StoreTimeout) may be too slow
for it, and would be at each repetition. It is halved, but not before its outcome is settled:

- With a marker, that attempt may still arrive, before or after the halves: both would count. So
  our own marker takes the name first, which is one small write. Taken: the attempt will find it
  and fail for ever, so the halves are sent, each under a new name. Not taken because the marker
  is there: the attempt was carried out, and nothing is sent. No answer: asked again; until there
  is one, nothing of the batch and nothing behind it is sent.
- Without a marker its operations are plain. They go back into the buffer, in front, and leave it
  in smaller batches: all of them, in order, which leads to the same documents whether the attempt
  was carried out or not. Should it be carried out *after* them, it would undo newer writes: a
  store where a commit can outlive its deadline needs markers for every commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from beastmode.batcher.answered import Answered
from beastmode.batcher.batches import Batch
from beastmode.batcher.committing import REJECTIONS, check_answer
from beastmode.batcher.markers import is_void, marker_path, marker_write
from beastmode.batcher.outside import WriteJournal
from beastmode.batcher.pace import Pace
from beastmode.errors import (
    BreakerOpen,
    PreconditionFailed,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores.base import Store, deadline_in
from beastmode.stores.documents import Delete, Document, Operation

__all__ = ["Refused", "Sender", "Voided", "is_doubtful"]

logger = logging.getLogger(__name__)


class Refused(Exception):
    """The store will not take a batch, and has not taken it; `reason` is what it raised."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Voided(Exception):
    """The store will never have a batch under its name; its operations are to be sent anew."""


class Sender:
    """Sends batches to `store`, each call at most `deadline_s` seconds long.

    `pace` learns how large they may be; `timer` (seconds) tells how long they take. Markers of
    batches whose attempts all had an answer may be deleted at once, the others after `grace_s`
    seconds: until then an attempt without an answer may still be on its way.
    """

    def __init__(
        self,
        store: Store,
        deadline_s: float,
        grace_s: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.deadline_s = deadline_s
        self.pace = Pace(deadline_s)
        self.answered = Answered()
        self._grace_s = grace_s
        self._timer = timer
        self.markers = self.confirmed = 0

    def send(self, batch: Batch) -> tuple[list[int] | None, int]:
        """Commit a batch; return its versions, None when they are not known, and the greatest.

        Raises `Refused`, `Voided`, or whatever left the outcome open: then the batch has to be sent
        again if it is `fixed`, and may be made anew if it is not.
        """
        if batch.late:
            return None, self._settle_late(batch)
        if batch.name is None:
            versions = self._send_plain(batch)
            return versions, versions[-1]
        if not batch.noted:
            # An attempt to note it may succeed later, so it is fixed from here on.
            batch.fixed = True
            if batch.source is not None:
                batch.source.note_sent(batch.name, batch.seqs, deadline_in(self.deadline_s))
            self._settle(batch)
            batch.noted = True  # not before: a repetition has to settle them as well
        before, batch.doubtful = batch.doubtful, True
        operations = batch.operations
        try:
            versions = self._timed([*operations, marker_write(batch.name, operations)], batch)
        except REJECTIONS as error:
            marker = self._marker(batch, claim=before)
            if marker is None:
                raise Refused(error) from error
            return None, self._confirmed(marker)
        except StoreError as error:
            batch.doubtful = before or is_doubtful(error)
            batch.late = isinstance(error, StoreTimeout) and len(operations) > 1
            raise
        # An earlier attempt without an answer may still arrive: the marker must be there then.
        batch.marker_stays = self._grace_s if before else 0.0
        self.markers += 1
        return versions[:-1], versions[-1]

    def _send_plain(self, batch: Batch) -> list[int]:
        self._settle(batch)
        try:
            return self._timed(batch.operations, batch)
        except REJECTIONS as error:
            raise Refused(error) from error

    def _settle(self, batch: Batch) -> None:
        self.answered.settle(batch.paths, deadline_in(self.deadline_s), batch.source)

    def _timed(self, operations: list[Operation], batch: Batch) -> list[int]:
        began = self._timer()
        try:
            versions = self._commit(operations)
        except StoreTimeout:
            self.pace.late(len(batch.entries))
            raise
        self.pace.answered(len(batch.entries), self._timer() - began)
        return versions

    def _commit(self, operations: list[Operation]) -> list[int]:
        versions = self.store.commit(operations, deadline=deadline_in(self.deadline_s))
        check_answer(versions, operations)
        return versions

    def _settle_late(self, batch: Batch) -> int:
        """Return the version of a batch that was too slow; `Voided` if the store has it not."""
        marker = self._marker(batch, claim=True)
        if marker is None:
            raise Voided
        return self._confirmed(marker)

    def _confirmed(self, marker: Document) -> int:
        """Return the version of the commit that made this marker; `Voided` if we made it."""
        if is_void(marker):
            raise Voided
        self.confirmed += 1
        logger.info("a commit whose answer was lost is in the store: %s", marker.path)
        return marker.version

    def _marker(self, batch: Batch, *, claim: bool) -> Document | None:
        """Return the marker of a batch; None where no attempt has made it and none ever will.

        `claim` says that an attempt had no answer. That one may still be under way, so the absence
        of its marker proves nothing until a marker of our own has taken the name.
        """
        assert batch.name is not None
        batch.marker_stays = self._grace_s
        if claim:
            try:
                self._commit([marker_write(batch.name, batch.operations, void=True)])
            except PreconditionFailed:
                pass  # it is there: the batch's, or that of an earlier claim
            else:
                return None
        marker = self.store.get(marker_path(batch.name), deadline=deadline_in(self.deadline_s))
        if marker.exists:
            return marker
        if claim:
            raise StoreUnavailable(
                f"the marker {marker.path!r} could neither be made nor found; to be tried again"
            )
        batch.marker_stays = None
        return None

    # What the journal is told of a batch. It never waits, and neither do these.

    def acknowledged(self, batch: Batch) -> None:
        """Tell that the store has it."""
        if batch.source is not None and batch.seqs:
            if batch.name is None:
                self.answered.add(batch.source, batch.paths)
            batch.source.acknowledge(batch.seqs, batch.name, _due(batch.marker_stays))

    def rejected(self, batch: Batch, reason: str) -> None:
        """Tell that the store will never have it."""
        if batch.source is None or not batch.seqs:
            return
        self.answered.add(batch.source, batch.paths)
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
