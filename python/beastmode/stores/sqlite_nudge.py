"""Waking those who watch a file, in this process and in others, as soon as it changed.

Each listening process binds a datagram socket in a directory beside the file (`FILE-watch`, mode
0700, owned by this user, no link); whoever commits sends an empty datagram to every socket there.
A nudge is a hint, never the news itself: listeners read the file, and read it now and then
without being nudged. So nothing is lost when a nudge is, and where there are no such sockets
(Windows, a directory of another user, a path too long for a socket) listeners just read often.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import stat
from pathlib import Path
from typing import Final

__all__ = ["Nudge"]

logger = logging.getLogger(__name__)

HAS_SOCKETS: Final = os.name == "posix" and hasattr(socket, "AF_UNIX")
POLL_NUDGED_S: Final = 0.5
POLL_ALONE_S: Final = 0.05
_MAX_SOCKET_PATH: Final = 100  # 104 on macOS and 108 on Linux, with the final NUL
_SUFFIX: Final = ".sock"
_BIND_TRIES: Final = 3


class Nudge:
    """Both ends of the nudges for one file: `listen` and `wait`, or `send` after a commit.

    `path` None (a database in memory) means that nobody outside this object is nudged. `listen`,
    `wait` and `stop_listening` are called by one thread, `send` by one thread at a time, `wake`
    by anyone.
    """

    def __init__(self, path: Path | None) -> None:
        self._directory = None if path is None else path.with_name(path.name + "-watch")
        self._own_path: Path | None = None
        self._socket: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._selector: selectors.BaseSelector | None = None
        self._inside: tuple[socket.socket, socket.socket] | None = None
        self.interval_s = POLL_NUDGED_S
        """How long a listener waits at most before it reads the file without being nudged."""

    def listen(self) -> None:
        """Make the sockets; without one in the directory `interval_s` is short."""
        inside = socket.socketpair()
        for end in inside:
            end.settimeout(0.0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(inside[0], selectors.EVENT_READ)
        self._inside = inside
        if self._directory is None:
            self.interval_s = POLL_NUDGED_S
            return
        try:
            self._socket = self._bind(self._directory)
        except OSError as error:
            logger.info(
                "%s: no socket for nudges (%s); reading every %g s instead",
                self._directory,
                error,
                POLL_ALONE_S,
            )
            self.interval_s = POLL_ALONE_S
        else:
            self.interval_s = POLL_NUDGED_S
            self._selector.register(self._socket, selectors.EVENT_READ)

    def wait(self, timeout: float) -> None:
        """Return when nudged, or after `timeout` seconds; nudges that came together count once."""
        if self._selector is None:
            raise RuntimeError("wait() needs listen() first")
        for key, _ in self._selector.select(timeout):
            end = key.fileobj
            if isinstance(end, socket.socket):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    while end.recv(4096) or end is self._socket:
                        pass

    def wake(self) -> None:
        """Nudge the listener of this object, from any thread."""
        inside = self._inside
        if inside is not None:
            # Full: it is about to wake anyway. Closed: it has stopped meanwhile.
            with contextlib.suppress(BlockingIOError, OSError):
                inside[1].send(b"1")

    def send(self) -> None:
        """Nudge the listeners of other processes; sockets of dead ones are removed."""
        directory = self._directory
        if directory is None or not HAS_SOCKETS:
            return
        try:
            if not _is_private(os.lstat(directory)):
                return
            names = os.listdir(directory)  # noqa: PTH208 -- on every commit; pathlib costs twice
        except OSError:
            return  # nobody listens, or not to us: they read without being nudged
        for name in names:
            if name.endswith(_SUFFIX):
                target = directory / name
                if target != self._own_path:
                    self._send_to(target)

    def _send_to(self, target: Path) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.settimeout(0.0)
        try:
            self._sender.sendto(b"", os.fspath(target))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                target.unlink()
        except OSError as error:
            # EAGAIN: that listener has nudges enough. Anything else costs it half a second.
            if error.errno not in (errno.EAGAIN, errno.ENOENT, errno.ENOBUFS):
                logger.debug("cannot nudge %s: %s", target, error)

    def _bind(self, directory: Path) -> socket.socket:
        if not HAS_SOCKETS:
            raise OSError(errno.EAFNOSUPPORT, "this platform has no local datagram sockets")
        path = directory / f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise OSError(errno.ENAMETOOLONG, f"the path is too long for a socket: {path}")
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            made.settimeout(0.0)
            for left in reversed(range(_BIND_TRIES)):
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(0o700)
                try:
                    if not _is_private(os.lstat(directory)):
                        raise PermissionError(
                            errno.EPERM, f"{directory} is not a private directory of this user"
                        )
                    made.bind(os.fspath(path))
                except FileNotFoundError:
                    if not left:  # its last listener keeps removing it
                        raise
                else:
                    break
        except BaseException:
            made.close()
            raise
        self._own_path = path
        return made

    def stop_listening(self) -> None:
        """Close and remove the listener's sockets. Idempotent."""
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        inside, self._inside = self._inside, None
        for end in inside or ():
            end.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        own, self._own_path = self._own_path, None
        if own is not None:
            with contextlib.suppress(OSError):
                own.unlink()
            with contextlib.suppress(OSError):
                own.parent.rmdir()  # refused while others listen there

    def close(self) -> None:
        """Close what `send` opened. Idempotent."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()


def _is_private(found: os.stat_result) -> bool:
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )
