"""All of `ConnectionTable` and `Conn`, many times over; exit code 1 if memory remains."""

from __future__ import annotations

import sys
from typing import Any

import beastcore
from beastcore import ConnectionTable, TableFullError
from engine_tools import leaking
from leak_tools import Bad, Value, refused

assert beastcore.compiled is (sys.argv[1:] != ["pure"]), "the wrong twin was loaded"


def coming_and_going() -> None:
    t: Any = ConnectionTable(50)
    handles = [t.add(str(i), Value(), user=(i % 7,), class_id=i % 3) for i in range(50)]
    refused(TableFullError, lambda: t.add("more", Value(), user="u"))
    refused((TableFullError, ValueError), lambda: t.add("3", Value(), user="u"))
    for i in range(0, 50, 3):
        t.remove(str(i))
    handles += [t.get(str(i)) for i in range(50)]
    t.resize(90)
    t.clear()
    t.add("again", user=Value())


def sweeping() -> None:
    now = [0.0]
    t: Any = ConnectionTable(200, 10, grace=5, timer=lambda: now[0])
    handles = [t.add(str(i), Value(), user=i % 3) for i in range(100)]
    now[0] = 8.0
    t.touch_many(handles[:50])
    handles[51].touch()
    t.update_activity("52")
    now[0] = 12.0
    t.mark_pinged([conn for _, conn, _ in t.sweep()])
    t.sweep(7)
    now[0] = 20.0
    t.sweep(20)
    t.sweep()
    now[0] = 5e6
    t.sweep()


def refusals() -> None:
    t: Any = ConnectionTable(5)
    t.add("k", Value(), user="k")
    refused(ZeroDivisionError, lambda: t.add(Bad()))
    refused(ZeroDivisionError, lambda: t.add("x", user=Bad()))
    refused(ValueError, lambda: t.add("x", class_id=-1))
    refused(TypeError, lambda: t.add([]))
    refused(TypeError, lambda: t.touch_many([1]))
    refused(ValueError, lambda: t.touch_many([ConnectionTable(1).add(1)]))
    refused(ValueError, lambda: ConnectionTable(0))
    refused(TypeError, lambda: ConnectionTable(timer=lambda: "x"))  # type: ignore[arg-type]


def cycles() -> None:
    t: Any = ConnectionTable(5)
    t.add("self", t, user=Value())
    box = [t]
    box.append(t.add("box", box))


def asking() -> None:
    t: Any = ConnectionTable(50)
    for i in range(30):
        t.add(i, user=i % 3, class_id=i % 2)
    t.idlest(5)
    t.idlest(50)
    t.snapshot()
    t.idle_histogram()
    t.count(user=1)
    t.count(user=1, class_id=1)
    t.set_class_timeout(1, 5.0)
    t.idle_timeout = 7.5
    list(t)
    t.stats()
    c = t.get(3)
    assert c == t.get(3)
    assert hash(c) == hash(t.get(3))
    (c.idle, c.alive, c.user, c.class_id, c.payload, repr(c), repr(t))


found = leaking([coming_and_going, sweeping, refusals, cycles, asking])
if found:
    sys.exit("leaked: " + "; ".join(found))
