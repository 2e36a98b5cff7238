"""What a journal tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["JournalReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalReport:
    """Counters of a `Journal` since it was opened, and its present content."""

    path: str
    """The journal's file."""
    durability: str
    """"process" or "power"; see docs/durability.md."""
    records: int
    """Operations in it that are neither acknowledged nor rejected."""
    dead_letters: int
    """Operations that the store rejected for good, kept for inspection."""
    corrupt: int
    """Damaged records in the quarantine table, those of earlier runs included."""
    bytes: int
    """Size of the file and its write-ahead log."""
    appended: int
    """Operations made durable."""
    acknowledged: int
    """Operations removed because the store has them."""
    transactions: int
    """Transactions committed; appends that arrive together share one."""
    failures: int
    """Transactions that failed, for example because the disk was full."""
