"""What has been accepted and is not in the store yet: a state machine without I/O or threads.

Accepted operations stand in a `BatchBuffer`, or, while a batch of them is being committed, among
those taken; readers see both (`overlay`). A committed operation is still applied, for a while, to
documents older than its commit: a reader may have asked the store before it and look here after.

Every method is called with the batcher's lock held. Numbered invariants, verified by `_check()`:

1. `open` holds exactly the accepted operations of the buffer's and the taken entries, by number.
2. Operations of one path and journal lie, oldest first, in the taken entries and then in the
   buffer.
3. `ops_held` and `bytes_held` are the sums over `open` and over the reservations.
4. `collections` counts the operations of each collection that are open, or were settled and not
   yet told of.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence

from beastcore import BatchBuffer
from beastmode.batcher.entries import Entry, Part, WriteCall, merge_entries
from beastmode.batcher.outside import WriteJournal
from beastmode.batcher.waiting import Waiter
from beastmode.errors import DocumentMissing
from beastmode.stores.documents import (
    Delete,
    Document,
    Operation,
    Set,
    apply,
    collection_of,
    freeze,
    has_transforms,
)

__all__ = ["PendingWrites"]

_MAX_RECENT = 20_000


class _Recent:
    """A committed operation that older documents still need."""

    __slots__ = ("expires_at", "operation", "version")

    def __init__(self, operation: Operation, version: int, expires_at: float) -> None:
        self.operation = operation
        self.version = version
        self.expires_at = expires_at


def _is_whole(operation: Operation) -> bool:
    """Return whether `operation` tells alone what the document is afterwards."""
    return isinstance(operation, (Set, Delete)) and not has_transforms(operation)


class PendingWrites:
    """See the module. Seconds are those of `timer`."""

    def __init__(
        self,
        *,
        max_ops: int,
        max_delay_s: float,
        max_bytes: int,
        max_pending_ops: int,
        max_pending_bytes: int,
        read_grace_s: float,
        timer: Callable[[], float],
        source: WriteJournal | None = None,
    ) -> None:
        self.source = source
        self.buffer: BatchBuffer[str, Entry] = BatchBuffer(
            max_ops, max_delay_s, max_bytes=max_bytes, merge=merge_entries, timer=timer
        )
        self.max_pending_ops = max_pending_ops
        self.max_pending_bytes = max_pending_bytes
        self.read_grace_s = read_grace_s
        self.timer = timer
        self.open: OrderedDict[int, Part] = OrderedDict()
        self.collections: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()
        self.ops_held = 0
        self.bytes_held = 0
        self.reserved = 0
        self.accepted = 0
        self._queue: deque[tuple[int, int, Waiter]] = deque()
        self._taken: dict[int, tuple[str, Entry]] = {}
        self._in_flight: dict[str, deque[Entry]] = {}
        self._recent: dict[str, deque[_Recent]] = {}
        self._recent_order: deque[tuple[str, _Recent]] = deque()

    # Room for operations that are not accepted yet.

    def reserve(self, count: int, size: int, waiter: Waiter) -> bool:
        """Take room, or queue `waiter`, to be resolved once the room has been taken for it."""
        if not self._queue and self._has_room(count, size):
            self._hold(count, size)
            return True
        self._queue.append((count, size, waiter))
        return False

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._queue)

    def give_up(self, waiter: Waiter) -> bool:
        """Leave the queue; False when the room was taken meanwhile."""
        for position, (_, _, queued) in enumerate(self._queue):
            if queued is waiter:
                del self._queue[position]
                self._grant()
                return True
        return False

    def give_up_all(self) -> list[Waiter]:
        """Empty the queue and return who stood in it."""
        waiters = [waiter for _, _, waiter in self._queue]
        self._queue.clear()
        return waiters

    def unreserve(self, count: int, size: int) -> None:
        """Give back the room of operations that were not accepted."""
        self.reserved -= count
        self._release(count, size)

    def fits(self, count: int, size: int) -> bool:
        """Whether so many operations of so many bytes together may be held besides."""
        return (
            self.ops_held + count <= self.max_pending_ops
            and self.bytes_held + size <= self.max_pending_bytes
        )

    def _has_room(self, count: int, size: int) -> bool:
        # What is too large for the byte limit may still come in alone.
        return self.fits(count, 0 if not self.ops_held else size)

    def _hold(self, count: int, size: int) -> None:
        self.ops_held += count
        self.bytes_held += size
        self.reserved += count

    def _release(self, count: int, size: int) -> None:
        self.ops_held -= count
        self.bytes_held -= size
        self._grant()

    def _grant(self) -> None:
        while self._queue:
            count, size, waiter = self._queue[0]
            if not self._has_room(count, size):
                return
            self._queue.popleft()
            self._hold(count, size)
            waiter.resolve()

    # Accepting.

    def accept(self, call: WriteCall, seqs: Sequence[int] | None) -> None:
        """Make the operations of `call`, whose room is reserved, visible and pending."""
        self.reserved -= len(call.operations)
        for index, operation in enumerate(call.operations):
            seq = None if seqs is None else seqs[index]
            self._add(Part(operation, seq, call.sizes[index], call=call, index=index))

    def adopt(self, taken: Iterable[Entry], waiting: Iterable[Entry]) -> None:
        """Make operations of earlier runs pending, in front of everything, room or not.

        `taken` count as taken for batches that are under way, `waiting` go into the buffer.
        """
        for entry in taken:
            self._open(entry)
            self._take((entry.operation.path, entry))
        own = self.buffer.drain(None)
        for entry in waiting:
            self._open(entry)
            self.buffer.add(entry.operation.path, entry, size=entry.size)
        older = self.buffer.drain(None)
        self.buffer.restore(own)
        self.buffer.restore(older)

    def _open(self, entry: Entry) -> None:
        for part in entry.parts:
            self.ops_held += 1
            self.bytes_held += part.size
            self._number(part)

    def _add(self, part: Part) -> None:
        self._number(part)
        entry = Entry(part.operation, [part], part.size, self.source)
        self.buffer.add(part.operation.path, entry, size=part.size)

    def _number(self, part: Part) -> None:
        self.accepted += 1
        part.number = self.accepted
        part.accepted_at = self.timer()
        path = part.operation.path
        self.open[part.number] = part
        self.collections[collection_of(path)] += 1

    # Committing.

    def take(self, limit: int) -> list[Entry]:
        """Take the next batch, at most `limit` entries, each path's in order."""
        items = self.buffer.drain(limit) if self.buffer else []
        for item in items:
            self._take(item)
        return [entry for _, entry in items]

    def _take(self, item: tuple[str, Entry]) -> None:
        path, entry = item
        self._taken[id(entry)] = item
        self._in_flight.setdefault(path, deque()).append(entry)

    def is_taken(self, entry: Entry) -> bool:
        """Whether an entry is taken and not settled."""
        return id(entry) in self._taken

    def settle(self, entry: Entry, version: int | None) -> None:
        """Forget a taken entry: committed at `version` or before, or (None) rejected.

        Its collection counts as pending until `told`.
        """
        path, _ = self._taken.pop(id(entry))
        line = self._in_flight[path]
        line.remove(entry)
        if not line:
            del self._in_flight[path]
        if version is not None:
            self.remember(entry.operation, version)
        collection = collection_of(path)
        for part in entry.parts:
            del self.open[part.number]
            self._release(1, part.size)
        self._untold[collection] += len(entry.parts)

    def told(self) -> None:
        """Say that whoever must know of what was settled has been told, the cache above all.

        Before that a query must not be answered from what the cache holds.
        """
        for collection, count in self._untold.items():
            self.collections[collection] -= count
            if not self.collections[collection]:
                del self.collections[collection]
        self._untold.clear()

    def put_back(self, keep: Collection[Entry] = ()) -> None:
        """Put what is taken and not settled back in front of everything newer, except `keep`."""
        kept = {id(entry) for entry in keep}
        items = list(self._taken.items())
        self.buffer.restore([item for number, item in items if number not in kept])
        self._taken.clear()
        self._in_flight.clear()
        for number, item in items:
            if number in kept:
                self._take(item)

    def drop_all(self) -> list[Operation]:
        """Forget every operation, and return those that were open."""
        operations = [part.operation for part in self.open.values()]
        self.put_back()
        for entry in self.take(len(self.buffer)):
            self.settle(entry, None)
        self.told()
        return operations

    def is_waiting(self, path: str, number: int) -> bool:
        """Return whether an operation on `path` accepted up to `number` is to be committed."""
        line = [*self._in_flight.get(path, ()), *self.buffer.pending(path)]
        return any(entry.parts[0].number <= number for entry in line)

    def oldest(self) -> Part | None:
        """Return the operation accepted first of those that are open."""
        return next(iter(self.open.values()), None)

    # Reading.

    def remember(self, operation: Operation, version: int) -> None:
        """Keep a committed operation for readers of older documents, for `read_grace_s`.

        Until the cache has been told they are all needed, however many: `expire_recent` bounds
        them, and is called after that.
        """
        path = operation.path
        line = self._recent.setdefault(path, deque())
        if _is_whole(operation):
            line.clear()
        record = _Recent(operation, version, self.timer() + self.read_grace_s)
        line.append(record)
        self._recent_order.append((path, record))

    def expire_recent(self) -> float | None:
        """Drop what no reader needs any more; return when the next one is due, or None."""
        now = self.timer()
        while self._recent_order:
            path, record = self._recent_order[0]
            if record.expires_at > now and len(self._recent_order) <= _MAX_RECENT:
                return record.expires_at
            self._recent_order.popleft()
            line = self._recent.get(path)
            if line and line[0] is record:
                line.popleft()
                if not line:
                    del self._recent[path]
        return None

    @property
    def visible(self) -> bool:
        """Whether any document may have something to overlay. Needs no lock."""
        return bool(self.open) or bool(self._recent)

    def pending(self, path: str) -> list[Operation]:
        """Return the operations on `path` that the store does not have yet, in order."""
        entries = [*self._in_flight.get(path, ()), *self.buffer.pending(path)]
        return [entry.operation for entry in entries]

    def owed(self, path: str) -> int:
        """Return the number up to which must be settled before `path` can be read; 0 for none.

        Only the store can tell what a transform makes of a document, unless an operation after it
        leaves nothing of that.
        """
        number = 0
        for entry in (*self._in_flight.get(path, ()), *self.buffer.pending(path)):
            if has_transforms(entry.operation):
                number = entry.parts[-1].number
            elif _is_whole(entry.operation):
                number = 0
        return number

    def is_outdated(self, document: Document) -> bool:
        """Return whether `document` is from before a committed transform: read it again then."""
        path = document.path
        recent = self._recent.get(path, ())
        outdated = False
        for record in recent:
            if record.version > document.version:
                outdated = has_transforms(record.operation) or (
                    outdated and not _is_whole(record.operation)
                )
        return outdated and not any(map(_is_whole, self.pending(path)))

    def overlay(self, document: Document) -> Document:
        """Return `document` as it is once operations on it are in the store: those that are known.

        That is all of them, unless there is a transform among them: whoever began to read before
        it was accepted (others wait, see `owed`) is shown what came before it, or what replaces
        its result. The same object when there is none. An `Update` without a document is left
        out: the store will reject it.
        """
        path = document.path
        operations = [
            record.operation
            for record in self._recent.get(path, ())
            if record.version > document.version
        ]
        operations += self.pending(path)
        if not operations:
            return document
        data = document.data
        is_known = True
        for operation in operations:
            if has_transforms(operation):
                is_known = False
            elif is_known or _is_whole(operation):
                is_known = True
                try:
                    data = apply(operation, data)
                except DocumentMissing:
                    continue
        if data is document.data:
            return document
        return Document(path, freeze(data), document.version)

    def _check(self) -> None:
        """Verify the numbered invariants; AssertionError names the broken one. For tests."""
        paths = {part.operation.path for part in self.open.values()}
        entries = {
            path: [*self._in_flight.get(path, ()), *self.buffer.pending(path)] for path in paths
        }
        numbers = [
            part.number for line in entries.values() for entry in line for part in entry.parts
        ]
        assert sorted(numbers) == sorted(self.open), "invariant 1"
        assert sum(map(len, entries.values())) == len(self.buffer) + len(self._taken), "invariant 1"
        for line in entries.values():
            for source in {id(entry.source) for entry in line}:
                mine = [entry for entry in line if id(entry.source) == source]
                order = [part.number for entry in mine for part in entry.parts]
                assert order == sorted(order), "invariant 2"
        assert self.ops_held == len(self.open) + self.reserved, "invariant 3"
        counted = Counter(collection_of(part.operation.path) for part in self.open.values())
        counted += self._untold
        assert counted == self.collections, "invariant 4"
