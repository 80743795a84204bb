from __future__ import annotations

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rpc_calls import IMAGE, failure

from serving.client import Client
from wsss.v1 import segmentation_pb2 as pb

CALL = {"rpc": "wsss.v1.Segmentation/Segment", "model": "colours", "code": "OK", "reason": ""}


@pytest.fixture
def samples(server):
    """Reads the figures of the server: ``samples(name, label=value, ...)``."""

    def read(name, **labels):
        page, kind = server.telemetry.page("text/plain")
        assert kind.startswith("text/plain")
        families = list(text_string_to_metric_families(page.decode()))
        found = [s for family in families for s in family.samples if s.name == name]
        return {
            tuple(s.labels.items()): s.value for s in found if labels.items() <= s.labels.items()
        }

    return read


def one(found):
    (value,) = found.values()
    return value


def test_requests_are_counted_by_code_and_reason_and_timed_by_stage(server, samples):
    before = sum(samples("wsss_requests_total", **CALL).values())
    with Client(server.address) as client:
        for _ in range(3):
            client.segment(np.zeros((9, 9, 3), np.uint8), "colours")
    failure(server, "Segment", pb.SegmentRequest(image=IMAGE, model="x"))
    failure(server, "Segment", pb.SegmentRequest(image=pb.Image(encoded=b"x"), model="colours"))
    assert one(samples("wsss_requests_total", **CALL)) == before + 3
    assert (
        one(
            samples(
                "wsss_requests_total", reason="MODEL_NOT_FOUND", rpc=CALL["rpc"], code="NOT_FOUND"
            )
        )
        >= 1
    )
    unreadable = samples(
        "wsss_requests_total", reason="IMAGE_UNREADABLE", model="colours", rpc=CALL["rpc"]
    )
    assert one(unreadable) >= 1
    for stage in ("queue", "decode", "infer", "encode", "total"):
        assert one(samples("wsss_request_seconds_count", model="colours", stage=stage)) >= 3
        assert one(samples("wsss_request_seconds_sum", model="colours", stage=stage)) > 0


def test_what_a_caller_claims_never_becomes_a_label(server, samples):
    for name in ("made-up-1", "made-up-2"):
        failure(server, "GetModel", pb.GetModelRequest(model=name))
    with grpc.insecure_channel(server.address) as channel:
        for method in ("/wsss.v1.Segmentation/Nothing", "/a/b"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    labels = samples("wsss_requests_total")
    assert "made-up" not in str(labels)
    assert "Nothing" not in str(labels)


def test_models_and_queues_are_told(server, samples):
    assert one(samples("wsss_model_ready", model="maps", version="1")) == 1
    ((labels, value),) = samples("wsss_model_info", model="colours").items()
    assert value == 1
    assert dict(labels)["kind"] == "segmenter"
    assert len(dict(labels)["sha256"]) == 64
    for name in ("wsss_queue_depth", "wsss_in_flight", "wsss_running"):
        assert one(samples(name, model="colours")) == 0
    done = one(samples("wsss_executions_total", model="colours"))
    with Client(server.address) as client:
        client.segment(np.zeros((9, 9, 3), np.uint8), "colours")
    assert one(samples("wsss_executions_total", model="colours")) == done + 1
    assert one(samples("wsss_inferences_total", model="colours")) >= done + 1
    assert one(samples("process_resident_memory_bytes")) > 1e6


def test_a_malformed_message_is_an_invalid_argument(server, samples):
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/wsss.v1.Segmentation/Segment")(b"\xff\xff", timeout=10)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith("the message is not a wsss.v1.SegmentRequest")
