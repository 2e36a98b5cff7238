"""Does a store work from here: reach it, write, read back, hear of a change; and how long it took.

`diagnose` tries one step after the other on a document of its own, `_bm_check/...`, which it
removes at the end, and stops at the first that fails. It never raises for what a store does.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from beastmode.errors import BeastError
from beastmode.stores.base import Change, Store, Target, deadline_in
from beastmode.stores.documents import Delete, Set

__all__ = ["Step", "diagnose", "firestore_store"]

COLLECTION: Final = "_bm_check"
_POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried."""

    name: str
    ok: bool
    seconds: float
    detail: str
    """What was found, or what went wrong."""


class _Failed(Exception):
    """The step did not work, for a reason that is no exception of the store's."""


class _Note:
    """What a step found; filled in while it runs."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = ""


class _Steps:
    """The steps so far."""

    def __init__(self, on_step: Callable[[Step], object]) -> None:
        self.done: list[Step] = []
        self._on_step = on_step

    @contextmanager
    def step(self, name: str) -> Iterator[_Note]:
        """Time one step; what it raises is noted, and raised again to end the diagnosis."""
        note = _Note()
        began = time.perf_counter()
        try:
            yield note
        except (BeastError, ImportError, OSError, _Failed) as error:
            kind = "" if isinstance(error, _Failed) else f"{type(error).__name__}: "
            self._add(name, began, f"{kind}{error}", ok=False)
            raise
        self._add(name, began, note.text, ok=True)

    def _add(self, name: str, began: float, detail: str, *, ok: bool) -> None:
        step = Step(name, ok, time.perf_counter() - began, detail)
        self.done.append(step)
        self._on_step(step)


def diagnose(
    open_store: Callable[[], tuple[Store, str]],
    *,
    deadline_s: float = 5.0,
    on_step: Callable[[Step], object] = lambda _step: None,
) -> list[Step]:
    """Return what was tried, in order; the first that is not ok says what is wrong.

    `open_store` returns the store and what is to be told of it; the store is closed here. Each
    step may take `deadline_s` seconds. `on_step` hears of each when it is over.
    """
    steps = _Steps(on_step)
    try:
        with steps.step("open") as note:
            store, note.text = open_store()
        try:
            _try_out(store, steps, deadline_s)
        finally:
            store.close()
    except (BeastError, ImportError, OSError, _Failed):
        pass  # it is the last step's detail
    return steps.done


def _try_out(store: Store, steps: _Steps, deadline_s: float) -> None:
    path = f"{COLLECTION}/{uuid.uuid4().hex}"
    with steps.step("reach"):
        health = store.health()
        if not health.ok:
            raise _Failed(health.detail)
    try:
        with steps.step("write"):
            (version,) = store.commit([Set(path, {"n": 1})], deadline=deadline_in(deadline_s))
        with steps.step("read back"):
            document = store.get(path, deadline=deadline_in(deadline_s))
            if document.version != version or document.data != {"n": 1}:
                raise _Failed(f"wrote version {version}, read {document!r}")
        _listen(store, path, steps, deadline_s)
    finally:
        with steps.step("clean up"):
            store.commit([Delete(path)], deadline=deadline_in(deadline_s))


def _listen(store: Store, path: str, steps: _Steps, deadline_s: float) -> None:
    """Hear of writes: of one, which may still find the watch opening, then of another one."""
    heard = threading.Event()
    newest = [0]

    def on_change(change: Change) -> None:
        newest[0] = max(newest[0], change.document.version)
        heard.set()

    subscription = None
    try:
        with steps.step("listener opens"):
            subscription = store.watch(Target(document=path), on_change)
            end = deadline_in(deadline_s)
            number = 2
            while not heard.is_set():
                if time.monotonic() > end:
                    raise _Failed(f"no change was heard of within {deadline_s:g} s")
                store.commit([Set(path, {"n": number})], deadline=end)
                number += 1
                heard.wait(_POLL_S)
        with steps.step("listener hears") as note:
            end = deadline_in(deadline_s)
            (version,) = store.commit([Set(path, {"n": 0})], deadline=end)
            while newest[0] < version:
                heard.clear()
                if newest[0] < version and not heard.wait(max(0.0, end - time.monotonic())):
                    raise _Failed(f"a change was not heard of within {deadline_s:g} s")
            note.text = "from the write to its change"
    finally:
        if subscription is not None:
            subscription.close()


def firestore_store(
    project: str | None, database: str, emulator_host: str | None
) -> tuple[Store, str]:
    """Open a Firestore store as an application would; return it and where it is."""
    from beastmode.stores.firestore import FirestoreStore  # noqa: PLC0415 - 0.6 s

    store = FirestoreStore(project, database, emulator_host=emulator_host)
    place = store.place
    how = f"emulator at {place.target}" if place.is_emulator else type(place.credentials).__module__
    return store, f"{place.database}, {how}"
