"""What was asked: a review, and the predicted masks that its answers are compared with.

A run keeps each of its reviews in ``reviews/<key>/``, since tools give back masks alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.dataset import read_index_png
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.review.form import Pixels, Size

FILE = "review.json"
FOLDER = "reviews"
"""Of a run."""
FORMAT = 1


@dataclass(frozen=True)
class Question:
    """One image of a review.

    Attributes:
        file: its copy below the folder of the review.
        size: (H, W).
        doubt: 0..1.
        reason: why it was chosen.
        source: the image file itself, where it belongs to no data set; else empty.
    """

    file: str
    size: Size
    doubt: float
    reason: str
    source: str = ""


@dataclass(frozen=True)
class Review:
    """A review.

    Attributes:
        key: its name.
        run: folder of the run.
        tool: name of the form.
        time: when it was made, ISO 8601.
        classes: the class table.
        images: what was asked, by id.
        predictions: folder of the predicted masks, where the run does not keep them.
        ids: of the images, by the names of their files in the review, where these are others.
    """

    key: str
    run: str
    tool: str
    time: str
    classes: tuple[str, ...]
    images: dict[str, Question]
    predictions: Path | None = None
    ids: Mapping[str, str] = field(default_factory=dict)

    def predicted(self, run: Path, record_id: str) -> Path:
        """The file of the predicted mask of an image."""
        folder = self.predictions or run / FOLDER / self.key / "predicted"
        names = (name for name, own in self.ids.items() if own == record_id)
        return folder / f"{next(names, record_id)}.png"

    def predicted_mask(self, run: Path, record_id: str) -> Pixels:
        """The predicted mask of an image.

        Raises:
            DataError: missing or damaged.
        """
        return read_index_png(self.predicted(run, record_id))

    def write(self, folder: Path) -> None:
        """Write ``review.json`` into a folder.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        # Where a review lies, and what it is called by others, is no part of it.
        del content["predictions"], content["ids"]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomic(folder / FILE, text.encode())


def review_key(weights_sha256: str, tool: str, ids: Iterable[str]) -> str:
    """The key of a review: the same question has the same key."""
    text = json.dumps([FORMAT, weights_sha256, tool, sorted(ids)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_review(folder: Path) -> bool:
    """Whether a folder is that of a review."""
    return (folder / FILE).is_file()


def read_review(path: Path) -> Review:
    """A ``review.json``.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        images = {name: _image(entry) for name, entry in content.pop("images").items()}
        return Review(**{**content, "classes": tuple(content["classes"])}, images=images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {type(error).__name__} {error}",
            "what wsss-trainer ask wrote",
            "wsss-trainer ask RUN --out NEW makes the review again",
        ) from error


def reviews_of(run: Path) -> list[Review]:
    """The reviews of a run, the latest first."""
    reviews = [read_review(path) for path in (run / FOLDER).glob(f"*/{FILE}")]
    return sorted(reviews, key=lambda review: review.time, reverse=True)


def _image(entry: dict[str, Any]) -> Question:
    height, width = entry["size"]
    return Question(**{**entry, "size": (int(height), int(width))})
