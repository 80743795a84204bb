"""Engines that fail or are slow: what callers are told, and what is never run."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
from configs import configured
from rpc_calls import IMAGE, failure

from serving import errors
from serving.client import Client
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc


class Broken:
    """An engine that fails, or waits, as told."""

    description = "broken"

    def __init__(self, engine):
        self.engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.wait = threading.Event()
        self.wait.set()
        self.fail = False
        self.runs = 0

    def run(self, inputs, stop=None):
        self.wait.wait(20)
        self.runs += 1
        if self.fail:
            raise RuntimeError("/secret/path/of/the/model")
        return self.engine.run(inputs)

    def close(self):
        self.engine.close()


@pytest.fixture
def breakable(repository, run_server, monkeypatch):
    """A running server of one worker and two places, and the engine in it."""
    from serving import models as module

    engines = []

    def build(card, schedule):
        engines.append(Broken(original(card, schedule)))
        return engines[-1]

    original = module.open_warm_engine
    monkeypatch.setattr(module, "open_warm_engine", build)
    with run_server(configured(repository, schedule__workers=1, schedule__queue=2)) as server:
        yield server, server.models.find("colours", 0, "segmenter").engine
        for engine in engines:
            engine.wait.set()


def test_a_fault_of_the_engine_is_internal_and_tells_an_id_only(breakable, caplog):
    server, engine = breakable
    engine.fail = True
    code, info, _, text = failure(server, "Segment", pb.SegmentRequest(image=IMAGE))
    assert code == grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert info.metadata["id"] in caplog.text
    assert "/secret/path" in caplog.text
    engine.fail = False
    with Client(server.address) as client:
        assert client.segment(np.zeros((9, 9, 3), np.uint8)).mask.shape == (9, 9)


def until(server, condition):
    """Wait until the statistics of the model are so."""
    batcher = server.models.find("colours", 0, "segmenter").batcher
    for _ in range(2000):
        if condition(batcher.statistics()):
            return
        time.sleep(0.01)
    raise AssertionError(batcher.statistics())


def test_a_full_queue_refuses_with_a_time_to_retry(breakable):
    server, engine = breakable
    engine.wait.clear()
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        waiting = [stub.Segment.future(pb.SegmentRequest(image=IMAGE)) for _ in range(2)]
        until(server, lambda counts: counts.admitted == 2)
        code, info, details, _ = failure(server, "Segment", pb.SegmentRequest(image=IMAGE))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info.reason == "QUEUE_FULL"
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        with Client(server.address) as client, pytest.raises(errors.Overloaded) as caught:
            client.segment(np.zeros((9, 9, 3), np.uint8))
        assert caught.value.retry_after > 0
        engine.wait.set()
        assert all(call.result(20).mask.png for call in waiting)


def test_expired_and_cancelled_calls_are_never_run(breakable):
    server, engine = breakable
    engine.wait.clear()
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        first = stub.Segment.future(pb.SegmentRequest(image=IMAGE))
        until(server, lambda counts: counts.running == 1)
        cancelled = stub.Segment.future(pb.SegmentRequest(image=IMAGE))
        until(server, lambda counts: counts.waiting == 1)
        cancelled.cancel()
        until(server, lambda counts: counts.dropped == 1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Segment(pb.SegmentRequest(image=IMAGE), timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(server, lambda counts: counts.dropped == 2)
        engine.wait.set()
        assert first.result(20).mask.png
        assert stub.Segment(pb.SegmentRequest(image=IMAGE), timeout=20).mask.png
    assert engine.runs == 2
