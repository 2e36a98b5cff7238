"""What the writers of the crash test write: the n-th operation on a key is always the same.

So the parent needs to hear only "key n": it knows what the document must be after n operations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from beastmode.stores.documents import (
    DELETE_FIELD,
    Delete,
    Merge,
    Operation,
    Set,
    Update,
    apply,
)

SYNC_WRITERS = 3
ASYNC_WRITERS = 3
KEYS_EACH = 3


def keys_of(run: int, writer: int) -> list[str]:
    """The documents that one writer alone writes in run number `run`."""
    return [f"run{run}/{writer}-{key}" for key in range(KEYS_EACH)]


def all_keys(run: int) -> list[str]:
    return [key for writer in range(SYNC_WRITERS + ASYNC_WRITERS) for key in keys_of(run, writer)]


def operation(key: str, n: int) -> Operation:
    """The n-th operation on `key`, n from 1: any kind, and never one that the store refuses."""
    kind = n % 13
    if kind == 0:
        return Delete(key)
    if kind in (1, 7):
        return Set(key, {"n": n, "text": "x" * (n % 50) * 20})
    if kind in (4, 9):
        return Update(key, {"n": n, f"map.u{n % 3}": n, "text": DELETE_FIELD})
    return Merge(key, {"n": n, "map": {f"m{n % 5}": n, f"m{(n + 1) % 5}": DELETE_FIELD}})


@cache
def expected(key: str, n: int) -> dict[str, Any] | None:
    """The document after its first n operations."""
    return None if n == 0 else apply(operation(key, n), expected(key, n - 1))
