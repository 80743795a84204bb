"""The Open Inference Protocol where something goes wrong that is no fault of the message."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
import tiny_models
from configs import configured
from oip_calls import code, stub, sums

from wsss.inference import open_inference_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def sick(tmp_path, run_server):
    """A server of a tensor model, and what to put in place of its engine's ``run``."""
    tiny_models.export(tmp_path, "sums", "tensor")
    tiny_models.export(tmp_path, "colours", "segmenter")
    with (
        run_server(configured(tmp_path, limits__max_bytes=100_000)) as server,
        stub(server.address) as calls,
    ):
        yield server, calls


def replace_run(server, name, run):
    engine = server.models.find(name, 0, None).engine
    original = engine.run
    engine.run = lambda *arguments: run(original, *arguments)
    return lambda: setattr(engine, "run", original)


def test_an_engine_that_raises_is_internal_with_an_id_and_nothing_else(sick, caplog):
    server, calls = sick

    def fail(run, *arguments):
        raise RuntimeError("/secret/path/model.onnx")

    heal = replace_run(server, "sums", fail)
    metadata = (("x-request-id", "job-77"),)
    status, reason, text = code(calls.ModelInfer, sums(), metadata=metadata)
    assert (status, reason) == ("INTERNAL", "INTERNAL")
    assert text == "the server failed, id job-77"
    assert "/secret/path" in caplog.text
    (streamed,) = calls.ModelStreamInfer(iter([sums(id="9")]))
    assert streamed.infer_response.id == "9"
    assert "secret" not in streamed.error_message
    (statistics,) = calls.ModelStatistics(pb.ModelStatisticsRequest(name="sums")).model_stats
    assert statistics.inference_stats.fail.count == 2
    heal()
    assert code(calls.ModelInfer, sums())[0] == "OK"


def test_a_graph_that_breaks_its_promise_is_internal(sick):
    server, calls = sick
    image = np.full((1, 16, 16, 3), 200, np.uint8)
    request = pb.ModelInferRequest(model_name="colours", raw_input_contents=[image.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=image.shape)
    heal = replace_run(
        server,
        "colours",
        lambda run, *arguments: run(*arguments) | {"mask": np.zeros((1, 3, 3), np.uint8)},
    )
    assert code(calls.ModelInfer, request)[0] == "INTERNAL"
    heal()
    assert code(calls.ModelInfer, request)[0] == "OK"


def test_a_caller_that_vanishes_leaves_nothing_behind(sick):
    server, calls = sick
    go = threading.Event()
    heal = replace_run(server, "sums", lambda run, *arguments: go.wait(20) and run(*arguments))
    statistics = server.models.find("sums", 0, None).batcher.statistics
    stream = calls.ModelStreamInfer(sums(id=str(number)) for number in range(12))
    alone = calls.ModelInfer.future(sums())
    while statistics().admitted < 5:
        time.sleep(0.01)
    stream.cancel()
    alone.cancel()
    go.set()
    ended = time.monotonic() + 10
    while statistics().admitted and time.monotonic() < ended:
        time.sleep(0.01)
    assert statistics().admitted == 0
    heal()
    assert code(calls.ModelInfer, sums())[0] == "OK"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_above_the_limit_is_refused_however_small_it_was_packed(sick, compression):
    server, calls = sick
    (limits,) = (
        text
        for text in calls.ServerMetadata(pb.ServerMetadataRequest()).extensions
        if "limits" in text
    )
    limit = 2 * 100_000 + 2**20
    assert f"message_bytes={limit}," in limits
    with grpc.insecure_channel(
        server.address, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        status, _, text = code(
            channel.unary_unary(INFER), bytes(50 * 2**20), compression=compression
        )
    assert status == "RESOURCE_EXHAUSTED"
    assert "larger than max" in text
    assert code(calls.ModelInfer, sums())[0] == "OK"


def test_an_image_above_the_limit_says_the_limit(sick):
    _, calls = sick
    request = pb.ModelInferRequest(model_name="colours")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(bytes(100_001))
    status, reason, text = code(calls.ModelInfer, request)
    assert (status, reason) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE")
    assert "100,000" in text
