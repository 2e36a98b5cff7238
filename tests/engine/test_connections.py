"""`ConnectionTable` and `Conn`: sweeping, handles, time, users and classes, bad input."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from beastcore import BeastError, CapacityError, TableFullError
from engine_tools import every_allocation_fails
from support import FakeClock, Twin

WRAP = 2**32 / 1000.0
HALF = 2**31 / 1000.0


def ids(report: list[tuple[Any, Any, str]]) -> list[tuple[Any, str]]:
    return [(conn_id, stage) for conn_id, _, stage in report]


class TestConnections:
    def test_add_get_remove(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10)
        payload = object()
        c = t.add("a", payload, user="u", class_id=7)
        assert (c.conn_id, c.payload, c.user, c.class_id, c.alive) == ("a", payload, "u", 7, True)
        assert t.get("a") == c
        assert hash(t.get("a")) == hash(c)
        assert t.get("b") is None
        assert ("a" in t, "b" in t, len(t), list(t)) == (True, False, 1, ["a"])
        assert t.remove("a") is True
        assert t.remove("a") is False
        assert (len(t), list(t), c.alive) == (0, [], False)

    def test_a_handle_outlives_its_connection(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10)
        payload = object()
        c = t.add("a", payload, user="u", class_id=3)
        t.remove("a")
        assert (c.touch(), c.idle, c.alive) == (False, None, False)
        assert (c.conn_id, c.payload, c.user, c.class_id) == ("a", payload, "u", 3)
        assert repr(c) == "Conn(conn_id='a', alive=False)"

    def test_a_handle_never_means_a_later_connection(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(1, timer=clock)
        old = t.add("a")
        t.remove("a")
        new = t.add("a")
        clock.advance(5)
        assert old != new
        assert old.touch() is False
        assert new.idle == 5.0
        assert t.touch_many([old, new]) == 1
        assert t.mark_pinged([old, new, old]) == 1

    def test_no_aba_over_a_million_reuses(self, engine: Twin) -> None:
        t = engine.ConnectionTable(1)
        first = t.add("x")
        t.remove("x")
        for _ in range(10**6 if engine.compiled else 10**4):
            t.add("x")
            t.remove("x")
        last = t.add("x")
        assert not first.alive
        assert first != last
        assert last.alive

    def test_full(self, engine: Twin) -> None:
        t = engine.ConnectionTable(2)
        t.add(1)
        t.add(2)
        with pytest.raises(TableFullError) as caught:
            t.add("z")
        assert (
            str(caught.value) == "all 2 connections of the table are taken, conn_id 'z' was refused"
        )
        assert issubclass(TableFullError, CapacityError)
        assert issubclass(CapacityError, BeastError)
        assert t.stats().rejected == 1
        assert "z" not in t
        t.remove(1)
        t.add("z", user="u")
        assert t.count(user="u") == 1

    def test_a_refused_add_leaves_no_user(self, engine: Twin) -> None:
        t = engine.ConnectionTable(1)
        t.add("a", user="u")
        with pytest.raises(ValueError, match="conn_id 'a' is already in the table"):
            t.add("a", user="v")
        with pytest.raises(TableFullError):
            t.add("b", user="w")
        assert [t.count(user=u) for u in "uvw"] == [1, 0, 0]

    def test_count(self, engine: Twin) -> None:
        t = engine.ConnectionTable(100)
        for i in range(30):
            t.add(i, user=f"u{i % 3}" if i % 5 else None, class_id=i % 4)
        assert t.count() == 30
        assert t.count(user="u0") == 8
        assert t.count(class_id=2) == 7
        assert t.count(user="u0", class_id=2) == sum(
            i % 3 == 0 and i % 4 == 2 and i % 5 > 0 for i in range(30)
        )
        assert t.count(user="nobody") == t.count(class_id=9) == 0
        for i in range(30):
            t.remove(i)
        assert t.count(user="u0") == t.count(class_id=2) == 0

    def test_clear(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10)
        conns = [t.add(i, user=i % 2) for i in range(6)]
        t.remove(3)
        t.clear()
        assert (len(t), list(t), t.count(user=1)) == (0, [], 0)
        assert not any(c.alive or c.touch() for c in conns)
        assert t.stats()[:4] == (0, 10, 6, 6)
        new = t.add("new", user=1)
        assert new != conns[0]
        assert t.count(user=1) == 1

    def test_resize(self, engine: Twin) -> None:
        t = engine.ConnectionTable(4)
        conns = [t.add(i) for i in range(4)]
        with pytest.raises(
            ValueError, match="max_connections must be at least 4, the connections held, got 3"
        ):
            t.resize(3)
        t.resize(200)
        conns += [t.add(i) for i in range(4, 200)]
        with pytest.raises(TableFullError):
            t.add("more")
        for i in range(190):
            t.remove(i)
        t.resize(max_connections=10)
        assert t.max_connections == 10
        assert [c.alive for c in conns] == [False] * 190 + [True] * 10
        t.clear()
        t.resize(1)
        t.add("last")
        assert not any(c.touch() for c in conns)
        t.resize(500)
        for i in range(499):
            t.add(i)
        assert not any(c.alive for c in conns)

    def test_snapshot_and_idlest(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, timer=clock)
        a = t.add("a", user="u", class_id=1)
        clock.advance(2)
        b = t.add("b")
        clock.advance(1)
        t.mark_pinged([a])
        clock.advance(1.5)
        b.touch()
        clock.advance(0.25)
        assert [tuple(info) for info in t.snapshot()] == [
            ("a", "u", 1, 4.75, 4.75, True),
            ("b", None, 0, 0.25, 2.75, False),
        ]
        assert t.idlest(1) == [a]
        assert t.idlest(0) == []
        assert t.idlest(10**20) == [a, b]
        a.touch()
        assert t.idlest(2) == [b, a]
        assert not t.snapshot()[0].pinged

    def test_idlest_of_many(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(500, timer=clock)
        order = [(i * 37) % 400 for i in range(400)]
        conns = {i: t.add(i) for i in range(400)}
        for i in order:
            clock.advance(0.001 if i % 3 else 0)
            conns[i].touch()
        expected = sorted(range(400), key=lambda i: (-conns[i].idle, i))
        for k in (1, 2, 7, 399, 400):
            assert [c.conn_id for c in t.idlest(k)] == expected[:k]

    def test_idle_histogram(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, timer=clock)
        for i, wait in enumerate([100, 5, 4, 0.9, 0.1]):
            t.add(i)
            clock.advance(wait)
        assert t.idle_histogram() == [
            (1.0, 1),  # 0.1 s
            (5.0, 1),  # 1 s
            (10.0, 1),  # 5 s
            (30.0, 1),  # 10 s
            (60.0, 0),
            (300.0, 1),  # 110 s
            (math.inf, 0),
        ]
        assert t.idle_histogram([]) == [(math.inf, 5)]
        assert t.idle_histogram((1, 111)) == [(1.0, 1), (111.0, 4), (math.inf, 0)]
        with pytest.raises(ValueError, match=r"bounds must rise, got \[2.0, 1.0\]"):
            t.idle_histogram([2, 1])
        with pytest.raises(ValueError, match="bounds must be positive, got 0"):
            t.idle_histogram([0])

    def test_repr(self, engine: Twin) -> None:
        t = engine.ConnectionTable(5)
        assert repr(t.add("a")) == "Conn(conn_id='a', alive=True)"
        assert (
            repr(t) == "ConnectionTable(max_connections=5, idle_timeout=30.0, grace=10.0, active=1)"
        )


class TestSweep:
    def test_two_stages(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=10, timer=clock)
        a = t.add("a", "socket")
        clock.advance(29.999)
        assert t.sweep() == []
        clock.advance(0.001)
        assert t.sweep() == [("a", a, t.SUSPECT)]
        assert t.sweep() == [("a", a, "suspect")], "reported until it is pinged"
        assert t.mark_pinged([a]) == 1
        assert t.sweep() == []
        clock.advance(9.999)
        assert t.sweep() == []
        clock.advance(0.001)
        ((conn_id, conn, stage),) = t.sweep()
        assert (conn_id, conn, stage, conn.payload) == ("a", a, "expired", "socket")
        assert not a.alive
        assert len(t) == 0
        assert t.stats()._asdict() == {
            "active": 0,
            "max_connections": 10,
            "added": 1,
            "removed": 0,
            "suspected": 2,
            "expired": 1,
            "rejected": 0,
            "late_sweeps": 0,
        }

    def test_activity_after_a_ping_begins_anew(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=10, timer=clock)
        a = t.add("a")
        clock.advance(30)
        t.mark_pinged([a])
        clock.advance(5)
        assert t.update_activity("a")
        clock.advance(29)
        assert t.sweep() == []
        clock.advance(1)
        assert ids(t.sweep()) == [("a", "suspect")]

    def test_a_ping_before_the_timeout_counts(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=10, timer=clock)
        a = t.add("a")
        clock.advance(25)
        t.mark_pinged([a])
        clock.advance(6)
        assert t.sweep() == []
        clock.advance(4)
        assert ids(t.sweep()) == [("a", "expired")]

    def test_no_grace(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=0, timer=clock)
        t.add("a")
        clock.advance(30)
        assert ids(t.sweep()) == [("a", "expired")]

    def test_an_unpinged_connection_never_expires(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 1, grace=1, late_after=1000, timer=clock)
        t.add("a")
        for _ in range(5):
            clock.advance(500)
            assert ids(t.sweep()) == [("a", "suspect")]

    def test_class_timeouts(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=0, timer=clock)
        t.set_class_timeout(1, 10)
        t.set_class_timeout(65535, 50)
        for i, class_id in enumerate([0, 1, 65535]):
            t.add(i, class_id=class_id)
        clock.advance(10)
        assert ids(t.sweep()) == [(1, "expired")]
        clock.advance(20)
        assert ids(t.sweep()) == [(0, "expired")]
        t.set_class_timeout(65535, None)
        assert ids(t.sweep()) == [(2, "expired")]

    def test_the_timeout_may_change(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=0, timer=clock)
        t.add("a")
        clock.advance(10)
        assert t.sweep() == []
        t.idle_timeout = 5
        t.grace = 1
        assert (t.idle_timeout, t.grace) == (5.0, 1.0)
        assert ids(t.sweep()) == [("a", "suspect")]

    def test_a_budget_visits_every_slot(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(1000, 30, grace=10, timer=clock)
        for i in range(1000):
            t.add(i)
        clock.advance(30)
        assert t.sweep(0) == []
        seen = []
        for _ in range(10):
            report = t.sweep(100)
            assert len(report) == 100
            seen += [conn_id for conn_id, _, _ in report]
        assert seen == list(range(1000))
        assert [conn_id for conn_id, _, _ in t.sweep(3)] == [0, 1, 2]

    def test_the_cursor_skips_the_living(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(1000, 30, grace=0, timer=clock)
        conns = [t.add(i) for i in range(1000)]
        clock.advance(20)
        t.touch_many(conns[::2])
        clock.advance(10)
        assert [i for i, _, _ in t.sweep(300)] == list(range(1, 600, 2))
        assert [i for i, _, _ in t.sweep(300)] == list(range(601, 1000, 2))
        assert t.sweep() == []
        assert len(t) == 500

    def test_many_expire_at_once(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(5000, 30, grace=0, timer=clock)
        conns = [t.add(i, user=i % 10) for i in range(5000)]
        clock.advance(31)
        assert len(t.sweep()) == 5000
        assert not any(c.alive for c in conns)
        assert t.count(user=3) == 0

    def test_a_table_larger_than_one_scan_holds_the_gil(
        self, engine: Twin, clock: FakeClock
    ) -> None:
        t = engine.ConnectionTable(150_000, 30, grace=0, timer=clock)
        conns = [t.add(i) for i in range(150_000)]
        clock.advance(20)
        t.touch_many(conns)
        for i in (0, 63, 64, 65_535, 65_536, 149_999):
            t.remove(i)
            t.add(i)
        clock.advance(10)
        assert t.sweep() == []
        clock.advance(15)
        t.touch_many([c for i, c in enumerate(conns) if i % 50_000])
        clock.advance(5)
        expected = {0, 63, 64, 50_000, 65_535, 65_536, 100_000, 149_999}
        assert {i for i, _, _ in t.sweep()} == expected


class TestLateSweeper:
    def test_deadlines_are_extended_once(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=0, timer=clock)
        assert t.late_after == 80.0 - 10.0 - 10.0
        quiet = t.add("quiet")
        clock.advance(20)
        t.sweep()
        clock.advance(1000)
        busy = t.add("busy")
        assert t.sweep() == []
        assert t.stats().late_sweeps == 1
        assert (quiet.idle, busy.idle) == (20.0, 0.0), "as it was at the sweep before"
        clock.advance(10)
        assert ids(t.sweep()) == [("quiet", "expired")]

    def test_a_second_late_sweep_in_a_row_is_normal(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=0, late_after=100, timer=clock)
        t.add("a")
        t.sweep()
        clock.advance(101)
        assert t.sweep() == []
        clock.advance(101)
        assert ids(t.sweep()) == [("a", "expired")]
        assert t.stats().late_sweeps == 1
        clock.advance(1)
        t.sweep()
        t.add("b")
        clock.advance(101)
        assert t.sweep() == []
        assert t.stats().late_sweeps == 2

    def test_a_ping_is_extended_too(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=10, timer=clock)
        a = t.add("a")
        clock.advance(30)
        t.sweep()
        t.mark_pinged([a])
        clock.advance(500)
        assert t.sweep() == []
        assert a.alive

    def test_sweeps_every_30_s_are_never_late(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 0.5, grace=0, timer=clock)
        t.sweep()
        for _ in range(5):
            t.add("a")
            clock.advance(30)
            assert ids(t.sweep()) == [("a", "expired")]

    def test_the_setting(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10, 100, grace=50)
        assert t.late_after == 300.0
        t.idle_timeout = 1
        assert t.late_after == 102.0
        t.late_after = 7
        assert t.late_after == 7.0
        t.late_after = None
        assert t.late_after == 102.0
        with pytest.raises(ValueError, match="late_after must be positive, got 0"):
            t.late_after = 0


class TestTime:
    @pytest.mark.parametrize("boundary", [HALF, WRAP, 2 * WRAP, 1000 * WRAP])
    @pytest.mark.parametrize("step", [10.0, HALF / 3])
    def test_32_bits_never_wrap(
        self, engine: Twin, clock: FakeClock, boundary: float, step: float
    ) -> None:
        t = engine.ConnectionTable(10, 30, grace=10, late_after=30_000_000, timer=clock)
        start = clock.now
        a, b = t.add("a"), t.add("b")
        t.sweep()
        near = start + boundary - 25
        while clock.now < near:
            clock.now = min(near, clock.now + max(step, boundary / 50))
            a.touch()
            b.touch()
        t._check()
        assert t.sweep() == []
        for _ in range(5):
            clock.advance(10)
            a.touch()
            assert a.idle == 0.0
            t._check()
        assert b.idle == 50.0
        assert t.sweep() == [("b", b, "suspect")]
        t.mark_pinged([b])
        clock.advance(10)
        assert t.sweep() == [("b", b, "expired")]
        assert t.snapshot()[0].age >= min(boundary, 2**30 / 1000.0)

    def test_a_jump_over_the_whole_range(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=10, timer=clock)
        a, b, c = (t.add(i) for i in "abc")
        clock.advance(1)
        t.mark_pinged([b])
        clock.advance(5 * WRAP)
        c.touch()
        t._check()
        assert a.idle == b.idle == 2**30 / 1000.0
        assert [i.pinged for i in t.snapshot()] == [False, True, False]
        assert ids(t.sweep()) == [("a", "suspect"), ("b", "expired")]

    def test_a_clock_that_runs_backwards(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30, grace=0, timer=clock)
        clock.advance(100)
        a = t.add("a")
        clock.advance(-90)
        assert a.idle == 0.0
        a.touch()
        assert t.sweep() == []
        clock.now = 1130.0
        assert ids(t.sweep()) == [("a", "expired")]

    def test_rounding_of_floats(self, engine: Twin) -> None:
        for base in (0.1, 1000.1, 123456.789, 1e6 + 1 / 3):
            for timeout in (0.3, 1.1, 30.0):
                clock = FakeClock(base)
                t = engine.ConnectionTable(10, timeout, grace=0, timer=clock)
                clock.now = base + 0.7
                t.add("a")
                clock.now = base + 0.7 + timeout - 0.001
                assert t.sweep() == []
                clock.now = base + 0.7 + timeout
                assert ids(t.sweep()) == [("a", "expired")]

    def test_an_enormous_timer(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, timer=clock)
        a = t.add("a")
        clock.now = 1e300
        assert a.idle == 2**30 / 1000.0
        t._check()

    def test_the_built_in_clock(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10, 0.05, grace=0)
        assert t.timer is None
        started = time.monotonic()
        a = t.add("a")
        while a.alive:
            assert time.monotonic() - started < 10
            t.sweep()
        assert time.monotonic() - started >= 0.049

    def test_a_timer_that_fails(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, timer=clock)
        a = t.add("a")
        clock.now = math.nan
        for call in (
            a.touch,
            lambda: a.idle,
            lambda: t.add("b"),
            lambda: t.update_activity("a"),
            t.sweep,
            t.snapshot,
        ):
            with pytest.raises(ValueError, match=r"timer\(\) must return seconds .* got nan"):
                call()
        assert list(t) == ["a"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"max_connections": 0}, ValueError, "max_connections must be positive, got 0"),
            (
                {"max_connections": 2**24 + 1},
                ValueError,
                "max_connections must be at most 16777216, got 16777217",
            ),
            ({"max_connections": "9"}, TypeError, "max_connections must be an int, got '9'"),
            ({"idle_timeout": 0}, ValueError, "idle_timeout must be positive, got 0"),
            (
                {"idle_timeout": 1e7},
                ValueError,
                "idle_timeout must be at most 604800 seconds, got 10000000.0",
            ),
            (
                {"idle_timeout": math.nan},
                ValueError,
                "idle_timeout must be a number of seconds, got nan",
            ),
            ({"grace": -1}, ValueError, "grace must be zero or positive, got -1"),
            ({"late_after": -1}, ValueError, "late_after must be positive, got -1"),
            ({"timer": 1}, TypeError, "timer must be callable or None, got 1"),
        ],
    )
    def test_constructor(self, engine: Twin, arguments: Any, error: Any, text: str) -> None:
        with pytest.raises(error) as caught:
            engine.ConnectionTable(**arguments)
        assert str(caught.value) == text

    def test_methods(self, engine: Twin) -> None:
        t, other = engine.ConnectionTable(10), engine.ConnectionTable(10)
        a, foreign = t.add("a"), other.add("a")
        calls = [
            (
                lambda: t.add("b", class_id=-1),
                ValueError,
                "class_id must be zero or positive, got -1",
            ),
            (
                lambda: t.add("b", class_id=65536),
                ValueError,
                "class_id must be at most 65535, got 65536",
            ),
            (lambda: t.add("b", class_id="x"), TypeError, "class_id must be an int, got 'x'"),
            (lambda: t.add([]), TypeError, "unhashable type: 'list'"),
            (lambda: t.add("b", user=[]), TypeError, "unhashable type: 'list'"),
            (lambda: t.update_activity([]), TypeError, "unhashable type: 'list'"),
            (lambda: t.sweep(-1), ValueError, "limit must be zero or positive, got -1"),
            (lambda: t.idlest(-1), ValueError, "k must be zero or positive, got -1"),
            (lambda: t.touch_many([a, "a"]), TypeError, "conns item 1 must be a Conn, got 'a'"),
            (
                lambda: t.mark_pinged([a, foreign]),
                ValueError,
                "conns item 1 belongs to another table, got Conn(conn_id='a', alive=True)",
            ),
            (lambda: t.set_class_timeout(1, 0), ValueError, "seconds must be positive, got 0"),
            (type(a), TypeError, "Conn objects are made by ConnectionTable.add"),
        ]
        for call, error, text in calls:
            with pytest.raises(error) as caught:
                call()
            assert str(caught.value) == text
        assert list(t) == ["a"]

    def test_a_bare_handle(self, engine: Twin) -> None:
        cls = engine.raw.Conn
        c = cls.__new__(cls)
        assert (c.alive, c.touch(), c.idle, c.conn_id, c.payload, c.user) == (
            False,
            False,
            None,
            None,
            None,
            None,
        )
        with pytest.raises(ValueError, match="belongs to another table"):
            engine.ConnectionTable(1).touch_many([c])

    def test_no_pickle_no_copy_no_subclass(self, engine: Twin) -> None:
        t = engine.raw.ConnectionTable(1)
        for obj, name in ((t, "ConnectionTable"), (t.add(1), "Conn")):
            for call in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=f"cannot pickle '{name}' object"):
                    call(obj)
            with pytest.raises(TypeError, match="is not an acceptable base type"):
                type("Sub", (type(obj),), {})
            assert type(obj)[str, int].__args__ == (str, int)


class TestUserCodeInside:
    @pytest.mark.parametrize("action", ["clear", "remove", "add", "sweep", "resize"])
    def test_a_comparison_may_change_the_table(self, engine: Twin, action: str) -> None:
        for operation in ("add", "update_activity", "get", "remove", "count"):
            t = engine.ConnectionTable(20)
            busy: list[int] = []

            class Evil:
                def __hash__(self) -> int:
                    return 7

                def __eq__(
                    self, other: object, t: Any = t, busy: Any = busy, action: str = action
                ) -> bool:
                    if not busy:
                        busy.append(1)
                        arguments = {"remove": ("b",), "add": (7,), "resize": (100,)}
                        getattr(t, action)(*arguments.get(action, ()))
                    return False

            t.add(Evil(), user=Evil())
            t.add("b")
            t._check()
            try:
                if operation == "count":
                    t.count(user=7)
                elif operation == "add":
                    t.add(7, user=7)
                else:
                    getattr(t, operation)(7)
            except ValueError as error:
                assert action == operation == "add", error
            assert busy
            t._check()

    def test_a_timer_may_change_the_table(self, engine: Twin) -> None:
        doing: list[Any] = []

        def timer() -> float:
            if doing:
                doing.pop()()
            return 5.0

        t = engine.ConnectionTable(10, timer=timer)
        a = t.add("a")
        doing.append(t.clear)
        assert a.touch() is False
        conns = [t.add(i) for i in range(3)]
        doing.append(conns.clear)
        assert t.touch_many(conns) == 3
        for call in (
            lambda: t.sweep(),
            lambda: t.update_activity(1),
            lambda: t.snapshot(),
            lambda: t.add("new"),
        ):
            doing.append(t.clear)
            call()
            t._check()
            assert not doing

    def test_removed_payloads_see_a_whole_table(self, engine: Twin) -> None:
        clock = FakeClock()
        t = engine.raw.ConnectionTable(100, 30, grace=0, timer=clock)
        seen = []

        class Payload:
            def __del__(self) -> None:
                t._check()
                seen.append(len(t))

        for i in range(6):
            t.add(i, Payload(), user=i % 2)
        t.remove(0)
        assert seen == [5]
        clock.advance(30)
        report = t.sweep(2)
        assert seen == [5]
        report.clear()
        assert seen == [5, 3, 3]
        t.clear()
        assert seen == [5, 3, 3, 0, 0, 0]

    @pytest.mark.compiled_only
    def test_the_collector_may_run_anywhere(self, engine: Twin) -> None:
        clock = FakeClock()
        t = engine.raw.ConnectionTable(50, 30, grace=0, timer=clock)
        quiet: list[int] = []

        def on_collect(phase: str, info: object) -> None:
            if phase == "start" and not quiet:
                quiet.append(1)
                if len(t) > 20:
                    t.clear()
                elif len(t) % 3 == 0 and "gc" in t:
                    t.remove("gc")
                elif "gc" not in t:
                    t.add("gc", user="u")
                quiet.clear()

        threshold = gc.get_threshold()
        gc.callbacks.append(on_collect)
        gc.set_threshold(1)
        try:
            for i in range(300):
                if i % 9 not in t:
                    t.add(i % 9, [i], user=i % 2)
                t.get(i % 7)
                clock.advance(1)
                if i % 40 == 0:
                    clock.advance(30)
                for conn_id, conn, stage in t.sweep():
                    assert stage == "expired"
                    assert not conn.alive
                    assert conn.conn_id == conn_id
                t.idlest(3)
                t.snapshot()
                list(t)
                quiet.append(1)  # checking allocates as well
                t._check()
                quiet.clear()
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(on_collect)

    def test_a_comparison_that_always_changes_the_table(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10_000)

        class Evil:
            def __hash__(self) -> int:
                return 7

            def __eq__(self, other: object) -> bool:
                t.add(object())
                return False

        t.add(Evil())
        with pytest.raises(RuntimeError, match="the table changed again and again"):
            t.get(7)

    def test_errors_of_keys_propagate(self, engine: Twin) -> None:
        class Bad:
            def __hash__(self) -> int:
                return hash("a")

            def __eq__(self, other: object) -> bool:
                raise LookupError("eq")

        t = engine.ConnectionTable(10)
        t.add("a", user="a")
        for call in (
            lambda: t.add(Bad()),
            lambda: t.add("new", user=Bad()),
            lambda: t.get(Bad()),
            lambda: t.remove(Bad()),
            lambda: Bad() in t,
            lambda: t.count(user=Bad()),
        ):
            with pytest.raises(LookupError):
                call()
        assert list(t) == ["a"]


class TestLifetime:
    def test_cycles_are_collected(self, engine: Twin) -> None:
        class Box:
            def __call__(self) -> float:
                return 1.0

        for how in ("payload", "id", "user", "timer", "handle"):
            box = Box()
            t = engine.ConnectionTable(5, timer=box if how == "timer" else None)
            box.table = t  # type: ignore[attr-defined]
            if how == "payload":
                t.add(1, box)
            elif how == "id":
                t.add(box)
            elif how == "user":
                t.add(1, user=box)
            elif how == "handle":
                box.table = t.add(1, box)  # type: ignore[attr-defined]
            died = weakref.ref(t)
            del t, box
            gc.collect()
            assert died() is None, how

    def test_references(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10)
        objects = [("id", 1.5), object(), ("user", 2.5)]
        before = [sys.getrefcount(o) for o in objects]
        for _ in range(30):
            c = t.add(objects[0], objects[1], user=objects[2])
            assert t.get(objects[0]) == c
            assert objects[0] in t
            t.idlest(1)
            t.snapshot()
            t.sweep()
            t.remove(objects[0])
        del c
        gc.collect()
        assert [sys.getrefcount(o) for o in objects] == before

    def test_dropping_a_table_needs_no_collector(self, engine: Twin) -> None:
        gc.disable()
        try:
            t = engine.ConnectionTable(10)
            handle = t.add("a", object())
            died = weakref.ref(t)
            del t
            assert died() is not None, "a handle holds its table"
            assert handle.alive
            del handle
            assert died() is None
        finally:
            gc.enable()

    def test_handles_are_weakly_referenceable(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10)
        c = t.add("a")
        assert weakref.ref(c)() is c


@pytest.mark.compiled_only
class TestMemoryIsShort:
    def test_add_and_remove(self, engine: Twin) -> None:
        t = engine.ConnectionTable(200)
        names = [f"conn {i}" for i in range(150)]

        def body() -> None:
            for name in names:
                if name not in t:
                    t.add(name, user=name)

        assert every_allocation_fails(body, t._check) > 10
        assert len(t) == t.stats().added == 150

    def test_a_sweep_loses_nothing(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(200, 30, grace=0, timer=clock)
        for i in range(100):
            t.add(f"conn {i}", user=i % 3)
        clock.advance(31)
        found: dict[str, Any] = {"report": []}

        def body() -> None:
            found["report"] = t.sweep()

        def check() -> None:
            t._check()
            assert len(t) + len(found["report"]) == 100

        assert every_allocation_fails(body, check) > 5
        assert len(found["report"]) == 100

    def test_the_rest(self, engine: Twin) -> None:
        t = engine.ConnectionTable(200)
        conns = [t.add(i, user=i % 3) for i in range(80)]

        def body() -> None:
            t.snapshot()
            t.idlest(20)
            t.idle_histogram()
            t.set_class_timeout(3, 5)
            t.touch_many(iter(conns))
            t.resize(90)
            t.resize(500)
            t.stats()

        assert every_allocation_fails(body, t._check) > 20
        assert len(t) == 80

    def test_construction(self, engine: Twin) -> None:
        cls = engine.raw.ConnectionTable
        assert every_allocation_fails(lambda: cls(5, 1.0), lambda: None) >= 4


@pytest.mark.compiled_only
def test_a_scan_without_the_gil_beside_other_threads(engine: Twin) -> None:
    clock = FakeClock()
    t = engine.ConnectionTable(200_000, 30, grace=0, timer=clock)
    for i in range(140_000):
        t.add(i)
    clock.advance(5)
    stop = threading.Event()
    errors: list[BaseException] = []

    def churn(first: int) -> None:
        n = 0
        try:
            while not stop.is_set():
                n += 1
                t.resize(200_000 + n % 7)
                t.update_activity(first + n % 1000)
                t.remove(first + n % 1000)
                t.add(first + n % 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=churn, args=(k * 10_000,)) for k in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(40):
            clock.advance(0.5)
            t.sweep()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors
    t._check()
    clock.advance(100)
    t.sweep()
    t.sweep()
    t._check()
    assert t.stats().active + t.stats().expired + t.stats().removed == t.stats().added


IDS = st.sampled_from([*"abcdefgh", 1, -1, -2, 0, 2**61 - 1, 1.5, None, ("t", 1)])


class TableMachine(RuleBasedStateMachine):
    """Compiled, pure and a dict of dicts in lockstep."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(3.25)
        self.both = [
            Twin(compiled=compiled).raw.ConnectionTable(
                8, 30, grace=10, late_after=31_000_000, timer=self.clock
            )
            for compiled in (True, False)
        ]
        self.model: dict[Any, dict[str, Any]] = {}
        self.timeouts: dict[int, float] = {}
        self.handles: list[tuple[list[Any], dict[str, Any]]] = []
        self.full_order: list[Any] = []

    def same(self, call: Any) -> Any:
        compiled, pure = (call(t) for t in self.both)
        assert compiled == pure
        return compiled

    @rule(conn_id=IDS, user=st.sampled_from([None, "u", "v"]), class_id=st.integers(0, 2))
    def add(self, conn_id: Any, user: Any, class_id: int) -> None:
        conns, errors = [], []
        for t in self.both:
            try:
                conns.append(t.add(conn_id, [conn_id], user=user, class_id=class_id))
            except (ValueError, TableFullError) as error:
                errors.append((type(error), str(error)))
        if conn_id in self.model:
            assert errors[0][0] is errors[1][0] is ValueError
        elif len(self.model) == 8:
            assert errors[0] == errors[1]
            assert errors[0][0] is TableFullError
        else:
            row = {"user": user, "class": class_id, "last": self.clock.now, "ping": -1.0}
            self.model[conn_id] = row
            self.handles.append((conns, row))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def touch(self, data: Any) -> None:
        conns, row = data.draw(st.sampled_from(self.handles))
        alive = any(row is other for other in self.model.values())
        assert [c.touch() for c in conns] == [alive, alive]
        if alive:
            row["last"] = self.clock.now

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), ping=st.booleans())
    def many(self, data: Any, ping: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.handles), max_size=5))
        alive = 0
        for _, row in chosen:
            if any(row is other for other in self.model.values()):
                row["ping" if ping else "last"] = self.clock.now
                alive += 1
        for k, t in enumerate(self.both):
            call = t.mark_pinged if ping else t.touch_many
            assert call([conns[k] for conns, _ in chosen]) == alive

    @rule(conn_id=IDS)
    def update(self, conn_id: Any) -> None:
        found = self.same(lambda t: t.update_activity(conn_id))
        assert found is (conn_id in self.model)
        if found:
            self.model[conn_id]["last"] = self.clock.now

    @rule(conn_id=IDS)
    def remove(self, conn_id: Any) -> None:
        assert self.same(lambda t: t.remove(conn_id)) is (conn_id in self.model)
        self.model.pop(conn_id, None)

    @rule(seconds=st.sampled_from([0.0, 0.001, 1.0, 9.999, 10.0, 15.0, 30.0, 2**29 / 1000, -5.0]))
    def wait(self, seconds: float) -> None:
        if seconds >= 0:
            self.clock.advance(seconds)
        else:  # a clock that runs backwards is taken as standing still
            self.clock.advance(seconds)
            self.same(lambda t: t.idle_histogram())
            self.clock.advance(-seconds)

    @rule(class_id=st.integers(0, 2), seconds=st.sampled_from([None, 5.0, 60.0]))
    def class_timeout(self, class_id: int, seconds: float | None) -> None:
        self.same(lambda t: t.set_class_timeout(class_id, seconds))
        self.timeouts.pop(class_id, None)
        if seconds is not None:
            self.timeouts[class_id] = seconds

    def stage(self, row: dict[str, Any]) -> str | None:
        now = round(self.clock.now * 1000)
        last, ping = round(row["last"] * 1000), round(row["ping"] * 1000)
        if now - last < self.timeouts.get(row["class"], 30.0) * 1000:
            return None
        if ping <= last:
            return "suspect"
        return "expired" if now - ping >= 10_000 else None

    @rule(limit=st.one_of(st.none(), st.integers(0, 4)))
    def sweep(self, limit: int | None) -> None:
        expected = {k: s for k, row in self.model.items() if (s := self.stage(row))}
        reports = [t.sweep(limit) for t in self.both]
        assert ids(reports[0]) == ids(reports[1])
        found = dict(ids(reports[0]))
        assert len(found) == len(reports[0])
        assert found.items() <= expected.items()
        assert len(found) == min(len(expected), 99 if limit is None else limit)
        for conn_id, stage in found.items():
            if stage == "expired":
                del self.model[conn_id]
        for report in reports:
            for conn_id, conn, stage in report:
                assert conn.payload == [conn_id]
                assert conn.alive is (stage == "suspect")

    @rule(k=st.integers(0, 9))
    def idlest(self, k: int) -> None:
        found = self.same(lambda t: [c.conn_id for c in t.idlest(k)])
        times = [max(self.model[c]["last"], self.clock.now - 2**30 / 1000) for c in found]
        assert times == sorted(times)
        assert len(found) == min(k, len(self.model))

    @rule()
    def clear(self) -> None:
        self.same(lambda t: t.clear())
        self.model.clear()

    @invariant()
    def agree(self) -> None:
        self.same(lambda t: t.stats())
        self.same(lambda t: t.snapshot())
        self.same(lambda t: t.idle_histogram())
        assert set(self.same(list)) == set(self.model)
        for user in ("u", "v"):
            for class_id in (None, 1):
                assert self.same(lambda t, u=user, c=class_id: t.count(user=u, class_id=c)) == sum(
                    row["user"] == user and class_id in (None, row["class"])
                    for row in self.model.values()
                )
        for conns, row in self.handles:
            alive = any(row is other for other in self.model.values())
            assert [c.alive for c in conns] == [alive, alive]
            if alive:
                idle = round(self.clock.now * 1000) - round(row["last"] * 1000)
                assert conns[0].idle == conns[1].idle
                assert conns[0].idle == idle / 1000 or idle >= conns[0].idle * 1000 >= 2**30
        for t in self.both:
            t._check()


@pytest.mark.compiled_only
class TestLockstep(TableMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=170, stateful_step_count=60, deadline=None)


def test_nothing_leaks(engine: Twin, isolated: Callable[..., str]) -> None:
    isolated("connections_leaks.py", engine.name, pure=not engine.compiled, timeout=100)
