"""The real Firestore emulator for tests: start it, freeze it, kill it, start it again.

    from beastmode.testing import start_emulator

    with start_emulator() as emulator:
        store = FirestoreStore("a-project", emulator_host=emulator.host)

`FaultProxy` stands between a store and its server and breaks connections. What
`beastmode.testing.pytest_plugin` has are fixtures made of these. Standard library only.
"""

from __future__ import annotations

from beastmode.testing.emulator import Emulator, EmulatorMissing, fresh_project, start_emulator
from beastmode.testing.proxy import FaultProxy

__all__ = ["Emulator", "EmulatorMissing", "FaultProxy", "fresh_project", "start_emulator"]
