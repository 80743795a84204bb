"""Compare answers with what was asked: the image, the size, the classes, and what changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.data.dataset import IGNORE, Dataset
from trainer.data.names import composed
from trainer.data.palette import encode_index_png
from trainer.data.pixels import image_size
from trainer.errors import DataError, some
from trainer.review.form import Answer, Pixels, Size
from trainer.review.labelled import is_labelled, of_run
from trainer.review.labels import Labels
from trainer.review.record import Review


@dataclass(frozen=True)
class Verdict:
    """What a person said of one image, compared with what was asked.

    Attributes:
        png: the mask as a file; empty where only tags were answered.
        change: pixels that each class gained or lost against the prediction.
        is_new: whether the mask differs from the prediction, or a person declared it finished.
        in_review: whether the review asked for the image.
        shows: names of the classes that the mask shows.
        denies: names of the classes that it does not show.
        tags_added: names of classes.
        tags_removed: names of classes.
        where: the file, for messages.
    """

    png: bytes = b""
    change: dict[str, int] = field(default_factory=dict)
    is_new: bool = True
    in_review: bool = True
    shows: tuple[str, ...] = ()
    denies: tuple[str, ...] = ()
    tags_added: tuple[str, ...] = ()
    tags_removed: tuple[str, ...] = ()
    where: str = ""


class Exam:
    """Compares answers with what was asked."""

    def __init__(self, run: Path, dataset: Dataset, reviews: list[Review]) -> None:
        self.run, self.dataset, self.reviews = run, dataset, reviews
        self.labels = Labels(dataset.classes)
        self.verdicts: dict[str, Verdict] = {}
        self.strangers: list[str] = []
        self.keys: set[str] = set()

    def expect(self, review: Review, place: Path) -> None:
        """Check that a review is one of the run's, or of a model of it."""
        if is_labelled(place):
            self.reviews = [of_run(review, place, self.run, self.dataset)]
            return
        if review.key in {other.key for other in self.reviews}:
            self.reviews = [other for other in self.reviews if other.key == review.key]
            return
        raise DataError(
            f"{place} is a review of {review.run}",
            f"a review of {self.run}",
            f"wsss-trainer answer {review.run} {place}",
        )

    def take(self, entry: Answer) -> None:
        """Compare one answer with what was asked."""
        if entry.review and entry.review not in {review.key for review in self.reviews}:
            raise DataError(
                f"{entry.where} answers the review {entry.review}, which {self.run} did not ask",
                "answers to a review of this run",
                "give the run that made the review",
            )
        record_id = self._match(entry.name)
        if record_id is None:
            self.strangers.append(entry.name)
            return
        mask = self._mask(record_id, entry)
        verdict = self._verdict(record_id, mask, entry)
        earlier = self.verdicts.setdefault(record_id, verdict)
        if earlier.png != verdict.png:
            raise DataError(
                f"image {record_id!r} has two answers: in {earlier.where} and in {entry.where}",
                "one answer an image",
                "delete one of them in the tool, and export again",
            )

    def check_strangers(self) -> None:
        """Check that every answer belonged to an image."""
        if self.strangers:
            raise DataError(
                f"{len(self.strangers)} masks belong to no image of the review or the data:"
                f" {some(self.strangers)}",
                "the names of the images that were asked for",
                "give the export of this review, or rename its files",
            )

    def _mask(self, record_id: str, entry: Answer) -> Pixels:
        """The mask of an answer, of the size of its image and with values of the class table."""
        size = self._size(record_id)
        mask = np.zeros(size, np.uint8) if entry.mask is None else entry.mask
        if mask.shape != size:
            raise DataError(
                f"{entry.where} is {mask.shape[0]} pixels high and {mask.shape[1]} wide",
                f"{size[0]} and {size[1]}, the size of image {record_id!r}",
                "export masks at the size of the images",
            )
        self.labels.check_values(mask, entry.where)
        return mask

    def _verdict(self, record_id: str, mask: Pixels, entry: Answer) -> Verdict:
        before = self._prediction(record_id, mask)
        classes, record = self.dataset.classes, self.dataset.records.get(record_id)
        values = set(np.unique(mask).tolist())
        visible = {value - 1 for value in values - {0, IGNORE}}
        # What does not count may hide an object, so that its tag stays.
        absent = set() if IGNORE in values else set(range(len(classes))) - visible
        tags, possible = (record.tags, record.possible) if record else ((), range(len(classes)))
        return Verdict(
            encode_index_png(mask),
            self.labels.changes(np.zeros_like(mask) if before is None else before, mask),
            entry.is_final or before is None or not np.array_equal(before, mask),
            before is not None,
            _names(visible, classes),
            _names(absent, classes),
            _names(visible - set(tags), classes),
            _names(absent & set(possible), classes),
            entry.where,
        )

    def _match(self, name: str) -> str | None:
        """The image that a tool means by ``name``, with folders before it or without its own."""
        name = composed(name)
        for review in self.reviews:
            if name in review.ids:
                return review.ids[name]
        ids_asked = [i for review in self.reviews for i in review.images]
        for ids in (ids_asked, self.dataset.records):
            if name in ids:
                return name
            alike = {i for i in ids if name.endswith(f"/{i}") or i.endswith(f"/{name}")}
            if len(alike) == 1:
                return alike.pop()
        return None

    def _prediction(self, record_id: str, mask: Pixels) -> Pixels | None:
        """The mask that the image was asked about with; None where it was not."""
        reviews = [review for review in self.reviews if record_id in review.images]
        # Some tools do not say which review they answer: a mask that is as one of them had it is
        # untouched. Otherwise the latest review counts.
        for review in reviews:
            prediction = review.predicted_mask(self.run, record_id)
            if np.array_equal(prediction, mask):
                self.keys.add(review.key)
                return prediction
        if not reviews:
            return None
        self.keys.add(reviews[0].key)
        return reviews[0].predicted_mask(self.run, record_id)

    def _size(self, record_id: str) -> Size:
        for review in self.reviews:
            if record_id in review.images:
                return review.images[record_id].size
        return image_size(self.dataset.records[record_id].image)


def _names(positions: Iterable[int], classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(classes[k] for k in sorted(positions))
