"""A feed and a cache that a test plays, for tests of real-time sync."""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Any

from beastmode.cache.lease import Lease
from beastmode.stores.base import Change, FeedListener, Target
from beastmode.stores.documents import Document
from support import FakeClock


class PlayedFeed:
    """A feed that does nothing until the test makes it."""

    silence_s = 60.0

    def __init__(self, listener: FeedListener, clock: FakeClock) -> None:
        self.listener = listener
        self.asked: dict[str, Target] = {}
        self.log: list[str] = []
        self.heard_at = -inf
        self.clock = clock
        self.error: BaseException | None = None
        self.active = True
        self.documents_read = 0

    @property
    def targets(self) -> int:
        return len(self.asked)

    def add(self, target: Target) -> None:
        self.asked[target.key] = target
        self.log.append(f"+{target.key}")

    def remove(self, target: Target) -> None:
        if self.asked.pop(target.key, None) is not None:
            self.log.append(f"-{target.key}")

    def close(self) -> None:
        self.active = False

    # what the test makes it do

    def hear(self) -> None:
        self.heard_at = self.clock()

    def current(self, *keys: str) -> None:
        self.hear()
        for key in keys or list(self.asked):
            self.listener.on_current(self.asked[key])

    def lose(self, *keys: str) -> None:
        self.heard_at = -inf
        self.listener.on_doubt([self.asked[key] for key in keys or list(self.asked)], "lost")

    def change(self, document: Document) -> None:
        self.hear()
        self.listener.on_change(Change(document))


class Ranked:
    """A cache that tells how often documents are read; it holds everything."""

    def __init__(self) -> None:
        self.installed: list[str] = []
        self.reads: dict[str, int] = {}
        self.log: list[Any] = []

    def read_gap(self, path: str) -> float:
        return 1 / self.reads[path] if path in self.reads else inf

    def apply_change(self, change: Change) -> None:
        raise ValueError("on purpose")

    def cover(self, path: str, lease: Lease) -> bool:
        self.log.append(("cover", path))
        return True

    def uncover(self, paths: Collection[str]) -> None:
        self.log.append(("uncover", *paths))

    def cover_collection(self, collection: str, lease: Lease) -> None:
        self.log.append(("cover all of", collection))

    def uncover_collection(self, collection: str) -> None:
        self.log.append(("uncover all of", collection))

    def doubt_collection(self, collection: str) -> None:
        self.log.append(("doubt all of", collection))

    def doubt(self, paths: Collection[str], *, unknown: bool = False) -> None:
        self.log.append(("doubt", *paths))

    def drain_interest(self, limit: int) -> tuple[list[str], bool]:
        taken, self.installed = self.installed[:limit], self.installed[limit:]
        return taken, True

    def holds(self, path: str) -> bool:
        return True
