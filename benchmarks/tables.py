"""`python -m benchmarks.tables [--check]`: the tables of the README and of docs/.

They are made from benchmarks/results/ alone, between the markers of the pages, so that a figure in
the documentation is always one that was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bars, compare, firestore, flood, hitrate, memory, worst
from benchmarks.worker import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Section:
    """A part of a page that is made from one file of results."""

    name: str
    page: str
    program: str
    render: Callable[[dict[str, Any]], str]

    @property
    def begin(self) -> str:
        """The line before it."""
        return f"<!-- {self.name}: begin; made by python -m benchmarks.tables, do not edit -->"

    @property
    def end(self) -> str:
        """The line after it."""
        return f"<!-- {self.name}: end -->"

    def results(self) -> dict[str, Any]:
        """Return the committed results."""
        found = json.loads(results_file(self.program).read_text(encoding="utf-8"))
        assert isinstance(found, dict)
        return found

    def filled(self, page: str, results: dict[str, Any]) -> str:
        """Return the page with this section made anew; ValueError if it lacks the markers."""
        begin, end = self.begin, self.end
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise ValueError(f"{self.page} must hold, once and in this order: {begin!r}, {end!r}")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        return f"{before}{begin}\n\n{self.render(results)}\n{end}{after}"


SECTIONS = [
    Section("speed", "README.md", "bars", bars.render_short),
    Section("hits", "README.md", "hitrate", hitrate.render_short),
    Section("bars", "docs/performance.md", "bars", bars.render),
    Section("memory", "docs/performance.md", "memory", memory.render),
    Section("worst", "docs/performance.md", "worst", worst.render),
    Section("flood", "docs/performance.md", "flood", flood.render),
    Section("compare", "docs/comparison.md", "compare", compare.render),
    Section("hitrate", "docs/hit-ratio.md", "hitrate", hitrate.render),
    Section("firestore", "docs/firestore-measured.md", "firestore", firestore.render),
]


def results_file(program: str) -> Path:
    """Return where the committed results of a program are."""
    return RESULTS / f"{program}.json"


def renewed() -> dict[Path, tuple[str, str]]:
    """Return each page as it is and as the results make it."""
    pages: dict[Path, tuple[str, str]] = {}
    for section in SECTIONS:
        path = ROOT / section.page
        text = path.read_text(encoding="utf-8")
        before, now = pages.get(path, (text, text))
        pages[path] = before, section.filled(now, section.results())
    return pages


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or with --check tell whether they are as they would be written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    check = parser.parse_args(arguments).check
    stale = [(path, now) for path, (before, now) in renewed().items() if before != now]
    for path, now in stale:
        if check:
            print(f"{path} is out of date: run python -m benchmarks.tables", file=sys.stderr)
        else:
            path.write_text(now, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
