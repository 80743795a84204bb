"""Measure the memory of a server under images of all sizes: after all requests against after the
first tenth.

Sizes are drawn at random, so that hardly two are equal. Leave it running with ``--requests`` in the
millions for a day's answer.

Prints the ratio and ``slope``, the slope of the least-squares line through the later half of the
samples with its 95 % interval, which should contain 0. Consecutive samples depend on each other, so
the interval is computed from the means of twenty stretches.

    python bench/soak.py
    python bench/soak.py --requests 2000000 --repository exported/ --model pets
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import command_line
import grpc
import memory
import models
import numpy as np

from serving.bench import target
from serving.bench.load import OPTIONS
from serving.bench.target import Running
from wsss.v1 import segmentation_pb2 as pb

CALLERS = 4
IMAGES = 400
STRETCHES = 20
# Student's t of 95 % with 18 degrees of freedom: twenty stretches, two of them spent on the line.
T_95 = 2.101


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        repository = options.repository or models.write_segmenter(Path(folder))
        with target.server(repository, *options.set) as running:
            samples = asyncio.run(soak(running, options))
    print(json.dumps(summary(samples, options.requests)))


async def soak(running: Running, options: argparse.Namespace) -> list[tuple[int, float]]:
    """Pairs of requests answered and megabytes that the server holds."""
    assert running.process
    rng = np.random.default_rng(0)
    sides = rng.integers(options.min_side, options.max_side + 1, (IMAGES, 2)).tolist()
    messages = [
        pb.SegmentRequest(
            image=pb.Image(encoded=target.made_image(width, height, number)), model=options.model
        ).SerializeToString()
        for number, (width, height) in enumerate(sides)
    ]
    every = max(1, options.requests // 400)
    pid = running.process.pid
    answers, samples = 0, [(0, memory.resident(pid) / 2**20)]
    async with grpc.aio.insecure_channel(running.address, options=OPTIONS) as channel:
        call = channel.unary_unary(target.SEGMENT)

        async def caller(first: int) -> None:
            nonlocal answers
            for number in range(first, options.requests, CALLERS):
                await call(messages[number % IMAGES], timeout=60)
                answers += 1
                if answers % every == 0:
                    samples.append((answers, memory.resident(pid) / 2**20))
                    if answers % (40 * every) == 0:
                        print(
                            json.dumps({"requests": answers, "mb": round(samples[-1][1], 1)}),
                            flush=True,
                        )

        await asyncio.gather(*(caller(first) for first in range(CALLERS)))
    return samples


def summary(samples: list[tuple[int, float]], requests: int) -> dict[str, Any]:
    counts, sizes = (np.array(column, float) for column in zip(*samples))
    later = counts >= requests / 2
    slope, spread = line(counts[later] / 1000, sizes[later])
    at = {share: float(np.interp(share * requests, counts, sizes)) for share in (0.1, 1.0)}
    return {
        "requests": requests,
        "mb_at_start": round(sizes[0], 1),
        "mb_after_tenth": round(at[0.1], 1),
        "mb_at_end": round(at[1.0], 1),
        "ratio": round(at[1.0] / at[0.1], 4),
        "aim": 1.05,
        "slope_mb_per_1000": round(slope, 4),
        "slope_95": [round(slope - spread, 4), round(slope + spread, 4)],
    }


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least squares line through the means of twenty stretches, and half of its 95 %
    interval.
    """
    x, y = (
        np.array([part.mean() for part in np.array_split(values, STRETCHES)]) for values in (x, y)
    )
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    error = float(np.sqrt((left @ left) / (STRETCHES - 2) / (centred @ centred)))
    return slope, T_95 * error


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="number of requests")
    parser.add_argument(
        "--repository", type=Path, help="folder of models; without it, a small random one"
    )
    parser.add_argument("--model", default="", help="model of that repository")
    parser.add_argument("--min-side", type=int, default=64, help="shortest side of an image")
    parser.add_argument("--max-side", type=int, default=256, help="longest side of an image")
    parser.add_argument(
        "--set", action="append", default=[], help="setting of the server; may be repeated"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
