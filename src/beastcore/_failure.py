"""Errors that `cached` keeps as results: a clean copy in the cache, a fresh one for each caller.

An exception that is raised again and again grows a longer traceback each time, and keeps alive
the frames of whoever raised it last, with all that they refer to. So neither the one that the
function raised is kept, nor the one that is kept ever raised.
"""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["KeptError", "clean_copy", "kept_error"]

_E = TypeVar("_E", bound=BaseException)
_HEAP_TYPE = 1 << 9
"""The bit of `type.__flags__` that tells the classes made by a class statement."""


def clean_copy(error: _E) -> _E | None:
    """Return a copy of `error` with no traceback, cause and context; None if it has no copy.

    Class, `args`, attributes and notes are the same, and so are, as copies, the members of a
    group. The constructor of the class is not called, for it may take other arguments than
    `args` or do something; its built-in base builds the copy. O(attributes).
    """
    cls = type(error)
    base: Any = next(c for c in cls.__mro__ if not c.__flags__ & _HEAP_TYPE)
    reduced = base.__reduce__(error)
    args = reduced[1]
    if isinstance(error, BaseExceptionGroup):
        args = (args[0], [clean_copy(member) or member for member in error.exceptions])
    try:
        copy = base.__new__(cls, *args)
        base.__init__(copy, *args)
        if type(copy) is not cls:
            return None
        for state in _states(error, reduced):
            for name, value in state.items():
                shared = value if name != "__notes__" else list(value)
                object.__setattr__(copy, name, shared)
    except (TypeError, ValueError, AttributeError):
        return None  # a class of a C extension with a memory layout, or rules, of its own
    return copy


def _states(error: BaseException, reduced: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Return the attributes that the built-in base knows, those of the dict and of the slots."""
    own: Any = object.__getstate__(error)
    parts = [*reduced[2:3], *(own if isinstance(own, tuple) else (own,))]
    return [part for part in parts if part]


class KeptError:
    """Stands in a cache for an error that is raised instead of a result."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fresh(self) -> Exception:
        """Return a copy of the error to raise; nobody else has it."""
        copy = clean_copy(self.error)
        if copy is None:  # its attributes were replaced since it was kept
            raise TypeError(f"the kept error {self.error!r} cannot be copied any more")
        return copy

    def __repr__(self) -> str:
        return f"<kept error {self.error!r}>"


def kept_error(error: Exception) -> KeptError | None:
    """Return what keeps `error`; None if it cannot be copied, so cannot be kept."""
    copy = clean_copy(error)
    return None if copy is None else KeptError(copy)
