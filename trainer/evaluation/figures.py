"""The figures of a list of images, and their entry in ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.bootstrap import miou_interval
from trainer.evaluation.image_counts import ImageCounts
from trainer.evaluation.metrics import Counts, Ratios, finite_or_none, mean_iou, summarise
from trainer.evaluation.objects import hit_figures
from trainer.evaluation.pixel_ranking import PixelRanking
from trainer.evaluation.sweep import Thresholds

WORST = 20
"""How many of the worst images an entry names."""


@dataclass(frozen=True)
class MaskEvaluation:
    """Masks of a list against the truth.

    Attributes:
        images: confusion and boundary F-score of every image.
        tolerance: of the boundary F-score; None where it was not measured.
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
        self, protocol: str, threshold: float | None = None, threshold_from: str | None = None
    ) -> dict[str, Any]:
        """The entry of ``evaluation.json``; see ``CamEvaluation.report``."""
        names = ("background", *self.images.class_names)
        by_class = [finite_or_none(value) for value in self.images.class_boundary_f()]
        return {
            **summarise(self.images.total(), self.images.class_names),
            "boundary_f": finite_or_none(self.images.boundary_f()),
            "boundary_f_by_class": dict(zip(names, by_class, strict=True)),
            "boundary_tolerance": self.tolerance,
            **hit_figures(self.images.objects, self.images.class_names),
            **_rest(self.images.ids, protocol, threshold, threshold_from, self.image_miou),
        }


@dataclass(frozen=True)
class CamEvaluation:
    """Confusions of the maps of a list at every threshold.

    Attributes:
        thresholds: float32 ``[T]``.
        confusions: int64 ``[T,K+1,K+1]``.
        image_miou: float32 ``[N,T]``, mean IoU of each image by itself.
        ids: the N images.
        class_names: the K foreground names.
        at: row of the threshold of ``chosen``, or None.
        chosen: the masks at that threshold.
        ranking: the pixels by score; None without ``at``.
    """

    thresholds: Thresholds
    confusions: Counts
    image_miou: npt.NDArray[np.float32]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    at: int | None
    chosen: MaskEvaluation | None
    ranking: PixelRanking | None = None

    @property
    def miou(self) -> Ratios:
        """Mean IoU at every threshold, float64 ``[T]``."""
        return mean_iou(self.confusions)

    @property
    def best(self) -> float:
        """The threshold with the highest mean IoU; the lowest of equals."""
        return float(self.thresholds[int(np.nanargmax(self.miou))])

    def report(self, threshold: float, threshold_from: str, protocol: str) -> dict[str, Any]:
        """The entry of ``evaluation.json`` at one of the thresholds.

        Args:
            threshold: one of ``thresholds``; ``sweep.sweep_thresholds`` adds a further one.
            threshold_from: ``fixed``, ``label_free``, ``oracle``, or the list that chose it.
            protocol: one line: list, ground truth, scales and flips, CRF, initial weights.

        Raises:
            ValueError: the threshold was not measured.
        """
        row = row_of(self.thresholds, threshold)
        sweep = {
            # Rounding undoes float32: 0.41 instead of 0.4099999964.
            "thresholds": [round(float(t), 6) for t in self.thresholds],
            "miou": [finite_or_none(v) for v in self.miou],
            "best": {
                "threshold": round(self.best, 6),
                "miou": finite_or_none(float(np.nanmax(self.miou))),
            },
        }
        at = round(float(threshold), 6)
        # Only the threshold that was asked for has counts of single images, and so a boundary
        # F-score.
        if self.chosen is not None and row == self.at:
            entry = self.chosen.report(protocol, at, threshold_from)
        else:
            entry = summarise(self.confusions[row], self.class_names)
            entry |= _rest(self.ids, protocol, at, threshold_from, self.image_miou[:, row])
        ranked = self.ranking.report(self.class_names) if self.ranking else {}
        return {**entry, **ranked, "sweep": sweep}


def row_of(thresholds: Thresholds, threshold: float) -> int:
    """The index of a threshold.

    Raises:
        ValueError: it is not among ``thresholds``.
    """
    # Thresholds are float32 in a sweep, and float64 in settings and JSON.
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
) -> dict[str, Any]:
    order = np.argsort(image_miou, kind="stable")[:WORST]
    return {
        "threshold": threshold,
        "threshold_from": source,
        "images": len(ids),
        "protocol": protocol,
        "worst": [{"id": ids[i], "miou": round(float(image_miou[i]), 6)} for i in order],
    }


@dataclass(frozen=True)
class Conditions:
    """The conditions of a figure: two figures are comparable where these are equal.

    Attributes:
        list, listed, measured: the list, the number of its images, and how many were measured.
        unmasked: images of the list without a true mask, which are not measured.
        blank: measured images whose true mask is background by their tags alone.
        labels: number of classes, background included.
        truth: origin of the true masks.
        method: of the run; of masks and maps from elsewhere, their folder.
        backbone, train_list, tags_from, initial_weights, seed: of the run; None where unknown, as
            below.
        tags: whether the maps used the images' true tags.
        views: protocol, scales and mirror image.
        crf: dense CRF.
        threshold_from: origin of the background threshold; None where there is none.
        note: the user's words about masks and maps from elsewhere.
        segmenter: its name; empty for maps and refined masks, None where unknown.
        groups: how many groups the measured images belong to, which intervals draw; 0 without any.
        masks: how many true masks train beside pseudo masks, or choose how these are made.
        tagged: with such masks, how many images train by their tags.
        segments: whose outlines the pseudo masks took over; empty for nobody's.
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
    blank: int = 0
    groups: int = 0
    masks: int = 0
    tagged: int = 0
    segments: str = ""

    def line(self) -> str:
        """The first half of a protocol line."""
        unusable = self.listed - self.unmasked - self.measured
        # Only a run has a backbone. A folder from elsewhere lacks files.
        lack = "maps" if self.backbone else "a usable file"
        some = f", {unusable} of them left out: they lack {lack}" if unusable else ""
        count = str(self.listed)
        if self.unmasked:
            count = f"{self.measured} of {self.listed}"
            some = f", {self.unmasked} without a true mask{some}"
        if self.blank:
            some = f", {self.blank} of them without a class and a mask: background{some}"
        groups = f" in {self.groups} groups" if self.groups else ""
        text = f"{self.list} ({count} images{groups}{some}), true masks of {self.truth}, "
        text += f"{self.labels} classes with background; {self.method}"
        if self.backbone is None:
            return f"{text}, {self.note or 'no record of how they were made'}"
        training = f"{self.train_list} tags ({self.tags_from})"
        if self.masks:
            origin = f"{self.train_list} ({self.tags_from})"
            training = f"tags of {self.tagged:,} images of {origin} and masks of {self.masks:,}"
        if self.segments:
            training += f" and {self.segments}"
        return (
            f"{text} on {self.backbone}, trained on {training}, "
            f"initial weights {self.initial_weights}, seed {self.seed}"
        )

    def report(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def restated(entry: dict[str, Any], images: ImageCounts, convention: str) -> dict[str, Any]:
    """An entry of ``evaluation.json`` in another convention, from the same counts.

    A sweep stays in the default convention.

    Raises:
        DataError: see ``metrics.margins``.
    """
    if entry["convention"] == convention:
        return entry
    interval = {"miou_interval": miou_interval(images, convention).report()}
    return entry | summarise(images.total(), images.class_names, convention) | interval
