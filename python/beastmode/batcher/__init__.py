"""Write-behind and write-through: accepted writes gathered into few commits, in order.

`BeastModeBatcher` is the component; a journal is handed to it (anything that keeps the
`WriteJournal` protocol). What survives what is in docs/durability.md.
"""

from __future__ import annotations

from beastmode.batcher.component import BeastModeBatcher, WriteMode
from beastmode.batcher.intake import Until
from beastmode.batcher.outside import JournalCounts, WriteJournal
from beastmode.batcher.report import BatcherReport

__all__ = [
    "BatcherReport",
    "BeastModeBatcher",
    "JournalCounts",
    "Until",
    "WriteJournal",
    "WriteMode",
]
