"""Single-flight for plain functions: concurrent calls of one key by threads share one run.

Both twins of `cached` use it, on misses only. No thread is started here.

Design. The first thread that misses leads: it runs the function, while the others wait for a
lock that it holds. They get its result, or a copy of its `Exception` with the original as cause.

1. Where the leader is thrown out by anything else (KeyboardInterrupt, SystemExit), or its process
   was forked away, the run is abandoned: the lock is free or of another process, nothing is
   settled, and one of the others leads next.
2. The lock is held in a `with` statement from before the run can be found, so no moment exists
   in which an interrupt would leave the others waiting.
3. A leader looks into the cache again once it leads: the run before it may just have ended.
4. A thread that would wait for itself runs the function directly: for a run that it leads
   itself, and for one that waits, through whatever runs and threads, for a run of its own. The
   wait is noted first and looked for in circles then, so of two threads that begin to wait for
   each other at least one sees it. Threads are tied together by their contexts only: a leader
   that waits for a thread which it started without its context is not seen to wait.
5. What a run leads to lies in its `Outcome`, which only the waiting threads keep: the run itself
   may be kept by a context that code in it has copied.

Thread rule: everything changes in single operations of dicts and lists.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from typing import Any, Protocol, cast

from beastcore._failure import clean_copy
from beastcore._runs import Run, current_run, running_here

__all__ = ["MISSING", "SyncCall", "ThreadFlights"]

MISSING = object()
"""Stands for a result that is not kept."""


class SyncCall(Protocol):
    """One call of a plain function, as both twins hand it to this module."""

    def get_key(self) -> Hashable:
        """Return its key."""

    def get_function(self) -> object:
        """Return the function."""

    def look(self) -> Any:
        """Return the kept result if it is fresh, counting a hit, else MISSING."""

    def run(self) -> Any:
        """Run the function, counting a miss, and keep what it returns or raises."""

    def note_hit(self) -> None:
        """Count a hit."""


class Outcome:
    """What a run led to, once `settled`."""

    __slots__ = ("error", "settled", "value")

    def __init__(self) -> None:
        self.settled = False
        self.value: Any = None
        self.error: Exception | None = None

    def get(self) -> Any:
        """Return the result or raise a copy of the error, whose cause is the error itself.

        Two threads that raise one exception would write into each other's traceback.
        """
        if self.error is None:
            return self.value
        raise _copy_for_another_thread(self.error)


def _copy_for_another_thread(error: Exception) -> Exception:
    """Return a copy of `error` caused by it; the error itself if it has no copy."""
    copy = clean_copy(error)
    if copy is None:
        return error
    copy.__cause__ = error
    return copy


class ThreadRun(Run):
    """A run that one thread leads, holding `lock`; `outcome` is None once it is over."""

    __slots__ = ("lock", "outcome", "pid")

    def __init__(self) -> None:
        super().__init__(threading.get_ident())
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.outcome: Outcome | None = Outcome()

    def end(self) -> None:
        super().end()
        self.outcome = None


class ThreadFlights:
    """The runs under way, and the refreshes claimed, for one result store."""

    __slots__ = ("claims", "runs")

    def __init__(self) -> None:
        self.runs: dict[Hashable, ThreadRun] = {}
        self.claims: dict[Hashable, object] = {}

    def __len__(self) -> int:
        """Return the number of runs under way and refreshes claimed."""
        return len(self.runs) + len(self.claims)

    def forget(self) -> None:
        """Let no later call join a run that is under way; waiting threads get its result."""
        self.runs = {}
        self.claims = {}

    def answer(self, call: SyncCall) -> Any:
        """Answer a call: run the function, or wait for the thread that does."""
        key = call.get_key()
        while True:
            runs = self.runs
            run = runs.get(key)
            if run is None:
                mine = ThreadRun()
                try:
                    with mine.lock:
                        run = runs.setdefault(key, mine)
                        if run is mine:
                            return _lead(runs, key, mine, call)
                finally:
                    # Not earlier, for it holds up who waits until the lock is free; nor later, for
                    # they need not have woken up when this thread begins to wait for one of them.
                    mine.owner = None
            outcome = run.outcome
            if outcome is not None and run.pid == os.getpid():
                if not _wait(run):
                    return call.run()
                if outcome.settled:
                    call.note_hit()
                    return outcome.get()
            _discard(runs, key, run)


def _lead(runs: dict[Hashable, ThreadRun], key: Hashable, mine: ThreadRun, call: SyncCall) -> Any:
    """Run the function for all who wait for `mine`, whose lock this thread holds."""
    outcome = cast(Outcome, mine.outcome)
    outer = running_here()
    token = None
    try:
        token = current_run.set(mine)
        if outer is not None:
            outer.waits.append(mine)
        value = call.look()
        if value is MISSING:
            value = call.run()
    except Exception as error:
        outcome.error = error
        outcome.settled = True
        raise
    else:
        outcome.value = value
        outcome.settled = True
        return value
    finally:
        del outcome  # it refers to the error, whose traceback refers to this frame
        mine.end()
        if token is not None:
            current_run.reset(token)
        if outer is not None:
            outer.stop_waiting(mine)
        if runs.get(key) is mine:
            del runs[key]


def _wait(run: ThreadRun) -> bool:
    """Wait until `run` is over; False, at once, if it waits for this thread."""
    current = running_here()
    if current is not None:
        current.waits.append(run)
    try:
        if run.reaches(current, threading.get_ident()):
            return False
        with run.lock:
            return True
    finally:
        if current is not None:
            current.stop_waiting(run)


def _discard(runs: dict[Hashable, ThreadRun], key: Hashable, run: ThreadRun) -> None:
    """Forget a run that was abandoned."""
    if runs.get(key) is run:
        other = runs.pop(key, run)
        if other is not run:  # another thread was faster, and this is the run of the next leader
            runs.setdefault(key, other)
