"""The form of a folder: palette PNGs, which any image editor or script can change."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from trainer.data.colours import indices_of, plain_indices, reindexed
from trainer.data.headers import Header
from trainer.data.palette import write_index_png
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.review.files import Files
from trainer.review.form import Answer, Form, Pixels, Request
from trainer.review.labels import Labels

MASKS, CLASSES, IMAGES = "masks", "classes.txt", "images"
PNG = ("palette PNGs", "save the mask as PNG, with the values that ask wrote")


def _write(folder: Path, request: Request) -> None:
    names = request.labels.classes
    write_atomic(folder / CLASSES, "".join(f"{name}\n" for name in names).encode())
    for task in request.tasks:
        write_index_png(folder / MASKS / f"{task.id}.png", task.mask())


def _fits(files: Files) -> bool:
    return bool(_masks(files))


def _masks(files: Files) -> list[tuple[str, str]]:
    """Name of the image and file of each mask."""
    # Somebody may have zipped the masks without their folder, or the photographs with them.
    return files.below(MASKS, {".png"}) or [
        (name[: -len(".png")], name)
        for name in files.names
        if name.lower().endswith(".png") and IMAGES not in name.split("/")[:-1]
    ]


def _read(files: Files, labels: Labels) -> Iterator[Answer]:
    values, masks = _values(files, labels), _masks(files)
    _check_kinds(files, {name for name, _ in masks})
    count = int((values >= 0).sum()) - 2
    for name, file in masks:
        where = files.where(file)
        with files.image(file) as header:
            mask = _indices(header, where, count)
        strange = np.setdiff1d(mask, np.flatnonzero(values >= 0)).tolist()
        if strange:
            raise DataError(
                f"{where} holds the values {strange}",
                f"0, 255 and 1 to {count} in the order of {CLASSES}",
            )
        yield Answer(name, values[mask].astype(np.uint8), where)


def _check_kinds(files: Files, names: Collection[str]) -> None:
    """Check that no mask would be passed over because of its kind."""
    for name, file in files.below(MASKS, {*IMAGE_SUFFIXES} - {".png"}):
        if name not in names:
            raise DataError(f"{files.where(file)} is no PNG", *PNG)


def _values(files: Files, labels: Labels) -> np.ndarray:
    """``int64 [256]``: the value here of each value in the files, -1 for none."""
    file = files.find(CLASSES)
    lines = files.read(file).decode("utf-8-sig", "replace").splitlines() if file else []
    names = [line.strip() for line in lines if line.strip()] or list(labels.classes)
    table = np.full(256, -1)
    table[[0, 255]] = 0, 255
    where = files.where(file or CLASSES)
    # Background may head the list; it has the value 0 either way.
    classes = [name for name in names if labels.value(name, where) not in (0, 255)]
    for number, name in enumerate(classes[:254], 1):
        table[number] = labels.value(name, where)
    return table


def _indices(header: Header, where: str, count: int) -> Pixels:
    """Values of a mask of ``count`` classes; an editor may have saved the colours of the palette
    instead.
    """
    if header.kind == "JPEG":
        raise DataError(f"{where} is a JPEG, which changes the values", *PNG)
    # Some colours of the palette are grey, so that grey in three channels is no number here.
    is_colour = header.image.mode in ("RGB", "RGBA") or reindexed(header.image, count)
    values = None if is_colour else plain_indices(header, where)
    return indices_of(header.image, where) if values is None else values


FORM = Form(
    name="folder",
    tool="a folder of PNGs",
    write=_write,
    fits=_fits,
    read=_read,
    own=MASKS,
    steps=(
        f"correct the masks in {{review}}/{MASKS}: line n of {CLASSES} has the value n, 0 is"
        " background, 255 does not count",
    ),
)
