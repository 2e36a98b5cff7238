"""Documents and the operations that change them: plain values, no I/O.

A document is a path (`collection/id`, or deeper: an even number of parts), a mapping of fields
and a version. What a `Document` holds is read-only all the way down, because one object may be
handed to thousands of readers; `to_dict()` makes a copy that the caller owns. Operations follow
Firestore's semantics: `Set` replaces, `Merge` merges maps, `Update` changes fields of an
existing document by dotted path, `Delete` removes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from beastmode.errors import DocumentMissing, RequestError

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
    "thaw",
]

MAX_DEPTH: Final = 100
"""How deep maps and lists may nest in a document."""

_SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})


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
    """Return `value` with every map and list in it replaced by a read-only one; O(size)."""
    kind = type(value)
    if kind in _SCALARS or kind is FrozenDict or kind is FrozenList:
        return value
    if kind is dict or isinstance(value, Mapping):
        return FrozenDict((key, freeze(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return FrozenList(freeze(item) for item in value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return value


def detached(operation: Operation) -> Operation:
    """Return `operation` with read-only fields that the caller's later changes do not reach.

    The same object where it has them already. O(size).
    """
    if isinstance(operation, Delete):
        return operation
    data = freeze(dict(operation.data))
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


class _DeleteField:
    """The type of `DELETE_FIELD`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "DELETE_FIELD"

    def __copy__(self) -> _DeleteField:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _DeleteField:
        return self


DELETE_FIELD: Final = _DeleteField()
"""As a value in `Merge` or `Update`: removes the field. Compare with `is`."""


@dataclass(frozen=True, slots=True)
class Set:
    """Replace the whole document, or create it."""

    path: str
    data: Mapping[str, Any]
    precondition: Precondition | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_data(self.data, "Set")
        _check_precondition(self.precondition, "Set")


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge fields into the document, maps recursively, or create it."""

    path: str
    data: Mapping[str, Any]
    precondition: Precondition | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_data(self.data, "Merge")
        _check_precondition(self.precondition, "Merge")


@dataclass(frozen=True, slots=True)
class Update:
    """Replace fields of an existing document; keys are dotted paths such as `address.city`."""

    path: str
    data: Mapping[str, Any]
    precondition: Precondition | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_data(self.data, "Update")
        _check_precondition(self.precondition, "Update")
        for field in self.data:
            if not all(field.split(".")):
                raise RequestError(f"Update of {self.path!r} has an empty field name in {field!r}")


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the document; removing one that does not exist is no error."""

    path: str
    precondition: Precondition | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_precondition(self.precondition, "Delete")


Operation = Set | Merge | Update | Delete


def check_path(path: object) -> str:
    """Return `path` if it names a document: an even number of non-empty parts."""
    if not isinstance(path, str):
        raise RequestError(f"a document path must be a str such as 'users/7', got {path!r}")
    parts = path.split("/")
    if len(parts) % 2 or not all(parts):
        raise RequestError(
            f"a document path must have an even number of non-empty parts such as 'users/7', "
            f"got {path!r}"
        )
    return path


def check_collection(path: object) -> str:
    """Return `path` if it names a collection: an odd number of non-empty parts."""
    if not isinstance(path, str):
        raise RequestError(f"a collection path must be a str such as 'users', got {path!r}")
    parts = path.split("/")
    if not len(parts) % 2 or not all(parts):
        raise RequestError(
            f"a collection path must have an odd number of non-empty parts such as 'users', "
            f"got {path!r}"
        )
    return path


def collection_of(path: str) -> str:
    """Return the collection that the document `path` is in."""
    return path.rpartition("/")[0]


def _check_precondition(precondition: object, what: str) -> None:
    if precondition is not None and not isinstance(precondition, Precondition):
        raise RequestError(f"{what} takes a Precondition or None, got {precondition!r}")


def _check_data(data: object, what: str) -> None:
    if not isinstance(data, Mapping):
        raise RequestError(f"{what} takes a mapping of fields, got {data!r}")
    _check_keys(data, what, 1)


def _check_keys(value: object, what: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RequestError(f"{what} takes maps and lists that nest at most {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key:
                raise RequestError(f"{what} takes field names that are non-empty str, got {key!r}")
            if type(item) not in _SCALARS:
                _check_keys(item, what, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if type(item) not in _SCALARS:
                _check_keys(item, what, depth + 1)


def _merge_into(target: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if value is DELETE_FIELD:
            target.pop(key, None)
        elif isinstance(value, Mapping) and value:
            held = target.get(key)
            if not isinstance(held, dict):
                held = target[key] = {}
            _merge_into(held, value)
        else:
            target[key] = thaw(value)


def _update_into(target: dict[str, Any], fields: Mapping[str, Any]) -> None:
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
                place[last] = thaw(value)


def apply(operation: Operation, data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the document's fields are after `operation`; preconditions are not looked at.

    `data` (None: no such document) is not changed. Raises DocumentMissing for an `Update` of a
    document that does not exist. O(size of the document).
    """
    if isinstance(operation, Delete):
        return None
    if isinstance(operation, Set):
        return {key: thaw(value) for key, value in operation.data.items()}
    result: dict[str, Any] = {} if data is None else thaw(data)
    if isinstance(operation, Merge):
        _merge_into(result, operation.data)
        return result
    if data is None:
        raise DocumentMissing(f"Update: there is no document {operation.path!r}")
    _update_into(result, operation.data)
    return result


def combine(older: Operation, newer: Operation) -> Operation | None:
    """Return one operation that does what `older` followed by `newer` does, or None.

    None where the two must stay two: any precondition, or an `Update`, whose failure on a
    missing document must be seen.
    """
    if older.precondition is not None or newer.precondition is not None:
        return None
    if isinstance(newer, (Set, Delete)):
        return None if isinstance(older, Update) else newer
    if isinstance(older, Set):
        data = apply(newer, older.data)
        return None if data is None else Set(older.path, data)
    return None
