"""What is played: a mixed stream drawn from a seed, or the reads of a recorded trace.

Requests are drawn before the first phase begins, so that both phases get the same ones in the same
order and drawing them costs neither any time.
"""

from __future__ import annotations

import array
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from beastmode.requests import Request

__all__ = [
    "HEARTBEAT",
    "HEARTBEAT_SHARE",
    "READ",
    "WRITE",
    "WRITE_SHARE",
    "ZIPF",
    "Mix",
    "Operation",
    "Trace",
    "Workload",
    "make_document",
]

READ, WRITE, HEARTBEAT = range(3)
ZIPF: Final = 0.99
"""Exponent of the popularity of documents: the default of the YCSB benchmark."""
WRITE_SHARE: Final = 0.01
HEARTBEAT_SHARE: Final = 0.05

_CITIES: Final = ("Delft", "Porto", "Gdansk", "Lyon", "Turku", "Ghent", "Graz")
_CHUNK: Final = 20_000


class Operation(NamedTuple):
    """One request of a user; `kind` is READ, WRITE or HEARTBEAT."""

    kind: int
    user: str | None
    request: Request


class Workload(Protocol):
    """What a demonstration plays."""

    requests: int
    """How many requests there are."""
    users: list[str]
    """Who is connected."""
    unique: int
    """How many documents there are."""

    def documents(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield path and fields of every document that the store must hold."""
        ...

    def operations(self, phase: str) -> Iterator[Operation]:
        """Yield the requests, in order; what is written carries the name of the phase."""
        ...

    def first_reads(self, count: int) -> int:
        """Return how many of the first `count` requests must read the store whatever is cached.

        They are the reads of documents that no request before has read or written.
        """
        ...


def make_document(number: int) -> dict[str, Any]:
    """Return the fields of a document, some 300 bytes as JSON."""
    return {
        "title": f"Article {number}",
        "about": f"The {number % 89}. of its kind, made in {_CITIES[number % 7]} by hand. " * 2,
        "price": {"amount": 100 + number % 9_900, "currency": "EUR"},
        "stock": number % 41,
        "tags": ["new", "sale", "rare"][: number % 4],
        "seller": f"sellers/{number % 1_000}",
    }


class Mix:
    """Reads and writes of documents by a Zipf law, and heartbeats of the users in turn."""

    def __init__(
        self,
        documents: int,
        users: int,
        requests: int,
        seed: int,
        on_progress: Callable[[int], object] = lambda _done: None,
    ) -> None:
        self.requests = requests
        self.unique = documents
        self.users = [f"user-{number}" for number in range(users)]
        self._paths = [f"articles/{number}" for number in range(documents)]
        self._reads = [Request.get(path) for path in self._paths]
        rng = random.Random(seed)
        # Popular documents lie scattered in the store, not side by side.
        by_rank = array.array("I", rng.sample(range(documents), documents))
        weights = list(itertools.accumulate((rank + 1) ** -ZIPF for rank in range(documents)))
        kinds = (1 - WRITE_SHARE - HEARTBEAT_SHARE, WRITE_SHARE, HEARTBEAT_SHARE)
        self._kinds = bytearray()
        self._drawn = array.array("I")
        self._callers = array.array("I")
        for done in range(0, requests, _CHUNK):
            count = min(_CHUNK, requests - done)
            self._kinds += bytes(rng.choices(range(3), kinds, k=count))
            self._drawn.extend(rng.choices(by_rank, cum_weights=weights, k=count))
            self._callers.extend(rng.choices(range(users), k=count))
            on_progress(done + count)

    def documents(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """See `Workload`."""
        return ((path, make_document(number)) for number, path in enumerate(self._paths))

    def operations(self, phase: str) -> Iterator[Operation]:
        """See `Workload`."""
        beat = Request.heartbeat()
        turns = itertools.cycle(self.users)
        drawn = zip(self._kinds, self._drawn, self._callers, strict=True)
        for sequence, (kind, number, caller) in enumerate(drawn):
            if kind == READ:
                yield Operation(READ, self.users[caller], self._reads[number])
            elif kind == WRITE:
                fields = make_document(number) | {"edit": f"{phase} {sequence}"}
                request = Request.set(self._paths[number], fields)
                yield Operation(WRITE, self.users[caller], request)
            else:
                yield Operation(HEARTBEAT, next(turns), beat)

    def first_reads(self, count: int) -> int:
        """See `Workload`."""
        touched: set[int] = set()
        reads = 0
        for kind, number in itertools.islice(zip(self._kinds, self._drawn, strict=True), count):
            if kind != HEARTBEAT and number not in touched:
                touched.add(number)
                reads += kind == READ
        return reads


class Trace:
    """Reads of the documents that the keys of a trace stand for; it names no users."""

    def __init__(self, keys: array.array[int], requests: int | None = None) -> None:
        self._keys = keys if requests is None else keys[:requests]
        self.requests = len(self._keys)
        self.users: list[str] = []
        self._reads = {key: Request.get(f"articles/{key}") for key in dict.fromkeys(self._keys)}
        self.unique = len(self._reads)

    def documents(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """See `Workload`."""
        return ((request.path or "", make_document(key)) for key, request in self._reads.items())

    def operations(self, phase: str) -> Iterator[Operation]:
        """See `Workload`; nothing is written."""
        del phase
        reads = self._reads
        return (Operation(READ, None, reads[key]) for key in self._keys)

    def first_reads(self, count: int) -> int:
        """See `Workload`."""
        return len(set(self._keys[:count]))
