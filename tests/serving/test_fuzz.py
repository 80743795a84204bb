"""Messages and images of our own protocol that nobody would send: the code is right, the process
lives.

``WSSS_FUZZ_EXAMPLES=20000 python -m pytest tests/serving/test_fuzz.py`` for a longer run.
"""

from __future__ import annotations

import io
import os
import random
import socket
from typing import Any
from urllib.parse import urlencode

import grpc
import numpy as np
import pytest
from claims import CLAIMS
from configs import configured
from google.protobuf import json_format
from http_calls import Reply, ask
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.client.results import ENCODINGS
from serving.config import Limits
from serving.errors import ImageError
from serving.http.problems import STATUS
from serving.http.shapes import plain
from serving.images import masks
from serving.images.decoding import decode
from wsss.v1 import segmentation_pb2 as pb

BOUNDED = settings(
    max_examples=int(os.environ.get("WSSS_FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SERVICE = "/wsss.v1.Segmentation"
# What a bad request may end with. INTERNAL is a fault of the server, which no caller may provoke.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED"}
REQUESTS = {
    "Segment": pb.SegmentRequest,
    "ComputeCam": pb.ComputeCamRequest,
    "GetModel": pb.GetModelRequest,
    "ListModels": pb.ListModelsRequest,
}


def encodings() -> dict[str, bytes]:
    """A small picture in every format and in odd modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    frames = [colour, colour.rotate(90)]
    made = {}
    for name, image, options in (
        (
            "JPEG",
            colour,
            {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
        ),
        ("JPEG", colour.convert("CMYK"), {"progressive": True}),
        ("PNG", colour.convert("RGBA"), {}),
        ("PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        ("PNG", colour.convert("P"), {"transparency": 3}),
        ("WEBP", colour, {"lossless": True}),
        ("WEBP", colour, {"save_all": True, "append_images": frames}),
        ("BMP", colour, {}),
        ("TIFF", colour, {"compression": "tiff_lzw"}),
        ("TIFF", colour, {"save_all": True, "append_images": frames}),
    ):
        file = io.BytesIO()
        image.save(file, name, **options)
        made[f"{name} {len(made)}"] = file.getvalue()
    return made


GOOD = encodings()
BOMBS = [
    claim(*size)
    for claim in CLAIMS.values()
    for size in ((30_000, 30_000), (65_535, 1), (1, 65_535))
]


@st.composite
def damaged(draw) -> bytes:
    """A good file that was cut, lengthened, or has some of its bytes exchanged."""
    data = bytearray(draw(st.sampled_from(list(GOOD.values()))))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    for _ in range(draw(st.integers(0, 8))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(
                st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
            )
    return bytes(data) + draw(st.binary(max_size=6))


FILES = st.one_of(damaged(), st.sampled_from([*GOOD.values(), *BOMBS]), st.binary(max_size=60))
SIDES = st.one_of(st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(0, 40))
NAMES = st.one_of(st.sampled_from(["colours", "maps", "red", "blue", "", "x"]), st.text(max_size=8))
MANY = st.one_of(
    st.lists(st.sampled_from(["red", "green", "blue"]), max_size=4),
    st.lists(NAMES, max_size=3),
    st.sampled_from([["red"] * 300, [""] * 200]),
)
SHARES = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(width=32))
ENUMS = st.one_of(st.integers(0, 6), st.sampled_from([-1, 99, 2**31 - 1]))


@st.composite
def images(draw):
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return pb.Image()
    if kind == 1:
        return pb.Image(encoded=draw(FILES))
    height, width = draw(SIDES), draw(SIDES)
    right = height * width * 3 if max(height, width) < 100 else 0
    pixels = bytes(right) if kind == 2 else draw(st.binary(max_size=40))
    return pb.Image(raw=pb.RawImage(height=height, width=width, pixels=pixels))


@st.composite
def segment_requests(draw):
    return pb.SegmentRequest(
        image=draw(images()),
        model=draw(NAMES),
        version=draw(st.sampled_from([0, 0, 1, 2, 2**32 - 1])),
        encoding=draw(ENUMS),
        classes=draw(MANY),
        tags=draw(MANY),
        confidence=draw(st.booleans()),
        cam=draw(st.booleans()),
        cam_format=draw(ENUMS),
        score_threshold=draw(SHARES),
        background_threshold=draw(SHARES),
        confidence_threshold=draw(SHARES),
        oversize=draw(ENUMS),
        tile_overlap=draw(SHARES),
    )


@st.composite
def cam_requests(draw):
    return pb.ComputeCamRequest(
        image=draw(images()),
        model=draw(NAMES),
        format=draw(ENUMS),
        tags=draw(MANY),
        score_threshold=draw(SHARES),
        oversize=draw(ENUMS),
        tile_overlap=draw(SHARES),
    )


@pytest.fixture(scope="module")
def fuzzed(repository, tmp_path_factory):
    """A server of its own, with small limits."""
    from servers import running

    limits = {"limits__max_bytes": 2_000_000, "limits__max_pixels": 200_000}
    with running(configured(repository, network__http_port=0, **limits)) as server:
        yield server


@pytest.fixture(scope="module")
def channel(fuzzed):
    with grpc.insecure_channel(fuzzed.address) as made:
        yield made


def call(channel, method: str, data: bytes) -> tuple[str, bytes]:
    """Code of a call, and the reply; checks what an error may say."""
    try:
        return "OK", channel.unary_unary(f"{SERVICE}/{method}")(data, timeout=30)
    except grpc.RpcError as error:
        check(error.code().name, error.details())
        return error.code().name, b""


def check(code: str, text: str) -> None:
    assert code in ALLOWED, (code, text)
    for word in ("Traceback", ".onnx", "/tmp", "0x7f", 'File "'):
        assert word not in text
    assert len(text) < 10_000


def check_problem(code: str, reply: Reply) -> None:
    """That a reply by HTTP refuses what gRPC refuses with this code."""
    assert reply.headers["content-type"] == "application/problem+json"
    assert STATUS.get(reply.json["reason"], STATUS[code]) == reply.status == reply.json["status"]
    check(code, str(reply.json))


@BOUNDED
@given(request=segment_requests())
def test_any_segment_request_has_a_right_answer(channel, request):
    code, data = call(channel, "Segment", request.SerializeToString())
    if code == "OK":
        reply = pb.SegmentResponse.FromString(data)
        assert (reply.mask.height, reply.mask.width) == (reply.image.height, reply.image.width)
        assert reply.provenance.sha256
        assert json_format.MessageToJson(reply)


@BOUNDED
@given(
    data=FILES.filter(len),
    model=st.sampled_from(["colours", "maps", "x"]),
    tags=st.lists(st.sampled_from(["red", "green", "blue", "rd", "ü", "字" * 40]), max_size=4),
    threshold=SHARES,
    encoding=st.sampled_from(list(ENCODINGS)),
)
def test_http_answers_what_grpc_answers(channel, fuzzed, data, model, tags, threshold, encoding):
    request = pb.SegmentRequest(
        image=pb.Image(encoded=data),
        model=model,
        tags=tags,
        score_threshold=threshold,
        encoding=ENCODINGS[encoding],
    )
    code, expected = call(channel, "Segment", request.SerializeToString())
    options = [("format", "json"), ("encoding", encoding), *(("tags", tag) for tag in tags)]
    if threshold is not None:
        options.append(("score_threshold", repr(threshold)))
    path = f"/v1/models/{model}/segment?{urlencode(options)}"
    reply = ask(fuzzed.http_address, path, data)
    if code == "OK":
        assert reply.status == 200
        assert reply.json["mask"] == plain(pb.SegmentResponse.FromString(expected).mask)
    else:
        check_problem(code, reply)


@BOUNDED
@given(
    head=st.sampled_from(["POST /v1/models/colours/segment", "GET /v1/models", "GET /", "PUT *"]),
    query=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    field=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    body=st.binary(max_size=60),
)
def test_any_bytes_by_http_have_an_answer(fuzzed, head, query, field, body):
    host, port = fuzzed.http_address.split(":")
    text = f"{head}?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{field}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as caller:
        caller.sendall(text.encode("latin-1") + body)
        caller.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: caller.recv(65536), b""))
    assert not reply or 200 <= int(reply.split(b" ")[1]) < 500
    assert b"Traceback" not in reply


@BOUNDED
@given(request=cam_requests())
def test_any_cam_request_has_a_right_answer(channel, request):
    code, data = call(channel, "ComputeCam", request.SerializeToString())
    if code == "OK":
        reply = pb.ComputeCamResponse.FromString(data)
        assert len(reply.classes) == 3
        if reply.cam.WhichOneof("data") == "uint8":
            assert (
                len(reply.cam.uint8) == len(reply.cam.classes) * reply.cam.height * reply.cam.width
            )


@BOUNDED
@given(data=st.binary(max_size=200), method=st.sampled_from(list(REQUESTS)))
def test_any_bytes_have_a_right_answer(channel, data, method):
    call(channel, method, data)


@BOUNDED
@given(request=segment_requests(), where=st.integers(0, 5000), byte=st.integers(0, 255))
def test_a_damaged_request_has_a_right_answer(channel, request, where, byte):
    data = bytearray(request.SerializeToString())
    if data:
        data[where % len(data)] = byte
    call(channel, "Segment", bytes(data))


@BOUNDED
@given(
    batch=st.lists(
        st.one_of(
            segment_requests().map(
                lambda request: pb.SegmentStreamRequest(segment=request).SerializeToString()
            ),
            st.binary(max_size=40),
        ),
        max_size=6,
    ),
    order=st.sampled_from([pb.STREAM_ORDER_COMPLETION, pb.STREAM_ORDER_SENDING]),
)
def test_a_stream_survives_anything(channel, batch, order):
    stream = channel.stream_stream(
        f"{SERVICE}/SegmentStream", response_deserializer=pb.SegmentStreamResponse.FromString
    )
    first = pb.SegmentStreamRequest(options=pb.StreamOptions(order=order, in_flight=2))
    right = pb.Image(raw=pb.RawImage(height=1, width=2, pixels=bytes(6)))
    last = pb.SegmentStreamRequest(
        id="right", segment=pb.SegmentRequest(image=right, model="colours")
    )
    sent = [first.SerializeToString(), *batch, last.SerializeToString()]
    replies = list(stream(iter(sent), timeout=60))
    assert len(replies) == len(batch) + 1
    for reply in replies:
        if reply.HasField("failure"):
            assert reply.id != "right"
            name = next(
                code.name for code in grpc.StatusCode if code.value[0] == reply.failure.code
            )
            check(name, reply.failure.message)


@settings(BOUNDED, max_examples=5 * BOUNDED.max_examples)
@given(data=damaged())
@example(b"")
def test_any_file_is_a_picture_or_an_image_error(data):
    limits = Limits(max_bytes=10_000, max_pixels=100_000)
    try:
        picture = decode(data, limits)
    except ImageError as error:
        check("INVALID_ARGUMENT", str(error))
    else:
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.ndim == 3
        assert picture.pixels.shape[0] * picture.pixels.shape[1] <= limits.max_pixels


@pytest.mark.parametrize("data", BOMBS, ids=range(len(BOMBS)))
def test_a_bomb_is_refused_on_its_header(channel, fuzzed, data):
    request = pb.SegmentRequest(image=pb.Image(encoded=data), model="colours")
    assert call(channel, "Segment", request.SerializeToString())[0] == "INVALID_ARGUMENT"
    for path in ("colours/segment", "maps/cam"):
        reply = ask(fuzzed.http_address, f"/v1/models/{path}", data)
        check_problem("INVALID_ARGUMENT", reply)
        assert reply.json["reason"].startswith("IMAGE_")


def form(image: Any, tags: str) -> tuple[bytes, dict[str, str]]:
    """An image and tags as a form, and its headers."""
    head = b"--edge\r\ncontent-disposition: form-data; name="
    parts = (head + b'"image"; filename="x"\r\n\r\n', image.encoded, b"\r\n")
    parts += (head + b'"tags"\r\n\r\n', tags.encode(), b"\r\n--edge--\r\n")
    return b"".join(parts), {"content-type": "multipart/form-data; boundary=edge"}


@pytest.mark.parametrize(
    "names", [["red"] * 20_000, [f"class {k}" for k in range(20_000)], ["ü" * 100_000]]
)
def test_thousands_of_names_have_a_right_answer(channel, fuzzed, names):
    image = pb.Image(encoded=GOOD["PNG 2"])
    expected = "OK" if names[0] == "red" else "INVALID_ARGUMENT"
    for request in (
        pb.SegmentRequest(image=image, classes=names),
        pb.ComputeCamRequest(image=image, tags=names),
    ):
        method = type(request).__name__.removesuffix("Request")
        assert call(channel, method, request.SerializeToString())[0] == expected
    reply = ask(fuzzed.http_address, "/v1/models/maps/cam", *form(image, ",".join(names)))
    if expected == "OK":
        assert reply.json["cam"]["classes"] == ["red"]
    else:
        check_problem(expected, reply)
    assert ask(fuzzed.http_address, f"/v1/models/x?{'x' * 60_000}").json["status"] == 414
    request = pb.SegmentRequest(image=image, model="字" * 50_000)
    assert call(channel, "Segment", request.SerializeToString())[0] == "NOT_FOUND"


@pytest.mark.parametrize(
    "encoding", [pb.MASK_ENCODING_POLYGONS, pb.MASK_ENCODING_COCO_RLE, pb.MASK_ENCODING_LABEL_RUNS]
)
def test_noise_in_every_pixel_is_encoded(channel, fuzzed, encoding):
    pixels = random.Random(0).randbytes(200 * 250 * 3)
    image = pb.Image(raw=pb.RawImage(height=200, width=250, pixels=pixels))
    request = pb.SegmentRequest(image=image, model="colours", encoding=encoding)
    reply = pb.SegmentResponse.FromString(call(channel, "Segment", request.SerializeToString())[1])
    picture = masks.encode_rgb(np.frombuffer(pixels, np.uint8).reshape(200, 250, 3))
    name = pb.MaskEncoding.Name(encoding).removeprefix("MASK_ENCODING_").lower()
    path = f"/v1/models/colours/segment?format=json&encoding={name}"
    assert ask(fuzzed.http_address, path, picture).json["mask"] == plain(reply.mask)


def test_the_server_is_there_afterwards(channel, fuzzed):
    request = pb.SegmentRequest(image=pb.Image(encoded=GOOD["JPEG 0"]), model="colours")
    assert call(channel, "Segment", request.SerializeToString())[0] == "OK"
    assert fuzzed.models.find("colours", 0, None).batcher.statistics().admitted == 0
