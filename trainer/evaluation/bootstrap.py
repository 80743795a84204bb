"""Is A better than B, or is it the choice of images? The paired bootstrap over images.

Efron, "Bootstrap methods: another look at the jackknife", 1979; percentile interval. Images are
drawn with replacement, the same ones for A and B, and the mean IoU of the drawn list is taken from
the summed confusions of its images: the figure itself is resampled, not a mean over images. Only
the images vary: the seed of the training is another source of chance, that several runs show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.evaluation.image_counts import ImageCounts
from trainer.evaluation.metrics import DEFAULT, Margins, finite_or_none, margins_iou, margins_miou

SAMPLES = 10_000
LEVEL = 0.95
# Draws that are worked on at a time: 16 MB of weights, whatever the number of images.
_DRAWS = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and the percentile interval of its resampled values.

    Attributes:
        value: of the list as it is.
        low, high: ends of the interval.
        samples: how many lists were drawn.
        seed: of the drawing.
        level: share of the resampled values that lie inside.
    """

    value: float
    low: float
    high: float
    samples: int
    seed: int
    level: float

    def report(self) -> dict[str, Any]:
        """Plain JSON values; None where a figure is undefined."""
        return asdict(self) | self.ends()

    def ends(self) -> dict[str, float | None]:
        """Value and ends alone, as ``report`` has them."""
        return {key: finite_or_none(getattr(self, key)) for key in ("value", "low", "high")}


@dataclass(frozen=True)
class Paired:
    """B against A on the same images.

    Attributes:
        difference: mean IoU of B less that of A.
        ratio: mean IoU of B over that of A.
        p: two-sided: twice the smaller of the shares of resampled differences <= 0 and >= 0, at
            most 1. Below 0.05 just where the 95 % interval of the difference leaves 0 out, rounding
            aside. nan where the difference is undefined.
        images: how many were compared.
        classes: difference of the IoU of each class, by name, background first.
    """

    difference: Interval
    ratio: Interval
    p: float
    images: int
    classes: dict[str, Interval]

    def report(self) -> dict[str, Any]:
        """Plain JSON values; None where a figure is undefined."""
        return {
            "difference": self.difference.report(),
            "ratio": self.ratio.report(),
            "p": finite_or_none(self.p),
            "images": self.images,
            "classes": {name: interval.ends() for name, interval in self.classes.items()},
        }


def miou_interval(
    images: ImageCounts,
    convention: str = DEFAULT,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Mean IoU of a list with its percentile interval.

    Raises:
        DataError: no image, or see ``metrics.margins``.
    """
    value, drawn = _resample([images], convention, samples, seed)
    return _interval(value[0, -1], drawn[:, 0, -1], seed, level)


def compare_paired(
    a: ImageCounts,
    b: ImageCounts,
    convention: str = DEFAULT,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Paired:
    """Resampled difference and ratio of B against A.

    Args:
        a: counts of the same images as ``b``, in the same order.
        b: what may be better, or the weak one of weak / full.
        convention: of ``metrics.CONVENTIONS``.
        samples: lists to draw.
        seed: of the drawing.
        level: of the intervals.

    Raises:
        DataError: other images, other classes or none; or see ``metrics.margins``.
    """
    if a.ids != b.ids or a.class_names != b.class_names:
        raise DataError(
            "a paired comparison of other images or classes",
            "the same images and classes on both sides",
        )
    value, drawn = _resample([a, b], convention, samples, seed)
    gains, gain = drawn[:, 1] - drawn[:, 0], value[1] - value[0]
    known = gains[:, -1][np.isfinite(gains[:, -1])]
    smaller = min(float((known <= 0).mean()), float((known >= 0).mean())) if known.size else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = value[1, -1] / value[0, -1], drawn[:, 1, -1] / drawn[:, 0, -1]
    names = ("background", *a.class_names)
    return Paired(
        _interval(gain[-1], gains[:, -1], seed, level),
        _interval(ratio, ratios, seed, level),
        min(2 * smaller, 1.0),
        len(a.ids),
        {name: _interval(gain[c], gains[:, c], seed, level) for c, name in enumerate(names)},
    )


def _interval(value: float, drawn: npt.NDArray[np.float64], seed: int, level: float) -> Interval:
    # A drawn list may lack what the figure needs, such as a class that the VOC devkit asks for.
    known = drawn[np.isfinite(drawn)]
    tail = 50 * (1 - level)
    low, high = np.percentile(known, [tail, 100 - tail]) if known.size else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), len(drawn), seed, level)


def _resample(
    systems: Sequence[ImageCounts], convention: str, samples: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """IoU of every class, and the mean last, of S systems: of the list ``[S,C+1]`` and of drawn
    ones ``[samples,S,C+1]``.
    """
    counted = [system.margins(convention) for system in systems]
    # Columns are hit, truth and found of each class, one system after the other: [N, S*3*C].
    table = np.concatenate(
        [np.concatenate([m.hit, m.truth, m.found], 1) for m in counted], 1
    ).astype(np.float64)
    images = len(table)
    if not images:
        raise DataError("no image to resample", "a list with true masks")
    rng = np.random.default_rng(seed)
    drawn = np.empty((samples, len(systems), systems[0].labels + 1))
    step = max(1, _DRAWS // images)
    for first in range(0, samples, step):
        count = min(step, samples - first)
        picks = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        times = np.bincount(picks.reshape(-1), minlength=count * images).reshape(count, images)
        drawn[first : first + count] = _ious(
            times.astype(np.float64) @ table, len(systems), convention
        )
    return _ious(table.sum(0)[None], len(systems), convention)[0], drawn


def _ious(sums: npt.NDArray[np.float64], systems: int, convention: str) -> npt.NDArray[np.float64]:
    parts = sums.reshape(len(sums), systems, 3, -1)
    m = Margins(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2])
    return np.concatenate([margins_iou(m), margins_miou(m, convention)[..., None]], 2)
