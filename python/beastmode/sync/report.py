"""What real-time sync has done: `SyncReport`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SyncReport"]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a `BeastModeRealTimeSync` has done since it was made."""

    active: bool
    """Whether changes are coming in."""
    changes: int
    """Changes that were carried into the cache."""
    failures: int
    """How often the store was lost: watches or streams that ended, targets that were refused."""
    last_error: str
    """Why the last one did; empty if none did."""
    doubts: int = 0
    """How often something that is listened to was doubted, failures and new beginnings."""
    documents: int = 0
    """Documents that are listened to one by one; 0 where the store is followed as a whole."""
    collections: int = 0
    """Collections and queries that are listened to."""
    current: int = 0
    """How many of `documents` and `collections` are up to date at the moment."""
    not_followed: int = 0
    """Documents that were not listened to because listen_max_documents was reached."""
    forgotten: int = 0
    """How often documents were cached faster than they could be listened to."""
    callbacks: int = 0
    """Calls of subscribers' callbacks."""
    callback_errors: int = 0
    """How many of them raised."""
    callbacks_merged: int = 0
    """Changes that were not told because a newer one of the same document was."""
    callbacks_missed: int = 0
    """Changes that were not told because too many were waiting."""
