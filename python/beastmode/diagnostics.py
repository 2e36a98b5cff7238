"""Does a store work from here: reach it, write, read back, hear of a change; and how long it took.

`diagnose` tries one step after the other on a document of its own, `_bm_check/...`, which it
removes at the end, and stops at the first that fails. It never raises for what a store does. The
steps before the first call (libraries, credentials) are the opener's: `Opener`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from beastmode.errors import BeastError
from beastmode.stores.base import Change, Store, Target, deadline_in
from beastmode.stores.documents import Delete, Set

__all__ = ["Note", "Opener", "Step", "diagnose", "firestore_store"]

COLLECTION: Final = "_bm_check"
_POLL_S: Final = 0.25
_LIBRARIES: Final = ("google-cloud-firestore", "grpcio")


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


class Note:
    """What a step found; filled in while it runs."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = ""


Opener = Callable[[Callable[[str], AbstractContextManager[Note]]], Store]
"""Opens the store in steps of its own: it is given what makes one, `with step("open") as note:`."""


class _Steps:
    """The steps so far."""

    def __init__(self, on_step: Callable[[Step], object]) -> None:
        self.done: list[Step] = []
        self._on_step = on_step

    @contextmanager
    def step(self, name: str) -> Iterator[Note]:
        """Time one step; what it raises is noted, and raised again to end the diagnosis."""
        note = Note()
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
    open_store: Opener,
    *,
    deadline_s: float = 5.0,
    on_step: Callable[[Step], object] = lambda _step: None,
) -> list[Step]:
    """Return what was tried, in order; the first that is not ok says what is wrong.

    `open_store` returns the store, which is closed here. Each step after it may take `deadline_s`
    seconds. `on_step` hears of each when it is over.
    """
    steps = _Steps(on_step)
    try:
        store = open_store(steps.step)
        try:
            _try_out(store, steps, deadline_s)
        finally:
            store.close()
    except (BeastError, ImportError, OSError, _Failed):
        pass  # it is the last step's detail
    return steps.done


def _try_out(store: Store, steps: _Steps, deadline_s: float) -> None:
    path = f"{COLLECTION}/{uuid.uuid4().hex}"
    # Not `store.health()`, whose second may be over before the first token has been fetched.
    with steps.step("reach"):
        store.get(path, deadline=deadline_in(deadline_s))
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
    step: Callable[[str], AbstractContextManager[Note]],
    project: str | None,
    database: str,
    emulator_host: str | None,
) -> Store:
    """Open a Firestore store as an application would: an `Opener` once the rest is bound."""
    with step("libraries") as note:
        from beastmode.stores.firestore import FirestoreStore  # noqa: PLC0415 - 0.6 s
        from beastmode.stores.firestore._google import load  # noqa: PLC0415

        load()
        note.text = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    with step("credentials") as note:
        store = FirestoreStore(project, database, emulator_host=emulator_host)
        place = store.place
        if place.is_emulator:
            how = f"the emulator at {place.target} needs none"
        else:
            how = f"found: {type(place.credentials).__module__}"
        note.text = f"{how}; {place.database}"
    return store
