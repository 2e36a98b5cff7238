"""Exceptions of the engine, the same for the compiled engine and its pure-Python twin.

    BeastError
    +-- CapacityError          a bounded structure has no room
        +-- TableFullError     every slot of a ConnectionTable is taken

Bad arguments raise the built-in `TypeError` or `ValueError`, a missing key `KeyError`.
"""

from __future__ import annotations

__all__ = ["BeastError", "CapacityError", "TableFullError"]


class BeastError(Exception):
    """Base class of every exception that beastcore or beastmode defines."""


class CapacityError(BeastError):
    """A bounded structure has no room for what was asked; nothing was changed."""


class TableFullError(CapacityError):
    """Every slot of a `ConnectionTable` is taken; nothing was changed."""
