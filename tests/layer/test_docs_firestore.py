"""The lines of code that the pages about Firestore show do what the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from beastmode.testing.pytest_plugin import Firestore

DOCS = Path(__file__).resolve().parents[2] / "docs"
OPTIMIZER = """
import builtins, time
told = []
def print(*words):
    told.append(words)
    builtins.print(*words)
from beastmode import BeastModeOptimizer, Filter, FirestoreStore, Query, Request, Set, Target
store = FirestoreStore("my-project")
optimizer = BeastModeOptimizer(store, journal_dir="journals").start()
optimizer.handle_request_sync("ada", Request.set("users/7", {"n": 1}))
"""
UNTIL_TOLD = """
end = time.monotonic() + 10
while not told and time.monotonic() < end:
    time.sleep(0.01)
"""
CLOSE = "\noptimizer.close()\nstore.close()\n"
LISTENER = """
class Listener:
    def __getattr__(self, name):
        return lambda *args: None
listener = Listener()
"""


def code(page: str, words: str) -> str:
    """Return the one block of Python of a page that has `words`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if words in block
    ]
    return found


@pytest.mark.parametrize(
    ("page", "words", "before", "after"),
    [
        ("firestore.md", "BeastModeOptimizer(store", "", ""),
        ("firestore.md", "start_emulator", "from beastmode import FirestoreStore\n", ""),
        (
            "real-time-sync.md",
            "optimizer.sync.subscribe(",
            OPTIMIZER,
            'store.commit([Set("orders/1", {"total": 150})])\n' + UNTIL_TOLD + CLOSE,
        ),
        ("real-time-sync.md", "store.open_feed", OPTIMIZER + LISTENER, CLOSE),
    ],
)
def test_what_a_page_shows_runs(
    page: str, words: str, before: str, after: str, firestore: Firestore, tmp_path: Path
) -> None:
    script = (before + code(page, words) + after).replace("my-project", firestore.project)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), script
    if "subscribe" in words:
        assert "orders/1 {'total': 150}" in done.stdout
