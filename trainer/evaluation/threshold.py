"""The background threshold: where a pixel stops being background (spec methods 3.3, refine-segment
12).

Published figures take the best value of a sweep on true masks. That is a look at the answer: here
it is said by name (``train``, ``val``, ``oracle``), and there is a choice that needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.errors import ConfigError, DataError, UserError, nearest
from trainer.evaluation.over_lists import CamSource, cam_reader, evaluate_cams
from trainer.maps.camfile import Cam
from trainer.pool import over_images, raise_together

BINS = 200


@dataclass(frozen=True)
class Threshold:
    """A threshold and its origin.

    Attributes:
        value: background score in 0..1; a pixel is background iff no map exceeds it.
        source: ``fixed``, ``label_free``, ``oracle``, or the list whose masks it was chosen on.
        detail: one line for the protocol.
    """

    value: float
    source: str
    detail: str


def choose(
    source: str,
    fixed: float,
    dataset: Dataset,
    records: Sequence[Record],
    cams: CamSource,
    *,
    for_masks: bool = False,
    without: Collection[str] = (),
    workers: int | None = None,
    progress: bool = False,
) -> Threshold:
    """Choose the background threshold for the maps of ``records``.

    Args:
        source: ``fixed``, ``label_free`` (from the maps of ``records`` alone), ``oracle`` (best
            mean IoU on ``records`` themselves, an upper bound and never a result), or a list of
            ``dataset`` with masks and maps: best there.
        fixed: the value for ``fixed``.
        dataset: the data set of ``records``.
        records: what is measured or refined.
        cams: maps: a folder of ``<id>.npz``, or what reads those of an image.
        for_masks: the threshold will make training masks, where ``oracle`` is refused.
        without: ids of images that have no maps, to be passed over in a list.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar with time left.

    Raises:
        ConfigError: unknown source, or oracle for masks.
        DataError: the list has no masks, or maps are missing or damaged.
    """
    if source == "fixed":
        return Threshold(fixed, source, f"background threshold {fixed:.3f}, fixed")
    if source == "label_free":
        value = label_free(records, cams, workers=workers, progress=progress)
        return Threshold(
            value,
            source,
            f"background threshold {value:.3f}, chosen without masks (Otsu on the maps)",
        )
    if source == "oracle" and for_masks:
        raise ConfigError(
            "the threshold of masks cannot come from 'oracle'",
            "label_free, fixed, or a list with masks such as train",
        )
    if source == "oracle":
        value = _best(dataset, records, cams, source, workers, progress)
        return Threshold(
            value,
            source,
            f"background threshold {value:.2f}, ORACLE: the best on the very list reported",
        )
    if source not in dataset.lists:
        known = ["label_free", "fixed", "oracle", *sorted(dataset.lists)]
        raise ConfigError(f"a threshold cannot come from {source!r}", nearest(source, known))
    listed = [record for record in dataset.subset(source) if record.id not in without]
    value = _best(dataset, listed, cams, source, workers, progress)
    masked = sum(dataset.has_mask(record) for record in listed)
    some = f"{masked} of {len(listed)} images of " if masked < len(listed) else ""
    return Threshold(
        value,
        source,
        f"background threshold {value:.2f}, the best on the true masks of {some}list {source!r}",
    )


def _best(
    dataset: Dataset,
    records: Sequence[Record],
    cams: CamSource,
    source: str,
    workers: int | None,
    progress: bool,
) -> float:
    masked = [record for record in records if dataset.has_mask(record)]
    if not masked:
        raise DataError(
            f"a threshold from {source!r} needs true masks, and {len(records)} of {len(records)}"
            " images have none",
            "a list with true masks",
            "threshold_from=label_free needs no mask",
        )
    return evaluate_cams(dataset, masked, cams, workers=workers, progress=progress).best


def label_free(
    records: Sequence[Record],
    cams: CamSource,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> float:
    """A threshold from the maps alone: Otsu's on the strongest map of every pixel, each tagged
    image with equal weight.

    Each map reaches 1 somewhere, so the values fall into a heap of background near 0 and a flat
    tail of objects, and one threshold for all images is steadier than one an image. It depends on
    the scale of the maps: a method whose maps are pushed far to 0 or 1 needs another choice.
    Agreement with the CRF does not serve: it only falls with the threshold.

    Raises:
        DataError: no tagged image, or maps that are missing or damaged.
    """
    tagged = [r for r in records if r.tags]
    total = np.zeros(BINS)
    problems = []
    for _, outcome in over_images(
        partial(_histogram, cam_reader(cams)), tagged, workers, "threshold", progress, _name
    ):
        if isinstance(outcome, UserError):
            problems.append(outcome)
        else:
            total += outcome
    raise_together(problems, len(tagged), "images have no usable maps")
    if not total.any():
        raise DataError(
            "no tagged image to choose a threshold from", "at least one image with tags and maps"
        )
    return otsu(total)


def _histogram(read: Callable[[Record], Cam], record: Record) -> npt.NDArray[np.float64]:
    cam = read(record)
    if not cam.maps.size:
        return np.zeros(BINS)
    counts = np.histogram(cam.maps.max(0), BINS, (0.0, 1.0))[0].astype(np.float64)
    share: npt.NDArray[np.float64] = counts / counts.sum()
    return share


def otsu(histogram: npt.ArrayLike) -> float:
    """Otsu's threshold (1979) of a histogram over 0..1: the bin edge with the largest variance
    between its two sides.

    Where several edges are equally good (an empty gap), the middle of them is taken.
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


def _name(record: Record) -> str:
    return record.id


PUBLISHED = 0.15
"""Where maps of the published networks turn from background to object; AffinityNet's and IRNet's
constants are made for it.
"""


def calibration(threshold: float) -> float:
    """The power that maps with their own ``threshold`` are raised to, so that it becomes the
    published one.

    Maps of small networks are broader: constants such as IRNet's 0.30 for sure foreground would
    call half the picture sure.
    """
    inside = min(max(threshold, 0.01), 0.9)
    return float(np.log(PUBLISHED) / np.log(inside))
