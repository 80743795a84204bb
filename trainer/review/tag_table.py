"""``tags.csv`` of a review: tags that look wrong or missing, and a column for the answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Dataset
from trainer.errors import DataError, nearest
from trainer.files import write_atomic

TABLE = "tags.csv"
HEAD = ("id", "class", "tag", "score", "answer")
PRESENT = {"present": True, "yes": True, "1": True, "absent": False, "no": False, "0": False}


@dataclass(frozen=True)
class Suspicion:
    """A tag that looks wrong.

    Attributes:
        id: the image.
        k: position of the class.
        is_present: what the tag says.
        score: probability of the class, 0..1, by a model that did not learn from this image.
    """

    id: str
    k: int
    is_present: bool
    score: float


@dataclass(frozen=True)
class TagAnswer:
    """What a person said of a tag: whether the image shows the class."""

    id: str
    name: str
    is_present: bool
    where: str


def write_tag_table(path: Path, suspicions: Iterable[Suspicion], dataset: Dataset) -> None:
    """Write the table, the worst first, with empty answers."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEAD)
    for entry in suspicions:
        tag = "present" if entry.is_present else "absent"
        rows.writerow([entry.id, dataset.classes[entry.k], tag, f"{entry.score:.3f}", ""])
    write_atomic(path, text.getvalue().encode())


def read_tag_answers(path: Path, dataset: Dataset) -> list[TagAnswer]:
    """The rows with an answer that differs from the tag; none where there is no table.

    Raises:
        DataError: a row with another image, class or answer.
    """
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}", "the table of the review") from error
    answers = []
    for number, row in enumerate(rows, 2):
        answer = str(row.get("answer") or "").strip().casefold()
        if not answer:
            continue
        where = f"{path}, line {number}"
        record, name = dataset.records.get(str(row.get("id"))), str(row.get("class"))
        if record is None:
            raise DataError(f"{where} has the image {row.get('id')!r}", "an image of the data")
        for value, options, what in ((name, dataset.classes, "class"), (answer, PRESENT, "answer")):
            if value not in options:
                raise DataError(f"{where} has the {what} {value!r}", nearest(value, options))
        k, is_present = dataset.classes.index(name), PRESENT[answer]
        # The tag itself again changes nothing.
        if k in record.unknown or is_present != (k in record.tags):
            answers.append(TagAnswer(record.id, name, is_present, where))
    return answers
