from collections.abc import Callable, Hashable
from types import EllipsisType, GenericAlias
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, final, overload

from beastcore._cache import Cache
from beastcore._decorate import Options
from beastcore._types import CacheInfo

__all__ = ["CachedFunction", "CachedMethod", "cached"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_T = TypeVar("_T")

class _Decorator(Protocol):
    def __call__(self, function: Callable[_P, _R], /) -> CachedFunction[_P, _R]: ...

@final
class CachedFunction(Generic[_P, _R]):
    __name__: str
    __qualname__: str
    __wrapped__: Callable[_P, _R]
    def __new__(
        cls,
        function: Callable[_P, _R],
        options: Options,
    ) -> CachedFunction[_P, _R]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    @property
    def cache(self) -> Cache[Any, Any]: ...
    def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    def cache_info(self) -> CacheInfo: ...
    def cache_clear(self) -> None: ...
    def __set_name__(self, owner: type, name: str, /) -> None: ...
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
    def __copy__(self) -> CachedFunction[_P, _R]: ...
    def __deepcopy__(self, memo: object, /) -> CachedFunction[_P, _R]: ...
    def __reduce__(self) -> str: ...

@final
class CachedMethod(Generic[_P, _R]):
    __name__: str
    __qualname__: str
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    @property
    def __self__(self) -> Any: ...
    @property
    def __func__(self) -> CachedFunction[..., _R]: ...
    @property
    def __signature__(self) -> Any: ...
    @property
    def cache(self) -> Cache[Any, Any]: ...
    def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    def cache_info(self) -> CacheInfo: ...
    def cache_clear(self) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

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
