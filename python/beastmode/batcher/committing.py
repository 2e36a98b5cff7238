"""Committing a batch of which some operations may be refused, and when to try again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from beastmode.errors import RequestError, StoreCorrupt, WriteRejected
from beastmode.stores.documents import Operation

__all__ = ["REJECTIONS", "Backoff", "check_answer", "commit_in_order"]

Unit = TypeVar("Unit")

REJECTIONS = (WriteRejected, RequestError)
"""What a store raises when it will never take these operations."""


def commit_in_order(
    units: Sequence[Unit],
    operations: Callable[[Unit], Sequence[Operation]],
    commit: Callable[[list[Operation]], list[int]],
    committed: Callable[[Sequence[Unit], list[int]], None],
    rejected: Callable[[Unit, Exception], None],
) -> tuple[int, Exception | None]:
    """Commit `units` in order, each whole; return how many are settled, and why not all are.

    A commit that the store rejects is halved until the refused unit stands alone: that one is
    `rejected`, all others are `committed` (called with neighbouring units and the versions of all
    their operations). Any other error ends it: the first so many units are settled, the rest are
    as the error says. With one refused unit among n it takes about 2 log2(n) commits more.
    """
    ranges = [(0, len(units))] if units else []
    while ranges:
        start, end = ranges.pop()
        batch = [operation for unit in units[start:end] for operation in operations(unit)]
        try:
            versions = commit(batch)
            check_answer(versions, batch)
        except REJECTIONS as error:
            if end - start == 1:
                rejected(units[start], error)
            else:
                middle = (start + end) // 2
                ranges += [(middle, end), (start, middle)]
        except Exception as error:  # noqa: BLE001 - the caller decides, counts and reports it
            return start, error
        else:
            committed(units[start:end], versions)
    return len(units), None


def check_answer(versions: object, batch: Sequence[Operation]) -> None:
    """Raise StoreCorrupt unless `versions` can be what a store returned for `batch`."""
    if not isinstance(versions, list) or len(versions) != len(batch):
        raise StoreCorrupt(
            f"the store's commit of {len(batch)} operations must return as many versions, "
            f"got {versions!r:.200}"
        )


class Backoff:
    """How long to wait after failure n in a row: uniform in [0, min(cap, base * 2**n)] seconds.

    "Full jitter" of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """

    __slots__ = ("_base_s", "_cap_s", "_failures", "_rng")

    def __init__(
        self, base_s: float = 0.05, cap_s: float = 1.0, rng: random.Random | None = None
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = random.Random() if rng is None else rng
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def fail(self, cap_s: float | None = None) -> float:
        """Count a failure and return the seconds to wait; `cap_s` replaces the cap this once."""
        cap_s = self._cap_s if cap_s is None else cap_s
        ceiling = min(cap_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._rng.uniform(0.0, ceiling)

    def succeed(self) -> None:
        """Forget the failures."""
        self._failures = 0
