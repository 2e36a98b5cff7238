"""`JournalDirectory`: a journal of its own for each process, and the orphans of those that died.

Every process makes a new file, `<time>-<process>-<random>.journal`, and holds its lock for life.
A file whose lock is free belonged to a process that has ended: an orphan. Whoever finds orphans
takes all of them, the oldest first, under a lock on the directory, so that the order in which one
process took over from another is kept. Nothing is copied: an adopted journal is told what became
of its operations, and its files are removed once it is empty.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from beastmode.errors import JournalDamaged, JournalError, JournalLocked
from beastmode.journal.files import LifetimeLock, resolve_location
from beastmode.journal.writer import Durability, Journal

__all__ = ["JournalDirectory"]

logger = logging.getLogger(__name__)

_SUFFIX: Final = ".journal"
_COMPANIONS: Final = ("", "-wal", "-shm")


class JournalDirectory:
    """The directory `path`, which is made (mode 0700); the settings are those of `Journal`.

    Safe to share between threads, and usable in a child after a fork: it holds nothing open.
    `on_error` is called with the errors of orphans that cannot be adopted. Raises JournalError
    when the directory cannot be used or everybody may write to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        max_bytes: int = 1024 * 1024 * 1024,
        max_dead_letters: int = 10_000,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise JournalError(f"journal_dir must be a non-empty str or path, got {path!r}")
        self._path = resolve_location(Path(text) / "adopt").parent
        self._durability: Durability = durability
        self._max_bytes = max_bytes
        self._max_dead_letters = max_dead_letters
        self._on_error = on_error
        self._left_alone: set[str] = set()

    @property
    def path(self) -> str:
        """The directory."""
        return str(self._path)

    def open(self) -> Journal:
        """Make this process's journal: a new and empty one."""
        name = f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        return self._journal(name)

    def adopt(self) -> list[Journal]:
        """Take over what processes that have ended left behind, the oldest first.

        They are this process's now: hand them to the batcher, and to `release` once they are
        empty. Files with nothing in them are removed; a damaged one is renamed (".damaged"),
        logged and reported; one of another user or of a newer version is left alone. Returns []
        when another process adopts at this moment. O(files in the directory).
        """
        try:
            lock = LifetimeLock(self._path / "adopt")
        except JournalLocked:
            return []
        try:
            return [journal for name in self._names() if (journal := self._adopted(name))]
        finally:
            lock.release()

    def release(self, journal: Journal) -> bool:
        """Close an adopted journal and remove its files if it holds nothing; whether it did.

        Where only operations remain that the store rejected, or that are damaged, its file stays,
        renamed (".rejected").
        """
        if not journal.is_settled:
            return False
        self._end(journal)
        return True

    def _names(self) -> Iterator[str]:
        try:
            found = [
                entry.name
                for entry in os.scandir(self._path)
                if entry.name.endswith(_SUFFIX) and entry.name not in self._left_alone
            ]
        except OSError as error:
            raise JournalError(
                f"the directory of journals {self.path!r} cannot be read: {error}"
            ) from error
        yield from sorted(found)

    def _adopted(self, name: str) -> Journal | None:
        try:
            journal = self._journal(name, new=False)
        except JournalLocked:
            return None  # its process lives
        except FileNotFoundError:
            return None  # its process has just removed it
        except JournalError as error:
            self._refuse(name, error)
            return None
        if journal.is_settled:
            self._end(journal)
            return None
        logger.warning(
            "the journal %r of a process that has ended is adopted: %d operations to replay, and "
            "what is left to do about markers",
            journal.path,
            journal.get_stats().records,
        )
        return journal

    def _journal(self, name: str, *, new: bool = True) -> Journal:
        return Journal(
            self._path / name,
            durability=self._durability,
            max_bytes=self._max_bytes,
            max_dead_letters=self._max_dead_letters,
            must_exist=not new,
        )

    def _refuse(self, name: str, error: JournalError) -> None:
        """Set a damaged orphan aside; leave alone what is not ours to judge."""
        self._left_alone.add(name)
        told: BaseException = error
        if isinstance(error, JournalDamaged):
            try:
                lock = LifetimeLock(self._path / name)
            except JournalError:
                return  # somebody else has it now
            try:
                self._rename(name, ".damaged")
            finally:
                lock.release()
            told = JournalError(
                f"an orphaned journal was set aside as {name + '.damaged'!r} in {self.path!r}: "
                f"{error}"
            )
            told.__cause__ = error
        logger.error("%s", told)
        if self._on_error is not None:
            self._on_error(told)

    def _end(self, journal: Journal) -> None:
        report = journal.get_stats()
        name = Path(journal.path).name
        if report.dead_letters or report.corrupt:
            journal.close(at_end=lambda: self._rename(name, ".rejected"))
            logger.warning(
                "an orphaned journal is done; what the store rejected or could not be read stays "
                "in %r",
                str(self._path / (name + ".rejected")),
            )
        else:
            journal.close(at_end=lambda: self._remove(name))

    def _rename(self, name: str, suffix: str) -> None:
        for companion in _COMPANIONS:
            place = self._path / (name + companion)
            if place.exists():
                place.rename(self._path / (name + suffix + companion))

    def _remove(self, name: str) -> None:
        for companion in (*_COMPANIONS, ".lock"):
            (self._path / (name + companion)).unlink(missing_ok=True)
