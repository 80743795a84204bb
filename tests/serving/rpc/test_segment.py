"""What a caller may ask of Segment and ComputeCam, through the client."""

from __future__ import annotations

import io
import time

import grpc
import numpy as np
import pytest
import tiny_models
from configs import configured
from PIL import Image
from rpc_calls import IMAGE

from serving.client import Client
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import DeadlineMissed, FieldError
from serving.images import maps
from serving.rpc import replies
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc


@pytest.fixture
def client(server):
    with Client(server.address) as made:
        yield made


@pytest.fixture
def blocks() -> np.ndarray:
    """A picture of large areas, as masks of photographs have."""
    coarse = np.random.default_rng(5).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 9, 0), 8, 1)


@pytest.mark.parametrize("encoding", ["png", "raw", "coco_rle", "polygons", "label_runs"])
def test_every_encoding_brings_the_same_mask(client, pixels, blocks, encoding):
    for image in (pixels, blocks, np.zeros_like(blocks)):
        result = client.segment(image, encoding=encoding, confidence=True)
        np.testing.assert_array_equal(result.mask, tiny_models.expected_mask(image))
        np.testing.assert_array_equal(result.confidence, image.max(axis=2))
        assert result.reply.mask.WhichOneof("data") == encoding


def test_areas_and_boxes(client, blocks):
    result = client.segment(blocks, classes=["red", "blue"])
    expected = tiny_models.expected_mask(blocks)
    assert set(result.areas) == {"red", "blue"}
    for name, label in result.labels.items():
        rows, columns = np.nonzero(expected == label)
        assert result.areas[name] == len(rows)
        left, top, width, height = result.boxes[name]
        assert (left, top, left + width, top + height) == (
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        )
    assert client.segment(np.zeros_like(blocks)).boxes == {}


def test_tags_and_thresholds_are_told_in_the_provenance(client, pixels):
    result = client.segment(pixels, tags=["red"], confidence_threshold=0.75)
    expected = np.where(tiny_models.expected_mask(pixels) == 1, 1, 0)
    np.testing.assert_array_equal(
        result.mask, np.where(pixels.max(axis=2) < 0.75 * 255, 255, expected)
    )
    assert list(result.scores) == list(tiny_models.CLASSES)
    told = result.reply.provenance
    assert told.confidence_threshold == 0.75
    assert not told.HasField("background_threshold")
    assert not told.HasField("tiling")
    assert result.reply.image.tiles == 1


@pytest.mark.parametrize("cam_format", ["uint8", "float16", "overlay"])
def test_mask_maps_and_scores_come_from_one_run_of_a_cam_model(client, server, blocks, cam_format):
    before = runs(server)
    result = client.segment(blocks, "maps", tags=["green", "blue"], cam=True, cam_format=cam_format)
    assert runs(server) == before + 1
    alone = client.compute_cam(blocks, "maps", tags=["green", "blue"], format=cam_format)
    assert result.cam.classes == alone.classes == ["green", "blue"]
    np.testing.assert_array_equal(result.cam.maps, alone.maps)
    coarse = blocks[::4, ::4].transpose(2, 0, 1)[1:].astype(np.float32) / 255
    expected, _ = maps.to_mask(coarse, [2, 3], 0.5, *blocks.shape[:2])
    np.testing.assert_array_equal(result.mask, expected)
    assert result.reply.provenance.background_threshold == 0.5
    if cam_format == "overlay":
        assert result.cam.maps.shape == (2, *blocks.shape)


def runs(server) -> int:
    """Runs of the model ``maps`` until now."""
    (found,) = [served for served in server.models.served() if served.card.name == "maps"]
    return found.batcher.statistics().executions


def test_a_cam_model_masks_the_classes_that_score_enough(client, blocks):
    red = blocks.copy()
    red[..., 1:] = 0
    result = client.segment(red, "maps", score_threshold=0.3, background_threshold=0.2)
    assert set(np.unique(result.mask)) == {0, 1}
    assert result.cam is None
    assert result.present == ["red"]
    assert not client.segment(red, "maps", score_threshold=1.0).mask.any()
    filtered = client.segment(blocks, "maps", tags=["red", "green"], classes=["green"])
    assert set(np.unique(filtered.mask)) == {0, 2}


def test_segment_without_a_name_takes_the_cam_model_where_there_is_no_segmenter(
    tmp_path, run_server, blocks
):
    tiny_models.export(tmp_path, "maps", "cam")
    thresholds = {"thresholds": {"background": None, "score": 0.3}}
    with run_server(configured(tmp_path)) as server, Client(server.address) as client:
        assert client.segment(blocks, cam=True).model == "maps"
    tiny_models.export(tmp_path, "maps", "cam", version=2, changes=thresholds)
    with run_server(configured(tmp_path)) as server, Client(server.address) as client:
        with pytest.raises(FieldError, match="no background threshold of its own"):
            client.segment(blocks)
        assert client.segment(blocks, background_threshold=0.4).version == 2
        assert client.compute_cam(blocks).version == 2


@pytest.mark.parametrize("size", [(300, 700), (90, 1000)])
def test_large_images_are_tiled_on_request(client, size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = client.segment(image, oversize="tile", tile_overlap=0.3, confidence=True)
    np.testing.assert_array_equal(result.mask, tiny_models.expected_mask(image))
    np.testing.assert_array_equal(result.confidence, image.max(axis=2))
    info, told = result.reply.image, result.reply.provenance.tiling
    assert info.tiles == told.rows * told.columns > 1
    assert (info.model_height, info.model_width) == (told.height, told.width)
    assert told.overlap == pytest.approx(0.3)
    assert max(told.height, told.width) <= 256
    assert client.segment(image).reply.image.tiles == 1
    assert client.segment(image, oversize="auto").reply.image.tiles > 1
    maps_ = client.compute_cam(image, oversize="tile", tags=["blue"]).maps
    assert maps_.shape == (1, -(-size[0] // 4), -(-size[1] // 4))


def test_the_servers_own_rule_for_large_images(repository, run_server):
    image = np.full((300, 300, 3), 200, np.uint8)
    config = configured(
        repository, tiling__oversize="tile", tiling__overlap=0.5, tiling__max_tiles=4
    )
    with run_server(config) as server, Client(server.address) as client:
        assert client.segment(image).reply.image.tiles == 4
        assert client.segment(image, oversize="scale").reply.image.tiles == 1
        limits = client.limits()
        assert (limits.oversize, limits.tile_overlap, limits.max_tiles) == (
            pb.OVERSIZE_TILE,
            0.5,
            4,
        )
        assert limits.max_queue == 64
        with pytest.raises(Exception, match="at most 4 tiles") as caught:
            client.segment(np.full((300, 700, 3), 200, np.uint8))
        assert caught.value.metadata == {"max_tiles": "4"}


def test_an_overlay_shows_the_image_at_its_size(client, blocks):
    reply = client.compute_cam(blocks, tags=["red"], format="overlay").reply
    with Image.open(io.BytesIO(reply.cam.overlays.png[0])) as picture:
        assert (picture.mode, picture.size) == ("RGB", (blocks.shape[1], blocks.shape[0]))


def test_overlays_of_more_pixels_than_one_may_send_are_refused(client, blocks, monkeypatch):
    monkeypatch.setattr(replies, "MAX_OVERLAY_PIXELS", 2 * blocks.shape[0] * blocks.shape[1])
    assert client.compute_cam(blocks, tags=["red", "blue"], format="overlay").classes == [
        "red",
        "blue",
    ]
    with pytest.raises(FieldError, match="overlays of 3 classes"):
        client.compute_cam(blocks, score_threshold=0, format="overlay")


def test_tiles_stop_at_the_deadline(repository, run_server, slowed):
    image = np.zeros((1200, 1200, 3), np.uint8)
    with (
        run_server(configured(repository, schedule__workers=1)) as server,
        Client(server.address, timeout=1.8) as client,
    ):
        with pytest.raises(DeadlineMissed):
            client.segment(image, "colours", oversize="tile")
        time.sleep(0.8)
        assert 1 < len(slowed) < 20
        (served,) = [served for served in server.models.served() if served.card.name == "colours"]
        assert served.batcher.statistics().admitted == 0
        assert client.segment(image[:9, :9], "colours").mask.shape == (9, 9)


@pytest.fixture
def slowed(monkeypatch):
    """Engines that take 0.3 s for an image of more than a few pixels; a list with an entry for
    each.
    """
    runs, original = [], OnnxRuntimeEngine.run

    def run(self, inputs, stop=None):
        if inputs["image"].size > 100_000:
            runs.append(inputs["image"].shape)
            time.sleep(0.3)
        return original(self, inputs, stop)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    return runs


def test_trailing_metadata_tell_id_and_times(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        _, call = stub.Segment.with_call(
            pb.SegmentRequest(image=IMAGE),
            metadata=(("x-request-id", "mine-1"), ("wsss-timings", "1")),
        )
        told = dict(call.trailing_metadata())
        assert told["x-request-id"] == "mine-1"
        stages = dict(part.split(";dur=") for part in told["wsss-timings"].split(", "))
        assert set(stages) == {"decode", "queue", "infer", "encode", "total"}
        assert float(stages["total"]) >= float(stages["infer"]) > 0
        _, call = stub.Segment.with_call(pb.SegmentRequest(image=IMAGE))
        told = dict(call.trailing_metadata())
        assert "wsss-timings" not in told
        assert told["x-request-id"]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Segment(pb.SegmentRequest(), metadata=(("x-request-id", "mine-2"),))
        assert dict(caught.value.trailing_metadata())["x-request-id"] == "mine-2"


def test_replies_carry_the_doubt_of_models_that_give_it(tmp_path, run_server, blocks, server):
    for name, doubt in (("sure", True), ("plain", False)):
        tiny_models.export(tmp_path, name, doubt=doubt)
    tiny_models.export(tmp_path, "maps", "cam")
    config = configured(tmp_path, tiling__max_tiles=64)
    with run_server(config) as started, Client(started.address) as client:
        expected = tiny_models.expected_doubt(blocks)
        # Tags, classes and thresholds change the mask, and leave the doubt of the model's own.
        for wishes in ({}, {"tags": ["red"]}, {"classes": ["red"]}, {"confidence_threshold": 0.9}):
            result = client.segment(blocks, "sure", **wishes)
            assert result.doubt == pytest.approx(expected, abs=1e-6)
        for name in ("plain", "maps"):
            result = client.segment(blocks, name)
            assert result.doubt is None
            assert not result.reply.HasField("doubt")
        images = {"bright": blocks, "dark": blocks // 2}
        stream = dict(client.segment_many(images.items(), "sure"))
        assert {name: stream[name].doubt for name in images} == pytest.approx(
            {name: tiny_models.expected_doubt(image) for name, image in images.items()}, abs=1e-6
        )
        # Tiles of one brightness each: the doubt of the image is their mean.
        wide = np.repeat(np.repeat(np.uint8([[[40] * 3, [200] * 3]]), 64, 0), 300, 1)
        tiled = client.segment(wide, "sure", oversize="tile")
        assert tiled.reply.image.tiles > 1
        assert tiled.doubt == pytest.approx(tiny_models.expected_doubt(wide), abs=0.05)
        about = {name: client.get_model(name).metrics for name in ("sure", "plain")}
        assert dict(about["sure"]["doubt"]) == {"from": "pseudo masks of train"}
        assert "doubt" not in about["plain"]
