"""Fixtures of the layer's tests: the Firestore emulator, one for the whole run, and the program.

Besides, for the tests of the batcher and its journal, one journal and a store that fails when told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beastmode.journal import Journal
from beastmode.stores.sqlite import SQLiteStore
from beastmode.testing.pytest_plugin import emulator, firestore
from layer.faulty_store import FaultyStore

__all__ = ["beastmode", "emulator", "firestore"]


@pytest.fixture
def beastmode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process, in an empty folder and without settings around it."""
    for name in list(os.environ):
        if name.startswith("BEASTMODE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    # Here, because click and rich come with it, which most tests do not need.
    from beastmode import commands as program

    def run(*arguments: object) -> tuple[int, str, str]:
        code = program.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    made = FaultyStore(SQLiteStore(":memory:"))
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "writes.journal"


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    made = Journal(place)
    yield made
    made.close()
