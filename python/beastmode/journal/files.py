"""The journal's files on disk: created privately, and held by one process at a time."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from beastmode.errors import JournalError, JournalLocked

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LifetimeLock", "create_private", "resolve_location"]

_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_WINDOWS_LOCK_OFFSET = 1 << 30  # beyond the text: locked bytes cannot be read by others there


def resolve_location(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a journal file, its directory made (0700) and checked.

    Raises JournalError when the directory cannot be used, or when everybody may write to it:
    another user could then swap the file for a link.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise JournalError(f"journal path must be a non-empty str or path, got {path!r}")
    place = Path(text)
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = place.parent.resolve(strict=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise JournalError(
            f"the directory of the journal {text!r} cannot be used: {error.strerror or error}"
        ) from error
    if os.name == "posix" and mode & stat.S_IWOTH:
        raise JournalError(
            f"the journal {text!r} may not be in {str(directory)!r}: everybody may write to that "
            "directory; choose one that only its owner may write to (mode 0700)"
        )
    return directory / place.name


def create_private(path: Path) -> None:
    """Make `path` an own regular file with mode 0600 without following a link; JournalError."""
    try:
        os.close(_open_private(path))
    except OSError as error:
        raise _refusal(path, error) from error


def _open_private(path: Path) -> int:
    fd = os.open(path, _OPEN_FLAGS, 0o600)
    try:
        _make_private(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_private(fd: int, path: Path) -> None:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise JournalError(f"the journal {str(path)!r} must be a regular file")
    if sys.platform != "win32":
        if info.st_uid != os.geteuid():
            raise JournalError(
                f"the journal {str(path)!r} belongs to user id {info.st_uid}, not to this "
                f"process's {os.geteuid()}; only its owner may use it"
            )
        if stat.S_IMODE(info.st_mode) & 0o077:
            os.fchmod(fd, 0o600)


def _refusal(path: Path, error: OSError) -> JournalError:
    if error.errno == errno.ELOOP:
        return JournalError(f"the journal {str(path)!r} is a symbolic link, which is not followed")
    return JournalError(
        f"the journal {str(path)!r} cannot be opened for writing: {error.strerror or error}"
    )


class LifetimeLock:
    """An exclusive lock on the side file `journal.lock`, which holds the owner's process id.

    The file stays when the lock is released: removing it would let two processes each lock a
    file of that name (`remove` is for a name that never comes again). A child made by fork must
    call `abandon`, or it would keep the lock after its parent has ended.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self, journal: Path) -> None:
        self._fd = -1
        self._path = path = journal.with_name(journal.name + ".lock")
        try:
            fd = _open_private(path)
        except OSError as error:
            raise _refusal(path, error) from error
        try:
            _lock(fd)
        except OSError as error:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise JournalLocked(
                f"the journal {str(journal)!r} is in use by process {holder}; every process needs "
                "a journal of its own"
            ) from error
        try:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode("ascii"))
        except OSError:
            # A full disk may refuse the id, which only names the holder; the lock itself holds.
            pass
        self._fd = fd

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _unlock(fd)
            os.close(fd)

    def remove(self) -> None:
        """Remove the file, which the lock still holds."""
        self._path.unlink(missing_ok=True)

    def __del__(self) -> None:
        # Of a journal that nobody closed: its owner could not even open it again.
        self.release()

    def abandon(self) -> None:
        """In a child of the process that made it: drop the inherited descriptor alone."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


if sys.platform == "win32":

    def _lock(fd: int) -> None:
        os.lseek(fd, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

    def _unlock(fd: int) -> None:
        os.lseek(fd, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
