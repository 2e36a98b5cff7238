"""The program `beastmode`: what it understands, and how it shows things. The only printer.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed,
2 a mistake in the arguments or settings, 130 interrupted.
"""

from __future__ import annotations

import json
import platform
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from beastcore import __version__, compiled
from beastmode import demo as demonstration
from beastmode import diagnostics
from beastmode.config import SETTINGS, BeastModeConfig
from beastmode.demo import show
from beastmode.errors import BeastError, ConfigError, RequestError, TraceError
from beastmode.stores.base import Store
from beastmode.stores.sqlite import SQLiteStore

__all__ = ["check", "cli", "config", "demo", "run"]

_QUICK_SECONDS: Final = 5.0
_QUICK_TOTAL_SECONDS: Final = 16.0
_QUICK_REQUESTS: Final = 250_000
_QUICK_DOCUMENTS: Final = 10_000
"""Of the emulator, which takes 15 s for 100,000 and would leave no time to play."""
_LINE_EVERY_S: Final = 2.0
_WIDEST: Final = 100
_STYLES: Final = {
    "excellent": "green",
    "good": "cyan",
    "fair": "yellow",
    "needs improvement": "red",
    "idle": "dim",
}


def run(arguments: list[str] | None = None) -> int:
    """Run one command (default: the arguments of this process) and return the exit code."""
    try:
        code = cli.main(arguments, prog_name="beastmode", standalone_mode=False)
    except click.Abort:
        return _complain("beastmode", "interrupted; nothing temporary is left behind", 130)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "beastmode"
        return _complain(command, f"{error.format_message()} (help: {command} --help)", 2)
    except click.ClickException as error:
        return _complain("beastmode", error.format_message(), error.exit_code)
    except (ConfigError, RequestError, TraceError) as error:
        return _complain("beastmode", str(error), 2)
    except BeastError as error:
        return _complain("beastmode", str(error), 1)
    except OSError as error:
        about = "" if error.filename is None else f" ({error.filename})"
        return _complain("beastmode", f"{error.strerror or error}{about}", 1)
    return code if isinstance(code, int) else 0


def _complain(command: str, text: str, code: int) -> int:
    click.echo(f"{command}: {text}", err=True)
    return code


_VERSION: Final = (
    f"beastmode {__version__} ({'compiled' if compiled else 'pure Python'} engine, "
    f"{platform.python_implementation()} {platform.python_version()})"
)


def _examples(*lines: str) -> str:
    """Return the end of a help text; the backspace tells click to leave the lines as they are."""
    return "\n  ".join(("\b\nExamples:", *lines))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    invoke_without_command=True,
    epilog=_examples(
        "beastmode demo --quick         watch what beast mode does, in 20 seconds",
        "beastmode config               the settings in effect and their sources",
        "beastmode check                does Firestore work from here",
    ),
)
@click.version_option(__version__, "--version", message=_VERSION)
@click.pass_context
def cli(context: click.Context) -> None:
    """Serve documents from a compiled cache in front of a store."""
    if context.invoked_subcommand is None:
        raise click.UsageError(f"name a command: {' or '.join(sorted(cli.commands))}")


@cli.command(
    epilog=_examples(
        "beastmode demo --quick",
        "beastmode demo --seconds 30 --json result.json",
        "beastmode demo --trace web07.npz --cache-entries 2000",
        "beastmode demo --quick --store firestore",
    )
)
@click.option("--quick", is_flag=True, help="Shorter phases: it all takes less than 20 seconds.")
@click.option(
    "--documents",
    type=int,
    metavar="N",
    help="Documents in the store.  [100,000; 10,000 with --quick on Firestore]",
)
@click.option("--users", type=int, metavar="N", help="Connected users.  [50,000]")
@click.option(
    "--requests",
    type=int,
    metavar="N",
    help="Most requests of a phase.  [1,000,000; all of a trace]",
)
@click.option(
    "--seconds",
    type=float,
    metavar="S",
    help="Most seconds of a phase; of a trace, only the disabled phase is cut short.  [15]",
)
@click.option("--workers", type=int, metavar="N", help="Concurrent requests.  [32]")
@click.option("--seed", type=int, metavar="N", help="Draws the same requests again.  [1]")
@click.option(
    "--cache-entries",
    type=int,
    metavar="N",
    help="Most documents in the cache.  [setting cache_max_entries]",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Play a recorded trace: its array 'keys' holds one integer for each read.",
)
@click.option(
    "--store",
    type=click.Choice(demonstration.STORES),
    help="Play on a SQLite file, or on the Firestore emulator (of FIRESTORE_EMULATOR_HOST, else "
    "one started for it).  [sqlite]",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Make the store in DIR and leave it there.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all figures and conditions to FILE.",
)
def demo(json_file: Path | None, *, quick: bool, **given: Any) -> int:
    """Play requests with beast mode disabled, then enabled.

    Makes a store of its own, plays reads (by a Zipf law), writes and heartbeats
    of connected users through the optimizer, and prints the key figures side by side with how they
    were measured. Settings come from the same places as for 'beastmode config'.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if "trace" in chosen and (idle := chosen.keys() & {"documents", "users", "seed"}):
        names = " and ".join(f"--{name}" for name in sorted(idle))
        raise click.UsageError(f"{names} cannot be given with --trace, which brings its own stream")
    if quick:
        chosen = {
            "seconds": _QUICK_SECONDS,
            "total_seconds": _QUICK_TOTAL_SECONDS,
            **({} if "trace" in chosen else {"requests": _QUICK_REQUESTS}),
            **(
                {"documents": _QUICK_DOCUMENTS}
                if chosen.get("store") == "firestore" and "trace" not in chosen
                else {}
            ),
            **chosen,
        }
    elif "trace" in chosen:
        chosen.setdefault("seconds", 10.0)
    options = demonstration.DemoOptions(**chosen)
    if json_file is not None:
        demonstration.check_target(json_file)
    progress: _Lines | _Bars = _Bars() if sys.stderr.isatty() else _Lines()
    with progress:
        result = demonstration.run_demo(options, on_progress=progress)
    _show(result)
    if json_file is not None:
        demonstration.write_json(json_file, result.to_dict())
        click.echo(f"Written: {json_file}")
    for problem in result.problems:
        click.echo(f"beastmode demo: {problem}", err=True)
    return 1 if result.problems else 0


@cli.command(
    epilog=_examples(
        "beastmode config",
        "beastmode config --file production.toml --json",
        "BEASTMODE_CACHE_TTL=60 beastmode config cache_max_entries=200000",
    )
)
@click.option("--file", type=click.Path(path_type=Path), metavar="F", help="A TOML file to read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
def config(file: Path | None, changes: tuple[str, ...], *, as_json: bool) -> None:
    """Print each setting in effect and where its value comes from.

    Later ones win: defaults; the file (--file, else $BEASTMODE_CONFIG, else ./beastmode.toml);
    environment variables BEASTMODE_...; NAME=VALUE here, to try a value.
    """
    settings = BeastModeConfig.load(file, **_arguments(changes))
    rows = settings.explain()
    if as_json:
        values = settings.to_dict()
        click.echo(
            json.dumps(
                {
                    row.name: {
                        "value": values[row.name],
                        "unit": row.unit,
                        "source": row.source,
                        "second_name": row.alias,
                    }
                    for row in rows
                },
                indent=1,
            )
        )
        return
    table = [("setting", "value", "from"), *((row.name, row.text, row.source) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    for name, value, source in table:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")


@cli.command(
    epilog=_examples(
        "beastmode check --project my-project",
        "FIRESTORE_EMULATOR_HOST=localhost:8080 beastmode check",
        "beastmode check --sqlite app.db --json",
    )
)
@click.option(
    "--project", metavar="P", help="Project.  [GOOGLE_CLOUD_PROJECT, or the credentials']"
)
@click.option("--database", metavar="D", help="Database.  [(default)]")
@click.option("--emulator", metavar="HOST:PORT", help="Emulator.  [FIRESTORE_EMULATOR_HOST]")
@click.option("--sqlite", type=click.Path(path_type=Path), metavar="FILE", help="Check this store.")
@click.option("--deadline", type=float, default=5.0, metavar="S", help="Seconds for a step.  [5]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    project: str | None,
    database: str | None,
    emulator: str | None,
    sqlite: Path | None,
    deadline: float,
    *,
    as_json: bool,
) -> int:
    """Try out the store: reach it, write, read, listen; and tell how long each took.

    It is Firestore unless --sqlite is given. Writes one document, _bm_check/..., a few times and
    removes it. Fails at the first step that does not work.
    """
    if not 0 < deadline <= 3600:
        raise click.UsageError(f"--deadline must be above 0 and at most 3600, got {deadline:g}")
    named = {"--project": project, "--database": database, "--emulator": emulator}
    if sqlite is not None and (idle := [name for name, value in named.items() if value]):
        raise click.UsageError(f"{' and '.join(idle)} cannot be given with --sqlite")

    def open_store(step: Callable[[str], AbstractContextManager[diagnostics.Note]]) -> Store:
        if sqlite is None:
            return diagnostics.firestore_store(step, project, database or "(default)", emulator)
        with step("open") as note:
            note.text = f"SQLite file {sqlite}"
            return SQLiteStore(sqlite)

    def tell(step: diagnostics.Step) -> None:
        if not as_json:
            state = "ok" if step.ok else "FAILED"
            line = f"{state:6}  {step.name:14} {step.seconds * 1000:8.1f} ms  {step.detail}"
            click.echo(line.rstrip())

    steps = diagnostics.diagnose(open_store, deadline_s=deadline, on_step=tell)
    if as_json:
        click.echo(json.dumps([asdict(step) for step in steps], indent=1))
    return 0 if all(step.ok for step in steps) else 1


def _arguments(changes: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of NAME=VALUE words."""
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise click.UsageError(f"expected NAME=VALUE, got {change!r}")
        if name in values:
            raise click.UsageError(f"{name} is given twice; keep one")
        known = SETTINGS.get(name)  # load() has the words for one that is not
        values[name] = (
            text if known is None else known.check(text, "the command line", from_text=True)
        )
    return values


def _show(result: demonstration.DemoResult) -> None:
    """Print a result: the table, what it says, how it was measured."""
    console = Console(highlight=False)
    width = min(console.width, _WIDEST)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "beast mode disabled", "beast mode enabled"):
        table.add_column(Text(heading, style="bold"), no_wrap=True)
    for row in show.comparison(result):
        style = "dim" if row.title.startswith(" ") else ""
        table.add_row(
            Text(row.title, style=style),
            _rated(row.disabled, row.disabled_rating, style),
            _rated(row.enabled, row.enabled_rating, style),
        )
    console.print()
    console.print(table)
    for title, sentences in (
        ("What it says", show.findings(result)),
        ("How it was measured", show.method(result)),
    ):
        console.print()
        console.print(Text(title, style="bold"))
        for sentence in sentences:
            lines = textwrap.fill(
                sentence, width, initial_indent="- ", subsequent_indent="  ",
                break_on_hyphens=False, break_long_words=False,
            )  # fmt: skip
            console.print(Text(lines), soft_wrap=True)
    if result.store["path"] is not None:
        console.print(Text(f"\nThe store: {result.store['path']}"), soft_wrap=True)


def _rated(value: str, rating: str, style: str) -> Text:
    text = Text(value, style=style)
    if rating:
        text.append(f"  {rating}", style=_STYLES[rating])
    return text


class _Lines:
    """Progress where there is no terminal: a line when a stage is over, or takes long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave everything as it was printed."""

    def __call__(self, step: demonstration.Progress) -> None:
        """Tell of a step."""
        now = time.monotonic()
        if step.finished or now >= self._next:
            self._next = now + _LINE_EVERY_S
            state = "done" if step.finished else f"{step.share:4.0%}"
            click.echo(f"{state:>4}  {step.title}: {step.text}", err=True)


class _Bars:
    """Progress on a terminal: one bar for each stage, drawn anew at most four times a second."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True, highlight=False),
            auto_refresh=False,  # a thread that draws would compete with what is measured
        )
        self._tasks: dict[str, TaskID] = {}
        self._next = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, step: demonstration.Progress) -> None:
        """Tell of a step."""
        task = self._tasks.get(step.title)
        if task is None:
            task = self._tasks[step.title] = self._bars.add_task(step.title, total=1.0, text="")
        now = time.monotonic()
        if step.finished or now >= self._next:
            self._next = now + 0.25
            self._bars.update(task, completed=step.share, text=step.text)
            self._bars.refresh()
