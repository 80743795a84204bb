"""How late probes are while messages of 48 MB flow: ``/readyz`` of the HTTP port, and gRPC's own health service.

Two callers send float32 tensors of 48 MB to a tensor model, and get 48 MB back with ``--reply``; a third process asks for
the server's health every 20 ms. A process of its own answers the HTTP port; gRPC's health shares the event loop with
the messages. Target (``serving.md`` R14): 50 ms at the 99th percentile.

    python bench/probe.py
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wsss.inference import open_inference_pb2 as pb  # noqa: E402

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        build_repository(Path(folder), options.reply)
        ports = ("--port", "0", "--http-port", str(options.http_port))
        limit = f"limits.max_message_bytes={options.megabytes * 2**20 + 2**20}"
        command = [sys.executable, "-m", "serving.cli", "serve", *ports, "--repository", folder, "--set", limit]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            address = server.stdout.readline().split()[-1]
            for load in (False, True):
                call = [sys.executable, __file__, "--load", address, str(options.megabytes), str(options.seconds + 2)]
                callers = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2 * load)]
                time.sleep(1.5 * load)
                found = probe(address, options)
                sent = sum(int(caller.communicate()[0]) for caller in callers)
                print(json.dumps({"messages": sent, **found}), flush=True)
        finally:
            server.terminate()
            server.wait()


def probe(address: str, options: argparse.Namespace) -> dict[str, Any]:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    waits: dict[str, list[float]] = {"http": [], "grpc": []}
    ended = time.perf_counter() + options.seconds
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while time.perf_counter() < ended:
            began = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", options.http_port, timeout=30)
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 200
            connection.close()
            waits["http"].append(time.perf_counter() - began)
            began = time.perf_counter()
            assert check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
            waits["grpc"].append(time.perf_counter() - began)
            time.sleep(0.02)
    return {
        f"{kind}_{name}_ms": round(1e3 * float(np.quantile(times, share)), 1)
        for kind, times in waits.items()
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


async def load(address: str, megabytes: int, seconds: float) -> int:
    import grpc

    values = megabytes * 2**20 // 4
    message = pb.ModelInferRequest(model_name="big", raw_input_contents=[bytes(4 * values)])
    message.inputs.add(name="x", datatype="FP32", shape=(1, values))
    data, sent, began = message.SerializeToString(), 0, time.perf_counter()
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        while time.perf_counter() - began < seconds:
            await channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data)
            sent += 1
    return sent


def build_repository(root: Path, reply: bool) -> None:
    """A model that gives the largest of its numbers, or all of them as they are."""
    from onnx import TensorProto, helper, save

    info = helper.make_tensor_value_info
    node = (
        helper.make_node("Identity", ["x"], ["y"])
        if reply
        else helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=1)
    )
    shapes = [info(name, TensorProto.FLOAT, ["N", "M" if reply or name == "x" else 1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "big", [shapes[0]], [shapes[1]])
    folder = root / "big" / "1"
    folder.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = {"format": 1, "name": "big", "version": 1, "kind": "tensor", "graph": "model.onnx"}
    (folder / "model.json").write_text(json.dumps(card | {"sha256": {"model.onnx": digest}}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--http-port", type=int, default=18080)
    parser.add_argument("--reply", action="store_true", help="send the tensor back too")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        print(asyncio.run(load(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
    else:
        main()
