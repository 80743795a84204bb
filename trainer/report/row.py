"""One image in a report: the photograph once, and the maps and masks that lie over it.

A mask is drawn here, as a layer with transparent background; style lays it over the photograph. So
are its errors, and the line of a map at the reported threshold: the script has only to draw anew
what moves with the threshold.
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
from trainer.report.words import finite, percent

#: Longer side of a picture: twice what the page shows, for sharp screens and for the enlarged view.
SIDE = 288
#: Longer side of a layer of errors.
ERROR_SIDE = 192
#: Longer side of a map, which is smooth.
MAP_SIDE = 144
Labels = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """What the rows of one list are made from.

    Attributes:
        run: run directory.
        dataset: its data.
        list: the list.
        thresholds: steps of the slider, ascending.
        start: the step that maps are drawn at.
        walk_threshold: background score of the walked maps, or None where they have none.
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
        kind: ``map``, ``walk``, ``cut`` (the mask that the maps make), ``truth``, ``mask`` or
            ``labels``.
        title: what it shows.
        figure: mean IoU in percent, or empty.
        source: address of the layer.
        errors: address of the layer of errors, or empty.
        line: address of the line of a map, or empty.
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
    """An image: its tags (k), its photograph and what lies over it.

    ``fault`` says why there is no photograph.
    """

    id: str
    anchor: str
    tags: tuple[int, ...]
    size: Size = (1, 1)
    photo: str = ""
    tiles: list[Tile] = field(default_factory=list)
    fault: str = ""


def image_row(lists: Mapping[str, Sources], job: tuple[str, Record]) -> Row:
    """The row of an image, with a picture of each thing that the run has of it.

    Args:
        lists: sources of the rows of each list.
        job: a list and one of its images.
    """
    sources, record = lists[job[0]], job[1]
    row = partial(Row, record.id, anchor(record.id), tuple(record.tags))
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
        # Labels of AffinityNet and IRNet leave most pixels open: an IoU of them would mean nothing.
        tiles.append(draw.mask("labels" if "labels" in title else "mask", title, mask))
    return row(size, photo_address(photo, size), tiles)


def anchor(record_id: str) -> str:
    """Name of an image's row in links; different for different ids, whatever they hold."""
    return f"image-{quote(record_id, safe='')}"


@dataclass(frozen=True)
class _Drawing:
    """How the layers of one image are drawn: their size, the number of labels, the true mask."""

    size: Size
    labels: int
    truth: Labels | None

    def mask(self, kind: str, title: str, mask: Labels) -> Tile:
        truth = self.truth if kind == "mask" else None
        source = layer_address(mask_layer(shrink(self._known(mask), self.size)))
        return Tile(kind, title, source, self._iou(mask, truth), self._errors(mask, truth))

    def cut(self, cam: Cam, sources: Sources) -> Tile:
        """The mask that maps make at the threshold of the slider."""
        scores = self._stretch(cam.maps)
        inside = scores.max(0) > sources.thresholds[sources.start]
        strongest = np.clip(cam.classes[scores.argmax(0)] + 1, 0, self.labels)
        mask = self._known(np.where(inside, strongest, 0))
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
        masks = (shrink(self._known(labels), size) for labels in (mask, truth))
        return layer_address(error_layer(*masks))

    def _known(self, mask: npt.NDArray[np.integer]) -> Labels:
        """The labels of the data set; whatever else is there is ignored."""
        return np.where(mask < self.labels, mask, IGNORE).astype(np.uint8)

    def _stretch(self, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return upsample_cam(maps, (self.size[1], self.size[0]))

    def _iou(self, mask: Labels, truth: Labels | None) -> str:
        """Mean IoU over the labels that the truth or the mask holds; empty where they cannot be
        compared.
        """
        counts = None if truth is None else _try(partial(confusion, mask, truth, self.labels))
        value = None if counts is None else finite(float(mean_iou(counts)))
        return "" if value is None else percent(value)


def _cams(sources: Sources, record: Record, draw: _Drawing) -> list[Tile]:
    """Every map, then the mask that they make."""
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
        known = 0 <= k < len(names)
        name, label = (names[k], k + 1) if known else (f"class {k}", len(names) + 1)
        yield draw.map(kind, f"{title} of {name}", values, label, at)


def _masks(sources: Sources, record: Record) -> list[tuple[str, Labels]]:
    """What refinement and segmenters made of the image."""
    run = sources.run
    label = _affinity_labels(run / "affinity_labels" / f"{record.id}.npz", record.tags)
    masks = [("AffinityNet labels", label)]
    for title, path in (
        ("IRNet labels", run / "irn_labels" / f"{record.id}.png"),
        ("Refined", mask_path(run, record.id)),
        ("Prediction", prediction_path(run, "segment", sources.list, record.id)),
        ("Full supervision", prediction_path(run, "segment_full", sources.list, record.id)),
    ):
        masks.append((title, _try(partial(read_index_png, path)) if path.exists() else None))
    return [(title, mask) for title, mask in masks if mask is not None]


def _affinity_labels(path: Path, tags: Sequence[int]) -> Labels | None:
    """What AffinityNet learns from, pixel by pixel: sure where weak and strong background agree,
    else ignored.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            low, high = stored["low"].argmax(0), stored["high"].argmax(0)
    except Exception:  # Missing or damaged in any of a zip file's ways.
        return None
    keys = np.array([0, *(k + 1 for k in tags)], np.uint8)
    if max(low.max(), high.max()) >= len(keys):
        return None
    label: Labels = np.where(high == 0, 0, np.where(low == 0, IGNORE, keys[low])).astype(np.uint8)
    return label


def _sweep(cam: Cam, truth: Labels, sources: Sources) -> list[float]:
    """Mean IoU of the image in percent at every threshold; empty where maps and mask do not fit
    together.
    """
    labels = len(sources.dataset.classes) + 1
    if cam.size != truth.shape or not (cam.classes.min() >= 0 and cam.classes.max() < labels - 1):
        return []
    levels = np.asarray(sources.thresholds, np.float32)
    maps = upsample_cam(cam.maps, cam.size)
    counts, columns = sweep_image(maps, cam.classes, truth, levels, labels)
    return [round(100 * float(value), 1) for value in image_mious(counts, columns)]


def _try(read: Callable[[], T]) -> T | None:
    """What a file holds, or None where it is missing or damaged: the report shows the rest."""
    try:
        return read()
    except DataError:
        return None
