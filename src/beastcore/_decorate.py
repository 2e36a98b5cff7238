"""What both twins of `cached` share, off the hot path: checks, metadata, tokens, weak references.

One copy, so that the compiled engine and the pure twin accept the same functions and options,
and refuse the others with the same words.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from beastcore._validate import (
    TICKS_PER_SECOND,
    check_bool,
    check_callable,
    check_count,
    check_errors,
    check_stale,
    check_ttl,
)

__all__ = [
    "DEFAULT_MAXSIZE",
    "InstanceRef",
    "Options",
    "Token",
    "check_function",
    "check_options",
    "check_result",
    "death_callback",
    "dress",
    "instance_ref",
    "is_function_like",
    "owner_of",
]

DEFAULT_MAXSIZE = 128
"""Results that `cached` holds when `maxsize` is not given."""


_CACHE_METHODS = (
    "get",
    "peek",
    "set",
    "expires_in",
    "keys",
    "delete_many",
    "clear",
    "stats",
    "__len__",
)


class Token:
    """Marks, in the keys of a given cache, the function or instance that a result belongs to."""

    __slots__ = ("name", "parent")

    def __init__(self, name: str, parent: Token | None = None) -> None:
        self.name = name
        self.parent = parent

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def covers(self, other: object) -> bool:
        """Whether a key that begins with `other` belongs to this function or instance."""
        return other is self or (isinstance(other, Token) and other.parent is self)


class InstanceRef(weakref.ref[Any]):
    """A weak reference that remembers the `id` of its object."""

    __slots__ = ("ident",)
    ident: int


class Options(NamedTuple):
    """The options of `cached`, checked."""

    maxsize: int
    ttl: float | None
    """Of caches made for it: the seconds for which a result is kept, stale or not."""
    key: Callable[..., Hashable] | None
    typed: bool
    cache: Any
    timer: Callable[[], float] | None
    single_flight: bool
    stale: float
    """Seconds before its end at which an entry becomes stale, in whole ticks; 0: never."""
    refresh: Callable[[Callable[[], None]], object] | None
    life: float | None
    """Seconds to live to store a result with; None: as the cache has it."""
    errors: tuple[type[Exception], ...]
    error_ttl: float | None


def check_options(
    maxsize: object = ...,
    ttl: object = ...,
    key: Any = None,
    typed: bool = False,
    cache: Any = None,
    timer: Any = None,
    single_flight: bool = False,
    stale: object = None,
    refresh: Any = None,
    cache_errors: object = None,
    error_ttl: object = ...,
) -> Options:
    """Check the options of `cached`. `maxsize`, `ttl` and `error_ttl` are `...` if not given."""
    check_callable("key", key)
    check_bool("typed", typed)
    check_bool("single_flight", single_flight)
    check_callable("refresh", refresh)
    errors = check_errors("cache_errors", cache_errors)
    if cache is None:
        size, seconds = _check_own(maxsize, ttl, timer)
    else:
        size, seconds = 0, _check_given(cache, maxsize, ttl, timer)
        if errors and getattr(cache, "max_weight", None) is not None:
            raise ValueError(
                "cache_errors cannot be given with a cache that has a weigher: it weighs results"
            )
    stale_s = check_stale(stale, seconds)
    if refresh is not None and not stale_s:
        raise ValueError("refresh cannot be given without stale: only stale results are refreshed")
    if error_ttl is not ... and not errors:
        raise ValueError("error_ttl cannot be given without cache_errors")
    whole = None if seconds is None else seconds + stale_s
    return Options(
        maxsize=size,
        ttl=whole,
        key=key,
        typed=typed,
        cache=cache,
        timer=timer,
        single_flight=single_flight,
        stale=math.floor(stale_s * TICKS_PER_SECOND) / TICKS_PER_SECOND,
        refresh=refresh,
        life=whole if stale_s else None,
        errors=errors,
        error_ttl=seconds if error_ttl is ... else check_ttl(error_ttl, "error_ttl"),
    )


def _check_own(maxsize: object, ttl: object, timer: Any) -> tuple[int, float | None]:
    """Check what a cache is made with; return maxsize and ttl."""
    check_callable("timer", timer)
    if maxsize is None:
        raise TypeError(
            "maxsize must be an int, got None: a cache is bounded by design, so name the most "
            "results that it may hold"
        )
    checked = check_count("maxsize", DEFAULT_MAXSIZE if maxsize is ... else maxsize)
    return checked, None if ttl is ... else check_ttl(ttl)


def _check_given(cache: Any, maxsize: object, ttl: object, timer: object) -> float | None:
    """Check a cache that was given, and that nothing was that it has itself; return its ttl."""
    for name, value in (("maxsize", maxsize), ("ttl", ttl), ("timer", timer)):
        if value is not ... and (name != "timer" or value is not None):
            raise ValueError(f"{name} cannot be given with cache, which has its own")
    if isinstance(cache, type) or not all(
        callable(getattr(cache, name, None)) for name in _CACHE_METHODS
    ):
        raise TypeError(f"cache must be a beastcore.Cache, got {cache!r}")
    return check_ttl(getattr(cache, "ttl", None))


def is_function_like(value: Any) -> bool:
    """Whether `@cached` without parentheses was meant: `value` is no maxsize but a function."""
    return callable(value) or isinstance(value, (classmethod, staticmethod, property))


def check_function(function: Any, options: Options) -> bool:
    """Check what `cached` decorates; return whether it is a coroutine function."""
    is_coroutine = _check_decorated(function)
    if is_coroutine and options.refresh is not None:
        raise ValueError(
            f"refresh cannot be given for the coroutine function {name_of(function)}: tasks of "
            "its event loop refresh its results"
        )
    return is_coroutine


def _check_decorated(function: Any) -> bool:
    """Raise unless `function` can be decorated; return whether it is a coroutine function."""
    if isinstance(function, (classmethod, staticmethod)):
        word = type(function).__name__
        raise TypeError(f"cached cannot decorate a {word}: write @{word} above @cached")
    if isinstance(function, property):
        raise TypeError(
            "cached cannot decorate a property: decorate a method, or use functools.cached_property"
        )
    if not callable(function):
        raise TypeError(f"cached can only decorate a callable, got {function!r}")
    call = getattr(type(function), "__call__", None)  # noqa: B004  (an async __call__ counts)
    for candidate in (function, call):
        for is_kind, kind in (
            (inspect.isgeneratorfunction, "generator"),
            (inspect.isasyncgenfunction, "asynchronous generator"),
        ):
            if is_kind(candidate):
                raise TypeError(
                    f"cached cannot decorate the {kind} function {name_of(function)}: what it "
                    "returns can be consumed only once"
                )
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def check_result(value: object, function: object) -> None:
    """Refuse a coroutine as a result: it could be awaited only once."""
    if isinstance(value, types.CoroutineType):
        value.close()
        raise TypeError(
            f"{name_of(function)} returned a coroutine, which cannot be cached: decorate the "
            "'async def' function itself"
        )


def name_of(function: object) -> str:
    """Return the qualified name of a callable, or its repr."""
    return getattr(function, "__qualname__", None) or repr(function)


async def _coroutine_function() -> None:
    """Lend its code object to wrapped callables that have none."""


def dress(memo: Any, function: Callable[..., Any], is_coroutine: bool) -> None:
    """Give `memo` the metadata of `function`, as `functools.update_wrapper` does.

    `inspect.iscoroutinefunction` is made true for coroutine functions. From Python 3.12 there is
    `inspect.markcoroutinefunction`; before, inspect recognises objects that look like functions:
    they have a name, a code object, defaults and annotations.
    """
    functools.update_wrapper(memo, function)
    if not is_coroutine:
        return
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(memo)
        return
    code = getattr(function, "__code__", None)
    if code is None or not code.co_flags & inspect.CO_COROUTINE:
        code = _coroutine_function.__code__
    memo.__name__ = getattr(function, "__name__", type(function).__name__)
    memo.__code__ = code
    memo.__defaults__ = getattr(function, "__defaults__", None)
    memo.__kwdefaults__ = getattr(function, "__kwdefaults__", None)
    memo.__annotations__ = getattr(function, "__annotations__", {})


def owner_of(memo: object, accessed: type) -> type | None:
    """Return the class among the bases of `accessed` in whose namespace `memo` sits."""
    for owner in accessed.__mro__:
        for value in list(vars(owner).values()):
            if value is memo:
                return owner
    return None


def death_callback(memo: Any) -> Callable[[InstanceRef], None]:
    """Return the weak-reference callback that lets `memo` drop a dead instance's results."""
    memo_ref = weakref.ref(memo)

    def drop(ref: InstanceRef) -> None:
        """Tell the function, if it still exists, that the instance is gone."""
        target = memo_ref()
        if target is not None:
            target._retire(ref)  # noqa: SLF001  (private to the engine)

    return drop


def instance_ref(
    instance: object, function: object, callback: Callable[[InstanceRef], None]
) -> InstanceRef:
    """Return a weak reference to `instance`; TypeError if there cannot be one."""
    try:
        ref = InstanceRef(instance, callback)
    except TypeError:
        name = type(instance).__qualname__
        raise TypeError(
            f"cannot cache the method {name_of(function)} of a {name} object: its results are "
            f"held weakly, and {name} has no weak references; add '__weakref__' to the __slots__ "
            f"of {name}"
        ) from None
    ref.ident = id(instance)
    return ref
