"""``review/`` of a labelled folder: the images whose masks are the most doubtful, for a person.

It has the form of a review by ``wsss-trainer ask RUN --for folder``, and ``wsss-trainer answer RUN
review/`` reads it: ``images/``, ``masks/`` to correct, ``classes.txt`` and ``review.json``. The
hidden folder ``.predicted/`` keeps the masks as the model gave them, so that ``answer`` sees which
of them somebody changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unicodedata import normalize

from serving.card import EXPORT, Card
from serving.errors import LabelError
from serving.files import write_atomic
from serving.images import masks
from serving.images.decoding import Picture
from serving.images.rgb import Pixels
from serving.labelling.formats import Format
from serving.labelling.ledger import Entry
from serving.labelling.sources import Source

REVIEW, FILE, CLASSES = "review", "review.json", "classes.txt"
IMAGES, MASKS, PREDICTED = "images", "masks", ".predicted"
FORMAT = 1
# Kinds of images that browsers and annotation tools show as they are.
COPIED = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class Sheet:
    """What the review holds of one image.

    Attributes:
        suffix: of the image's file.
        content: of the image's file.
        mask: palette PNG, as the model gave it.
    """

    suffix: str
    content: bytes
    mask: bytes


def is_doubtful(entry: Entry, below: float) -> bool:
    """Whether the image of a line of the manifest is to be looked at."""
    return bool(1 - entry["doubt"] < below)


def sheet_for(content: bytes, picture: Picture, labels: Pixels, card: Card) -> Sheet:
    """The sheet of an image.

    Args:
        content: of the file.
        picture: the image itself.
        labels: uint8 [H,W].
    """
    suffix = COPIED.get(picture.format, "")
    is_plain = picture.orientation == 1 and picture.mode in ("L", "P", "RGB", "RGBA")
    png = masks.encode_labels(labels, card.palette)
    if suffix and is_plain:
        return Sheet(suffix, content, png)
    return Sheet(".png", masks.encode_rgb(picture.pixels), png)


class Review:
    """The review of a labelled folder.

    Args:
        target: the labelled folder.
        below: estimated share of right pixels, 1 - doubt, below which an image is in the review.
        card: of the model.

    Raises:
        LabelError: a limit outside 0..1, a model without doubt, or a folder ``review`` that is
            something else.
    """

    def __init__(self, target: Path, below: float, card: Card) -> None:
        self.folder, self._below, self._card = target / REVIEW, below, card
        if not 0 <= below <= 1:
            raise LabelError(f"--review-below {below:g}", "a share of right pixels, 0 to 1")
        if not card.gives_doubt:
            raise LabelError(
                f"--review-below: {card.name} version {card.version} gives no doubt",
                "a segmenter that was exported with doubt",
                EXPORT,
            )
        if self.folder.exists() and not (self.folder / PREDICTED).is_dir():
            raise LabelError(
                f"{self.folder} is there, and is no review of wsss-serving label",
                "a new folder, or an earlier review",
                "move it away, or label into another folder",
            )

    def check(self, images: Sequence[Path], form: Format) -> None:
        """Check that the names of the images leave room for the review.

        Raises:
            LabelError: a mask would lie in the review, or two images would have one name there.
        """
        first: dict[str, Path] = {}
        for image in images:
            if form.part(image).parts[0].casefold() == REVIEW:
                raise LabelError(
                    f"the mask of {image} would lie in {self.folder}",
                    f"no folder {REVIEW!r} among the images",
                    "rename it, or leave --review-below out",
                )
            other = first.setdefault(review_id(image), image)
            if other != image:
                raise LabelError(
                    f"{other} and {image} would both be {review_id(image)} in {self.folder}",
                    "names that differ in more than their ending",
                    "rename one of them",
                )

    def is_current(self, entry: Entry) -> bool:
        """Whether nothing of the review is missing for an image that is labelled already."""
        # Lines of earlier versions of this program have no doubt.
        if "doubt" not in entry:
            return False
        if not is_doubtful(entry, self._below):
            return True
        parts = self._mask(entry["image"], MASKS), self._mask(entry["image"], PREDICTED)
        file = self.folder / str(entry.get(REVIEW))
        return file.is_file() and all(part.is_file() for part in parts)

    def add(self, image: Path, sheet: Sheet) -> str:
        """Write an image and its mask; returns the image's file below the review.

        A mask that somebody changed stays, and so does the prediction that it is compared with.

        Raises:
            OSError: they cannot be written.
        """
        file = f"{IMAGES}/{review_id(image)}{sheet.suffix}"
        write_atomic(self.folder / file, sheet.content)
        mask, predicted = (self._mask(image.as_posix(), part) for part in (MASKS, PREDICTED))
        if mask.is_file() and mask.read_bytes() not in (sheet.mask, _content(predicted)):
            return file
        # In this order, so that a labeller that is killed leaves no mask that looks corrected.
        mask.unlink(missing_ok=True)
        write_atomic(predicted, sheet.mask)
        write_atomic(mask, sheet.mask)
        return file

    def finish(self, entries: Iterable[Entry], source: Source) -> int:
        """Write ``classes.txt`` and ``review.json``; returns the number of images in the review.

        Args:
            entries: of the manifest.
            source: of the images.

        Raises:
            OSError: they cannot be written.
        """
        questions = {
            review_id(Path(entry["image"])): {
                "file": entry[REVIEW],
                "size": [entry["height"], entry["width"]],
                "doubt": round(entry["doubt"], 4),
                "reason": f"about {100 * entry['doubt']:.0f} % of its pixels may be wrong",
                "source": source.where(Path(entry["image"])),
            }
            for entry in entries
            if REVIEW in entry
        }
        if not questions:
            return 0
        card = self._card
        content = {
            "format": FORMAT,
            "key": self._key(questions),
            "run": str(card.source.get("run") or ""),
            "tool": "folder",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "classes": list(card.classes),
            "images": questions,
        }
        before = _json(_content(self.folder / FILE))
        # The same review again changes nothing, not even its time.
        if before | {"time": ""} != content | {"time": ""}:
            names = "".join(f"{name}\n" for name in card.classes)
            write_atomic(self.folder / CLASSES, names.encode())
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            write_atomic(self.folder / FILE, text.encode())
        return len(questions)

    def _mask(self, image: str, part: str) -> Path:
        return self.folder / part / f"{review_id(Path(image))}.png"

    def _key(self, names: Iterable[str]) -> str:
        """The name of the review, which follows from the model and its masks."""
        predicted = self.folder / PREDICTED
        digests = [
            (name, hashlib.sha256(_content(predicted / f"{name}.png")).hexdigest())
            for name in sorted(names)
        ]
        text = json.dumps([FORMAT, self._card.graph_sha256, digests])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def review_id(image: Path) -> str:
    """The name of an image in a review: its relative path without ending, with ``__`` for ``/``, as
    the trainer names images of a folder.
    """
    return normalize("NFC", "__".join(image.with_suffix("").parts))


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _json(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
