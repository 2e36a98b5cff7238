"""Telling watchers what changed in a SQLite file: one thread per store, while anyone watches.

The thread reads the rows of `changes` that are newer than what it told last, each joined with the
document as it is now, in one read transaction. A row whose document has changed again is left
out, because the row of that later change follows. Every watch has its own position, so that it is
told everything after the moment it was made and nothing before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from beastmode.errors import (
    ClosedError,
    StoreCorrupt,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from beastmode.stores import codec
from beastmode.stores.base import Change, Target, deadline_in
from beastmode.stores.documents import Document
from beastmode.stores.sqlite_file import NEWEST, SQLiteFile
from beastmode.stores.sqlite_nudge import Nudge

__all__ = ["Watch", "Watcher"]

logger = logging.getLogger(__name__)

_PAGE: Final = 200
_CHANGES: Final = (
    "SELECT changes.version, changes.parent, changes.id, changes.deleted, docs.version, docs.body"
    " FROM changes LEFT JOIN docs ON docs.parent = changes.parent AND docs.id = changes.id"
    " WHERE changes.version > ? ORDER BY changes.version LIMIT ?"
)
_PRUNED: Final = "SELECT value FROM meta WHERE name = 'pruned_through'"
_READ_DEADLINE_S: Final = 2.0
_GIVE_UP_S: Final = 10.0
_CALLBACK_PATIENCE_S: Final = 5.0
_LOGGED_ERRORS: Final = 10  # of one watch with each traceback, then each hundredth

Row = tuple[int, str, str, int, int | None, str | None]
Scope = tuple[str | None, str | None]


class Watch:
    """A `Subscription` to changes of a SQLite file; `SQLiteStore.watch` makes it."""

    def __init__(
        self,
        watcher: Watcher,
        target: Target,
        on_change: Callable[[Change], object],
        position: int,
    ) -> None:
        self.target = target
        self.position = position
        """The newest version this watch has been told of, or need not be."""
        self.callback_errors = 0
        """How often `on_change` raised."""
        self._watcher = watcher
        self._on_change = on_change
        self._calling = threading.RLock()
        self._active = True
        self._error: BaseException | None = None

    @property
    def active(self) -> bool:
        """False once closed or failed."""
        return self._active

    @property
    def error(self) -> BaseException | None:
        """Why it ended by itself, or None."""
        return self._error

    @property
    def scope(self) -> Scope:
        """Collection and id of what is watched, None for any."""
        if self.target.document is not None:
            parent, _, doc_id = self.target.document.rpartition("/")
            return parent, doc_id
        return self.target.collection, None

    def close(self) -> None:
        """End it; waits up to five seconds for an `on_change` that runs. Idempotent."""
        self._active = False
        self._watcher.remove(self)
        if self._calling.acquire(timeout=_CALLBACK_PATIENCE_S):
            self._calling.release()
        else:
            logger.warning("%s: on_change still runs after the watch was closed", self.target)

    def tell(self, change: Change) -> None:
        """Call `on_change`; what it raises is logged and counted."""
        with self._calling:
            if not self._active:
                return
            try:
                self._on_change(change)
            except Exception:
                # The stream goes on: other watchers, and later changes, must be served.
                self.callback_errors = count = self.callback_errors + 1
                if count <= _LOGGED_ERRORS or not count % _LOGGED_ERRORS**2:
                    logger.exception(
                        "on_change of %s raised for %s (error %d)", self.target, change.path, count
                    )

    def end(self, error: BaseException | None) -> None:
        """Become inactive, because of `error` or because the store is closed."""
        if self._active:
            self._error = error
            self._active = False


class Watcher:
    """All watches of one store, and the thread that serves them while there are any."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file
        self._nudge = Nudge(file.path)
        self._lock = threading.Lock()
        self._watches: dict[Scope, list[Watch]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self.read_errors = 0
        """How often reading the changes failed; it is tried again."""

    def add(self, target: Target, on_change: Callable[[Change], object], position: int) -> Watch:
        """Watch from `position` on, starting the thread if none runs."""
        watch = Watch(self, target, on_change, position)
        with self._lock:
            if self._closed:
                raise ClosedError(f"watch: the store over {self._file.name} is closed")
            self._watches.setdefault(watch.scope, []).append(watch)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"beastmode-watch {self._file.name}", daemon=True
                )
                self._thread.start()
        self._nudge.wake()
        return watch

    def remove(self, watch: Watch) -> None:
        """Forget a watch; without any left the thread ends."""
        with self._lock:
            held = self._watches.get(watch.scope, [])
            if watch in held:
                held.remove(watch)
            if not held:
                self._watches.pop(watch.scope, None)
        self._nudge.wake()

    def notify(self) -> None:
        """Tell the thread, and other processes, that this process committed."""
        if self._thread is not None:
            self._nudge.wake()
        self._nudge.send()

    def close(self, patience_s: float) -> None:
        """End every watch and the thread; waits `patience_s` for an `on_change` that runs."""
        with self._lock:
            self._closed = True
            thread = self._thread
        for watch in self._all():
            watch.end(None)
        self._nudge.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(patience_s)
            if thread.is_alive():
                logger.warning("%s: an on_change still runs at close", self._file.name)
        self._nudge.close()

    def _all(self) -> list[Watch]:
        with self._lock:
            return [watch for held in self._watches.values() for watch in held]

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._nudge.listen()
            self._serve()
        except BaseException as error:
            logger.exception("%s: watching failed; every watch ends", self._file.name)
            self._end_all(error, last=True)
            if not isinstance(error, Exception):
                raise

    def _serve(self) -> None:
        failing_since: float | None = None
        while not self._is_over():
            try:
                more = self._read_page()
            except (StoreTimeout, StoreUnavailable) as error:
                self.read_errors += 1
                now = time.monotonic()
                if failing_since is None:
                    failing_since = now
                    logger.warning(
                        "%s: reading changes failed, trying on: %s", self._file.name, error
                    )
                elif now - failing_since > _GIVE_UP_S:
                    logger.error("%s: reading changes keeps failing: %s", self._file.name, error)  # noqa: TRY400
                    self._end_all(error)
                    continue
                self._nudge.wait(self._nudge.interval_s)
            except (StoreError, ClosedError) as error:
                if not self._closed:
                    logger.error("%s: every watch ends: %s", self._file.name, error)  # noqa: TRY400
                self._end_all(None if self._closed else error)
            else:
                failing_since = None
                if not more:
                    self._nudge.wait(self._nudge.interval_s)

    def _is_over(self) -> bool:
        """Return whether nobody watches; then a later watch starts another thread."""
        with self._lock:
            if self._watches and not self._closed:
                return False
            self._stop_locked()
            return True

    def _end_all(self, error: BaseException | None, *, last: bool = False) -> None:
        """End every watch; `last`: and the thread, so that no watch is added to a dead one."""
        with self._lock:
            ended = [watch for held in self._watches.values() for watch in held]
            self._watches.clear()
            if last:
                self._stop_locked()
        for watch in ended:
            watch.end(error)

    def _stop_locked(self) -> None:
        # Under the lock, so that the sockets go before another thread can make new ones.
        self._nudge.stop_listening()
        self._watches.clear()
        self._thread = None

    def _read_page(self) -> bool:
        """Tell everyone what changed, up to a page of it; return whether there may be more."""
        watches = self._all()
        if not watches:
            return True
        start = min(watch.position for watch in watches)
        deadline = deadline_in(_READ_DEADLINE_S)
        file = self._file
        file.check_identity("watch")
        with file.connection("watch", deadline) as held:
            held.begin("watch", write=False)
            newest: int = held.execute(NEWEST).fetchone()[0]
            if newest <= start:
                held.commit()
                return False
            pruned: int = held.execute(_PRUNED).fetchone()[0]
            rows: list[Row] = held.execute(_CHANGES, [start, _PAGE]).fetchall()
            held.commit()
        if start < pruned:
            self._end_late(watches, pruned)
            watches = [watch for watch in watches if watch.active]
        by_scope: dict[Scope, list[Watch]] = {}
        for watch in watches:
            by_scope.setdefault(watch.scope, []).append(watch)
        for row in rows:
            self._tell(row, by_scope)
        full = len(rows) == _PAGE
        reached = rows[-1][0] if full else newest
        for watch in watches:
            watch.position = max(watch.position, reached)
        return full

    def _end_late(self, watches: list[Watch], pruned: int) -> None:
        for watch in watches:
            if watch.position < pruned:
                logger.error("%s: a watch of %s fell behind", self._file.name, watch.target)
                watch.end(
                    StoreError(
                        f"the watch of {watch.target} fell behind: {self._file.name} no longer "
                        f"lists every change after version {watch.position}; watch again, and "
                        "read again what was known (a larger max_changes keeps more)"
                    )
                )
                self.remove(watch)

    def _tell(self, row: Row, by_scope: dict[Scope, list[Watch]]) -> None:
        version, parent, doc_id, deleted, current, body = row
        if current != version and not (deleted and current is None):
            return  # it changed again; the row of that change follows
        concerned = [
            watch
            for scope in ((parent, doc_id), (parent, None), (None, None))
            for watch in by_scope.get(scope, ())
            if watch.position < version
        ]
        if not concerned:
            return
        path = f"{parent}/{doc_id}"
        try:
            data = None if body is None else codec.decode_frozen(body, path)
        except StoreCorrupt as error:
            logger.error("%s: %s", self._file.name, error)  # noqa: TRY400
            for watch in concerned:
                watch.end(error)
                self.remove(watch)
            return
        change = Change(Document(path, data, version))
        for watch in concerned:
            watch.tell(change)
