"""Time the threshold sweep: one pass over all thresholds, against one pass per threshold as the
released scripts do.

Both sides take turns, four images at a time, in one process. Prints the seconds per image of each
side and their ratio. The counts must be identical.

    python bench/sweep.py --images 40
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import command_line
import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.data.palette import write_index_png
from trainer.evaluation.metrics import confusion
from trainer.evaluation.over_lists import evaluate_cams
from trainer.evaluation.sweep import PUBLISHED_SWEEP
from trainer.maps.camfile import cam_path, read_cam, upsample_cam, write_cam

CLASSES = tuple(f"class{k}" for k in range(20))


def make_data(root: Path, images: int, height: int, width: int) -> Dataset:
    """Write masks and maps of soft blobs, one to three classes per image."""
    y, x = np.mgrid[:height, :width]
    records = {}
    for n in range(images):
        rng = np.random.RandomState(n)
        classes = sorted(rng.choice(20, 1 + n % 3, replace=False))
        truth = np.zeros((height, width), np.uint8)
        maps = []
        for k in classes:
            cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 0.3) * width
            distance = np.hypot(y - cy, x - cx) / r
            truth[distance < 1] = k + 1
            truth[abs(distance - 1) < 0.04] = 255
            maps.append(np.exp(-(distance[::4, ::4] ** 2)))
        mask = root / "truth" / f"{n}.png"
        write_index_png(mask, truth)
        write_cam(cam_path(root / "cams", str(n)), classes, np.stack(maps), (height, width))
        records[str(n)] = Record(str(n), root / f"{n}.jpg", tuple(int(k) for k in classes), mask)
    return Dataset(
        root, "voc", CLASSES, tuple(range(1, 21)), records, {"all": tuple(records)}, "bench"
    )


def many_passes(dataset: Dataset, records: list[Record], folder: Path) -> np.ndarray:
    total = np.zeros((len(PUBLISHED_SWEEP), 21, 21), np.int64)
    for t, threshold in enumerate(PUBLISHED_SWEEP):
        for record in records:
            cam = read_cam(cam_path(folder, record.id))
            stack = np.concatenate(
                [np.full((1, *cam.size), threshold, np.float32), upsample_cam(cam.maps, cam.size)]
            )
            pred = np.concatenate([[0], cam.classes + 1])[stack.argmax(0)]
            total[t] += confusion(pred, dataset.read_mask(record), 21)
    return total


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--height", type=int, default=375, help="height of the images")
    parser.add_argument("--width", type=int, default=500, help="width of the images")
    args = parser.parse_args()
    one, many = np.zeros((2, len(PUBLISHED_SWEEP), 21, 21), np.int64)
    fast = slow = 0.0
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_data(Path(folder), args.images, args.height, args.width)
        records, cams = dataset.subset("all"), Path(folder) / "cams"
        for first in range(0, len(records), 4):
            some = records[first : first + 4]
            start = time.perf_counter()
            one += evaluate_cams(dataset, some, cams, PUBLISHED_SWEEP, workers=0).confusions
            middle = time.perf_counter()
            many += many_passes(dataset, some, cams)
            fast, slow = fast + middle - start, slow + time.perf_counter() - middle
    equal = np.array_equal(one, many)
    print(f"{len(PUBLISHED_SWEEP)} thresholds, {args.images} images of {args.height}x{args.width}")
    print(f"a pass a threshold {slow / args.images:8.4f} s/image")
    print(
        f"one pass           {fast / args.images:8.4f} s/image   ratio {slow / fast:.1f}  identical"
        f" counts {equal}"
    )
    if not equal:
        raise SystemExit("counts differ")


if __name__ == "__main__":
    main()
