"""Exceptions of the layer, and the engine's, in one tree.

BeastError
+-- CapacityError               something bounded is full; nothing was changed
|   +-- TableFullError          every slot of a ConnectionTable is taken
|   +-- BufferFullError         the write buffer has no room
+-- CacheError                  a read could not be answered for a reason of the cache's own
|   +-- LoadError               a loader returned something that is no Document
+-- StoreError                  the store could not do what was asked
|   +-- StoreUnavailable        it cannot be reached, or refused for the moment
|   |   +-- BreakerOpen         it was not asked, because it has failed again and again
|   +-- StoreTimeout            it did not answer before the deadline
|   +-- StoreRefused            it answered that it serves none of our calls, whatever they ask
|   +-- StoreCorrupt            what it holds cannot be read
|   +-- TransactionConflict     others have written what a transaction read, or hold it
|   +-- WriteRejected           it refused these operations, and always will
|       +-- PreconditionFailed  a precondition of an operation did not hold
|       +-- DocumentMissing     an Update named a document that does not exist
|       +-- CommitTooLarge      together they are more than the store takes at once
+-- JournalError                the write journal cannot be used
|   +-- JournalLocked           another process has it
|   +-- JournalFull             the disk has no room for it; nothing was acknowledged
|   +-- JournalDamaged          its file cannot be read; it was left as it is
+-- ClosedError                 used after close()
|   +-- ForkedError             used in a child of the process that made it
+-- ConfigError (ValueError)    a setting is not allowed
+-- RequestError (ValueError)   a request, path, operation or query is malformed
+-- TraceError (ValueError)     a request trace cannot be read
+-- MissingExtra (ImportError)  a library of an extra is not installed
"""

from __future__ import annotations

from beastcore import BeastError, CapacityError, TableFullError

__all__ = [
    "BeastError",
    "BreakerOpen",
    "BufferFullError",
    "CacheError",
    "CapacityError",
    "ClosedError",
    "CommitTooLarge",
    "ConfigError",
    "DocumentMissing",
    "ForkedError",
    "JournalDamaged",
    "JournalError",
    "JournalFull",
    "JournalLocked",
    "LoadError",
    "MissingExtra",
    "PreconditionFailed",
    "RequestError",
    "StoreCorrupt",
    "StoreError",
    "StoreRefused",
    "StoreTimeout",
    "StoreUnavailable",
    "TableFullError",
    "TraceError",
    "TransactionConflict",
    "WriteRejected",
]


class BufferFullError(CapacityError):
    """The write buffer has no room; the write was not accepted."""


class CacheError(BeastError):
    """A read could not be answered for a reason of the cache's own."""


class LoadError(CacheError):
    """A loader returned something that is no `Document` for the path it was asked for."""


class StoreError(BeastError):
    """The store could not do what was asked.

    `maybe_applied` tells of a failed commit whether it may have been applied all the same, as
    when the connection was lost before the answer came.
    """

    maybe_applied: bool = False


class StoreUnavailable(StoreError):
    """The store cannot be reached, or refuses for the moment; trying later may help."""

    retry_after_s: float | None = None
    """Seconds after which trying again makes sense, where that is known."""


class BreakerOpen(StoreUnavailable):
    """The store was not asked, because it has failed again and again; `retry_after_s` says when."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class StoreTimeout(StoreError):
    """The store did not answer before the deadline; a commit may or may not have happened."""


class StoreRefused(StoreError):
    """The store answered, and refuses all of our calls: permissions, credentials, no such database.

    Repeating does not help until somebody has put that right, but it is no fault of an operation:
    buffered writes are kept.
    """


class StoreCorrupt(StoreError):
    """What the store holds cannot be read; trying again does not help."""


class TransactionConflict(StoreError):
    """Others have written what a transaction read, or keep it from them; running it again helps."""


class WriteRejected(StoreError):
    """The store refused these operations and always will; none of them was applied."""


class PreconditionFailed(WriteRejected):
    """A precondition of an operation did not hold."""


class DocumentMissing(WriteRejected):
    """An `Update` named a document that does not exist."""


class CommitTooLarge(WriteRejected):
    """The operations together are more than the store takes at once; fewer may be taken."""


class JournalError(BeastError):
    """The write journal cannot be used."""


class JournalLocked(JournalError):
    """Another process holds the write journal."""


class JournalFull(JournalError):
    """The disk has no room for the journal; nothing of this write was acknowledged."""


class JournalDamaged(JournalError):
    """The file of the write journal cannot be read; it was left as it is."""


class ClosedError(BeastError):
    """It was used after `close()`."""


class ForkedError(ClosedError):
    """It was used in a child of the process that made it; construct it after the fork."""


class ConfigError(BeastError, ValueError):
    """A setting is not allowed; the text names it, its value and what is allowed."""


class RequestError(BeastError, ValueError):
    """A request, path, operation or query is malformed; nothing was done."""


class TraceError(BeastError, ValueError):
    """A file holds no request trace; the text names it and what is wrong."""


class MissingExtra(BeastError, ImportError):
    """A library that an extra brings is not installed; the text names the command."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f'{library} is not installed; it comes with: pip install "beastcore[{extra}]"'
        )
        self.library = library
        self.extra = extra
