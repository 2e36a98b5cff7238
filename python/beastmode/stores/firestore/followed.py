"""What is known of one target that a Listen stream follows: its documents' versions, its token."""

from __future__ import annotations

from typing import Final

from beastmode.stores.base import Target

__all__ = ["UNREADABLE", "Followed"]

UNREADABLE: Final = -2
"""The version noted of a document that is there and cannot be read."""
_UNTOLD: Final = -1


class Followed:
    """One target on one stream."""

    __slots__ = (
        "before",
        "current",
        "current_seq",
        "failures",
        "id",
        "proven",
        "retry_at",
        "strikes",
        "suspect",
        "target",
        "token",
        "versions",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.id = 0
        """On the stream; 0 while not asked for."""
        self.current = False
        self.current_seq = 0
        """The message that made it current, or brought its token."""
        self.token = b""
        """Where to go on from on the next stream; empty: from the beginning."""
        self.versions: dict[str, int | None] = {}
        """Its documents as told last, None for those told missing, or `UNREADABLE`."""
        self.before: dict[str, int | None] | None = {}
        """While everything is being told: what was known before, less what was told again."""
        self.failures = 0
        """How often in a row it was put aside."""
        self.proven = False
        """Whether it has been current."""
        self.suspect = False
        """Whether a stream may have ended because of it."""
        self.strikes = 0
        """How often in a row the stream has ended while this target alone was asked for."""
        self.retry_at = 0.0

    @property
    def count(self) -> int:
        """The number of documents it has, as the server counts them in a filter."""
        return sum(version is not None for version in self.versions.values())

    def forget(self) -> None:
        """Expect everything to be told again."""
        self.before = {**(self.before or {}), **self.versions}
        self.versions = {}
        self.token = b""

    def note(self, path: str, version: int | None) -> bool:
        """Take down a document's state; return whether it is another than the one told last."""
        told = self.versions.get(path, _UNTOLD)
        if self.before:
            told_before = self.before.pop(path, _UNTOLD)
            told = told_before if told == _UNTOLD else told
        self.versions[path] = version
        return told != version

    def drop(self, path: str) -> None:
        """Take down that a document is not in the target."""
        self.versions.pop(path, None)
        if self.before:
            self.before.pop(path, None)
