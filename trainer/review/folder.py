"""The form of a folder: palette PNGs, which any image editor or script can change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.colours import indices_of, reindexed
from trainer.data.palette import write_index_png
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.review.files import Files
from trainer.review.form import Answer, Form, Pixels, Request
from trainer.review.labels import Labels

MASKS, CLASSES = "masks", "classes.txt"


def _write(folder: Path, request: Request) -> None:
    names = request.labels.classes
    write_atomic(folder / CLASSES, "".join(f"{name}\n" for name in names).encode())
    for task in request.tasks:
        write_index_png(folder / MASKS / f"{task.id}.png", task.mask())


def _fits(files: Files) -> bool:
    return bool(_masks(files))


def _masks(files: Files) -> dict[str, str]:
    return files.below(MASKS, ".png") or {
        name.removesuffix(".png"): name for name in files.names if name.endswith(".png")
    }


def _read(files: Files, labels: Labels) -> Iterator[Answer]:
    values = _values(files, labels)
    for name, file in _masks(files).items():
        where = files.where(file)
        with files.image(file) as image:
            mask = _indices(image, where)
        strange = np.setdiff1d(mask, np.flatnonzero(values >= 0)).tolist()
        if strange:
            raise DataError(
                f"{where} holds the values {strange}",
                f"0, 255 and 1 to {int((values >= 0).sum()) - 2} in the order of {CLASSES}",
            )
        yield Answer(name, values[mask].astype(np.uint8), where)


def _values(files: Files, labels: Labels) -> np.ndarray:
    """``int64 [256]``: the value here of each value in the files, -1 for none."""
    file = files.find(CLASSES)
    names = list(labels.classes)
    if file is not None:
        lines = files.read(file).decode("utf-8-sig", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    table = np.full(256, -1)
    table[[0, 255]] = 0, 255
    where = files.where(file or CLASSES)
    # Background may head the list; it has the value 0 either way.
    classes = [name for name in names if labels.value(name, where) not in (0, 255)]
    for number, name in enumerate(classes[:254], 1):
        table[number] = labels.value(name, where)
    return table


def _indices(image: Image.Image, where: str) -> Pixels:
    """Values of a mask; an editor may have saved the colours of the palette instead."""
    if image.mode == "P" and not reindexed(image):
        return np.array(image, dtype=np.uint8)
    return indices_of(image, where)


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
