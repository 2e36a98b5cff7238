"""One setting: what it allows, how its value is read from text, how it is shown."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Final, Literal, SupportsIndex

from beastmode.errors import ConfigError

__all__ = ["PREFIX", "Kind", "Setting"]

PREFIX: Final = "BEASTMODE_"
"""What the name of every environment variable begins with."""

Kind = Literal[
    "int", "seconds", "milliseconds", "bytes", "choice", "path", "price", "currency", "collections"
]

_BINARY: Final = {"PiB": 2**50, "TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_SIZES: Final[Mapping[str, int]] = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    **{unit.upper(): size for unit, size in _BINARY.items()},
}


class _NotAllowedError(Exception):
    """A value is not allowed; carries what to add to the error's text."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known about one setting beside its value."""

    name: str
    default: Any
    kind: Kind
    about: str
    """One sentence for the documentation."""
    low: float = 0
    high: float = 0
    """The smallest and the largest number allowed, both inclusive."""
    unit: str = ""
    alias: str | None = None
    """The second name, in capitals."""
    live: bool = False
    """Whether a running system takes a new value (`optimizer.configure`)."""
    endless: bool = False
    """Whether inf, or the word never, is allowed too."""
    optional: bool = False
    """Whether None is allowed too."""
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.kind == "choice":
            return " or ".join(map(repr, self.choices))
        if self.kind == "path":
            return "a file path" + (" or None" if self.optional else "")
        if self.kind == "currency":
            return "an ISO 4217 code such as 'USD'"
        if self.kind == "collections":
            return "a list of collection paths such as 'users' or 'users/7/orders'"
        noun = "an integer" if self.kind == "int" else "a number"
        if self.kind == "bytes":
            noun = "a number of bytes, such as 1073741824 or '1GiB',"
        unit = {"seconds": " seconds", "milliseconds": " ms"}.get(self.kind, "")
        text = f"{noun} from {self.text(self.low)} to {self.text(self.high)}{unit}"
        return text + (" or inf (never)" if self.endless else "")

    def text(self, value: object) -> str:
        """Return `value` as people read it."""
        if value is None:
            return "none"
        if isinstance(value, str):
            return value
        if isinstance(value, tuple):
            return ", ".join(value) or "none"
        if value == math.inf:
            return "never"
        if self.kind == "bytes" and isinstance(value, int):
            for unit, size in _BINARY.items():
                if value >= size and not value % size:
                    return f"{value // size:,} {unit}"
        number = value if isinstance(value, (int, float)) else float(str(value))
        return f"{int(number):,}" if number == int(number) else f"{number:,}"

    def check(self, value: object, source: str, *, from_text: bool = False) -> Any:
        """Return `value` normalised, or raise ConfigError naming `source`.

        `from_text`: the value comes from the environment, where everything is text.
        """
        try:
            return self._convert(value, from_text=from_text)
        except _NotAllowedError as error:
            hint = f" ({error})" if str(error) else ""
            raise ConfigError(
                f"{self.name} must be {self.allowed}; got {reprlib.repr(value)}{hint} from {source}"
            ) from None

    def _convert(self, value: object, *, from_text: bool) -> Any:
        if value is None and self.optional:
            return None
        if self.kind == "choice":
            if value not in self.choices:
                raise _NotAllowedError
            return value
        if self.kind == "path":
            return _to_path(value)
        if self.kind == "collections":
            return _to_collections(value, from_text=from_text)
        if self.kind == "currency":
            if not isinstance(value, str) or not re.fullmatch("[A-Z]{3}", value):
                raise _NotAllowedError
            return value
        number = self._to_number(value, from_text=from_text)
        if self.endless and number == math.inf:
            return math.inf
        if math.isnan(number) or not self.low <= number <= self.high:
            raise _NotAllowedError
        return number

    def _to_number(self, value: object, *, from_text: bool) -> float:
        if isinstance(value, str):
            value = value.strip()
            if self.endless and value.lower() == "never":
                return math.inf
            if self.kind == "bytes":
                return _to_size(value)
            if not from_text:
                raise _NotAllowedError("a number, not text")
            try:
                return int(value) if self.kind == "int" else float(value)
            except ValueError:
                raise _NotAllowedError from None
        if isinstance(value, bool):
            raise _NotAllowedError("a number, not a truth value")
        if self.kind in ("int", "bytes"):
            if not isinstance(value, SupportsIndex):
                raise _NotAllowedError
            return value.__index__()
        if not isinstance(value, Real):
            raise _NotAllowedError
        try:
            return float(value)
        except OverflowError:
            raise _NotAllowedError from None


def _to_size(text: str) -> int:
    """Return the whole bytes of a size such as '512MiB'."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?) *([A-Za-z]*)", text)
    factor = _SIZES.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise _NotAllowedError("units are B, KB, MB, GB, TB and KiB, MiB, GiB, TiB")
    try:
        # Exact, and imported here because it takes longer than the rest of this package.
        from fractions import Fraction  # noqa: PLC0415

        return int(Fraction(match[1]) * factor)
    except ValueError:  # misplaced underscores
        raise _NotAllowedError from None


def _to_collections(value: object, *, from_text: bool) -> tuple[str, ...]:
    if from_text and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise _NotAllowedError("a list; in the environment the paths are separated by commas")
    for path in value:
        parts = path.split("/") if isinstance(path, str) else []
        if not len(parts) % 2 or not all(parts):
            raise _NotAllowedError(f"{path!r} is none")
    return tuple(dict.fromkeys(value))


def _to_path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise _NotAllowedError
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # there is no such user
        raise _NotAllowedError from None
