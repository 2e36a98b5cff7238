"""Which documents a query finds, and in which order: Firestore's rules, on plain values.

Values of different types are never equal, and a comparison finds only values of the filter's
own type. Sorted, the types follow each other as `ordering` has them. Only documents that have the
field are found, by every operator.

Special values, as in Firestore: `!=` and `not-in` never find None; None or nan among the values
of `in` find nothing, None among those of `not-in` leaves nothing to find; None and nan go with
`==`, `!=`, `in` and `not-in` only, and nan is not found by a comparison.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from beastmode.errors import RequestError
from beastmode.stores.base import Filter, Order, Query
from beastmode.stores.codec import normal
from beastmode.stores.ordering import is_nan, order_key

__all__ = ["MISSING", "Matcher", "field_value", "full_order", "sort_rows"]

MISSING: Final = object()
"""What `field_value` returns for a field that a document does not have."""

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INEQUALITIES: Final = frozenset({"<", "<=", ">", ">=", "!=", "not-in"})
Test = Callable[[Any], bool]


def field_value(data: Mapping[str, Any], parts: Sequence[str]) -> Any:
    """Return the value at the field path, or `MISSING`."""
    value: Any = data
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def full_order(query: Query) -> tuple[Order, ...]:
    """Return the sort keys of `query` as Firestore completes them; document ids come after.

    After the query's own come the fields of its inequalities, alphabetically, in the direction of
    the last of its own.
    """
    named = {order.field for order in query.order_by}
    descending = query.order_by[-1].descending if query.order_by else False
    unequal = {item.field for item in query.where if item.op in _INEQUALITIES}
    return (*query.order_by, *(Order(field, descending) for field in sorted(unequal - named)))


class Matcher:
    """A query's filters and sort keys, checked and ready: `matcher(data)` tells what is found.

    `filters` are the query's, each value as it would come back from the store; `orders` is its
    `full_order`. Raises RequestError for a filter that Firestore does not allow or a value that
    no document can hold.
    """

    __slots__ = ("_orders", "_tests", "filters", "orders")

    def __init__(self, query: Query) -> None:
        self.filters = tuple(Filter(item.field, item.op, _checked(item)) for item in query.where)
        self._tests = [(item.field.split("."), _test(item)) for item in self.filters]
        self.orders = full_order(query)
        self._orders = [item.field.split(".") for item in self.orders]

    def __call__(self, data: Mapping[str, Any]) -> bool:
        """Return whether a document with these fields is found. O(filters)."""
        for parts, test in self._tests:
            value = field_value(data, parts)
            if value is MISSING or not test(value):
                return False
        return all(field_value(data, parts) is not MISSING for parts in self._orders)

    def keys(self, data: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
        """Return the sort key of each order, for `sort_rows`."""
        return tuple(order_key(field_value(data, parts)) for parts in self._orders)


def sort_rows(
    rows: list[tuple[tuple[tuple[Any, ...], ...], str, Any]], orders: Sequence[Order]
) -> None:
    """Sort rows of (`Matcher.keys`, document id, anything) by `Matcher.orders`, in place.

    Ties are sorted by document id, in the direction of the last order.
    """
    rows.sort(key=operator.itemgetter(1), reverse=bool(orders) and orders[-1].descending)
    for index in reversed(range(len(orders))):
        # A stable sort leaves the order of ties to the keys after it, and to the id.
        rows.sort(key=lambda row: row[0][index], reverse=orders[index].descending)


def _checked(item: Filter) -> Any:
    what = f"{item.field} {item.op}"
    if item.op in ("in", "not-in"):
        return [normal(value, what) for value in item.value]
    value = normal(item.value, what)
    if item.op not in ("==", "!=") and (value is None or is_nan(value)):
        raise RequestError(
            f"a Filter with op {item.op!r} cannot take {value!r} (field {item.field!r}); "
            "None and nan go with ==, !=, in and not-in"
        )
    return value


def _test(item: Filter) -> Test:
    op, value = item.op, item.value
    if op in ("in", "not-in"):
        return _one_of(value) if op == "in" else _none_of(value)
    key = order_key(value)
    if op == "==":
        return lambda held: order_key(held) == key
    if op == "!=":
        return lambda held: held is not None and order_key(held) != key
    if op == "array-contains":
        return lambda held: isinstance(held, list) and any(order_key(one) == key for one in held)
    compare, rank = _COMPARE[op], key[0]

    def compares(held: Any) -> bool:
        if is_nan(held):
            return False
        held_key = order_key(held)
        return held_key[0] == rank and compare(held_key, key)

    return compares


def _one_of(values: list[Any]) -> Test:
    keys = {order_key(value) for value in values if value is not None and not is_nan(value)}
    return lambda held: order_key(held) in keys


def _none_of(values: list[Any]) -> Test:
    if None in values:
        return lambda _held: False
    keys = {order_key(value) for value in values}
    return lambda held: held is not None and order_key(held) not in keys
