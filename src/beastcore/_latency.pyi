"""`LatencyHistogram`, compiled: latencies in fixed memory, log-linear."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, final

__all__ = ["LatencyHistogram"]

@final
class LatencyHistogram:
    """Counts latencies in nanoseconds; answers percentiles to within 0.8 %."""

    def __new__(cls) -> LatencyHistogram: ...
    def record(self, ns: int, /) -> None:
        """Count one latency of `ns` nanoseconds."""
    def record_many(self, values: Iterable[int], /) -> int:
        """Count every latency in `values` and return how many there were."""
    def merge(self, other: LatencyHistogram, /) -> None:
        """Add everything that `other` has counted."""
    def reset(self) -> None:
        """Forget everything counted."""
    @property
    def count(self) -> int:
        """Number of values counted."""
    @property
    def sum(self) -> int:
        """Sum of the values in nanoseconds."""
    @property
    def mean(self) -> float | None:
        """Arithmetic mean in nanoseconds; None when empty."""
    @property
    def min(self) -> int | None:
        """Shortest value in nanoseconds; None when empty."""
    @property
    def max(self) -> int | None:
        """Longest value in nanoseconds; None when empty."""
    def percentile(self, p: float, /) -> int | None:
        """Return the nanoseconds that `p` percent of the values do not exceed."""
    def to_dict(self) -> dict[str, Any]:
        """Return the content as a dict that JSON can hold."""
    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> LatencyHistogram:
        """Return a histogram with the content of a `to_dict()`, of either engine."""
    def __reduce__(self) -> NoReturn: ...
    def _check(self) -> None: ...
