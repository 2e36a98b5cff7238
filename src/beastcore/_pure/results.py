"""The keys and the results of `cached`, the pure twin: what _memo.pyx has in its first half."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, cast, final

from beastcore._decorate import InstanceRef, Options, Token, check_result
from beastcore._failure import KeptError, kept_error
from beastcore._pure.cache import Cache
from beastcore._singleflight import Flights
from beastcore._threadflight import MISSING, ThreadFlights

__all__ = ["Key", "Results", "SyncCall", "make_key"]

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


def make_key(
    options: Options,
    token: Token | None,
    args: tuple[Any, ...],
    full_args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Hashable:
    """Return the key of a call; `full_args` is `args` with the instance in front."""
    if options.key is not None:
        return options.key(*full_args, **kwargs)
    parts = args
    if token is not None:
        parts = (token, *args)
    elif not kwargs and len(args) == 1 and type(args[0]) in _OWN_KEY:
        return cast(Hashable, args[0])
    if kwargs:
        parts += (_KEYWORDS, *(part for item in kwargs.items() for part in item))
    if options.typed:
        parts += (*map(type, args), *map(type, kwargs.values()))
    return Key(parts)


class Results:
    """The results of one function, or of one method of one instance, with their counters."""

    __slots__ = (
        "cache",
        "epoch",
        "flights",
        "hits",
        "misses",
        "options",
        "ref",
        "thread_flights",
        "token",
        "weighted",
    )

    def __init__(self, cache: Cache[Any, Any], token: Token | None, options: Options) -> None:
        self.cache = cache
        self.token = token
        self.options = options
        self.weighted = getattr(cache, "max_weight", None) is not None
        self.flights = Flights()
        self.thread_flights = ThreadFlights()
        self.ref: InstanceRef | None = None
        self.hits = 0
        self.misses = 0
        self.epoch = 0

    def clear(self) -> None:
        """Forget the counters and the runs under way, which are not stored when they end."""
        self.epoch += 1
        self.hits = self.misses = 0
        self.flights.forget()
        self.thread_flights.forget()

    def is_stale(self, key: Hashable) -> bool:
        """Whether the entry that was found under `key` is in the last, stale part of its life."""
        try:
            left = self.cache.expires_in(key)
        except KeyError:  # it ended since
            return True
        return left is not None and left <= self.options.stale

    def look(self, key: Hashable) -> Any:
        """Return the kept result if it is fresh, counting a hit, or MISSING; or raise its error."""
        value: Any = self.cache.peek(key, MISSING)
        if value is MISSING:
            return value
        if type(value) is KeptError:
            self.hits += 1
            raise value.fresh()
        if self.options.stale and self.is_stale(key):
            return MISSING
        self.hits += 1
        return value

    def store(self, key: Hashable, value: Any, epoch: int) -> None:
        """Store a result, unless `clear` came since the run began or it is too heavy."""
        if epoch != self.epoch:
            return
        if not self.weighted:
            self._set(key, value)
            return
        rejections = self.cache.stats().rejections
        try:
            self._set(key, value)
        except ValueError:
            # Heavier than max_weight: the cache has counted it, the caller still gets the value.
            if self.cache.stats().rejections == rejections:
                raise

    def _set(self, key: Hashable, value: Any) -> None:
        life = self.options.life
        if life is None:
            self.cache.set(key, value)
        else:
            self.cache.set(key, value, life)

    def store_error(self, key: Hashable, error: Exception, epoch: int) -> None:
        """Store a copy of what the function raised, under the conditions of `store`."""
        kept = kept_error(error)
        if kept is not None and epoch == self.epoch:
            self.cache.set(key, kept, self.options.error_ttl)


class SyncCall:
    """One call of a plain function that its kept result does not answer."""

    __slots__ = ("_args", "_function", "_key", "_kwargs", "_results")

    def __init__(
        self,
        function: Callable[..., Any],
        results: Results,
        key: Hashable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._function = function
        self._results = results
        self._key = key
        self._args = args
        self._kwargs = kwargs

    def get_key(self) -> Hashable:
        """Return its key."""
        return self._key

    def get_function(self) -> object:
        """Return the function."""
        return self._function

    def note_hit(self) -> None:
        """Count a hit."""
        self._results.hits += 1

    def look(self) -> Any:
        """Return the kept result if it is fresh, counting a hit, else MISSING."""
        return self._results.look(self._key)

    def run(self) -> Any:
        """Run the function, counting a miss, and keep what it returns or raises."""
        results = self._results
        results.misses += 1
        epoch = results.epoch
        try:
            value = self._function(*self._args, **self._kwargs)
        except results.options.errors as error:
            results.store_error(self._key, error, epoch)
            raise
        check_result(value, self._function)
        results.store(self._key, value, epoch)
        return value
