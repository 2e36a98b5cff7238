"""`BatchBuffer` in pure Python: pending writes, due by count, bytes or age.

Structure: one `_Lane` per key that has operations, found through `Chains`, so that no key is
hashed or compared when a lane is dropped. A heap ranks lanes by (-priority, number of the first
operation); outdated entries stay in it until they surface. Every operation also stands in
`_times`, a dict by operation number whose first entry is the oldest.

Numbered invariants, verified by `_check()`:

1. A lane that can be found holds at least one operation, unless a call that runs the user's code
   has pinned it; it stands under the hash of its key.
2. Operation numbers rise within a lane; `_times` names exactly the operations held.
3. Times never fall along the numbers, so the operation with the lowest number is the oldest.
4. The present rank of every lane with operations stands in the heap, and is (-highest priority,
   first number).
5. Count and bytes are the sums over the lanes; the counters balance:
   held == added - coalesced - drained + restored - cleared.
"""

from __future__ import annotations

import heapq
import time
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, NoReturn, TypeVar, final

from beastcore._pure.chains import MAX_RESTARTS, Chains, changed
from beastcore._types import BatchItem, BatchStats
from beastcore._validate import (
    MAX_WEIGHT_EACH,
    MAX_WEIGHT_TOTAL,
    check_callable,
    check_count,
    check_item,
    check_op_size,
    check_priority,
    check_seconds,
    check_time,
)

__all__ = ["BatchBuffer"]

K = TypeVar("K")
Op = TypeVar("Op")


class _Pending:
    """One operation: what `add` was told, its number and its time."""

    __slots__ = ("added_at", "number", "op", "priority", "size")

    def __init__(self, op: Any, size: int, priority: int, number: int, added_at: float) -> None:
        self.op = op
        self.size = size
        self.priority = priority
        self.number = number
        self.added_at = added_at


class _Lane:
    """The operations of one key, oldest first, and the lane's present rank in the heap.

    `peaks` holds those operations that no later one of the lane equals or exceeds in priority,
    so the first of them has the highest priority of all. A lane with `pins` stays, even empty:
    a call that runs the user's code is about to use it.
    """

    __slots__ = ("hash", "key", "ops", "peaks", "pins", "rank")

    def __init__(self, key: Any, key_hash: int) -> None:
        self.key = key
        self.hash = key_hash
        self.ops: deque[_Pending] = deque()
        self.peaks: deque[_Pending] = deque()
        self.pins = 0
        self.rank: tuple[int, int] | None = None

    def append(self, pending: _Pending) -> None:
        """Add the newest operation."""
        self.ops.append(pending)
        self.raise_peak(pending)

    def appendleft(self, pending: _Pending) -> None:
        """Add an operation older than all."""
        self.ops.appendleft(pending)
        if not self.peaks or pending.priority > self.peaks[0].priority:
            self.peaks.appendleft(pending)

    def popleft(self) -> _Pending:
        """Take the oldest operation."""
        pending = self.ops.popleft()
        if self.peaks[0] is pending:
            self.peaks.popleft()
        return pending

    def raise_peak(self, last: _Pending) -> None:
        """Set the peaks right after the last operation came or rose in priority."""
        while self.peaks and self.peaks[-1].priority <= last.priority:
            self.peaks.pop()
        self.peaks.append(last)


@final
class BatchBuffer(Generic[K, Op]):
    """Collects pending operations by key until a batch of them is due.

    A batch is due when `max_ops` operations are held, when their sizes reach `max_bytes` (None:
    no such limit), or when the oldest has waited `max_delay` seconds. Nothing is refused when
    it is due: the limits say when to drain, not how much may be held.

    Operations of one key are handed out in the order in which they were added, always. Between
    keys, those with a higher priority come first; a key's priority is the highest of its pending
    operations. Keys of equal priority come in the order of their first pending operation.

    `merge(old_op, new_op)` is asked when a key gets an operation while an earlier one is still
    held: it returns one operation that stands for both, or None to keep both in order. Only the
    last held operation of the key is offered. The merged operation keeps the place and age of
    the old one and takes the higher priority; its size is the new size when `merge` returned
    `new_op` itself, the old size when it returned `old_op`, else the sum of both.

    `timer` returns seconds as a float and must not run backwards (an earlier time than before is
    taken as the latest one seen); the default is `time.monotonic`.

    `max_ops`, `max_delay` and `max_bytes` may be assigned at any time.

    One thread at a time may use a buffer of this pure-Python engine, and no finalizer may.
    """

    __slots__ = (
        "__weakref__",
        "_added",
        "_bytes",
        "_cleared",
        "_coalesced",
        "_drained",
        "_front",
        "_heap",
        "_lanes",
        "_latest",
        "_max_bytes",
        "_max_delay",
        "_max_ops",
        "_merge",
        "_next",
        "_restored",
        "_timer",
        "_times",
        "_version",
    )

    __hash__ = object.__hash__

    def __init__(
        self,
        max_ops: int = 500,
        max_delay: float = 1.0,
        *,
        max_bytes: int | None = None,
        merge: Callable[[Op, Op], Op | None] | None = None,
        timer: Callable[[], float] | None = None,
    ) -> None:
        self.max_ops = max_ops
        self.max_delay = max_delay
        self.max_bytes = max_bytes
        check_callable("merge", merge)
        check_callable("timer", timer)
        self._merge = merge
        self._timer: Callable[[], float] = time.monotonic if timer is None else timer
        self._latest = check_time(self._timer())
        self._lanes: Chains[_Lane] = Chains("buffer")
        self._heap: list[tuple[int, int, _Lane]] = []
        self._times: OrderedDict[int, _Pending] = OrderedDict()
        self._front = 0  # the next number in front is one less
        self._next = 0
        self._version = 0
        self._bytes = 0
        self._added = self._coalesced = self._drained = self._restored = self._cleared = 0

    def __init_subclass__(cls, **kwargs: Any) -> NoReturn:
        raise TypeError("type 'beastcore.BatchBuffer' is not an acceptable base type")

    @classmethod
    def __class_getitem__(cls, item: Any) -> types.GenericAlias:
        return types.GenericAlias(cls, item)

    # ---- settings

    @property
    def max_ops(self) -> int:
        """Number of operations that makes a batch due."""
        return self._max_ops

    @max_ops.setter
    def max_ops(self, value: int) -> None:
        self._max_ops = check_count("max_ops", value)

    @property
    def max_delay(self) -> float:
        """Age of the oldest operation, in seconds, that makes a batch due; 0 means at once."""
        return self._max_delay

    @max_delay.setter
    def max_delay(self, value: float) -> None:
        self._max_delay = check_seconds("max_delay", value, zero=True)

    @property
    def max_bytes(self) -> int | None:
        """Sum of sizes that makes a batch due, or None."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        self._max_bytes = (
            None if value is None else check_count("max_bytes", value, maximum=MAX_WEIGHT_TOTAL)
        )

    @property
    def timer(self) -> Callable[[], float]:
        """The clock: a callable that returns seconds."""
        return self._timer

    # ---- adding

    def add(self, key: K, op: Op, /, *, size: int = 0, priority: int = 0) -> bool:
        """Hold `op` for `key`; return True when a batch is due now.

        `size` is in bytes, 0 to 2**32 - 1. `priority` is an int of 32 bits with sign.
        An error of `merge`, of the timer or of the key's `__hash__` or `__eq__` changes nothing.
        O(1), plus O(log keys) when the key's priority rises.
        """
        size = check_op_size(size)
        priority = check_priority(priority)
        key_hash = hash(key)
        self._read()
        lane = self._lane(key, key_hash)
        if self._merge is not None and lane.ops:
            merged = self._ask(self._merge, lane, op)
            if merged is not None:
                self._replace(lane, merged, op, size, priority)
                return self._is_due(self._latest)
        self._version += 1
        # The latest time, for user code may have read the clock again.
        pending = _Pending(op, size, priority, self._next, self._latest)
        self._next += 1
        lane.append(pending)
        self._times[pending.number] = pending
        self._bytes += size
        self._added += 1
        self._rank(lane)
        return self._is_due(self._latest)

    def _ask(self, merge: Callable[[Any, Any], Any], lane: _Lane, op: Any) -> Any:
        """Return what `merge` makes of the lane's last operation and `op`.

        Asks again when the buffer changed meanwhile: the last operation may be another one.
        """
        lane.pins += 1
        try:
            for _ in range(MAX_RESTARTS):
                version = self._version
                merged = merge(lane.ops[-1].op, op)
                if version == self._version or not lane.ops:
                    break
            else:
                raise changed("buffer", "merge")  # noqa: TRY301 - unpins the lane
        except BaseException:
            self._unpin(lane)
            raise
        lane.pins -= 1
        return merged if lane.ops else None

    def _replace(self, lane: _Lane, merged: Any, op: Any, size: int, priority: int) -> None:
        last = lane.ops[-1]
        if merged is last.op:
            size = last.size
        elif merged is not op:
            size = min(last.size + size, MAX_WEIGHT_EACH)
        self._version += 1
        self._bytes += size - last.size
        last.op = merged
        last.size = size
        self._added += 1
        self._coalesced += 1
        if priority > last.priority:
            last.priority = priority
            lane.raise_peak(last)
            self._rank(lane)

    def _read(self) -> float:
        """Return the time, which never runs backwards."""
        now = check_time(self._timer())
        self._latest = max(self._latest, now)
        return self._latest

    def _lane(self, key: K, key_hash: int) -> _Lane:
        """Return the lane of `key`, made empty if there is none."""
        lane = self._lanes.find(key, key_hash)
        if lane is None:
            lane = _Lane(key, key_hash)
            self._lanes.insert(lane)
        return lane

    def _drop(self, lane: _Lane) -> None:
        """Forget an empty lane, by identity: its key is neither hashed nor compared."""
        if not lane.pins:
            self._lanes.drop(lane)

    def _unpin(self, lane: _Lane) -> None:
        lane.pins -= 1
        if not lane.ops:
            self._drop(lane)

    def _rank(self, lane: _Lane) -> None:
        """Put the lane's rank into the heap if it changed."""
        rank = (-lane.peaks[0].priority, lane.ops[0].number)
        if rank == lane.rank:
            return
        lane.rank = rank
        heapq.heappush(self._heap, (*rank, lane))
        if len(self._heap) > 2 * len(self._lanes) + 64:
            # The rank alone tells the present entry of a lane: no rank ever comes back.
            self._heap = [entry for entry in self._heap if entry[2].rank == entry[:2]]
            heapq.heapify(self._heap)

    # ---- due

    def _is_due(self, now: float) -> bool:
        held = len(self._times)
        if held >= self._max_ops:
            return True
        if self._max_bytes is not None and self._bytes >= self._max_bytes:
            return True
        return held > 0 and now >= self._oldest() + self._max_delay

    def _oldest(self) -> float:
        return next(iter(self._times.values())).added_at

    def due(self) -> bool:
        """Tell whether a batch is due, by count, bytes or age. O(1)."""
        return self._is_due(self._read())

    def deadline(self) -> float | None:
        """Return the time, by the buffer's timer, at which a batch is due by age.

        Not later than now when a batch is due already, for whatever reason; None when nothing is
        held. `due()` is true from the returned time on. O(1).
        """
        now = self._read()
        if not self._times:
            return None
        by_age = self._oldest() + self._max_delay
        return min(by_age, now) if self._is_due(now) else by_age

    # ---- draining

    def drain(self, limit: int | None = None) -> list[tuple[K, Op]]:
        """Hand out at most `limit` operations (None: all) as a list of `(key, op)`.

        Keys come by priority, then by their first operation, each with its operations in order;
        with a limit, the last key may give only the first of its operations. The pairs remember
        size, priority and time (`.size`, `.priority`, `.added_at`) for `restore`.
        O(operations + log keys for each key).
        """
        count = len(self._times)
        if limit is not None:
            count = min(count, check_count("limit", limit, minimum=0, maximum=None))
        items: list[tuple[K, Op]] = []
        while len(items) < count:
            negative_priority, number, lane = self._heap[0]
            if lane.rank != (negative_priority, number):
                heapq.heappop(self._heap)
                continue
            self._version += 1
            while lane.ops and len(items) < count:
                pending = lane.popleft()
                del self._times[pending.number]
                self._bytes -= pending.size
                item = BatchItem((lane.key, pending.op))
                item.size = pending.size
                item.priority = pending.priority
                item.added_at = pending.added_at
                items.append(item)
            heapq.heappop(self._heap)
            lane.rank = None
            if lane.ops:
                self._rank(lane)
            else:
                self._drop(lane)
        self._drained += len(items)
        return items

    def restore(self, items: Iterable[tuple[K, Op]], /) -> None:
        """Put drained operations back, in front of everything newer of the same keys.

        `items` is what `drain` returned, or any part of it in the same order. Order, sizes and
        priorities are those of before, and the operations count as the oldest. A plain pair
        `(key, op)` has size 0, priority 0 and the age of the oldest operation held. Nothing is
        merged. When several drained lists are to be put back, put back the newest list first.

        All items are checked before anything changes: TypeError when one is no pair or its key
        cannot be hashed. O(items).
        """
        checked: list[tuple[Any, Any, int, int, float | None]] = []
        hashes: list[int] = []
        given: Iterable[Any] = items
        for position, item in enumerate(given):
            details = check_item(position, item)
            checked.append((*item, *details))
            hashes.append(hash(item[0]))
        self._read()
        lanes: list[_Lane] = []
        try:
            for (key, *_), key_hash in zip(checked, hashes, strict=True):
                lane = self._lane(key, key_hash)
                lane.pins += 1
                lanes.append(lane)
        except BaseException:
            for lane in lanes:
                self._unpin(lane)
            raise
        for (_, op, size, priority, added_at), lane in zip(
            reversed(checked), reversed(lanes), strict=True
        ):
            lane.pins -= 1
            oldest = self._oldest() if self._times else self._latest
            if added_at is not None:
                oldest = min(oldest, added_at)
            self._put_back(lane, op, size, priority, oldest)

    def _put_back(self, lane: _Lane, op: Any, size: int, priority: int, added_at: float) -> None:
        """Put one operation in front of all others, in its lane and in age."""
        self._version += 1
        self._front -= 1
        pending = _Pending(op, size, priority, self._front, added_at)
        lane.appendleft(pending)
        self._times[pending.number] = pending
        self._times.move_to_end(pending.number, last=False)
        self._bytes += size
        self._restored += 1
        self._rank(lane)

    # ---- looking

    def pending(self, key: K, /) -> list[Op]:
        """Return the operations held for `key`, oldest first; [] when there are none."""
        lane = self._lanes.find(key, hash(key))
        return [] if lane is None else [pending.op for pending in lane.ops]

    def clear(self) -> None:
        """Drop every operation. The counters stay; the dropped ones count as `cleared`."""
        self._cleared += len(self._times)
        self._version += 1
        doomed = list(self._lanes), self._times, self._heap
        self._times, self._heap = OrderedDict(), []
        self._bytes = 0
        self._lanes.clear()
        for lane in doomed[0]:
            lane.ops, lane.peaks, lane.rank = deque(), deque(), None
            if lane.pins:
                self._lanes.insert(lane)
        del doomed  # released last, with the buffer already empty

    def stats(self) -> BatchStats:
        """Return the counters and the present content."""
        return BatchStats(
            added=self._added,
            coalesced=self._coalesced,
            drained=self._drained,
            restored=self._restored,
            cleared=self._cleared,
            pending=len(self._times),
            keys=len(self._lanes),
            bytes=self._bytes,
        )

    def __len__(self) -> int:
        return len(self._times)

    def __contains__(self, key: object) -> bool:
        lane = self._lanes.find(key, hash(key))
        return lane is not None and bool(lane.ops)

    def __repr__(self) -> str:
        limits = f"max_ops={self._max_ops}, max_delay={self._max_delay}"
        if self._max_bytes is not None:
            limits += f", max_bytes={self._max_bytes}"
        return f"BatchBuffer({limits}, pending={len(self._times)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'BatchBuffer' object")

    def _check(self) -> None:
        """Verify the numbered invariants; AssertionError names the broken one."""
        self._lanes.check()
        lanes = list(self._lanes)
        assert all(lane.ops or lane.pins for lane in lanes), "invariant 1: an empty lane"
        held: dict[int, _Pending] = {}
        for lane in lanes:
            numbers = [pending.number for pending in lane.ops]
            assert numbers == sorted(set(numbers)), "invariant 2: order within a lane"
            held.update((pending.number, pending) for pending in lane.ops)
        assert held == dict(self._times), "invariant 2: operations held"
        assert list(self._times) == sorted(held), "invariant 2: order of all operations"
        times = [pending.added_at for pending in self._times.values()]
        assert times == sorted(times), "invariant 3: times"
        ranks = {entry[:2] for entry in self._heap}
        for lane in lanes:
            if lane.ops:
                highest = max(pending.priority for pending in lane.ops)
                assert lane.rank == (-highest, lane.ops[0].number), "invariant 4: rank"
                assert lane.rank in ranks, "invariant 4: rank not in the heap"
        assert self._bytes == sum(p.size for p in held.values()), "invariant 5: bytes"
        balance = self._added - self._coalesced - self._drained + self._restored - self._cleared
        assert len(held) == balance, "invariant 5: counters"
