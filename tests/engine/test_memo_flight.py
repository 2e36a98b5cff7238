"""Single-flight of `cached` for threads: one runs the function, the others wait for it."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import os
import queue
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beastcore import CacheInfo, _threadflight
from support import FakeClock, Twin

WAIT_S = 20.0
"""How long a step may take before the test is given up; nothing waits that long when it works."""


class Interrupt(BaseException):
    """Concerns one thread alone, as KeyboardInterrupt does."""


class Stage:
    """Threads that call one function, whose runs end when and how the test says.

    Everything that happens is an event, so that no step of a test needs to sleep: "enter" with
    the gate of a run, "wait" once a thread has noted that it waits for another and has looked for
    circles, "done" with its outcome.
    """

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[str, int, Any]] = queue.Queue()
        self.threads: list[threading.Thread] = []
        self.function: Any = None

    def run(self, key: Any) -> Any:
        gate: queue.Queue[Any] = queue.Queue()
        self.events.put(("enter", self.me(), gate))
        end = gate.get(timeout=WAIT_S)
        if isinstance(end, BaseException):
            raise end
        return end() if callable(end) else end

    def me(self) -> int:
        current = threading.current_thread()
        return self.threads.index(current) if current in self.threads else -1

    def call(self, *args: Any) -> int:
        """Call the function in a new thread; return the thread's number."""

        def work() -> None:
            try:
                outcome = self.function(*args)
            except BaseException as error:  # an outcome like any other
                outcome = error
            self.events.put(("done", self.me(), outcome))

        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()
        return len(self.threads) - 1

    def next(self) -> tuple[str, int, Any]:
        return self.events.get(timeout=WAIT_S)

    def expect(self, *wanted: tuple[str, int]) -> list[Any]:
        """Wait for as many events; return what they carry, in the order `wanted`."""
        found = {}
        for _ in wanted:
            kind, thread, value = self.next()
            found[kind, thread] = value
        assert set(found) == set(wanted)
        return [found[one] for one in wanted]

    def join(self) -> None:
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert self.events.empty()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()
    reaches = _threadflight.ThreadRun.reaches

    def noted(run: Any, *of_whom: Any) -> bool:
        in_a_circle = reaches(run, *of_whom)
        stage.events.put(("wait", stage.me(), None))
        return in_a_circle

    monkeypatch.setattr(_threadflight.ThreadRun, "reaches", noted)
    yield stage
    stage.join()


def test_one_runs_and_the_others_get_its_result(engine: Twin, stage: Stage) -> None:
    stage.function = f = engine.cached(single_flight=True)(stage.run)
    stage.call(1)
    (gate,) = stage.expect(("enter", 0))
    for thread in (1, 2, 3):
        stage.call(1)
        stage.expect(("wait", thread))
    result = object()
    gate.put(result)
    assert stage.expect(*(("done", thread) for thread in range(4))) == [result] * 4
    assert f(1) is result
    assert f.cache_info() == CacheInfo(4, 1, 128, 1)


def test_other_keys_do_not_wait(engine: Twin, stage: Stage) -> None:
    stage.function = engine.cached(single_flight=True)(stage.run)
    stage.call(1)
    stage.call(2)
    first, second = stage.expect(("enter", 0), ("enter", 1))
    second.put("two")
    assert stage.expect(("done", 1)) == ["two"]
    first.put("one")
    assert stage.expect(("done", 0)) == ["one"]


def test_without_the_option_each_runs(engine: Twin, stage: Stage) -> None:
    stage.function = engine.cached(stage.run)
    stage.call(1)
    stage.call(1)
    for gate in stage.expect(("enter", 0), ("enter", 1)):
        gate.put(5)
    stage.expect(("done", 0), ("done", 1))


def test_an_error_reaches_all_and_is_not_kept(engine: Twin, stage: Stage) -> None:
    stage.function = f = engine.cached(single_flight=True)(stage.run)
    stage.call(1)
    (gate,) = stage.expect(("enter", 0))
    for thread in (1, 2):
        stage.call(1)
        stage.expect(("wait", thread))
    error = ValueError("no", 7)
    gate.put(error)
    mine, *others = stage.expect(("done", 0), ("done", 1), ("done", 2))
    assert mine is error
    for other in others:  # each its own, or they would write into each other's traceback
        assert type(other) is ValueError
        assert other is not error
        assert other.args == ("no", 7)
        assert other.__cause__ is error
    assert others[0] is not others[1]
    assert f.cache_info() == CacheInfo(2, 1, 128, 0)


@pytest.mark.parametrize("error", [Interrupt(), KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupted_leader_hands_over(engine: Twin, stage: Stage, error: BaseException) -> None:
    stage.function = engine.cached(single_flight=True)(stage.run)
    stage.call(1)
    (gate,) = stage.expect(("enter", 0))
    for thread in (1, 2):
        stage.call(1)
        stage.expect(("wait", thread))
    gate.put(error)
    events = [stage.next() for _ in range(3)]
    assert [value for kind, thread, value in events if kind == "done"] == [error]
    ((leader, gate),) = [(thread, value) for kind, thread, value in events if kind == "enter"]
    (waiter,) = [thread for kind, thread, _ in events if kind == "wait"]
    assert {leader, waiter} == {1, 2}
    gate.put("result")
    assert stage.expect(("done", 1), ("done", 2)) == ["result"] * 2


def test_recursion_on_one_key_runs_directly(engine: Twin) -> None:
    depth = 0

    @engine.cached(single_flight=True)
    def f(x: int) -> int:
        nonlocal depth
        depth += 1
        return depth if depth == 3 else f(x)

    assert f(1) == 3
    assert f.cache_info() == CacheInfo(0, 3, 128, 1)
    assert f(1) == 3


def test_endless_recursion_is_an_error(engine: Twin) -> None:
    @engine.cached(single_flight=True)
    def f(x: int) -> int:
        return f(x)

    with pytest.raises(RecursionError):
        f(1)
    assert f.cache_info().currsize == 0


def test_recursion_in_an_empty_context_runs_directly(engine: Twin) -> None:
    seen: list[int] = []

    @engine.cached(single_flight=True)
    def f(x: int) -> int:
        seen.append(x)
        return x if len(seen) > 1 else contextvars.Context().run(f, x)

    assert f(1) == 1
    assert seen == [1, 1]


def test_a_thread_of_the_run_with_its_context_runs_directly(engine: Twin) -> None:
    seen: list[int] = []
    results: list[int] = []

    @engine.cached(single_flight=True)
    def f(x: int) -> int:
        seen.append(x)
        if len(seen) == 1:
            context = contextvars.copy_context()
            thread = threading.Thread(target=lambda: results.append(context.run(f, x)), daemon=True)
            thread.start()
            thread.join(WAIT_S)
            assert not thread.is_alive()
        return x

    assert f(1) == 1
    assert seen == [1, 1]
    assert results == [1]


@pytest.mark.parametrize("functions", [1, 2])
def test_two_that_need_each_other_do_not_hang(engine: Twin, stage: Stage, functions: int) -> None:
    inner: dict[int, Any] = {}
    runs: list[int] = []

    def work(x: int) -> Any:
        runs.append(x)
        if runs.count(x) == 1:
            stage.run(x)
            return inner[1 - x](1 - x)
        return f"direct {x}"

    inner[0] = f = engine.cached(single_flight=True)(work)
    inner[1] = g = engine.cached(single_flight=True)(work) if functions == 2 else f
    stage.function = lambda x: inner[x](x)
    stage.call(0)
    (first,) = stage.expect(("enter", 0))
    stage.call(1)
    (second,) = stage.expect(("enter", 1))
    first.put(None)
    stage.expect(("wait", 0))  # thread 0 leads key 0 and needs key 1
    second.put(None)
    events = [stage.next() for _ in range(3)]
    assert ("wait", 1) in [event[:2] for event in events]  # noticed to be endless
    done = {thread: value for kind, thread, value in events if kind == "done"}
    assert done == {0: "direct 0", 1: "direct 0"}
    assert sorted(runs) == [0, 0, 1]
    assert (f(0), g(1)) == ("direct 0", "direct 0")


def test_three_in_a_circle(engine: Twin, stage: Stage) -> None:
    runs: list[int] = []

    @engine.cached(single_flight=True)
    def f(x: int) -> Any:
        runs.append(x)
        if runs.count(x) > 1:
            return "direct"
        stage.run(x)
        return f((x + 1) % 3)

    stage.function = f
    for thread in range(3):
        stage.call(thread)
    gates = stage.expect(*(("enter", thread) for thread in range(3)))
    for thread in range(2):
        gates[thread].put(None)
        stage.expect(("wait", thread))
    gates[2].put(None)
    stage.expect(("wait", 2), *(("done", thread) for thread in range(3)))
    assert sorted(runs) == [0, 0, 1, 2]


def test_who_has_just_ended_what_another_waits_for_waits_for_it(
    engine: Twin, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one need not have woken up; no two threads run one key."""
    awake: queue.Queue[None] = queue.Queue()
    stop_waiting = _threadflight.ThreadRun.stop_waiting

    def stop_late(run: Any, other: Any) -> None:
        awake.get(timeout=WAIT_S)
        stop_waiting(run, other)

    monkeypatch.setattr(_threadflight.ThreadRun, "stop_waiting", stop_late)
    runs: list[int] = []

    @engine.cached(single_flight=True)
    def f(x: int) -> Any:
        runs.append(x)
        stage.run(x)
        return f(2) if x == 1 else x

    stage.function = lambda *keys: [f(key) for key in keys]
    stage.call(1)
    (first,) = stage.expect(("enter", 0))
    stage.call(2, 1)
    (second,) = stage.expect(("enter", 1))
    first.put(None)
    stage.expect(("wait", 0))
    second.put(None)
    stage.expect(("wait", 1))
    awake.put(None)
    assert stage.expect(("done", 0), ("done", 1)) == [[2], [2, 2]]
    assert runs == [1, 2]


def test_clear_during_a_run(engine: Twin, stage: Stage) -> None:
    stage.function = f = engine.cached(single_flight=True)(stage.run)
    stage.call(1)
    (old,) = stage.expect(("enter", 0))
    stage.call(1)
    stage.expect(("wait", 1))
    f.cache_clear()
    stage.call(1)
    (new,) = stage.expect(("enter", 2))
    old.put("old")
    assert stage.expect(("done", 0), ("done", 1)) == ["old", "old"]
    assert f.cache_info().currsize == 0
    new.put("new")
    assert stage.expect(("done", 2)) == ["new"]
    assert f(1) == "new"


def test_each_instance_by_itself(engine: Twin, stage: Stage) -> None:
    class C:
        @engine.cached(single_flight=True)
        def f(self, x: int) -> Any:
            return stage.run(x)

    a, b = C(), C()
    stage.function = lambda obj: obj.f(1)
    stage.call(a)
    stage.call(b)
    first, second = stage.expect(("enter", 0), ("enter", 1))
    stage.call(a)
    stage.expect(("wait", 2))
    first.put("a")
    second.put("b")
    assert stage.expect(("done", 0), ("done", 1), ("done", 2)) == ["a", "b", "a"]


def test_all_shapes_of_calls(engine: Twin, clock: FakeClock) -> None:
    def f(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    g = engine.cached(20, 10, timer=clock, typed=True, single_flight=True)(f)
    for args, kwargs in (((), {}), ((1,), {}), ((1, 2), {"a": 3}), ((), {"b": 1, "c": 2})):
        assert g(*args, **kwargs) == g(*args, **kwargs) == (args, kwargs)
    assert g.cache_info() == CacheInfo(4, 4, 20, 4)
    clock.advance(11)
    assert g(1) == ((1,), {})
    assert g.cache_info().misses == 5
    h = engine.cached(key=lambda x: x["id"], single_flight=True, cache=engine.Cache(5))(f)
    assert h({"id": 1, "n": 2}) == h({"id": 1, "n": 3}) == (({"id": 1, "n": 2},), {})


def test_bad_keys_and_results(engine: Twin) -> None:
    f = engine.cached(single_flight=True)(lambda x: x)
    with pytest.raises(TypeError, match="unhashable"):
        f([])

    async def later() -> None: ...

    g = engine.cached(single_flight=True)(lambda: later())
    with pytest.raises(TypeError, match="returned a coroutine"):
        g()
    assert f.cache_info().misses == 0


def test_a_key_that_fails_to_compare_hangs_nobody(engine: Twin, stage: Stage) -> None:
    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    f = engine.cached(single_flight=True)(lambda x: 5)
    first = Key()
    assert f(first) == 5
    with pytest.raises(ZeroDivisionError):
        f(Key())
    f.cache_clear()
    assert f(Key()) == 5


def test_nothing_is_kept_alive(engine: Twin, stage: Stage) -> None:
    class Result:
        pass

    class C:
        @engine.cached(single_flight=True)
        def f(self, x: Any) -> Any:
            contexts.append(contextvars.copy_context())
            return stage.run(x)

    contexts: list[contextvars.Context] = []
    obj = C()
    refs = [weakref.ref(obj)]
    stage.function = lambda obj: refs.append(weakref.ref(obj.f(1)))
    stage.call(obj)
    (gate,) = stage.expect(("enter", 0))
    stage.call(obj)
    stage.expect(("wait", 1))
    gate.put(Result)
    del gate
    stage.expect(("done", 0), ("done", 1))
    stage.join()
    del obj
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_an_error_leaves_no_circle_of_frames(engine: Twin) -> None:
    class Local:
        pass

    @engine.cached(single_flight=True)
    def f(x: int) -> None:
        local = Local()
        refs.append(weakref.ref(local))
        raise ValueError(local.__class__)

    refs: list[Any] = []
    gc.disable()
    try:
        for _ in range(3):
            try:
                f(1)
            except ValueError as error:
                assert len(traceback.extract_tb(error.__traceback__)) < 20
            assert refs[-1]() is None
    finally:
        gc.enable()


def test_after_a_fork_the_runs_of_the_parent_are_gone(engine: Twin, stage: Stage) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("another operating system: it has no fork")
    stage.function = f = engine.cached(single_flight=True)(stage.run)
    stage.call(1)
    (gate,) = stage.expect(("enter", 0))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(10)  # a child that hangs fails instead
            stage.run = lambda x: "child"  # type: ignore[method-assign]
            call = threading.Thread(target=gate_of_child, args=(stage,))
            call.start()
            status = 0 if f(1) == "child" else 2
        finally:
            os._exit(status)
    gate.put("parent")
    assert stage.expect(("done", 0)) == ["parent"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def gate_of_child(stage: Stage) -> None:
    """Let the child's run, which enters like any other, end at once."""
    while True:
        kind, _, value = stage.next()
        if kind == "enter":
            value.put("child")
            return


def test_many_threads_at_random(engine: Twin) -> None:
    lock = threading.Lock()
    busy: set[int] = set()
    failures: list[BaseException] = []

    @engine.cached(50, single_flight=True)
    def f(x: int) -> int:
        with lock:
            assert x not in busy  # no two threads run one key
            busy.add(x)
        try:
            if x % 10 == 9:
                raise ValueError(x)
            return x if x < 2 or x % 3 else f(x - 1) + f(x - 2)
        finally:
            with lock:
                busy.discard(x)

    def work(seed: int) -> None:
        try:
            for i in range(400):
                x = (i * 7 + seed * 13) % 60
                with contextlib.suppress(ValueError):
                    f(x)
        except BaseException as error:  # handed to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    f._check()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 2)),
        st.tuples(st.just("call"), st.integers(0, 2)),
        st.tuples(st.just("value"), st.integers(0, 5)),
        st.tuples(st.just("error"), st.integers(0, 5)),
        st.tuples(st.just("interrupt"), st.integers(0, 5)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=25,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_scripted_interleavings(engine: Twin, steps: list[tuple[str, int]]) -> None:
    """Every order of calls, ends of runs and clears does what a model says, step by step."""
    stage = Stage()
    wait = _threadflight._wait
    with pytest.MonkeyPatch.context() as patch:

        def noted(run: Any) -> bool:
            stage.events.put(("wait", stage.me(), None))
            return wait(run)

        patch.setattr(_threadflight, "_wait", noted)
        play(engine, stage, steps)
        stage.join()


def play(engine: Twin, stage: Stage, steps: list[tuple[str, int]]) -> None:
    function = engine.cached(single_flight=True)(stage.run)
    stage.function = function
    kept: dict[int, str] = {}
    joinable: dict[int, dict[str, Any]] = {}  # key -> the run that a call would join
    runs: list[dict[str, Any]] = []  # all under way
    hits = misses = 0

    def enter(key: int, thread: int, gate: Any) -> dict[str, Any]:
        run = {"key": key, "leader": thread, "gate": gate, "waiters": []}
        runs.append(run)
        joinable[key] = run
        return run

    def end(how: str, run: dict[str, Any]) -> None:
        nonlocal hits, misses
        runs.remove(run)
        key, leader, waiters = run["key"], run["leader"], run["waiters"]
        found = joinable.get(key) is run
        if found:
            del joinable[key]
        value = f"{key} by {leader}"
        run["gate"].put({"value": value, "error": ValueError(value)}.get(how) or Interrupt(value))
        if how != "interrupt":
            outcomes = stage.expect(*(("done", thread) for thread in [leader, *waiters]))
            assert {str(outcome) for outcome in outcomes} == {value}
            hits += len(waiters)
            if how == "value" and found:
                kept[key] = value
            return
        # One of the waiters leads next, if they still find each other and no other run.
        events = [stage.next() for _ in range(1 + len(waiters))]
        done = {thread for kind, thread, _ in events if kind == "done"}
        assert done == ({leader, *waiters} if key in kept else {leader})
        present = joinable.get(key)
        for kind, thread, gate in events:
            if kind == "enter":
                misses += 1
                present = enter(key, thread, gate)
        for kind, thread, value in events:
            if kind == "wait":
                assert present is not None
                present["waiters"].append(thread)
            elif kind == "done" and thread != leader:
                assert value == kept[key]
                hits += 1

    for step, number in [*steps, *[("value", 0)] * len(steps)]:
        if step == "clear":
            function.cache_clear()
            kept.clear()
            joinable.clear()
            hits = misses = 0
        elif step == "call":
            thread = stage.call(number)
            kind, _, value = stage.next()
            if number in kept:
                assert (kind, value) == ("done", kept[number])
                hits += 1
            elif number in joinable:
                assert kind == "wait"
                joinable[number]["waiters"].append(thread)
            else:
                assert kind == "enter"
                misses += 1
                enter(number, thread, value)
        elif runs:
            end(step, runs[number % len(runs)])
        info = function.cache_info()
        assert (info.misses, info.currsize) == (misses, len(kept))
        assert info.hits == hits
    assert runs == []
    function._check()


def test_options_that_are_refused(engine: Twin) -> None:
    bad: Callable[..., Any] = engine.cached
    with pytest.raises(TypeError, match="single_flight must be a bool, got 1"):
        bad(single_flight=1)

    @engine.cached(single_flight=True)
    async def f(x: int) -> int:
        return x

    f(1).close()  # coroutine functions have it anyway
