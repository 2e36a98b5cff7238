"""Housekeeper: runs small jobs at intervals on one supervised thread.

A job that raises is counted and logged, and runs again at its next turn. Jobs run one after
another, so each must be short; how late they start is measured.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from beastmode.errors import ClosedError, ConfigError

__all__ = ["Housekeeper", "JobReport"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobReport:
    """How one job has fared."""

    name: str
    interval_s: float
    runs: int
    failures: int
    last_error: str
    """Why it failed the last time; empty if it never did."""
    latest_s: float
    """The longest that a run began after its time, in seconds."""


class _Job:
    """A job and its schedule."""

    __slots__ = ("due", "failures", "interval_s", "last_error", "latest_s", "name", "run", "runs")

    def __init__(self, name: str, interval_s: float, run: Callable[[], Any], due: float) -> None:
        self.name = name
        self.interval_s = interval_s
        self.run = run
        self.due = due
        self.runs = 0
        self.failures = 0
        self.last_error = ""
        self.latest_s = 0.0


class Housekeeper:
    """Runs the jobs that `add` was given; `start()` makes the thread, `close()` ends it.

    `timer` is a monotonic clock in seconds. `on_error` is called with what a job raised.
    """

    def __init__(
        self,
        name: str = "beastmode-housekeeper",
        *,
        timer: Callable[[], float] = time.monotonic,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._name = name
        self._timer = timer
        self._on_error = on_error
        self._jobs: dict[str, _Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, name: str, interval_s: float, run: Callable[[], Any]) -> None:
        """Run `run` every `interval_s` seconds, the first time after one interval."""
        _check_interval(name, interval_s)
        with self._changed:
            if name in self._jobs:
                raise ConfigError(f"there is a job {name!r} already")
            self._jobs[name] = _Job(name, interval_s, run, self._timer() + interval_s)
            self._changed.notify()

    def set_interval(self, name: str, interval_s: float) -> None:
        """Change how often a job runs, counted from now."""
        _check_interval(name, interval_s)
        with self._changed:
            job = self._jobs[name]
            if job.interval_s != interval_s:
                job.interval_s = interval_s
                job.due = self._timer() + interval_s
                self._changed.notify()

    def run_soon(self, name: str) -> None:
        """Have a job run now, out of its turn; it is then due one interval later."""
        with self._changed:
            self._jobs[name].due = self._timer()
            self._changed.notify()

    def start(self) -> None:
        """Start the thread. ClosedError after `close()`; idempotent before."""
        with self._changed:
            if self._closed:
                raise ClosedError("the housekeeper was used after close()")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 5.0) -> bool:
        """End the thread; False if a job was still running after `timeout_s`. Idempotent."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify()
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def run_due(self) -> float | None:
        """Run what is due, and return the seconds until the next job, None without jobs."""
        with self._changed:
            now = self._timer()
            due = [job for job in self._jobs.values() if job.due <= now]
        for job in due:
            if self._closed:
                return None
            self._run(job)
        with self._changed:
            return self._wait_s()

    def get_stats(self) -> list[JobReport]:
        """Return a report of each job, in the order in which they were added."""
        with self._changed:
            return [
                JobReport(
                    job.name, job.interval_s, job.runs, job.failures, job.last_error, job.latest_s
                )
                for job in self._jobs.values()
            ]

    def _wait_s(self) -> float | None:
        if not self._jobs:
            return None
        return max(0.0, min(job.due for job in self._jobs.values()) - self._timer())

    def _run(self, job: _Job) -> None:
        late = self._timer() - job.due
        try:
            job.run()
        except Exception as error:  # the other jobs, and the next run of this one, must go on
            job.failures += 1
            job.last_error = f"{type(error).__name__}: {error}"
            logger.exception("the job %r failed", job.name)
            if self._on_error is not None:
                try:
                    self._on_error(error)
                except Exception:  # the hook is the user's, and the thread must live on
                    logger.exception("on_error raised")
        with self._changed:
            job.runs += 1
            job.latest_s = max(job.latest_s, late)
            # From now, not from when it was due: missed turns are not made up for.
            job.due = self._timer() + job.interval_s

    def _loop(self) -> None:
        while True:
            self.run_due()
            with self._changed:
                if self._closed:
                    return
                self._changed.wait(self._wait_s())


def _check_interval(name: str, interval_s: float) -> None:
    if not interval_s > 0:
        raise ConfigError(f"the interval of {name!r} must be positive, got {interval_s!r}")
