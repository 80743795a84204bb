"""How much of masks, truth and tags each label has: what a collapsed model shows first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter

import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.evaluation.image_counts import ImageCounts
from trainer.evaluation.metrics import Counts, finite_or_none
from trainer.evaluation.over_lists import MaskReader, MaskSource, mask_reader
from trainer.pool import each_image

Shares = dict[str, float | None]


def tag_shares(dataset: Dataset, records: Sequence[Record]) -> Shares:
    """Share of the images that show each class; images with an unknown tag of it do not count.

    None for a class of which nothing is known.
    """
    tags = dataset.tag_matrix(records)
    known = np.isfinite(tags).sum(0)
    shares = np.nansum(tags, 0) / np.where(known, known, np.nan)
    return dict(zip(dataset.classes, map(finite_or_none, shares), strict=True))


def measured_shares(images: ImageCounts) -> tuple[Shares, Shares]:
    """Share of the known pixels that have each label in the truth, and in the prediction.

    A predicted 255 is no label.
    """
    counts, names = images.total(), ("background", *images.class_names)
    return _shares(counts.sum(1), names), _shares(counts.sum(0)[:-1], names)


def mask_shares(dataset: Dataset, records: Sequence[Record], masks: MaskSource) -> Shares:
    """Share of the pixels that each label has in the masks of ``records``; needs no true mask.

    Raises:
        DataError: masks are missing or unreadable; lists all of them.
    """
    work = partial(_labels, mask_reader(masks), len(dataset.classes) + 1)
    counts = each_image(work, records, "masks cannot be read", None, "", False, attrgetter("id"))
    total = sum(counts, np.zeros(len(dataset.classes) + 1, np.int64))
    return _shares(total, ("background", *dataset.classes))


def _labels(reader: MaskReader, labels: int, record: Record) -> Counts:
    return np.bincount(reader(record).reshape(-1), minlength=256)[:labels]


def _shares(pixels: Counts, names: Sequence[str]) -> Shares:
    total = pixels.sum()
    return {n: float(p / total) if total else None for n, p in zip(names, pixels, strict=True)}
