"""What is made of commits that fail: how long to pause, and what is logged, once for each change.

A store that is away or late is tried again within a second, for it may be back at any moment. A
refusal that is no fault of the operations (no permission, a wrong project, a bug) lasts until
somebody has changed something: there the pauses grow to `LASTING_S`. Both have full jitter.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from beastmode.batcher.committing import Backoff
from beastmode.errors import (
    BreakerOpen,
    JournalError,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
)

__all__ = ["LASTING_S", "Failures"]

logger = logging.getLogger(__name__)

LASTING_S: Final = 30.0
"""The longest pause after an error that does not pass by itself, in seconds."""

_PASSING: Final = (StoreUnavailable, StoreTimeout)
_NUMBER: Final = re.compile(r"\d+")


class Failures:
    """The failures of commits since the last one that succeeded."""

    __slots__ = ("_backoff", "_kind")

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._kind = ""

    @property
    def in_a_row(self) -> int:
        """How many there were."""
        return self._backoff.failures

    def tell(self, error: Exception) -> None:
        """Log a failure that is another than the one before, ahead of `failed`.

        The caller holds no lock: a handler of logs may take its time, or use the batcher itself.
        """
        kind = _kind(error)
        if kind != self._kind:
            self._log(error)
            self._kind = kind

    def failed(self, error: Exception) -> float:
        """Count a failure and return the seconds to pause."""
        lasts = not isinstance(error, (*_PASSING, JournalError))
        pause_s = self._backoff.fail(LASTING_S if lasts else None)
        if isinstance(error, BreakerOpen) and error.retry_after_s is not None:
            return error.retry_after_s  # before that nothing would be asked
        return pause_s

    def tell_success(self) -> None:
        """Log that the failures are over, if there were any, ahead of `succeeded`. As `tell`."""
        if self._backoff.failures:
            logger.info("commits succeed again after %d failures", self._backoff.failures)

    def succeeded(self) -> None:
        """Forget the failures."""
        self._backoff.succeed()
        self._kind = ""

    def _log(self, error: Exception) -> None:
        after = f" (failure {self.in_a_row + 1} in a row)" if self.in_a_row else ""
        if isinstance(error, _PASSING):
            logger.warning("a commit failed and will be repeated%s: %s", after, error)
        elif isinstance(error, StoreRefused):
            logger.error(
                "the store refuses all commits%s; the writes are kept, and tried again with pauses "
                "of up to %g s: %s",
                after,
                LASTING_S,
                error,
            )
        else:
            logger.error(
                "committing failed unexpectedly%s; nothing is dropped, it is tried again, and not "
                "logged again before the error changes",
                after,
                exc_info=error,
            )


def _kind(error: Exception) -> str:
    """Return what two errors have in common that tell of the same state: not times and ports."""
    if isinstance(error, _PASSING):
        return "passing"
    return f"{type(error).__name__}: {_NUMBER.sub('#', str(error))}"
