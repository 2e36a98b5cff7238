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
import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from beastmode.stores import codec
from beastmode.stores.base import Filter, Order, Query, remaining
from beastmode.stores.codec import time_text
from beastmode.stores.matching import Matcher, sort_rows
from beastmode.stores.ordering import is_nan
from beastmode.stores.sqlite_file import Connection

__all__ = ["condition", "find"]

_SAFE_PART: Final = re.compile(r'[^"\\\x00-\x1f$][^"\\\x00-\x1f]*')
_ROWS_BETWEEN_CHECKS: Final = 256
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


def find(
    held: Connection, query: Query, matcher: Matcher, end: float, *, can_json: bool
) -> list[tuple[str, int, dict[str, Any]]]:
    """Return id, version and fields of what is found, sorted, at most `limit`.

    `held` is in a transaction; `can_json` says whether its SQLite has JSON functions. Raises
    StoreTimeout at `end`. It reads each document of the collection.
    """
    where, values = condition(matcher.filters, query.order_by) if can_json else ("1", [])
    sql = f"SELECT id, version, body FROM docs WHERE parent = ? AND ({where}) ORDER BY id"  # noqa: S608
    cursor = held.execute(sql, [query.collection, *values])
    with contextlib.closing(cursor):
        return list(_find(cursor, query, matcher, end))


def _find(
    rows: Iterable[tuple[str, int, str]], query: Query, matcher: Matcher, end: float
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield id, version and fields of what is found, sorted, at most `limit`."""
    limit, orders = query.limit, matcher.orders
    kept: list[tuple[tuple[tuple[Any, ...], ...], str, tuple[int, dict[str, Any]]]] = []
    count = 0
    for index, (doc_id, version, body) in enumerate(rows):
        if not index % _ROWS_BETWEEN_CHECKS:
            remaining(end, "query")
        data = codec.decode(body, f"{query.collection}/{doc_id}")
        if not matcher(data):
            continue
        if not orders:
            yield doc_id, version, data
            count += 1
            if count == limit:
                return
            continue
        kept.append((matcher.keys(data), doc_id, (version, data)))
        if limit is not None and len(kept) >= 4 * limit + 1_000:
            sort_rows(kept, orders)
            del kept[limit:]
    sort_rows(kept, orders)
    for _, doc_id, (version, data) in kept[:limit]:
        yield doc_id, version, data
