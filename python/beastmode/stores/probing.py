"""`Prober`: asks a store that failed how it is, in the background, until its breaker closes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from beastmode.breaker import Breaker, StoreSignal
from beastmode.errors import (
    RequestError,
    StoreRefused,
    StoreUnavailable,
    TransactionConflict,
    WriteRejected,
)
from beastmode.stores.base import StoreHealth

__all__ = ["ANSWERS", "Prober", "judge_health"]

logger = logging.getLogger(__name__)


ANSWERS: Final = (WriteRejected, StoreRefused, TransactionConflict)
"""What a store that serves raises: it has looked at what it was asked, and refused it."""


def judge_health(breaker: Breaker, permit: int, health: StoreHealth) -> None:
    """Give a permit back with what a health probe found.

    A probe that was refused has been answered, hence a success: whoever calls is told the reason.
    """
    if health.ok or isinstance(health.error, (*ANSWERS, RequestError)):
        breaker.succeeded(permit)
    else:
        breaker.failed(permit, health.error or StoreUnavailable(health.detail))


class Prober:
    """Makes the probes of `breaker` with `ask`, so that no request of a user is spent on them.

    A thread exists only while the breaker is not closed; each opening starts one, which waits
    until a probe is due. `ask` is a store's `health`: it does not raise and ends by itself.
    """

    def __init__(self, breaker: Breaker, ask: Callable[[], StoreHealth]) -> None:
        self._breaker = breaker
        self._ask = ask
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.probes = 0
        """Probes made."""
        breaker.subscribe(self._on_change)

    def close(self) -> None:
        """Make no more probes; one that is being made ends by itself. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _on_change(self, signal: StoreSignal) -> None:
        with self._changed:
            self._changed.notify_all()
            if self._thread is not None or self._closed or self._breaker.state == "closed":
                return
            thread = threading.Thread(target=self._run, name="beastmode-probe", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread to be had: users' calls will be the probes
                logger.exception("no thread for the probes of a failing store")
                return
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                wait_s = self._breaker.next_probe_s()
                if wait_s is None or self._closed:
                    self._thread = None
                    return
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
            permit = self._breaker.admit_probe()
            if permit is not None:
                self._probe(permit)

    def _probe(self, permit: int) -> None:
        self.probes += 1
        try:
            health = self._ask()
        except Exception as error:  # it should not, but then it says what a probe asks for
            logger.exception("the health probe of a store raised")
            self._breaker.failed(permit, error)
        else:
            judge_health(self._breaker, permit, health)
