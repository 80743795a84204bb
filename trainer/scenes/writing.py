"""Synthetic scenes in VOC layout, for trying the whole path without a download."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.palette import encode_index_png
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.outputs import check_folder
from trainer.progress import progress_bar
from trainer.scenes.rendering import NAMES, render

FORMAT = 1
VAL_EVERY = 4


def write_synthetic(
    out: Path,
    count: int = 240,
    size: int = 128,
    seed: int = 0,
    difficulty: float = 0.5,
    classes: int = 6,
    progress: bool = False,
) -> None:
    """Write ``count`` scenes to ``out`` in VOC layout; every fourth goes to the ``val`` list.

    Image i depends on ``(seed, i)`` and the settings only, so a longer data set begins with the
    shorter one, byte for byte, and an interrupted one is completed.

    Args:
        size: longer side in pixels; the shorter side is 3/4 of it or more.
        difficulty: 0..1. Higher values bring more classes per image, smaller and more varied
            figures, clutter, occlusion, shade and noise. From 0.5 on, coats say nothing about the
            class.
        classes: number of classes, 2 to 10.
        progress: show a bar on stderr.

    Raises:
        DataError: a setting out of range, or a folder that holds scenes with other settings.
        TargetError: a folder that holds something else.
    """
    out = Path(out)
    settings = {"size": size, "seed": seed, "difficulty": difficulty, "classes": classes}
    _check_range("count", count, 1, 1_000_000)
    _check_range("size", size, 32, 2048)
    _check_range("difficulty", difficulty, 0, 1)
    _check_range("classes", classes, 2, len(NAMES))
    _claim(out, {"format": FORMAT, **settings}, count)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = {}
    with progress_bar("scenes", count, progress) as advance:
        for index in range(count):
            name = f"scene_{index:05d}"
            image = out / "JPEGImages" / f"{name}.jpg"
            mask = out / "SegmentationClass" / f"{name}.png"
            # Files are whole or absent, so those that are there can stay.
            if not (image.is_file() and mask.is_file()):
                _write_scene(image, mask, index, size, seed, difficulty, classes)
            with Image.open(mask) as label:
                present = np.unique(np.asarray(label))
            rows[name] = [int(value in present) for value in range(1, classes + 1)]
            advance()
    _write_tables(out, NAMES[:classes], rows)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise DataError(
            f"{name}={value}",
            f"{name} from {low} to {high}",
            f"--{name} {min(max(value, low), high)}",
        )


def _claim(out: Path, settings: dict[str, float], count: int) -> None:
    """Check that ``out`` is empty or holds the same data set, then write the settings into it."""
    note = out / "synthetic.json"
    if note.is_file():
        try:
            old = dict(json.loads(note.read_text(encoding="utf-8")))
            present = int(old.pop("count", 0))
        except (ValueError, TypeError) as error:
            raise DataError(f"{note} cannot be read: {error}", "a new or empty folder") from error
        if old != settings:
            differences = ", ".join(
                f"{k}={old.get(k)}" for k, v in settings.items() if old.get(k) != v
            )
            raise DataError(
                f"{out} holds scenes with other settings ({differences})",
                "the same settings, or an empty folder",
            )
        # Fewer scenes would leave files that no table names.
        if present > count:
            raise DataError(
                f"{out} already holds {present} scenes",
                f"--count {present} or more, or an empty folder",
            )
    check_folder(out, lambda folder: note.is_file())
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(note, json.dumps({**settings, "count": count}, indent=1).encode())


def _write_scene(
    image: Path, mask: Path, index: int, size: int, seed: int, difficulty: float, classes: int
) -> None:
    picture, label = render(index, size, seed, difficulty, classes)
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=90)
    write_atomic(mask, encode_index_png(label))
    write_atomic(image, jpeg.getvalue())


def _write_tables(out: Path, names: tuple[str, ...], rows: dict[str, list[int]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([["image_id", *names], *([name, *row] for name, row in rows.items())])
    write_atomic(out / "image_labels.csv", table.getvalue().encode())
    classes = [{"voc_index": k, "name": name} for k, name in enumerate(names, 1)]
    content = json.dumps({"classes": classes, "ignore": 255}, indent=1)
    write_atomic(out / "classes.json", content.encode())
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for number, name in enumerate(rows, 1):
        lists["train" if number % VAL_EVERY else "val"].append(f"{name}\n")
    for name, ids in lists.items():
        write_atomic(out / "ImageSets" / "Segmentation" / f"{name}.txt", "".join(ids).encode())
