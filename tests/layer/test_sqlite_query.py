"""What of a query SQLite decides: as much as is safe, and never more than Firestore's rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from beastmode.stores.base import Filter, Order, Query
from beastmode.stores.documents import Set
from beastmode.stores.sqlite import SQLiteStore
from beastmode.stores.sqlite_file import Connection
from beastmode.stores.sqlite_query import condition
from store_support import brute_force


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "s.db") as made:
        yield made


@pytest.mark.parametrize("field", ["a", "a.b", "é", "a b", "0", "a-b", "'", "a[0]"])
def test_fields_that_sqlite_can_name(field: str) -> None:
    sql, values = condition((Filter(field, "==", "x"),), (Order(field),))
    assert "json_extract" in sql
    assert values[0] == "$" + "".join(f'."{name}"' for name in field.split("."))


@pytest.mark.parametrize("field", ['q"q', "a\\b", "\t", "$b", "a.$t", "a\0"])
def test_fields_that_are_left_to_python(field: str) -> None:
    assert condition((Filter(field, "==", "x"),), (Order(field),)) == ("1", [])


VALUES: list[Any] = [
    None,
    True,
    1,
    -5,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    "x",
    "a\0b",
    b"x",
    datetime(2024, 1, 1, tzinfo=UTC),
    [1],
    {"a": 1},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_sqlite_decides_something_about_every_value(store: SQLiteStore, value: Any) -> None:
    documents = {
        str(number): {"v": item} for number, item in enumerate([*VALUES, 2, "y", b"y", [2], {}])
    }
    documents["missing"] = {"w": 1}
    store.commit([Set(f"u/{doc_id}", data) for doc_id, data in documents.items()])
    for op in ("==", "!=", "in", "not-in", "array-contains", "<", "<=", ">", ">="):
        if op not in ("==", "!=", "in", "not-in") and (value is None or value != value):
            continue
        held = [value] if op in ("in", "not-in") else value
        item = Filter("v", op, held)  # type: ignore[arg-type]
        sql, _ = condition((item,), ())
        assert sql != "1"
        found = store.query(Query("u", (item,))).documents
        expected = brute_force(documents, Query("u", (item,)))
        assert [d.path[2:] for d in found] == expected


def test_few_documents_come_out_of_sqlite(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load((f"u/{n:04}", {"n": n, "t": f"t{n}"}) for n in range(1000))
    read: list[str] = []
    execute = Connection.__init__

    def spied(self: Connection, *arguments: Any) -> None:
        execute(self, *arguments)
        inner = self.execute

        def run(sql: str, *values: Any) -> Any:
            rows = inner(sql, *values)
            if "docs" in sql and "ORDER BY id" in sql:
                found = rows.fetchall()
                read.extend(row[0] for row in found)
                return FakeCursor(found)
            return rows

        self.execute = run  # type: ignore[method-assign]

    class FakeCursor(list[Any]):
        def close(self) -> None:
            pass

    monkeypatch.setattr(Connection, "__init__", spied)
    with SQLiteStore(store.path) as other:
        for item, count in (
            (Filter("n", "==", 5), 1),
            (Filter("n", "<", 10.5), 11),
            (Filter("t", ">=", "t99"), 11),
            (Filter("t", "in", ["t1", "t2", "none"]), 2),
            (Filter("n", "==", "5"), 0),
            (Filter("none", "!=", 5), 0),
            (Filter("n", "in", []), 0),
        ):
            read.clear()
            other.query(Query("u", (item,)))
            assert len(read) == count, item


def test_without_json_functions_python_decides_alone(store: SQLiteStore) -> None:
    store.commit([Set("u/a", {"n": 1}), Set("u/b", {"n": "1"}), Set("u/c", {})])
    store._file.can_json = False
    where = (Filter("n", "==", 1),)
    assert [d.path for d in store.query(Query("u", where)).documents] == ["u/a"]


def test_many_choices_and_many_filters(store: SQLiteStore) -> None:
    store.commit([Set(f"u/{n:03}", {"n": n}) for n in range(200)])
    for count in (1, 49, 50, 51, 3000):  # more than SQLite would take
        found = store.query(Query("u", (Filter("n", "in", list(range(count))),))).documents
        assert len(found) == min(count, 200)
        where = tuple(Filter("n", ">=", n % 100) for n in range(count))
        assert len(store.query(Query("u", where)).documents) >= 100
