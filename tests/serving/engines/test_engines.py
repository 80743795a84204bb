from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import tiny_models
from engine_runs import assert_stops
from onnx import TensorProto, helper, save

from serving.card import read_card
from serving.engines import Stop, Stopped, TensorSpec
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import RepositoryError


def test_inputs_and_outputs_are_told(repository):
    engine = OnnxRuntimeEngine(read_card(repository / "colours" / "1"))
    assert engine.inputs == (TensorSpec("image", "uint8", (-1, -1, -1, 3)),)
    assert [(spec.name, spec.dtype, len(spec.shape)) for spec in engine.outputs] == [
        ("mask", "uint8", 3),
        ("scores", "float32", 2),
        ("confidence", "uint8", 3),
    ]
    engine.close()


def test_any_graph_with_a_batch_axis_is_a_tensor_model(tmp_path):
    card = read_card(tiny_models.export(tmp_path, "sums", "tensor"))
    assert (card.classes, card.labels, card.max_side) == ((), (), 0)
    engine = OnnxRuntimeEngine(card)
    assert [spec.name for spec in engine.inputs] == ["x", "y"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = engine.run({"x": x, "y": x}, Stop())
    np.testing.assert_array_equal(outputs["sum"], 2 * x)
    np.testing.assert_array_equal(outputs["twice"], 2 * x)


def long_graph(steps: int):
    """``y = x @ w @ w ...``: as many products, each of which looks at the flag that ends a run."""
    info = helper.make_tensor_value_info
    names = ["x", *(f"t{step}" for step in range(steps - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "x"], [b]) for a, b in itertools.pairwise(names)]
    shape = ["N", 256, 256]
    made = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, shape)]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_run_is_stopped_from_another_thread(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    save(long_graph(3000), folder / "model.onnx")
    engine = OnnxRuntimeEngine(read_card(folder))
    x = np.full((4, 256, 256), 1 / 256, np.float32)
    assert_stops(engine, {"x": x})
    assert OnnxRuntimeEngine(read_card(folder)).inputs == engine.inputs


def test_a_fault_without_a_request_to_stop_stays_what_it_is(tmp_path):
    engine = OnnxRuntimeEngine(read_card(tiny_models.export(tmp_path, "sums", "tensor")))
    with pytest.raises(Exception, match=r"Required inputs|INVALID") as caught:
        engine.run({"z": np.zeros((1, 3), np.float32)}, Stop())
    assert not isinstance(caught.value, Stopped)


def test_a_tensor_card_needs_its_graph_and_hashes_only(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    raw = json.loads((folder / "model.json").read_text())
    for missing in ("graph", "sha256", "name"):
        (folder / "model.json").write_text(
            json.dumps({key: raw[key] for key in raw if key != missing})
        )
        with pytest.raises(RepositoryError, match=f"no field '{missing}'"):
            read_card(folder)
