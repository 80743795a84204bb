"""How good masks and class activation maps are over whole lists (spec refine-segment 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.errors import DataError, UserError
from trainer.evaluation.boundary import boundary_f
from trainer.evaluation.figures import CamEvaluation, MaskEvaluation, row_of
from trainer.evaluation.image_counts import ImageCounts, Sparse, sparse
from trainer.evaluation.metrics import Counts, confusion, iou, mean_iou, metrics, summarise
from trainer.evaluation.sweep import (
    SPEC_SWEEP,
    SWEEP,
    Thresholds,
    ascending,
    image_mious,
    sweep_image,
    sweep_thresholds,
    threshold_sweep,
)
from trainer.maps.camfile import Cam, cam_path, read_cam, upsample_cam
from trainer.pool import over_images, raise_together

__all__ = [
    "SPEC_SWEEP",
    "SWEEP",
    "CamEvaluation",
    "CamSource",
    "MaskEvaluation",
    "MaskSource",
    "cam_reader",
    "confusion",
    "evaluate_cams",
    "evaluate_folder",
    "evaluate_masks",
    "iou",
    "mask_reader",
    "mean_iou",
    "metrics",
    "summarise",
    "sweep_thresholds",
    "threshold_sweep",
]

Labels = npt.NDArray[np.uint8]
Boundary = npt.NDArray[np.float32]
CamSource = Path | Callable[[Record], Cam]
"""A folder of ``<id>.npz``, or what reads the maps of an image from somewhere else."""
MaskSource = Path | Callable[[Record], Labels]
"""A folder of ``<id>.png`` (labels 0..K, 255 open), or what reads the label map of an image from
somewhere else.
"""


def evaluate_masks(
    pairs: Iterable[tuple[str, Labels, Labels]], class_names: Sequence[str]
) -> MaskEvaluation:
    """Measure ``(id, prediction [H,W], truth [H,W])`` of each image.

    Raises:
        DataError: sizes differ, or a predicted label is not known; the image is named.
    """
    ids, images = [], []
    for name, pred, truth in pairs:
        images.append(_measure(name, pred, truth, len(class_names) + 1, None)[0])
        ids.append(name)
    return MaskEvaluation(ImageCounts.of(ids, class_names, images), None)


def evaluate_cams(
    dataset: Dataset,
    records: Sequence[Record],
    cams: CamSource,
    thresholds: npt.ArrayLike = SWEEP,
    *,
    at: float | None = None,
    tolerance: float | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> CamEvaluation:
    """Sweep the maps of a list, each up-sampled to the size of its image, in one pass.

    Args:
        dataset: the data set of ``records``.
        records: images with true masks.
        cams: the maps.
        thresholds: ascending.
        at: one of ``thresholds``, to look at closely: ``CamEvaluation.chosen``.
        tolerance: of the boundary F-score there; None to leave it out.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar.

    Raises:
        DataError: maps or true masks that are missing, unreadable or of another size, all of them
        named.
    """
    levels, labels = ascending(thresholds), len(dataset.classes) + 1
    row = None if at is None else row_of(levels, at)
    work = partial(_sweep_record, dataset, cam_reader(cams), levels, row, tolerance)
    total = np.zeros((len(levels), labels, labels), np.int64)
    values, closely = [], []
    for counts, columns, closer in _each(
        over_images(work, records, workers, "maps", progress, _name), len(records)
    ):
        total[:, :, columns] += counts
        values.append(image_mious(counts, columns))
        closely.append(closer)
    image_miou = np.stack(values) if values else np.zeros((0, len(levels)), np.float32)
    ids = tuple(record.id for record in records)
    chosen = _gathered(ids, dataset.classes, closely, tolerance) if at is not None else None
    return CamEvaluation(levels, total, image_miou, ids, dataset.classes, row, chosen)


def cam_reader(cams: CamSource) -> Callable[[Record], Cam]:
    """What reads the maps of an image."""
    return partial(_read_own, cams) if isinstance(cams, Path) else cams


def _read_own(folder: Path, record: Record) -> Cam:
    return read_cam(cam_path(folder, record.id))


def _sweep_record(
    dataset: Dataset,
    read: Callable[[Record], Cam],
    thresholds: Thresholds,
    row: int | None,
    tolerance: float | None,
    record: Record,
) -> tuple[Counts, Counts, tuple[Sparse, Boundary] | None]:
    cam, truth, labels = read(record), dataset.read_mask(record), len(dataset.classes) + 1
    if cam.size != truth.shape:
        raise DataError(
            f"maps of {record.id!r} are for {cam.size} pixels and its mask has {truth.shape}",
            "one size",
        )
    maps = upsample_cam(cam.maps, cam.size)
    counts, columns = sweep_image(maps, cam.classes, truth, thresholds, labels)
    if row is None:
        return counts, columns, None
    at_row = np.zeros((labels, labels + 1), np.int64)
    at_row[:, columns] = counts[row]
    outlines = _outlines(
        threshold_maps(maps, cam.classes, thresholds[row]), truth, labels, tolerance
    )
    return counts, columns, (sparse(at_row), outlines)


def threshold_maps(
    maps_kHW: npt.NDArray[np.float32], classes: npt.NDArray[np.int16], threshold: float
) -> Labels:
    """Label map ``uint8 [H,W]``: the strongest class where its map exceeds the threshold, else
    background.
    """
    if not len(classes):
        return np.zeros(maps_kHW.shape[1:], np.uint8)
    inside = maps_kHW.max(0) > np.float32(threshold)
    return np.where(inside, classes[maps_kHW.argmax(0)] + 1, 0).astype(np.uint8)


def evaluate_folder(
    dataset: Dataset,
    records: Sequence[Record],
    masks: MaskSource,
    *,
    tolerance: float | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> MaskEvaluation:
    """Measure masks (labels 0..K, 255 for pixels left open) against the true masks of a list; see
    ``evaluate_cams``.

    Raises:
        DataError: masks that are missing, unreadable or of another size, all of them named.
    """
    work = partial(_measure_record, dataset, mask_reader(masks), tolerance)
    outcomes = over_images(work, records, workers, "masks", progress, _name)
    closely = list(_each(outcomes, len(records)))
    return _gathered([record.id for record in records], dataset.classes, closely, tolerance)


def mask_reader(masks: MaskSource) -> Callable[[Record], Labels]:
    """What reads the label map of an image."""
    return partial(_read_png, masks) if isinstance(masks, Path) else masks


def _read_png(folder: Path, record: Record) -> Labels:
    path = folder / f"{record.id}.png"
    if not path.exists():
        raise DataError(f"mask {path} is missing")
    return read_index_png(path)


def _measure_record(
    dataset: Dataset, read: Callable[[Record], Labels], tolerance: float | None, record: Record
) -> tuple[Sparse, Boundary]:
    return _measure(
        record.id, read(record), dataset.read_mask(record), len(dataset.classes) + 1, tolerance
    )


def _measure(
    name: str, pred: Labels, truth: Labels, labels: int, tolerance: float | None
) -> tuple[Sparse, Boundary]:
    try:
        counts = confusion(pred, truth, labels, predicted_ignore="own")
    except DataError as error:
        raise DataError(f"image {name!r}: {error.found}", error.expected, error.hint) from error
    return sparse(counts), _outlines(pred, truth, labels, tolerance)


def _outlines(pred: Labels, truth: Labels, labels: int, tolerance: float | None) -> Boundary:
    return (
        np.full(labels, np.nan, np.float32)
        if tolerance is None
        else boundary_f(pred, truth, labels, tolerance)
    )


def _each(outcomes: Iterable[tuple[Record, Any]], total: int) -> Iterator[Any]:
    """The results of images; what was wrong with single ones is raised together, after all were
    tried.
    """
    problems = []
    for _, outcome in outcomes:
        if isinstance(outcome, UserError):
            problems.append(outcome)
        else:
            yield outcome
    raise_together(problems, total, "images cannot be measured")


def _gathered(
    ids: Sequence[str],
    class_names: Sequence[str],
    closely: Sequence[tuple[Sparse, Boundary]],
    tolerance: float | None,
) -> MaskEvaluation:
    counts, outlines = [c for c, _ in closely], [o for _, o in closely]
    return MaskEvaluation(ImageCounts.of(ids, class_names, counts, outlines), tolerance)


def _name(record: Record) -> str:
    return record.id
