"""Whatever is open without working is bounded, of one caller and in all, and stops nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import grpc
import pytest
from configs import configured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from oip_calls import code, stub
from rpc_calls import IMAGE

from serving.access.places import Places
from serving.client import AsyncClient, Client
from serving.errors import CallerBusy, Overloaded, RequestError, ServerFull
from serving.rpc import status
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc

SEGMENT = "/wsss.v1.Segmentation/Segment"
REQUEST = pb.SegmentRequest(model="colours", image=IMAGE)


def error_of(call):
    """Code, reason, and seconds to wait, of a call that ended with an error."""
    error = status.from_call(call)
    return error.code, error.reason, getattr(error, "retry_after", None)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_places_are_bounded_in_all_and_of_one_caller():
    places = Places("requests", 3, 2, ServerFull)
    with places.hold("a"), places.hold("a"):
        assert not places.has_room("a")
        with pytest.raises(CallerBusy, match="2 requests of this caller"), places.hold("a"):
            pass
        with places.hold("b"), pytest.raises(ServerFull, match="3 requests"), places.hold("c"):
            pass
        assert places.has_room("c")
        assert places.taken == 2
    assert places.taken == 0
    assert places.has_room("a")


def test_anonymous_watches_stop_nobody(repository, run_server, tmp_path):
    config = configured(repository, limits__max_open_per_caller=20)
    with run_server(config) as server, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(60)]
        until(lambda: sum(watch.done() for watch in watches) == 40)
        assert {error_of(watch) for watch in watches if watch.done()} == {
            ("RESOURCE_EXHAUSTED", "CALLER_LIMIT", 1.0)
        }
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        assert segmentation_pb2_grpc.SegmentationStub(channel).Segment(REQUEST, timeout=5)
        page = server.telemetry.page("")[0].decode()
        assert "wsss_watches 20.0" in page
        assert (
            'wsss_requests_total{code="RESOURCE_EXHAUSTED",model="",reason="CALLER_LIMIT",'
            'rpc="grpc.health.v1.Health/Watch"} 40.0' in page
        )
        for watch in watches:
            watch.cancel()
        until(lambda: server._calls.watches.taken == 0)


def test_reflection_is_a_stream_as_the_others(repository, run_server):
    config = configured(repository, limits__max_open_per_caller=1)
    with run_server(config) as server, grpc.insecure_channel(server.address) as channel:
        method = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        done = threading.Event()
        first = method(iter(lambda: done.wait(20) or ask, True))
        until(lambda: server._calls.streams.taken == 1)
        with pytest.raises(grpc.RpcError) as caught:
            list(method(iter([ask])))
        assert error_of(caught.value)[:2] == ("RESOURCE_EXHAUSTED", "CALLER_LIMIT")
        first.cancel()
        done.set()
        until(lambda: server._calls.streams.taken == 0)
        assert next(method(iter([ask]))).list_services_response.service


def test_idle_streams_end_and_working_ones_do_not(repository, run_server, pixels):
    config = configured(repository, limits__idle_seconds=0.5)
    with run_server(config) as server:
        with stub(server.address) as calls:
            done = threading.Event()
            replies = calls.ModelStreamInfer(iter(lambda: done.wait(20), True))
            with pytest.raises(grpc.RpcError) as caught:
                next(replies)
            done.set()
            assert error_of(caught.value)[:2] == ("UNAVAILABLE", "STREAM_IDLE")
        until(lambda: server._calls.streams.taken == 0)

        def slowly():
            for number in range(4):
                yield number, pixels
                time.sleep((0.2, 0.2, 1.2, 0)[number])

        with Client(server.address) as client:
            found = dict(client.segment_many(slowly(), "colours", in_flight=1))
        assert [type(found[number]).__name__ for number in range(4)] == ["Segmentation"] * 4


def test_the_async_client_goes_on_after_an_idle_stream(repository, run_server, pixels):
    async def slowly():
        for number in range(3):
            yield number, pixels
            await asyncio.sleep(1.2 if number == 1 else 0)

    async def run(address):
        async with AsyncClient(address) as client:
            stream = client.segment_many(slowly(), "colours", in_flight=1)
            return [(key, type(result).__name__) async for key, result in stream]

    with run_server(configured(repository, limits__idle_seconds=0.4)) as server:
        found = asyncio.run(run(server.address))
    assert found == [(number, "Segmentation") for number in range(3)]


def test_calls_whose_message_does_not_come_hold_up_nobody(repository, run_server):
    """Of a caller who opens calls and sends nothing, half of the places are left to others."""
    config = configured(repository, limits__max_calls=8, limits__idle_seconds=0.8)
    with run_server(config) as server, grpc.insecure_channel(server.address) as channel:
        done = threading.Event()
        silent = [
            channel.stream_unary(SEGMENT).future(iter(lambda: done.wait(20), True))
            for _ in range(4)
        ]
        until(lambda: server._calls.requests.taken == 4)
        assert server._calls.in_flight == 0
        refused = code(segmentation_pb2_grpc.SegmentationStub(channel).Segment, REQUEST)
        assert refused[:2] == ("RESOURCE_EXHAUSTED", "CALLER_LIMIT")
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        assert {call.code() for call in silent} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        done.set()
        assert segmentation_pb2_grpc.SegmentationStub(channel).Segment(REQUEST, timeout=5)


def test_a_burst_over_one_channel_is_answered_or_refused_with_a_reason(repository, run_server):
    async def one(call):
        try:
            await call(REQUEST, timeout=60)
        except grpc.aio.AioRpcError as error:
            refused = status.from_call(error)
            return refused.code, refused.reason, refused.retry_after > 0
        return "OK"

    async def burst(address):
        async with grpc.aio.insecure_channel(address) as channel:
            segment = segmentation_pb2_grpc.SegmentationStub(channel).Segment
            return Counter(await asyncio.gather(*(one(segment) for _ in range(1500))))

    config = configured(repository, limits__max_calls=100, schedule__queue=20)
    with run_server(config) as server:
        ends = asyncio.run(burst(server.address))
        page = server.telemetry.page("")[0].decode()
    assert ends["OK"] >= 20
    assert set(ends) <= {
        "OK",
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", True),
        ("RESOURCE_EXHAUSTED", "CALLER_LIMIT", True),
        ("RESOURCE_EXHAUSTED", "SERVER_FULL", True),
    }
    counted = sum(
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith("wsss_requests_total{")
    )
    assert counted == 1500


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!", "Overloaded"),
        ("RESOURCE_EXHAUSTED", "Too many pending requests for this server", "Overloaded"),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", "ImageTooLarge"),
        ("CANCELLED", "CANCELLED", "ServerUnavailable"),
        ("UNKNOWN", "", "RequestError"),
    ],
)
def test_what_others_on_the_way_refuse_is_tried_again(code, text, kind):
    class Ended(grpc.RpcError):
        def code(self):
            return grpc.StatusCode[code]

        def details(self):
            return text

        def trailing_metadata(self):
            return ()

    error = status.from_call(Ended())
    assert type(error).__name__ == kind
    assert error.code == code
    assert isinstance(error, RequestError)


def test_a_full_server_is_an_overloaded_one():
    assert issubclass(ServerFull, Overloaded)
