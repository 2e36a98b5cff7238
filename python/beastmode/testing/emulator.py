"""Google's Firestore emulator as a child of this process, with the faults a test needs.

The emulator is three processes (gcloud, a shell, Java) in one process group; signals go to the
group. It keeps documents in memory: after `restart` it is empty. It ends with this process,
however this process ends: a shell beside it waits for the end of a pipe that we hold.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final, Self

from beastmode.errors import BeastError, ConfigError

__all__ = ["Emulator", "EmulatorMissing", "fresh_project", "start_emulator"]

_COMPONENT: Final = "cloud-firestore-emulator"
_INSTALL: Final = (
    f"install the Google Cloud CLI and then: gcloud components install {_COMPONENT} "
    f"(Debian: apt-get install google-cloud-cli-firestore-emulator default-jre-headless)"
)
_READY: Final = b"Dev App Server is now running"
_PORTS: Final = range(20_000, 32_000)
"""Below those that Linux gives to clients: a client that calls a dead emulator on one of those
may be given the very port as its own and then connects to itself."""
# A background shell kills the group when the pipe from us ends; the emulator itself takes over the
# process that we wait for.
_GUARDED: Final = 'exec 3<&0 </dev/null; (read -r _ <&3; kill -KILL 0) & exec "$@" 3<&-'
_STOP_S: Final = 5.0


class EmulatorMissing(BeastError):
    """The emulator, or what it runs on, is not installed; the text says how to install it."""


class Emulator:
    """A Firestore emulator that runs on `host` ("127.0.0.1:PORT"); made by `start_emulator`.

    Every project id is an empty database of its own: `fresh_project()` makes one.
    """

    def __init__(self, port: int, timeout_s: float) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the emulator
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = self._served = False
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "frozen" if self._frozen else "running" if self.running else "stopped"
        return f"Emulator({self.host!r}, {state})"

    @property
    def running(self) -> bool:
        """True from the start until `stop` or `kill`, also while it is frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The leader of its process group. Raises BeastError when it does not run."""
        if self._process is None:
            raise BeastError(f"the emulator on {self.host} does not run; restart() starts it again")
        return self._process.pid

    def log(self) -> str:
        """Return what it has written since it was first started."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def freeze(self) -> None:
        """Stop it as SIGSTOP does: connections stay, nothing is answered until `thaw`."""
        os.killpg(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """Let it go on after `freeze`; calls that still wait are answered."""
        os.killpg(self.pid, signal.SIGCONT)
        self._frozen = False

    def kill(self) -> None:
        """End it at once, as a crash does; idempotent."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order and forget its log; idempotent. It cannot be restarted after it."""
        self._end(signal.SIGTERM)
        self._log.close()

    def restart(self) -> None:
        """Kill it if it runs, and start it on the same port, empty; returns when it serves."""
        self.kill()
        self._start()

    def _wait_ready(self) -> None:
        end = time.monotonic() + self._timeout_s
        process = self._process
        while time.monotonic() < end:
            if process is None or process.poll() is not None:
                break
            if _READY in self._written() and self._serves():
                self._served = True
                return
            time.sleep(0.02)
        text = self._written().decode("utf-8", "replace")[-2000:]
        raise BeastError(
            f"the Firestore emulator did not serve on {self.host} within {self._timeout_s} s; "
            f"it wrote:\n{text}"
        )

    def _start(self) -> None:
        self._began_at = os.fstat(self._log.fileno()).st_size
        command = [
            *("sh", "-c", _GUARDED, "emulator"),
            *("gcloud", "emulators", "firestore", "start", f"--host-port={self.host}"),
        ]
        environ = {**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
        self._frozen = self._served = False
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
        self._wait_ready()

    def _written(self) -> bytes:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size - self._began_at, self._began_at)

    def _serves(self) -> bool:
        """Ask for one document through the emulator's REST door; a missing one is an answer."""
        door = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            door.request("GET", "/v1/projects/ready/databases/(default)/documents/a/b")
            return door.getresponse().status in (200, 404)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            door.close()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._frozen = False
        _signal(process.pid, how)
        if how is not signal.SIGKILL:
            _signal(process.pid, signal.SIGCONT)  # a frozen one hears the SIGTERM only then
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            _signal(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        end = time.monotonic() + _STOP_S
        while self._served and not _is_free(self.port) and time.monotonic() < end:
            time.sleep(0.01)  # Java is no child of ours: its end shows by its port


def start_emulator(*, port: int | None = None, timeout_s: float = 60.0) -> Emulator:
    """Start an emulator on `port` (None: a free one) and return it once it serves.

    It takes about 2 s. Raises EmulatorMissing, with the line that installs it, where gcloud, its
    component or Java is not there; BeastError, with the log, when it does not serve within
    `timeout_s`.
    """
    if port is not None and (isinstance(port, bool) or not isinstance(port, int)):
        raise ConfigError(f"port must be an int or None, got {port!r}")
    _require()
    return Emulator(_free_port() if port is None else port, timeout_s)


def fresh_project() -> str:
    """Return a project id that nobody has used: an empty database of the emulator."""
    return f"test-{uuid.uuid4().hex[:16]}"


def _require() -> None:
    if os.name != "posix":
        raise EmulatorMissing("the emulator is driven by signals to its process group: POSIX only")
    for program in ("gcloud", "java"):
        if shutil.which(program) is None:
            raise EmulatorMissing(f"the Firestore emulator needs {program}: {_INSTALL}")
    if not _has_component():
        raise EmulatorMissing(f"gcloud lacks its component {_COMPONENT}: {_INSTALL}")


def _has_component() -> bool:
    gcloud = shutil.which("gcloud") or "gcloud"
    if (Path(gcloud).resolve().parents[1] / "platform" / _COMPONENT).is_dir():
        return True
    done = subprocess.run(  # noqa: S603
        [gcloud, "components", "list", "--only-local-state", "--format=value(id)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return _COMPONENT in done.stdout.split()


def _free_port() -> int:
    tried: list[int] = []
    while len(tried) < 50:
        port = random.choice(_PORTS)
        if _is_free(port):
            return port
        tried.append(port)
    raise BeastError(f"no free port for the emulator among {tried}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _signal(group: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, what)
