"""`beastmode check` and what is below it: a store that works, and each way not to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from beastmode.diagnostics import COLLECTION, Note, Opener, Step, diagnose, firestore_store
from beastmode.errors import StoreUnavailable
from beastmode.stores.base import Query
from beastmode.stores.sqlite import SQLiteStore
from beastmode.testing import Emulator, FaultProxy, fresh_project
from beastmode.testing.pytest_plugin import Firestore

STEPS = ["reach", "write", "read back", "listener opens", "listener hears", "clean up"]
WHOLE = ["open", *STEPS]
FIRESTORE = ["libraries", "credentials", *STEPS]
Program = Callable[..., tuple[int, str, str]]


def names(steps: Sequence[Step]) -> list[str]:
    return [step.name for step in steps]


class Lame:
    """A store that fails in one respect."""

    def __init__(self, store: SQLiteStore, **wrong: Any) -> None:
        self._store = store
        self._wrong = wrong

    def __getattr__(self, name: str) -> Any:
        return self._wrong.get(name) or getattr(self._store, name)


def opening(make: Callable[[], Any], detail: str = "") -> Opener:
    """Return the opener of a store that is simply made."""

    def open_store(step: Callable[[str], AbstractContextManager[Note]]) -> Any:
        with step("open") as note:
            note.text = detail
            return make()

    return open_store


def refused(*_args: Any, **_options: Any) -> Any:
    raise StoreUnavailable("nobody is there")


def test_a_store_that_works(tmp_path: Path) -> None:
    told: list[Step] = []
    steps = diagnose(opening(lambda: SQLiteStore(tmp_path / "a.db"), "a file"), on_step=told.append)
    assert names(steps) == WHOLE
    assert all(step.ok for step in steps)
    assert all(0 <= step.seconds < 5 for step in steps)
    assert steps[0].detail == "a file"
    assert told == steps
    with SQLiteStore(tmp_path / "a.db") as store:
        assert store.query(Query(COLLECTION)).documents == []


def test_the_firestore_emulator(firestore: Firestore) -> None:
    steps = diagnose(lambda step: firestore_store(step, firestore.project, "(default)", None))
    assert names(steps) == FIRESTORE
    assert [step.detail for step in steps if not step.ok] == []
    assert "grpcio 1." in steps[0].detail
    assert firestore.project in steps[1].detail
    assert f"the emulator at {firestore.host} needs none" in steps[1].detail


def test_missing_credentials_are_a_step_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    steps = diagnose(lambda step: firestore_store(step, "p", "(default)", None))
    assert [(step.name, step.ok) for step in steps] == [("libraries", True), ("credentials", False)]
    assert "/nowhere/key.json" in steps[1].detail


def test_the_deadline_is_that_of_every_step(emulator: Emulator) -> None:
    """A first call may have to fetch a token, and takes longer than a probe of the store's."""
    with FaultProxy(emulator.host) as proxy:
        proxy.hold()
        threading.Timer(1.5, proxy.pass_on).start()
        steps = diagnose(
            lambda step: firestore_store(step, fresh_project(), "(default)", proxy.host),
            deadline_s=10,
        )
    assert [step.name for step in steps if not step.ok] == []
    assert steps[2].seconds > 1.0


@pytest.mark.parametrize(
    ("wrong", "tried", "words"),
    [
        ({"get": refused}, WHOLE[:2], "StoreUnavailable: nobody is there"),
        ({"commit": refused}, [*WHOLE[:3], "clean up"], "StoreUnavailable: nobody is there"),
        ({"watch": refused}, [*WHOLE[:5], "clean up"], "StoreUnavailable: nobody is there"),
    ],
)
def test_the_step_that_fails_is_the_last_but_for_cleaning_up(
    tmp_path: Path, wrong: dict[str, Any], tried: list[str], words: str
) -> None:
    lame: Any = Lame(SQLiteStore(tmp_path / "a.db"), **wrong)
    steps = diagnose(opening(lambda: lame))
    assert names(steps) == tried
    failed = [step for step in steps if not step.ok]
    assert failed[0].name == (tried[-2] if tried[-1] == "clean up" else tried[-1])
    assert failed[0].detail == words


def test_a_listener_that_hears_nothing(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a.db")
    lame: Any = Lame(store, watch=lambda target, on_change: store.watch(target, lambda _: None))
    steps = diagnose(opening(lambda: lame), deadline_s=0.3)
    assert names(steps) == [*WHOLE[:5], "clean up"]
    assert steps[-2].detail == "no change was heard of within 0.3 s"


def test_a_store_that_reads_something_else(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a.db")
    lame: Any = Lame(store, get=lambda path, deadline: store.get("other/one"))
    steps = diagnose(opening(lambda: lame))
    assert "wrote version" in next(step for step in steps if not step.ok).detail


def test_a_store_that_cannot_be_made() -> None:
    steps = diagnose(opening(refused))
    assert [(step.name, step.ok) for step in steps] == [("open", False)]


def test_the_command(beastmode: Program, firestore: Firestore) -> None:
    code, out, err = beastmode("check", "--project", firestore.project)
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["ok"] * len(FIRESTORE)


def test_the_command_as_json(beastmode: Program, tmp_path: Path) -> None:
    code, out, _ = beastmode("check", "--sqlite", str(tmp_path / "a.db"), "--json")
    assert code == 0
    assert [step["name"] for step in json.loads(out)] == WHOLE


def test_the_command_says_what_is_wrong(beastmode: Program) -> None:
    code, out, _ = beastmode("check", "--emulator", "127.0.0.1:1", "--deadline", "0.5")
    assert code == 1
    last = out.splitlines()[-1]
    assert last.startswith("FAILED  reach")
    code, _, err = beastmode("check", "--deadline", "0")
    assert code == 2
    assert "--deadline must be above 0" in err
    code, out, err = beastmode("check", "--sqlite", "a.db", "--project", "p", "--emulator", "h:1")
    assert (code, out) == (2, "")
    assert "--project and --emulator cannot be given with --sqlite" in err
