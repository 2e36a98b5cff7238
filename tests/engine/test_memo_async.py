"""`cached` on coroutine functions: one run per key and loop, cancelling, errors, recursion."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
import warnings
import weakref
from typing import Any

import pytest

from beastcore._types import CacheInfo
from support import FakeClock, Twin


class Gate:
    """A coroutine function that notes its calls and goes on when it is opened."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.ended: list[Any] = []
        self.open = asyncio.Event()
        self.error: BaseException | None = None

    async def run(self, x: Any = None) -> Any:
        self.calls.append(x)
        try:
            await self.open.wait()
            if self.error is not None:
                raise self.error
            return f"result {x}"
        finally:
            self.ended.append(x)


async def settle() -> None:
    """Let every ready task run to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_results_are_kept(engine: Twin) -> None:
    calls = []

    @engine.cached(maxsize=10)
    async def f(x: int, *, y: int = 0) -> int | None:
        calls.append(x)
        await asyncio.sleep(0)
        return None if x == 0 else x + y

    assert [await f(1), await f(1), await f(1, y=2)] == [1, 1, 3]
    assert [await f(0), await f(0)] == [None, None]
    assert calls == [1, 1, 0]
    assert f.cache_info() == CacheInfo(2, 3, 10, 3)


async def test_concurrent_calls_share_one_run(engine: Twin) -> None:
    gate = Gate()
    f = engine.cached(gate.run)
    tasks = [asyncio.create_task(f(x)) for x in (1, 2, 1, 1)]
    await settle()
    assert gate.calls == [1, 2]
    assert f.cache_info() == CacheInfo(2, 2, 128, 0)
    gate.open.set()
    results = await asyncio.gather(*tasks)
    assert results == ["result 1", "result 2", "result 1", "result 1"]
    assert results[0] is results[2]
    assert f.cache_info() == CacheInfo(2, 2, 128, 2)
    assert await f(1) == "result 1"
    assert gate.calls == [1, 2]


async def test_a_hit_switches_no_task(engine: Twin) -> None:
    @engine.cached
    async def f(x: int) -> int:
        return x

    await f(1)
    coroutine = f(1)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == 1


async def test_cancelling_one_caller_cancels_nobody_else(engine: Twin) -> None:
    gate = Gate()
    f = engine.cached(gate.run)
    first, second = (asyncio.create_task(f(1)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    assert gate.ended == []
    gate.open.set()
    assert await second == "result 1"
    assert gate.calls == [1]


async def test_when_all_callers_are_cancelled_the_run_goes_on(engine: Twin) -> None:
    gate = Gate()
    f = engine.cached(gate.run)
    task = asyncio.create_task(f(1))
    await settle()
    task.cancel()
    await settle()
    gate.open.set()
    await settle()
    assert f.cache_info().currsize == 1
    assert await f(1) == "result 1"
    assert gate.calls == [1]


async def test_an_error_reaches_every_caller_and_is_not_kept(engine: Twin) -> None:
    gate = Gate()
    gate.error = ValueError("no")
    f = engine.cached(gate.run)
    tasks = [asyncio.create_task(f(1)) for _ in range(3)]
    await settle()
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results == [gate.error] * 3
    assert f.cache_info().currsize == 0
    gate.error = None
    assert await f(1) == "result 1"
    assert gate.calls == [1, 1]


async def test_an_error_nobody_waits_for_goes_to_the_loop(engine: Twin) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    gate = Gate()
    gate.error = ValueError("unseen")
    f = engine.cached(gate.run)
    task = asyncio.create_task(f(1))
    await settle()
    task.cancel()
    await settle()
    gate.open.set()
    await settle()
    assert [context["exception"] for context in reported] == [gate.error]
    assert "Gate.run failed after all its callers were cancelled" in reported[0]["message"]


async def test_a_call_right_after_a_failure_starts_a_new_run(engine: Twin) -> None:
    loop = asyncio.get_running_loop()
    calls = 0
    later: list[asyncio.Task[int]] = []

    @engine.cached
    async def f(x: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            # Runs after this run has failed, before its caller is woken.
            loop.call_soon(lambda: later.append(loop.create_task(f(x))))
            raise ValueError("first")
        return calls

    with pytest.raises(ValueError, match="first"):
        await f(1)
    assert await later[0] == 2


async def test_a_task_of_the_run_that_calls_it_again_is_told(engine: Twin) -> None:
    @engine.cached
    async def f(x: int) -> int:
        task = asyncio.create_task(f(x))
        await settle()
        return await task

    with pytest.raises(RuntimeError, match="recursive call"):
        await asyncio.wait_for(f(1), 5)


async def test_a_cancelled_run_cancels_its_callers(engine: Twin) -> None:
    @engine.cached
    async def f(x: int) -> int:
        raise asyncio.CancelledError

    task = asyncio.create_task(f(1))
    await settle()
    assert task.cancelled()
    assert f.cache_info().currsize == 0


async def test_direct_recursion_is_an_error(engine: Twin) -> None:
    @engine.cached
    async def f(x: int) -> int:
        return await f(x)

    with pytest.raises(RuntimeError, match=r"recursive call of .*f: its result"):
        await asyncio.wait_for(f(1), 5)
    assert f.cache_info().currsize == 0


@pytest.mark.parametrize("how", ["other key", "other function", "gather", "method"])
async def test_indirect_recursion_is_an_error(engine: Twin, how: str) -> None:
    @engine.cached
    async def f(x: int) -> int:
        if how == "gather":
            return sum(await asyncio.gather(f(x), asyncio.sleep(0, 1)))
        if how == "other function":
            return await g(x)
        if how == "method":
            return await obj.m(x)
        return await f(1 - x)

    @engine.cached
    async def g(x: int) -> int:
        return await f(x)

    class C:
        @engine.cached
        async def m(self, x: int) -> int:
            return await f(x)

    obj = C()
    with pytest.raises(RuntimeError, match=r"recursive call"):
        await asyncio.wait_for(f(1), 5)


async def test_two_runs_that_wait_for_each_other(engine: Twin) -> None:
    started = asyncio.Event()
    others: list[int] = []

    @engine.cached
    async def f(x: int) -> int:
        others.append(x)
        if len(others) == 2:
            started.set()
        await started.wait()
        return await f(1 - x)

    results = await asyncio.wait_for(asyncio.gather(f(0), f(1), return_exceptions=True), 5)
    assert all(isinstance(result, RuntimeError) for result in results)


async def test_recursion_over_other_keys(engine: Twin) -> None:
    @engine.cached
    async def fib(n: int) -> int:
        if n < 2:
            return n
        a, b = await asyncio.gather(fib(n - 1), fib(n - 2))
        return a + b

    assert await fib(30) == 832040
    assert fib.cache_info().misses == 31


async def test_a_task_left_behind_does_not_count_as_recursion(engine: Twin) -> None:
    tasks = []

    async def background() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        f.cache_clear()
        return await f(1)

    @engine.cached
    async def f(x: int) -> int:
        if not tasks:
            tasks.append(asyncio.create_task(background()))
        return x

    assert await f(1) == 1
    assert await tasks[0] == 1


async def test_clear_during_a_run(engine: Twin) -> None:
    gate = Gate()
    f = engine.cached(gate.run)
    old = asyncio.create_task(f(1))
    await settle()
    f.cache_clear()
    new = asyncio.create_task(f(1))
    await settle()
    assert gate.calls == [1, 1]
    gate.open.set()
    assert await old == await new == "result 1"
    assert f.cache_info() == CacheInfo(0, 1, 128, 1)


async def test_methods(engine: Twin) -> None:
    class C:
        def __init__(self) -> None:
            self.calls = 0

        @engine.cached
        async def f(self, x: int) -> int:
            self.calls += 1
            await asyncio.sleep(0)
            return x

        @classmethod
        @engine.cached
        async def make(cls, x: int) -> int:
            return x

        @staticmethod
        @engine.cached
        async def static(x: int) -> int:
            return x

    a, b = C(), C()
    assert await asyncio.gather(a.f(1), a.f(1), b.f(1), C.f(a, 1)) == [1] * 4
    assert (a.calls, b.calls) == (1, 1)
    assert a.f.cache_info() == CacheInfo(2, 1, 128, 1)
    assert await C.make(1) == await C.static(1) == 1
    for function in (C.f, a.f, C.make, C.static):
        assert inspect.iscoroutinefunction(function)
    ref = weakref.ref(b)
    del b
    await settle()
    gc.collect()
    assert ref() is None


async def test_is_seen_as_a_coroutine_function(engine: Twin) -> None:
    async def f(x: int, y: int = 1, *, z: int = 2) -> int:
        """Add."""
        return x + y + z

    class Callable:
        async def __call__(self, x: int) -> int:
            return x

    g = engine.cached(f)
    assert inspect.iscoroutinefunction(g)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert asyncio.iscoroutinefunction(g)
    assert inspect.signature(g) == inspect.signature(f)
    assert (g.__doc__, g.__name__, g.__wrapped__) == ("Add.", "f", f)
    for h in (functools.partial(f, 1), Callable()):
        wrapped = engine.cached(h)
        assert inspect.iscoroutinefunction(wrapped)
        assert await wrapped(1) == await wrapped(1)
        assert wrapped.cache_info().hits == 1
    coroutine = g(1)
    assert asyncio.iscoroutine(coroutine)
    assert inspect.isawaitable(coroutine)
    assert await coroutine == 4
    twice = engine.cached(g)
    assert await twice(1) == 4
    assert inspect.iscoroutinefunction(twice)


async def test_key_given_cache_and_time_to_live(engine: Twin, clock: FakeClock) -> None:
    cache = engine.Cache(10, 5, timer=clock)
    gate = Gate()
    gate.open.set()
    f = engine.cached(cache=cache, key=lambda x: ("k", x))(gate.run)
    assert await f(1) == await f(1) == cache["k", 1]
    clock.advance(5.1)
    await f(1)
    assert gate.calls == [1, 1]


async def test_errors_before_the_run(engine: Twin) -> None:
    gate = Gate()
    f = engine.cached(gate.run)
    with pytest.raises(TypeError, match="unhashable"):
        await f([])
    with pytest.raises(TypeError, match="argument"):
        await f(1, 2, 3)
    assert gate.calls == []
    assert f.cache_info().currsize == 0


async def test_the_first_callers_context_is_used(engine: Twin) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    @engine.cached
    async def f() -> str:
        return var.get()

    var.set("first")
    assert await f() == "first"


async def test_a_refusing_task_factory(engine: Twin) -> None:
    gate = Gate()
    gate.open.set()
    f = engine.cached(gate.run)
    loop = asyncio.get_running_loop()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no more tasks")

    loop.set_task_factory(refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match="no more tasks"):
            await f(1)
    loop.set_task_factory(None)
    assert await f(1) == "result 1"


async def test_eager_tasks(engine: Twin) -> None:
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:

        def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
            return asyncio.Task(coro, loop=loop, **kwargs)

    asyncio.get_running_loop().set_task_factory(factory)
    gate = Gate()
    gate.open.set()
    f = engine.cached(gate.run)
    assert await asyncio.gather(f(1), f(1)) == ["result 1"] * 2
    assert gate.calls == [1]

    @engine.cached
    async def g(x: int) -> int:
        return await g(x)

    with pytest.raises(RuntimeError, match="recursive call"):
        await asyncio.wait_for(g(1), 5)


def test_loops_in_threads(engine: Twin) -> None:
    runs: list[int] = []
    barrier = threading.Barrier(3)

    @engine.cached(maxsize=2000)
    async def f(x: int) -> int:
        runs.append(x)
        await asyncio.sleep(0)
        return x * 2

    failures: list[BaseException] = []

    async def main() -> None:
        for x in range(200):
            assert await asyncio.gather(*(f(x) for _ in range(5))) == [x * 2] * 5

    def work() -> None:
        barrier.wait()
        try:
            asyncio.run(main())
        except BaseException as error:  # handed to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert 200 <= len(runs) <= 600  # at most one run per loop and key
    assert f.cache_info().currsize == 200
    f._check()


def test_runs_left_by_a_closed_loop_are_forgotten(engine: Twin) -> None:
    started: list[asyncio.AbstractEventLoop] = []

    @engine.cached
    async def f(x: int) -> int:
        started.append(asyncio.get_running_loop())
        if len(started) == 1:
            await asyncio.Event().wait()
        return x

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    task = loop.create_task(f(1))
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert asyncio.run(f(1)) == 1
    assert len(started) == 2
    ref = weakref.ref(loop)
    started.clear()
    del loop, task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    assert ref() is None


def test_nothing_keeps_function_or_loop_alive(engine: Twin) -> None:
    async def work(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def main(f: Any) -> weakref.ref[Any]:
        await asyncio.gather(f(1), f(1), f(2))
        return weakref.ref(asyncio.get_running_loop())

    f = engine.cached(work)
    loop_ref = asyncio.run(main(f))
    ref = weakref.ref(f)
    gc.collect()
    assert loop_ref() is None
    del f
    gc.collect()
    assert ref() is None


def test_a_background_task_does_not_keep_results_alive(engine: Twin) -> None:
    class Result:
        pass

    async def main() -> None:
        forever = asyncio.Event()
        tasks = []

        @engine.cached
        async def f(x: int) -> Result:
            tasks.append(asyncio.create_task(forever.wait()))
            return Result()

        ref = weakref.ref(await f(1))
        gc.collect()
        assert ref() is not None
        del f
        await settle()
        gc.collect()
        assert ref() is None
        forever.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_call_never_awaited_warns_and_changes_nothing(engine: Twin) -> None:
    @engine.cached
    async def f(x: int) -> int:
        return x

    with pytest.warns(RuntimeWarning, match="never awaited"):
        f(1)
    assert f.cache_info() == CacheInfo(0, 0, 128, 0)
