"""Where settings come from: the TOML file and the names that stand for a setting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from beastmode.config._setting import Setting
from beastmode.errors import ConfigError

__all__ = ["FILE_VARIABLE", "SettingsFile", "by_setting", "read_file", "refuse_unknown"]

FILE_VARIABLE: Final = "BEASTMODE_CONFIG"
"""The environment variable that names the settings file."""
_DEFAULT_FILE: Final = "beastmode.toml"


def by_setting(
    settings: Mapping[str, Setting], keys: Mapping[str, object], prefix: str, place: str
) -> dict[str, str]:
    """Return which key of `keys` gives each setting that is given.

    `prefix` is empty, or what each key begins with; then keys are in capitals. ConfigError names
    an unknown key and `place`, or two keys that give the same setting.
    """
    aliases = _aliases(settings)
    spelled = {(name.upper() if prefix else name): name for name in settings}
    found: dict[str, str] = {}
    for key in keys:
        plain = key.removeprefix(prefix)
        name = spelled.get(plain) or aliases.get(plain)
        if name is None:
            hint = _did_you_mean(plain, [*spelled, *aliases], prefix)
            raise ConfigError(f"unknown setting {key!r} in {place}{hint}")
        if name in found:
            raise ConfigError(
                f"{name} is given twice in {place}: as {found[name]!r} and as {key!r}; keep one"
            )
        found[name] = key
    return found


def refuse_unknown(settings: Mapping[str, Setting], arguments: Mapping[str, object]) -> None:
    """Raise ConfigError for the first argument that names no setting."""
    aliases = _aliases(settings)
    for name in arguments:
        if name not in settings:
            hint = (
                f"; as an argument it is called {aliases[name]!r}"
                if name in aliases
                else _did_you_mean(name, list(settings), "")
            )
            raise ConfigError(f"unknown setting {name!r} in the arguments{hint}")


def _aliases(settings: Mapping[str, Setting]) -> dict[str, str]:
    return {setting.alias: name for name, setting in settings.items() if setting.alias}


def _did_you_mean(name: str, known: list[str], prefix: str) -> str:
    by_folded = {candidate.lower(): candidate for candidate in known}
    import difflib  # noqa: PLC0415 - only a mistake needs it

    close = difflib.get_close_matches(name.lower(), by_folded, n=1)
    if close:
        return f"; did you mean {prefix + by_folded[close[0]]!r}?"
    return "; allowed are " + ", ".join(prefix + candidate for candidate in known)


class SettingsFile(NamedTuple):
    """What was read from a settings file."""

    path: str
    place: str
    """How errors call it."""
    raw: dict[str, Any]


def read_file(
    settings: Mapping[str, Setting],
    file: str | os.PathLike[str] | None,
    env: Mapping[str, str],
) -> SettingsFile:
    """Return what the settings file holds, unchecked; nothing where none was named or found.

    ConfigError when it cannot be read, is no TOML, or has settings beside its [beastmode] table.
    """
    path = Path(_DEFAULT_FILE)
    place = f"the file {path}"
    if file is not None:
        path = Path(file)
        place = f"the file {path}"
    elif named := env.get(FILE_VARIABLE):
        path = Path(named)
        place = f"the file {path} (named by {FILE_VARIABLE})"
    elif not path.exists():
        return SettingsFile("", place, {})
    import tomllib  # noqa: PLC0415 - most processes have no file

    try:
        # Some editors put a byte order mark in front.
        raw = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} is no valid TOML: {error}") from error
    table = raw.get("beastmode")
    if table is None:
        return SettingsFile(str(path), place, raw)
    if not isinstance(table, dict):
        raise ConfigError(f"beastmode in {place} must be a table, got {table!r}")
    stray = [key for key in raw if key in settings or key in _aliases(settings)]
    if stray:
        raise ConfigError(
            f"{stray[0]!r} in {place} stands outside the table [beastmode]; move it inside"
        )
    return SettingsFile(str(path), place, table)
