from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import replace

import fake_gpu
import numpy as np
import pytest
import tiny_models
from engine_runs import image, wrong_runs

from serving.card import read_card
from serving.config import EngineConfig
from serving.engines import Plan, Stop, Stopped, TensorSpec
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.tensorrt import TensorRtEngine
from serving.errors import EngineError, OutOfMemory, OutputError

BOTH = pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
PLAN = Plan(workers=2, max_batch=2, sizes=((24, 40),))


@pytest.fixture
def card(repository):
    return read_card(repository / "colours" / "1")


@pytest.fixture
def config(tmp_path):
    return EngineConfig("tensorrt", cache=tmp_path / "cache")


def assert_same(engine, card, batch):
    found, expected = engine.run({"image": batch}), OnnxRuntimeEngine(card).run({"image": batch})
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@BOTH
@pytest.mark.parametrize("kind", ["colours", "maps"])
def test_results_are_those_of_onnxruntime(monkeypatch, repository, config, version, kind):
    trt, cuda = fake_gpu.install(monkeypatch, version)
    card = read_card(repository / kind / "1")
    engine = TensorRtEngine(card, PLAN, config)
    assert engine.description == f"tensorrt {version} tf32 on Fake H100"
    assert engine.inputs == (TensorSpec("image", "uint8", (-1, -1, -1, 3)),)
    assert [spec.name for spec in engine.outputs] == [
        spec.name for spec in OnnxRuntimeEngine(card).outputs
    ]
    # Up, down and up again, through both profiles; five images are three runs.
    for height, width, count in (
        (24, 40, 1),
        (64, 80, 2),
        (24, 40, 2),
        (8, 9, 1),
        (24, 40, 5),
        (256, 256, 1),
    ):
        assert_same(engine, card, image(height, width, count, seed=height + count))
    assert trt.builds == 1
    engine.close()
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_profiles_are_those_of_the_sizes_and_of_the_card(monkeypatch, card, config):
    trt, _ = fake_gpu.install(monkeypatch)
    TensorRtEngine(card, PLAN, replace(config, memory_mb=64, precision="fp32"))
    exact, general = (profile.shapes["image"] for profile in trt.settings.profiles)
    assert exact == [[1, 24, 40, 3], [2, 24, 40, 3], [2, 24, 40, 3]]
    assert general == [[1, 8, 8, 3], [2, 24, 40, 3], [2, 256, 256, 3]]
    assert trt.settings.pools == {trt.MemoryPoolType.WORKSPACE: 64 << 20}
    assert trt.settings.cleared == [trt.BuilderFlag.TF32]


@BOTH
def test_the_half_precision_graph_is_used_if_there_is_one(monkeypatch, tmp_path, config, version):
    trt, _ = fake_gpu.install(monkeypatch, version)
    folder = tiny_models.export(tmp_path, "colours")
    half = tiny_models.graph("segmenter")
    half.doc_string = "half"
    (folder / "model.fp16.onnx").write_bytes(half.SerializeToString())
    raw = json.loads((folder / "model.json").read_text())
    raw["sha256"]["model.fp16.onnx"] = hashlib.sha256(half.SerializeToString()).hexdigest()
    (folder / "model.json").write_text(json.dumps(raw | {"half_graph": "model.fp16.onnx"}))
    card = read_card(folder)
    assert " fp16 on " in TensorRtEngine(card, PLAN, config).description
    assert " fp32 on " in TensorRtEngine(card, PLAN, replace(config, precision="fp32")).description
    assert trt.builds == 2
    assert not hasattr(trt.BuilderFlag, "FP16") or version.startswith("10.")


def test_an_engine_is_built_once_and_again_when_anything_it_depends_on_changes(
    monkeypatch, card, config, tmp_path
):
    def builds(plan=PLAN, card=card, config=config, **device):
        version = device.pop("version", "10.16.1.11")
        trt, _ = fake_gpu.install(monkeypatch, version, **device)
        TensorRtEngine(card, plan, config).close()
        return trt.builds

    assert (builds(), builds()) == (1, 0)
    other = tiny_models.export(
        tmp_path, "colours", changes={"thresholds": {"background": None, "score": 0.4}}
    )
    assert builds(card=read_card(other)) == 0
    raw = json.loads((other / "model.json").read_text())
    graph = tiny_models.graph("segmenter")
    graph.doc_string = "another"
    (other / "model.onnx").write_bytes(graph.SerializeToString())
    raw["sha256"]["model.onnx"] = hashlib.sha256(graph.SerializeToString()).hexdigest()
    (other / "model.json").write_text(json.dumps(raw))
    assert builds(card=read_card(other)) == 1
    assert builds(version="10.17.0.1") == 1
    assert builds(version="11.4.0.106") == 1
    assert builds(name=b"Fake L4") == 1
    assert builds(plan=replace(PLAN, sizes=((32, 32),))) == 1
    assert builds(plan=replace(PLAN, max_batch=4)) == 1
    assert builds(config=replace(config, precision="fp32")) == 1
    assert builds(config=replace(config, memory_mb=32)) == 1
    driver = tmp_path / "version"
    driver.write_text("580.65\n")
    monkeypatch.setattr("serving.engines.cuda.DRIVER", driver)
    assert (builds(), builds()) == (1, 0)
    # What it does not depend on.
    assert builds(plan=replace(PLAN, workers=1)) == 0


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text", "another key"])
def test_a_damaged_cache_is_built_again(monkeypatch, card, config, caplog, harm):
    trt, _ = fake_gpu.install(monkeypatch)
    TensorRtEngine(card, PLAN, config)
    (path,) = config.cache.glob("*.plan")
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    other = data.replace(b'"capability": "9.0"', b'"capability": "8.0"')
    path.write_bytes(
        {"cut": data[:-5], "flipped": flipped, "empty": b"", "text": b"[]\n", "another key": other}[
            harm
        ]
    )
    assert_same(TensorRtEngine(card, PLAN, config), card, image())
    assert trt.builds == 2
    assert "is damaged or was built from something else; building it again" in caplog.text
    assert path.read_bytes() == data


def test_a_plan_that_the_library_refuses_is_built_again(monkeypatch, card, config, caplog):
    trt, _ = fake_gpu.install(monkeypatch)
    TensorRtEngine(card, PLAN, config)
    refusals = iter([True])
    original = fake_gpu.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        fake_gpu.Runtime,
        "deserialize_cuda_engine",
        lambda runtime, plan: None if next(refusals, False) else original(runtime, plan),
    )
    assert_same(TensorRtEngine(card, PLAN, config), card, image())
    assert trt.builds == 2
    assert "TensorRT does not load" in caplog.text


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, card, config, caplog):
    trt, _ = fake_gpu.install(monkeypatch)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.engines.cache.write_atomic", full)
    assert_same(TensorRtEngine(card, PLAN, config), card, image())
    assert "cannot be written (No space left on device)" in caplog.text
    assert list(config.cache.iterdir()) == []
    assert trt.builds == 1


def test_timings_are_kept_for_each_device_and_version(monkeypatch, card, config):
    trt, _ = fake_gpu.install(monkeypatch)
    TensorRtEngine(card, PLAN, config)
    assert trt.timings == b""
    TensorRtEngine(card, replace(PLAN, max_batch=3), config)
    assert trt.timings == b"+"
    other, _ = fake_gpu.install(monkeypatch, name=b"Fake L4")
    TensorRtEngine(card, PLAN, config)
    assert other.timings == b""
    assert len(list(config.cache.glob("timings-*.cache"))) == 2
    assert config.cache.stat().st_mode & 0o077 == 0


def test_a_build_tells_how_far_it_is_and_can_be_ended(monkeypatch, card, config, caplog):
    trt, _ = fake_gpu.install(monkeypatch)
    monkeypatch.setattr("serving.engines.tensorrt_build.SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    stop = Stop()
    original = fake_gpu.Settings.add_optimization_profile

    def ask(settings, profile):
        original(settings, profile)
        stop.request()

    monkeypatch.setattr(fake_gpu.Settings, "add_optimization_profile", ask)
    with pytest.raises(Stopped):
        TensorRtEngine(card, PLAN, config, stop)
    assert trt.builds == 0
    assert list(config.cache.iterdir()) == []
    monkeypatch.setattr(fake_gpu.Settings, "add_optimization_profile", original)
    TensorRtEngine(card, PLAN, config, Stop())
    assert "colours: TensorRT builds, Building Engine, step 3 of 3" in caplog.text
    assert "TensorRT engine built in" in caplog.text


def test_a_graph_that_tensorrt_does_not_take(monkeypatch, tmp_path, config, caplog):
    fake_gpu.install(monkeypatch)
    folder = tiny_models.export(tmp_path, "colours")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="TensorRT does not take"):
        TensorRtEngine(read_card(folder), PLAN, config)
    assert "TensorRT: cannot parse" in caplog.text
    monkeypatch.setattr(fake_gpu.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(EngineError, match="TensorRT cannot build"):
        TensorRtEngine(read_card(tiny_models.export(tmp_path, "other")), PLAN, config)


def test_runs_of_several_threads_do_not_mix(monkeypatch, card, config):
    fake_gpu.install(monkeypatch)
    engine = TensorRtEngine(card, PLAN, config)
    assert wrong_runs(engine, 6) == []


def test_a_device_without_room_for_a_run(monkeypatch, card, config):
    _, cuda = fake_gpu.install(monkeypatch)
    engine = TensorRtEngine(card, replace(PLAN, workers=1), config)
    # Room for the input of the large image, and not for its outputs.
    cuda.limit = 256 * 256 * 3 + 1000
    with pytest.raises(OutOfMemory) as caught:
        engine.run({"image": image(256, 256)})
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
    assert cuda.memory == {}
    assert_same(engine, card, image(64, 64))
    cuda.limit = 100
    with pytest.raises(OutOfMemory):
        engine.run({"image": image(128, 128)})


def test_a_device_without_room_for_the_contexts(monkeypatch, card, config):
    trt, cuda = fake_gpu.install(monkeypatch)
    trt.max_contexts = 1
    with pytest.raises(OutOfMemory, match="another TensorRT context"):
        TensorRtEngine(card, PLAN, config)
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_a_stop_prevents_a_run_or_drops_its_result(monkeypatch, card, config):
    _, cuda = fake_gpu.install(monkeypatch)
    engine = TensorRtEngine(card, PLAN, config)
    stop = Stop()
    stop.request()
    with pytest.raises(Stopped):
        engine.run({"image": image()}, stop)
    assert cuda.memory == {}
    during = Stop()
    original = cuda.cudaStreamSynchronize
    monkeypatch.setattr(
        cuda, "cudaStreamSynchronize", lambda stream: (during.request(), original(stream))[1]
    )
    with pytest.raises(Stopped):
        engine.run({"image": image()}, during)


def test_shapes_beyond_every_profile_are_refused(monkeypatch, card, config):
    fake_gpu.install(monkeypatch)
    engine = TensorRtEngine(card, PLAN, config)
    with pytest.raises(OutputError, match=r"image \[1, 8, 8, 3\] to \[2, 256, 256, 3\]"):
        engine.run({"image": image(300, 40)})


def test_a_tensor_model_of_fixed_axes_has_one_profile(monkeypatch, tmp_path, config):
    trt, _ = fake_gpu.install(monkeypatch)
    card = read_card(tiny_models.export(tmp_path, "sums", "tensor"))
    engine = TensorRtEngine(card, replace(PLAN, max_batch=4), config)
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(engine.run({"x": x, "y": x})["sum"], 2 * x)
    assert trt.settings.profiles[0].shapes == {
        name: [[1, 3], [4, 3], [4, 3]] for name in ("x", "y")
    }


@pytest.mark.parametrize(
    ("version", "devices", "told"),
    [
        ("9.3.0", 1, "TensorRT 9.3.0\nexpected: TensorRT 10 or 11"),
        ("10.16.1", 0, "GPU 0 cannot be used: .*NoDevice"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, card, config, version, devices, told):
    fake_gpu.install(monkeypatch, version, devices=devices)
    with pytest.raises(EngineError, match=told):
        TensorRtEngine(card, PLAN, config)


def test_without_the_library(monkeypatch, card, config):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        EngineError, match=r"TensorRT does not load.*\n.*\ntry: pip install 'wsss\[tensorrt\]'"
    ):
        TensorRtEngine(card, PLAN, config)
