"""What an application asks of the optimizer, and what it is answered: plain values, no I/O.

    Request.get("users/7")                      {"op": "get", "path": "users/7"}
    Request.get_many(["users/7", "users/8"])    {"op": "get_many", "paths": [...]}
    Request.query(Query("users", limit=10))     {"op": "query", "collection": "users", "limit": 10}
    Request.set("users/7", {"name": "Ada"})     {"op": "set", "path": ..., "data": {...}}
    Request.merge(path, data)                   {"op": "merge", ...}
    Request.update(path, {"address.city": 1})   {"op": "update", ...}
    Request.delete("users/7")                   {"op": "delete", "path": ...}
    Request.commit([Set(...), Delete(...)])     all or nothing, written through
    Request.heartbeat()                         {"op": "heartbeat"}

Both columns mean the same; mappings come from decoded JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, get_args

from beastmode.errors import RequestError
from beastmode.stores.base import Filter, Order, Query
from beastmode.stores.documents import (
    Delete,
    Document,
    Merge,
    Operation,
    Precondition,
    Set,
    Update,
    check_path,
)

__all__ = ["Op", "Request", "Response", "Source"]

Op = Literal["get", "get_many", "query", "set", "merge", "update", "delete", "commit", "heartbeat"]
Source = Literal["hit", "stale", "store", "buffer", "journal", "table"]

_OPS: Final = get_args(Op)
_WRITES: Final = frozenset({"set", "merge", "update", "delete", "commit"})


class Request:
    """One request: make it with the class methods, or from a mapping with `parse`.

    Immutable by convention; may be sent any number of times and by many users. Malformed ones
    raise RequestError when they are made.
    """

    __slots__ = ("op", "operations", "path", "paths", "query_of")

    def __init__(
        self,
        op: Op,
        *,
        path: str | None = None,
        paths: tuple[str, ...] = (),
        query_of: Query | None = None,
        operations: tuple[Operation, ...] = (),
    ) -> None:
        if op == "get":
            check_path(path)
        elif op == "get_many":
            if not isinstance(paths, tuple):
                raise RequestError(f"get_many takes a list of paths, got {paths!r}")
            for each in paths:
                check_path(each)
        elif op == "query":
            if not isinstance(query_of, Query):
                raise RequestError(f"query takes a Query, got {query_of!r}")
        elif op in _WRITES:
            _check_operations(op, operations)
        elif op != "heartbeat":
            raise RequestError(f"a request's op must be one of {', '.join(_OPS)}; got {op!r}")
        self.op = op
        self.path = path
        self.paths = paths
        self.query_of = query_of
        self.operations = operations

    @classmethod
    def get(cls, path: str) -> Request:
        """Ask for one document."""
        return cls("get", path=path)

    @classmethod
    def get_many(cls, paths: Iterable[str]) -> Request:
        """Ask for several documents, answered in the same order."""
        if isinstance(paths, str) or not isinstance(paths, Iterable):
            raise RequestError(f"get_many takes a list of paths, got {paths!r}")
        return cls("get_many", paths=tuple(paths))

    @classmethod
    def query(cls, query: Query) -> Request:
        """Ask for the documents that a query describes."""
        return cls("query", query_of=query)

    @classmethod
    def set(
        cls, path: str, data: Mapping[str, Any], precondition: Precondition | None = None
    ) -> Request:
        """Replace or create a document."""
        return cls("set", path=path, operations=(Set(path, data, precondition),))

    @classmethod
    def merge(
        cls, path: str, data: Mapping[str, Any], precondition: Precondition | None = None
    ) -> Request:
        """Merge fields into a document, or create it."""
        return cls("merge", path=path, operations=(Merge(path, data, precondition),))

    @classmethod
    def update(
        cls, path: str, data: Mapping[str, Any], precondition: Precondition | None = None
    ) -> Request:
        """Replace fields of an existing document, named by dotted paths."""
        return cls("update", path=path, operations=(Update(path, data, precondition),))

    @classmethod
    def delete(cls, path: str, precondition: Precondition | None = None) -> Request:
        """Remove a document."""
        return cls("delete", path=path, operations=(Delete(path, precondition),))

    @classmethod
    def commit(cls, operations: Iterable[Operation]) -> Request:
        """Apply several operations in order, all or none; answered when the store has them."""
        if not isinstance(operations, Iterable):
            raise RequestError(f"commit takes a list of operations, got {operations!r}")
        return cls("commit", operations=tuple(operations))

    @classmethod
    def heartbeat(cls) -> Request:
        """Say that the user is still there; touches no document."""
        return cls("heartbeat")

    @classmethod
    def parse(cls, request: object) -> Request:
        """Return a Request, or make one from a mapping such as decoded JSON."""
        if isinstance(request, Request):
            return request
        if not isinstance(request, Mapping):
            raise RequestError(
                f"a request must be a Request or a mapping with 'op', got {request!r}"
            )
        op = request.get("op")
        if not isinstance(op, str) or op not in _PARSERS:
            raise RequestError(f"a request's op must be one of {', '.join(_OPS)}; got {op!r}")
        parser, needed, optional = _PARSERS[op]
        names = set(request) - {"op"}
        if missing := sorted(needed - names):
            raise RequestError(f"a request {op!r} must have {', '.join(missing)}")
        if unknown := sorted(map(str, names - needed - optional)):
            allowed = ", ".join(sorted(needed | optional)) or "nothing beside op"
            raise RequestError(
                f"a request {op!r} has unknown {', '.join(unknown)}; it takes {allowed}"
            )
        return parser(request)

    def __repr__(self) -> str:
        details = (self.path, self.paths, self.query_of, self.operations)
        shown = ", ".join(repr(detail) for detail in details if detail)
        return f"Request.{self.op}({shown})"


def _check_operations(op: str, operations: object) -> None:
    if not isinstance(operations, tuple) or not operations:
        raise RequestError(f"{op} takes at least one operation, got {operations!r}")
    for number, operation in enumerate(operations):
        if not isinstance(operation, (Set, Merge, Update, Delete)):
            raise RequestError(
                f"{op} takes operations (Set, Merge, Update, Delete); item {number} is "
                f"{operation!r}"
            )


def _precondition(request: Mapping[str, Any]) -> Precondition | None:
    given = request.get("precondition")
    if given is None or isinstance(given, Precondition):
        return given
    if not isinstance(given, Mapping) or set(given) - {"exists", "version"}:
        raise RequestError(f"precondition takes exists or version, got {given!r}")
    return Precondition(**given)


def _parse_query(request: Mapping[str, Any]) -> Request:
    for name in ("where", "order_by"):
        if isinstance(request.get(name), str):
            raise RequestError(f"a query's {name} takes a list, got {request[name]!r}")
    try:
        where = tuple(Filter(*item) for item in request.get("where", ()))
        order_by = tuple(
            Order(item) if isinstance(item, str) else Order(*item)
            for item in request.get("order_by", ())
        )
    except TypeError as error:
        raise RequestError(
            "a query's where takes [field, op, value] items and order_by fields or "
            f"[field, descending] items: {error}"
        ) from None
    return Request.query(Query(request["collection"], where, order_by, request.get("limit")))


def _written(make: Callable[..., Request]) -> Callable[[Mapping[str, Any]], Request]:
    return lambda request: make(request["path"], request["data"], _precondition(request))


_Parser = tuple[Callable[[Mapping[str, Any]], Request], set[str], set[str]]
_WRITE: Final = ({"path", "data"}, {"precondition"})
_PARSERS: Final[Mapping[str, _Parser]] = {
    "get": (lambda request: Request.get(request["path"]), {"path"}, set()),
    "get_many": (lambda request: Request.get_many(request["paths"]), {"paths"}, set()),
    "query": (_parse_query, {"collection"}, {"where", "order_by", "limit"}),
    "set": (_written(Request.set), *_WRITE),
    "merge": (_written(Request.merge), *_WRITE),
    "update": (_written(Request.update), *_WRITE),
    "delete": (
        lambda request: Request.delete(request["path"], _precondition(request)),
        {"path"},
        {"precondition"},
    ),
    "commit": (lambda request: Request.commit(request["operations"]), {"operations"}, set()),
    "heartbeat": (lambda request: Request.heartbeat(), set(), set()),
}


class Response:
    """One answer.

    `source` tells where it came from: 'hit' the cache, 'stale' the cache while the store fails,
    'store' the store, 'buffer' our own writes that the store does not have yet; a write is
    acknowledged by the 'journal' or by the 'store'; a heartbeat by the connection 'table'.
    """

    __slots__ = ("document", "documents", "source", "versions")

    def __init__(
        self,
        source: Source,
        document: Document | None = None,
        documents: list[Document] | None = None,
        versions: list[int] | None = None,
    ) -> None:
        self.source = source
        self.document = document
        """The document asked for by `get`; a tombstone when there is none."""
        self.documents = documents
        """The documents asked for by `get_many` or `query`."""
        self.versions = versions
        """What a write that the store acknowledged made, one version for each operation."""

    @property
    def data(self) -> Mapping[str, Any] | None:
        """The fields of `document`, read-only; None when there is no such document."""
        return None if self.document is None else self.document.data

    def __repr__(self) -> str:
        named = ((name, getattr(self, name)) for name in ("document", "documents", "versions"))
        parts = [f", {name}={value!r}" for name, value in named if value is not None]
        return f"Response({self.source!r}{''.join(parts)})"
