"""`ConnectionTable`, compiled: who is connected, and since when each has been silent."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from types import GenericAlias
from typing import Any, Generic, NoReturn, TypeVar, final

from beastcore._types import ConnInfo, TableStats

__all__ = ["Conn", "ConnectionTable"]

_Id = TypeVar("_Id", bound=Hashable)
_Payload = TypeVar("_Payload")

@final
class Conn(Generic[_Id, _Payload]):
    """Handle to one connection of a `ConnectionTable`, made by its `add`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def touch(self) -> bool:
        """Note activity now; return False, and do nothing, when the connection is gone."""
    @property
    def alive(self) -> bool:
        """Whether the table still holds the connection."""
    @property
    def idle(self) -> float | None:
        """Seconds since the last activity; None when it is gone."""
    @property
    def conn_id(self) -> _Id:
        """What the connection was added as."""
    @property
    def payload(self) -> _Payload:
        """The object that was given to `add`."""
    @property
    def user(self) -> Any:
        """Who the connection belongs to, or None."""
    @property
    def class_id(self) -> int:
        """The class of the connection."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> NoReturn: ...

@final
class ConnectionTable(Generic[_Id, _Payload]):
    """Tracks when each of at most `max_connections` connections was last active."""

    SUSPECT: str
    """Stage of a connection that has been silent for its timeout: ping it."""
    EXPIRED: str
    """Stage of a connection that the sweep has removed: close it."""

    def __new__(
        cls,
        max_connections: int = 100_000,
        idle_timeout: float = 30.0,
        *,
        grace: float = 10.0,
        late_after: float | None = None,
        timer: Callable[[], float] | None = None,
    ) -> ConnectionTable[_Id, _Payload]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    @property
    def max_connections(self) -> int:
        """Most connections that may be held; see `resize`."""
    @property
    def idle_timeout(self) -> float:
        """Seconds of silence after which a connection is reported."""
    @idle_timeout.setter
    def idle_timeout(self, value: float) -> None: ...
    @property
    def grace(self) -> float:
        """Seconds of silence after a ping after which a connection expires; 0: without a ping."""
    @grace.setter
    def grace(self, value: float) -> None: ...
    @property
    def late_after(self) -> float:
        """Seconds between two sweeps above which the second is late; assign None for default."""
    @late_after.setter
    def late_after(self, value: float | None) -> None: ...
    @property
    def timer(self) -> Callable[[], float] | None:
        """The clock that was given, or None for the built-in one."""
    def set_class_timeout(self, class_id: int, seconds: float | None) -> None:
        """Give the connections of one class their own idle timeout; None takes it back."""
    def resize(self, max_connections: int) -> None:
        """Change how many connections may be held."""
    def add(
        self, conn_id: _Id, payload: _Payload = ..., *, user: Hashable = None, class_id: int = 0
    ) -> Conn[_Id, _Payload]:
        """Add a connection, active now, and return its handle."""
    def get(self, conn_id: _Id, /) -> Conn[_Id, _Payload] | None:
        """Return the handle of a connection, or None."""
    def remove(self, conn_id: _Id, /) -> bool:
        """Remove a connection; return whether it was there."""
    def clear(self) -> None:
        """Remove every connection."""
    def update_activity(self, conn_id: _Id, /) -> bool:
        """Note activity of a connection now; return whether it was there."""
    def touch_many(self, conns: Iterable[Conn[_Id, _Payload]], /) -> int:
        """Note activity of many connections now; return how many of them were still there."""
    def mark_pinged(self, conns: Iterable[Conn[_Id, _Payload]], /) -> int:
        """Note that these connections were really sent a ping now."""
    def sweep(self, limit: int | None = None) -> list[tuple[_Id, Conn[_Id, _Payload], str]]:
        """Report silent connections as `(conn_id, conn, stage)`, and remove dead ones."""
    def idlest(self, k: int, /) -> list[Conn[_Id, _Payload]]:
        """Return the `k` connections that have been silent longest, longest first."""
    def count(self, *, user: Hashable = None, class_id: int | None = None) -> int:
        """Return how many connections there are, of one user or one class where given."""
    def snapshot(self) -> list[ConnInfo]:
        """Return what is known of every connection, in the order of the slots."""
    def idle_histogram(self, bounds: Iterable[float] = ..., /) -> list[tuple[float, int]]:
        """Return how many connections have been silent how long, as `(upper bound, count)`."""
    def stats(self) -> TableStats:
        """Return the counters and the present content."""
    def __len__(self) -> int: ...
    def __contains__(self, conn_id: object, /) -> bool: ...
    def __iter__(self) -> Iterator[_Id]: ...
    def __reduce__(self) -> NoReturn: ...
    def _check(self) -> None: ...
