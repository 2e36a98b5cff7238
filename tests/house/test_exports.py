"""`__all__` of every module is sorted and complete, and the twins show the same face."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import beastmode
from support import ENGINE_NAMES, Twin

NO_EXPORTS = {"__main__.py", "_version.py"}


def sort_key(name: str) -> tuple[int, str]:
    """Order of ruff's RUF022: CONSTANTS, Classes, functions, each alphabetically."""
    if name.isupper():
        return (0, name)
    return (1 if name[:1].isupper() else 2, name)


def exports(tree: ast.Module) -> list[str] | None:
    """Return the names in `__all__`, or None where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def definitions(tree: ast.Module) -> set[str]:
    """Return the public functions and classes that a module defines itself."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = {node.name for node in tree.body if isinstance(node, kinds)}
    return {name for name in names if not name.startswith("_")}


def test_all_is_sorted_and_complete(root: Path, project_files: list[Path]) -> None:
    faults = []
    for path in project_files:
        if path.suffix != ".py" or path.parts[0] not in {"src", "python"}:
            continue
        if path.name in NO_EXPORTS:
            continue
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        private = any(part.startswith("_") for part in path.parts if part != "__init__.py")
        defined = set() if private else definitions(tree)
        listed = exports(tree)
        if listed is None:
            if defined:
                faults.append(f"{path} has no __all__ but defines {sorted(defined)}")
            continue
        if listed != sorted(listed, key=sort_key):
            faults.append(f"{path}: __all__ is not sorted")
        if len(set(listed)) != len(listed):
            faults.append(f"{path}: __all__ names something twice")
        if defined - set(listed):
            faults.append(f"{path}: __all__ lacks {sorted(defined - set(listed))}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", ["beastcore", "beastmode"])
def test_every_exported_name_exists(package: str) -> None:
    module = __import__(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.compiled_only
@pytest.mark.parametrize("name", sorted(set(ENGINE_NAMES) - {"cached"}))
def test_twins_have_the_same_public_attributes(name: str) -> None:
    faces = [getattr(Twin(compiled=compiled).raw, name) for compiled in (True, False)]
    compiled, pure = ({n for n in dir(face) if not n.startswith("_")} for face in faces)
    assert compiled == pure


@pytest.mark.compiled_only
@pytest.mark.parametrize("name", sorted(set(ENGINE_NAMES) - {"cached"}))
def test_public_methods_have_docstrings_in_both_twins(name: str) -> None:
    for compiled in (True, False):
        face = getattr(Twin(compiled=compiled).raw, name)
        bare = [
            attribute
            for attribute in dir(face)
            if not attribute.startswith("_")
            and callable(getattr(face, attribute))
            and not (getattr(face, attribute).__doc__ or "").strip()
        ]
        assert bare == [], f"{face.__module__}.{name}"


def test_the_layer_gives_each_name_from_the_room_that_editors_are_told(root: Path) -> None:
    """What is imported when asked for is what type checkers see imported."""
    tree = ast.parse((root / "python/beastmode/__init__.py").read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("beastmode.")
        for alias in node.names
    }
    assert {name: f"beastmode.{room}" for name, room in beastmode._HOMES.items()} == told
    assert set(beastmode.__all__) == {*told, "__version__"}
    for name, module in told.items():
        assert getattr(beastmode, name) is getattr(importlib.import_module(str(module)), name)
    assert set(beastmode.__all__) <= set(dir(beastmode))
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        beastmode.Nonsense  # type: ignore[attr-defined]
