"""What the scripts of this folder share: a value to count, a key that fails, a call that must."""

from __future__ import annotations

from collections.abc import Callable


class Value:
    """Counted by the garbage collector, as what it holds is a container."""

    def __init__(self) -> None:
        self.data = [self.__class__]


class Bad:
    """Has the hash of another key and cannot be compared."""

    def __init__(self, like: str = "k") -> None:
        self.like = like

    def __hash__(self) -> int:
        return hash(self.like)

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError


def refused(
    errors: type[BaseException] | tuple[type[BaseException], ...],
    call: Callable[..., object],
    *args: object,
) -> None:
    """Make a call that must raise one of `errors`."""
    try:
        call(*args)
    except errors:
        return
    raise AssertionError(f"no error of {errors}")
