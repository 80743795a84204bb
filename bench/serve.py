"""The figures of ``wsss-serving bench`` and more, on a random model made for it, so that everybody
measures the same one.

``resnet`` has the cost of a ResNet-18 and is asked for masks of JPEGs; ``segmenter`` is a small
one; ``mask`` is small too and takes the float32 [1,3,256,256] that servers are compared with
(``bench/peers``), by the Open Inference Protocol.

    python bench/serve.py
    python bench/serve.py --net mask --rounds 6
    python bench/serve.py --only all-callers,labelling --images photos/
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import models
from server_experiments import LABELLING, PROBES, ROUNDED, WAITING

from serving.bench import SERVED, bench
from serving.bench.setting import BenchConfig
from serving.commands.bench import print_table
from serving.commands.options import progress_bar
from serving.config import EngineConfig
from serving.errors import ServingError

NETS = {
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
            with progress_bar("measuring") as progress:
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=NETS, default="resnet")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; made ones without")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load in a round")
    parser.add_argument("--count", type=int, default=20_000, help="requests of one load at most")
    parser.add_argument("--only", default="", help="figures to measure, with commas between")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
