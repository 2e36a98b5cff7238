"""Argument checks of the engine, called off the hot path by both twins.

One copy, so that the compiled engine and the pure twin accept the same arguments and refuse
the others with the same words. Each returns the normalised value or raises TypeError or
ValueError with a text that names the argument, the value and what is allowed.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable
from typing import Any, SupportsFloat, SupportsIndex

from beastcore._types import BatchItem

__all__ = [
    "MAX_IDLE",
    "MAX_SLACK",
    "MAX_SLOTS",
    "MAX_TTL",
    "MAX_WEIGHT_EACH",
    "MAX_WEIGHT_TOTAL",
    "TICKS_PER_SECOND",
    "check_bool",
    "check_callable",
    "check_coder",
    "check_count",
    "check_errors",
    "check_item",
    "check_op_size",
    "check_path",
    "check_policy",
    "check_priority",
    "check_seconds",
    "check_slack",
    "check_stale",
    "check_time",
    "check_ttl",
    "check_weight",
    "check_weight_pair",
]

TICKS_PER_SECOND = 64
"""Resolution of times to live: 1/64 s."""
MAX_TTL = 31_536_000.0
"""Longest time to live in seconds (365 days); for longer ones use None, which never expires."""
MAX_IDLE = 604_800.0
"""Longest idle timeout or grace of a connection in seconds (7 days)."""
MAX_SLOTS = 2**30
"""Most entries that one structure of the engine can hold."""
MAX_SLACK = 2**24
"""Most places by which the order of policy "lru" may be wrong."""
MAX_WEIGHT_EACH = 2**32 - 1
"""Heaviest single entry."""
MAX_WEIGHT_TOTAL = 2**63 - 1
"""Largest `max_weight`."""


def check_count(
    name: str, value: object, *, minimum: int = 1, maximum: int | None = MAX_SLOTS
) -> int:
    """Return `value` as an int from `minimum` to `maximum` (no limit when None)."""
    # The exact type goes first: asking for a protocol takes microseconds.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    # A subclass of int may lie when it is compared, so the rest sees an exact int.
    number = value if type(value) is int else int.__index__(operator.index(value))
    if number < minimum:
        allowed = {0: "zero or positive", 1: "positive"}.get(minimum, f"at least {minimum}")
        raise ValueError(f"{name} must be {allowed}, got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {number}")
    return number


def _number(name: str, value: object, allowed: str) -> float:
    """Return `value` as a float that is not NaN."""
    if type(value) is not float and (
        isinstance(value, (bool, str, bytes))
        or not isinstance(value, (SupportsFloat, SupportsIndex))
    ):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of floats
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(number):
        raise ValueError(f"{name} must be {allowed}, got nan")
    return number


def check_ttl(value: object, name: str = "ttl") -> float | None:
    """Return a time to live in seconds, or None for "never expires" (None and inf)."""
    if value is None:
        return None
    number = _number(name, value, "a positive number of seconds or None")
    if number == math.inf:
        return None
    if number <= 0:
        raise ValueError(f"{name} must be positive (None never expires), got {value!r}")
    if number > MAX_TTL:
        raise ValueError(
            f"{name} must be at most {MAX_TTL:.0f} seconds (None never expires), got {value!r}"
        )
    return number


def check_seconds(
    name: str, value: object, *, zero: bool = False, maximum: float = MAX_TTL
) -> float:
    """Return a duration up to `maximum` seconds: positive, or zero too where `zero` is true."""
    number = _number(name, value, "a number of seconds")
    if number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be {'zero or ' if zero else ''}positive, got {value!r}")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum:.0f} seconds, got {value!r}")
    return number


def check_time(value: object, name: str = "timer()") -> float:
    """Return what a timer answered as a finite float."""
    if type(value) is not float and (
        isinstance(value, (bool, str, bytes))
        or not isinstance(value, (SupportsFloat, SupportsIndex))
    ):
        raise TypeError(f"{name} must return seconds as a float, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of floats
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must return seconds as a float, got {value!r}")
    return number


def check_op_size(value: object) -> int:
    """Return the size of an operation in bytes as an int from 0 to MAX_WEIGHT_EACH."""
    return check_count("size", value, minimum=0, maximum=MAX_WEIGHT_EACH)


def check_priority(value: object) -> int:
    """Return the priority of an operation as an int of 32 bits with sign."""
    return check_count("priority", value, minimum=-(2**31), maximum=2**31 - 1)


def check_item(position: int, item: object) -> tuple[int, int, float | None]:
    """Return size, priority and time of a drained `(key, op)` pair; 0, 0, None of a plain one."""
    if not isinstance(item, tuple) or tuple.__len__(item) != 2:  # a subclass may lie
        raise TypeError(f"restore item {position} must be a (key, op) pair, got {item!r}")
    if not isinstance(item, BatchItem):
        return 0, 0, None
    added_at = None if item.added_at is None else check_time(item.added_at)
    return check_op_size(item.size), check_priority(item.priority), added_at


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is None or callable."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {value!r}")


def check_coder(name: str, value: Any) -> Callable[[Any], Any]:
    """Return the function that turns values into bytes, or bytes into values; it must be given."""
    if not callable(value):
        kind = "bytes from a value" if name.endswith("encoder") else "a value from bytes"
        raise TypeError(f"{name} must be a function that makes {kind}, got {value!r}")
    checked: Callable[[Any], Any] = value
    return checked


def check_path(value: object) -> str:
    """Return the path of a file as a str."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be a str, bytes or os.PathLike, got {value!r}")
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise ValueError(f"path must not be empty or hold a null character, got {path!r}")
    return path


def check_bool(name: str, value: object) -> bool:
    """Return `value` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def check_errors(name: str, value: object) -> tuple[type[Exception], ...]:
    """Return one class of exceptions, or a tuple of them, as a tuple; None is the empty one.

    Only subclasses of Exception: KeyboardInterrupt and its like concern one thread at one time.
    """
    classes = () if value is None else value if isinstance(value, tuple) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, Exception)):
            raise TypeError(
                f"{name} must be a subclass of Exception or a tuple of such, got {item!r}"
            )
    return tuple(classes)


def check_stale(value: object, ttl: float | None) -> float:
    """Return the seconds for which a result is served after its time to live `ttl`; 0 for None."""
    if value is None:
        return 0.0
    if ttl is None:
        raise ValueError(f"stale needs a ttl, after which it begins; got {value!r} without one")
    seconds = check_seconds("stale", value)
    if ttl + seconds > MAX_TTL:
        raise ValueError(
            f"ttl and stale together must be at most {MAX_TTL:.0f} seconds, got {ttl!r} + {value!r}"
        )
    return seconds


def check_policy(value: object) -> str:
    """Return the name of an eviction policy."""
    if value not in ("adaptive", "lru"):
        raise ValueError(f"policy must be 'adaptive' or 'lru', got {value!r}")
    return str(value)


def check_slack(value: object, policy: str) -> int | None:
    """Return the slack of policy "lru", None for the default; other policies have none."""
    if value is None:
        return None
    slack = check_count("slack", value, minimum=0, maximum=MAX_SLACK)
    if policy != "lru":
        raise ValueError(f"slack is for policy 'lru', got slack={slack} with policy={policy!r}")
    return slack


def check_weight_pair(max_weight: object, weigher: Callable[..., Any] | None) -> int | None:
    """Return `max_weight`; it and `weigher` are given together or not at all."""
    check_callable("weigher", weigher)
    if (max_weight is None) != (weigher is None):
        missing = "weigher" if weigher is None else "max_weight"
        raise ValueError(f"max_weight and weigher must be given together, {missing} is missing")
    if max_weight is None:
        return None
    return check_count("max_weight", max_weight, maximum=MAX_WEIGHT_TOTAL)


def check_weight(value: object) -> int:
    """Return what a weigher answered as an int from 0 to MAX_WEIGHT_EACH."""
    return check_count("weigher(key, value)", value, minimum=0, maximum=MAX_WEIGHT_EACH)
