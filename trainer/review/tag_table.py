"""``tags.csv`` of a review: tags that look wrong or missing, and a column for the answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.classes import positions_of
from trainer.data.dataset import Dataset
from trainer.data.names import composed
from trainer.data.tables.reading import DELIMITERS, read_text
from trainer.errors import DataError, nearest, some
from trainer.files import write_atomic
from trainer.review.files import Files

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


def read_tag_answers(files: Files, dataset: Dataset) -> list[TagAnswer]:
    """The rows with an answer that differs from the tag; none where there is no table.

    Raises:
        DataError: no such columns, or a row with another image, class or answer.
    """
    file = files.find(TABLE)
    if file is None:
        return []
    path, answers = files.where(file), list[TagAnswer]()
    said: dict[tuple[str, int], bool] = {}
    for number, row in enumerate(_rows(path, files.read(file)), 2):
        answer = str(row["answer"] or "").strip().casefold()
        if not answer:
            continue
        where = f"{path}, line {number}"
        record = dataset.records.get(composed(str(row["id"])))
        if record is None:
            raise DataError(f"{where} has the image {row['id']!r}", "an image of the data")
        name = str(row["class"])
        k = positions_of([name], dataset.classes).get(name)
        if k is None:
            raise DataError(f"{where} has the class {name!r}", nearest(name, dataset.classes))
        if answer not in PRESENT:
            raise DataError(f"{where} has the answer {answer!r}", nearest(answer, PRESENT))
        is_present = PRESENT[answer]
        if said.setdefault((record.id, k), is_present) != is_present:
            raise DataError(
                f"{where} says otherwise of {name!r} in {record.id!r} than a line before",
                "one answer a tag",
                "empty one of them",
            )
        # The tag itself again changes nothing.
        if k in record.unknown or is_present != (k in record.tags):
            answers.append(TagAnswer(record.id, dataset.classes[k], is_present, where))
    return answers


def _rows(path: str, content: bytes) -> Iterator[dict[str, str | None]]:
    """The rows, as any spreadsheet saves them. Excel leaves out empty cells at the end of a row."""
    text, _ = read_text(Path(path), content)
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(DELIMITERS, key=head.count))
    rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
    missing = {"id", "class", "answer"} - {*rows.fieldnames}
    if missing and text.strip():
        raise DataError(
            f"{path} lacks the column {some(sorted(missing))}",
            f"a first line with {','.join(HEAD)}",
            "put the first line back as ask wrote it",
        )
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}", "the table of the review") from error
