"""One image in a report: the photograph once, and the maps and masks that lie over it.

Masks, their errors and the line of a map at the reported threshold are drawn here, as layers with
transparent background, which CSS lays over the photograph. The page's script redraws only what
moves with the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, read_index_png
from trainer.data.pixels import read_image
from trainer.errors import DataError
from trainer.evaluation.metrics import confusion, mean_iou
from trainer.evaluation.sweep import image_mious, sweep_image
from trainer.maps.camfile import Cam, cam_path, read_cam, upsample_cam
from trainer.report.choice import mask_path, prediction_path
from trainer.report.overlays import error_layer, line_layer, mask_layer
from trainer.report.pictures import Size, fit, layer_address, map_address, photo_address, shrink
from trainer.report.words import finite, percent, unknown_words

# Longer side of a picture: twice its size on the page, for sharp screens and for the enlarged view.
SIDE = 288
# Longer side of a layer of errors, which is for an overview.
ERROR_SIDE = 192
# Longer side of a map, which is smooth.
MAP_SIDE = 144
Labels = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """The inputs of the rows of one list.

    Attributes:
        run: run directory.
        dataset: its data.
        list: the list.
        thresholds: steps of the slider, ascending.
        start: the step at which maps are drawn.
        walk_threshold: background score of the maps after a walk; None where they have none.
    """

    run: Path
    dataset: Dataset
    list: str
    thresholds: tuple[float, ...]
    start: int
    walk_threshold: float | None


@dataclass(frozen=True)
class Tile:
    """A picture over the photograph.

    Attributes:
        kind: ``map``, ``walk``, ``cut`` (the mask of the maps), ``truth``, ``mask`` or ``labels``.
        title: its name on the page.
        figure: mean IoU in percent, or empty.
        source: data URL of the layer.
        errors: data URL of the layer of errors, or empty.
        line: data URL of the line of a map, or empty.
        label: of a map, k+1.
        iou: of a cut, mean IoU in percent at every step of the slider.
    """

    kind: str
    title: str
    source: str
    figure: str = ""
    errors: str = ""
    line: str = ""
    label: int | None = None
    iou: Sequence[float] = ()


@dataclass(frozen=True)
class Row:
    """An image: its tags (k), its unknown ones in words, its photograph and its tiles, or the
    ``fault`` of the photograph.
    """

    id: str
    anchor: str
    tags: tuple[int, ...]
    size: Size = (1, 1)
    photo: str = ""
    tiles: list[Tile] = field(default_factory=list)
    fault: str = ""
    unknown: tuple[str, ...] = ()


def image_row(lists: Mapping[str, Sources], job: tuple[str, Record]) -> Row:
    """The row of an image, with a tile for each map and mask of it in the run.

    Args:
        lists: sources of the rows of each list.
        job: a list and one of its images.
    """
    sources, record = lists[job[0]], job[1]
    unknown = unknown_words(record, sources.dataset.classes)
    row = partial(Row, record.id, anchor(record.id), tuple(record.tags), unknown=unknown)
    try:
        photo = read_image(record.image)
    except DataError as error:
        return row(fault=error.found)
    size, dataset = fit(photo.shape, SIDE), sources.dataset
    truth = _try(partial(dataset.read_mask, record)) if dataset.has_mask(record) else None
    draw = _Drawing(size, len(dataset.classes) + 1, truth)
    tiles = [] if truth is None else [draw.mask("truth", "True mask", truth)]
    tiles += _cams(sources, record, draw)
    tiles += _walked(sources, record, draw)
    for title, mask in _masks(sources, record):
        # Labels of AffinityNet and IRNet leave most pixels open: their IoU would mean nothing.
        tiles.append(draw.mask("labels" if "labels" in title else "mask", title, mask))
    return row(size, photo_address(photo, size), tiles)


def anchor(record_id: str) -> str:
    """The anchor of an image's row; different ids have different anchors."""
    return f"image-{quote(record_id, safe='')}"


@dataclass(frozen=True)
class _Drawing:
    size: Size
    labels: int
    truth: Labels | None

    def mask(self, kind: str, title: str, mask: Labels) -> Tile:
        truth = self.truth if kind == "mask" else None
        source = layer_address(mask_layer(shrink(self._valid(mask), self.size)))
        return Tile(kind, title, source, self._iou(mask, truth), self._errors(mask, truth))

    def cut(self, cam: Cam, sources: Sources) -> Tile:
        """The mask that maps make at the threshold of the slider."""
        scores = self._stretch(cam.maps)
        inside = scores.max(0) > sources.thresholds[sources.start]
        strongest = np.clip(cam.classes[scores.argmax(0)] + 1, 0, self.labels)
        mask = self._valid(np.where(inside, strongest, 0))
        iou = [] if self.truth is None else _sweep(cam, self.truth, sources)
        figure = f"{iou[sources.start]:.1f}" if iou else ""
        source, errors = layer_address(mask_layer(mask)), self._errors(mask, self.truth)
        return Tile("cut", "CAM mask", source, figure, errors, iou=iou)

    def map(
        self, kind: str, title: str, values: npt.NDArray[np.float32], label: int, at: float | None
    ) -> Tile:
        line = "" if at is None else layer_address(line_layer(self._stretch(values[None])[0], at))
        source = map_address(values, MAP_SIDE)
        return Tile(kind, title, source, line=line, label=min(label, self.labels))

    def _errors(self, mask: Labels, truth: Labels | None) -> str:
        if truth is None:
            return ""
        size = fit(self.size[::-1], ERROR_SIDE)
        masks = (shrink(self._valid(labels), size) for labels in (mask, truth))
        return layer_address(error_layer(*masks))

    def _valid(self, mask: npt.NDArray[np.integer]) -> Labels:
        """The labels of the data set; all others become 255."""
        return np.where(mask < self.labels, mask, IGNORE).astype(np.uint8)

    def _stretch(self, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return upsample_cam(maps, (self.size[1], self.size[0]))

    def _iou(self, mask: Labels, truth: Labels | None) -> str:
        """Mean IoU over the labels of truth or mask; empty where their sizes differ."""
        counts = None if truth is None else _try(partial(confusion, mask, truth, self.labels))
        value = None if counts is None else finite(float(mean_iou(counts)))
        return "" if value is None else percent(value)


def _cams(sources: Sources, record: Record, draw: _Drawing) -> list[Tile]:
    """Every map, then the mask of all maps."""
    cam = _try(partial(read_cam, cam_path(sources.run / "cams", record.id)))
    if cam is None or not len(cam.classes):
        return []
    at = sources.thresholds[sources.start]
    return [*_maps("map", "CAM", sources, cam, draw, at), draw.cut(cam, sources)]


def _walked(sources: Sources, record: Record, draw: _Drawing) -> list[Tile]:
    cam = _try(partial(read_cam, cam_path(sources.run / "walk", record.id)))
    at = sources.walk_threshold
    return [] if cam is None else list(_maps("walk", "Walk", sources, cam, draw, at))


def _maps(
    kind: str, title: str, sources: Sources, cam: Cam, draw: _Drawing, at: float | None
) -> Iterator[Tile]:
    names = sources.dataset.classes
    for k, values in zip(cam.classes.tolist(), cam.maps):
        # Maps of another data set may have further classes: all get the colour after the last.
        is_own = 0 <= k < len(names)
        name, label = (names[k], k + 1) if is_own else (f"class {k}", len(names) + 1)
        yield draw.map(kind, f"{title} of {name}", values, label, at)


def _masks(sources: Sources, record: Record) -> list[tuple[str, Labels]]:
    """Masks of the image from refinement and segmenters, with their titles."""
    run = sources.run
    # The labels are numbered in the order of the maps, which may be of unknown classes too.
    cam = _try(partial(read_cam, cam_path(run / "cams", record.id))) if record.unknown else None
    classes = record.tags if cam is None else cam.classes.tolist()
    label = _affinity_labels(run / "affinity_labels" / f"{record.id}.npz", classes)
    masks = [("AffinityNet labels", label)]
    for title, path in (
        ("IRNet labels", run / "irn_labels" / f"{record.id}.png"),
        ("Refined", mask_path(run, record.id)),
        ("Prediction", prediction_path(run, "segment", sources.list, record.id)),
        ("Full supervision", prediction_path(run, "segment_full", sources.list, record.id)),
    ):
        masks.append((title, _try(partial(read_index_png, path)) if path.exists() else None))
    return [(title, mask) for title, mask in masks if mask is not None]


def _affinity_labels(path: Path, classes: Sequence[int]) -> Labels | None:
    """AffinityNet's labels per pixel; 255 where low and high background scores disagree."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            low, high = archive["low"].argmax(0), archive["high"].argmax(0)
    # Missing, or damaged in one of the many ways of a zip file.
    except Exception:
        return None
    keys = np.array([0, *(k + 1 for k in classes)], np.uint8)
    if max(low.max(), high.max()) >= len(keys):
        return None
    label: Labels = np.where(high == 0, 0, np.where(low == 0, IGNORE, keys[low])).astype(np.uint8)
    return label


def _sweep(cam: Cam, truth: Labels, sources: Sources) -> list[float]:
    """Mean IoU in percent at every threshold; empty where maps and mask do not fit together."""
    labels = len(sources.dataset.classes) + 1
    if cam.size != truth.shape or not (cam.classes.min() >= 0 and cam.classes.max() < labels - 1):
        return []
    levels = np.asarray(sources.thresholds, np.float32)
    maps = upsample_cam(cam.maps, cam.size)
    counts, columns = sweep_image(maps, cam.classes, truth, levels, labels)
    return [round(100 * float(value), 1) for value in image_mious(counts, columns)]


def _try(reader: Callable[[], T]) -> T | None:
    """The content of a file; None where it is missing or damaged."""
    try:
        return reader()
    except DataError:
        return None
