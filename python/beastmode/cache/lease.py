"""Leases: how a healthy stream of changes vouches for what is held, and what it should follow.

Whoever listens to changes makes one `Lease` per stream and moves its `valid_until` on as long as
the stream is heard. All entries that the stream vouches for share the object, so that one
assignment keeps thousands of them fresh, or ends it. No I/O, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

__all__ = ["Interest", "Lease", "ReloadLimit"]

_MOST_PATHS: Final = 65_536


class Lease:
    """A promise that every change of what it covers is heard, until `valid_until`.

    `valid_until` is seconds of the cache's timer: at most the moment up to which silence of the
    stream is still taken for health. It starts as -inf, which promises nothing, and is moved by
    its owner, from any thread, by a plain assignment.
    """

    __slots__ = ("_promised", "valid_until")

    def __init__(self, valid_until: float = -math.inf) -> None:
        self.valid_until = valid_until
        self._promised: float | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled: it promises nothing any more, and must not be moved on."""
        return self._promised is not None

    @property
    def promised_until(self) -> float:
        """Up to when it has promised, also after it was cancelled."""
        promised = self._promised
        return self.valid_until if promised is None else promised

    def cancel(self) -> None:
        """Promise nothing from now on. Idempotent.

        Entries that it has prolonged before stay fresh up to the time of that promise, until
        `BeastModeCache.doubt` or `mark_unverified` tells otherwise: call one of them next.
        """
        if self._promised is None:
            self._promised = self.valid_until
        self.valid_until = -math.inf

    def __repr__(self) -> str:
        return f"Lease(valid_until={self.valid_until!r})"


class Interest:
    """Paths that were installed and that no lease covers, oldest first; bounded.

    The owner's lock guards it. When it is full the oldest path is forgotten, which `drain` tells.
    """

    __slots__ = ("_most", "_noted", "_paths", "lost")

    def __init__(self, most: int = _MOST_PATHS) -> None:
        self._paths: dict[str, int] = {}
        """And the number of the note, to tell it from a later one."""
        self._noted = 0
        self._most = most
        self.lost = 0
        """Paths forgotten since the last `drain`."""

    def __len__(self) -> int:
        return len(self._paths)

    def note(self, path: str) -> None:
        """Remember `path`. O(1)."""
        paths = self._paths
        self._noted += 1
        paths[path] = self._noted
        if len(paths) > self._most:
            del paths[next(iter(paths))]
            self.lost += 1

    def forget(self, paths: Iterable[str]) -> None:
        """Take `paths` out: they are covered, or not wanted."""
        for path in paths:
            self._paths.pop(path, None)

    def notes(self) -> list[tuple[str, int]]:
        """Return what is noted now, for `forget_notes`."""
        return list(self._paths.items())

    def forget_notes(self, notes: Iterable[tuple[str, int]]) -> None:
        """As `forget`, except for what was noted again since."""
        for path, number in notes:
            if self._paths.get(path) == number:
                del self._paths[path]

    def drain(self, limit: int) -> tuple[list[str], bool]:
        """Take out the oldest paths, at most `limit`; and whether some were forgotten before."""
        taken: list[str] = []
        for path in self._paths:
            if len(taken) >= limit:
                break
            taken.append(path)
        self.forget(taken)
        lost, self.lost = self.lost > 0, 0
        return taken, lost


class ReloadLimit:
    """How many doubted documents may be loaded: `rate` in a second, and no more at once.

    A bucket of tokens that refills steadily. The owner's lock guards it.
    """

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._tokens = rate
        self._at = -math.inf

    def take(self, now: float) -> bool:
        """Take one token, if there is one at `now` (seconds of the cache's timer). O(1)."""
        if now > self._at:
            self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
            self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
