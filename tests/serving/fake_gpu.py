"""The surfaces of the CUDA runtime and of TensorRT 10 and 11 that the engine uses, on the
processors.

Addresses are real, what is put into a stream is done when the stream is waited for, and a plan
computes with onnxruntime, so that a missing wait, a freed buffer or a wrong shape shows in results.
Names and signatures are those of the bindings ``cuda-bindings`` 13.5 and ``tensorrt`` 10.16 and
11.4.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ALIGNMENT = 256


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class CopyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class FakeCuda:
    """Module ``cuda.bindings.runtime``.

    Attributes:
        limit: bytes of the device.
        memory: arrays by address; ``device`` and ``host`` are the addresses of each side.
        streams: what is to be done, by stream.
    """

    cudaError_t = CudaError
    cudaMemcpyKind = CopyKind
    cudaStreamNonBlocking = 1

    def __init__(self, limit: int = 1 << 30, name: bytes = b"Fake H100", devices: int = 1) -> None:
        self.limit, self.name, self.devices = limit, name, devices
        self.memory: dict[int, np.ndarray] = {}
        self.device: set[int] = set()
        self.host: set[int] = set()
        self.streams: dict[int, list[Any]] = {}
        self.chosen = threading.local()

    def cudaSetDevice(self, number):
        if number >= self.devices:
            return (CudaError.cudaErrorNoDevice,)
        self.chosen.number = number
        return (CudaError.cudaSuccess,)

    def cudaGetDeviceProperties(self, number):
        return CudaError.cudaSuccess, types.SimpleNamespace(name=self.name, major=9, minor=0)

    def cudaDriverGetVersion(self):
        return CudaError.cudaSuccess, 13020

    def cudaStreamCreateWithFlags(self, flags):
        assert self.chosen.number == 0
        assert flags == self.cudaStreamNonBlocking
        number = max(self.streams, default=0) + 1
        self.streams[number] = []
        return CudaError.cudaSuccess, number

    def cudaStreamDestroy(self, stream):
        assert not self.streams.pop(stream)
        return (CudaError.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()
        return (CudaError.cudaSuccess,)

    def cudaMalloc(self, size):
        assert self.chosen.number == 0
        return self._allocate(size, self.device)

    def cudaMallocHost(self, size):
        return self._allocate(size, self.host)

    def cudaFree(self, address):
        self.device.remove(address)
        del self.memory[address]
        return (CudaError.cudaSuccess,)

    def cudaFreeHost(self, address):
        self.host.remove(address)
        del self.memory[address]
        return (CudaError.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        sides = (
            (self.device, self.host)
            if kind == CopyKind.cudaMemcpyHostToDevice
            else (self.host, self.device)
        )

        def copy():
            for address, side in zip((target, source), sides):
                assert address in side
                assert count <= self.memory[address].nbytes
            ctypes.memmove(target, source, count)

        self.streams[stream].append(copy)
        return (CudaError.cudaSuccess,)

    def read(self, address, dtype, shape):
        assert address in self.device
        return (
            self.memory[address][: int(np.prod(shape)) * np.dtype(dtype).itemsize]
            .view(dtype)
            .reshape(shape)
            .copy()
        )

    def write(self, address, values):
        assert address in self.device
        self.memory[address][: values.nbytes] = np.frombuffer(values.tobytes(), np.uint8)

    def _allocate(self, size, side):
        used = sum(self.memory[address].nbytes for address in side)
        if size <= 0 or (side is self.device and used + size > self.limit):
            return CudaError.cudaErrorMemoryAllocation, None
        array = np.full(size, 0xCD, np.uint8)
        self.memory[array.ctypes.data] = array
        side.add(array.ctypes.data)
        return CudaError.cudaSuccess, array.ctypes.data


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.Enum):
    UINT8 = "uint8"
    FLOAT = "float32"
    BF16 = "bfloat16"


class FakeTensorRt:
    """Module ``tensorrt`` of one version.

    Attributes:
        builds: networks built.
        timings: what the last build was given as its timing cache.
        settings: of the last build.
    """

    def __init__(self, version: str, cuda: FakeCuda) -> None:
        self.__version__ = version
        self.cuda = cuda
        self.builds = 0
        self.timings: bytes | None = None
        self.settings: Any = None
        self.contexts = 0
        self.max_contexts = 100
        older = version.startswith("10.")
        flags = {"EXPLICIT_BATCH": 0} if older else {}
        self.NetworkDefinitionCreationFlag = enum.IntEnum(
            "NetworkDefinitionCreationFlag", flags | {"STRONGLY_TYPED": 1}
        )
        self.BuilderFlag = enum.Enum("BuilderFlag", (["FP16"] if older else []) + ["TF32", "REFIT"])
        self.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
        self.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
        self.ILogger = type("ILogger", (), {"Severity": Severity, "__init__": lambda logger: None})
        self.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda monitor: None})
        self.IOutputAllocator = type("IOutputAllocator", (), {"__init__": lambda allocator: None})
        self.Builder = lambda logger: Builder(self, logger)
        self.OnnxParser = Parser
        self.Runtime = lambda logger: Runtime(self)

    def nptype(self, dtype):
        if dtype is DataType.BF16:
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return np.dtype(dtype.value).type


class Network:
    graph = b""


class Parser:
    def __init__(self, network, logger):
        self.network, self.logger, self.faults = network, logger, []

    def parse_from_file(self, path):
        data = Path(path).read_bytes()
        try:
            onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception as error:
            self.faults = [str(error)]
            self.logger.log(Severity.ERROR, "cannot parse")
            return False
        self.network.graph = data
        return True

    @property
    def num_errors(self):
        return len(self.faults)

    def get_error(self, index):
        return types.SimpleNamespace(desc=lambda: self.faults[index])


class ShapeProfile:
    def __init__(self):
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name, low, best, high):
        assert all(a <= b <= c for a, b, c in zip(low, best, high)), (low, best, high)
        self.shapes[name] = [list(low), list(best), list(high)]


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return memoryview(self.data + b"+")


class Settings:
    progress_monitor: Any = None

    def __init__(self):
        self.profiles: list[ShapeProfile] = []
        self.cleared: list[Any] = []
        self.pools: dict[Any, int] = {}

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def create_timing_cache(self, data):
        return TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Builder:
    def __init__(self, trt, logger):
        assert isinstance(logger, trt.ILogger)
        self.trt = trt

    def create_network(self, flags):
        assert flags == 1 << self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self):
        return Settings()

    def create_optimization_profile(self):
        return ShapeProfile()

    def build_serialized_network(self, network, settings):
        trt, monitor = self.trt, settings.progress_monitor
        trt.settings, trt.timings = settings, settings.cache.data
        monitor.phase_start("Building Engine", None, 3)
        for step in range(3):
            monitor.phase_start("Tactics", "Building Engine", 1)
            monitor.step_complete("Tactics", 0)
            monitor.phase_finish("Tactics")
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        trt.builds += 1
        head = {
            "version": trt.__version__,
            "profiles": [profile.shapes for profile in settings.profiles],
        }
        return memoryview(json.dumps(head).encode() + b"\n" + network.graph)


class Runtime:
    def __init__(self, trt):
        self.trt = trt

    def deserialize_cuda_engine(self, plan):
        head, _, graph = bytes(plan).partition(b"\n")
        found = json.loads(head)
        return (
            FakeEngine(self.trt, found["profiles"], graph)
            if found["version"] == self.trt.__version__
            else None
        )


class FakeEngine:
    def __init__(self, trt, profiles, graph):
        self.trt, self.profiles = trt, profiles
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.sides = {
            **{node.name: (node, trt.TensorIOMode.INPUT) for node in self.session.get_inputs()},
            **{node.name: (node, trt.TensorIOMode.OUTPUT) for node in self.session.get_outputs()},
        }

    @property
    def num_io_tensors(self):
        return len(self.sides)

    def get_tensor_name(self, index):
        return list(self.sides)[index]

    def get_tensor_mode(self, name):
        return self.sides[name][1]

    def get_tensor_dtype(self, name):
        return {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT}[
            self.sides[name][0].type
        ]

    def get_tensor_shape(self, name):
        return [size if isinstance(size, int) else -1 for size in self.sides[name][0].shape]

    def create_execution_context(self):
        if self.trt.contexts >= self.trt.max_contexts:
            return None
        self.trt.contexts += 1
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.cuda = engine, engine.trt.cuda
        self.profile: Any = None
        self.shapes: dict[str, Any] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}

    def set_optimization_profile_async(self, index, stream):
        assert stream in self.cuda.streams
        self.profile, self.shapes = self.engine.profiles[index], {}
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.profile[name]
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % ALIGNMENT == 0 or address in self.cuda.memory

    def set_output_allocator(self, name, allocator):
        assert isinstance(allocator, self.engine.trt.IOutputAllocator)
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream):
        assert self.cuda.chosen.number == 0
        session = self.engine.session
        nodes = {node.name: node for node in session.get_inputs()}
        types_ = {name: self.engine.get_tensor_dtype(name).value for name in nodes}
        names = list(self.allocators)
        zeros = {name: np.zeros(self.shapes[name], types_[name]) for name in nodes}
        targets = {}
        for name, values in zip(names, session.run(names, zeros)):
            allocator = self.allocators[name]
            targets[name] = allocator.reallocate_output_async(
                name, 0, values.nbytes, ALIGNMENT, stream
            )
            if not targets[name]:
                return False
            allocator.notify_shape(name, values.shape)
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def compute():
            inputs = {
                name: self.cuda.read(addresses[name], types_[name], shapes[name]) for name in nodes
            }
            for name, values in zip(names, session.run(names, inputs)):
                self.cuda.write(targets[name], values)

        self.cuda.streams[stream].append(compute)
        return True


def install(
    monkeypatch, version: str = "10.16.1.11", **device: Any
) -> tuple[FakeTensorRt, FakeCuda]:
    """Put both modules where ``import`` finds them."""
    cuda = FakeCuda(**device)
    trt = FakeTensorRt(version, cuda)
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = cuda
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt, cuda
