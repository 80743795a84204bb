"""A folder of corrections: masks and tags that a person gave, beside the data and never in it.

``masks/<id>.png`` has the values 1 to K in the order of ``classes.txt``, 0 for background and 255
for pixels that do not count. ``corrections.json`` says which image was corrected when, in which
tool, and which tags changed. Images that the data set lacks lie in ``images/``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.classes import check_classes
from trainer.data.dataset import map_mask_values, read_index_png
from trainer.errors import DataError
from trainer.files import write_atomic

FILE = "corrections.json"
CLASSES = "classes.txt"
FORMAT = 1


@dataclass(frozen=True)
class Correction:
    """What a person said of one image.

    Attributes:
        mask: whether there is a mask of it.
        tags_added: classes that the image shows, and whose tag was absent or unknown.
        tags_removed: classes that it does not show, and whose tag was present or unknown.
        run: folder of the run whose masks were corrected.
        tool: ``labelstudio``, ``cvat`` or ``folder``.
        time: of the answer, ISO 8601.
        image: file below the folder of corrections, for an image that the data set lacks.
    """

    mask: bool = False
    tags_added: tuple[str, ...] = ()
    tags_removed: tuple[str, ...] = ()
    run: str = ""
    tool: str = ""
    time: str = ""
    image: str = ""


@dataclass(frozen=True)
class Corrections:
    """The content of a folder of corrections.

    Attributes:
        folder: where it is; it need not exist yet.
        classes: K class names, which the mask values 1 to K mean.
        images: what was said of each image, by id.
    """

    folder: Path
    classes: tuple[str, ...]
    images: dict[str, Correction] = dataclasses.field(default_factory=dict)

    @property
    def masks(self) -> list[str]:
        """Ids of the images with a mask."""
        return [name for name, correction in self.images.items() if correction.mask]

    def mask_path(self, record_id: str) -> Path:
        """Where the mask of an image lies."""
        return self.folder / "masks" / f"{record_id}.png"

    def read_mask(self, record_id: str) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``: 0 background, 1..K classes, 255 ignored.

        Raises:
            DataError: missing, unreadable, or with a value that no class has.
        """
        path = self.mask_path(record_id)
        return map_mask_values(read_index_png(path), range(1, len(self.classes) + 1), path)

    def write(self) -> None:
        """Write ``classes.txt`` and ``corrections.json``; the masks are there already.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        write_atomic(self.folder / CLASSES, "".join(f"{n}\n" for n in self.classes).encode())
        entries = {name: _entry(self.images[name]) for name in sorted(self.images)}
        content = {"format": FORMAT, "classes": list(self.classes), "images": entries}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomic(self.folder / FILE, text.encode())


def is_corrections(folder: Path) -> bool:
    """Whether a folder holds corrections; ``read_corrections`` says whether they can be read."""
    return (folder / FILE).is_file()


def read_corrections(folder: Path) -> Corrections:
    """Read ``corrections.json``; the masks are read one by one.

    Raises:
        DataError: no such folder, or a file that is none of ours.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        classes = tuple(map(str, content["classes"]))
        images = {name: _correction(entry) for name, entry in content["images"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read: {type(error).__name__} {error}",
            "a folder of corrections",
            "wsss-trainer answer RUN REVIEW --out DIR writes one",
        ) from error
    check_classes(classes, path)
    return Corrections(folder, classes, images)


def _entry(correction: Correction) -> dict[str, Any]:
    # Empty entries are left out, so that a folder under version control has short differences.
    return {key: value for key, value in dataclasses.asdict(correction).items() if value}


def _correction(entry: dict[str, Any]) -> Correction:
    return Correction(
        bool(entry.get("mask", False)),
        tuple(map(str, entry.get("tags_added", ()))),
        tuple(map(str, entry.get("tags_removed", ()))),
        *(str(entry.get(key, "")) for key in ("run", "tool", "time", "image")),
    )
