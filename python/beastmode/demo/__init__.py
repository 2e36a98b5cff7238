"""The demonstration: the same requests against a store, with beast mode disabled and enabled.

`run_demo(DemoOptions(...))` makes a store, plays a mixed stream or a recorded trace through
`BeastModeOptimizer.handle_request` and returns a `DemoResult`. It prints nothing; what happens
meanwhile goes to a callback. `beastmode demo` shows it on a terminal.
"""

from __future__ import annotations

from beastmode.demo.options import STORES, DemoOptions
from beastmode.demo.results import DemoResult, Phase, check_target, write_json
from beastmode.demo.run import Progress, run_demo

__all__ = [
    "STORES",
    "DemoOptions",
    "DemoResult",
    "Phase",
    "Progress",
    "check_target",
    "run_demo",
    "write_json",
]
