"""Paths of documents and collections: parts joined by slashes, checked."""

from __future__ import annotations

from beastmode.errors import RequestError

__all__ = ["check_collection", "check_path", "collection_of"]


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
