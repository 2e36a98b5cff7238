"""usage: python -m tests.layer.crash [--trials N] [--seed N], at the top of the checkout."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from layer.crash.trials import run_trial


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a writing process again and again.")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    started = time.monotonic()
    kills = acknowledged = replayed = 0
    for number in range(options.trials):
        outcome = run_trial(number, options.seed)
        kills += outcome.kills
        acknowledged += outcome.acknowledged
        replayed += outcome.replayed
        print(f"trial {number + 1}: {outcome}", flush=True)
    print(
        f"{options.trials} trials, {kills} kills, seed {options.seed}: {acknowledged} acknowledged "
        f"writes, {replayed} replayed, 0 lost, {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
