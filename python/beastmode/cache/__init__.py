"""The read-through cache of documents over a store.

`BeastModeCache` is the component; `Rule` gives a collection its own times to live, `Answer` is
what a read returns, and `CacheReport` what `get_stats()` returns.
"""

from __future__ import annotations

from beastmode.cache.readthrough import BeastModeCache
from beastmode.cache.report import Answer, CacheReport, Source
from beastmode.cache.rules import Rule

__all__ = ["Answer", "BeastModeCache", "CacheReport", "Rule", "Source"]
