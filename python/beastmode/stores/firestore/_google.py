"""The one place that imports Google's libraries, when a store is first made.

We speak to Firestore through a gRPC channel of our own and the raw protobuf messages: the client's
own methods do not end at their timeout, and wrap each message in an object. What we use of the
client is its messages, its way of finding credentials and its way of making a secure channel.
Everything that is not documented for users of the client stands in `load`, and a test proves that
each name exists.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from beastcore import __version__
from beastmode.errors import MissingExtra

__all__ = ["Google", "load"]


@dataclass(frozen=True, slots=True)
class Google:
    """The modules, message classes and functions that the store uses."""

    grpc: Any
    aio: Any
    default_credentials: Any
    """`google.auth.default(scopes=...)`: credentials and project as the environment has them."""
    NoCredentials: type[Exception]
    UsageError: type[Exception]
    """What a closed channel of an event loop raises."""
    create_channel: Any
    create_aio_channel: Any
    client_metadata: tuple[tuple[str, str], ...]
    """What names this client to the server, with every call."""
    scopes: tuple[str, ...]
    Document: Any
    Write: Any
    StructuredQuery: Any
    GetDocumentRequest: Any
    BatchGetDocumentsRequest: Any
    BatchGetDocumentsResponse: Any
    RunQueryRequest: Any
    RunQueryResponse: Any
    CommitRequest: Any
    CommitResponse: Any
    BeginTransactionRequest: Any
    BeginTransactionResponse: Any
    RollbackRequest: Any
    Empty: Any
    ListenRequest: Any
    ListenResponse: Any


@functools.cache
def load() -> Google:
    """Import Google's libraries and return what is used of them; about 0.6 s the first time.

    Raises MissingExtra where they are not installed.
    """
    try:
        import google.auth  # noqa: PLC0415
        import google.auth.exceptions  # noqa: PLC0415
        import grpc  # noqa: PLC0415
        from google.api_core.gapic_v1 import client_info  # noqa: PLC0415
        from google.cloud.firestore_v1 import types  # noqa: PLC0415
        from google.cloud.firestore_v1.services.firestore.transports import (  # noqa: PLC0415
            FirestoreGrpcAsyncIOTransport,
            FirestoreGrpcTransport,
        )
        from google.cloud.firestore_v1.types import firestore as messages  # noqa: PLC0415
        from google.cloud.firestore_v1.types import query, write  # noqa: PLC0415
        from google.protobuf import empty_pb2  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("google-cloud-firestore", "firestore") from error
    make_info: Any = client_info.ClientInfo
    info = make_info(user_agent=f"beastcore/{__version__}")
    return Google(
        grpc=grpc,
        aio=grpc.aio,
        default_credentials=google.auth.default,
        NoCredentials=google.auth.exceptions.DefaultCredentialsError,
        UsageError=grpc.aio.UsageError,
        create_channel=FirestoreGrpcTransport.create_channel,
        create_aio_channel=FirestoreGrpcAsyncIOTransport.create_channel,
        client_metadata=(("x-goog-api-client", info.to_user_agent()),),
        scopes=tuple(FirestoreGrpcTransport.AUTH_SCOPES),
        Document=types.Document.pb(),
        Write=write.Write.pb(),
        StructuredQuery=query.StructuredQuery.pb(),
        GetDocumentRequest=messages.GetDocumentRequest.pb(),
        BatchGetDocumentsRequest=messages.BatchGetDocumentsRequest.pb(),
        BatchGetDocumentsResponse=messages.BatchGetDocumentsResponse.pb(),
        RunQueryRequest=messages.RunQueryRequest.pb(),
        RunQueryResponse=messages.RunQueryResponse.pb(),
        CommitRequest=messages.CommitRequest.pb(),
        CommitResponse=messages.CommitResponse.pb(),
        BeginTransactionRequest=messages.BeginTransactionRequest.pb(),
        BeginTransactionResponse=messages.BeginTransactionResponse.pb(),
        RollbackRequest=messages.RollbackRequest.pb(),
        Empty=empty_pb2.Empty,
        ListenRequest=messages.ListenRequest.pb(),
        ListenResponse=messages.ListenResponse.pb(),
    )
