"""Contact sheets of the worst images of a figure: photograph, truth, prediction, and where the two
differ.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngInfo

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.evaluation.over_lists import MaskSource, mask_reader
from trainer.evaluation.predictions import open_predictions
from trainer.files import write_atomic
from trainer.outputs import MARK, check_file, is_marked
from trainer.pool import each_image
from trainer.report.overlays import ERRORS, contact_sheet, error_map, overlay_mask

Pixels = npt.NDArray[np.uint8]

ROWS = 10
HEIGHT = 160


def holds_sheets(folder: Path) -> bool:
    """Whether there are sheets of an earlier command."""
    return any(map(is_marked, folder.glob("*.png")))


def write_worst(
    dataset: Dataset,
    worst: Sequence[dict[str, Any]],
    masks: MaskSource,
    folder: Path,
    name: str,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """Write ``<name>-1.png``, ... with ``ROWS`` images each, the worst first, and return their
    paths.

    Args:
        dataset: of the images.
        worst: ``worst`` of an entry of ``evaluation.json``.
        masks: reads the label map of an image.
        folder: where the sheets go; made if need be.
        name: of the files.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar.

    Raises:
        DataError: images or masks that cannot be read, listed.
        TargetError: a file of that name is there and no such sheet.
    """
    mious = {entry["id"]: entry["miou"] for entry in worst}
    work = partial(_row, dataset, mask_reader(masks), mious)
    records = [dataset.records[name] for name in mious]
    rows = each_image(
        work,
        records,
        "images cannot be shown",
        workers,
        f"pictures {name}",
        progress,
        lambda r: r.id,
    )
    paths = []
    for first in range(0, len(rows), ROWS):
        sheet = contact_sheet(rows[first : first + ROWS], HEIGHT, dataset.classes, ERRORS)
        path = folder / f"{name}-{first // ROWS + 1}.png"
        check_file(path)
        buffer, info = io.BytesIO(), PngInfo()
        info.add_text("Software", MARK)
        sheet.save(buffer, "PNG", pnginfo=info)
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths


def write_worst_of_run(
    run_dir: Path,
    evaluation: dict[str, dict[str, Any]],
    folder: Path,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """``write_worst`` of every stage and list of a run: ``<stage>-<list>-1.png``, ..."""
    paths = []
    for stage, lines in evaluation.items():
        for name, entry in lines.items():
            dataset, masks = open_predictions(run_dir, stage, name, entry)
            sheets = write_worst(
                dataset,
                entry["worst"],
                masks,
                folder,
                f"{stage}-{name}",
                workers=workers,
                progress=progress,
            )
            paths += sheets
    return paths


def _row(
    dataset: Dataset, read: Callable[[Record], Pixels], mious: dict[str, float], record: Record
) -> list[tuple[Pixels, str]]:
    image, truth, pred = read_image(record.image), dataset.read_mask(record), read(record)
    tags = ", ".join(dataset.classes[k] for k in record.tags)
    return [
        (image, f"{record.id}: {tags}"),
        (overlay_mask(image, truth), "truth"),
        (overlay_mask(image, pred), f"prediction, mIoU {100 * mious[record.id]:.1f} %"),
        (error_map(image, pred, truth), "errors"),
    ]
