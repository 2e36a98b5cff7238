"""`cached`: a memoizer of functions, methods and coroutine functions over `Cache`. The twin.

Structure
    A `CachedFunction` holds one `_Results` for its plain calls and, for method calls, one for
    each living instance, under the instance's `id`. A `_Results` holds a `Cache` and the counters.
    Nothing is made before the first call that needs it.

Invariants, verified by `_check()`
    1. `_instances[i]` refers weakly to an object of identity i, or to a dead one whose callback
       is still to come; nothing else of a `CachedFunction` refers to an instance.
    2. Results in a given cache carry a token of their function or instance, others do not.

Why no lock is needed
    The dict of instances changes in single dict operations. A result is stored only after the
    function has returned, so two threads may both run it for one key: the later result stays.
"""

# The two classes of this file are two faces of one thing.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Hashable
from types import EllipsisType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, final, overload

from beastcore._decorate import (
    InstanceRef,
    Token,
    check_function,
    check_options,
    check_result,
    death_callback,
    dress,
    instance_ref,
    is_function_like,
    name_of,
    owner_of,
)
from beastcore._pure.cache import Cache
from beastcore._singleflight import Flights
from beastcore._types import CacheInfo

__all__ = ["CachedFunction", "CachedMethod", "cached"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_T = TypeVar("_T")

_MISSING = object()
_KEYWORDS = object()
"""Stands between the positional and the keyword arguments in a key."""
_OWN_KEY = frozenset({str, int, bytes})
"""Exact types of which a single positional argument is its own key."""


@final
class Key:
    """The key of a call: its arguments, hashed once."""

    __slots__ = ("_hash", "parts")

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if type(other) is not Key:
            return NotImplemented
        return self.parts == other.parts

    def __repr__(self) -> str:
        return f"<call {self.parts!r}>"


class _Results:
    """The results of one function, or of one method of one instance, with their counters."""

    __slots__ = ("cache", "epoch", "flights", "hits", "misses", "ref", "token", "weighted")

    def __init__(self, cache: Cache[Any, Any], token: Token | None) -> None:
        self.cache = cache
        self.token = token
        self.weighted = getattr(cache, "max_weight", None) is not None
        self.flights = Flights()
        self.ref: InstanceRef | None = None
        self.hits = 0
        self.misses = 0
        self.epoch = 0

    def clear(self) -> None:
        """Forget the counters and the runs under way, which are not stored when they end."""
        self.epoch += 1
        self.hits = self.misses = 0
        self.flights.forget()

    def store(self, key: Hashable, value: Any, epoch: int) -> None:
        """Store a result, unless `clear` came since the run began or it is too heavy."""
        if epoch != self.epoch:
            return
        if not self.weighted:
            self.cache.set(key, value)
            return
        rejections = self.cache.stats().rejections
        try:
            self.cache.set(key, value)
        except ValueError:
            # Heavier than max_weight: the cache has counted it, the caller still gets the value.
            if self.cache.stats().rejections == rejections:
                raise


@final
class CachedFunction(Generic[_P, _R]):
    """A function whose results are kept; what `cached` returns."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_drop",
        "_function",
        "_given",
        "_instances",
        "_is_coroutine_function",
        "_key",
        "_maxsize",
        "_own",
        "_owners",
        "_retired_hits",
        "_retired_misses",
        "_timer",
        "_token",
        "_ttl",
        "_typed",
    )

    __name__: str
    __qualname__: str
    __wrapped__: Callable[_P, _R]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("type 'CachedFunction' is not an acceptable base type")

    def __init__(
        self,
        function: Callable[_P, _R],
        maxsize: int,
        ttl: float | None,
        key: Callable[..., Hashable] | None,
        typed: bool,
        cache: Cache[Any, Any] | None,
        timer: Callable[[], float] | None,
    ) -> None:
        self._is_coroutine_function = check_function(function)
        self._function = function
        self._maxsize = maxsize
        self._ttl = ttl
        self._key = key
        self._typed = typed
        self._given = cache
        self._timer = timer
        self._token = Token(name_of(function))
        self._own: _Results | None = None
        self._instances: dict[int, _Results] = {}
        self._owners: tuple[type, ...] = ()
        self._retired_hits = 0
        self._retired_misses = 0
        self._drop = death_callback(self)
        dress(self, function, self._is_coroutine_function)

    # -- calls

    def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if self._owners and args:
            mro = type(args[0]).__mro__
            for owner in self._owners:
                if owner in mro:
                    return self._call_method(args[0], args[1:], kwargs)
        results = self._own or self._make_own()
        if self._is_coroutine_function:
            return cast(_R, self._answer_later(results, args, args, kwargs))
        return self._answer(results, args, args, kwargs)

    def _call_method(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _R:
        """Answer the call of a bound method; `args` is without the instance."""
        results = self._results_of(instance)
        if self._is_coroutine_function:
            return cast(_R, self._answer_later(results, args, (instance, *args), kwargs))
        return self._answer(results, args, (instance, *args), kwargs)

    def _make_key(
        self,
        results: _Results,
        args: tuple[Any, ...],
        full_args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Hashable:
        """Return the key of a call; `full_args` is `args` with the instance in front."""
        if self._key is not None:
            return self._key(*full_args, **kwargs)
        parts = args
        if results.token is not None:
            parts = (results.token, *args)
        elif not kwargs and len(args) == 1 and type(args[0]) in _OWN_KEY:
            return cast(Hashable, args[0])
        if kwargs:
            parts += (_KEYWORDS, *(part for item in kwargs.items() for part in item))
        if self._typed:
            parts += (*map(type, args), *map(type, kwargs.values()))
        return Key(parts)

    def _answer(
        self,
        results: _Results,
        args: tuple[Any, ...],
        full_args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _R:
        """Return the kept result, or run the function and keep what it returns."""
        key = self._make_key(results, args, full_args, kwargs)
        value: Any = results.cache.get(key, _MISSING)
        if value is not _MISSING:
            results.hits += 1
            return cast(_R, value)
        results.misses += 1
        epoch = results.epoch
        value = self._function(*full_args, **kwargs)
        check_result(value, self._function)
        results.store(key, value, epoch)
        return cast(_R, value)

    async def _answer_later(
        self,
        results: _Results,
        args: tuple[Any, ...],
        full_args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the kept result, or wait for the one run of the function for this key."""
        key = self._make_key(results, args, full_args, kwargs)
        value: Any = results.cache.get(key, _MISSING)
        if value is not _MISSING:
            results.hits += 1
            return value
        loop = asyncio.get_running_loop()
        flight = results.flights.find(loop, key)
        if flight is None:
            results.misses += 1
            work = self._run(results, key, full_args, kwargs)
            flight = results.flights.start(loop, key, work, self._token.name)
        else:
            results.hits += 1
        return await flight.wait()

    async def _run(
        self, results: _Results, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the coroutine function and keep its result."""
        epoch = results.epoch
        value = await cast(Awaitable[Any], self._function(*args, **kwargs))
        results.store(key, value, epoch)
        return value

    # -- results

    def _new_cache(self) -> Cache[Any, Any]:
        """Return the given cache, or a new one."""
        if self._given is not None:
            return self._given
        return Cache(self._maxsize, self._ttl, timer=self._timer)

    def _make_own(self) -> _Results:
        """Make the results of calls that are not method calls."""
        if self._own is None:
            token = self._token if self._given is not None else None
            self._own = _Results(self._new_cache(), token)
        return self._own

    def _find(self, instance: object) -> _Results | None:
        """Return the results of an instance, if it has any."""
        results = self._instances.get(id(instance))
        # An identity may be used again if the reference's callback could not run.
        if results is None or results.ref is None or results.ref() is not instance:
            return None
        return results

    def _results_of(self, instance: object) -> _Results:
        """Return the results of an instance, made at its first call."""
        results = self._find(instance)
        if results is None:
            ref = instance_ref(instance, self._function, self._drop)
            token = Token(f"{self._token.name} of an instance", self._token)
            results = _Results(self._new_cache(), token if self._given is not None else None)
            results.ref = ref
            stale = self._instances.get(ref.ident)
            if stale is not None and stale.ref is not None and stale.ref() is instance:
                return stale  # another thread, or a collection's finalizer, was first
            self._instances[ref.ident] = results
        return results

    def _retire(self, ref: InstanceRef) -> None:
        """Drop the results of an instance that has died, keeping its counts in the sums."""
        results = self._instances.get(ref.ident)
        if results is not None and results.ref is ref:
            del self._instances[ref.ident]
            self._retired_hits += results.hits
            self._retired_misses += results.misses

    def _all_results(self) -> list[_Results]:
        """Return every store of results: the function's own and the living instances'."""
        every = list(self._instances.values())
        if self._own is not None:
            every.append(self._own)
        return every

    def _remove_from_given(self, token: Token) -> None:
        """Remove, from the given cache, what belongs to `token`. O(entries)."""
        given = self._given
        if given is None:
            return
        if self._key is not None:
            given.clear()
            return
        given.delete_many(
            [
                key
                for key in given.keys()  # noqa: SIM118  (a snapshot: the cache may change)
                if type(key) is Key and key.parts and token.covers(key.parts[0])
            ]
        )

    def cache_info(self) -> CacheInfo:
        """Return hits, misses, maxsize and currsize; for a method summed over its instances.

        The counts of instances that have died stay in the sums. With a given cache, `maxsize`
        and `currsize` are those of the cache, whoever uses it. O(instances).
        """
        every = self._all_results()
        hits = self._retired_hits + sum(results.hits for results in every)
        misses = self._retired_misses + sum(results.misses for results in every)
        if self._given is not None:
            return CacheInfo(hits, misses, self._given.maxsize, len(self._given))
        currsize = sum(len(results.cache) for results in every)
        return CacheInfo(hits, misses, self._maxsize, currsize)

    def cache_clear(self) -> None:
        """Remove every result of this function and set its counters to 0.

        A run under way is not stored when it ends. From a given cache only this function's
        results are removed, in O(entries); with `key=`, whose keys nobody can tell apart, all.
        """
        self._retired_hits = self._retired_misses = 0
        for results in self._all_results():
            results.clear()
            if self._given is None:
                results.cache.clear()
        self._remove_from_given(self._token)

    @property
    def cache(self) -> Cache[Any, Any]:
        """The `Cache` of the function's results; that of one instance is `obj.method.cache`."""
        return self._make_own().cache

    # -- methods

    def __set_name__(self, owner: type, name: str) -> None:
        if owner not in self._owners:
            self._owners += (owner,)

    @overload
    def __get__(
        self: CachedFunction[Concatenate[type[_T], _Q], _R], instance: None, owner: type[_T], /
    ) -> CachedMethod[_Q, _R]: ...  # below @classmethod
    @overload
    def __get__(self, instance: None, owner: type, /) -> CachedFunction[_P, _R]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[Any, _Q], _R],
        instance: object,
        owner: type | None = None,
        /,
    ) -> CachedMethod[_Q, _R]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        if instance is None:
            found = owner_of(self, owner) if owner is not None else None
            if found is not None:
                self.__set_name__(found, "")
            return self
        if instance is owner:
            # classmethod of Python 3.11 and 3.12 binds through here, from 3.13 it does not.
            return types.MethodType(self, instance)
        return CachedMethod(self, instance)

    # -- identity

    def _check(self) -> None:
        """Verify the invariants of the head of this file; AssertionError names the broken one."""
        for ident, results in list(self._instances.items()):
            alive = None if results.ref is None else results.ref()
            if results.ref is None or results.ref.ident != ident:
                raise AssertionError("invariant 1: results filed under another identity")
            if alive is not None and id(alive) != ident:
                raise AssertionError("invariant 1: results of another instance")
        for results in self._all_results():
            if (results.token is None) != (self._given is None):
                raise AssertionError("invariant 2: token without a given cache, or none with one")
            if self._given is None:
                results.cache._check()

    def __repr__(self) -> str:
        return f"<cached function {self._token.name}>"

    def __reduce__(self) -> str:
        return self.__qualname__

    def __copy__(self) -> CachedFunction[_P, _R]:
        return self

    def __deepcopy__(self, memo: object, /) -> CachedFunction[_P, _R]:
        return self


class _MethodDoc:
    """Lets `__doc__` of a bound method be that of its function."""

    def __get__(self, instance: CachedMethod[..., Any] | None, owner: type) -> str | None:
        if instance is None:
            return "A cached function bound to an instance, as `obj.method` gives it."
        return instance.__func__.__doc__


@final
class CachedMethod(Generic[_P, _R]):
    __doc__ = cast("str | None", _MethodDoc())
    __slots__ = ("__func__", "__self__", "__weakref__")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("type 'CachedMethod' is not an acceptable base type")

    def __init__(self, function: CachedFunction[..., _R], instance: object) -> None:
        self.__func__ = function
        self.__self__ = instance

    def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self.__func__._call_method(self.__self__, args, kwargs)

    def cache_info(self) -> CacheInfo:
        """Return hits, misses, maxsize and currsize of this instance's results."""
        function = self.__func__
        results = function._find(self.__self__)
        hits, misses = (0, 0) if results is None else (results.hits, results.misses)
        if function._given is not None:
            return CacheInfo(hits, misses, function._given.maxsize, len(function._given))
        currsize = 0 if results is None else len(results.cache)
        return CacheInfo(hits, misses, function._maxsize, currsize)

    def cache_clear(self) -> None:
        """Remove the results of this instance and set its counters to 0."""
        function = self.__func__
        results = function._find(self.__self__)
        if results is None:
            return
        results.clear()
        if results.token is None:
            results.cache.clear()
        else:
            function._remove_from_given(results.token)

    @property
    def cache(self) -> Cache[Any, Any]:
        """The `Cache` of this instance's results."""
        return self.__func__._results_of(self.__self__).cache

    @property
    def __signature__(self) -> Any:
        return inspect.signature(types.MethodType(self.__func__, self.__self__))

    def __getattr__(self, name: str) -> Any:
        # The signature of what is wrapped begins with the instance; the others were never set.
        if name in ("__wrapped__", "__func__", "__self__"):
            raise AttributeError(f"'CachedMethod' object has no attribute {name!r}")
        return getattr(self.__func__, name)

    def __eq__(self, other: object) -> bool:
        if type(other) is not CachedMethod:
            return NotImplemented
        return self.__self__ is other.__self__ and self.__func__ is other.__func__

    def __hash__(self) -> int:
        return hash((id(self.__self__), id(self.__func__)))

    def __repr__(self) -> str:
        return f"<cached method {self.__func__._token.name} of {self.__self__!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.__self__, self.__func__.__name__)


class _Decorator(Protocol):
    """What `cached(...)` with options returns."""

    def __call__(self, function: Callable[_P, _R], /) -> CachedFunction[_P, _R]: ...


@overload
def cached(
    maxsize: Callable[_P, _R],
    ttl: float | EllipsisType | None = ...,
    *,
    key: Callable[..., Hashable] | None = None,
    typed: bool = False,
    cache: Cache[Any, Any] | None = None,
    timer: Callable[[], float] | None = None,
) -> CachedFunction[_P, _R]: ...
@overload
def cached(
    maxsize: int | EllipsisType = ...,
    ttl: float | EllipsisType | None = ...,
    *,
    key: Callable[..., Hashable] | None = None,
    typed: bool = False,
    cache: Cache[Any, Any] | None = None,
    timer: Callable[[], float] | None = None,
) -> _Decorator: ...
def cached(
    maxsize: Any = ...,
    ttl: Any = ...,
    *,
    key: Callable[..., Hashable] | None = None,
    typed: bool = False,
    cache: Cache[Any, Any] | None = None,
    timer: Callable[[], float] | None = None,
) -> Any:
    """Keep the results of a function, a method or a coroutine function.

    Use it bare (`@cached`: 128 results, no time to live) or with options. The decorated function
    has `cache_info()`, `cache_clear()`, `cache` (the `Cache` used) and `__wrapped__`. Exceptions
    are never kept; a result of None is. A hit is O(1).

    maxsize: the most results held, 128 unless given; the least useful ones are evicted.
    ttl: seconds that a result is kept (float); None, the default, never expires.
    key: called with the arguments of the call (the instance first for a method), returns the
        hashable key, used as is; `function.cache.pop(key, None)` then forgets one result.
    typed: whether arguments of different types are kept apart even if equal. Without it, equal
        arguments may share a result, as in `functools.lru_cache`; keyword arguments in another
        order are another call.
    cache: a `Cache` to keep the results in, together with what else it holds; excludes maxsize,
        ttl and timer. Functions on one cache never collide, unless `key` makes them. A value
        heavier than its max_weight is returned without being kept.
    timer: the clock of the time to live: returns seconds as a float.

    Methods: each instance has results of its own (at most maxsize each), is held weakly and by
    identity, and its results go when it dies. As in a WeakKeyDictionary, a result that itself
    refers to the instance keeps it alive until the result goes. An instance without weak
    references raises TypeError. In a given cache, the results of a dead instance stay until they
    are evicted or expire, and do not keep the instance alive. Write @classmethod and
    @staticmethod above @cached; results of a classmethod are told apart by class and hold the
    class until they are evicted.
    A property above @cached holds the instance: prefer `functools.cached_property`.

    Coroutine functions: concurrent awaits of one key on one event loop share one run, a task of
    its own with the first caller's context. Cancelling a caller cancels nobody else; when all
    are cancelled the run still goes on and its result is kept (its error goes to the loop's
    exception handler). An error is raised in every waiting caller and not kept. A call that would
    wait for itself raises RuntimeError. A hit does not switch tasks. Calls that joined a run
    count as hits. Plain functions run once per concurrent caller, as in functools.

    Raises ValueError or TypeError for bad options, and TypeError for what cannot be decorated:
    no callable, a classmethod, a staticmethod, a generator function.
    """
    function = None
    if is_function_like(maxsize):
        function, maxsize = maxsize, ...
    checked_maxsize, checked_ttl = check_options(maxsize, ttl, key, typed, cache, timer)

    def decorate(function: Callable[_P, _R], /) -> CachedFunction[_P, _R]:
        """Return `function` with its results kept."""
        return CachedFunction(function, checked_maxsize, checked_ttl, key, typed, cache, timer)

    return decorate if function is None else decorate(function)
