"""The Open Inference Protocol where NVIDIA's client does not go: typed contents, lies, fuzz,
control, drain.
"""

from __future__ import annotations

import io
import time

import grpc
import numpy as np
import oip_calls
import pytest
import tiny_models
from configs import configured
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from oip_calls import X, Y, code, outputs, stub, sums
from PIL import Image

from serving.client import Client
from wsss.inference import open_inference_pb2 as pb


@pytest.fixture
def calls(tensor_server):
    with stub(tensor_server.address) as made:
        yield made


@pytest.mark.parametrize("raw", [True, False])
def test_raw_and_typed_contents_give_the_same(calls, raw):
    reply = calls.ModelInfer(sums(raw, id="a"))
    assert (reply.id, reply.model_name, reply.model_version) == ("a", "sums", "1")
    found = outputs(reply)
    np.testing.assert_array_equal(found["sum"], X + Y)
    np.testing.assert_array_equal(found["twice"], 2 * X)


def test_outputs_come_as_asked_for(calls):
    request = sums()
    for name in ("twice", "sum"):
        request.outputs.add(name=name)
    assert [output.name for output in calls.ModelInfer(request).outputs] == ["twice", "sum"]
    del request.outputs[:]
    request.outputs.add(name="sum").parameters["classification"].int64_param = 1
    (raw,) = calls.ModelInfer(request).raw_output_contents
    mask = pb.ModelInferRequest(model_name="colours", raw_input_contents=[bytes(192)])
    mask.inputs.add(name="image", datatype="UINT8", shape=(1, 8, 8, 3))
    mask.outputs.add(name="mask").parameters["classification"].int64_param = 1
    assert code(calls.ModelInfer, mask)[0] == "INVALID_ARGUMENT"
    assert raw == b"".join(
        len(text).to_bytes(4, "little") + text for text in (b"3.000000:2", b"6.000000:2")
    )


def test_the_online_mask_is_the_one_of_the_other_protocol(calls, tensor_server, pixels):
    file = io.BytesIO()
    Image.fromarray(np.tile(pixels, (9, 9, 1))).save(file, "PNG")
    request = pb.ModelInferRequest(model_name="colours")
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        file.getvalue()
    )
    found = outputs(calls.ModelInfer(request))
    with Client(tensor_server.address) as client:
        ours = client.segment(file.getvalue(), "colours", confidence=True)
    assert found["mask"].shape == (1, 369, 513)
    np.testing.assert_array_equal(found["mask"][0], ours.mask)
    np.testing.assert_array_equal(found["confidence"][0], ours.confidence)
    np.testing.assert_allclose(found["scores"][0], list(ours.scores.values()))


def test_a_batch_of_images(calls):
    batch = np.random.default_rng(1).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    request = pb.ModelInferRequest(model_name="colours", raw_input_contents=[batch.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=batch.shape)
    found = outputs(calls.ModelInfer(request))["mask"]
    np.testing.assert_array_equal(
        found, np.stack([tiny_models.expected_mask(image) for image in batch])
    )


def altered(change, raw=True):
    request = sums(raw)
    change(request)
    return request


def shape(*sizes):
    def change(request):
        request.inputs[0].shape[:] = sizes

    return change


def parameter(name, **value):
    def change(request):
        request.parameters[name].CopyFrom(pb.InferParameter(**value))

    return change


LIES = {
    "negative side": altered(shape(-2, 3)),
    "negative sides": altered(shape(-2, -3)),
    "overflow": altered(shape(2**62, 3)),
    "product beyond 64 bits": altered(shape(2**40, 2**40)),
    "empty batch": altered(shape(0, 3)),
    "no axes": altered(shape()),
    "too many axes": altered(shape(*[1] * 5000)),
    "too few bytes": altered(lambda r: r.raw_input_contents.__setitem__(0, b"1234")),
    "too many bytes": altered(lambda r: r.raw_input_contents.__setitem__(0, bytes(10_000))),
    "fewer raw contents": altered(lambda r: r.raw_input_contents.__delitem__(0)),
    "more raw contents": altered(lambda r: r.raw_input_contents.append(b"")),
    "raw and typed": altered(lambda r: r.inputs[0].contents.fp32_contents.append(1.0)),
    "typed of another type": altered(
        lambda r: r.inputs[0].contents.int_contents.append(1), raw=False
    ),
    "too few typed": altered(lambda r: r.inputs[0].contents.fp32_contents.pop(), raw=False),
    "BYTES for numbers": altered(lambda r: setattr(r.inputs[0], "datatype", "BYTES")),
    "made-up type": altered(lambda r: setattr(r.inputs[0], "datatype", "FP8")),
    "an input twice": altered(lambda r: setattr(r.inputs[1], "name", "x")),
    "an output twice": altered(lambda r: [r.outputs.add(name="sum") for _ in range(2)]),
    "three inputs": altered(lambda r: r.inputs.add(name="z")),
    "no inputs": pb.ModelInferRequest(model_name="sums"),
    "priority of text": altered(parameter("priority", string_param="high")),
    "negative timeout": altered(parameter("timeout", int64_param=-1)),
    "empty parameter": altered(lambda r: r.parameters["priority"].SetInParent()),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_invalid_arguments(calls, name):
    status, reason, text = code(calls.ModelInfer, LIES[name])
    assert (status, reason) == ("INVALID_ARGUMENT", "INVALID_FIELD"), text
    assert len(text) < 500
    assert code(calls.ModelInfer, sums())[0] == "OK"


def encoded_request(raw=None, contents=None, shape=(1,)):
    request = pb.ModelInferRequest(
        model_name="colours", raw_input_contents=[] if raw is None else [raw]
    )
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=shape)
    if contents is not None:
        tensor.contents.bytes_contents.extend(contents)
    return request


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (encoded_request(b"\xff\xff\xff\xff1234"), "INVALID_FIELD"),
        (encoded_request(b"\x00\x00"), "INVALID_FIELD"),
        (encoded_request(b""), "INVALID_FIELD"),
        (encoded_request(bytes(8)), "INVALID_FIELD"),
        (encoded_request(bytes(4)), "IMAGE_UNREADABLE"),
        (encoded_request(contents=[b"no image"]), "IMAGE_UNREADABLE"),
        (encoded_request(contents=[b"a", b"b"]), "INVALID_FIELD"),
        (encoded_request(contents=[b"a"], shape=(1, -1, -1)), "INVALID_FIELD"),
        (encoded_request(contents=[b"a", b"b"], shape=(2,)), "INVALID_FIELD"),
    ],
)
def test_lying_lengths_of_bytes(calls, request_, reason):
    status, found, _ = code(calls.ModelInfer, request_)
    assert (status, found) == ("INVALID_ARGUMENT", reason)


def test_pixels_beyond_the_models_sides_are_refused_with_the_limit(calls):
    for sides in ((4, 4), (8, 300)):
        request = pb.ModelInferRequest(
            model_name="colours", raw_input_contents=[bytes(sides[0] * sides[1] * 3)]
        )
        request.inputs.add(name="image", datatype="UINT8", shape=(1, *sides, 3))
        status, reason, text = code(calls.ModelInfer, request)
        assert (status, reason) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE")
        assert "sides of 8 to 256" in text


def test_malformed_messages_are_invalid_arguments(tensor_server):
    messages = [
        b"\x00",
        b"\xff" * 40,
        b"\x3a\xff",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05abc",
        b"\x0b",
        b"\x3f",
        b"\x09\x01",
        b"\x0a\x01\xff",
        b"\x08" * 20_001,
        b"\x3a\x00" * 10_001,
    ]
    with grpc.insecure_channel(tensor_server.address) as channel:
        for message in messages:
            for name in ("ModelInfer", "ModelMetadata", "ModelStatistics"):
                status, _, text = code(
                    channel.unary_unary(f"/inference.GRPCInferenceService/{name}"), message
                )
                accepted = name != "ModelInfer" and status in ("OK", "NOT_FOUND")
                assert accepted or status == "INVALID_ARGUMENT", (message[:20], text)


def test_a_malformed_message_on_a_stream_leaves_it_open(tensor_server):
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    with grpc.insecure_channel(tensor_server.address) as channel:
        call = channel.stream_stream(
            method, response_deserializer=pb.ModelStreamInferResponse.FromString
        )
        replies = list(
            call(
                iter(
                    [
                        sums(id="1").SerializeToString(),
                        b"\xff\xff",
                        sums(id="3").SerializeToString(),
                    ]
                )
            )
        )
    assert [reply.infer_response.id for reply in replies] == ["1", "", "3"]
    assert [bool(reply.error_message) for reply in replies] == [False, True, False]


def test_metadata_that_is_no_text_and_thousands_of_parameters(calls):
    request = sums()
    for number in range(5000):
        request.parameters[f"p{number}"].string_param = "x"
    status, _, _ = code(
        calls.ModelInfer, request, metadata=(("junk-bin", b"\xff\xfe\x00"), ("x-request-id", "a b"))
    )
    assert status == "OK"
    for number in range(10_000):
        request.parameters[f"p{number}"].string_param = "x"
    assert code(calls.ModelInfer, request)[0] == "INVALID_ARGUMENT"


def test_infinite_and_undefined_numbers_pass_through_a_tensor_model(calls):
    values = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    request = pb.ModelInferRequest(model_name="sums", raw_input_contents=[values.tobytes()] * 2)
    for name in ("x", "y"):
        request.inputs.add(name=name, datatype="FP32", shape=values.shape)
    np.testing.assert_array_equal(outputs(calls.ModelInfer(request))["sum"], values)


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_names_of_any_length_are_told_short(calls, letter):
    name = letter * 100_000
    assert code(calls.ModelInfer, pb.ModelInferRequest(model_name=name))[:2] == (
        "NOT_FOUND",
        "MODEL_NOT_FOUND",
    )
    for request in (
        altered(lambda r: setattr(r.inputs[0], "name", name)),
        altered(lambda r: r.outputs.add(name=name)),
    ):
        status, reason, text = code(calls.ModelInfer, request)
        assert (status, reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert len(text) < 2000
    long_type = altered(lambda r: setattr(r.inputs[0], "datatype", name))
    assert code(calls.ModelInfer, long_type)[0] == "INVALID_ARGUMENT"
    assert (
        code(calls.ModelMetadata, pb.ModelMetadataRequest(name="sums", version=name))[0]
        == "INVALID_ARGUMENT"
    )


def test_a_stream_answers_in_order_and_beyond_its_depth(calls):
    requests = [sums(id=str(number)) for number in range(100)]
    assert [reply.infer_response.id for reply in calls.ModelStreamInfer(iter(requests))] == [
        r.id for r in requests
    ]


def test_too_many_streams_are_refused(repository, run_server):
    with (
        run_server(configured(repository, limits__max_streams=1)) as server,
        stub(server.address) as calls,
    ):
        requests = iter(lambda: time.sleep(0.05), 1)
        first = calls.ModelStreamInfer(
            pb.ModelInferRequest(id="1") for _ in range(10**9) if not next(requests)
        )
        assert next(first).error_message
        status, reason, _ = code(
            lambda request, timeout: list(calls.ModelStreamInfer(iter([request]))), sums()
        )
        assert (status, reason) == ("RESOURCE_EXHAUSTED", "STREAMS_FULL")
        first.cancel()


def test_deadlines(calls):
    request = sums()
    request.parameters["timeout"].uint64_param = 1
    assert code(calls.ModelInfer, request)[0] == "DEADLINE_EXCEEDED"
    request.parameters["timeout"].uint64_param = 10**7
    request.parameters["priority"].uint64_param = 2
    assert code(calls.ModelInfer, request)[0] == "OK"


def test_models_are_loaded_and_unloaded_where_that_is_allowed(tmp_path, run_server):
    for name in ("sums", "others"):
        tiny_models.export(tmp_path, name, "tensor")
    with (
        run_server(configured(tmp_path, models__control="explicit")) as server,
        stub(server.address) as calls,
    ):
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watched = health.Watch(health_pb2.HealthCheckRequest(service="models/sums"))
            if not calls.ModelReady(pb.ModelReadyRequest(name="sums")).ready:
                calls.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="sums"))
            assert code(calls.ModelInfer, sums())[0] == "OK"
            calls.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="sums"))
            assert code(calls.ModelInfer, sums())[0] in ("NOT_FOUND", "UNAVAILABLE")
            states = {
                model.name: model
                for model in calls.RepositoryIndex(pb.RepositoryIndexRequest()).models
            }
            assert states["sums"].state == "UNAVAILABLE"
            assert states["sums"].reason
            ready = calls.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
            assert "sums" not in {model.name for model in ready}
            calls.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="sums"))
            assert code(calls.ModelInfer, sums())[0] == "OK"
            seen = [next(watched).status for _ in range(2)]
            assert health_pb2.HealthCheckResponse.NOT_SERVING in seen
            watched.cancel()
        load = calls.RepositoryModelLoad
        assert code(load, pb.RepositoryModelLoadRequest(model_name="no"))[0] == "NOT_FOUND"
        with_files = pb.RepositoryModelLoadRequest(model_name="sums")
        with_files.parameters["file:1/model.onnx"].bytes_param = b"graph"
        assert code(load, with_files)[0] == "INVALID_ARGUMENT"
        (tmp_path / "sums" / "1" / "model.onnx").write_bytes(b"damaged")
        status, reason, text = code(load, pb.RepositoryModelLoadRequest(model_name="sums"))
        assert (status, reason) == ("FAILED_PRECONDITION", "MODEL_REFUSED")
        assert str(tmp_path) not in text
        assert code(calls.ModelInfer, sums())[0] == "OK", "the old one is served still"


def test_reflection_shows_the_service_and_its_messages(tensor_server):
    with grpc.insecure_channel(tensor_server.address) as channel:
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="inference.GRPCInferenceService"
        )
        (file,) = next(reflect(iter([request]))).file_descriptor_response.file_descriptor_proto
    described = descriptor_pb2.FileDescriptorProto.FromString(file)
    assert described.package == "inference"
    assert len(described.service[0].method) == 12


def test_both_services_and_every_model_have_their_health(tensor_server):
    names = (
        "",
        "wsss.v1.Segmentation",
        "inference.GRPCInferenceService",
        "models/colours",
        "models/maps",
        "models/sums",
    )
    with grpc.insecure_channel(tensor_server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in names:
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
            watched = health.Watch(health_pb2.HealthCheckRequest(service=name))
            assert next(watched).status == 1
            watched.cancel()


def test_limits_are_told(calls, tensor_server):
    extensions = calls.ServerMetadata(pb.ServerMetadataRequest()).extensions
    (limits,) = (text for text in extensions if text.startswith("limits("))
    assert "image_pixels=50000000" in limits
    assert "queue=64" in limits
    properties = calls.ModelMetadata(pb.ModelMetadataRequest(name="colours")).properties
    assert properties["max_side"] == "256"
    assert properties["labels"] == "background,red,green,blue"
    assert oip_calls.X.shape[0] < int(properties["max_batch"])


def test_the_doubt_of_an_image_and_of_a_batch(tmp_path, run_server, pixels):
    tiny_models.export(tmp_path, doubt=True)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    expected = np.float32([[tiny_models.expected_doubt(pixels)]])
    with run_server(configured(tmp_path)) as started, stub(started.address) as calls:
        metadata = calls.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
        assert [tensor.name for tensor in metadata.outputs][-1] == "doubt"
        request = pb.ModelInferRequest(model_name="colours")
        request.inputs.add(
            name="image", datatype="BYTES", shape=[1]
        ).contents.bytes_contents.append(file.getvalue())
        np.testing.assert_allclose(outputs(calls.ModelInfer(request))["doubt"], expected, atol=1e-6)
        batch = pb.ModelInferRequest(model_name="colours")
        batch.inputs.add(name="image", datatype="UINT8", shape=(2, *pixels.shape))
        batch.raw_input_contents.append(np.stack([pixels, pixels // 2]).tobytes())
        doubts = outputs(calls.ModelInfer(batch))["doubt"]
        assert doubts.shape == (2, 1)
        np.testing.assert_allclose(doubts[:1], expected, atol=1e-6)
        assert doubts[1] > doubts[0]
