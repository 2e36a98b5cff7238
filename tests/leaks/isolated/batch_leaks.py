"""Every operation of `BatchBuffer`, many times over; exit code 1 if memory remains."""

from __future__ import annotations

import sys
from typing import Any

import beastcore
from beastcore import BatchBuffer
from engine_tools import leaking
from leak_tools import Bad, Value, refused

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"


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
    refused(ZeroDivisionError, lambda: b.add("k", Value()))
    refused(ZeroDivisionError, lambda: b.add(Bad(), Value()))
    refused(TypeError, lambda: b.add([], Value()))
    refused(ValueError, lambda: b.add("k", Value(), size=-1))
    refused(ZeroDivisionError, lambda: b.restore([("new", Value()), (Bad(), Value())]))
    refused(TypeError, lambda: b.restore([("new", Value()), 5]))  # type: ignore[list-item]
    refused(ValueError, lambda: BatchBuffer(0))
    refused(TypeError, lambda: BatchBuffer(timer=lambda: "x"))  # type: ignore[arg-type]


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
