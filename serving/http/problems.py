"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from serving.errors import RequestError, RetryLater

MEDIA_TYPE = "application/problem+json"
# By reason where HTTP distinguishes more than gRPC, otherwise by code.
STATUS = {
    "IMAGE_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "MEDIA_TYPE": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "METHOD_NOT_ALLOWED": HTTPStatus.METHOD_NOT_ALLOWED,
    "BODY_LATE": HTTPStatus.REQUEST_TIMEOUT,
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "FAILED_PRECONDITION": HTTPStatus.CONFLICT,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}


def status_of(error: RequestError) -> HTTPStatus:
    """The HTTP status of an error."""
    fallback = STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return STATUS.get(error.reason, fallback)


def problem(error: RequestError, path: str, request_id: str = "") -> Response:
    """The reply for an error of a request to ``path``."""
    status = status_of(error)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": error.found,
        "reason": error.reason,
    }
    others = {
        "expected": error.expected,
        "hint": error.hint,
        "field": error.field,
        "metadata": error.metadata,
        "request_id": request_id,
    }
    body |= {name: value for name, value in others.items() if value}
    if path.startswith("/v2"):
        # Where clients of the Open Inference Protocol look for the text.
        body["error"] = str(error)
    headers = {}
    if isinstance(error, RetryLater):
        body["retry_after"] = error.retry_after
        # The header takes whole seconds.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body, status.value, headers, MEDIA_TYPE)
