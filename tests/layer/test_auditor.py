"""The consistency auditor: what it calls stale, what it does not, and what it costs."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from beastmode import BeastModeOptimizer, Request, Set, SQLiteStore
from beastmode.auditor import ConsistencyAuditor, DelayReport, upper_bound
from beastmode.cost import Units
from beastmode.errors import ConfigError, StoreUnavailable
from beastmode.stores.documents import Document
from support import FakeClock


class World:
    """A cache and a store as two dicts, and an auditor over them."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.cache: dict[str, Document] = {}
        self.store: dict[str, Document] = {}
        self.pending: set[str] = set()
        self.reads: list[list[str]] = []
        self.down = False
        options = {"one_in": 1, "max_per_minute": 100_000, **options}
        self.auditor = ConsistencyAuditor(
            self,
            lambda path, user: self.cache.get(path),
            is_pending=self.pending.__contains__,
            timer=self.clock,
            rng=random.Random(3),
            **options,
        )
        self.clock.advance(60.0)  # the first minute's samples are saved up

    def get_many(self, paths: Sequence[str], *, deadline: float | None = None) -> list[Document]:
        assert deadline is not None
        assert 0.5 < deadline - time.monotonic() <= 1.0
        if self.down:
            raise StoreUnavailable("gone")
        self.reads.append(list(paths))
        return [self.store[path] for path in paths]

    def put(self, path: str, version: int, *, where: str = "both", data: Any = None) -> None:
        document = Document(path, {"v": version} if data is None else data, version)
        if where != "store":
            self.cache[path] = document
        if where != "cache":
            self.store[path] = document

    def serve(self, path: str, user: str | None = None) -> None:
        self.auditor.served(path, user)
        self.auditor.tick()

    def counts(self) -> list[tuple[float, int, int]]:
        return [
            (each.delay_s, each.checked, each.stale) for each in self.auditor.get_stats().delays
        ]

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.auditor.tick()


def test_a_cache_that_keeps_up_is_never_stale() -> None:
    world = World()
    world.put("users/1", 5)
    world.serve("users/1")
    world.run(12)
    assert world.counts() == [(1.0, 1, 0), (10.0, 1, 0)]
    assert world.reads == [["users/1"]]  # one read for all delays
    assert [each.stale_ratio for each in world.auditor.get_stats().delays] == [0.0, 0.0]


def test_a_cache_that_never_hears_is_stale_at_every_delay() -> None:
    world = World()
    world.put("users/1", 5)
    world.put("users/1", 6, where="store")
    world.serve("users/1")
    world.run(12)
    assert world.counts() == [(1.0, 1, 1), (10.0, 1, 1)]
    assert [each.stale_ratio for each in world.auditor.get_stats().delays] == [1.0, 1.0]


def test_a_cache_that_hears_late_is_stale_at_the_short_delay_alone() -> None:
    world = World()
    world.put("users/1", 5)
    world.put("users/1", 6, where="store")
    world.serve("users/1")
    world.run(3)
    world.put("users/1", 6)
    world.run(9)
    assert world.counts() == [(1.0, 1, 1), (10.0, 1, 0)]


def test_changes_in_between_are_no_false_alarm() -> None:
    world = World()
    world.put("users/1", 5)
    world.put("users/2", 5)
    world.auditor.served("users/1", None)
    world.serve("users/2")
    world.run(0.5)
    world.put("users/1", 9)  # an own write, or heard
    world.put("users/2", 9, where="store")  # just now, and not heard yet: nobody was to know
    world.run(1)
    assert world.counts()[0] == (1.0, 2, 0)


@pytest.mark.parametrize(
    ("held", "reference", "stale"),
    [
        ((None, 5), (None, 9), 0),  # both say that there is none
        (({"n": 1}, 5), (None, 9), 1),  # a deletion that was not heard
        ((None, 5), ({"n": 1}, 9), 1),  # a creation that was not heard
        ((None, 9), ({"n": 1}, 5), 0),  # a deletion that came after the reference
        (({"n": 1}, 9), (None, 5), 0),  # a creation that came after it
    ],
)
def test_documents_that_do_not_exist(
    held: tuple[Any, int], reference: tuple[Any, int], stale: int
) -> None:
    world = World()
    world.cache["users/1"] = Document("users/1", *held)
    world.store["users/1"] = Document("users/1", *reference)
    world.serve("users/1")
    world.run(2)
    assert world.counts()[0] == (1.0, 1, stale)


def test_what_cannot_be_judged_is_not() -> None:
    world = World()
    for name in "abc":
        world.put(f"users/{name}", 5)
        world.put(f"users/{name}", 6, where="store")
        world.auditor.served(f"users/{name}", None)
    world.auditor.tick()
    del world.cache["users/a"]
    world.pending.add("users/b")
    world.run(1.25)
    report = world.auditor.get_stats()
    assert (report.gone, report.unsettled, report.late) == (1, 1, 0)
    assert world.counts()[0] == (1.0, 1, 1)
    world.clock.advance(30.0)  # nobody looked at the time
    world.auditor.tick()
    assert world.auditor.get_stats().late == 3
    assert world.counts()[1] == (10.0, 0, 0)
    assert world.auditor.get_stats().delays[1].bound is None


def test_a_store_that_fails_is_told_elsewhere() -> None:
    world = World()
    world.put("users/1", 5)
    world.down = True
    world.serve("users/1")
    world.run(12)
    report = world.auditor.get_stats()
    assert (report.sampled, report.read, report.failed) == (1, 0, 1)
    assert world.counts() == [(1.0, 0, 0), (10.0, 0, 0)]


def test_one_of_so_many_answers_is_sampled() -> None:
    world = World(one_in=50)
    for number in range(50_000):
        world.put(f"users/{number}", 1)
        world.auditor.served(f"users/{number}", None)
        if number % 100 == 0:
            world.clock.advance(1.0)
            world.auditor.tick()
    assert 900 < world.auditor.get_stats().sampled < 1100


@pytest.mark.parametrize("cap", [1, 2, 7, 60, 600])
def test_no_minute_has_more_reads_than_the_cap(cap: int) -> None:
    world = World(max_per_minute=cap)
    reads: list[float] = []
    for number in range(4 * 600):
        for name in "abcdefgh":
            world.put(f"users/{name}{number}", 1)
            world.auditor.served(f"users/{name}{number}", None)
        before = sum(map(len, world.reads))
        world.auditor.tick()
        reads += [world.clock.now] * (sum(map(len, world.reads)) - before)
        world.clock.advance(0.1)
    for at in reads:
        assert sum(at <= each < at + 60 for each in reads) <= cap
    assert len(reads) >= 4 * cap // 2
    report = world.auditor.get_stats()
    assert report.sampled == 4 * 600 * 8
    assert report.capped == report.sampled - report.read


def test_no_more_samples_wait_than_fit() -> None:
    world = World()
    for number in range(1000):
        world.auditor.served(f"users/{number}", None)
    assert world.auditor.get_stats().capped == 1000 - 64


def test_an_answer_served_twice_is_read_once() -> None:
    world = World()
    world.put("users/1", 5)
    world.auditor.served("users/1", None)
    world.auditor.served("users/1", None)
    world.serve("users/1", "ada")
    assert world.reads == [["users/1", "users/1"]]  # once for all, once as ada sees it


def test_what_a_lookup_answers_is_sampled() -> None:
    world = World()
    watched = world.auditor.watch(lambda path, user: world.cache.get(path))
    assert watched("users/1", None) is None
    assert world.auditor.get_stats().sampled == 0
    world.put("users/1", 5)
    assert watched("users/1", None) == world.cache["users/1"]
    assert world.auditor.get_stats().sampled == 1


def test_the_bound() -> None:
    assert upper_bound(0, 0) is None
    assert upper_bound(0, 1) == 1.0
    assert upper_bound(0, 300) == pytest.approx(0.01)
    assert upper_bound(10, 1000) == pytest.approx(0.0166, abs=0.0005)
    assert upper_bound(7, 7) == pytest.approx(1.0)
    assert DelayReport(1.0, 300, 0).bound == pytest.approx(0.01)
    rng = random.Random(11)
    for share, n in ((0.01, 300), (0.05, 200), (0.5, 50)):
        covered = sum(
            (upper_bound(sum(rng.random() < share for _ in range(n)), n) or 0.0) >= share
            for _ in range(2000)
        )
        assert covered / 2000 > 0.93


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("one_in", 0),
        ("one_in", 1.5),
        ("max_per_minute", True),
        ("delays_s", ()),
        ("delays_s", (0,)),
    ],
)
def test_a_bad_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must"):
        World(**{name: value})
    with pytest.raises(ConfigError, match="^max_per_minute must"):
        World().auditor.configure(max_per_minute=0)


# -- in the optimizer ---------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
def test_in_the_optimizer(tmp_path: Path, heard: bool) -> None:
    path = tmp_path / "app.db"
    optimizer = BeastModeOptimizer(
        path, audit_one_in=1, audit_max_per_minute=100_000, batch_max_delay_ms=20.0
    )
    with SQLiteStore(path) as elsewhere, optimizer:
        elsewhere.commit([Set(f"users/{number}", {"n": 0}) for number in range(20)])
        if not heard:
            optimizer._parts.sync.close()
        paths = [f"users/{number}" for number in range(20)]
        optimizer.handle_request_sync(None, Request.get_many(paths))
        elsewhere.commit([Set(path, {"n": 1}) for path in paths])
        before = optimizer._tally.usage()
        for each in paths[:10]:
            optimizer.handle_request_sync(None, Request.get(each))
        if heard:
            optimizer.handle_request_sync(None, Request.set(paths[0], {"n": 2}))
        optimizer.handle_request_sync(None, Request.get_many(paths))
        end = time.monotonic() + 10
        while not (report := optimizer.get_stats().audit) or report.delays[0].checked < 20:
            assert time.monotonic() < end, report
            time.sleep(0.02)
        assert report.delays[0].stale == (0 if heard else 20)
        assert report.delays[1].checked == 0
        spent = optimizer._tally.usage() - before
        assert spent.auditor == Units(reads=report.read)
        assert spent.actual.units.reads >= report.read >= 20
        optimizer.configure(audit_max_per_minute=1)
        assert any(job.name == "audit" for job in optimizer.get_stats().jobs)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    with BeastModeOptimizer(tmp_path / "app.db") as optimizer:
        assert optimizer.get_stats().audit is None
        assert not any(job.name == "audit" for job in optimizer.get_stats().jobs)
        assert optimizer._lookup == optimizer.cache.lookup
