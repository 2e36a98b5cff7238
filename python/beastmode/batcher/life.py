"""`BatcherLife`: a batcher's start, flushes, recovery and end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self, TypeGuard

from beastmode.batcher.flusher import Flusher
from beastmode.batcher.intake import Intake, because
from beastmode.batcher.outside import Callbacks, WriteJournal
from beastmode.batcher.pending import PendingWrites
from beastmode.batcher.recovery import recover
from beastmode.batcher.settling import Settling
from beastmode.batcher.waiting import LoopWaiter, ThreadWaiter, left_until
from beastmode.errors import ForkedError, RequestError, StoreTimeout
from beastmode.stores.base import check_count, check_deadline, check_seconds, deadline_in

__all__ = ["BatcherLife", "check_age"]

logger = logging.getLogger(__name__)

_FLUSH_S: Final = 30.0
_JOIN_S: Final = 1.0


class BatcherLife:
    """The half of `BeastModeBatcher` that is not about single writes; that makes the parts."""

    _journal: WriteJournal | None
    _commit_deadline_s: float
    _marker_grace_s: float
    _check_store: Callable[[], object] | None
    _pid: int
    _pending: PendingWrites
    _changed: threading.Condition
    _callbacks: Callbacks
    _flusher: Flusher
    _settling: Settling
    _intake: Intake

    def __init__(self) -> None:
        self._adopted: list[WriteJournal] = []
        self._start_lock = threading.Lock()
        self._adopted_last = 0  # the number of the last operation that was taken up so
        self._replayed = 0
        self._recovered = False
        self._started = False

    def flush(self, deadline: float | None = None) -> None:
        """Wait until everything accepted before is in the store, or was rejected by it.

        None stands for 30 seconds. Raises StoreTimeout naming how many are left; they stay
        pending and are tried again.
        """
        self._check_usable()
        self._check_thread("flush")
        self.start()
        end = self._end(deadline, _FLUSH_S)
        waiter = ThreadWaiter()
        if self._settling.is_flushed(waiter) or waiter.wait(end):
            return
        self._settling.give_up(waiter)

    async def aflush(self, deadline: float | None = None) -> None:
        """Flush without blocking the event loop; see `flush`."""
        self._check_usable()
        if not self._is_ready():
            await asyncio.to_thread(self.start)
        end = self._end(deadline, _FLUSH_S)
        waiter = LoopWaiter()
        if self._settling.is_flushed(waiter) or await waiter.wait(end):
            return
        self._settling.give_up(waiter)

    def drain(self, paths: Iterable[str], deadline: float | None = None) -> bool:
        """Wait until no transform of these documents is pending; return whether there was one.

        Readers of them do, before they ask the store, for `overlay` cannot tell what a transform
        makes of a document. Those accepted later, while it waits, do not count. `deadline` None
        is `commit_deadline_s` from now. Raises StoreTimeout when they are not in the store by
        then; they stay pending.
        """
        self._check_process()
        waiter = ThreadWaiter()
        if not (goal := self._settling.owed(paths, waiter, self._check_wait)):
            return False
        if not waiter.wait(self._end(deadline, self._commit_deadline_s)):
            self._settling.give_up(waiter, goal)
        return True

    async def adrain(self, paths: Iterable[str], deadline: float | None = None) -> bool:
        """As `drain`, without blocking the event loop."""
        self._check_process()
        waiter = LoopWaiter()
        if not (goal := self._settling.owed(paths, waiter, self._check_wait)):
            return False
        if not await waiter.wait(self._end(deadline, self._commit_deadline_s)):
            self._settling.give_up(waiter, goal)
        return True

    def wait_noted(self, deadline: float | None = None) -> None:
        """Return once no write that the store has answered can be applied by the next start.

        For who commits past the batcher: a replay would overwrite that commit. JournalError when
        the journal could not have the answers on the disk itself by `deadline` (None: in
        `commit_deadline_s`).
        """
        end = self._end(deadline, self._commit_deadline_s)
        for journal in self._flusher.journals:
            if journal.has_unnoted:
                journal.wait_noted(end)

    async def await_noted(self, deadline: float | None = None) -> None:
        """As `wait_noted`, without blocking the event loop."""
        if any(journal.has_unnoted for journal in self._flusher.journals):
            await asyncio.to_thread(self.wait_noted, deadline)

    def retry_now(self) -> None:
        """End the pause after a failed flush: there is reason to believe the store is back."""
        with self._changed:
            self._flusher.retry_now()

    def start(self) -> None:
        """Replay what the journal holds and start the flushing thread. Idempotent.

        Recovered operations are visible to readers on return, and committed before newer ones of
        the same documents. Raises JournalError when the journal cannot be read.
        """
        self._check_usable()
        if self._is_ready():
            return
        with self._start_lock:
            if not self._recovered:
                self._recover()
                self._recovered = True
            with self._changed:
                self._intake.check_open()
                self._flusher.start()
                self._started = True

    def _recover(self) -> None:
        own = [] if self._journal is None else [self._journal]
        ready = self._ready_to_adopt()
        self._replayed += self._take_up([*ready, *own])
        del self._adopted[: len(ready)]

    def adopt(self, journals: Sequence[WriteJournal]) -> int:
        """Take over the journals of processes that have ended, the oldest first.

        What they hold is committed before everything that is pending here, and they are told of
        it. They are read while there is room for it; the others wait for a later call, which may
        bring no more, and for `start`. One is read in any case once all before it is settled: so
        no more is held than this process may hold, and what one other was allowed to.

        Returns how many operations were taken up by this call. Raises JournalError when a journal
        cannot be read: then none of `journals` is taken.
        """
        self._check_usable()
        with self._start_lock:
            self._adopted += journals
            if not self._recovered:
                return 0
            try:
                ready = self._ready_to_adopt()
                count = self._take_up(ready) if ready else 0
            except BaseException:
                self._adopted = [held for held in self._adopted if held not in journals]
                raise
            del self._adopted[: len(ready)]
            self._replayed += count
            return count

    def _ready_to_adopt(self) -> list[WriteJournal]:
        """Return the first of the journals that wait, as many as may be read now."""
        ready: list[WriteJournal] = []
        count = size = 0
        for journal in self._adopted:
            more, bytes_more = journal.content()
            count += more
            size += bytes_more
            with self._changed:
                fits = self._pending.fits(count, size)
                if not fits and (ready or not self._flusher.is_done(self._adopted_last)):
                    break
            ready.append(journal)
        return ready

    def let_go(self, journal: WriteJournal) -> None:
        """Forget an adopted journal, which is empty and about to be closed."""
        self._flusher.sender.answered.forget(journal)
        with self._changed:
            held = self._flusher.journals
            self._flusher.journals = tuple(other for other in held if other is not journal)

    def _take_up(self, journals: Sequence[WriteJournal]) -> int:
        found = recover(journals, self._flusher.split, self._marker_grace_s)
        self._callbacks.accepted(found.operations)
        with self._changed:
            known = self._flusher.journals
            more = tuple(journal for journal in journals if journal not in known)
            self._flusher.journals = (*known, *more)
            self._flusher.take_up(found)
            self._adopted_last = self._pending.accepted
        if found.operations:
            logger.info(
                "%d operations replayed from %d journals", len(found.operations), len(journals)
            )
        return len(found.operations)

    def _is_ready(self) -> bool:
        return self._started and self._flusher.running

    def configure(self, *, max_ops: int | None = None, max_delay_s: float | None = None) -> None:
        """Change when a batch is due; both or, on a ConfigError, none."""
        self._check_usable()
        if max_ops is not None:
            check_count("max_ops", max_ops)
        if max_delay_s is not None:
            check_age("max_delay_s", max_delay_s)
        with self._changed:
            if max_ops is not None:
                self._pending.buffer.max_ops = max_ops
            if max_delay_s is not None:
                self._pending.buffer.max_delay = max_delay_s
            self._changed.notify_all()

    def close(self, deadline: float | None = None) -> None:
        """Refuse new writes, flush, and end the flushing thread. Idempotent.

        None stands for 30 seconds. Raises StoreTimeout naming how many operations the store does
        not have at the deadline: they stay in the journal for the next start; without a journal
        they are lost, and `on_failed` is told of each. The journal is not closed: whoever made it
        does that, afterwards. In a child made by fork this does nothing: the writes are the
        parent's.
        """
        if os.getpid() != self._pid:
            return
        if self._flusher.is_this_thread or self._callbacks.running_here:
            raise RequestError(
                "a callback of the batcher cannot close it: it would wait for itself"
            )
        end = self._end(deadline, _FLUSH_S)
        waiter = ThreadWaiter()
        with self._start_lock, self._changed:
            if self._intake.closing:
                return
            self._intake.close()
            self._flusher.request_flush()
            self._flusher.retry_now()
            if self._started:
                self._flusher.start()  # again, should it have died
            quiet = self._flusher.is_done(None)
            if not quiet:
                self._flusher.idle_waiters.append((None, waiter))
        quiet = quiet or waiter.wait(end)
        with self._changed:
            thread = self._flusher.stop()
        if thread is not None:
            thread.join(max(_JOIN_S, left_until(end)) if quiet else _JOIN_S)
        self._settle_rest(stuck=thread is not None and thread.is_alive())

    async def aclose(self, deadline: float | None = None) -> None:
        """Close without blocking the event loop; see `close`."""
        await asyncio.to_thread(self.close, deadline)

    def _settle_rest(self, *, stuck: bool) -> None:
        """Tell of what close() could not get into the store; raises StoreTimeout if anything."""
        with self._changed:
            rest = list(self._pending.open.values())
            direct = [*self._flusher.direct, *self._flusher.committing]
            self._flusher.direct.clear()
            failure = self._flusher.last_error
            count = len(rest) + self._pending.reserved + sum(len(d.operations) for d in direct)
            if not count:
                return
            kept = (
                "they are lost, for there is no journal"
                if self._journal is None
                else f"they stay in the journal {self._journal.path!r} for the next start"
            )
            error = StoreTimeout(
                f"closed with {count} operations that the store did not acknowledge: {kept}"
                + ("; the store is still busy with a commit" if stuck else "")
                + because(failure)
            )
            calls = {id(part.call): part.call for part in rest if part.call is not None}
            for call in [*calls.values(), *direct]:
                waiter, call.waiter = call.waiter, None
                if waiter is not None:
                    waiter.resolve(error=error)
            lost = [] if self._journal is not None or stuck else self._pending.drop_all()
        self._callbacks.failed(lost, error)
        raise error from failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        if not self._is_ready():
            await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Checks.

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"the batcher belongs to process {self._pid}, which forked this one; "
                "make a BeastModeBatcher after the fork"
            )

    def _check_usable(self) -> None:
        self._check_process()
        self._intake.check_open()

    def _check_thread(self, what: str) -> None:
        if self._flusher.is_this_thread or self._callbacks.running_here:
            raise RequestError(f"a callback of the batcher cannot {what}: it would wait for itself")

    def _check_wait(self) -> None:
        self._check_thread("read a document with a pending transform")
        if self._check_store is not None:
            self._check_store()

    def _end(self, deadline: float | None, default_s: float) -> float:
        check_deadline(deadline)
        return deadline_in(default_s) if deadline is None else deadline


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_age(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is finite seconds, zero included."""
    if not (_is_number(value) and value == 0):
        check_seconds(name, value)
