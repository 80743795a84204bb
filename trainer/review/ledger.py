"""The book of a folder of corrections: which image was corrected when, in which tool.

``corrections.json`` has the changes of tags under ``tags``, as ``fit --corrections`` reads them,
and under ``images`` where each correction comes from. The masks lie beside it, ``masks/<id>.png``
with the values 1 to K in the order of ``classes.txt``, and images that the data set lacks in
``images/``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.classes import check_classes
from trainer.errors import DataError
from trainer.files import write_atomic

FILE, CLASSES, MASKS = "corrections.json", "classes.txt", "masks"
FORMAT = 1


@dataclass(frozen=True)
class Correction:
    """What a person said of one image.

    Attributes:
        mask: whether there is a mask of it.
        added: classes that the image shows, and whose tag was absent or unknown.
        removed: classes that it does not show, and whose tag was present or unknown.
        run: folder of the run whose masks were corrected.
        tool: ``labelstudio``, ``cvat`` or ``folder``.
        time: of the answer, ISO 8601.
        image: file below the folder of corrections, for an image that the data set lacks.
    """

    mask: bool = False
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    run: str = ""
    tool: str = ""
    time: str = ""
    image: str = ""


@dataclass(frozen=True)
class Ledger:
    """The corrections of a folder.

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
        return self.folder / MASKS / f"{record_id}.png"

    def write(self) -> None:
        """Write ``classes.txt`` and ``corrections.json``; the masks are there already.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        write_atomic(self.folder / CLASSES, "".join(f"{n}\n" for n in self.classes).encode())
        # Sorted and without empty entries, so that version control shows short differences.
        entries = {name: self.images[name] for name in sorted(self.images)}
        tags = {n: _tags(entry) for n, entry in entries.items() if entry.added or entry.removed}
        images = {name: _source(entry) for name, entry in entries.items()}
        content = {"format": FORMAT, "classes": self.classes, "tags": tags, "images": images}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomic(self.folder / FILE, text.encode())


def is_ledger(folder: Path) -> bool:
    """Whether a folder holds corrections; ``read_ledger`` says whether they can be read."""
    return (folder / FILE).is_file()


def read_ledger(folder: Path) -> Ledger:
    """Read ``corrections.json``.

    Raises:
        DataError: no such folder, or a file that is none of ours.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        classes, tags = tuple(map(str, content["classes"])), content["tags"]
        images = {n: _correction(e, tags.get(n, {})) for n, e in content["images"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {type(error).__name__} {error}",
            "a folder of corrections",
            "wsss-trainer answer RUN REVIEW --out DIR writes one",
        ) from error
    check_classes(classes, path)
    return Ledger(folder, classes, images)


def _tags(correction: Correction) -> dict[str, list[str]]:
    return {"added": list(correction.added), "removed": list(correction.removed)}


def _source(correction: Correction) -> dict[str, Any]:
    facts = dataclasses.asdict(correction)
    return {key: facts[key] for key in ("mask", "run", "tool", "time", "image") if facts[key]}


def _correction(entry: dict[str, Any], tags: dict[str, Any]) -> Correction:
    return Correction(
        bool(entry.get("mask", False)),
        tuple(map(str, tags.get("added", ()))),
        tuple(map(str, tags.get("removed", ()))),
        *(str(entry.get(key, "")) for key in ("run", "tool", "time", "image")),
    )
