"""Is A better than B, or is it the choice of images? The paired bootstrap over images.

Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979; percentile
interval. Images are drawn with replacement, the same ones for A and B, and the mean IoU of the
drawn list is taken from the summed confusions of its images: the figure itself is resampled, not a
mean over images. Images of one group, such as exposures of one part, are drawn together.

The seed of the training is another source of chance. Where a system was trained with several seeds,
its figure is the mean over them, and images and seeds are drawn independently of each other (Owen,
"The pigeonhole bootstrap", Annals of Applied Statistics 2007). Of n seeds n - 1 are drawn, so that
the variance of their mean is not too small by the share 1 / n (Rao and Wu, "Resampling inference
with complex survey data", JASA 1988), which matters with three seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.evaluation.image_counts import ImageCounts
from trainer.evaluation.metrics import DEFAULT, Margins, finite_or_none, margins_iou, margins_miou

System = ImageCounts | Sequence[ImageCounts]
"""Counts of one run, or of one run a seed, all of the same images in the same order."""

# Each end of a 95 % interval then has 250 of the resampled values beyond it.
SAMPLES = 10_000
LEVEL = 0.95
# Weights of images that are drawn at a time: 16 MB, whatever the number of images.
_DRAWS = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and the percentile interval of its resampled values.

    Attributes:
        value: of the list itself.
        low, high: ends of the interval.
        samples: number of resampled lists.
        seed: of the drawing.
        level: share of the resampled values inside the interval.
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
        """Value and ends alone, None where undefined."""
        return {key: finite_or_none(getattr(self, key)) for key in ("value", "low", "high")}


@dataclass(frozen=True)
class Paired:
    """B against A on the same images.

    Attributes:
        difference: mean IoU of B less that of A.
        ratio: mean IoU of B over that of A.
        p: two-sided: twice the smaller of the shares of resampled differences <= 0 and >= 0, at
            most 1. Apart from rounding, it is below 0.05 where the 95 % interval of the difference
            excludes 0. nan where the difference is undefined.
        images: number of images on both sides.
        seeds: number of runs on either side.
        classes: difference of the IoU of each class, by name, background first.
    """

    difference: Interval
    ratio: Interval
    p: float
    images: int
    seeds: tuple[int, int]
    classes: dict[str, Interval]

    def report(self) -> dict[str, Any]:
        """Plain JSON values; None where a figure is undefined."""
        return {
            "difference": self.difference.report(),
            "ratio": self.ratio.report(),
            "p": finite_or_none(self.p),
            "images": self.images,
            "seeds": list(self.seeds),
            "classes": {name: interval.ends() for name, interval in self.classes.items()},
        }


def miou_interval(
    images: System,
    convention: str = DEFAULT,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Mean IoU of a list with its percentile interval; of several runs, the mean of theirs.

    Raises:
        DataError: no image, or see ``metrics.margins``.
    """
    value, draws = _resample([_runs(images)], convention, samples, seed)
    return interval_of(value[0, -1], draws[:, 0, -1], seed, level)


def compare_paired(
    a: System,
    b: System,
    convention: str = DEFAULT,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Paired:
    """Resampled difference and ratio of B against A.

    Args:
        a: counts of the same images as ``b``, in the same order. Where both have as many runs,
            the runs at one place are of one seed and are drawn together.
        b: what may be better, or the weak one of weak / full.
        convention: of ``metrics.CONVENTIONS``.
        samples: lists to draw.
        seed: of the drawing.
        level: of the intervals.

    Raises:
        DataError: the images or classes differ, or there are none; or see ``metrics.margins``.
    """
    systems = [_runs(a), _runs(b)]
    value, draws = _resample(systems, convention, samples, seed)
    # Both systems were drawn with the same images, so what makes a list easy or hard cancels out.
    gains, gain = draws[:, 1] - draws[:, 0], value[1] - value[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = value[1, -1] / value[0, -1], draws[:, 1, -1] / draws[:, 0, -1]
    first = systems[0][0]
    names = ("background", *first.class_names)
    return Paired(
        interval_of(gain[-1], gains[:, -1], seed, level),
        interval_of(ratio, ratios, seed, level),
        _two_sided_p(gains[:, -1]),
        len(first.ids),
        (len(systems[0]), len(systems[1])),
        {name: interval_of(gain[c], gains[:, c], seed, level) for c, name in enumerate(names)},
    )


def _two_sided_p(gains: npt.NDArray[np.float64]) -> float:
    finite = gains[np.isfinite(gains)]
    # Ties count on both sides, so two equal systems have p = 1 and not 0.
    tail = min((finite <= 0).mean(), (finite >= 0).mean()) if finite.size else np.nan
    return min(2 * float(tail), 1.0)


def resampled(
    groups: Sequence[int], samples: int, seed: int
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """How often each of N images is drawn: the first list of a block, and the block ``[lists,N]``.

    Whole groups are drawn with replacement, as many as there are.

    Args:
        groups: the group of each image.
        samples: lists to draw.
        seed: of the drawing.
    """
    # Groups are drawn and not pixels: pixels of one image, or images of one part, err together, so
    # an interval over pixels would be far too narrow.
    places: dict[int, int] = {}
    codes = [places.setdefault(group, len(places)) for group in groups]
    count, rng = len(places), np.random.default_rng(seed)
    step = max(1, _DRAWS // len(codes))
    for first in range(0, samples, step):
        lists = min(step, samples - first)
        # The offset gives each resampled list its own bins: one bincount serves all of them.
        picks = rng.integers(count, size=(lists, count)) + count * np.arange(lists)[:, None]
        times = np.bincount(picks.reshape(-1), minlength=lists * count).reshape(lists, count)
        yield first, times.astype(np.float64)[:, codes]


def interval_of(
    value: float, draws: npt.NDArray[np.float64], seed: int, level: float = LEVEL
) -> Interval:
    """A figure and the interval of its resampled values; those that are nan do not count."""
    # A resampled list may lack what the figure needs, such as a class that the VOC devkit asks for.
    finite = draws[np.isfinite(draws)]
    # Percentiles assume no shape of the distribution; that of a bounded ratio may be skewed.
    tail = 50 * (1 - level)
    low, high = np.percentile(finite, [tail, 100 - tail]) if finite.size else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), len(draws), seed, level)


def _runs(system: System) -> list[ImageCounts]:
    return [system] if isinstance(system, ImageCounts) else list(system)


def _resample(
    systems: Sequence[Sequence[ImageCounts]], convention: str, samples: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """IoU of every class and their mean, of S systems: the list ``[S,C+1]``, ``[samples,S,C+1]``.

    The first result is that of the list itself, the second those of the resampled lists.
    """
    runs = [run for system in systems for run in system]
    if any((r.ids, r.class_names) != (runs[0].ids, runs[0].class_names) for r in runs):
        raise DataError(
            "a paired comparison of other images or classes",
            "the same images and classes on both sides",
        )
    # Columns are hit, truth and guess of each class, one run after the other: [N, R*3*C].
    columns = [
        part
        for m in (run.margins(convention) for run in runs)
        for part in (m.hit, m.truth, m.guess)
    ]
    # Floats, because NumPy multiplies integer matrices without BLAS. Counts below 2^53 stay exact.
    table = np.concatenate(columns, 1).astype(np.float64)
    if not len(table):
        raise DataError("no image to resample", "a list with true masks")
    draws = np.empty((samples, len(runs), runs[0].labels + 1))
    for first, times in resampled(runs[0].groups.tolist(), samples, seed):
        # How often each image was drawn, times its counts: all lists as one matrix product.
        sums = times @ table
        draws[first : first + len(times)] = _ious(sums, len(runs), convention)
    value = _ious(table.sum(0)[None], len(runs), convention)
    counts = [len(system) for system in systems]
    everyone = [np.full((1, count), 1 / count) for count in counts]
    return _over_seeds(value, everyone)[0], _over_seeds(draws, _seed_shares(counts, samples, seed))


def _seed_shares(counts: Sequence[int], samples: int, seed: int) -> list[npt.NDArray[np.float64]]:
    """The share of each run in the mean of every resampled list, of each system ``[samples,n]``.

    Systems of as many runs share their draws.
    """
    shares: dict[int, npt.NDArray[np.float64]] = {1: np.ones((samples, 1))}
    # Another stream than that of the images, whose draws stay those of a single run.
    rng = np.random.default_rng([seed, 1])
    for count in counts:
        if count not in shares:
            picks = rng.multinomial(count - 1, [1 / count] * count, size=samples)
            shares[count] = picks / (count - 1)
    return [shares[count] for count in counts]


def _over_seeds(
    values: npt.NDArray[np.float64], shares: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Weighted means of the runs ``[samples,R,C+1]`` of each system: ``[samples,S,C+1]``."""
    means, start = [], 0
    for share in shares:
        runs = values[:, start : start + share.shape[1]]
        start += share.shape[1]
        # A run that was not drawn must not make its nan the mean's.
        parts = np.where(share[..., None] > 0, runs * share[..., None], 0)
        means.append(parts.sum(1))
    return np.stack(means, 1)


def _ious(sums: npt.NDArray[np.float64], systems: int, convention: str) -> npt.NDArray[np.float64]:
    parts = sums.reshape(len(sums), systems, 3, -1)
    m = Margins(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2])
    return np.concatenate([margins_iou(m), margins_miou(m, convention)[..., None]], 2)
