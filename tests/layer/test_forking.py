"""What must know of a fork is told, and nothing is kept alive for it."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beastmode import forking
from beastmode.journal import Journal
from beastmode.optimizer import BeastModeOptimizer


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """The hooks that this test registers, none of which the interpreter hears of."""
    made: list[Callable[[], None]] = []

    def register(*, after_in_child: Callable[[], None]) -> None:
        made.append(after_in_child)

    monkeypatch.setattr(os, "register_at_fork", register, raising=False)
    forking._told.cache_clear()
    yield made
    forking._told.cache_clear()


class Aware:
    told = 0

    def after_fork_in_child(self) -> None:
        self.told += 1


def test_all_alive_are_told_by_one_hook(hooks: list[Callable[[], None]]) -> None:
    first, second = Aware(), Aware()
    for aware in (first, second, first):
        forking.tell_after_fork(aware)
    gone = weakref.ref(second)
    (hook,) = hooks
    hook()
    assert (first.told, second.told) == (1, 1)
    del second, aware
    gc.collect()
    assert gone() is None
    hook()
    assert first.told == 2


def test_journals_and_optimizers_leave_nothing_behind(
    hooks: list[Callable[[], None]], tmp_path: Path
) -> None:
    seen: list[weakref.ref[Any]] = []
    for number in range(3):
        journal = Journal(tmp_path / f"{number}.journal")
        seen.append(weakref.ref(journal))
        journal.close()
        with BeastModeOptimizer(tmp_path / f"{number}.db") as optimizer:
            seen.append(weakref.ref(optimizer))
        del journal, optimizer
    gc.collect()
    assert len(hooks) == 1
    assert [reference() for reference in seen] == [None] * 6
    hooks[0]()
