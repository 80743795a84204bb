"""Measure how much memory an engine takes while images of many sizes come.

Each engine runs in its own process, first on images of many sizes, then on one size. The model is a
MobileNetV2 segmenter with random weights, exported by the trainer's own code, or one of a
repository.

Prints the megabytes beyond the loaded model after each eighth of the runs. A plateau is what the
engine keeps. A line that rises to the end is a leak or a cache without a bound.

    python bench/engine_memory.py
    python bench/engine_memory.py --repository exported/ --model pets
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import children
import command_line
import engines as engine_bench
import memory
import numpy as np

from serving.config import EngineConfig
from serving.engines import Plan
from serving.repository.choice import choose_engine
from serving.repository.soundness import read_size


def main() -> None:
    options = arguments()
    if options.child:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        repository = options.repository or engine_bench.export_random(
            Path(folder), options.model, 16
        )
        for engine in options.engines:
            for fixed in ((), ("--fixed", "320x320")):
                model = ["--repository", repository, "--model", options.model]
                words = ["--child", engine, *model, *fixed, "--runs", options.runs]
                print(children.output(__file__, *words), end="", flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Megabytes beyond the loaded model after each eighth of the runs."""
    card = engine_bench.newest(options.repository, options.model)
    engine = choose_engine(card, Plan(), EngineConfig(options.child))
    rng, loaded, began, megabytes = random.Random(0), memory.resident(), time.perf_counter(), []
    for run in range(1, options.runs + 1):
        drawn = (rng.randint(128, 640), rng.randint(128, 640))
        height, width = read_size(options.fixed) if options.fixed else drawn
        engine.run({"image": np.zeros((1, height, width, 3), np.uint8)})
        if run % (options.runs // 8) == 0:
            megabytes.append(round((memory.resident() - loaded) / 1e6))
    seconds = round(time.perf_counter() - began, 1)
    sizes = options.fixed or "128 to 640"
    return {
        "engine": engine.description,
        "sizes": sizes,
        "megabytes": megabytes,
        "seconds": seconds,
    }


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--repository", type=Path, help="folder of models; without it, a model with random weights"
    )
    parser.add_argument(
        "--model",
        default="mobilenet_v2",
        help="network with random weights, or a name in --repository",
    )
    parser.add_argument(
        "--engines", nargs="+", default=["openvino", "onnxruntime"], help="engines to measure"
    )
    parser.add_argument("--runs", type=int, default=240, help="runs of each engine")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--fixed", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
