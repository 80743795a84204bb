"""What a form is: how a review reaches an annotation tool, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.review.files import Files
from trainer.review.labels import Labels

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """One image that a person is asked about.

    Attributes:
        id: of the image in the data set.
        image: its file below the folder of the review.
        size: (H, W).
        tags: names of its classes.
        reason: why it was chosen, for the person.
        doubt: 0..1.
        mask: reads its predicted mask.
    """

    id: str
    image: str
    size: Size
    tags: tuple[str, ...]
    reason: str
    doubt: float
    mask: Callable[[], Pixels]


@dataclass(frozen=True)
class Request:
    """What a form writes.

    Attributes:
        key: names the review, so that its answers find it.
        labels: the class table.
        tasks: the images.
        model: a name of the model that made the masks.
        image_url: what stands before the name of an image where the tool fetches it from a server;
            empty where the file itself goes along.
    """

    key: str
    labels: Labels
    tasks: Sequence[Task]
    model: str
    image_url: str = ""


@dataclass(frozen=True)
class Answer:
    """The mask that a person gave back.

    Attributes:
        name: the image, as the tool names it.
        mask: label map of the run: 0 background, 1..K classes, 255 ignored; None where the person
            painted nothing, and the tool does not say how large the image is.
        where: the file, for messages.
        review: key of the review, where the tool gives it back.
        is_final: whether a person declared the image finished; not every tool says so.
    """

    name: str
    mask: Pixels | None
    where: str
    review: str = ""
    is_final: bool = False


@dataclass(frozen=True)
class Form:
    """One kind of annotation tool.

    Attributes:
        name: as in ``--for``.
        tool: its name in sentences.
        write: writes the files of the tool into the folder of a review.
        fits: whether files are an export of this tool.
        read: the answers in an export, one by one, since masks are large.
        own: the file or folder that ``write`` makes for the tool to import.
        steps: what to do in the tool, one line each; ``{review}`` is the folder.
        check: raises ``DataError`` for class names that the tool cannot hold.
    """

    name: str
    tool: str
    write: Callable[[Path, Request], None]
    fits: Callable[[Files], bool]
    read: Callable[[Files, Labels], Iterator[Answer]]
    own: str
    steps: tuple[str, ...]
    check: Callable[[Labels], None] = lambda _: None
