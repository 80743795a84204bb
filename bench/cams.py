"""Time class activation maps over scales and mirror images: batched, against one view at a time.

Ours runs images of equal size together with their mirror images. The other side does what the
released scripts do: one image, one scale and one mirror image at a time, Pillow resize, NCHW, batch
norm as a module, every class map up-sampled to the full image, masked by the tags, summed and
normalised. Ours also writes its files. Maps are compared at the stored size (stride 4); merging the
other side's raw maps for that is not timed.

Prints for each side images a second, its ratio to the other side, and the largest difference of
maps.

    python bench/cams.py --images 8 --backbone mobilenet_v2 --protocol psa
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from train_step import CLASSES, Plain, build

from trainer.data.dataset import Record
from trainer.data.image_files import list_images
from trainer.data.pixels import image_size
from trainer.data.transforms import MEAN, STD
from trainer.maps.camfile import stride4
from trainer.maps.protocols import PROTOCOLS, CamsConfig, Protocol, merge
from trainer.methods.base import Method
from trainer.run import Output
from trainer.stages import cams
from trainer.stages.cams import make_cams
from trainer.training.devices import Precision
from trainer.training.memory import keep_freed_memory

Maps = dict[str, np.ndarray]
Raw = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


def pictures(folder: Path, count: int, width: int, height: int) -> list[Record]:
    """JPEG files of soft coloured noise, half of them in portrait format."""
    records = []
    for n in range(count):
        size = (width, height) if n % 2 else (height, width)
        coarse = np.random.default_rng(n).integers(
            0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8
        )
        path = folder / f"{n}.jpg"
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
        records.append(Record(path.stem, path, tuple(sorted({n % CLASSES, (7 * n + 3) % CLASSES}))))
    return records


def ours(
    method: Method,
    records: list[Record],
    protocol: Protocol,
    config: CamsConfig,
    folder: Path,
    device: str,
) -> Maps:
    """The maps of ``make_cams`` as it hands them to its writer, before they are rounded."""
    maps_by_id: Maps = {}
    # Where the stage looks the writer up.
    stage: Any = cams
    write = stage.write_cam

    def note(path: Path, tags: Any, maps: Any, *more: Any) -> None:
        maps_by_id[path.stem] = maps
        write(path, tags, maps, *more)

    stage.write_cam = note
    try:
        # A new folder: maps that are there are not made again.
        with tempfile.TemporaryDirectory(dir=folder) as place:
            make_cams(method, records, Output(Path(place)), protocol, config, device)
    finally:
        stage.write_cam = write
    return maps_by_id


@torch.no_grad()
def released(
    plain: Plain, records: list[Record], protocol: Protocol, device: str
) -> tuple[Maps, Raw]:
    """Full-size maps of the tagged classes, and the raw maps for the comparison."""
    maps_by_id: Maps = {}
    raw: Raw = {}
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    for record in records:
        picture = Image.open(record.image).convert("RGB")
        size = picture.size[::-1]
        label = np.zeros((CLASSES, 1, 1), np.float32)
        label[list(record.tags)] = 1
        total = np.zeros((CLASSES, *size), np.float32)
        raw[record.id] = []
        for scale in protocol.views.scales:
            side = protocol.views.size(*size, scale)
            resized = picture.resize(side[::-1], Image.Resampling.BICUBIC)
            normalised = (np.asarray(resized, np.float32) / 255 - mean) / std
            image = np.ascontiguousarray(normalised.transpose(2, 0, 1))
            pair: list[torch.Tensor] = []
            for pixels in (image, image[:, :, ::-1].copy()):
                view = torch.from_numpy(pixels)[None].to(device)
                maps = F.relu(F.conv2d(plain.body(view), plain.classifier.weight)).cpu()
                full = (
                    F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].numpy()
                    * label
                )
                total += full[:, :, ::-1] if pair else full
                pair.append(maps[0, list(record.tags)])
            raw[record.id].append((pair[0], pair[1]))
        maps_by_id[record.id] = (total / (total.max((1, 2), keepdims=True) + 1e-5))[
            list(record.tags)
        ]
    return maps_by_id, raw


def difference(maps: Maps, raw: Raw, records: list[Record], protocol: Protocol) -> float:
    largest = 0.0
    for record in records:
        expected = (
            merge(raw[record.id], stride4(image_size(record.image)), protocol).clamp(0, 1).numpy()
        )
        largest = max(largest, float(np.abs(maps[record.id] - expected).max()))
    return largest


def compare(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Time all sides in turns and print a line for each; returns its figures by side."""
    records = pictures(folder, args.images, args.width, args.height)
    if args.folder:
        records = [
            Record(p.stem, p, (n % CLASSES,))
            for n, p in enumerate(list_images(args.folder)[: args.images])
        ]
    protocol = PROTOCOLS[args.protocol]
    method = build(args.backbone, torch.randn(2, 3, 256, 256), args.weights)
    plain = Plain(args.backbone, method).eval().to(args.device)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    configs = {
        # Every view counts, as on the other side, however small its map.
        name: CamsConfig(precision=name, batch=args.batch, workers=args.workers, min_cells=1)
        for name in precisions
    }
    sides: dict[str, Callable[[], object]] = {
        "one by one, fp32": lambda: released(plain, records, protocol, args.device)
    }
    for precision, config in configs.items():
        sides[f"batched, {precision}"] = partial(
            ours, method, records, protocol, config, folder, args.device
        )
    times: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for _ in range(args.rounds):
        for name, side in sides.items():
            keep_freed_memory(name.startswith("batched"))
            start = time.perf_counter()
            results[name] = side()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["one by one, fp32"])
    raw: Raw = results["one by one, fp32"][1]
    figures: dict[str, dict[str, float]] = {}
    for name in sides:
        median = statistics.median(times[name])
        figures[name] = {"per_second": len(records) / median, "ratio": base / median}
        line = f"{name:18s} {len(records) / median:8.2f} images/s   ratio {base / median:5.2f}"
        if name.startswith("batched"):
            gap = difference(results[name], raw, records, protocol)
            figures[name]["map_gap"] = gap
            line += f"   largest difference of maps {gap:.1e}"
        print(line)
    return figures


def main() -> None:
    args = arguments()
    print(
        f"{args.backbone}, protocol {args.protocol}, {args.images} images, {CLASSES} classes, "
        f"{torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options in ``words``, or in the command line."""
    parser = command_line.parser(__doc__)
    command_line.add_backbone(parser, "network of the maps")
    parser.add_argument("--weights", type=Path, help="a weight file; without one, random weights")
    parser.add_argument(
        "--protocol", choices=[n for n in PROTOCOLS if PROTOCOLS[n].mirror == "add"], default="psa"
    )
    parser.add_argument("--folder", type=Path, help="folder of images; without it, synthetic ones")
    parser.add_argument("--images", type=int, default=8, help="number of images")
    parser.add_argument("--width", type=int, default=320, help="width of synthetic images")
    parser.add_argument("--height", type=int, default=240, help="height of synthetic images")
    parser.add_argument(
        "--batch",
        type=int,
        default=CamsConfig().batch,
        help="images of equal size per pass of our side",
    )
    parser.add_argument(
        "--workers", type=int, default=-1, help="loader processes of our side; -1 chooses by cores"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; medians count")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
