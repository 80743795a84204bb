"""Compare two Ray nodes of one core with one process of two threads: labelling a folder, in turns.

All processes share the same two cores. The model is made here and has the cost of a ResNet-18.
Speed is that of the second half of the images, so that starting and loading do not count. Aim: the
nodes reach at least 0.85 times the speed of the process.

With ``--memory N``, N images are labelled on the nodes while the memory of this process, which
writes, and of the actors is measured. Aim: the last tenth needs at most 1.1 times what the second
tenth needs.

Prints a JSON object for each round, then the medians.

    python bench/ray_label.py
    python bench/ray_label.py --images 400 --rounds 5 --memory 10000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import command_line
import memory
import models

from serving.bench import target
from serving.config import EngineConfig
from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig

DIFFERENT = 16
"""Images that differ; the others are links to them."""
CORES = 2
ACTOR = "ray::MapWorker"
"""What the command line of an actor begins with."""
SAMPLES = 40
"""How often memory is measured."""


def main() -> None:
    options = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as name, cluster() as address:
        folder = Path(name)
        models.write_resnet(folder / "exported")
        rounds = []
        source = photographs(folder / "speed", options.images, options.side)
        for number in range(options.rounds):
            # Each side goes first as often as the other.
            order = ["process", "nodes"][:: 1 if number % 2 else -1]
            rates = {
                side: speed(folder, source, f"{side}{number}", address if side == "nodes" else "")
                for side in order
            }
            rounds.append(
                {
                    "ratio": rates["nodes"] / rates["process"],
                    **{f"{side}_per_second": rate for side, rate in rates.items()},
                }
            )
            print(json.dumps(rounds[-1]), flush=True)
        medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        if options.memory:
            source = photographs(folder / "memory", options.memory, options.memory_side)
            medians |= growth(folder, source, options.memory, address)
    print(json.dumps({key: round(value, 3) for key, value in medians.items()}))


def speed(folder: Path, source: Path, out: str, address: str) -> float:
    """Images a second of the second half."""
    times: list[float] = []
    summary = label(
        config(folder, source, out, address), lambda count, total: times.append(time.monotonic())
    )
    assert summary.failed == 0, f"{summary.failed} images failed"
    half = len(times) // 2
    return (len(times) - half) / (times[-1] - times[half - 1])


def growth(folder: Path, source: Path, images: int, address: str) -> dict[str, float]:
    """MB of this process and of the actors, in the second and the last tenth of the images."""
    samples: list[tuple[int, int]] = []

    def progress(count: int, total: int) -> None:
        if count % max(1, images // SAMPLES) == 0:
            actors = [pid for pid in memory.children() if memory.command(pid).startswith(ACTOR)]
            samples.append((memory.private(), sum(map(memory.private, actors))))

    label(config(folder, source, "memory-out", address), progress)
    tenth = len(samples) // 10
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    figures: dict[str, float] = {}
    for column, name in enumerate(("writer", "actors")):
        means = [statistics.mean(one[column] for one in part) for part in (early, late)]
        figures |= {
            f"{name}_early_mb": means[0] / 1e6,
            f"{name}_late_mb": means[1] / 1e6,
            f"{name}_growth": means[1] / means[0],
        }
    return figures


def config(folder: Path, source: Path, out: str, address: str) -> LabelConfig:
    return LabelConfig(
        source,
        folder / out,
        folder / "exported",
        engine=EngineConfig(name="onnxruntime"),
        workers=CORES,
        ray=address,
    )


def photographs(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number}.jpg"
        if number < DIFFERENT:
            path.write_bytes(target.made_image(side, side, number))
        else:
            path.hardlink_to(folder / f"{number % DIFFERENT}.jpg")
    return folder


@contextmanager
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes of one core."""
    # Nothing is reported, and the actors have the priority of this process, not a lower one.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(CORES):
            nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
        yield nodes.address
    finally:
        nodes.shutdown()


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--images", type=int, default=300, help="of a round")
    parser.add_argument("--side", type=int, default=512, help="height and width of the JPEGs")
    parser.add_argument("--rounds", type=int, default=4, help="rounds; medians count")
    parser.add_argument("--memory", type=int, default=0, help="images to measure memory with")
    parser.add_argument("--memory-side", type=int, default=128, help="height and width of those")
    return parser.parse_args()


if __name__ == "__main__":
    main()
