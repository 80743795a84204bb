"""Contact sheets of the worst images of a figure: photograph, truth, prediction and errors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.evaluation.measure import pixel_figures
from trainer.evaluation.over_lists import MaskReader, MaskSource, mask_reader
from trainer.evaluation.predictions import open_predictions
from trainer.files import write_atomic
from trainer.outputs import MARK, check_file, is_marked
from trainer.pool import each_image
from trainer.report.overlays import ERRORS, contact_sheet, error_map, overlay_mask
from trainer.report.words import tag_words

Pixels = npt.NDArray[np.uint8]

ROWS = 10
HEIGHT = 160


def holds_sheets(folder: Path) -> bool:
    """Whether a folder holds sheets of an earlier command."""
    return any(map(is_marked, folder.glob("*.png")))


def write_worst(
    dataset: Dataset,
    worst: Sequence[dict[str, Any]],
    masks: MaskSource,
    folder: Path,
    name: str,
    *,
    workers: int | None = None,
) -> list[Path]:
    """Write ``<name>-1.png``, ... with ``ROWS`` images each, the worst first; return the paths.

    Args:
        dataset: of the images.
        worst: ``worst`` of an entry of ``evaluation.json``.
        masks: returns the label map of an image.
        folder: created if it is missing.
        name: of the files.
        workers: processes; None for one a core, 0 for none.

    Raises:
        DataError: images or masks that cannot be read, listed.
        TargetError: a file of that name is there, and is no such sheet.
    """
    mious = {entry["id"]: entry["miou"] for entry in worst}
    work = partial(_row, dataset, mask_reader(masks), mious)
    records = [dataset.records[name] for name in mious]
    what, title = "images cannot be shown", f"pictures {name}"
    rows = each_image(work, records, what, workers, title, True, attrgetter("id"))
    paths = []
    for number, first in enumerate(range(0, len(rows), ROWS), 1):
        sheet = contact_sheet(rows[first : first + ROWS], HEIGHT, dataset.classes, ERRORS)
        paths.append(folder / f"{name}-{number}.png")
        _write(sheet, paths[-1])
    return paths


def _write(sheet: Image.Image, path: Path) -> None:
    check_file(path)
    buffer, info = io.BytesIO(), PngInfo()
    # By this mark a later command knows that it may replace the file.
    info.add_text("Software", MARK)
    sheet.save(buffer, "PNG", pnginfo=info)
    write_atomic(path, buffer.getvalue())


def write_worst_of_run(
    run_dir: Path,
    evaluation: dict[str, dict[str, Any]],
    folder: Path,
    *,
    workers: int | None = None,
) -> list[Path]:
    """``write_worst`` of every stage and list of a run: ``<stage>-<list>-1.png``, ..."""
    paths = []
    for stage, name, entry in pixel_figures(evaluation):
        dataset, masks = open_predictions(run_dir, stage, name, entry)
        title = f"{stage}-{name}"
        paths += write_worst(dataset, entry["worst"], masks, folder, title, workers=workers)
    return paths


def _row(
    dataset: Dataset, reader: MaskReader, mious: dict[str, float], record: Record
) -> list[tuple[Pixels, str]]:
    image, truth, mask = read_image(record.image), dataset.read_mask(record), reader(record)
    tags = tag_words(record, dataset.classes)
    return [
        (image, f"{record.id}: {tags}"),
        (overlay_mask(image, truth), "truth"),
        (overlay_mask(image, mask), f"prediction, mIoU {100 * mious[record.id]:.1f} %"),
        (error_map(image, mask, truth), "errors"),
    ]
