"""`Cache.dump` and `Cache.load` of both twins, over three hooks that each of them has.

    _export()   the live entries in the order of leaving, as (keys, values, states, left, policy):
                `states` a byte each (queue, mark, count), `left` native doubles (seconds), what
                the policy has learnt. One state of the cache: no foreign code runs meanwhile. It
                costs two references, a byte and a double for each entry: 25 bytes.
    _room()     how many entries fit beside those held, how much weight (None: no weigher), and
                the weigher.
    _import(keys, values, states, left, weights, passed, policy, expected)
                put entries back, the first to leave first; returns how many.

A file has the last to leave first, so that a smaller cache reads the best and stops.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO

from beastcore._dumpfile import ENDLESS, Header, Reader, Writer, open_to_read, write_whole
from beastcore._validate import (
    MAX_TTL,
    check_callable,
    check_coder,
    check_path,
    check_time,
    check_weight,
)

__all__ = ["dump", "load"]

Coder = Callable[[Any], Any]
Clock = Callable[[], float]


def dump(
    cache: Any,
    path: Any,
    value_encoder: Coder | None,
    key_encoder: Coder | None,
    wall_clock: Clock | None,
) -> int:
    """Write the live entries of `cache` to `path` and return how many; see `Cache.dump`."""
    target = check_path(path)
    encode = check_coder("value_encoder", value_encoder)
    check_callable("key_encoder", key_encoder)
    read_clock = _clock(wall_clock)
    written = read_clock()  # before the export, so that no life grows
    keys, values, states, left, policy = cache._export()  # noqa: SLF001
    header = Header(len(keys), written, policy)
    seconds = memoryview(left).cast("d")

    def write(file: BinaryIO) -> None:
        writer = Writer(file, header)
        for i in range(header.entries - 1, -1, -1):
            key, value = keys.pop(), values.pop()
            encoded = encode(value)
            if not isinstance(encoded, bytes):
                raise TypeError(
                    f"value_encoder must return bytes, got {encoded!r} for the value under {key!r}"
                )
            writer.add(key, encoded, states[i], seconds[i], key_encoder)
        writer.end()

    write_whole(target, write)
    return header.entries


def load(
    cache: Any,
    path: Any,
    value_decoder: Coder | None,
    key_decoder: Coder | None,
    wall_clock: Clock | None,
) -> int:
    """Fill the room in `cache` from the file `path`; return how many came; see `Cache.load`."""
    source = check_path(path)
    decode = check_coder("value_decoder", value_decoder)
    check_callable("key_decoder", key_decoder)
    read_clock = _clock(wall_clock)
    keys: list[Any] = []
    values: list[Any] = []
    states = bytearray()
    left = array("d")
    with open_to_read(source) as file:
        reader = Reader(file, source)
        header = reader.header()
        room, weight_room, weigher = cache._room()  # noqa: SLF001
        weights: list[int] | None = None if weigher is None else []
        total = 0
        # A wall clock that was set back does not lengthen lives.
        passed = max(0.0, read_clock() - header.written)
        holds = len(cache) > 0
        for key, encoded, state, seconds in reader.records(key_decoder):
            if len(keys) >= room:
                break
            if (seconds != ENDLESS and seconds <= passed) or (holds and key in cache):
                continue
            value = decode(encoded)
            if weights is not None:
                weight = check_weight(weigher(key, value))
                if total + weight > weight_room:
                    continue
                weights.append(weight)
                total += weight
            keys.append(key)
            values.append(value)
            states.append(state)
            left.append(min(seconds, MAX_TTL))
    expected = _entries_expected(cache, len(keys), total)
    for column in (keys, values, states, left, weights):
        if column is not None:
            column.reverse()
    # Decoding took time as well.
    passed = max(passed, read_clock() - header.written)
    count: int = cache._import(  # noqa: SLF001
        keys, values, bytes(states), left.tobytes(), weights, passed, header.policy, expected
    )
    return count


def _entries_expected(cache: Any, count: int, weight: int) -> int:
    """Return how many entries the full cache will hold, as far as weights tell."""
    most: int = cache.maxsize
    heaviest = cache.max_weight
    if heaviest is None or weight + cache.weight == 0:
        return most
    return min(most, max(16, (count + len(cache)) * int(heaviest) // (weight + int(cache.weight))))


def _clock(wall_clock: Clock | None) -> Clock:
    """Return a reader of the wall clock that answers seconds since the epoch."""
    check_callable("wall_clock", wall_clock)
    read = time.time if wall_clock is None else wall_clock
    return lambda: check_time(read(), "wall_clock()")
