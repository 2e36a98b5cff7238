"""What `import beastmode` costs and loads, while no Firestore is in use.

Each import runs in a fresh interpreter, in turn with `import asyncio, sqlite3, json`, which the
layer cannot do without; what an empty interpreter imports anyway is not in either. The byte code
of both is there already, as in an installed package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.measure import quartiles
from benchmarks.program import say
from benchmarks.worker import ROOT

MOST_OVER_STDLIB = 2.0
OURS = "import beastmode; beastmode.BeastModeOptimizer"
"""The package, and what everyone who imports it takes out of it first."""
_PROGRAM = """
import sys, time
began = time.perf_counter()
{what}
took = time.perf_counter() - began
import json, sysconfig
places = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
third = sorted(
    name for name, module in list(sys.modules.items())
    if "." not in name and (getattr(module, "__file__", None) or "").startswith(tuple(places))
)
google = sorted(name for name in sys.modules if name.partition(".")[0] in ("google", "grpc"))
print(json.dumps([took, third, google]))
"""


def _import(what: str, byte_code: str) -> tuple[float, list[str], list[str]]:
    environment = dict(os.environ, PYTHONPYCACHEPREFIX=byte_code, PYTHONDONTWRITEBYTECODE="")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(what=what)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    took, third, google = json.loads(done.stdout.splitlines()[-1])
    return took, [name for name in third if not name.startswith(("beast", "_"))], google


def run(rounds: int) -> dict[str, Any]:
    """Import both, `rounds` times in turn; return the ratio and what was loaded."""
    say("import: fresh interpreters")
    ratios, mine, theirs = [], [], []
    third: list[str] = []
    google: list[str] = []
    with tempfile.TemporaryDirectory() as byte_code:
        for number in range(rounds + 1):
            ours, third, google = _import(OURS, byte_code)
            stdlib, _, _ = _import("import asyncio, sqlite3, json", byte_code)
            if number:  # the first has compiled everything
                mine.append(ours * 1000)
                theirs.append(stdlib * 1000)
                ratios.append(ours / stdlib)
    low, middle, high = quartiles(ratios)
    return {
        "rounds": rounds,
        "ratio": round(middle, 3),
        "ratio_low": round(low, 3),
        "ratio_high": round(high, 3),
        "beastmode_ms": round(quartiles(mine)[1], 1),
        "stdlib_ms": round(quartiles(theirs)[1], 1),
        "third_party": third,
        "google": google,
        "target": MOST_OVER_STDLIB,
        "met": middle <= MOST_OVER_STDLIB and not third and not google,
    }
