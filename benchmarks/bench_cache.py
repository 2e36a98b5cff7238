"""The cases: what is done, over what keys, and how it is known to have happened."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.measure import Figure, Quiet, Run, compare
from benchmarks.peers import BEASTCORE, DICT, LRU_CACHE, Peer, Store

MANY = 100
"""Keys that one `get_many` asks for."""
OPERATIONS = {10_000: 20_000, 100_000: 30_000, 1_000_000: 30_000}
"""Operations of one round, by size of the cache."""
SIZES = tuple(OPERATIONS)
SLOW_TO_FILL = 1_000_000
"""Size from which on other libraries' decorators with a time to live are left out: calling each
with every key would take longer than all the rest."""


class Keys:
    """Keys for one size: those that the caches hold, an access stream, and new ones."""

    def __init__(self, size: int, seed: int = 7, operations: int | None = None) -> None:
        self.size = size
        self.operations = operations or OPERATIONS.get(size, 20_000)
        self.held = [f"item:{number:08d}" for number in range(size)]
        self._random = random.Random(seed)
        ranked = self.held[:]
        self._random.shuffle(ranked)
        self._ranked = ranked
        weights = itertools.accumulate(1.0 / rank for rank in range(1, size + 1))
        self._cumulative = list(weights)
        self._numbers = itertools.count()

    def zipf(self) -> list[str]:
        """Return accesses to held keys: the key of rank r with probability ~ 1/r (Zipf 1.0)."""
        return self._random.choices(self._ranked, cum_weights=self._cumulative, k=self.operations)

    def new(self) -> list[str]:
        """Return keys that no cache has ever held; their hashes are known, as those of zipf()."""
        numbers = itertools.islice(self._numbers, self.operations)
        keys = [f"new:{number:09d}" for number in numbers]
        for key in keys:
            hash(key)
        return keys


def copies(keys: list[str]) -> list[str]:
    """Return equal keys that are other objects, whose hash has not been computed yet."""
    made = [(key + " ")[:-1] for key in keys]
    assert made[0] == keys[0]
    assert made[0] is not keys[0]
    return made


def sample(items: list[Any]) -> list[Any]:
    """Return some of a round's items, the last among them, to verify."""
    return [*items[:: max(1, len(items) // 500)], items[-1]]


def loop_call(function: Callable[[Any], Any]) -> Callable[[Iterable[Any]], None]:
    """Return a loop that calls `function` with every item."""

    def loop(items: Iterable[Any]) -> None:
        for item in items:
            function(item)

    return loop


class Filled:
    """A peer's cache that holds every key, with the value that it should answer."""

    def __init__(self, peer: Peer, keys: Keys) -> None:
        assert peer.store is not None
        self.peer = peer
        self.value: object = "first"
        self.store = peer.store(peer.load(), keys.size)
        self.store.fill(keys.held, self.value)
        assert self.store.size is not None
        held = self.store.size()
        if held != keys.size:
            raise AssertionError(f"{peer.name} holds {held} of {keys.size} keys")

    def hits(self, items: list[str]) -> int:
        """Return how many of the keys are answered."""
        get, unit = self.store.get, self.store.unit
        assert get is not None
        return sum(unit(get(item)) for item in items)


def _get(filled: Filled, keys: Keys) -> Run:
    def check(items: list[str]) -> None:
        items = sample(items)
        assert filled.hits(items) == len(items), f"{filled.peer.name}: a hit was a miss"

    assert filled.store.get is not None
    return Run(loop_call(filled.store.get), check)


def _get_fresh(filled: Filled, keys: Keys) -> Run:
    run = _get(filled, keys)
    run.prepare = copies
    run.warm = False
    return run


def _miss(filled: Filled, keys: Keys) -> Run:
    def check(items: list[str]) -> None:
        assert filled.hits(sample(items)) == 0, f"{filled.peer.name}: a miss was a hit"

    assert filled.store.get is not None
    return Run(loop_call(filled.store.get), check)


def _get_many(filled: Filled, keys: Keys) -> Run:
    store = filled.store
    get = store.get
    assert get is not None
    many = store.get_many or (lambda chunk: [get(key) for key in chunk])

    def check(chunks: list[list[str]]) -> None:
        for chunk in sample(chunks):
            answers = many(chunk)
            assert len(answers) == len(chunk)
            assert all(map(store.unit, answers)), f"{filled.peer.name}: a hit was a miss"

    note = None if store.get_many else "a loop of get"
    return Run(loop_call(many), check, note=note)


def _overwrite(filled: Filled, keys: Keys) -> Run:
    store = filled.store
    values = itertools.count()

    def prepare(items: list[str]) -> list[str]:
        filled.value = f"value {next(values)}"
        return items

    def check(items: list[str]) -> None:
        assert store.get is not None
        assert store.size is not None
        for item in sample(items):
            answer = store.get(item)
            found = answer[0] if isinstance(answer, tuple) else answer
            assert found == filled.value, f"{filled.peer.name}: not overwritten"
        assert store.size() == keys.size, f"{filled.peer.name}: size changed"

    return Run(_loop_set(store, lambda: filled.value), check, prepare)


def _loop_set(store: Store, value: Callable[[], object]) -> Callable[[Iterable[Any]], None]:
    """Return a loop that stores the present value under every item."""
    cache, set_ = store.cache, store.set

    def loop_item(items: Iterable[Any]) -> None:
        now = value()
        for item in items:
            cache[item] = now

    def loop_method(items: Iterable[Any]) -> None:
        assert set_ is not None
        now = value()
        for item in items:
            set_(item, now)

    return loop_item if set_ is None else loop_method


def _insert(filled: Filled, keys: Keys) -> Run:
    store, peer = filled.store, filled.peer
    size, has = store.size, store.has
    assert size is not None
    assert has is not None

    def check(items: list[str]) -> None:
        items = sample(items[-keys.size // 2 :])  # earlier ones may have been evicted again
        entered = sum(map(has, items))
        if not peer.bounded:
            assert size() == keys.size + keys.operations, f"{peer.name}: not inserted"
        elif peer.exact:
            assert entered == len(items), f"{peer.name}: {entered} entered"
            assert size() == keys.size, f"{peer.name}: nothing was evicted"
        else:
            assert size() <= keys.size, f"{peer.name}: holds {size()}"
            if entered < len(items) / 2:
                run.note = "its admission policy turns most new keys away"

    def undo(items: list[str]) -> None:
        if not peer.bounded:
            for item in items:
                del store.cache[item]

    run = Run(_loop_set(store, lambda: "new"), check, undo=undo, warm=False)
    if not peer.bounded:
        run.note = "grows instead of evicting"
    return run


def memoized(peer: Peer, keys: Keys, calls: list[str]) -> Any:
    """Return a memoized function that has been called with every key; it notes its runs."""
    assert peer.decorate is not None

    def function(key: str) -> str:
        calls.append(key)
        return key

    found = peer.decorate(peer.load(), keys.size, function)
    for key in keys.held:
        found(key)
    assert len(calls) == keys.size
    return found


def decorated(peer: Peer, keys: Keys) -> Run:
    """Return the run that calls a memoized function with keys whose results are kept."""
    calls: list[str] = []
    function = memoized(peer, keys, calls)

    def check(items: list[str]) -> None:
        assert len(calls) == keys.size, f"{peer.name}: the function ran"
        assert all(function(item) == item for item in sample(items))

    return Run(loop_call(function), check)


def _insert_by_call(peer: Peer, keys: Keys) -> Run:
    """`functools.lru_cache` has no other door: a call with a new key, of a C function."""
    assert peer.decorate is not None
    function = peer.decorate(peer.load(), keys.size, len)
    for key in keys.held:
        function(key)
    seen = [keys.size]

    def check(items: list[str]) -> None:
        info = function.cache_info()
        assert info.misses - seen[0] == len(items), f"{peer.name}: not a miss"
        assert info.currsize == keys.size
        seen[0] = info.misses

    return Run(loop_call(function), check, warm=False, note="a call of len()")


CASES: dict[str, tuple[str, Callable[[Filled, Keys], Run] | None]] = {
    "get": ("get, hit", _get),
    "fresh": ("get, hit, new str object", _get_fresh),
    "miss": ("get, miss", _miss),
    "overwrite": ("set, overwrite", _overwrite),
    "insert": ("set, insert with eviction", _insert),
    "get_many": (f"get_many of {MANY}, per key", _get_many),
    "decorator": ("decorator, hit", None),
}
"""Case -> title and how it is run; the decorator's function is made for each peer."""


def inputs_of(case: str, keys: Keys) -> Callable[[int], list[Any]]:
    """Return what makes the input of a round."""

    def inputs(number: int) -> list[Any]:
        if case in ("miss", "insert"):
            return keys.new()
        stream = keys.zipf()
        if case == "get_many":
            return [stream[i : i + MANY] for i in range(0, len(stream), MANY)]
        return stream

    return inputs


def run_size(
    size: int,
    cases: list[str],
    peers: list[Peer],
    *,
    rounds: int,
    quiet: Quiet,
    say: Callable[[str], None],
) -> list[tuple[str, str, list[Figure]]]:
    """Run the cases at one size; return (case, base of its ratios, figures) for each."""
    keys = Keys(size)
    results = []
    stores = [peer for peer in peers if peer.store is not None]
    filled: dict[str, Filled] = {}
    if any(case != "decorator" for case in cases):
        filled = {peer.name: Filled(peer, keys) for peer in stores}
    # Insertion comes last of the store cases: it changes what the caches hold.
    for case in sorted(cases, key=lambda case: (case == "decorator", case == "insert")):
        title, make = CASES[case]
        say(f"{size:>9,}  {title}")
        if make is None:
            filled.clear()
            runs = {
                peer.name: decorated(peer, keys)
                for peer in peers
                if peer.decorate
                and (size < SLOW_TO_FILL or not peer.ttl or peer.distribution == BEASTCORE)
            }
            base = LRU_CACHE
        else:
            runs = {name: make(found, keys) for name, found in filled.items()}
            base = DICT
            if case == "insert":
                runs |= {p.name: _insert_by_call(p, keys) for p in peers if p.name == LRU_CACHE}
        figures = compare(
            runs,
            base,
            inputs_of(case, keys),
            rounds=rounds,
            quiet=quiet,
            per_item=MANY if case == "get_many" else 1,
        )
        results.append((case, base, figures))
    return results
