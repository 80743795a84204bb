"""OpenVINO on the processors, in bfloat16 where they support it, else in float32."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from serving.card import HINT, Card
from serving.engines import Inputs, Outputs, Plan, Stop, TensorSpec
from serving.errors import RepositoryError

# Compiled kernels are cached per shape. With the default of 5000, memory grows with every new image
# size, while compiling again is cheap (bench/engine_memory.py).
KERNELS = 200
# The bindings fill tables of NumPy types on first use, under a C++ lock that releases the GIL. Two
# models that loaded at once deadlocked (2026.4).
_LOADING = threading.Lock()


class OpenVinoEngine:
    """A compiled graph with one stream and one inference request per parallel run.

    Args:
        card: of a verified model.
        exact: float32 on every processor.

    Raises:
        RepositoryError: the library cannot compile the graph.
    """

    _compiled: Any

    def __init__(self, card: Card, plan: Plan, exact: bool = False) -> None:
        with _LOADING:
            self._load(card, plan, exact)
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()

    def run(self, inputs: Inputs, stop: Stop | None = None) -> Outputs:
        """Every output by name; see :class:`serving.engines.Engine`."""
        stop = stop or Stop()
        with self._request() as request, stop.ending(request.cancel):
            request.start_async(dict(inputs), share_inputs=True)
            # The request may have come before start_async, which cancel() would have missed.
            if stop.requested:
                request.cancel()
            request.wait()
            return {
                spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.outputs
            }

    def close(self) -> None:
        """Free the graph."""
        self._idle = queue.LifoQueue()
        self._compiled = None

    def _load(self, card: Card, plan: Plan, exact: bool) -> None:
        openvino = _library()
        core = openvino.Core()
        bf16 = not exact and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if bf16 else "fp32"
        try:
            model = core.read_model(card.graph_path)
            for result in list(model.get_results()) if card.kind != "tensor" else ():
                if result.output(0).any_name not in card.outputs:
                    model.remove_result(result)
            self._compiled = core.compile_model(model, "CPU", _options(plan, bf16))
        # The library raises RuntimeError and types of its own.
        except Exception as error:
            raise RepositoryError(
                f"OpenVINO does not load {card.graph_path}: {error}", "an ONNX graph", HINT
            ) from error
        self.description = f"openvino {openvino.__version__.split('-')[0]} CPU {self.precision}"
        self.inputs = tuple(_spec(port) for port in self._compiled.inputs)
        self.outputs = tuple(_spec(port) for port in self._compiled.outputs)

    @contextmanager
    def _request(self) -> Iterator[Any]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        yield request
        # After a failure the state of the request is unknown: it is not used again.
        self._idle.put(request)


def _library() -> Any:
    """OpenVINO without its telemetry package, which reports on users at import. It works without
    it.
    """
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino


def _options(plan: Plan, bf16: bool) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "THROUGHPUT" if plan.workers > 1 else "LATENCY",
        "NUM_STREAMS": plan.workers,
        # Left to itself the library counts the host's processors, not those of the container.
        "INFERENCE_NUM_THREADS": plan.workers * plan.threads,
        # Pinned threads of several models would share the same processors.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
    }


def _spec(port: Any) -> TensorSpec:
    shape = tuple(-1 if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape())
    return TensorSpec(port.any_name, np.dtype(port.get_element_type().to_dtype()).name, shape)
