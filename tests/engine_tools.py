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


def leaking(operations: list[Callable[[], object]]) -> list[str]:
    """Run each operation 100 times over and again; return a line for each that leaks.

    Counted are the interpreter's memory blocks, and the bytes of everything that is traced, which
    includes what the compiled engine takes from PyMem_RawMalloc.
    """
    found = []
    for operation in operations:

        def measure(operation: Callable[[], object] = operation) -> tuple[int, int]:
            for _ in range(100):
                operation()
            gc.collect()
            return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]

        tracemalloc.start(1)
        measure()
        blocks, traced = measure()
        grown: list[tuple[int, int]] = []
        # A leak of one object or of 16 bytes a time shows in every round; free lists do not.
        while len(grown) < 5 and (not grown or grown[-1][0] > 60 or grown[-1][1] > 1500):
            now, now_traced = measure()
            grown.append((now - blocks, now_traced - traced))
            blocks, traced = now, now_traced
        tracemalloc.stop()
        if len(grown) == 5:
            found.append(f"{operation.__name__}: grew by (blocks, bytes) {grown}")
    return found
