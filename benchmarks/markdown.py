"""Numbers and tables as the documentation shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BUSY = 0.1
"""Share of interrupted slices above which a page warns."""


def number(value: float) -> str:
    """Return a ratio or a time with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table with padded columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *rows]
    ]


def verdict(met: bool | None, target: str) -> str:
    """Return how a figure stands to its target; nothing where it has none."""
    if met is None:
        return ""
    return f"{target}: met" if met else f"{target}: **not met**"


def conditions(results: dict[str, Any], command: str) -> list[str]:
    """Return where, when and with what it was measured, and whether the machine was busy."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    pages = f", huge pages: {machine['huge_pages']}" if machine.get("huge_pages") else ""
    lines = [
        (
            f"Measured on {results['date']} with `{command}`: {machine['cpu']}, "
            f"{machine['cores']} cores, {machine['system']} ({machine['architecture']}){pages}, "
            f"{machine['python']} ({machine['compiler']}); {versions}."
        ),
        "",
    ]
    if results.get("interrupted", 0.0) > BUSY:
        lines += [
            (
                f"**The machine was busy: {100 * results['interrupted']:.0f} % of the work was "
                "interrupted, so these figures are rough.**"
            ),
            "",
        ]
    if results.get("missing"):
        lines += [f"Not installed, so not measured: {', '.join(results['missing'])}.", ""]
    return lines
