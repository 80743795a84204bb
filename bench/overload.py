"""Check that a server with little memory survives many callers who all send the largest images.

The server is held to ``--memory-mb`` by a control group (version 1 or 2, where this user may create
one), or by ``ulimit -v`` (``--ulimit``), and its images to half of that. It must survive, and every
refusal must have a code, a reason and a time to retry.

Prints the replies by code and reason, whether the server survived, and the most memory that it
held.

    python bench/overload.py
    python bench/overload.py --callers 64 --seconds 60 --memory-mb 4096 --ulimit
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import command_line
import grpc
import memory
import models
import numpy as np
from PIL import Image

from serving.bench import target
from serving.bench.load import OPTIONS
from serving.bench.target import Running
from serving.rpc.status import from_call
from wsss.v1 import segmentation_pb2 as pb

CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
SIDE = 7000


def main() -> None:
    options = arguments()
    size = options.memory_mb * 2**20
    with tempfile.TemporaryDirectory() as folder:
        repository = models.write_segmenter(Path(folder))
        settings = (f"limits.max_decoded_bytes={size // 2}", *options.set)
        with (
            target.server(repository, *settings) as running,
            held(running, size, options.ulimit) as holder,
        ):
            replies = asyncio.run(overload(running, options))
            assert running.process
            figures = {
                "held_by": holder,
                "callers": options.callers,
                "replies": dict(replies),
                "alive": running.process.poll() is None,
                "peak_mb": memory.peak(running.process.pid) / 2**20,
                "limit_mb": options.memory_mb,
            }
    print(json.dumps(figures))


def images() -> dict[str, bytes]:
    """Files at the limit of pixels or at the limit of bytes."""
    flat = Image.new("RGB", (SIDE, SIDE), (40, 160, 90))
    noise = np.random.default_rng(0).integers(0, 256, (3200, 3200, 3), dtype=np.uint8)
    deep = Image.fromarray(np.full((SIDE, SIDE), 30_000, np.uint16))
    pictures: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "JPEG": (flat, "JPEG", {}),
        "progressive JPEG": (flat, "JPEG", {"progressive": True}),
        "PNG": (flat, "PNG", {"compress_level": 1}),
        "16-bit PNG": (deep, "PNG", {"compress_level": 1}),
        "WebP": (flat, "WEBP", {"quality": 50, "method": 0}),
        "TIFF": (flat, "TIFF", {"compression": "tiff_lzw"}),
        "BMP of 30 MB": (Image.fromarray(noise), "BMP", {}),
    }
    files = {}
    for name, (image, kind, settings) in pictures.items():
        file = io.BytesIO()
        image.save(file, kind, **settings)
        files[name] = file.getvalue()
    return files


async def overload(running: Running, options: argparse.Namespace) -> Counter[str]:
    """Replies by code and reason, with a remark where a refusal lacks its details."""
    messages = [
        pb.SegmentRequest(image=pb.Image(encoded=data)).SerializeToString()
        for data in images().values()
    ]
    replies: Counter[str] = Counter()
    until = time.monotonic() + options.seconds

    async def caller(first: int) -> None:
        number = first
        async with grpc.aio.insecure_channel(running.address, options=OPTIONS) as channel:
            call = channel.unary_unary(target.SEGMENT)
            while time.monotonic() < until:
                try:
                    await call(messages[number % len(messages)], timeout=options.timeout)
                    replies["OK"] += 1
                except grpc.RpcError as error:
                    refusal = from_call(error)
                    retry = (
                        "" if "retry_after_seconds" in refusal.metadata else ", no time to retry"
                    )
                    replies[f"{refusal.code} {refusal.reason}{retry}"] += 1
                    await asyncio.sleep(float(refusal.metadata.get("retry_after_seconds", 0.1)))
                number += options.callers + 1

    await asyncio.gather(*(caller(first) for first in range(options.callers)))
    return replies


@contextmanager
def held(running: Running, size: int, ulimit: bool) -> Iterator[str]:
    """Limit the server to ``size`` bytes of memory; yields the name of the mechanism."""
    assert running.process
    pid = running.process.pid
    if ulimit:
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
        yield "ulimit -v"
        return
    for root, limit in CGROUPS:
        group = root / f"wsss-overload-{pid}"
        try:
            group.mkdir()
            (group / limit).write_text(str(size))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            continue
        try:
            yield f"control group {root}"
        finally:
            (root / "cgroup.procs").write_text(str(pid))
            group.rmdir()
        return
    yield "nothing"


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--callers", type=int, default=64, help="callers at once")
    parser.add_argument("--seconds", type=float, default=60, help="length of the load")
    parser.add_argument(
        "--timeout", type=float, default=30, help="seconds that a caller waits for its answer"
    )
    parser.add_argument("--memory-mb", type=int, default=4096, help="memory of the server")
    parser.add_argument(
        "--ulimit", action="store_true", help="limit memory by ulimit -v, not by a control group"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="setting of the server; may be repeated"
    )
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
