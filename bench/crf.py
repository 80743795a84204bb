"""Time the dense CRF: a process pool against one image after another, and one lattice for two
unaries against a lattice each.

Both sides of the first comparison start from photographs and maps on disk and end with masks on
disk, as the stage ``refine`` does: starting the workers, reading, pickling and writing count.

Prints images a second of each side, the ratios, and whether masks and bits are equal.

    python bench/crf.py --images 200
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import command_line
import numpy as np
from PIL import Image

from trainer.cores import cores
from trainer.data.dataset import Dataset, Record
from trainer.maps.camfile import cam_path, write_cam
from trainer.refine.crf import PRESETS, DenseCrf, dense_crf, unary_from_softmax
from trainer.refine.pseudo_masks import RefineConfig, make_pseudo_masks


def scene(number: int, height: int, width: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of soft regions with noise, and scores that roughly follow it."""
    rng = np.random.RandomState(number)
    y, x = np.mgrid[:height, :width] / 60.0
    base = (
        120 + 60 * np.sin(x + number) + 50 * np.cos(1.3 * y) + 50 * (np.hypot(x - 2, y - 1.5) < 0.9)
    )
    image = np.clip(
        base[..., None] * [1, 0.8, 0.6] + rng.normal(0, 6, (height, width, 3)), 0, 255
    ).astype(np.uint8)
    scores = (
        np.stack([np.exp(-((x - 0.9 * k) ** 2 + (y - 0.7 * k) ** 2)) for k in range(labels)]) + 0.02
    )
    return image, (scores / scores.sum(0)).astype(np.float32)


def write_scenes(args: argparse.Namespace, folder: Path) -> list[Record]:
    """Write photographs, and one map for each label other than the background."""
    tags = tuple(range(args.labels - 1))
    (folder / "images").mkdir()
    records = []
    for number in range(args.images):
        image, scores = scene(number, args.height, args.width, args.labels)
        path = folder / "images" / f"{number}.jpg"
        Image.fromarray(image).save(path, quality=95)
        write_cam(
            cam_path(folder / "cams", str(number)),
            tags,
            scores[1:, ::4, ::4],
            (args.height, args.width),
        )
        records.append(Record(str(number), path, tags))
    return records


def pooled(args: argparse.Namespace, folder: Path) -> None:
    records, names = write_scenes(args, folder), tuple(f"class {k}" for k in range(args.labels - 1))
    by_id = {record.id: record for record in records}
    dataset = Dataset(
        folder,
        "folder",
        names,
        tuple(range(1, args.labels)),
        by_id,
        {"all": tuple(by_id)},
        "the bench",
    )
    config = RefineConfig(crf=args.preset, crf_backend=args.backend)
    seconds = {}
    for workers in (0, args.workers):
        start = time.perf_counter()
        make_pseudo_masks(
            dataset, records, folder / "cams", folder / str(workers), config, 0.3, workers
        )
        seconds[workers] = time.perf_counter() - start
    alone, pool = (seconds[workers] for workers in (0, args.workers))
    masks = [
        {p.name: p.read_bytes() for p in (folder / str(workers)).iterdir()}
        for workers in (0, args.workers)
    ]
    print(f"one after another    {args.images / alone:8.2f} images/s")
    print(
        f"pool of {args.workers:<3d}          {args.images / pool:8.2f} images/s   ratio"
        f" {alone / pool:.2f}   equal files {masks[0] == masks[1]}"
    )
    if masks[0] != masks[1]:
        raise SystemExit("masks differ")


def shared(args: argparse.Namespace) -> None:
    p, few = PRESETS[args.preset], max(args.images // 8, 4)
    seconds = {"apart": 0.0, "shared": 0.0}
    equal = True
    for number in range(few):
        image, scores = scene(number, args.height, args.width, args.labels)
        unaries = [
            unary_from_softmax(np.concatenate([scores[:1] ** a, scores[1:]])) for a in (0.5, 2)
        ]
        start = time.perf_counter()
        apart = [
            dense_crf(image, u, p.iterations, p.gaussian, p.bilateral, args.backend)
            for u in unaries
        ]
        middle = time.perf_counter()
        crf = DenseCrf(image, p.gaussian, p.bilateral, args.backend)
        together = [crf.infer(u, p.iterations) for u in unaries]
        seconds["shared"] += time.perf_counter() - middle
        seconds["apart"] += middle - start
        equal &= all(np.array_equal(a, b) for a, b in zip(apart, together))
    print(f"two unaries, apart   {few / seconds['apart']:8.2f} images/s")
    ratio = seconds["apart"] / seconds["shared"]
    print(
        f"two unaries, shared  {few / seconds['shared']:8.2f} images/s   ratio {ratio:.2f}   equal"
        f" bits {equal}"
    )
    if not equal:
        raise SystemExit("probabilities differ")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--images", type=int, default=200, help="number of images")
    parser.add_argument("--height", type=int, default=240, help="height of the images")
    parser.add_argument("--width", type=int, default=320, help="width of the images")
    parser.add_argument(
        "--labels", type=int, default=3, help="number of labels, background included"
    )
    parser.add_argument("--preset", choices=PRESETS, default="P1", help="parameters of the CRF")
    parser.add_argument(
        "--backend",
        choices=("pydensecrf", "torch"),
        default="pydensecrf",
        help="library of the CRF",
    )
    parser.add_argument("--workers", type=int, default=cores(), help="processes of the pool")
    args = parser.parse_args()
    print(
        f"{args.preset} {args.backend}, {args.height}x{args.width}, {args.labels} labels,"
        f" {args.images} images"
    )
    with tempfile.TemporaryDirectory() as folder:
        pooled(args, Path(folder))
    shared(args)


if __name__ == "__main__":
    main()
