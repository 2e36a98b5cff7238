"""The hypothesis machine of `Cache` at length: `python tests/cache_machine.py --steps 100000`.

Runs the machine of tests/engine/test_cache_model.py on both twins, and the model of "lru", until
so many steps were compared, and prints the count and the seed. The first difference ends it with
the shortest steps that hypothesis finds for it. A new operation needs a rule there and a row in
`random_step` of cache_lockstep.py; nothing here.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

MACHINE = Path(__file__).parent / "engine" / "test_cache_model.py"
EXAMPLES, LENGTH = 250, 60
"""Runs of one call of hypothesis, and most steps in each."""


def machine_class() -> Any:
    """Return the machine of the tests."""
    spec = importlib.util.spec_from_file_location("test_cache_model", MACHINE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{MACHINE} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.CacheMachine


def play(steps: int, first_seed: int, twins: tuple[bool, ...] = (True, False)) -> int:
    """Compare at least `steps` steps; return how many there were."""
    done = 0
    while done < steps:
        machine: Any = type("Machine", (machine_class(),), {"twins": twins, "steps": 0})
        case = machine.TestCase
        case.settings = settings(
            max_examples=EXAMPLES,
            stateful_step_count=LENGTH,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate, Phase.shrink],
        )
        seed(first_seed + done)(machine)
        case("runTest").runTest()
        if machine.steps == 0:
            raise AssertionError("the machine took no step")
        done += machine.steps
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    start = time.monotonic()
    done = play(options.steps, options.seed)
    print(f"{done} steps without a difference, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
