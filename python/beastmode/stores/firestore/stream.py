"""One Listen stream as it runs: the thread that reads it, and what is queued to be sent.

A stream that fails is opened again after a random wait of 0.1 s to 1 s, for as long as it is
wanted; the wait is the longer the more have failed in a row, none of them well for two seconds.
What is known of its targets is in `targets`; here is only what moves messages.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Sequence
from math import inf
from typing import Any, Final, Protocol

from beastmode.errors import StoreCorrupt, StoreUnavailable
from beastmode.stores.base import Change, FeedListener, Target
from beastmode.stores.firestore.channel import Connection
from beastmode.stores.firestore.convert import Converter, version_of
from beastmode.stores.firestore.targets import Request, TargetTable, UnexpectedMessageError

__all__ = ["Guard", "Hub", "Stream"]

logger = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 1.0
_HEALTHY_S: Final = 2.0
"""A stream that was heard and ends sooner than this is one more failure in a row."""
_PARTING_S: Final = 0.25
"""How long the server has to end a stream that is no longer wanted."""
_LOGGED_ERRORS: Final = 10
# What a target can make the server answer; a server that goes away says UNAVAILABLE.
_SUSPICIOUS: Final = frozenset(
    {"UNKNOWN", "INVALID_ARGUMENT", "INTERNAL", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
)


class Hub(Protocol):
    """What a stream needs of the feed that it belongs to."""

    connection: Connection
    converter: Converter
    guard: Guard
    lock: threading.RLock  # type: ignore[valid-type,unused-ignore]  # a function before 3.13
    wake: threading.Condition

    @property
    def silence_s(self) -> float:
        """Seconds of silence that are a failure."""
        ...

    def message(self, request: Request) -> Any:
        """Return a request as a raw message."""
        ...

    def gone(self, stream: Stream) -> None:
        """Hear, with the lock held, that the thread of `stream` has ended."""
        ...


class Guard:
    """A listener whose errors reach nobody: they are logged and counted, the change doubted."""

    def __init__(self, listener: FeedListener) -> None:
        self._listener = listener
        self.errors = 0

    def on_change(self, change: Change) -> None:
        """See `FeedListener.on_change`."""
        try:
            self._listener.on_change(change)
        except Exception as error:  # noqa: BLE001 - told to nobody who can do something about it
            self._count(error, f"on_change of {change.path!r}")
            self.on_unknown([change.path], "its change could not be taken")

    def on_current(self, target: Target) -> None:
        """See `FeedListener.on_current`."""
        try:
            self._listener.on_current(target)
        except Exception as error:  # noqa: BLE001 - told to nobody who can do something about it
            self._count(error, "on_current")

    def on_doubt(self, targets: Sequence[Target] | None, why: str) -> None:
        """See `FeedListener.on_doubt`."""
        try:
            self._listener.on_doubt(targets, why)
        except Exception as error:  # noqa: BLE001 - told to nobody who can do something about it
            self._count(error, "on_doubt")

    def on_unknown(self, paths: Sequence[str], why: str) -> None:
        """See `FeedListener.on_unknown`."""
        try:
            self._listener.on_unknown(paths, why)
        except Exception as error:  # noqa: BLE001 - told to nobody who can do something about it
            self._count(error, "on_unknown")

    def _count(self, error: Exception, what: str) -> None:
        self.errors += 1
        if self.errors <= _LOGGED_ERRORS or not self.errors % _LOGGED_ERRORS**2:
            times = self.errors
            logger.error("%s raised in a listener (error %d)", what, times, exc_info=error)


class Stream:
    """One stream: its table, the thread that reads it, and what is queued to be sent."""

    def __init__(self, hub: Hub, number: int) -> None:
        self._hub = hub
        self.table = TargetTable(hub.guard, silence_s=hub.silence_s, timer=time.monotonic)
        self._sending: queue.SimpleQueue[Any] | None = None
        self._call: Any = None
        self._ended = threading.Event()
        self._rng = random.Random()
        self._failures = 0
        self._opened_at = -inf
        self.error: BaseException | None = None
        self.cancel_at = inf
        """When the keeper cancels it, if it has not ended by itself."""
        self.thread = threading.Thread(
            target=self._run, name=f"beastmode-listen-{number}", daemon=True
        )

    # All but `_run` and what only it calls are called with the feed's lock held.

    def pump(self) -> None:
        """Send what the table has ready."""
        if self._sending is None:
            return
        try:
            for request in self.table.requests():
                self._sending.put(self._hub.message(request))
        except UnexpectedMessageError as error:
            self.give_up(str(error))

    def give_up(self, why: str, *, suspicious: bool = False) -> None:
        """Leave the stream that is open, if one is, and report what was followed on it."""
        sending, self._sending = self._sending, None
        if sending is None:
            return
        self._forgive()
        self._failures += 1
        self.error = StoreUnavailable(f"the listener lost the store: {why}")
        self.table.failed(why, suspicious=suspicious)
        sending.put(None)
        self.cancel()

    def _forgive(self) -> None:
        """Forget earlier failures if the stream, about to be left, has been well for a while.

        Not at its first message: a server that accepts streams and drops them would be asked
        again and again without a pause.
        """
        if self.table.healthy and time.monotonic() - self._opened_at >= _HEALTHY_S:
            self._failures = 0

    def end(self) -> None:
        """Let go of the stream for good: nothing is told any more, its thread ends soon.

        The server is left to end it. The emulator fails the commits that it is telling of when
        a stream is cancelled, and answers this in a millisecond; see `cancel`.
        """
        self._ended.set()
        self.cancel_at = time.monotonic() + _PARTING_S
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.put(None)

    def cancel(self) -> None:
        """End the stream without the server's help."""
        if self._call is not None:
            self._call.cancel()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._talk()
            longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(self._failures, 8))
            self._ended.wait(self._rng.uniform(_FIRST_WAIT_S, longest))
        with self._hub.lock:
            self._hub.gone(self)

    def _talk(self) -> None:
        """Open the stream and read it to its end."""
        hub = self._hub
        sending: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with hub.lock:
            if self._ended.is_set():
                return
            self._sending = sending
            self._opened_at = time.monotonic()
            self.table.opened(self._opened_at)
            self.pump()
            hub.wake.notify()
        call: Any = None
        why, suspicious = "the server ended the stream", False
        try:
            call = hub.connection.listen(iter(sending.get, None))
            with hub.lock:
                self._call = call
                if self._sending is not sending and not self._ended.is_set():
                    call.cancel()
            for message in call:
                if not self._take(message, sending) and not self._ended.is_set():
                    break
        except (UnexpectedMessageError, StoreCorrupt) as error:
            why = f"the server said what was not expected: {error}"
        except Exception as error:  # noqa: BLE001 - a new stream is the answer to all of them
            code, why = _reason(error)
            suspicious = code in _SUSPICIOUS
        finally:
            with hub.lock:
                self._call = None
                if self._sending is sending:
                    # Once for each outage: the next tries are a second apart.
                    is_known = self._failures > 0 and not self.table.healthy
                    level = logging.DEBUG if is_known else logging.WARNING
                    logger.log(level, "a Listen stream failed: %s", why)
                    self.give_up(why, suspicious=suspicious)
            sending.put(None)
            if call is not None:
                call.cancel()

    def _take(self, message: Any, sending: queue.SimpleQueue[Any]) -> bool:
        """Hand a message to the table; False if the stream has been left."""
        hub, table = self._hub, self.table
        kind = message.WhichOneof("response_type")
        part: Any = getattr(message, kind) if kind else None
        document = unreadable = None
        if kind == "document_change":
            try:
                document = hub.converter.document(part.document)
            except Exception as error:  # noqa: BLE001 - one document must not end the stream of all
                why = f"it cannot be read: {type(error).__name__}: {error}"
                unreadable = (hub.converter.path(part.document.name), why)
        with hub.lock:
            if self._sending is not sending:
                return False
            table.heard(time.monotonic())
            self.error = None
            if document is not None:
                table.document(document, part.target_ids, part.removed_target_ids)
            elif unreadable is not None:
                path, why = unreadable
                table.unreadable(path, part.target_ids, part.removed_target_ids, why)
            elif kind == "target_change":
                table.target_change(
                    part.target_change_type,
                    part.target_ids,
                    token=part.resume_token,
                    version=version_of(part.read_time),
                    code=part.cause.code,
                    message=part.cause.message,
                )
            elif kind == "document_delete":
                path = hub.converter.path(part.document)
                table.deleted(path, version_of(part.read_time), part.removed_target_ids)
            elif kind == "document_remove":
                table.left(hub.converter.path(part.document), part.removed_target_ids)
            elif kind == "filter":
                table.filter(part.target_id, part.count)
            # A message without any of these is a sign of life, like all others.
            self.pump()
        return True


def _reason(error: Exception) -> tuple[str, str]:
    """Return the gRPC code's name of an error, empty if it has none, and what it says."""
    code = getattr(error, "code", None)
    details = getattr(error, "details", None)
    if callable(code) and callable(details):
        name = str(getattr(code(), "name", code()))
        return name, f"{name}: {details() or 'no details'}"
    logger.error("a Listen stream failed in an unexpected way", exc_info=error)
    return "", f"{type(error).__name__}: {error}"
