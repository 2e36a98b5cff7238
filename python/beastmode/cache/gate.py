"""The lock of a cache, and whether the cache can still be used."""

from __future__ import annotations

import os
import threading

from beastmode.errors import ClosedError, ForkedError

__all__ = ["Gate"]


class Gate:
    """`with gate:` holds the lock of a cache that is open; `with gate.lock:` that of any.

    The lock is never held while the store, a hook or a waiter runs. It is reentrant, because a
    finalizer that the garbage collector runs under it may call the cache.
    """

    __slots__ = ("_pid", "closed", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.closed = False
        self._pid = os.getpid()

    def check(self) -> None:
        """Raise ClosedError, in a child process ForkedError, if the cache cannot be used."""
        if self.closed:
            raise ClosedError("the cache is closed")
        if os.getpid() != self._pid:
            raise ForkedError("the cache was made in the parent process; make one after the fork")

    def __enter__(self) -> None:
        self.check()  # before the lock: in a forked child nobody may ever release it
        self.lock.acquire()
        if self.closed:
            self.lock.release()
            self.check()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
