"""The emulator of `beastmode.testing`: it serves, stands faults, and leaves nothing behind."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from beastmode.errors import BeastError, ConfigError
from beastmode.testing import Emulator, EmulatorMissing, fresh_project, start_emulator
from beastmode.testing.emulator import _is_free
from beastmode.testing.pytest_plugin import Firestore
from store_support import wait_until


def put(emulator: Emulator, project: str) -> int:
    return ask(emulator, "POST", f"/v1/projects/{project}/databases/(default)/documents/u")


def ask(emulator: Emulator, method: str, path: str, timeout: float = 5.0) -> int:
    door = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=timeout)
    try:
        door.request(method, path, body="{}" if method == "POST" else None)
        return door.getresponse().status
    finally:
        door.close()


def test_the_fixtures_give_an_empty_database_each(firestore: Firestore) -> None:
    assert os.environ["FIRESTORE_EMULATOR_HOST"] == firestore.host == firestore.emulator.host
    assert os.environ["GOOGLE_CLOUD_PROJECT"] == firestore.project != fresh_project()
    assert put(firestore.emulator, firestore.project) == 200


@pytest.fixture
def own(emulator: Emulator) -> Iterator[Emulator]:
    """An emulator for faults; `emulator` has skipped the test where there is none."""
    with start_emulator() as started:
        assert started.port != emulator.port
        yield started


def test_frozen_thawed_killed_and_restarted(own: Emulator) -> None:
    assert own.running
    own.freeze()
    assert "frozen" in repr(own)
    with pytest.raises(TimeoutError):
        ask(own, "GET", "/", timeout=0.3)
    own.thaw()
    assert ask(own, "GET", "/") == 200
    port, project = own.port, fresh_project()
    assert put(own, project) == 200
    own.kill()
    own.kill()
    assert not own.running
    with pytest.raises(ConnectionRefusedError):
        ask(own, "GET", "/")
    with pytest.raises(BeastError, match="restart"):
        own.freeze()
    own.restart()
    assert (own.running, own.port) == (True, port)
    assert own.log().count("is now running") == 2
    own.freeze()
    own.stop()  # a frozen one stops as well
    assert _is_free(port)


def test_it_ends_with_the_process_that_started_it(emulator: Emulator) -> None:
    script = (
        "import time; from beastmode.testing import start_emulator\n"
        "print(start_emulator().port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert not _is_free(port)
        child.send_signal(signal.SIGKILL)
    wait_until(lambda: _is_free(port))


def test_what_is_missing_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    if os.name != "posix":
        with pytest.raises(EmulatorMissing, match="POSIX"):
            start_emulator()
        return
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorMissing, match="gcloud components install cloud-firestore-emulator"):
        start_emulator()


def test_one_that_does_not_serve_fails_with_its_log(
    monkeypatch: pytest.MonkeyPatch, emulator: Emulator
) -> None:
    began = time.monotonic()
    with pytest.raises(BeastError, match="did not serve"):
        start_emulator(port=emulator.port, timeout_s=20)
    assert time.monotonic() - began < 19, "its end was not noticed"
    with pytest.raises(ConfigError, match="port"):
        start_emulator(port="8080")  # type: ignore[arg-type]
    assert shutil.which("gcloud")
