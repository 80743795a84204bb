"""Messages of the Open Inference Protocol that nobody would send: the code is right, the process
lives.

``WSSS_FUZZ_EXAMPLES=20000 pytest tests/serving/rpc/test_oip_fuzz.py`` for a longer run.
"""

from __future__ import annotations

import os

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oip_calls import X, Y, code, stub, sums

from wsss.inference import open_inference_pb2 as pb

EXAMPLES = int(os.environ.get("WSSS_FUZZ_EXAMPLES", "60"))
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SERVICE = "/inference.GRPCInferenceService"
# What a bad request may end with. Of a fault of the server, INTERNAL, none is the caller's to
# provoke.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}

INTEGERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**62, -(2**63), 2**63 - 1]), st.integers(-5, 300)
)
NAMES = st.one_of(
    st.sampled_from(["x", "y", "image", "sum", "mask", "sums", "colours", "maps", ""]),
    st.text(max_size=12),
)
TYPES = st.sampled_from(
    ["FP32", "UINT8", "BYTES", "BOOL", "FP16", "BF16", "INT64", "", "fp32", "FP8"]
)
CHUNKS = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        [X.tobytes(), Y.tobytes(), bytes(8 * 8 * 3), b"\xff" * 8, b"\x00" * 4, b"\x04\0\0\0abcd"]
    ),
    st.just(np.full(6, np.nan, np.float32).tobytes()),
)
PARAMETERS = st.one_of(
    st.builds(lambda value: pb.InferParameter(bool_param=value), st.booleans()),
    st.builds(lambda value: pb.InferParameter(int64_param=value), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda value: pb.InferParameter(uint64_param=value), st.integers(0, 2**64 - 1)),
    st.builds(lambda value: pb.InferParameter(string_param=value), st.text(max_size=8)),
    st.builds(lambda value: pb.InferParameter(double_param=value), st.floats()),
    st.just(pb.InferParameter()),
)
PARAMETER_NAMES = st.sampled_from(
    [
        *(
            "priority",
            "timeout",
            "classification",
            "sequence_id",
            "shared_memory_region",
            "binary_data_output",
        ),
        *("triton_enable_empty_final_response", "p"),
    ]
)


@st.composite
def contents(draw):
    made = pb.InferTensorContents()
    made.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=6)))
    if draw(st.booleans()):
        made.int_contents.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)))
    if draw(st.booleans()):
        made.bytes_contents.extend(draw(st.lists(CHUNKS, max_size=3)))
    return made


@st.composite
def requests(draw):
    """Any request, or a right one with a part exchanged."""
    request = (
        sums()
        if draw(st.booleans())
        else pb.ModelInferRequest(model_name=draw(NAMES), id=draw(NAMES))
    )
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=3)):
        change(draw, request)
    return request


def add_input(draw, request):
    tensor = request.inputs.add(
        name=draw(NAMES), datatype=draw(TYPES), shape=draw(st.lists(INTEGERS, max_size=5))
    )
    if draw(st.booleans()):
        tensor.contents.CopyFrom(draw(contents()))


def change_input(draw, request):
    if request.inputs:
        tensor = draw(st.sampled_from(list(request.inputs)))
        if draw(st.booleans()):
            tensor.shape[:] = draw(st.lists(INTEGERS, max_size=4))
        if draw(st.booleans()):
            tensor.datatype = draw(TYPES)
        if draw(st.booleans()):
            tensor.parameters[draw(PARAMETER_NAMES)].CopyFrom(draw(PARAMETERS))


def add_raw(draw, request):
    request.raw_input_contents.append(draw(CHUNKS))


def drop_raw(draw, request):
    if request.raw_input_contents:
        request.raw_input_contents.pop(draw(st.integers(0, len(request.raw_input_contents) - 1)))


def add_output(draw, request):
    output = request.outputs.add(name=draw(NAMES))
    if draw(st.booleans()):
        output.parameters[draw(PARAMETER_NAMES)].CopyFrom(draw(PARAMETERS))


def add_parameter(draw, request):
    value = draw(PARAMETERS)
    # A timeout that is over is a right answer of its own, tested elsewhere.
    name = draw(PARAMETER_NAMES.filter(lambda name: name != "timeout"))
    request.parameters[name].CopyFrom(value)


def change_version(draw, request):
    request.model_version = draw(
        st.one_of(
            st.sampled_from(["1", "0", "-1", "01", "1e3", "9" * 4000, "١"]), st.text(max_size=5)
        )
    )


CHANGES = [add_input, change_input, add_raw, drop_raw, add_output, add_parameter, change_version]


@pytest.fixture(scope="module")
def channel(tensor_server):
    with grpc.insecure_channel(tensor_server.address) as made:
        yield made


def check(status, text):
    assert status in ALLOWED, (status, text)
    assert "Traceback" not in text
    assert ".onnx" not in text
    assert "/tmp" not in text


@BOUNDED
@given(request=requests())
def test_any_request_has_a_right_answer(channel, request):
    infer = channel.unary_unary(f"{SERVICE}/ModelInfer", pb.ModelInferRequest.SerializeToString)
    status, _, text = code(infer, request)
    check(status, text)


@BOUNDED
@given(
    data=st.binary(max_size=120),
    method=st.sampled_from(["ModelInfer", "ModelMetadata", "ModelConfig", "RepositoryIndex"]),
)
def test_any_bytes_have_a_right_answer(channel, data, method):
    status, _, text = code(channel.unary_unary(f"{SERVICE}/{method}"), data)
    check(status, text)


@BOUNDED
@given(request=requests(), where=st.integers(0, 2000), byte=st.integers(0, 255))
def test_a_damaged_request_has_a_right_answer(channel, request, where, byte):
    data = bytearray(request.SerializeToString())
    if data:
        data[where % len(data)] = byte
    status, _, text = code(channel.unary_unary(f"{SERVICE}/ModelInfer"), bytes(data))
    # A damaged parameter may well be a timeout.
    if status != "DEADLINE_EXCEEDED":
        check(status, text)


@BOUNDED
@given(
    batch=st.lists(
        st.one_of(
            requests().map(lambda request: request.SerializeToString()), st.binary(max_size=40)
        ),
        max_size=6,
    )
)
def test_a_stream_survives_anything(channel, batch):
    stream = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
    )
    right = sums(id="right").SerializeToString()
    replies = list(stream(iter([*batch, right]), timeout=30))
    assert len(replies) == len(batch) + 1
    assert replies[-1].infer_response.id == "right"
    assert not replies[-1].error_message
    assert not any("the server failed" in reply.error_message for reply in replies)


@BOUNDED
@given(
    key=st.from_regex(r"[a-z][a-z0-9_-]{0,8}-bin", fullmatch=True),
    value=st.binary(max_size=60),
    given_id=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
)
def test_any_metadata_is_borne(tensor_server, key, value, given_id):
    with stub(tensor_server.address) as calls:
        metadata = (
            (key, value),
            ("x-request-id", given_id.strip()),
            ("traceparent", given_id.strip()),
        )
        assert code(calls.ServerLive, pb.ServerLiveRequest(), metadata=metadata)[0] == "OK"


def test_the_server_is_there_afterwards(tensor_server):
    with stub(tensor_server.address) as calls:
        assert code(calls.ModelInfer, sums())[0] == "OK"
        assert tensor_server.models.find("sums", 0, None).batcher.statistics().admitted == 0
