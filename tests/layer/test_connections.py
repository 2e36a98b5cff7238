"""The pool of connections: bounds, heartbeats, zombies, live settings, threads."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beastcore import Conn
from beastmode.connections import BeastModeConnectionPool, ConnectionReport
from beastmode.errors import CapacityError, ClosedError, ConfigError, TableFullError
from support import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pool(clock: FakeClock) -> BeastModeConnectionPool:
    return BeastModeConnectionPool(3, 30.0, timer=clock)


def test_connections_are_added_found_and_removed(pool: BeastModeConnectionPool) -> None:
    conn = pool.add_connection("a", "ann", payload="socket")
    assert isinstance(conn, Conn)
    assert (conn.conn_id, conn.user, conn.payload, conn.alive) == ("a", "ann", "socket", True)
    assert pool.get_connection("a") == conn
    assert "a" in pool
    assert (len(pool), pool.count_of("ann"), pool.count_of("bob"), pool.count_of(None)) == (
        1,
        1,
        0,
        0,
    )
    assert pool.remove_connection("a") is True
    assert pool.remove_connection("a") is False
    assert not conn.alive
    assert pool.get_connection("a") is None
    assert (len(pool), pool.count_of("ann")) == (0, 0)


def test_a_full_pool_refuses_and_changes_nothing(pool: BeastModeConnectionPool) -> None:
    for name in "abc":
        pool.add_connection(name)
    with pytest.raises(TableFullError, match="all 3 connections of the table are taken") as caught:
        pool.add_connection("d")
    assert isinstance(caught.value, CapacityError)
    assert (len(pool), "d" in pool, pool.get_stats().rejected) == (3, False, 1)
    pool.remove_connection("b")
    assert pool.add_connection("d").alive


@pytest.mark.parametrize(
    ("conn_id", "error", "text"),
    [("a", ValueError, "conn_id 'a' is already"), ([], TypeError, "unhashable")],
)
def test_ids_that_are_not_allowed(
    pool: BeastModeConnectionPool, conn_id: Any, error: type[Exception], text: str
) -> None:
    held = pool.add_connection("a", "ann")
    with pytest.raises(error, match=text):
        pool.add_connection(conn_id, "ann")
    assert (len(pool), pool.count_of("ann"), pool.get_connection("a")) == (1, 1, held)


def test_silent_connections_are_removed_and_heartbeats_keep_the_others(
    pool: BeastModeConnectionPool, clock: FakeClock
) -> None:
    handle = pool.add_connection("touched")
    pool.add_connection("beating")
    pool.add_connection("silent")
    clock.advance(29.9)
    assert pool.update_activity("beating") is True
    assert handle.touch() is True
    assert pool.update_activity("unknown") is False
    assert pool.cleanup_zombies() == 0
    clock.advance(0.2)
    assert pool.cleanup_zombies() == 1
    assert "silent" not in pool
    assert pool.update_activity("silent") is False
    clock.advance(30.0)
    assert pool.cleanup_zombies() == 2
    assert handle.touch() is False
    stats = pool.get_stats()
    assert (stats.active, stats.added, stats.zombies, stats.removed) == (0, 3, 3, 0)


def test_a_limited_cleanup_goes_on_where_it_stopped(
    pool: BeastModeConnectionPool, clock: FakeClock
) -> None:
    for name in "abc":
        pool.add_connection(name)
    clock.advance(31)
    assert [pool.cleanup_zombies(limit) for limit in (0, 2, 2, None)] == [0, 2, 1, 0]
    with pytest.raises(ValueError, match="limit must be zero or positive, got -1"):
        pool.cleanup_zombies(-1)


def test_a_suspended_process_gives_everyone_more_time_once(
    pool: BeastModeConnectionPool, clock: FakeClock
) -> None:
    pool.add_connection("a")
    pool.cleanup_zombies()
    clock.advance(3600)
    assert pool.cleanup_zombies() == 0
    assert pool.get_stats().late_cleanups == 1
    clock.advance(31)
    assert pool.cleanup_zombies() == 1


def test_zombies_are_handed_to_the_application(clock: FakeClock) -> None:
    told: list[tuple[Hashable, Any]] = []

    def on_zombie(conn_id: Hashable, payload: Any) -> None:
        assert conn_id not in pool  # it may call the pool
        told.append((conn_id, payload))

    pool = BeastModeConnectionPool(9, 30.0, on_zombie=on_zombie, timer=clock)
    pool.add_connection("a", payload="socket of a")
    pool.add_connection("b")
    pool.add_connection("c")
    pool.remove_connection("c")
    clock.advance(31)
    assert pool.cleanup_zombies() == 2
    assert told == [("a", "socket of a"), ("b", None)]


def test_a_failing_callback_is_counted_and_stops_nothing(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = []

    def on_zombie(conn_id: Hashable, payload: Any) -> None:
        raise OSError(f"cannot close {conn_id}")

    def on_error(error: BaseException) -> None:
        errors.append(error)
        raise RuntimeError("nor can this")

    pool = BeastModeConnectionPool(9, 30.0, on_zombie=on_zombie, on_error=on_error, timer=clock)
    pool.add_connection("a")
    pool.add_connection("b")
    clock.advance(31)
    assert pool.cleanup_zombies() == 2
    assert [str(error) for error in errors] == ["cannot close a", "cannot close b"]
    assert pool.get_stats().callback_errors == 2
    assert "on_zombie failed for connection 'a'" in caplog.text
    assert "on_error raised" in caplog.text


def test_zombies_left_by_an_interrupt_are_told_by_the_next_cleanup(clock: FakeClock) -> None:
    told: list[Hashable] = []

    def on_zombie(conn_id: Hashable, payload: Any) -> None:
        told.append(conn_id)
        if conn_id == "a":
            raise KeyboardInterrupt

    pool = BeastModeConnectionPool(9, 30.0, on_zombie=on_zombie, timer=clock)
    for name in "abc":
        pool.add_connection(name)
    clock.advance(31)
    with pytest.raises(KeyboardInterrupt):
        pool.cleanup_zombies()
    assert pool.cleanup_zombies() == 0
    assert told == ["a", "b", "c"]


def test_settings_change_live(pool: BeastModeConnectionPool, clock: FakeClock) -> None:
    pool.add_connection("a")
    pool.configure(max_connections=1, idle_timeout_s=5)
    assert (pool.get_stats().max_connections, pool.get_stats().idle_timeout_s) == (1, 5.0)
    with pytest.raises(TableFullError):
        pool.add_connection("b")
    clock.advance(6)
    assert pool.cleanup_zombies() == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"max_connections": 1, "idle_timeout_s": 5},
            "at least 2, the connections held now; got 1",
        ),
        ({"max_connections": 0, "idle_timeout_s": 5}, "max_connections must be an integer from 1"),
        ({"max_connections": 9, "idle_timeout_s": 0}, "idle_timeout_s must be a number from 0.001"),
        ({"max_connections": 9, "idle_timeout_s": float("nan")}, "got nan from an argument"),
        ({"max_connections": True}, "got True"),
    ],
)
def test_settings_change_together_or_not_at_all(
    pool: BeastModeConnectionPool, changes: dict[str, Any], text: str
) -> None:
    pool.add_connection("a")
    pool.add_connection("b")
    before = pool.get_stats()
    with pytest.raises(ConfigError, match=text):
        pool.configure(**changes)
    assert pool.get_stats() == before


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_connections": 0}, ConfigError, "max_connections must be an integer from 1 to"),
        ({"max_connections": 2**24 + 1}, ConfigError, "got 16777217"),
        ({"idle_timeout_s": -1}, ConfigError, "idle_timeout_s must be a number from 0.001 to"),
        ({"on_zombie": 5}, TypeError, "on_zombie must be callable or None, got 5"),
        ({"on_error": "x"}, TypeError, "on_error must be callable or None, got 'x'"),
        ({"timer": 5}, TypeError, "timer must be callable or None, got 5"),
    ],
)
def test_arguments_that_are_not_allowed(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        BeastModeConnectionPool(**arguments)


def test_the_bounds_of_the_settings_are_those_of_the_table() -> None:
    BeastModeConnectionPool(2**24, 604_800)
    BeastModeConnectionPool(1, 0.001)


def test_a_closed_pool_says_so(pool: BeastModeConnectionPool) -> None:
    with pool:
        handle = pool.add_connection("a")
    pool.close()
    assert not handle.alive
    calls: list[Any] = [
        lambda: pool.add_connection("b"),
        lambda: pool.remove_connection("a"),
        lambda: pool.update_activity("a"),
        lambda: pool.get_connection("a"),
        lambda: pool.count_of("ann"),
        pool.cleanup_zombies,
        pool.configure,
        lambda: len(pool),
        lambda: "a" in pool,
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="the connection pool is closed"):
            call()
    assert pool.get_stats() == ConnectionReport(0, 3, 30.0, 1, 1, 0, 0, 0, 0)


def test_utilisation_is_unknown_until_the_first_connection(pool: BeastModeConnectionPool) -> None:
    report = pool.get_stats()
    assert report.utilisation is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.active = 5
    pool.add_connection("a")
    assert pool.get_stats().utilisation == pytest.approx(1 / 3)
    pool.remove_connection("a")
    assert pool.get_stats().utilisation == 0.0


def test_threads_lose_no_connection() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    try:
        pool = BeastModeConnectionPool(4 * 300, 30.0)
        start = threading.Barrier(4)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                start.wait()
                for turn in range(300):
                    pool.add_connection((number, turn), number)
                    assert pool.update_activity((number, turn))
                    pool.cleanup_zombies(10)
                    if turn % 3 == 0:
                        assert pool.remove_connection((number, turn))
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert failures == []
    assert len(pool) == 800
    assert [pool.count_of(number) for number in range(4)] == [200] * 4
    assert (pool.get_stats().added, pool.get_stats().removed) == (1200, 400)


class PoolMachine(RuleBasedStateMachine):
    """The pool against a dict of last activities."""

    ids = st.integers(0, 8)

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.pool = BeastModeConnectionPool(5, 30.0, timer=self.clock)
        self.last: dict[int, float] = {}
        self.limit, self.timeout = 5, 30.0
        self.rejected = self.zombies = 0

    @rule(conn_id=ids)
    def add(self, conn_id: int) -> None:
        if conn_id in self.last:
            with pytest.raises(ValueError, match="already"):
                self.pool.add_connection(conn_id)
        elif len(self.last) >= self.limit:
            self.rejected += 1
            with pytest.raises(TableFullError):
                self.pool.add_connection(conn_id)
        else:
            self.pool.add_connection(conn_id)
            self.last[conn_id] = self.clock.now

    @rule(conn_id=ids)
    def remove(self, conn_id: int) -> None:
        assert self.pool.remove_connection(conn_id) == (self.last.pop(conn_id, None) is not None)

    @rule(conn_id=ids)
    def beat(self, conn_id: int) -> None:
        assert self.pool.update_activity(conn_id) == (conn_id in self.last)
        if conn_id in self.last:
            self.last[conn_id] = self.clock.now

    @rule(seconds=st.integers(1, 25))
    def wait_and_clean_up(self, seconds: int) -> None:
        """No gap between two cleanups is so long that it counts as late."""
        self.clock.advance(seconds)
        dead = [key for key, seen in self.last.items() if self.clock.now - seen >= self.timeout]
        assert self.pool.cleanup_zombies() == len(dead)
        self.zombies += len(dead)
        for key in dead:
            del self.last[key]

    @rule(limit=st.integers(1, 8), timeout=st.sampled_from([10.0, 30.0, 50.0]))
    def configure(self, limit: int, timeout: float) -> None:
        if limit < len(self.last):
            with pytest.raises(ConfigError, match="the connections held now"):
                self.pool.configure(max_connections=limit, idle_timeout_s=timeout)
        else:
            self.pool.configure(max_connections=limit, idle_timeout_s=timeout)
            self.limit, self.timeout = limit, timeout

    @invariant()
    def agrees(self) -> None:
        stats = self.pool.get_stats()
        assert (stats.active, stats.max_connections) == (len(self.last), self.limit)
        assert (stats.idle_timeout_s, stats.rejected) == (self.timeout, self.rejected)
        assert (stats.zombies, stats.late_cleanups) == (self.zombies, 0)
        assert all(key in self.pool for key in self.last)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


def test_threads_touch_while_others_come_and_go() -> None:
    """`touch` takes no lock over the compiled table; nobody who touches may be taken for silent."""
    pool = BeastModeConnectionPool(1000, idle_timeout_s=0.5)
    stop = threading.Event()
    problems: list[str] = []
    for number in range(50):
        pool.add_connection(f"busy-{number}")

    def touch() -> None:
        while not stop.is_set():
            problems.extend(f"busy-{n}" for n in range(50) if not pool.touch(f"busy-{n}"))

    def come_and_go(me: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            pool.add_connection((me, number))
            if number >= 100:
                pool.remove_connection((me, number - 99))

    threads = [threading.Thread(target=touch)]
    threads += [threading.Thread(target=come_and_go, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        pool.cleanup_zombies()
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert sum(f"busy-{number}" in pool for number in range(50)) == 50
    assert not pool.touch("nobody")
    with pytest.raises(TypeError):
        pool.touch([])  # type: ignore[arg-type]
