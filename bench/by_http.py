"""Compare HTTP with gRPC: JPEGs to PNG masks, the same server and callers, taking turns.

The model is made here and has the cost of a ResNet-18. Aim: HTTP answers at least 0.9 times as many
requests as gRPC. The memory that the API adds to an idle server is measured, too: that of the
server and of the process that listens on the HTTP port. Aim: at most 40 MB.

Prints a JSON object for each round, then the medians.

    python bench/by_http.py
    python bench/by_http.py --side 512 --rounds 6 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import command_line
import memory
import models

from serving.bench import load, target
from serving.bench.load import Load, Request
from wsss.v1 import segmentation_pb2 as pb

IMAGES = 16


def main() -> None:
    options = arguments()
    images = [target.made_image(options.side, options.side, seed) for seed in range(IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        models.write_resnet(Path(folder))
        idle = {api: idle_bytes(Path(folder), api) for api in ("false", "true")}
        name = next(path.name for path in Path(folder).iterdir())
        messages = tuple(
            pb.SegmentRequest(image=pb.Image(encoded=image), model=name).SerializeToString()
            for image in images
        )
        grpc = Request(target.SEGMENT, messages)
        rounds = []
        with target.server(Path(folder)) as running:
            sides: dict[str, Callable[[], Load]] = {
                "grpc": lambda: load.closed(
                    running.address, grpc, options.callers, options.seconds, options.count
                ),
                "http": lambda: asyncio.run(
                    closed(running.http_port, name, images, options.callers, options.seconds)
                ),
            }
            for side in sides.values():
                side()
            for number in range(options.rounds):
                # Each side goes first as often as the other.
                order = list(sides)[:: 1 if number % 2 else -1]
                loads = {side: sides[side]() for side in order}
                rounds.append(figures(loads))
                print(json.dumps(rounds[-1]), flush=True)
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    medians["api_idle_mb"] = (idle["true"] - idle["false"]) / 1e6
    print(json.dumps({key: round(value, 3) for key, value in medians.items()}))


def figures(loads: dict[str, Load]) -> dict[str, float]:
    for side, one in loads.items():
        assert set(one.codes) == {"OK"}, f"{side} answered {dict(one.codes)}"
    return {
        "ratio": loads["http"].rate / loads["grpc"].rate,
        **{f"{side}_per_second": one.rate for side, one in loads.items()},
        **{f"{side}_p99_ms": 1e3 * one.wait(0.99) for side, one in loads.items()},
    }


async def closed(port: int, model: str, images: list[bytes], callers: int, seconds: float) -> Load:
    """Callers who each wait for their answer, on one connection each."""
    result, began = Load(), time.perf_counter()
    ends = began + seconds
    turn = itertools.cycle(images)

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < ends:
            sent, image = time.perf_counter(), next(turn)
            head = (
                f"POST /v1/models/{model}/segment HTTP/1.1\r\nhost: x\r\n"
                f"content-type: image/jpeg\r\ncontent-length: {len(image)}\r\n\r\n"
            )
            writer.write(head.encode() + image)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            now, status = time.perf_counter(), lines[0].split()[1]
            result.codes["OK" if status == "200" else status] += 1
            result.waits.append(now - sent)
            result.in_time += now <= ends
        writer.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    result.seconds = min(seconds, time.perf_counter() - began)
    return result


def idle_bytes(repository: Path, api: str) -> int:
    """Memory of an idle server and of the process of its HTTP port."""
    with target.server(repository, f"http.api={api}") as running:
        assert running.process is not None
        pid = running.process.pid
        return sum(map(memory.private, (pid, *memory.children(pid))))


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--side", type=int, default=512, help="height and width of the JPEGs")
    parser.add_argument("--callers", type=int, default=4, help="callers at once")
    parser.add_argument("--rounds", type=int, default=4, help="rounds; medians count")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load in a round")
    parser.add_argument("--count", type=int, default=100_000, help="requests of one load at most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
