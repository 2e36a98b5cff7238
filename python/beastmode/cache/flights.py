"""Flights: one load of one key, or of one query, and the readers that wait for it.

A flight is started by one reader, the leader, and joined by every reader of the same key that
comes while it is in the air; threads and event loops mix freely. Its outcome is a concurrent
future. A thread waits on that future; a coroutine waits on a future of its own loop, which
`call_soon_threadsafe` completes. Each waiter has its own deadline and can leave or be cancelled
without touching the flight.

A flight whose leader cannot go on (its event loop was closed or does not run, its task was
cancelled, its thread was interrupted) is abandoned: its waiters start again and one of them
leads. Nothing here knows the cache's lock or the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from beastmode.cache.rules import Key, Policy
from beastmode.errors import StoreTimeout

__all__ = [
    "GRACE_S",
    "AbandonedError",
    "Flight",
    "Versioned",
    "is_loading",
    "loading",
    "running_loop",
]

GRACE_S = 0.5
"""How long after its deadline a load may still end before it is given up."""

_POLL_S = 0.05
"""How often a waiter looks whether the event loop that leads its flight still runs."""


class Versioned(Protocol):
    """What a load brings: a document, or the result of a query."""

    @property
    def version(self) -> int:
        """What was read with a higher one was read later."""


Loaded = TypeVar("Loaded", bound=Versioned)


class AbandonedError(StoreTimeout):
    """The load was given up before it ended; to who waited for it the store was too slow."""


class Flight(Generic[Loaded]):
    """One load of one key. All fields but `future` are guarded by the owner's lock."""

    __slots__ = (
        "background",
        "deadline",
        "future",
        "key",
        "known",
        "live",
        "loop",
        "path",
        "policy",
        "settled",
        "started",
    )

    def __init__(
        self,
        key: Any,
        path: str,
        policy: Policy,
        *,
        started: float,
        deadline: float,
        loop: asyncio.AbstractEventLoop | None,
        background: bool = False,
    ) -> None:
        self.key = key
        self.path = path
        self.policy = policy
        self.started = started
        """When it began, on the cache's clock: what it brings is at least as new."""
        self.deadline = deadline
        """When the store must have answered, on `time.monotonic`."""
        self.loop = loop
        """The event loop that runs the load; None when a thread does."""
        self.background = background
        self.live = True
        """The token: once False, what it brings must not be installed."""
        self.known: Loaded | None = None
        """The newest that others have seen while it was in the air."""
        self.settled = False
        """True once someone has taken on resolving it."""
        self.future: Future[Loaded] = Future()

    def learn(self, known: Loaded) -> None:
        """Take notice of what others have seen: readers that join from now on see no less."""
        if self.known is None or self.known.version < known.version:
            self.known = known

    def newest(self, loaded: Loaded) -> Loaded:
        """Return what it may bring: `loaded`, or what is known and newer.

        Stores may answer in another order than they were asked. What is known and newer was read
        later than `loaded`, so everything that may be done with that may be done with this.
        """
        known = self.known
        return loaded if known is None or known.version <= loaded.version else known

    def resolve(self, outcome: Loaded | Exception) -> None:
        """Hand `outcome` to every waiter; call it once, without holding a lock."""
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)

    def is_dead(self) -> bool:
        """Return whether it will not end: its loop is closed, or the deadline long past."""
        if self.loop is not None and self.loop.is_closed():
            return True
        return time.monotonic() > self.deadline + GRACE_S

    def is_stalled(self, mine: asyncio.AbstractEventLoop | None) -> bool:
        """Return whether a reader who waited for it might wait in vain.

        Besides a dead one, it is one whose event loop does not run at the moment, or runs in the
        very thread (as `mine`) that the reader would block.
        """
        loop = self.loop
        return self.is_dead() or (loop is not None and (loop is mine or not loop.is_running()))

    def outcome(self, limit: float) -> Loaded | Exception:
        """Wait in this thread until `limit` (`time.monotonic`) and return how it ended."""
        future = self.future
        while True:
            left = limit - time.monotonic()
            if left <= 0 and not future.done():
                return self._too_late()
            step = left if self.loop is None else min(left, _POLL_S)
            try:
                error = future.exception(max(step, 0))
            except TimeoutError:
                if self.is_stalled(None):
                    return self._abandoned()
                continue
            if error is None:
                return future.result()
            return error if isinstance(error, Exception) else self._abandoned()

    async def aoutcome(self, limit: float) -> Loaded | Exception:
        """Wait in the running event loop until `limit` and return how it ended."""
        if not self.future.done():
            mine = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = mine.create_future()
            self.future.add_done_callback(lambda _: _wake(mine, waiter))
            is_foreign = self.loop is not None and self.loop is not mine
            while not self.future.done():
                left = limit - time.monotonic()
                if left <= 0:
                    return self._too_late()
                step = min(left, _POLL_S) if is_foreign else left
                done, _ = await asyncio.wait((waiter,), timeout=step)
                if not done and is_foreign and self.is_stalled(None):
                    return self._abandoned()
        error = self.future.exception(0)
        if error is None:
            return self.future.result()
        return error if isinstance(error, Exception) else self._abandoned()

    def _too_late(self) -> StoreTimeout:
        return StoreTimeout(f"the load of {self.path!r} did not end before the read's deadline")

    def _abandoned(self) -> AbandonedError:
        return AbandonedError(f"the load of {self.path!r} was cancelled before it ended")


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    # A RuntimeError says that the waiter's loop is closed: then nobody waits on it any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_release, waiter)


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Mark:
    """Says that the current context is inside a load of `keys` for `owner`."""

    __slots__ = ("keys", "owner")

    def __init__(self, owner: object, keys: Collection[Key]) -> None:
        self.owner: object = owner
        self.keys = keys


# Tasks and threads started inside a load inherit the marks with the context, so a load that
# comes back to its own key by way of another task is noticed as well.
_marks: contextvars.ContextVar[tuple[_Mark, ...]] = contextvars.ContextVar(
    "beastmode_cache_loads", default=()
)


@contextlib.contextmanager
def loading(owner: object, keys: Collection[Key]) -> Iterator[None]:
    """Mark the current context as inside a load of `keys`."""
    mark = _Mark(owner, keys)
    token = _marks.set((*_marks.get(), mark))
    try:
        yield
    finally:
        # Contexts that were copied meanwhile keep the mark, but must not keep the owner.
        mark.owner, mark.keys = None, ()
        _marks.reset(token)


def is_loading(owner: object, key: Key) -> bool:
    """Return whether the current context is inside a load of `key`."""
    return any(mark.owner is owner and key in mark.keys for mark in _marks.get())
