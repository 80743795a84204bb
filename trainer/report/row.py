"""One image in a report: the photograph once, and the maps and masks that lie over it.

Everything but the photograph is a small PNG of values: a mask has one palette colour a label, its
background transparent; a map grey levels of 1/200. The script draws from these values; on paper and
without it, style lays them over the photograph.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape as esc
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.dataset import IGNORE, Dataset, Record, read_index_png
from trainer.data.palette import voc_palette
from trainer.data.pixels import read_image
from trainer.errors import DataError
from trainer.evaluation.metrics import confusion, mean_iou
from trainer.evaluation.sweep import image_mious, sweep_image
from trainer.maps.camfile import Cam, cam_path, read_cam, upsample_cam
from trainer.report.choice import mask_path, prediction_path
from trainer.report.facts import finite, percent
from trainer.report.page import data, note, swatch

#: Longer side of a picture: twice what the page shows, for sharp screens and for the enlarged view.
THUMB = 288
#: Longer side of a map, which is smooth.
MAP = 144
#: Grey levels of the value 1: thresholds of 0.01 fall between two of them.
LEVELS = 200
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
        walk_threshold: background score of the walked maps, or None where they have none.
    """

    run: Path
    dataset: Dataset
    list: str
    thresholds: tuple[float, ...]
    walk_threshold: float | None


def row(lists: Mapping[str, Sources], job: tuple[str, Record]) -> str:
    """The row of an image: its name and tags, and a picture of each thing that the run has of it.

    Args:
        lists: sources of the rows of each list.
        job: a list and one of its images.
    """
    sources, record = lists[job[0]], job[1]
    try:
        photo = read_image(record.image)
    except DataError as error:
        return _article(sources.dataset, record, note(error.found))
    size = thumb_size(photo)
    truth = (
        _try(partial(sources.dataset.read_mask, record))
        if sources.dataset.has_mask(record)
        else None
    )
    tiles = [_photo(sources.dataset, record)]
    if truth is not None:
        tiles.append(_mask(sources, record, truth, size, "True mask", None, kind="truth"))
    tiles += _cams(sources, record, size, truth)
    tiles += _walked(sources, record, size)
    for title, mask in _masks(sources, record):
        # Labels of AffinityNet and IRNet leave most pixels open: an IoU of them would mean nothing.
        kind = "labels" if "labels" in title else "mask"
        tiles.append(
            _mask(sources, record, mask, size, title, truth if kind == "mask" else None, kind)
        )
    style = f' style="--r:{size[0]}/{size[1]};--photo:url({thumbnail(photo, size)})"'
    return _article(sources.dataset, record, f'<div class="tiles">{"".join(tiles)}</div>', style)


def anchor(record_id: str) -> str:
    """Name of an image's row in links; different for different ids, whatever they hold."""
    return f"image-{quote(record_id, safe='')}"


def thumbnail(photo: Labels, size: tuple[int, int], quality: int = 78) -> str:
    """A JPEG ``(width, height)`` of pixels ``[H,W,3]`` as a data address."""
    image = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _address(image, "JPEG", quality=quality, optimize=True)


def _article(dataset: Dataset, record: Record, content: str, style: str = "") -> str:
    palette = voc_palette(len(dataset.classes) + 1)
    tags = "".join(
        f"<li>{swatch(palette[k + 1])}{esc(dataset.classes[k])}</li>" for k in record.tags
    )
    marks = " ".join(str(k) for k in record.tags)
    return (
        f'<article class="row" id="{esc(anchor(record.id))}" data-tags="{marks}"{style}><div'
        ' class="about">'
        "<button"
        f' type="button">{esc(record.id)}</button>'
        f"<ul>{tags or '<li>no tag</li>'}</ul></div>{content}</article>"
    )


def _photo(dataset: Dataset, record: Record) -> str:
    names = ", ".join(dataset.classes[k] for k in record.tags) or "nothing"
    label = esc(f"{record.id}: Photograph, tagged {names}")
    picture = f'<span class="pic" role="img" aria-label="{label}"></span>'
    return f"<figure>{picture}<figcaption>Photograph</figcaption></figure>"


def _mask(
    sources: Sources,
    record: Record,
    mask: Labels,
    size: tuple[int, int],
    title: str,
    truth: Labels | None,
    kind: str = "mask",
) -> str:
    labels = len(sources.dataset.classes) + 1
    # Ignored, and whatever is no label here, is one more label: the palette stays short and the
    # file small.
    small = Image.fromarray(np.minimum(mask, labels).astype(np.uint8)).resize(
        size, Image.Resampling.NEAREST
    )
    small.putpalette(np.concatenate([voc_palette(labels), voc_palette()[IGNORE:]]).tobytes())
    value = _image_iou(mask, truth, labels)
    figure = f"<b>{percent(value)}</b>" if value is not None else ""
    source = _address(small, "PNG", optimize=True, transparency=0)
    return _figure(source, size, f"{record.id}: {title}", f"{title} {figure}", kind)


def _cams(
    sources: Sources, record: Record, size: tuple[int, int], truth: Labels | None
) -> list[str]:
    """Every map, then the mask that they make at the threshold of the slider."""
    cam = _try(partial(read_cam, cam_path(sources.run / "cams", record.id)))
    if cam is None or not len(cam.classes):
        return []
    values = _sweep(cam, truth, sources) if truth is not None else None
    series = "" if values is None else f' data-iou="{data(values)}"'
    cut = (
        f'<figure data-draw="cut"{series}><span class="pic">'
        f'<canvas aria-label="{esc(record.id)}: CAM mask" role="img"></canvas></span>'
        "<figcaption>CAM mask <b></b></figcaption></figure>"
    )
    return [*_maps(sources.dataset, record, cam, size, "CAM", 'data-draw="map"'), cut]


def _walked(sources: Sources, record: Record, size: tuple[int, int]) -> list[str]:
    cam = _try(partial(read_cam, cam_path(sources.run / "walk", record.id)))
    at = "" if sources.walk_threshold is None else f' data-at="{sources.walk_threshold:.4f}"'
    return (
        []
        if cam is None
        else _maps(sources.dataset, record, cam, size, "Walk", f'data-draw="walk"{at}')
    )


def _maps(
    dataset: Dataset, record: Record, cam: Cam, size: tuple[int, int], title: str, facts: str
) -> list[str]:
    tiles = []
    for k, values in zip(cam.classes.tolist(), cam.maps):
        known = 0 <= k < len(dataset.classes)
        name, drawn = (dataset.classes[k], k) if known else (f"class {k}", len(dataset.classes))
        image = Image.fromarray(values)
        factor = min(1.0, MAP / max(image.size))
        if factor < 1:
            small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(small, Image.Resampling.BILINEAR)
        # Rounded up, so that a value is above a threshold of whole levels exactly when its level
        # is.
        levels = np.ceil(np.clip(np.asarray(image), 0, 1) * LEVELS - 1e-4).astype(np.uint8)
        source = _address(Image.fromarray(levels), "PNG", optimize=True)
        alt = f"{record.id}: {title} of {name}"
        tiles.append(
            _figure(
                source, size, alt, f"{title}, {esc(name)}", "map", f'{facts} data-class="{drawn}"'
            )
        )
    return tiles


def _masks(sources: Sources, record: Record) -> list[tuple[str, Labels]]:
    """What refinement and segmenters made of the image."""
    run, files = sources.run, []
    if (
        label := _affinity_labels(run / "affinity_labels" / f"{record.id}.npz", record.tags)
    ) is not None:
        files.append(("AffinityNet labels", label))
    for title, path in (
        ("IRNet labels", run / "irn_labels" / f"{record.id}.png"),
        ("Refined", mask_path(run, record.id)),
        ("Prediction", prediction_path(run, "segment", sources.list, record.id)),
        ("Full supervision", prediction_path(run, "segment_full", sources.list, record.id)),
    ):
        mask = _try(partial(read_index_png, path)) if path.exists() else None
        files += [(title, mask)] if mask is not None else []
    return files


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


def _sweep(cam: Cam, truth: Labels, sources: Sources) -> list[float] | None:
    """Mean IoU of the image in percent at every threshold; None where maps and mask do not fit
    together.
    """
    labels = len(sources.dataset.classes) + 1
    if cam.size != truth.shape or not (cam.classes.min() >= 0 and cam.classes.max() < labels - 1):
        return None
    levels = np.asarray(sources.thresholds, np.float32)
    counts, columns = sweep_image(
        upsample_cam(cam.maps, cam.size), cam.classes, truth, levels, labels
    )
    return [round(100 * float(value), 1) for value in image_mious(counts, columns)]


def _image_iou(mask: Labels, truth: Labels | None, labels: int) -> float | None:
    """Mean IoU over the labels that one image or its mask holds; None where they cannot be
    compared.
    """
    if truth is None:
        return None
    counts = _try(partial(confusion, mask, truth, labels))
    return None if counts is None else finite(float(mean_iou(counts)))


def _figure(
    source: str, size: tuple[int, int], alt: str, caption: str, kind: str, facts: str = ""
) -> str:
    draw = facts or f'data-draw="{kind}"'
    return (
        f'<figure {draw}><span class="pic"><img class="{kind}" src="{source}" alt="{esc(alt)}" '
        f'width="{size[0]}" height="{size[1]}" loading="lazy" decoding="async"></span>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def thumb_size(photo: Labels, side: int = THUMB) -> tuple[int, int]:
    """``(width, height)`` of pixels ``[H,W,3]`` shrunk to ``side``; smaller ones stay as they
    are.
    """
    factor = min(1.0, side / max(photo.shape[:2]))
    return max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))


def _address(image: Image.Image, kind: str, **options: bool | int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _try(read: Callable[[], T]) -> T | None:
    """What a file holds, or None where it is missing or damaged: the report shows the rest."""
    try:
        return read()
    except DataError:
        return None
