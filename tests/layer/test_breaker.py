"""The circuit breaker and the retry budget against models, on a clock that the test moves."""

from __future__ import annotations

import pickle
import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from beastmode.breaker import Breaker, RetryBudget, StoreSignal
from beastmode.errors import BreakerOpen, ConfigError, StoreTimeout, StoreUnavailable
from support import FakeClock

DOWN = StoreUnavailable("connection refused")


def make(**settings: Any) -> tuple[Breaker, FakeClock]:
    clock = FakeClock()
    settings.setdefault("jitter", 0.0)
    return Breaker(timer=clock, rng=random.Random(1), **settings), clock


def state(breaker: Breaker) -> str:
    return breaker.state


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed(breaker.admit(), DOWN)


def refusal(breaker: Breaker) -> BreakerOpen:
    with pytest.raises(BreakerOpen) as caught:
        breaker.admit()
    return caught.value


# -- opening ------------------------------------------------------------------------------------


def test_five_failures_in_a_row_open_it() -> None:
    breaker, _ = make()
    fail(breaker, 4)
    breaker.succeeded(breaker.admit())
    fail(breaker, 4)
    assert state(breaker) == "closed"
    fail(breaker, 1)
    assert state(breaker) == "open"
    error = refusal(breaker)
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after_s == 0.5
    assert "connection refused" in str(error)
    assert "next try in 0.50 s" in str(error)


def test_half_of_twenty_open_it() -> None:
    breaker, clock = make()
    for _ in range(9):
        breaker.failed(breaker.admit(), DOWN)
        breaker.succeeded(breaker.admit())
        clock.advance(0.1)
    breaker.succeeded(breaker.admit())
    assert state(breaker) == "closed"  # 19 outcomes
    breaker.failed(breaker.admit(), DOWN)
    assert state(breaker) == "open"  # 10 of 20


def test_old_failures_are_forgotten() -> None:
    breaker, clock = make(failures_in_row=1000)
    fail(breaker, 19)
    clock.advance(10.0)
    for _ in range(19):
        breaker.succeeded(breaker.admit())
    fail(breaker, 1)
    assert state(breaker) == "closed"


def test_what_says_nothing_about_the_store_does_not_count() -> None:
    breaker, clock = make(least_outcomes=8)
    for _ in range(50):
        for _ in range(4):
            fail(breaker, 1)
            breaker.released(breaker.admit())
        assert breaker.signal().failures_in_row == 4
        breaker.succeeded(breaker.admit())
        clock.advance(10.0)
    assert state(breaker) == "closed"


# -- half-open ----------------------------------------------------------------------------------


def test_two_successes_one_after_the_other_close_it() -> None:
    breaker, clock = make()
    fail(breaker, 5)
    assert breaker.admit_probe() is None
    clock.advance(0.5)
    first = breaker.admit_probe()
    assert first is not None
    assert state(breaker) == "half-open"
    assert breaker.admit_probe() is None  # one at a time
    retry_after_s = refusal(breaker).retry_after_s
    assert retry_after_s is not None
    assert retry_after_s > 0
    breaker.succeeded(first)
    assert state(breaker) == "half-open"
    second = breaker.admit_probe()
    assert second is not None
    breaker.succeeded(second)
    assert state(breaker) == "closed"
    assert breaker.admit_probe() is None
    fail(breaker, 4)
    assert state(breaker) == "closed"


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_two_seconds() -> None:
    breaker, clock = make()
    fail(breaker, 5)
    waits = []
    for _ in range(5):
        wait_s = breaker.next_probe_s()
        assert wait_s is not None
        waits.append(round(wait_s, 6))
        clock.advance(wait_s)
        permit = breaker.admit_probe()
        assert permit is not None
        breaker.failed(permit, DOWN)
    assert waits == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert breaker.signal().failures_in_row == 10


def close(breaker: Breaker, clock: FakeClock) -> None:
    for _ in range(2):
        clock.advance(breaker.next_probe_s() or 0.0)
        permit = breaker.admit_probe()
        assert permit is not None
        breaker.succeeded(permit)


def test_an_opening_soon_after_the_last_one_goes_on_doubling() -> None:
    breaker, clock = make()
    fail(breaker, 5)
    close(breaker, clock)
    fail(breaker, 5)
    assert breaker.next_probe_s() == 1.0
    close(breaker, clock)
    clock.advance(10.1)
    fail(breaker, 5)
    assert breaker.next_probe_s() == 0.5


def test_a_released_probe_decides_nothing() -> None:
    breaker, clock = make()
    fail(breaker, 5)
    clock.advance(0.5)
    permit = breaker.admit_probe()
    assert permit is not None
    breaker.released(permit)
    assert state(breaker) == "half-open"
    breaker.succeeded(permit)  # too late: it was given back
    close(breaker, clock)
    assert state(breaker) == "closed"


def test_a_probe_that_never_ends_counts_as_failed() -> None:
    breaker, clock = make(probe_limit_s=3.0)
    fail(breaker, 5)
    clock.advance(0.5)
    lost = breaker.admit_probe()
    assert lost is not None
    clock.advance(3.0)
    assert breaker.admit_probe() is None
    assert state(breaker) == "open"
    assert "no answer within 3 s" in breaker.signal().last_error
    breaker.succeeded(lost)
    assert state(breaker) == "open"
    clock.advance(1.0)
    close(breaker, clock)
    assert state(breaker) == "closed"


def test_a_users_call_is_the_probe_only_if_nothing_else_is() -> None:
    breaker, clock = make(user_grace_s=1.0)
    fail(breaker, 5)
    clock.advance(1.4)
    refusal(breaker)
    clock.advance(0.2)
    breaker.succeeded(breaker.admit())
    assert state(breaker) == "half-open"
    refusal(breaker)
    clock.advance(1.0)
    breaker.succeeded(breaker.admit())
    assert state(breaker) == "closed"


def test_after_a_probe_without_an_answer_a_caller_goes_first() -> None:
    breaker, clock = make(user_grace_s=1.0)
    fail(breaker, 5)
    clock.advance(0.5)
    probe = breaker.admit_probe()
    assert probe is not None
    breaker.failed(probe, StoreTimeout("no answer within 1 s"))
    clock.advance(1.0)
    assert breaker.admit_probe() is None
    assert breaker.next_probe_s() == 1.0
    call = breaker.admit()
    assert breaker.admit_probe() is None
    breaker.succeeded(call)
    refusal(breaker)  # by turns
    probe = breaker.admit_probe()
    assert probe is not None
    breaker.succeeded(probe)
    assert state(breaker) == "closed"


def test_where_no_caller_comes_the_next_probe_is_made_in_the_background() -> None:
    breaker, clock = make(user_grace_s=1.0)
    fail(breaker, 5)
    for wait_s in (0.5, 2.0, 3.0):
        assert breaker.next_probe_s() == wait_s
        clock.advance(wait_s)
        probe = breaker.admit_probe()
        assert probe is not None
        breaker.failed(probe, StoreTimeout("no answer"))
    clock.advance(0.2)
    breaker.hurry()  # the store was heard: nobody need be first
    assert breaker.next_probe_s() == 0.0
    assert breaker.admit_probe() is not None


def test_a_probe_that_could_not_reach_the_store_costs_no_caller() -> None:
    breaker, clock = make(user_grace_s=1.0)
    fail(breaker, 5)
    clock.advance(0.5)
    probe = breaker.admit_probe()
    assert probe is not None
    breaker.failed(probe, DOWN)
    clock.advance(1.5)
    refusal(breaker)
    assert breaker.admit_probe() is not None


def test_the_time_that_a_failed_probe_took_is_part_of_the_pause() -> None:
    breaker, clock = make()
    fail(breaker, 5)
    waits = []
    for seconds in (0.25, 2.0, 2.0, 0.5):
        clock.advance(breaker.next_probe_s() or 0.0)
        probe = breaker.admit_probe()
        assert probe is not None
        clock.advance(seconds)
        breaker.failed(probe, DOWN)
        waits.append(round(breaker.next_probe_s() or 0.0, 6))
    assert waits == [0.75, 0.1, 0.1, 1.5]


def test_calls_that_began_before_say_nothing_afterwards() -> None:
    breaker, clock = make()
    old = [breaker.admit() for _ in range(8)]
    fail(breaker, 5)
    for permit in old[:4]:
        breaker.failed(permit, DOWN)
        breaker.succeeded(permit)
    assert breaker.next_probe_s() == 0.5
    clock.advance(0.5)
    probe = breaker.admit_probe()
    assert probe is not None
    breaker.succeeded(old[5])
    breaker.failed(old[6], DOWN)
    breaker.released(old[7])
    assert state(breaker) == "half-open"
    assert breaker.admit_probe() is None
    breaker.succeeded(probe)
    close_permit = breaker.admit_probe()
    assert close_permit is not None
    breaker.succeeded(close_permit)
    assert state(breaker) == "closed"


# -- what it tells ------------------------------------------------------------------------------


def test_changes_are_told_without_the_lock_and_a_raising_listener_harms_nothing() -> None:
    breaker, clock = make()
    told: list[tuple[str, int]] = []

    def listen(signal: StoreSignal) -> None:
        told.append((signal.state, breaker.signal().opened))

    def broken(signal: StoreSignal) -> None:
        raise RuntimeError("a listener")

    breaker.subscribe(broken)
    breaker.subscribe(listen)
    fail(breaker, 5)
    close(breaker, clock)
    assert told == [("open", 1), ("half-open", 1), ("closed", 1)]


def test_hurry_brings_the_next_try_forward() -> None:
    breaker, clock = make()
    told: list[StoreSignal] = []
    breaker.subscribe(told.append)
    breaker.hurry()
    assert not told
    fail(breaker, 5)
    breaker.hurry()
    breaker.hurry()
    assert len(told) == 2
    close(breaker, clock)
    assert clock.now == 1000.1
    fail(breaker, 5)
    clock.advance(0.3)
    breaker.hurry()
    close(breaker, clock)
    assert clock.now == pytest.approx(1000.4)


def test_the_signal_tells_how_the_store_fares() -> None:
    breaker, clock = make()
    signal = breaker.signal()
    assert (signal.ok, signal.state, signal.retry_after_s, signal.last_error) == (
        True, "closed", 0.0, "",
    )  # fmt: skip
    clock.advance(3.0)
    assert breaker.signal().for_s == 3.0
    fail(breaker, 5)
    clock.advance(0.2)
    refusal(breaker)
    signal = breaker.signal()
    assert not signal.ok
    assert signal.for_s == pytest.approx(0.2)
    assert signal.retry_after_s == pytest.approx(0.3)
    assert (signal.failures_in_row, signal.opened, signal.refused) == (5, 1, 1)
    assert signal.last_error == "StoreUnavailable: connection refused"
    assert len(_failed_with("x" * 10_000).last_error) == 200


def _failed_with(text: str) -> StoreSignal:
    breaker, _ = make()
    breaker.failed(breaker.admit(), StoreUnavailable(text))
    return breaker.signal()


def test_a_refusal_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(BreakerOpen("closed for now", 0.25)))
    assert str(error) == "closed for now"
    assert error.retry_after_s == 0.25


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("failures_in_row", 0),
        ("failures_in_row", 2.5),
        ("least_outcomes", True),
        ("closing_successes", -1),
        ("failure_share", 0),
        ("failure_share", 1.5),
        ("window_s", 0),
        ("window_s", float("nan")),
        ("open_s", float("inf")),
        ("longest_open_s", 0.1),
        ("jitter", 1.0),
        ("probe_limit_s", "3"),
        ("user_grace_s", -1),
    ],
)
def test_a_bad_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be .*got {value!r}"):
        Breaker(**{name: value})


def test_many_threads_never_hold_two_probes() -> None:
    breaker, clock = make(open_s=0.001, longest_open_s=0.001, user_grace_s=3600.0)
    guard = threading.Lock()
    held = most = probes = 0

    end = time.monotonic() + 20

    def probe(seed: int) -> None:
        nonlocal held, most, probes
        rng = random.Random(seed)
        while probes < 1000 and time.monotonic() < end:
            clock.now += 0.0005
            permit = breaker.admit_probe()
            if permit is None:
                continue
            with guard:
                held += 1
                probes += 1
                most = max(most, held)
            time.sleep(0)
            with guard:
                held -= 1
            if rng.random() < 0.3:
                breaker.failed(permit, DOWN)
            else:
                breaker.succeeded(permit)

    def call() -> None:
        while probes < 1000 and time.monotonic() < end:
            try:
                breaker.failed(breaker.admit(), DOWN)
            except BreakerOpen:
                time.sleep(0)

    threads = [threading.Thread(target=probe, args=(seed,)) for seed in range(3)]
    threads.append(threading.Thread(target=call))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert probes >= 1000
    assert most == 1


# -- against a model ----------------------------------------------------------------------------


class BreakerMachine(RuleBasedStateMachine):
    """The breaker beside the plainest model of its rules."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = Breaker(timer=self.clock, rng=random.Random(7), probe_limit_s=1e9 / 1e6)
        self.state = "closed"
        self.outcomes: list[tuple[int, bool]] = []
        self.in_row = 0
        self.successes = 0
        self.calls: list[tuple[int, int]] = []
        self.epoch = 0
        self.probe: int | None = None
        self.opened_at = self.waits_since = self.probe_began = 0.0

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0, 9.5, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def call(self) -> None:
        if self.state == "closed":
            self.calls.append((self.breaker.admit(), self.epoch))
            return
        self.take_probe(user=True)

    @rule()
    def background_probe(self) -> None:
        if self.state == "closed":
            assert self.breaker.admit_probe() is None
        else:
            self.take_probe(user=False)

    def take_probe(self, *, user: bool) -> None:
        waited = self.clock.now - self.waits_since
        paused = self.clock.now - self.opened_at
        if self.probe is not None and self.clock.now >= self.probe_began + 1000.0:
            self.open()
            must, may = False, False
        else:
            must = self.probe is None and (
                self.state == "half-open" or (waited >= 2.4 and paused > 0.1)
            )
            may = self.probe is None and (
                self.state == "half-open" or (waited >= 0.4 and paused > 0.099)
            )
        permit: int | None
        if user:
            try:
                permit = self.breaker.admit()
            except BreakerOpen as error:
                permit = None
                assert error.retry_after_s is not None
                assert 0 < error.retry_after_s <= 2.4
        else:
            permit = self.breaker.admit_probe()
        if permit is None:
            assert not must
            return
        assert may
        if self.state == "open":
            self.successes = 0
        self.state = "half-open"
        self.epoch += 1
        self.probe = self.epoch
        self.probe_began = self.clock.now
        self.calls.append((permit, self.epoch))

    def open(self) -> None:
        self.state = "open"
        self.opened_at = self.waits_since = self.clock.now
        if self.probe is not None:
            self.waits_since = self.probe_began
        self.probe = None
        self.epoch += 1

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from(["good", "bad", "bad", "nothing"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        at = data.draw(st.integers(0, len(self.calls) - 1))
        permit, epoch = self.calls.pop(at)
        match outcome:
            case "good":
                self.breaker.succeeded(permit)
            case "bad":
                self.breaker.failed(permit, DOWN)
            case _:
                self.breaker.released(permit)
        if epoch != self.epoch:
            return
        if self.state == "half-open":
            self.end_probe(outcome)
        elif outcome != "nothing":
            self.outcomes.append((int(self.clock.now // 1.0), outcome == "bad"))
            self.in_row = self.in_row + 1 if outcome == "bad" else 0
            if outcome == "bad":
                newest = self.outcomes[-1][0]
                recent = [bad for second, bad in self.outcomes if second > newest - 10]
                if self.in_row >= 5 or (len(recent) >= 20 and sum(recent) * 2 >= len(recent)):
                    self.open()

    def end_probe(self, outcome: str) -> None:
        if outcome == "bad":
            self.open()
            return
        self.probe = None
        self.epoch += 1
        self.successes += outcome == "good"
        if self.successes == 2:
            self.state = "closed"
            self.in_row = 0
            self.outcomes.clear()

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state == self.state
        signal = self.breaker.signal()
        assert (signal.retry_after_s == 0) is (self.state == "closed")
        assert 0 <= signal.retry_after_s <= 2.4


TestBreakerModel = BreakerMachine.TestCase
TestBreakerModel.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)


# -- the budget ---------------------------------------------------------------------------------


def test_a_budget_is_a_fifth_of_the_calls_and_ten_a_second() -> None:
    clock = FakeClock()
    budget = RetryBudget(timer=clock)
    assert budget.left == 100
    assert sum(budget.take() for _ in range(150)) == 100
    assert budget.refused == 50
    for _ in range(100):
        budget.count_call()
    assert sum(budget.take() for _ in range(100)) == 20
    clock.advance(10.0)
    assert budget.left == 100


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["call", "retry"]), st.floats(0, 0.4), st.integers(1, 30)),
        max_size=120,
    )
)
@settings(deadline=None)
def test_retries_never_exceed_the_budget(events: list[tuple[str, float, int]]) -> None:
    clock = FakeClock()
    budget = RetryBudget(share=0.5, per_s=2.0, window_s=5.0, timer=clock)
    calls: list[float] = []
    retries: list[float] = []
    for kind, wait_s, count in events:
        clock.advance(wait_s)
        for _ in range(count):
            if kind == "call":
                budget.count_call()
                calls.append(clock.now)
            elif budget.take():
                retries.append(clock.now)
        recent_calls = sum(at > clock.now - 5.0 for at in calls)
        recent = sum(at > clock.now - 4.5 for at in retries)  # kept by slices of half a second
        assert recent <= 2.0 * 5.0 + 0.5 * recent_calls + 1e-9


@pytest.mark.parametrize(("name", "value"), [("share", -1), ("per_s", None), ("window_s", 0)])
def test_a_budgets_bad_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a number"):
        RetryBudget(**{name: value})
