"""`cached` in processes of its own: nothing leaks, nothing is printed at exit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import Twin


@pytest.mark.parametrize("script", ["memo_leaks", "memo_options_leaks", "memo_refcounts"])
def test_nothing_leaks(engine: Twin, isolated: Callable[..., str], script: str) -> None:
    isolated(f"{script}.py", engine.name, pure=not engine.compiled, timeout=120)


def test_the_end_of_a_process_is_silent(engine: Twin, isolated: Callable[..., str]) -> None:
    assert isolated("memo_exit.py", pure=not engine.compiled) == ""
