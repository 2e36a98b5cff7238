"""Use an installed wheel as its first user would; any failure ends with a traceback.

A plain script on the standard library, so that it runs in an empty environment:
`python -I smoke.py`. With a path as argument, beastcore and beastmode must not come from there.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import pathlib
import sys
import tempfile


class Clock:
    """A timer that the script moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def engine() -> None:
    """Use each part of the engine once."""
    import beastcore

    assert beastcore.compiled
    clock = Clock()
    removed: list[object] = []
    told = removed.append
    cache = beastcore.Cache(2, 10.0, policy="lru", timer=clock, on_removal=lambda *args: told(args))
    cache["a"] = 1
    cache.set_many({"b": 2, "c": 3})
    assert "a" not in cache
    assert removed == [("a", 1, beastcore.RemovalCause.SIZE)]
    assert cache.get_many(["a", "b", "c"], 0) == [0, 2, 3]
    clock.now = 11.0
    assert cache.get("b") is None
    assert cache.stats().hits == 2
    assert str(inspect.signature(cache.get)) == "(key, default=None, /)"

    buffer = beastcore.BatchBuffer(2, 1.0, timer=clock)
    assert buffer.add("k", 1) is False
    assert buffer.add("k", 2) is True
    assert buffer.drain() == [("k", 1), ("k", 2)]

    table = beastcore.ConnectionTable(10, 30.0, timer=clock)
    conn = table.add("user-1")
    assert conn.alive
    assert table.update_activity("user-1")
    clock.now = 100.0
    assert [found[0] for found in table.sweep()] == ["user-1"]

    histogram = beastcore.LatencyHistogram()
    histogram.record(1_000_000)
    assert histogram.count == 1

    calls = []

    @beastcore.cached(maxsize=8)
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    assert (double(4), double(4), calls) == (8, 8, [4])


def packages(forbidden: pathlib.Path | None) -> None:
    """Check what was imported and from where."""
    import beastcore
    import beastmode

    assert importlib.metadata.version("beastcore") == beastcore.__version__
    assert not [r for r in importlib.metadata.requires("beastcore") or [] if "extra ==" not in r]
    for module in (beastcore, beastmode):
        file = pathlib.Path(module.__file__).resolve()
        assert forbidden is None or not file.is_relative_to(forbidden), f"{file} is the checkout's"
        assert (file.parent / "py.typed").exists()
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, f"{module.__name__} lacks {missing}"
    assert (pathlib.Path(beastcore.__file__).parent / "_cache.pyi").exists()


async def request_path() -> None:
    """Serve a document from a store in a file, without any third-party package."""
    from beastmode.stores.documents import Set
    from beastmode.stores.sqlite import SQLiteStore

    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(pathlib.Path(folder) / "smoke.db")
        try:
            store.commit([Set("users/1", {"name": "Ada"})], deadline=None)
            assert store.get("users/1", deadline=None).data == {"name": "Ada"}
        finally:
            store.close()


if __name__ == "__main__":
    packages(pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None)
    engine()
    asyncio.run(request_path())
    print("the wheel works on Python", sys.version.split()[0])
