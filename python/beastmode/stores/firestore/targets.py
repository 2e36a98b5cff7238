"""One Listen stream's state: what is followed on it, what is in doubt, what must be sent next.

No I/O, no threads, no clock of its own. The driver (`listen`) tells a `TargetTable` what it heard
and when; the table tells its `FeedListener`, before it returns, what follows from that, and has
the requests ready that the driver must send. The protocol is Firestore's `Listen`; Firebase's
JavaScript SDK (`WatchChangeAggregator`) was the model for what a filter, a reset and a document
that was never told mean.

The rules
    1. Target ids grow and are never used twice on one stream: the server ends a stream on which
       a live id comes again.
    2. Everything that may be outdated is reported as doubtful before the next message is read:
       a target when the stream ends, when the server resets or removes it, or when the number of
       its documents does not match the server's; a document when it leaves its query.
    3. A target is current again only when the server says so after that. What a reset does not
       tell again is gone: a tombstone where the target is a whole collection or the document
       itself, else a doubt.
    4. A document is told as changed only if its version is not the one told last, so resets do
       not repeat what is known.
    5. A resume token is taken only while its target is current, and dropped at a reset, at a
       mismatch and when the server removes the target.
    6. At most `window` targets wait for the server at a time. If the stream ends while they do,
       for a reason that may lie in one of them, those that were never current are suspects: half
       as many of them are asked for at a time, until one is alone twice in a row. Then only that
       target is put aside and tried again later, and the others go on.
    7. A message says nothing about when it was sent: it may have waited in a queue, of this
       machine too, while the process stood still. So what is followed is known to be followed at
       `alive_at` only, when something was asked for that has been answered since. If that is
       three quarters of `silence_s` ago a probe is sent, a target that must be answered.
    8. Silence for all of `silence_s` is a failure; so is a probe that is not answered for so long,
       unless the server is telling a target anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf
from typing import Final, NamedTuple

from beastmode.stores.base import Change, FeedListener, Target
from beastmode.stores.documents import Document
from beastmode.stores.firestore.followed import UNREADABLE, Followed

__all__ = ["PROBE", "Request", "TargetChange", "TargetTable", "UnexpectedMessageError"]

PROBE: Final = Target(document="_bm/probe")
"""What is asked for when a stream has been silent; a document that does not exist."""

_WINDOW: Final = 500
_LAST_ID: Final = 2**31 - 1
_OPENING_S: Final = 10.0
_REFUSED_S: Final = (1.0, 60.0)
"""The first and the longest wait before a refused target is asked for again."""
_FATAL_S: Final = (60.0, 3600.0)
"""The same for a target that has ended the stream, which disturbs all the others."""


class UnexpectedMessageError(Exception):
    """The server said something that fits nothing asked of it; the stream cannot be trusted."""


class TargetChange:
    """The kinds of `target_change` messages, by number."""

    NO_CHANGE: Final = 0
    ADD: Final = 1
    REMOVE: Final = 2
    CURRENT: Final = 3
    RESET: Final = 4


class Request(NamedTuple):
    """What to send: follow `target` as `target_id` from `token` on, or (None) follow no longer."""

    target_id: int
    target: Target | None
    token: bytes = b""


class TargetTable:
    """The targets of one stream; see the module. The caller holds a lock around every call.

    `silence_s` seconds without a word are a failure; `window` targets may wait for the server at
    a time; `timer` is read when something is asked for and when a target is put aside.
    """

    def __init__(
        self,
        listener: FeedListener,
        *,
        silence_s: float,
        timer: Callable[[], float],
        window: int = _WINDOW,
        last_id: int = _LAST_ID,
    ) -> None:
        self._listener = listener
        self._silence_s = silence_s
        self._timer = timer
        self._rng = random.Random()
        self._window = self._narrow = window
        self._last_id = last_id
        self._next_id = 1
        self._followed: dict[str, Followed] = {}
        self._by_id: dict[int, Followed] = {}
        self._waiting: dict[str, Followed] = {}
        """To be asked for, in order."""
        self._asked: dict[int, Followed] = {}
        """Asked for and not current yet."""
        self._aside: dict[str, Followed] = {}
        """Refused; asked for again at their `retry_at`."""
        self._refusal = ""
        self._sending: list[Request] = []
        self._token = b""
        self._token_seq = self._seq = 0
        self._open = self._answered = False
        self._probe_id = 0
        self._probed_at = self._opened_at = 0.0
        self._unanswered: dict[int, float] = {}
        """Ids of which the server has said nothing yet, and when they were asked for."""
        self.heard_at = 0.0
        """When the last message was read, or the stream was opened."""
        self.alive_at = -inf
        """When the latest was asked for of what the server has answered; -inf for nothing yet."""
        self.documents_read = 0
        """Documents the server sent, as it bills them."""

    def __len__(self) -> int:
        return len(self._followed)

    @property
    def healthy(self) -> bool:
        """Whether the stream is open and was heard."""
        return self._open and self._answered

    @property
    def vouches(self) -> bool:
        """Whether something on the stream is current, so that `alive_at` matters."""
        return self._open and len(self._by_id) > len(self._asked)

    @property
    def all_current(self) -> bool:
        """Whether every target is current."""
        return self._open and not (self._waiting or self._asked or self._aside)

    @property
    def refused(self) -> str:
        """Why the target was refused that was put aside last; empty if none is aside."""
        return self._refusal if self._aside else ""

    @property
    def targets(self) -> list[Target]:
        """The targets followed, in the order of being added."""
        return [one.target for one in self._followed.values()]

    # -- what is wanted ------------------------------------------------------------------------

    def add(self, target: Target) -> None:
        """Follow `target`; O(1)."""
        if target.key not in self._followed:
            self._followed[target.key] = self._waiting[target.key] = Followed(target)

    def remove(self, target: Target) -> None:
        """Follow `target` no longer; O(1)."""
        one = self._followed.pop(target.key, None)
        if one is not None:
            self._waiting.pop(target.key, None)
            self._aside.pop(target.key, None)
            self._withdraw(one)

    def requests(self) -> list[Request]:
        """Return what must be sent now, in order; each request is returned once."""
        if not self._open:
            return []
        sending, self._sending = self._sending, []
        now = self._timer()  # before it is sent, so never too late
        while self._waiting and len(self._asked) < self._window:
            one = next(iter(self._waiting.values()))
            if one.suspect and sum(x.suspect for x in self._asked.values()) >= self._narrow:
                break
            target_id = self._new_id()
            del self._waiting[one.target.key]
            one.id = target_id
            self._by_id[one.id] = self._asked[one.id] = one
            self._unanswered[one.id] = now
            sending.append(Request(one.id, one.target, one.token))
        return sending

    def _new_id(self) -> int:
        if self._next_id > self._last_id:
            raise UnexpectedMessageError("the ids of this stream are used up")
        self._next_id += 1
        return self._next_id - 1

    def _withdraw(self, one: Followed) -> None:
        """Take a target off the stream, if it is on it."""
        if one.id:
            self._by_id.pop(one.id, None)
            self._asked.pop(one.id, None)
            self._sending.append(Request(one.id, None))
        one.id = 0
        one.current = False

    # -- the stream ----------------------------------------------------------------------------

    def opened(self, now: float) -> None:
        """Begin on a new stream, on which nothing has been asked for yet. O(targets)."""
        self._open, self._answered = True, False
        self._probe_id = 0
        self._next_id = 1
        self._unanswered.clear()
        self._opened_at = self.heard_at = now
        self.alive_at = -inf

    def heard(self, now: float) -> None:
        """Say that a message has come; call it before the message's own method."""
        self.heard_at = now
        self._answered = True

    def failed(self, why: str, *, suspicious: bool = False) -> None:
        """Say that the stream ended; everything told on it is doubtful. O(targets).

        `suspicious`: the reason may lie in a target that the server was asked for.
        """
        if not self._open:
            return
        self._open = self._answered = False
        self._sending.clear()
        asked = list(self._asked.values())
        current = [one for one in self._by_id.values() if one.current]
        for one in self._by_id.values():
            one.token = self._token_of(one)
            one.id, one.current = 0, False
            if not one.token:
                one.forget()
        self._by_id.clear()
        self._asked.clear()
        self._token, self._token_seq = b"", 0
        bad = self._suspect(asked) if suspicious else None
        # What was fine goes first, then the suspects, then what was never asked for.
        asked.sort(key=lambda one: one.suspect)
        again = {one.target.key: one for one in (*current, *asked) if one is not bad}
        self._waiting = again | self._waiting
        if current:
            self._listener.on_doubt([one.target for one in current], why)
        if bad is not None:
            self._put_aside(bad, why, _FATAL_S)

    def _suspect(self, asked: list[Followed]) -> Followed | None:
        """Find out which of the targets `asked` for may have ended the stream, or which one did."""
        suspects = [one for one in asked if not one.proven] or asked
        self._narrow = max(1, len(suspects) // 2)
        for one in suspects:
            one.suspect, one.proven = True, False
        if len(suspects) == 1:
            suspects[0].strikes += 1
            if suspects[0].strikes > 1:
                suspects[0].suspect = False
                return suspects[0]
        return None

    def _token_of(self, one: Followed) -> bytes:
        """Return the latest token that counts for a target: its own, or one for all."""
        if one.current and one.current_seq < self._token_seq:
            return self._token
        return one.token

    def _put_aside(self, one: Followed, why: str, waits: tuple[float, float]) -> None:
        first, longest = waits
        wait = min(first * 2**one.failures, longest)
        one.failures = min(one.failures + 1, 16)
        one.retry_at = self._timer() + wait * self._rng.uniform(0.8, 1.2)
        self._aside[one.target.key] = one
        self._refusal = f"{one.target}: {why}"
        self._listener.on_doubt([one.target], why)

    # -- time ----------------------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When `check` must be called next; inf for never."""
        times = [one.retry_at for one in self._aside.values()]
        if self._open and (self._by_id or self._sending):
            if not self._answered:
                times.append(self.heard_at + min(_OPENING_S, self._silence_s))
            else:
                times.append(self.heard_at + self._silence_s)
                if not self._probe_id:
                    times.append(self._probe_at)
                elif not self._asked:
                    times.append(self._probed_at + self._silence_s)
        return min(times, default=inf)

    @property
    def _probe_at(self) -> float:
        return max(self.alive_at, self._opened_at) + 0.75 * self._silence_s

    def check(self, now: float) -> str:
        """Return why the stream must be given up for its silence; empty when it need not be."""
        for key, one in list(self._aside.items()):
            if one.retry_at <= now:
                del self._aside[key]
                self._waiting[key] = one
        if not (self._open and (self._by_id or self._sending)):
            return ""
        silent = now - self.heard_at
        limit = self._silence_s if self._answered else min(_OPENING_S, self._silence_s)
        if silent >= limit:
            return f"the server has said nothing for {silent:.1f} s"
        if self._probe_id:
            unanswered = now - self._probed_at
            if unanswered >= self._silence_s and not self._asked:
                return f"the server has not answered for {unanswered:.1f} s"
        elif self._answered and now >= self._probe_at:
            self._probe_id = self._new_id()
            self._probed_at = self._unanswered[self._probe_id] = now
            self._sending.append(Request(self._probe_id, PROBE))
        return ""

    # -- messages ------------------------------------------------------------------------------

    def target_change(
        self,
        kind: int,
        ids: Sequence[int],
        *,
        token: bytes = b"",
        version: int = 0,
        code: int = 0,
        message: str = "",
    ) -> None:
        """Take a `target_change`: `ids` empty means all, `version` is its read time in ns."""
        self._seq += 1
        if kind == TargetChange.NO_CHANGE:
            self._take_token(ids, token)
            return
        for one in self._named(ids):
            if kind == TargetChange.CURRENT:
                self._current(one, version)
                one.token = token or one.token
            elif kind == TargetChange.RESET:
                self._reset(one, "the server began anew with it")
            elif kind == TargetChange.REMOVE:
                self._refused(one, f"the server refused it: {message or 'no reason'} ({code})")
            elif kind != TargetChange.ADD:
                raise UnexpectedMessageError(f"unknown kind {kind} of target_change")

    def document(self, document: Document, ids: Collection[int], removed: Collection[int]) -> None:
        """Take a `document_change`: in the targets `ids`, no longer in the targets `removed`."""
        self.documents_read += 1
        path, version = document.path, document.version
        is_news = is_ours = False
        for one in self._named_alive(ids):
            is_ours = True
            is_news |= one.note(path, version)
        for one in self._named_alive(removed):
            is_ours = is_news = True
            one.drop(path)
        if is_news or (not is_ours and not ids and not removed):
            self._listener.on_change(Change(document))

    def unreadable(
        self, path: str, ids: Collection[int], removed: Collection[int], why: str
    ) -> None:
        """Take a `document_change` that cannot be read: the document is there, but unknown."""
        self.documents_read += 1
        ours, left = self._named_alive(ids), self._named_alive(removed)
        for one in ours:
            one.note(path, UNREADABLE)
        for one in left:
            one.drop(path)
        if ours or left or not (ids or removed):
            self._listener.on_unknown([path], why)

    def deleted(self, path: str, version: int, removed: Collection[int]) -> None:
        """Take a `document_delete`; `version` is its read time in ns."""
        is_news = not removed
        for one in self._named_alive(removed):
            if one.target.document is None:
                one.drop(path)
                is_news = True
            else:
                is_news |= one.note(path, None)
        if is_news:
            self._listener.on_change(Change(Document(path, None, version)))

    def left(self, path: str, removed: Collection[int]) -> None:
        """Take a `document_remove`: it is in the targets `removed` no more, its state unknown."""
        ours = self._named_alive(removed)
        for one in ours:
            one.drop(path)
        if ours or not removed:
            self._listener.on_unknown([path], "it left its query")

    def filter(self, target_id: int, count: int) -> None:
        """Take a `filter`: how many documents a target has; if not as many as told, start anew."""
        for one in self._named_alive((target_id,)):
            if one.before is None and one.count != count:
                why = f"{one.count} of its documents are known, the server has {count}"
                self._withdraw(one)
                one.forget()
                self._waiting[one.target.key] = one
                self._listener.on_doubt([one.target], why)

    def _named(self, ids: Sequence[int]) -> list[Followed]:
        return self._named_alive(ids) if ids else list(self._by_id.values())

    def _named_alive(self, ids: Iterable[int]) -> list[Followed]:
        """Return the targets of `ids` that are still followed; ids of others are ignored."""
        found = []
        for target_id in ids:
            asked_at = self._unanswered.pop(target_id, None) if self._unanswered else None
            if asked_at is not None:
                self.alive_at = max(self.alive_at, asked_at)
            one = self._by_id.get(target_id)
            if one is not None:
                found.append(one)
            elif target_id == self._probe_id:
                self._probe_id = 0
                self._sending.append(Request(target_id, None))
            elif not 0 < target_id < self._next_id:
                raise UnexpectedMessageError(f"target {target_id} was never asked for")
        return found

    def _take_token(self, ids: Sequence[int], token: bytes) -> None:
        if not token:
            return
        if not ids:
            # For all that are current now; kept once, because targets are many.
            self._token, self._token_seq = token, self._seq
            return
        for one in self._named_alive(ids):
            if one.current:
                one.token, one.current_seq = token, self._seq

    def _current(self, one: Followed, version: int) -> None:
        before, one.before = one.before, None
        target = one.target
        path = target.document
        if path is not None and path not in one.versions:
            before = {path: 0}  # not told at all: it does not exist
        unseen = [path for path, told in (before or {}).items() if told is not None]
        if version and target.query is None:
            for path in unseen:
                if target.document is not None:
                    one.note(path, None)
                self._listener.on_change(Change(Document(path, None, version), inferred=True))
            unseen = []
        one.current_seq = self._seq
        if not one.current:
            one.current = True
            one.failures = one.strikes = 0
            one.proven, one.suspect = True, False
            self._asked.pop(one.id, None)
        self._listener.on_current(target)
        if unseen:  # last, so that being current does not make up for it
            self._listener.on_unknown(unseen, "it was not told again")

    def _reset(self, one: Followed, why: str) -> None:
        one.forget()
        one.current = False
        self._asked[one.id] = one
        self._listener.on_doubt([one.target], why)

    def _refused(self, one: Followed, why: str) -> None:
        self._by_id.pop(one.id, None)
        self._asked.pop(one.id, None)
        one.id, one.current = 0, False
        one.forget()
        self._put_aside(one, why, _REFUSED_S)
