"""Reviews that ``wsss-serving label --review-below`` writes: images that no ``ask`` has chosen.

Their images may be those of the data set or new ones, and a new image may have the name of another
one. So images of the data set are recognised by their content, and new ones get a name with their
content's hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from trainer.data.dataset import Dataset
from trainer.errors import DataError, some
from trainer.outputs import is_inner
from trainer.review.record import FILE, Question, Review

PREDICTED = ".predicted"
"""The folder, in that of the review, of the masks as the model gave them."""


def is_labelled(folder: Path) -> bool:
    """Whether the review in a folder is one of ``wsss-serving label``."""
    return (folder / PREDICTED).is_dir()


def of_run(review: Review, folder: Path, run: Path, dataset: Dataset) -> Review:
    """A labelled review with the ids that its images have in the data set, or would get there.

    Args:
        review: as it was read.
        folder: where it lies.
        run: folder of the run that answers.
        dataset: of the run.

    Raises:
        DataError: of a model of another run or class table, or an image of it is missing.
    """
    name = Path(review.run).name
    if name != run.resolve().name:
        raise DataError(
            f"{folder} was labelled by a model of the run {name!r}",
            f"a model of {run}",
            "wsss-trainer answer with the run that the model was exported from",
        )
    if review.classes != dataset.classes:
        raise DataError(
            f"{folder} has the classes {some(review.classes)}",
            f"those of {run}: {some(dataset.classes)}",
            "wsss-trainer answer with the run that the model was exported from",
        )
    ids = _ids(review, folder, dataset)
    images = {
        ids[stem]: dataclasses.replace(question, source=str((folder / question.file).resolve()))
        for stem, question in review.images.items()
    }
    return dataclasses.replace(review, images=images, predictions=folder / PREDICTED, ids=ids)


def _ids(review: Review, folder: Path, dataset: Dataset) -> dict[str, str]:
    """The id of each image, by its name in the review."""
    places: dict[Path, str] = {}
    ids_of_size: dict[int, list[str]] = {}
    for record in dataset.records.values():
        if record.image.is_file():
            places[record.image.resolve()] = record.id
            ids_of_size.setdefault(record.image.stat().st_size, []).append(record.id)
    ids = {}
    for stem, question in review.images.items():
        if not (is_inner(stem) and is_inner(question.file)):
            raise DataError(
                f"{folder / FILE} names files outside of it: {stem!r}, {question.file!r}",
                "what wsss-serving label wrote",
            )
        content = _content(folder, question)
        ids[stem] = f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}"
        for record_id in ids_of_size.get(len(content), ()):
            if dataset.records[record_id].image.read_bytes() == content:
                ids[stem] = record_id
        # The copy of an image that browsers cannot show has another content.
        ids[stem] = places.get(Path(question.source), ids[stem])
    return ids


def _content(folder: Path, question: Question) -> bytes:
    try:
        return (folder / question.file).read_bytes()
    except OSError as error:
        raise DataError(
            f"{folder / question.file} cannot be read: {error.strerror}",
            "the images of the review beside its masks",
            "copy the whole folder",
        ) from error
