"""The judge of the randomized run: it must see what it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PATH = "shared/k"


@pytest.fixture
def checker(benchmark_module: Callable[[str], Any]) -> Any:
    return benchmark_module("firestore.checker").Checker(0)


def read(checker: Any, data: Any, version: int | None, path: str = PATH) -> None:
    checker.end(path, checker.begin(path), data, version, "store")


def rules(checker: Any) -> list[str]:
    return [violation.rule for violation in checker.violations]


def test_what_is_allowed(checker: Any) -> None:
    assert checker.issue(PATH) == 1
    read(checker, None, 1)  # not acknowledged: it may not be there yet
    checker.acknowledge(PATH, 1, None)
    read(checker, {"p": 0, "n": 1}, None)
    read(checker, {"p": 1, "n": 7}, 5)  # somebody wrote after us
    read(checker, {"p": 1, "n": 7}, 5)
    read(checker, {"p": 0, "n": 1}, 6)  # or before: nobody told our version
    assert checker.issue(PATH) == 2
    checker.acknowledge(PATH, 2, 9)
    read(checker, {"p": 1, "n": 8}, 10)
    assert checker.violations == []
    assert checker.reads == 6


def test_an_answer_older_than_the_own_write(checker: Any) -> None:
    for number in (1, 2):
        checker.issue(PATH)
        checker.acknowledge(PATH, number, None)
    read(checker, {"p": 0, "n": 1}, 4)
    assert rules(checker) == ["own write"]


def test_a_foreign_answer_older_than_the_own_write(checker: Any) -> None:
    checker.issue(PATH)
    checker.acknowledge(PATH, 1, 9)
    read(checker, {"p": 1, "n": 3}, 8)
    assert rules(checker) == ["own write"]


def test_an_own_write_that_is_missing(checker: Any) -> None:
    checker.issue(PATH)
    checker.acknowledge(PATH, 1, None)
    read(checker, None, 3)
    assert rules(checker) == ["own write"]
    checker.issue(PATH, delete=True)
    read(checker, None, 4)  # the deletion may have happened
    assert rules(checker) == ["own write"]


def test_versions_go_back(checker: Any) -> None:
    read(checker, {"p": 1, "n": 3}, 8)
    read(checker, {"p": 1, "n": 3}, 7)
    assert rules(checker) == ["monotonic"]


def test_what_was_gone_comes_back(checker: Any) -> None:
    read(checker, {"p": 1, "n": 3}, 8)
    read(checker, None, 12)
    read(checker, {"p": 1, "n": 3}, 8)
    assert rules(checker) == ["monotonic"]


def test_a_document_written_during_a_look_that_missed_it(checker: Any) -> None:
    read(checker, {"p": 1, "n": 3}, 8)
    read(checker, None, 12)
    read(checker, {"p": 1, "n": 4}, 11)
    assert checker.violations == []
    read(checker, None, 9)
    assert rules(checker) == ["monotonic"]


def test_a_writers_numbers_go_back(checker: Any) -> None:
    read(checker, {"p": 1, "n": 3}, 8)
    read(checker, {"p": 1, "n": 2}, None)
    assert rules(checker) == ["monotonic"]


def test_reads_that_overlap_are_not_compared(checker: Any) -> None:
    before = checker.begin(PATH)
    read(checker, {"p": 1, "n": 3}, 8)
    checker.end(PATH, before, {"p": 1, "n": 2}, 7, "store")
    assert checker.violations == []


def test_counters(checker: Any) -> None:
    for number in (1, 2):
        checker.issue(PATH)
        checker.acknowledge(PATH, number, None)
    checker.end_counter(PATH, checker.begin(PATH), {"c": 5}, 3, "store")
    assert checker.violations == []
    checker.end_counter(PATH, checker.begin(PATH), {"c": 4}, 4, "store")
    assert rules(checker) == ["monotonic"]
    checker.end_counter(PATH, checker.begin(PATH), {"c": 1}, 5, "store")
    assert rules(checker) == ["monotonic", "own write", "monotonic"]
