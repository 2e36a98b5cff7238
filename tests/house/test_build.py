"""The compiled engine under test is the compiled one, made from the sources that lie here."""

from __future__ import annotations

import importlib
import runpy
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

MODULES = ["_batch", "_cache", "_connections", "_latency", "_memo"]


@pytest.mark.compiled_only
@pytest.mark.parametrize("name", MODULES)
def test_engine_is_compiled_from_these_sources(root: Path, name: str) -> None:
    module = importlib.import_module(f"beastcore.{name}")
    file = Path(module.__file__)
    assert file.name == name + sysconfig.get_config_var("EXT_SUFFIX")
    setup = runpy.run_path(str(root / "setup.py"), run_name="sources")
    assert list(setup["MODULES"]) == MODULES
    stamp = b"beastcore:" + setup["fingerprint"](name).encode()
    assert stamp in file.read_bytes(), f"{file} is stale; ./dev test builds it anew"


@pytest.mark.compiled_only
def test_compiled_is_the_default(run: Callable[..., object]) -> None:
    run(sys.executable, "-c", "import beastcore; assert beastcore.compiled")


def test_pure_is_chosen_by_the_environment_alone(run: Callable[..., object]) -> None:
    script = (
        "import os, sys; os.environ['BEASTCORE_PURE'] = '1'; import beastcore\n"
        "assert not beastcore.compiled\n"
        "loaded = [n for n in sys.modules if n.startswith('beastcore._')]\n"
        "files = [sys.modules[n].__file__ for n in loaded]\n"
        "assert all(f.endswith('.py') for f in files), files"
    )
    run(sys.executable, "-c", script)


def test_missing_extension_says_how_to_build(run: Callable[..., object]) -> None:
    script = (
        "import sys; sys.modules['beastcore._cache'] = None\n"
        "try:\n    import beastcore\n"
        "except ImportError as error:\n    text = str(error)\n"
        "assert './dev' in text and 'BEASTCORE_PURE=1' in text, text"
    )
    run(sys.executable, "-c", script)


def test_every_pyx_is_an_extension(root: Path) -> None:
    found = sorted(path.stem for path in (root / "src" / "beastcore").glob("*.pyx"))
    assert found == MODULES


def test_sources_follow_cimports(root: Path) -> None:
    setup = runpy.run_path(str(root / "setup.py"), run_name="sources")
    for name in MODULES:
        names = {path.name for path in setup["sources"](name)}
        text = (root / "src" / "beastcore" / f"{name}.pyx").read_text("utf-8")
        assert f"{name}.pyx" in names
        if "_clock cimport" in text:
            assert "_clock.pxd" in names
