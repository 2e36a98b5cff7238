"""Kill -9 during writes. BEASTCORE_KILL9_TRIALS=50 runs more than the 8 of every day."""

from __future__ import annotations

import os
import random

import pytest

from beastmode.journal import Journal
from beastmode.testing.pytest_plugin import Firestore
from layer.crash import trials
from layer.crash.stores import firestore_name
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


@pytest.mark.parametrize("number", range(max(TRIALS, len(trials.COUNTING_POINTS))))
def test_transforms_are_applied_once_whatever_the_journal_has_noted(number: int) -> None:
    outcome = trials.run_trial(number, SEED, counting=True)
    assert outcome.kills >= 1


@pytest.mark.parametrize("number", range(max(4, TRIALS - 4)))
def test_transforms_are_applied_once_in_firestore(number: int, firestore: Firestore) -> None:
    name = firestore_name(firestore.host, firestore.project)
    assert trials.run_trial(number, SEED, counting=True, store=name).kills >= 1


@pytest.mark.parametrize("number", range(max(1, TRIALS // 8)))
def test_what_a_bad_network_delivers_late_is_not_applied_twice(
    number: int, firestore: Firestore
) -> None:
    trials.run_faulty_trial(number, SEED, firestore.host, firestore.project)


@pytest.mark.parametrize("number", range(max(2, TRIALS // 4)))
def test_plain_writes_that_a_bad_network_delivers_late_undo_nothing(
    number: int, firestore: Firestore
) -> None:
    outcome = trials.run_faulty_trial(
        number, SEED, firestore.host, firestore.project, counting=False
    )
    assert outcome.kills == 1


def test_the_trials_would_see_a_second_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trial with a recovery that forgets which batches were sent must fail."""
    real = Journal.recover_batches
    monkeypatch.setattr(Journal, "recover_batches", lambda self: ([], real(self)[1]))
    monkeypatch.setattr(Journal, "is_settled", True)
    seen: list[str] = []
    for number in range(20):
        try:
            trials.run_trial(0, number, counting=True)  # dies after a commit
        except trials.LostWrite as error:
            seen.append(str(error))
            if "-count" in seen[-1]:
                return
    pytest.fail(f"no second application was seen: {seen}")


@pytest.mark.parametrize("number", range(TRIALS))
def test_every_write_acknowledged_by_an_optimizer_is_in_the_store(number: int) -> None:
    assert trials.run_optimizer_trial(number, SEED).kills == 1


@pytest.mark.parametrize("number", range(4))
def test_a_replay_does_not_overwrite_a_commit_made_past_the_buffer(number: int) -> None:
    """Killed after a commit, while the journal has not noted the buffered write before it."""
    trials.run_optimizer_trial(number, SEED, "before-acknowledge")


def test_the_trials_would_see_a_lost_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trial with a recovery that forgets the journal must fail."""
    monkeypatch.setattr(trials, "_recover", lambda *args, **kwargs: (0, 0))
    with pytest.raises(trials.LostWrite, match="was acknowledged"):
        for number in range(20):
            trials.run_trial(5, number)  # dies before a commit, so something is always missing


def test_neighbouring_states_differ() -> None:
    """Were two of them equal, one lost write could hide behind the other."""
    for key in ("k/1", "k/1-count"):
        for n in range(1, 200):
            assert expected(key, n) != expected(key, n - 1), operation(key, n)
