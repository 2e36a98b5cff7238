"""Journals: the one that an optimizer writes to, and those of dead workers that it has adopted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from beastmode.batcher import BeastModeBatcher
from beastmode.config import BeastModeConfig
from beastmode.errors import BeastError, JournalError
from beastmode.journal import Journal, JournalDirectory

__all__ = ["Journals"]

_SYNC_S = 5.0


class Journals:
    """Opens what `config` names: one file, a directory with a file for each process, or nothing.

    `own` is this process's journal, None without one.
    """

    def __init__(
        self, config: BeastModeConfig, on_error: Callable[[BaseException], object] | None
    ) -> None:
        self.own: Journal | None = None
        self._directory: JournalDirectory | None = None
        self._adopted: list[Journal] = []
        if config.write_mode != "write-behind":
            return
        if config.journal_dir is not None:
            self._directory = JournalDirectory(
                config.journal_dir, durability=config.durability, on_error=on_error
            )
            self.own = self._directory.open()
        elif config.journal_file is not None:
            self.own = Journal(config.journal_file, durability=config.durability)

    def tend(self, batcher: BeastModeBatcher) -> None:
        """Adopt what dead workers left behind, as there is room, and let go of what is done."""
        if self._directory is None:
            return
        for journal in list(self._adopted):
            if journal.is_settled:
                batcher.let_go(journal)
                self._directory.release(journal)
                self._adopted.remove(journal)
        found = self._directory.adopt()
        if not found and not self._adopted:
            return
        try:
            batcher.adopt(found)
        except BaseException:
            for journal in found:  # another worker may have more luck
                with contextlib.suppress(JournalError):
                    journal.close()
            raise
        self._adopted += found

    def close(self) -> None:
        """Close all of them; files that hold nothing any more are removed from a directory."""
        failure: BeastError | None = None
        for journal in (*self._adopted, self.own):
            if journal is None:
                continue
            try:
                if self._directory is None or not self._is_released(journal, self._directory):
                    journal.close()
            except BeastError as error:
                failure = failure or error
        self._adopted.clear()
        if failure is not None:
            raise failure

    @staticmethod
    def _is_released(journal: Journal, directory: JournalDirectory) -> bool:
        with contextlib.suppress(JournalError):
            journal.sync(_SYNC_S)
        return directory.release(journal)
