"""How often a segmenter is wrong at each confidence, counted on masks that the run has.

A network's probabilities say which pixels are more doubtful than others, but not how many of them
are wrong (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Isotonic regression
(Zadrozny and Elkan, KDD 2002) turns each confidence into the share of wrong pixels at that
confidence. The doubt of an image is the mean of this share over its pixels, so that doubts of many
images add up to the number of wrong pixels among all of them.

The masks to compare with are those that trained the segmenter: a true mask where the image has
one, else its pseudo mask. A list with true masks of its own says more: pseudo masks have errors
too, and a segmenter repeats some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.sizes import enlarged
from trainer.data.tables.corrections import read_corrections
from trainer.data.tables.training_masks import TrainingMasks
from trainer.errors import DataError
from trainer.evaluation.metrics import finite_or_none
from trainer.run import Run

if TYPE_CHECKING:
    from sklearn.isotonic import IsotonicRegression

LEVELS = 256
IMAGES = 300
"""How many images are compared, at most: one forward pass each."""
FOLDS = 5
Pixels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Masks that the errors of a segmenter are counted against.

    Attributes:
        records: at most ``IMAGES`` images, drawn at random.
        read_mask: the label map of a record, ``uint8 [H,W]``, 255 where it says nothing.
        source: what the masks are, in words.
        is_pseudo: whether some of them are pseudo masks.
    """

    records: list[Record]
    read_mask: Callable[[Record], Pixels]
    source: str
    is_pseudo: bool = False


@dataclass(frozen=True)
class Calibration:
    """The share of wrong pixels at each confidence, as a piecewise linear function.

    Attributes:
        knots: confidence 0..255, ascending, and share 0..1.
        source: what the masks are that it comes from.
        held_out: what calibrations on four fifths of the images say of the others.
    """

    knots: tuple[tuple[int, float], ...]
    source: str
    held_out: dict[str, float | int | None]

    @property
    def wrong(self) -> Shares:
        """``float64 [256]``: the share at each confidence."""
        confidences, shares = zip(*self.knots, strict=True)
        values: Shares = np.interp(np.arange(LEVELS), confidences, shares)
        return values

    def card_entry(self) -> dict[str, Any]:
        """What the card of an exported model says of it."""
        return {
            "from": self.source,
            "held_out": self.held_out,
            "wrong": [[confidence, round(share, 6)] for confidence, share in self.knots],
        }


def reference_of(run: Run, dataset: Dataset, name: str | None = None) -> Reference | None:
    """The masks to calibrate a run's segmenter with; None where there are none.

    Args:
        run: with pseudo masks, perhaps.
        dataset: of the run.
        name: a list whose true masks count; None for the masks that trained the segmenter.

    Raises:
        DataError: no such list, or one without true masks.
    """
    if name is not None:
        records = dataset.with_masks(dataset.subset(name))
        if not records:
            raise DataError(
                f"no image of list {name!r} has a true mask",
                "a list with masks, or the default: the masks that trained the segmenter",
            )
        return Reference(_some(records), dataset.read_mask, f"true masks of {name}")
    training = run.manifest.get("train_list")
    if training is None:
        return None
    masks, folder = _training_masks(run, dataset), run.path / "masks"
    others = [
        record
        for record in dataset.subset(training)
        if not masks.has_mask(record) and (folder / f"{record.id}.png").is_file()
    ]
    records = _some([*masks.images, *others])
    sources = [f"pseudo masks of {training}"] if others else []
    if masks.images:
        sources = [f"true masks of {len(masks.images)} training images", *sources]
    if not records:
        return None
    read_mask = partial(masks.read_either, folder=folder)
    return Reference(records, read_mask, " and ".join(sources), bool(others))


def error_counts(mask_HW: Pixels, confidence_HW: Pixels, truth: Pixels) -> Counts:
    """``int64 [2,256]``: pixels at each confidence that the true mask says something of, and the
    wrong ones among them. ``truth`` may have another size.
    """
    truth_HW = enlarged(truth, mask_HW.shape)
    is_label = truth_HW != IGNORE
    is_wrong = is_label & (mask_HW != truth_HW)
    return np.stack([np.bincount(confidence_HW[x], minlength=LEVELS) for x in (is_label, is_wrong)])


def calibrated(counts: Sequence[Counts], groups: Sequence[int], source: str) -> Calibration | None:
    """The calibration of ``error_counts``; None where no mask says anything.

    Args:
        counts: of each image. All images weigh the same, whatever their size.
        groups: of the images; none is split over two folds.
        source: what the masks are, in words.
    """
    usable = [n for n, count in enumerate(counts) if count[0].any()]
    if not usable:
        return None
    shares = np.stack([counts[n] / counts[n][0].sum() for n in usable])
    model = _regression(shares)
    # The fit keeps every confidence at the ends of a constant piece, and no other.
    knots = tuple(
        (int(confidence), float(share))
        for confidence, share in zip(model.X_thresholds_, model.y_thresholds_, strict=True)
    )
    return Calibration(knots, source, _held_out(shares, np.asarray(groups)[usable]))


def _regression(shares_N2L: Shares) -> IsotonicRegression:
    from sklearn.isotonic import IsotonicRegression

    every, wrong = shares_N2L.sum(0)
    levels = np.flatnonzero(every)
    model = IsotonicRegression(y_min=0, y_max=1, increasing=False, out_of_bounds="clip")
    return model.fit(levels, wrong[levels] / every[levels], sample_weight=every[levels])


def _held_out(shares_N2L: Shares, groups: npt.NDArray[np.int64]) -> dict[str, float | int | None]:
    """Doubts of images that the calibration has not seen, beside their true shares of wrong pixels;
    the segmenter may have seen them.
    """
    from scipy.stats import spearmanr
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(np.unique(groups)))
    figures: dict[str, float | int | None] = {"images": len(shares_N2L)}
    if folds < 2:
        return figures
    doubts, wrong = np.zeros(len(shares_N2L)), shares_N2L[:, 1].sum(1)
    for rest, fold in GroupKFold(folds).split(shares_N2L, groups=groups):
        doubts[fold] = shares_N2L[fold, 0] @ _regression(shares_N2L[rest]).predict(
            np.arange(LEVELS)
        )
    constant = np.ptp(doubts) == 0 or np.ptp(wrong) == 0
    return figures | {
        "doubt": round(float(doubts.mean()), 6),
        "wrong": round(float(wrong.mean()), 6),
        "mean_error": round(float(np.abs(doubts - wrong).mean()), 6),
        # The rank of equal numbers is undefined.
        "rank_correlation": None
        if constant
        else finite_or_none(round(float(spearmanr(doubts, wrong).statistic), 4)),
    }


def _some(records: Sequence[Record]) -> list[Record]:
    """At most ``IMAGES`` of them, the same every time, in their order."""
    places = np.random.default_rng(0).permutation(len(records))[:IMAGES]
    return [records[n] for n in sorted(places)]


def _training_masks(run: Run, dataset: Dataset) -> TrainingMasks:
    """The true masks that trained the segmenter, as far as they are still there."""
    entry = run.manifest.get("masks") or {}
    corrections = None
    if entry.get("corrections"):
        # A folder of corrections changes, and may be gone; pseudo masks remain.
        with suppress(DataError):
            corrections = read_corrections(Path(entry["corrections"]), dataset)
    files = corrections.files if corrections else {}
    ids = [
        i
        for i in entry.get("ids", ())
        if i in files or (i in dataset.records and dataset.has_mask(dataset.records[i]))
    ]
    return TrainingMasks.of(dataset, ids, corrections)
