"""The read-through cache of documents over a store.

`BeastModeCache` is the component; `Rule` gives a collection its own times to live, `Answer` is
what a read returns, and `CacheReport` what `get_stats()` returns. A `Lease` is how a stream of
changes keeps what is held fresh.
"""

from __future__ import annotations

from beastmode.cache.lease import Lease
from beastmode.cache.query_loader import QueryAnswer
from beastmode.cache.readthrough import BeastModeCache
from beastmode.cache.report import Answer, CacheReport, QueryReport, Source
from beastmode.cache.rules import Rule

__all__ = [
    "Answer",
    "BeastModeCache",
    "CacheReport",
    "Lease",
    "QueryAnswer",
    "QueryReport",
    "Rule",
    "Source",
]
