"""How good masks and class activation maps are over whole lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.errors import DataError, UserError
from trainer.evaluation.boundary import boundary_f
from trainer.evaluation.figures import CamEvaluation, MaskEvaluation, row_of
from trainer.evaluation.image_counts import ImageCounts, Sparse, group_numbers, sparse
from trainer.evaluation.metrics import Counts, confusion
from trainer.evaluation.objects import count_objects
from trainer.evaluation.pixel_ranking import ImagePixels, PixelRanking, image_pixels
from trainer.evaluation.sweep import SWEEP, Thresholds, ascending, image_mious, sweep_image
from trainer.maps.camfile import Cam, cam_path, read_cam, upsample_cam
from trainer.pool import each_image, over_images, raise_together

T = TypeVar("T")
UNMEASURABLE = "images cannot be measured"
Labels = npt.NDArray[np.uint8]
Boundary = npt.NDArray[np.float32]
Detail = tuple[Sparse, Boundary, Counts]
"""Confusion, boundary F-score and objects of the mask of an image."""
Sweep = tuple[Counts, Counts, tuple[Detail, ImagePixels] | None]
"""Counts ``[T,C,k+1]`` of an image, the labels of its columns, and where a threshold was asked for
its mask there and its pixels by score.
"""
CamReader = Callable[[Record], Cam]
MaskReader = Callable[[Record], Labels]
CamSource = Path | CamReader
"""A folder of ``<id>.npz``, or a function that returns the maps of an image."""
MaskSource = Path | MaskReader
"""A folder of ``<id>.png`` (labels 0..K, 255 open), or a function that returns a label map."""


def evaluate_cams(
    dataset: Dataset,
    records: Sequence[Record],
    cams: CamSource,
    thresholds: npt.ArrayLike = SWEEP,
    *,
    at: float | None = None,
    tolerance: float | None = None,
    workers: int | None = None,
) -> CamEvaluation:
    """Sweep the maps of a list, each up-sampled to the size of its image, in one pass.

    Args:
        dataset: the data set of ``records``.
        records: images with true masks.
        cams: the maps.
        thresholds: ascending.
        at: one of ``thresholds``, whose masks become ``CamEvaluation.chosen``.
        tolerance: of the boundary F-score of those masks; None leaves the score out.
        workers: processes; None for one a core, 0 for none.

    Raises:
        DataError: maps or true masks are missing, unreadable or of another size; lists all of them.
    """
    levels, labels = ascending(thresholds), len(dataset.classes) + 1
    row = None if at is None else row_of(levels, at)
    work = partial(_sweep_record, dataset, cam_reader(cams), levels, row, tolerance)
    total = np.zeros((len(levels), labels, labels), np.int64)
    ranking = PixelRanking.empty(len(dataset.classes)) if row is not None else None
    mious, details = [], list[Detail]()
    for counts, columns, rest in _outcomes(work, records, workers):
        total[:, :, columns] += counts
        mious.append(image_mious(counts, columns))
        if rest is not None and ranking is not None:
            details.append(rest[0])
            ranking.add(rest[1])
    image_miou = np.array(mious, np.float32).reshape(len(mious), len(levels))
    chosen = None if row is None else _evaluation(records, dataset, details, tolerance)
    facts = tuple(record.id for record in records), dataset.classes
    return CamEvaluation(levels, total, image_miou, *facts, row, chosen, ranking)


def _outcomes(
    work: Callable[[Record], T], records: Sequence[Record], workers: int | None
) -> Iterator[T]:
    """What ``work`` makes of each image, one at a time; faults are raised together at the end."""
    problems = []
    # Not each_image, which returns a list: the sweep of one image holds 100 matrices.
    for _, outcome in over_images(work, records, workers, "maps", True, attrgetter("id")):
        if isinstance(outcome, UserError):
            problems.append(outcome)
        else:
            yield outcome
    raise_together(problems, len(records), UNMEASURABLE)


def cam_reader(cams: CamSource) -> CamReader:
    """A function that returns the maps of an image."""
    return partial(_read_own, cams) if isinstance(cams, Path) else cams


def _read_own(folder: Path, record: Record) -> Cam:
    return read_cam(cam_path(folder, record.id))


def _sweep_record(
    dataset: Dataset,
    reader: CamReader,
    thresholds: Thresholds,
    row: int | None,
    tolerance: float | None,
    record: Record,
) -> Sweep:
    (cam, truth), labels = _with_truth(dataset, reader, record), len(dataset.classes) + 1
    maps = upsample_cam(cam.maps, cam.size)
    counts, columns = sweep_image(maps, cam.classes, truth, thresholds, labels)
    if row is None:
        return counts, columns, None
    # The last column is for predicted 255, which maps never give.
    at_row = np.zeros((labels, labels + 1), np.int64)
    at_row[:, columns] = counts[row]
    mask = threshold_maps(maps, cam.classes, thresholds[row])
    pixels = image_pixels(maps, cam.classes.tolist(), truth, labels)
    return counts, columns, (_detail(at_row, mask, truth, tolerance), pixels)


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
) -> MaskEvaluation:
    """Measure masks (labels 0..K, 255 open) against the true masks of a list.

    The arguments are those of ``evaluate_cams``.

    Raises:
        DataError: masks are missing, unreadable or of another size; lists all of them.
    """
    work = partial(_measure_record, dataset, mask_reader(masks), tolerance)
    details = each_image(work, records, UNMEASURABLE, workers, "masks", True, attrgetter("id"))
    return _evaluation(records, dataset, details, tolerance)


def rank_pixels(
    dataset: Dataset, records: Sequence[Record], cams: CamSource, workers: int | None = None
) -> PixelRanking:
    """The pixels of a list by the scores of its maps.

    The arguments are those of ``evaluate_cams``.

    Raises:
        DataError: maps or true masks are missing, unreadable or of another size; lists all of them.
    """
    work, ranking = (
        partial(_rank, dataset, cam_reader(cams)),
        PixelRanking.empty(len(dataset.classes)),
    )
    for image in _outcomes(work, records, workers):
        ranking.add(image)
    return ranking


def _rank(dataset: Dataset, reader: CamReader, record: Record) -> ImagePixels:
    cam, truth = _with_truth(dataset, reader, record)
    maps = upsample_cam(cam.maps, cam.size)
    return image_pixels(maps, cam.classes.tolist(), truth, len(dataset.classes) + 1)


def _with_truth(dataset: Dataset, reader: CamReader, record: Record) -> tuple[Cam, Labels]:
    cam, truth = reader(record), dataset.read_mask(record)
    if cam.size != truth.shape:
        raise DataError(
            f"maps of {record.id!r} are for {cam.size} pixels and its mask has {truth.shape}",
            "one size",
        )
    return cam, truth


def mask_reader(masks: MaskSource) -> MaskReader:
    """A function that returns the label map of an image."""
    return partial(_read_png, masks) if isinstance(masks, Path) else masks


def _read_png(folder: Path, record: Record) -> Labels:
    path = folder / f"{record.id}.png"
    if not path.exists():
        raise DataError(f"mask {path} is missing")
    return read_index_png(path)


def _measure_record(
    dataset: Dataset, reader: MaskReader, tolerance: float | None, record: Record
) -> Detail:
    mask, truth, labels = reader(record), dataset.read_mask(record), len(dataset.classes) + 1
    try:
        counts = confusion(mask, truth, labels, predicted_ignore="own")
    except DataError as error:
        what = f"image {record.id!r}: {error.found}"
        raise DataError(what, error.expected, error.hint) from error
    return _detail(counts, mask, truth, tolerance)


def _detail(counts: Counts, mask: Labels, truth: Labels, tolerance: float | None) -> Detail:
    labels = len(counts)
    boundary = np.full(labels, np.nan, np.float32)
    if tolerance is not None:
        boundary = boundary_f(mask, truth, labels, tolerance)
    return sparse(counts), boundary, count_objects(mask, truth, labels)


def _evaluation(
    records: Sequence[Record],
    dataset: Dataset,
    details: Sequence[Detail],
    tolerance: float | None,
) -> MaskEvaluation:
    ids, groups = [record.id for record in records], group_numbers(records)
    counts, boundaries, objects = zip(*details) if details else ((), (), ())
    images = ImageCounts.of(ids, dataset.classes, counts, boundaries, groups, objects)
    return MaskEvaluation(images, tolerance)
