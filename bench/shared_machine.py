"""How much of its speed a training step, the map making and a bare request of the server keep
beside busy processes of equal priority.

Every variant (a number of threads, and how idle threads wait) is a process of its own. The variants
take turns, each in a short window alone and one beside the busy processes, so that a drift of the
machine favours none; medians over the rounds count.

Prints for each variant the images a second alone and beside, and the share of the fastest speed
alone that it keeps. The aim is 0.55 on two cores beside one busy process.

    python bench/shared_machine.py
    python bench/shared_machine.py --work train --threads 1 2 --wait active passive
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
from children import Child

WORKS = ("train", "maps", "server")
WAITS = {
    "product": {},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "default": {"OMP_WAIT_POLICY": ""},
    "short": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""How threads wait for each other: as the product sets it, or one of OpenMP's ways."""
SETTLE = 3.0
"""Seconds of work before each window."""
Step = Callable[[], int]
"""Does some work and returns its number of images."""


def training_step(args: argparse.Namespace, folder: Path) -> Step:
    import train_step

    (batch,) = train_step.batches(16, 256, 1)
    step = train_step.our_step(train_step.build(args.backbone, batch[0]), folder, 16)

    def work() -> int:
        step(batch)
        return 16

    return work


def map_making(args: argparse.Namespace, folder: Path) -> Step:
    import cams
    import train_step

    from trainer.maps.protocols import PROTOCOLS, CamsConfig

    ((images, _),) = train_step.batches(2, 128, 1)
    method = train_step.build(args.backbone, images).eval()
    records = cams.pictures(folder, 2, 256, 192)
    # No loader process: it would be one more that wants a core.
    config = CamsConfig(workers=0)

    def work() -> int:
        cams.ours(method, records, PROTOCOLS["psa"], config, folder, "cpu")
        return len(records)

    return work


def request(args: argparse.Namespace, folder: Path) -> Step:
    import models
    import numpy as np

    from serving.card import read_card
    from serving.config import EngineConfig
    from serving.engines import Plan
    from serving.repository.choice import choose_engine

    models.write_resnet(folder)
    card = read_card(folder / "resnet" / "1")
    engine = choose_engine(card, Plan(threads=args.threads), EngineConfig(args.engine))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 384, 512, 3), dtype=np.uint8)

    def work() -> int:
        engine.run({"image": pixels})
        return 1

    return work


def child(args: argparse.Namespace) -> None:
    """Answer each line on stdin, a number of seconds, with the images a second in that time."""
    watch: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if args.work != "server":
        from trainer import cores

        if args.wait == ["product"]:
            cores.wait_briefly()
            # The product looks less often; here it has to notice within ``SETTLE``.
            cores.PERIOD = SETTLE / 3
            watch = cores.shared_cores()
        import torch

        if args.threads:
            torch.set_num_threads(args.threads)
    makers = {"train": training_step, "maps": map_making, "server": request}
    answers = sys.stdout
    # What the work prints is no answer.
    sys.stdout = sys.stderr
    with tempfile.TemporaryDirectory() as folder, watch:
        step = makers[args.work](args, Path(folder))
        for line in itertools.chain(["0"], iter(sys.stdin.readline, "")):
            speed(step, SETTLE)
            print(speed(step, float(line)), file=answers, flush=True)


def speed(step: Step, seconds: float) -> float:
    """Images a second."""
    images, start = 0, time.monotonic()
    while not images or time.monotonic() - start < seconds:
        images += step()
    return images / (time.monotonic() - start)


class Variant:
    """A child, which works only while it is asked."""

    def __init__(self, args: argparse.Namespace, work: str, threads: int, wait: str) -> None:
        self.name = {"work": work, "threads": threads or "default", "wait": wait}
        words = [__file__, "--child", "--work", work, "--threads", str(threads)]
        words += ["--backbone", args.backbone, "--engine", args.engine, "--wait", wait]
        environment = {**os.environ, **WAITS[wait]}
        self.process = Child(words, {name: text for name, text in environment.items() if text})
        self.process.answer()
        self.alone: list[float] = []
        self.beside: list[float] = []

    def measure(self, seconds: float) -> float:
        self.process.ask(seconds)
        return self.process.answer()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that never wait."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(args: argparse.Namespace, work: str) -> list[dict[str, Any]]:
    variants = [
        Variant(args, work, threads, wait)
        for threads in args.threads
        # The server's engines do not use OpenMP.
        for wait in (args.wait if work != "server" else args.wait[:1])
    ]
    try:
        for _ in range(args.rounds):
            for variant in variants:
                variant.alone.append(variant.measure(args.seconds))
                with busy(args.busy):
                    variant.beside.append(variant.measure(args.seconds))
    finally:
        for variant in variants:
            variant.process.stop()
    fastest = max(statistics.median(variant.alone) for variant in variants)
    return [
        {
            **variant.name,
            "alone": round(statistics.median(variant.alone), 2),
            "beside": round(statistics.median(variant.beside), 2),
            "share": round(statistics.median(variant.beside) / fastest, 3),
        }
        for variant in variants
    ]


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS, help="what to measure")
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[0], help="threads; 0 is what the product takes"
    )
    parser.add_argument("--wait", nargs="+", choices=WAITS, default=["product"], help="see above")
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--seconds", type=float, default=5, help="of a window")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each kind")
    parser.add_argument("--backbone", default="mobilenet_v2", help="of the training and the maps")
    parser.add_argument("--engine", default="onnxruntime", help="of the server")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        (args.work,), (args.threads,) = args.work, args.threads
        child(args)
        return
    # An exception, so that no busy process is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "busy": args.busy}), flush=True)
    for work in args.work:
        for row in measure(args, work):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
