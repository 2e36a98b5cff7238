"""Plays operations on an optimizer with several workers, each sending one request after another."""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from beastmode.demo.workload import READ, WRITE, Operation
from beastmode.errors import BeastError
from beastmode.optimizer import BeastModeOptimizer
from beastmode.requests import Request

__all__ = ["PATIENCE_S", "Moment", "Player", "Written"]

_TICK_S: Final = 0.1
_MOST_FAILURES: Final = 1_000
PATIENCE_S: Final = 30.0
"""How long a simulated user waits for an answer."""


class Moment(NamedTuple):
    """How far a phase is."""

    elapsed_s: float
    done: int
    """Requests answered, those that failed included."""
    reads: int
    without_store: int
    """Reads whose answer came from the cache or the buffer of writes."""


class Written(NamedTuple):
    """One acknowledged write. `began` and `ended` are places in one sequence of events."""

    began: int
    ended: int
    edit: str


class Player:
    """Plays `operations` once.

    A worker takes the next operation when its last one is answered, so operations begin in order
    and at most `workers` are under way. After each answer it lets the others go on, as a server's
    event loop does between two connections.
    """

    def __init__(
        self,
        optimizer: BeastModeOptimizer,
        operations: Iterator[Operation],
        *,
        workers: int,
        seconds: float | None,
        on_moment: Callable[[Moment], object],
    ) -> None:
        self._handle = optimizer.handle_request
        self._operations = operations
        self._workers = workers
        self._seconds = seconds
        self._on_moment = on_moment
        self._stopped = False
        self._deadline = 0.0
        self._events = itertools.count()
        self.elapsed_s = 0.0
        """From the first request to the last answer."""
        self.issued = 0
        self.failed = 0
        self.first_error = ""
        self.out_of_time = False
        self.sources: tuple[collections.Counter[str], ...] = tuple(
            collections.Counter() for _ in range(3)
        )
        """Answers by where they came from, for each kind of operation."""
        self.written: dict[str, list[Written]] = {}
        """Acknowledged writes by the path of their document."""
        self.moments: list[Moment] = []

    async def play(self) -> None:
        """Play until the operations or the seconds have run out.

        Requests that fail are counted; BeastError when there are too many of them.
        """
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        self._note(began)
        limit = None if self._seconds is None else loop.call_later(self._seconds, self._time_up)
        watch = asyncio.create_task(self._watch(began))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
        finally:
            self.elapsed_s = time.perf_counter() - began
            if limit is not None:
                limit.cancel()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        self._note(began)
        if self.failed >= _MOST_FAILURES:
            raise BeastError(
                f"gave up after {self.failed:,} of {self.issued:,} requests had failed; the first "
                f"one: {self.first_error}"
            )

    def last_second(self) -> tuple[float, float] | None:
        """Return requests per second and hit rate near the end; None for a shorter phase."""
        if self.elapsed_s < 2 or not self.moments:
            return None
        last = self.moments[-1]
        then = next(m for m in reversed(self.moments) if m.elapsed_s <= last.elapsed_s - 1)
        reads = last.reads - then.reads
        if not reads:
            return None
        rate = (last.done - then.done) / (last.elapsed_s - then.elapsed_s)
        return rate, (last.without_store - then.without_store) / reads

    async def _work(self) -> None:
        handle = self._handle
        for kind, user, request in self._operations:
            if self._stopped:
                return
            self.issued += 1
            began = next(self._events) if kind == WRITE else 0
            try:
                response = await handle(user, request, deadline=self._deadline)
            except BeastError as error:
                self._count_failure(error)
            else:
                self.sources[kind][response.source] += 1
                if kind == WRITE:
                    self._keep(request, began)
            await asyncio.sleep(0)

    def _count_failure(self, error: BeastError) -> None:
        self.failed += 1
        self.first_error = self.first_error or f"{type(error).__name__}: {error}"
        if self.failed >= _MOST_FAILURES:
            self._stopped = True

    def _keep(self, request: Request, began: int) -> None:
        for operation in request.operations:
            edit = getattr(operation, "data", {}).get("edit", "")
            kept = Written(began, next(self._events), edit)
            self.written.setdefault(operation.path, []).append(kept)

    def _time_up(self) -> None:
        self._stopped = self.out_of_time = True

    async def _watch(self, began: float) -> None:
        while True:
            self._note(began)
            await asyncio.sleep(_TICK_S)

    def _note(self, began: float) -> None:
        # Not with each request: that would cost as much as a hit does.
        self._deadline = time.monotonic() + PATIENCE_S
        reads = self.sources[READ]
        answered = reads.total()
        moment = Moment(
            time.perf_counter() - began,
            answered + sum(kind.total() for kind in self.sources[1:]) + self.failed,
            answered,
            answered - reads["store"],
        )
        self.moments.append(moment)
        self._on_moment(moment)
