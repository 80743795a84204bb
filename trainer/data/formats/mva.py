"""The lists of the MVA report: ``data_train.csv``, ``data_train_aug.csv``, ``data_test.csv`` (spec
refine-segment 11).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.data.dataset import Dataset, Record, check_classes, complain, some
from trainer.data.formats.cells import list_name
from trainer.data.formats.tables import IMAGE_COLUMNS, Table, flags, read_table
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

Problems = list[DataError] | None
CLUSTER = re.compile(r"cluster_\d+_\d+")
LISTS = {"data_test": "val"}
"""MVA tests on VOC's val."""


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``data_*.csv``."""
    return any(root.glob("data_*.csv"))


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read every ``data_<list>.csv``: ``filename`` (absolute, or relative to the file) and one 0/1
    column a class.

    Columns ``cluster_<class>_<k>`` are left out. Ids are file names without suffix. There are no
    masks.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it.

    Raises:
        DataError: files that disagree about the classes or the tags of an image, images that are
            not there, or tags asked for from elsewhere.
    """
    if config.labels_from in ("xml", "masks"):
        raise DataError(
            f"{root} has lists of tags only, no {config.labels_from}", "--labels-from csv or auto"
        )
    classes: tuple[str, ...] = ()
    records: dict[str, Record] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for path in sorted(root.glob("data_*.csv")):
        table = read_table(path)
        names, image, columns = class_columns(table)
        if classes and names != classes:
            complain(
                DataError(f"{path} has other classes than the files before it", some(classes, 20)),
                problems,
            )
            continue
        classes = names
        ids, missing, clashes = [], [], []
        for cells, tags in zip(table.rows, flags(table, columns, problems), strict=True):
            file = root / cells[image].replace("\\", "/")
            if tags is None:
                continue
            if not os.path.isfile(file):
                missing.append(cells[image])
                continue
            record = Record(file.stem, file, tags)
            if records.setdefault(record.id, record) != record:
                clashes.append(record.id)
            ids.append(record.id)
        name = LISTS.get(path.stem, list_name(path.stem.removeprefix("data_")))
        lists[name] = tuple(dict.fromkeys(ids))
        _complain(path, missing, clashes, problems)
    lists["all"] = tuple(records)
    values = tuple(range(1, len(classes) + 1))
    return Dataset(root, "mva", classes, values, records, lists, "data_*.csv", config=config)


def class_columns(table: Table) -> tuple[tuple[str, ...], int, list[int]]:
    """Class names, the column of images, and those of the classes; clusters are none.

    Raises:
        DataError: no column of images, or no class.
    """
    image = table.find(IMAGE_COLUMNS)
    columns = [
        c for c, name in enumerate(table.columns) if c != image and not CLUSTER.fullmatch(name)
    ]
    if image is None:
        raise DataError(
            f"{table.found()}, none of them for the image", "filename and one 0/1 column a class"
        )
    names = tuple(table.columns[c] for c in columns)
    check_classes(names, table.path)
    return names, image, columns


def _complain(path: Path, missing: list[str], clashes: list[str], problems: Problems) -> None:
    if missing:
        complain(
            DataError(
                f"{path} names {len(missing)} images that are not there: {some(missing)}",
                f"absolute paths, or paths relative to {path.parent}",
                f"wsss-trainer convert {path} image_labels.csv keeps the tags, for use in a VOC"
                " folder",
            ),
            problems,
        )
    if clashes:
        found = f"{path} has other tags or another file for images seen before: {some(clashes)}"
        complain(DataError(found, "the same in every list"), problems)
