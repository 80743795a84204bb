"""The description of the API, for ``/openapi.json``."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from serving.http import problems, shapes
from serving.http.operations import CAM, SEGMENT, Operation
from wsss.v1 import segmentation_pb2 as pb

NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
VERSION = {
    "name": "version",
    "in": "query",
    "description": "0 or nothing is the newest.",
    "schema": {"type": "integer"},
}
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "reason"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "detail", "reason")},
        **{name: {"type": "string"} for name in ("expected", "hint", "field", "request_id")},
        "status": {"type": "integer"},
        "retry_after": {"type": "number"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
BINARY = {"type": "string", "format": "binary"}


def description() -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    kinds = (operation.reply().DESCRIPTOR for operation in (SEGMENT, CAM))
    schemas = shapes.schemas(*kinds, pb.ListModelsResponse.DESCRIPTOR, pb.Model.DESCRIPTOR)
    png = {"image/png": {"schema": BINARY}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wsss-serving",
            "version": importlib.metadata.version("wsss"),
            "description": "Masks and class activation maps of images.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/v1/models": {"get": _get("The models and the limits", _ref("ListModelsResponse"))},
            "/v1/models/{name}": {"get": _get("One model", _ref("Model"), NAME, VERSION)},
            "/v1/models/{name}/sample": {
                "get": _get("The image that the model was tried with at export", png, NAME, VERSION)
            },
            "/v1/models/{name}/segment": {"post": _post(SEGMENT)},
            "/v1/models/{name}/cam": {"post": _post(CAM)},
        },
        "components": {
            "schemas": schemas | {"Problem": PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _get(summary: str, content: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": _responses(content),
    }


def _post(operation: Operation) -> dict[str, Any]:
    request, reply = operation.request().DESCRIPTOR, operation.reply().DESCRIPTOR
    own = [
        {
            "name": "format",
            "in": "query",
            "description": "Of the reply. Default: as the Accept header says.",
            "schema": {"type": "string", "enum": list(operation.formats)},
        },
        {
            "name": "timeout",
            "in": "query",
            "description": "Seconds that the caller waits.",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
    ]
    form = {"type": "object", "required": ["image"], "properties": {"image": BINARY}}
    kinds = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")
    content = {kind: {"schema": BINARY} for kind in (*kinds, "application/octet-stream")}
    replies = {kind: {"schema": BINARY} for kind in operation.formats.values()} | _ref(reply.name)
    return {
        "summary": operation.summary,
        "parameters": [NAME, *own, *shapes.parameters(request, operation.names)],
        "requestBody": {
            "required": True,
            "content": content | {"multipart/form-data": {"schema": form}},
        },
        "responses": _responses(replies),
    }


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    problem = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "200": {"description": "The reply.", "content": content},
        "default": {"description": "Why there is none (RFC 9457).", "content": problem},
    }
