"""The Open Inference Protocol against the bare engine: float32 [1,3,256,256] in (0.8 MB), a label map out.

The loop runs the engine in this process, one call after the other on one thread. The server is a process of its own and
answers one, then four callers from a third process; callers send bytes made before, so that their own codec does not
count. Rounds alternate; each ratio is that of one round's two figures, the median is printed. Other work on the machine
flatters the server; ``cpu_ms``, processor time of a call, is what such work hardly touches. Targets: ``serving.md`` 4.5,
0.6 with one caller and 1.0 with four on two cores are what the best peers reach.

    python bench/open_inference.py
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from serving.repository import read_repository  # noqa: E402
from wsss.inference import open_inference_pb2 as pb  # noqa: E402

SIDE = 256
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        card = read_repository(build_repository(Path(folder)))["net"][1]
        engine = OnnxRuntimeEngine(card, 1)
        command = [sys.executable, "-m", "serving.cli", "serve", "--port", "0", "--repository", folder]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            address = server.stdout.readline().split()[-1]
            check(engine, address)
            rounds = []
            for number in range(options.rounds + 1):
                rate, cost = loop_rate(engine, options.seconds)
                found = {"loop": rate, "loop_cpu_ms": cost}
                for callers in (1, 4):
                    served = server_rate(address, callers, options.seconds, server.pid)
                    found |= {f"{key}_c{callers}": value for key, value in served.items()}
                    found[f"ratio_c{callers}"] = served["rate"] / found["loop"]
                # The first round warms both up.
                if number:
                    rounds.append(found)
                    print(json.dumps({key: round(value, 3) for key, value in found.items()}), flush=True)
        finally:
            server.terminate()
            server.wait()
    print(json.dumps({"median": {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}}))


def image() -> Any:
    return np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)


def request() -> bytes:
    message = pb.ModelInferRequest(model_name="net", raw_input_contents=[image().tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 3, SIDE, SIDE))
    return message.SerializeToString()


def loop_rate(engine: Any, seconds: float) -> tuple[float, float]:
    """Runs a second, and milliseconds of processor time that each took."""
    values, done, began, used = image(), 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        engine.run({"x": values})
        done += 1
    return done / (time.perf_counter() - began), 1e3 * (time.process_time() - used) / done


def check(engine: Any, address: str) -> None:
    """Both sides say the same."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        reply = pb.ModelInferResponse.FromString(channel.unary_unary(METHOD)(request()))
    (expected,) = engine.run({"x": image()}).values()
    assert reply.raw_output_contents[0] == expected.tobytes()


def server_rate(address: str, callers: int, seconds: float, pid: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--call", address, str(callers), str(seconds)]
    before = cpu_seconds(pid)
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found | {"cpu_ms": 1e3 * (cpu_seconds(pid) - before) / found.pop("calls")}


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads together."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def call(address: str, callers: int, seconds: float) -> dict[str, float]:
    import grpc

    waits: list[float] = []
    message = request()
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        infer = channel.unary_unary(METHOD)
        await asyncio.gather(*(infer(message) for _ in range(callers)))
        began = time.perf_counter()

        async def caller() -> None:
            while time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                await infer(message)
                waits.append(time.perf_counter() - sent)

        await asyncio.gather(*(caller() for _ in range(callers)))
        rate = len(waits) / (time.perf_counter() - began)
    p50, p99 = (1e3 * float(np.quantile(waits, share)) for share in (0.5, 0.99))
    return {"rate": rate, "calls": len(waits) + callers, "p50_ms": p50, "p99_ms": p99}


def build_repository(root: Path) -> Path:
    """A random net of nine depthwise blocks, 21 classes and some 4 ms on one core, the label map as its output."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{kind}{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def conv(source: str, inputs: int, outputs: int, size: int, stride: int = 1, group: int = 1) -> str:
        kernel = rng.standard_normal((outputs, inputs // group, size, size)) * np.sqrt(
            2 * group / (inputs * size * size)
        )
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{len(weights)}"))
        pads = [size // 2] * 4
        return add("Conv", source, weights[-1].name, strides=[stride] * 2, pads=pads, group=group)

    x, channels = add("Relu", conv("x", 3, 16, 3, 2)), 16
    for outputs, stride in ((24, 2), (32, 2), (48, 1), (64, 2), (64, 1), (96, 1), (96, 1), (128, 1), (128, 1)):
        x = add("Relu", conv(x, channels, channels, 3, stride, channels))
        x, channels = add("Relu", conv(x, channels, outputs, 1)), outputs
    logits = conv(x, channels, 21, 1)
    weights.append(numpy_helper.from_array(np.array([1, 1, 16, 16], np.float32), "scales"))
    full = add("Resize", logits, "", "scales", mode="linear")
    best = add("ArgMax", full, axis=1, keepdims=0)
    nodes.append(helper.make_node("Cast", [best], ["mask"], to=TensorProto.UINT8))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [info("mask", TensorProto.UINT8, ["N", SIDE, SIDE])],
        weights,
    )
    folder = root / "net" / "1"
    folder.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = {
        "format": 1,
        "name": "net",
        "version": 1,
        "kind": "tensor",
        "graph": "model.onnx",
        "sha256": {"model.onnx": digest},
    }
    (folder / "model.json").write_text(json.dumps(card))
    return root


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each figure in each round")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        print(json.dumps(asyncio.run(call(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))))
    else:
        main()
