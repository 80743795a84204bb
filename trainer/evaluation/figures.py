"""What was measured on a list of images, and its entry in ``evaluation.json`` (design section
11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.bootstrap import miou_interval
from trainer.evaluation.image_counts import ImageCounts
from trainer.evaluation.metrics import Counts, Ratios, finite_or_none, mean_iou, summarise
from trainer.evaluation.sweep import Thresholds

WORST = 20
"""How many of the worst images an entry names."""


@dataclass(frozen=True)
class MaskEvaluation:
    """Finished masks of a list against the truth.

    Attributes:
        images: confusion, and boundary F-score if it was measured, of every image.
        tolerance: of the boundary F-score, or None.
    """

    images: ImageCounts
    tolerance: float | None

    @property
    def confusion(self) -> Counts:
        """int64 ``[K+1,K+1]``, predicted 255 counted as background."""
        counts = self.images.total()
        counts[:, 0] += counts[:, -1]
        return counts[:, :-1]

    @property
    def image_miou(self) -> npt.NDArray[np.float32]:
        """Mean IoU of each image by itself, float32 ``[N]``."""
        return self.images.miou()

    def report(
        self,
        protocol: str,
        threshold: float | None = None,
        threshold_from: str | None = None,
        worst: int = WORST,
    ) -> dict[str, Any]:
        """The entry of ``evaluation.json``; see ``CamEvaluation.report``."""
        names = ("background", *self.images.class_names)
        by_class = [finite_or_none(value) for value in self.images.class_boundary_f()]
        return {
            **summarise(self.images.total(), self.images.class_names),
            "boundary_f": finite_or_none(self.images.boundary_f()),
            "boundary_f_by_class": dict(zip(names, by_class, strict=True)),
            "boundary_tolerance": self.tolerance,
            **_rest(self.images.ids, protocol, threshold, threshold_from, self.image_miou, worst),
        }


@dataclass(frozen=True)
class CamEvaluation:
    """Confusions of the maps of a list at every threshold.

    Attributes:
        thresholds: float32 ``[T]``.
        confusions: int64 ``[T,K+1,K+1]``.
        image_miou: float32 ``[N,T]``, mean IoU of each image by itself, to find the worst ones.
        ids: the N images.
        class_names: the K foreground names.
        at: row of the one threshold that was looked at closely, or None.
        chosen: the masks at that threshold.
    """

    thresholds: Thresholds
    confusions: Counts
    image_miou: npt.NDArray[np.float32]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    at: int | None
    chosen: MaskEvaluation | None

    @property
    def miou(self) -> Ratios:
        """Mean IoU at every threshold, float64 ``[T]``."""
        return mean_iou(self.confusions)

    @property
    def best(self) -> float:
        """The threshold with the highest mean IoU; the lowest of equals."""
        return float(self.thresholds[int(np.nanargmax(self.miou))])

    def report(
        self, threshold: float, threshold_from: str, protocol: str, worst: int = WORST
    ) -> dict[str, Any]:
        """The entry of ``evaluation.json`` at one of the thresholds that were measured.

        Args:
            threshold: one of ``thresholds``; see ``sweep_thresholds`` for measuring another one.
            threshold_from: ``fixed``, the list that it was chosen on, ``oracle`` or ``label_free``.
            protocol: one line: list, ground truth, scales and flips, CRF, initial weights.
            worst: how many of the worst images to name.
        """
        row = row_of(self.thresholds, threshold)
        sweep = {
            "thresholds": [round(float(t), 6) for t in self.thresholds],
            "miou": [finite_or_none(v) for v in self.miou],
            "best": {
                "threshold": round(self.best, 6),
                "miou": finite_or_none(float(np.nanmax(self.miou))),
            },
        }
        at = round(float(threshold), 6)
        if self.chosen is not None and row == self.at:
            entry = self.chosen.report(protocol, at, threshold_from, worst)
        else:
            entry = summarise(self.confusions[row], self.class_names)
            entry |= _rest(self.ids, protocol, at, threshold_from, self.image_miou[:, row], worst)
        return {**entry, "sweep": sweep}


def row_of(thresholds: Thresholds, threshold: float) -> int:
    """Where a threshold stands among those that are measured.

    Raises:
        ValueError: it is not among them.
    """
    row = int(np.abs(thresholds - np.float32(threshold)).argmin())
    if not np.isclose(thresholds[row], threshold, atol=1e-6):
        raise ValueError(f"threshold {threshold} was not measured")
    return row


def _rest(
    ids: Sequence[str],
    protocol: str,
    threshold: float | None,
    source: str | None,
    image_miou: Any,
    worst: int,
) -> dict[str, Any]:
    order = np.argsort(image_miou, kind="stable")[:worst]
    return {
        "threshold": threshold,
        "threshold_from": source,
        "images": len(ids),
        "protocol": protocol,
        "worst": [{"id": ids[i], "miou": round(float(image_miou[i]), 6)} for i in order],
    }


@dataclass(frozen=True)
class Conditions:
    """What a figure was measured under: two figures are comparable where these are equal.

    Attributes:
        list, listed, measured: the list, its images, and how many of them were measured.
        unmasked: images of the list without a true mask, which are not measured.
        labels: classes and background.
        truth: where the true masks come from.
        method: or, of masks and maps of others, where they are.
        backbone, train_list, tags_from, initial_weights, seed: of the run; None where they are not
        known, as below.
        tags: whether the images' true tags were given.
        views: protocol, scales and mirror image.
        crf: dense CRF.
        threshold_from: who chose the background threshold; None where there is none.
        note: what the user says about how masks and maps of others were made.
        segmenter: which one; empty for maps and refined masks, None where it is not known.
    """

    list: str
    listed: int
    measured: int
    labels: int
    truth: str
    method: str | None
    backbone: str | None
    train_list: str | None
    tags_from: str | None
    initial_weights: str | None
    seed: int | None
    tags: str | None
    views: str | None
    crf: str | None
    threshold_from: str | None
    note: str = ""
    segmenter: str | None = ""
    unmasked: int = 0

    def line(self) -> str:
        """The first half of a protocol line."""
        unusable = self.listed - self.unmasked - self.measured
        want = "maps" if self.backbone else "a usable file"
        some = f", {unusable} of them left out for want of {want}" if unusable else ""
        count = str(self.listed)
        if self.unmasked:
            count = f"{self.measured} of {self.listed}"
            some = f", {self.unmasked} without a true mask{some}"
        listed = f"{self.list} ({count} images{some}), true masks of {self.truth}, "
        listed += f"{self.labels} classes with background; {self.method}"
        if self.backbone is None:
            return f"{listed}, {self.note or 'and how they were made is not recorded'}"
        return (
            f"{listed} on {self.backbone}, trained on {self.train_list} tags ({self.tags_from}), "
            f"initial weights {self.initial_weights}, seed {self.seed}"
        )

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def restated(entry: dict[str, Any], images: ImageCounts, convention: str) -> dict[str, Any]:
    """An entry of ``evaluation.json`` in another convention, from the same counts. A sweep stays in
    the default one.

    Raises:
        DataError: see ``metrics.margins``.
    """
    if entry["convention"] == convention:
        return entry
    interval = {"miou_interval": miou_interval(images, convention).report()}
    return entry | summarise(images.total(), images.class_names, convention) | interval
