"""Training images a second of several processes with one thread each against one process with as
many threads.

Both sides train the same network with the same batch, which the processes share as those of
torchrun do. They take turns of a few steps, so that a drift of the machine favours none; the other
side sleeps meanwhile. Medians over the rounds count.

Prints the images a second of each side, the ratio, and each round.

    python bench/processes.py
    python bench/processes.py --processes 4 --backbone resnet50 --batch 32
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import command_line
from children import Child


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--backbone", default="mobilenet_v2", help="network")
    parser.add_argument("--batch", type=int, default=16, help="images of a step, in all processes")
    parser.add_argument("--size", type=int, default=256, help="side of an image, pixels")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train(args)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Let both sides take turns."""
    one, several = f"1 process of {args.processes} threads", f"{args.processes} processes of 1"
    speeds: dict[str, list[float]] = {one: [], several: []}
    with contextlib.ExitStack() as stack:
        sides = {
            one: stack.enter_context(Side(1, args.processes)),
            several: stack.enter_context(Side(args.processes, 1)),
        }
        for side in sides.values():
            # The first turn allocates.
            side.turn(args.steps)
        for _ in range(args.rounds):
            for name, side in sides.items():
                speeds[name].append(side.turn(args.steps))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {"images_per_second": medians, "ratio": medians[several] / medians[one]}
    if args.json:
        print(json.dumps({**result, "rounds": speeds}, indent=1))
        return
    for name, values in speeds.items():
        every = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name:24s} {medians[name]:7.2f} images/s   ({every})")
    print(f"ratio {result['ratio']:.2f}")


class Side:
    """Processes that train together, with the environment that torchrun gives them.

    Args:
        count: of the processes.
        threads: of each.
    """

    def __init__(self, count: int, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "bench",
            "OMP_NUM_THREADS": threads,
        }
        self.processes = []
        for number in range(count):
            own = {**shared, "RANK": number, "LOCAL_RANK": number} if count > 1 else {}
            env = {**os.environ, "OMP_NUM_THREADS": str(threads), **{k: str(own[k]) for k in own}}
            self.processes.append(Child([*sys.argv, "--child"], env))

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.stop()

    def turn(self, steps: int) -> float:
        """Images a second of a few steps."""
        for process in self.processes:
            process.ask(steps)
        # The slowest counts: a step is done when all are.
        return min(process.answer() for process in self.processes)


def train(args: argparse.Namespace) -> None:
    """Answer each line on stdin, a number of steps, with the images a second in them."""
    import train_step

    from trainer.ranks import rank, world_size
    from trainer.training.devices import launch

    launch("cpu")
    images, tags = train_step.batches(args.batch, args.size, 1)[0]
    size = args.batch // world_size()
    own = slice(rank() * size, (rank() + 1) * size)
    with tempfile.TemporaryDirectory() as folder:
        method = train_step.build(args.backbone, images)
        step = train_step.our_step(method, Path(folder), args.batch)
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(int(line)):
                step((images[own], tags[own]))
            seconds = time.perf_counter() - start
            print(int(line) * args.batch / seconds, flush=True)


if __name__ == "__main__":
    main()
