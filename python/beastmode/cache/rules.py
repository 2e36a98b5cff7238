"""Rules per collection: how long documents stay fresh, and whose they are. No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from beastcore._validate import check_seconds, check_ttl
from beastmode.errors import ConfigError, RequestError
from beastmode.stores.documents import check_path

__all__ = ["Key", "Policy", "Rule", "RuleBook", "check_lifetime", "setting"]

Key = str | tuple[str, str]
"""A cache key: the path, or (path, user) where a rule says `per_user`."""

_Args = ParamSpec("_Args")
_Checked = TypeVar("_Checked")


def setting(
    check: Callable[_Args, _Checked], *args: _Args.args, **kwargs: _Args.kwargs
) -> _Checked:
    """Return what the engine's argument check answers; its refusal becomes a ConfigError."""
    try:
        return check(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def check_lifetime(name: str, value: object, *, zero: bool = False) -> float:
    """Return a time to live in seconds, inf for None and inf; `zero` allows 0 ("not at all")."""
    if zero and not isinstance(value, bool) and value == 0:
        return 0.0
    checked = setting(check_ttl, value, name)
    return math.inf if checked is None else checked


@dataclass(frozen=True, slots=True)
class Rule:
    """How the documents directly in the collections that `collection` describes are cached.

    `collection` is a collection path whose parts may be `*`, which stands for any one part:
    "sessions", "users/*/private". The first rule that matches counts. `ttl_s`, `negative_ttl_s`
    (for documents that do not exist; 0 does not keep them) and `max_stale_s` are seconds; None
    takes the cache's own setting, inf never expires. `cacheable=False` asks the store at each
    read (readers at the same moment share one load). `per_user=True` keeps one entry per user,
    and reads must name one. Bad values raise ConfigError.
    """

    collection: str
    ttl_s: float | None = None
    cacheable: bool = True
    per_user: bool = False
    negative_ttl_s: float | None = None
    max_stale_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.collection, str):
            raise ConfigError(f"a Rule's collection must be a str, got {self.collection!r}")
        parts = self.collection.split("/")
        if not len(parts) % 2 or not all(parts):
            raise ConfigError(
                "a Rule's collection must have an odd number of non-empty parts such as "
                f"'users/*/private', got {self.collection!r}"
            )
        if any("*" in part and part != "*" for part in parts):
            raise ConfigError(
                f"a '*' in a Rule's collection stands for one whole part, got {self.collection!r}"
            )
        for name in ("cacheable", "per_user"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"{name} of the Rule for {self.collection!r} must be True or False, "
                    f"got {getattr(self, name)!r}"
                )
        what = f" of the Rule for {self.collection!r}"
        if self.ttl_s is not None:
            check_lifetime(f"ttl_s{what}", self.ttl_s)
        if self.negative_ttl_s is not None:
            check_lifetime(f"negative_ttl_s{what}", self.negative_ttl_s, zero=True)
        if self.max_stale_s is not None:
            setting(check_seconds, f"max_stale_s{what}", self.max_stale_s, zero=True)


class Policy:
    """What holds for the documents of one rule, inherited settings filled in.

    One object per rule, shared by its entries; only the times to live ever change.
    """

    __slots__ = ("cacheable", "max_stale", "negative_ttl", "per_user", "ttl")

    def __init__(
        self, ttl: float, negative_ttl: float, max_stale: float, *, cacheable: bool, per_user: bool
    ) -> None:
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.max_stale = max_stale
        self.cacheable = cacheable
        self.per_user = per_user


class RuleBook:
    """All rules of a cache, looked up by document path."""

    def __init__(
        self, rules: Iterable[Rule], *, ttl: float, negative_ttl: float, max_stale: float
    ) -> None:
        self._default = Policy(ttl, negative_ttl, max_stale, cacheable=True, per_user=False)
        self._inheriting = [self._default]
        # By the number of parts of the collection: only rules of that length can match.
        self._by_depth: dict[int, list[tuple[list[str], Policy]]] = {}
        roots: set[str] = set()
        seen: set[str] = set()
        for rule in rules:
            if not isinstance(rule, Rule):
                raise ConfigError(f"rules must be Rule objects, got {rule!r}")
            if rule.collection in seen:
                raise ConfigError(f"there are two rules for {rule.collection!r}")
            seen.add(rule.collection)
            policy = Policy(
                ttl if rule.ttl_s is None else check_lifetime("ttl_s", rule.ttl_s),
                negative_ttl
                if rule.negative_ttl_s is None
                else check_lifetime("negative_ttl_s", rule.negative_ttl_s, zero=True),
                max_stale if rule.max_stale_s is None else float(rule.max_stale_s),
                cacheable=rule.cacheable,
                per_user=rule.per_user,
            )
            if rule.ttl_s is None:
                self._inheriting.append(policy)
            parts = rule.collection.split("/")
            self._by_depth.setdefault(len(parts), []).append((parts, policy))
            if rule.per_user:
                roots.add(parts[0])
        self._per_user_roots = frozenset(roots)
        self.shares_keys = not roots
        """True when no rule is `per_user`: then a path is its own key."""

    def set_ttl(self, ttl: float) -> None:
        """Change the time to live of every rule that inherits it."""
        for policy in self._inheriting:
            policy.ttl = ttl

    def policy_for(self, path: str) -> Policy:
        """Return what holds for the document `path`; O(rules of its depth)."""
        if self._by_depth:
            *parts, _ = path.split("/")
            for pattern, policy in self._by_depth.get(len(parts), ()):
                if all(wanted in ("*", part) for wanted, part in zip(pattern, parts, strict=True)):
                    return policy
        return self._default

    def resolve(self, path: str, user: str | None) -> tuple[Key, Policy]:
        """Return the key and the policy of a read; RequestError for a bad path or user."""
        policy = self.policy_for(check_path(path))
        if not policy.per_user:
            return path, policy
        if not isinstance(user, str) or not user:
            raise RequestError(
                f"reading {path!r} needs user=: a rule keeps its collection per user, "
                f"got user={user!r}"
            )
        return (path, user), policy

    def key_of(self, path: str, user: str | None) -> Key:
        """Return the key of a read; as `resolve`, but paths that need no user are not checked."""
        roots = self._per_user_roots
        if not roots or ("*" not in roots and path.partition("/")[0] not in roots):
            return path
        return self.resolve(path, user)[0]
