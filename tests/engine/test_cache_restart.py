"""Hit ratio right after a restart: in another process, with other hashes of the same keys."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from bisect import bisect
from pathlib import Path
from typing import Any

import pytest

from beastmode.demo.traces import read_trace
from support import Twin

ROOT = Path(__file__).resolve().parent.parent.parent


def replay(cache: Any, keys: list[str]) -> float:
    """A lookup for each request, and a write if it missed; return the percentage of hits."""
    get = cache.get
    hits = 0
    for key in keys:
        if get(key) is None:
            cache[key] = b"value"
        else:
            hits += 1
    return 100 * hits / len(keys)


def zipf(requests: int, keys: int, exponent: float, scan: int) -> list[str]:
    """Return requests by Zipf's law; one in `scan` is for a key that never comes again."""
    rng = random.Random(5)
    weights = list(itertools.accumulate([1 / rank**exponent for rank in range(1, keys + 1)]))
    return [
        f"once {i}" if i % scan == 0 else f"key {bisect(weights, rng.random() * weights[-1])}"
        for i in range(requests)
    ]


CACHES = 4
"""Each cache has a salt of its own, which chance favours by a point or two: means are compared."""


def in_another_process(engine: Twin, path: Path, size: int, keys: list[str], seed: int) -> Any:
    """Load each dump and replay `keys` under another PYTHONHASHSEED; return what came of it."""
    code = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from support import Twin\n"
        "from engine.test_cache_restart import replay\n"
        "size, keys = json.load(sys.stdin)\n"
        "total = 0\n"
        f"for i in range({CACHES}):\n"
        f"    cache = Twin(compiled={engine.compiled}, tracked=False).Cache(size)\n"
        f"    assert cache.load({str(path)!r} + str(i), value_decoder=bytes) == size\n"
        "    cache._check()\n"
        "    total += replay(cache, keys)\n"
        f"print(json.dumps([total / {CACHES}, hash('a key')]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([size, keys]),
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def after_a_restart(engine: Twin, path: Path, keys: list[str], size: int) -> None:
    """A cache that was loaded serves the next requests like one that never stopped."""
    half = len(keys) // 2
    following = keys[half : half + max(2 * size, 2000)]
    never = 0.0
    for i in range(CACHES):
        cache = engine.raw.Cache(size)
        replay(cache, keys[:half])
        assert cache.dump(f"{path}{i}", value_encoder=bytes) == size
        never += replay(cache, following) / CACHES
    cold = replay(engine.raw.Cache(size), following)
    results = [in_another_process(engine, path, size, following, seed) for seed in (1, 2)]
    warm = sum(ratio for ratio, _ in results) / len(results)
    print(f"size {size}, next {len(following)}: {never=:.2f} {warm=:.2f} {cold=:.2f}")
    assert len({seed for _, seed in results}) == 2, "the hashes were the same"
    assert cold < never - 4, "the case shows nothing"
    assert warm > never - 1.5, (never, warm, cold)


def test_zipf(engine: Twin, tmp_path: Path) -> None:
    size = 1000 if engine.compiled else 400
    after_a_restart(engine, tmp_path / "dump", zipf(30 * size, 10 * size, 0.8, 5), size)


@pytest.mark.compiled_only
def test_a_recorded_trace(engine: Twin, tmp_path: Path) -> None:
    folder = os.environ.get("BEASTCORE_TRACES")
    if not folder:
        pytest.skip("BEASTCORE_TRACES does not name the folder of the recorded traces (web07.npz)")
    keys = [f"k{key}" for key in read_trace(Path(folder) / "web07.npz")]
    for percent in (1, 5, 25):
        size = len(set(keys)) * percent // 100
        after_a_restart(engine, tmp_path / "dump", keys, size)
