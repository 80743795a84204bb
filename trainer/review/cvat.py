"""The form of CVAT: its format "Segmentation mask 1.1", a zip of coloured masks and their labels.

``labelmap.txt`` has one line a label, ``name:red,green,blue:parts:actions``. The masks of
``SegmentationClass/`` have these colours; those of ``SegmentationObject/`` tell single objects
apart.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.colours import Colour, indices_of
from trainer.data.palette import voc_palette
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.review.files import Files
from trainer.review.form import Answer, Form, Pixels, Request
from trainer.review.labels import BACKGROUND, Labels

ZIP, LABELS, LABEL_MAP = "annotations.zip", "labels.json", "labelmap.txt"
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
LIST = "ImageSets/Segmentation/default.txt"
OBJECT_COUNT = 255
"""Objects that an image of 256 colours can tell apart."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def _write(folder: Path, request: Request) -> None:
    # Declared too: without it CVAT refuses the background, and no label has the value 255.
    colours = {BACKGROUND: request.labels.colour(0)}
    colours |= {n: request.labels.colour(v) for n, v in request.labels.names.items()}
    # Pasted into the form for a new task, it gives the labels the colours of the masks.
    table = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colour), "attributes": []}
        for name, colour in colours.items()
    ]
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / LABELS, text.encode())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        lines = [f"{n}:{r},{g},{b}::" for n, (r, g, b) in colours.items()]
        _add(archive, LABEL_MAP, "\n".join(("# label:color_rgb:parts:actions", *lines, "")))
        _add(archive, LIST, "".join(f"{task.id}\n" for task in request.tasks))
        for task in request.tasks:
            mask = task.mask()
            _add(archive, f"{CLASSES}/{task.id}.png", _coloured(mask))
            _add(archive, f"{OBJECTS}/{task.id}.png", _coloured(_objects(mask)))
    write_atomic(folder / ZIP, buffer.getvalue())


def _check_names(labels: Labels) -> None:
    for name in labels.classes:
        if ":" in name or name.startswith("#"):
            raise DataError(
                f"CVAT's label map cannot hold the class {name!r}",
                "names without a colon, and without # at the start",
                "--for labelstudio, or --for folder",
            )


def _add(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    # One date, so that the same masks make the same bytes.
    archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content)


def _coloured(mask: Pixels) -> bytes:
    """A PNG with the VOC colour of each value."""
    buffer = io.BytesIO()
    # RGB: readers differ in whether a palette's colours or its indices count.
    Image.fromarray(voc_palette()[mask]).save(buffer, "PNG")
    return buffer.getvalue()


def _objects(mask: Pixels) -> Pixels:
    """A number for each connected part of a label, so that a person can move or delete it; for
    each label where there are too many parts.
    """
    from scipy.ndimage import label

    total, objects = 0, np.zeros(mask.shape, np.int64)
    for value in np.unique(mask[mask > 0]):
        parts, count = label(mask == value, np.ones((3, 3)))
        objects[parts > 0] = parts[parts > 0] + total
        total += count
    return mask if total > OBJECT_COUNT else objects.astype(np.uint8)


def _fits(files: Files) -> bool:
    return bool(files.below(CLASSES, {".png"}))


def _read(files: Files, labels: Labels) -> Iterator[Answer]:
    names, colours = _label_map(files)
    for name, file in files.below(CLASSES, {".png"}):
        where = files.where(file)
        with files.image(file) as header:
            places = indices_of(header.image, where, colours, LABEL_MAP)
        values = np.zeros(256, np.uint8)
        # A label that no pixel has may be one that is unknown here.
        for place in np.unique(places).tolist():
            if place >= len(names):
                raise DataError(f"{where} holds the value {place}", f"values below {len(names)}")
            values[place] = labels.value(names[place], where)
        yield Answer(name, values[places], where)


def _label_map(files: Files) -> tuple[list[str], dict[Colour, int]]:
    """The names in ``labelmap.txt``, and the place of each colour among them."""
    file = files.find(LABEL_MAP)
    if file is None:
        raise DataError(
            f"{files.place} has masks and no {LABEL_MAP}",
            "the zip that CVAT exports",
            "export as Segmentation mask 1.1",
        )
    names: list[str] = []
    colours: dict[Colour, int] = {}
    for line in files.read(file).decode("utf-8-sig", "replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.strip().split(":")
        try:
            red, green, blue = map(int, rest[0].split(","))
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{files.where(file)} has the line {line!r}", "name:red,green,blue::"
            ) from error
        colour = (red, green, blue)
        if colour in colours:
            raise DataError(
                f"{files.where(file)} gives {names[colours[colour]]!r} and {name!r} the same"
                f" colour {colour}",
                "one colour a label",
                "change one of them in CVAT, and export again",
            )
        colours[colour] = len(names)
        names.append(name)
    # CVAT leaves pixels that nobody painted black.
    if (0, 0, 0) not in colours:
        colours[(0, 0, 0)] = len(names)
        names.append(BACKGROUND)
    return names, colours


FORM = Form(
    name="cvat",
    tool="CVAT",
    write=_write,
    fits=_fits,
    read=_read,
    own=ZIP,
    check=_check_names,
    steps=(
        f"make a task: paste {{review}}/{LABELS} into the Raw tab of its labels, and upload the"
        " files of {review}/images",
        f"upload annotations: Segmentation mask 1.1, {{review}}/{ZIP}, with the conversion of masks"
        " to polygons off; correct the masks",
        "export annotations: Segmentation mask 1.1, and put the zip into {review}",
    ),
)
