"""Every operation of `BatchBuffer`, many times over; exit code 1 if memory remains."""

from __future__ import annotations

import sys
from typing import Any

import beastcore
from beastcore import BatchBuffer
from engine_tools import leaking

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"


class Value:
    """Counted by the garbage collector."""


class Bad:
    def __hash__(self) -> int:
        return hash("k")

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError


def refused(call: Any, *errors: type[BaseException]) -> None:
    try:
        call()
    except errors:
        return
    raise AssertionError("no error")


def adding() -> None:
    b = BatchBuffer(10, merge=lambda old, new: new if isinstance(new, int) else None)
    for i in range(40):
        b.add(str(i % 7), Value(), size=i, priority=i % 3)
        b.add((i % 5,), i)
    b.pending("3")
    assert "3" in b


def draining() -> None:
    b = BatchBuffer()
    for i in range(40):
        b.add(str(i % 7), Value(), priority=i % 3)
    first = b.drain(15)
    b.restore(first)
    b.restore([("plain", Value())])
    b.drain()
    b.clear()


def refusals() -> None:
    b = BatchBuffer(merge=lambda old, new: 1 / 0)
    b.add("k", Value())
    refused(lambda: b.add("k", Value()), ZeroDivisionError)
    refused(lambda: b.add(Bad(), Value()), ZeroDivisionError)
    refused(lambda: b.add([], Value()), TypeError)
    refused(lambda: b.add("k", Value(), size=-1), ValueError)
    refused(lambda: b.restore([("new", Value()), (Bad(), Value())]), ZeroDivisionError)
    refused(lambda: b.restore([("new", Value()), 5]), TypeError)  # type: ignore[list-item]
    refused(lambda: BatchBuffer(0), ValueError)
    refused(lambda: BatchBuffer(timer=lambda: "x"), TypeError)  # type: ignore[arg-type]


def cycles() -> None:
    b: Any = BatchBuffer()
    b.add("self", b)
    b.add(Value(), [b])


def asking() -> None:
    b = BatchBuffer(max_bytes=9)
    b.add("k", 1)
    b.stats()
    b.due()
    b.deadline()
    b.max_ops = 700
    b.max_delay = 1.5
    b.max_bytes = None
    repr(b)


found = leaking([adding, draining, refusals, cycles, asking])
if found:
    sys.exit("leaked: " + "; ".join(found))
