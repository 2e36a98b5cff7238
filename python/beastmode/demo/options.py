"""What a demonstration is asked to do: checked before anything begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from beastmode.errors import ConfigError

__all__ = ["STORES", "DemoOptions"]

StoreKind = Literal["sqlite", "firestore"]
STORES: Final[tuple[str, ...]] = get_args(StoreKind)

_LIMITS: Final = {
    "documents": (1, 10_000_000),
    "users": (1, 10_000_000),
    "requests": (1, 50_000_000),
    "seconds": (0.1, 86_400),
    "workers": (1, 10_000),
    "cache_entries": (1, 2**30),
    "total_seconds": (1, 86_400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The conditions of a demonstration. ConfigError names the option, its value, what is allowed.

    `documents` and `users` are those of the mixed stream; a trace brings its own documents.
    """

    documents: int = 100_000
    users: int = 50_000
    """Simulated users, each with a connection in the pool."""
    requests: int | None = None
    """Most requests of each phase; None: a million, or the whole trace."""
    seconds: float = 15.0
    """Most seconds of each phase; with a trace, of the disabled phase only."""
    total_seconds: float | None = None
    """If given, phases are made shorter so that everything ends in about that time; a trace is
    still played to its end."""
    seed: int = 1
    workers: int = 32
    """Requests under way at the same time."""
    cache_entries: int | None = None
    """Size of the cache; None takes the setting `cache_max_entries`."""
    trace: Path | None = None
    """A .npz file with the keys of a recorded stream of reads, played instead of the mix."""
    store: StoreKind = "sqlite"
    """What is played on: a SQLite file, or a Firestore emulator."""
    keep: Path | None = None
    """Folder that the store is made in and left in; None: a temporary one."""

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name in ("requests", "cache_entries", "total_seconds"):
                continue
            whole = isinstance(low, int) and name != "total_seconds"
            kinds = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                noun = "an integer" if whole else "a number"
                raise ConfigError(f"{name} must be {noun}, got {value!r}")
            if math.isnan(value) or not low <= value <= high:
                raise ConfigError(f"{name} must be from {low:,} to {high:,}, got {value!r}")
        if self.store not in STORES:
            raise ConfigError(f"store must be {' or '.join(STORES)}, got {self.store!r}")
        if self.keep is not None and self.store != "sqlite":
            raise ConfigError(f"keep={str(self.keep)!r} goes with store='sqlite' alone")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be an integer, got {self.seed!r}")
