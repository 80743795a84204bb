"""The description of the API, for ``/openapi.json``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor

from serving.http import problems, shapes
from serving.http.operations import CAM, SEGMENT, Operation
from wsss.v1 import segmentation_pb2 as pb

NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
# What each option is for.
NOTES = {
    "version": "Of the model; 0 or nothing is the newest.",
    "encoding": "Of the mask in JSON. Default: png.",
    "classes": "Classes to keep; the others become background.",
    "tags": "Classes known to be in the image.",
    "confidence": "Add the confidence of each pixel. JSON only.",
    "cam": "Add the maps behind the mask of a CAM model. JSON only.",
    "cam_format": "Of the maps. Default: uint8.",
    "score_threshold": "Score from which a class is present. Default: the model's own.",
    "background_threshold": "Activation up to which a pixel is background. CAM models only.",
    "confidence_threshold": "Confidence below which a pixel is undecided (255). Default: 0.",
    "oversize": "Treatment of an image above the model's limits. Default: the server's own.",
    "tile_overlap": "Share of a tile that overlaps the next one. Default: the server's own.",
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
    version = _options(pb.GetModelRequest.DESCRIPTOR, {"version": "version"})
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
            "/v1/models": {
                "get": _get("listModels", "The models and the limits", _ref("ListModelsResponse"))
            },
            "/v1/models/{name}": {
                "get": _get("getModel", "One model", _ref("Model"), NAME, *version)
            },
            "/v1/models/{name}/sample": {
                "get": _get(
                    "getSample",
                    "The image that the model was tried with at export",
                    png,
                    NAME,
                    *version,
                )
            },
            "/v1/models/{name}/segment": {"post": _post("segment", SEGMENT)},
            "/v1/models/{name}/cam": {"post": _post("computeCam", CAM)},
        },
        "components": {
            "schemas": schemas | {"Problem": PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _options(descriptor: Descriptor, names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        one | {"description": NOTES[one["name"]]} for one in shapes.parameters(descriptor, names)
    ]


def _ref(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _get(
    name: str, summary: str, content: dict[str, Any], *parameters: dict[str, Any]
) -> dict[str, Any]:
    return {
        # Generated clients name their functions after it.
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": _responses(content),
    }


def _post(name: str, operation: Operation) -> dict[str, Any]:
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
    parameters = [*own, *_options(request, operation.names)]
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": BINARY,
            **{one["name"]: one["schema"] for one in parameters},
        },
        "additionalProperties": False,
    }
    kinds = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")
    content = {kind: {"schema": BINARY} for kind in (*kinds, "application/octet-stream")}
    replies = {kind: {"schema": BINARY} for kind in operation.formats.values()} | _ref(reply.name)
    return {
        "operationId": name,
        "summary": operation.summary,
        "parameters": [NAME, *parameters],
        "requestBody": {
            "required": True,
            "content": content
            | {
                "multipart/form-data": {
                    "schema": form,
                    "encoding": {"image": {"contentType": ", ".join(kinds)}},
                }
            },
        },
        "responses": _responses(replies),
    }


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    problem = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "200": {"description": "The reply.", "content": content},
        "default": {"description": "Why there is none (RFC 9457).", "content": problem},
    }
