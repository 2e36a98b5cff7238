"""Tools for tests of the engine's modules: failing allocations."""

from __future__ import annotations

import contextlib
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
