"""TensorRT 10 and 11, without ONNX Runtime in between."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from serving.card import Card
from serving.config import EngineConfig
from serving.engines import Inputs, Outputs, Plan, Stop, Stopped, TensorSpec
from serving.engines.cuda import Buffer, Cuda
from serving.engines.onnxruntime import graph_inputs
from serving.engines.profiles import Profile, choose_profile, profiles
from serving.engines.tensorrt_build import find_engine
from serving.errors import EngineError, OutOfMemory, OutputError

MAJORS = (10, 11)


class TensorRtEngine:
    """An engine with one lane per parallel run: execution context, stream and memory.

    A run that started on the GPU cannot be ended. A stop prevents it or drops its result.

    Args:
        card: of a verified model.
        plan: its sizes get profiles of their own.
        stop: ends the build, which may take minutes.

    Raises:
        EngineError: the library or a GPU is missing, or TensorRT does not take the graph.
        OutOfMemory: the device has no room for the contexts.
        Stopped: ``stop`` was requested.
    """

    def __init__(
        self, card: Card, plan: Plan, config: EngineConfig, stop: Stop | None = None
    ) -> None:
        trt = import_tensorrt()
        self._cuda = Cuda(config.device)
        device = self._cuda.device()
        half = card.half_graph if config.precision == "auto" else None
        self._batch = plan.max_batch
        self._profiles = profiles(card, graph_inputs(card), plan)
        self._engine = find_engine(
            trt, card, half or card.graph, config, device, self._profiles, stop or Stop()
        )
        precision = "fp16" if half else "fp32" if config.precision == "fp32" else "tf32"
        self.description = f"tensorrt {trt.__version__} {precision} on {device.name}"
        self.inputs, self.outputs = (
            _specs(trt, self._engine, mode) for mode in ("INPUT", "OUTPUT")
        )
        self._lanes: list[Lane] = []
        self._idle: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        try:
            for _ in range(plan.workers):
                self._lanes.append(Lane(trt, self._cuda, self._engine, self.outputs))
                self._idle.put(self._lanes[-1])
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Inputs, stop: Stop | None = None) -> Outputs:
        """Every output by name; see :class:`serving.engines.Engine`. Large batches are split."""
        stop = stop or Stop()
        count = len(next(iter(inputs.values())))
        pieces = [self._piece(inputs, first, stop) for first in range(0, count, self._batch)]
        if len(pieces) == 1:
            return pieces[0]
        return {
            spec.name: np.concatenate([piece[spec.name] for piece in pieces])
            for spec in self.outputs
        }

    def close(self) -> None:
        """Free everything on the device."""
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._engine = None

    def _piece(self, inputs: Inputs, first: int, stop: Stop) -> Outputs:
        piece = {name: values[first : first + self._batch] for name, values in inputs.items()}
        shapes = {name: values.shape for name, values in piece.items()}
        profile = choose_profile(self._profiles, shapes)
        if profile is None:
            raise OutputError(
                f"inputs of {shapes}",
                f"shapes of {_told(self._profiles[-1])}, which the engine is built for",
            )
        if stop.requested:
            raise Stopped
        with self._lane() as lane:
            outputs = lane.run(piece, profile)
        if stop.requested:
            raise Stopped
        return outputs

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._idle.get()
        try:
            yield lane
        finally:
            self._idle.put(lane)


class Lane:
    """What one run at a time needs besides the engine."""

    def __init__(self, trt: Any, cuda: Cuda, engine: Any, outputs: tuple[TensorSpec, ...]) -> None:
        self._cuda = cuda
        cuda.use()
        self._context = engine.create_execution_context()
        if self._context is None:
            raise OutOfMemory(
                "the GPU has no memory left for another TensorRT context", hint="fewer workers"
            )
        self._stream = cuda.stream()
        self._profile = -1
        self._inputs: dict[str, Buffer] = {}
        self._outputs = {spec.name: make_allocator(trt, Buffer(cuda)) for spec in outputs}
        self._dtypes = {spec.name: spec.dtype for spec in outputs}
        for name, allocator in self._outputs.items():
            self._require(
                self._context.set_output_allocator(name, allocator), f"an allocator for {name}"
            )

    def run(self, inputs: Inputs, profile: int) -> Outputs:
        """Upload, run and download.

        Raises:
            OutOfMemory: the device is full; the lane has freed its own memory.
            RuntimeError: TensorRT refuses or fails.
        """
        self._cuda.use()
        try:
            return self._run(inputs, profile)
        except OutOfMemory:
            self._free()
            raise

    def close(self) -> None:
        """Free memory and stream."""
        self._cuda.use()
        self._free()
        self._context = None
        self._cuda.end_stream(self._stream)

    def _run(self, inputs: Inputs, profile: int) -> Outputs:
        if profile != self._profile:
            self._require(
                self._context.set_optimization_profile_async(profile, self._stream),
                f"profile {profile}",
            )
            self._profile = profile
        for name, values in inputs.items():
            buffer = self._inputs.setdefault(name, Buffer(self._cuda))
            buffer.reserve(values.nbytes)
            buffer.view(values.dtype.name, values.shape)[...] = values
            self._cuda.upload(buffer, values.nbytes, self._stream)
            self._require(
                self._context.set_input_shape(name, values.shape), f"{name} of {values.shape}"
            )
            self._require(
                self._context.set_tensor_address(name, buffer.device), f"an address for {name}"
            )
        ran = self._context.execute_async_v3(self._stream)
        for allocator in self._outputs.values():
            if allocator.failure:
                # Kernels may still write to the other outputs: wait before the lane is used again.
                failure, allocator.failure = allocator.failure, None
                self._cuda.synchronize(self._stream)
                raise failure
        self._require(ran, "a run")
        views = {}
        for name, allocator in self._outputs.items():
            views[name] = allocator.buffer.view(self._dtypes[name], allocator.shape)
            self._cuda.download(allocator.buffer, views[name].nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: view.copy() for name, view in views.items()}

    def _free(self) -> None:
        for buffer in (
            *self._inputs.values(),
            *(allocator.buffer for allocator in self._outputs.values()),
        ):
            buffer.free()

    def _require(self, ok: bool, what: str) -> None:
        if not ok:
            raise RuntimeError(f"TensorRT refuses {what}; its log says why")


def make_allocator(trt: Any, buffer: Buffer) -> Any:
    """An allocator that gives TensorRT memory once the size of an output is known."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.buffer = buffer
            self.shape: tuple[int, ...] = ()
            self.failure: Exception | None = None

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def reallocate_output(
            self, tensor_name: str, memory: int, size: int, alignment: int
        ) -> int:
            # cudaMalloc aligns to 256 bytes, which TensorRT requires. An exception must not cross
            # into C++.
            try:
                self.buffer.reserve(max(size, 1))
            except Exception as error:
                self.failure = error
            return self.buffer.device

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()


def import_tensorrt() -> Any:
    """The library.

    Raises:
        EngineError: it is missing, or neither version 10 nor 11.
    """
    hint = "pip install 'wsss[tensorrt]'"
    try:
        import tensorrt
    # Its loader raises OSError and others when a shared library is missing.
    except Exception as error:
        raise EngineError(f"TensorRT does not load: {error}", "TensorRT 10 or 11", hint) from error
    if int(tensorrt.__version__.split(".")[0]) not in MAJORS:
        raise EngineError(f"TensorRT {tensorrt.__version__}", "TensorRT 10 or 11", hint)
    return tensorrt


def _specs(trt: Any, engine: Any, mode: str) -> tuple[TensorSpec, ...]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    direction = getattr(trt.TensorIOMode, mode)
    try:
        return tuple(
            TensorSpec(
                name,
                np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
            if engine.get_tensor_mode(name) == direction
        )
    except TypeError as error:
        raise EngineError(
            f"an input or output of a type that NumPy does not have: {error}"
        ) from error


def _told(profile: Profile) -> str:
    return ", ".join(
        f"{name} {list(profile.low[name])} to {list(profile.high[name])}" for name in profile.low
    )
