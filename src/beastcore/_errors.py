"""Exceptions of the engine, the same for the compiled engine and its pure-Python twin.

    BeastError
    +-- CapacityError          a bounded structure has no room
    |   +-- TableFullError     every slot of a ConnectionTable is taken
    +-- SnapshotError          a file is no whole dump of a Cache (a ValueError too)

Bad arguments raise the built-in `TypeError` or `ValueError`, a missing key `KeyError`.
"""

from __future__ import annotations

__all__ = ["BeastError", "CapacityError", "SnapshotError", "TableFullError"]


class BeastError(Exception):
    """Base class of every exception that beastcore or beastmode defines."""


class CapacityError(BeastError):
    """A bounded structure has no room for what was asked; nothing was changed."""


class TableFullError(CapacityError):
    """Every slot of a `ConnectionTable` is taken; nothing was changed."""


class SnapshotError(BeastError, ValueError):
    """A file is no dump of a `Cache`, is damaged, or is of another version; nothing was loaded."""
