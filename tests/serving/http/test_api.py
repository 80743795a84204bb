"""The HTTP API answers what gRPC answers, byte for byte, and refuses for the same reasons."""

from __future__ import annotations

import base64
import io
import re

import jsonschema
import numpy as np
import pytest
import tiny_models
from configs import configured
from http_calls import ask
from PIL import Image
from python_multipart.exceptions import MultipartParseError

from serving.client import Client
from serving.http.openapi import description
from serving.http.operations import SEGMENT as SEGMENT_OPERATION
from serving.images import encodings, masks
from serving.images.polygons import fill
from serving.server import Server

SEGMENT, CAM = "/v1/models/colours/segment", "/v1/models/maps/cam"
LIMIT = 400_000


@pytest.fixture(scope="module")
def api(repository, tmp_path_factory):
    """A server with the HTTP API; one of its models has a sample image."""
    from servers import running

    root = tmp_path_factory.mktemp("api")
    for name, kind in (("colours", "segmenter"), ("maps", "cam")):
        tiny_models.export(root, name, kind, golden=kind == "segmenter")
    config = configured(root, network__http_port=0, limits__max_bytes=LIMIT)
    with running(config) as started:
        yield started


@pytest.fixture
def png(pixels):
    return encoded(pixels)


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def multipart(**parts):
    """A form; bytes are a file."""
    lines = []
    for name, value in parts.items():
        is_file = isinstance(value, bytes)
        head = f'content-disposition: form-data; name="{name}"'
        head += '; filename="a.png"\r\ncontent-type: image/png' if is_file else ""
        lines += [b"--edge", head.encode(), b"", value if is_file else value.encode()]
    body = b"\r\n".join([*lines, b"--edge--", b""])
    return body, {"content-type": "multipart/form-data; boundary=edge"}


def test_the_mask_is_that_of_grpc_to_the_byte(api: Server, png, pixels):
    with Client(api.address) as client:
        expected = client.segment(png, "colours").reply.mask.png
    reply = ask(api.http_address, SEGMENT, png)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    assert reply.body == expected
    assert np.array_equal(masks.read_png(reply.body), tiny_models.expected_mask(pixels))
    assert reply.headers["x-wsss-model"] == "colours/1"
    assert re.search(r"infer;dur=\d", reply.headers["server-timing"])
    form = ask(api.http_address, SEGMENT, *multipart(image=png))
    assert (form.status, form.body) == (200, expected)


@pytest.mark.parametrize("encoding", ["png", "raw", "label_runs", "coco_rle", "polygons"])
def test_every_encoding_in_json_is_the_same_mask(api: Server, png, pixels, encoding):
    reply = ask(api.http_address, f"{SEGMENT}?format=json&encoding={encoding}", png).json
    mask = reply["mask"]
    height, width = size = mask["height"], mask["width"]
    data = mask[encoding]
    if encoding == "png":
        labels = masks.read_png(base64.b64decode(data))
    elif encoding == "raw":
        labels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(size)
    elif encoding == "label_runs":
        labels = encodings.from_runs(np.array(data["labels"], np.uint8), data["lengths"], *size)
    elif encoding == "coco_rle":
        counts = {one["label"]: one["counts"].encode() for one in data["classes"]}
        labels = encodings.from_coco_counts(counts, height, width)
    else:
        shapes = [
            (
                one["label"],
                [list(zip(r["points"][::2], r["points"][1::2])) for r in one["rings"]],
            )
            for one in data["classes"]
        ]
        labels = fill(shapes, height, width)
    assert np.array_equal(labels, tiny_models.expected_mask(pixels))
    areas = {one["name"]: one["area"] for one in reply["classes"]}
    assert areas == {
        name: int((labels == k + 1).sum()) for k, name in enumerate(tiny_models.CLASSES)
    }


def test_options_mean_what_they_mean_over_grpc(api: Server, png):
    query = "format=json&tags=red,blue&confidence=true&cam=1&background_threshold=0.7"
    reply = ask(api.http_address, f"/v1/models/maps/segment?{query}", png).json
    with Client(api.address) as client:
        result = client.segment(
            png, "maps", tags=["red", "blue"], confidence=True, cam=True, background_threshold=0.7
        )
    assert base64.b64decode(reply["mask"]["png"]) == result.reply.mask.png
    assert base64.b64decode(reply["confidence"]["png"]) == result.reply.confidence.png
    assert base64.b64decode(reply["cam"]["uint8"]) == result.reply.cam.uint8
    assert reply["cam"]["classes"] == ["red", "blue"]
    assert reply["provenance"]["background_threshold"] == pytest.approx(0.7)
    body, headers = multipart(image=png, tags="red", background_threshold="0.7")
    form = ask(api.http_address, "/v1/models/maps/segment", body, headers)
    with Client(api.address) as client:
        tagged = client.segment(png, "maps", tags=["red"], background_threshold=0.7)
    assert form.body == tagged.reply.mask.png


def test_overlays_are_pictures(api: Server, png, pixels):
    look = ask(api.http_address, f"{SEGMENT}?format=overlay", png)
    expected = masks.overlay(pixels, tiny_models.expected_mask(pixels), tiny_models.PALETTE)
    assert np.array_equal(masks.read_rgb(look.body), expected)
    with Client(api.address) as client:
        maps = client.compute_cam(png, "maps", tags=["red"], format="overlay").maps
    red = ask(api.http_address, f"{CAM}?tags=red", png, {"accept": "image/png"})
    assert np.array_equal(masks.read_rgb(red.body), maps[0])
    several = ask(api.http_address, f"{CAM}?format=overlay", png)
    assert (several.status, several.json["field"]) == (400, "tags")


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("", "png"),
        ("*/*", "png"),
        ("text/html", "png"),
        ("Application/JSON", "json"),
        ("application/*", "json"),
        ("application/json, text/plain, */*", "json"),
        ("application/json;q=0.1, image/png", "png"),
        ("image/png; q=0.5, application/json; q=0.9", "json"),
        ("image/png;q=0, */*", "json"),
        ("image/*, */*;q=0.1", "png"),
        ("image/png;q=much", "png"),
    ],
)
def test_the_header_accept_chooses_by_its_weights(header, kind):
    assert SEGMENT_OPERATION.accepted(header) == kind


def test_models_and_their_samples(api: Server):
    listing = ask(api.http_address, "/v1/models").json
    assert [model["name"] for model in listing["models"]] == ["colours", "maps"]
    assert listing["limits"]["max_image_bytes"] == LIMIT
    model = ask(api.http_address, "/v1/models/colours").json
    assert model in listing["models"]
    assert model["kind"] == "segmenter"
    assert model["metrics"] == {"iou": {"red": 0.25}, "miou": 0.5}
    sample = ask(api.http_address, "/v1/models/colours/sample")
    assert masks.read_rgb(sample.body).shape == (40, 56, 3)
    assert ask(api.http_address, "/v1/models/maps/sample").status == 404
    path = api.models.find("colours", 0, None).card.folder / "golden_image.png"
    path.rename(path.with_suffix(".away"))
    gone = ask(api.http_address, "/v1/models/colours/sample")
    path.with_suffix(".away").rename(path)
    assert (gone.status, gone.json["reason"]) == (404, "MODEL_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "status", "reason", "text"),
    [
        ("/v1/models/colour/segment", 404, "MODEL_NOT_FOUND", "nearest: colours"),
        ("/v1/models/colours/cam", 409, "WRONG_MODEL_KIND", "maps"),
        (f"{SEGMENT}?version=7", 404, "MODEL_NOT_FOUND", "1"),
        (f"{SEGMENT}?version=-1", 400, "INVALID_FIELD", "a whole number"),
        (f"{SEGMENT}?encodng=png", 400, "INVALID_FIELD", "nearest: encoding"),
        (f"{SEGMENT}?encoding=polygon", 400, "INVALID_FIELD", "nearest: polygons"),
        (f"{SEGMENT}?format=jsn", 400, "INVALID_FIELD", "nearest: json"),
        (f"{SEGMENT}?tags=rd", 400, "INVALID_FIELD", "nearest: red"),
        (f"{SEGMENT}?confidence=maybe", 400, "INVALID_FIELD", "true or false"),
        (f"{SEGMENT}?confidence=true", 400, "INVALID_FIELD", "format=json"),
        (f"{SEGMENT}?score_threshold=2", 400, "INVALID_FIELD", "0 to 1"),
        (f"{SEGMENT}?score_threshold=nan", 400, "INVALID_FIELD", "0 to 1"),
        (f"{SEGMENT}?score_threshold=x", 400, "INVALID_FIELD", "a number"),
        (f"{SEGMENT}?version=1&version=1", 400, "INVALID_FIELD", "once"),
        (f"{SEGMENT}?timeout=0", 400, "INVALID_FIELD", "above 0"),
        (f"{SEGMENT}?timeout=0.000001", 504, "DEADLINE_EXCEEDED", ""),
        ("/v1/model/colours/segment", 404, "PATH_NOT_FOUND", "openapi"),
        ("/v1/models", 405, "METHOD_NOT_ALLOWED", "GET"),
    ],
)
def test_a_wrong_request_is_a_problem_that_tells_what_is_right(
    api: Server, png, path, status, reason, text
):
    reply = ask(api.http_address, path, png)
    assert (reply.status, reply.json["reason"]) == (status, reason)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["status"] == status
    assert text in str(reply.json)


def test_a_form_that_only_the_parser_below_refuses_is_no_fault_of_the_server(
    api: Server, png, monkeypatch
):
    """As with versions of Starlette that pass its errors on."""

    async def parse(self):
        raise MultipartParseError("Did not find boundary character")

    monkeypatch.setattr("serving.http.app.MultiPartParser.parse", parse)
    reply = ask(api.http_address, SEGMENT, *multipart(image=png))
    assert (reply.status, reply.json["reason"]) == (400, "INVALID_FIELD")


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"", {}, 400, "INVALID_FIELD"),
        (b"no image", {}, 400, "IMAGE_UNREADABLE"),
        (b"{}", {"content-type": "application/json"}, 415, "MEDIA_TYPE"),
        (b"x", {"content-encoding": "gzip"}, 415, "MEDIA_TYPE"),
        (b"x", {"content-type": "application/x-www-form-urlencoded"}, 415, "MEDIA_TYPE"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "INVALID_FIELD"),
        (*multipart(image="no file"), 400, "INVALID_FIELD"),
        (*multipart(image=b"x", other=b"y"), 400, "INVALID_FIELD"),
        (*multipart(image=b"x", nothing="y"), 400, "INVALID_FIELD"),
        (bytes(LIMIT + 1), {}, 413, "IMAGE_TOO_LARGE"),
        (*multipart(image=bytes(LIMIT + 1)), 413, "IMAGE_TOO_LARGE"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_body_is_refused(api: Server, body, headers, status, reason):
    reply = ask(api.http_address, SEGMENT, body, headers)
    assert (reply.status, reply.json["reason"]) == (status, reason)
    assert reply.headers["content-type"] == "application/problem+json"


def test_requests_are_counted_by_route(api: Server, png):
    ask(api.http_address, SEGMENT, png, {"x-request-id": "mine"})
    assert (
        ask(api.http_address, "/v1/models", headers={"x-request-id": "a"}).headers["x-request-id"]
        == "a"
    )
    page = ask(api.http_address, "/metrics").body.decode()
    route = "POST /v1/models/{name}/segment"
    line = rf'wsss_requests_total{{code="OK",model="colours",reason="",rpc="{re.escape(route)}"}} '
    assert re.search(line, page), page


def test_the_description_is_whole(api: Server):
    document = ask(api.http_address, "/openapi.json").json
    assert document == description()
    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert names <= set(document["components"]["schemas"])
    parameters = document["paths"]["/v1/models/{name}/segment"]["post"]["parameters"]
    by_name = {one["name"]: one["schema"] for one in parameters}
    assert by_name["encoding"]["enum"] == ["png", "raw", "coco_rle", "polygons", "label_runs"]
    assert by_name["tags"] == {"type": "array", "items": {"type": "string"}}
    assert by_name["tile_overlap"] == {"type": "number", "minimum": 0, "maximum": 0.5}
    assert by_name["version"] == {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    assert all(one.get("description") for one in parameters[1:])
    content = document["paths"]["/v1/models/{name}/segment"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]["properties"]
    assert set(form) == {"image", *by_name} - {"name"}


def test_a_reply_is_as_described(api: Server, png):
    query = "format=json&confidence=true&cam=true&encoding=polygons"
    check(ask(api.http_address, f"/v1/models/maps/segment?{query}", png).json, "SegmentResponse")
    check(ask(api.http_address, CAM, png).json, "ComputeCamResponse")
    check(ask(api.http_address, "/v1/models").json, "ListModelsResponse")
    check(ask(api.http_address, SEGMENT, b"no image").json, "Problem")


def check(value, name):
    """That a value has the schema of this name, with nothing that the schema does not name."""
    document = description()
    for schema in document["components"]["schemas"].values():
        schema.setdefault("additionalProperties", False)
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", **document})


def test_other_sites_may_not_call_unless_told(api: Server, repository, run_server):
    site = {"origin": "https://lab.example"}
    assert (
        "access-control-allow-origin"
        not in ask(api.http_address, "/v1/models", headers=site).headers
    )
    config = configured(repository, network__http_port=0, http__origins=["https://lab.example"])
    with run_server(config) as server:
        reply = ask(server.http_address, "/v1/models", headers=site)
        assert reply.headers["access-control-allow-origin"] == "https://lab.example"
        other = ask(server.http_address, "/v1/models", headers={"origin": "https://else.example"})
        assert "access-control-allow-origin" not in other.headers


def test_without_the_api_only_probes_answer(repository, run_server):
    with run_server(configured(repository, network__http_port=0, http__api=False)) as server:
        assert ask(server.http_address, "/v1/models").status == 404
        assert ask(server.http_address, "/readyz").status == 200
