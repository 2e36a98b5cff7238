"""Both twins of `cached` in lockstep over calls of every shape: same results, same counters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import Twin

VALUES = st.sampled_from(
    [0, 1, 1.0, True, -1, -2, "a", "", b"a", None, (), (1,), ("k", 1), 2**61 - 1, int, str, 10**30]
)
CALLS = st.lists(
    st.tuples(
        st.lists(VALUES, max_size=5).map(tuple),
        st.dictionaries(st.sampled_from("kab"), VALUES, max_size=2),
        st.integers(0, 2),
    ),
    max_size=60,
)


@pytest.mark.compiled_only
# The fixture only gives access to the twin, which keeps no state between examples.
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=CALLS, typed=st.booleans(), shared=st.booleans(), maxsize=st.integers(1, 20))
def test_lockstep(engine: Twin, calls: list[Any], typed: bool, shared: bool, maxsize: int) -> None:
    logs = []
    for twin in (engine, Twin(compiled=False, tracked=False)):
        options: dict[str, Any] = {"typed": typed}
        if shared:
            options["cache"] = twin.Cache(maxsize)
        else:
            options["maxsize"] = maxsize
        log: list[Any] = []

        def plain(*args: Any, log: list[Any] = log, **kwargs: Any) -> Any:
            log.append(("run", repr(args), repr(kwargs)))
            return repr((args, kwargs))

        class Thing:
            method = twin.cached(**options)(
                lambda self, *args, log=log, **kwargs: log.append((repr(args), repr(kwargs)))
            )

        function = twin.cached(**options)(plain)
        things = [Thing(), Thing()]
        for args, kwargs, target in calls:
            if target == 0:
                log.append(function(*args, **kwargs))
            else:
                things[target - 1].method(*args, **kwargs)
        log.append(function.cache_info())
        log.append(Thing.method.cache_info())
        log.extend(thing.method.cache_info() for thing in things)
        function._check()
        Thing.method._check()
        logs.append(log)
    assert logs[0] == logs[1]


@pytest.mark.compiled_only
def test_the_compiled_one_is_compiled(engine: Twin) -> None:
    function = engine.cached(len)
    assert type(function).__module__ == "beastcore._memo"
    assert not hasattr(type(function).__call__, "__code__")
