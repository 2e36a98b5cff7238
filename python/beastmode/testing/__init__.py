"""The real Firestore emulator for tests: start it, freeze it, kill it, start it again.

    from beastmode.testing import start_emulator

    with start_emulator() as emulator:
        store = FirestoreStore("a-project", emulator_host=emulator.host)

`beastmode.testing.pytest_plugin` has fixtures made of it. Standard library only.
"""

from __future__ import annotations

from beastmode.testing.emulator import Emulator, EmulatorMissing, fresh_project, start_emulator

__all__ = ["Emulator", "EmulatorMissing", "fresh_project", "start_emulator"]
