"""What is measured: a server in its own process, and the bare engine in a loop on the same
requests.
"""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.bench.load import Request
from serving.card import Card
from serving.config import Limits
from serving.engines import Engine, Inputs
from serving.errors import BenchError
from serving.images import masks, pipeline
from serving.images.decoding import decode
from serving.images.options import options_for
from serving.rpc import tensors
from wsss.inference import open_inference_pb2 as oip
from wsss.v1 import segmentation_pb2 as pb

SEGMENT = "/wsss.v1.Segmentation/Segment"
INFER = "/inference.GRPCInferenceService/ModelInfer"
# Width and height of synthetic photographs: the most common of VOC 2012.
SHAPES = ((500, 375), (375, 500), (500, 333), (333, 500), (480, 360), (400, 300))
MOST_IMAGES = 64
END_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    """Address of a running server, and its process if it was started here."""

    address: str
    http_port: int = 0
    process: subprocess.Popen[str] | None = None


@contextmanager
def server(repository: Path, *settings: str) -> Iterator[Running]:
    """A server on this machine with ``section.key=value`` settings, until the end of the block.

    Raises:
        BenchError: it did not start.
    """
    http_port = free_port()
    options = [word for setting in settings for word in ("--set", setting)]
    ports = ("--host", "127.0.0.1", "--port", "0", "--http-port", str(http_port))
    # The same code as this process, whatever is first in PATH.
    command = [sys.executable, "-m", "serving.cli", "serve", "--log-level", "warning", *ports]
    command += ["--repository", str(repository), *options]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ended(process, END_SECONDS),
    ):
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise BenchError("the server did not start", hint="read its messages above")
        yield Running(line.split()[-1], http_port, process)


@contextmanager
def ended(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Terminate the process after the block, and kill it if that takes longer than ``seconds``."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Target:
    """A model and its requests.

    Attributes:
        images: files to send.
        inputs: tensors to send instead.
    """

    card: Card
    images: tuple[bytes, ...] = ()
    inputs: Inputs | None = None

    def request(self) -> Request:
        """The calls that make a server do what :meth:`work` does."""
        if self.inputs is not None:
            return Request(INFER, (infer_message(self.card.name, self.inputs),))
        return Request(
            SEGMENT, tuple(self._segment(pb.Image(encoded=file)) for file in self.images)
        )

    def work(self, engine: Engine) -> Callable[[int], bytes]:
        """What one thread does for request n without a server: decode, run and encode; only run for
        tensors.
        """
        card, inputs = self.card, self.inputs
        if inputs is not None:
            return lambda n: b"".join(
                bytes(tensors.write_output(values)) for values in engine.run(inputs).values()
            )
        options = options_for(card)

        def segment(n: int) -> bytes:
            canvas = pipeline.prepare(decode(self.images[n % len(self.images)], Limits()), card)
            result = pipeline.segment(canvas, card, options, engine.run)
            return masks.encode_labels(result.labels, card.palette)

        return segment

    def answer(self, reply: bytes) -> bytes:
        """The part of a server's reply that :meth:`work` returns."""
        if self.inputs is not None:
            return b"".join(oip.ModelInferResponse.FromString(reply).raw_output_contents)
        return bytes(pb.SegmentResponse.FromString(reply).mask.png)

    def _segment(self, image: Any) -> bytes:
        message = pb.SegmentRequest(image=image, model=self.card.name, version=self.card.version)
        data: bytes = message.SerializeToString()
        return data


@dataclass(frozen=True)
class Raw:
    """A loop without a server: requests per second, and the engine's median seconds for one."""

    rate: float
    run: float


def raw_loop(target: Target, engine: Engine, seconds: float) -> Raw:
    """One request after another in this thread."""
    timer = _Timer(engine)
    work, count, began = target.work(timer), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work(count)
        count += 1
    return Raw(count / (time.perf_counter() - began), float(np.median(timer.seconds)))


def read_images(folder: Path | None) -> tuple[bytes, ...]:
    """Some JPEGs of a folder, or synthetic ones in six sizes.

    Raises:
        BenchError: no JPEG in the folder.
    """
    if folder is None:
        return tuple(made_image(*SHAPES[seed % len(SHAPES)], seed) for seed in range(24))
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[
        :MOST_IMAGES
    ]
    if not files:
        raise BenchError(f"no JPEG below {folder}", "a folder of photographs", "--images FOLDER")
    return tuple(path.read_bytes() for path in files)


def made_image(width: int, height: int, seed: int) -> bytes:
    """A JPEG with the size in bytes of a photograph."""
    rng = np.random.default_rng(seed)
    layers = [
        rng.integers(0, 256, (max(2, height >> k), max(2, width >> k), 3), dtype=np.uint8)
        for k in (2, 4, 6)
    ]
    planes = [
        np.asarray(Image.fromarray(layer).resize((width, height)), dtype=np.float32)
        for layer in layers
    ]
    pixels = (0.2 * planes[0] + 0.3 * planes[1] + 0.5 * planes[2]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def random_inputs(engine: Engine, side: int) -> Inputs:
    """One element for each input of a graph; free axes other than the batch are ``side`` long."""
    rng = np.random.default_rng(0)
    inputs: dict[str, npt.NDArray[np.generic]] = {}
    for spec in engine.inputs:
        shape = (1, *(side if axis == -1 else axis for axis in spec.shape[1:]))
        values = (
            rng.integers(0, 256, shape) if spec.dtype == "uint8" else rng.standard_normal(shape)
        )
        inputs[spec.name] = values.astype(spec.dtype)
    return inputs


def infer_message(model: str, inputs: Inputs) -> bytes:
    """An encoded ``ModelInferRequest`` with raw contents."""
    message = oip.ModelInferRequest(
        model_name=model, raw_input_contents=[values.tobytes() for values in inputs.values()]
    )
    for name, values in inputs.items():
        message.inputs.add(
            name=name, datatype=tensors.DATATYPES[str(values.dtype)], shape=values.shape
        )
    data: bytes = message.SerializeToString()
    return data


class _Timer:
    """An engine that notes how long each run takes."""

    def __init__(self, engine: Engine) -> None:
        self.description = engine.description
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.seconds: list[float] = []
        self._engine = engine

    def run(self, inputs: Inputs, stop: Any = None) -> Any:
        """See :class:`serving.engines.Engine`."""
        began = time.perf_counter()
        outputs = self._engine.run(inputs)
        self.seconds.append(time.perf_counter() - began)
        return outputs

    def close(self) -> None:
        """See :class:`serving.engines.Engine`."""
        self._engine.close()
