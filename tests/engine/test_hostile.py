"""Code that runs at the worst of all moments; `Cache` has a file of its own for most of it.

The destructor of a key that was just compared, a collection in the middle of a sweep, a timer that
finds the object which is being made, arguments whose types lie. Crashes are expected of a broken
engine, so most of it runs in processes of its own.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any

import pytest

from beastcore._types import BatchItem
from evil import run_script
from support import FakeClock, Twin

KEYS = """
    class Key:  # all have one hash
        def __init__(self, in_eq=None, in_del=None):
            self.in_eq, self.in_del = in_eq, in_del
        def __hash__(self):
            return 7
        def __eq__(self, other):
            action, self.in_eq = self.in_eq, None
            if action is not None:
                action()
            return False
        def __del__(self):
            action, self.in_del = self.in_del, None
            if action is not None:
                action()
"""


class Lying(tuple[Any, ...]):
    """A tuple that says it has two items."""

    __slots__ = ()

    def __len__(self) -> int:
        return 2


class Agreeable(int):
    """An int that never is too small or too large."""

    def __lt__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return False


class GivesAgreeable:
    """Converts to an `Agreeable`, which `__index__` should not return."""

    def __index__(self) -> int:
        return Agreeable(-1)


class TestTheLastReferenceToAComparedKey:
    """The search holds it while it compares; the destructor must not run after the search."""

    def test_of_a_batch_buffer(self, engine: Twin) -> None:
        out = run_script(
            engine,
            KEYS
            + """
    buffer = engine.BatchBuffer()
    wanted = Key()
    def in_eq():
        buffer.drain()  # now only the search holds the stored key
        buffer.add(wanted, "inner")
    buffer.add(Key(in_eq, buffer.drain), "old")
    buffer.add(wanted, "mine")
    buffer._check()
    print([(key is wanted, op) for key, op in buffer.drain()])
    """,
        )
        assert out == "[(True, 'mine')]\n"

    @pytest.mark.parametrize(
        "call",
        ["table.update_activity(wanted)", "table.remove(wanted)", "table.get(wanted)"],
    )
    def test_of_a_connection_table(self, engine: Twin, call: str) -> None:
        out = run_script(
            engine,
            KEYS
            + f"""
    table = engine.ConnectionTable()
    wanted = Key()
    def in_eq():
        table.clear()  # now only the search holds the stored key
        table.add(wanted)
    table.add(Key(in_eq, table.clear))
    print({call}, len(table))
    table._check()
    """,
        )
        assert out in {"False 0\n", "None 0\n"}

    @pytest.mark.parametrize(
        "call", ["table.get(Key())", "table.count(user=Key())", "table.remove(Key())"]
    )
    def test_a_table_emptied_and_filled_by_a_comparison(self, engine: Twin, call: str) -> None:
        run_script(
            engine,
            KEYS
            + f"""
    table = engine.ConnectionTable()
    def in_eq():
        table.clear()
        for i in range(2000):
            table.add(i, user=i)
        table.add(Key(), user=Key())
    table.add(Key(in_eq), user=Key(in_eq))
    assert not {call}
    table._check()
    """,
        )


class TestACollectionInTheMiddle:
    """Where allocating starts the collector (CPython 3.11), its callbacks change the table."""

    def test_pinged_during_a_sweep(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10_000, 1.0, grace=10.0, timer=clock)
        handles = [t.add(i) for i in range(2000)]
        clock.advance(5.0)
        calls = []

        def ping(phase: str, info: dict[str, int]) -> None:
            if not calls:
                calls.append(phase)
                clock.advance(1.0)
                t.mark_pinged(handles)

        threshold = gc.get_threshold()
        gc.collect()
        gc.callbacks.append(ping)
        gc.set_threshold(50)
        try:
            report = t.sweep()
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(ping)
        assert {stage for _, _, stage in report} <= {t.SUSPECT}
        assert len(t) == 2000
        assert t.stats().expired == 0

    def test_cleared_while_a_handle_is_made(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            for threshold in range(1, 300):
                table = engine.ConnectionTable(1000)
                for i in range(300):
                    table.add(i)
                calls = []
                def clear(phase, info):
                    if not calls:
                        calls.append(1)
                        table.clear()
                gc.collect()
                gc.callbacks.append(clear)
                gc.set_threshold(threshold)
                handles = []
                for i in range(300):
                    handles.append(table.get(i))
                gc.set_threshold(700)
                gc.callbacks.remove(clear)
                for handle in handles:
                    assert handle is None or handle.alive == (handle.conn_id in table)
                table._check()
            """,
            timeout=20.0,
        )


@pytest.mark.compiled_only
def test_pinged_by_another_thread_while_a_sweep_scans(engine: Twin) -> None:
    """A sweep of so many slots gives up the lock: pings may be later than the sweep's time."""
    slots = 70_000
    t = engine.ConnectionTable(slots, 0.01, grace=600.0, late_after=600.0)
    handles = [t.add(i) for i in range(slots)]
    end = time.monotonic() + 1.5

    def ping() -> None:
        while time.monotonic() < end:
            t.mark_pinged(handles)
            t.touch_many(handles[::7])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        other = threading.Thread(target=ping)
        other.start()
        while time.monotonic() < end:
            t.sweep(5000)
        other.join()
    finally:
        sys.setswitchinterval(interval)
    assert (len(t), t.stats().expired) == (slots, 0)


class TestAnObjectInTheMaking:
    """Code that the constructor runs finds the object through the collector, and uses it."""

    @pytest.mark.compiled_only
    @pytest.mark.parametrize("name", ["Cache", "BatchBuffer", "ConnectionTable"])
    def test_is_used_by_the_timer(self, engine: Twin, name: str) -> None:
        out = run_script(
            engine,
            f"""
            import contextlib
            made = engine.{name}

            def use(thing):
                tries = [
                    lambda: thing.get(1), lambda: 1 in thing, lambda: thing.items(),
                    lambda: thing.set(1, 2, 5.0), lambda: thing.add(3, 4), lambda: thing.drain(),
                    lambda: list(thing), lambda: thing.stats(), lambda: thing.pending(1),
                    lambda: thing.sweep(), lambda: thing.evict(0), lambda: thing.remove(1),
                    lambda: thing.count(user=1), lambda: thing.idlest(3), lambda: repr(thing),
                    lambda: thing.restore([(1, 2)]), lambda: thing.clear(),
                    lambda: thing.resize(5), lambda: thing.set(6, 7, 8.0), lambda: thing._check(),
                ]
                for attempt in tries:
                    with contextlib.suppress(Exception):
                        attempt()

            class Number:
                def __init__(self, value):
                    self.value = value
                def __index__(self):
                    found()
                    return self.value
                def __float__(self):
                    found()
                    return float(self.value)

            seen, busy = [], []
            def found():
                if busy:  # a timer that uses the object is called by that again
                    return
                busy.append(True)
                things = [thing for thing in gc.get_objects() if type(thing) is made]
                seen.extend(map(repr, things))
                for thing in things:
                    use(thing)
                busy.clear()

            def timer():
                if not ready:
                    found()
                return 1000.0

            ready = []
            thing = made(Number(10), Number(5), timer=timer)
            ready.append(True)
            assert len(seen) >= 3, seen
            thing._check()
            use(thing)
            thing._check()
            print(thing.timer is timer)
            """,
        )
        assert out == "True\n"


class TestBareObjects:
    """What `__new__` makes without `__init__`, and what is initialised twice."""

    @pytest.mark.compiled_only
    def test_the_time_of_a_table_made_by_a_busy_timer(self, engine: Twin) -> None:
        out = run_script(
            engine,
            """
            import time
            made = engine.ConnectionTable
            now, found = [1e6], []
            def timer():
                for thing in gc.get_objects():
                    if type(thing) is made and not found:
                        found.append(1)
                        time.sleep(0.05)
                        thing.stats(), thing.sweep()
                return now[0]
            table = made(10, 30.0, timer=timer)
            assert found
            conn = table.add("a")
            now[0] += 12.5
            print(conn.idle)
            """,
        )
        assert out == "12.5\n"

    @pytest.mark.compiled_only
    def test_of_the_memoizer(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            memo = engine.module("memo")
            bare = memo.Call.__new__(memo.Call)
            for make in (
                lambda: memo.answer_later(bare), lambda: memo.answer_later(None),
                lambda: memo.run_and_keep(bare, 1), lambda: memo.run_and_keep(None, 1),
            ):
                try:
                    make().send(None)
                except TypeError:
                    continue
                raise AssertionError("accepted")
            method = memo.CachedMethod.__new__(memo.CachedMethod)
            for use in (lambda: method(1), method.cache_info, method.cache_clear):
                try:
                    use()
                except TypeError:
                    pass
            repr(method), hash(method), method == method
            key = memo.Key.__new__(memo.Key)
            repr(key), hash(key), key == memo.Key.__new__(memo.Key)
            """,
        )

    @pytest.mark.compiled_only
    def test_a_method_bound_again_by_its_own_key_function(self, engine: Twin) -> None:
        out = run_script(
            engine,
            """
            def key(self, value):
                try:
                    method.__init__(Thing.method, None)
                except TypeError as error:
                    print(error)
                return value

            class Thing:
                def __init__(self):
                    self.content = [1, 2, 3]
                @engine.cached(key=key)
                def method(self, value):
                    return self.content

            method = Thing().method
            print(method(1))
            """,
        )
        assert out == "a CachedMethod cannot be bound to another instance\n[1, 2, 3]\n"


class TestTypesThatLie:
    def test_a_pair_of_one(self, engine: Twin) -> None:
        b = engine.BatchBuffer()
        with pytest.raises(TypeError, match=r"restore item 1 must be a \(key, op\) pair"):
            b.restore([("a", 1), Lying(("b",))])
        assert (len(b), b.pending("a"), b.pending("b")) == (0, [], [])

    @pytest.mark.parametrize("name", ["size", "priority"])
    @pytest.mark.filterwarnings("ignore:__index__ returned non-int:DeprecationWarning")
    def test_a_number_that_is_never_too_small(self, engine: Twin, name: str) -> None:
        b = engine.BatchBuffer()
        item = BatchItem(("a", 1))
        setattr(item, name, GivesAgreeable())
        if name == "size":
            with pytest.raises(ValueError, match="size must be zero or positive, got -1"):
                b.restore([("b", 1), item])
            assert (len(b), b.pending("b")) == (0, [])
        else:
            b.restore([item])
            assert b.drain()[0].priority == -1

    def test_an_index_that_is_no_int(self, engine: Twin) -> None:
        class Odd:
            def __index__(self) -> Any:
                return float("2.5")

        with pytest.raises(TypeError, match="__index__ returned non-int"):
            engine.Cache(Odd())

    @pytest.mark.parametrize("name", ["Cache", "BatchBuffer", "ConnectionTable"])
    def test_a_timer_that_tells_the_number_of_atoms(self, engine: Twin, name: str) -> None:
        with pytest.raises(ValueError, match=r"timer\(\) must return seconds as a float, got 1000"):
            getattr(engine, name)(10, timer=lambda: 10**400)

    def test_an_argument_that_adds_connections(self, engine: Twin) -> None:
        t = engine.ConnectionTable(10)

        class Busy:
            def __index__(self) -> int:
                for conn_id in "abc":
                    t.add(conn_id)
                return 2

        with pytest.raises(ValueError, match="max_connections must be at least 3"):
            t.resize(Busy())
        assert (t.max_connections, len(t)) == (10, 3)

    def test_a_bucket_beyond_all(self, engine: Twin) -> None:
        out = run_script(
            engine,
            """
            class LongInt(int):  # lies about its bits, and agrees to whatever it is compared with
                __hash__ = int.__hash__
                def bit_length(self):
                    return 200_000
                def __eq__(self, other):
                    return True
                def __ne__(self, other):
                    return False
                __le__ = __ge__ = __eq__
                __lt__ = __gt__ = __ne__

            content = {
                "layout": "log-linear-128", "unit": "ns", "count": 1,
                "sum": LongInt(5), "min": LongInt(5), "max": LongInt(5),
                "buckets": [[LongInt(5), 1]],
            }
            try:
                engine.LatencyHistogram.from_dict(content)
            except (ValueError, IndexError) as error:
                print("refused")
            """,
        )
        assert out == "refused\n"

    def test_the_shortest_timeout_is_no_default(self, engine: Twin, clock: FakeClock) -> None:
        t = engine.ConnectionTable(10, 30.0, grace=1e-9, timer=clock)
        t.set_class_timeout(1, 1e-9)
        t.add("a", class_id=1)
        assert t.sweep() == []
        clock.advance(0.001)
        ((_, conn, stage),) = t.sweep()
        assert stage == t.SUSPECT  # a grace of no time at all would be EXPIRED
        t.mark_pinged([conn])
        clock.advance(0.001)
        assert [stage for _, _, stage in t.sweep()] == [t.EXPIRED]


def test_popitem_shows_no_pair_before_it_is_filled(engine: Twin) -> None:
    """Code that reads an item of such a tuple, found through `gc`, would end the process."""
    looking = False
    empty: list[int] = []

    def timer() -> float:
        if looking:
            made = [o for o in gc.get_objects() if type(o) is tuple and len(o) == 2]
            empty.extend(1 for pair in made if not gc.get_referents(pair))
        return 0.0

    cache = engine.Cache(5, 3, timer=timer)
    cache["k"] = "v"
    looking = True
    pair = cache.popitem()
    assert pair == ("k", "v")
    assert empty == []
