"""ONNX Runtime on a GPU, through its CUDA or TensorRT provider, and never on the processors
instead.

Without a GPU or one of its libraries, ONNX Runtime falls back to the processors and only logs it.
Its switch ``session.disable_cpu_ep_fallback`` is of no use: it also refuses graphs that compute
shapes on the processors, as every graph of free size does. So this module asks the session where it
placed each node.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.card import Card
from serving.config import EngineConfig
from serving.engines import Inputs, Outputs, Plan, Stop
from serving.engines.cache import cache_folder, digest, engine_key
from serving.engines.cuda import Device, find_device, library_version
from serving.engines.onnxruntime import (
    OnnxRuntimeEngine,
    graph_inputs,
    open_session,
    session_options,
)
from serving.engines.profiles import Profile, Shapes, profiles
from serving.errors import EngineError

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Operators that take most of the time of a run.
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Resize"}
NO_GRAPH = -1
MEGABYTE = 1 << 20
HINT = (
    "engine.name = 'onnxruntime' in the settings for the processors; docs/serving-engines.md lists"
    " what a GPU needs"
)


class OnnxRuntimeGpuEngine(OnnxRuntimeEngine):
    """A session on a GPU with bound inputs and outputs, so that each is copied once.

    With ``engine.cuda_graphs``, a planned size has device memory at fixed addresses, and its
    kernels are replayed as one graph.

    Args:
        card: of a verified model.
        config: names the provider of this model.

    Raises:
        EngineError: the provider, a library or the GPU is missing, or part of the graph would run
            on the processors.
        RepositoryError: the file does not load.
    """

    def __init__(self, card: Card, plan: Plan, config: EngineConfig) -> None:
        import onnxruntime

        tensorrt = config.name_for(card.name) == "onnxruntime-tensorrt"
        provider = TENSORRT if tensorrt else CUDA
        if provider not in onnxruntime.get_available_providers():
            raise EngineError(
                f"onnxruntime {onnxruntime.__version__} has no {provider}",
                "the distribution onnxruntime-gpu without onnxruntime beside it",
                "pip uninstall onnxruntime; pip install 'wsss[serve-gpu]'",
            )
        preload(onnxruntime, tensorrt)
        device = find_device(config.device)
        options = session_options(plan.threads)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = [(CUDA, cuda_options(config))]
        if tensorrt:
            # The provider takes a single profile: everything that the card allows.
            shapes = profiles(card, graph_inputs(card), plan)[-1]
            providers.insert(0, (TENSORRT, tensorrt_options(card, config, device, shapes)))
        session = open_session(card, options, providers)
        check_placement(session, provider)
        precision = "fp32" if config.precision == "fp32" else "fp16" if tensorrt else "tf32"
        self.take(
            session,
            card,
            f"onnxruntime {onnxruntime.__version__} {provider} {precision} on {device.name}",
        )
        self._device, self._plan = config.device, plan
        self._lock = threading.Lock() if config.cuda_graphs else None
        self._graphs: dict[tuple[Any, ...], Captured] = {}

    def run(self, inputs: Inputs, stop: Stop | None = None) -> Outputs:
        """Every output by name; see :class:`serving.engines.Engine`."""
        stop, options = stop or Stop(), self._run_options()
        with stop.ending(partial(setattr, options, "terminate", True)):
            if self._lock is None:
                return self._bound(inputs, options)
            # A CUDA graph has one set of addresses, and may be captured only while nothing else
            # runs.
            with self._lock:
                return self._replayed(inputs, options)

    def close(self) -> None:
        """Free the session and its device memory."""
        self._graphs.clear()
        super().close()

    def _bound(self, inputs: Inputs, options: Any) -> Outputs:
        binding = self._session.io_binding()
        for name, values in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for name in self._names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, options)
        return self._outputs(binding.copy_outputs_to_cpu())

    def _replayed(self, inputs: Inputs, options: Any) -> Outputs:
        key = tuple(sorted((name, values.shape) for name, values in inputs.items()))
        graph = self._graphs.get(key)
        if graph is None:
            options.add_run_config_entry("gpu_graph_id", str(NO_GRAPH))
            outputs = self._bound(inputs, options)
            if self._is_planned(inputs):
                # The library uses 0 itself.
                number = len(self._graphs) + 1
                self._graphs[key] = Captured(self._session, number, inputs, outputs, self._device)
            return outputs
        options.add_run_config_entry("gpu_graph_id", str(graph.number))
        return graph.run(inputs, options)

    def _is_planned(self, inputs: Inputs) -> bool:
        """Whether this shape gets a graph of its own, which occupies memory for good."""
        static = all(-1 not in spec.shape[1:] for spec in self.inputs)
        usual = any(
            (1, *size) == (1, *values.shape[1:3])
            for size in self._plan.sizes
            for values in inputs.values()
        )
        return (static or usual) and all(
            len(values) <= self._plan.max_batch for values in inputs.values()
        )


class Captured:
    """Inputs and outputs of one shape, bound to fixed device addresses.

    Args:
        number: of the graph.
        inputs, outputs: of a run of this shape.
        device: number of the GPU.
    """

    def __init__(
        self, session: Any, number: int, inputs: Inputs, outputs: Outputs, device: int
    ) -> None:
        from onnxruntime import OrtValue

        self.number = number
        self._session, self._binding = session, session.io_binding()
        self._inputs = {
            name: OrtValue.ortvalue_from_numpy(values, "cuda", device)
            for name, values in inputs.items()
        }
        self._results = {
            name: OrtValue.ortvalue_from_shape_and_type(values.shape, values.dtype, "cuda", device)
            for name, values in outputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._results.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Inputs, options: Any) -> Outputs:
        """Every output by name. One call at a time."""
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(inputs[name]))
        self._session.run_with_iobinding(self._binding, options)
        # A copy: the next run overwrites the device memory.
        return {name: np.array(value.numpy()) for name, value in self._results.items()}


def preload(onnxruntime: Any, tensorrt: bool) -> None:
    """Load the libraries of Python packages, which the provider would not find by itself."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    if tensorrt:
        try:
            import tensorrt as _  # noqa: F401
        except ImportError as error:
            raise EngineError(
                "tensorrt is not installed",
                "TensorRT 10, which onnxruntime was built with",
                "docs/serving-engines.md",
            ) from error


def check_placement(session: Any, provider: str) -> None:
    """Check that the provider is active and that all heavy nodes run on the GPU.

    Raises:
        EngineError: they do not.
    """
    providers = session.get_providers()
    if not providers or providers[0] != provider:
        raise EngineError(
            f"onnxruntime put the model on {', '.join(providers)}: the libraries of {provider} do"
            " not load",
            provider,
            HINT,
        )
    operators: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    lost = HEAVY & operators.get("CPUExecutionProvider", set())
    if lost or provider not in operators:
        missing = (
            "no " + ", ".join(sorted(lost)) if provider in operators else "nothing of the graph"
        )
        raise EngineError(f"{provider} takes {missing}", "a graph that runs on the GPU", HINT)


def cuda_options(config: EngineConfig) -> dict[str, str]:
    """Options of the CUDA provider."""
    options = {
        "device_id": str(config.device),
        # The default doubles the arena with each request; images of many sizes would fill the
        # device.
        "arena_extend_strategy": "kSameAsRequested",
        # The default tries every kernel for every new shape, which costs seconds.
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_tf32": str(int(config.precision != "fp32")),
        "enable_cuda_graph": str(int(config.cuda_graphs)),
    }
    if config.memory_mb:
        options["gpu_mem_limit"] = str(config.memory_mb * MEGABYTE)
    return options


def tensorrt_options(
    card: Card, config: EngineConfig, device: Device, profile: Profile
) -> dict[str, str]:
    """Options of the TensorRT provider, with a cache folder for everything that its engines depend
    on.
    """
    options = {
        "device_id": str(config.device),
        "trt_fp16_enable": str(int(config.precision != "fp32")),
        "trt_cuda_graph_enable": str(int(config.cuda_graphs)),
        "trt_context_memory_sharing_enable": "1",
        "trt_profile_min_shapes": _shapes_text(profile.low),
        "trt_profile_opt_shapes": _shapes_text(profile.best),
        "trt_profile_max_shapes": _shapes_text(profile.high),
    }
    if config.memory_mb:
        options["trt_max_workspace_size"] = str(config.memory_mb * MEGABYTE)
    versions = [library_version(f"onnxruntime{kind}") for kind in ("-gpu", "")]
    library = (
        f"onnxruntime {versions} tensorrt"
        f" {library_version('tensorrt', 'tensorrt-cu13', 'tensorrt-cu12')}"
    )
    # The provider compares file names only. One folder for everything would load wrong engines
    # (onnxruntime_backend #124).
    key = engine_key(card, card.graph, library, device, [profile], dict(options))
    folder: Path = cache_folder(config) / f"{card.name}-{digest(key)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return options | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _shapes_text(shapes: Shapes) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
