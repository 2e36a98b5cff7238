"""`ConnectionTable` in pure Python: who is connected, and since when each has been silent.

Structure: every connection is an `_Entry` in a slot of a list; freed slots are reused last in,
first out. A `Conn` is a handle to an entry, made when it is asked for. Ids and users are found
through `Chains`. There is no recency list: a sweep scans the slots in order, from where the last
one stopped.

Numbered invariants, verified by `_check()`:

1. Every living connection stands in its slot and is found by its id; all other slots are free,
   each once on the free stack.
2. The number held is `added - removed - expired`, at most `max_connections`.
3. Times lie between 0 and the table's present time, in milliseconds since its epoch, below 2**31.
4. The counts per user and per class are those of the connections held.
5. The cursor is the number of a slot, or 0.
"""
# ruff: noqa: SLF001 - a handle and its table know each other

from __future__ import annotations

import bisect
import heapq
import math
import time
import types
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, NoReturn, TypeVar, final

from beastcore._idle import (
    DEFAULT_BOUNDS,
    EXPIRED,
    KEEP,
    MAX_ELAPSED,
    NOT_CONSTRUCTIBLE,
    REBASE_AT,
    SUSPECT,
    check_bounds,
    check_class_id,
    check_idle,
    check_late_after,
    check_size,
    default_late_after,
    duplicate,
    foreign_conn,
    milliseconds,
    not_a_conn,
    table_full,
)
from beastcore._pure.chains import Chains
from beastcore._types import ConnInfo, TableStats
from beastcore._validate import check_callable, check_count, check_time

__all__ = ["Conn", "ConnectionTable"]

Id = TypeVar("Id", bound=Hashable)
Payload = TypeVar("Payload")


class _User:
    """One user with connections, and how many."""

    __slots__ = ("count", "hash", "key")

    def __init__(self, key: Any, key_hash: int) -> None:
        self.key = key
        self.hash = key_hash
        self.count = 0


class _Entry:
    """One connection, alive or gone. Times are milliseconds since the table's epoch."""

    __slots__ = (
        "alive",
        "class_id",
        "created",
        "hash",
        "key",
        "last",
        "owner",
        "payload",
        "pinged",
        "slot",
    )

    def __init__(
        self, key: Any, key_hash: int, payload: Any, owner: _User | None, class_id: int, now: int
    ) -> None:
        self.key = key
        self.hash = key_hash
        self.payload = payload
        self.owner = owner
        self.class_id = class_id
        self.last = self.created = now
        self.pinged = 0
        self.slot = 0
        self.alive = False


@final
class Conn(Generic[Id, Payload]):
    """Handle to one connection of a `ConnectionTable`, made by its `add`.

    It stays valid as an object after the connection is gone: then `alive` is False, `touch()`
    does nothing and returns False, `idle` is None, and the other attributes are as before. A
    handle never comes to mean a later connection that reuses the slot. Two handles are equal when
    they mean the same connection.
    """

    __slots__ = ("__weakref__", "_entry", "_table")

    _entry: _Entry
    _table: ConnectionTable[Any, Any] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Conn[Id, Payload]:
        self = object.__new__(cls)
        self._entry = _Entry(None, 0, None, None, 0, 0)
        self._table = None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(NOT_CONSTRUCTIBLE)

    def __init_subclass__(cls, **kwargs: Any) -> NoReturn:
        raise TypeError("type 'beastcore.Conn' is not an acceptable base type")

    @classmethod
    def __class_getitem__(cls, item: Any) -> types.GenericAlias:
        return types.GenericAlias(cls, item)

    def touch(self) -> bool:
        """Note activity now; return False, and do nothing, when the connection is gone. O(1)."""
        entry = self._entry
        if not entry.alive or self._table is None:
            return False
        now = self._table._now()
        return _touch(entry, now)  # the timer may have removed it

    @property
    def alive(self) -> bool:
        """Whether the table still holds the connection."""
        return self._entry.alive

    @property
    def idle(self) -> float | None:
        """Seconds since the last activity, to the millisecond; None when it is gone."""
        entry = self._entry
        if not entry.alive or self._table is None:
            return None
        return _idle(entry, self._table._now())

    @property
    def conn_id(self) -> Id:
        """What the connection was added as."""
        return self._entry.key  # type: ignore[no-any-return]

    @property
    def payload(self) -> Payload:
        """The object that was given to `add`."""
        return self._entry.payload  # type: ignore[no-any-return]

    @property
    def user(self) -> Any:
        """Who the connection belongs to, or None."""
        owner = self._entry.owner
        return None if owner is None else owner.key

    @property
    def class_id(self) -> int:
        """The class of the connection."""
        return self._entry.class_id

    def __eq__(self, other: object) -> bool:
        return self._entry is other._entry if isinstance(other, Conn) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._entry)

    def __repr__(self) -> str:
        return f"Conn(conn_id={self._entry.key!r}, alive={self._entry.alive})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'Conn' object")


def _touch(entry: _Entry, now: int) -> bool:
    if entry.alive:
        entry.last = now
    return entry.alive


def _idle(entry: _Entry, now: int) -> float | None:
    return (now - entry.last) / 1000.0 if entry.alive else None


@final
class ConnectionTable(Generic[Id, Payload]):
    """Tracks when each of at most `max_connections` connections was last active.

    A connection that has been silent for `idle_timeout` seconds is reported by `sweep()`: as
    SUSPECT until `mark_pinged` names it, and when `grace` seconds have passed since that without
    any activity, as EXPIRED, which removes it. With `grace=0` it expires at once, without the
    first stage. A class of connections can have its own timeout (`set_class_timeout`).

    When a sweep comes more than `late_after` seconds after the one before (the process was
    suspended or stuck, and heartbeats may be waiting unread), every deadline is extended once by
    that time, instead of expiring everyone. The default is twice `idle_timeout + grace` and at
    least 60 s. A second late sweep in a row extends nothing, so a table that is always swept
    seldom still expires its connections.

    `timer` returns seconds as a float and must not run backwards (an earlier time than before is
    taken as the latest one seen). Times are kept to the millisecond: a deadline may be met up to
    1 ms early. Times of activity older than 12.4 days may be read as 12.4 days ago.

    `idle_timeout`, `grace` and `late_after` may be assigned at any time. Timeouts and grace are at
    most 7 days; a table has at most 2**24 slots.

    One thread at a time may use a table of this pure-Python engine, and no finalizer may.
    """

    SUSPECT = SUSPECT
    """Stage of a connection that has been silent for its timeout: ping it."""
    EXPIRED = EXPIRED
    """Stage of a connection that the sweep has removed: close it."""

    __slots__ = (
        "__weakref__",
        "_added",
        "_base",
        "_classes",
        "_clock",
        "_cursor",
        "_epoch",
        "_expired",
        "_free",
        "_grace",
        "_idle_timeout",
        "_ids",
        "_late_after",
        "_late_sweeps",
        "_latest",
        "_max_connections",
        "_rejected",
        "_removed",
        "_slots",
        "_suspected",
        "_sweep_in_time",
        "_swept",
        "_timeouts",
        "_timer",
        "_users",
    )

    def __init__(
        self,
        max_connections: int = 100_000,
        idle_timeout: float = 30.0,
        *,
        grace: float = 10.0,
        late_after: float | None = None,
        timer: Callable[[], float] | None = None,
    ) -> None:
        self._max_connections = check_size(max_connections)
        self.idle_timeout = idle_timeout
        self.grace = grace
        self.late_after = late_after
        check_callable("timer", timer)
        self._timer = timer
        self._clock: Callable[[], float] = time.monotonic if timer is None else timer
        self._base = check_time(self._clock())
        self._latest = 0  # milliseconds since the table was made
        self._epoch = 0  # the same, of the time 0 of the slots
        self._slots: list[_Entry | None] = []
        self._free: list[int] = []
        self._ids: Chains[_Entry] = Chains("table")
        self._users: Chains[_User] = Chains("table")
        self._classes: Counter[int] = Counter()
        self._timeouts: dict[int, int] = {}
        self._cursor = 0
        self._swept: int | None = None
        self._sweep_in_time = True
        self._added = self._removed = self._suspected = self._expired = 0
        self._rejected = self._late_sweeps = 0

    def __init_subclass__(cls, **kwargs: Any) -> NoReturn:
        raise TypeError("type 'beastcore.ConnectionTable' is not an acceptable base type")

    @classmethod
    def __class_getitem__(cls, item: Any) -> types.GenericAlias:
        return types.GenericAlias(cls, item)

    # ---- settings

    @property
    def max_connections(self) -> int:
        """Most connections that may be held; see `resize`."""
        return self._max_connections

    @property
    def idle_timeout(self) -> float:
        """Seconds of silence after which a connection is reported."""
        return self._idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, value: float) -> None:
        self._idle_timeout = check_idle("idle_timeout", value)

    @property
    def grace(self) -> float:
        """Seconds of silence after a ping after which a connection expires; 0: without a ping."""
        return self._grace

    @grace.setter
    def grace(self, value: float) -> None:
        self._grace = check_idle("grace", value, zero=True)

    @property
    def late_after(self) -> float:
        """Seconds between two sweeps above which the second is late; assign None for default."""
        if self._late_after is None:
            return default_late_after(self._idle_timeout, self._grace)
        return self._late_after

    @late_after.setter
    def late_after(self, value: float | None) -> None:
        self._late_after = check_late_after(value)

    @property
    def timer(self) -> Callable[[], float] | None:
        """The clock that was given, or None for the built-in one."""
        return self._timer

    def set_class_timeout(self, class_id: int, seconds: float | None) -> None:
        """Give the connections of one class their own idle timeout; None takes it back."""
        class_id = check_class_id(class_id)
        if seconds is None:
            self._timeouts.pop(class_id, None)
        else:
            self._timeouts[class_id] = milliseconds(check_idle("seconds", seconds))

    def resize(self, max_connections: int) -> None:
        """Change how many connections may be held.

        ValueError, and no change, when more than that are held now: none is dropped for it.
        """
        wanted = check_size(max_connections, len(self._ids))
        # Once more, for asking the argument for its value may have added some.
        self._max_connections = check_size(wanted, len(self._ids))

    # ---- time

    def _now(self) -> int:
        """Return the time in milliseconds since the epoch, which moves when that grows too large.

        A thousandth of a millisecond is added so that the rounding of floats does not turn the
        30 s between two readings into 29.999.
        """
        seconds = check_time(self._clock()) - self._base
        self._latest = max(self._latest, int(min(max(seconds, 0.0), MAX_ELAPSED) * 1000.0 + 0.001))
        now = self._latest - self._epoch
        if now >= REBASE_AT:
            self._rebase(now - KEEP)
            now = KEEP
        return now

    def _rebase(self, delta: int) -> None:
        """Move the epoch forward; whether a ping came after the last activity stays true."""
        self._epoch += delta
        for entry in self._ids:
            pinged = entry.pinged > entry.last
            entry.last = max(entry.last - delta, 0)
            entry.created = max(entry.created - delta, 0)
            entry.pinged = max(entry.pinged - delta, 1 if pinged else 0)

    # ---- connections

    def add(
        self,
        conn_id: Id,
        payload: Payload = None,  # type: ignore[assignment]
        *,
        user: Any = None,
        class_id: int = 0,
    ) -> Conn[Id, Payload]:
        """Add a connection, active now, and return its handle.

        `payload` is any object, usually what to close; `user` a hashable object to count
        connections by, or None; `class_id` an int from 0 to 65535.

        ValueError when `conn_id` is held already, TableFullError when every slot is taken. O(1).
        """
        class_id = check_class_id(class_id)
        id_hash = hash(conn_id)
        user_hash = 0 if user is None else hash(user)
        now = self._now()
        owner = None
        if user is not None:
            owner = self._users.find(user, user_hash)
            if owner is None:
                owner = _User(user, user_hash)
                self._users.insert(owner)
            owner.count += 1
        try:
            if self._ids.find(conn_id, id_hash) is not None:
                raise duplicate(conn_id)  # noqa: TRY301 - the user's count is taken back there
            if len(self._ids) >= self._max_connections:
                self._rejected += 1
                raise table_full(conn_id, self._max_connections)  # noqa: TRY301
        except BaseException:
            self._leave(owner)
            raise
        entry = _Entry(conn_id, id_hash, payload, owner, class_id, now)
        entry.alive = True
        if self._free:
            entry.slot = self._free.pop()
            self._slots[entry.slot] = entry
        else:
            entry.slot = len(self._slots)
            self._slots.append(entry)
        self._ids.insert(entry)
        self._classes[class_id] += 1
        self._added += 1
        return self._handle(entry)

    def _handle(self, entry: _Entry) -> Conn[Id, Payload]:
        conn: Conn[Id, Payload] = object.__new__(Conn)
        conn._entry = entry
        conn._table = self
        return conn

    def _leave(self, owner: _User | None) -> None:
        if owner is not None:
            owner.count -= 1
            if not owner.count:
                self._users.drop(owner)

    def _unlink(self, entry: _Entry) -> None:
        """Take a connection out of everything; no key is hashed or compared."""
        entry.alive = False
        self._slots[entry.slot] = None
        self._free.append(entry.slot)
        self._ids.drop(entry)
        self._classes[entry.class_id] -= 1
        self._leave(entry.owner)

    def get(self, conn_id: Id, /) -> Conn[Id, Payload] | None:
        """Return the handle of a connection, or None. No activity is noted. O(1)."""
        entry = self._ids.find(conn_id, hash(conn_id))
        return None if entry is None else self._handle(entry)

    def remove(self, conn_id: Id, /) -> bool:
        """Remove a connection; return whether it was there. O(1)."""
        entry = self._ids.find(conn_id, hash(conn_id))
        if entry is None:
            return False
        self._unlink(entry)
        self._removed += 1
        return True

    def clear(self) -> None:
        """Remove every connection; they count as removed."""
        doomed = list(self._ids)
        for entry in doomed:
            self._unlink(entry)
        self._removed += len(doomed)
        self._slots.clear()
        self._free.clear()
        self._cursor = 0

    # ---- activity

    def update_activity(self, conn_id: Id, /) -> bool:
        """Note activity of a connection now; return whether it was there. O(1)."""
        id_hash = hash(conn_id)
        now = self._now()
        entry = self._ids.find(conn_id, id_hash)
        if entry is None:
            return False
        entry.last = now
        return True

    def touch_many(self, conns: Iterable[Conn[Id, Payload]], /) -> int:
        """Note activity of many connections now; return how many of them were still there.

        TypeError for an item that is no Conn, ValueError for one of another table; then nothing
        was noted. O(conns).
        """
        given = list(conns)
        now = self._now()
        entries = self._entries(given)
        return sum(_touch(entry, now) for entry in entries)

    def mark_pinged(self, conns: Iterable[Conn[Id, Payload]], /) -> int:
        """Note that these connections were really sent a ping now; return how many were there.

        The grace of a connection begins now; any later activity ends it. Errors as in
        `touch_many`. O(conns).
        """
        given = list(conns)
        now = self._now()
        entries = self._entries(given)
        alive = [entry for entry in entries if entry.alive]
        for entry in alive:
            entry.pinged = now
        return len(alive)

    def _entries(self, conns: Iterable[object]) -> list[_Entry]:
        entries = []
        for position, conn in enumerate(conns):
            if not isinstance(conn, Conn):
                raise not_a_conn(position, conn)
            if conn._table is not self:
                raise foreign_conn(position, conn)
            entries.append(conn._entry)
        return entries

    # ---- sweeping

    def sweep(self, limit: int | None = None) -> list[tuple[Id, Conn[Id, Payload], str]]:
        """Report silent connections as a list of `(conn_id, conn, stage)`, and remove dead ones.

        Stage SUSPECT: silent for its timeout, and not pinged since its last activity; it is
        reported by every sweep until `mark_pinged` names it. Stage EXPIRED: silent for `grace`
        since the ping, or for its timeout where `grace` is 0; it has been removed, and the handle
        still gives its payload. Nothing is called back.

        At most `limit` connections are reported (None: all). The slots are visited in order,
        each at most once, from where the last sweep stopped. O(slots), fast ones.
        """
        if limit is not None:
            limit = check_count("limit", limit, minimum=0, maximum=None)
        now = self._now()
        self._guard(now)
        timeout = milliseconds(self._idle_timeout)
        grace = milliseconds(self._grace)
        found: list[tuple[_Entry, str]] = []
        slots = len(self._slots)
        position = self._cursor
        for _ in range(slots):
            if limit is not None and len(found) >= limit:
                break
            entry = self._slots[position]
            position = (position + 1) % slots
            if entry is None or now - entry.last < self._timeouts.get(entry.class_id, timeout):
                continue
            if grace and entry.pinged <= entry.last:
                found.append((entry, SUSPECT))
            elif now - entry.pinged >= grace:
                found.append((entry, EXPIRED))
        self._cursor = position
        for entry, stage in found:
            if stage == EXPIRED:
                self._unlink(entry)
                self._expired += 1
            else:
                self._suspected += 1
        return [(entry.key, self._handle(entry), stage) for entry, stage in found]

    def _guard(self, now: int) -> None:
        """Extend every deadline by the time since the last sweep, if that was too long."""
        previous, self._swept = self._swept, self._latest
        gap = 0 if previous is None else self._latest - previous
        late = self._sweep_in_time and gap > milliseconds(self.late_after)
        self._sweep_in_time = gap <= milliseconds(self.late_after)
        if late:
            self._late_sweeps += 1
            for entry in self._ids:
                entry.last = min(entry.last + gap, now)
                entry.pinged = min(entry.pinged + gap, now)

    # ---- asking

    def idlest(self, k: int, /) -> list[Conn[Id, Payload]]:
        """Return the `k` connections that have been silent longest, longest first.

        Ties come in the order of their slots. O(connections * log k).
        """
        k = check_count("k", k, minimum=0, maximum=None)
        idlest = heapq.nsmallest(k, self._ids, key=lambda entry: (entry.last, entry.slot))
        return [self._handle(entry) for entry in idlest]

    def count(self, *, user: Any = None, class_id: int | None = None) -> int:
        """Return how many connections there are, of one user or one class where given.

        O(1); O(slots) where both are given.
        """
        if class_id is not None:
            class_id = check_class_id(class_id)
        if user is None:
            return len(self._ids) if class_id is None else self._classes[class_id]
        owner = self._users.find(user, hash(user))
        if owner is None:
            return 0
        if class_id is None:
            return owner.count
        return sum(entry.owner is owner and entry.class_id == class_id for entry in self._ids)

    def snapshot(self) -> list[ConnInfo]:
        """Return what is known of every connection, in the order of the slots. O(slots)."""
        now = self._now()
        return [
            ConnInfo(
                conn_id=entry.key,
                user=None if entry.owner is None else entry.owner.key,
                class_id=entry.class_id,
                idle=(now - entry.last) / 1000.0,
                age=(now - entry.created) / 1000.0,
                pinged=entry.pinged > entry.last,
            )
            for entry in self._slots
            if entry is not None
        ]

    def idle_histogram(
        self, bounds: Iterable[float] = DEFAULT_BOUNDS, /
    ) -> list[tuple[float, int]]:
        """Return how many connections have been silent how long, as `(upper bound, count)`.

        `bounds` are rising seconds; a count is of the connections silent for less than its bound
        and not less than the bound before. The last bound is inf. O(slots * log bounds).
        """
        checked = check_bounds(bounds)
        now = self._now()
        limits = [milliseconds(bound) for bound in checked]
        counts = [0] * (len(limits) + 1)
        for entry in self._ids:
            counts[bisect.bisect_right(limits, now - entry.last)] += 1
        return list(zip([*checked, math.inf], counts, strict=True))

    def stats(self) -> TableStats:
        """Return the counters and the present content."""
        return TableStats(
            active=len(self._ids),
            max_connections=self._max_connections,
            added=self._added,
            removed=self._removed,
            suspected=self._suspected,
            expired=self._expired,
            rejected=self._rejected,
            late_sweeps=self._late_sweeps,
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, conn_id: object) -> bool:
        return self._ids.find(conn_id, hash(conn_id)) is not None

    def __iter__(self) -> Iterator[Id]:
        """Iterate over the ids held at the beginning, in the order of their slots."""
        return iter([entry.key for entry in self._slots if entry is not None])

    def __repr__(self) -> str:
        return (
            f"ConnectionTable(max_connections={self._max_connections}, "
            f"idle_timeout={self._idle_timeout}, grace={self._grace}, active={len(self._ids)})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'ConnectionTable' object")

    def _check(self) -> None:
        """Verify the numbered invariants; AssertionError names the broken one."""
        held = [entry for entry in self._slots if entry is not None]
        self._ids.check()
        assert len(held) == len(self._ids), "invariant 1: number of connections"
        assert set(held) == set(self._ids), "invariant 1: ids"
        for slot, entry in enumerate(self._slots):
            if entry is not None:
                assert entry.slot == slot, "invariant 1: slot"
                assert entry.alive, "invariant 1: alive"
        free = [slot for slot, entry in enumerate(self._slots) if entry is None]
        assert sorted(self._free) == free, "invariant 1: free stack"
        assert len(held) == self._added - self._removed - self._expired, "invariant 2: counters"
        assert len(held) <= self._max_connections, "invariant 2: maximum"
        now = self._latest - self._epoch
        assert 0 <= now < REBASE_AT, "invariant 3: epoch"
        for entry in held:
            assert 0 <= entry.last <= now, "invariant 3: last activity"
            assert 0 <= entry.created <= now, "invariant 3: creation"
            assert 0 <= entry.pinged <= now, "invariant 3: ping"
        self._users.check()
        owners = Counter(id(entry.owner) for entry in held if entry.owner is not None)
        assert owners == {id(owner): owner.count for owner in self._users}, "invariant 4: users"
        classes = Counter(entry.class_id for entry in held)
        assert classes == +self._classes, "invariant 4: classes"
        assert self._cursor == 0 or self._cursor < len(self._slots), "invariant 5: cursor"
