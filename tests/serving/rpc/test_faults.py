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
from serving.engines import Stopped
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
        self.spoil = None
        self.runs = self.stopped = 0

    def run(self, inputs, stop=None):
        if not self.hang(stop):
            self.stopped += 1
            raise Stopped
        self.runs += 1
        if self.fail:
            raise RuntimeError("/secret/path/of/the/model")
        outputs = self.engine.run(inputs)
        return self.spoil(outputs) if self.spoil else outputs

    def hang(self, stop):
        """Wait to be let go; False if the run was stopped first."""
        for _ in range(4000):
            if stop.requested or self.wait.wait(0.005):
                break
        return not stop.requested

    def close(self):
        self.engine.close()


@pytest.fixture
def breakable(repository, run_server, monkeypatch):
    """A running server of one worker and two places, and the engine in it."""
    from serving.repository import served as module

    engines = []

    def build(*settings):
        engines.append(Broken(original(*settings)))
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


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outputs: outputs | {"scores": outputs["scores"] * np.float32("nan")},
        lambda outputs: outputs | {"mask": outputs["mask"][:, :-1]},
        lambda outputs: outputs | {"mask": outputs["mask"][0]},
        lambda outputs: outputs | {"mask": np.full_like(outputs["mask"], 200)},
        lambda outputs: outputs | {"confidence": outputs["confidence"].astype(np.float32)},
        lambda outputs: {"scores": outputs["scores"]},
        lambda outputs: {},
    ],
    ids=["NaN", "too few rows", "no batch", "no such label", "another type", "no mask", "nothing"],
)
def test_outputs_that_the_card_does_not_promise_are_a_fault_of_the_server(breakable, spoil):
    server, engine = breakable
    engine.spoil = spoil
    for _ in range(3):
        code, info, _, text = failure(server, "Segment", pb.SegmentRequest(image=IMAGE))
        assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert info.metadata["id"] in text
    engine.spoil = None
    with Client(server.address) as client:
        assert client.segment(np.zeros((9, 9, 3), np.uint8)).mask.shape == (9, 9)


def test_an_engine_that_hangs_is_left_at_the_deadline_and_stopped(breakable):
    server, engine = breakable
    engine.wait.clear()
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Segment(pb.SegmentRequest(image=IMAGE), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(server, lambda counts: (counts.running, counts.dropped, engine.stopped) == (0, 1, 1))
        # A client that vanishes is one who left, too.
        gone = stub.Segment.future(pb.SegmentRequest(image=IMAGE))
        until(server, lambda counts: counts.running == 1)
        gone.cancel()
        until(server, lambda counts: (counts.running, counts.dropped, engine.stopped) == (0, 2, 2))
        engine.wait.set()
        assert stub.Segment(pb.SegmentRequest(image=IMAGE), timeout=20).mask.png
    assert engine.runs == 1


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
