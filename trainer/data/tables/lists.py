"""Lists of images, and groups, in a table beside any data set."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

from trainer.data.dataset import Dataset
from trainer.data.image_files import ImageNames, entries
from trainer.data.knobs import DataConfig
from trainer.data.remarks import Remarks
from trainer.data.tables.cells import lists_of
from trainer.data.tables.columns import find_group
from trainer.data.tables.reading import IMAGE_COLUMNS, Table, read_table
from trainer.errors import DataError, some

LISTS_FILE = "lists.csv"
LIST_COLUMNS = ("list", "split", "subset", "set")


def with_lists(dataset: Dataset, config: DataConfig, remarks: Remarks) -> Dataset:
    """The data set with the lists of ``data.lists`` in place of its own.

    The table has a column of image names or ids, and a column ``list``: the name of a list, several
    with ``;`` between them, or a blank. It may have a column of groups.

    Raises:
        DataError: the table is not there or has no such columns.
    """
    path = _lists_file(dataset.root, config)
    if path is None:
        return dataset
    table = read_table(path)
    remarks.notes += table.notes
    image, column = _columns(table)
    others = [c for c in range(len(table.columns)) if c not in (image, column)]
    # The column that data.group names may be one of the data, which split wrote here as "group".
    if config.group != "none" and table.find((config.group,)) is None:
        config = dataclasses.replace(config, group="auto")
    group = find_group(table, others, config, remarks)
    ids = _ids(dataset, path, table.cells(image), remarks)
    records, lists = dict(dataset.records), defaultdict(list)
    for row in table.rows:
        key = ids.get(row[image])
        if key is None:
            continue
        for name in lists_of(row[column]):
            lists[name].append(key)
        if group is not None:
            records[key] = dataclasses.replace(records[key], group=row[group])
    if dataset.lists:
        old = some(map(repr, dataset.lists))
        remarks.note(f"the lists are those of {path.name} instead of the data's own ({old})")
    return dataclasses.replace(
        dataset,
        records=records,
        lists={name: tuple(dict.fromkeys(keys)) for name, keys in sorted(lists.items())},
    )


def _lists_file(root: Path, config: DataConfig) -> Path | None:
    """The table; None without one.

    Raises:
        DataError: the one that the user named is not there.
    """
    if config.lists == "none":
        return None
    if config.lists == "auto":
        return next((p for p in entries(root) if p.name == LISTS_FILE and p.is_file()), None)
    path = root / config.lists
    if not path.is_file():
        raise DataError(
            f"data.lists={config.lists} is no file, neither in the working directory nor in {root}",
            "a CSV file with the columns image and list",
            f"wsss-trainer split {root} --val 0.2 makes one",
        )
    return path


def _columns(table: Table) -> tuple[int, int]:
    """The columns of images and of lists.

    Raises:
        DataError: one of them is not there.
    """
    image, column = table.find(IMAGE_COLUMNS), table.find(LIST_COLUMNS)
    if image is None or column is None:
        raise DataError(
            f"{table.headings()}, none of them for the {'image' if image is None else 'list'}",
            "the columns image and list",
            "--set data.lists=none reads the lists of the data themselves",
        )
    return image, column


def _ids(dataset: Dataset, path: Path, names: list[str], remarks: Remarks) -> dict[str, str]:
    """Ids by the names of a table."""
    owners = {record.image: key for key, record in dataset.records.items()}
    unknown = [name for name in names if name not in dataset.records]
    finder = ImageNames(
        dataset.root, [p for p in owners if p.is_relative_to(dataset.root)], unknown
    )
    ids = {name: name for name in names if name in dataset.records}
    strange = []
    for name in unknown:
        matches = finder.find(name)
        if len(matches) == 1:
            ids[name] = owners[matches[0]]
        else:
            strange.append(name)
    if strange:
        remarks.problem(
            f"{path} has names that fit no image, or several: {some(strange)}",
            "ids, or paths relative to the data folder",
            "correct the rows, or take them out",
        )
    return ids
