"""Who is connected: a bounded pool of connections from which silent ones are removed.

`BeastModeConnectionPool` adds to `beastcore.ConnectionTable` what an application needs around it:
safety between threads, a callback to close what a cleanup has removed, live settings, a report.
It starts nothing by itself; whoever owns it calls `cleanup_zombies()` at intervals.
"""

from __future__ import annotations

import collections
import logging
import sys
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import FunctionType, TracebackType
from typing import Any, Self

from beastcore import Conn, ConnectionTable
from beastmode.config import SETTINGS
from beastmode.errors import ClosedError, ConfigError

__all__ = ["BeastModeConnectionPool", "ConnectionReport"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """The state of a pool, and its counters since construction."""

    active: int
    """Connections held now, zombies that no cleanup has met yet included."""
    max_connections: int
    idle_timeout_s: float
    added: int
    removed: int
    """Removed by `remove_connection` or `close`."""
    zombies: int
    """Removed by `cleanup_zombies`."""
    rejected: int
    """Refused because the pool was full."""
    late_cleanups: int
    """Cleanups that came so late that every connection was given more time once."""
    callback_errors: int
    """Calls of `on_zombie` that raised."""

    @property
    def utilisation(self) -> float | None:
        """Active / maximum; None before the first connection was added."""
        return self.active / self.max_connections if self.added else None


class BeastModeConnectionPool:
    """At most `max_connections` connections; one that is silent for `idle_timeout_s` is a zombie.

    `on_zombie(conn_id, payload)` is called for each removed zombie, from the thread that cleans
    up and with no lock held, so it may call the pool; what it raises is counted, logged, handed
    to `on_error(error)` and stops nothing. `timer` returns seconds as a float and never runs
    backwards (default: a monotonic clock).

    Every method may be called from any thread and never waits for I/O. After `close()` every
    method but `get_stats` and `close` raises ClosedError.
    """

    def __init__(
        self,
        max_connections: int = 100_000,
        idle_timeout_s: float = 30.0,
        *,
        on_zombie: Callable[[Hashable, Any], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
        timer: Callable[[], float] | None = None,
    ) -> None:
        for name, hook in (("on_zombie", on_zombie), ("on_error", on_error)):
            if hook is not None and not callable(hook):
                raise TypeError(f"{name} must be callable or None, got {hook!r}")
        self._table: ConnectionTable[Hashable, Any] = ConnectionTable(
            _checked("max_connections", max_connections),
            _checked("idle_timeout_s", idle_timeout_s),
            grace=0,
            timer=timer,
        )
        self._on_zombie = on_zombie
        self._on_error = on_error
        # The pure-Python table serves one thread at a time. Re-entrant, because an id's __eq__
        # may call the pool.
        self._lock = threading.RLock()
        self.touch: Callable[[Hashable], bool] = (
            self._table.update_activity if _is_atomic(self._table) else self.update_activity
        )
        """As `update_activity`, for hot paths: after `close()` it may return False instead of
        raising."""
        # Zombies whose on_zombie is due; one that an interrupt left is told by the next cleanup.
        self._untold: collections.deque[tuple[Hashable, Any]] = collections.deque()
        self._callback_errors = 0
        self._closed = False

    def add_connection(
        self, conn_id: Hashable, user: Hashable = None, *, payload: Any = None
    ) -> Conn[Hashable, Any]:
        """Add a connection, active now, and return its handle. O(1).

        `payload` is handed to `on_zombie`, usually what to close. The handle's `touch()` is the
        cheapest way to note activity. ValueError when `conn_id` is connected already,
        TableFullError when the pool is full, TypeError when an id cannot be hashed.
        """
        with self._lock:
            self._require_open()
            return self._table.add(conn_id, payload, user=user)

    def remove_connection(self, conn_id: Hashable) -> bool:
        """Remove a connection; return whether it was there. O(1)."""
        with self._lock:
            self._require_open()
            return self._table.remove(conn_id)

    def update_activity(self, conn_id: Hashable) -> bool:
        """Note a heartbeat; return False when there is no such connection (any more). O(1)."""
        with self._lock:
            self._require_open()
            return self._table.update_activity(conn_id)

    def get_connection(self, conn_id: Hashable) -> Conn[Hashable, Any] | None:
        """Return the handle of a connection, or None. Notes no activity. O(1)."""
        with self._lock:
            self._require_open()
            return self._table.get(conn_id)

    def count_of(self, user: Hashable) -> int:
        """Return how many connections `user` has. O(1)."""
        with self._lock:
            self._require_open()
            return self._table.count(user=user) if user is not None else 0

    def cleanup_zombies(self, limit: int | None = None) -> int:
        """Remove connections that have been silent too long; return how many.

        At most `limit` of them (None: all); the next call goes on where this one stopped. A
        cleanup much later than usual (the process was suspended) first gives everyone more time
        once, because heartbeats may be waiting unread. O(connections), a fast scan.
        """
        with self._lock:
            self._require_open()
            removed = self._table.sweep(limit)
            self._untold.extend((conn_id, conn.payload) for conn_id, conn, _ in removed)
        while self._untold:
            try:
                zombie = self._untold.popleft()
            except IndexError:  # another thread took the last one
                break
            self._tell(*zombie)
        return len(removed)

    def configure(
        self, *, max_connections: int | None = None, idle_timeout_s: float | None = None
    ) -> None:
        """Change what is given, everything or nothing.

        ConfigError for a value that is not allowed, and for fewer connections than are held:
        none is dropped for it.
        """
        size = None if max_connections is None else _checked("max_connections", max_connections)
        idle = None if idle_timeout_s is None else _checked("idle_timeout_s", idle_timeout_s)
        with self._lock:
            self._require_open()
            if size is not None:
                held = len(self._table)
                if size < held:
                    raise ConfigError(
                        f"max_connections must be at least {held:,}, the connections held now; "
                        f"got {size:,}"
                    )
                self._table.resize(size)
            if idle is not None:
                self._table.idle_timeout = idle

    def get_stats(self) -> ConnectionReport:
        """Return the state and the counters; after `close()` too."""
        with self._lock:
            stats = self._table.stats()
            return ConnectionReport(
                active=stats.active,
                max_connections=stats.max_connections,
                idle_timeout_s=self._table.idle_timeout,
                added=stats.added,
                removed=stats.removed,
                zombies=stats.expired,
                rejected=stats.rejected,
                late_cleanups=stats.late_sweeps,
                callback_errors=self._callback_errors,
            )

    def close(self) -> None:
        """Remove every connection, without calling `on_zombie`. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._table.clear()

    def __len__(self) -> int:
        with self._lock:
            self._require_open()
            return len(self._table)

    def __contains__(self, conn_id: Hashable) -> bool:
        with self._lock:
            self._require_open()
            return conn_id in self._table

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the connection pool is closed")

    def _tell(self, conn_id: Hashable, payload: Any) -> None:
        if self._on_zombie is None:
            return
        try:
            self._on_zombie(conn_id, payload)
        except Exception as error:  # noqa: BLE001 - the application's; the other zombies go too
            with self._lock:
                self._callback_errors += 1
            _log.warning("on_zombie failed for connection %r", conn_id, exc_info=True)
            if self._on_error is None:
                return
            try:
                self._on_error(error)
            except Exception:  # noqa: BLE001 - the last resort, and it is logged
                _log.exception("on_error raised")


def _is_atomic(table: ConnectionTable[Hashable, Any]) -> bool:
    """Return whether one call of `table` is atomic: compiled, and under the GIL."""
    is_pure = isinstance(type(table).update_activity, FunctionType)
    is_gil_enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return not is_pure and is_gil_enabled()


def _checked(name: str, value: object) -> Any:
    return SETTINGS[name].check(value, "an argument")
