"""Keys, values and scripts that do what they should not, for the tests of re-entrancy."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent

KEY_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "get": lambda c, k: c.get(k),
    "getitem": lambda c, k: c[k],
    "peek": lambda c, k: c.peek(k),
    "in": lambda c, k: k in c,
    "set": lambda c, k: c.set(k, "new"),
    "set ttl": lambda c, k: c.set(k, "new", 60),
    "setitem": lambda c, k: c.__setitem__(k, "new"),
    "del": lambda c, k: c.__delitem__(k),
    "pop": lambda c, k: c.pop(k),
    "pop default": lambda c, k: c.pop(k, None),
    "setdefault": lambda c, k: c.setdefault(k, "new"),
    "touch": lambda c, k: c.touch(k, 30),
    "expires_in": lambda c, k: c.expires_in(k),
    "frequency": lambda c, k: c.frequency(k),
    "get_many": lambda c, k: c.get_many(["x", k, "y", k]),
    "set_many": lambda c, k: c.set_many([("x", 1), (k, 2), ("y", 3)]),
    "delete_many": lambda c, k: c.delete_many(["x", k, "y", k]),
}
"""Every operation that looks for a key."""


def dump_and_load(cache: Any) -> None:
    """Write a cache to a file and read it back, which runs encoders and decoders of the caller."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dump")
        cache.dump(path, key_encoder=lambda k: repr(k).encode(), value_encoder=lambda v: b"")
        cache.load(path, key_decoder=bytes, value_decoder=bytes)


WHOLE_OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "popitem": lambda c: c.popitem(),
    "expire": lambda c: c.expire(),
    "expire limit": lambda c: c.expire(2),
    "evict": lambda c: c.evict(2),
    "resize": lambda c: (c.resize(1), c.resize(8)),
    "clear": lambda c: c.clear(),
    "keys": lambda c: c.keys(),
    "values": lambda c: c.values(),
    "items": lambda c: c.items(),
    "iter": list,
    "eq": lambda c: c == {1: 2},
    "stats": lambda c: c.stats(),
    "repr": repr,
    "reset_stats": lambda c: c.reset_stats(),
    "dump and load": dump_and_load,
}
"""Every other operation."""


class EvilKey:
    """A key whose `__eq__` first runs `action`; all have the same hash."""

    def __init__(self, name: Any, action: Callable[[], Any] | None = None) -> None:
        self.name = name
        self.action = action

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, EvilKey) and self.name == other.name
        for key in (self, other):
            action = getattr(key, "action", None)
            if action is not None:
                action()
        return same

    def __repr__(self) -> str:
        return f"EvilKey({self.name!r})"


def actions(cache: Any, stored: Any) -> dict[str, Callable[[], Any]]:
    """Return what evil code may do to `cache`, which holds the key `stored`, by name."""
    counter = iter(range(10**9))

    def again() -> None:
        cache.pop(stored, None)
        cache[stored] = "again"

    def pop_the_oldest() -> None:
        with contextlib.suppress(KeyError):  # all may have expired
            cache.popitem()

    return {
        "clear": cache.clear,
        "clear and fill": lambda: (cache.clear(), cache.set_many({i: i for i in range(20)})),
        "insert": lambda: cache.set(("other", next(counter)), 1),
        "insert many": lambda: cache.set_many({("o", i): next(counter) for i in range(20)}),
        "overwrite": lambda: cache.set("x", next(counter)),
        "pop": lambda: cache.pop("x", None),
        "pop the oldest": pop_the_oldest,
        "evict all": lambda: cache.evict(99),
        "remove and insert": again,
        "resize": lambda: (cache.resize(1), cache.resize(8)),
        "grow": lambda: cache.resize(min(5000, cache.maxsize * 2)),
        "look": lambda: (cache.get("x"), cache.items(), list(cache), cache.stats(), repr(cache)),
    }


def run_script(
    engine: Any, code: str, *, timeout: float = 6.0, waiting: float | None = None
) -> str:
    """Run `code` in its own process, where `Cache` is the engine's; return what it printed.

    A crash, a hang, an exit code other than 0 or a line on stderr fails the test. What hangs has
    used more than `timeout` seconds of a processor, where the system counts them: a busy machine
    does not shorten these. Or it has taken `waiting` seconds (ten times as many), used or not.
    """
    head = f"""
        import contextlib, gc, math, sys
        with contextlib.suppress(ImportError):  # of Unix alone
            import resource
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil({timeout}), hard))
        sys.path.insert(0, {str(TESTS)!r})
        from support import FakeClock, Twin
        import evil
        engine = Twin(compiled={engine.compiled}, tracked=False)
        Cache = engine.Cache
    """
    environ = {key: value for key, value in os.environ.items() if key != "BEASTCORE_PURE"}
    if not engine.compiled:
        environ["BEASTCORE_PURE"] = "1"
    environ["PYTHONFAULTHANDLER"] = "1"
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=10 * timeout if waiting is None else waiting,
            env=environ,
            check=False,
        )
    except subprocess.TimeoutExpired as hung:
        raise AssertionError(
            f"hung for {hung.timeout} s: {hung.stdout!r} {hung.stderr!r}"
        ) from None
    if done.returncode == -getattr(signal, "SIGXCPU", 0) != 0:
        raise AssertionError(f"hung, busy for {timeout} s: {done.stdout!r} {done.stderr!r}")
    if done.returncode != 0 or done.stderr:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
