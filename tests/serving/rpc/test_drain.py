"""The end of a server in its order: it says so, serves on, refuses what is new, finishes what it
has.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time

import grpc
import pytest
import tiny_models
from configs import configured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http_calls import fetch
from oip_calls import code, stub, sums

from serving.rpc import metadata
from wsss.inference import open_inference_pb2 as pb

NAMES = ("", "wsss.v1.Segmentation", "inference.GRPCInferenceService", "models/sums")


@pytest.fixture
def ending(tmp_path, run_server):
    """A server of one worker whose runs wait until told, and what begins its end."""
    tiny_models.export(tmp_path, "sums", "tensor")
    settings = {"shutdown__lame_duck": 0.6, "network__http_port": 0, "schedule__workers": 1}
    go = threading.Event()
    go.set()
    stopped = []
    with run_server(configured(tmp_path, **settings)) as server:
        engine = server.models.find("sums", 0, None).engine
        run = engine.run
        engine.run = lambda *arguments: go.wait(20) and run(*arguments)
        stop = server.stop

        def end():
            stopped.append(asyncio.run_coroutine_threadsafe(stop(), server.loop))

        async def once():
            if not stopped:
                await stop()

        server.stop = once
        yield server, go, end, stopped
        go.set()
        if stopped:
            stopped[0].result(30)


def until_closing(server):
    """Until the lame duck is over and the port is being closed."""
    while not server._calls.ending.is_set():
        time.sleep(0.01)
    time.sleep(0.1)


def test_not_ready_comes_first_and_calls_are_answered_meanwhile(ending):
    server, _, end, _ = ending
    with grpc.insecure_channel(server.address) as channel, stub(server.address) as service:
        health = health_pb2_grpc.HealthStub(channel)
        watched = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in NAMES]
        assert [next(watch).status for watch in watched] == [1] * len(NAMES)
        assert fetch(server.http_address, "/readyz")[0] == 200
        end()
        assert [next(watch).status for watch in watched] == [2] * len(NAMES)
        assert fetch(server.http_address, "/readyz")[0] == 503
        assert fetch(server.http_address, "/healthz")[0] == 200
        assert "wsss_ready 0.0" in fetch(server.http_address, "/metrics")[1]
        assert not service.ServerReady(pb.ServerReadyRequest()).ready
        assert service.ServerLive(pb.ServerLiveRequest()).live
        assert code(service.ModelInfer, sums())[0] == "OK", "the lame duck flies"


def test_what_was_accepted_is_finished_and_all_that_comes_later_is_unavailable(ending):
    server, go, end, stopped = ending
    with stub(server.address) as service:
        go.clear()
        accepted = [
            service.ModelInfer.future(sums(id=str(number)), timeout=30) for number in range(8)
        ]
        statistics = server.models.find("sums", 0, None).batcher.statistics
        while statistics().admitted < 8:
            time.sleep(0.01)
        end()
        until_closing(server)
        later = [code(service.ModelInfer, sums())[0] for _ in range(5)]
        with stub(server.address) as others:
            later += [code(others.ModelInfer, sums())[0] for _ in range(5)]
        assert set(later) == {"UNAVAILABLE"}
        assert not any(call.done() for call in accepted)
        go.set()
        assert [call.result().id for call in accepted] == [str(number) for number in range(8)]
    stopped[0].result(30)
    host, port = server.http_address.split(":")
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=2)


def test_a_stream_that_is_open_is_told_so(ending):
    server, _, end, _ = ending
    outgoing: queue.SimpleQueue = queue.SimpleQueue()
    with stub(server.address) as service:
        replies = service.ModelStreamInfer(iter(outgoing.get, None))
        outgoing.put(sums(id="1"))
        assert next(replies).infer_response.id == "1"
        end()
        outgoing.put(sums(id="2"))
        assert not next(replies).error_message, "during the lame duck"
        until_closing(server)
        outgoing.put(sums(id="3"))
        status, _, text = code(lambda request, timeout: told(replies), None)
        assert (status, text) == ("OK", "") or status == "UNAVAILABLE"
        outgoing.put(None)


def told(replies):
    assert "shutting down" in next(replies).error_message


def test_connections_end_with_age_and_no_call_notices(tmp_path, run_server, monkeypatch):
    peers = set()
    monkeypatch.setattr(metadata, "caller_of", lambda context: peers.add(context.peer()) or "")
    tiny_models.export(tmp_path, "sums", "tensor")
    config = configured(tmp_path, connections__max_age=0.3, connections__max_age_grace=5.0)
    with run_server(config) as server, stub(server.address) as service:
        ended = time.monotonic() + 1.5
        while time.monotonic() < ended:
            assert code(service.ModelInfer, sums())[0] == "OK"
    assert len(peers) > 1
