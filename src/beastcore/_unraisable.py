"""Errors that no caller can be given: they go to `sys.unraisablehook`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

__all__ = ["report_unraisable"]


def report_unraisable(error: BaseException, source: object) -> None:
    """Hand `error` to `sys.unraisablehook`, as the interpreter does for finalizers.

    The default hook accepts only the interpreter's own argument type, which has no public name.
    """
    fields = (type(error), error, error.__traceback__, None, source)
    for kind in tuple.__subclasses__():
        if kind.__name__ == "UnraisableHookArgs":
            args: Any = cast("Callable[[object], Any]", kind)(fields)
            break
    else:
        names = ("exc_type", "exc_value", "exc_traceback", "err_msg", "object")
        args = SimpleNamespace(**dict(zip(names, fields, strict=True)))
    try:
        sys.unraisablehook(args)
    except BaseException as failed:  # noqa: BLE001 - a broken hook must not break the caller
        sys.stderr.write(f"Exception ignored in sys.unraisablehook: {failed!r}\n")
