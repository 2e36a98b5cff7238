"""What has crashed, hung or leaked in caches of Python packages, each case in its own process.

One row, one script, both twins, at most six seconds. A script asserts what must hold, ends with
`_check()` of each structure and prints how often its evil code ran: a row whose evil never
happens fails. The rows of a hazard are named after it. Deeper tests of the same rules are in
test_reentrancy.py, test_threads.py and test_hostile.py.
"""

from __future__ import annotations

import os

import pytest

from evil import run_script
from support import Twin

POLICIES = """
    import contextlib, weakref
    ran = 0  # how often the evil code of this row has run

    def caches(maxsize=4, ttl=None, **options):
        for policy in ("adaptive", "lru"):
            made = Cache(maxsize, ttl, policy=policy, **options)
            made["x"] = "old"
            yield made
            made._check()
            assert len(made) <= made.maxsize

    class Key:  # all have one hash
        def __init__(self, name, act=None):
            self.name, self.act = name, act
        def __hash__(self):
            return 7
        def __eq__(self, other):
            for key in (self, other):
                act = getattr(key, "act", None)
                if act is not None:
                    key.act = None
                    act()
                    key.act = act
            return isinstance(other, Key) and self.name == other.name
"""

IN_EQ = """
    for name, operation in evil.KEY_OPERATIONS.items():
        for same in (True, False):
            for cache in caches():
                cache[Key("held")] = 1
                def act():
                    global ran
                    ran += 1
                    {action}
                with contextlib.suppress(KeyError):
                    try:
                        operation(cache, Key("held" if same else "other", act))
                    except RuntimeError as error:
                        assert str(error) == "cache changed during key comparison", error
                cache._check()
"""

RAISES = """
    class Unkind(Exception):
        pass
    def raises():
        global ran
        ran += 1
        raise Unkind
    class Unhashable:
        def __hash__(self):
            raises()
    for name, operation in evil.KEY_OPERATIONS.items():
        for cache in caches(8):
            cache[Key("held")] = cache["y"] = 1
            before = cache.get_many(["x", "y"]), len(cache)
            try:
                operation(cache, {key})
            except Unkind:
                pass
            else:
                raise AssertionError(name + " swallows it")
            after = cache.get_many(["x", "y"]), len(cache)
            assert name == "set_many" or before == after, (name, before, after)
            cache._check()
"""

IN_DEL = """
    gc.collect()
    gc.freeze()  # for speed: only what is made from here on is collected
    class Value:
        def __init__(self, cache):
            self.cache = cache
        def __del__(self):
            global ran
            ran += 1
            cache = self.cache
            {action}
            cache._check()
    for maxsize in (1, 2, 8):
        for cache in caches(maxsize, 60):
            for operation in [*evil.WHOLE_OPERATIONS.values(), *(
                lambda c, do=do: do(c, "k") for do in evil.KEY_OPERATIONS.values()
            )]:
                for key in ("k", "l", "m"):
                    cache[key] = Value(cache)
                with contextlib.suppress(KeyError):
                    operation(cache)
                cache._check()
            cache.clear()
    gc.collect()
"""

IN_LISTENER = """
    import time
    {prepare}
    def told(key, value, cause):
        global ran
        ran += 1
        if ran % 3 == 0:  # or it would call itself for ever
            {action}
    for maxsize in (1, 2, 8):
        for policy in ("adaptive", "lru"):
            cache = Cache(maxsize, 60, policy=policy, on_removal=told)
            for round in range(3):
                for operation in evil.WHOLE_OPERATIONS.values():
                    for key in range(3):
                        cache[key] = round
                    with contextlib.suppress(KeyError):
                        operation(cache)
                    cache._check()
                for name, operation in evil.KEY_OPERATIONS.items():
                    cache["k"] = cache["l"] = 1
                    with contextlib.suppress(KeyError):
                        operation(cache, "k")
                    cache._check()
            assert len(cache) <= cache.maxsize
"""

HAZARDS: dict[str, str] = {
    "eq clears": IN_EQ.format(action="cache.clear()"),
    "eq sets": IN_EQ.format(action='cache.set_many({i: i for i in range(9)}); cache["x"] = ran'),
    "eq pops and sets itself": IN_EQ.format(
        action='cache.pop(Key("held"), None); cache[Key("held")] = 2'
    ),
    "eq resizes": IN_EQ.format(action="cache.resize(1 + ran % 9)"),
    "eq raises": RAISES.format(key='Key("held", raises)'),
    "hash raises": RAISES.format(key="Unhashable()"),
    "hash changes": """
        class Fickle:
            def __hash__(self):
                global ran
                ran += 1
                return ran % 5
            def __eq__(self, other):
                return self is other
        for cache in caches():
            key = Fickle()
            for i in range(300):
                cache[key] = i
                cache.pop(key, None)
                cache.get_many([key, key])
                cache._check()
            cache.evict(4)
            cache.clear()
            assert len(cache) == 0
    """,
    "key dies while compared": IN_EQ.format(
        action='cache.pop(Key("held"), None); cache.evict(9); gc.collect(0)'
    ),
    "del reads": IN_DEL.format(action='cache.get("k"), "k" in cache, cache.items(), len(cache)'),
    "del sets": IN_DEL.format(action='cache.set("k", bytes(64)); cache.set_many({1: 1, "l": 2})'),
    "del deletes": IN_DEL.format(action='cache.pop("k", None); cache.delete_many(["l", "m", "x"])'),
    "del clears": IN_DEL.format(action="cache.clear()"),
    "del collects": IN_DEL.format(action="gc.collect()"),
    "listener re-enters": IN_LISTENER.format(
        prepare="", action='cache.pop(key, None); cache["new"] = value; cache.resize(maxsize)'
    ),
    "listener raises": IN_LISTENER.format(
        prepare="heard = []\n    sys.unraisablehook = heard.append", action="raise ValueError(key)"
    )
    + """
    assert len(heard) == ran // 3, (len(heard), ran)
    assert all(entry.exc_type is ValueError for entry in heard)
    """,
    "listener releases the lock": """
        import threading, time
        def told(key, value, cause):
            global ran
            ran += 1
            time.sleep(0)
        for policy in ("adaptive", "lru"):
            cache = Cache(3, 60, policy=policy, on_removal=told)
            def work(number):
                for i in range(300):
                    cache[i % 7, number] = i
                    cache.pop((i % 5, number), None)
            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            cache._check()
    """,
    "weigher re-enters": """
        def weigher(key, value):
            global ran
            ran += 1
            if busy:
                return 1
            busy.append(1)
            actions[ran % len(actions)]()
            busy.clear()
            return 1 + ran % 3
        for policy in ("adaptive", "lru"):
            busy = [1]
            cache = Cache(8, policy=policy, max_weight=9, weigher=weigher)
            actions = list(evil.actions(cache, "k").values())
            busy.clear()
            for i in range(200):
                cache[i % 12] = i
                cache.set_many({"x": 1, "k": 2, i: 3})
                cache.setdefault(("d", i), 1)
                cache._check()
                assert cache.weight <= 9
    """,
    "weigher raises": """
        def weigher(key, value):
            global ran
            ran += 1
            if value == "bad":
                raise ZeroDivisionError
            return 1
        for cache in caches(max_weight=4, weigher=weigher):
            before = cache.items(), cache.weight
            for write in (
                lambda: cache.set("x", "bad"), lambda: cache.set("new", "bad", 5),
                lambda: cache.set_many({"a": 1, "x": "bad"}), lambda: cache.setdefault("n", "bad"),
            ):
                try:
                    write()
                except ZeroDivisionError:
                    pass
                else:
                    raise AssertionError
                assert (cache.items(), cache.weight) == before
    """,
    "comparison of caches with an evil eq": """
        class Value:
            def __eq__(self, other):
                global ran
                ran += 1
                actions[ran % len(actions)]()
                return True
            __hash__ = None
        for one in caches():
            for two in caches():
                for target in (one, two):
                    actions = list(evil.actions(target, "x").values())
                    for _ in actions:
                        one["x"], two["x"] = Value(), Value()
                        for compare in (lambda: one == two, lambda: one != two,
                                        lambda: one == {"x": Value()}):
                            with contextlib.suppress(RuntimeError):
                                compare()
                            one._check(), two._check()
    """,
    "single flight after a loader raised": """
        import asyncio
        class Down(Exception):
            pass
        @engine.cached(8)
        async def load(key):
            global ran
            ran += 1
            await asyncio.sleep(0)
            if ran == 1:
                raise Down
            return key
        @engine.cached(8)
        def read(key):
            global ran
            ran += 1
            if ran % 2:
                raise Down
            return key
        async def main():
            first = await asyncio.gather(*(load(1) for _ in range(5)), return_exceptions=True)
            assert all(type(error) is Down for error in first), first
            second = asyncio.gather(*(load(1) for _ in range(5)))
            assert await asyncio.wait_for(second, 2) == [1] * 5
            leader = asyncio.create_task(load(2))
            await asyncio.sleep(0)
            waiter = asyncio.create_task(load(2))
            await asyncio.sleep(0)
            leader.cancel()
            assert await asyncio.wait_for(waiter, 2) == 2
        asyncio.run(main())
        for _ in range(4):
            try:
                assert read("k") == "k"
            except Down:
                pass
        load.cache._check(), read.cache._check()
    """,
    "recursion on one key": """
        import asyncio
        @engine.cached(8)
        def again(key):
            global ran
            ran += 1
            return again(key) if ran < 5 else key
        assert again(1) == 1
        @engine.cached(8)
        async def later(key):
            global ran
            ran += 1
            return await later(key) if ran < 20 else key
        async def main():
            try:
                assert await asyncio.wait_for(later(1), 2) == 1
            except (RuntimeError, RecursionError):
                pass  # an error is as good an answer; a deadlock is none
            try:
                await asyncio.wait_for(later(2), 2)
            except (RuntimeError, RecursionError):
                pass
        asyncio.run(main())
        again.cache._check(), later.cache._check()
    """,
    "cycles through the cache": """
        class Node:
            pass
        refs = []
        for _ in range(20):
            for cache in caches(8, 60, on_removal=print):
                node = Node()
                node.cache = cache
                cache[node] = cache["node"] = node
                cache["me"] = cache
                refs += [weakref.ref(cache), weakref.ref(node)]
        @engine.cached(8)
        def f(x):
            return x
        f(f)
        refs.append(weakref.ref(f))
        del cache, node, f
        gc.collect()
        ran = sum(ref() is None for ref in refs)
        assert ran == len(refs) == 81, (ran, len(refs))
    """,
    "references of popitem and of a dropped cache": """
        key, value = Key("counted"), object()
        before = sys.getrefcount(key), sys.getrefcount(value)
        for cache in caches(16):
            for _ in range(50):
                ran += 1
                cache.clear()
                cache[key] = value
                pair = cache.popitem()
                assert pair == (key, value) and sys.getrefcount(pair) == 2
                del pair
                cache[key] = value
                assert cache.pop(key) is value
            cache[key] = value
            cache.get(key), cache.items(), cache.get_many([key])
        del cache
        gc.collect()
        assert (sys.getrefcount(key), sys.getrefcount(value)) == before
    """,
    "four threads and a slow eq": """
        import random, threading, time
        sys.setswitchinterval(1e-6)
        class Slow:
            def __init__(self, number): self.number = number
            def __hash__(self): return self.number % 5
            def __eq__(self, other):
                global ran
                ran += 1
                time.sleep(0)
                return isinstance(other, Slow) and self.number == other.number
        errors = []
        def work(number):
            rng = random.Random(number)
            try:
                while time.monotonic() < end:
                    key, choice = Slow(rng.randrange(12)), rng.randrange(9)
                    if choice < 3: cache[key] = number
                    elif choice < 5: cache.get(key)
                    elif choice == 5: cache.pop(key, None)
                    elif choice == 6: cache.set_many({key: 1, Slow(3): 2})
                    elif choice == 7: cache.get_many([key, Slow(3)])
                    else: cache.delete_many([key]), cache.expire(), cache.touch(key)
            except Exception as error:
                errors.append(error)
        for cache in caches(8, 0.05):
            end = time.monotonic() + 0.5
            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            names = [k.number for k in cache.keys() if k != "x"]
            assert len(set(names)) == len(names), names
        # A key whose every comparison meets a change may give up, aloud.
        assert all(str(e) == "cache changed during key comparison" for e in errors), errors
        assert ran > 100
    """,
    "iteration while mutated": """
        changes = {
            "set": lambda c: c.set("new", 1), "pop": lambda c: c.pop("x"),
            "clear": lambda c: c.clear(), "resize": lambda c: c.resize(1),
            "evict": lambda c: c.evict(1), "set_many": lambda c: c.set_many({"new": 1}),
        }
        for name, change in changes.items():
            for cache in caches(8):
                cache["y"] = 1
                iterator = iter(cache)
                next(iterator)
                change(cache)
                try:
                    next(iterator)
                except RuntimeError as error:
                    assert str(error) == "cache changed size during iteration", error
                    ran += 1
                else:
                    raise AssertionError(name)
                if "x" in cache:
                    for key in cache:  # a new value is no change of size
                        cache[key] = 2
        assert ran == 12, ran
    """,
    "collection inside every operation": """
        gc.collect()
        gc.set_threshold(1, 1, 1)
        def again(phase, info):
            global ran
            ran += 1
            if ran % 5 == 0 and not checking:
                cache[ran % 9] = [ran]
                cache.pop(ran % 7, None)
        checking = []
        for cache in caches(4, 60):
            gc.callbacks.append(again)
            for i in range(60):
                for name, operation in evil.KEY_OPERATIONS.items():
                    with contextlib.suppress(KeyError):
                        operation(cache, (i % 6, [i] and "k"))
                for name, operation in evil.WHOLE_OPERATIONS.items():
                    cache["k"] = [i]
                    try:
                        operation(cache)
                    except KeyError:
                        pass
                    except RuntimeError as error:
                        assert name == "iter", error
                checking.append(1)
                cache._check()
                checking.clear()
            gc.callbacks.clear()
    """,
    "clock that goes back and jumps": """
        import math, random
        rng, clock = random.Random(2), FakeClock(1e6)
        for cache in caches(20, 3.0, timer=clock):
            for i in range(3000):
                ran += 1
                clock.now = max(0.0, clock.now + rng.choice([0.1, 1, -0.25, -5, 600, 4e4, -4e4]))
                if i % 500 == 0:
                    clock.now += 5e8  # beyond what the ticks of one epoch hold
                cache.set(i % 50, i, rng.choice([None, 0.02, 1, 700.0, 1e6]))
                cache.get(rng.randrange(50)), cache.touch(rng.randrange(50), 2)
                if i % 20 == 0:
                    cache.expire(5), cache._check()
    """,
    "numbers out of range": """
        for make in (
            lambda: Cache(0), lambda: Cache(-1), lambda: Cache(2**31), lambda: Cache(2**70),
            lambda: Cache(8, float("nan")), lambda: Cache(8, 0), lambda: Cache(8, -1),
            lambda: Cache(8, 1e300), lambda: Cache(8, max_weight=-1, weigher=max),
            lambda: Cache(8, max_weight=2**80, weigher=max), lambda: Cache("8"), lambda: Cache(2.5),
        ):
            try:
                make()
            except (ValueError, TypeError, OverflowError):
                ran += 1
            else:
                raise AssertionError(ran)
        assert ran == 12
        for cache in caches():
            for bad in (0, -1, float("nan"), "1", -float("inf"), 1e300):
                for write in (lambda: cache.set("x", 1, bad), lambda: cache.touch("x", bad),
                              lambda: cache.set_many({"x": 1}, bad)):
                    try:
                        write()
                    except (ValueError, TypeError):
                        ran += 1
                    else:
                        raise AssertionError(bad)
            assert cache.peek("x") == "old"
    """,
    "str and int subclasses with an eq of their own": """
        def lying(base):
            class Lying(base):
                __hash__ = base.__hash__
                def __eq__(self, other):
                    global ran
                    ran += 1
                    return False
            return Lying
        for cache in caches(16):
            for base, value in ((str, "x"), (int, 7), (bytes, b"x"), (tuple, (1,))):
                one, two = lying(base)(value), lying(base)(value)
                cache[base(value)], cache[one], cache[two] = 1, 2, 3
                assert cache[one] == 2 and cache[two] == 3 and cache[base(value)] in (1, 3)
                assert cache.get_many([one, two]) == [2, 3]
    """,
    "values nested deeply": """
        for cache in caches(4):
            nested = None
            for _ in range(100_000):
                nested = [nested]
            cache["deep"] = nested
            del nested
            cache.get("deep")
            cache["deep"] = 1
            inner = cache
            for _ in range(5000):
                outer = Cache(2)
                outer["inner"] = inner
                inner = outer
            del inner, outer
            ran += 1
    """,
    "a fork while a thread works": """
        import os, threading, time
        for cache in caches(8, 60):
            stop = threading.Event()
            def work():
                i = 0
                while not stop.is_set():
                    cache[i % 20] = [i]
                    i += 1
            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(0.02)
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any such fork
            child = os.fork()
            if child == 0:
                try:
                    if engine.compiled:  # elsewhere a store may be under way
                        cache._check()
                    cache["child"] = 1
                    assert cache["child"] == 1
                    assert len(cache.items()) <= 8
                except BaseException:
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            stop.set()
            thread.join()
            ran += 1
    """,
    "copies and pickles are refused": """
        import copy, pickle
        for cache in caches():
            for make in (copy.copy, copy.deepcopy, pickle.dumps):
                try:
                    make(cache)
                except TypeError:
                    ran += 1
        assert ran == 6
    """,
    "the end of the process": """
        import atexit
        class Value:
            def __init__(self, cache): self.cache = cache
            def __del__(self):
                self.cache["again"] = 1
                self.cache.clear()
        for cache in caches(8, 60):
            for key in "abcd":
                cache[key] = Value(cache)
            atexit.register(cache.set, "late", Value(cache))
            globals()["kept", len(globals())] = cache
            ran += 1
    """,
    "a batch buffer under an evil eq": """
        for action in ("buffer.drain()", "buffer.add(Key('o'), 2)", "buffer.restore([(1, 2)])"):
            for do in ("buffer.add(key, 3)", "buffer.pending(key)", "key in buffer",
                       "buffer.restore([(key, 1), ('a', 2)])"):
                for same in ("held", "other"):
                    buffer = engine.BatchBuffer()
                    buffer.add(Key("held"), 1)
                    def act():
                        global ran
                        ran += 1
                        eval(action)
                    key = Key(same, act)
                    try:
                        eval(do)
                    except RuntimeError as error:
                        assert "changed again and again" in str(error), error
                    key.act = None
                    buffer._check()
    """,
    "a connection table under an evil eq": """
        for action in ("table.clear()", "table.add(Key('o', None), user=Key('u'))",
                       "table.remove(Key('held'))", "table.resize(500)"):
            for do in ("table.add(key)", "table.get(key)", "table.remove(key)", "key in table",
                       "table.count(user=key)", "table.update_activity(key)"):
                for same in ("held", "other"):
                    table = engine.ConnectionTable(100)
                    table.add(Key("held"), user=Key("held"))
                    def act():
                        global ran
                        ran += 1
                        with contextlib.suppress(ValueError, KeyError):
                            eval(action)
                    key = Key(same, act)
                    try:
                        eval(do)
                    except (ValueError, KeyError):
                        pass
                    except RuntimeError as error:
                        assert "comparison" in str(error), error
                    key.act = None
                    table._check()
    """,
}
"""What goes wrong elsewhere, and a script in which it must not."""

NEEDS_FORK = {"a fork while a thread works"}


def script(code: str) -> str:
    """Put `code` between the names that all rows share and the count of its evil."""
    parts = (POLICIES, code, "\n    assert ran > 0\n    print(ran)\n")
    return "".join(_indented(part) for part in parts)


def _indented(code: str) -> str:
    lines = code.strip("\n").splitlines()
    least = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "".join(f"    {line[least:]}\n" for line in lines)


@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazard(engine: Twin, hazard: str) -> None:
    if hazard in NEEDS_FORK and not hasattr(os, "fork"):
        pytest.skip("another operating system: no fork")
    out = run_script(engine, script(HAZARDS[hazard]), timeout=6.0)
    assert int(out) > 0


def test_a_crash_a_hang_and_a_silent_row_are_found(engine: Twin) -> None:
    for code, why in (
        ("ran = 1; import os; os.abort()", "exit code -?[1-9]"),
        ("import time; time.sleep(60)", "hung for 2.0 s"),
        ("while True: pass", "hung"),  # busy, where the system counts that
        ("pass", "exit code 1"),
    ):
        with pytest.raises(AssertionError, match=why):
            run_script(engine, script(code), timeout=1.0, waiting=2.0 if "sleep" in code else 20.0)
