"""beastmode: a request path over a document store: cached, batched, synchronised, measured.

`BeastModeOptimizer` is the way in. It serves documents out of a `BeastModeCache`, collects writes
in a `BeastModeBatcher`, follows the store through `BeastModeRealTimeSync`, keeps users in a
`BeastModeConnectionPool`, takes its settings from a `BeastModeConfig`, and tells what all that is
worth with `get_performance_stats()`.

    from beastmode import BeastModeOptimizer, Request

    with BeastModeOptimizer("app.db") as optimizer:
        optimizer.handle_request_sync("ada", Request.set("users/ada", {"langs": ["Python"]}))
        print(optimizer.handle_request_sync("ada", Request.get("users/ada")).data)

The embedded `SQLiteStore` and everything here run on the standard library alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from beastcore import __version__

if TYPE_CHECKING:
    from beastmode.batcher import BeastModeBatcher
    from beastmode.cache import BeastModeCache, Rule
    from beastmode.config import BeastModeConfig
    from beastmode.connections import BeastModeConnectionPool
    from beastmode.cost import Prices
    from beastmode.errors import BeastError
    from beastmode.optimizer import AsyncTransaction, BeastModeOptimizer, Transaction
    from beastmode.requests import Request, Response
    from beastmode.stats import PerformanceStats
    from beastmode.stores.base import AsyncStore, Change, Filter, Order, Query, Store, Target
    from beastmode.stores.documents import (
        DELETE_FIELD,
        Delete,
        Document,
        Merge,
        Operation,
        Precondition,
        Set,
        Update,
    )
    from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore
    from beastmode.stores.sqlite import SQLiteStore
    from beastmode.stores.threaded import ThreadedAsyncStore
    from beastmode.stores.transforms import (
        SERVER_TIMESTAMP,
        ArrayRemove,
        ArrayUnion,
        Increment,
        Maximum,
        Minimum,
    )
    from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector
    from beastmode.sync import BeastModeRealTimeSync

__all__ = [
    "DELETE_FIELD",
    "SERVER_TIMESTAMP",
    "ArrayRemove",
    "ArrayUnion",
    "AsyncFirestoreStore",
    "AsyncStore",
    "AsyncTransaction",
    "BeastError",
    "BeastModeBatcher",
    "BeastModeCache",
    "BeastModeConfig",
    "BeastModeConnectionPool",
    "BeastModeOptimizer",
    "BeastModeRealTimeSync",
    "Change",
    "Delete",
    "Document",
    "Filter",
    "FirestoreStore",
    "GeoPoint",
    "Increment",
    "Maximum",
    "Merge",
    "Minimum",
    "Operation",
    "Order",
    "PerformanceStats",
    "Precondition",
    "Prices",
    "Query",
    "Reference",
    "Request",
    "Response",
    "Rule",
    "SQLiteStore",
    "Set",
    "Store",
    "Target",
    "ThreadedAsyncStore",
    "Timestamp",
    "Transaction",
    "Update",
    "Vector",
    "__version__",
]

_HOMES: Final = {
    name: room
    for room, names in (
        ("batcher", "BeastModeBatcher"),
        ("cache", "BeastModeCache Rule"),
        ("config", "BeastModeConfig"),
        ("connections", "BeastModeConnectionPool"),
        ("cost", "Prices"),
        ("errors", "BeastError"),
        ("optimizer", "AsyncTransaction BeastModeOptimizer Transaction"),
        ("requests", "Request Response"),
        ("stats", "PerformanceStats"),
        ("stores.base", "AsyncStore Change Filter Order Query Store Target"),
        (
            "stores.documents",
            "DELETE_FIELD Delete Document Merge Operation Precondition Set Update",
        ),
        ("stores.firestore", "AsyncFirestoreStore FirestoreStore"),
        ("stores.sqlite", "SQLiteStore"),
        ("stores.threaded", "ThreadedAsyncStore"),
        ("stores.transforms", "ArrayRemove ArrayUnion Increment Maximum Minimum SERVER_TIMESTAMP"),
        ("stores.values", "GeoPoint Reference Timestamp Vector"),
        ("sync", "BeastModeRealTimeSync"),
    )
    for name in names.split()
}
"""In which room each name is at home. It is imported from there when it is first asked for.

So who only makes requests does not wait for the optimizer, and nobody who does not use Firestore
for Google's libraries.
"""


def __getattr__(name: str) -> Any:
    """Import a name from its room."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names that the package has, imported or not."""
    return sorted({*globals(), *__all__})
