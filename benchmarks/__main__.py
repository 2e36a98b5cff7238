"""`python -m benchmarks [CASE ...] [--quick] [--json FILE] [--rounds N]`."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import tables, twin
from benchmarks.bench_cache import CASES, SIZES, run_size
from benchmarks.measure import Quiet, machine, versions
from benchmarks.peers import DISTRIBUTIONS, available

TWIN = "twin"
QUICK_SIZES = (10_000,)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare with other caches, and the compiled engine with its pure twin.",
        epilog=f"Cases: {', '.join([*CASES, TWIN])}. All of them unless some are named.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="10,000 entries, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each case")
    parser.add_argument("--sizes", help="sizes of the caches, separated by commas")
    found = parser.parse_args(arguments)
    unknown = [case for case in found.cases if case not in (*CASES, TWIN)]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join([*CASES, TWIN])}")
    if found.rounds is None:
        found.rounds = 5 if found.quick else 7
    if found.rounds < 1:
        parser.error(f"--rounds must be positive, got {found.rounds}")
    found.cases = found.cases or [*CASES, TWIN]
    found.sizes = sizes_of(parser, found)
    if found.json is not None and not found.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {found.json.absolute().parent}")
    return found


def sizes_of(parser: argparse.ArgumentParser, found: argparse.Namespace) -> tuple[int, ...]:
    if found.sizes is None:
        return QUICK_SIZES if found.quick else SIZES
    try:
        sizes = tuple(int(size.replace("_", "")) for size in found.sizes.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1000:
        parser.error(f"--sizes must be integers of 1000 or more, got {found.sizes!r}")
    return sizes


def run(found: argparse.Namespace) -> dict[str, Any]:
    """Measure; return what the JSON file holds."""
    peers, missing = available()
    for name in missing:
        say(f"missing: {name} is not installed and is left out (./dev bench installs it)")
    import beastcore

    if not beastcore.compiled:
        sys.exit("benchmarks: the compiled engine is measured; unset BEASTCORE_PURE")
    started = time.monotonic()
    results: list[dict[str, Any]] = []
    cases = [case for case in CASES if case in found.cases]
    quiet = Quiet()
    for size in found.sizes if cases else ():
        for case, base, figures in run_size(
            size, cases, peers, rounds=found.rounds, quiet=quiet, say=say
        ):
            results += [
                {"case": case, "size": size, "base": base, **asdict(figure)} for figure in figures
            ]
    twins = twin.run(found.rounds, say) if TWIN in found.cases else []
    titles = {peer.name: {"ttl": peer.ttl, "of": peer.distribution} for peer in peers}
    return {
        "schema": 1,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seconds": round(time.monotonic() - started, 1),
        "quick": found.quick,
        "rounds": found.rounds,
        "interrupted": quiet.share,
        "machine": machine(),
        "versions": versions(["beastcore", *DISTRIBUTIONS, "pytest-benchmark"]),
        "missing": missing,
        "peers": titles,
        "results": results,
        "twin": twins,
    }


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    found = parse(arguments)
    results = run(found)
    if found.json is not None:
        found.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tables.render(results))
    say(f"done in {results['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
