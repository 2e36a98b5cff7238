"""Run the engine's tests under tools that find what tests alone do not; `./dev sanitize`.

usage: python tests/sanitize [--fast] [STEP ...]

Steps (all, if none is named):
  asan    AddressSanitizer and UndefinedBehaviorSanitizer: the engine's tests and the scripts for
          leaks, among them those that fail every allocation in turn and those with four threads
  lsan    LeakSanitizer: memory of the C heap that the scripts for leaks lose
  debug   a debug CPython: its assertions, and totals of references that must not grow
  dev     Python's development mode, with the debug hooks of its allocators
  model   100,000 steps of the hypothesis machine: the twins of `Cache` against each other

--fast runs `asan` alone, on the tests that provoke the engine. Every tool first has to find bugs
that were put there on purpose (seeded.c). A tool that is missing is named and skipped, unless
BEASTCORE_FAIL_ON_SKIP=1. ThreadSanitizer is not here: under the interpreter's lock the engine's
structures are never entered by two threads at once, so there is nothing for it to find.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from builds import ROOT, Missing, build_debug, build_sanitized, runtime

LEAK_SCRIPTS = [
    *("batch_leaks.py", "connections_leaks.py", "latency_leaks.py"),
    *("memo_leaks.py", "memo_options_leaks.py"),
]
PROVOKING = ["hazards", "hostile", "threads", "collisions"]
"""The files of tests/engine that --fast runs, with every failing allocation."""
QUARANTINE = "tests/engine/test_memo_methods.py::test_a_new_object_at_the_address_of_a_dead_one"
"""AddressSanitizer does not hand freed memory out again, which this test needs."""
SLOW = "not pure and not lockstep and not Lockstep"
"""Long comparisons of the twins find nothing more at a fifth of the speed."""
NO_MEMORY = "not nomemory and not allocation and not memory_is_short and not MemoryIsShort"
"""A debug CPython may fail an assertion of its own evaluation loop where memory is short."""
TESTS = ["tests/engine", "tests/leaks"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which `folder` is what `import beastcore` finds."""
    environ = {k: v for k, v in os.environ.items() if k not in {"BEASTCORE_PURE", "PYTHONPATH"}}
    paths = (folder, ROOT / "python", ROOT / "tests", ROOT / "tests" / "leaks" / "isolated")
    environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return environ | more


def sanitized(folder: Path, *, leaks: bool = False) -> dict[str, str]:
    """Return the environment of the sanitizers; they report into files of build/asan/reports."""
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    log = f"log_path={reports}/report"
    return environment(
        folder,
        LD_PRELOAD=" ".join(map(str, runtime())),
        PYTHONMALLOC="malloc",
        ASAN_OPTIONS=f"detect_leaks={int(leaks)}:allocator_may_return_null=1:{log}",
        UBSAN_OPTIONS=f"print_stacktrace=1:halt_on_error=1:{log}",
        LSAN_OPTIONS=log,
    )


def reports(folder: Path) -> str:
    """Return what the sanitizers have reported."""
    files = sorted((folder / "reports").iterdir())
    return "\n".join(path.read_text("utf-8", "replace") for path in files)


def execute(*words: object, env: dict[str, str], quiet: bool = False) -> int:
    """Run a command in the checkout and return its exit code."""
    where = subprocess.DEVNULL if quiet else None
    command = [str(word) for word in words]
    return subprocess.run(
        command, cwd=ROOT, env=env, stdout=where, stderr=where, check=False
    ).returncode


def must_find(folder: Path, bug: str, text: str) -> None:
    """Run a bug of seeded.c, which the sanitizers must report as `text`."""
    env = sanitized(folder)
    code = f"import seeded; seeded.{bug}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    seen = done.stderr + reports(folder)  # the one of the two runtimes writes to stderr
    if done.returncode == 0 or text not in seen:
        raise SystemExit(f"the sanitizers do not find {bug}: exit code {done.returncode}, {seen}")


def loads(python: object, folder: Path, env: dict[str, str]) -> None:
    """Verify that the engine is the one of this build."""
    code = (
        "import beastcore._cache as c, beastcore._memo as m; print(c.__file__); print(m.__file__)"
    )
    out = subprocess.run(
        [str(python), "-c", code], env=env, capture_output=True, text=True, check=False
    )
    found = out.stdout.split()
    if len(found) != 2 or not all(Path(path).is_relative_to(folder) for path in found):
        raise SystemExit(f"the engine of {folder} is not loaded: {out.stdout}{out.stderr}")


def pytest(python: object, env: dict[str, str], *words: str) -> bool:
    """Run tests; tell whether they passed."""
    common = ["-q", "-p", "no:faulthandler", "-p", "no:cacheprovider", "-o", "timeout=600"]
    return execute(python, "-m", "pytest", *common, *words, env=env) == 0


def run_asan(fast: bool = False) -> bool:
    """AddressSanitizer and UndefinedBehaviorSanitizer."""
    folder = build_sanitized()
    must_find(folder, "overflow(16)", "heap-buffer-overflow")
    must_find(folder, "use_after_free(0)", "heap-use-after-free")
    must_find(folder, "signed_overflow(2**31 - 1)", "signed integer overflow")
    must_find(folder, "release_too_often(0)", "heap-use-after-free")
    env = sanitized(folder)
    loads(sys.executable, folder, env)
    tests = [*TESTS, f"--deselect={QUARANTINE}"]
    if fast:
        tests = [f"tests/engine/test_{name}.py" for name in PROVOKING]
        tests.append("tests/leaks/test_nomemory.py")
    passed = pytest(sys.executable, env, *tests, "-k", "not pure")
    found = reports(folder)
    if found:
        print(found)
    return passed and not found


def run_lsan() -> bool:
    """LeakSanitizer, on plain scripts; the interpreter's own leaks are not ours."""
    folder = build_sanitized()
    env = sanitized(folder, leaks=True)
    execute(sys.executable, "-c", "import seeded; seeded.leak_memory(0)", env=env, quiet=True)
    if not lost(reports(folder), "seeded"):
        raise SystemExit("LeakSanitizer does not find the seeded leak")
    passed = True
    for name in [*LEAK_SCRIPTS, "cache_refcounts.py", "cache_nomemory.py", "engine_nomemory.py"]:
        env = sanitized(folder, leaks=True)
        script = ROOT / "tests" / "leaks" / "isolated" / name
        execute(sys.executable, script, "compiled", env=env, quiet=True)
        found = lost(reports(folder), "beastcore")
        print(f"{name}: {len(found)} leaks", *found, sep="\n")
        passed = passed and not found
    return passed


def lost(report: str, name: str) -> list[str]:
    """Return the leaks of a report that have `name` in their stack, or of any object.

    The stack of an object ends where CPython allocates it, if that has no frame pointers: whose it
    is cannot be told. What is left are traces that tracemalloc, a tool of the scripts, does not
    give back.
    """
    blocks = re.split(r"\n\s*\n", report)
    ours = (name, "PyType_GenericAlloc")
    return [block for block in blocks if "leak of" in block and any(x in block for x in ours)]


def run_debug() -> bool:
    """A debug CPython."""
    folder, python = build_debug()
    env = environment(folder, PYTHONFAULTHANDLER="0")
    loads(python, folder, env)
    crash = "import seeded; seeded.release_too_often(0)"
    if execute(python, "-X", "dev", "-c", crash, env=env, quiet=True) == 0:
        raise SystemExit("the debug CPython does not find that a reference is released too often")
    leak = (
        "import sys, seeded; from engine_tools import leaking; thing = object()\n"
        "def leaky(): seeded.leak_reference(thing)\n"
        "sys.exit(not leaking([leaky]))"
    )
    if execute(python, "-c", leak, env=env) != 0:
        raise SystemExit("the totals of references do not show the seeded leak")
    return pytest(python, env, *TESTS, "-k", f"{SLOW} and {NO_MEMORY}")


def run_dev() -> bool:
    """Python's development mode."""
    env = environment(ROOT / "src", PYTHONDEVMODE="1", PYTHONMALLOC="debug")
    return pytest(sys.executable, env, *TESTS, "-k", SLOW)


def run_model() -> bool:
    """The hypothesis machine at length."""
    words = [ROOT / "tests" / "cache_machine.py", "--steps", 100_000]
    return execute(sys.executable, *words, env=environment(ROOT / "src")) == 0


STEPS: dict[str, Callable[[], bool]] = {
    "asan": run_asan,
    "lsan": run_lsan,
    "debug": run_debug,
    "dev": run_dev,
    "model": run_model,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev sanitize", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--fast", action="store_true", help="what `./dev test` runs as well")
    options = parser.parse_args()
    unknown = [name for name in options.steps if name not in STEPS]
    if unknown:
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    verdicts = {}
    for name in ["asan"] if options.fast else options.steps or STEPS:
        print(f"== {name}: {STEPS[name].__doc__}", flush=True)
        start = time.monotonic()
        try:
            passed = run_asan(fast=True) if options.fast else STEPS[name]()
            verdicts[name] = "passed" if passed else "FAILED"
        except Missing as what:
            forbidden = os.environ.get("BEASTCORE_FAIL_ON_SKIP") == "1"
            verdicts[name] = f"{'FAILED' if forbidden else 'SKIPPED'}, missing here: {what}"
        verdicts[name] += f" ({time.monotonic() - start:.0f} s)"
    print("== verdict")
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}")
    return int(any(verdict.startswith("FAILED") for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
