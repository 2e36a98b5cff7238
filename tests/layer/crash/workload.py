"""What the writers of the crash test write: the n-th operation on a key is always the same.

So the parent needs to hear only "key n": it knows what the document must be after n operations.
Documents whose name ends in "-count" are counted with transforms: one applied twice is seen.
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
from beastmode.stores.transforms import Increment, Maximum

SYNC_WRITERS = 3
ASYNC_WRITERS = 3
KEYS_EACH = 3


def keys_of(run: int, writer: int, *, counting: bool = False) -> list[str]:
    """The documents that one writer alone writes in run number `run`."""
    keys = [f"run{run}/{writer}-{key}" for key in range(KEYS_EACH)]
    return [*keys, f"run{run}/{writer}-count"] if counting else keys


def all_keys(run: int, *, counting: bool = False) -> list[str]:
    writers = range(SYNC_WRITERS + ASYNC_WRITERS)
    return [key for writer in writers for key in keys_of(run, writer, counting=counting)]


def operation(key: str, n: int) -> Operation:
    """The n-th operation on `key`, n from 1: any kind, and never one that the store refuses."""
    if key.endswith("-count"):
        fields = {"n": Increment(1), "sum": Increment(n)}
        return Update(key, fields) if n % 4 == 2 else Merge(key, {**fields, "max": Maximum(n)})
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


POISON = "poison/none"


def poison() -> Operation:
    """An operation that the store refuses, with a transform."""
    return Update(POISON, {"n": Increment(1)})
