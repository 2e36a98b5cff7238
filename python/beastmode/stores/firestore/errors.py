"""What gRPC and Firestore answer, as the errors that every store raises.

| code                                  | error                                                 |
|---------------------------------------|-------------------------------------------------------|
| DEADLINE_EXCEEDED                     | StoreTimeout                                          |
| UNAVAILABLE, ABORTED, INTERNAL,       | StoreUnavailable: worth trying again                  |
| RESOURCE_EXHAUSTED, CANCELLED, UNKNOWN|                                                       |
| the same, or INVALID_ARGUMENT, when   | CommitTooLarge                                        |
| the commit is too large               |                                                       |
| INVALID_ARGUMENT                      | WriteRejected of a commit, else RequestError          |
| any of those and the next row's, when | StoreRefused                                          |
| it is about the database or project   |                                                       |
| FAILED_PRECONDITION, ALREADY_EXISTS,  | of a commit with such a condition PreconditionFailed, |
| NOT_FOUND                             | DocumentMissing for an Update; of a read RequestError |
|                                       | (FAILED_PRECONDITION: it needs an index); else        |
|                                       | StoreRefused: nothing that was asked can be the cause |
| DATA_LOSS                             | StoreCorrupt                                          |
| PERMISSION_DENIED, UNAUTHENTICATED,   | StoreRefused: repeating does not help, but it is no   |
| UNIMPLEMENTED                         | fault of the operations, so that none is given up     |
| OUT_OF_RANGE                          | StoreError                                            |

Within a transaction ABORTED, and INVALID_ARGUMENT that says that it is over, are
TransactionConflict: all of it has to be run again.

After a commit `maybe_applied` is True where the server may have applied it before it failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from beastmode.errors import (
    CommitTooLarge,
    DocumentMissing,
    PreconditionFailed,
    RequestError,
    StoreCorrupt,
    StoreError,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    TransactionConflict,
    WriteRejected,
)
from beastmode.stores.documents import Operation, Update

__all__ = ["commit_failure", "conflict", "failure", "is_answered"]

_UNAVAILABLE: Final = frozenset({"UNAVAILABLE", "ABORTED", "INTERNAL", "CANCELLED", "UNKNOWN"})
_OUTCOME_UNKNOWN: Final = frozenset(
    {"DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN", "DATA_LOSS"}
)
_NEVER_SENT: Final = re.compile(
    "failed to connect to all addresses|(DNS|name|address) resolution|empty address list"
    "|metadata from plugin",
    re.IGNORECASE,
)
_TOO_LARGE: Final = re.compile(
    "larger than max|exceeds (the )?maximum size|payload size exceeds|too big|too large"
    "|exceeds the maximum allowed size",
    re.IGNORECASE,
)
# What is wrong with a whole database or project; judged only where no document is named.
_OF_THE_WHOLE: Final = re.compile(
    r"\b(database|project)\b.{0,300}\b(does not exist|not found|has been deleted)\b"
    r"|\bDatastore Mode\b|\bbilling\b",
    re.IGNORECASE | re.DOTALL,
)
# An argument that the server turns down may be quoted in its words: these begin with their own.
_BADLY_ADDRESSED: Final = re.compile("Missing routing header|API key (not valid|expired)")
_JUDGED: Final = frozenset({"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"})
"""What the server answers where a condition of an operation fails."""
_REFUSED: Final = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"})
_ADVICE: Final = "; check the project, the database's name and that it is in Native mode"
# Of a transaction, not of a document that is named so.
_IS_OVER: Final = re.compile(
    r"(?<![-/\w])transaction\b(?!/)"
    r".*\b(expired|no longer valid|closed|not (valid|active|found)|invalid)"
    r"|invalid transaction",
    re.IGNORECASE | re.DOTALL,
)
_HINTS: Final = {
    "PERMISSION_DENIED": "; the credentials need the role roles/datastore.user in this project",
    "UNAUTHENTICATED": "; the credentials were not accepted: gcloud auth application-default login",
}
# How the server names a document: by its full name, and in two ways of the emulator.
_FULL_NAME: Final = re.compile(r"projects/[^/]+/databases/[^/]+/documents/(.+)")
_EMULATED: Final = re.compile(r"path=/(.+)\}")
_ELEMENT: Final = re.compile(r'(?:type|name): "((?:[^"\\]|\\.)*)"')


def failure(error: Any, what: str) -> StoreError | RequestError:
    """Return the error of a call that is no commit; `error` is a `grpc.RpcError`."""
    code, details = _of(error)
    text = f"{what}: {details} ({code})"
    if _is_of_the_whole(code, details):
        return StoreRefused(text + _ADVICE)
    if code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"):
        return RequestError(text)
    return _other(code, details, text)


def conflict(error: Any, what: str) -> TransactionConflict | None:
    """Return the error of a call in a transaction that has lost to others; None for any other."""
    code, details = _of(error)
    if code == "ABORTED" or (code == "INVALID_ARGUMENT" and _IS_OVER.search(details)):
        return TransactionConflict(f"{what}: {details} ({code})")
    return None


def commit_failure(error: Any, operations: Sequence[Operation]) -> StoreError:
    """Return the error of a commit of `operations`; see the table above."""
    code, details = _of(error)
    text = f"commit: {details} ({code})"
    if code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT") and _TOO_LARGE.search(details):
        return CommitTooLarge(text)
    if _is_of_the_whole(code, details):
        return StoreRefused(text + _ADVICE)
    if code == "INVALID_ARGUMENT":
        return WriteRejected(text)
    if code in _CONDITIONS:
        candidates = [operation for operation in operations if _CONDITIONS[code](operation)]
        if candidates:
            return _condition(candidates, details)
    found = _other(code, details, text)
    found.maybe_applied = not is_answered(error)
    return found


def is_answered(error: Any) -> bool:
    """Return whether the server has said no, or was never asked: it has not done what was asked."""
    code, details = _of(error)
    return code not in _OUTCOME_UNKNOWN or bool(_NEVER_SENT.search(details))


def _of(error: Any) -> tuple[str, str]:
    return str(error.code().name), str(error.details() or "no details")


def _is_of_the_whole(code: str, details: str) -> bool:
    """Return whether it is the database or the project that is wrong, not what was asked."""
    if code == "INVALID_ARGUMENT":
        return bool(_BADLY_ADDRESSED.match(details))
    return code in _JUDGED and not any(_paths_in(details)) and bool(_OF_THE_WHOLE.search(details))


def _other(code: str, details: str, text: str) -> StoreError:
    if code == "DEADLINE_EXCEEDED":
        return StoreTimeout(text)
    if code == "DATA_LOSS":
        return StoreCorrupt(text)
    if code in _UNAVAILABLE or (code == "RESOURCE_EXHAUSTED" and not _TOO_LARGE.search(details)):
        return StoreUnavailable(text)
    if code in _REFUSED or code in _JUDGED:
        return StoreRefused(text + _HINTS.get(code, _ADVICE))
    return StoreError(text)


def _wants_existence(operation: Operation) -> bool:
    condition = operation.precondition
    return isinstance(operation, Update) if condition is None else condition.exists is True


def _wants_absence(operation: Operation) -> bool:
    condition = operation.precondition
    return condition is not None and condition.exists is False


def _wants_version(operation: Operation) -> bool:
    condition = operation.precondition
    return condition is not None and condition.version is not None


_CONDITIONS: Final[dict[str, Callable[[Operation], bool]]] = {
    "NOT_FOUND": _wants_existence,
    "ALREADY_EXISTS": _wants_absence,
    "FAILED_PRECONDITION": _wants_version,
}


def _condition(candidates: list[Operation], details: str) -> StoreError:
    named = set(_paths_in(details))
    exact = [operation for operation in candidates if operation.path in named]
    suspects = exact[:1] or candidates
    if len(suspects) == 1:
        return _failed(suspects[0], details)
    paths = ", ".join(repr(operation.path) for operation in suspects[:5])
    text = f"one of these {len(suspects)} operations failed its condition: {paths} ({details})"
    if all(operation.precondition is None for operation in suspects):
        return DocumentMissing(text)
    return PreconditionFailed(text)


def _failed(operation: Operation, details: str) -> StoreError:
    condition, kind = operation.precondition, type(operation).__name__
    if condition is None:
        return DocumentMissing(f"{kind}: there is no document {operation.path!r}")
    if condition.version is not None:
        return PreconditionFailed(
            f"{kind} of {operation.path!r}: it must have version {condition.version} ({details})"
        )
    wanted = "must exist" if condition.exists else "must not exist"
    return PreconditionFailed(f"{kind} of {operation.path!r}: it {wanted}")


def _paths_in(details: str) -> Iterable[str]:
    for pattern in (_FULL_NAME, _EMULATED):
        if found := pattern.search(details):
            yield found[1].rstrip(" .\n")
    yield "/".join(_ELEMENT.findall(details))
