from __future__ import annotations

import asyncio
import io

import grpc
import numpy as np
import pytest
import tiny_models
from claims import CLAIMS
from configs import configured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image
from rpc_calls import IMAGE, failure

from serving import errors
from serving.client import AsyncClient, Client
from serving.server import Server
from wsss.v1 import segmentation_pb2 as pb


@pytest.fixture
def client(server):
    with Client(server.address) as made:
        yield made


def encode(pixels, format="PNG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_a_mask_by_path_bytes_and_array(client, pixels, tmp_path, encoding):
    path = tmp_path / "image.png"
    path.write_bytes(encode(pixels))
    expected = tiny_models.expected_mask(pixels)
    for image in (path, str(path), path.read_bytes(), pixels):
        result = client.segment(image, "colours", encoding=encoding, confidence=True)
        np.testing.assert_array_equal(result.mask, expected)
        np.testing.assert_array_equal(result.confidence, pixels.max(axis=2))
    assert result.model == "colours"
    assert result.version == 1
    assert result.labels == {"red": 1, "green": 2, "blue": 3}
    assert result.present == ["red", "green", "blue"]
    assert result.areas["green"] == int((expected == 2).sum())
    assert result.scores["red"] == pytest.approx(pixels[..., 0].mean() / 255, abs=1e-5)
    assert result.reply.timings.total >= result.reply.timings.run > 0
    assert len(result.reply.provenance.sha256) == 64
    assert result.reply.provenance.engine.startswith("onnxruntime")


def test_without_a_name_the_only_model_of_the_kind_answers(client, pixels):
    assert client.segment(pixels).model == "colours"
    assert client.segment(pixels).confidence is None
    assert client.compute_cam(pixels).model == "maps"


def test_classes_to_keep_and_the_threshold(client, pixels):
    blue = np.where(tiny_models.expected_mask(pixels) == 3, 3, 0)
    result = client.segment(pixels, classes=["blue"])
    np.testing.assert_array_equal(result.mask, blue)
    assert list(result.scores) == ["blue"]
    assert result.present == ["blue"]
    # A higher threshold takes the class out of the mask, so that mask and verdict agree.
    result = client.segment(pixels, classes=["blue"], score_threshold=0.99)
    assert result.present == []
    assert not result.mask.any()
    # A tag is known, whatever the score says.
    result = client.segment(pixels, tags=["blue"], score_threshold=0.99)
    np.testing.assert_array_equal(result.mask, blue)
    assert result.present == ["blue"]
    assert result.reply.provenance.score_threshold == pytest.approx(0.99)


def test_activation_maps(client, pixels):
    red = np.zeros_like(pixels)
    red[..., 0] = pixels[..., 0] | 128
    assert client.compute_cam(red).classes == ["red"]
    assert client.compute_cam(red, score_threshold=0).classes == ["red", "green", "blue"]
    assert client.compute_cam(np.zeros_like(pixels)).maps.shape == (0, 11, 15)
    tagged = client.compute_cam(pixels, tags=["blue", "red"], format="float16")
    assert tagged.classes == ["red", "blue"]
    assert tagged.maps.dtype == np.float16
    np.testing.assert_allclose(tagged.maps[1], pixels[::4, ::4, 2] / 255, atol=1e-3)
    coarse = client.compute_cam(pixels, tags=["blue", "red"])
    np.testing.assert_array_equal(coarse.maps[1], pixels[::4, ::4, 2])
    assert coarse.size == pixels.shape[:2]
    assert set(coarse.scores) == set(tiny_models.CLASSES)


def test_pictures_of_every_make_reply_at_their_upright_size(client):
    colour = Image.new("RGB", (60, 30), (250, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "CMYK": encode(colour.convert("CMYK"), "JPEG"),
        "L": encode(colour.convert("L")),
        "P": encode(colour.convert("P")),
        "I;16": encode(Image.fromarray(np.full((30, 60), 40000, np.uint16))),
        "RGBA": encode(colour.convert("RGBA")),
    }
    for mode, data in made.items():
        result = client.segment(data)
        assert result.mask.shape == (30, 60)
        assert result.reply.image.mode == mode
    turned = client.segment(encode(colour, "JPEG", exif=exif))
    assert turned.mask.shape == (60, 30)
    assert turned.reply.image.orientation == 6
    assert (turned.mask == 1).all()


def test_images_outside_of_the_models_sides_come_back_at_their_size(client):
    large, small = np.full((300, 700, 3), 200, np.uint8), np.full((3, 2, 3), 200, np.uint8)
    for image in (large, small):
        result = client.segment(encode(image))
        assert result.mask.shape == image.shape[:2]
    assert client.segment(encode(large)).reply.image.model_width == 256


def test_models_are_listed_with_their_cards(client):
    models = {model.name: model for model in client.list_models()}
    assert set(models) == {"colours", "maps"}
    model = client.get_model("colours")
    assert model == models["colours"]
    assert model.kind == pb.MODEL_KIND_SEGMENTER
    assert [label.name for label in model.labels] == ["background", *tiny_models.CLASSES]
    assert model.metrics["iou"]["red"] == 0.25
    assert model.source.method == "cam"
    assert model.input.max_side == 256
    assert model.created.ToDatetime().year == 2026


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text that pretends", "IMAGE_UNREADABLE"),
        (b"", "IMAGE_UNREADABLE"),
        (encode(np.full((50, 50, 3), 9, np.uint8), "JPEG")[:400], "IMAGE_UNREADABLE"),
        (bytes(500_000), "IMAGE_TOO_LARGE"),
        (CLAIMS["png"](30_000, 30_000), "IMAGE_TOO_LARGE"),
        (CLAIMS["jpeg"](10_000, 10_000), "IMAGE_TOO_LARGE"),
        (encode(np.zeros((1, 120, 3), np.uint8)), "IMAGE_TOO_LARGE"),
    ],
)
@pytest.mark.parametrize("method", ["Segment", "ComputeCam"])
def test_bad_images_are_invalid_arguments_with_details(server, method, data, reason):
    request = getattr(pb, f"{method}Request")(image=pb.Image(encoded=data))
    code, info, details, text = failure(server, method, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert (info.reason, info.domain) == (reason, "wsss")
    assert details["BadRequest"].field_violations[0].field == "image.encoded"
    if reason == "IMAGE_TOO_LARGE":
        assert len(info.metadata) == 1
    assert "/" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SegmentRequest(), "image"),
        (
            pb.SegmentRequest(image=pb.Image(raw=pb.RawImage(height=9, width=9, pixels=b"1"))),
            "image.raw.pixels",
        ),
        (pb.SegmentRequest(image=IMAGE, encoding=99), "encoding"),
        (pb.SegmentRequest(image=IMAGE, classes=["rad"]), "classes"),
        (pb.SegmentRequest(image=IMAGE, score_threshold=1.5), "score_threshold"),
        (pb.SegmentRequest(image=IMAGE, score_threshold=float("nan")), "score_threshold"),
        (pb.ComputeCamRequest(image=IMAGE, format=99), "format"),
        (pb.ComputeCamRequest(image=IMAGE, tags=[""]), "tags"),
        (pb.ComputeCamRequest(image=IMAGE, tile_overlap=0.6), "tile_overlap"),
        (pb.SegmentRequest(image=IMAGE, tags=["x"]), "tags"),
        (pb.SegmentRequest(image=IMAGE, oversize=9), "oversize"),
        (pb.SegmentRequest(image=IMAGE, cam=True, cam_format=9), "cam_format"),
        (pb.SegmentRequest(image=IMAGE, background_threshold=0.5), "background_threshold"),
        (pb.SegmentRequest(image=IMAGE, confidence_threshold=-1), "confidence_threshold"),
        (pb.GetModelRequest(), "model"),
    ],
)
def test_bad_fields_are_named(server, request_, field):
    method = type(request_).__name__.removesuffix("Request")
    code, info, details, _ = failure(server, method, request_)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert info.domain == "wsss"
    assert details["BadRequest"].field_violations[0].field == field


def test_unknown_models_and_wrong_kinds(server):
    code, info, details, text = failure(
        server, "Segment", pb.SegmentRequest(image=IMAGE, model="colour")
    )
    assert code == grpc.StatusCode.NOT_FOUND
    assert info.metadata["known"] == "colours,maps"
    assert "colours, maps" in details["ResourceInfo"].description
    assert "nearest: colours" in text
    code, info, details, _ = failure(
        server, "GetModel", pb.GetModelRequest(model="colours", version=7)
    )
    assert code == grpc.StatusCode.NOT_FOUND
    assert info.metadata["known"] == "1"
    for request in (
        pb.ComputeCamRequest(image=IMAGE, model="colours"),
        pb.SegmentRequest(image=IMAGE, model="colours", cam=True),
    ):
        code, info, _, text = failure(
            server, type(request).__name__.removesuffix("Request"), request
        )
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert info.metadata["usable"] == "maps"
        assert "one of: maps" in text
        assert "export RUN --name NAME --kind cam" in text


def test_the_client_raises_what_the_server_meant(client, server, pixels):
    for wrong, kind in (
        ({"image": b"text"}, errors.ImageError),
        ({"image": CLAIMS["png"](30_000, 30_000)}, errors.ImageTooLarge),
        ({"image": bytes(2_500_000)}, errors.ImageTooLarge),
        ({"image": pixels, "model": "x"}, errors.ModelNotFound),
        ({"image": pixels, "model": "colours", "cam": True}, errors.WrongModelKind),
        ({"image": pixels, "classes": ["x"]}, errors.FieldError),
        ({"image": pixels.astype(float)}, errors.ImageError),
    ):
        with pytest.raises(kind) as caught:
            client.segment(**wrong)
        assert type(caught.value) is kind
    with pytest.raises(errors.ModelNotFound) as missing:
        client.segment(pixels, "x")
    assert missing.value.found == "no model 'x'"
    assert missing.value.expected == "one of: colours, maps"
    with Client("127.0.0.1:1", timeout=2) as lost, pytest.raises(errors.ServerUnavailable):
        lost.list_models()


def test_many_calls_at_once_through_the_async_client(server):
    images = [
        np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
        for seed in range(12)
    ]

    async def work():
        async with AsyncClient(server.address) as client:
            results = await asyncio.gather(*(client.segment(image) for image in images))
            cam = await client.compute_cam(images[0], tags=["red"])
            assert cam.classes == ["red"]
            assert (await client.get_model("maps")).name == "maps"
            assert len(await client.list_models()) == 2
            with pytest.raises(errors.ModelNotFound):
                await client.segment(images[0], "x")
        return results

    for image, result in zip(images, asyncio.run(work())):
        np.testing.assert_array_equal(result.mask, tiny_models.expected_mask(image))


def test_health_and_reflection(server):
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "wsss.v1.Segmentation", "models/colours", "models/maps"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="models/none"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reply = next(stub.ServerReflectionInfo(iter([request])))
        names = {service.name for service in reply.list_services_response.service}
        assert {"wsss.v1.Segmentation", "grpc.health.v1.Health"} <= names


def test_the_port_in_use_is_said(server, repository):
    host, port = server.address.split(":")

    async def start():
        await Server(configured(repository, network__host=host, network__port=int(port))).start()

    with pytest.raises(errors.StartError, match=f"port {port} of 127.0.0.1 is in use"):
        asyncio.run(start())


def test_every_version_is_served_when_asked(tmp_path, run_server, pixels):
    for version in (1, 2):
        tiny_models.export(tmp_path, version=version)
    with run_server(configured(tmp_path)) as server, Client(server.address) as client:
        assert client.segment(pixels).version == 2
        with pytest.raises(errors.ModelNotFound):
            client.segment(pixels, version=1)
    with (
        run_server(configured(tmp_path, models__versions="all")) as server,
        Client(server.address) as client,
    ):
        assert client.segment(pixels, version=1).version == 1
        assert list(client.get_model().versions) == [1, 2]


def test_a_server_does_not_start_on_a_damaged_model(tmp_path):
    folder = tiny_models.export(tmp_path)
    (folder / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(errors.RepositoryError, match="SHA-256"):
        asyncio.run(Server(configured(tmp_path)).start())
