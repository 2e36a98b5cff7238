"""What the programs of this folder have in common: how they begin, report and end."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, versions
from benchmarks.peers import distributions

_STARTED = time.monotonic()


def say(text: str) -> None:
    """Tell how far it is, beside the results."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def require_compiled() -> None:
    """Leave unless the compiled engine is loaded: that is what is measured."""
    import beastcore

    if not beastcore.compiled:
        sys.exit("benchmarks: the compiled engine is measured; unset BEASTCORE_PURE")


def missing_peers(missing: list[str]) -> list[str]:
    """Tell of the distributions that are not installed; return them."""
    for name in missing:
        say(f"missing: {name} is not installed and is left out (./dev bench installs it)")
    return missing


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a program the option `--json FILE`."""
    parser.add_argument("--json", type=_file, metavar="FILE", help="write the results there too")


def _file(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path


def positive(text: str) -> int:
    """Return a positive integer, the type of such an option."""
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def head(*more: str) -> dict[str, Any]:
    """Return how every file of results begins: the date, the machine, what was installed."""
    return {
        "schema": 1,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seconds": round(time.monotonic() - _STARTED, 1),
        "machine": machine(),
        "versions": versions([*distributions(), *more]),
    }


def finish(results: dict[str, Any], text: str, path: Path | None) -> int:
    """Write the results to `path`, print their tables; return the exit status."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(text)
    say(f"done in {results['seconds']} s")
    return 0
