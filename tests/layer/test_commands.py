"""The program `beastmode`: output for people and pipes, exit codes, errors in one line."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beastmode import demo as demonstration
from beastmode.config import SETTINGS, BeastModeConfig
from beastmode.demo import DemoOptions
from beastmode.errors import StoreUnavailable

TINY = ("--documents=200", "--users=20", "--requests=1500", "--seconds=20", "--workers=8")

Program = Callable[..., tuple[int, str, str]]


# -- demo ------------------------------------------------------------------------------------------


def test_demo_prints_both_phases_side_by_side(beastmode: Program) -> None:
    code, out, err = beastmode("demo", *TINY)
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in out + err
    heading = next(line for line in lines if "beast mode disabled" in line)
    assert "beast mode enabled" in heading
    for title in (
        "Response time, mean", "Throughput", "Hit rate", "Connection utilisation", "Memory",
        "Cost reduction", "Overall efficiency", "What it says", "How it was measured",
    ):  # fmt: skip
        assert any(line.startswith(title) for line in lines), title
    assert [line.split(":")[0] for line in err.splitlines() if line.startswith("done")] == [
        "done  drawing the requests",
        "done  making a SQLite store",
        "done  beast mode disabled",
        "done  beast mode enabled",
    ]


@pytest.mark.parametrize(
    ("given", "documents"),
    [
        ((), 100_000),
        (("--store", "firestore"), 10_000),
        (("--store", "firestore", "--documents", 77), 77),
    ],
)
def test_the_quick_demo_has_time_to_play(
    beastmode: Program, monkeypatch: pytest.MonkeyPatch, given: tuple[object, ...], documents: int
) -> None:
    asked = []

    def run_demo(options: DemoOptions, **_: object) -> None:
        asked.append(options.documents)
        raise StoreUnavailable("enough")

    monkeypatch.setattr(demonstration, "run_demo", run_demo)
    assert beastmode("demo", "--quick", *given)[0] == 1
    assert asked == [documents]


def test_demo_of_a_trace_with_json(beastmode: Program, tmp_path: Path) -> None:
    np.savez(tmp_path / "web.npz", keys=np.arange(1_000, dtype=np.uint32) % 100)
    code, out, err = beastmode(
        "demo", "--trace", "web.npz", "--cache-entries", 60, "--workers", 1, "--json", "out.json"
    )
    assert code == 0, err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["trace"] == {"file": "web.npz", "requests": 1_000, "unique_keys": 100}
    assert found["conditions"]["cache_max_entries"] == 60
    enabled = found["phases"]["enabled"]
    words = " ".join(out.split())
    assert "Trace web.npz: 1,000 requests of 100 documents, played to the end" in words
    assert f"Saved store reads: {1_000 - enabled['store_reads']:,} of 1,000" in words
    assert "saves more than 90.0 %" in words
    assert enabled["evictions"] > 0
    assert out.endswith("Written: out.json\n")


def test_demo_takes_the_settings_from_the_environment(
    beastmode: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEASTMODE_MAX_CONCURRENT_USERS", "10")
    code, _, err = beastmode("demo", *TINY)
    assert code == 2
    assert "users must be at most max_connections (10), got 20" in err


def test_demo_fails_where_requests_failed(
    beastmode: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = ["with beast mode enabled, 2 of 3 requests failed"]
    monkeypatch.setattr("beastmode.demo.DemoResult.problems", property(lambda _: problem))
    code, out, err = beastmode("demo", *TINY)
    assert code == 1
    assert "Throughput" in out
    assert err.endswith("beastmode demo: with beast mode enabled, 2 of 3 requests failed\n")


def test_quick_is_bounded_by_time(beastmode: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(options: object, **_: object) -> None:
        asked.append(options)
        raise StoreUnavailable("enough")

    monkeypatch.setattr("beastmode.demo.run_demo", note)
    assert beastmode("demo", "--quick") == (1, "", "beastmode: enough\n")
    assert beastmode("demo", "--quick", "--seconds", "2", "--requests", "7")[0] == 1
    assert beastmode("demo")[0] == 1
    assert beastmode("demo", "--trace", "x.npz")[0] == 1
    bounds = [(o.seconds, o.total_seconds, o.requests) for o in asked]  # type: ignore[attr-defined]
    assert bounds == [(5, 16, 250_000), (2, 16, 7), (15, None, None), (10, None, None)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--users", "0"], "users must be from 1 to 10,000,000, got 0"),
        (["--seconds", "x"], "'--seconds': 'x' is not a valid float"),
        (["--seconds", "nan"], "seconds must be from"),
        (["--documents", "1.5"], "'--documents': '1.5' is not a valid integer"),
        (["--trace", "none.npz"], "the trace none.npz cannot be read: No such file"),
        (["--trace", "a.npz", "--users", "3"], "--users cannot be given with --trace"),
        (["--trace", "a.npz", "--seed", "3", "--documents", "2"], "--documents and --seed cannot"),
        (["--json", "none/out.json"], "--json: there is no folder"),
        (["--json", "."], "--json must name a file"),
        (["--keep", "file/in"], "keep: file/in cannot be made: Not a directory"),
        (["--bogus"], "No such option '--bogus'"),
        (["word"], "unexpected extra argument"),
    ],
)
def test_demo_answers_a_mistake_in_one_line(
    beastmode: Program, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "file").touch()
    code, out, err = beastmode("demo", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="another operating system: no SIGINT to send")
def test_demo_interrupted_ends_cleanly(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "beastmode", "demo", "--documents=3000", "--requests=50000"],
        env=os.environ | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    told = ""
    while "making a SQLite store" not in told:  # done: then the first phase is under way
        told = program.stderr.readline()
        assert told, program.wait()
    assert list(tmp_path.iterdir()) != []
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=30)
    assert program.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "beastmode: interrupted; nothing temporary is left behind"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="another operating system: no pseudo terminals")
def test_demo_draws_bars_on_a_terminal() -> None:
    import pty

    main, side = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "beastmode", "demo", *TINY],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=side,
    )
    os.close(side)
    seen = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([main], [], [], 0.1)[0]:
            try:
                chunk = os.read(main, 65_536)
            except OSError:  # Linux's way of saying that the other side is closed
                break
            if not chunk:
                break
            seen += chunk
    out, _ = program.communicate(timeout=30)
    os.close(main)
    assert program.returncode == 0
    assert "━".encode() in seen
    assert b"beast mode enabled" in seen
    assert b"\x1b" not in out  # the result is piped: no colours


# -- config ----------------------------------------------------------------------------------------


def test_config_prints_each_value_and_where_it_came_from(
    beastmode: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "beastmode.toml").write_text("batch_max_ops = 20\ncache_ttl_s = 9\n")
    monkeypatch.setenv("BEASTMODE_CACHE_TTL", "60")
    code, out, err = beastmode("config", "memory_limit_bytes=512MiB")
    assert (code, err) == (0, "")
    heading, *rows = (line.split("  ") for line in out.splitlines())
    assert [word.strip() for word in heading if word] == ["setting", "value", "from"]
    cells = [[word.strip() for word in row if word.strip()] for row in rows]
    assert [row[0] for row in cells] == list(SETTINGS)
    found = {name: (value, source) for name, value, source in cells}
    assert found["cache_ttl_s"] == ("60 s", "BEASTMODE_CACHE_TTL")
    assert found["batch_max_ops"] == ("20 operations", "beastmode.toml")
    assert found["memory_limit_bytes"] == ("512 MiB", "argument")
    assert found["max_connections"] == ("100,000 connections", "default")


def test_config_as_json_gives_the_same_settings_back(beastmode: Program, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("cache_ttl_s = 'never'\n")
    code, out, _ = beastmode("config", "--file", "my.toml", "--json", "write_mode=write-through")
    assert code == 0
    found = json.loads(out)
    assert list(found) == list(SETTINGS)
    assert found["cache_ttl_s"] == {
        "value": "never", "unit": "s", "source": "my.toml", "second_name": "CACHE_TTL",
    }  # fmt: skip
    values = {name: entry["value"] for name, entry in found.items()}
    assert BeastModeConfig(**values) == BeastModeConfig(
        cache_ttl_s=float("inf"), write_mode="write-through"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cache_ttl_s=-1"], "cache_ttl_s must be a number from 0.001"),
        (["cache_ttl_s"], "expected NAME=VALUE, got 'cache_ttl_s'"),
        (["cache_ttl_s=1", "cache_ttl_s=2"], "cache_ttl_s is given twice"),
        (["cash_ttl_s=1"], "did you mean 'cache_ttl_s'?"),
        (["--file", "none.toml"], "the file none.toml cannot be read"),
    ],
)
def test_config_answers_a_mistake_in_one_line(
    beastmode: Program, arguments: list[str], words: str
) -> None:
    code, out, err = beastmode("config", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


# -- the program -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_without_a_command_it_names_them(beastmode: Program, arguments: list[str]) -> None:
    code, out, err = beastmode(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("beastmode: ")
    assert "beastmode --help" in err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["config", "-h"]])
def test_help_has_examples_and_fits(beastmode: Program, arguments: list[str]) -> None:
    code, out, _ = beastmode(*arguments)
    assert code == 0
    assert "Examples:\n" in out
    assert "    beastmode " in out
    assert max(map(len, out.splitlines())) <= 80


def test_version_tells_the_engine(beastmode: Program) -> None:
    code, out, _ = beastmode("--version")
    assert code == 0
    assert "engine, CPython" in out


def test_a_disk_error_is_one_line(beastmode: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "demo.db")

    monkeypatch.setattr("beastmode.demo.run_demo", full)
    code, out, err = beastmode("demo")
    assert (code, out) == (1, "")
    assert err == "beastmode: No space left on device (demo.db)\n"
