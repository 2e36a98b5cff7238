"""What a process may see of documents that it and others write, checked read by read.

A write of a document is numbered by its process, one after the other; a document tells who wrote
it and with which number. From that, and from the versions, every answer can be judged:

* *own write*: an answer is never older than the last write of the document that this process had
  acknowledged before the read began;
* *monotonic*: no answer is older than one that was complete before the read began, neither by
  version nor by the number of the same writer; and what was seen to be gone does not come back.

The version of a document that does not exist is the time at which the server looked. It is not
compared with documents that come later: the emulator takes that time after it has looked, up to
36 ms were seen, and a document that is written meanwhile has a lower version.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Checker", "Snapshot", "Violation"]

MOST_KEPT = 50


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that an answer broke."""

    rule: str
    path: str
    text: str


@dataclass(slots=True)
class _Known:
    """What this process knows of one document."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    issued: int = 0
    acknowledged: int = 0
    deleted: set[int] = field(default_factory=set)
    """Numbers of own writes that were deletions."""
    version: int = 0
    """The newest version of a document seen in an answer that was complete."""
    gone: int = 0
    """The newest version of a document of which a later answer said that it is gone."""
    own_version: int = 0
    """The version of the newest own write whose version was told."""
    own_versioned: int = 0
    """The number of that write."""
    seen: dict[int, int] = field(default_factory=dict)
    """By writer, the highest number in an answer that was complete."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of a document when a read of it began."""

    acknowledged: int
    version: int
    gone: int
    own_version: int
    own_versioned: int
    seen: Mapping[int, int]


class Checker:
    """Judges the answers of one process, `me`. Safe between threads."""

    def __init__(self, me: int) -> None:
        self.me = me
        self.reads = 0
        self.violated = 0
        self.violations: list[Violation] = []
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def of(self, path: str) -> _Known:
        """Return what is known of `path`."""
        known = self._known.get(path)
        if known is None:
            known = self._known.setdefault(path, _Known())
        return known

    def issue(self, path: str, *, delete: bool = False) -> int:
        """Return the number of the next own write; the caller keeps them in order."""
        known = self.of(path)
        with known.lock:
            known.issued += 1
            if delete:
                known.deleted.add(known.issued)
            return known.issued

    def acknowledge(self, path: str, number: int, version: int | None) -> None:
        """Note that an own write was acknowledged, with the version if that was told."""
        known = self.of(path)
        with known.lock:
            known.acknowledged = max(known.acknowledged, number)
            if version is not None and version > known.own_version:
                known.own_version, known.own_versioned = version, number

    def begin(self, path: str) -> Snapshot:
        """Return what an answer must not fall behind; called before the read."""
        known = self.of(path)
        with known.lock:
            return Snapshot(
                known.acknowledged,
                known.version,
                known.gone,
                known.own_version,
                known.own_versioned,
                dict(known.seen),
            )

    def end(
        self, path: str, before: Snapshot, data: Mapping[str, Any] | None, version: int | None,
        source: str,
    ) -> None:  # fmt: skip
        """Judge an answer; `version` is None where it shows own writes alone."""
        known = self.of(path)
        with known.lock:
            self.reads += 1
            self._judge_version(path, known, before, data, version, source)
            if data is None:
                self._judge_missing(path, known, before)
            else:
                self._judge(path, known, before, int(data["p"]), int(data["n"]), version)

    def end_counter(
        self, path: str, before: Snapshot, data: Mapping[str, Any] | None, version: int | None,
        source: str,
    ) -> None:  # fmt: skip
        """As `end`, for a document that is only counted up, field `c`."""
        count = 0 if data is None else int(data["c"])
        known = self.of(path)
        with known.lock:
            self.reads += 1
            if count < before.acknowledged:
                self._broken("own write", path, f"{count} counted, own {before.acknowledged}")
            if count < before.seen.get(-1, 0):
                self._broken("monotonic", path, f"{count} counted after {before.seen[-1]}")
            known.seen[-1] = max(known.seen.get(-1, 0), count)
            self._judge_version(path, known, before, data, version, source)

    def _judge_version(
        self, path: str, known: _Known, before: Snapshot, data: Mapping[str, Any] | None,
        version: int | None, source: str,
    ) -> None:  # fmt: skip
        if version is None:
            return
        what = f"version {version} ({source}, {data!r:.40})"
        if version < before.version:
            self._broken("monotonic", path, f"{what} after {before.version}")
        elif data is not None and version <= before.gone:
            self._broken("monotonic", path, f"{what} after {before.gone} was gone")
        if data is None:
            known.gone = max(known.gone, before.version)
        else:
            known.version = max(known.version, version)

    def _judge_missing(self, path: str, known: _Known, before: Snapshot) -> None:
        # Only its own writer deletes a document, so its writer can tell which states are allowed.
        if before.acknowledged and not any(
            number >= before.acknowledged for number in known.deleted
        ):
            self._broken("own write", path, f"missing, own {before.acknowledged} was acknowledged")

    def _judge(
        self, path: str, known: _Known, before: Snapshot, writer: int, number: int,
        version: int | None,
    ) -> None:  # fmt: skip
        if number < before.seen.get(writer, 0):
            self._broken(
                "monotonic", path, f"{writer}:{number} after {writer}:{before.seen[writer]}"
            )
        known.seen[writer] = max(known.seen.get(writer, 0), number)
        if writer == self.me:
            if number < before.acknowledged:
                self._broken("own write", path, f"own {number} after own {before.acknowledged}")
        elif (
            version is not None
            and before.own_versioned
            and before.own_versioned == before.acknowledged
            and version < before.own_version
        ):
            self._broken(
                "own write",
                path,
                f"foreign at {version}, own was acknowledged {before.own_version}",
            )

    def _broken(self, rule: str, path: str, text: str) -> None:
        with self._lock:
            self.violated += 1
            if len(self.violations) < MOST_KEPT:
                self.violations.append(Violation(rule, path, text))
