"""How a caller waits for an answer that another thread gives: blocked, or on an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Protocol

__all__ = ["LoopWaiter", "ThreadWaiter", "Waiter", "left_until"]

Answer = list[int] | None


class Waiter(Protocol):
    """Somebody who waits; `resolve` is called once, from any thread, and never blocks."""

    error: BaseException | None
    """The error it was resolved with, at once for every thread."""

    def resolve(self, answer: Answer = None, error: BaseException | None = None) -> None:
        """Give the answer or the error."""
        ...


class ThreadWaiter:
    """A thread that waits."""

    __slots__ = ("_answer", "_gate", "error")

    def __init__(self) -> None:
        self._answer: Answer = None
        self.error: BaseException | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def resolve(self, answer: Answer = None, error: BaseException | None = None) -> None:
        """See `Waiter`."""
        self._answer, self.error = answer, error
        self._gate.release()

    def wait(self, until: float) -> bool:
        """Wait until resolved; False when `until` (`time.monotonic`) came first."""
        return self._gate.acquire(timeout=left_until(until))

    def result(self) -> Answer:
        """Return the answer or raise the error, after `wait` returned True."""
        if self.error is not None:
            raise self.error
        return self._answer


class LoopWaiter:
    """A task of the running event loop that waits; a loop closed meanwhile hears nothing."""

    __slots__ = ("_future", "_loop", "error")

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[tuple[Answer, BaseException | None]] = (
            self._loop.create_future()
        )

    def resolve(self, answer: Answer = None, error: BaseException | None = None) -> None:
        """See `Waiter`."""
        self.error = error
        try:
            self._loop.call_soon_threadsafe(self._set, answer, error)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _set(self, answer: Answer, error: BaseException | None) -> None:
        if not self._future.done():
            self._future.set_result((answer, error))

    async def wait(self, until: float) -> bool:
        """See `ThreadWaiter.wait`."""
        done, _ = await asyncio.wait((self._future,), timeout=left_until(until))
        return bool(done)

    def result(self) -> Answer:
        """See `ThreadWaiter.result`."""
        answer, error = self._future.result()
        if error is not None:
            raise error
        return answer


def left_until(until: float) -> float:
    """Return the seconds left until `until`: at least 0, and at most what a lock can wait."""
    return min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
