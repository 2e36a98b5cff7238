"""The housekeeper: schedules, failures, lateness, the end of its thread."""

from __future__ import annotations

import threading

import pytest

from beastmode.errors import ClosedError, ConfigError
from beastmode.housekeeping import Housekeeper


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_jobs_run_at_their_intervals() -> None:
    clock, ran = Clock(), []
    keeper = Housekeeper(timer=clock)
    keeper.add("fast", 1.0, lambda: ran.append("fast"))
    keeper.add("slow", 2.5, lambda: ran.append("slow"))
    assert keeper.run_due() == 1.0
    for _ in range(5):
        clock.now += 1.0
        keeper.run_due()
    assert ran == ["fast", "fast", "fast", "slow", "fast", "fast"]


def test_a_job_that_raises_is_counted_and_runs_again() -> None:
    clock, seen = Clock(), []
    keeper = Housekeeper(timer=clock, on_error=seen.append)

    def fail() -> None:
        raise ValueError("no")

    ran: list[int] = []
    keeper.add("bad", 1.0, fail)
    keeper.add("good", 1.0, lambda: ran.append(1))
    for _ in range(3):
        clock.now += 1.0
        keeper.run_due()
    bad, good = keeper.get_stats()
    assert (bad.runs, bad.failures, bad.last_error) == (3, 3, "ValueError: no")
    assert (good.runs, good.failures) == (3, 0)
    assert len(seen) == 3
    assert len(ran) == 3


def test_lateness_is_measured_and_missed_turns_are_not_made_up() -> None:
    clock, ran = Clock(), []
    keeper = Housekeeper(timer=clock)
    keeper.add("job", 1.0, lambda: ran.append(clock.now))
    clock.now += 10.5
    keeper.run_due()
    assert keeper.run_due() == 1.0
    assert ran == [110.5]
    assert keeper.get_stats()[0].latest_s == 9.5


def test_an_interval_can_be_changed() -> None:
    clock, ran = Clock(), []
    keeper = Housekeeper(timer=clock)
    keeper.add("job", 100.0, lambda: ran.append(1))
    keeper.set_interval("job", 2.0)
    assert keeper.run_due() == 2.0
    clock.now += 2.0
    keeper.run_due()
    assert ran == [1]


def test_the_thread_runs_jobs_and_ends() -> None:
    done = threading.Event()
    keeper = Housekeeper()
    keeper.start()
    keeper.start()
    keeper.add("job", 0.001, done.set)
    assert done.wait(10)
    assert keeper.close()
    assert keeper.close()
    assert "beastmode-housekeeper" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ClosedError):
        keeper.start()


def test_close_from_a_job_does_not_wait_for_itself() -> None:
    closed = threading.Event()
    keeper = Housekeeper()
    keeper.add("job", 0.001, lambda: (keeper.close(), closed.set()))
    keeper.start()
    assert closed.wait(10)
    assert keeper.close()


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_bad_intervals_are_refused(interval: float) -> None:
    keeper = Housekeeper()
    with pytest.raises(ConfigError, match="interval of 'job' must be positive"):
        keeper.add("job", interval, lambda: None)


def test_names_are_unique() -> None:
    keeper = Housekeeper()
    keeper.add("job", 1, lambda: None)
    with pytest.raises(ConfigError, match="a job 'job' already"):
        keeper.add("job", 1, lambda: None)
