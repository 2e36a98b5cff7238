"""Single-flight for coroutine functions: concurrent calls of one key share one run.

Both twins of `cached` use it: it works only on a miss, where a task is created anyway.

Design. A `Flights` belongs to one result store (a function's, or one instance's). It keeps, per
event loop, the runs that have started and not ended. A run is a task of its own, so that
cancelling a caller cancels nobody else; every caller waits on a future of its own.

1. A run is found by `find` from `start` until the moment its coroutine ends, never later: a call
   made after a failure starts a new run.
2. A loop is referred to only while one of its runs is under way. Runs that a closed loop left
   behind are dropped when the next loop comes.
3. A run waits for another if code in its context awaits it (`Flight.waits`). A call that would
   close a circle of waiting runs, directly, through other keys or through other functions,
   raises RuntimeError instead of hanging.
4. A run that has ended refers to nothing: a task that it started and that lives on does not keep
   the results alive through its context.

Thread rule: a `Flight` is touched only by the thread of its loop; the outer dict of `Flights` by
any, in single dict operations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from contextvars import ContextVar
from typing import Any

__all__ = ["Flight", "Flights"]

_current: ContextVar[Flight | None] = ContextVar("beastcore_cached_run", default=None)
"""The run in whose context the present code is executed."""


class Flight:
    """One run of a coroutine function for one key on one loop."""

    __slots__ = ("_flights", "_key", "_loop", "_name", "_task", "_waiters", "_waits", "running")

    def __init__(
        self, flights: Flights, loop: asyncio.AbstractEventLoop, key: Hashable, name: str
    ) -> None:
        self._flights: Flights | None = flights
        self._loop = loop
        self._key = key
        self._name = name
        self._task: asyncio.Task[Any] | None = None
        self._waiters: list[asyncio.Future[Any]] = []
        self._waits: list[Flight] = []
        self.running = True

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await `work` with this flight as the current one; forget the flight as it ends."""
        _current.set(self)
        try:
            return await work
        finally:
            self._land()

    def _land(self) -> None:
        """Make the run unfindable and drop what it refers to. Idempotent."""
        flights, self._flights = self._flights, None
        self.running = False
        self._waits.clear()
        if flights is not None:
            flights.discard(self._loop, self._key, self)

    def _wake(self, task: asyncio.Task[Any]) -> None:
        """Hand the outcome of the ended task to every waiter."""
        self._land()  # a task cancelled before its first step never entered _run
        self._task = None
        waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters.clear()
        if task.cancelled():
            for waiter in waiters:
                waiter.cancel()
            return
        error = task.exception()
        if error is None:
            value = task.result()
            for waiter in waiters:
                waiter.set_result(value)
        elif waiters:
            for waiter in waiters:
                waiter.set_exception(error)
        else:
            self._loop.call_exception_handler(
                {
                    "message": f"run of {self._name} failed after all its callers were cancelled",
                    "exception": error,
                    "task": task,
                }
            )

    def _reaches(self, target: Flight) -> bool:
        """Whether this run is `target` or waits for it, directly or through others. O(waits)."""
        seen: set[Flight] = set()
        stack = [self]
        while stack:
            flight = stack.pop()
            if flight is target:
                return True
            if flight not in seen:
                seen.add(flight)
                stack.extend(flight._waits)
        return False

    async def wait(self) -> Any:
        """Return the run's result or raise its error; RuntimeError if that would never come."""
        current = _current.get()
        if current is not None and not current.running:
            current = None
        if current is not None:
            if self._reaches(current):
                raise RuntimeError(
                    f"recursive call of {self._name}: its result for these arguments is being "
                    "computed by a run that waits for this call"
                )
            current._waits.append(self)
        future = self._loop.create_future()
        self._waiters.append(future)
        try:
            return await future
        finally:
            if current is not None and current.running:
                current._waits.remove(self)


class Flights:
    """The runs under way for one result store: loop -> key -> `Flight`."""

    __slots__ = ("__weakref__", "_loops")

    def __init__(self) -> None:
        self._loops: dict[asyncio.AbstractEventLoop, dict[Hashable, Flight]] = {}

    def __len__(self) -> int:
        """Return the number of runs under way, on all loops."""
        return sum(len(flights) for flights in list(self._loops.values()))

    def find(self, loop: asyncio.AbstractEventLoop, key: Hashable) -> Flight | None:
        """Return the run for `key` that is under way on `loop`. O(1)."""
        flights = self._loops.get(loop)
        return None if flights is None else flights.get(key)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        key: Hashable,
        work: Coroutine[Any, Any, Any],
        name: str,
    ) -> Flight:
        """Start `work` as the run for `key` on `loop`, which must be the running one."""
        flights = self._loops.get(loop)
        if flights is None:
            for other in list(self._loops):
                if other.is_closed():
                    self._loops.pop(other, None)
            flights = self._loops[loop] = {}
        flight = flights[key] = Flight(self, loop, key, name)
        run = flight._run(work)
        try:
            task = loop.create_task(run)
        except BaseException:
            run.close()
            work.close()
            flight._land()
            raise
        flight._task = task
        task.add_done_callback(flight._wake)
        return flight

    def discard(self, loop: asyncio.AbstractEventLoop, key: Hashable, flight: Flight) -> None:
        """Forget `flight` if it is still the run for `key`."""
        flights = self._loops.get(loop)
        if flights is not None and flights.get(key) is flight:
            del flights[key]
            if not flights:
                del self._loops[loop]

    def forget(self) -> None:
        """Let no later call join a run that is under way; present waiters get its result."""
        self._loops.clear()
