"""What both twins of the connection table share: limits, units, argument checks, error texts.

Times inside a table are whole milliseconds since its epoch, in 32 bits. Before they could wrap,
at `REBASE_AT`, the epoch moves forward so that `KEEP` milliseconds of the past remain; what was
older than that then counts as that old.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from beastcore._errors import TableFullError
from beastcore._validate import MAX_IDLE, check_count, check_seconds

__all__ = [
    "DEFAULT_BOUNDS",
    "EXPIRED",
    "KEEP",
    "MAX_CLASS",
    "MAX_CONNECTIONS",
    "MAX_ELAPSED",
    "NOT_CONSTRUCTIBLE",
    "REBASE_AT",
    "SUSPECT",
    "check_bounds",
    "check_class_id",
    "check_idle",
    "check_late_after",
    "check_size",
    "default_late_after",
    "duplicate",
    "foreign_conn",
    "milliseconds",
    "not_a_conn",
    "table_full",
]

SUSPECT = "suspect"
EXPIRED = "expired"
MAX_CONNECTIONS = 2**24
"""Most slots of one table."""
MAX_CLASS = 2**16 - 1
MAX_ELAPSED = 2.0**43
"""Seconds since a table was made at which its clock stops; the product with 1000 is exact."""
REBASE_AT = 2**31
KEEP = 2**30
"""Milliseconds (12.4 days); longer than any timeout plus grace that a table accepts."""
DEFAULT_BOUNDS = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
NOT_CONSTRUCTIBLE = "Conn objects are made by ConnectionTable.add"


def milliseconds(seconds: float) -> int:
    """Return a duration in whole milliseconds, rounded up (but 0.3 s is 300, not 301).

    Only 0 s is 0 ms, which has a meaning of its own.
    """
    return max(math.ceil(seconds * 1000.0 - 0.001), 1 if seconds > 0.0 else 0)


def check_idle(name: str, value: object, *, zero: bool = False) -> float:
    """Return an idle timeout or a grace in seconds."""
    return check_seconds(name, value, zero=zero, maximum=MAX_IDLE)


def default_late_after(idle_timeout: float, grace: float) -> float:
    """Return after how many seconds without a sweep the next one is late, by default.

    Twice the time after which an unanswered connection expires, and at least 60 s, so that
    sweeps every 30 s are never late.
    """
    return max(60.0, 2.0 * (idle_timeout + grace))


def check_late_after(value: object) -> float | None:
    """Return `late_after` in seconds, or None for the default."""
    return None if value is None else check_seconds("late_after", value)


def check_class_id(value: object) -> int:
    """Return a class as an int from 0 to MAX_CLASS."""
    return check_count("class_id", value, minimum=0, maximum=MAX_CLASS)


def check_size(value: object, held: int = 0) -> int:
    """Return `max_connections`, which is not below the number of connections `held`."""
    size = check_count("max_connections", value, maximum=MAX_CONNECTIONS)
    if size < held:
        raise ValueError(
            f"max_connections must be at least {held}, the connections held, got {size}"
        )
    return size


def check_bounds(bounds: Iterable[float]) -> list[float]:
    """Return the bounds of an idle histogram: rising positive numbers of seconds."""
    checked = [check_idle("bounds", bound) for bound in bounds]
    # No generator: CPython 3.12.1 and 3.13.0 crash where there is no memory to make one.
    for low, high in itertools.pairwise(checked):
        if low >= high:
            raise ValueError(f"bounds must rise, got {checked!r}")
    return checked


def not_a_conn(position: int, value: object) -> TypeError:
    """Return the error for an item that is no Conn."""
    return TypeError(f"conns item {position} must be a Conn, got {value!r}")


def foreign_conn(position: int, value: object) -> ValueError:
    """Return the error for a Conn of another table."""
    return ValueError(f"conns item {position} belongs to another table, got {value!r}")


def duplicate(conn_id: object) -> ValueError:
    """Return the error for an id that the table holds already."""
    return ValueError(f"conn_id {conn_id!r} is already in the table")


def table_full(conn_id: object, max_connections: int) -> TableFullError:
    """Return the error for a table without a free slot."""
    return TableFullError(
        f"all {max_connections} connections of the table are taken, conn_id {conn_id!r} was refused"
    )
