"""Where Firestore is found, what Google's libraries must have, and the channel to it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from beastmode.errors import ConfigError, MissingExtra
from beastmode.stores.firestore import _google
from beastmode.stores.firestore.channel import AsyncConnection, Connection, find_place, reader
from beastmode.testing.pytest_plugin import Firestore


@pytest.fixture
def google() -> _google.Google:
    return _google.load()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the environment everything that names a project, an emulator or credentials."""
    for name in (
        "FIRESTORE_EMULATOR_HOST",
        "GOOGLE_CLOUD_PROJECT",
        "GCLOUD_PROJECT",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ):
        monkeypatch.delenv(name, raising=False)


def test_everything_that_is_used_of_google_exists(google: _google.Google) -> None:
    for field in dataclasses.fields(google):
        assert getattr(google, field.name), field.name
    assert google.scopes[0].startswith("https://www.googleapis.com/auth/")
    ((name, agent),) = google.client_metadata
    assert name == "x-goog-api-client"
    assert "beastcore/" in agent
    assert google.grpc.experimental.ChannelOptions.SingleThreadedUnaryStream
    request = google.ListenRequest(database="d")
    request.add_target.target_id = 2
    assert google.ListenRequest.FromString(request.SerializeToString()) == request
    assert google.StructuredQuery.DESCENDING != google.StructuredQuery.ASCENDING
    assert google.StructuredQuery.UnaryFilter.IS_NOT_NAN


def test_google_is_loaded_by_the_first_store_and_by_nothing_before() -> None:
    script = (
        "import sys, beastmode, beastmode.stores.firestore.channel, beastmode.stores.firestore."
        "convert\n"
        "from beastmode.stores.firestore._google import load\n"
        "assert not {'google', 'grpc'} & set(sys.modules), 'loaded too early'\n"
        "load()\n"
        "assert {'google.cloud.firestore_v1', 'grpc'} <= set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_extra_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    _google.load.cache_clear()
    monkeypatch.setitem(sys.modules, "google.cloud.firestore_v1", None)
    with pytest.raises(MissingExtra, match=r'pip install "beastcore\[firestore\]"'):
        _google.load()
    monkeypatch.undo()
    assert _google.load()


def test_the_emulator_needs_no_credentials(
    google: _google.Google, bare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    place = find_place(google, None, "(default)")
    assert (place.is_emulator, place.target) == (True, "127.0.0.1:1")
    assert place.project == "google-cloud-firestore-emulator"
    place = find_place(google, "p", "d", emulator_host="127.0.0.1:2")
    assert (place.target, place.database) == ("127.0.0.1:2", "projects/p/databases/d")
    assert place.documents == "projects/p/databases/d/documents/"
    assert dict(place.options())["grpc.keepalive_time_ms"] > 300_000, (
        "else it closes the connection"
    )
    rare = find_place(google, "p", "d", emulator_host="127.0.0.1:2", keepalive_s=9.0)
    assert dict(rare.options())["grpc.keepalive_time_ms"] == 9_000
    metadata = dict(place.metadata(google))
    assert metadata["google-cloud-resource-prefix"] == "projects/p/databases/d"
    assert metadata["x-goog-request-params"] == "database=projects%2Fp%2Fdatabases%2Fd"
    assert metadata["authorization"] == "Bearer owner"


def test_production_takes_credentials_and_project_of_the_environment(
    google: _google.Google, bare: None
) -> None:
    found: list[Any] = []

    def default(*, scopes: Any) -> Any:
        found.append(scopes)
        return "credentials", "of-the-environment"

    known = dataclasses.replace(google, default_credentials=default)
    place = find_place(known, None, "(default)")
    assert (place.is_emulator, place.target) == (False, "firestore.googleapis.com")
    assert (place.project, place.credentials) == ("of-the-environment", "credentials")
    assert found == [google.scopes]
    assert dict(place.options())["grpc.keepalive_time_ms"] == 30_000
    assert "authorization" not in dict(place.metadata(google))
    own: Any = SimpleNamespace(project_id="of-the-key")
    assert find_place(known, None, "d", credentials=own).project == "of-the-key"
    assert find_place(known, "mine", "d", credentials=own).project == "mine"
    assert len(found) == 1
    with pytest.raises(ConfigError, match="GOOGLE_CLOUD_PROJECT"):
        find_place(known, None, "d", credentials=object())


def test_missing_credentials_are_an_error_that_says_what_to_do(
    google: _google.Google, bare: None
) -> None:
    def default(*, scopes: Any) -> Any:
        raise google.NoCredentials("none here")

    lacking = dataclasses.replace(google, default_credentials=default)
    with pytest.raises(ConfigError) as caught:
        find_place(lacking, "p", "(default)")
    for part in ("none here", "gcloud auth", "GOOGLE_APPLICATION_CREDENTIALS", "EMULATOR_HOST"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("project", ""), ("project", 7), ("database", "a/b"), ("database", None),
     ("emulator_host", "http://127.0.0.1"), ("emulator_host", "localhost"), ("emulator_host", ""),
     ("emulator_host", "h:port"), ("endpoint", ""), ("endpoint", "https://f.googleapis.com:443")],
)  # fmt: skip
def test_bad_places_are_refused(google: _google.Google, name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"project": "p", "database": "d", "emulator_host": "h:1"}
    with pytest.raises(ConfigError, match=name):
        find_place(google, **{**arguments, name: value})


@pytest.mark.parametrize(
    "host", ["http://localhost:8080", "localhost", "h:1/x", ":8080", "::1:8080"]
)
def test_a_bad_address_in_the_environment_is_named(
    google: _google.Google, bare: None, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", host)
    with pytest.raises(ConfigError, match="FIRESTORE_EMULATOR_HOST must be 'host:port'") as caught:
        find_place(google, "p", "d")
    assert repr(host) in str(caught.value)


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:1", "[::1]:8080", "a-b.c_d:65535"])
def test_good_addresses_are_taken(
    google: _google.Google, bare: None, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f" {host}\n")
    assert find_place(google, "p", "d").target == host


def test_a_listen_stream(google: _google.Google, firestore: Firestore) -> None:
    connection = Connection(google, find_place(google, firestore.project, "(default)"))
    try:
        request = google.ListenRequest(database=connection.database)
        request.add_target.target_id = 2
        request.add_target.documents.documents.append(f"{connection.documents}u/a")
        stream = connection.listen(iter([request]))
        kinds = [next(stream).WhichOneof("response_type") for _ in range(2)]
        assert kinds == ["target_change", "document_delete"]
        stream.cancel()
    finally:
        connection.close()
        connection.close()


async def test_the_channel_of_a_loop(google: _google.Google, firestore: Firestore) -> None:
    connection = AsyncConnection(google, find_place(google, firestore.project, "(default)"))
    try:
        request = google.BatchGetDocumentsRequest(database=connection.database)
        request.documents.append(f"{connection.documents}u/a")
        stream = connection.batch_get(request, timeout=5, metadata=connection.metadata)
        assert [answer.missing async for answer in stream] == [f"{connection.documents}u/a"]
    finally:
        await connection.close()


def test_a_message_that_cannot_be_read_is_told(
    google: _google.Google, caplog: pytest.LogCaptureFixture
) -> None:
    read = reader(google.ListenResponse)
    assert read(google.ListenResponse().SerializeToString()) == google.ListenResponse()
    with pytest.raises(Exception, match="parsing"):
        read(b"\xff\xff")
    assert "a ListenResponse of 2 bytes cannot be read: DecodeError" in caplog.text
