"""What is Firestore's own beside the contract of every store."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
import time
from typing import Any

import pytest

import beastmode
from beastmode.errors import (
    ClosedError,
    CommitTooLarge,
    ConfigError,
    PreconditionFailed,
    RequestError,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    WriteRejected,
)
from beastmode.stores.attempts import unanswered
from beastmode.stores.base import Filter, Query, StoreHealth, deadline_in
from beastmode.stores.documents import DELETE_FIELD, Delete, Merge, Precondition, Set, Update
from beastmode.stores.firestore import AsyncFirestoreStore, FirestoreStore
from beastmode.stores.firestore.convert import field_path
from beastmode.testing import fresh_project
from beastmode.testing.pytest_plugin import Firestore
from store_support import Child


@pytest.fixture
def store(firestore: Firestore) -> Any:
    with FirestoreStore(firestore.project, deadline_s=10.0) as made:
        yield made


def test_the_package_names_the_stores() -> None:
    assert beastmode.FirestoreStore is FirestoreStore
    assert beastmode.AsyncFirestoreStore is AsyncFirestoreStore
    with pytest.raises(AttributeError, match="no attribute 'Firestore'"):
        beastmode.Firestore


def test_it_finds_the_emulator_and_the_project_by_the_environment(firestore: Firestore) -> None:
    with FirestoreStore() as store:
        assert store.place.target == firestore.host
        assert (store.project, store.database) == (firestore.project, "(default)")
        assert repr(store) == f"FirestoreStore({firestore.project!r}, '(default)')"
        assert store.health().ok
    assert "closed" in repr(store)
    assert "closed" in store.health().detail


@pytest.mark.parametrize(
    ("name", "value"),
    [("deadline_s", 0), ("keepalive_s", -1.0), ("max_retries", -1), ("max_retries", True)],
)
def test_bad_options_are_refused(firestore: Firestore, name: str, value: Any) -> None:
    for kind in (FirestoreStore, AsyncFirestoreStore):
        with pytest.raises(ConfigError, match=name):
            kind("p", **{name: value})


@pytest.mark.parametrize(("deadline_s", "expected"), [(2.0, 2.0), (0.5, 0.5), (60.0, 10.0)])
@pytest.mark.parametrize("kind", [FirestoreStore, AsyncFirestoreStore])
def test_a_probe_has_the_time_of_a_call_and_says_what_it_failed_with(
    firestore: Firestore,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    deadline_s: float,
    expected: float,
) -> None:
    refusal = StoreRefused("get: no permission to read this document (PERMISSION_DENIED)")
    left: list[float] = []

    async def probe() -> StoreHealth:
        store = kind(deadline_s=deadline_s)

        def refuse(path: str, *, deadline: float) -> Any:
            left.append(deadline - time.monotonic())
            raise refusal

        monkeypatch.setattr(store, "get", refuse)
        try:
            health = store.health()
            return await health if inspect.isawaitable(health) else health
        finally:
            closing = store.close()
            if inspect.isawaitable(closing):
                await closing

    health = asyncio.run(probe())
    assert not health.ok
    assert health.error is refusal
    assert "PERMISSION_DENIED" in health.detail
    assert expected - 0.4 < left[0] <= expected


@pytest.mark.parametrize("kind", [FirestoreStore, AsyncFirestoreStore])
@pytest.mark.parametrize(
    ("answers", "unheard"),
    [
        ([], 0),
        (["UNAVAILABLE", "RESOURCE_EXHAUSTED"], 1),
        (["UNAVAILABLE", "UNKNOWN", "PERMISSION_DENIED"], 2),
        (["DEADLINE_EXCEEDED"], 1),
    ],
)
async def test_it_tells_of_attempts_that_nobody_answered(
    firestore: Firestore, kind: Any, answers: list[str], unheard: int
) -> None:
    store = kind()
    errors: Any = store._google.grpc

    class Answer(errors.RpcError):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.code = lambda: errors.StatusCode[name]
            self.details = lambda: "Socket closed"

    script = [Answer(name) for name in answers]
    ends_well = answers[-1:] not in (["PERMISSION_DENIED"], ["DEADLINE_EXCEEDED"])

    def attempt(_connection: Any, _left: float) -> str:
        if script:
            raise script.pop(0)
        return "answered"

    async def aattempt(connection: Any, left: float) -> str:
        return attempt(connection, left)

    is_async = kind is AsyncFirestoreStore
    with unanswered() as attempts:
        try:
            called = store._call("get", aattempt if is_async else attempt, deadline_in(5.0))
            assert (await called if is_async else called) == "answered"
            assert ends_well
        except StoreError:
            assert not ends_well
    assert attempts.told
    assert attempts.open == unheard
    closing = store.close()
    if is_async:
        await closing


def test_projects_and_databases_are_apart(firestore: Firestore, store: Any) -> None:
    store.commit([Set("u/a", {"n": 1})])
    with (
        FirestoreStore(fresh_project()) as elsewhere,
        FirestoreStore(firestore.project, "second") as second,
    ):
        for other in (elsewhere, second):
            assert not other.get("u/a").exists
            other.commit([Set("u/a", {"n": 2})])
    assert store.get("u/a").data == {"n": 1}


def test_google_s_own_client_reads_what_we_write_and_the_other_way_round(
    firestore: Firestore, store: Any
) -> None:
    from google.cloud import firestore as google

    client = google.Client(project=firestore.project)
    written = {"a": 1, "m": {"x y": [1, "é", None, {"t": True}]}, "b": b"\0"}
    (version,) = store.commit([Set("u/a", written)])
    snapshot = client.document("u/a").get(retry=None, timeout=5)
    assert snapshot.to_dict() == written
    assert store.get("u/a").version == version
    stamp = snapshot.update_time
    assert version == int(stamp.timestamp()) * 10**9 + stamp.nanosecond
    client.document("u/b").set({**written, "at": google.SERVER_TIMESTAMP}, timeout=5)
    held = store.get("u/b").to_dict()
    assert held.pop("at").tzinfo is not None
    assert held == written
    store.commit([Set("u/c", {"ref": client.document("u/a"), "at": google.GeoPoint(1, 2)})])
    mine = client.document("u/c").get(retry=None, timeout=5).to_dict()
    assert mine["ref"] == client.document("u/a")
    assert (mine["at"].latitude, mine["at"].longitude) == (1, 2)
    client.close()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a", "b_1"], "a.b_1"),
        (["a.b"], "`a.b`"),
        (["1a", "é"], "`1a`.`é`"),
        (["a`b"], "`a\\`b`"),
        (["a\\b"], "`a\\\\b`"),
        ([""], "``"),
    ],
)
def test_field_paths_are_escaped(names: list[str], text: str) -> None:
    assert field_path(names) == text


ODD = ["a b", "1", "é", "`", "\\", '"', "[0]", "*", "$x", "a-b", "\n", "\U0001f600", "``\\`"]


def test_fields_of_any_name_are_merged_updated_and_found(store: Any) -> None:
    store.commit([Set("u/a", dict.fromkeys(ODD, 0) | {"m": dict.fromkeys(ODD, 0)})])
    store.commit([Merge("u/a", dict.fromkeys(ODD, 1) | {"m": dict.fromkeys(ODD, 1)})])
    held = store.get("u/a").to_dict()
    assert held == dict.fromkeys(ODD, 1) | {"m": dict.fromkeys(ODD, 1)}
    store.commit([Update("u/a", {f"m.{name}": 2 for name in ODD})])
    assert store.get("u/a").data["m"] == dict.fromkeys(ODD, 2)
    for name in ODD:
        found = store.query(Query("u", (Filter(f"m.{name}", "==", 2),))).documents
        assert [document.path for document in found] == ["u/a"], name
    store.commit([Update("u/a", dict.fromkeys([*ODD, "m"], DELETE_FIELD))])
    assert store.get("u/a").data == {}
    with pytest.raises(RequestError, match="'__x__' are Firestore's own"):
        store.commit([Set("u/a", {"__x__": 1})])


def test_a_name_with_a_dot_is_one_field(store: Any) -> None:
    store.commit([Set("u/a", {"a.b": 1, "a": {"b": 2}})])
    store.commit([Merge("u/a", {"a.b": 3})])
    assert store.get("u/a").data == {"a.b": 3, "a": {"b": 2}}
    store.commit([Update("u/a", {"a.b": 4})])
    assert store.get("u/a").data == {"a.b": 3, "a": {"b": 4}}


@pytest.mark.parametrize("path", ["a/.", "a/..", "a/__x__", "__a__/b"])
def test_names_that_firestore_keeps_for_itself(store: Any, path: str) -> None:
    with pytest.raises(RequestError, match=f"document {path!r}"):
        store.commit([Set("u/a", {}), Set(path, {})])
    with pytest.raises(RequestError, match="INVALID_ARGUMENT"):
        store.get(path)
    assert not store.get("u/a").exists


def test_queries_that_firestore_does_not_take(store: Any) -> None:
    with pytest.raises(RequestError, match="Only a single 'NOT_EQUAL'"):
        store.query(Query("u", (Filter("a", "!=", 1), Filter("b", "!=", 1))))


# -- sizes -----------------------------------------------------------------------------------------


def test_a_commit_is_as_large_as_told(store: Any) -> None:
    operations = [Set(f"u/{n}", {"x": "y" * 1000}) for n in range(100)]
    size = store.commit_size(operations)
    assert 100_000 < size < 130_000
    parts = sum(store.commit_size([operation]) for operation in operations)
    assert size <= parts < 1.2 * size, "single ones add up to no less than all together"


def test_commits_that_are_too_large_are_refused_before_they_are_sent(store: Any) -> None:
    assert store.commit_limits.max_operations == 500
    big = [Set(f"u/{n}", {"x": "y" * 900_000}) for n in range(5)]
    with pytest.raises(CommitTooLarge, match="nothing was sent"):
        store.commit(big)
    assert not store.get("u/0").exists
    assert store.commit_size(big[:3]) < store.commit_limits.max_bytes
    assert len(store.commit(big[:3])) == 3
    assert len(store.get_many([f"u/{n}" for n in range(5)])) == 5


def test_a_limit_that_only_the_server_knows_is_told_the_same_way(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_check_size", lambda _request: None)
    with pytest.raises(CommitTooLarge, match="4194304"):
        store.commit([Set(f"u/{n}", {"x": "y" * 900_000}) for n in range(5)])
    store.commit([Set("u/a", {"x": "y" * 600_000})])
    with pytest.raises(WriteRejected, match="maximum entity size"):
        store.commit([Merge("u/a", {"z": "y" * 600_000})])


def test_many_paths_are_read_in_several_requests(store: Any) -> None:
    store.commit([Set(f"u/{'x' * 900}{n}", {"n": n}) for n in range(0, 600, 100)])
    paths = [f"u/{'x' * 900}{n}" for n in range(600)]
    assert len(list(store._chunks(paths))) == 3
    found = store.get_many(paths + paths[:1], deadline=deadline_in(30))
    assert [document.path for document in found] == paths + paths[:1]
    assert [n for n, document in enumerate(found[:600]) if document.exists] == list(
        range(0, 600, 100)
    )


def test_an_update_that_must_not_exist_can_never_be_applied(store: Any) -> None:
    with pytest.raises(PreconditionFailed, match="must not exist"):
        store.commit([Update("u/a", {"n": 1}, Precondition(exists=False))])
    assert not store.get("u/a").exists
    (version,) = store.commit([Delete("u/a")])
    assert version > 0


# -- processes, threads, loops ---------------------------------------------------------------------

FORKED = """
    import os, sys
    from beastmode import FirestoreStore, Set
    from beastmode.errors import ForkedError
    store = FirestoreStore(sys.argv[1], emulator_host=sys.argv[2], deadline_s=10.0)
    store.commit([Set("u/a", {"n": 1})])
    pid = os.fork()
    if not pid:
        code = 1
        try:
            store.get("u/a")
        except ForkedError as error:
            code = 0 if "after the fork" in str(error) else 2
        store.close()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert store.get("u/a").data == {"n": 1}, "the parent goes on"
    store.close()
    print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="another operating system: there is no fork")
def test_a_child_of_a_fork_is_told_to_make_its_own(firestore: Firestore) -> None:
    with Child(FORKED, firestore.project, firestore.host) as child:
        assert child.finish().strip() == "0"


def test_every_loop_has_a_connection_and_closed_ones_are_forgotten(firestore: Firestore) -> None:
    store = AsyncFirestoreStore(firestore.project, deadline_s=10.0)

    async def use(n: int) -> Any:
        await store.commit([Set("u/a", {"n": n})])
        first = store._connections[asyncio.get_running_loop()]
        assert (await store.get("u/a")).data == {"n": n}
        assert store._connections[asyncio.get_running_loop()] is first
        return first

    connections = [asyncio.run(use(n)) for n in range(3)]
    assert len(set(map(id, connections))) == 3
    assert len(store._connections) == 1, "those of closed loops went when the next one came"
    connections.clear()
    gc.collect()
    asyncio.run(store.close())
    assert not store._connections


def test_loops_in_several_threads_at_once(firestore: Firestore) -> None:
    store = AsyncFirestoreStore(firestore.project, deadline_s=20.0)
    failures: list[BaseException] = []
    start = threading.Barrier(3)

    async def use(name: int) -> None:
        start.wait(20)
        for n in range(20):
            await store.commit([Set(f"u/{name}", {"n": n})])
            documents = await asyncio.gather(*(store.get(f"u/{name}") for _ in range(5)))
            assert [document.data["n"] for document in documents] == [n] * 5

    def run(name: int) -> None:
        try:
            asyncio.run(use(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    asyncio.run(store.close())


async def test_close_cancels_what_runs_and_ends_the_store(firestore: Firestore) -> None:
    store = AsyncFirestoreStore(firestore.project)
    await store.get("u/a")
    reads = [asyncio.create_task(store.get(f"u/{n}")) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {
        ClosedError,
        beastmode.stores.documents.Document,
    }
    with pytest.raises(ClosedError):
        await store.get("u/a")
    assert not (await store.health()).ok


def test_a_place_where_nobody_serves(firestore: Firestore) -> None:
    with (
        FirestoreStore("p", emulator_host="127.0.0.1:9", max_retries=0) as store,
        pytest.raises(StoreUnavailable, match="failed to connect") as caught,
    ):
        store.commit([Set("u/a", {})])
    assert not caught.value.maybe_applied
