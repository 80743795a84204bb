"""OpenVINO on the processors: in bfloat16 where they multiply in it, else in float32."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from serving.card import HINT, OUTPUTS, Card
from serving.engines import Inputs, Outputs, Plan, Stop, TensorSpec
from serving.errors import RepositoryError

# Kernels made for a shape, kept for when it comes again. With the library's own 5000 memory grows
# with every new size of image, and making them anew costs little (bench/engine_memory.py).
KERNELS = 200
# The bindings fill tables of NumPy's types at their first use, under a lock of C++ during which
# they let go of Python's: two models that load at once have waited for each other for ever
# (2026.4).
_LOADING = threading.Lock()


class OpenVinoEngine:
    """A compiled graph with a stream, and an inference request, for each run at once.

    Threads are not pinned, and there are as many as the plan says: the library would count those of
    the host.

    Args:
        card: of a verified model.
        plan: how many runs at once, and threads for each.
        exact: float32 whatever the processors have.

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
            # Asked before the start, to end what had not begun.
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
                if result.output(0).any_name not in OUTPUTS[card.kind]:
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
        """An inference request for one run; as many come to be as there are runs at once."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        yield request
        # One that failed is in no known state, and is not used again.
        self._idle.put(request)


def _library() -> Any:
    """OpenVINO, without the package by which it reports on its users when it is imported: it does
    without where that package is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino


def _options(plan: Plan, bf16: bool) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "THROUGHPUT" if plan.workers > 1 else "LATENCY",
        "NUM_STREAMS": plan.workers,
        "INFERENCE_NUM_THREADS": plan.workers * plan.threads,
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
    }


def _spec(port: Any) -> TensorSpec:
    shape = tuple(-1 if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape())
    return TensorSpec(port.any_name, np.dtype(port.get_element_type().to_dtype()).name, shape)
