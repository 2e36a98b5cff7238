"""The write journal: acknowledged writes that the store does not have yet, safe on disk.

`Journal` is one SQLite file in WAL mode that belongs to one process at a time; in a
`JournalDirectory` each of several processes has its own, and adopts those of the dead. What
survives what, and when a write counts as acknowledged, is in docs/durability.md.
"""

from __future__ import annotations

from beastmode.journal.directory import JournalDirectory
from beastmode.journal.records import DeadLetter
from beastmode.journal.report import JournalReport
from beastmode.journal.writer import Durability, Journal

__all__ = ["DeadLetter", "Durability", "Journal", "JournalDirectory", "JournalReport"]
