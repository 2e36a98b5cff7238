"""Both twins of `Cache` in lockstep, "lru" with a model; BEASTCORE_LONG=1: millions of steps."""

from __future__ import annotations

import os
import random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cache_lockstep import (
    BAD_TTLS,
    CONFIGURATIONS,
    FILLING,
    HUGE,
    KEYS,
    STEPS_OF_TIME,
    TTLS,
    Lockstep,
    Model,
    play,
    play_filling,
    random_step,
)
from support import FakeClock

EXAMPLES, STEPS = 320, 60
"""At least 10,000 steps by hypothesis in each run of the tests."""

keys = st.sampled_from(KEYS)
values = st.integers(0, 12)
ttls = st.sampled_from(TTLS)
some_keys = st.lists(keys, max_size=8)
pairs = st.lists(st.tuples(keys, values), max_size=8)


class CacheMachine(RuleBasedStateMachine):
    """Every operation, on both twins and the model."""

    twins: tuple[bool, ...] = (True, False)
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.lockstep: Any = None

    def do(self, *step: Any) -> None:
        type(self).steps += 1
        self.lockstep.step(*step)
        self.lockstep.check()

    @initialize(configuration=st.sampled_from(CONFIGURATIONS))
    def make(self, configuration: Any) -> None:
        self.lockstep = Lockstep(*configuration, twins=self.twins)

    @rule(key=keys)
    def get(self, key: Any) -> None:
        self.do("get", key)

    @rule(key=keys)
    def getitem(self, key: Any) -> None:
        self.do("getitem", key)

    @rule(key=keys, name=st.sampled_from(["peek", "in", "expires_in", "frequency"]))
    def look(self, key: Any, name: str) -> None:
        self.do(name, key)

    @rule(key=keys, value=values)
    def setitem(self, key: Any, value: int) -> None:
        self.do("setitem", key, value)

    @rule(key=keys, value=values, ttl=ttls)
    def set(self, key: Any, value: int, ttl: Any) -> None:
        self.do("set", key, value, ttl)

    @rule(key=keys, value=values, ttl=st.sampled_from(BAD_TTLS))
    def set_badly(self, key: Any, value: int, ttl: Any) -> None:
        self.do("set", key, value, ttl)

    @rule(key=keys, value=values)
    def setdefault(self, key: Any, value: int) -> None:
        self.do("setdefault", key, value)

    @rule(some=some_keys)
    def get_many(self, some: list[Any]) -> None:
        self.do("get_many", some, "none")

    @rule(some=pairs)
    def set_many(self, some: list[Any]) -> None:
        self.do("set_many", some)

    @rule(some=pairs, ttl=ttls)
    def set_many_ttl(self, some: list[Any], ttl: Any) -> None:
        self.do("set_many", dict(some), ttl)

    @rule(some=some_keys)
    def delete_many(self, some: list[Any]) -> None:
        self.do("delete_many", some)

    @rule(key=keys)
    def pop(self, key: Any) -> None:
        self.do("pop", key)

    @rule(key=keys)
    def delitem(self, key: Any) -> None:
        self.do("delitem", key)

    @rule(name=st.sampled_from(["popitem", "keys", "values", "iter", "len", "expire"]))
    def whole(self, name: str) -> None:
        self.do(name)

    @rule(key=keys)
    def touch(self, key: Any) -> None:
        self.do("touch", key)

    @rule(key=keys, ttl=ttls)
    def touch_ttl(self, key: Any, ttl: Any) -> None:
        self.do("touch", key, ttl)

    @rule(limit=st.integers(0, 4))
    def expire(self, limit: int) -> None:
        self.do("expire", limit)

    @rule(n=st.integers(0, 3))
    def evict(self, n: int) -> None:
        self.do("evict", n)

    @rule(maxsize=st.integers(1, 20))
    def resize(self, maxsize: int) -> None:
        self.do("resize", maxsize)

    @rule()
    @precondition(lambda self: len(self.lockstep.subjects[0]) > 3)
    def clear(self) -> None:
        self.do("clear")

    @rule(seconds=st.sampled_from(STEPS_OF_TIME))
    def time(self, seconds: float) -> None:
        self.do("time", seconds)

    @rule(some=pairs)
    def eq(self, some: list[Any]) -> None:
        self.do("eq", dict(some))

    def teardown(self) -> None:
        if self.lockstep is not None:
            self.lockstep.check()


def twins_of(request: pytest.FixtureRequest) -> tuple[bool, ...]:
    return (False,) if request.config.getoption("--no-compiled") else (True, False)


def test_lockstep_by_hypothesis(request: pytest.FixtureRequest) -> None:
    machine = type("Machine", (CacheMachine,), {"twins": twins_of(request), "steps": 0})
    machine.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    machine.TestCase("runTest").runTest()
    assert machine.steps >= 10_000


@pytest.mark.timeout(7200 if os.environ.get("BEASTCORE_LONG") == "1" else 120)
def test_lockstep_at_random(request: pytest.FixtureRequest) -> None:
    long = os.environ.get("BEASTCORE_LONG") == "1"
    steps = 5_000_000 if long else 30_000
    seed = random.SystemRandom().randrange(2**32) if long else 20261123
    print(f"seed {seed}")
    assert play(steps, seed, twins_of(request)) >= steps


@pytest.mark.timeout(7200 if os.environ.get("BEASTCORE_LONG") == "1" else 120)
def test_adaptive_lockstep_with_many_keys(request: pytest.FixtureRequest) -> None:
    """The twins must agree on every entry that leaves; the large ones have a run of their own."""
    twins = twins_of(request)
    long = os.environ.get("BEASTCORE_LONG") == "1"
    steps = 2_000_000 if long else 30_000
    seed = random.SystemRandom().randrange(2**32) if long else 20261124
    print(f"seed {seed}")
    assert play_filling(steps, seed, twins, FILLING) >= steps
    if long:
        assert play_filling(steps, seed, twins, [HUGE]) >= steps


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: a model that forgets to promote is caught."""
    monkeypatch.setattr(Model, "promote", lambda self, entry: None)
    with pytest.raises(AssertionError, match=r"items differ|answer differ|on_removal differ"):
        play(5000, 1, (False,))


def test_every_operation_is_played() -> None:
    rng = random.Random(4)
    played = {random_step(rng)[0] for _ in range(20_000)}
    clock = FakeClock()
    model = Model(
        1, None, max_weight=None, weigher=None, timer=clock, on_removal=lambda k, v, c: None
    )
    inner = {"now", "expired", "find", "remove", "tell", "live", "lookup", "promote", "seconds"}
    inner |= {"deadline", "weigh", "fits", "evict_oldest", "store", "sweep", "counters", "items"}
    public = {n for n in dir(model) if not n.startswith("_") and callable(getattr(model, n))}
    assert public - inner - {"weigher", "timer", "on_removal"} <= played
