"""Many images over one stream: ids, bounds, order, errors of one image, the server's end, a client
that vanishes.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time

import grpc
import numpy as np
import pytest
import tiny_models
from claims import CLAIMS
from configs import configured
from PIL import Image
from rpc_calls import IMAGE

from serving import errors
from serving.client import AsyncClient, Client
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc


def images(count: int) -> list[np.ndarray]:
    return [
        np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
        for seed in range(count)
    ]


def message(number: str, **changes) -> pb.SegmentStreamRequest:
    return pb.SegmentStreamRequest(
        id=number, **{"segment": pb.SegmentRequest(image=IMAGE), **changes}
    )


def end(server) -> None:
    """As SIGTERM does, but for the closing of the port."""
    server.loop.call_soon_threadsafe(server._calls.ending.set)


class Slow:
    """An engine that waits until it is told to go on."""

    def __init__(self, engine):
        self.engine, self.go, self.started = engine, threading.Event(), 0
        self.description, self.inputs, self.outputs = (
            engine.description,
            engine.inputs,
            engine.outputs,
        )

    def run(self, inputs, stop=None):
        self.started += 1
        assert self.go.wait(20)
        return self.engine.run(inputs)

    def close(self):
        self.engine.close()


@pytest.fixture
def slow(repository, run_server, monkeypatch):
    """A server with a slow engine of one worker, and the engine."""
    from serving.repository import served

    engines = []

    def build(*settings):
        engines.append(Slow(original(*settings)))
        return engines[-1]

    original = served.open_warm_engine
    monkeypatch.setattr(served, "open_warm_engine", build)
    with run_server(
        configured(repository, schedule__workers=1, limits__stream_in_flight=4)
    ) as server:
        yield server, server.models.find("colours", 0, "segmenter").engine
        for engine in engines:
            engine.go.set()


@pytest.mark.parametrize("in_order", [True, False])
def test_many_images_with_a_bad_one_among_them(server, in_order):
    sent = dict(enumerate(images(25)))
    sent |= {
        7: b"no image",
        9: CLAIMS["png"](30_000, 30_000),
        11: "/nowhere/at.jpg",
        13: np.zeros((2, 2)),
    }
    with Client(server.address) as client:
        found = list(client.segment_many(sent.items(), in_flight=5, in_order=in_order))
    assert sorted(key for key, _ in found) == list(range(25))
    for key, result in found:
        if key in (7, 9, 11, 13):
            assert type(result) is (errors.ImageTooLarge if key == 9 else errors.ImageError), result
        else:
            np.testing.assert_array_equal(result.mask, tiny_models.expected_mask(sent[key]))
    answered = [key for key, _ in found if key not in (11, 13)]
    assert answered == sorted(answered) or not in_order


def test_the_async_client_streams_a_folder(server, tmp_path):
    (tmp_path / "sub").mkdir()
    for name, image in zip(("b.png", "sub/a.png", "a.bmp"), images(3)):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "bad.jpg").write_text("text")
    (tmp_path / "notes.txt").write_text("no image")

    async def work():
        async with AsyncClient(server.address) as client:
            return [entry async for entry in client.segment_folder(tmp_path, encoding="label_runs")]

    found = asyncio.run(work())
    assert [key for key, _ in found] == ["a.bmp", "b.png", "bad.jpg", "sub/a.png"]
    assert isinstance(found[2][1], errors.ImageError)
    np.testing.assert_array_equal(found[1][1].mask, tiny_models.expected_mask(images(1)[0]))
    with Client(server.address) as client:
        again = list(client.segment_folder(tmp_path))
        assert [key for key, _ in again] == [key for key, _ in found]
        with pytest.raises(errors.ImageError, match="no folder"):
            next(client.segment_folder(tmp_path / "none"))


def test_ids_options_and_refusals_on_the_wire(server):
    options = pb.StreamOptions(order=pb.STREAM_ORDER_SENDING, in_flight=1)
    late = message("late")
    late.timeout.FromNanoseconds(1)
    sent = [
        pb.SegmentStreamRequest(options=options),
        message("a"),
        message("", segment=pb.SegmentRequest(image=IMAGE, model="none")),
        message("x" * 1025),
        pb.SegmentStreamRequest(id="bare"),
        late,
        message("a"),
    ]
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        call = stub.SegmentStream(iter(sent), timeout=20, metadata=(("x-request-id", "bulk"),))
        replies = list(call)
        assert dict(call.trailing_metadata())["x-request-id"] == "bulk"
        assert [reply.id for reply in replies] == ["a", "", "", "", "late", "a"]
        reasons = [reply.failure.reason for reply in replies]
        assert reasons == [
            "",
            "MODEL_NOT_FOUND",
            "INVALID_FIELD",
            "INVALID_FIELD",
            "DEADLINE_EXCEEDED",
            "",
        ]
        assert replies[1].failure.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert [reply.failure.field for reply in replies[2:4]] == ["id", "segment"]
        assert replies[0].segment.mask.png
        assert list(stub.SegmentStream(iter(()), timeout=20)) == []
        wrong = pb.SegmentStreamRequest(options=pb.StreamOptions(order=9))
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.SegmentStream(iter([wrong]), timeout=20))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_requests_are_read_only_as_they_are_answered(slow):
    server, engine = slow
    produced = []

    def produce():
        for number in range(300):
            produced.append(number)
            # Far more in all than what gRPC takes in ahead, whose window grows with a fast
            # connection.
            raw = pb.RawImage(height=300, width=300, pixels=bytes(270_000))
            yield message(
                str(number), segment=pb.SegmentRequest(image=pb.Image(raw=raw), model="colours")
            )

    with grpc.insecure_channel(server.address) as channel:
        call = segmentation_pb2_grpc.SegmentationStub(channel).SegmentStream(produce(), timeout=60)
        time.sleep(1.0)
        (served,) = [served for served in server.models.served() if served.card.name == "colours"]
        assert served.batcher.statistics().admitted <= 4
        assert len(produced) < 250, "flow control holds the sender back"
        engine.go.set()
        assert len(list(call)) == 300


def test_the_end_of_the_server_answers_what_it_took_and_refuses_the_rest(slow):
    server, engine = slow
    sent, stop = [message(str(number)) for number in range(3)], threading.Event()

    def produce():
        yield from sent
        stop.wait(20)

    with grpc.insecure_channel(server.address) as channel:
        call = segmentation_pb2_grpc.SegmentationStub(channel).SegmentStream(produce(), timeout=60)
        while not engine.started:
            time.sleep(0.01)
        time.sleep(0.2)
        end(server)
        time.sleep(0.1)
        engine.go.set()
        replies = []
        with pytest.raises(grpc.RpcError) as caught:
            replies.extend(call)
        stop.set()
    assert sorted(reply.id for reply in replies) == ["0", "1", "2"]
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in caught.value.details()


def test_a_client_that_vanishes_leaves_nothing_behind(slow):
    server, engine = slow
    (served,) = [served for served in server.models.served() if served.card.name == "colours"]
    channel = grpc.insecure_channel(server.address)
    call = segmentation_pb2_grpc.SegmentationStub(channel).SegmentStream(
        iter([message(str(n)) for n in range(4)])
    )
    while not engine.started:
        time.sleep(0.01)
    call.cancel()
    channel.close()
    engine.go.set()
    for _ in range(200):
        if not served.batcher.statistics().admitted and not server._calls.in_flight:
            break
        time.sleep(0.02)
    assert served.batcher.statistics().admitted == 0
    assert server._calls.in_flight == 0
    with Client(server.address) as client:
        assert client.segment(np.zeros((9, 9, 3), np.uint8), "colours").mask.shape == (9, 9)


def test_a_full_queue_holds_a_stream_back_and_refuses_nothing(repository, run_server):
    with (
        run_server(configured(repository, schedule__queue=1)) as server,
        Client(server.address) as client,
    ):
        found = list(client.segment_many(enumerate(images(12)), in_flight=6))
    assert len(found) == 12
    assert [result for _, result in found if isinstance(result, errors.RequestError)] == []


def test_a_caller_with_few_requests_allowed_is_held_back_and_refused_nothing(
    repository, run_server
):
    with (
        run_server(configured(repository, limits__max_per_caller=2)) as server,
        Client(server.address) as client,
    ):
        found = list(client.segment_many(enumerate(images(12)), in_flight=6))
    assert len(found) == 12
    assert [result for _, result in found if isinstance(result, errors.RequestError)] == []


def test_an_idle_stream_is_ended_with_the_server(repository, run_server):
    stop = threading.Event()

    def nothing():
        stop.wait(20)
        yield from ()

    with (
        run_server(configured(repository)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = segmentation_pb2_grpc.SegmentationStub(channel).SegmentStream(nothing(), timeout=20)
        time.sleep(0.2)
        end(server)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        stop.set()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_images_without_an_answer_are_sent_again_to_the_next_server(repository, run_server):
    config = configured(repository)
    sent = dict(enumerate(images(30)))
    found, restarted = {}, False
    first = run_server(config)
    server = first.__enter__()
    port = int(server.address.rpartition(":")[2])
    second = run_server(configured(repository, network__port=port))
    try:
        with Client(server.address, retries=20) as client:
            for key, result in client.segment_many(sent.items(), in_flight=4):
                found[key] = result
                if len(found) == 10 and not restarted:
                    restarted = True
                    first.__exit__(None, None, None)
                    second.__enter__()
    finally:
        second.__exit__(None, None, None)
    assert sorted(found) == list(range(30))
    for key, result in found.items():
        np.testing.assert_array_equal(result.mask, tiny_models.expected_mask(sent[key]))


def test_files_that_are_no_images_are_told_as_the_server_tells_them(server, tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded()[:60])
    with Client(server.address) as client:
        ((key, error),) = client.segment_folder(tmp_path)
    assert key == "cut.png"
    assert error.reason == "IMAGE_UNREADABLE"
    assert error.field == "image.encoded"


def encoded() -> bytes:
    file = io.BytesIO()
    Image.fromarray(images(1)[0]).save(file, "PNG")
    return file.getvalue()
