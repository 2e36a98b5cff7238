"""The optimizer: the one place where the components are wired together.

`BeastModeOptimizer` answers requests; `parts.py` makes and owns the components, `tally.py` counts
what is answered.
"""

from __future__ import annotations

from beastmode.optimizer.optimizer import BeastModeOptimizer
from beastmode.optimizer.parts import PartsReport

__all__ = ["BeastModeOptimizer", "PartsReport"]
