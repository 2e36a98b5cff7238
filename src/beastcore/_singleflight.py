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

5. A refresh of a stale result is such a run, which nobody need wait for: its task is referred to
   until it ends, and its error, if no caller has come to wait, goes to the loop's exception
   handler.

Thread rule: the waiters of a `Flight` are touched only by the thread of its loop; `waits` and the
outer dict of `Flights` by any thread, in single list and dict operations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Any

from beastcore._runs import Run, current_run, running_here

__all__ = ["Flight", "Flights"]


class Flight(Run):
    """One run of a coroutine function for one key on one loop.

    A `refresh` is a run that nobody need wait for. Errors of the classes `kept` are answers of
    their own, so they are not reported if nobody waits.
    """

    __slots__ = ("flights", "kept", "key", "loop", "name", "refresh", "task", "waiters")

    def __init__(
        self,
        flights: Flights,
        loop: asyncio.AbstractEventLoop,
        key: Hashable,
        name: str,
        kept: tuple[type[Exception], ...],
        refresh: bool,
    ) -> None:
        super().__init__()
        self.flights: Flights | None = flights
        self.loop = loop
        self.key = key
        self.name = name
        self.kept = kept
        self.refresh = refresh
        self.task: asyncio.Task[Any] | None = None
        self.waiters: list[asyncio.Future[Any]] = []

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await `work` with this flight as the current one; forget the flight as it ends."""
        current_run.set(self)
        try:
            return await work
        finally:
            self.land()

    def land(self) -> None:
        """Make the run unfindable and drop what it refers to. Idempotent."""
        flights, self.flights = self.flights, None
        self.end()
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
        elif not isinstance(error, self.kept):
            what = (
                f"refresh of {self.name} failed; its stale result is served until it expires"
                if self.refresh
                else f"run of {self.name} failed after all its callers were cancelled"
            )
            self.loop.call_exception_handler(
                {
                    "message": what,
                    "exception": error,
                    "task": task,
                }
            )

    async def wait(self) -> Any:
        """Return the run's result or raise its error; RuntimeError if that would never come."""
        current = running_here()
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
            if current is not None:
                current.stop_waiting(self)


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
        kept: tuple[type[Exception], ...] = (),
        *,
        refresh: bool = False,
    ) -> Flight:
        """Start `work` as the run for `key` on `loop`, which must be the running one."""
        flights = self.loops.get(loop)
        if flights is None:
            for other in list(self.loops):
                if other.is_closed():
                    self.loops.pop(other, None)
            flights = self.loops[loop] = {}
        flight = flights[key] = Flight(self, loop, key, name, kept, refresh)
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

    def refresh(
        self,
        loop: asyncio.AbstractEventLoop,
        key: Hashable,
        work: Coroutine[Any, Any, Any],
        name: str,
        kept: tuple[type[Exception], ...],
    ) -> None:
        """Start `work` as a refresh that nobody waits for; the loop hears of all that fails."""
        try:
            self.start(loop, key, work, name, kept, refresh=True)
        except Exception as error:  # noqa: BLE001 - a stale answer is better than none
            message = f"refresh of {name} could not be started; its stale result is served"
            loop.call_exception_handler({"message": message, "exception": error})

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
