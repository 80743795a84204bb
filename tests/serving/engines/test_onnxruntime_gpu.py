from __future__ import annotations

import sys
from dataclasses import replace

import fake_gpu
import numpy as np
import onnxruntime
import pytest
import tiny_models
from engine_runs import image
from fake_onnxruntime import FakeOnnxRuntime

from serving.card import read_card
from serving.config import EngineConfig
from serving.engines import Plan, Stop, Stopped
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.onnxruntime_gpu import OnnxRuntimeGpuEngine
from serving.errors import EngineError
from serving.repository.choice import choose_engine

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PLAN = Plan(workers=2, max_batch=2, sizes=((24, 40),))


@pytest.fixture
def card(repository):
    return read_card(repository / "colours" / "1")


@pytest.fixture
def gpu(monkeypatch):
    return fake_gpu.install(monkeypatch)


def config(name, tmp_path, **changes):
    return EngineConfig(name, cache=tmp_path / "cache", **changes)


def assert_same(engine, card, batch):
    found, expected = (
        engine.run({"image": batch}, Stop()),
        OnnxRuntimeEngine(card).run({"image": batch}),
    )
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_cuda_binds_inputs_and_outputs(monkeypatch, gpu, card, tmp_path):
    fake = FakeOnnxRuntime(monkeypatch)
    engine = OnnxRuntimeGpuEngine(card, PLAN, config("onnxruntime-cuda", tmp_path))
    assert engine.description == f"onnxruntime {onnxruntime.__version__} {CUDA} tf32 on Fake H100"
    assert_same(engine, card, image())
    assert fake.calls == [
        ("input", "image", (1, 24, 40, 3)),
        *(("output", name, "cpu") for name in ("mask", "scores", "confidence")),
    ]
    assert fake.graphs == [None]
    assert fake.preloads == 1
    assert fake.options[CUDA] == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_tf32": "1",
        "enable_cuda_graph": "0",
    }
    engine.close()


def test_memory_and_precision_are_the_settings(monkeypatch, gpu, card, tmp_path):
    fake = FakeOnnxRuntime(monkeypatch)
    settings = config("onnxruntime-cuda", tmp_path, memory_mb=512, precision="fp32")
    assert " fp32 on " in OnnxRuntimeGpuEngine(card, PLAN, settings).description
    assert (fake.options[CUDA]["gpu_mem_limit"], fake.options[CUDA]["use_tf32"]) == (
        str(512 << 20),
        "0",
    )


def test_tensorrt_has_explicit_shapes_and_a_folder_for_what_it_builds(
    monkeypatch, gpu, card, tmp_path
):
    fake = FakeOnnxRuntime(monkeypatch)
    settings = config("onnxruntime-tensorrt", tmp_path)
    engine = OnnxRuntimeGpuEngine(card, PLAN, settings)
    assert f"{TENSORRT} fp16 on Fake H100" in engine.description
    assert_same(engine, card, image())
    options = fake.options[TENSORRT]
    assert list(fake.options) == [TENSORRT, CUDA]
    assert options["trt_profile_min_shapes"] == "image:1x8x8x3"
    assert options["trt_profile_opt_shapes"] == "image:2x24x40x3"
    assert options["trt_profile_max_shapes"] == "image:2x256x256x3"
    assert (options["trt_engine_cache_enable"], options["trt_timing_cache_enable"]) == ("1", "1")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"]

    def folder(plan=PLAN, settings=settings, **device):
        fake_gpu.install(monkeypatch, **device)
        OnnxRuntimeGpuEngine(card, plan, settings)
        return fake.options[TENSORRT]["trt_engine_cache_path"]

    same = options["trt_engine_cache_path"]
    assert folder() == same
    others = [
        folder(name=b"Fake L4"),
        folder(plan=replace(PLAN, max_batch=3)),
        folder(settings=replace(settings, precision="fp32")),
        folder(settings=replace(settings, memory_mb=5)),
    ]
    assert len({same, *others}) == 5


@pytest.mark.parametrize(
    ("name", "used", "lost", "told"),
    [
        (
            "onnxruntime-cuda",
            [],
            (),
            f"put the model on CPUExecutionProvider: the libraries of {CUDA} do not load",
        ),
        (
            "onnxruntime-tensorrt",
            [CUDA],
            (),
            f"put the model on {CUDA}, CPU.*: the libraries of {TENSORRT} do not",
        ),
        ("onnxruntime-cuda", [CUDA], ("Conv", "Cast"), f"{CUDA} takes no Conv\n"),
    ],
)
def test_the_processors_never_take_the_place_of_the_gpu(
    monkeypatch, gpu, card, tmp_path, name, used, lost, told
):
    FakeOnnxRuntime(monkeypatch, used, lost)
    with pytest.raises(EngineError, match=told):
        choose_engine(card, PLAN, config(name, tmp_path))


def test_shapes_may_be_computed_on_the_processors(monkeypatch, gpu, card, tmp_path):
    FakeOnnxRuntime(monkeypatch, lost=("Concat", "Slice"))
    assert_same(
        OnnxRuntimeGpuEngine(card, PLAN, config("onnxruntime-cuda", tmp_path)), card, image()
    )


def test_the_library_for_processors_is_no_gpu(card, tmp_path):
    with pytest.raises(
        EngineError, match=f"has no {CUDA}\nexpected: the distribution onnxruntime-gpu"
    ):
        choose_engine(card, PLAN, config("onnxruntime-cuda", tmp_path))


def test_a_machine_without_a_gpu(monkeypatch, card, tmp_path):
    fake_gpu.install(monkeypatch, devices=0)
    FakeOnnxRuntime(monkeypatch)
    with pytest.raises(EngineError, match="GPU 0 cannot be used"):
        choose_engine(card, PLAN, config("onnxruntime-cuda", tmp_path))


def test_the_tensorrt_provider_needs_tensorrt(monkeypatch, gpu, card, tmp_path):
    FakeOnnxRuntime(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="tensorrt is not installed\nexpected: TensorRT 10"):
        choose_engine(card, PLAN, config("onnxruntime-tensorrt", tmp_path))


def test_an_installation_for_gpus_chooses_the_gpu_and_nothing_else(
    monkeypatch, gpu, card, tmp_path
):
    fake = FakeOnnxRuntime(monkeypatch)
    assert CUDA in choose_engine(card, PLAN, config("auto", tmp_path)).description
    fake.used = []
    with pytest.raises(
        EngineError, match=r"engine\.name = 'onnxruntime' in the settings for the processors"
    ):
        choose_engine(card, PLAN, config("auto", tmp_path))


def test_planned_sizes_are_replayed_at_fixed_addresses(monkeypatch, gpu, card, tmp_path):
    fake = FakeOnnxRuntime(monkeypatch)
    engine = OnnxRuntimeGpuEngine(
        card, PLAN, config("onnxruntime-cuda", tmp_path, cuda_graphs=True)
    )
    assert fake.options[CUDA]["enable_cuda_graph"] == "1"
    for seed in range(3):
        assert_same(engine, card, image(seed=seed))
    assert fake.graphs == ["-1", "1", "1"]
    assert_same(engine, card, image(count=2))
    assert_same(engine, card, image(count=2, seed=5))
    # Neither of a size of the plan, nor of a batch of it.
    for batch in (image(32, 40), image(32, 40), image(count=3)):
        assert_same(engine, card, batch)
    assert fake.graphs[3:] == ["-1", "2", "-1", "-1", "-1"]
    assert_same(engine, card, image(seed=9))
    fixed = [call for call in fake.calls if call[0].startswith("fixed")]
    assert len(fixed) == 2 * 4
    assert set(fake.devices) == {"cuda:0"}
    engine.close()


def test_results_do_not_change_with_the_next_run(monkeypatch, gpu, card, tmp_path):
    FakeOnnxRuntime(monkeypatch)
    engine = OnnxRuntimeGpuEngine(
        card, PLAN, config("onnxruntime-cuda", tmp_path, cuda_graphs=True)
    )
    engine.run({"image": image()})
    first = engine.run({"image": image()})["mask"]
    kept = first.copy()
    engine.run({"image": image(seed=1)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_run_can_be_stopped(monkeypatch, gpu, card, tmp_path, graphs):
    FakeOnnxRuntime(monkeypatch)
    engine = OnnxRuntimeGpuEngine(
        card, PLAN, config("onnxruntime-cuda", tmp_path, cuda_graphs=graphs)
    )
    stop = Stop()
    stop.request()
    with pytest.raises(Stopped):
        engine.run({"image": image()}, stop)


def test_a_tensor_model_of_fixed_axes_is_replayed_too(monkeypatch, gpu, tmp_path):
    fake = FakeOnnxRuntime(monkeypatch)
    card = read_card(tiny_models.export(tmp_path, "sums", "tensor"))
    engine = OnnxRuntimeGpuEngine(
        card, PLAN, config("onnxruntime-cuda", tmp_path, cuda_graphs=True)
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for step in range(3):
        np.testing.assert_array_equal(engine.run({"x": x + step, "y": x})["sum"], 2 * x + step)
    assert fake.graphs == ["-1", "1", "1"]
