"""Fixtures of the layer's tests: the Firestore emulator, one for the whole run."""

from __future__ import annotations

from beastmode.testing.pytest_plugin import emulator, firestore

__all__ = ["emulator", "firestore"]
