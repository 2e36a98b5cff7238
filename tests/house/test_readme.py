"""What the README and the documentation say is so: code runs, commands, links and names exist."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from beastcore import CacheStats
from beastmode.batcher import BatcherReport
from beastmode.cache import CacheReport
from beastmode.commands import cli
from beastmode.connections import ConnectionReport
from beastmode.housekeeping import JobReport
from beastmode.stores.base import StoreHealth
from beastmode.sync import SyncReport

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_two_commands_come_first() -> None:
    commands = re.findall(r"^\$ (.*?)(?: +#.*)?$", README, flags=re.MULTILINE)
    assert commands[0].startswith("./dev demo")
    assert commands[1] == "./dev test"


def test_the_example_is_the_quickstart(tmp_path: Path) -> None:
    quickstart = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert blocks(README, "python")[0] == quickstart
    assert len(quickstart.strip().splitlines()) <= 26
    lines = run_python(quickstart, tmp_path).splitlines()
    assert lines[0] == "{'langs': ['Python']} from hit"
    assert len(lines) == 8
    assert re.search(r"^Hit rate +100\.0 % +excellent$", lines[3])
    assert re.search(r"^Cost reduction +99\.9 %", lines[6])


def test_the_example_of_the_engine_runs(tmp_path: Path) -> None:
    code = blocks(README, "python")[2]
    assert "beastmode" not in code
    assert run_python(code, tmp_path) == (
        "{'name': 'Ada'} None 1\n144 144 CacheInfo(hits=1, misses=1, maxsize=1000, currsize=1)\n"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_every_page_can_be_compiled(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [
        target
        for target in targets
        if not target.startswith("http") and not (page.parent / target).exists()
    ]
    assert not missing


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


@pytest.mark.skipif(os.name != "posix", reason="another operating system: ./dev is a shell script")
def test_commands_of_dev_exist(run: Callable[..., CompletedProcess[str]]) -> None:
    listed = set(re.findall(r"^  (\w+)", run("./dev", "help").stdout, flags=re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"\./dev (\w+)", page.read_text(encoding="utf-8")))
        assert named <= listed, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_of_the_program_exist(page: Path) -> None:
    for line in re.findall(r"\bbeastmode ((?:demo|config)\b[^`#\n]*)", page.read_text("utf-8")):
        name, *words = line.split()
        command = cli.commands[name]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        options = {word.partition("=")[0].rstrip(".,") for word in words if word[:2] == "--"}
        assert options <= known, line


def test_names_of_troubleshooting_are_fields_of_the_reports() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    reports: dict[str, type] = {
        "cache": CacheReport,
        "batcher": BatcherReport,
        "connections": ConnectionReport,
        "sync": SyncReport,
        "jobs[i]": JobReport,
        "parts.store": StoreHealth,
    }
    found = 0
    for room, report in reports.items():
        known = {field.name for field in dataclasses.fields(report)}
        methods = {"warm", "remove_connection"}  # of the components of the same name
        for name in re.findall(rf"(?<![\w.]){re.escape(room)}\.(\w+)", text):
            assert name in known | methods, f"{room}.{name}"
            found += 1
    for name in re.findall(r"cache\.engine\.(\w+)", text):
        assert name in CacheStats._fields, name
    assert found > 25
