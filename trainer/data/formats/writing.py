"""What every format that ``wsss-trainer convert`` writes has in common."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.errors import DataError

GROUP = "group"
"""The column of groups in tables that are written."""
LIST_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Writer:
    """Where a format keeps the files of a data set, relative to the new folder.

    Its tables are written last, so that an interrupted conversion has none.

    Attributes:
        dataset: what is written.
        name: of the format, for ``--to``.
        describes: whether tables hold masks, so that ``describe`` is called for every image.
    """

    dataset: Dataset
    name: ClassVar[str]
    describes: ClassVar[bool] = False

    @property
    def values(self) -> tuple[int, ...]:
        """Value of each class in mask files."""
        return tuple(range(1, len(self.dataset.classes) + 1))

    def image(self, record: Record) -> Path | None:
        """Place of the image; None where the format has none for it."""
        raise NotImplementedError

    def mask(self, record: Record) -> Path | None:
        """Place of the mask file; None where the format has none."""
        return None

    def describe(
        self, record: Record, size: tuple[int, int], label_HW: npt.NDArray[np.uint8] | None
    ) -> Any:
        """What the tables hold about one image.

        Args:
            record: the image.
            size: its height and width.
            label_HW: its label map, or None.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Check that the format can hold the names of this data set, before anything is written.

        Raises:
            DataError: it cannot.
        """
        self.lists()

    def tables(self, descriptions: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Place and content of each table. ``descriptions`` are the results of ``describe`` by
        id.
        """
        raise NotImplementedError

    def lost(self, descriptions: dict[str, Any]) -> list[str]:
        """What the format cannot hold, in words."""
        return []

    def lists(self) -> dict[str, tuple[str, ...]]:
        """The lists to write, so that every image is in one: without ``all`` unless there is no
        other list, and with ``unlisted`` for the rest.

        Raises:
            DataError: the name of a list cannot be the name of a file.
        """
        data = self.dataset
        lists = {name: ids for name, ids in data.lists.items() if name != "all"}
        bad = next((name for name in lists if not LIST_NAME.fullmatch(name)), None)
        if bad is not None:
            raise DataError(
                f"list {bad!r} cannot be the name of a file",
                "letters, digits and ._+-",
                "rename the list",
            )
        if not lists:
            return {"all": data.lists["all"]}
        members = {i for ids in lists.values() for i in ids}
        rest = tuple(i for i in data.records if i not in members)
        return {**lists, "unlisted": rest} if rest else lists


class MaskWriter(Writer):
    """The masks of a data set, ``ID.png`` with the classes 1 to K."""

    name = "masks"

    def image(self, record: Record) -> None:
        """Images stay where they are."""

    def mask(self, record: Record) -> Path:
        """At the top, as ``eval`` reads them."""
        return Path(f"{record.id}.png")

    def tables(self, descriptions: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """None: whoever has the data has those."""
        return iter(())


def lost_objects(dataset: Dataset) -> list[str]:
    """What label maps and tags do not hold of COCO's annotations or VOC's XML."""
    if dataset.format == "coco":
        return ["objects of a class become one region: instances, boxes and crowds"]
    if dataset.format == "voc" and (dataset.root / "Annotations").is_dir():
        return ["boxes, parts and difficult flags of Annotations/*.xml"]
    return []


def is_grouped(records: Iterable[Record]) -> bool:
    """Whether an image belongs to a group."""
    return any(record.group for record in records)


def check_tag_classes(classes: Sequence[str], records: Iterable[Record]) -> None:
    """Check that no class column would be taken for another column of ``tag_table``.

    Raises:
        DataError: a class is called ``image``, or ``group`` where images have groups.
    """
    columns = {"image": "image names"} | ({GROUP: "groups"} if is_grouped(records) else {})
    for name in classes:
        if meaning := columns.get(name.lower()):
            raise DataError(
                f"a class is called {name!r}, like the column of {meaning}", "another name"
            )


def tag_table(classes: Sequence[str], records: Iterable[Record]) -> bytes:
    """A CSV file with the column ``image`` (the id), one column a class of 0, 1 or ``?``, and a
    column ``group`` where images have groups.
    """
    records = list(records)
    grouped = [GROUP] if is_grouped(records) else []
    rows = []
    for record in records:
        cells = dict.fromkeys(record.tags, "1") | dict.fromkeys(record.unknown, "?")
        row = [record.id, *(cells.get(k, "0") for k in range(len(classes)))]
        rows.append([*row, *([record.group] if grouped else [])])
    return csv_table(["image", *classes, *grouped], rows)


def csv_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def text_lines(texts: Iterable[str]) -> bytes:
    """A text file with one of ``texts`` a line."""
    return "".join(f"{text}\n" for text in texts).encode()
