"""Tools for tests of the engine's modules: failing allocations, leaking operations."""

from __future__ import annotations

import contextlib
import gc
import sys
import tracemalloc
from collections.abc import Callable


def every_allocation_fails(body: Callable[[], object], check: Callable[[], object]) -> int:
    """Run `body` with its first allocation failing, then its second, ..., until none fails.

    After each run, `check`. Returns how many runs failed. One thread only: the hooks concern the
    whole process.
    """
    import _testcapi

    allocation = failed = 0
    done = False
    while not done:
        assert allocation < 5000, "the body never runs to its end"
        with contextlib.suppress(MemoryError):
            _testcapi.set_nomemory(allocation, allocation + 1)
            try:
                body()
                done = True
            finally:
                _testcapi.remove_mem_hooks()
        failed += not done
        check()
        allocation += 1
    return failed


def references() -> int:
    """Return the total of all reference counts; 0 where the interpreter does not keep it.

    A debug CPython does: there it shows a lost reference to an object that lives on. Those to the
    types of Cython's runtime are left out: Cython 3.3 forgets one to its coroutine types with each
    coroutine, which costs no memory.
    """
    if not hasattr(sys, "gettotalrefcount"):
        return 0
    types = [t for t in object.__subclasses__() if t.__module__.startswith("_cython_")]
    return sys.gettotalrefcount() - sum(map(sys.getrefcount, types))


def leaking(operations: list[Callable[[], object]]) -> list[str]:
    """Run each operation 100 times over and again; return a line for each that leaks.

    Counted are the interpreter's memory blocks, the bytes of everything that is traced, which
    includes what the compiled engine takes from PyMem_RawMalloc, and `references`.
    """
    found = []
    for operation in operations:

        def measure(operation: Callable[[], object] = operation) -> tuple[int, int, int]:
            for _ in range(100):
                operation()
            gc.collect()
            return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0], references()

        tracemalloc.start(1)
        measure()
        before = measure()
        grown: list[tuple[int, ...]] = []
        # One object, reference or 16 bytes lost each time show in every round; free lists do not.
        limits = (60, 1500, 60)
        for _ in range(10):  # what warms up by and by is given time to
            now = measure()
            grown.append(tuple(a - b for a, b in zip(now, before, strict=True)))
            before = now
            if not any(rise > most for rise, most in zip(grown[-1], limits, strict=True)):
                break
        else:
            found.append(f"{operation.__name__}: grew by (blocks, bytes, references) {grown}")
        tracemalloc.stop()
    return found
