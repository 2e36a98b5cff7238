"""A query as SQL for SQLite: which rows may be found, never fewer than those that are.

The SQL only narrows down; `Matcher` decides on each row that comes back. That keeps Firestore's
rules in one place and lets a condition be loose, or left out, wherever SQLite does not see exactly
what Python sees:

- a real number in JSON text may come out of SQLite one bit beside the one Python reads, so real
  numbers are compared with a margin;
- SQLite ends a text at its first NUL, so texts are compared with `<=` and `>=` only, and not at
  all with a text that has a NUL;
- infinite numbers, nan, bytes and times are maps in the text (see `codec`), and a map in a field
  path that begins with a dollar sign may have been escaped, so such a path is left to `Matcher`;
- SQLite's JSON paths cannot name a field whose name JSON escapes.
"""

from __future__ import annotations

import base64
import math
import re
from datetime import datetime
from typing import Any, Final

from beastmode.stores.base import Filter, Order
from beastmode.stores.codec import time_text
from beastmode.stores.ordering import is_nan

__all__ = ["condition"]

_SAFE_PART: Final = re.compile(r'[^"\\\x00-\x1f$][^"\\\x00-\x1f]*')
_MAX_CHOICES: Final = 50
_MAX_PARTS: Final = 100  # SQLite bounds the depth of an expression and the number of values
_OPERATORS: Final = {"==": "=", "<": "<=", "<=": "<=", ">": ">=", ">=": ">="}

Part = tuple[str, list[Any]]


def condition(filters: tuple[Filter, ...], orders: tuple[Order, ...]) -> Part:
    """Return SQL over the column `body`, and its parameters, true for every row to be found."""
    parts = [part for item in filters if (part := _filter(item)) is not None]
    paths = [path for order in orders if (path := _json_path(order.field)) is not None]
    parts += [("json_type(body, ?) IS NOT NULL", [path]) for path in paths]
    del parts[_MAX_PARTS:]
    sql = " AND ".join(f"({text})" for text, _ in parts) or "1"
    return sql, [value for _, values in parts for value in values]


def _json_path(field: str) -> str | None:
    names = field.split(".")
    if not all(_SAFE_PART.fullmatch(name) for name in names):
        return None
    return "$" + "".join(f'."{name}"' for name in names)


def _filter(item: Filter) -> Part | None:
    path = _json_path(item.field)
    if path is None:
        return None
    if item.op in ("!=", "not-in"):
        return "json_type(body, ?) <> 'null'", [path]
    if item.op == "array-contains":
        return "json_type(body, ?) = 'array'", [path]
    if item.op == "in":
        if not item.value:
            return "0", []
        if len(item.value) > _MAX_CHOICES:
            return "json_type(body, ?) IS NOT NULL", [path]
        choices = [_compare(path, "==", value) for value in item.value]
        return (
            " OR ".join(f"({sql})" for sql, _ in choices),
            [value for _, values in choices for value in values],
        )
    return _compare(path, item.op, item.value)


def _compare(path: str, op: str, value: Any) -> Part:
    equal = op == "=="
    if value is None:
        return "json_type(body, ?) = 'null'", [path]
    if isinstance(value, bool):
        if equal:
            return "json_type(body, ?) = ?", [path, "true" if value else "false"]
        return "json_type(body, ?) IN ('true', 'false')", [path]
    if isinstance(value, (int, float)):
        return _compare_number(path, op, value)
    if isinstance(value, str):
        if "\0" in value:
            return "json_type(body, ?) = 'text'", [path]
        return (
            f"json_type(body, ?) = 'text' AND json_extract(body, ?) {_OPERATORS[op]} ?",
            [path, path, value],
        )
    if isinstance(value, datetime):
        return f"json_extract(body, ?) {_OPERATORS[op]} ?", [path + '."$t"', time_text(value)]
    if isinstance(value, bytes):
        tagged = path + '."$b"'
        if equal:
            return "json_extract(body, ?) = ?", [tagged, base64.b64encode(value).decode("ascii")]
        return "json_type(body, ?) = 'text'", [tagged]
    return "json_type(body, ?) = ?", [path, "array" if isinstance(value, list) else "object"]


def _compare_number(path: str, op: str, value: float) -> Part:
    if is_nan(value) or math.isinf(value):
        # Found may be tagged ones and, by a comparison, any number.
        kinds = "'object'" if op == "==" else "'integer', 'real', 'object'"
        return f"json_type(body, ?) IN ({kinds})", [path]
    number = "json_type(body, ?) IN ('integer', 'real')"
    margin = abs(float(value)) * 1e-9 + 1e-300
    low, high = float(value) - margin, float(value) + margin
    if op == "==":
        return f"{number} AND json_extract(body, ?) BETWEEN ? AND ?", [path, path, low, high]
    bound = high if op in ("<", "<=") else low
    sql = f"({number} AND json_extract(body, ?) {_OPERATORS[op]} ?)"
    return f"{sql} OR json_type(body, ?) = 'object'", [path, path, bound, path]
