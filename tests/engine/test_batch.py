"""`BatchBuffer`: order, merging, being due, draining, restoring, bad input, user code inside."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_tools import every_allocation_fails
from support import FakeClock, Twin


class TestOrder:
    def test_fifo_per_key_and_first_operation_between_keys(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for key, op in [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5)]:
            b.add(key, op)
        assert b.drain() == [("a", 1), ("a", 3), ("b", 2), ("b", 5), ("c", 4)]
        assert b.drain() == []

    def test_priority_orders_keys_never_one_keys_operations(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add("low", 1)
        b.add("high", 2, priority=-1)
        b.add("high", 3, priority=9)
        b.add("high", 4, priority=2)
        b.add("middle", 5, priority=5)
        assert [op for _, op in b.drain()] == [2, 3, 4, 5, 1]

    def test_a_partial_drain_ranks_the_rest_anew(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add("a", 1, priority=9)
        b.add("a", 2)
        b.add("b", 3, priority=5)
        assert b.drain(1) == [("a", 1)]
        assert b.drain() == [("b", 3), ("a", 2)]

    def test_a_partial_drain_of_equal_priorities(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for key, op in [("a", 1), ("b", 2), ("a", 3)]:
            b.add(key, op)
        assert b.drain(1) == [("a", 1)]
        assert b.drain() == [("b", 2), ("a", 3)]

    def test_limits(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for i in range(5):
            b.add(i, i)
        assert b.drain(0) == []
        assert len(b.drain(2)) == 2
        assert len(b.drain(10**30)) == 3


class TestMerge:
    def test_the_last_operation_only(self, engine: Twin) -> None:
        calls = []

        def merge(old: int, new: int) -> int | None:
            calls.append((old, new))
            return old + new if new < 10 else None

        b = engine.BatchBuffer(merge=merge)
        b.add("k", 1)
        b.add("k", 2)
        b.add("k", 50)
        b.add("k", 3)
        b.add("other", 4)
        assert calls == [(1, 2), (3, 50), (50, 3)]
        assert b.pending("k") == [3, 53]
        assert b.stats()._asdict() == {
            "added": 5,
            "coalesced": 2,
            "drained": 0,
            "restored": 0,
            "cleared": 0,
            "pending": 3,
            "keys": 2,
            "bytes": 0,
        }
        b.drain()
        b.add("k", 1)
        assert len(calls) == 3, "a drained operation is not offered"

    def test_sizes(self, engine: Twin) -> None:
        b = engine.BatchBuffer(merge=lambda old, new: {"n": new, "o": old}.get(new[0], [old, new]))
        b.add("k", "x1", size=100)
        b.add("k", "n2", size=7)
        assert b.stats().bytes == 7, "the new operation replaced the old one"
        b.add("k", "o3", size=50)
        assert b.stats().bytes == 7, "the old operation stayed"
        b.add("k", "b4", size=50)
        assert b.stats().bytes == 57
        b.add("k", "b5", size=2**32 - 1)
        assert b.stats().bytes == 2**32 - 1, "the sum saturates"

    def test_place_age_and_priority(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(max_delay=10, merge=lambda old, new: new, timer=clock)
        b.add("a", 1)
        clock.advance(1)
        b.add("b", 2, priority=3)
        clock.advance(1)
        b.add("a", 3, priority=3)
        assert b.deadline() == 1010.0
        assert b.drain() == [("a", 3), ("b", 2)]

    def test_an_error_changes_nothing(self, engine: Twin) -> None:
        def merge(old: Any, new: Any) -> Any:
            raise LookupError(new)

        b = engine.BatchBuffer(merge=merge)
        b.add("k", 1, size=3)
        before = b.stats()
        with pytest.raises(LookupError, match="2"):
            b.add("k", 2, size=4)
        assert (b.stats(), b.pending("k")) == (before, [1])

    def test_none_itself_is_an_operation(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add(None, None)
        assert b.pending(None) == [None]
        assert None in b


class TestDue:
    def test_by_count(self, engine: Twin) -> None:
        b = engine.BatchBuffer(2, 1e6)
        assert b.add(1, 1) is False
        assert b.due() is False
        assert b.add(1, 1) is True
        assert b.due() is True
        b.max_ops = 3
        assert b.due() is False

    def test_by_bytes(self, engine: Twin) -> None:
        b = engine.BatchBuffer(max_bytes=10)
        assert not b.add(1, 1, size=9)
        assert b.add(2, 1, size=1)
        b.drain(1)
        assert not b.due()
        b.max_bytes = 1
        assert b.due()
        b.max_bytes = None
        assert b.max_bytes is None
        assert not b.due()

    def test_by_age(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(max_delay=0.1, timer=clock)
        assert b.deadline() is None
        b.add(1, 1)
        deadline = b.deadline()
        assert deadline == 1000.0 + 0.1
        clock.now = deadline - 1e-9
        assert not b.due()
        clock.now = deadline
        assert b.due()
        assert b.deadline() == deadline
        assert b.add(2, 2) is True
        b.drain(1)
        assert b.deadline() == deadline + 0.1

    def test_a_deadline_is_not_later_than_now_when_due_by_count(
        self, engine: Twin, clock: FakeClock
    ) -> None:
        b = engine.BatchBuffer(1, 10, timer=clock)
        b.add(1, 1)
        assert b.deadline() == clock.now

    def test_no_delay_is_due_at_once(self, engine: Twin) -> None:
        b = engine.BatchBuffer(max_delay=0)
        assert not b.due()
        assert b.add(1, 1)

    def test_the_oldest_counts_whatever_its_priority(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(max_delay=5, timer=clock)
        b.add("old", 1, priority=-5)
        clock.advance(1)
        b.add("new", 2, priority=5)
        b.drain(1)
        assert b.deadline() == 1005.0

    def test_a_clock_that_runs_backwards(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(max_delay=5, timer=clock)
        clock.advance(-100)
        b.add(1, 1)
        assert b.deadline() == 1005.0
        clock.now = 1004.0
        assert not b.due()

    def test_the_default_clock_is_monotonic(self, engine: Twin) -> None:
        b = engine.BatchBuffer(max_delay=100)
        before = time.monotonic()
        b.add(1, 1)
        assert before + 100 <= b.deadline() <= time.monotonic() + 100
        assert b.timer is time.monotonic


class TestRestore:
    def test_in_front_of_what_is_newer(self, engine: Twin) -> None:
        b = engine.BatchBuffer(merge=lambda old, new: new)
        b.add("a", 1)
        b.add("b", 2)
        drained = b.drain()
        b.add("b", 3)
        b.add("c", 4)
        b.restore(drained)
        assert b.pending("b") == [2, 3], "nothing is merged"
        assert b.drain() == [("a", 1), ("b", 2), ("b", 3), ("c", 4)]

    def test_sizes_priorities_and_ages_come_back(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(max_delay=10, timer=clock)
        b.add("a", 1, size=5)
        b.add("b", 2, size=6, priority=3)
        drained = b.drain()
        assert [(i.size, i.priority, i.added_at) for i in drained] == [
            (6, 3, 1000.0),
            (5, 0, 1000.0),
        ]
        clock.advance(4)
        b.add("a", 7, size=1)
        b.restore(drained)
        assert b.stats().bytes == 12
        assert b.deadline() == 1010.0
        assert b.drain() == [("b", 2), ("a", 1), ("a", 7)]

    def test_a_part_of_a_batch(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for i in range(4):
            b.add("k", i)
        b.restore(b.drain()[2:])
        assert b.pending("k") == [2, 3]

    def test_plain_pairs(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(max_delay=10, timer=clock)
        b.restore([("x", 1)])
        assert b.deadline() == 1010.0
        clock.advance(5)
        b.restore(iter([("y", 2), ("x", 0)]))
        assert b.deadline() == 1010.0
        assert b.drain() == [("y", 2), ("x", 0), ("x", 1)]

    def test_newest_batch_first(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for i in range(6):
            b.add("k", i)
        first, second = b.drain(2), b.drain(2)
        b.restore(second)
        b.restore(first)
        assert b.pending("k") == list(range(6))

    def test_into_another_buffer(self, engine: Twin) -> None:
        a, b = engine.BatchBuffer(), engine.BatchBuffer()
        for i in range(1000):
            a.add(i, i)
        b.restore(a.drain())
        b.add(5, "new")
        assert b.pending(5) == [5, "new"]
        assert len(b) == 1001

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            ([("a", 1), ("b",)], r"restore item 1 must be a \(key, op\) pair, got \('b',\)"),
            ([("a", 1), "bc"], r"restore item 1 must be a \(key, op\) pair, got 'bc'"),
            ([("a", 1), ([], 2)], "unhashable type: 'list'"),
            (7, "not iterable"),
        ],
    )
    def test_bad_items_change_nothing(self, engine: Twin, bad: Any, error: str) -> None:
        b = engine.BatchBuffer()
        b.add("a", 0)
        before = b.stats()
        with pytest.raises(TypeError, match=error):
            b.restore(bad)
        assert (b.stats(), b.pending("a")) == (before, [0])

    def test_an_item_that_was_tampered_with(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add("a", 0)
        (item,) = b.drain()
        item.size = -1
        with pytest.raises(ValueError, match="size must be zero or positive, got -1"):
            b.restore([item])
        assert len(b) == 0

    def test_a_failing_key_changes_nothing(self, engine: Twin) -> None:
        class Bad:
            def __hash__(self) -> int:
                return hash("a")

            def __eq__(self, other: object) -> bool:
                raise LookupError("eq")

        b = engine.BatchBuffer()
        b.add("a", 0)
        with pytest.raises(LookupError):
            b.restore([("new", 1), (Bad(), 2)])
        assert b.stats().keys == 1
        assert "new" not in b
        assert b.drain() == [("a", 0)]


class TestContent:
    def test_len_contains_pending_clear(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        assert not b
        b.add("a", 1, size=4)
        b.add("a", 2)
        assert (len(b), "a" in b, "z" in b) == (2, True, False)
        assert (b.pending("a"), b.pending("z")) == ([1, 2], [])
        assert b.clear() is None
        assert (len(b), "a" in b, b.pending("a"), b.drain()) == (0, False, [], [])
        assert b.stats()[:8] == (2, 0, 0, 0, 2, 0, 0, 0)
        b.add("a", 3)
        assert b.pending("a") == [3]

    def test_pending_is_a_copy(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add("a", 1)
        b.pending("a").clear()
        assert b.pending("a") == [1]

    def test_equal_keys_are_one_key(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add(1, "int")
        b.add(1.0, "float")
        b.add(True, "bool")
        assert b.stats().keys == 1
        assert b.pending(1) == ["int", "float", "bool"]

    def test_many_keys_that_come_and_go(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for turn in range(5):
            for i in range(300):
                b.add((i * 2**20, turn), i, priority=i % 7)
            assert len(b.drain(299)) == 299
        assert len(b) == 5

    def test_repr(self, engine: Twin) -> None:
        b = engine.BatchBuffer(10, 0.5)
        b.add(1, 1)
        assert repr(b) == "BatchBuffer(max_ops=10, max_delay=0.5, pending=1)"
        b.max_bytes = 9
        assert repr(b) == "BatchBuffer(max_ops=10, max_delay=0.5, max_bytes=9, pending=1)"


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"max_ops": 0}, ValueError, "max_ops must be positive, got 0"),
            ({"max_ops": 1.5}, TypeError, "max_ops must be an int, got 1.5"),
            ({"max_ops": 2**31}, ValueError, "max_ops must be at most 1073741824, got 2147483648"),
            ({"max_delay": -1}, ValueError, "max_delay must be zero or positive, got -1"),
            (
                {"max_delay": float("nan")},
                ValueError,
                "max_delay must be a number of seconds, got nan",
            ),
            ({"max_bytes": 0}, ValueError, "max_bytes must be positive, got 0"),
            ({"merge": 3}, TypeError, "merge must be callable or None, got 3"),
            ({"timer": 3}, TypeError, "timer must be callable or None, got 3"),
            (
                {"timer": lambda: "now"},
                TypeError,
                "timer() must return seconds as a float, got 'now'",
            ),
            (
                {"timer": lambda: float("nan")},
                ValueError,
                "timer() must return seconds as a float, got nan",
            ),
        ],
    )
    def test_constructor(self, engine: Twin, arguments: Any, error: Any, text: str) -> None:
        with pytest.raises(error) as caught:
            engine.BatchBuffer(**arguments)
        assert str(caught.value) == text

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"size": -1}, ValueError, "size must be zero or positive, got -1"),
            ({"size": 2**32}, ValueError, "size must be at most 4294967295, got 4294967296"),
            ({"size": "1"}, TypeError, "size must be an int, got '1'"),
            ({"size": True}, TypeError, "size must be an int, got True"),
            (
                {"priority": 2**31},
                ValueError,
                "priority must be at most 2147483647, got 2147483648",
            ),
            (
                {"priority": -(2**70)},
                ValueError,
                f"priority must be at least -2147483648, got {-(2**70)}",
            ),
            ({"priority": 0.5}, TypeError, "priority must be an int, got 0.5"),
        ],
    )
    def test_add(self, engine: Twin, arguments: Any, error: Any, text: str) -> None:
        b = engine.BatchBuffer()
        with pytest.raises(error) as caught:
            b.add("k", 1, **arguments)
        assert str(caught.value) == text
        assert len(b) == 0

    def test_extreme_sizes_and_priorities(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add(1, 1, size=2**32 - 1, priority=-(2**31))
        b.add(2, 2, size=2**32 - 1, priority=2**31 - 1)
        assert b.stats().bytes == 2 * (2**32 - 1)
        assert [item.priority for item in b.drain()] == [2**31 - 1, -(2**31)]

    def test_an_unhashable_key(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for call in (lambda: b.add([], 1), lambda: b.pending([]), lambda: [] in b):
            with pytest.raises(TypeError, match="unhashable"):
                call()

    def test_limits_and_settings(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        with pytest.raises(ValueError, match="limit must be zero or positive, got -1"):
            b.drain(-1)
        with pytest.raises(ValueError, match="max_ops must be positive, got 0"):
            b.max_ops = 0
        with pytest.raises(ValueError, match="max_delay must be zero or positive"):
            b.max_delay = -1
        assert (b.max_ops, b.max_delay) == (500, 1.0)

    def test_a_timer_that_fails_later(self, engine: Twin, clock: FakeClock) -> None:
        b = engine.BatchBuffer(timer=clock)
        clock.now = float("inf")
        for call in (lambda: b.add(1, 1), b.due, b.deadline):
            with pytest.raises(ValueError, match=r"timer\(\) must return seconds .* got inf"):
                call()
        assert len(b) == 0

    def test_no_pickle_no_copy_no_subclass(self, engine: Twin) -> None:
        b = engine.raw.BatchBuffer()
        for call in (lambda: pickle.dumps(b), lambda: copy.copy(b), lambda: copy.deepcopy(b)):
            with pytest.raises(TypeError, match="cannot pickle 'BatchBuffer' object"):
                call()
        with pytest.raises(TypeError, match="is not an acceptable base type"):
            type("Sub", (type(b),), {})
        assert engine.raw.BatchBuffer[str, int].__args__ == (str, int)


class EvilKey:
    """Equal to the other keys of its hash, after it has done something to the buffer."""

    def __init__(self, action: Any, equal: bool = False) -> None:
        self.action = action
        self.equal = equal

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        self.action()
        return self.equal


class TestUserCodeInside:
    def test_merge_may_change_the_buffer(self, engine: Twin) -> None:
        doing: list[Any] = []

        def merge(old: Any, new: Any) -> Any:
            if doing:
                doing.pop()()
            return (old, new)

        b = engine.BatchBuffer(merge=merge)
        for action in (
            b.drain,
            b.clear,
            lambda: b.add("k", "inner"),
            lambda: b.restore([("k", "front")]),
            lambda: [b.add(i, i) for i in range(100)],
        ):
            b.clear()
            b.add("k", "old")
            doing.append(action)
            b.add("k", "new")
            b._check()
            assert str(b.pending("k")[-1]).endswith("'new')") or b.pending("k") == ["new"]
            assert not doing

    def test_a_merge_that_always_changes_the_buffer(self, engine: Twin) -> None:
        b = engine.BatchBuffer(merge=lambda old, new: b.add("other", 1) and None)
        b.max_ops = 1
        b.add("k", 1)

        def merge(old: Any, new: Any) -> Any:
            c.add(object(), 1)
            return new

        c = engine.BatchBuffer(merge=merge)
        c.add("k", 1)
        with pytest.raises(RuntimeError, match="changed again and again while merge ran"):
            c.add("k", 2)
        assert c.pending("k") == [1]

    @pytest.mark.parametrize("equal", [False, True])
    def test_a_comparison_may_change_the_buffer(self, engine: Twin, equal: bool) -> None:
        for name in ("drain", "clear", "add", "restore"):
            b = engine.BatchBuffer()
            done: list[int] = []

            def action(name: str = name, b: Any = b, done: Any = done) -> None:
                if not done:
                    done.append(1)
                    arguments = {"add": (7, 1), "restore": ([(7, 1), ("z", 2)],)}.get(name, ())
                    getattr(b, name)(*arguments)

            first = EvilKey(action, equal)
            b.add(first, "first")
            b.add(7, "second")
            b._check()
            assert done
            assert b.pending(7)[-1] == "second"

    def test_a_comparison_that_always_changes_the_buffer(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        b.add(EvilKey(lambda: b.add(object(), 1)), 1)
        with pytest.raises(RuntimeError, match="changed again and again while a key's __eq__ ran"):
            b.add(7, 2)

    def test_a_finalizer_sees_a_whole_buffer(self, engine: Twin) -> None:
        seen = []

        class Op:
            def __del__(self) -> None:
                b._check()
                seen.append(len(b))
                b.add("again", len(seen)) if len(seen) < 20 else None

        b = engine.raw.BatchBuffer(merge=lambda old, new: new if isinstance(old, Op) else None)
        for i in range(5):
            b.add(i, Op())
        b.add(0, "replaced")
        assert len(seen) == 1
        b.clear()
        assert len(seen) == 5
        b._check()
        assert set(b.pending("again")) >= {3, 4, 5}

    @pytest.mark.compiled_only
    def test_the_collector_may_run_anywhere(self, engine: Twin) -> None:
        b = engine.raw.BatchBuffer()
        checking: list[int] = []

        def on_collect(phase: str, info: object) -> None:
            if phase == "start" and len(b) < 500 and not checking:
                b.add("gc", 0)
                b.add(object(), 0)
                b.drain(1)

        threshold = gc.get_threshold()
        gc.callbacks.append(on_collect)
        gc.set_threshold(1)
        try:
            for i in range(50):
                b.add(i % 5, i)
                if i % 7 == 0:
                    b.restore(b.drain(5))
                if i % 20 == 0:
                    b.clear()
                b.pending(3)
                checking.append(1)  # checking allocates as well
                b._check()
                checking.clear()
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(on_collect)
        b._check()


class TestLifetime:
    def test_cycles_are_collected(self, engine: Twin) -> None:
        class Box:
            def __call__(self, *args: Any) -> float:
                return 1.0

        for how in ("op", "key", "merge", "timer", "self"):
            box = Box()
            timer = box if how == "timer" else None
            b = engine.BatchBuffer(merge=box if how == "merge" else None, timer=timer)
            box.buffer = b  # type: ignore[attr-defined]
            if how == "op":
                b.add("k", box)
            elif how == "key":
                b.add(box, 1)
            elif how == "self":
                b.add("k", b)
            died = weakref.ref(b)
            del b, box, timer
            gc.collect()
            assert died() is None, how

    def test_references(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        key, op = ("key", 1.5), [object()]
        before = sys.getrefcount(key), sys.getrefcount(op)
        for _ in range(50):
            b.add(key, op, priority=3)
        b.restore(b.drain(20))
        b.pending(key)
        assert key in b
        b.drain(7)
        b.clear()
        gc.collect()
        assert (sys.getrefcount(key), sys.getrefcount(op)) == before

    @pytest.mark.lifetime
    def test_drained_items_are_not_held(self, engine: Twin) -> None:
        class Op:
            pass

        b = engine.BatchBuffer()
        op = Op()
        died = weakref.ref(op)
        b.add("k", op)
        items = b.drain()
        del op
        assert died() is items[0][1]
        items.clear()
        gc.collect()
        assert died() is None


@pytest.mark.compiled_only
class TestMemoryIsShort:
    """Whichever allocation fails: MemoryError, nothing lost, nothing half done."""

    def test_add(self, engine: Twin) -> None:
        b = engine.BatchBuffer(merge=lambda old, new: new if new == "m" else None)
        keys = [f"key {i}" for i in range(40)]

        def body() -> None:
            for key in keys:
                if key not in b:
                    b.add(key, 1, size=3)
            b.add(keys[0], "m")

        assert every_allocation_fails(body, b._check) > 8
        assert len(b) == 40

    def test_drain_loses_nothing(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        for i in range(30):
            b.add(i % 7, i, priority=i % 3, size=1)
        order = [b.pending(k) for k in range(7)]
        expected = b.drain()
        b.restore(expected)
        found = {"items": []}

        def body() -> None:
            found["items"] = b.drain()

        def check() -> None:
            b._check()
            assert found["items"] or [b.pending(k) for k in range(7)] == order

        assert every_allocation_fails(body, check) > 30
        assert found["items"] == expected

    def test_restore_is_all_or_nothing(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        items = [(f"k{i % 9}", i) for i in range(60)]

        def check() -> None:
            b._check()
            assert len(b) in (0, 60)

        def body() -> None:
            if not len(b):
                b.restore(items)

        assert every_allocation_fails(body, check) > 20
        assert sorted(b.drain()) == sorted(items)

    def test_construction(self, engine: Twin) -> None:
        cls = engine.raw.BatchBuffer
        assert every_allocation_fails(lambda: cls(3, 1.0, max_bytes=4), lambda: None) >= 2


class Model:
    """What a buffer should do, as simply as possible: one list of operations."""

    def __init__(self, clock: FakeClock, max_ops: int, max_delay: float, max_bytes: int) -> None:
        self.clock = clock
        self.limits = max_ops, max_delay, max_bytes
        self.ops: list[dict[str, Any]] = []  # oldest first

    def add(self, key: Any, op: str, size: int, priority: int) -> bool:
        last = next((o for o in reversed(self.ops) if o["key"] == key), None)
        if last and op.startswith("m"):
            last["op"] += op
            last["size"] += size
            last["priority"] = max(last["priority"], priority)
        else:
            self.ops.append(
                {"key": key, "op": op, "size": size, "priority": priority, "at": self.clock.now}
            )
        return self.due()

    def due(self) -> bool:
        max_ops, max_delay, max_bytes = self.limits
        return (
            len(self.ops) >= max_ops
            or sum(o["size"] for o in self.ops) >= max_bytes
            or (bool(self.ops) and self.clock.now >= self.ops[0]["at"] + max_delay)
        )

    def drain(self, limit: int | None) -> list[dict[str, Any]]:
        taken = []
        while self.ops and (limit is None or len(taken) < limit):
            keys = list(dict.fromkeys(o["key"] for o in self.ops))
            best = max(keys, key=lambda k: max(o["priority"] for o in self.ops if o["key"] == k))
            while (limit is None or len(taken) < limit) and best in (o["key"] for o in self.ops):
                index = next(i for i, o in enumerate(self.ops) if o["key"] == best)
                taken.append(self.ops.pop(index))
        return taken

    def restore(self, items: list[dict[str, Any]]) -> None:
        for item in reversed(items):
            if self.ops:
                item["at"] = min(item["at"], self.ops[0]["at"])
            self.ops.insert(0, item)


KEYS = st.sampled_from(["a", "b", "c", 1, -1, -2, 2**61 - 1, 0, None, ("t",)])


class BatchMachine(RuleBasedStateMachine):
    """Compiled, pure and model in lockstep."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(10.0)
        self.both = [
            Twin(compiled=compiled).raw.BatchBuffer(
                12,
                4.0,
                max_bytes=60,
                merge=lambda old, new: old + new if new.startswith("m") else None,
                timer=self.clock,
            )
            for compiled in (True, False)
        ]
        self.model = Model(self.clock, 12, 4.0, 60)
        self.out: list[tuple[list[Any], list[dict[str, Any]]]] = []

    def same(self, call: Any) -> Any:
        compiled, pure = (call(b) for b in self.both)
        assert compiled == pure
        return compiled

    @rule(key=KEYS, merge=st.booleans(), size=st.integers(0, 9), priority=st.integers(-1, 2))
    def add(self, key: Any, merge: bool, size: int, priority: int) -> None:
        op = f"{'m' if merge else 's'}{self.model.clock.now:g}/{size}"
        due = self.same(lambda b: b.add(key, op, size=size, priority=priority))
        assert due is self.model.add(key, op, size, priority)

    @rule(limit=st.one_of(st.none(), st.integers(0, 6)))
    def drain(self, limit: int | None) -> None:
        results = [b.drain(limit) for b in self.both]
        expected = self.model.drain(limit)
        for items in results:
            assert items == [(o["key"], o["op"]) for o in expected]
            assert [i.size for i in items] == [o["size"] for o in expected]
            assert [i.priority for i in items] == [o["priority"] for o in expected]
            assert [i.added_at for i in items] == [o["at"] for o in expected]
        if expected:
            self.out.append((results, expected))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def restore(self, data: Any) -> None:
        results, expected = self.out.pop()
        start = data.draw(st.integers(0, len(expected)))
        for b, items in zip(self.both, results, strict=True):
            b.restore(items[start:])
        self.model.restore(expected[start:])

    @rule(key=KEYS, op=st.integers(0, 3))
    def restore_plain(self, key: Any, op: int) -> None:
        self.same(lambda b: b.restore([(key, f"p{op}"), ("a", "p")]))
        oldest = self.model.ops[0]["at"] if self.model.ops else self.clock.now
        self.model.restore(
            [
                {"key": k, "op": o, "size": 0, "priority": 0, "at": oldest}
                for k, o in ((key, f"p{op}"), ("a", "p"))
            ]
        )

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def clear(self) -> None:
        self.same(lambda b: b.clear())
        self.model.ops.clear()
        self.out.clear()

    @rule(key=KEYS)
    def look(self, key: Any) -> None:
        expected = [o["op"] for o in self.model.ops if o["key"] == key]
        assert self.same(lambda b: b.pending(key)) == expected
        assert self.same(lambda b: key in b) is bool(expected)

    @invariant()
    def agree(self) -> None:
        stats = self.same(lambda b: b.stats())
        assert stats.pending == len(self.model.ops) == self.same(len)
        assert stats.bytes == sum(o["size"] for o in self.model.ops)
        assert stats.keys == len({o["key"] for o in self.model.ops})
        assert self.same(lambda b: b.due()) is self.model.due()
        deadline = self.same(lambda b: b.deadline())
        by_age = self.model.ops[0]["at"] + 4.0 if self.model.ops else None
        if by_age is not None and self.model.due():
            by_age = min(by_age, self.clock.now)
        assert deadline == by_age
        for b in self.both:
            b._check()


@pytest.mark.compiled_only
class TestLockstep(BatchMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=150, stateful_step_count=70, deadline=None)


def test_nothing_leaks(engine: Twin, isolated: Callable[..., str]) -> None:
    isolated("batch_leaks.py", engine.name, pure=not engine.compiled, timeout=100)
