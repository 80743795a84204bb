from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
from engine_runs import assert_stops, image, wrong_runs
from onnx import TensorProto, helper

from serving.card import read_card
from serving.engines import Plan, Stop, Stopped, TensorSpec
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import RepositoryError

pytest.importorskip("openvino")
from serving.engines.openvino import OpenVinoEngine


@pytest.mark.parametrize("name", ["colours", "maps"])
def test_results_are_those_of_onnxruntime_at_every_size(repository, name):
    card = read_card(repository / name / "1")
    engine, other = OpenVinoEngine(card, Plan(2), exact=True), OnnxRuntimeEngine(card)
    assert engine.precision == "fp32"
    assert engine.description.endswith(" CPU fp32")
    assert engine.inputs == (TensorSpec("image", "uint8", (-1, -1, -1, 3)),)
    assert [(spec.name, spec.dtype) for spec in engine.outputs] == [
        (spec.name, spec.dtype) for spec in other.outputs
    ]
    for height, width, count in ((24, 40, 1), (9, 8, 2), (24, 40, 3)):
        batch = image(height, width, count)
        found, expected = engine.run({"image": batch}, Stop()), other.run({"image": batch})
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key].dtype == values.dtype
            np.testing.assert_allclose(found[key], values, atol=1e-5)
    engine.close()


def test_outputs_that_the_kind_does_not_promise_are_not_computed(tmp_path):
    folder = tiny_models.export(tmp_path)
    made = tiny_models.graph("segmenter")
    made.graph.output.append(
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["a", "b", "c", 3])
    )
    tiny_models.save_graph(folder, made)
    engine = OpenVinoEngine(read_card(folder), Plan())
    assert {spec.name for spec in engine.outputs} == {"mask", "scores", "confidence"}
    assert engine.run({"image": image()}).keys() == {"mask", "scores", "confidence"}


def test_tensor_models_keep_every_output(tmp_path):
    engine = OpenVinoEngine(read_card(tiny_models.export(tmp_path, "sums", "tensor")), Plan())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = engine.run({"x": x, "y": x})
    assert outputs.keys() == {"sum", "twice"}
    np.testing.assert_array_equal(outputs["sum"], 2 * x)


def test_runs_of_several_threads_do_not_mix(repository):
    engine = OpenVinoEngine(read_card(repository / "colours" / "1"), Plan(2), exact=True)
    assert wrong_runs(engine, 8) == []


def products(steps):
    """``y = x @ x @ x ...`` of [N,256,256]."""
    names = ["x", *(f"t{step}" for step in range(steps - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "x"], [b]) for a, b in itertools.pairwise(names)]
    return tiny_models.small_graph(nodes, ["N", 256, 256])


def test_a_run_is_stopped_from_another_thread(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    tiny_models.save_graph(folder, products(400))
    engine = OpenVinoEngine(read_card(folder), Plan(), exact=True)
    x = np.full((4, 256, 256), 1 / 256, np.float32)
    assert_stops(engine, {"x": x})
    np.testing.assert_allclose(engine.run({"x": x[:1]})["y"], x[:1], rtol=1e-3)


def test_a_stop_between_the_look_and_the_start_ends_the_run(repository, monkeypatch):
    engine = OpenVinoEngine(read_card(repository / "colours" / "1"), Plan())
    calls = []

    class Request:
        def start_async(self, inputs, share_inputs):
            stop.request()
            calls.append("start")

        def cancel(self):
            calls.append("cancel")

        def wait(self):
            assert calls[-2:] == ["cancel", "cancel"]
            raise RuntimeError("Infer Request was canceled")

    monkeypatch.setattr(
        engine,
        "_compiled",
        type("Compiled", (), {"create_infer_request": lambda self: Request()})(),
    )
    stop = Stop()
    with pytest.raises(Stopped):
        engine.run({"image": image()}, stop)


def test_a_graph_that_does_not_load(tmp_path):
    folder = tiny_models.export(tmp_path)
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RepositoryError, match="OpenVINO does not load"):
        OpenVinoEngine(read_card(folder), Plan())


@pytest.mark.parametrize(
    ("plan", "hint", "streams", "threads"),
    [(Plan(2, 3), "THROUGHPUT", 2, 6), (Plan(1, 2), "LATENCY", 1, 2)],
)
def test_streams_and_threads_are_those_of_the_plan(repository, plan, hint, streams, threads):
    engine = OpenVinoEngine(read_card(repository / "colours" / "1"), plan)
    told = {
        name: engine._compiled.get_property(name)
        for name in ("PERFORMANCE_HINT", "ENABLE_CPU_PINNING")
    }
    assert str(told["PERFORMANCE_HINT"]).endswith(hint)
    assert not told["ENABLE_CPU_PINNING"]
    assert engine._compiled.get_property("INFERENCE_NUM_THREADS") == min(
        threads, len(os.sched_getaffinity(0))
    )
    assert engine._compiled.get_property("NUM_STREAMS") == streams


def test_models_load_at_once(repository):
    """In a process of its own: the library's tables are filled at their first use."""
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from serving.card import read_card\n"
        "from serving.engines import Plan\n"
        "from serving.engines.openvino import OpenVinoEngine\n"
        "sys.setswitchinterval(1e-6)\n"
        "cards = [read_card(Path(sys.argv[1], name, '1')) for name in ('colours', 'maps') * 2]\n"
        "loaded = []\n"
        "def load(card): loaded.append(OpenVinoEngine(card, Plan()))\n"
        "threads = [threading.Thread(target=load, args=(card,), daemon=True) for card in cards]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join(60)\n"
        "print(len(loaded))\n"
    )
    command = [sys.executable, "-c", code, str(repository)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=90).stdout == "4\n"
