"""How good masks and class activation maps are over whole lists; the threshold sweep (spec refine-segment 12)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.camfile import cam_path, read_cam, upsample_cam
from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.errors import DataError, UserError
from trainer.metrics import Counts, Metrics, Ratios, confusion, finite_or_none, iou, mean_iou, metrics, summarise
from trainer.pool import over_images, raise_together

__all__ = [
    "SPEC_SWEEP",
    "SWEEP",
    "CamEvaluation",
    "MaskEvaluation",
    "Metrics",
    "confusion",
    "evaluate_cams",
    "evaluate_folder",
    "evaluate_masks",
    "iou",
    "mean_iou",
    "metrics",
    "summarise",
    "sweep_image",
    "sweep_thresholds",
    "threshold_sweep",
]

Thresholds = npt.NDArray[np.float32]

SWEEP: Thresholds = (np.arange(100) / 100).astype(np.float32)
"""0.00 to 0.99 in steps of 0.01."""

SPEC_SWEEP: Thresholds = SWEEP[:60]
"""0.00 to 0.59: what SEAM and CPN sweep, and what published "best threshold" figures come from."""


def sweep_thresholds(*extra: float) -> Thresholds:
    """``SWEEP`` and any thresholds that must be measured exactly, ascending."""
    return np.unique(np.concatenate([SWEEP, np.asarray(extra, np.float32)]))


def threshold_sweep(
    cams: Iterable[tuple[npt.NDArray[np.float32], Sequence[int], npt.NDArray[np.uint8]]],
    thresholds: npt.ArrayLike = SWEEP,
    *,
    num_classes: int,
) -> Counts:
    """Confusions of ``argmax([t, maps])`` for every threshold, in one pass over the images.

    A pixel is background at t iff ``t >= max(maps)``, so its label changes once over all thresholds: one histogram over
    (threshold where it changes, truth, strongest class) and one cumulative sum give the same counts as T passes.

    Args:
        cams: ``(maps float32 [k,H,W], class indices [k] in 0..K-1, truth [H,W])`` of each image.
        thresholds: T ascending values.
        num_classes: K+1, background included.

    Returns:
        int64 ``[T,K+1,K+1]``.
    """
    levels = _ascending(thresholds)
    total = np.zeros((len(levels), num_classes, num_classes), np.int64)
    for maps, classes, truth in cams:
        counts, columns = sweep_image(maps, classes, truth, levels, num_classes)
        total[:, :, columns] += counts
    return total


def _ascending(thresholds: npt.ArrayLike) -> Thresholds:
    levels = np.asarray(thresholds, np.float32)
    if levels.ndim != 1 or not len(levels) or (np.diff(levels) <= 0).any():
        raise ValueError("thresholds must be a list of ascending values")
    return levels


def sweep_image(
    maps_kHW: npt.NDArray[np.float32],
    classes: Sequence[int] | npt.NDArray[np.int16],
    truth_HW: npt.NDArray[np.uint8],
    thresholds: Thresholds,
    num_classes: int,
) -> tuple[Counts, Counts]:
    """The sweep of one image: counts int64 ``[T,C,k+1]`` and the labels ``[k+1]`` of its columns, background first."""
    count, k = len(thresholds), len(classes)
    columns = np.concatenate([[0], np.asarray(classes, np.int64) + 1])
    if maps_kHW.shape[1:] != truth_HW.shape:
        raise DataError(f"maps of {maps_kHW.shape[1:]} and truth of {truth_HW.shape} pixels")
    # Row C collects every pixel without a known truth.
    truth = np.minimum(truth_HW, num_classes).astype(np.int64).reshape(-1)
    if not k:
        rows = np.bincount(truth, minlength=num_classes + 1)[:num_classes]
        return np.broadcast_to(rows[None, :, None], (count, num_classes, 1)).astype(np.int64), columns
    flat = maps_kHW.reshape(k, -1)
    best = flat.argmax(0)
    change = np.searchsorted(thresholds, flat.max(0), side="left")
    cell = (change * (num_classes + 1) + truth) * k + best
    histogram = np.bincount(cell, minlength=(count + 1) * (num_classes + 1) * k)
    histogram = histogram.reshape(count + 1, num_classes + 1, k)[:, :num_classes]
    above = histogram[::-1].cumsum(0)[::-1]
    foreground = above[1:]
    background = above[0].sum(-1) - foreground.sum(-1)
    return np.concatenate([background[..., None], foreground], 2).astype(np.int64), columns


def _compact_miou(counts_TCk: Counts, columns: Counts) -> npt.NDArray[np.float32]:
    """Mean IoU ``[T]`` of one image over the classes that its truth or its prediction holds."""
    truth = np.broadcast_to(counts_TCk.sum(2), counts_TCk.shape[:2]).copy()
    found = np.zeros_like(truth)
    hit = np.zeros_like(truth)
    found[:, columns] = counts_TCk.sum(1)
    hit[:, columns] = counts_TCk[:, columns, np.arange(len(columns))]
    union = truth + found - hit
    present = (union > 0).sum(1)
    values: npt.NDArray[np.float32] = (np.sum(hit / np.maximum(union, 1), 1) / np.maximum(present, 1)).astype(
        np.float32
    )
    return values


@dataclass(frozen=True)
class CamEvaluation:
    """Confusions of the maps of a list at every threshold.

    Attributes:
        thresholds: float32 ``[T]``.
        confusions: int64 ``[T,K+1,K+1]``.
        image_miou: float32 ``[N,T]``, mean IoU of each image by itself, to find the worst ones.
        ids: the N images.
        class_names: the K foreground names.
    """

    thresholds: Thresholds
    confusions: Counts
    image_miou: npt.NDArray[np.float32]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def miou(self) -> Ratios:
        """Mean IoU at every threshold, float64 ``[T]``."""
        return mean_iou(self.confusions)

    @property
    def best(self) -> float:
        """The threshold with the highest mean IoU; the lowest of equals."""
        return float(self.thresholds[int(np.nanargmax(self.miou))])

    def report(self, threshold: float, threshold_from: str, protocol: str, worst: int = 20) -> dict[str, Any]:
        """The entry of ``evaluation.json`` at one of the thresholds that were measured.

        Args:
            threshold: one of ``thresholds``; see ``sweep_thresholds`` for measuring another one.
            threshold_from: ``fixed``, the list that it was chosen on, ``oracle`` or ``label_free``.
            protocol: one line: list, ground truth, scales and flips, CRF, initial weights.
            worst: how many of the worst images to name.
        """
        row = int(np.abs(self.thresholds - np.float32(threshold)).argmin())
        if not np.isclose(self.thresholds[row], threshold, atol=1e-6):
            raise ValueError(f"threshold {threshold} was not measured")
        sweep = {
            "thresholds": [round(float(t), 6) for t in self.thresholds],
            "miou": [finite_or_none(v) for v in self.miou],
            "best": {"threshold": round(self.best, 6), "miou": finite_or_none(float(np.nanmax(self.miou)))},
        }
        return {
            **summarise(self.confusions[row], self.class_names),
            "threshold": round(float(threshold), 6),
            "threshold_from": threshold_from,
            "images": len(self.ids),
            "protocol": protocol,
            "sweep": sweep,
            "worst": _worst(self.ids, self.image_miou[:, row], worst),
        }


@dataclass(frozen=True)
class MaskEvaluation:
    """Confusion of finished masks of a list.

    Attributes:
        confusion: int64 ``[K+1,K+1]``.
        image_miou: float32 ``[N]``, mean IoU of each image by itself.
        ids: the N images.
        class_names: the K foreground names.
    """

    confusion: Counts
    image_miou: npt.NDArray[np.float32]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]

    def report(
        self, protocol: str, threshold: float | None = None, threshold_from: str | None = None, worst: int = 20
    ) -> dict[str, Any]:
        """The entry of ``evaluation.json``; see ``CamEvaluation.report``."""
        return {
            **summarise(self.confusion, self.class_names),
            "threshold": threshold,
            "threshold_from": threshold_from,
            "images": len(self.ids),
            "protocol": protocol,
            "worst": _worst(self.ids, self.image_miou, worst),
        }


def _worst(ids: Sequence[str], values: npt.NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    order = np.argsort(values, kind="stable")[:count]
    return [{"id": ids[i], "miou": round(float(values[i]), 6)} for i in order]


def evaluate_masks(
    pairs: Iterable[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], class_names: Sequence[str]
) -> MaskEvaluation:
    """Measure ``(id, prediction [H,W], truth [H,W])`` of each image.

    Raises:
        DataError: sizes differ, or a predicted label is not known; the image is named.
    """
    labels = len(class_names) + 1
    total = np.zeros((labels, labels), np.int64)
    ids, values = [], []
    for name, pred, truth in pairs:
        try:
            counts = confusion(pred, truth, labels)
        except DataError as error:
            raise DataError(f"image {name!r}: {error.found}", error.expected, error.hint) from error
        total += counts
        ids.append(name)
        values.append(float(mean_iou(counts)))
    return MaskEvaluation(total, np.nan_to_num(np.asarray(values, np.float32), nan=1.0), tuple(ids), tuple(class_names))


def evaluate_cams(
    dataset: Dataset,
    records: Sequence[Record],
    cam_folder: Path,
    thresholds: npt.ArrayLike = SWEEP,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> CamEvaluation:
    """Sweep the maps of a list, each up-sampled to the size of its image, in one pass.

    Raises:
        DataError: maps or true masks that are missing, unreadable or of another size, all of them named.
    """
    levels, labels = _ascending(thresholds), len(dataset.classes) + 1
    work = partial(_sweep_record, dataset, cam_folder, levels)
    total = np.zeros((len(levels), labels, labels), np.int64)
    values, problems = [], []
    for _, outcome in over_images(work, records, workers, "maps", progress, _name):
        if isinstance(outcome, UserError):
            problems.append(outcome)
            continue
        counts, columns = outcome
        total[:, :, columns] += counts
        values.append(_compact_miou(counts, columns))
    raise_together(problems, len(records), "images cannot be measured")
    image_miou = np.stack(values) if values else np.zeros((0, len(levels)), np.float32)
    return CamEvaluation(levels, total, image_miou, tuple(r.id for r in records), dataset.classes)


def _sweep_record(dataset: Dataset, cam_folder: Path, thresholds: Thresholds, record: Record) -> tuple[Counts, Counts]:
    cam = read_cam(cam_path(cam_folder, record.id))
    truth = dataset.read_mask(record)
    if cam.size != truth.shape:
        raise DataError(f"maps of {record.id!r} are for {cam.size} pixels and its mask has {truth.shape}", "one size")
    maps = upsample_cam(cam.maps, cam.size)
    return sweep_image(maps, cam.classes, truth, thresholds, len(dataset.classes) + 1)


def evaluate_folder(
    dataset: Dataset,
    records: Sequence[Record],
    mask_folder: Path,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> MaskEvaluation:
    """Measure ``mask_folder/<id>.png`` (labels 0..K, 255 counts as background) against the true masks of a list.

    Raises:
        DataError: masks that are missing, unreadable or of another size, all of them named.
    """
    labels = len(dataset.classes) + 1
    total = np.zeros((labels, labels), np.int64)
    values, problems = [], []
    work = partial(_measure_record, dataset, mask_folder)
    for _, outcome in over_images(work, records, workers, "masks", progress, _name):
        if isinstance(outcome, UserError):
            problems.append(outcome)
            continue
        total += outcome
        values.append(float(mean_iou(outcome)))
    raise_together(problems, len(records), "images cannot be measured")
    image_miou = np.nan_to_num(np.asarray(values, np.float32), nan=1.0)
    return MaskEvaluation(total, image_miou, tuple(r.id for r in records), dataset.classes)


def _measure_record(dataset: Dataset, mask_folder: Path, record: Record) -> Counts:
    path = mask_folder / f"{record.id}.png"
    if not path.exists():
        raise DataError(f"mask {path} is missing")
    try:
        return confusion(read_index_png(path), dataset.read_mask(record), len(dataset.classes) + 1)
    except DataError as error:
        raise DataError(f"image {record.id!r}: {error.found}", error.expected, error.hint) from error


def _name(record: Record) -> str:
    return record.id
