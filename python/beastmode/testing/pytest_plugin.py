"""Fixtures of pytest over the Firestore emulator: `pytest_plugins = ["beastmode.testing..."]`.

`emulator` is one emulator for the whole run, `firestore` an empty database of it for one test.
Both skip, naming the line that installs it, where the emulator is not installed; an emulator that
is installed and does not start fails the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from beastmode.testing.emulator import Emulator, EmulatorMissing, fresh_project, start_emulator

__all__ = ["Firestore", "emulator", "firestore"]


@dataclass(frozen=True, slots=True)
class Firestore:
    """An empty database of the emulator: `project` on `host`.

    The environment variable FIRESTORE_EMULATOR_HOST names the emulator during the test, so that
    every client made with `project=firestore.project` finds it.
    """

    project: str
    emulator: Emulator

    @property
    def host(self) -> str:
        """Where the emulator listens: "127.0.0.1:PORT"."""
        return self.emulator.host


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """One Firestore emulator for the whole run."""
    try:
        started = start_emulator()
    except EmulatorMissing as error:
        system = "" if "POSIX" not in str(error) else "another operating system: "
        pytest.skip(f"{system}{error}")
    yield started
    started.stop()


@pytest.fixture
def firestore(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Firestore:
    """Give an empty database of the emulator, for this test alone."""
    found = Firestore(fresh_project(), emulator)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", found.host)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", found.project)
    return found
