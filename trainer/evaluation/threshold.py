"""The background threshold: a pixel is background where no map exceeds it.

Published figures take the best value of a sweep on true masks, which is a look at the answer. Here
every threshold names its source (``train``, ``val``, ``oracle``), and one choice needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.errors import ConfigError, DataError, nearest
from trainer.evaluation.over_lists import CamReader, CamSource, cam_reader, evaluate_cams
from trainer.pool import each_image

BINS = 200
# The published networks' maps turn from background to object here, and the constants of
# AffinityNet and IRNet suit that value.
PUBLISHED = 0.15
Best = Callable[[Sequence[Record]], tuple[float, int]]
"""Records -> the best threshold on those with true masks, and how many those are."""


@dataclass(frozen=True)
class Threshold:
    """A threshold and its origin.

    Attributes:
        value: background score in 0..1.
        source: ``fixed``, ``label_free``, ``oracle``, or the list whose masks chose it.
        detail: its part of the protocol line.
    """

    value: float
    source: str
    detail: str


def choose(
    source: str,
    constant: float,
    dataset: Dataset,
    records: Sequence[Record],
    cams: CamSource,
    *,
    for_masks: bool = False,
    without: Collection[str] = (),
    workers: int | None = None,
) -> Threshold:
    """Choose the background threshold for the maps of ``records``.

    Args:
        source: ``fixed``, ``label_free`` (from the maps of ``records`` alone), ``oracle`` (best
            mean IoU on ``records`` themselves, an upper bound and never a result), or a list of
            ``dataset`` with masks and maps: best there.
        constant: the value for ``fixed``.
        dataset: its lists may choose the threshold.
        records: the images to measure or refine.
        cams: the maps of ``records``, and of the list that chooses.
        for_masks: the threshold will make training masks, for which ``oracle`` is refused.
        without: ids of images of the list that have no maps.
        workers: processes; None for one a core, 0 for none.

    Raises:
        ConfigError: unknown source, or ``oracle`` for masks.
        DataError: the list has no masks, or maps are missing or damaged.
    """
    best = partial(_best, dataset, cams, source, workers)
    if source == "fixed":
        value, detail = constant, f"{constant:.3f}, fixed"
    elif source == "label_free":
        value = label_free(records, cams, workers=workers)
        detail = f"{value:.3f}, chosen without masks (Otsu on the maps)"
    elif source == "oracle":
        value, detail = _oracle(best, records, for_masks)
    else:
        value, detail = _best_on_list(best, _images_of(dataset, source, without), source)
    return Threshold(value, source, f"background threshold {detail}")


def _images_of(dataset: Dataset, source: str, without: Collection[str]) -> list[Record]:
    if source not in dataset.lists:
        names = ["label_free", "fixed", "oracle", *sorted(dataset.lists)]
        raise ConfigError(f"a threshold cannot come from {source!r}", nearest(source, names))
    return [record for record in dataset.subset(source) if record.id not in without]


def _oracle(best: Best, records: Sequence[Record], for_masks: bool) -> tuple[float, str]:
    # The best threshold of the very masks to be made would leak their truth into the training.
    if for_masks:
        raise ConfigError(
            "the threshold of masks cannot come from 'oracle'",
            "label_free, fixed, or a list with masks such as train",
        )
    value, _ = best(records)
    return value, f"{value:.2f}, ORACLE: the best on the very list reported"


def _best_on_list(best: Best, images: Sequence[Record], name: str) -> tuple[float, str]:
    value, count = best(images)
    some = f"{count} of {len(images)} images of " if count < len(images) else ""
    return value, f"{value:.2f}, the best on the true masks of {some}list {name!r}"


def _best(
    dataset: Dataset,
    cams: CamSource,
    source: str,
    workers: int | None,
    records: Sequence[Record],
) -> tuple[float, int]:
    """The best threshold on the images with true masks, and how many those are."""
    images = dataset.with_masks(records)
    if not images:
        raise DataError(
            f"a threshold from {source!r} needs true masks, and none of the {len(records)} images"
            " has one",
            "a list with true masks",
            "threshold_from=label_free needs no mask",
        )
    return evaluate_cams(dataset, images, cams, workers=workers).best, len(images)


def label_free(records: Sequence[Record], cams: CamSource, *, workers: int | None = None) -> float:
    """A threshold from the maps alone: Otsu's on the strongest map of every pixel.

    Every image with a map has the same weight. Each map reaches 1 somewhere, so the values fall
    into a peak of background near 0 and a flat tail of objects, and one threshold for all images is
    steadier than one per image. The threshold depends on the scale of the maps: a method whose maps
    lie close to 0 and 1 needs another choice. Agreement with the CRF cannot choose it either, as
    that only falls with the threshold.

    Raises:
        DataError: no tagged image, or maps that are missing or damaged.
    """
    images = [record for record in records if record.possible]
    work = partial(_histogram, cam_reader(cams))
    what, name = "images have no usable maps", attrgetter("id")
    total = sum(each_image(work, images, what, workers, "threshold", True, name), np.zeros(BINS))
    if not total.any():
        raise DataError(
            "no tagged image to choose a threshold from", "at least one image with tags and maps"
        )
    return otsu(total)


def _histogram(reader: CamReader, record: Record) -> npt.NDArray[np.float64]:
    cam = reader(record)
    if not cam.maps.size:
        return np.zeros(BINS)
    counts = np.histogram(cam.maps.max(0), BINS, (0.0, 1.0))[0].astype(np.float64)
    # A share, not a count: a large image weighs as much as a small one.
    share: npt.NDArray[np.float64] = counts / counts.sum()
    return share


def otsu(histogram: npt.ArrayLike) -> float:
    """Otsu's threshold (1979) of a histogram over 0..1.

    It is the bin edge with the largest variance between its two sides. Of several equally good
    edges, as in an empty gap, it is the middle.
    """
    counts = np.asarray(histogram, np.float64)
    edges = np.arange(1, len(counts)) / len(counts)
    centres = (np.arange(len(counts)) + 0.5) / len(counts)
    below = counts.cumsum()[:-1]
    mass, moment = counts.sum(), (counts * centres).sum()
    spread = (moment * below - mass * (counts * centres).cumsum()[:-1]) ** 2
    weight = below * (mass - below)
    between = np.divide(spread, weight, out=np.zeros_like(spread), where=weight > 0)
    return float(edges[np.isclose(between, between.max(), rtol=1e-9, atol=0)].mean())


def calibration(threshold: float) -> float:
    """The exponent that moves the ``threshold`` of maps in 0..1 to the published 0.15.

    Maps of small networks are broader: constants such as IRNet's 0.30 for confident foreground
    would take half the picture for it.
    """
    # A threshold near 0 or 1 would give an exponent that erases every map, or none.
    inside = min(max(threshold, 0.01), 0.9)
    return float(np.log(PUBLISHED) / np.log(inside))
