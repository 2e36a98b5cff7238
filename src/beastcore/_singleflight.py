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

Thread rule: the waiters of a `Flight` are touched only by the thread of its loop; `waits` and the
outer dict of `Flights` by any thread, in single list and dict operations.
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

    __slots__ = ("flights", "key", "loop", "name", "running", "task", "waiters", "waits")

    def __init__(
        self, flights: Flights, loop: asyncio.AbstractEventLoop, key: Hashable, name: str
    ) -> None:
        self.flights: Flights | None = flights
        self.loop = loop
        self.key = key
        self.name = name
        self.task: asyncio.Task[Any] | None = None
        self.waiters: list[asyncio.Future[Any]] = []
        self.waits: list[Flight] = []
        self.running = True

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await `work` with this flight as the current one; forget the flight as it ends."""
        _current.set(self)
        try:
            return await work
        finally:
            self.land()

    def land(self) -> None:
        """Make the run unfindable and drop what it refers to. Idempotent."""
        flights, self.flights = self.flights, None
        self.running = False
        self.waits.clear()
        if flights is not None:
            flights.discard(self.loop, self.key, self)

    def wake(self, task: asyncio.Task[Any]) -> None:
        """Hand the outcome of the ended task to every waiter."""
        self.land()  # a task cancelled before its first step never entered run()
        self.task = None
        waiters = [waiter for waiter in self.waiters if not waiter.done()]
        self.waiters.clear()
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
            self.loop.call_exception_handler(
                {
                    "message": f"run of {self.name} failed after all its callers were cancelled",
                    "exception": error,
                    "task": task,
                }
            )

    def reaches(self, target: Flight) -> bool:
        """Whether this run is `target` or waits for it, directly or through others. O(waits)."""
        seen: set[Flight] = set()
        stack = [self]
        while stack:
            flight = stack.pop()
            if flight is target:
                return True
            if flight not in seen:
                seen.add(flight)
                stack.extend(flight.waits)
        return False

    async def wait(self) -> Any:
        """Return the run's result or raise its error; RuntimeError if that would never come."""
        current = _current.get()
        if current is not None and not current.running:
            current = None
        if current is not None:
            if self.reaches(current):
                raise RuntimeError(
                    f"recursive call of {self.name}: its result for these arguments is being "
                    "computed by a run that waits for this call"
                )
            current.waits.append(self)
        future = self.loop.create_future()
        self.waiters.append(future)
        try:
            return await future
        finally:
            if current is not None and current.running:
                current.waits.remove(self)


class Flights:
    """The runs under way for one result store: loop -> key -> `Flight`."""

    __slots__ = ("__weakref__", "loops")

    def __init__(self) -> None:
        self.loops: dict[asyncio.AbstractEventLoop, dict[Hashable, Flight]] = {}

    def __len__(self) -> int:
        """Return the number of runs under way, on all loops."""
        return sum(len(flights) for flights in list(self.loops.values()))

    def find(self, loop: asyncio.AbstractEventLoop, key: Hashable) -> Flight | None:
        """Return the run for `key` that is under way on `loop`. O(1)."""
        flights = self.loops.get(loop)
        return None if flights is None else flights.get(key)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        key: Hashable,
        work: Coroutine[Any, Any, Any],
        name: str,
    ) -> Flight:
        """Start `work` as the run for `key` on `loop`, which must be the running one."""
        flights = self.loops.get(loop)
        if flights is None:
            for other in list(self.loops):
                if other.is_closed():
                    self.loops.pop(other, None)
            flights = self.loops[loop] = {}
        flight = flights[key] = Flight(self, loop, key, name)
        run = flight.run(work)
        try:
            task = loop.create_task(run)
        except BaseException:
            run.close()
            work.close()
            flight.land()
            raise
        flight.task = task
        task.add_done_callback(flight.wake)
        return flight

    def discard(self, loop: asyncio.AbstractEventLoop, key: Hashable, flight: Flight) -> None:
        """Forget `flight` if it is still the run for `key`."""
        flights = self.loops.get(loop)
        if flights is not None and flights.get(key) is flight:
            del flights[key]
            if not flights:
                del self.loops[loop]

    def forget(self) -> None:
        """Let no later call join a run that is under way; present waiters get its result."""
        self.loops.clear()
