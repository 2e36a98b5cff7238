"""Errors of cached functions: never kept unless asked, and then raised as fresh copies."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import threading
import traceback
import weakref
from typing import Any

import pytest

from beastcore import CacheInfo
from beastcore._failure import clean_copy
from support import FakeClock, Twin


class Custom(LookupError):
    """Its constructor takes other arguments than those it hands on, and counts."""

    made = 0

    def __init__(self, key: str, *, code: int) -> None:
        super().__init__(f"no {key}")
        self.code = code
        type(self).made += 1


class Slotted(ValueError):
    __slots__ = ("extra",)


class BadFile(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such thing", path)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    reason: str


def make_slotted() -> Slotted:
    error = Slotted("a", 1)
    error.extra = [5]
    return error


def make_noted() -> KeyError:
    error = KeyError("k")
    error.add_note("first")
    return error


ERRORS = [
    ValueError(),
    KeyError("k"),
    Custom("x", code=7),
    make_slotted(),
    make_noted(),
    Frozen("why"),
    BadFile("/nowhere"),
    FileNotFoundError(2, "gone", "a", None, "b"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ImportError("no", name="n", path="p"),
    SyntaxError("bad", ("f", 1, 2, "text")),
    StopIteration(5),
    ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
    TimeoutError("late"),
]


def facts(error: BaseException) -> Any:
    """Return what a caller can see of an exception."""
    names = ("errno", "filename", "filename2", "name", "path", "start", "object", "lineno", "value")
    inner = getattr(error, "exceptions", ())
    return (
        type(error),
        error.args if not inner else error.args[0],
        str(error),
        {**vars(error), "extra": getattr(error, "extra", None)},
        [getattr(error, name, None) for name in names],
        [facts(each) for each in inner],
    )


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_clean_copy(error: Exception) -> None:
    made = Custom.made
    try:
        raise error from RuntimeError("cause")
    except Exception as raised:
        copy = clean_copy(raised)
    assert copy is not None
    assert copy is not error
    assert facts(copy) == facts(error)
    assert (copy.__traceback__, copy.__cause__, copy.__context__) == (None, None, None)
    assert Custom.made == made  # no code of the class ran
    again = clean_copy(copy)
    assert again is not None
    assert facts(again) == facts(error)
    with contextlib.suppress(dataclasses.FrozenInstanceError):
        copy.add_note("mine")
    assert getattr(error, "__notes__", []) in ([], ["first"])


def test_never_kept_unless_asked(engine: Twin) -> None:
    calls = []

    @engine.cached
    def f(x: int) -> None:
        calls.append(x)
        raise KeyError(x)

    for _ in range(3):
        with pytest.raises(KeyError):
            f(1)
    assert calls == [1, 1, 1]
    assert f.cache_info() == CacheInfo(0, 3, 128, 0)


@pytest.mark.parametrize("single_flight", [False, True])
def test_kept_when_asked(engine: Twin, clock: FakeClock, single_flight: bool) -> None:
    calls = []

    @engine.cached(
        ttl=10, cache_errors=LookupError, timer=clock, error_ttl=2, single_flight=single_flight
    )
    def f(x: int) -> int:
        calls.append(x)
        if x == 1:
            raise Custom("x", code=x)
        if x == 2:
            raise ValueError(x)
        return x

    raised = []
    for _ in range(3):
        with pytest.raises(Custom, match="no x") as caught:
            f(1)
        raised.append(caught.value)
        with pytest.raises(ValueError, match="2"):
            f(2)
        assert f(3) == 3
    assert calls == [1, 2, 3, 2, 2]
    assert len(set(map(id, raised))) == 3
    assert {error.code for error in raised} == {1}
    assert f.cache_info() == CacheInfo(4, 5, 128, 2)
    clock.advance(3)
    with pytest.raises(Custom):
        f(1)
    assert f(3) == 3
    assert calls[5:] == [1]
    f.cache_clear()
    with pytest.raises(Custom):
        f(1)
    assert calls[6:] == [1]


def test_the_traceback_does_not_grow_and_pins_nothing(engine: Twin) -> None:
    class Local:
        pass

    @engine.cached(cache_errors=(KeyError, ValueError))
    def f(x: int) -> None:
        local = Local()
        refs.append(weakref.ref(local))
        try:
            raise RuntimeError(local.__class__.__name__)
        except RuntimeError as error:
            raise ValueError(x) from error

    def caller() -> None:
        local = Local()
        refs.append(weakref.ref(local))
        f(1)

    refs: list[Any] = []
    depths = []
    gc.disable()
    try:
        for _ in range(5):
            try:
                caller()
            except ValueError as error:
                depths.append(len(traceback.extract_tb(error.__traceback__)))
        assert [ref() for ref in refs] == [None] * 6
    finally:
        gc.enable()
    assert len(set(depths[1:])) == 1


def test_what_is_seen_in_the_cache(engine: Twin) -> None:
    f = engine.cached(cache_errors=KeyError)(lambda x: {}[x])
    with pytest.raises(KeyError):
        f("a")
    kept = f.cache.get("a")
    assert repr(kept) == "<kept error KeyError('a')>"
    assert kept.error.__traceback__ is None
    f.cache.pop("a")
    with pytest.raises(KeyError):
        f("a")
    assert f.cache_info().misses == 2


def test_a_kept_error_on_a_shared_cache_is_raised_by_all(engine: Twin) -> None:
    cache = engine.Cache(10)
    f = engine.cached(cache=cache, key=lambda x: x, cache_errors=KeyError)(lambda x: {}[x])
    g = engine.cached(cache=cache, key=lambda x: x)(lambda x: "g")

    @engine.cached(cache=cache, key=lambda x: x)
    async def h(x: str) -> str:
        return "h"

    with pytest.raises(KeyError):
        f("a")
    with pytest.raises(KeyError, match="a"):
        g("a")
    with pytest.raises(KeyError, match="a"):
        asyncio.run(h("a"))


def test_lives_as_long_as_a_result_unless_told(engine: Twin, clock: FakeClock) -> None:
    calls = []

    def fail(x: int) -> None:
        calls.append(x)
        raise KeyError(x)

    own = engine.cached(ttl=10, stale=20, cache_errors=KeyError, timer=clock)(fail)
    for_ever = engine.cached(ttl=10, cache_errors=KeyError, error_ttl=None, timer=clock)(fail)
    given = engine.cached(cache=engine.Cache(5, 10, timer=clock), cache_errors=KeyError)(fail)
    for _ in range(2):
        for function in (own, for_ever, given):
            with pytest.raises(KeyError):
                function(1)
        clock.advance(9)
    assert len(calls) == 3
    for function in (own, for_ever, given):
        with pytest.raises(KeyError):
            function(1)
    assert len(calls) == 5


def test_a_refresh_may_end_in_a_kept_error(engine: Twin, clock: FakeClock) -> None:
    calls = []

    @engine.cached(ttl=10, stale=5, cache_errors=KeyError, timer=clock)
    def f(x: int) -> int:
        calls.append(x)
        if len(calls) > 1:
            raise KeyError("deleted")
        return x

    assert f(1) == 1
    clock.advance(12)
    for _ in range(3):  # the answer is now that there is none
        with pytest.raises(KeyError, match="deleted"):
            f(1)
    assert calls == [1, 1]


def test_threads_get_a_kept_error(engine: Twin) -> None:
    entered, leave = threading.Event(), threading.Event()

    @engine.cached(cache_errors=KeyError, single_flight=True)
    def f(x: int) -> None:
        entered.set()
        assert leave.wait(20)
        raise KeyError(x)

    errors: list[BaseException] = []

    def work() -> None:
        try:
            f(1)
        except KeyError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    threads[0].start()
    assert entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    leave.set()
    for thread in threads:
        thread.join(20)
    assert len(set(map(id, errors))) == 4
    assert f.cache_info() == CacheInfo(3, 1, 128, 1)


async def test_coroutines(engine: Twin, clock: FakeClock) -> None:
    calls = []
    reported: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))

    @engine.cached(ttl=10, stale=5, cache_errors=LookupError, error_ttl=2, timer=clock)
    async def f(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0)
        if x > 1 or len(calls) > 1:
            raise Custom("x", code=x)
        return x

    assert await f(1) == 1
    for _ in range(3):
        results = await asyncio.gather(f(2), f(2), return_exceptions=True)
        assert all(isinstance(error, Custom) and error.code == 2 for error in results)
    assert calls == [1, 2]
    clock.advance(12)
    assert await f(1) == 1  # stale; its refresh fails, which is the new answer
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(Custom):
        await f(1)
    assert calls == [1, 2, 1]
    assert reported == []


def test_an_error_without_a_copy_is_not_kept(engine: Twin, monkeypatch: Any) -> None:
    calls = []

    class Strange(KeyError):
        def __setstate__(self, state: Any) -> None: ...

        attribute = property(lambda self: 5)

    def fail(x: int) -> None:
        calls.append(x)
        error = Strange(x)
        vars(error)["attribute"] = 6  # cannot be set on a copy
        raise error

    f = engine.cached(cache_errors=KeyError)(fail)
    for _ in range(2):
        with pytest.raises(Strange):
            f(1)
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cache_errors": 5}, TypeError, "cache_errors must be a subclass of Exception or a tuple"),
        ({"cache_errors": (KeyError, int)}, TypeError, "got <class 'int'>"),
        ({"cache_errors": KeyboardInterrupt}, TypeError, "got <class 'KeyboardInterrupt'>"),
        ({"cache_errors": KeyError("k")}, TypeError, r"got KeyError\('k'\)"),
        ({"cache_errors": [KeyError]}, TypeError, "subclass of Exception"),
        ({"error_ttl": 5}, ValueError, "error_ttl cannot be given without cache_errors"),
        ({"cache_errors": KeyError, "error_ttl": 0}, ValueError, "error_ttl must be positive"),
        ({"cache_errors": KeyError, "error_ttl": "x"}, TypeError, "error_ttl must be a positive"),
    ],
)
def test_options_that_are_refused(
    engine: Twin, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.cached(**options)


def test_a_weighed_cache_keeps_no_errors(engine: Twin) -> None:
    cache = engine.Cache(5, max_weight=5, weigher=lambda k, v: len(v))
    with pytest.raises(ValueError, match="cache_errors cannot be given with a cache that has a"):
        engine.cached(cache=cache, cache_errors=KeyError)
