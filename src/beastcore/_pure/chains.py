"""A hash index whose nodes are removed without hashing or comparing their keys again.

A plain dict would call `__hash__` and `__eq__` of a key to delete it, in the middle of an
operation, where both may fail or change the very structure. Here a dict leads from a hash to
the nodes with that hash, and a node is removed by identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["MAX_RESTARTS", "Chains", "changed"]

MAX_RESTARTS = 64
"""How often a search or a merge starts again because user code changed the structure."""


class Node(Protocol):
    """What a node has: its key, and the hash that the key had when the node was made."""

    key: Any
    hash: int


N = TypeVar("N", bound=Node)


def changed(what: str, during: str) -> RuntimeError:
    """Return the error for a structure that user code keeps changing."""
    return RuntimeError(f"the {what} changed again and again while {during} ran")


class Chains(Generic[N]):
    """Nodes by key. `what` names the structure in errors."""

    __slots__ = ("_by_hash", "_count", "_version", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._by_hash: dict[int, list[N]] = {}
        self._count = 0
        self._version = 0

    def find(self, key: object, key_hash: int) -> N | None:
        """Return the node of `key`; starts again when a comparison changed the index."""
        for _ in range(MAX_RESTARTS):
            version = self._version
            for node in self._by_hash.get(key_hash, ()):
                same = node.key is key or node.key == key
                if version != self._version:
                    break
                if same:
                    return node
            else:
                return None
        raise changed(self._what, "a key's __eq__")

    def insert(self, node: N) -> None:
        """Add a node whose key is not there."""
        self._version += 1
        self._by_hash.setdefault(node.hash, []).append(node)
        self._count += 1

    def drop(self, node: N) -> None:
        """Remove a node, by identity."""
        self._version += 1
        nodes = self._by_hash[node.hash]
        if len(nodes) == 1:
            del self._by_hash[node.hash]
        else:
            self._by_hash[node.hash] = [other for other in nodes if other is not node]
        self._count -= 1

    def clear(self) -> None:
        """Remove every node."""
        self._version += 1
        self._by_hash = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[N]:
        for nodes in self._by_hash.values():
            yield from nodes

    def check(self) -> None:
        """Raise AssertionError unless every node stands under its hash."""
        assert self._count == sum(1 for _ in self), "number of nodes"
        for key_hash, nodes in self._by_hash.items():
            assert nodes, "a hash without nodes"
            assert all(node.hash == key_hash for node in nodes), "node under another hash"
