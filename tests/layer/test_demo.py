"""The demonstration: what it plays, what it counts, what it leaves behind."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beastcore
from beastmode.config import BeastModeConfig
from beastmode.demo import DemoOptions, DemoResult, Progress, run_demo, show, write_json
from beastmode.demo.backends import open_backend
from beastmode.demo.play import PATIENCE_S, Player, Written
from beastmode.demo.run import _check_writes
from beastmode.demo.traces import read_trace
from beastmode.demo.workload import HEARTBEAT, READ, WRITE, Mix, Operation, Trace
from beastmode.errors import BeastError, ConfigError, StoreUnavailable, TraceError
from beastmode.requests import Request, Response
from beastmode.stores.sqlite import SQLiteStore
from beastmode.testing.pytest_plugin import Firestore

SMALL = {"documents": 300, "users": 40, "requests": 3_000, "seconds": 60.0, "workers": 8}
CONFIG = BeastModeConfig()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary stores are made, to see that none is left."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def save_trace(folder: Path, keys: list[int]) -> Path:
    path = folder / "keys.npz"
    np.savez(path, keys=np.array(keys, dtype=np.uint32))
    return path


def zipf_keys(count: int, documents: int, seed: int = 3) -> list[int]:
    weights = 1 / np.arange(1, documents + 1)
    rng = np.random.default_rng(seed)
    return rng.choice(documents, size=count, p=weights / weights.sum()).tolist()


# -- the mixed stream ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def mixed(steps: list[Progress]) -> DemoResult:
    return run_demo(DemoOptions(**SMALL), CONFIG, steps.append)


def test_both_phases_play_the_same_requests(mixed: DemoResult, temporary: Path) -> None:
    off, on = mixed.disabled, mixed.enabled
    for phase in (off, on):
        assert phase.requests == 3_000
        assert phase.reads + phase.writes + phase.heartbeats == 3_000
        assert phase.ended_by == "requests"
        assert (phase.failed, phase.connections, phase.zombies) == (0, 40, 0)
        assert phase.stats.throughput.detail["requests"] == 3_000
        assert phase.stats.window_s == phase.elapsed_s
        rate = phase.stats.throughput.value
        assert rate == pytest.approx(3_000 / phase.elapsed_s)
    same = ("reads", "writes", "heartbeats", "first_reads")
    assert [getattr(off, name) for name in same] == [getattr(on, name) for name in same]
    assert mixed.problems == []
    assert gc.get_freeze_count() == 0
    assert list(temporary.iterdir()) == []


def test_figures_of_the_disabled_phase_are_those_of_the_store(mixed: DemoResult) -> None:
    off = mixed.disabled
    assert dict(off.sources) == {"store": off.reads}
    assert off.store_reads == off.reads
    assert off.stats.hit_rate.value == 0
    assert off.stats.cost_reduction.value == 0
    assert off.stats.cost_reduction.detail["units"] == off.reads + off.writes


def test_figures_of_the_enabled_phase_agree_with_each_other(mixed: DemoResult) -> None:
    on = mixed.enabled
    assert sum(on.sources.values()) == on.reads
    assert on.stats.hit_rate.detail["reads"] == on.reads
    without_store = on.reads - on.sources["store"]
    assert on.stats.hit_rate.detail["reads_without_store"] == without_store
    assert on.stats.cost_reduction.detail["units"] == on.store_reads + on.write_operations
    assert on.stats.cost_reduction.detail["baseline_units"] == on.reads + on.writes
    assert on.first_reads <= on.store_reads <= on.sources["store"] < on.reads / 2
    assert on.bound is not None
    assert on.reads_saved is not None
    assert on.reads_saved <= on.bound
    assert 0 < on.write_operations <= on.writes


def test_every_acknowledged_write_was_looked_up(mixed: DemoResult) -> None:
    for phase in (mixed.disabled, mixed.enabled):
        assert phase.writes_found == phase.writes_acknowledged == phase.writes > 0


def test_progress_is_told_of_every_stage(mixed: DemoResult, steps: list[Progress]) -> None:
    del mixed
    stages: dict[str, list[Progress]] = {}
    for step in steps:
        stages.setdefault(step.title, []).append(step)
    assert list(stages) == [
        "drawing the requests",
        "making a SQLite store",
        "beast mode disabled",
        "beast mode enabled",
    ]
    for told in stages.values():
        shares = [step.share for step in told]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] == 1
        assert [step.finished for step in told] == [False] * (len(told) - 1) + [True]


def test_the_result_is_json(mixed: DemoResult) -> None:
    found = json.loads(json.dumps(mixed.to_dict(), allow_nan=False))
    assert found["phases"]["enabled"]["requests"] == 3_000
    assert found["phases"]["disabled"]["kpis"]["hit_rate"]["value"] == 0
    assert found["conditions"]["seed"] == 1
    assert found["conditions"]["engine"] in ("compiled", "pure Python")
    assert found["conditions"]["changed_settings"] == {}
    assert (found["trace"], found["store"]["path"]) == (None, None)


def test_what_is_shown(mixed: DemoResult) -> None:
    rows = show.comparison(mixed)
    titles = [row.title for row in rows if not row.title.startswith(" ")]
    kpis = [kpi.title for kpi in mixed.enabled.stats.kpis.values()]
    assert [title.removesuffix(", mean") for title in titles] == kpis
    text = "\n".join([*show.findings(mixed), *show.method(mixed)])
    on = mixed.enabled
    assert f"{on.reads - on.store_reads:,} of {on.reads:,}" in text
    assert f"{on.writes_found:,} of {on.writes_acknowledged:,} enabled" in text
    for said in ("40 simulated users", "8 concurrent workers", "SQLite", "seed 1", "closed loop"):
        assert said in text


def test_a_seed_draws_the_same_requests_again() -> None:
    def drawn(seed: int) -> list[tuple[int, str | None, str | None]]:
        mix = Mix(50, 5, 500, seed)
        return [(kind, user, request.path) for kind, user, request in mix.operations("x")]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_mix_has_the_shares_that_it_claims() -> None:
    mix = Mix(1_000, 10, 50_000, 7)
    kinds = collections.Counter(operation.kind for operation in mix.operations("x"))
    assert kinds[WRITE] / 50_000 == pytest.approx(0.01, rel=0.2)
    assert kinds[HEARTBEAT] / 50_000 == pytest.approx(0.05, rel=0.1)
    reads = collections.Counter(
        operation.request.path for operation in mix.operations("x") if operation.kind == READ
    )
    harmonic = sum((rank + 1) ** -0.99 for rank in range(1_000))
    (_, first), *_, (_, tenth) = reads.most_common(10)
    assert first / reads.total() == pytest.approx(1 / harmonic, rel=0.1)
    assert first / tenth == pytest.approx(10**0.99, rel=0.25)


def test_first_reads_by_hand() -> None:
    mix = Mix(40, 3, 400, 2)
    touched: set[str] = set()
    first = 0
    for kind, _, request in list(mix.operations("x"))[:250]:
        path = request.path or (request.operations[0].path if request.operations else None)
        if path is not None and path not in touched:
            touched.add(path)
            first += kind == READ
    assert mix.first_reads(250) == first


# -- traces ----------------------------------------------------------------------------------------


def test_a_trace_is_played_in_order_to_its_end(tmp_path: Path) -> None:
    keys = zipf_keys(2_000, 400)
    options = DemoOptions(trace=save_trace(tmp_path, keys), workers=1, seconds=60)
    result = run_demo(options, CONFIG)
    unique = len(set(keys))
    for phase in (result.disabled, result.enabled):
        assert (phase.requests, phase.reads, phase.writes, phase.heartbeats) == (2000, 2000, 0, 0)
    on = result.enabled
    assert on.store_reads == on.first_reads == unique
    assert on.stats.hit_rate.value == on.reads_saved == on.bound == 1 - unique / 2000
    assert result.trace == {"file": "keys.npz", "requests": 2000, "unique_keys": unique}
    assert result.store["documents"] == unique
    assert on.stats.connection_utilisation.value is None


def test_a_small_cache_has_the_hits_that_its_policy_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "lru", because what "adaptive" keeps depends on the hashes of the keys and on a salt.
    lru = functools.partial(beastcore.Cache, policy="lru")
    monkeypatch.setattr("beastmode.cache.readthrough.Cache", lru)
    keys = zipf_keys(2_000, 400)
    options = DemoOptions(trace=save_trace(tmp_path, keys), workers=1, cache_entries=50)
    on = run_demo(options, CONFIG).enabled
    cache: Any = lru(50)
    hits = 0
    for key in keys:
        hits += cache.get(key) is not None
        cache[key] = key
    assert on.sources == {"hit": hits, "store": 2_000 - hits}
    assert on.cache_entries == 50
    assert on.evictions == 2_000 - hits - 50


def test_of_a_long_trace_only_the_disabled_phase_is_cut_short(tmp_path: Path) -> None:
    trace = save_trace(tmp_path, zipf_keys(30_000, 20))
    result = run_demo(DemoOptions(trace=trace, seconds=0.1), CONFIG)
    off, on = result.disabled, result.enabled
    assert off.ended_by == "time"
    assert off.requests < 30_000
    assert (on.requests, on.ended_by) == (30_000, "requests")
    text = " ".join(show.findings(result))
    assert f"only its first {off.requests:,} requests" in text
    assert "played to the end" in text


def test_requests_play_the_beginning_of_a_trace(tmp_path: Path) -> None:
    keys = zipf_keys(500, 100)
    result = run_demo(DemoOptions(trace=save_trace(tmp_path, keys), requests=200), CONFIG)
    assert result.enabled.requests == 200
    assert result.store["documents"] == len(set(keys[:200]))


def test_a_recorded_trace_to_its_end() -> None:
    folder = os.environ.get("BEASTCORE_TRACES")
    if not folder:
        pytest.skip("BEASTCORE_TRACES does not name the folder of the recorded traces (web07.npz)")
    path = Path(folder) / "web07.npz"
    result = run_demo(DemoOptions(trace=path, seconds=0.5), CONFIG)
    on = result.enabled
    assert result.problems == []
    assert (on.requests, on.reads, on.first_reads) == (76_118, 76_118, 20_484)
    assert on.store_reads == 20_484
    assert on.stats.cost_reduction.value == on.bound == 1 - 20_484 / 76_118


def test_an_unreadable_trace_is_an_error_before_anything_is_made(
    tmp_path: Path, temporary: Path
) -> None:
    steps: list[Progress] = []
    with pytest.raises(TraceError, match="cannot be read"):
        run_demo(DemoOptions(trace=tmp_path / "none.npz"), CONFIG, steps.append)
    assert steps == []
    assert list(temporary.iterdir()) == []


def test_keys_may_be_any_integers(tmp_path: Path) -> None:
    path = tmp_path / "keys.npz"
    np.savez(path, keys=np.array([2**62, -5, 2**62], dtype=np.int64))
    trace = Trace(read_trace(path))
    assert [request.path for _, _, request in trace.operations("x")] == [
        "articles/4611686018427387904",
        "articles/-5",
        "articles/4611686018427387904",
    ]


# -- bounds, folders, interruption -----------------------------------------------------------------


def test_phases_end_when_their_time_is_up() -> None:
    options = DemoOptions(documents=200, users=5, requests=100_000, seconds=0.2)
    result = run_demo(options, CONFIG)
    assert result.disabled.ended_by == "time"
    assert 0.2 <= result.disabled.elapsed_s < 2
    assert result.disabled.requests < 100_000


def test_total_seconds_shorten_the_phases() -> None:
    options = DemoOptions(
        documents=10, users=5, requests=300_000, seconds=50, total_seconds=1, workers=1
    )
    result = run_demo(options, CONFIG)
    assert result.conditions["most_seconds_of_a_phase"] == 1.0  # the least that a phase gets
    assert result.disabled.elapsed_s < 3


def test_a_kept_store_holds_the_documents(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = run_demo(DemoOptions(**SMALL, keep=folder), CONFIG)
    assert result.store["path"] == str(folder / "demo.db")
    with SQLiteStore(folder / "demo.db") as store:
        assert store.get("articles/299").data["title"] == "Article 299"  # type: ignore[index]
    assert list(temporary.iterdir()) == []
    with pytest.raises(ConfigError, match=r"demo\.db exists already"):
        run_demo(DemoOptions(**SMALL, keep=folder), CONFIG)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        run_demo(DemoOptions(**SMALL, keep=tmp_path / "file" / "folder"), CONFIG)


@pytest.mark.skipif(os.name != "posix", reason="another operating system: no such modes")
def test_a_folder_that_everybody_may_write_to(tmp_path: Path) -> None:
    folder = tmp_path / "public"
    folder.mkdir()
    folder.chmod(0o777)
    steps: list[Progress] = []
    with pytest.raises(ConfigError, match=r"keep: .* everybody may write to that directory"):
        run_demo(DemoOptions(**SMALL, keep=folder), CONFIG, steps.append)
    assert steps == []
    assert list(folder.iterdir()) == []


def test_on_the_firestore_emulator(firestore: Firestore, temporary: Path) -> None:
    steps: list[Progress] = []
    options = DemoOptions(**{**SMALL, "documents": 700, "requests": 600, "store": "firestore"})
    result = run_demo(options, on_progress=steps.append)
    assert result.problems == []
    assert result.store["documents"] == 700
    assert firestore.host in result.store["software"]
    for phase in (result.disabled, result.enabled):
        assert phase.requests == 600
        assert phase.failed == 0
        assert phase.writes_found == phase.writes_acknowledged
    assert 0 < result.enabled.store_reads < result.disabled.store_reads
    assert "emulator" in " ".join(show.method(result))
    assert "were sent to the listener" in " ".join(show.findings(result))
    assert result.disabled.stats.cost_reduction.detail["listener_units"] == 0
    assert "making a database of the Firestore emulator" in {step.title for step in steps}
    assert not list(temporary.iterdir())


def test_a_store_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match="store must be sqlite or firestore, got 'redis'"):
        DemoOptions(store="redis")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep='a' goes with store='sqlite' alone"):
        DemoOptions(store="firestore", keep=Path("a"))


def test_paths_of_the_settings_are_left_alone(tmp_path: Path) -> None:
    store, journal = tmp_path / "mine.db", tmp_path / "mine-journal.db"
    config = CONFIG.replace(store_path=str(store), journal_path=str(journal), cache_ttl_s=60)
    result = run_demo(DemoOptions(**SMALL), config)
    assert not store.exists()
    assert not journal.exists()
    assert result.conditions["changed_settings"] == {
        "cache_ttl_s": {"value": 60.0, "source": "argument"}
    }
    assert "cache_ttl_s=60.0 (argument)" in " ".join(show.method(result))


@pytest.mark.parametrize(
    "stage", ["drawing", "making", "beast mode disabled", "beast mode enabled"]
)
def test_an_interrupt_leaves_nothing_behind(temporary: Path, stage: str) -> None:
    def interrupt(step: Progress) -> None:
        if step.title.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(DemoOptions(**SMALL), CONFIG, interrupt)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("documents", 0, "documents must be from 1 to 10,000,000, got 0"),
        ("users", -1, "users must be from 1"),
        ("users", True, "users must be an integer, got True"),
        ("requests", 0, "requests must be from 1"),
        ("requests", 1.5, "requests must be an integer"),
        ("seconds", 0.0, "seconds must be from 0.1"),
        ("seconds", float("nan"), "seconds must be from"),
        ("seconds", float("inf"), "seconds must be from"),
        ("seconds", "1", "seconds must be a number"),
        ("workers", 0, "workers must be from 1"),
        ("cache_entries", 0, "cache_entries must be from 1"),
        ("seed", "1", "seed must be an integer"),
    ],
)
def test_options_that_are_not_allowed(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DemoOptions(**{name: value})


def test_more_users_than_connections() -> None:
    with pytest.raises(ConfigError, match=r"users must be at most max_connections \(10\), got 11"):
        run_demo(DemoOptions(users=11), CONFIG.replace(max_connections=10))


# -- players, checks, files ------------------------------------------------------------------------


class Stubborn:
    """Answers like an optimizer, but fails every `period`-th request."""

    def __init__(self, period: int) -> None:
        self.period = period
        self.asked = 0
        self.under_way = 0
        self.most_under_way = 0

    async def handle_request(
        self, user: str | None, request: Request, *, deadline: float
    ) -> Response:
        del user, request
        assert 0 < deadline - time.monotonic() <= PATIENCE_S
        self.asked += 1
        number = self.asked
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if number % self.period == 0:
            raise StoreUnavailable(f"failure {number}")
        return Response("store")


def reads(count: int) -> Iterator[Operation]:
    return iter([Operation(READ, None, Request.get("a/1"))] * count)


async def test_failures_are_counted_and_the_first_is_told() -> None:
    stub: Any = Stubborn(10)
    player = Player(stub, reads(95), workers=4, seconds=None, on_moment=lambda _: None)
    await player.play()
    assert (player.issued, player.failed) == (95, 9)
    assert player.sources[READ] == {"store": 86}
    assert player.first_error == "StoreUnavailable: failure 10"
    assert player.moments[-1].done == 95
    assert stub.most_under_way == 4


async def test_too_many_failures_end_it() -> None:
    stub: Any = Stubborn(1)
    player = Player(stub, reads(50_000), workers=3, seconds=None, on_moment=lambda _: None)
    with pytest.raises(BeastError, match=r"gave up after 1,00\d of 1,00\d requests had failed"):
        await player.play()


def test_writes_that_are_lost_are_noticed(tmp_path: Path) -> None:
    with open_backend("sqlite", tmp_path) as backend:
        backend.fill([("a/last", {"edit": "2"}), ("a/lost", {"edit": "1"}), ("a/other", {})], 10)
    written = {
        "a/last": [Written(0, 1, "1"), Written(2, 3, "2")],
        "a/lost": [Written(4, 5, "1"), Written(6, 7, "2")],  # the second began after the first
        "a/other": [Written(8, 9, "1")],
        "a/gone": [Written(10, 11, "1")],
    }
    assert _check_writes(backend, written) == (3, 6)
    overlapping = {"a/lost": [Written(4, 7, "1"), Written(5, 6, "2")]}
    assert _check_writes(backend, overlapping) == (2, 2)


def test_problems_name_what_must_not_happen(mixed: DemoResult) -> None:
    lost = dataclasses.replace(mixed.enabled, writes_found=mixed.enabled.writes_found - 2)
    failed = dataclasses.replace(mixed.disabled, failed=3, first_error="StoreTimeout: late")
    problems = dataclasses.replace(mixed, disabled=failed, enabled=lost).problems
    assert "3 of 3,000 requests failed; the first one: StoreTimeout: late" in problems[0]
    assert "2 of" in problems[1]
    assert "acknowledged writes are not in the store" in problems[1]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]
