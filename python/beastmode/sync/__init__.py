"""Real-time sync: changes that others make in the store reach the cache and the users' callbacks.

`BeastModeRealTimeSync` is the component. A store that can follow many targets (`open_feed`) is
followed where the cache's interest is (`interest`), any other as a whole (`watching`); callbacks
are called by a thread of their own (`subscribers`).
"""

from __future__ import annotations

from beastmode.sync.component import BeastModeRealTimeSync
from beastmode.sync.report import SyncReport
from beastmode.sync.subscribers import SyncSubscription

__all__ = ["BeastModeRealTimeSync", "SyncReport", "SyncSubscription"]
