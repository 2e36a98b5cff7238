"""Stale-while-revalidate for plain functions: who refreshes a stale result, and who is served it.

Both twins of `cached` use it, on stale hits only. No thread is started here: the caller that first
meets the stale result refreshes it itself, or hands the work to an executor that the user gave.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from beastcore._threadflight import MISSING, SyncCall, ThreadFlights
from beastcore._unraisable import report_unraisable

__all__ = ["Refresh"]


class Refresh:
    """The refresh of one stale result; an executor calls it with no arguments.

    Whoever `claims` the key is the only one to refresh it, until `release`, or until the object
    is gone: an executor that drops its work harms nobody.
    """

    __slots__ = ("_call", "_claims", "_flights", "_function", "_kept", "_key", "_token")

    def __init__(
        self,
        call: SyncCall,
        flights: ThreadFlights,
        single_flight: bool,
        kept: tuple[type[Exception], ...],
    ) -> None:
        self._token: object = None
        self._key: Hashable = None
        self._call: SyncCall | None = call
        self._function = call.get_function()
        self._key = call.get_key()
        self._claims = flights.claims
        self._flights = flights if single_flight else None
        self._kept = kept

    def serve(self, stale: Any, executor: Callable[[Callable[[], None]], object] | None) -> Any:
        """Answer the call that met the `stale` result: with that, or with a fresh one.

        Only one caller refreshes; all others are served `stale`. It is so too if an executor does
        the work, and if the refresh fails: what it raised goes to `sys.unraisablehook`, unless
        it is kept as the new answer.
        """
        call = self._call
        if call is None or not self.claim():
            if call is not None:
                call.note_hit()
            return stale
        if executor is None:
            try:
                return self._answer(call)
            except Exception as error:
                if isinstance(error, self._kept):
                    raise
                report_unraisable(error, self._function)
                return stale
            finally:
                self.release()
        call.note_hit()
        del call
        try:
            executor(self)
        except Exception as error:  # noqa: BLE001 - a stale answer is better than none
            self.release()
            report_unraisable(error, executor)
        return stale

    def claim(self) -> bool:
        """Return whether this is the only refresh of its key."""
        self._token = token = object()
        if self._claims.setdefault(self._key, token) is not token:
            self._token = None
        return self._token is not None

    def release(self) -> None:
        """End the refresh: what it was to run goes, and another may be claimed. Idempotent."""
        token, key = self._token, self._key
        self._token = self._call = self._key = None
        if token is not None and self._claims.get(key) is token:
            del self._claims[key]

    def _answer(self, call: SyncCall) -> Any:
        """Return a fresh result, or raise what the function raised."""
        if self._flights is not None:
            return self._flights.answer(call)
        value = call.look()  # another thread may have refreshed it since it was met
        return call.run() if value is MISSING else value

    def __call__(self) -> None:
        """Run the function and keep its result; once. Called by an executor."""
        call = self._call
        if call is None:
            return
        try:
            self._answer(call)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            if not isinstance(error, self._kept):
                report_unraisable(error, self._function)
        finally:
            self.release()

    def __del__(self) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<refresh of {self._function!r}>"
