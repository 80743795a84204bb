"""What --detail costs: time and memory of a training step and of maps, coarse against fine.

Each side runs in a process of its own, in turn, round after round; figures are medians. Images are
noise: the time does not depend on what they show. "maps" is an image of 324 x 270 at the scales of
the protocol, with its mirror image; "large" is an image of 2000 x 1500 at scale 1, reduced to
cams.pixels or in tiles.

    python bench/detail.py --backbone efficientnet_lite0 --rounds 3
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import children
import command_line
import memory
import numpy as np
import torch
from PIL import Image

from trainer.data.dataset import Record
from trainer.data.sizes import TILE
from trainer.maps.protocols import PROTOCOLS, CamsConfig, Protocol
from trainer.methods import cam
from trainer.methods.base import Method
from trainer.methods.registry import build_method
from trainer.run import Output
from trainer.stages.cams import make_cams
from trainer.training.inference import Views

CLASSES = 5
SIDES = ("coarse", "fine")
ONE_VIEW = Protocol(Views(scales=(1.0,)))


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--crop", type=int, default=256, help="side of the training crops")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure this one only, in this process")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.backbone, args.crop, args.batch)))
        return
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side in SIDES:
            rows[side].append(json.loads(children.output(*sys.argv, "--side", side)))
    for figure in rows["coarse"][0]:
        coarse, fine = (statistics.median(row[figure] for row in rows[side]) for side in SIDES)
        print(f"{figure:24} coarse {coarse:8.2f}  fine {fine:8.2f}  ratio {fine / coarse:.2f}")


def measure(side: str, backbone: str, crop: int, batch: int) -> dict[str, float]:
    """Figures of one side."""
    torch.manual_seed(0)
    config = cam.Config(pooling="lse")
    method = build_method("cam", config, backbone, {"bn": "adapt", "detail": side}, CLASSES)
    figures = {"step, s": step_seconds(method, crop, batch), "step, GB": memory.peak() / 1e9}
    with tempfile.TemporaryDirectory() as folder:
        figures["maps, s"] = maps_seconds(method, side, Path(folder), (270, 324), PROTOCOLS["psa"])
        figures["large, s"] = maps_seconds(method, side, Path(folder), (1500, 2000), ONE_VIEW)
    return figures | {"large, GB": memory.peak() / 1e9}


def step_seconds(method: Method, crop: int, batch: int, steps: int = 3) -> float:
    """Forward and backward, the median after one step to warm up."""
    method.train().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, crop, crop).to(memory_format=torch.channels_last)
    tags = torch.zeros(batch, CLASSES)
    times = []
    for _ in range(steps + 1):
        start = time.monotonic()
        losses = method.loss({"image": images, "tags": tags}, np.random.default_rng(0))
        torch.stack([*losses.values()]).sum().backward()
        times.append(time.monotonic() - start)
        method.zero_grad(set_to_none=True)
    return statistics.median(times[1:])


def maps_seconds(
    method: Method, side: str, folder: Path, size: tuple[int, int], protocol: Protocol
) -> float:
    """The stage's maps of one image."""
    path = folder / f"{size[0]}.png"
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    config = CamsConfig(tile=TILE if side == "fine" else 0)
    times = []
    for turn in range(3):
        record = Record(f"{size[0]}-{turn}", path, (0,))
        start = time.monotonic()
        make_cams(method, [record], Output(folder), protocol, config)
        times.append(time.monotonic() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
