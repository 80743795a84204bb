"""The contact sheet of a review: every image with its mask, its doubt and why it was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.files import write_atomic
from trainer.pool import each_image
from trainer.report.html import Section, render, render_page
from trainer.report.overlays import mask_layer
from trainer.report.pictures import fit, layer_address, photo_address, shrink
from trainer.report.row import SIDE, Row, Tile
from trainer.review.form import Pixels, Task
from trainer.review.tag_table import TABLE, Suspicion

FILE = "index.html"


@dataclass(frozen=True)
class Entry:
    """An image of the sheet.

    Attributes:
        task: what is asked.
        record: the image.
        doubt: picture of its doubt map.
        labels: the refined mask, if there is one.
    """

    task: Task
    record: Record
    doubt: str
    labels: Pixels | None


def write_sheet(
    folder: Path,
    entries: Sequence[Entry],
    suspicions: Sequence[Suspicion],
    dataset: Dataset,
    facts: Mapping[str, Any],
) -> Path:
    """Write the sheet as one file that loads nothing, and return its path.

    Args:
        folder: of the review.
        entries: the images, in the order of choice.
        suspicions: tags that look wrong, the worst first.
        dataset: for names.
        facts: ``run``, ``tool`` and ``steps`` of the page.
    """
    rows = each_image(_row, entries, "images cannot be shown", 0, "contact sheet", True, _entry_id)
    draw = partial(_tag_row, dataset)
    tags = each_image(draw, suspicions, "images cannot be shown", 0, "tags", True, _suspicion_id)
    images = render(
        "review_images.html",
        rows=list(zip(rows, [entry.task for entry in entries], strict=True)),
        classes=dataset.classes,
        side=2 * SIDE // 3,
    )
    sections = [Section("images", "Images", images)]
    if tags:
        body = render("review_tags.html", rows=tags, table_file=TABLE, side=SIDE // 2)
        sections.append(Section("tags", "Tags that look wrong", body))
    title = f"{facts['run']}: {len(entries)} images to correct"
    page = render_page("review.html", title, sections, **facts)
    write_atomic(folder / FILE, page)
    return folder / FILE


def _row(entry: Entry) -> Row:
    photo = read_image(entry.record.image)
    size = fit(photo.shape, SIDE)
    tiles = [_mask("Prediction", entry.task.mask(), size), Tile("map", "Doubt", entry.doubt)]
    if entry.labels is not None:
        tiles.append(_mask("Refined mask", entry.labels, size))
    tags = tuple(entry.record.tags)
    return Row(entry.task.id, "", tags, size, photo_address(photo, size), tiles)


def _mask(title: str, mask: Pixels, size: tuple[int, int]) -> Tile:
    return Tile("mask", title, layer_address(mask_layer(shrink(mask, size))))


def _tag_row(dataset: Dataset, entry: Suspicion) -> tuple[Row, str, str, str]:
    """A row of one picture, the class, what the tag says, and the score in percent."""
    record = dataset.records[entry.id]
    photo = read_image(record.image)
    size = fit(photo.shape, SIDE // 2)
    row = Row(entry.id, "", tuple(record.tags), size, photo_address(photo, size))
    says = "present" if entry.is_present else "absent"
    return row, dataset.classes[entry.k], says, f"{100 * entry.score:.0f} %"


def _entry_id(entry: Entry) -> str:
    return entry.task.id


def _suspicion_id(entry: Suspicion) -> str:
    return entry.id
