"""Documents and the operations that change them: plain values, no I/O.

A document is a path (`collection/id`, or deeper: an even number of parts), a mapping of fields
and a version. What a `Document` holds is read-only all the way down, because one object may be
handed to thousands of readers; `to_dict()` makes a copy that the caller owns. Operations follow
Firestore's semantics: `Set` replaces, `Merge` merges maps, `Update` changes fields of an
existing document by dotted path, `Delete` removes. Their fields may be transforms, which are
worked out last: `Set` has replaced the document and `Update` a map before they look.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, NoReturn

from beastmode.errors import DocumentMissing, RequestError
from beastmode.stores.foreign import adopted
from beastmode.stores.ordering import order_key
from beastmode.stores.paths import check_collection, check_path, collection_of
from beastmode.stores.transforms import (
    DELETE_FIELD,
    ArrayRemove,
    ArrayUnion,
    Transform,
    transformed,
)
from beastmode.stores.values import GeoPoint, Reference, Timestamp, Vector

__all__ = [
    "DELETE_FIELD",
    "MAX_DEPTH",
    "Delete",
    "Document",
    "FrozenDict",
    "FrozenList",
    "Merge",
    "Operation",
    "Precondition",
    "Set",
    "Update",
    "apply",
    "check_collection",
    "check_path",
    "collection_of",
    "combine",
    "detached",
    "freeze",
    "has_transforms",
    "thaw",
]

MAX_DEPTH: Final = 100
"""How deep maps and lists may nest in a document."""

_SCALARS: Final = frozenset(
    {str, int, float, bool, bytes, type(None), datetime, Timestamp, GeoPoint, Reference, Vector}
)


def _read_only(self: object, *_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError(
        f"{type(self).__name__} is shared by every reader and read-only; "
        "change a copy: document.to_dict()"
    )


class FrozenDict(dict[str, Any]):
    """A dict that refuses changes; `copy.deepcopy` and `thaw` give an ordinary dict."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _read_only
    clear = pop = popitem = setdefault = update = _read_only

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (dict(self),))


class FrozenList(list[Any]):
    """A list that refuses changes; `copy.deepcopy` and `thaw` give an ordinary list."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _read_only
    append = clear = extend = insert = pop = _read_only
    remove = reverse = sort = _read_only

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(value, memo) for value in self]

    def __reduce__(self) -> tuple[Any, ...]:
        return (list, (list(self),))


def freeze(value: Any) -> Any:
    """Return `value` with every map and list in it replaced by a read-only one; O(size).

    Values of Google's client become our own (see `foreign.adopted`), bytearrays bytes.
    """
    kind = type(value)
    if kind in _SCALARS or kind is FrozenDict or kind is FrozenList:
        return value
    if kind is dict or isinstance(value, Mapping):
        return FrozenDict((key, freeze(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return FrozenList(freeze(item) for item in value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    ours = adopted(value)
    if isinstance(ours, (ArrayUnion, ArrayRemove)):
        return type(ours)(tuple(freeze(item) for item in ours.values))
    return ours


def detached(operation: Operation) -> Operation:
    """Return `operation` with read-only fields that the caller's later changes do not reach.

    The same object where it has them already. O(size).
    """
    if isinstance(operation, Delete):
        return operation
    data = freeze(operation.data)
    return operation if data is operation.data else replace(operation, data=data)


def thaw(value: Any) -> Any:
    """Return a deep copy of `value` in ordinary dicts and lists, for the caller alone; O(size)."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Document:
    """One document as a store knew it at `version`.

    `data` is None for a document that does not exist (a tombstone); otherwise a read-only
    mapping of fields. `version` is an integer that grows with each change of the document.
    """

    path: str
    data: Mapping[str, Any] | None
    version: int

    @property
    def exists(self) -> bool:
        """False for a tombstone."""
        return self.data is not None

    def to_dict(self) -> dict[str, Any] | None:
        """Return a mutable deep copy of `data`, or None for a tombstone."""
        if self.data is None:
            return None
        copied: dict[str, Any] = thaw(self.data)
        return copied


@dataclass(frozen=True, slots=True)
class Precondition:
    """What must hold for an operation to be applied: existence, or an exact version."""

    exists: bool | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        if (self.exists is None) == (self.version is None):
            raise RequestError(
                "a Precondition takes exactly one of exists and version, "
                f"got exists={self.exists!r}, version={self.version!r}"
            )
        if self.exists is not None and not isinstance(self.exists, bool):
            raise RequestError(f"a Precondition's exists must be a bool, got {self.exists!r}")
        version = self.version
        if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
            raise RequestError(f"a Precondition's version must be an int, got {version!r}")


@dataclass(frozen=True, slots=True)
class _Write:
    """An operation that has fields."""

    path: str
    data: Mapping[str, Any]
    precondition: Precondition | None = None
    transforms: bool = field(init=False, repr=False, compare=False)
    """Whether a field is a transform."""

    def __post_init__(self) -> None:
        what = type(self).__name__
        check_path(self.path)
        if not isinstance(self.data, Mapping):
            raise RequestError(f"{what} takes a mapping of fields, got {self.data!r}")
        seen = _Seen(what)
        seen.look_at(self.data, 1)
        if seen.foreign:
            object.__setattr__(self, "data", freeze(self.data))
        object.__setattr__(self, "transforms", seen.transforms)
        _check_precondition(self.precondition, what)


@dataclass(frozen=True, slots=True)
class Set(_Write):
    """Replace the whole document, or create it."""


@dataclass(frozen=True, slots=True)
class Merge(_Write):
    """Merge fields into the document, maps recursively, or create it."""


@dataclass(frozen=True, slots=True)
class Update(_Write):
    """Replace fields of an existing document; keys are dotted paths such as `address.city`.

    None of them may lead through another, as `a.b` does through `a`.
    """

    def __post_init__(self) -> None:
        _Write.__post_init__(self)
        for name in self.data:
            if not all(name.split(".")):
                raise RequestError(f"Update of {self.path!r} has an empty field name in {name!r}")
        if len(self.data) > 1:
            _check_apart(self.path, self.data)


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the document; removing one that does not exist is no error."""

    path: str
    precondition: Precondition | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_precondition(self.precondition, "Delete")


Operation = Set | Merge | Update | Delete


def has_transforms(operation: Operation) -> bool:
    """Return whether what `operation` does depends on the fields it meets, or on the time. O(1)."""
    return not isinstance(operation, Delete) and operation.transforms


def _check_precondition(precondition: object, what: str) -> None:
    if precondition is not None and not isinstance(precondition, Precondition):
        raise RequestError(f"{what} takes a Precondition or None, got {precondition!r}")


class _Seen:
    """What stands in the fields of an operation; RequestError for what may not."""

    __slots__ = ("foreign", "transforms", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.transforms = False
        self.foreign = False

    def look_at(self, value: Any, depth: int, *, listed: bool = False) -> None:
        """Look at a value that is no scalar, at its depth, in a list or not."""
        if depth > MAX_DEPTH:
            raise RequestError(
                f"{self.what} takes maps and lists that nest at most {MAX_DEPTH} deep"
            )
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str) or not key:
                    raise RequestError(
                        f"{self.what} takes field names that are non-empty str, got {key!r}"
                    )
                if type(item) not in _SCALARS:
                    self.look_at(item, depth + 1, listed=listed)
        elif isinstance(value, (list, tuple)):
            for item in value:
                if type(item) not in _SCALARS:
                    self.look_at(item, depth + 1, listed=True)
        else:
            self._look_at_leaf(value, depth, listed)

    def _look_at_leaf(self, value: Any, depth: int, listed: bool) -> None:
        ours = adopted(value)
        if ours is not value:
            self.foreign = True
        if isinstance(ours, Transform):
            if listed:
                raise RequestError(
                    f"{self.what} takes transforms as fields, not inside lists, got {ours!r} in one"
                )
            self.transforms = True
            if isinstance(ours, (ArrayUnion, ArrayRemove)):
                self.look_at(ours.values, depth, listed=True)


def _check_apart(path: str, data: Mapping[str, Any]) -> None:
    """Raise RequestError where one field path leads through another: their order would count.

    That is kept nowhere: a commit sends the fields as one map.
    """
    trails = sorted(name.split(".") for name in data)
    for one, other in pairwise(trails):
        if other[: len(one)] == one:
            raise RequestError(
                f"Update of {path!r} takes field paths none of which leads through another, "
                f"got {'.'.join(one)!r} and {'.'.join(other)!r}"
            )


_ABSENT: Final = object()


class _Writer:
    """Writes an operation's fields into a document of ordinary dicts and lists."""

    __slots__ = ("_now",)

    def __init__(self, now: datetime | None) -> None:
        self._now = now

    def value(self, value: Any, held: Any = _ABSENT) -> Any:
        """Return what a field that holds `held` holds after `value` was written to it."""
        if type(value) in _SCALARS:
            return value
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, Transform):
            return thaw(transformed(value, held, self._now, order_key))
        return thaw(value)

    def merge(self, target: dict[str, Any], fields: Mapping[str, Any]) -> None:
        """Merge `fields` into `target`, maps recursively."""
        for key, value in fields.items():
            if value is DELETE_FIELD:
                target.pop(key, None)
            elif isinstance(value, Mapping) and value:
                held = target.get(key)
                if isinstance(held, dict):
                    self.merge(held, value)
                else:
                    made: dict[str, Any] = {}
                    self.merge(made, value)
                    if made:  # what only removes fields makes no map to remove them from
                        target[key] = made
            else:
                target[key] = self.value(value, target.get(key, _ABSENT))

    def update(self, target: dict[str, Any], fields: Mapping[str, Any]) -> None:
        """Write `fields`, named by dotted paths, into `target`."""
        for dotted, value in fields.items():
            *parents, last = dotted.split(".")
            place = target
            for name in parents:
                inner = place.get(name)
                if not isinstance(inner, dict):
                    if value is DELETE_FIELD:
                        break
                    inner = place[name] = {}
                place = inner
            else:
                if value is DELETE_FIELD:
                    place.pop(last, None)
                else:
                    place[last] = self.value(value, place.get(last, _ABSENT))


def apply(
    operation: Operation, data: Mapping[str, Any] | None, *, now: datetime | None = None
) -> dict[str, Any] | None:
    """Return what the document's fields are after `operation`; preconditions are not looked at.

    `data` (None: no such document) is not changed. `now` is what a `SERVER_TIMESTAMP` becomes,
    RequestError without it. Raises DocumentMissing for an `Update` of a document that does not
    exist. O(size of the document).
    """
    if isinstance(operation, Delete):
        return None
    writer = _Writer(now)
    if isinstance(operation, Set):
        return {key: writer.value(value) for key, value in operation.data.items()}
    result: dict[str, Any] = {} if data is None else thaw(data)
    if isinstance(operation, Merge):
        writer.merge(result, operation.data)
        return result
    if data is None:
        raise DocumentMissing(f"Update: there is no document {operation.path!r}")
    writer.update(result, operation.data)
    return result


def combine(older: Operation, newer: Operation) -> Operation | None:
    """Return one operation that does what `older` followed by `newer` does, or None.

    None where the two must stay two: any precondition; an `Update`, whose failure on a missing
    document must be seen; a transform in the newer one, for who began to read before it is shown
    what the older one made; a transform in the older one, unless the newer leaves nothing of it.
    """
    if older.precondition is not None or newer.precondition is not None:
        return None
    if has_transforms(newer):
        return None
    if isinstance(newer, (Set, Delete)):
        return None if isinstance(older, Update) else newer
    if has_transforms(older):
        return None
    if isinstance(older, Set):
        data = apply(newer, older.data)
        return None if data is None else Set(older.path, data)
    return None
