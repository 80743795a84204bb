"""One engine against another, served end to end: JPEG in, PNG mask out, OpenVINO in bfloat16 against onnxruntime in float32.

Models are segmenters as `wsss-trainer` exports them, with random weights: dilated networks at output stride 8, or a
repository of your own. One server runs for each engine; rounds alternate between them, the callers are a process of
their own. Printed: the ratio of each round, its median, the bare engines' ratio in this process (one call after the
other, on one thread each), and the share of equal pixels (agreement of random weights says nothing of trained ones,
whose classes are further apart). Target: at least 2.5 for a network of ResNet-50's class.

    python bench/engines.py --model resnet50
    python bench/engines.py --repository exported/ --model pets --images photos/
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import serve

from serving import pipeline
from serving.card import read_card
from serving.config import EngineConfig, Limits
from serving.engines import Plan
from serving.engines.agreement import agreement
from serving.engines.choice import choose_engine
from serving.image import decode

RANDOM = ("resnet50", "mobilenet_v2")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        repository = options.repository or export_random(Path(folder), options.model, options.output_stride)
        version = max(int(path.name) for path in (repository / options.model).iterdir() if path.name.isdecimal())
        card = read_card(repository / options.model / str(version))
        images = serve.read_images(options.images)
        engines = {name: choose_engine(card, Plan(), EngineConfig(name)) for name in options.engines}
        fast, exact = engines
        told = {"model": options.model, "engines": [engine.description for engine in engines.values()]}
        told["equal_pixels"] = round(agreement(card, engines[fast], engines[exact]), 5)
        bare = bare_seconds(engines, card, images, options.rounds)
        told["bare_ms"] = {name: round(1e3 * value, 1) for name, value in bare.items()}
        told["bare_ratio"] = round(bare[exact] / bare[fast], 3)
        print(json.dumps(told), flush=True)
        addresses = {name: start(servers, repository, name) for name in engines}
        rounds = []
        for number in range(options.rounds + 1):
            # In turn first and second, so that a drift of the machine favours neither.
            order = list(engines)[:: 1 if number % 2 else -1]
            rates = {name: serve.server_rate(addresses[name], images, options.model, options)[0] for name in order}
            # The first round warms both up.
            if number:
                rounds.append({fast: rates[fast], exact: rates[exact], "ratio": rates[fast] / rates[exact]})
                print(json.dumps({key: round(value, 3) for key, value in rounds[-1].items()}), flush=True)
    medians = {key: round(statistics.median(each[key] for each in rounds), 3) for key in rounds[0]}
    print(json.dumps({"median": medians, "rounds": len(rounds), "callers": options.concurrency, "target": 2.5}))


def bare_seconds(engines: dict[str, Any], card: Any, images: list[bytes], rounds: int) -> dict[str, float]:
    """Median seconds of a run of each engine, in turn on the same image."""
    prepared = pipeline.prepare(decode(images[0], Limits()), card)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.run({"image": prepared.batch})
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def start(servers: ExitStack, repository: Path, engine: str) -> str:
    """Address of a server that runs until the stack ends."""
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", "0", "--engine", engine]
    process = subprocess.Popen(
        [*command, "--repository", str(repository)], cwd=serve.ROOT, stdout=subprocess.PIPE, text=True
    )
    servers.callback(process.wait)
    servers.callback(process.terminate)
    assert process.stdout
    return process.stdout.readline().split()[-1]


def export_random(root: Path, backbone: str, output_stride: int) -> Path:
    """A repository with one segmenter of 20 classes on this backbone, exported by the trainer's own code."""
    import torch

    from trainer.graphs import SegmenterGraph
    from trainer.nets import build_backbone
    from trainer.nets.deeplab import AsppSegmenter
    from trainer.onnx_graph import to_onnx

    torch.manual_seed(0)
    net = AsppSegmenter(build_backbone(backbone, output_stride, bn="frozen", dilate=True), 21)
    print(f"exporting {backbone} with random weights, about a minute", file=sys.stderr)
    folder = root / backbone / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(to_onnx(SegmenterGraph(net.eval())).SerializeToString())
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    card = serve.card_of(folder) | {"name": backbone, "sha256": {"model.onnx": digest}}
    (folder / "model.json").write_text(json.dumps(card))
    return root


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help=f"{' or '.join(RANDOM)}, or a name in --repository")
    parser.add_argument("--output-stride", type=int, default=8, help="of the network with random weights")
    parser.add_argument("--repository", type=Path, help="models; without it one with random weights is exported")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; without it, made ones of 500x375")
    parser.add_argument("--engines", nargs=2, default=("openvino", "onnxruntime"), help="the fast one, the exact one")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each side in each round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
