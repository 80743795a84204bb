"""Memory and time of decoding are counted before they are spent."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from configs import configured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from image_files import scans_jpeg
from PIL import Image
from rpc_calls import failure
from servers import running

from serving import errors
from serving.client import Client
from serving.config import Limits
from serving.images import decoding
from serving.rpc import calls
from serving.scheduling.cpus import available_cpus
from serving.scheduling.memory import Memory
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc

LIMIT = 2_000_000


def encoded(height: int, width: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 200, 30)).save(file, kind)
    return file.getvalue()


def request(data: bytes) -> pb.SegmentRequest:
    return pb.SegmentRequest(image=pb.Image(encoded=data), model="colours")


@pytest.fixture(scope="module")
def server(repository):
    limits = {"limits__max_decoded_bytes": LIMIT, "limits__max_passes": 1_000_000}
    with running(configured(repository, **limits)) as started:
        yield started


@pytest.fixture
def memory(server):
    found = server._codecs.memory
    assert found.taken == 0
    yield found
    until(lambda: found.taken == 0)


def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not in ten seconds")


def healthy(server) -> bool:
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return bool(check(health_pb2.HealthCheckRequest(), timeout=5).status == 1)


def gauges(server) -> dict[str, float]:
    page = server.telemetry.page("text/plain")[0].decode()
    lines = [line.split() for line in page.splitlines() if line.startswith("wsss_image_bytes")]
    return {name: float(value) for name, value in lines}


def test_a_budget_is_never_exceeded_and_given_back():
    memory = Memory(Limits(max_decoded_bytes=100))
    with memory.reserve(60), memory.reserve(40):
        with (
            pytest.raises(errors.MemoryFull, match="take 100 bytes") as caught,
            memory.reserve(1),
        ):
            pass
        assert caught.value.retry_after > 0
        with memory.count(5):
            assert memory.taken == 105
    assert memory.taken == 0
    with pytest.raises(errors.ImageTooLarge) as large, memory.reserve(101):
        pass
    assert large.value.metadata == {"max_decoded_bytes": "100"}
    assert Memory(Limits()).limit > 50_000_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_an_image_that_takes_all_memory_is_refused_before_it_is_decoded(server, memory, kind):
    code, info, _, _ = failure(server, "Segment", request(encoded(900, 900, kind)))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_TOO_LARGE")
    assert info.metadata["max_decoded_bytes"] == str(LIMIT)


def test_memory_that_others_take_is_waited_for_and_a_metric(server, memory):
    with memory.count(LIMIT):
        assert gauges(server) == {"wsss_image_bytes": LIMIT, "wsss_image_bytes_limit": LIMIT}
        code, info, details, _ = failure(server, "Segment", request(encoded(40, 40)))
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_FULL")
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        with Client(server.address) as client, pytest.raises(errors.MemoryFull):
            client.segment(encoded(40, 40), "colours")
    with Client(server.address) as client:
        assert client.segment(encoded(40, 40), "colours").mask.shape == (40, 40)


@contextmanager
def unfinished(address: str, count: int) -> Iterator[None]:
    """So many calls whose message has not come yet."""
    ended = threading.Event()

    def messages() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with grpc.insecure_channel(address) as channel:
        method = channel.stream_unary("/wsss.v1.Segmentation/Segment")
        pending = [method.future(messages()) for _ in range(count)]
        try:
            yield
        finally:
            ended.set()
            for call in pending:
                call.cancel()


def test_messages_that_are_read_count_as_the_longest(repository, monkeypatch):
    monkeypatch.setattr(calls, "READING_SECONDS", 0.2)
    size = Limits(max_bytes=1_000_000).message_bytes
    limits = {"limits__max_bytes": 1_000_000, "limits__max_decoded_bytes": 3 * size + 1}
    with running(configured(repository, limits__max_per_caller=1024, **limits)) as server:
        memory, places = server._codecs.memory, server._calls.messages
        with unfinished(server.address, 3):
            until(lambda: places.taken == 3)
            assert memory.taken == gauges(server)["wsss_image_bytes"] == 3 * size
            code, info, details, _ = failure(server, "Segment", request(encoded(40, 40)))
            assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_FULL")
            assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
            assert healthy(server)
        until(lambda: memory.taken == 0)
        with Client(server.address) as client:
            assert client.segment(encoded(40, 40), "colours").mask.shape == (40, 40)


def test_no_caller_has_all_the_room_for_messages(repository, monkeypatch):
    monkeypatch.setattr(calls, "READING_SECONDS", 0.2)
    with running(configured(repository, limits__max_decoded_bytes=LIMIT)) as server:
        with unfinished(server.address, 1):
            until(lambda: server._calls.messages.taken == 1)
            code, info, details, _ = failure(server, "Segment", request(encoded(40, 40)))
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLER_LIMIT")
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0


def test_a_burst_waits_until_its_messages_are_read(server, memory):
    """One message at a time fits into the caller's share."""
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        burst = [stub.GetModel.future(pb.GetModelRequest(model="colours")) for _ in range(30)]
        assert {call.result(timeout=20).name for call in burst} == {"colours"}


def test_a_stream_is_not_read_while_memory_is_full(server, memory):
    data = encoded(40, 40)
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        message = pb.SegmentStreamRequest(id="1", segment=request(data))
        with memory.count(LIMIT):
            replies = stub.SegmentStream(iter([message]), timeout=20)
            time.sleep(0.3)
            assert memory.taken == LIMIT
        assert [reply.WhichOneof("result") for reply in replies] == ["segment"]


def test_a_process_without_memory_says_so(server, memory, monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "to_rgb", full)
    code, info, _, _ = failure(server, "Segment", request(encoded(40, 40)))
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_FULL")


def test_a_caller_who_left_is_never_decoded(server, memory, monkeypatch):
    decoded: list[int] = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *a: decoded.append(len(a[0])) or decode(*a))
    free = threading.Event()
    for _ in range(available_cpus()):
        server._codecs._threads.submit(free.wait)
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Segment(request(encoded(40, 40)), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: memory.taken == 0)
        free.set()
        assert stub.Segment(request(encoded(30, 30)), timeout=20).mask.png
    assert len(decoded) == 1


def test_many_scans_are_refused_at_once(server, memory):
    data = scans_jpeg(200, 200, 3000)
    began = time.monotonic()
    code, info, _, text = failure(server, "Segment", request(data))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_TOO_LARGE")
    assert info.metadata["max_decoded_passes"] == "1000000"
    assert "scans or more of 40,000 pixels" in text
    assert time.monotonic() - began < 5


def test_a_server_ends_whatever_a_decoder_does(repository):
    free = threading.Event()
    with running(configured(repository, shutdown__grace=0)) as server:
        for _ in range(available_cpus()):
            server._codecs._threads.submit(free.wait)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    free.set()
