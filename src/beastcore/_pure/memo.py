"""`cached`: a memoizer of functions, methods and coroutine functions over `Cache`. The twin.

Structure
    A `CachedFunction` holds one `Results` for its plain calls and, for method calls, one for
    each living instance, under the instance's `id`. A `Results` holds a `Cache`, the counters and
    the runs under way. Nothing is made before the first call that needs it.

Invariants, verified by `_check()`
    1. `_instances[i]` refers weakly to an object of identity i, or to a dead one whose callback
       is still to come; nothing else of a `CachedFunction` refers to an instance.
    2. Results in a given cache carry a token of their function or instance, others do not.

Why no lock is needed
    The dict of instances changes in single dict operations. A result is stored only after the
    function has returned, so two threads may both run it for one key: the later result stays.
    With single-flight one of them runs it, see _threadflight.py.
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
    Options,
    Token,
    check_function,
    check_options,
    death_callback,
    dress,
    instance_ref,
    is_function_like,
    name_of,
    owner_of,
)
from beastcore._failure import KeptError
from beastcore._pure.cache import Cache
from beastcore._pure.results import Key, Results, SyncCall, make_key
from beastcore._refresh import Refresh
from beastcore._threadflight import MISSING
from beastcore._types import CacheInfo

__all__ = ["CachedFunction", "CachedMethod", "cached"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_T = TypeVar("_T")


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
        "_options",
        "_own",
        "_owners",
        "_retired_hits",
        "_retired_misses",
        "_token",
    )

    __name__: str
    __qualname__: str
    __wrapped__: Callable[_P, _R]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("type 'CachedFunction' is not an acceptable base type")

    def __init__(
        self,
        function: Callable[_P, _R],
        options: Options,
    ) -> None:
        self._is_coroutine_function = check_function(function, options)
        self._function = function
        self._options = options
        self._given: Cache[Any, Any] | None = options.cache
        self._token = Token(name_of(function))
        self._own: Results | None = None
        self._instances: dict[int, Results] = {}
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

    def _answer(
        self,
        results: Results,
        args: tuple[Any, ...],
        full_args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _R:
        """Return the kept result, or run the function and keep what it returns."""
        options = self._options
        key = make_key(options, results.token, args, full_args, kwargs)
        value: Any = results.cache.get(key, MISSING)
        if type(value) is KeptError:
            results.hits += 1
            raise value.fresh()
        is_stale = value is not MISSING and options.stale and results.is_stale(key)
        if value is not MISSING and not is_stale:
            results.hits += 1
            return cast(_R, value)
        call = SyncCall(self._function, results, key, full_args, kwargs)
        if is_stale:
            flights = results.thread_flights
            refresh = Refresh(call, flights, options.single_flight, options.errors)
            return cast(_R, refresh.serve(value, options.refresh))
        if options.single_flight:
            return cast(_R, results.thread_flights.answer(call))
        return cast(_R, call.run())

    async def _answer_later(
        self,
        results: Results,
        args: tuple[Any, ...],
        full_args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the kept result, or wait for the one run of the function for this key."""
        options = self._options
        key = make_key(options, results.token, args, full_args, kwargs)
        value: Any = results.cache.get(key, MISSING)
        if value is not MISSING:
            if type(value) is KeptError:
                results.hits += 1
                raise value.fresh()
            if not (options.stale and results.is_stale(key)):
                results.hits += 1
                return value
        loop = asyncio.get_running_loop()
        flight = results.flights.find(loop, key)
        if value is not MISSING:
            results.hits += 1
            if flight is None:
                results.misses += 1
                work = self._run(results, key, full_args, kwargs)
                results.flights.refresh(loop, key, work, self._token.name, options.errors)
            return value
        if flight is None:
            results.misses += 1
            work = self._run(results, key, full_args, kwargs)
            flight = results.flights.start(loop, key, work, self._token.name, options.errors)
        else:
            results.hits += 1
        return await flight.wait()

    async def _run(
        self, results: Results, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the coroutine function and keep its result."""
        epoch = results.epoch
        try:
            value = await cast(Awaitable[Any], self._function(*args, **kwargs))
        except self._options.errors as error:
            results.store_error(key, error, epoch)
            raise
        results.store(key, value, epoch)
        return value

    # -- results

    def _new_cache(self) -> Cache[Any, Any]:
        """Return the given cache, or a new one."""
        if self._given is not None:
            return self._given
        options = self._options
        return Cache(options.maxsize, options.ttl, timer=options.timer)

    def _make_own(self) -> Results:
        """Make the results of calls that are not method calls."""
        if self._own is None:
            token = self._token if self._given is not None else None
            self._own = Results(self._new_cache(), token, self._options)
        return self._own

    def _find(self, instance: object) -> Results | None:
        """Return the results of an instance, if it has any."""
        results = self._instances.get(id(instance))
        # An identity may be used again if the reference's callback could not run.
        if results is None or results.ref is None or results.ref() is not instance:
            return None
        return results

    def _results_of(self, instance: object) -> Results:
        """Return the results of an instance, made at its first call."""
        results = self._find(instance)
        if results is None:
            ref = instance_ref(instance, self._function, self._drop)
            token = Token(f"{self._token.name} of an instance", self._token)
            results = Results(
                self._new_cache(), token if self._given is not None else None, self._options
            )
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

    def _all_results(self) -> list[Results]:
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
        if self._options.key is not None:
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
        return CacheInfo(hits, misses, self._options.maxsize, currsize)

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
        return CacheInfo(hits, misses, function._options.maxsize, currsize)

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
    single_flight: bool = False,
    stale: float | None = None,
    refresh: Callable[[Callable[[], None]], object] | None = None,
    cache_errors: type[Exception] | tuple[type[Exception], ...] | None = None,
    error_ttl: float | EllipsisType | None = ...,
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
    single_flight: bool = False,
    stale: float | None = None,
    refresh: Callable[[Callable[[], None]], object] | None = None,
    cache_errors: type[Exception] | tuple[type[Exception], ...] | None = None,
    error_ttl: float | EllipsisType | None = ...,
) -> _Decorator: ...
def cached(
    maxsize: Any = ...,
    ttl: Any = ...,
    *,
    key: Callable[..., Hashable] | None = None,
    typed: bool = False,
    cache: Cache[Any, Any] | None = None,
    timer: Callable[[], float] | None = None,
    single_flight: bool = False,
    stale: float | None = None,
    refresh: Callable[[Callable[[], None]], object] | None = None,
    cache_errors: type[Exception] | tuple[type[Exception], ...] | None = None,
    error_ttl: float | EllipsisType | None = ...,
) -> Any:
    """Keep the results of a function, a method or a coroutine function.

    Use it bare (`@cached`: 128 results, no time to live) or with options. The decorated function
    has `cache_info()`, `cache_clear()`, `cache` (the `Cache` used) and `__wrapped__`. Exceptions
    are not kept unless `cache_errors` says so; a result of None is. A hit is O(1).

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
    single_flight: whether threads that call a plain function with equal arguments at one time
        share one run: the others wait for it. They get its result, or a copy of its Exception
        with the original as `__cause__`; after KeyboardInterrupt and the like one of them runs
        the function instead. A call that would wait for itself, by recursion or for a thread
        that waits for this one, runs the function directly. A run that waits for a thread
        which it started outside its context and which makes the same call hangs.
    stale: seconds (float) after `ttl` for which a result is still served while one refresh runs;
        `cache.ttl` is then the sum, and with a given cache entries live that much longer. A
        coroutine function is refreshed in a task of the running loop. Of a plain function, the
        caller that first meets the stale result refreshes it and gets the fresh one, unless
        `refresh` is given. A refresh that fails leaves the stale result; its error goes to the
        loop's exception handler or to `sys.unraisablehook`, and the next call tries again.
    refresh: called as `refresh(job)` to have a refresh of a plain function made elsewhere, as
        `executor.submit` does; `job` takes no arguments and may be dropped.
    cache_errors: a subclass of Exception, or a tuple of them, that are kept as results are. Each
        call raises a copy of its own, with no traceback, cause and context; what has no copy is
        not kept. In the cache such an error is a `KeptError`. Not with a cache that has a
        weigher.
    error_ttl: seconds that an error is kept; as for results (`ttl`) unless given. Never stale.

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
    wait for itself raises RuntimeError. A hit does not switch tasks. Plain functions run once
    per concurrent caller, as in functools, unless `single_flight` is true.

    Hits count calls that were answered by a kept result, stale or not, or by the run of another
    call; misses count runs of the function, refreshes included.

    Raises ValueError or TypeError for bad options, and TypeError for what cannot be decorated:
    no callable, a classmethod, a staticmethod, a generator function.
    """
    function = None
    if is_function_like(maxsize):
        function, maxsize = maxsize, ...
    options = check_options(
        maxsize,
        ttl,
        key,
        typed,
        cache,
        timer,
        single_flight,
        stale,
        refresh,
        cache_errors,
        error_ttl,
    )

    def decorate(function: Callable[_P, _R], /) -> CachedFunction[_P, _R]:
        """Return `function` with its results kept."""
        return CachedFunction(function, options)

    return decorate if function is None else decorate(function)
