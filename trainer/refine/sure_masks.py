"""Pseudo masks without the pixels that are likely wrong, where some true masks can tell.

The maps of an image say how sure its mask is: a pixel of class k is as sure as the map of k is
high, a background pixel as all maps are low. On the images with a true mask, the precision of the
pseudo mask's pixels above each level of sureness is counted, label by label. The lowest level with
the precision that was asked for is the label's threshold everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.files import is_whole
from trainer.maps.camfile import Cam
from trainer.pool import each_image
from trainer.refine.pseudo_masks import maps_of

Labels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
BINS = 100
LEAST = 8
"""Pixels that a precision needs."""
FALLBACK = 0.9
"""The threshold of a label of which no level is precise enough, or too few pixels tell."""


def sureness(cam: Cam, mask_HW: Labels) -> npt.NDArray[np.float32]:
    """``float32 [H,W]`` in 0..1: how much the maps speak for the label of each pixel."""
    (height, width), (rows, columns) = mask_HW.shape, cam.maps.shape[1:]
    ground = 1 - cam.maps.max(0, initial=0)
    place = np.zeros(256, np.intp)
    place[cam.classes + 1] = 1 + np.arange(len(cam.classes))
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    scores = np.concatenate([ground[None], cam.maps])
    return np.asarray(scores[place[mask_HW], row[:, None], column], np.float32)


def sure_levels(
    masks: Dataset,
    records: Sequence[Record],
    pseudo: Path,
    maps: Path,
    precision: float,
    workers: int | None = None,
) -> npt.NDArray[np.float64]:
    """The threshold of each label, background first, ``float64 [K+1]``.

    Args:
        masks: with the true masks of ``records``.
        records: images with a true mask, and maps.
        pseudo: folder of the pseudo masks.
        maps: folder of the maps that made them.
        precision: that pixels above the threshold have on ``records`` at least.
        workers: processes; None for one a core, 0 for none.
    """
    work = partial(_counts, masks, pseudo, maps)
    what, name = "masks cannot be compared", attrgetter("id")
    counts = each_image(work, records, what, workers, "sureness", True, name)
    labels = len(masks.classes) + 1
    every, right = sum(counts, np.zeros((2, labels, BINS), np.int64))
    return precise_levels(every, right, precision)


def precise_levels(every_LB: Counts, right_LB: Counts, precision: float) -> npt.NDArray[np.float64]:
    """The lowest level of each label from which on its pixels are right often enough.

    Args:
        every_LB: pixels by label and sureness, ``BINS`` equal bins of 0..1.
        right_LB: those whose label is true.
        precision: share of right pixels.
    """
    above, right = (x[:, ::-1].cumsum(1)[:, ::-1] for x in (every_LB, right_LB))
    enough = (above >= LEAST) & (right >= precision * above)
    return np.where(enough.any(1), enough.argmax(1) / BINS, FALLBACK)


def write_sure(
    records: Sequence[Record],
    pseudo: Path,
    maps: Path,
    folder: Path,
    levels_L: npt.NDArray[np.float64],
    workers: int | None = None,
) -> dict[str, Any]:
    """Write the pseudo mask of every record with its unsure pixels 255; masks that exist and load
    stay.

    Returns:
        ``{"count", "ignore"}``: of files, and the share of pixels of the new masks that are 255.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(_write_one, pseudo, maps, folder, levels_L)
    what, name = "masks could not be made, all others are written", attrgetter("id")
    results = each_image(work, records, what, workers, "sure masks", True, name)
    pixels = sum(size for size, _ in results)
    ignore = sum(unsure for _, unsure in results) / max(1, pixels)
    return {"count": len(records), "ignore": round(ignore, 4)}


def _counts(masks: Dataset, pseudo: Path, maps: Path, record: Record) -> Counts:
    """``int64 [2,K+1,BINS]``: all pixels of the pseudo mask, and the right ones."""
    mask, truth = read_index_png(pseudo / f"{record.id}.png"), masks.read_mask(record)
    bins = (sureness(maps_of(record, maps), mask) * BINS).astype(np.intp).clip(0, BINS - 1)
    is_label = (mask != IGNORE) & (truth != IGNORE)
    size = (len(masks.classes) + 1) * BINS
    places = mask.astype(np.intp) * BINS + bins
    pairs = (places[is_label], places[is_label & (mask == truth)])
    return np.stack([np.bincount(p, minlength=size).reshape(-1, BINS) for p in pairs])


def _write_one(
    pseudo: Path, maps: Path, folder: Path, levels_L: npt.NDArray[np.float64], record: Record
) -> tuple[int, int]:
    """Pixels, and ignored pixels, of a new mask; nothing of one that was there."""
    path = folder / f"{record.id}.png"
    if is_whole(read_index_png, path):
        return 0, 0
    mask = read_index_png(pseudo / path.relative_to(folder))
    # Open pixels stay open at any level.
    levels = np.append(levels_L, np.zeros(256 - len(levels_L)))
    unsure = sureness(maps_of(record, maps), mask) < levels[mask]
    mask[unsure] = IGNORE
    write_index_png(path, mask)
    return mask.size, int((mask == IGNORE).sum())
