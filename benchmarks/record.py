"""`python -m benchmarks record [PROGRAM ...]`: measure for the documentation.

Runs the programs as they run by default, writes their files in benchmarks/results/ and renews the
tables that are made from them. For a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib

from benchmarks import PROGRAMS, tables
from benchmarks.program import say


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks record", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="all unless some are named")
    named = parser.parse_args(arguments).programs
    for name in named:
        if name not in PROGRAMS:
            parser.error(f"no program {name!r}; there are {', '.join(PROGRAMS)}")
    for name in named or PROGRAMS:
        say(f"program {name}")
        path = str(tables.results_file(name))
        importlib.import_module(f"benchmarks.{name}").main(["--json", path])
    return tables.main([])
