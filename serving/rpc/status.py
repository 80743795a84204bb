"""Errors as ``google.rpc.Status``, and back again at the client."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving import errors
from serving.errors import ModelNotFound, RequestError, RetryLater, ServerFault, ServerUnavailable
from wsss.v1 import segmentation_pb2

DOMAIN = "wsss"


def to_status(error: RequestError) -> grpc.Status:
    """Code, text and details of an error."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.code == "INVALID_ARGUMENT" and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, ModelNotFound):
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type="wsss.v1.Model", resource_name=error.found, description=error.expected
            )
        )
    if isinstance(error, RetryLater):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = grpc.StatusCode[error.code].value[0]
    status = status_pb2.Status(
        code=code, message=str(error), details=[_any(detail) for detail in details]
    )
    return rpc_status.to_status(status)


def from_call(call: grpc.Call) -> RequestError:
    """The error of a failed call, in the class that the server raised if the status names it."""
    code, text = call.code().name, call.details() or ""
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    ours = (
        status is not None
        and any(detail.Unpack(info) for detail in status.details)
        and info.domain == DOMAIN
    )
    if code == "UNAVAILABLE" and not ours:
        # gRPC's own words name addresses and errno, but not what a user can do.
        text = f"no server answers: {text}\nexpected: a running server at this address"
    error = _build(_kind(info.reason if ours else "", code, text), text, dict(info.metadata))
    error.code, error.reason = code, info.reason or error.reason
    return error


def to_failure(error: RequestError) -> Any:
    """An error as the ``Failure`` of one request on a stream."""
    return segmentation_pb2.Failure(
        code=grpc.StatusCode[error.code].value[0],
        message=str(error),
        reason=error.reason,
        metadata=error.metadata,
        field=error.field,
    )


def from_failure(failure: Any) -> RequestError:
    """The error of a ``Failure``."""
    code = next((code.name for code in grpc.StatusCode if code.value[0] == failure.code), "UNKNOWN")
    error = _build(
        _kind(failure.reason, code, failure.message), failure.message, dict(failure.metadata)
    )
    error.code, error.reason, error.field = code, failure.reason, failure.field
    return error


def _kind(reason: str, code: str, text: str) -> type[RequestError]:
    kinds: list[type[RequestError]] = [*_below(RequestError), RequestError]
    for kind in kinds:
        if reason and kind.reason == reason:
            return kind
    # Answers of gRPC itself, or of a proxy, without our details.
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in text:
        return errors.ImageTooLarge
    by_code = {
        "UNAVAILABLE": ServerUnavailable,
        # We did not cancel: a closing server does that to calls on their way to it.
        "CANCELLED": ServerUnavailable,
        "RESOURCE_EXHAUSTED": errors.Overloaded,
        "DEADLINE_EXCEEDED": errors.DeadlineMissed,
        "INTERNAL": ServerFault,
    }
    return by_code.get(code, RequestError)


def _below(kind: type[RequestError]) -> list[type[RequestError]]:
    return [error for child in kind.__subclasses__() for error in (*_below(child), child)]


def _build(kind: type[RequestError], text: str, metadata: dict[str, str]) -> RequestError:
    # The text of ServingError.__str__, taken apart again.
    problem, _, rest = text.partition("\n")
    lines = dict(line.split(": ", 1) for line in rest.split("\n") if ": " in line)
    correct, hint = lines.get("expected", ""), lines.get("try", "")
    if issubclass(kind, RetryLater):
        return kind(
            problem, correct, hint, retry_after=float(metadata.get("retry_after_seconds", "0"))
        )
    return kind(problem, correct, hint, metadata=metadata)


def _any(message: Message) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail
