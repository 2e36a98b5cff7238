"""Stale-while-revalidate of `cached`: a result is served past its time while one refresh runs."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from beastcore import CacheInfo
from support import FakeClock, Twin

WAIT_S = 20.0
"""How long a step may take before the test is given up; nothing waits that long when it works."""


class Source:
    """A function whose results are numbered, and which fails if told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self.inside: Callable[[], object] | None = None

    def __call__(self, x: Any = 0) -> str:
        self.calls += 1
        number = self.calls
        if self.inside is not None:
            self.inside()
        if self.error is not None:
            raise self.error
        return f"{x}#{number}"


class AsyncSource(Source):
    """The same, awaited; it waits for `gate` where there is one."""

    gate: asyncio.Event | None = None

    async def later(self, x: Any = 0) -> str:
        self.calls += 1
        number = self.calls
        await (asyncio.sleep(0) if self.gate is None else self.gate.wait())
        if self.error is not None:
            raise self.error
        return f"{x}#{number}"


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


async def settle() -> None:
    """Let every ready task run to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_fresh_then_stale_then_gone(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    jobs: list[Callable[[], None]] = []
    f = engine.cached(ttl=10, stale=5, refresh=jobs.append, timer=clock)(source)
    assert f(1) == "1#1"
    clock.advance(9.75)
    assert (f(1), jobs) == ("1#1", [])
    clock.advance(0.25)
    assert f(1) == "1#1"
    assert len(jobs) == 1
    clock.advance(4.5)
    assert f(1) == "1#1"
    clock.advance(1)
    assert f(1) == "1#2"
    assert f.cache_info() == CacheInfo(3, 2, 128, 1)


def test_the_first_caller_refreshes_by_itself(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source)
    f(1)
    clock.advance(12)
    assert [f(1), f(1)] == ["1#2", "1#2"]
    assert f.cache_info() == CacheInfo(1, 2, 128, 1)
    clock.advance(9)
    assert f(1) == "1#2"  # the refresh has begun a new time to live


@pytest.mark.parametrize("single_flight", [False, True])
def test_the_others_are_served_the_stale_result(
    engine: Twin, clock: FakeClock, single_flight: bool
) -> None:
    source = Source()
    f = engine.cached(ttl=10, stale=5, timer=clock, single_flight=single_flight)(source)
    f(1)
    clock.advance(12)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert leave.wait(WAIT_S)

    source.inside = hold
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(f(1)), daemon=True)
    thread.start()
    assert entered.wait(WAIT_S)
    assert [f(1), f(1)] == ["1#1", "1#1"]
    leave.set()
    thread.join(WAIT_S)
    assert results == ["1#2"]
    assert (f(1), source.calls) == ("1#2", 2)


def test_a_refresh_that_calls_itself_is_served_the_stale_result(
    engine: Twin, clock: FakeClock
) -> None:
    seen: list[str] = []
    source = Source()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source)
    f(1)
    clock.advance(12)
    source.inside = lambda: seen.append(f(1))
    assert f(1) == "1#2"
    assert seen == ["1#1"]


def test_an_executor_refreshes(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    jobs: list[Callable[[], None]] = []
    f = engine.cached(ttl=10, stale=5, refresh=jobs.append, timer=clock)(source)
    f(1)
    f(2)
    clock.advance(12)
    assert [f(1), f(1), f(2)] == ["1#1", "1#1", "2#2"]
    assert len(jobs) == 2  # one for each key
    jobs[0]()
    assert [f(1), f(2)] == ["1#3", "2#2"]
    jobs[0]()  # once is all
    assert source.calls == 3
    assert len(jobs) == 2


def test_a_dropped_refresh_is_made_by_the_next(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    jobs: list[Callable[[], None]] = []
    f = engine.cached(ttl=10, stale=5, refresh=jobs.append, timer=clock)(source)
    f(1)
    clock.advance(12)
    f(1)
    jobs.clear()
    f(1)
    (job,) = jobs
    job()
    assert f(1) == "1#2"


@pytest.mark.parametrize("executor", [False, True])
def test_a_failed_refresh_is_reported_and_tried_again(
    engine: Twin, clock: FakeClock, unraisable: list[Any], executor: bool
) -> None:
    source = Source()
    options: dict[str, Any] = {"refresh": lambda job: job()} if executor else {}
    f = engine.cached(ttl=10, stale=5, timer=clock, **options)(source)
    f(1)
    clock.advance(12)
    source.error = ValueError("down")
    assert [f(1), f(1)] == ["1#1", "1#1"]
    assert [args.exc_value for args in unraisable] == [source.error] * 2
    assert {args.object for args in unraisable} == {source}
    clock.advance(5)
    with pytest.raises(ValueError, match="down"):
        f(1)
    source.error = None
    assert f(1) == "1#5"


def test_an_executor_that_refuses_is_reported(
    engine: Twin, clock: FakeClock, unraisable: list[Any]
) -> None:
    def refuse(job: Callable[[], None]) -> None:
        raise RuntimeError("shut down")

    f = engine.cached(ttl=10, stale=5, refresh=refuse, timer=clock)(Source())
    f(1)
    clock.advance(12)
    assert [f(1), f(1)] == ["1#1", "1#1"]
    assert [(args.exc_type, args.object) for args in unraisable] == [(RuntimeError, refuse)] * 2


def test_an_interrupted_refresh_can_be_made_again(
    engine: Twin, clock: FakeClock, unraisable: list[Any]
) -> None:
    source = Source()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source)
    f(1)
    clock.advance(12)
    source.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        f(1)
    source.error = None
    assert f(1) == "1#3"
    assert unraisable == []


def test_clear_during_a_refresh(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source)
    f(1)
    clock.advance(12)
    source.inside = f.cache_clear
    assert f(1) == "1#2"
    assert f.cache_info().currsize == 0


def test_a_miss_joins_the_refresh_under_way(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    f = engine.cached(ttl=10, stale=5, timer=clock, single_flight=True)(source)
    f(1)
    clock.advance(12)
    others: list[Any] = []

    def expire() -> None:
        source.inside = None
        clock.advance(5)
        thread = threading.Thread(target=lambda: others.append(f(1)), daemon=True)
        thread.start()
        while not f.cache.stats().misses > 1:  # it has missed, and is about to wait
            pass
        others.append(thread)

    source.inside = expire
    assert f(1) == "1#2"
    others[0].join(WAIT_S)
    assert others[1:] == ["1#2"]
    assert source.calls == 2


def test_methods_and_a_given_cache(engine: Twin, clock: FakeClock) -> None:
    source = Source()
    cache = engine.Cache(10, 10, timer=clock)

    class C:
        @engine.cached(ttl=10, stale=5, timer=clock)
        def own(self, x: int) -> str:
            return source(x)

        @engine.cached(cache=cache, stale=5)
        def shared(self, x: int) -> str:
            return source(x)

    obj = C()
    assert (obj.own(1), obj.shared(2)) == ("1#1", "2#2")
    clock.advance(12)
    assert (obj.own(1), obj.shared(2)) == ("1#3", "2#4")
    clock.advance(16)
    assert (obj.own(1), obj.shared(2)) == ("1#5", "2#6")
    assert C.own.cache_info() == CacheInfo(0, 3, 128, 1)


def test_an_entry_of_ones_own_in_a_given_cache(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(10, 10, timer=clock)
    f = engine.cached(cache=cache, stale=5, key=lambda x: x)(Source())
    cache.set("for ever", "mine", None)
    assert f("for ever") == "mine"
    cache.set("short", "mine", 3)  # in the last five seconds of its life from the first
    assert f("short") == "short#1"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stale": 5}, ValueError, "stale needs a ttl, after which it begins; got 5 without one"),
        ({"ttl": 5, "stale": 0}, ValueError, "stale must be positive, got 0"),
        ({"ttl": 5, "stale": -1.5}, ValueError, r"stale must be positive, got -1\.5"),
        ({"ttl": 5, "stale": "x"}, TypeError, "stale must be a number of seconds, got 'x'"),
        ({"ttl": 31536000, "stale": 1}, ValueError, "ttl and stale together must be at most"),
        ({"ttl": 5, "refresh": print}, ValueError, "refresh cannot be given without stale"),
        ({"ttl": 5, "stale": 5, "refresh": 5}, TypeError, "refresh must be callable or None"),
    ],
)
def test_options_that_are_refused(
    engine: Twin, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.cached(**options)


def test_what_a_given_cache_and_a_coroutine_function_refuse(engine: Twin) -> None:
    with pytest.raises(ValueError, match="stale needs a ttl"):
        engine.cached(cache=engine.Cache(5), stale=5)

    async def f() -> None: ...

    with pytest.raises(ValueError, match="refresh cannot be given for the coroutine function .*f:"):
        engine.cached(ttl=5, stale=5, refresh=print)(f)


async def test_a_coroutine_is_refreshed_by_a_task(engine: Twin, clock: FakeClock) -> None:
    source = AsyncSource()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source.later)
    assert await f(1) == "1#1"
    clock.advance(12)
    source.gate = asyncio.Event()
    assert [await f(1), await f(1)] == ["1#1", "1#1"]
    await settle()
    gc.collect()  # the task is held until it ends
    assert source.calls == 2
    assert await f(1) == "1#1"
    source.gate.set()
    await settle()
    assert await f(1) == "1#2"
    assert f.cache_info() == CacheInfo(4, 2, 128, 1)
    assert source.calls == 2


async def test_a_stale_hit_switches_no_task(engine: Twin, clock: FakeClock) -> None:
    f = engine.cached(ttl=10, stale=5, timer=clock)(AsyncSource().later)
    await f(1)
    clock.advance(12)
    with pytest.raises(StopIteration) as stop:
        f(1).send(None)
    assert stop.value.value == "1#1"


async def test_a_failed_refresh_of_a_coroutine_goes_to_the_loop(
    engine: Twin, clock: FakeClock
) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    source = AsyncSource()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source.later)
    await f(1)
    clock.advance(12)
    source.error = ValueError("down")
    assert await f(1) == "1#1"
    await settle()
    assert [context["exception"] for context in reported] == [source.error]
    assert "refresh of AsyncSource.later failed; its stale result" in reported[0]["message"]
    source.error = None
    assert await f(1) == "1#1"  # and is tried again
    await settle()
    assert await f(1) == "1#3"

    clock.advance(12)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no more tasks")

    loop.set_task_factory(refuse)
    assert await f(1) == "1#3"
    loop.set_task_factory(None)
    assert "could not be started" in reported[1]["message"]
    assert str(reported[1]["exception"]) == "no more tasks"


async def test_a_miss_of_a_coroutine_joins_the_refresh(engine: Twin, clock: FakeClock) -> None:
    source = AsyncSource()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source.later)
    await f(1)
    clock.advance(12)
    source.gate = asyncio.Event()
    source.error = ValueError("down")
    await f(1)
    clock.advance(5)
    task = asyncio.create_task(f(1))
    await settle()
    source.gate.set()
    with pytest.raises(ValueError, match="down"):  # heard, so not reported to the loop
        await task
    assert source.calls == 2


async def test_clear_during_a_refresh_of_a_coroutine(engine: Twin, clock: FakeClock) -> None:
    source = AsyncSource()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source.later)
    await f(1)
    clock.advance(12)
    source.gate = asyncio.Event()
    await f(1)
    await settle()
    f.cache_clear()
    source.gate.set()
    await settle()
    assert f.cache_info() == CacheInfo(0, 0, 128, 0)
    assert source.calls == 2


def test_a_refresh_left_by_a_closed_loop(engine: Twin, clock: FakeClock) -> None:
    source = AsyncSource()
    f = engine.cached(ttl=10, stale=5, timer=clock)(source.later)

    async def meet() -> Any:
        source.gate = asyncio.Event()
        return await f(1)

    async def fill() -> None:
        await f(1)

    asyncio.run(fill())
    clock.advance(12)
    assert asyncio.run(meet()) == "1#1"  # the loop's end cancels the refresh
    source.gate = None

    async def again() -> tuple[Any, Any]:
        first = await f(1)
        await settle()
        return first, await f(1)

    assert asyncio.run(again()) == ("1#1", f"1#{source.calls}")


def test_a_refresh_keeps_nothing_alive(engine: Twin, clock: FakeClock) -> None:
    class C:
        @engine.cached(ttl=10, stale=5, refresh=lambda job: jobs.append(job), timer=clock)
        def f(self, x: object) -> object:
            return object()

    jobs: list[Any] = []
    obj, argument = C(), C()
    refs = [weakref.ref(obj), weakref.ref(argument)]
    obj.f(argument)
    clock.advance(12)
    obj.f(argument)
    jobs[0]()
    obj.f.cache_clear()
    del obj, argument
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert len(jobs) == 1
