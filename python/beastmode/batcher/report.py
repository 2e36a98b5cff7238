"""What a batcher tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatcherReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherReport:
    """Counters of a `BeastModeBatcher` since it was made, and its present content."""

    mode: str
    """"write-behind" or "write-through"."""
    running: bool
    """Whether the flushing thread is alive."""
    pending: int
    """Accepted operations that the store does not have yet."""
    pending_bytes: int
    """Their size, those on the way into the journal included."""
    oldest_age_s: float
    """Age of the oldest of them; 0 when there is none."""
    accepted: int
    """Operations accepted, those replayed from the journal included."""
    replayed: int
    """Operations found in the journal at the start."""
    coalesced: int
    """Operations that were merged into an earlier one of the same document."""
    flushes: int
    """Batches taken from the buffer."""
    commits: int
    """Successful commits of the store: calls, not operations."""
    committed: int
    """Accepted operations that the store has, merged ones included."""
    written: int
    """Operations that the store carried out: `committed` less those that were merged away."""
    markers: int
    """Commits that carried a marker: each is one more write, and later one deletion."""
    confirmed: int
    """Commits without an answer that the store was found to have, by their marker."""
    retries: int
    """Commits to be repeated, because the store was unavailable or late, or failed for another
    reason that is no fault of their operations."""
    failures_in_row: int
    """Failures since the last commit that succeeded."""
    failed: int
    """Operations that the store rejected for good, or did not take when it had to be at once."""
    errors: int
    """Exceptions of callbacks, and surprises of the flushing thread."""
    last_error: str
    """The latest failure of a commit; empty once a commit succeeded."""
    journal_bytes: int
    """Size of the journal on disk; 0 without one."""
    journal_records: int
    """Operations in the journal."""
    journal_dead_letters: int
    """Rejected operations that the journal keeps."""
    journal_corrupt: int
    """Damaged records in the journal's quarantine."""
