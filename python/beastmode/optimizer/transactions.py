"""Transactions of an optimizer: past the cache, after own buffered writes, again on conflict."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from time import perf_counter_ns
from typing import Final, TypeVar

from beastmode.errors import BeastError, RequestError, TransactionConflict, WriteRejected
from beastmode.optimizer.drafts import (
    AsyncTransaction,
    Plan,
    Restart,
    Transaction,
    check_paths,
)
from beastmode.optimizer.parts import Parts
from beastmode.optimizer.tally import Tally
from beastmode.optimizer.ways import Ways
from beastmode.stores.base import deadline_in
from beastmode.stores.transactions import (
    AsyncStoreTransaction,
    AsyncTransactionStore,
    StoreTransaction,
    TransactionStore,
)

__all__ = ["Transacting"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SETTLE_S: Final = 5.0
_ROLLBACK_S: Final = 0.4
"""However late it is: until it is rolled back, a transaction may keep others waiting."""


class Transacting:
    """The half of `BeastModeOptimizer` that is about transactions."""

    _parts: Parts
    _ways: Ways
    _tally: Tally
    _active: bool

    def run_transaction(
        self,
        function: Callable[[Transaction], T],
        *,
        paths: Iterable[str] = (),
        deadline: float | None = None,
        max_attempts: int = 5,
    ) -> T:
        """Run `function` in a transaction of the store, commit what it wrote, return its result.

        It gets a `Transaction`, and is called again, after a pause, when others have written what
        it read: so it should change nothing else. What it raises ends the transaction, nothing is
        committed then. Own buffered writes of what it reads and writes reach the store first;
        those of `paths` before it begins, which spares it another run. The cache learns of the
        commit before this returns.

        `deadline` (of `time.monotonic`; None: in 10 s) is for everything. Raises
        TransactionConflict when `max_attempts` runs have met others, WriteRejected when the store
        turns the writes down, StoreTimeout and StoreUnavailable: where their `maybe_applied` is
        True, or the commit timed out, it may be committed or not. RequestError for a store
        without transactions.
        """
        began = perf_counter_ns()
        plan = None
        try:
            self._admit(None, deadline)
            _check_function(function)
            plan = Plan(paths, deadline, max_attempts)
            while True:
                try:
                    result = self._attempt(function, plan)
                except TransactionConflict as error:
                    pause_s = plan.pause_s(error)
                else:
                    self._count_transaction(plan, began, None)
                    return result
                time.sleep(pause_s)
        except Exception as error:
            self._count_transaction(plan, began, error)
            raise

    async def arun_transaction(
        self,
        function: Callable[[AsyncTransaction], Awaitable[T]],
        *,
        paths: Iterable[str] = (),
        deadline: float | None = None,
        max_attempts: int = 5,
    ) -> T:
        """As `run_transaction`, for coroutines; `function` is async and gets an AsyncTransaction.

        When the awaiting task is cancelled before the commit nothing is committed; from there on
        it is carried to its end, and the cache learns of it.
        """
        began = perf_counter_ns()
        plan = None
        try:
            self._admit(None, deadline)
            _check_function(function)
            plan = Plan(paths, deadline, max_attempts)
            while True:
                try:
                    result = await self._aattempt(function, plan)
                except TransactionConflict as error:
                    pause_s = plan.pause_s(error)
                else:
                    self._count_transaction(plan, began, None)
                    return result
                await asyncio.sleep(pause_s)
        except Exception as error:
            self._count_transaction(plan, began, error)
            raise

    @contextlib.contextmanager
    def writing(self, *paths: str, deadline: float | None = None) -> Iterator[None]:
        """Write `paths` past the optimizer inside, in a transaction of Google's client, say.

        Buffered writes of these documents reach the store first, by `deadline` (of
        `time.monotonic`). Inside, nothing that is read of them is cached; at the end, however it
        ends, what is held of them is dropped. Other writers of this process are not kept waiting.
        """
        self._admit(None, deadline)
        _check_some(paths)
        self._ways.settle(paths, deadline)
        try:
            with self._parts.cache.writing(*paths):
                yield
        finally:
            self._ways.settle_after(paths, deadline_in(_SETTLE_S))

    @contextlib.asynccontextmanager
    async def awriting(self, *paths: str, deadline: float | None = None) -> AsyncIterator[None]:
        """As `writing`, without blocking the event loop."""
        self._admit(None, deadline)
        _check_some(paths)
        await self._ways.asettle(paths, deadline)
        try:
            with self._parts.cache.writing(*paths):
                yield
        finally:
            await self._ways.asettle_after(paths, deadline_in(_SETTLE_S))

    # -- one run ---------------------------------------------------------------------------------

    def _attempt(self, function: Callable[[Transaction], T], plan: Plan) -> T:
        store = self._parts.store
        if not isinstance(store, TransactionStore):
            raise _no_transactions(store)
        plan.begin()
        batcher = self._parts.batcher
        if self._is_pending(plan):
            batcher.flush(plan.end)
        retry_of, plan.retry_of = plan.retry_of, b""
        held = store.begin_transaction(retry_of=retry_of, deadline=plan.end)
        plan.calls += 1
        draft = Transaction(self._parts, plan, held)
        try:
            result = _call_plain(function, draft)
            operations, must_flush = draft.finish()
            if must_flush:
                batcher.flush(plan.end)
            if operations:
                # An older write that the next start replays would overwrite this commit.
                batcher.wait_noted(plan.end)
        except BaseException as error:
            draft.end()
            _note_conflict(plan, held.token, error)
            _roll_back(held)
            raise
        plan.count_commit(operations)
        try:
            self._ways.commit(operations, held.commit, plan.end, active=self._active)
        except Exception as error:
            _note_conflict(plan, held.token, error)
            if _may_be_open(error):
                _roll_back(held)
            raise
        return result

    async def _aattempt(
        self, function: Callable[[AsyncTransaction], Awaitable[T]], plan: Plan
    ) -> T:
        store = self._parts.async_store
        if not isinstance(store, AsyncTransactionStore):
            raise _no_transactions(store)
        plan.begin()
        batcher = self._parts.batcher
        if self._is_pending(plan):
            await batcher.aflush(plan.end)
        retry_of, plan.retry_of = plan.retry_of, b""
        held = await store.begin_transaction(retry_of=retry_of, deadline=plan.end)
        plan.calls += 1
        draft = AsyncTransaction(self._parts, plan, held)
        try:
            result = await _call_async(function, draft)
            operations, must_flush = draft.finish()
            if must_flush:
                await batcher.aflush(plan.end)
            if operations:
                await batcher.await_noted(plan.end)
        except BaseException as error:
            draft.end()
            _note_conflict(plan, held.token, error)
            await self._ways.shielded(_aroll_back(held))
            raise
        plan.count_commit(operations)
        try:
            await self._ways.acommit(operations, held.commit, plan.end, active=self._active)
        except Exception as error:
            _note_conflict(plan, held.token, error)
            if _may_be_open(error):
                await self._ways.shielded(_aroll_back(held))
            raise
        return result

    def _is_pending(self, plan: Plan) -> bool:
        pending_in = self._parts.batcher.pending_in
        if not self._ways.is_pending(plan.paths) and not any(map(pending_in, plan.collections)):
            return False
        self._parts.breaker.check()  # a flush would wait for a store that is not asked
        return True

    def _count_transaction(self, plan: Plan | None, began: int, error: Exception | None) -> None:
        elapsed = perf_counter_ns() - began
        if plan is None:
            self._tally.end("refused" if isinstance(error, RequestError) else "failed", elapsed)
            return
        kind = "write" if plan.wrote else "store"
        if isinstance(error, (RequestError, WriteRejected)):
            kind = "refused"
        elif error is not None:
            kind = "failed" if isinstance(error, BeastError) else "other"
        self._tally.transaction(kind, elapsed, plan.documents, plan.units, plan.calls)

    def _admit(self, user_id: str | None, deadline: float | None) -> None:
        """Refuse what cannot be asked now; the optimizer does."""
        raise NotImplementedError


def _note_conflict(plan: Plan, token: bytes, error: BaseException) -> None:
    """Remember which transaction has lost to others, so that it has precedence next time."""
    if isinstance(error, TransactionConflict) and not isinstance(error, Restart):
        plan.retry_of = token


def _may_be_open(error: Exception) -> bool:
    """Return whether a commit that failed may have left the transaction as it was.

    What was refused before it was sent has; others would wait for it until it expires.
    """
    return not (isinstance(error, TransactionConflict) or getattr(error, "maybe_applied", False))


def _roll_back(held: StoreTransaction) -> None:
    try:
        held.rollback(deadline=deadline_in(_ROLLBACK_S))
    except BeastError as error:
        logger.info("a transaction could not be rolled back, and will expire: %s", error)


async def _aroll_back(held: AsyncStoreTransaction) -> None:
    try:
        await held.rollback(deadline=deadline_in(_ROLLBACK_S))
    except BeastError as error:
        logger.info("a transaction could not be rolled back, and will expire: %s", error)


def _check_function(function: object) -> None:
    if not callable(function):
        raise RequestError(f"function must be callable with a transaction, got {function!r}")


def _check_some(paths: tuple[str, ...]) -> None:
    if not check_paths(paths):
        raise RequestError("writing takes the paths of the documents that will be written")


def _call_plain(function: Callable[[Transaction], T], draft: Transaction) -> T:
    result = function(draft)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise RequestError(
            f"run_transaction takes a plain function, and {function!r} is async: "
            "await arun_transaction"
        )
    return result


def _call_async(
    function: Callable[[AsyncTransaction], Awaitable[T]], draft: AsyncTransaction
) -> Awaitable[T]:
    awaited: object = function(draft)
    if not inspect.isawaitable(awaited):
        raise RequestError(
            f"arun_transaction takes an async function, and {function!r} returned {awaited!r:.100}"
        )
    return awaited


def _no_transactions(store: object) -> RequestError:
    inner = store
    while hasattr(inner, "store"):
        inner = inner.store
    return RequestError(f"{inner!r} has no transactions: it has no begin_transaction")
