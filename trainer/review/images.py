"""Images of a review, as browsers and annotation tools show them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from trainer.data.dataset import Record
from trainer.data.pixels import open_header, read_image
from trainer.files import place_image, write_atomic

COPIED = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""Kinds of images that a browser shows as they are."""


def place(record: Record, folder: Path) -> str:
    """Copy an image to ``folder/<id>``, upright and in 8 bits; return its path below the parent of
    ``folder``.

    Raises:
        DataError: it cannot be read.
        RunError: no space left, or the folder cannot be written.
    """
    with open_header(record.image, body=False) as header:
        is_plain = header.orientation == 1 and header.bits == 8 and header.image.mode != "CMYK"
        suffix = COPIED.get(header.kind, "") if is_plain else ""
    target = folder / f"{record.id}{suffix or '.png'}"
    if suffix:
        place_image(record.image, target, "copy")
    else:
        buffer = io.BytesIO()
        Image.fromarray(read_image(record.image)).save(buffer, "PNG")
        write_atomic(target, buffer.getvalue())
    return target.relative_to(folder.parent).as_posix()
