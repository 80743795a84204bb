"""Image tags of released code, ``cls_labels.npy`` and CSV files, as ``image_labels.csv``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.coco.classes import COCO_CLASSES
from trainer.data.dataset import Record
from trainer.data.formats.mva import class_columns
from trainer.data.formats.opening import open_dataset
from trainer.data.formats.writing import check_tag_classes, tag_table
from trainer.data.knobs import DataConfig
from trainer.data.pickles import read_pickled_dict
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.remarks import Remarks
from trainer.data.tables.reading import flags, read_table
from trainer.data.voc.classes import VOC_CLASSES
from trainer.errors import DataError, some
from trainer.files import write_atomic
from trainer.outputs import check_file

Labels = tuple[tuple[str, ...], dict[str, tuple[int, ...]]]
"""Class names, and tags by image id."""
FORCE = "another name, or --force to write over it"
CLASSES = {len(names): names for names in (VOC_CLASSES, COCO_CLASSES)}


def convert_labels(source: Path, target: Path, config: DataConfig, force: bool) -> dict[str, Any]:
    """Write the tags of ``source`` as a table that a VOC folder reads as ``image_labels.csv``.

    Args:
        source: ``cls_labels.npy``, a CSV file of ``filename`` and one 0/1 column a class, or a data
            set.
        target: the file.
        config: how to read a data set.
        force: write over ``target``.

    Raises:
        DataError: ``source`` cannot be read.
        TargetError: ``target`` is ``source``, or is there with other tags.
    """
    if source.suffix == ".npy":
        form, (classes, tags) = "cls_labels.npy", read_cls_labels(source)
        records = [Record(key, source, positions) for key, positions in tags.items()]
    elif source.suffix == ".csv":
        form, (classes, records) = "csv", read_label_csv(source, config)
    else:
        dataset = open_dataset(source, config=config)
        form, classes, records = dataset.format, dataset.classes, list(dataset.records.values())
    check_tag_classes(classes, records)
    data = tag_table(classes, records)
    check_file(target, [source], lambda file: force or file.read_bytes() == data, hint=FORCE)
    write_atomic(target, data)
    return {
        "from": {"path": str(source), "format": form},
        "to": {"path": str(target), "format": "labels"},
        "rows": len(records),
        "classes": len(classes),
    }


def read_cls_labels(path: Path) -> Labels:
    """The pickled dictionary of the released code of psa, IRN and SEAM: image id to 20 (VOC) or 80
    (COCO) numbers 0 or 1. Nothing in the pickle is run.

    Raises:
        DataError: something else.
    """
    tags: dict[str, tuple[int, ...]] = {}
    try:
        rows = {
            key: np.asarray(row, np.float64).ravel() for key, row in read_pickled_dict(path).items()
        }
        sizes = {row.size for row in rows.values()}
        if len(sizes) != 1 or not sizes <= CLASSES.keys():
            raise ValueError(f"rows of {some(sorted(sizes)) or 'no'} numbers")
        count = sizes.pop()
        for key, row in rows.items():
            if not np.isin(row, (0, 1)).all():
                raise ValueError(f"{key!r} has numbers that are neither 0 nor 1")
            tags[_id_of(key, count)] = tuple(np.flatnonzero(row).tolist())
    except Exception as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "a pickled dict of image ids and 20 (VOC) or 80 (COCO) numbers 0 or 1",
        ) from error
    return CLASSES[count], tags


def read_label_csv(path: Path, config: DataConfig) -> tuple[tuple[str, ...], list[Record]]:
    """Class names and records of a table of image names or paths, which need not be there, and one
    0/1 column a class (MVA's lists).

    Raises:
        DataError: columns that do not fit, cells that are neither 0 nor 1, or rows that contradict
        each other.
    """
    table, remarks = read_table(path), Remarks()
    classes, image, columns, group = class_columns(table, config, remarks)
    groups = table.cells(group)
    records: dict[str, Record] = {}
    rows = flags(table, columns, remarks, config.missing)
    for cell, line, row, belongs in zip(table.cells(image), table.lines, rows, groups, strict=True):
        key = _id_of(cell, 0)
        record = Record(key, path, row.present, None, row.unknown, belongs)
        if records.setdefault(key, record) != record:
            raise DataError(
                f"{path} line {line}: other tags than before for {key!r}",
                "one row an image",
            )
    return classes, list(records.values())


def _id_of(key: Any, count: int) -> str:
    """``2007_000032`` of a path, of itself, or of 2007000032, as IRN writes it."""
    if not isinstance(key, str):
        # IRN keeps VOC's ids as numbers, without the underscore. COCO's file names have 12 digits.
        digits = str(int(key))
        return f"{digits[:4]}_{digits[4:]}" if count == len(VOC_CLASSES) else digits.zfill(12)
    name = key.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name
