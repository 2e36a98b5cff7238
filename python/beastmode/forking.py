"""Telling objects that they have become a child's: a fork copies them, but not their threads."""

from __future__ import annotations

import functools
import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "tell_after_fork"]


class ForkAware(Protocol):
    """What `tell_after_fork` takes; it has to be hashable, and weak references to it possible."""

    def after_fork_in_child(self) -> None:
        """Let go of what is the parent's. Called before anything else runs in the child."""
        ...


def tell_after_fork(aware: ForkAware) -> None:
    """Call `aware.after_fork_in_child` in every child that this process forks while it is alive.

    All share one hook of the interpreter, made with the first: those are kept for ever, with all
    they hold. O(1).
    """
    _told().add(aware)


@functools.cache
def _told() -> WeakSet[ForkAware]:
    told: WeakSet[ForkAware] = WeakSet()

    def in_child() -> None:
        for aware in told:
            aware.after_fork_in_child()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)
    return told
