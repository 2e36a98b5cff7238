"""`python -m benchmarks [PROGRAM] [ARGUMENTS]`: see `python -m benchmarks help`."""

from __future__ import annotations

import importlib
import sys

from benchmarks import PROGRAMS

USAGE = f"""usage: python -m benchmarks [PROGRAM] [ARGUMENTS]

programs (each knows --help and --json FILE):
{chr(10).join(f"  {name:<9} {what}" for name, what in PROGRAMS.items())}
  record    run every program, or those named, and renew results and tables from them

Without the name of a program it is compare.
"""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["help"], ["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    name = arguments[0] if arguments else ""
    if name == "record" or name in PROGRAMS:
        arguments = arguments[1:]
    else:
        name = "compare"
    return int(importlib.import_module(f"benchmarks.{name}").main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
