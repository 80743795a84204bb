"""The lists of MVA's release: ``data_train.csv``, ``data_train_aug.csv``, ``data_test.csv``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.data.classes import check_classes
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.base import Format
from trainer.data.knobs import DataConfig
from trainer.data.names import list_name
from trainer.data.remarks import Remarks
from trainer.data.tables.columns import find_group
from trainer.data.tables.reading import IMAGE_COLUMNS, Table, flags, read_table
from trainer.errors import DataError, some

CLUSTER = re.compile(r"cluster_\d+_\d+")
LISTS = {"data_test": "val"}
"""MVA tests on VOC's val."""


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``data_*.csv``."""
    return any(root.glob("data_*.csv"))


def read(root: Path, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read every ``data_<list>.csv``: ``filename`` (absolute, or relative to the file) and one 0/1
    column a class. Ids are file names without suffix; there are no masks.

    Raises:
        DataError: a damaged table.
    """
    classes: tuple[str, ...] = ()
    records: dict[str, Record] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for path in sorted(root.glob("data_*.csv")):
        table = read_table(path)
        names, image, columns, group = class_columns(table, config, remarks)
        if classes and names != classes:
            remarks.problem(f"{path} has other classes than the files before it", some(classes, 20))
            continue
        classes = names
        members = _records(root, table, image, columns, group, config, remarks)
        clashes = [r.id for r in members if records.setdefault(r.id, r) != r]
        name = LISTS.get(path.stem, list_name(path.stem.removeprefix("data_")))
        lists[name] = tuple(dict.fromkeys(record.id for record in members))
        if clashes:
            remarks.problem(
                f"{path} has other tags, another group or another file for images of a list before:"
                f" {some(clashes)}",
                "the same in every list",
            )
    values = tuple(range(1, len(classes) + 1))
    return Dataset(root, "mva", classes, values, records, lists, "data_*.csv")


def _records(
    root: Path,
    table: Table,
    image: int,
    columns: list[int],
    group: int | None,
    config: DataConfig,
    remarks: Remarks,
) -> list[Record]:
    """The images of a list that are there."""
    records, missing = [], []
    rows = flags(table, columns, remarks, config.missing)
    for cell, row, belongs in zip(table.cells(image), rows, table.cells(group), strict=True):
        # An absolute path takes the place of the folder.
        file = root / cell.replace("\\", "/")
        if os.path.isfile(file):
            records.append(Record(file.stem, file, row.present, None, row.unknown, belongs))
        else:
            missing.append(cell)
    if missing:
        remarks.problem(
            f"{table.path} names {len(missing)} images that are not there: {some(missing)}",
            f"absolute paths, or paths relative to {table.path.parent}",
            f"wsss-trainer convert {table.path} image_labels.csv keeps the tags, for use in a VOC"
            " folder",
        )
    return records


def class_columns(
    table: Table, config: DataConfig, remarks: Remarks
) -> tuple[tuple[str, ...], int, list[int], int | None]:
    """Class names, the column of images, the columns of the classes, and that of the groups.

    Columns ``cluster_<class>_<k>``, which MVA's method adds, are left out.

    Raises:
        DataError: no column of images, no class, or not the column that ``data.group`` names.
    """
    image = table.find(IMAGE_COLUMNS)
    if image is None:
        raise DataError(
            f"{table.headings()}, none of them for the image", "filename and one 0/1 column a class"
        )
    columns = [
        c for c, name in enumerate(table.columns) if c != image and not CLUSTER.fullmatch(name)
    ]
    group = find_group(table, columns, config, remarks)
    columns = [c for c in columns if c != group]
    names = tuple(table.columns[c] for c in columns)
    check_classes(names, table.path)
    return names, image, columns, group


FORMAT = Format(
    rank=40,
    words="a folder of MVA's lists of tags only",
    layout="",
    tags_from=("csv",),
    recognises=recognises,
    read=read,
)
