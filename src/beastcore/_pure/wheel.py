"""The timing wheel in pure Python: the twin of `beastcore._wheel`, step for step.

Hashed and hierarchical (Varghese and Lauck, "Hashed and hierarchical timing wheels", SOSP 1987):
512 lists of one second each, 64 of 512 seconds, and two overflow lists for what is further away,
of odd and of even turns of all that.

A timer stands for a slot of the compiled twin, not for an entry, and is lazy: it is on a list whose
time is not after its `expiry`. When an entry leaves, its timer stays where it is and goes to the
next newcomer; a later expiry for it moves nothing. When the list's time has passed, the timer is
looked at and, if its entry is not due, filed again.

Times are seconds here, an expiry is in ticks of 1/64 s. All lists before the position are empty;
it never runs back, and what should have been filed before it is filed at it. A list maps its
timers to their entries, None for a free one; it holds the only reference from a timer to an entry,
so that no cycle keeps the entries of a cache alive.

Foreign code may run at any call or loop and may come back here. Sections marked "operators only"
(see cache.py) move a timer; they verify first that what was computed before still holds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

__all__ = ["SWEEP", "TICK_BITS", "UNFILED", "WHEEL_STEPS", "WHEEL_TAKES", "Timer", "Wheel"]

WHEEL_STEPS = 64
"""Timers looked at, at most, before a write."""
WHEEL_TAKES = 16
"""Entries removed, at most, before a write."""
SWEEP = 1024
"""Entries that `expire` removes before it tells the listener."""
TICK_BITS = 6
UNFILED = -1
_BLOCK_BITS, _TURN_BITS = 9, 15
_SECONDS, _BLOCKS = 512, 64
_COARSE = _SECONDS
_OVERFLOW = _COARSE + _BLOCKS
_LISTS = _OVERFLOW + 2


class Timer:
    """What stays of an entry's time to live when the entry has left."""

    __slots__ = ("expiry", "number")

    def __init__(self) -> None:
        self.number = UNFILED
        """The list that it is on."""
        self.expiry = 0
        """Not before the time of that list."""


class Timed(Protocol):
    """What an entry has: its timer, None when it is not in the cache."""

    timer: Timer | None


E = TypeVar("E", bound=Timed)


class Wheel(Generic[E]):
    """The lists of timers of one cache."""

    __slots__ = ("_blocks", "_seconds", "behind", "lists", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.behind = False
        """Lists before the clock are not empty: the last look ran out of steps."""
        self.lists: dict[int, OrderedDict[Timer, E | None]] = {}
        """By number; those that were never used are not there."""
        self._seconds = 0
        """A bit for each list of a second that is not empty."""
        self._blocks = 0

    def waits(self, second: int) -> bool:
        """Tell whether there may be a list before `second` to look at."""
        return self.behind or second > self.position

    def hold(self, entry: E, timer: Timer, expiry: int) -> None:
        """See that the timer of an entry is filed no later than `expiry`."""
        self._file(entry, timer, expiry, again=False)

    def again(self, entry: E, timer: Timer, expiry: int) -> int:
        """File a timer anew that was not due; return its list."""
        return self._file(entry, timer, expiry, again=True)

    def _file(self, entry: E, timer: Timer, expiry: int, *, again: bool) -> int:
        while True:
            position = self.position
            number = _place(position, expiry)
            target = self.lists.setdefault(number, OrderedDict())
            # Operators only.
            if entry.timer is not timer:  # it has left
                return UNFILED
            if self.position != position:
                continue
            old = timer.number
            if old not in self.lists or timer not in self.lists[old]:
                old = UNFILED  # also of the wheel of a cache that was cleared meanwhile
            if old != UNFILED and timer.expiry <= expiry and not again:
                self.lists[old][timer] = entry
                timer.expiry = expiry
                return old
            if old == number:
                timer.number = UNFILED
                del target[timer]
            target[timer] = entry
            timer.number = number
            timer.expiry = expiry
            if number < _COARSE:
                self._seconds |= 1 << number
            elif number < _OVERFLOW:
                self._blocks |= 1 << number - _COARSE
            if old not in (UNFILED, number):
                del self.lists[old][timer]
                if not self.lists[old]:
                    if old < _COARSE:
                        self._seconds &= ~(1 << old)
                    elif old < _OVERFLOW:
                        self._blocks &= ~(1 << old - _COARSE)
            return number

    def holds(self, timer: Timer | None, expiry: int) -> bool:
        """Tell whether a timer is filed no later than `expiry`; of operators only."""
        if timer is None or timer.number not in self.lists or timer.expiry > expiry:
            return False
        return timer in self.lists[timer.number]

    def unfile(self, timer: Timer, entry: E | None) -> None:
        """Take a timer off its list, if it is still that of `entry` (None: of none)."""
        # Operators only.
        old = timer.number
        if old not in self.lists or timer not in self.lists[old]:
            return
        if self.lists[old][timer] is not entry:
            return
        timer.number = UNFILED
        del self.lists[old][timer]
        if not self.lists[old]:
            if old < _COARSE:
                self._seconds &= ~(1 << old)
            elif old < _OVERFLOW:
                self._blocks &= ~(1 << old - _COARSE)

    def first(self, number: int) -> tuple[Timer, E | None] | None:
        """Return the first timer of a list and its entry."""
        for found in self.lists.get(number, {}).items():
            return found
        return None

    def present(self) -> int:
        """Return the list of the second at the position."""
        return self.position & (_SECONDS - 1)

    def _filled(self, number: int) -> bool:
        return bool(self.lists.get(number))

    def seek(self, second: int) -> int:
        """Move on towards `second`, to a list that is to be emptied; UNFILED at the end."""
        while True:
            position = self.position
            number = _OVERFLOW + (~(position >> _TURN_BITS) & 1)
            if self._filled(number):
                return number
            block = position >> _BLOCK_BITS
            number = _COARSE + (block & (_BLOCKS - 1))
            if self._filled(number):
                return number
            if position >= second:
                self.behind = False
                return UNFILED
            number = position & (_SECONDS - 1)
            later = self._seconds >> number
            if later & 1:
                return number
            block = self._next_block(block)
            target = position + _lowest(later) if later else block << _BLOCK_BITS
            # Operators only.
            if self.position == position:
                self.position = target if target < second else second  # noqa: FURB136

    def _next_block(self, block: int) -> int:
        """Return the next block with anything to look at; with none, one past all."""
        if self._seconds:
            return block + 1
        here = block & (_BLOCKS - 1)
        later = self._blocks >> here | self._blocks << _BLOCKS - here
        candidates = [block + _lowest(later)] if later else []
        turn = block >> _TURN_BITS - _BLOCK_BITS
        if self._filled(_OVERFLOW + (turn & 1)):
            candidates.append(turn + 1 << _TURN_BITS - _BLOCK_BITS)
        return min(candidates, default=1 << 64)

    def time(self, number: int) -> int:
        """Return the second at which a list is looked at, as seen from the position."""
        position = self.position
        block, turn = position >> _BLOCK_BITS, position >> _TURN_BITS
        if number < _COARSE:
            return position + (number - position & (_SECONDS - 1))
        if number < _OVERFLOW:
            return block + (number - _COARSE - block & (_BLOCKS - 1)) << _BLOCK_BITS
        return turn + 1 << _TURN_BITS if number - _OVERFLOW == turn & 1 else position

    def check(self) -> dict[Timer, E | None]:
        """Raise AssertionError for a broken invariant; return all timers and their entries."""
        filed: dict[Timer, E | None] = {}
        for number, timers in self.lists.items():
            for timer, entry in timers.items():
                assert timer not in filed, "invariant 6: a timer is on two lists"
                filed[timer] = entry
                assert timer.number == number, "invariant 6: a timer is on another list"
                latest = max(self.position, timer.expiry >> TICK_BITS)
                assert self.time(number) <= latest, "invariant 6: a timer is on a later list"
        for number in range(_OVERFLOW):
            bits = self._seconds >> number if number < _COARSE else self._blocks >> number - _COARSE
            assert bits & 1 == self._filled(number), "invariant 6: the bit of a list"
        return filed


def _place(position: int, expiry: int) -> int:
    """Return the number of the list for an expiry."""
    second = max(position, expiry >> TICK_BITS)
    if second - position < _SECONDS:
        return second & (_SECONDS - 1)
    if (second >> _BLOCK_BITS) - (position >> _BLOCK_BITS) < _BLOCKS:
        return _COARSE + (second >> _BLOCK_BITS & (_BLOCKS - 1))
    return _OVERFLOW + (position >> _TURN_BITS & 1)


def _lowest(bits: int) -> int:
    """Return the number of the lowest bit set."""
    return (bits & -bits).bit_length() - 1
