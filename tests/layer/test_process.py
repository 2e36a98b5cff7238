"""What the process tells of itself, with psutil and without."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beastmode import process
from beastmode.process import ProcessProbe, ProcessStats

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="another operating system: /proc is Linux's"
)


@pytest.fixture(params=["psutil", "standard library"])
def probe(request: pytest.FixtureRequest) -> ProcessProbe:
    if request.param == "psutil":
        pytest.importorskip("psutil")
    made = ProcessProbe(use_psutil=request.param == "psutil")
    assert made.read().source == request.param
    return made


@linux_only
def test_memory_grows_with_what_is_held(probe: ProcessProbe) -> None:
    before = probe.read().memory_bytes
    with mmap.mmap(-1, 64 * 2**20) as held:  # new pages, never memory freed by something before
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        after = probe.read().memory_bytes
    assert before is not None
    assert after is not None
    assert 50 * 2**20 < after - before < 80 * 2**20


@linux_only
def test_descriptors_are_counted(probe: ProcessProbe, tmp_path: Path) -> None:
    before = probe.read().open_descriptors
    files = [(tmp_path / str(number)).open("w") for number in range(20)]
    after = probe.read().open_descriptors
    for file in files:
        file.close()
    assert before is not None
    assert after == before + 20
    assert probe.read().open_descriptors == before


@linux_only
def test_both_ways_agree() -> None:
    pytest.importorskip("psutil")
    theirs, ours = ProcessProbe().read(), ProcessProbe(use_psutil=False).read()
    assert theirs.open_descriptors == ours.open_descriptors
    assert theirs.memory_bytes == pytest.approx(ours.memory_bytes, rel=0.05)


def test_cpu_time_passes_with_work(probe: ProcessProbe) -> None:
    before = probe.read().cpu_seconds
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    assert 0.02 <= probe.read().cpu_seconds - before < 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="another operating system: no fork")
def test_a_child_after_a_fork_reads_itself(probe: ProcessProbe) -> None:
    """In a process of its own, because a fork copies pytest's threads' locks."""
    use_psutil = probe.read().source == "psutil"
    script = f"""
import os
from beastmode.process import ProcessProbe
probe = ProcessProbe(use_psutil={use_psutil})
parent = probe.read()
held = bytearray(b"x") * 64 * 2**20
child = os.fork()
if child == 0:
    del held
    own = probe.read()
    os._exit(0 if own.pid == os.getpid() and own.memory_bytes and own.memory_bytes <
             parent.memory_bytes + 32 * 2**20 else 1)
assert len(held) == 64 * 2**20
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_without_psutil_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with caplog.at_level("INFO", logger="beastmode.process"):
        probe = ProcessProbe()
        stats = probe.read()
        probe.read()
    assert stats.source == "standard library"
    assert [r.getMessage()[:23] for r in caplog.records if r.levelname == "INFO"] == [
        "psutil is not installed"
    ]


def test_what_is_unknown_is_none_and_names_what_would_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "not for you")

    monkeypatch.setattr(process.Path, "read_text", refuse)
    monkeypatch.setattr(process.os, "listdir", refuse)
    stats = ProcessProbe(use_psutil=False).read()
    assert (stats.memory_bytes, stats.open_descriptors) == (None, None)
    assert stats.missing.startswith("memory and open descriptors: psutil is not installed")
    assert 'pip install "beastcore[cli]"' in stats.missing


def test_psutil_that_may_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil")

    def refuse(self: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(process, "_open_descriptors", lambda: None)
    monkeypatch.setattr(psutil.Process, "memory_info", refuse)
    for name in ("num_fds", "num_handles"):
        if hasattr(psutil.Process, name):
            monkeypatch.setattr(psutil.Process, name, refuse)
    stats = ProcessProbe().read()
    assert (stats.memory_bytes, stats.open_descriptors) == (None, None)
    assert stats.missing == "memory and open descriptors: this system does not tell"


def test_psutil_counts_descriptors_where_we_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    exact = ProcessProbe().read().open_descriptors
    monkeypatch.setattr(process, "_open_descriptors", lambda: None)
    counted = ProcessProbe().read().open_descriptors
    assert counted is not None
    assert counted - exact in (0, 1) if exact is not None else counted > 0


def test_nothing_is_missing_when_all_is_known() -> None:
    assert ProcessStats(1, 2, 3, 0.5, "psutil").missing == ""


def test_importing_it_imports_no_psutil() -> None:
    script = "import sys, beastmode.process; raise SystemExit('psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
