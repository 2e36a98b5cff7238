"""`ConsistencyAuditor`: measures how often the cache is behind its store, by samples.

One of so many answers that came from the cache is looked into:

1. Its document is read from the store: the *reference*, what was true at that moment.
2. 1 s and 10 s later the cache is looked at again, without asking the store. If it still holds
   something older than the reference as fresh, a reader can be given an answer that is outdated
   for longer than that delay: the sample is *stale* at that delay.

Hence a sample costs one read, and a change that came in between, by an own write or heard from the
store, is no false alarm: it makes the cache newer than the reference. What the cache no longer
holds as fresh, or what has own writes on their way, is not judged.

`stale / checked` is published for each delay, with a bound that the true share does not exceed
with 95 % confidence: 3 / n where none of n was stale (J. A. Hanley and A. Lippman-Hand, "If nothing
goes wrong, is everything all right?", JAMA 1983), else E. B. Wilson's score bound (1927).

Reads cost money: a cap per minute bounds them, whatever the traffic.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from beastmode.errors import BeastError, ConfigError
from beastmode.stores.base import check_count, check_seconds, deadline_in
from beastmode.stores.documents import Document

__all__ = ["AuditReport", "ConsistencyAuditor", "DelayReport", "Readable", "upper_bound"]

_MAX_WAITING: Final = 64
_LATE_S: Final = 0.5
_DEADLINE_S: Final = 1.0

Lookup = Callable[[str, str | None], Document | None]


class Readable(Protocol):
    """The part of a `Store` that is needed here."""

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        """See `Store.get_many`."""
        ...


def upper_bound(stale: int, checked: int) -> float | None:
    """Return the share that the true one does not exceed, with 95 % confidence; None for n = 0."""
    if checked <= 0:
        return None
    if stale == 0:
        return min(1.0, 3.0 / checked)
    z = 1.6449  # 95 % one-sided
    share = stale / checked
    spread = z * math.sqrt((share * (1 - share) + z * z / (4 * checked)) / checked)
    return min(1.0, (share + z * z / (2 * checked) + spread) / (1 + z * z / checked))


@dataclass(frozen=True, slots=True)
class DelayReport:
    """How the samples stood after one delay."""

    delay_s: float
    checked: int
    """Samples judged."""
    stale: int
    """Those of which the cache still held something older as fresh."""

    @property
    def stale_ratio(self) -> float | None:
        """Share of stale samples; None before the first."""
        return self.stale / self.checked if self.checked else None

    @property
    def bound(self) -> float | None:
        """What the true ratio does not exceed, with 95 % confidence; None before the first."""
        return upper_bound(self.stale, self.checked)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a `ConsistencyAuditor` has found since it was made."""

    sampled: int
    """Answers chosen."""
    read: int
    """References read from the store; each is billed."""
    capped: int
    """Answers not looked into, because the cap was reached."""
    failed: int
    """References that could not be read."""
    gone: int
    """Checks without a judgement: the cache held it no longer as fresh."""
    unsettled: int
    """Checks without a judgement: own writes of it were on their way."""
    late: int
    """Checks that came too late to say anything about their delay."""
    delays: tuple[DelayReport, ...]


class ConsistencyAuditor:
    """Samples one of `one_in` answers, at most `max_per_minute`; call `tick()` at short intervals.

    `look(path, user)` returns what the cache holds as fresh, or None; `is_pending(path)` says
    whether own writes are on their way. `timer` is a monotonic clock in seconds. ConfigError names
    a bad argument. Safe between threads; `served` is O(1) and takes no lock but for a sample.
    """

    def __init__(
        self,
        store: Readable,
        look: Lookup,
        *,
        one_in: int,
        max_per_minute: int = 60,
        delays_s: Sequence[float] = (1.0, 10.0),
        is_pending: Callable[[str], bool] = lambda path: False,
        timer: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        check_count("one_in", one_in)
        check_count("max_per_minute", max_per_minute)
        if not delays_s:
            raise ConfigError(f"delays_s must name one delay at least, got {delays_s!r}")
        for delay in delays_s:
            check_seconds("delays_s", delay)
        self._store = store
        self._look = look
        self._one_in = one_in
        self._max_per_minute = max_per_minute
        self._is_pending = is_pending
        self._timer = timer
        self._rng = random.Random() if rng is None else rng
        self._lock = threading.Lock()
        self._left = self._gap()
        self._waiting: deque[tuple[str, str | None]] = deque()
        self._numbers = itertools.count()
        self._checks: list[tuple[float, int, float, str | None, Document]] = []
        self._tokens = 1.0
        self._filled_at = timer()
        self._sampled = self._read = self._capped = self._failed = 0
        self._gone = self._unsettled = self._late = 0
        self._checked = dict.fromkeys(delays_s, 0)
        self._stale = dict.fromkeys(delays_s, 0)

    def watch(
        self, lookup: Callable[[str, str | None], Document | None]
    ) -> Callable[[str, str | None], Document | None]:
        """Return `lookup` with its answers sampled."""

        def watched(path: str, user: str | None = None) -> Document | None:
            document = lookup(path, user)
            if document is not None:
                self.served(path, user)
            return document

        return watched

    def served(self, path: str, user: str | None) -> None:
        """Say that an answer came from the cache."""
        self._left -= 1  # threads may lose a count: it is a sample anyway
        if self._left > 0:
            return
        with self._lock:
            self._left = self._gap()
            self._sampled += 1
            if len(self._waiting) >= _MAX_WAITING:
                self._capped += 1
            else:
                self._waiting.append((path, user))

    def configure(self, *, max_per_minute: int) -> None:
        """Change the cap. ConfigError for a bad one."""
        check_count("max_per_minute", max_per_minute)
        self._max_per_minute = max_per_minute

    def tick(self) -> None:
        """Judge what is due, and read references for what was sampled. At most one store call."""
        now = self._timer()
        while self._checks and self._checks[0][0] <= now:
            due, _, delay, user, reference = heapq.heappop(self._checks)
            self._judge(now - due, delay, user, reference)
        wanted = self._take(now)
        if not wanted:
            return
        try:
            references = self._store.get_many(
                [path for path, _ in wanted], deadline=deadline_in(_DEADLINE_S)
            )
        except BeastError:  # it is a measurement: the store's failures are told elsewhere
            self._failed += len(wanted)
            return
        self._read += len(wanted)
        now = self._timer()
        for (_, user), reference in zip(wanted, references, strict=True):
            for delay in self._checked:
                check = (now + delay, next(self._numbers), delay, user, reference)
                heapq.heappush(self._checks, check)

    def get_stats(self) -> AuditReport:
        """Return what was found."""
        return AuditReport(
            sampled=self._sampled,
            read=self._read,
            capped=self._capped,
            failed=self._failed,
            gone=self._gone,
            unsettled=self._unsettled,
            late=self._late,
            delays=tuple(
                DelayReport(delay, self._checked[delay], self._stale[delay])
                for delay in self._checked
            ),
        )

    def _gap(self) -> int:
        # At random, because requests come in rounds; on average one_in.
        return self._rng.randint(1, 2 * self._one_in - 1)

    def _take(self, now: float) -> list[tuple[str, str | None]]:
        """Return the samples that may be read now; those beyond the cap are dropped."""
        a_minute = float(self._max_per_minute)
        # What was saved up and what is earned are no more than the cap in any minute.
        saved = max(1.0, a_minute / 6)
        earned = max(a_minute - saved, a_minute / 2) * (now - self._filled_at) / 60
        self._tokens = min(saved, self._tokens + max(0.0, earned))
        self._filled_at = now
        with self._lock:
            samples = list(dict.fromkeys(self._waiting))
            self._waiting.clear()
            wanted = samples[: int(self._tokens)]
            self._capped += len(samples) - len(wanted)
        self._tokens -= len(wanted)
        return wanted

    def _judge(self, late_s: float, delay: float, user: str | None, reference: Document) -> None:
        if late_s > _LATE_S:
            self._late += 1
            return
        if self._is_pending(reference.path):
            self._unsettled += 1
            return
        held = self._look(reference.path, user)
        if held is None:
            self._gone += 1
            return
        self._checked[delay] += 1
        both_missing = held.data is None and reference.data is None
        self._stale[delay] += held.version < reference.version and not both_missing
