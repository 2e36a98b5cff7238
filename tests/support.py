"""What tests of the engine share: a clock that the test moves, and the two twins by name."""

from __future__ import annotations

import collections
import importlib
import math
from collections.abc import Iterator
from typing import Any

ENGINE_NAMES = {
    "BatchBuffer": "batch",
    "Cache": "cache",
    "Conn": "connections",
    "ConnectionTable": "connections",
    "LatencyHistogram": "latency",
    "cached": "memo",
}
"""Public names of a twin and the module that holds each (with a leading `_` when compiled)."""


class FakeClock:
    """A timer that stands still until the test moves it; pass it as `timer=`.

    It may be moved backwards (`advance(-1)`, `now = ...`), as a broken clock would.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.now

    def advance(self, seconds: float) -> float:
        """Move the clock by `seconds` and return the new time."""
        if math.isnan(seconds):
            raise ValueError(f"seconds must be a number, got {seconds}")
        self.now += seconds
        return self.now

    def __repr__(self) -> str:
        return f"FakeClock(now={self.now})"


class TrackedClass:
    """Stands for an engine class: makes its objects and remembers them for `_check()`.

    The classes are final, so this is no subclass; calling, `isinstance(x, engine.Cache)`,
    `engine.Cache[str, int]` and attributes of the class all work.
    """

    def __init__(self, wrapped: type, remember: Any) -> None:
        self.__wrapped__ = wrapped
        self._remember = remember

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remember(self.__wrapped__(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__wrapped__, name)
        if name == "from_dict":
            return lambda *args: self._remember(value(*args))
        return value

    def __getitem__(self, item: Any) -> Any:
        return self.__wrapped__[item]  # type: ignore[index]

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.__wrapped__)

    def __repr__(self) -> str:
        return f"<tracked {self.__wrapped__!r}>"


class Twin:
    """One twin of the engine: its public names as attributes, `name` and `compiled`.

    Modules are loaded when a name is first used. `raw.Cache` is the class itself, whose objects
    nothing remembers. The compiled twin is always the compiled one, whatever BEASTCORE_PURE says.
    """

    def __init__(self, *, compiled: bool, tracked: bool = True, keep: int = 256) -> None:
        self.compiled = compiled
        self.name = "compiled" if compiled else "pure"
        self._tracked = tracked
        # The last `keep` objects only, or a test with a million caches would hold them all.
        self._objects: collections.deque[Any] = collections.deque(maxlen=keep)

    def module(self, name: str) -> Any:
        """Return the module of this twin for "cache", "batch", "connections", ..."""
        path = f"beastcore._{name}" if self.compiled else f"beastcore._pure.{name}"
        return importlib.import_module(path)

    @property
    def raw(self) -> Twin:
        """The same twin with nothing remembered."""
        return Twin(compiled=self.compiled, tracked=False)

    def __getattr__(self, name: str) -> Any:
        if name not in ENGINE_NAMES:
            raise AttributeError(f"the engine has no public name {name!r}")
        value = getattr(self.module(ENGINE_NAMES[name]), name)
        if self._tracked and isinstance(value, type):
            value = TrackedClass(value, self._remember)
        setattr(self, name, value)
        return value

    def _remember(self, obj: Any) -> Any:
        self._objects.append(obj)
        return obj

    def objects(self) -> Iterator[Any]:
        """Yield the objects remembered so far that can check themselves."""
        for obj in list(self._objects):
            if hasattr(obj, "_check"):
                yield obj

    def __repr__(self) -> str:
        return f"<{self.name} engine>"
