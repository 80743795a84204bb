"""Measure the server on a random model: the figures of ``wsss-serving bench``, and four more.

The model is made here, so that everybody measures the same one. ``resnet`` has the cost of a
ResNet-18 and answers JPEGs with masks. ``segmenter`` is a small one. ``mask`` is small too and
takes the float32 [1,3,256,256] that servers are compared with (``bench/peers``), by the Open
Inference Protocol.

Prints each figure with its aim. The four more are ``batch-wait``, ``rounded-sizes``, ``labelling``
and ``probe-wait``.

    python bench/serve.py
    python bench/serve.py --net mask --rounds 6
    python bench/serve.py --only all-callers,labelling --images photos/
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import command_line
import models
from server_experiments import LABELLING, PROBES, ROUNDED, WAITING

from serving.bench import SERVED, bench
from serving.bench.setting import BenchConfig
from serving.commands.bench import print_table
from serving.commands.progress import progress_bar
from serving.config import EngineConfig
from serving.errors import ServingError

NETS: dict[str, Callable[[Path], object]] = {
    "resnet": models.write_resnet,
    "segmenter": models.write_segmenter,
    "mask": models.write_mask,
}
ALL = (SERVED, WAITING, ROUNDED, LABELLING, PROBES)
OF_TENSORS = (SERVED, WAITING, PROBES)


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        NETS[options.net](Path(folder))
        config = BenchConfig(
            Path(folder),
            images=options.images,
            engine=EngineConfig(name=options.engine),
            callers=options.callers,
            rounds=options.rounds,
            seconds=options.seconds,
            count=options.count,
            only=tuple(options.only.split(",")) if options.only else (),
        )
        try:
            with progress_bar("measuring", images=False) as progress:
                results = bench(config, progress, OF_TENSORS if options.net == "mask" else ALL)
        except ServingError as error:
            print(error, file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(results))
    else:
        print_table(results)
    return 0


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--net", choices=NETS, default="resnet", help="model to serve")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; without it, synthetic ones")
    parser.add_argument("--engine", default="auto", help="engine of the server")
    parser.add_argument("--callers", type=int, default=4, help="callers at once")
    parser.add_argument("--rounds", type=int, default=4, help="rounds; medians count")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each load in a round")
    parser.add_argument("--count", type=int, default=20_000, help="requests of one load at most")
    parser.add_argument("--only", default="", help="figures to measure, separated by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
