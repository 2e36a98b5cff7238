"""What a batcher is given from outside: a journal and the functions it calls."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from beastmode.stores.documents import Operation
from beastmode.stores.operation_codec import EncodedOperation

__all__ = ["Callbacks", "JournalCounts", "WriteJournal"]

logger = logging.getLogger(__name__)


class JournalCounts(Protocol):
    """The counters of a journal that a batcher reports."""

    @property
    def bytes(self) -> int:
        """Size on disk."""
        ...

    @property
    def records(self) -> int:
        """Operations in it."""
        ...

    @property
    def dead_letters(self) -> int:
        """Rejected operations that it keeps."""
        ...

    @property
    def corrupt(self) -> int:
        """Damaged records in quarantine."""
        ...


class WriteJournal(Protocol):
    """What a batcher needs of a journal: the calls without a deadline never wait for the disk.

    `content`, `recover` and `recover_batches` do, before it is written to.
    """

    @property
    def path(self) -> str:
        """Its name, for errors."""
        ...

    def submit(
        self,
        operations: Sequence[EncodedOperation],
        done: Callable[[list[int] | None, BaseException | None], object],
    ) -> None:
        """Make them durable together, then call `done`, in the order of the sequence numbers."""
        ...

    def note_sent(self, batch: str, seqs: Sequence[int], deadline: float | None = None) -> None:
        """Note on the disk that these are about to be sent, only ever together, as `batch`."""
        ...

    def acknowledge(
        self, seqs: Sequence[int], batch: str | None = None, marker_due: float = 0.0
    ) -> None:
        """Forget them: the store has them. The marker of `batch` may go from that time on."""
        ...

    def reject(
        self,
        seqs: Sequence[int],
        reason: str,
        batch: str | None = None,
        marker_due: float = 0.0,
    ) -> None:
        """Keep them as dead letters."""
        ...

    def release(self, batch: str, marker_due: float) -> None:
        """Take the operations of `batch`, which will never be applied, as never sent."""
        ...

    def confirm(self, batches: Sequence[str], deadline: float | None = None) -> None:
        """Have the end of these batches on the disk."""
        ...

    def forget(self, batches: Sequence[str]) -> None:
        """Forget these batches: their markers are gone."""
        ...

    @property
    def syncs_each(self) -> bool:
        """Whether whatever it acknowledges is on the disk itself by then."""
        ...

    @property
    def has_unnoted(self) -> bool:
        """Whether `wait_noted` would wait."""
        ...

    def wait_noted(self, deadline: float) -> None:
        """Wait until what was acknowledged or rejected before cannot be applied again."""
        ...

    def content(self) -> tuple[int, int]:
        """Return how many operations `recover` will return, and their bytes."""
        ...

    def recover(self) -> list[tuple[int, Operation]]:
        """Return what an earlier run left, in order."""
        ...

    def recover_batches(self) -> tuple[list[tuple[str, list[int]]], list[tuple[str, float]]]:
        """Return (name, numbers) of batches that the store may have, and (name, time) of markers.

        The time is that of `time.time` from which the marker may be deleted.
        """
        ...

    def get_stats(self) -> JournalCounts:
        """Return the counters."""
        ...


class Callbacks:
    """The four functions a batcher was given; what they raise is counted and reported."""

    def __init__(
        self,
        on_accepted: Callable[[Operation], object] | None,
        on_committed: Callable[[Operation, int | None], object] | None,
        on_failed: Callable[[Operation, Exception], object] | None,
        on_error: Callable[[BaseException], object] | None,
    ) -> None:
        self._on_accepted = on_accepted
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._on_error = on_error
        self._threads: set[int] = set()
        self.errors = 0

    @property
    def running_here(self) -> bool:
        """Whether this thread is inside one of them."""
        return threading.get_ident() in self._threads

    def accepted(self, operations: Sequence[Operation]) -> None:
        """Tell that operations are about to be visible to readers."""
        if self._on_accepted is not None:
            with self._inside():
                for operation in operations:
                    self._call(self._on_accepted, operation)

    def committed(self, parts: Sequence[tuple[Operation, int | None]]) -> None:
        """Tell that the store has operations; a version of None is not known."""
        if self._on_committed is not None:
            with self._inside():
                for operation, version in parts:
                    self._call(self._on_committed, operation, version)

    def failed(self, operations: Sequence[Operation], error: Exception) -> None:
        """Tell that the store will not have operations."""
        if self._on_failed is not None:
            with self._inside():
                for operation in operations:
                    self._call(self._on_failed, operation, error)

    def error(self, error: BaseException) -> None:
        """Tell of an error that no caller is there to get."""
        if self._on_error is not None:
            with self._inside():
                self._call(self._on_error, error)

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:  # the user's code must not stop the flushing
            self.errors += 1
            logger.exception("a callback of the batcher raised")
            if self._on_error is not None and function is not self._on_error:
                self._call(self._on_error, error)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        me = threading.get_ident()
        self._threads.add(me)
        try:
            yield
        finally:
            self._threads.discard(me)
