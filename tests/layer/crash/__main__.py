"""usage: python -m tests.layer.crash [--trials N] [--what W] [--store S] [--seed N], at the top.

Kills a writing process with SIGKILL again and again; ends with an error at the first write that
was acknowledged and is not in the store, and at the first transform that was applied twice.

--what   plain         without transforms
         counting      with transforms, lost answers and refused operations (default)
         faulty        the same over a proxy that cuts and holds up the connection (Firestore)
         faulty-plain  without transforms over such a proxy (Firestore)
--store  sqlite (default) or firestore: an emulator that is started here
--json   the figures as one line of JSON at the end
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from beastmode.testing import fresh_project, start_emulator
from layer.crash.stores import firestore_name
from layer.crash.trials import Outcome, run_faulty_trial, run_trial

WHATS = ("plain", "counting", "faulty", "faulty-plain")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill a writing process again and again.")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--what", choices=WHATS, default="counting")
    parser.add_argument("--store", choices=("sqlite", "firestore"), default="sqlite")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.what.startswith("faulty"):
        given.store = "firestore"
    return given


def main() -> None:
    given = options()
    started = time.monotonic()
    total = Outcome()
    with contextlib.ExitStack() as stack:
        trial: Callable[[int], Outcome]
        if given.store == "firestore":
            host = stack.enter_context(start_emulator()).host

            def trial(number: int) -> Outcome:
                project = fresh_project()
                counting = given.what in ("counting", "faulty")
                if given.what.startswith("faulty"):
                    return run_faulty_trial(number, given.seed, host, project, counting=counting)
                name = firestore_name(host, project)
                return run_trial(number, given.seed, counting=counting, store=name)

        else:

            def trial(number: int) -> Outcome:
                return run_trial(number, given.seed, counting=given.what == "counting")

        for number in range(given.trials):
            outcome = trial(number)
            total += outcome
            print(f"trial {number + 1}: {outcome}", flush=True)
    seconds = time.monotonic() - started
    print(
        f"{given.trials} trials ({given.what}, {given.store}), {total.kills} kills, seed "
        f"{given.seed}: {total.acknowledged} acknowledged writes, {total.counted} of them counted "
        f"with transforms, {total.replayed} replayed, {total.confirmed} commits found by their "
        f"marker, 0 lost, 0 applied twice, {seconds:.1f} s"
    )
    if given.json:
        figures = {"trials": given.trials, "what": given.what, "store": given.store}
        print(json.dumps({**figures, "seed": given.seed, "seconds": seconds, **vars(total)}))


if __name__ == "__main__":
    main()
