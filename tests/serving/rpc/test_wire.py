"""Cutting tensors out of messages by hand gives what protobuf gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import FieldError
from serving.rpc import wire
from wsss.inference import open_inference_pb2 as pb

TENSORS = st.lists(st.binary(max_size=300), max_size=4)


@given(
    raw=TENSORS,
    name=st.text(max_size=8),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_a_request_is_read_as_protobuf_reads_it(raw, name, shape):
    message = pb.ModelInferRequest(model_name=name, id=name, raw_input_contents=raw)
    message.inputs.add(name=name, shape=shape).contents.fp32_contents.extend([1.0])
    message.parameters[name].int64_param = -1
    found = wire.read_request(message.SerializeToString())
    assert [bytes(view) for view in found.raw] == raw
    found.message.raw_input_contents.extend(raw)
    assert found.message == message


@given(raw=TENSORS, name=st.text(max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_reply_is_written_as_protobuf_reads_it(raw, name):
    message = pb.ModelInferResponse(model_name=name, id=name)
    message.outputs.add(name=name, shape=[len(raw)])
    reply = wire.InferReply(message, list(raw))
    encoded, streamed = wire.write_reply(reply), wire.write_streamed(reply)
    message.raw_output_contents.extend(raw)
    assert pb.ModelInferResponse.FromString(encoded) == message
    assert pb.ModelStreamInferResponse.FromString(streamed).infer_response == message


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_whatever_protobuf_refuses_is_refused(data):
    found = wire.read_request(data)
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except Exception:
        assert isinstance(found, FieldError)
    else:
        # Groups, which no proto3 message has, are skipped by protobuf and refused here.
        if not isinstance(found, FieldError):
            assert [bytes(view) for view in found.raw] == list(expected.raw_input_contents)


def test_tensors_are_not_copied():
    values = np.arange(1000, dtype=np.float32)
    data = pb.ModelInferRequest(raw_input_contents=[values.tobytes()]).SerializeToString()
    (view,) = wire.read_request(data).raw
    assert view.obj is data


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 2_097_152])
def test_lengths_of_any_size(size):
    reply = wire.InferReply(pb.ModelInferResponse(), [bytes(size)])
    assert pb.ModelInferResponse.FromString(wire.write_reply(reply)).raw_output_contents[
        0
    ] == bytes(size)
