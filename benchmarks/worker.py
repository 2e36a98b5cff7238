"""Runs a function of these benchmarks in a fresh interpreter.

A fresh interpreter has its own hash seed and its own place for every object, so that figures of
several of them do not rest on one lucky layout, and nothing that ran before is in its memory.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    """Return what `function(**arguments)` returns there; both travel as JSON.

    RuntimeError carries what the interpreter said if it failed.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.worker",
        function.__module__,
        function.__name__,
        json.dumps(arguments),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    module, name, arguments = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    print(json.dumps(function(**json.loads(arguments))))


if __name__ == "__main__":
    main()
