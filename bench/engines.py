"""Compare two engines behind the server, JPEG in and PNG mask out: OpenVINO in bfloat16 against
onnxruntime in float32.

The model is a segmenter as `wsss-trainer export` writes it: a dilated network at output stride 8
with random weights, or one of a repository. Each engine has its own server, and rounds alternate
between them; this process is the callers. The aim is a ratio of 2.5 for a network like ResNet-50.

Prints the ratio of each round and its median, the ratio of the bare engines in this process (one
call after the other, on one thread each), and the share of equal pixels. The share with random
weights says nothing about trained ones, whose classes are further apart.

    python bench/engines.py --model resnet50
    python bench/engines.py --repository exported/ --model pets --images photos/
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import command_line
import models

from serving.bench import load, target
from serving.bench.target import Target
from serving.card import Card
from serving.config import EngineConfig, Limits
from serving.engines import Plan
from serving.images import pipeline
from serving.images.decoding import decode
from serving.repository.agreement import agreement
from serving.repository.choice import choose_engine
from serving.repository.versions import read_repository

RANDOM = ("resnet50", "mobilenet_v2")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        repository = options.repository or export_random(
            Path(folder), options.model, options.output_stride
        )
        card = newest(repository, options.model)
        photos = Target(card, target.read_images(options.images))
        engines = {
            name: choose_engine(card, Plan(), EngineConfig(name)) for name in options.engines
        }
        fast, exact = engines
        facts = {
            "model": options.model,
            "engines": [engine.description for engine in engines.values()],
        }
        facts["equal_pixels"] = round(agreement(card, engines[fast], engines[exact]), 5)
        bare = bare_seconds(engines, photos, options.rounds)
        facts["bare_ms"] = {name: round(1e3 * value, 1) for name, value in bare.items()}
        facts["bare_ratio"] = round(bare[exact] / bare[fast], 3)
        print(json.dumps(facts), flush=True)
        running = {
            name: servers.enter_context(target.server(repository, f"engine.name={name}"))
            for name in engines
        }
        rounds = []
        for number in range(options.rounds + 1):
            # The order alternates, so that a drift of the machine favours neither.
            order = list(engines)[:: 1 if number % 2 else -1]
            rates = {}
            for name in order:
                loaded = (
                    running[name].address,
                    photos.request(),
                    options.concurrency,
                    options.seconds,
                )
                rates[name] = load.closed(*loaded, count=1_000_000).rate
            # The first round warms both up.
            if number:
                rounds.append(
                    {fast: rates[fast], exact: rates[exact], "ratio": rates[fast] / rates[exact]}
                )
                print(
                    json.dumps({key: round(value, 3) for key, value in rounds[-1].items()}),
                    flush=True,
                )
    medians = {key: round(statistics.median(each[key] for each in rounds), 3) for key in rounds[0]}
    print(
        json.dumps(
            {
                "median": medians,
                "rounds": len(rounds),
                "callers": options.concurrency,
                "target": 2.5,
            }
        )
    )


def newest(repository: Path, model: str) -> Card:
    """The card of a model's highest version."""
    versions = read_repository(repository)[model]
    return versions[max(versions)]


def bare_seconds(engines: dict[str, Any], photos: Target, rounds: int) -> dict[str, float]:
    """Median seconds of a run of each engine, in turn on the same image."""
    prepared = pipeline.prepare(decode(photos.images[0], Limits()), photos.card)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.run({"image": prepared.batch})
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def export_random(root: Path, backbone: str, output_stride: int) -> Path:
    """Export one segmenter of 20 classes on this backbone with the trainer's own code; returns the
    repository.
    """
    import torch

    from trainer.export.onnx_graph import to_onnx
    from trainer.nets import build_backbone
    from trainer.nets.aspp import AsppSegmenter
    from trainer.nets.graphs import SegmenterGraph

    torch.manual_seed(0)
    net = AsppSegmenter(build_backbone(backbone, output_stride, bn="frozen", dilate=True), 21)
    print(f"exporting {backbone} with random weights, about a minute", file=sys.stderr)
    graph = to_onnx(SegmenterGraph(net.eval()))
    return models.write(root, backbone, graph, *models.segmenter_shapes(), models.segmenter_card())


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--model", default="resnet50", help=f"{' or '.join(RANDOM)}, or a name in --repository"
    )
    parser.add_argument(
        "--output-stride", type=int, default=8, help="of the network with random weights"
    )
    parser.add_argument(
        "--repository", type=Path, help="folder of models; without it, a model with random weights"
    )
    parser.add_argument(
        "--images", type=Path, help="folder of JPEGs; without it, synthetic ones of six sizes"
    )
    parser.add_argument(
        "--engines",
        nargs=2,
        default=("openvino", "onnxruntime"),
        help="the fast engine, then the exact one",
    )
    parser.add_argument("--concurrency", type=int, default=4, help="callers at once")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians count")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of the load of each side in each round"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
