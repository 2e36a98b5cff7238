"""`beastmode check` and what is below it: a store that works, and each way not to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode.diagnostics import COLLECTION, Step, diagnose, firestore_store
from beastmode.errors import StoreUnavailable
from beastmode.stores.base import Query, StoreHealth
from beastmode.stores.sqlite import SQLiteStore
from beastmode.testing.pytest_plugin import Firestore

WHOLE = ["open", "reach", "write", "read back", "listener opens", "listener hears", "clean up"]
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


def refused(*_args: Any, **_options: Any) -> Any:
    raise StoreUnavailable("nobody is there")


def test_a_store_that_works(tmp_path: Path) -> None:
    told: list[Step] = []
    steps = diagnose(lambda: (SQLiteStore(tmp_path / "a.db"), "a file"), on_step=told.append)
    assert names(steps) == WHOLE
    assert all(step.ok for step in steps)
    assert all(0 <= step.seconds < 5 for step in steps)
    assert steps[0].detail == "a file"
    assert told == steps
    with SQLiteStore(tmp_path / "a.db") as store:
        assert store.query(Query(COLLECTION)).documents == []


def test_the_firestore_emulator(firestore: Firestore) -> None:
    steps = diagnose(lambda: firestore_store(firestore.project, "(default)", None))
    assert names(steps) == WHOLE
    assert [step.detail for step in steps if not step.ok] == []
    assert firestore.project in steps[0].detail
    assert firestore.host in steps[0].detail


@pytest.mark.parametrize(
    ("wrong", "tried", "words"),
    [
        ({"health": lambda: StoreHealth(False, 0.1, "it is asleep")}, WHOLE[:2], "it is asleep"),
        ({"commit": refused}, [*WHOLE[:3], "clean up"], "StoreUnavailable: nobody is there"),
        ({"get": refused}, [*WHOLE[:4], "clean up"], "StoreUnavailable: nobody is there"),
        ({"watch": refused}, [*WHOLE[:5], "clean up"], "StoreUnavailable: nobody is there"),
    ],
)
def test_the_step_that_fails_is_the_last_but_for_cleaning_up(
    tmp_path: Path, wrong: dict[str, Any], tried: list[str], words: str
) -> None:
    lame: Any = Lame(SQLiteStore(tmp_path / "a.db"), **wrong)
    steps = diagnose(lambda: (lame, ""))
    assert names(steps) == tried
    failed = [step for step in steps if not step.ok]
    assert failed[0].name == (tried[-2] if tried[-1] == "clean up" else tried[-1])
    assert failed[0].detail == words


def test_a_listener_that_hears_nothing(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a.db")
    lame: Any = Lame(store, watch=lambda target, on_change: store.watch(target, lambda _: None))
    steps = diagnose(lambda: (lame, ""), deadline_s=0.3)
    assert names(steps) == [*WHOLE[:5], "clean up"]
    assert steps[-2].detail == "no change was heard of within 0.3 s"


def test_a_store_that_reads_something_else(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a.db")
    lame: Any = Lame(store, get=lambda path, deadline: store.get("other/one"))
    steps = diagnose(lambda: (lame, ""))
    assert "wrote version" in next(step for step in steps if not step.ok).detail


def test_a_store_that_cannot_be_made() -> None:
    steps = diagnose(lambda: refused())
    assert [(step.name, step.ok) for step in steps] == [("open", False)]


def test_the_command(beastmode: Program, firestore: Firestore) -> None:
    code, out, err = beastmode("check", "--project", firestore.project)
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["ok"] * len(WHOLE)


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
