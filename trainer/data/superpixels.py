"""Super-pixels of the training images, made once by SLIC and kept as 16-bit PNG files.

CPN's code runs SLIC on every augmented crop, a second of work each. Here SLIC runs once on the
photograph, in RGB from 0 to 1, and the ids follow the image through resize, flip and crop.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.dataset import Record
from trainer.data.headers import DECODER_ERRORS
from trainer.data.pixels import image_size, read_image
from trainer.data.transforms import resize_long
from trainer.errors import DataError
from trainer.files import is_whole, write_atomic
from trainer.pool import each_image

MAX_SUPERPIXELS = 10_000
"""SLIC may make up to four times as many as asked for, and ids have 16 bits."""
LONG_SIDE = 1024
"""Larger photographs are made this large first, for time and memory: no training view is larger."""

Ids = npt.NDArray[np.uint16]


def make_superpixels(
    records: Sequence[Record],
    folder: Path,
    count: int,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Write ``<id>.png`` of every record, in a process pool; whole files newer than the image are
    kept.

    Args:
        records: images.
        folder: for this number of super-pixels.
        count: super-pixels asked for in each image.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar.

    Raises:
        DataError: images that cannot be read; the others' files are there nevertheless.
        RunError: no space left or a killed worker.
    """
    each_image(
        partial(_make_one, folder, count),
        records,
        "images have no super-pixels, all others have",
        workers,
        "superpixels",
        progress,
        lambda record: record.id,
    )


def read_superpixels(record: Record, folder: Path) -> Ids:
    """Ids from 1 on, ``uint16 [H,W]``, of the photograph or of its smaller copy.

    Raises:
        DataError: missing or damaged.
    """
    path = folder / f"{record.id}.png"
    ids = read_ids(path)
    if not ids.all():
        raise _unusable(path, "holds no super-pixels", "super-pixels of this image: ids from 1 on")
    return ids


def read_ids(path: Path) -> Ids:
    """Ids of segments, ``uint16 [H,W]``.

    Raises:
        DataError: missing or damaged.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            ids = np.array(image)
    except DECODER_ERRORS as error:
        raise _unusable(path, f"cannot be read: {error}", "segments of this image") from error
    if ids.dtype != np.uint16 or ids.ndim != 2:
        raise _unusable(path, "holds no segments", "ids of segments in 16 bits")
    return ids


def write_ids(path: Path, ids_HW: Ids) -> None:
    """Write ids as a 16-bit PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(ids_HW).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def _unusable(path: Path, problem: str, expected: str) -> DataError:
    return DataError(f"{path} {problem}", expected, "run the same command again")


def superpixels(pixels: npt.NDArray[np.uint8], count: int) -> Ids:
    """See ``slic_superpixels``; of a large photograph, those of a smaller copy."""
    if max(pixels.shape[:2]) > LONG_SIDE:
        pixels = np.asarray(resize_long(Image.fromarray(pixels), LONG_SIDE))
    return slic_superpixels(pixels, count)


def slic_superpixels(pixels: npt.NDArray[np.uint8], count: int) -> Ids:
    """About ``count`` super-pixels of an image ``[H,W,3]``: ids from 1 on, ``[H,W]``."""
    from skimage.segmentation import slic

    # The compactness of CPN's code.
    ids = slic(pixels / 255.0, n_segments=count, compactness=10, start_label=1, channel_axis=-1)
    return np.asarray(ids, dtype=np.uint16)


def renumbered(ids: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """The ids that occur as 1, 2, ... in their order; 0 stays 0."""
    present = np.bincount(ids.ravel()) > 0
    present[0] = False
    return np.asarray(np.where(present, present.cumsum(), 0)[ids], dtype=np.int64)


def _make_one(folder: Path, count: int, record: Record) -> None:
    if is_whole(_fits, record, folder):
        return
    write_ids(folder / f"{record.id}.png", superpixels(read_image(record.image), count))


def _fits(record: Record, folder: Path) -> bool:
    rows, columns = read_superpixels(record, folder).shape
    height, width = image_size(record.image)
    scale = min(1.0, LONG_SIDE / max(height, width))
    # Sides were rounded to whole pixels.
    fits = abs(rows - height * scale) < 1 and abs(columns - width * scale) < 1
    # A newer photograph may have replaced the one that these belong to.
    ids, image = (path.stat().st_mtime for path in (folder / f"{record.id}.png", record.image))
    return bool(fits and ids >= image)
