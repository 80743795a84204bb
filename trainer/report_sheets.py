"""The image sheets of a report: photograph, true mask, maps, refined mask and prediction, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape as esc
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.camfile import Cam, cam_path, read_cam, upsample_cam
from trainer.data.dataset import Dataset, Record, read_image, read_index_png
from trainer.errors import DataError
from trainer.metrics import confusion, mean_iou
from trainer.overlays import overlay_cam, overlay_mask
from trainer.palette import voc_palette
from trainer.report_facts import STAGES, Facts, finite, percent
from trainer.report_page import note, swatch
from trainer.report_sections import proto

#: Longer side of a thumbnail: twice what the page shows, for sharp screens and for the enlarged view.
THUMB = 288
_COLUMNS = ("Photograph", "True mask", "CAM", "Refined", "Prediction")
Labels = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class Sheet:
    """A titled choice of images of one list."""

    title: str
    list: str
    ids: tuple[str, ...]


def images(facts: Facts, max_images: int) -> str:
    """Legend, sheets and the worst images."""
    if facts.dataset is None:
        return note("Not there: the data set of this run cannot be opened here.") + _worst_list(facts, set())
    sheets = choose_sheets(facts, facts.dataset, max_images)
    if not sheets:
        return note("Not there yet: no maps, masks or predictions have been written.") + _worst_list(facts, set())
    shown = {i for sheet in sheets for i in sheet.ids}
    threshold = _cam_threshold(facts)
    at = "" if threshold is None else f" The white line on a map is the threshold {threshold:.2f}."
    lead = (
        "Maps are shown for the classes that the image is tagged with."
        + at
        + " Figures beside an image are its mean IoU over "
        "the classes that the truth or the mask holds, background included. Click an image to enlarge its row."
    )
    parts = [f"<p>{esc(lead)}</p>", legend(facts.classes), _filter(facts.classes)]
    for sheet in sheets:
        parts += [f"<h3>{esc(sheet.title)}</h3>", _sheet_table(facts, facts.dataset, sheet, threshold)]
    return "".join(parts) + _worst_list(facts, shown)


def legend(classes: Sequence[str]) -> str:
    """Swatch and name of every class, and what hatching means."""
    palette = voc_palette(len(classes) + 1)
    items = "".join(f"<li>{swatch(palette[k + 1])}{esc(name)}</li>" for k, name in enumerate(classes))
    return f'<ul class="key classes">{items}<li><i class="swatch hatch"></i>ignored</li></ul>'


def choose_sheets(facts: Facts, dataset: Dataset, max_images: int) -> list[Sheet]:
    """First images of val and its worst ones; a third of the places goes to train where only train has refined masks.

    Lists without any output are passed over: a run without val still shows what it has.
    """
    if max_images < 1:
        return []
    names = sorted(
        (n for n in dataset.lists if n != "all"),
        key=lambda n: (n != "val", not n.startswith("val"), not n.startswith("train")),
    )
    filled = {n: tuple(i for i in dataset.lists[n] if _outputs(facts.run, n, i)) for n in names or ["all"]}
    filled = {n: ids for n, ids in filled.items() if ids}
    if not filled:
        return []
    main = next(iter(filled))
    worst = tuple(i for i in _worst_ids(facts, main) if i in dataset.records)
    refined = next((n for n in filled if n != main and any(_mask_path(facts.run, i).exists() for i in filled[n])), None)
    if any(_mask_path(facts.run, i).exists() for i in filled[main]):
        refined = None
    third = max_images // 3
    room = max_images - (min(third, len(worst)) if worst else 0) - (third if refined else 0)
    first = filled[main][:room]
    sheets = [Sheet(f"First images of {main}", main, first)] if first else []
    rest = tuple(i for i in worst if i not in first)[:third]
    if rest:
        sheets.append(Sheet(f"Worst images of {main}", main, rest))
    if refined and third:
        with_masks = tuple(i for i in filled[refined] if _mask_path(facts.run, i).exists())
        sheets.append(Sheet(f"First images of {refined}", refined, with_masks[:third]))
    return sheets


def _sheet_table(facts: Facts, dataset: Dataset, sheet: Sheet, threshold: float | None) -> str:
    rows = [_row(facts, dataset, sheet.list, dataset.records[i], threshold) for i in sheet.ids]
    used = [c for c in _COLUMNS if any(cells.get(c) for _, cells in rows)]
    head = "".join(f'<th scope="col">{c}</th>' for c in used)
    body = "".join(
        opening + "".join(f'<td data-column="{c}">{cells.get(c, "")}</td>' for c in used) + "</tr>"
        for opening, cells in rows
    )
    # A tile is as wide as the page allows: maps take 1.55 tiles, the other columns one each.
    tile = round(min(204, 930 / (len(used) + 0.55)))
    opening = f'<div class="scroll"><table class="sheet" style="--t:{tile}px">'
    return (
        f'{opening}<caption class="hidden">{esc(sheet.title)}</caption>'
        f'<thead><tr><th scope="col">Image</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(
    facts: Facts, dataset: Dataset, list_name: str, record: Record, threshold: float | None
) -> tuple[str, dict[str, str]]:
    """Opening of the table row with its header, and the cell of each column that has something."""
    anchor, names = esc(_anchor(record.id)), [dataset.classes[k] for k in record.tags]
    palette = voc_palette(len(dataset.classes) + 1)
    tags = "<br>".join(swatch(palette[k + 1]) + esc(dataset.classes[k]) for k in record.tags) or "no tag"
    try:
        photo = read_image(record.image)
    except DataError as error:
        return _opening(anchor, record, tags, ""), {"Photograph": note(error.found)}
    truth = _try(partial(dataset.read_mask, record)) if dataset.has_mask(record) else None
    cells = {
        "Photograph": _tile(_shrink(photo), f"{record.id}: photograph, tagged {', '.join(names) or 'nothing'}", "")
    }
    scores: dict[str, float | None] = {}
    if truth is not None:
        cells["True mask"] = _mask_tile(photo, truth, f"{record.id}: true mask", "")
    cam = _try(partial(read_cam, cam_path(facts.run / "cams", record.id)))
    if cam is not None and len(cam.classes):
        cells["CAM"] = _maps(photo, cam, dataset, record.id, threshold)
        if threshold is not None:
            scores["CAM"] = _image_iou(_label_map(cam, threshold), truth, len(dataset.classes) + 1)
    paths = {
        "Refined": _mask_path(facts.run, record.id),
        "Prediction": _prediction_path(facts.run, list_name, record.id),
    }
    for column, path in paths.items():
        mask = _try(partial(read_index_png, path)) if path.exists() else None
        if mask is not None:
            scores[column] = _image_iou(mask, truth, len(dataset.classes) + 1)
            cells[column] = _mask_tile(photo, mask, f"{record.id}: {column.lower()}", "")
    shown = "".join(f"<dt>{name}</dt><dd>{percent(value)}</dd>" for name, value in scores.items())
    return _opening(anchor, record, tags, f"<dl>{shown}</dl>" if shown else ""), cells


def _opening(anchor: str, record: Record, tags: str, scores: str) -> str:
    marks = " ".join(str(k) for k in record.tags)
    name = f'<button type="button">{esc(record.id)}</button>'
    return f'<tr id="{anchor}" data-tags="{marks}"><th scope="row">{name}<br><small>{tags}</small>{scores}</th>'


def _maps(photo: Labels, cam: Cam, dataset: Dataset, name: str, threshold: float | None) -> str:
    small = _shrink(photo)
    maps = upsample_cam(cam.maps, (small.shape[0], small.shape[1]))
    tiles = []
    for k, values in zip(cam.classes, maps):
        label = dataset.classes[int(k)] if 0 <= int(k) < len(dataset.classes) else f"class {int(k)}"
        tiles.append(_tile(overlay_cam(small, values, threshold=threshold), f"{name}: CAM of {label}", label))
    return f'<div class="maps">{"".join(tiles)}</div>'


def _mask_tile(photo: Labels, mask: Labels, alt: str, caption: str) -> str:
    small = _shrink(photo)
    shrunk = Image.fromarray(mask).resize((small.shape[1], small.shape[0]), Image.Resampling.NEAREST)
    return _tile(overlay_mask(small, np.asarray(shrunk)), alt, caption)


def _tile(pixels: Labels, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    # Full colour resolution: thin contours in saturated colours smear otherwise.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80, subsampling=0, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{esc(alt)}" width="{width}" height="{height}" '
        f'loading="lazy" decoding="async"><figcaption>{esc(caption)}</figcaption></figure>'
    )


def _shrink(photo: Labels) -> Labels:
    image = Image.fromarray(photo)
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image)


def _filter(classes: Sequence[str]) -> str:
    if len(classes) < 2:
        return ""
    options = "".join(f'<option value="{k}">{esc(name)}</option>' for k, name in enumerate(classes))
    return f'<p class="filter"><label>Show <select><option value="">all images</option>{options}</select></label></p>'


def _worst_list(facts: Facts, shown: set[str]) -> str:
    for stage in ("segment", "refined", "cam"):
        found = facts.figures(stage)
        worst = found[1].get("worst") if found else None
        if found and worst:
            items = ""
            for entry in worst:
                name = esc(str(entry.get("id")))
                linked = f'<a href="#{_anchor(str(entry.get("id")))}">{name}</a>' if entry.get("id") in shown else name
                items += f"<li>{linked}<span>{percent(entry.get('miou'))}</span></li>"
            lead = f"{STAGES[stage]} on {found[0]}: the {len(worst)} images with the lowest mean IoU, in percent."
            return (
                f'<h3>Worst list</h3><p><small>{esc(lead)}</small></p><ol class="worst">{items}</ol>{proto(found[1])}'
            )
    return ""


def _worst_ids(facts: Facts, name: str) -> list[str]:
    found = next((f for stage in ("segment", "refined", "cam") if (f := facts.figures(stage, name))), None)
    return [str(entry.get("id")) for entry in found[1].get("worst") or []] if found else []


def _cam_threshold(facts: Facts) -> float | None:
    found = facts.figures("cam")
    return finite(found[1].get("threshold")) if found else None


def _anchor(record_id: str) -> str:
    """An id may hold slashes and blanks; a page anchor may not."""
    return "image-" + "".join(c if c.isalnum() or c in "-_." else f"-{ord(c):x}-" for c in record_id)


def _mask_path(run: Path, record_id: str) -> Path:
    return run / "masks" / f"{record_id}.png"


def _prediction_path(run: Path, list_name: str, record_id: str) -> Path:
    return run / "segment" / "predictions" / list_name / f"{record_id}.png"


def _outputs(run: Path, list_name: str, record_id: str) -> bool:
    paths = (cam_path(run / "cams", record_id), _mask_path(run, record_id), _prediction_path(run, list_name, record_id))
    return any(path.exists() for path in paths)


def _try(read: Callable[[], T]) -> T | None:
    """What a file holds, or None where it is missing or damaged: the report shows the rest."""
    try:
        return read()
    except DataError:
        return None


def _label_map(cam: Cam, threshold: float) -> Labels:
    maps = upsample_cam(cam.maps, cam.size)
    labels = np.where(maps.max(0) > threshold, cam.classes[maps.argmax(0)] + 1, 0)
    return labels.astype(np.uint8)


def _image_iou(mask: Labels, truth: Labels | None, labels: int) -> float | None:
    """Mean IoU over the labels that one image or its mask holds; None where they cannot be compared."""
    if truth is None:
        return None
    counts = _try(partial(confusion, mask, truth, labels))
    return None if counts is None else finite(float(mean_iou(counts)))
