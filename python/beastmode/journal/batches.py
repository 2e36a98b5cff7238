"""The journal's table of commits that carry a marker: noted before they are sent.

A row says which records were sent together under which marker. While its state is "sent" the
store may have that commit or not, and only the same operations may be sent under that marker.
Afterwards ("done") it keeps the marker's name until the marker has been deleted; "confirmed" says
that the end of the batch is on the disk itself, so that no loss of power brings it back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

__all__ = ["BatchTable"]

logger = logging.getLogger(__name__)

_SENT: Final = 1
_DONE: Final = 2
_CONFIRMED: Final = 3
_DAMAGED: Final = 9
_NAME: Final = re.compile(rb"[0-9a-f]{8,64}")
_MAX_SEQ: Final = 2**63 - 1
_SHAPE: Final = "id TEXT PRIMARY KEY, state INTEGER, due REAL, members BLOB, checksum BLOB"


class BatchTable:
    """The rows of one journal. The caller holds the journal's lock and a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute
        self._run_many = connection.executemany
        self._run(f"CREATE TABLE IF NOT EXISTS batches({_SHAPE})")
        self.count = self.damaged = 0
        self.recount()

    def note_sent(self, batch: str, seqs: Sequence[int]) -> int:
        """Note that the records `seqs` are about to be sent as `batch`; return the rows added."""
        members = json.dumps(_ranges(seqs)).encode()
        row = (_SENT, members, _checksum(batch.encode(), members), batch)
        again = "UPDATE batches SET state = ?, due = 0, members = ?, checksum = ? WHERE id = ?"
        if self._run(again, row).rowcount:
            return 0
        return self._run(
            "INSERT INTO batches(state, due, members, checksum, id) VALUES(?, 0, ?, ?, ?)", row
        ).rowcount

    def finish(self, batches: Iterable[tuple[str, float]]) -> None:
        """Note that these need not be sent again; their markers may go from those times on."""
        self._run_many(
            "UPDATE batches SET state = ?, due = ?, members = x'' WHERE id = ?",
            [(_DONE, due, batch) for batch, due in batches],
        )

    def confirm(self, batches: Iterable[str]) -> None:
        """Write to the rows of finished batches, so that a synced transaction has content."""
        self._run_many(
            "UPDATE batches SET state = ? WHERE id = ? AND state = ?",
            [(_CONFIRMED, batch, _DONE) for batch in batches],
        )

    def forget(self, batches: Iterable[str]) -> int:
        """Remove the rows of batches whose markers are gone; return how many there were."""
        return self._run_many(
            f"DELETE FROM batches WHERE id = ? AND state != {_DAMAGED}",  # noqa: S608
            [(batch,) for batch in batches],
        ).rowcount

    def recount(self) -> None:
        """Count the rows: O(rows), so only when it is opened and when damage is found.

        In between who ends a transaction adds to `count` what the calls in it returned.
        """
        total, self.damaged = self._run(
            f"SELECT count(*), count(*) FILTER (WHERE state = {_DAMAGED}) FROM batches"  # noqa: S608
        ).fetchone()
        self.count = total - self.damaged

    def read(self) -> tuple[list[tuple[str, list[int]]], list[tuple[str, float]], list[str]]:
        """Return the batches sent, the markers to be deleted with their times, and what is wrong.

        A damaged row is kept, and is in the last list alone.
        """
        sent: list[tuple[str, list[int]]] = []
        markers: list[tuple[str, float]] = []
        damaged: list[str] = []
        rows = self._run("SELECT rowid, id, state, due, members, checksum FROM batches").fetchall()
        for number, name, state, due, members, checksum in rows:
            if state == _DAMAGED:
                continue
            if type(name) is not bytes or not _NAME.fullmatch(name):
                damaged.append(f"row {number}: {name!r:.80} is no name of a batch")
                self._run("UPDATE batches SET state = ? WHERE rowid = ?", (_DAMAGED, number))
                continue
            if state in (_DONE, _CONFIRMED) and type(due) is float:
                markers.append((name.decode(), due))
                continue
            seqs = None
            if state == _SENT and checksum == _checksum(name, members):
                seqs = _members(members)
            if seqs is None:
                damaged.append(f"batch {name.decode()}: its row cannot be read")
                self._run("UPDATE batches SET state = ? WHERE rowid = ?", (_DAMAGED, number))
            else:
                sent.append((name.decode(), seqs))
        sent.sort(key=lambda item: item[1][:1])
        return sent, markers, damaged


def _ranges(seqs: Sequence[int]) -> list[list[int]]:
    """Return sorted numbers as [first, last] pairs: those of a batch are mostly neighbours."""
    ranges: list[list[int]] = []
    for seq in sorted(seqs):
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    return ranges


def _members(text: Any) -> list[int] | None:
    """Return the numbers in the text of `_ranges`; None for anything else."""
    try:
        ranges = json.loads(text)
        seqs: list[int] = []
        last = 0
        for first, end in ranges:
            if type(first) is not int or type(end) is not int or not last < first <= end:
                return None
            if end > _MAX_SEQ or len(seqs) + end - first > 10_000_000:
                return None
            seqs.extend(range(first, end + 1))
            last = end
    except (ValueError, TypeError, RecursionError):
        return None
    return seqs


def _checksum(name: bytes, members: Any) -> bytes:
    if type(members) is not bytes:
        return b""
    return hashlib.blake2b(name + b"\0" + members, digest_size=8).digest()
