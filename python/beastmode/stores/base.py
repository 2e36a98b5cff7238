"""What a store is: the protocols that every store keeps, and the values they speak in.

`Store` and `AsyncStore` have the same methods, the second one's awaited. One suite of contract
tests runs over every store. Every call takes `deadline`: an absolute time in seconds of
`time.monotonic()` after which the call must have ended (`deadline_in(2.0)` makes one); None takes
the store's own default. A call that cannot end in time raises StoreTimeout.

Versions are integers that grow with each change of a document; they can be compared within one
store, also between processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isnan
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from beastmode.errors import ConfigError, RequestError, StoreTimeout
from beastmode.stores.documents import Document, Operation, check_collection, check_path, freeze
from beastmode.stores.fields import check_text

__all__ = [
    "AsyncStore",
    "Change",
    "Feed",
    "FeedListener",
    "FeedStore",
    "Filter",
    "FilterOp",
    "Order",
    "Query",
    "QueryResult",
    "Store",
    "StoreHealth",
    "Subscription",
    "Target",
    "check_count",
    "check_deadline",
    "check_seconds",
    "deadline_in",
    "remaining",
]

FilterOp = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not-in", "array-contains"]


def _check_field(field: object, what: str) -> None:
    if not isinstance(field, str) or not all(field.split(".")):
        raise RequestError(f"{what} takes a dotted field path such as 'a.b', got {field!r}")
    if not field.isascii():
        check_text(field, field, "")


def _check_items(name: str, items: object, kind: type) -> None:
    if not isinstance(items, (tuple, list)) or not all(isinstance(item, kind) for item in items):
        raise RequestError(f"a Query's {name} must be a tuple of {kind.__name__}, got {items!r}")


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition of a query: `field` is a dotted path, `op` one of `FilterOp`."""

    field: str
    op: FilterOp
    value: Any

    def __post_init__(self) -> None:
        _check_field(self.field, "a Filter")
        if self.op not in get_args(FilterOp):
            allowed = ", ".join(get_args(FilterOp))
            raise RequestError(f"a Filter's op must be one of {allowed}; got {self.op!r}")
        # A value of Google's client becomes our own, and later changes of a list do not count.
        object.__setattr__(self, "value", freeze(self.value))
        if self.op in ("in", "not-in") and not isinstance(self.value, (list, tuple)):
            raise RequestError(f"a Filter with op {self.op!r} takes a list, got {self.value!r}")


@dataclass(frozen=True, slots=True)
class Order:
    """One sort key of a query; documents without the field are left out, as in Firestore."""

    field: str
    descending: bool = False

    def __post_init__(self) -> None:
        _check_field(self.field, "an Order")
        if not isinstance(self.descending, bool):
            raise RequestError(f"an Order's descending must be a bool, got {self.descending!r}")


@dataclass(frozen=True, slots=True)
class Query:
    """Documents directly in `collection` that pass every filter, sorted, at most `limit`.

    They are sorted as in Firestore: by `order_by`, then by the fields of filters with <, <=, >,
    >=, != and not-in that it does not name, alphabetically, then by document id. What is added
    goes in the direction of the last of `order_by`, upwards without any.
    """

    collection: str
    where: tuple[Filter, ...] = ()
    order_by: tuple[Order, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        check_collection(self.collection)
        _check_items("where", self.where, Filter)
        _check_items("order_by", self.order_by, Order)
        fields = [order.field for order in self.order_by]
        if len(set(fields)) < len(fields):
            raise RequestError(f"a Query's order_by must name each field once, got {fields!r}")
        limit: object = self.limit
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0
        ):
            raise RequestError(f"a Query's limit must be positive or None, got {limit!r}")


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The documents a query found, in its order, and the newest version the store had then."""

    documents: list[Document]
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """One document changed: `document` is its new state, a tombstone when it was deleted."""

    document: Document
    inferred: bool = False
    """Nobody told of the deletion: the document was not among those that there are. The
    tombstone's version is then the time of that look, which a write may have crossed."""

    @property
    def path(self) -> str:
        """The changed document's path."""
        return self.document.path


@dataclass(frozen=True, slots=True)
class Target:
    """What to watch: a document, a collection's documents, a query's, or (all None) everything."""

    document: str | None = None
    collection: str | None = None
    query: Query | None = None

    def __post_init__(self) -> None:
        given = (self.document, self.collection, self.query)
        if sum(one is not None for one in given) > 1:
            raise RequestError("a Target takes a document, a collection or a query, not several")
        if self.document is not None:
            check_path(self.document)
        if self.collection is not None:
            check_collection(self.collection)
        query: object = self.query
        if query is not None and not isinstance(query, Query):
            raise RequestError(f"a Target's query must be a Query or None, got {query!r}")

    @property
    def key(self) -> str:
        """What tells targets apart; a Target itself has no hash if its query has a list."""
        if self.document is not None:
            return self.document
        if self.collection is not None:
            return self.collection
        return "" if self.query is None else repr(self.query)

    def as_query(self) -> Query | None:
        """Return what is watched as a query; None for a document, and for everything."""
        return Query(self.collection) if self.collection is not None else self.query


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """Whether a store can be used: `latency_s` is how long it took, `detail` says what failed.

    `error` is what the probe failed with, where it did: a StoreRefused proves that the store
    answers, though it serves nothing.
    """

    ok: bool
    latency_s: float
    detail: str = ""
    error: BaseException | None = field(default=None, compare=False)


@runtime_checkable
class Subscription(Protocol):
    """A running watch. `on_change` is called from a thread of the store, one change at a time."""

    @property
    def active(self) -> bool:
        """False once closed or failed."""
        ...

    @property
    def error(self) -> BaseException | None:
        """Why it ended by itself, or None."""
        ...

    def close(self) -> None:
        """End it; after the return `on_change` is not called any more. Idempotent."""
        ...


class FeedListener(Protocol):
    """Who is told what a `Feed` hears: one call at a time, from threads of the store.

    Calls are made while the feed is locked, so that nothing can overtake them: they must be
    quick, and must not wait for another thread that calls the feed. What they raise is logged;
    the document of a change that could not be taken is then reported as unknown.
    """

    def on_change(self, change: Change) -> object:
        """Hear that a document was found or changed, or (a tombstone) does not exist."""
        ...

    def on_current(self, target: Target) -> object:
        """Hear that all of `target` has been told and is followed from here on."""
        ...

    def on_doubt(self, targets: Sequence[Target] | None, why: str) -> object:
        """Hear that what was told of `targets` (None: of all) may be outdated.

        `on_current` ends the doubt.
        """
        ...

    def on_unknown(self, paths: Sequence[str], why: str) -> object:
        """Hear that the state of these documents is not known, though they are followed as before.

        They left a query, vanished unseen, or their change could not be taken or read. Read them;
        `on_current` says nothing about them, before or after this.
        """
        ...


@runtime_checkable
class Feed(Protocol):
    """Many targets followed at once, added and removed while it runs. Safe between threads.

    A feed that loses the store says so by `on_doubt`, tries again by itself, and goes on from
    where it was; only `close()` ends it.
    """

    @property
    def targets(self) -> int:
        """How many targets it was asked to follow."""
        ...

    @property
    def active(self) -> bool:
        """Whether all it was asked to follow can be heard; False once closed."""
        ...

    @property
    def error(self) -> BaseException | None:
        """The latest failure while something cannot be heard, else None."""
        ...

    @property
    def heard_at(self) -> float:
        """When, on `time.monotonic`, what is not in doubt was last known to be followed.

        Everything that the store had told by then has reached the listener. Not when a message
        was read, which may have waited for that, but when the store was asked for something
        that it has answered since. -inf while nothing is known to be followed.
        """
        ...

    @property
    def silence_s(self) -> float:
        """Seconds of silence after which what is followed is doubted."""
        ...

    @property
    def documents_read(self) -> int:
        """How many documents the store has sent so far, as it bills them: no deletions."""
        ...

    def add(self, target: Target) -> None:
        """Follow `target` too; nothing happens if it is followed already. ClosedError."""
        ...

    def remove(self, target: Target) -> None:
        """Follow `target` no longer; nothing happens if it is not followed."""
        ...

    def close(self) -> None:
        """End it; after the return the listener is told nothing any more. Idempotent."""
        ...


@runtime_checkable
class FeedStore(Protocol):
    """What a `Store` has besides if it can follow many targets at once."""

    def open_feed(self, listener: FeedListener) -> Feed:
        """Return a feed that follows nothing yet. ClosedError once the store is closed."""
        ...


@runtime_checkable
class Store(Protocol):
    """A document store, called from threads. Safe to share between threads."""

    def get(self, path: str, *, deadline: float | None = None) -> Document:
        """Return the document, a tombstone when it does not exist."""
        ...

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """Return the documents in the order of `paths`, tombstones included."""
        ...

    def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """Return the existing documents that `query` describes."""
        ...

    def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """Apply all operations in order, or none, and return each one's resulting version."""
        ...

    def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """Call `on_change` for each change from now on, whoever made it, in commit order.

        Changes of one document that follow each other quickly may come as one, its newest state.
        """
        ...

    def health(self) -> StoreHealth:
        """Probe the store; never raises."""
        ...

    def close(self) -> None:
        """Release everything, ending watches; later calls raise ClosedError. Idempotent."""
        ...


@runtime_checkable
class AsyncStore(Protocol):
    """`Store` with awaited methods; no method blocks the event loop."""

    async def get(self, path: str, *, deadline: float | None = None) -> Document:
        """See `Store.get`."""
        ...

    async def get_many(
        self, paths: Sequence[str], *, deadline: float | None = None
    ) -> list[Document]:
        """See `Store.get_many`."""
        ...

    async def query(self, query: Query, *, deadline: float | None = None) -> QueryResult:
        """See `Store.query`."""
        ...

    async def commit(
        self, operations: Sequence[Operation], *, deadline: float | None = None
    ) -> list[int]:
        """See `Store.commit`."""
        ...

    async def watch(self, target: Target, on_change: Callable[[Change], object]) -> Subscription:
        """See `Store.watch`."""
        ...

    async def health(self) -> StoreHealth:
        """See `Store.health`."""
        ...

    async def close(self) -> None:
        """See `Store.close`."""
        ...


def deadline_in(seconds: float) -> float:
    """Return the deadline that is `seconds` from now."""
    return time.monotonic() + seconds


def check_deadline(deadline: object) -> None:
    """Raise RequestError unless `deadline` is None or a time of `time.monotonic()`."""
    if deadline is None:
        return
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or isnan(deadline):
        raise RequestError(
            f"deadline must be seconds of time.monotonic() or None, got {deadline!r}"
        )


def remaining(deadline: float, what: str) -> float:
    """Return the seconds left until `deadline`; StoreTimeout naming `what` when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise StoreTimeout(
            f"{what}: the deadline passed {-left:.3f} s ago (deadlines are absolute; "
            "deadline_in(seconds) makes one)"
        )
    return left


def check_count(name: str, value: object) -> None:
    """Raise ConfigError unless `value`, the argument `name` of a store, is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive int, got {value!r}")


def check_seconds(name: str, value: object) -> None:
    """Raise ConfigError unless `value`, the argument `name` of a store, is a time to wait."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
        raise ConfigError(f"{name} must be positive, finite seconds, got {value!r}")
