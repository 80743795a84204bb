"""Time the encodings of masks on one core, and COCO's strings against pycocotools.

The sides take turns within one process. pycocotools is called once per class, as its users do; ours
encodes all classes in one pass over the label map, and must give the same bytes. Aims: the run
lengths of all classes at least 4 times as fast as pycocotools, label runs within 0.4 ms at 512x512
on a quiet machine.

Prints the median milliseconds per mask of each encoding, and the ratio to pycocotools.

    python bench/encodings.py
    python bench/encodings.py --masks masks/   # palette PNGs of `wsss-serving label`
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import command_line
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from serving.images import encodings, masks, polygons

SIZES = ((375, 500), (512, 512), (1080, 1920), (3000, 4000))
CLASSES = 20
PALETTE = [(12 * k, 255 - 12 * k, 6 * k) for k in range(CLASSES + 1)]


def main() -> None:
    options = arguments()
    if options.masks:
        label_maps = [
            masks.read_png(path.read_bytes())
            for path in sorted(options.masks.rglob("*.png"))[: options.count]
        ]
        cases = {f"{len(label_maps)} masks of {options.masks.name}": label_maps}
    else:
        cases = {f"{height}x{width}": [made(height, width)] for height, width in SIZES}
    for name, maps in cases.items():
        print(json.dumps({"masks": name, **measured(maps, options.rounds)}), flush=True)


def measured(maps: list[np.ndarray], rounds: int) -> dict[str, object]:
    """Median milliseconds per mask of every encoding, the mean number of runs, and the ratio of
    pycocotools to ours.
    """
    for labels in maps:
        assert encodings.coco_counts(labels) == per_class(labels), "the strings differ"
    sides: dict[str, Callable[[np.ndarray], object]] = {
        "label_runs": encodings.label_runs,
        "areas_and_boxes": lambda labels: boxes(encodings.label_runs(labels), labels.shape[1]),
        "coco_rle": encodings.coco_counts,
        "pycocotools": per_class,
        "polygons": polygons.rings,
        "png": lambda labels: masks.encode_labels(labels, PALETTE),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds + 1):
        for side, work in sides.items():
            began = time.perf_counter()
            for labels in maps:
                work(labels)
            times[side].append(1e3 * (time.perf_counter() - began) / len(maps))
    # The first round warms up.
    ratio = statistics.median(
        b / a for a, b in zip(times["coco_rle"][1:], times["pycocotools"][1:])
    )
    medians = {
        f"{side}_ms": round(statistics.median(spent[1:]), 3) for side, spent in times.items()
    }
    runs = statistics.mean(len(encodings.label_runs(labels).labels) for labels in maps)
    return {"runs": round(runs), **medians, "pycocotools_by_coco_rle": round(ratio, 2)}


def boxes(runs: encodings.Runs, width: int) -> tuple[object, object]:
    return encodings.areas(runs), encodings.boxes(runs, width)


def per_class(labels: np.ndarray) -> dict[int, bytes]:
    """The usual way with pycocotools: encode a column-wise mask of each class that occurs."""
    return {
        int(k): coco.encode(np.asfortranarray(labels == k))["counts"]
        for k in np.unique(labels)
        if k
    }


def made(height: int, width: int) -> np.ndarray:
    """A mask like that of a photograph: a few large regions with wavy borders."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, CLASSES + 1, (4, 5), dtype=np.uint8)
    waves = [
        np.asarray(
            Image.fromarray(rng.normal(0, 6, (24, 32)).astype(np.float32)).resize(
                (width, height), 2
            )
        )
        for _ in range(2)
    ]
    rows, columns = np.mgrid[:height, :width]
    y = np.clip((rows + waves[0]) * 4 / height, 0, 3.999).astype(int)
    x = np.clip((columns + waves[1]) * 5 / width, 0, 4.999).astype(int)
    return np.ascontiguousarray(coarse[y, x])


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder of palette PNGs; without it, synthetic masks of four sizes",
    )
    parser.add_argument("--count", type=int, default=64, help="masks to take from that folder")
    parser.add_argument("--rounds", type=int, default=9, help="rounds; medians count")
    return parser.parse_args()


if __name__ == "__main__":
    main()
