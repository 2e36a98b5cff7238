"""Who may import whom: the engine by the standard library alone, the layer only downwards.

import-linter (`./dev check`) knows the rooms of the layer; it is blind to .pyx and to imports
inside functions of third-party modules, which are held to the rules here.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest

ENGINE = "src/beastcore"
LAYER = "python/beastmode"
CYTHON = {"cython", "cpython", "libc"}
COMPONENTS = {"batch", "cache", "connections", "latency", "memo"}
MAY_USE = {"memo": {"cache"}}  # every other component of the engine knows no other

# Third-party modules of the layer, and where alone each may be imported.
OWNERS = {
    "google": ("stores/firestore/",),
    "grpc": ("stores/firestore/",),
    "psutil": ("process.py",),
    "pytest": ("testing/pytest_plugin.py",),
    "redis": ("shared/",),
    "picows": ("gateway/",),
    "uvloop": ("gateway/",),
    "prometheus_client": ("metrics.py",),
    "opentelemetry": ("metrics.py",),
    "textual": ("dashboard/",),
    "starlette": ("dashboard/",),
    "sse_starlette": ("dashboard/",),
    "uvicorn": ("dashboard/",),
    "prompt_toolkit": ("commands.py", "commands/", "dashboard/"),
    "click": ("commands.py", "commands/", "__main__.py"),
    "rich": ("commands.py", "commands/", "demo.py", "demo/", "dashboard/", "loadtest.py"),
    "msgspec": ("commands.py", "commands/", "demo.py", "demo/", "control.py", "loadtest.py"),
    "numpy": ("demo.py", "demo/"),
}
PRINTERS = ("commands.py", "commands/")


class Import(NamedTuple):
    """One import of a file: the module's full name; lazy in a function or for type checkers."""

    module: str
    lazy: bool
    line: int


def imports_of_python(text: str, package: str) -> Iterator[Import]:
    """Yield what a .py file imports; `package` resolves its relative imports."""
    tree = ast.parse(text)
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node in inside, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *filter(None, [base])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node in inside, node.lineno)


CYTHON_FROM = re.compile(r"^\s*from\s+([\w.]+)\s+(?:c?import)\s+(\(?[^#\n]*)")
CYTHON_PLAIN = re.compile(r"^\s*c?import\s+([\w.]+(?:\s*,\s*[\w.]+)*)")


def imports_of_cython(text: str, package: str) -> Iterator[Import]:
    """Yield what a .pyx or .pxd file imports or cimports, by regular expression."""
    for line, row in enumerate(text.splitlines(), 1):
        if found := CYTHON_FROM.match(row):
            base = found[1]
            if base.startswith("."):
                base = f"{package}{'.' if base.strip('.') else ''}{base.lstrip('.')}"
            names = re.findall(r"\w+", found[2].split(" as ")[0]) or [""]
            for name in names:
                yield Import(f"{base}.{name}", False, line)
        elif found := CYTHON_PLAIN.match(row):
            for name in re.split(r"\s*,\s*", found[1]):
                yield Import(name, False, line)


def imports_of(path: Path, root: Path) -> list[Import]:
    """Return what a source file of the engine or the layer imports."""
    text = (root / path).read_text(encoding="utf-8")
    package = ".".join(path.parts[1:-1])
    reader = imports_of_python if path.suffix in {".py", ".pyi"} else imports_of_cython
    return list(reader(text, package))


def component_of(name: str) -> str | None:
    """Return the component that a module name of the engine belongs to, of either twin."""
    parts = name.split(".")
    if parts[0] != "beastcore" or len(parts) < 2:
        return None
    part = parts[2] if parts[1] == "_pure" and len(parts) > 2 else parts[1].lstrip("_")
    return part if part in COMPONENTS else None


def engine_faults(path: Path, found: list[Import]) -> list[str]:
    """Return the imports of a file of the engine that the rules forbid."""
    faults = []
    own = component_of(".".join(path.with_suffix("").parts[1:]))
    for module, _, line in found:
        top = module.split(".")[0]
        if top not in sys.stdlib_module_names | CYTHON | {"beastcore", "__future__"}:
            faults.append(f"{path}:{line} imports {module}: the engine has no dependency")
        other = component_of(module)
        if own and other and other != own and other not in MAY_USE.get(own, set()):
            faults.append(f"{path}:{line} imports {module}: components do not know each other")
        if "_pure" in path.parts and other and "_pure" not in module.split("."):
            faults.append(f"{path}:{line} imports {module}: the pure twin uses nothing compiled")
    return faults


def layer_faults(path: Path, found: list[Import]) -> list[str]:
    """Return the imports of a file of the layer that the rules forbid."""
    faults = []
    room = path.relative_to(LAYER).as_posix()
    for module, lazy, line in found:
        top = module.split(".")[0]
        if top in sys.stdlib_module_names | {"beastcore", "beastmode", "__future__"}:
            continue
        if not room.startswith(OWNERS.get(top, ("nowhere",))):
            faults.append(f"{path}:{line} imports {module}, which is not its business")
        elif top == "psutil" and not lazy:
            faults.append(f"{path}:{line} imports psutil outside a function")
    return faults


def test_engine_imports_the_standard_library_only(root: Path, project_files: list[Path]) -> None:
    faults = []
    seen = set()
    for path in project_files:
        if path.is_relative_to(ENGINE) and path.suffix in {".py", ".pyi", ".pyx", ".pxd"}:
            seen.add(path.suffix)
            faults += engine_faults(path, imports_of(path, root))
    assert seen >= {".py", ".pyx", ".pxd"}
    assert not faults, "\n".join(faults)


def test_layer_imports_a_library_only_where_it_belongs(
    root: Path, project_files: list[Path]
) -> None:
    faults = []
    for path in project_files:
        if path.is_relative_to(LAYER) and path.suffix == ".py":
            faults += layer_faults(path, imports_of(path, root))
    assert not faults, "\n".join(faults)


def test_only_the_commands_print(root: Path, project_files: list[Path]) -> None:
    faults = []
    for path in project_files:
        if path.suffix != ".py" or path.parts[0] not in {"src", "python"}:
            continue
        if path.is_relative_to(LAYER) and path.relative_to(LAYER).as_posix().startswith(PRINTERS):
            continue
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                faults.append(f"{path}:{node.lineno}")
    assert not faults, f"only commands.py prints: {faults}"


@pytest.mark.parametrize(
    ("path", "text", "rules"),
    [
        ("src/beastcore/_batch.pyx", "from beastcore._cache cimport Cache", engine_faults),
        ("src/beastcore/_batch.pyx", "from ._cache cimport Cache", engine_faults),
        ("src/beastcore/_batch.pyx", "import numpy as np", engine_faults),
        ("src/beastcore/_batch.pyx", "cimport numpy", engine_faults),
        ("src/beastcore/_latency.pyx", "from beastcore cimport _cache", engine_faults),
        ("src/beastcore/_types.py", "import attrs", engine_faults),
        ("src/beastcore/_types.py", "from beastmode import errors", engine_faults),
        ("src/beastcore/_pure/batch.py", "from beastcore._pure.cache import Cache", engine_faults),
        ("src/beastcore/_pure/memo.py", "from beastcore._cache import Cache", engine_faults),
        ("src/beastcore/_pure/memo.py", "from .._cache import Cache", engine_faults),
        ("python/beastmode/cache.py", "def f():\n    import psutil", layer_faults),
        ("python/beastmode/process.py", "import psutil", layer_faults),
        ("python/beastmode/stores/base.py", "from google.cloud import firestore", layer_faults),
        ("python/beastmode/batcher.py", "import requests", layer_faults),
    ],
)
def test_the_rules_catch_a_violation(
    path: str, text: str, rules: Callable[[Path, list[Import]], list[str]]
) -> None:
    where = Path(path)
    reader = imports_of_python if where.suffix == ".py" else imports_of_cython
    assert rules(where, list(reader(text, ".".join(where.parts[1:-1]))))


IMPORT_PROBE = """
import sys, threading
import importlib
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
allowed = sys.stdlib_module_names | {"beastcore", "beastmode", "cython_runtime"}
made_by_installers_and_cython = ("__editable__", "_sysconfig", "_cython_")
new = {name.split(".")[0] for name in set(sys.modules) - before}
foreign = sorted(n for n in new - allowed if not n.startswith(made_by_installers_and_cython))
assert not foreign, f"imports load {foreign}"
assert threading.active_count() == 1, threading.enumerate()
"""


@pytest.mark.parametrize("pure", [False, True], ids=["compiled", "pure"])
@pytest.mark.parametrize("package", ["beastcore", "beastmode"])
def test_import_loads_the_standard_library_only_and_starts_no_thread(
    run: Callable[..., object], package: str, pure: bool
) -> None:
    script = IMPORT_PROBE
    if pure:
        script = f"import os; os.environ['BEASTCORE_PURE'] = '1'\n{script}"
    run(sys.executable, "-c", script, package)


def test_every_module_below_the_faces_imports_without_an_extra(
    run: Callable[..., object], root: Path
) -> None:
    faces = {"__main__", "commands", "dashboard", "demo", "gateway", "loadtest", "metrics"}
    foreign = {"shared"}
    names = ["beastmode"]
    for path in sorted((root / LAYER).rglob("*.py")):
        parts = path.relative_to(root / LAYER).with_suffix("").parts
        if parts[0] not in faces | {"testing"} and not foreign & set(parts):
            names.append(".".join(["beastmode", *parts]).removesuffix(".__init__"))
    run(sys.executable, "-c", IMPORT_PROBE, *names)


@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "planted fault"])
def test_import_linter(
    run: Callable[..., CompletedProcess[str]], root: Path, tmp_path: Path, planted: bool
) -> None:
    for folder in ("src/beastcore", "python/beastmode"):
        skip = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
        shutil.copytree(root / folder, tmp_path / folder, ignore=skip)
    if planted:
        with (tmp_path / LAYER / "errors.py").open("a") as file:
            file.write("\nfrom beastmode import sync\n")
    path = os.pathsep.join(str(tmp_path / folder) for folder in ("src", "python"))
    config = ("--config", root / "pyproject.toml", "--no-cache")
    done = run("lint-imports", *config, cwd=tmp_path, env={"PYTHONPATH": path}, ok=False)
    assert done.returncode == (1 if planted else 0), done.stdout
    assert ("BROKEN" in done.stdout) is planted
