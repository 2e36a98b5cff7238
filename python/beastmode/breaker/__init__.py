"""The circuit breaker in front of a store, and the budget of its retries; no I/O."""

from beastmode.breaker.budget import RetryBudget
from beastmode.breaker.circuit import Breaker, BreakerState, StoreSignal

__all__ = ["Breaker", "BreakerState", "RetryBudget", "StoreSignal"]
