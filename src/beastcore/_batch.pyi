"""`BatchBuffer`, compiled: pending writes, due by count, bytes or age."""

from collections.abc import Callable, Hashable, Iterable
from types import GenericAlias
from typing import Any, Generic, NoReturn, TypeVar, final

from beastcore._types import BatchStats

__all__ = ["BatchBuffer"]

_K = TypeVar("_K", bound=Hashable)
_Op = TypeVar("_Op")

@final
class BatchBuffer(Generic[_K, _Op]):
    """Collects pending operations by key until a batch of them is due."""

    def __new__(
        cls,
        max_ops: int = 500,
        max_delay: float = 1.0,
        *,
        max_bytes: int | None = None,
        merge: Callable[[_Op, _Op], _Op | None] | None = None,
        timer: Callable[[], float] | None = None,
    ) -> BatchBuffer[_K, _Op]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    @property
    def max_ops(self) -> int:
        """Number of operations that makes a batch due."""
    @max_ops.setter
    def max_ops(self, value: int) -> None: ...
    @property
    def max_delay(self) -> float:
        """Age of the oldest operation, in seconds, that makes a batch due; 0 means at once."""
    @max_delay.setter
    def max_delay(self, value: float) -> None: ...
    @property
    def max_bytes(self) -> int | None:
        """Sum of sizes that makes a batch due, or None."""
    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None: ...
    @property
    def timer(self) -> Callable[[], float]:
        """The clock: a callable that returns seconds."""
    def add(self, key: _K, op: _Op, /, *, size: int = 0, priority: int = 0) -> bool:
        """Hold `op` for `key`; return True when a batch is due now."""
    def due(self) -> bool:
        """Tell whether a batch is due, by count, bytes or age."""
    def deadline(self) -> float | None:
        """Return the time, by the buffer's timer, at which a batch is due by age."""
    def drain(self, limit: int | None = None) -> list[tuple[_K, _Op]]:
        """Hand out at most `limit` operations (None: all) as a list of `(key, op)`."""
    def restore(self, items: Iterable[tuple[_K, _Op]], /) -> None:
        """Put drained operations back, in front of everything newer of the same keys."""
    def pending(self, key: _K, /) -> list[_Op]:
        """Return the operations held for `key`, oldest first; [] when there are none."""
    def clear(self) -> None:
        """Drop every operation."""
    def stats(self) -> BatchStats:
        """Return the counters and the present content."""
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __reduce__(self) -> NoReturn: ...
    def _check(self) -> None: ...
