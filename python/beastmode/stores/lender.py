"""Lending a bounded number of things to threads, first come, first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from beastmode.errors import ClosedError, StoreTimeout

__all__ = ["Lender"]

T = TypeVar("T")


class _Ticket(Generic[T]):
    """One thread's place in the queue."""

    __slots__ = ("called", "given", "item")

    def __init__(self) -> None:
        self.called = threading.Event()
        self.given = False
        self.item: T | None = None


class Lender(Generic[T]):
    """Lends at most `limit` things, which its users make; `name` tells in errors what they are.

    A plain lock would let a thread that takes and gives back in a loop starve all others; here
    a thing that comes back goes to the thread that has waited longest. O(1) for each call.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[T] = []
        self._count = 0  # those idle, those lent, and the places of those being made
        self._queue: deque[_Ticket[T]] = deque()
        self._closed = False
        self._empty = threading.Condition(self._lock)

    def take(self, what: str, deadline: float) -> T | None:
        """Lend a thing; None means that the caller has a place and must make one for it.

        Raises StoreTimeout naming the call `what` at the deadline, ClosedError after `close`.
        """
        with self._lock:
            if self._closed:
                raise self._closed_error(what)
            if not self._queue:
                if self._idle:
                    return self._idle.pop()
                if self._count < self._limit:
                    self._count += 1
                    return None
            ticket: _Ticket[T] = _Ticket()
            self._queue.append(ticket)
        try:
            ticket.called.wait(max(0.0, deadline - time.monotonic()))
        except BaseException:  # KeyboardInterrupt
            self._withdraw(ticket)
            if ticket.given and (ticket.item is None or not self.give_back(ticket.item)):
                self.drop()
            raise
        self._withdraw(ticket)
        if ticket.given:
            return ticket.item
        if self._closed:
            raise self._closed_error(what)
        raise StoreTimeout(f"{what}: {self._name} in use until the deadline; nothing was done")

    def give_back(self, item: T) -> bool:
        """Take a thing back; False after `close`: dispose of it and call `drop`."""
        with self._lock:
            if self._closed:
                return False
            if self._queue:
                self._call(item)
            else:
                self._idle.append(item)
            return True

    def drop(self) -> None:
        """Forget a lent thing, or the place for one, that is no more."""
        with self._lock:
            if self._queue and not self._closed:
                self._call(None)  # the place goes on
                return
            self._count -= 1
            if not self._count:
                self._empty.notify_all()

    def close(self) -> list[T]:
        """Lend no more; return the idle things, each to be disposed of and `drop`ped."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            while self._queue:
                self._queue.popleft().called.set()
            return idle

    def wait_empty(self, timeout: float) -> bool:
        """Wait until every thing was dropped; return whether that is so."""
        with self._empty:
            return self._empty.wait_for(lambda: not self._count, timeout)

    def _call(self, item: T | None) -> None:
        """Hand a thing or a place to the thread that has waited longest."""
        ticket = self._queue.popleft()
        ticket.item = item
        ticket.given = True
        ticket.called.set()

    def _withdraw(self, ticket: _Ticket[T]) -> None:
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)

    def _closed_error(self, what: str) -> ClosedError:
        return ClosedError(f"{what}: the store is closed")
