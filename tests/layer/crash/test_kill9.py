"""Kill -9 during writes. BEASTCORE_KILL9_TRIALS=50 runs more than the 8 of every day."""

from __future__ import annotations

import os
import random

import pytest

from layer.crash import trials
from layer.crash.workload import expected, operation

TRIALS = int(os.environ.get("BEASTCORE_KILL9_TRIALS", "8"))
SEED = int(os.environ.get("BEASTCORE_KILL9_SEED", random.randrange(10**6)))

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="another operating system: it has no SIGKILL"
)


@pytest.mark.parametrize("number", range(TRIALS))
def test_every_acknowledged_write_is_in_the_store_after_kill_9(number: int) -> None:
    outcome = trials.run_trial(number, SEED)
    assert outcome.kills >= 1


@pytest.mark.parametrize("number", range(TRIALS))
def test_every_write_acknowledged_by_an_optimizer_is_in_the_store(number: int) -> None:
    assert trials.run_optimizer_trial(number, SEED).kills == 1


@pytest.mark.parametrize("number", range(4))
def test_a_replay_does_not_overwrite_a_commit_made_past_the_buffer(number: int) -> None:
    """Killed after a commit, while the journal has not noted the buffered write before it."""
    trials.run_optimizer_trial(number, SEED, "before-acknowledge")


def test_the_trials_would_see_a_lost_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trial with a recovery that forgets the journal must fail."""
    monkeypatch.setattr(trials, "_recover", lambda directory: 0)
    with pytest.raises(trials.LostWrite, match="was acknowledged"):
        for number in range(20):
            trials.run_trial(5, number)  # dies before a commit, so something is always missing


def test_neighbouring_states_differ() -> None:
    """Were two of them equal, one lost write could hide behind the other."""
    for n in range(1, 200):
        assert expected("k/1", n) != expected("k/1", n - 1), operation("k/1", n)
