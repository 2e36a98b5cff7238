"""Code that comes back into a `Cache` while it works: keys, values, callbacks, the collector.

Each test names the rule that it holds the engine to. What could hang or crash the interpreter
runs in its own process with a limit of some seconds.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import UserDict
from typing import Any

import pytest

from beastcore import RemovalCause
from evil import KEY_OPERATIONS, WHOLE_OPERATIONS, EvilKey, actions, run_script
from support import FakeClock, Twin

CHANGED = "cache changed during key comparison"
ACTION_NAMES = list(actions(UserDict(), None))


class TestKeysThatCompareBadly:
    """No Python code runs while the structure is inconsistent; a probe starts again, 64 times."""

    @pytest.mark.parametrize("action", ACTION_NAMES)
    @pytest.mark.parametrize("often", ["once", "always"])
    def test_eq_changes_the_cache(self, engine: Twin, action: str, often: str) -> None:
        run_script(
            engine,
            f"""
            def once(f):
                calls = []
                def run():
                    if not calls:
                        calls.append(1)
                        return f()
                return run

            def guarded(f):  # not from inside itself
                busy = []
                def run():
                    if not busy:
                        busy.append(1)
                        try:
                            return f()
                        finally:
                            busy.clear()
                return run

            for maxsize in (2, 3, 8):
                for ttl in (None, 50.0):
                    for same in (True, False):
                        for name, operation in evil.KEY_OPERATIONS.items():
                            cache = Cache(maxsize, ttl)
                            cache["x"] = 1
                            stored = evil.EvilKey("stored")
                            other = evil.EvilKey("other")
                            cache[stored] = 2
                            if maxsize > 2:
                                cache[other] = 3
                            action = evil.actions(cache, stored)[{action!r}]
                            wanted = evil.EvilKey("stored" if same else "absent")
                            wrap = once if {often!r} == "once" else guarded
                            wanted.action = wrap(action)
                            try:
                                operation(cache, wanted)
                            except KeyError:
                                pass
                            except RuntimeError as error:
                                assert str(error) == {CHANGED!r}, error
                            wanted.action = None
                            cache._check()
                            assert len(cache) <= cache.maxsize
                            cache.set_many({{i: i for i in range(10)}})
                            cache._check()
            """,
        )

    def test_eq_that_changes_the_chain_for_ever(self, engine: Twin) -> None:
        for name, operation in KEY_OPERATIONS.items():
            cache = engine.Cache(8)
            cache[EvilKey("stored")] = 1
            compared = 0

            def renew(cache: Any = cache) -> None:
                nonlocal compared
                compared += 1
                cache.clear()
                cache[EvilKey("stored")] = 1

            with pytest.raises(RuntimeError) as caught:
                operation(cache, EvilKey("stored", renew))
            assert str(caught.value) == CHANGED, name
            assert compared == 65, name
            assert len(cache) == 1

    def test_eq_that_changes_the_chain_sometimes(self, engine: Twin) -> None:
        cache = engine.Cache(8)
        cache[EvilKey("stored")] = 1
        compared = 0

        def renew() -> None:
            nonlocal compared
            compared += 1
            if compared <= 60:
                cache.clear()
                cache[EvilKey("stored")] = compared

        assert cache[EvilKey("stored", renew)] == 60
        assert compared == 61

    def test_eq_that_removes_its_own_key(self, engine: Twin) -> None:
        cache = engine.Cache(8)
        cache[EvilKey("gone")] = object()
        assert cache.get(EvilKey("gone", cache.clear), "absent") == "absent"
        cache[EvilKey("gone")] = object()
        cache[EvilKey("gone", cache.clear)] = "new"
        assert cache.values() == ["new"]

    def test_eq_that_inserts_the_key_being_set(self, engine: Twin) -> None:
        cache = engine.Cache(8)
        cache[EvilKey("other")] = 1
        inner = EvilKey("wanted")
        outer = EvilKey("wanted")

        def insert() -> None:
            outer.action = None
            cache[inner] = "inner"

        outer.action = insert
        cache[outer] = "outer"
        assert len(cache) == 2
        assert cache[inner] == "outer"
        assert cache.keys()[1] is inner

    @pytest.mark.parametrize("name", KEY_OPERATIONS)
    def test_errors_of_eq_propagate_and_change_nothing(self, engine: Twin, name: str) -> None:
        def fail() -> None:
            raise ZeroDivisionError("compare")

        cache = engine.Cache(3)
        stored = EvilKey("stored")
        cache["x"], cache[stored], cache["y"] = 1, 2, 3
        before = cache.items(), cache.stats()
        wanted = EvilKey("stored", fail)
        with pytest.raises(ZeroDivisionError, match="compare"):
            if name == "set_many":  # what precedes the failing key is stored
                cache.set_many([(wanted, 1), ("x", 9)])
            else:
                KEY_OPERATIONS[name](cache, wanted)
        assert (cache.items(), cache.stats()) == before

    @pytest.mark.parametrize("name", KEY_OPERATIONS)
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyError, TypeError, KeyboardInterrupt])
    def test_errors_of_hash_propagate_and_change_nothing(
        self, engine: Twin, name: str, error: type[BaseException]
    ) -> None:
        class Unhashable:
            def __hash__(self) -> int:
                raise error("hash")

        cache = engine.Cache(3)
        cache["x"], cache["y"] = 1, 2
        before = cache.items(), cache.stats()
        with pytest.raises(error, match="hash"):
            KEY_OPERATIONS[name](cache, Unhashable())
        assert (cache.items(), cache.stats()) == before

    def test_the_truth_of_eq_may_fail(self, engine: Twin) -> None:
        class Undecided:
            def __hash__(self) -> int:
                return 1

            def __eq__(self, other: object) -> Any:
                class Answer:
                    def __bool__(self) -> bool:
                        raise ZeroDivisionError

                return Answer()

        cache = engine.Cache(3)
        cache[Undecided()] = 1
        with pytest.raises(ZeroDivisionError):
            cache.get(Undecided())

    def test_hash_that_changes(self, engine: Twin) -> None:
        class Fickle:
            def __init__(self) -> None:
                self.hash = 0

            def __hash__(self) -> int:
                return self.hash

        cache = engine.Cache(8)
        keys = [Fickle() for _ in range(8)]
        for n, key in enumerate(keys):
            cache[key] = n
        for n, key in enumerate(keys):
            key.hash = 1000 + n
        for key in keys:
            assert cache.get(key) is None
        cache[keys[0]] = "again"
        cache._check()
        assert len(cache) == 8
        cache.resize(5000)
        cache.resize(3)
        cache._check()
        cache.clear()
        assert len(cache) == 0

    def test_hash_that_is_random(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            import random
            rng = random.Random(1)
            class Key:
                def __hash__(self): return rng.randrange(4)
                def __eq__(self, other): return rng.random() < 0.3
            cache = Cache(6, 50.0)
            names = list(evil.KEY_OPERATIONS)
            for step in range(3000):
                try:
                    evil.KEY_OPERATIONS[rng.choice(names)](cache, Key())
                except KeyError:
                    pass
                if step % 50 == 0:
                    cache._check()
            cache._check()
            """,
        )

    def test_hash_that_changes_the_cache(self, engine: Twin) -> None:
        cache = engine.Cache(4)

        class Key:
            def __hash__(self) -> int:
                cache.clear()
                cache["x"] = 1
                return 7

        for name, operation in KEY_OPERATIONS.items():
            try:
                operation(cache, Key())
            except KeyError:
                assert name in {"getitem", "del", "pop", "expires_in"}
            cache._check()

    @pytest.mark.compiled_only
    def test_plain_keys_are_compared_without_python_code(self, engine: Twin) -> None:
        class Counting(str):
            __slots__ = ()
            calls = 0

            def __eq__(self, other: object) -> bool:
                Counting.calls += 1
                return str.__eq__(self, other)

            __hash__ = str.__hash__

        events: list[Any] = []
        cache = engine.Cache(100)
        keys: list[Any] = ["abc", b"xyz", 12345678901, -1, -2, "\u20ac"]
        for key in keys:
            cache[key] = 1
        copies = ["ab" + chr(99), bytes([120, 121, 122]), int("12345678901"), -1, -2, chr(0x20AC)]
        sys.setprofile(lambda frame, event, arg: events.append((event, arg)))
        try:
            for key in copies:
                cache.get(key)
        finally:
            sys.setprofile(None)
        assert cache.stats().hits == len(keys)
        assert {event for event, _ in events} <= {"c_call", "c_return"}
        cache.get(Counting("abc"))
        assert Counting.calls == 1  # a subclass is asked


class TestComparingCaches:
    def test_values_that_change_the_caches(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            a, b = Cache(4), Cache(4)
            class Evil:
                def __eq__(self, other):
                    a.clear(); b[len(b)] = 1; a.resize(9); b.evict(1)
                    return True
                __hash__ = None
            for i in range(4):
                a[i], b[i] = Evil(), Evil()
            assert a == b
            a._check(); b._check()
            """,
        )

    def test_caches_in_each_other(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            a, b = Cache(4), Cache(4)
            a["x"], b["x"] = b, a
            try:
                a == b
            except RecursionError:
                pass
            a._check()
            a.clear()
            """,
        )


class TestValuesThatDieBadly:
    """References are released last: `__del__` finds a consistent structure."""

    @pytest.mark.parametrize("capacity", [1, 2, 8])
    @pytest.mark.parametrize("ttl", [None, 0.02])
    def test_del_that_comes_back(self, engine: Twin, capacity: int, ttl: float | None) -> None:
        run_script(
            engine,
            f"""
            import random, time
            rng = random.Random({capacity})
            ticks = [0.0]
            cache = Cache({capacity}, {ttl}, timer=lambda: ticks[0])
            stash = []
            depth = [0]
            died = [0]

            class Evil:
                def __init__(self, key): self.key = key
                def __del__(self):
                    died[0] += 1
                    if depth[0] > 3:
                        return
                    depth[0] += 1
                    try:
                        action = rng.randrange(9)
                        if action == 0: cache[self.key] = bytes(64)
                        elif action == 1: stash.append(cache.get(self.key)); stash[:-3] = []
                        elif action == 2: cache.pop(self.key, None)
                        elif action == 3: cache.clear()
                        elif action == 4: cache[rng.randrange(20)] = Evil(rng.randrange(20))
                        elif action == 5: gc.collect(0)
                        elif action == 6: cache.resize(rng.choice([1, 2, 8, 40]))
                        elif action == 7: cache.evict(1)
                        else: cache.items(), list(cache), cache.expire()
                    finally:
                        depth[0] -= 1

            def random_set():
                cache[rng.randrange(20)] = Evil(rng.randrange(20))
            names = list(evil.KEY_OPERATIONS)
            wholes = list(evil.WHOLE_OPERATIONS)
            for step in range(3000):
                ticks[0] += 0.001
                kind = rng.random()
                try:
                    if kind < 0.6:
                        random_set()
                    elif kind < 0.9:
                        evil.KEY_OPERATIONS[rng.choice(names)](cache, rng.randrange(20))
                    else:
                        evil.WHOLE_OPERATIONS[rng.choice(wholes)](cache)
                except KeyError:
                    pass
                cache._check()
                assert len(cache) <= cache.maxsize
            assert died[0] > 500
            """,
            timeout=20,
        )

    def test_keys_that_come_back(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            cache = Cache(4)
            class Key:
                def __init__(self, n): self.n = n
                def __hash__(self): return self.n
                def __eq__(self, other): return self is other
                def __del__(self): cache.get(self.n); cache[self.n, 1] = 1; cache.pop((0, 1), 0)
            for n in range(500):
                cache[Key(n)] = n
                cache._check()
            cache.clear()
            cache._check()
            """,
        )

    @pytest.mark.lifetime
    def test_the_new_value_is_there_when_the_old_dies(self, engine: Twin) -> None:
        seen = []

        class Old:
            def __del__(self) -> None:
                seen.append((cache["k"], cache.stats().sets, len(cache)))

        cache = engine.Cache(4)
        cache["k"] = Old()
        cache["k"] = "new"
        assert seen == [("new", 2, 1)]
        cache["k"] = Old()
        cache.set_many({"k": "newer"})
        assert seen[1][0] == "newer"

    @pytest.mark.lifetime
    @pytest.mark.parametrize(
        "remove",
        [
            lambda c: c.__delitem__("k"),
            lambda c: c.pop("k"),
            lambda c: c.popitem(),
            lambda c: c.delete_many(["k"]),
            lambda c: c.clear(),
            lambda c: c.evict(1),
            lambda c: c.resize(1),
            lambda c: (c.resize(2), c.set("z", 1)),
        ],
    )
    def test_the_entry_is_gone_when_its_value_dies(self, engine: Twin, remove: Any) -> None:
        seen = []

        class Value:
            def __del__(self) -> None:
                seen.append(("k" in cache, len(cache)))
                cache._check()

        cache = engine.Cache(4, policy="lru")
        cache["k"] = Value()
        cache["l"] = 1
        remove(cache)
        assert [found for found, _ in seen] == [False]

    def test_deeply_nested_values(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            for wrap in (lambda v: [v], lambda v: (v,), lambda v: {"v": v}):
                cache = Cache(4)
                value = None
                for _ in range(100_000):
                    value = wrap(value)
                cache["k"] = value
                del value
                cache["k"] = None
                cache.clear()
            """,
            timeout=20,
        )

    def test_deeply_nested_caches(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            inner = None
            for _ in range(100_000 if engine.compiled else 20_000):
                outer = Cache(1)
                outer["k"] = inner
                inner = outer
            del outer
            del inner
            gc.collect()
            print("ok")
            """,
            timeout=30,
        )


class TestCallbacks:
    """`on_removal` runs after the operation; it may come back; what it raises goes to the hook."""

    @pytest.fixture
    def unraisable(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        caught: list[Any] = []
        monkeypatch.setattr(
            sys, "unraisablehook", lambda args: caught.append((args.exc_value, args.object))
        )
        return caught

    @pytest.mark.parametrize(
        "error", [ZeroDivisionError("x"), KeyboardInterrupt("x"), SystemExit(3), StopIteration()]
    )
    def test_what_it_raises_goes_to_the_hook(
        self, engine: Twin, unraisable: list[Any], error: BaseException
    ) -> None:
        def callback(key: Any, value: Any, cause: RemovalCause) -> None:
            raise error

        cache = engine.Cache(2, policy="lru", on_removal=callback)
        for i in range(4):
            cache[i] = i
        assert cache.items() == [(2, 2), (3, 3)]
        assert unraisable == [(error, callback), (error, callback)]
        assert all(obj is callback for _, obj in unraisable)
        assert cache.pop(2) == 2
        cache.clear()
        assert len(unraisable) == 4

    def test_the_wrong_number_of_arguments(self, engine: Twin, unraisable: list[Any]) -> None:
        cache = engine.Cache(1, on_removal=lambda key: None)
        cache[1] = 1
        cache[2] = 2
        assert cache.keys() == [2]
        assert type(unraisable[0][0]) is TypeError

    def test_the_default_hook_writes_a_traceback(self, engine: Twin) -> None:
        code = """
        import contextlib, io
        def callback(*args): raise ZeroDivisionError("told")
        cache = Cache(1, on_removal=callback)
        cache[1] = 1
        out = io.StringIO()
        with contextlib.redirect_stderr(out):
            cache[2] = 2
        text = out.getvalue()
        assert "Exception ignored in" in text and "<function callback" in text, text
        assert "ZeroDivisionError: told" in text and "Traceback" in text, text
        assert cache.items() == [(2, 2)]
        """
        run_script(engine, code)

    @pytest.mark.parametrize("action", ACTION_NAMES)
    def test_that_comes_back(self, engine: Twin, action: str) -> None:
        run_script(
            engine,
            f"""
            for capacity in (1, 2, 3, 8):
                budget = 0
                def callback(key, value, cause):
                    global budget
                    cache._check()
                    if budget > 0:
                        budget -= 1
                        act()
                        cache._check()
                ticks = [0.0]
                cache = Cache(capacity, timer=lambda: ticks[0], on_removal=callback)
                act = evil.actions(cache, 3)[{action!r}]
                for round in range(3):
                    for name, operation in evil.KEY_OPERATIONS.items():
                        for key in (3, 4, "x"):
                            cache.set(key, name, 1 if round % 2 else None)
                            ticks[0] += round
                            budget = 5
                            try:
                                operation(cache, key)
                            except KeyError:
                                pass
                            cache._check()
                    for operation in evil.WHOLE_OPERATIONS.values():
                        cache.set_many({{i: i for i in range(9)}})
                        budget = 5
                        try:
                            operation(cache)
                        except KeyError:
                            pass
                        cache._check()
            """,
            timeout=90,
        )

    @pytest.mark.parametrize("key", ["lambda i: i", "str", "lambda i: (i, 0.5)"])
    def test_recursion_is_bounded(self, engine: Twin, key: str) -> None:
        run_script(
            engine,
            f"""
            name = {key}  # some keys need no room on the stack to be compared
            errors = []
            sys.unraisablehook = errors.append  # in C: there is no stack left for Python
            count = 0
            def callback(key, value, cause):
                global count
                count += 1
                cache[name(count)] = 1
            cache = Cache(1, policy="lru", on_removal=callback)
            cache[name(0)] = 1
            cache[name(-1)] = 1
            assert RecursionError in [e.exc_type for e in errors], errors
            assert 10 < count < 100_000, count
            cache._check()
            assert len(cache) == 1
            cache[0] = 1
            cache._check()
            """,
        )

    MANY = pytest.mark.parametrize(
        ("name", "do", "left"),
        [
            ("get_many", lambda c: c.get_many([0, 1, 2]), 2),
            ("set_many", lambda c: c.set_many({0: "n", 1: "n", 2: "n"}), 5),
            ("delete_many", lambda c: c.delete_many([0, 1, 2]), 2),
            ("expire", lambda c: c.expire(), 2),
            ("evict", lambda c: c.evict(3), 2),
            ("resize", lambda c: c.resize(2), 2),
            ("clear", lambda c: c.clear(), 0),
            ("popitem", lambda c: c.popitem(), 1),
        ],
    )

    @MANY
    def test_runs_after_the_whole_operation(
        self, engine: Twin, clock: FakeClock, name: str, do: Any, left: int
    ) -> None:
        seen: list[Any] = []

        def callback(key: Any, value: Any, cause: RemovalCause) -> None:
            seen.append((key, len(cache)))

        cache = engine.Cache(9, timer=clock, on_removal=callback)
        for i in range(3):
            cache.set(i, i, 1)
        cache["a"] = cache["b"] = 1
        clock.advance(2)
        do(cache)
        keys = [0, 1, 2]
        keys += {"clear": ["a", "b"], "popitem": ["a"]}.get(name, [])
        assert seen == [(key, left) for key in keys]

    def test_a_failing_operation_still_tells_what_left(
        self, engine: Twin, clock: FakeClock
    ) -> None:
        seen: list[Any] = []
        cache = engine.Cache(9, timer=clock, on_removal=lambda *a: seen.append(a))
        cache.set("k", 1, 1)
        clock.advance(2)
        with pytest.raises(KeyError):
            cache["k"]
        assert seen == [("k", 1, RemovalCause.EXPIRED)]
        cache[1] = "one"

        def fail() -> None:
            raise ZeroDivisionError

        cache[EvilKey("k")] = 1
        with pytest.raises(ZeroDivisionError):
            cache.set_many([(1, "two"), (EvilKey("k", fail), 1)])
        assert seen[1:] == [(1, "one", RemovalCause.REPLACED)]

    def test_values_survive_until_they_were_told(self, engine: Twin) -> None:
        class Value:
            pass

        told: list[Any] = []
        cache = engine.Cache(1, on_removal=lambda k, v, c: told.append(v))
        for _ in range(3):
            cache["k"] = Value()
        cache.clear()
        assert [type(v) for v in told] == [Value] * 3


class TestTheTimerComesBack:
    @pytest.mark.parametrize("action", ACTION_NAMES)
    def test_timer_that_changes_the_cache(self, engine: Twin, action: str) -> None:
        run_script(
            engine,
            f"""
            for maxsize in (1, 2, 8):
                busy = [True]
                def timer():
                    if not busy:
                        busy.append(1)
                        try:
                            act()
                        finally:
                            busy.clear()
                    return 5.0
                cache = Cache(maxsize, 10.0, timer=timer)
                act = evil.actions(cache, "k")[{action!r}]
                for name, operation in evil.KEY_OPERATIONS.items():
                    for key in ("x", "k", "absent"):
                        busy[:] = [1]
                        cache["x"] = cache["k"] = 1
                        busy.clear()
                        try:
                            operation(cache, key)
                        except KeyError:
                            pass
                        busy[:] = [1]
                        cache._check()
                for name, operation in evil.WHOLE_OPERATIONS.items():
                    busy[:] = [1]
                    cache["x"] = cache["k"] = 1
                    busy.clear()
                    try:
                        operation(cache)
                    except KeyError:
                        pass
                    except RuntimeError as error:
                        assert str(error) == "cache changed size during iteration", error
                    busy[:] = [1]
                    cache._check()
            """,
        )

    def test_timer_that_gives_the_entry_endless_life(self, engine: Twin) -> None:
        now, acting = 0.0, False

        def timer() -> float:
            nonlocal acting
            if acting:
                acting = False
                cache.set("k", "endless", None)
            return now

        cache = engine.Cache(4, timer=timer)
        for do in (cache.get, cache.peek, lambda k: cache.get_many([k])[0], cache.setdefault):
            cache.set("k", "short", 5)
            acting = True
            assert do("k") in {"endless", "short"}
            assert cache.peek("k") == "endless"
            assert cache.expires_in("k") is None


class TestTheCollector:
    """The collector sees the whole arena, may run inside any operation, and frees cycles."""

    def test_runs_inside_every_operation(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            import random
            rng = random.Random(5)
            ticks = [0.0]
            cache = Cache(8, 3.0, timer=lambda: ticks[0])

            class Garbage:
                def __init__(self): self.me = self
                def __del__(self):
                    action = rng.randrange(6)
                    if action == 0: cache.pop(rng.randrange(12), None)
                    elif action == 1: cache.clear()
                    elif action == 2: cache[rng.randrange(12)] = [1]
                    elif action == 3: cache.evict(2)
                    elif action == 4: cache.resize(rng.choice([2, 8, 30]))
                    else: cache.get(rng.randrange(12))

            gc.collect()
            gc.set_threshold(1, 1, 1)
            for step in range(4000):
                ticks[0] += 0.01
                Garbage()
                choice = rng.random()
                try:
                    if choice < 0.5:
                        cache[rng.randrange(12)] = [step]
                        cache.set_many([(rng.randrange(12), [1]) for _ in range(12)])
                    elif choice < 0.8:
                        name = rng.choice(list(evil.KEY_OPERATIONS))
                        evil.KEY_OPERATIONS[name](cache, rng.randrange(12))
                    else:
                        name = rng.choice(list(evil.WHOLE_OPERATIONS))
                        evil.WHOLE_OPERATIONS[name](cache)
                except KeyError:
                    pass
                except RuntimeError as error:
                    assert str(error) == "cache changed size during iteration", error
                cache._check()
            """,
            timeout=30,
        )

    def test_snapshots_while_destructors_remove(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            cache = Cache(200)
            class Garbage:
                def __init__(self): self.me = self
                def __del__(self):
                    if len(cache): cache.popitem()
                    for i in range(3): Garbage
            gc.collect()
            gc.set_threshold(7, 1, 1)
            for round in range(200):
                for i in range(200):
                    cache[i, round] = [i]
                for _ in range(5):
                    Garbage()
                for pair in cache.items():
                    assert len(pair) == 2 and pair[1] == [pair[0][0]], pair
                cache.keys(); cache.values()
            cache._check()
            """,
            timeout=30,
        )

    def test_callbacks_of_the_collector(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            cache = Cache(4)
            def callback(phase, info):
                cache[phase] = info
                cache.pop("stop", None)
                cache.items()
            gc.callbacks.append(callback)
            gc.set_threshold(1, 1, 1)
            for i in range(2000):
                cache[i % 6] = [i]
                cache.get_many([1, 2, 3])
                cache.items()
            gc.callbacks.clear()
            cache._check()
            """,
            timeout=20,
        )

    @pytest.mark.parametrize("where", ["key", "value", "both"])
    def test_cycles_are_collected(self, engine: Twin, where: str) -> None:
        class Node:
            def __init__(self, cache: Any) -> None:
                self.cache = cache

        gc.collect()
        refs = []
        for _ in range(20):
            cache = engine.raw.Cache(4, 100)
            node = Node(cache)
            if where != "value":
                cache[node] = 1
            if where != "key":
                cache["node"] = node
            cache["plain"] = 1
            refs += [weakref.ref(cache), weakref.ref(node)]
            del cache, node
        gc.collect()
        assert [ref() for ref in refs] == [None] * 40

    def test_a_cache_in_itself_is_collected(self, engine: Twin) -> None:
        gc.collect()
        refs = []
        for _ in range(20):
            cache = engine.raw.Cache(4)
            cache["me"] = cache
            refs.append(weakref.ref(cache))
            del cache
        assert gc.collect() >= 20
        assert all(ref() is None for ref in refs)

    @pytest.mark.parametrize("hook", ["weigher", "timer", "on_removal"])
    def test_cycles_through_the_hooks_are_collected(self, engine: Twin, hook: str) -> None:
        class Owner:
            def __init__(self) -> None:
                kwargs: dict[str, Any] = {hook: self.act}
                if hook == "weigher":
                    kwargs["max_weight"] = 10
                self.cache = engine.raw.Cache(4, 10, **kwargs)
                self.cache["a"] = 1

            def act(self, *args: Any) -> Any:
                return 1

        gc.collect()
        owner = Owner()
        refs = [weakref.ref(owner), weakref.ref(owner.cache)]
        del owner
        gc.collect()
        assert [ref() for ref in refs] == [None, None]

    def test_a_cycle_through_an_iterator_is_collected(self, engine: Twin) -> None:
        gc.collect()
        cache = engine.raw.Cache(4)
        iterator = iter(cache)
        cache["i"] = iterator
        ref = weakref.ref(cache)
        del cache, iterator
        gc.collect()
        assert ref() is None

    def test_is_tracked_and_traversed(self, engine: Twin) -> None:
        cache = engine.raw.Cache(4)

        class Key:
            pass

        key, value = Key(), [1]
        cache[key] = value
        assert gc.is_tracked(cache)
        seen: set[int] = set()
        todo: list[Any] = [cache]
        for _ in range(5):  # the twin keeps them some objects deep
            todo = [r for r in gc.get_referents(*todo) if id(r) not in seen]
            seen |= {id(r) for r in todo}
        assert id(key) in seen
        assert id(value) in seen

    def test_dies_at_once_without_the_collector(self, engine: Twin) -> None:
        class Value:
            pass

        gc.disable()
        try:
            cache = engine.raw.Cache(4, 10)
            value = Value()
            cache["v"] = value
            refs = [weakref.ref(cache), weakref.ref(value)]
            del value
            cache.get("v")
            cache["w"] = 1
            del cache
            assert [ref() for ref in refs] == [None, None]
        finally:
            gc.enable()

    def test_destructors_find_an_empty_cache_when_a_cycle_is_broken(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            seen = []
            class Node:
                def __init__(self, cache): self.cache = cache
                def __del__(self):
                    self.cache._check()
                    seen.append(self.cache.get("x"))
                    self.cache["y"] = 1
                    self.cache._check()
            for _ in range(20):
                cache = Cache(4, 10)
                cache["node"] = Node(cache)
                del cache
            gc.collect()
            assert len(seen) == 20
            """,
        )


class TestSignals:
    @pytest.mark.skipif(sys.platform == "win32", reason="another operating system: no setitimer")
    def test_an_exception_out_of_nowhere(self, engine: Twin) -> None:
        run_script(
            engine,
            """
            import random, signal, time
            class Tick(Exception): pass
            def handler(signum, frame): raise Tick
            rng = random.Random(3)
            cache = Cache(50, 5.0, max_weight=500, weigher=lambda k, v: 1 + k % 9)
            signal.signal(signal.SIGALRM, handler)
            ends = time.monotonic() + 2.5
            interrupted = 0
            while time.monotonic() < ends:
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 4e-4))
                        for _ in range(30):
                            cache[rng.randrange(90)] = 1
                            cache.get(rng.randrange(90))
                            cache.pop(rng.randrange(90), None)
                        cache.set_many([(i, 1) for i in range(90)])
                        cache.get_many(range(90))
                        cache.delete_many(range(0, 90, 7))
                        cache.items()
                        cache.evict(3)
                        cache.clear()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Tick:
                    interrupted += 1
                cache._check()
            assert interrupted > 100, interrupted
            """,
            timeout=20,
        )


class TestInterpreters:
    def test_subinterpreter_works_or_refuses(self, engine: Twin) -> None:
        run_script(
            engine,
            f"""
            import _testcapi
            code = '''
            import sys
            sys.path[:] = {{path!r}}
            try:
                from support import Twin
                Cache = Twin(compiled={engine.compiled}).Cache
            except ImportError:
                pass
            else:
                c = Cache(2, policy="lru")
                for i in range(9):
                    c[i] = [i]
                assert c.keys() == [7, 8]
                c._check()
            '''.format(path=sys.path)
            import textwrap
            for _ in range(3):
                assert _testcapi.run_in_subinterp(textwrap.dedent(code)) == 0
            c = Cache(2)
            c[1] = 1
            c._check()
            """,
            timeout=20,
        )


def test_every_operation_is_covered(engine: Twin) -> None:
    cache = engine.raw.Cache(9)
    names = " ".join([*KEY_OPERATIONS, *WHOLE_OPERATIONS])
    for name in dir(cache):
        if not name.startswith("_") and callable(getattr(cache, name)):
            assert name in names, name
