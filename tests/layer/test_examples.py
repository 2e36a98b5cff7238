"""The applications of examples/, each run as its users would run it, on the emulator."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beastmode import Set
from beastmode.stores.firestore import FirestoreStore
from beastmode.testing.pytest_plugin import Firestore
from store_support import wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def environment(firestore: Firestore, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "FIRESTORE_EMULATOR_HOST": firestore.host,
        "GOOGLE_CLOUD_PROJECT": firestore.project,
        "JOURNALS": str(folder / "journals"),
    }


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    door = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        text = None if body is None else json.dumps(body)
        door.request(method, path, text, {"Content-Type": "application/json"})
        answer = door.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        door.close()


def serves(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


@contextmanager
def running(command: list[str], firestore: Firestore, folder: Path) -> Iterator[int]:
    """Run a server and give its port; it must end by itself on SIGTERM or SIGINT."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=EXAMPLES,
            env=environment(firestore, folder),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: serves(port) or process.poll() is not None, seconds=30)
            assert process.poll() is None, log.read_text()
            yield port
            process.send_signal(signal.SIGINT)  # what a developer presses; both servers take it
            process.wait(20)
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            process.kill()
            process.wait()


def test_fastapi(firestore: Firestore, tmp_path: Path) -> None:
    store = FirestoreStore(firestore.project, emulator_host=firestore.host)
    with running(["uvicorn", "fastapi_app:app"], firestore, tmp_path) as port:
        assert ask(port, "GET", "/users/ada")[0] == 404
        assert ask(port, "PUT", "/users/ada", {"city": "London"}) == (202, "journal")
        status, answer = ask(port, "GET", "/users/ada")
        assert (status, answer["user"]) == (200, {"city": "London"})
        for _ in range(3):
            assert ask(port, "POST", "/users/ada/visits")[0] == 202
        assert ask(port, "GET", "/users/ada")[1]["user"] == {"city": "London", "visits": 3}
        assert ask(port, "GET", "/users?city=London")[1][0]["path"] == "users/ada"
        # Written by somebody else: the listener carries it into the cache.
        store.commit([Set("users/ada", {"city": "Paris"})])
        wait_until(lambda: ask(port, "GET", "/users/ada")[1]["user"] == {"city": "Paris"})
        assert ask(port, "GET", "/users/ada")[1]["source"] == "hit"
        assert "Hit rate" in ask(port, "GET", "/figures")[1]
        assert ask(port, "PUT", "/users/grace", {"city": "New York"})[0] == 202
    assert store.get("users/grace").data == {"city": "New York"}  # flushed at the end
    store.close()


def test_flask(firestore: Firestore, tmp_path: Path) -> None:
    store = FirestoreStore(firestore.project, emulator_host=firestore.host)
    with running(["flask", "--app", "flask_app", "run"], firestore, tmp_path) as port:
        assert ask_status(port, "/users/ada") == 404
        assert ask(port, "PUT", "/users/ada", {"city": "London"}) == (202, {"source": "journal"})
        assert ask(port, "GET", "/users/ada")[1]["user"] == {"city": "London"}
    assert store.get("users/ada").data == {"city": "London"}
    store.close()


def ask_status(port: int, path: str) -> int:
    door = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        door.request("GET", path)
        return door.getresponse().status
    finally:
        door.close()


def test_the_worker_books_each_line_once(firestore: Firestore, tmp_path: Path) -> None:
    lines = "ada 5\nada 7\ngrace 1\n" * 20
    done = subprocess.run(
        [sys.executable, EXAMPLES / "worker.py"],
        input=lines,
        env=environment(firestore, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("60 bookings in ")
    store = FirestoreStore(firestore.project, emulator_host=firestore.host)
    data = store.get("accounts/ada").data
    assert data is not None
    assert data["balance"] == 240
    assert abs(data["booked"].timestamp() - time.time()) < 120
    grace = store.get("accounts/grace").data
    assert grace is not None
    assert grace["balance"] == 20
    store.close()


def test_the_lines_of_the_readme(firestore: Firestore, tmp_path: Path) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in readme.split("```python\n") if "FirestoreStore(" in block]
    lines = code.partition("```")[0].replace("my-project", firestore.project)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", f"{lines}print(response)"],
        cwd=tmp_path,
        env=environment(firestore, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Response('store', document=Document(path='users/ada', data=None")
