"""The optimizer: the one place where the components are wired together.

`BeastModeOptimizer` answers requests; `parts.py` makes and owns the components, `tally.py` counts
what is answered, `transactions.py` runs transactions.
"""

from __future__ import annotations

from beastmode.optimizer.drafts import AsyncTransaction, Transaction
from beastmode.optimizer.optimizer import BeastModeOptimizer
from beastmode.optimizer.parts import PartsReport

__all__ = ["AsyncTransaction", "BeastModeOptimizer", "PartsReport", "Transaction"]
