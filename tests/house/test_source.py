"""What no source may contain: unsafe calls, machine paths, registry hosts, shadowed tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

BANNED_IN_CYTHON = {
    "PyDict_GetItem": (r"\bPyDict_GetItem(String)?\s*\(", "swallows errors, borrows"),
    "include": (r"^\s*include\s+[\"']", "one component is one module"),
    "DEF": (r"^\s*DEF\s+\w+\s*=", "deprecated; use an enum"),
    "IF": (r"^\s*(IF|ELIF|ELSE)\b.*:\s*$", "deprecated; use C"),
    "bare except": (r"^\s*except\s*:", "swallows KeyboardInterrupt"),
    "list comprehension": (
        r"\[[^\]]*\sfor\s.+\sin\s",
        "Cython 3.3 releases an item twice where appending it fails for lack of memory",
    ),
    "unpacking into a list": (r"\[(?:[^\]]*,\s*)?\*\w+", "the same"),
}
# Written in pieces, or this file would accuse itself.
BANNED_EVERYWHERE = {
    "registry host": re.compile(
        r"(files\.pythonhosted|registry\.npmjs|pypi|npmjs)\." + "(org|com)"
    ),
    "machine path": re.compile(r"(?<![\w.])/(" + "work|root|home|Users" + r")/[\w.-]+"),
    "folder beside the checkout": re.compile(r"\.\./" + "shared"),
    "temporary path": re.compile(r"(?<![\w.$}])/" + r"tmp/[\w.-]+"),
}
ALLOWED = {(Path(".ci/run"), "folder beside the checkout")}
LONGEST = 100
AIM, LIMIT = 400, 600
"""Lines that a .py file aims at, and that a module of the layer may have."""


def cython_faults(text: str) -> list[str]:
    """Return the banned constructs of a .pyx or .pxd, with their lines."""
    faults = []
    for line, row in enumerate(text.splitlines(), 1):
        code = row.split("#")[0]
        for name, (pattern, why) in BANNED_IN_CYTHON.items():
            if re.search(pattern, code):
                faults.append(f"{line}: {name} ({why})")
    return faults


def test_cython_has_no_banned_construct(root: Path, project_files: list[Path]) -> None:
    sources = [path for path in project_files if path.suffix in {".pyx", ".pxd"}]
    assert sources
    faults = [f"{p}:{f}" for p in sources for f in cython_faults((root / p).read_text("utf-8"))]
    assert not faults, "\n".join(faults)


def test_no_module_claims_to_need_no_lock(root: Path, project_files: list[Path]) -> None:
    """The promise of a free-threaded module; the engine relies on the interpreter's lock."""
    sources = [path for path in project_files if path.suffix in {".pyx", ".pxd"}]
    word = "freethreading" + "_compatible"
    sources.append(Path("setup.py"))
    assert not [path for path in sources if word in (root / path).read_text("utf-8")]


@pytest.mark.parametrize(
    "text",
    [
        "value = PyDict_GetItem(d, key)",
        'include "other.pxi"',
        "DEF SIZE = 8",
        "IF UNAME:",
        "    except:",
        "pairs = [(a, b) for a, b in items]",
        "return zip([*pairs, last], others)",
        "rows = [first, *rows]",
    ],
)
def test_a_banned_construct_is_caught(text: str) -> None:
    assert cython_faults(text)


@pytest.mark.parametrize(
    "text", ["PyDict_GetItemWithError(d, key)", "# include it", "cdef extern from *:", "if x:"]
)
def test_a_harmless_line_passes(text: str) -> None:
    assert not cython_faults(text)


def test_no_machine_paths_or_registry_hosts(root: Path, project_files: list[Path]) -> None:
    faults = []
    for path in project_files:
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for line, row in enumerate(text.splitlines(), 1):
            for what, pattern in BANNED_EVERYWHERE.items():
                if pattern.search(row) and (path, what) not in ALLOWED:
                    faults.append(f"{path}:{line}: {what}: {row.strip()[:80]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("what", "row"),
    [
        ("registry host", "--index-url https://pypi" + ".org/simple"),
        ("machine path", "open('/" + "work/main/x')"),
        ("machine path", "cd /" + "home/someone"),
        ("folder beside the checkout", "ls ../" + "shared/traces"),
    ],
)
def test_a_banned_string_is_caught(what: str, row: str) -> None:
    assert BANNED_EVERYWHERE[what].search(row)


def test_lines_are_short(root: Path, project_files: list[Path]) -> None:
    faults = []  # ruff and cython-lint look at the other sources
    for path in project_files:
        if path.suffix in {".h", ".sh", ".yml"} or path in {Path("dev"), Path(".ci/run")}:
            for line, row in enumerate((root / path).read_text("utf-8").splitlines(), 1):
                if len(row) > LONGEST and "sha256:" not in row:
                    faults.append(f"{path}:{line} has {len(row)} columns")
    assert not faults, "\n".join(faults)


def test_files_are_short(root: Path, project_files: list[Path]) -> None:
    lengths = {
        path: len((root / path).read_text("utf-8").splitlines())
        for path in project_files
        if path.suffix == ".py"
    }
    for path, lines in sorted(lengths.items(), key=lambda item: -item[1]):
        if lines > AIM:
            print(f"{lines:5} lines, more than the {AIM} aimed at: {path}")
    # A twin mirrors one extension module, a test file one contract: those are only reported.
    assert {str(p): n for p, n in lengths.items() if p.parts[0] == "python" and n > LIMIT} == {}


def test_no_test_shadows_another(root: Path, project_files: list[Path]) -> None:
    faults = []
    for path in project_files:
        if path.parts[0] != "tests" or path.suffix != ".py":
            continue
        tree = ast.parse((root / path).read_text("utf-8"))
        scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
        for scope in scopes:
            names = [
                node.name
                for node in scope.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and not any(  # of a property
                    isinstance(one, ast.Attribute) and one.attr in ("setter", "deleter")
                    for one in node.decorator_list
                )
            ]
            faults += [f"{path}: {name}" for name in sorted(set(names)) if names.count(name) > 1]
    assert not faults, "\n".join(faults)


def test_python_has_no_bare_except(root: Path, project_files: list[Path]) -> None:
    faults = []
    for path in project_files:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse((root / path).read_text("utf-8"))):
                if isinstance(node, ast.ExceptHandler) and node.type is None:
                    faults.append(f"{path}:{node.lineno}")
    assert not faults, f"bare except: {faults}"
