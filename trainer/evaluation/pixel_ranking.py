"""How well the scores of pixels rank the pixels of a class: average precision and PRO.

Average precision of pixels: as of images (see ``image_figures``), over the known pixels of the
whole list. PRO, per-region overlap (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV
2021, section 6.1.2): at a threshold, the mean over all true regions of the share of their pixels
above it. A region is a connected component of the true mask, so a small object counts as much as a
large one. The curve over the share of other pixels above the threshold (the false positive rate) is
integrated from 0 to 0.3 and divided by 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.evaluation.metrics import Counts, Ratios, finite_or_none
from trainer.evaluation.objects import components

LIMIT = 0.3
# The bit patterns of float16 from 0 to 1 are integers in the order of the values. As bins they are
# as exact as the stored maps, and as fine for scores near 0 as for those near 1.
BINS = int(np.float16(1).view(np.uint16)) + 1
Bins = npt.NDArray[np.uint16]


class ClassPixels(NamedTuple):
    """Known pixels of an image by their score for a class, in the bins that have some.

    Attributes:
        k: the class, 0..K-1.
        bins: ``[n]``.
        hit, false: int64 ``[n]``: pixels of the class, and all others.
        overlap: float64 ``[n]``: pixels of the class, each over the size of its region.
        regions: how many the image has.
    """

    k: int
    bins: Counts
    hit: Counts
    false: Counts
    overlap: Ratios
    regions: int


class ImagePixels(NamedTuple):
    """An image: its known pixels, and the classes that have a map or pixels of their own."""

    known: int
    classes: list[ClassPixels]


def bins_of(scores: npt.NDArray[np.floating]) -> Bins:
    """The bin of each score in 0..1."""
    bins: Bins = np.clip(scores, 0, 1).astype(np.float16).view(np.uint16)
    # The pattern of -0 is not that of 0.
    return bins & np.uint16(0x7FFF)


def image_pixels(
    maps_kHW: npt.NDArray[np.float32],
    classes: Sequence[int],
    truth_HW: npt.NDArray[np.uint8],
    num_classes: int,
) -> ImagePixels:
    """Count the pixels of one image by score. A class without a map has score 0 everywhere.

    Args:
        maps_kHW: scores in 0..1.
        classes: of the maps, 0..K-1.
        truth_HW: labels 0..K; others are unknown pixels.
        num_classes: K+1, background included.
    """
    known = truth_HW < num_classes
    present = np.unique(truth_HW[known & (truth_HW > 0)]).astype(int) - 1
    places = {k: place for place, k in enumerate(classes)}
    zeros = np.zeros(truth_HW.shape, np.float32)
    entries = [
        _class_pixels(k, maps_kHW[places[k]] if k in places else zeros, truth_HW, known)
        for k in sorted({*places, *present.tolist()})
    ]
    return ImagePixels(int(known.sum()), entries)


def _class_pixels(
    k: int,
    score_HW: npt.NDArray[np.float32],
    truth_HW: npt.NDArray[np.uint8],
    known_HW: npt.NDArray[np.bool_],
) -> ClassPixels:
    mine = truth_HW == k + 1
    bins, others = bins_of(score_HW), known_HW & ~mine
    regions, count = components(mine)
    sizes = np.bincount(regions.reshape(-1), minlength=count + 1)
    hit, false = (np.bincount(bins[chosen], minlength=BINS) for chosen in (mine, others))
    overlap = np.bincount(bins[mine], 1 / sizes[regions[mine]], BINS)
    used = np.flatnonzero(hit + false)
    return ClassPixels(k, used, hit[used], false[used], np.asarray(overlap[used]), count)


@dataclass(frozen=True)
class PixelRanking:
    """The pixels of a list by score; the attributes are those of ``ClassPixels``, ``[K,BINS]``.

    ``regions`` is ``[K]``.
    """

    hit: Counts
    false: Counts
    overlap: Ratios
    regions: Counts

    @classmethod
    def empty(cls, classes: int) -> PixelRanking:
        """No pixel yet, of ``classes`` classes."""
        shape = (classes, BINS)
        whole = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        return cls(*whole, np.zeros(shape), np.zeros(classes, np.int64))

    def add(self, image: ImagePixels) -> None:
        """Count the pixels of one more image."""
        without = np.ones(len(self.regions), bool)
        for k, bins, hit, false, overlap, regions in image.classes:
            self.hit[k, bins] += hit
            self.false[k, bins] += false
            self.overlap[k, bins] += overlap
            self.regions[k] += regions
            without[k] = False
        # A class with neither map nor pixels has score 0 everywhere.
        self.false[without, 0] += image.known

    def report(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Average precision and PRO of each class, and their means over the classes with one."""
        figures: dict[str, Any] = {}
        for key, values in (("pixel_ap", self.average_precision()), ("pro", self.pro())):
            finite = values[np.isfinite(values)]
            figures[key] = float(finite.mean()) if finite.size else None
            by_class = map(finite_or_none, values)
            figures[f"{key}_by_class"] = dict(zip(class_names, by_class, strict=True))
        return figures

    def average_precision(self) -> Ratios:
        """Of each class, ``[K]``; nan where it has no pixel, or all of them."""
        above, false = _from_the_top(self.hit), _from_the_top(self.false)
        # Above the highest score there is no pixel, and so no precision.
        precision = np.nan_to_num(_over(above, above + false))
        value = (self.hit[:, ::-1] * precision).sum(1)
        return np.where(false[:, -1] > 0, _over(value, above[:, -1]), np.nan)

    def pro(self, limit: float = LIMIT) -> Ratios:
        """Of each class, ``[K]``; nan where it has no region, or no other pixel."""
        false = _from_the_top(self.false)
        overlap = _over(_from_the_top(self.overlap), self.regions[:, None])
        rates = _over(false, false[:, -1:])
        pairs = zip(rates, overlap, strict=True)
        return np.array([_area(x, y, limit) / limit for x, y in pairs])


def _from_the_top(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return counts[:, ::-1].cumsum(1)


def _over(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Ratios:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _area(x: Ratios, y: Ratios, limit: float) -> float:
    """The area under a curve from (0, 0) up to ``limit``, straight between its points."""
    x, y = np.concatenate([[0], x]), np.concatenate([[0], y])
    # At equal x the curve rises straight up, and its upper end goes on.
    inside = int(np.searchsorted(x, limit, side="right"))
    ends = slice(inside - 1, inside + 1)
    end = np.interp(limit, x[ends], y[ends])
    return float(np.trapezoid([*y[:inside], end], [*x[:inside], limit]))
