from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engines import TensorSpec
from serving.errors import FieldError
from serving.rpc import tensors, wire
from wsss.inference import open_inference_pb2 as pb

NUMBERS = [datatype for datatype in tensors.DTYPES if datatype != "BYTES"]


def request(datatype, values, raw=True):
    """A request of one input ``x`` that holds an array."""
    message = pb.ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=values.shape)
    if raw:
        return wire.InferRequest(message, [memoryview(b"." + values.tobytes())[1:]])
    (field,) = (name for name, types in tensors.TYPED.items() if datatype in types)
    getattr(tensor.contents, field).extend(values.ravel().tolist())
    return wire.InferRequest(message, [])


def spec(datatype, *shape):
    return (TensorSpec("x", tensors.DTYPES[datatype], shape),)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_type_there_and_back(datatype, raw):
    values = np.array([[0, 1, 2], [3, 100, 7]]).astype(tensors.DTYPES[datatype])
    if datatype == "FP16" and not raw:
        with pytest.raises(FieldError, match="FP16 without raw contents"):
            tensors.read_inputs(
                wire.InferRequest(request(datatype, values).message, []), spec(datatype, -1, 3)
            )
        return
    found = tensors.read_inputs(request(datatype, values, raw), spec(datatype, -1, 3))["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype
    assert found.flags.aligned
    assert bytes(tensors.write_output(found)) == values.tobytes()


def test_typed_values_out_of_range_are_refused():
    for datatype, field, value in (
        ("INT8", "int_contents", 128),
        ("UINT16", "uint_contents", 65_536),
    ):
        message = pb.ModelInferRequest()
        tensor = message.inputs.add(name="x", datatype=datatype, shape=[1])
        getattr(tensor.contents, field).append(value)
        with pytest.raises(FieldError, match="out of"):
            tensors.read_inputs(wire.InferRequest(message, []), spec(datatype, -1))


def test_a_byte_that_is_no_truth_value_is_true():
    found = tensors.read_inputs(
        request("BOOL", np.array([0, 1, 2, 255], np.uint8)), spec("BOOL", -1)
    )["x"]
    assert found.tobytes() == b"\0\1\1\1"


def test_aligned_tensors_are_views_and_unaligned_ones_copies():
    data = np.arange(8, dtype=np.float32)
    base = data.__array_interface__["data"][0]
    for offset in (0, 2):
        message = pb.ModelInferRequest()
        message.inputs.add(name="x", datatype="FP32", shape=[7])
        view = memoryview(data.view(np.uint8))[offset : offset + 28]
        found = tensors.read_inputs(wire.InferRequest(message, [view]), spec("FP32", -1))["x"]
        assert (found.__array_interface__["data"][0] == base) == (offset == 0)
        assert found.tobytes() == bytes(view)


def test_outputs_that_lie_otherwise_in_memory_are_laid_out():
    turned = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert bytes(tensors.write_output(turned)) == np.ascontiguousarray(turned, "<f4").tobytes()


@given(raw=st.binary(max_size=64), count=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_lying_lengths_never_do_more_than_be_refused(raw, count):
    message = pb.ModelInferRequest()
    message.inputs.add(name="image", datatype="BYTES", shape=[1] * count)
    try:
        found = tensors.read_encoded(wire.InferRequest(message, [memoryview(raw)]), "image")
    except FieldError:
        return
    assert len(found).to_bytes(4, "little") + found == raw


def test_the_best_classes():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]], np.float32)
    named = tensors.classification(scores, 2, ("a", "b", "c"))
    assert named.tolist() == [
        [b"0.700000:1:b", b"0.200000:2:c"],
        [b"0.500000:0:a", b"0.500000:1:b"],
    ]
    assert tensors.classification(scores, 9, ()).shape == (2, 3)
    assert tensors.classification(scores, 1, ()).tolist() == [[b"0.700000:1"], [b"0.500000:0"]]
