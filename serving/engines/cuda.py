"""The parts of the CUDA runtime that TensorRT needs: device properties, streams and memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import EngineError, OutOfMemory

# Written by the kernel module; asking NVML would need one more library.
DRIVER = Path("/sys/module/nvidia/version")
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Device:
    """A GPU as far as a built engine depends on it.

    Attributes:
        name: of the product.
        capability: of its compute units, such as ``9.0``.
        driver: version of the driver and of its CUDA.
    """

    name: str
    capability: str
    driver: str


class Cuda:
    """The runtime on one device.

    Raises:
        EngineError: the bindings are not installed, or the device is missing.
    """

    def __init__(self, number: int) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise EngineError(
                "cuda-bindings is not installed", hint="pip install 'wsss[serve-gpu]'"
            ) from error
        self._runtime: Any = runtime
        self.number = number
        try:
            self.use()
        except RuntimeError as error:
            raise EngineError(
                f"GPU {number} cannot be used: {error}",
                "an NVIDIA GPU and its driver",
                "nvidia-smi lists the GPUs",
            ) from error

    def use(self) -> None:
        """Make this the device of the calling thread; CUDA keeps one per thread."""
        self._call("cudaSetDevice", self.number)

    def device(self) -> Device:
        """Properties of the device."""
        properties = self._call("cudaGetDeviceProperties", self.number)
        name = (
            properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        )
        version = DRIVER.read_text().strip() if DRIVER.is_file() else "unknown"
        return Device(
            name,
            f"{properties.major}.{properties.minor}",
            f"{version} CUDA {self._call('cudaDriverGetVersion')}",
        )

    def stream(self) -> int:
        """A new stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def end_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream; other Python threads run meanwhile."""
        self._call("cudaStreamSynchronize", stream)

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", buffer.device, buffer.host, size, kind, stream)

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes from the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", buffer.host, buffer.device, size, kind, stream)

    def allocate(self, size: int) -> int:
        """Address of new device memory.

        Raises:
            OutOfMemory: none is left.
        """
        return int(self._call("cudaMalloc", size))

    def allocate_host(self, size: int) -> int:
        """Address of new page-locked memory, which the device copies from and to by itself.

        Raises:
            OutOfMemory: none is left.
        """
        return int(self._call("cudaMallocHost", size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", address)

    def free_host(self, address: int) -> None:
        """Free page-locked memory."""
        self._call("cudaFreeHost", address)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._runtime, name)(*arguments)
        errors = self._runtime.cudaError_t
        if code == errors.cudaErrorMemoryAllocation:
            raise OutOfMemory(
                "the GPU is out of memory", hint="again in a second", retry_after=RETRY_SECONDS
            )
        if code != errors.cudaSuccess:
            raise RuntimeError(f"{name}: {getattr(code, 'name', code)}")
        return values[0] if values else None


class Buffer:
    """Memory on the device and its page-locked twin on the host. Both grow to the largest size
    used.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.size = self.device = self.host = 0

    def reserve(self, size: int) -> None:
        """Provide ``size`` bytes; growing loses the contents.

        Raises:
            OutOfMemory: there is no room; the buffer is then empty.
        """
        if size <= self.size:
            return
        self.free()
        try:
            self.device = self._cuda.allocate(size)
            self.host = self._cuda.allocate_host(size)
        except OutOfMemory:
            self.free()
            raise
        self.size = size

    def view(self, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """The host side as an array, valid until the buffer grows or is freed."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.ndarray(shape, dtype, memoryview((ctypes.c_uint8 * size).from_address(self.host)))

    def free(self) -> None:
        """Free both sides."""
        device, host = self.device, self.host
        self.size = self.device = self.host = 0
        if device:
            self._cuda.free(device)
        if host:
            self._cuda.free_host(host)


def find_device(number: int) -> Device:
    """The device of a number.

    Raises:
        EngineError: see :class:`Cuda`.
    """
    return Cuda(number).device()


def library_version(*distributions: str) -> str:
    """Version of the first distribution that is installed, or ``none``."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"
