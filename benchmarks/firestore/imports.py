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
STDLIB = "import asyncio, sqlite3, json"
STATEMENTS = {
    STDLIB: STDLIB,
    "import beastmode": "import beastmode",
    "from beastmode import BeastModeOptimizer": "from beastmode import BeastModeOptimizer",
}
"""The package imports a name when it is asked for it; the last one is what servers import."""
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
    """Import each, `rounds` times in turn; return the ratios and what was loaded."""
    say("import: fresh interpreters")
    took: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    third: set[str] = set()
    google: set[str] = set()
    with tempfile.TemporaryDirectory() as byte_code:
        for number in range(rounds + 1):
            for name, statement in STATEMENTS.items():
                seconds, others, googles = _import(statement, byte_code)
                third.update(others)
                google.update(googles)
                if number:  # the first has compiled everything
                    took[name].append(seconds)
    rows = []
    for name in STATEMENTS:
        if name == STDLIB:
            continue
        ratios = [ours / theirs for ours, theirs in zip(took[name], took[STDLIB], strict=True)]
        low, middle, high = quartiles(ratios)
        rows.append(
            {
                "what": name,
                "ratio": round(middle, 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
                "ms": round(1e3 * quartiles(took[name])[1], 1),
                "stdlib_ms": round(1e3 * quartiles(took[STDLIB])[1], 1),
                "met": middle <= MOST_OVER_STDLIB,
            }
        )
    return {
        "rounds": rounds,
        "rows": rows,
        "third_party": sorted(third),
        "google": sorted(google),
        "target": MOST_OVER_STDLIB,
    }
