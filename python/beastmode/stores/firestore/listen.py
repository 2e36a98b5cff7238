"""`ListenFeed`: follows many targets over raw Listen streams, in threads of its own.

Each stream has a thread that reads it and opens it again when it fails (`stream`); one more
thread, the keeper, watches for silence. What is known of a stream is in `targets`. One lock guards
everything and is held while the listener is told something, so what the listener hears is in order
and never overtaken: a doubt found by the keeper cannot be followed by an older "current" of the
reader.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, Final

from beastmode.errors import ClosedError, ForkedError, RequestError, StoreUnavailable
from beastmode.stores.base import FeedListener, Target, check_count, check_seconds
from beastmode.stores.firestore.channel import Connection
from beastmode.stores.firestore.convert import Converter
from beastmode.stores.firestore.stream import Guard, Stream
from beastmode.stores.firestore.targets import Request

__all__ = ["SILENCE_S", "TARGETS_PER_STREAM", "ListenFeed"]

logger = logging.getLogger(__name__)

SILENCE_S: Final = 60.0
TARGETS_PER_STREAM: Final = 10_000
"""How many targets share a stream unless told otherwise; see docs/real-time-sync.md."""

_CALLBACK_PATIENCE_S: Final = 5.0
_JOIN_S: Final = 2.0


class ListenFeed:
    """A `Feed` over Firestore's Listen; see `stores.base.Feed`.

    `connection` stays its owner's. `silence_s` seconds without a word from a stream are a failure
    of it (a stream of which nothing was asked for three quarters of that is asked for a sign of
    life, billed as one read of a missing document); `targets_per_stream` targets share a stream,
    further ones get another. Targets are documents, collections and queries: Firestore cannot
    follow everything.
    """

    def __init__(
        self,
        connection: Connection,
        converter: Converter,
        listener: FeedListener,
        *,
        silence_s: float = SILENCE_S,
        targets_per_stream: int = TARGETS_PER_STREAM,
    ) -> None:
        check_seconds("silence_s", silence_s)
        check_count("targets_per_stream", targets_per_stream)
        self.connection = connection
        self.converter = converter
        self.guard = Guard(listener)
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self._silence_s = float(silence_s)
        self._per_stream = targets_per_stream
        self._streams: list[Stream] = []
        self._home: dict[str, Stream] = {}
        self._keeper: threading.Thread | None = None
        self._ending: list[Stream] = []
        self._numbers = 0
        self._read_before = 0
        self._closed = False
        self._pid = os.getpid()

    # -- what is followed ----------------------------------------------------------------------

    def add(self, target: Target) -> None:
        """See `Feed.add`; RequestError for what Firestore cannot follow."""
        if not isinstance(target, Target):
            raise RequestError(f"a feed follows Targets, got {target!r}")
        if target.document is None:
            self.message(Request(1, target))  # refuses what cannot be asked for
        if os.getpid() != self._pid:
            raise ForkedError("the feed was opened in the parent process; open one after the fork")
        with self.lock:
            if self._closed:
                raise ClosedError("the feed is closed")
            if target.key in self._home:
                return
            stream = next((s for s in self._streams if len(s.table) < self._per_stream), None)
            if stream is None:
                self._numbers += 1
                stream = Stream(self, self._numbers)
                self._streams.append(stream)
                stream.thread.start()
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep, name="beastmode-listen-keeper", daemon=True
                )
                self._keeper.start()
            self._home[target.key] = stream
            stream.table.add(target)
            stream.pump()
            self.wake.notify()

    def remove(self, target: Target) -> None:
        """See `Feed.remove`."""
        with self.lock:
            stream = self._home.pop(target.key, None)
            if stream is None:
                return
            stream.table.remove(target)
            stream.pump()
            if not len(stream.table):
                self._streams.remove(stream)
                self._read_before += stream.table.documents_read
                self._let_go([stream])

    def message(self, request: Request) -> Any:
        """Return a request as a raw `ListenRequest`; RequestError if it cannot be one."""
        message = self.connection.google.ListenRequest(database=self.connection.database)
        target = request.target
        if target is None:
            message.remove_target = request.target_id
            return message
        added = message.add_target
        if target.document is not None:
            added.documents.documents.append(self.converter.name(target.document))
        else:
            query = target.as_query()
            if query is None:
                raise RequestError(
                    "Firestore cannot follow everything: a Target here names a document, a "
                    "collection or a query"
                )
            added.query.parent, structured = self.converter.query(query)
            added.query.structured_query.CopyFrom(structured)
        added.target_id = request.target_id
        if request.token:
            added.resume_token = request.token
        return message

    # -- how it is -----------------------------------------------------------------------------

    @property
    def targets(self) -> int:
        """How many targets are followed."""
        return len(self._home)

    @property
    def streams(self) -> int:
        """How many streams are used for them."""
        return len(self._streams)

    @property
    def active(self) -> bool:
        """See `Feed.active`."""
        with self.lock:
            return not self._closed and all(
                one.table.healthy and not one.table.refused for one in self._streams
            )

    @property
    def error(self) -> BaseException | None:
        """See `Feed.error`."""
        with self.lock:
            for stream in self._streams:
                if stream.error is not None:
                    return stream.error
                if stream.table.refused:
                    return StoreUnavailable(stream.table.refused)
            return None

    @property
    def heard_at(self) -> float:
        """See `Feed.heard_at`."""
        with self.lock:
            alive = [one.table.alive_at for one in self._streams if one.table.vouches]
            return min(alive, default=-inf)

    @property
    def silence_s(self) -> float:
        """See `Feed.silence_s`."""
        return self._silence_s

    @property
    def documents_read(self) -> int:
        """See `Feed.documents_read`."""
        with self.lock:
            return self._read_before + sum(one.table.documents_read for one in self._streams)

    @property
    def listener_errors(self) -> int:
        """How often the listener raised."""
        return self.guard.errors

    # -- the keeper, and the end ---------------------------------------------------------------

    def _keep(self) -> None:
        """Watch over the streams until the feed is closed: silence, and targets put aside."""
        with self.lock:
            while True:
                now = time.monotonic()
                for stream in [one for one in self._ending if one.cancel_at <= now]:
                    self._ending.remove(stream)
                    stream.cancel()
                for stream in self._streams:
                    if why := stream.table.check(now):
                        logger.warning("a Listen stream is given up: %s", why)
                        stream.give_up(why)
                    stream.pump()
                if self._closed and not self._ending:
                    return  # here: nobody wakes the keeper any more
                due = min((one.table.due_at for one in self._streams), default=inf)
                due = min([due, *(one.cancel_at for one in self._ending)])
                self.wake.wait(None if due == inf else max(0.001, due - time.monotonic()))

    def close(self) -> None:
        """See `Feed.close`; waits up to five seconds for a listener's call that runs."""
        with self._patiently():
            self._closed = True
            streams, self._streams = self._streams, []
            self._home.clear()
            self._read_before += sum(stream.table.documents_read for stream in streams)
            self._let_go(streams)
        threads = [stream.thread for stream in streams]
        if self._keeper is not None:
            threads.append(self._keeper)
        if threading.current_thread() in threads or os.getpid() != self._pid:
            return  # called by a listener: its own thread holds the lock that the others need
        end = time.monotonic() + _JOIN_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _let_go(self, streams: Sequence[Stream]) -> None:
        for stream in streams:
            stream.end()
        self._ending.extend(streams)
        with contextlib.suppress(RuntimeError):  # the lock could not be had: see _patiently
            self.wake.notify()

    def gone(self, stream: Stream) -> None:
        """Hear that a stream's thread has ended; called with the lock held."""
        if stream in self._ending:
            self._ending.remove(stream)
            self.wake.notify()

    @contextlib.contextmanager
    def _patiently(self) -> Iterator[None]:
        """Hold the lock, or go on without it if a listener's call does not end."""
        held = self.lock.acquire(timeout=_CALLBACK_PATIENCE_S)
        if not held:
            logger.warning("a listener's call still runs after the feed was closed")
        try:
            yield
        finally:
            if held:
                self.lock.release()
