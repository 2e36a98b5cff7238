"""`Intake`: a write's way from its caller to the journal and into the pending operations.

Order: the journal calls back in the order of its sequence numbers, and only then does an
operation become pending, so the order in memory is that of a replay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from beastmode.batcher.batches import Limits
from beastmode.batcher.entries import WriteCall
from beastmode.batcher.flusher import Flusher
from beastmode.batcher.outside import Callbacks, WriteJournal
from beastmode.batcher.pending import PendingWrites
from beastmode.batcher.waiting import LoopWaiter, ThreadWaiter, Waiter
from beastmode.errors import BufferFullError, ClosedError, RequestError, StoreTimeout
from beastmode.stores.documents import Delete, Merge, Operation, Set, Update, detached
from beastmode.stores.operation_codec import EncodedOperation, encode_operation

__all__ = ["Intake", "Until", "because", "prepare"]

Until = Literal["journal", "store"]


class Intake:
    """See the module. `changed` is the condition over the batcher's lock."""

    def __init__(
        self,
        pending: PendingWrites,
        flusher: Flusher,
        journal: WriteJournal | None,
        callbacks: Callbacks,
        changed: threading.Condition,
    ) -> None:
        self._pending = pending
        self._flusher = flusher
        self._journal = journal
        self._callbacks = callbacks
        self._changed = changed
        self.closing = False

    def check_open(self) -> None:
        """Raise ClosedError when no more writes are taken."""
        if self.closing:
            raise ClosedError("the batcher is closed")

    def close(self) -> None:
        """Take no more writes, and send away those who wait for room. The lock is held."""
        self.closing = True
        error = ClosedError("the batcher was closed; the write was not accepted")
        for room in self._pending.give_up_all():
            room.resolve(error=error)

    # Operations that are one commit.

    def enqueue(self, call: WriteCall, waiter: Waiter) -> None:
        """Hand a write that is one commit to the flushing thread."""
        with self._changed:
            self.check_open()
            call.waiter = waiter
            call.stage = "queued"
            call.after = self._pending.accepted
            self._flusher.direct.append(call)
            self._changed.notify_all()

    # Operations that are buffered.

    def reserve(self, call: WriteCall, room: Waiter) -> bool:
        """Take room; False when `room` has to be waited for."""
        with self._changed:
            self.check_open()
            if self._pending.reserve(len(call.operations), sum(call.sizes), room):
                return True
            self._changed.notify_all()  # a flush makes room
            return False

    def _leave_queue(self, call: WriteCall, room: Waiter) -> None:
        """Stop waiting for room: BufferFullError, unless it has come after all."""
        with self._changed:
            if not self._pending.give_up(room):
                if room.error is not None:
                    raise room.error
                return
            held, held_bytes = self._pending.ops_held, self._pending.bytes_held
            failure = self._flusher.last_error
        raise BufferFullError(
            f"no room for {len(call.operations)} operations: {held} "
            f"operations of {held_bytes} bytes wait for the store (max_pending_ops = "
            f"{self._pending.max_pending_ops}, max_pending_bytes = "
            f"{self._pending.max_pending_bytes}){because(failure)}"
        ) from failure

    def wait_for_room(self, call: WriteCall, room: ThreadWaiter, patient: bool) -> None:
        """Wait, or give up at once; an interrupted call gives back its room."""
        try:
            came = patient and room.wait(call.deadline)
        except BaseException:  # KeyboardInterrupt
            self._drop_room(call, room)
            raise
        self._enter(call, room, came)

    async def await_room(self, call: WriteCall, room: LoopWaiter, patient: bool) -> None:
        """As `wait_for_room`, on the event loop; a cancelled call gives back its room."""
        try:
            came = patient and await room.wait(call.deadline)
        except BaseException:  # CancelledError
            self._drop_room(call, room)
            raise
        self._enter(call, room, came)

    def _enter(self, call: WriteCall, room: ThreadWaiter | LoopWaiter, came: bool) -> None:
        if came:
            room.result()
        else:
            self._leave_queue(call, room)

    def _drop_room(self, call: WriteCall, room: Waiter) -> None:
        with self._changed:
            if not self._pending.give_up(room) and room.error is None:
                self._give_room_back(call)

    def submit(
        self, call: WriteCall, encoded: list[EncodedOperation], waiter: Waiter, until: Until
    ) -> None:
        """Have a call journaled whose room is reserved; `waiter` is resolved at `until`."""
        call.waiter = waiter
        call.stage = "on the way into the journal"
        if self._journal is None:
            self._accept(call, None, until)
            return

        def done(seqs: list[int] | None, error: BaseException | None) -> None:
            if seqs is None:
                self._refuse(call, error)
            else:
                self._accept(call, seqs, until)

        try:
            self._journal.submit(encoded, done)
        except BaseException:
            with self._changed:
                self._give_room_back(call)
            raise

    def _accept(self, call: WriteCall, seqs: list[int] | None, until: Until) -> None:
        self._callbacks.accepted(call.operations)
        with self._changed:
            buffer = self._pending.buffer
            slept = not buffer
            self._pending.accept(call, seqs)
            call.stage = "accepted"
            if until == "journal":
                waiter, call.waiter = call.waiter, None
                if waiter is not None:
                    waiter.resolve()
            if until == "store" or self.closing:
                self._flusher.request_flush()
            elif slept or buffer.due():
                self._changed.notify_all()

    def _refuse(self, call: WriteCall, error: BaseException | None) -> None:
        with self._changed:
            self._give_room_back(call)
            waiter, call.waiter = call.waiter, None
            if waiter is not None:
                waiter.resolve(error=error)

    def _give_room_back(self, call: WriteCall) -> None:
        self._pending.unreserve(len(call.operations), sum(call.sizes))
        self._flusher.wake_idle_waiters()

    def abandon(self, call: WriteCall, waiter: Waiter) -> None:
        """Stop waiting for an acknowledgement: StoreTimeout, unless it has come after all."""
        with self._changed:
            if call.waiter is not waiter:
                return
            call.waiter = None
            stage, failure = call.stage, self._flusher.last_error
            if stage == "queued":
                self._flusher.direct.remove(call)
        outcome = {
            "queued": "it was not committed and will not be",
            "committing": "the store was still at it, so it may be committed or not",
            "accepted": "it is accepted and will be committed later",
        }.get(stage, "the journal was still at it, so it may be accepted or not")
        raise StoreTimeout(
            f"the write was not acknowledged before the deadline: {outcome}{because(failure)}"
        ) from failure


def prepare(
    operations: Sequence[Operation],
    deadline: float,
    *,
    direct: bool,
    limits: Limits,
    max_ops: int,
    check: Callable[[Operation], object] | None = None,
) -> tuple[WriteCall, list[EncodedOperation] | None]:
    """Check and copy what a caller gave; without encoded operations it is one commit.

    It is one with `direct`, and when an operation has a precondition. Raises RequestError, and
    BufferFullError for more operations than can ever be held. A buffered operation that no commit
    of the store can hold is a RequestError, as is what `check`, the store's own, refuses.
    """
    copies = [_copied(operation, at) for at, operation in enumerate(operations)]
    if check is not None:
        for operation in copies:
            check(operation)
    if direct or any(operation.precondition is not None for operation in copies):
        return WriteCall(copies, (), deadline), None
    encoded = [encode_operation(operation) for operation in copies]
    if len(encoded) > max_ops:
        raise BufferFullError(
            f"a write takes at most max_pending_ops = {max_ops} operations, got {len(encoded)}"
        )
    for at, (operation, item) in enumerate(zip(copies, encoded, strict=True)):
        if (size := limits.oversize(operation, item.size)) is not None:
            raise RequestError(
                f"operation {at}, on {operation.path!r}, takes {size} bytes of a commit; "
                f"the store takes at most {limits.max_bytes}"
            )
    return WriteCall(copies, [item.size for item in encoded], deadline), encoded


def _copied(operation: Any, at: int) -> Operation:
    """Return the operation with read-only fields: the caller may change his own meanwhile."""
    if isinstance(operation, (Set, Merge, Update, Delete)):
        return detached(operation)
    raise RequestError(f"operation {at} must be a Set, Merge, Update or Delete, got {operation!r}")


def because(failure: BaseException | None) -> str:
    """Return the end of an error's text that tells the latest failure of a commit."""
    return "" if failure is None else f"; the latest failure was {failure!r}"
