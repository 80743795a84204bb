"""The server against a one-thread loop: JPEG in, PNG mask out.

The loop decodes, runs and encodes with the very functions of the server, in this process, on one thread. The server is
a process of its own and answers four callers at once from a third process. Rounds alternate; the ratio is that of each
round's two figures, its median is printed. Target: at least 0.9 with four callers on two cores. Other work on the machine
flatters the server, which then gets more of the processors than one thread does; ``cpu_ratio``, the loop's processor
seconds an image by those of the server's process, is what such work hardly touches.

    python bench/serve.py
    python bench/serve.py --repository exported/ --model pets --images photos/
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving import masks, pipeline  # noqa: E402
from serving.client import AsyncClient  # noqa: E402
from serving.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from serving.image import Limits, decode  # noqa: E402
from serving.options import options_for  # noqa: E402
from serving.repository import choose, read_repository  # noqa: E402


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        repository = options.repository or build_repository(Path(folder), options.width)
        card = choose(read_repository(repository), options.model, 0, "segmenter")
        images = read_images(options.images)
        engine = OnnxRuntimeEngine(card, threads=1)
        command = [sys.executable, "-m", "serving.cli", "serve", "--engine", "onnxruntime"]
        command += ["--port", "0", "--repository", str(repository)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            address = server.stdout.readline().split()[-1]
            rounds = []
            for number in range(options.rounds + 1):
                loop, loop_cpu = loop_rate(images, card, engine, options.seconds)
                before = cpu_seconds(server.pid)
                served, waits = server_rate(address, images, card.name, options)
                server_cpu = (cpu_seconds(server.pid) - before) / waits.pop("images")
                # The first round warms both up.
                if number:
                    ratios = {"ratio": served / loop, "cpu_ratio": loop_cpu / server_cpu}
                    rounds.append({"loop": loop, "server": served, **ratios, **waits})
                    print(json.dumps({key: round(value, 3) for key, value in rounds[-1].items()}), flush=True)
        finally:
            server.terminate()
            server.wait()
    result = {key: round(statistics.median(entry[key] for entry in rounds), 3) for key in rounds[0]}
    print(json.dumps({"median": result, "concurrency": options.concurrency, "rounds": len(rounds), "target": 0.9}))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads together."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def loop_rate(images: list[bytes], card: Any, engine: Any, seconds: float) -> tuple[float, float]:
    """Images a second of decode, run and encode in a row, and processor seconds an image."""
    done, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        prepared = pipeline.prepare(decode(images[done % len(images)], Limits()), card)
        result = pipeline.segment(prepared, card, options_for(card), engine.run)
        assert masks.encode_labels(result.labels, card.palette)
        done += 1
    return done / (time.perf_counter() - began), (time.process_time() - used) / done


def server_rate(address: str, images: list[bytes], model: str, options: argparse.Namespace) -> tuple[float, dict]:
    """Images a second that callers in another process get, and the median and 99th percentile of their waits."""
    load = [str(options.concurrency), str(options.seconds), address, model]
    source = json.dumps([image.hex() for image in images])
    done = subprocess.run(
        [sys.executable, __file__, "--call", *load], input=source, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return found.pop("rate"), found


async def call(concurrency: int, seconds: float, address: str, model: str, images: list[bytes]) -> dict[str, float]:
    waits: list[float] = []

    async with AsyncClient(address, timeout=60) as client:
        await asyncio.gather(*(client.segment(images[0], model) for _ in range(concurrency)))
        began = time.perf_counter()

        async def caller(first: int) -> None:
            index = first
            while time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                await client.segment(images[index % len(images)], model)
                waits.append(time.perf_counter() - sent)
                index += concurrency

        await asyncio.gather(*(caller(first) for first in range(concurrency)))
    rate = len(waits) / (time.perf_counter() - began)
    images_done = len(waits) + concurrency
    return {
        "rate": rate,
        "images": images_done,
        "p50_ms": 1e3 * statistics.median(waits),
        "p99_ms": 1e3 * float(np.quantile(waits, 0.99)),
    }


def read_images(folder: Path | None) -> list[bytes]:
    """JPEGs of a folder, or sixteen made ones of 500x375 with the detail of photographs."""
    if folder:
        return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:64]]
    images = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        layers = [rng.integers(0, 256, (max(2, 375 >> k), max(2, 500 >> k), 3), dtype=np.uint8) for k in (2, 4, 6)]
        resized = [np.asarray(Image.fromarray(layer).resize((500, 375)), dtype=np.float32) for layer in layers]
        pixels = (0.2 * resized[0] + 0.3 * resized[1] + 0.5 * resized[2]).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        images.append(file.getvalue())
    return images


def build_repository(root: Path, width: int) -> Path:
    """A random segmenter of 20 classes, laid out as a ResNet-18 at output stride 32; of its cost too at ``width`` 64."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def constant(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv(source: str, inputs: int, outputs: int, size: int, stride: int) -> str:
        scale = np.sqrt(2 / (inputs * size * size))
        kernel = (rng.standard_normal((outputs, inputs, size, size)) * scale).astype(np.float32)
        name = constant(f"w{len(nodes)}", kernel)
        pad = [size // 2] * 4
        return add("Conv", [source, name], strides=[stride] * 2, pads=pad, kernel_shape=[size] * 2)

    pixels = add("Transpose", [add("Cast", ["image"], to=TensorProto.FLOAT)], perm=[0, 3, 1, 2])
    unit = add("Div", [add("Sub", [pixels, constant("mean", np.float32(120))]), constant("std", np.float32(60))])
    x = add("Relu", [conv(unit, 3, width, 7, 2)])
    x = add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = width
    for factor, stride in ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
        outputs = factor * width
        inner = add("Relu", [conv(x, channels, outputs, 3, stride)])
        short = x if (channels, stride) == (outputs, 1) else conv(x, channels, outputs, 1, stride)
        x = add("Relu", [add("Add", [conv(inner, outputs, outputs, 3, 1), short])])
        channels = outputs
    logits = conv(x, channels, 21, 1, 1)
    nodes.append(helper.make_node("Shape", ["image"], ["shape"]))
    size = add("Slice", ["shape", constant("one", np.array([1])), constant("three", np.array([3]))])
    head = add("Slice", [add("Shape", [logits]), constant("zero", np.array([0])), constant("two", np.array([2]))])
    full = add("Resize", [logits, "", "", add("Concat", [head, size], axis=0)], mode="linear")
    best = add("ArgMax", [full], axis=1, keepdims=0)
    nodes.append(helper.make_node("Cast", [best], ["mask"], to=TensorProto.UINT8))
    top = add("ReduceMax", [full], axes=[1], keepdims=0)
    byte = add("Mul", [add("Sigmoid", [top]), constant("white", np.float32(255))])
    nodes.append(helper.make_node("Cast", [byte], ["confidence"], to=TensorProto.UINT8))
    mean = add("Sigmoid", [add("ReduceMean", [logits], axes=[2, 3], keepdims=0)])
    nodes.append(helper.make_node("Slice", [mean, "one", constant("last", np.array([21])), "one"], ["scores"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "bench",
        [info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            info("mask", TensorProto.UINT8, ["N", "H1", "W1"]),
            info("scores", TensorProto.FLOAT, ["N", 20]),
            info("confidence", TensorProto.UINT8, ["N", "H2", "W2"]),
        ],
        weights,
    )
    folder = root / "bench" / "1"
    folder.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    (folder / "model.json").write_text(json.dumps(card_of(folder)))
    return root


def card_of(folder: Path) -> dict[str, Any]:
    names = [f"class{k}" for k in range(20)]
    return {
        "format": 1,
        "name": "bench",
        "version": 1,
        "kind": "segmenter",
        "graph": "model.onnx",
        "sha256": {"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()},
        "opset": 17,
        "classes": names,
        "labels": ["background", *names],
        "palette": [[10 * k, 5 * k, 255 - 10 * k] for k in range(21)],
        "input": {
            **{"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "RGB"},
            **{"min_side": 32, "max_side": 2048, "max_pixels": 4_000_000},
        },
        "outputs": [
            {"name": "mask", "dtype": "uint8", "shape": ["N", "H", "W"]},
            {"name": "scores", "dtype": "float32", "shape": ["N", 20]},
            {"name": "confidence", "dtype": "uint8", "shape": ["N", "H", "W"]},
        ],
        "thresholds": {"background": None, "score": 0.5},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, help="models; without it a random one of ResNet-18's cost is built")
    parser.add_argument("--model", default="", help="segmenter of that repository")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; without it, made ones of 500x375")
    parser.add_argument("--width", type=int, default=64, help="first channels of the model built; 16 is a small one")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each side in each round")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        hexes = json.load(sys.stdin)
        count, span, target, name = sys.argv[2:6]
        found = asyncio.run(call(int(count), float(span), target, name, [bytes.fromhex(image) for image in hexes]))
        print(json.dumps(found))
    else:
        main()
