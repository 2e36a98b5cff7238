"""Where Firestore is, and a gRPC channel to it: `Place`, `Connection`, `AsyncConnection`.

The channel reconnects within a second of the server's return: gRPC's own delays grow to two
minutes and are shared by all channels of a process, so ours has its own pool of connections.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from beastmode.errors import ConfigError
from beastmode.stores.firestore._google import Google

__all__ = ["AsyncConnection", "Connection", "Place", "find_place", "reader"]

logger = logging.getLogger(__name__)

EMULATOR_VARIABLE: Final = "FIRESTORE_EMULATOR_HOST"
PRODUCTION: Final = "firestore.googleapis.com"
_SERVER: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(:\d{1,5})?")
"""A name, an IPv4 or a bracketed IPv6 address, and a port where there is one."""
_EMULATOR_PROJECT: Final = "google-cloud-firestore-emulator"
_KEEPALIVE_S: Final = 30.0
"""As Google's own client has it."""
_EMULATOR_KEEPALIVE_S: Final = 330.0
_SERVICE: Final = "/google.firestore.v1.Firestore/"
_NO_CREDENTIALS: Final = (
    "no Google credentials were found ({error}); run `gcloud auth application-default login`, or "
    "set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, or pass credentials=...; "
    f"for the emulator set {EMULATOR_VARIABLE} or pass emulator_host='localhost:8080'"
)


@dataclass(frozen=True, slots=True)
class Place:
    """One database of one project, and how to reach it; made by `find_place`."""

    project: str
    database_id: str
    target: str
    """The server as "host:port"."""
    credentials: Any
    """Google's credentials; None for the emulator."""
    keepalive_s: float

    @property
    def is_emulator(self) -> bool:
        """Whether this is an emulator, reached without encryption and credentials."""
        return self.credentials is None

    @property
    def database(self) -> str:
        """The database's full name: "projects/P/databases/D"."""
        return f"projects/{self.project}/databases/{self.database_id}"

    @property
    def documents(self) -> str:
        """What every document's full name begins with, the slash included."""
        return f"{self.database}/documents/"

    def metadata(self, google: Google, parameter: str = "database", value: str = "") -> Any:
        """Return the metadata of a call that is routed by a field of its request."""
        routed = quote(value or self.database, safe="")
        pairs = [
            ("google-cloud-resource-prefix", self.database),
            ("x-goog-request-params", f"{parameter}={routed}"),
            *google.client_metadata,
        ]
        if self.is_emulator:
            pairs.append(("authorization", "Bearer owner"))
        return tuple(pairs)

    def options(self) -> list[tuple[str, Any]]:
        """Return the options of a channel."""
        return [
            ("grpc.initial_reconnect_backoff_ms", 100),
            # How long connecting may take; it does not delay what comes after a refusal.
            ("grpc.min_reconnect_backoff_ms", 3000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 3000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]


def find_place(
    google: Google,
    project: str | None,
    database: str,
    *,
    credentials: Any = None,
    emulator_host: str | None = None,
    endpoint: str | None = None,
    keepalive_s: float | None = None,
) -> Place:
    """Return where the store's documents are, found as Google's own client finds it.

    An emulator, given or named by FIRESTORE_EMULATOR_HOST, needs no credentials. Without one they
    come from the environment (`google.auth.default`), which may take some seconds where there are
    none. Raises ConfigError where there are none, or no project.
    """
    _check_name("project", project, optional=True)
    _check_name("database", database)
    _check_server("emulator_host", emulator_host)
    _check_server("endpoint", endpoint, port=False)
    host = emulator_host
    if host is None and (named := os.environ.get(EMULATOR_VARIABLE, "").strip()):
        host = named
        _check_server(f"the environment variable {EMULATOR_VARIABLE}", host)
    project = project or os.environ.get("GOOGLE_CLOUD_PROJECT") or os.environ.get("GCLOUD_PROJECT")
    if host:
        every = _EMULATOR_KEEPALIVE_S if keepalive_s is None else keepalive_s
        return Place(project or _EMULATOR_PROJECT, database, host, None, every)
    found: str | None = None
    if credentials is None:
        try:
            credentials, found = google.default_credentials(scopes=google.scopes)
        except google.NoCredentials as error:
            raise ConfigError(_NO_CREDENTIALS.format(error=error)) from error
    project = project or found or getattr(credentials, "project_id", None)
    if not project:
        raise ConfigError(
            "no project is given, and neither GOOGLE_CLOUD_PROJECT nor the credentials name one"
        )
    every = _KEEPALIVE_S if keepalive_s is None else keepalive_s
    return Place(project, database, endpoint or PRODUCTION, credentials, every)


def _check_name(name: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not value or "/" in value:
        raise ConfigError(f"{name} must be a non-empty str without '/', got {value!r}")


def _check_server(name: str, value: object, *, port: bool = True) -> None:
    """Refuse what is no "host:port", before gRPC takes it for a name that cannot be resolved."""
    found = _SERVER.fullmatch(value) if isinstance(value, str) else None
    if value is not None and (found is None or (port and found[1] is None)):
        wanted = "'host:port', such as 'localhost:8080'" if port else "'host' or 'host:port'"
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")


def reader(kind: Any) -> Callable[[bytes], Any]:
    """Return what makes messages of `kind`, and says why where it cannot; gRPC would not."""
    parse: Callable[[bytes], Any] = kind.FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception as error:
            # It is raised, too, through gRPC, which leaves out what it was.
            text = "a %s of %d bytes cannot be read: %r"
            logger.error(text, kind.__name__, len(data), error)  # noqa: TRY400 - raised
            raise

    return read


class _Calls:
    """The calls of one channel, as gRPC's own callables over raw messages."""

    def __init__(self, google: Google, place: Place, channel: Any) -> None:
        self.google = google
        self.place = place
        self.database = place.database
        self.documents = place.documents
        self.metadata = place.metadata(google)
        self.channel = channel
        self.batch_get = channel.unary_stream(
            f"{_SERVICE}BatchGetDocuments",
            google.BatchGetDocumentsRequest.SerializeToString,
            reader(google.BatchGetDocumentsResponse),
        )
        self.run_query = channel.unary_stream(
            f"{_SERVICE}RunQuery",
            google.RunQueryRequest.SerializeToString,
            reader(google.RunQueryResponse),
        )
        self.commit = channel.unary_unary(
            f"{_SERVICE}Commit",
            google.CommitRequest.SerializeToString,
            reader(google.CommitResponse),
        )
        self.begin_transaction = channel.unary_unary(
            f"{_SERVICE}BeginTransaction",
            google.BeginTransactionRequest.SerializeToString,
            reader(google.BeginTransactionResponse),
        )
        self.rollback = channel.unary_unary(
            f"{_SERVICE}Rollback",
            google.RollbackRequest.SerializeToString,
            reader(google.Empty),
        )
        self._listen = channel.stream_stream(
            f"{_SERVICE}Listen",
            google.ListenRequest.SerializeToString,
            reader(google.ListenResponse),
        )


class Connection(_Calls):
    """A channel for calls from threads.

    `batch_get`, `run_query`, `commit`, `begin_transaction` and `rollback` take a raw request,
    `timeout` (seconds) and `metadata`; they raise `grpc.RpcError`. Connecting happens in the
    background, when the first call needs it.
    """

    def __init__(self, google: Google, place: Place) -> None:
        # A stream of answers to one request is read by its caller, not by a thread of its own.
        single = google.grpc.experimental.ChannelOptions.SingleThreadedUnaryStream
        options = [*place.options(), (single, 1)]
        if place.is_emulator:
            channel = google.grpc.insecure_channel(place.target, options)
        else:
            channel = google.create_channel(
                place.target, credentials=place.credentials, options=options
            )
        super().__init__(google, place, channel)

    def listen(self, requests: Iterator[Any]) -> Any:
        """Open a Listen stream: iterate what it returns for raw `ListenResponse` messages.

        `requests` gives raw `ListenRequest` messages from a thread of gRPC and must end when the
        stream is to end; the returned call has `cancel()`.
        """
        return self._listen(requests, metadata=self.metadata)

    def close(self) -> None:
        """Close the channel; calls that run fail with CANCELLED. Idempotent."""
        self.channel.close()


class AsyncConnection(_Calls):
    """A channel for the calls of one event loop, the running one."""

    def __init__(self, google: Google, place: Place) -> None:
        if place.is_emulator:
            channel = google.aio.insecure_channel(place.target, place.options())
        else:
            channel = google.create_aio_channel(
                place.target, credentials=place.credentials, options=place.options()
            )
        super().__init__(google, place, channel)

    async def close(self) -> None:
        """Close the channel; calls that run are cancelled. Idempotent."""
        await self.channel.close()
