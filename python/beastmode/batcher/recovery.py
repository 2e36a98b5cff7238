"""Taking up what journals hold of runs that have ended: our own, and dead workers'."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from beastmode.batcher.batches import Batch
from beastmode.batcher.entries import Entry, Part, fold_entries
from beastmode.batcher.outside import WriteJournal
from beastmode.stores.documents import Delete, Operation
from beastmode.stores.operation_codec import encode_operation

__all__ = ["Recovered", "recover"]


@dataclass(slots=True)
class Recovered:
    """What has to be done once more, in order: first `batches`, then `entries`."""

    batches: list[Batch] = field(default_factory=list)
    """Batches up to the last one that may be in the store already."""
    entries: list[Entry] = field(default_factory=list)
    """What comes after, and was never sent."""
    markers: list[tuple[str, WriteJournal, float]] = field(default_factory=list)
    """Names and journals of finished batches, and the seconds after which their markers may go."""
    operations: list[Operation] = field(default_factory=list)
    """All operations, as they were accepted."""


def recover(
    journals: Sequence[WriteJournal],
    split: Callable[[list[Entry]], list[Batch]],
    grace_s: float,
) -> Recovered:
    """Read `journals`, the oldest first. Raises JournalError for one that cannot be read.

    Operations noted as sent together stay together, under their name: the store may have them.
    What an older journal holds beside goes before what a newer one has sent. `split` makes batches.
    """
    found = Recovered()
    for journal in journals:
        records = dict(journal.recover())
        sent, markers = journal.recover_batches()
        found.operations += records.values()
        if sent and found.entries:
            found.batches += split(found.entries)
            found.entries = []
        for name, seqs in sent:
            members = {seq: records.pop(seq) for seq in seqs if seq in records}
            if not members:  # all of it was answered, and the end of the batch was not noted
                markers.append((name, time.time() + grace_s))
                journal.release(name, time.time() + grace_s)
                continue
            batch = Batch(fold_entries(_entries(members, journal)), name)
            batch.fixed = batch.noted = batch.doubtful = True
            found.batches.append(batch)
        found.entries += fold_entries(_without_deleted(_entries(records, journal)))
        now = time.time()
        found.markers += [
            (name, journal, min(max(0.0, due - now), grace_s)) for name, due in markers
        ]
    return found


def _entries(records: dict[int, Operation], journal: WriteJournal) -> list[Entry]:
    entries: list[Entry] = []
    for seq, operation in records.items():
        size = encode_operation(operation).size
        entries.append(Entry(operation, [Part(operation, seq, size)], size, journal))
    return entries


def _without_deleted(entries: list[Entry]) -> list[Entry]:
    """Have what stands before the deletion of its document be that deletion as well.

    The store may have all of them already: then an `Update` among them would be refused now, for
    the document is gone, and be told as rejected although it was carried out.
    """
    deletion: dict[str, int] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry.operation, Delete):
            deletion[entry.operation.path] = index
    for index, entry in enumerate(entries):
        last = deletion.get(entry.operation.path, -1)
        if index < last:
            entry.operation = entries[last].operation
    return entries
