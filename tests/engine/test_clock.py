"""The engine's clocks: what the two built-in ones promise each other, and injected ones."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from support import FakeClock, Twin


@pytest.fixture
def makers(engine: Twin) -> dict[str, Any]:
    """Everything of the engine that takes a timer, made with one."""
    return {
        "Cache": lambda timer: engine.Cache(10, 5.0, timer=timer),
        "BatchBuffer": lambda timer: engine.BatchBuffer(timer=timer),
        "ConnectionTable": lambda timer: engine.ConnectionTable(10, timer=timer),
    }


NAMES = ["Cache", "BatchBuffer", "ConnectionTable"]


@pytest.mark.parametrize("name", NAMES)
class TestInjected:
    def test_it_is_the_one_that_is_shown(self, makers: Any, clock: FakeClock, name: str) -> None:
        assert makers[name](clock).timer is clock

    @pytest.mark.parametrize("answer", ["soon", None, True, b"1", [1.0]])
    def test_no_number(self, makers: Any, name: str, answer: Any) -> None:
        with pytest.raises(TypeError) as caught:
            makers[name](lambda: answer)
        assert str(caught.value) == f"timer() must return seconds as a float, got {answer!r}"

    @pytest.mark.parametrize("answer", [float("nan")])
    def test_not_a_number(self, makers: Any, name: str, answer: float) -> None:
        with pytest.raises(ValueError) as caught:
            makers[name](lambda: answer)
        assert str(caught.value) == "timer() must return seconds as a float, got nan"

    @pytest.mark.parametrize("answer", [0, -5, 10**9, -1e-9, 1e15])
    def test_any_number(self, makers: Any, name: str, answer: float) -> None:
        makers[name](lambda: answer)

    def test_its_errors_propagate(self, makers: Any, name: str) -> None:
        def timer() -> float:
            raise LookupError("no time")

        with pytest.raises(LookupError, match="no time"):
            makers[name](timer)


class TestBuiltIn:
    def test_idle_times_follow_the_monotonic_clock(self, engine: Twin) -> None:
        table = engine.ConnectionTable(10)
        started = time.monotonic()
        conn = table.add("a")
        waiting = threading.Event()
        while conn.idle < 0.1:
            waiting.wait(0.005)
        assert time.monotonic() - started >= 0.08, "the coarse clock is at most 20 ms off"
        idle = conn.idle
        assert idle <= time.monotonic() - started + 0.02

    def test_never_backwards(self, engine: Twin) -> None:
        table = engine.ConnectionTable(10)
        conn = table.add("a")
        idle = [conn.idle for _ in range(20_000)]
        assert idle == sorted(idle)
        assert idle[0] >= 0.0

    def test_a_timeout_is_never_early(self, engine: Twin) -> None:
        table = engine.ConnectionTable(10, 0.02, grace=0)
        for n in range(10):
            started = time.monotonic()
            table.add(n)
            while table.sweep() == []:
                assert time.monotonic() - started < 10
            assert time.monotonic() - started >= 0.019

    def test_a_batch_is_never_due_before_its_deadline(self, engine: Twin) -> None:
        buffer = engine.BatchBuffer(max_delay=0.01)
        buffer.add("k", 1)
        deadline = buffer.deadline()
        while not buffer.due():
            assert time.monotonic() < deadline + 10
        assert time.monotonic() >= deadline
