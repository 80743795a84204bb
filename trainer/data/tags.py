"""Tags from masks, for data of any format."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.remarks import Remarks
from trainer.errors import DataError, UserError
from trainer.pool import joined, over_images

FROM_MASKS = "classes in the masks"
POOL_FROM = 300


def with_mask_tags(dataset: Dataset, remarks: Remarks) -> Dataset:
    """The data set with the classes of each mask as tags. Those of images without a mask are
    unknown.

    Raises:
        DataError: no image has a mask.
    """
    records = dataset.records.values()
    # Before the masks are read no image has a tag, and so every image looks like a negative.
    owners = [r for r in records if dataset.has_mask(r) and not dataset.is_blank(r)]
    if not owners:
        raise DataError(
            f"{dataset.root} has no masks to take tags from",
            "a mask for every image",
            "--labels-from csv",
        )
    many = len(owners) >= POOL_FROM
    every = tuple(range(len(dataset.classes)))
    result = {
        key: dataclasses.replace(record, tags=(), unknown=every)
        for key, record in dataset.records.items()
    }
    work = over_images(
        partial(_tags_of_mask, dataset),
        owners,
        None if many else 0,
        "tags from masks",
        many,
        lambda record: record.id,
    )
    failures: list[UserError] = []
    for record, outcome in work:
        if isinstance(outcome, tuple):
            result[record.id] = dataclasses.replace(record, tags=outcome, unknown=())
        elif isinstance(outcome, DataError):
            failures.append(outcome)
        else:
            raise outcome
    if failures:
        remarks.add(joined(failures, len(owners), "masks give no tags"))
    return dataclasses.replace(dataset, records=result, tags_from=FROM_MASKS)


def _tags_of_mask(dataset: Dataset, record: Record) -> tuple[int, ...]:
    counts = np.bincount(dataset.read_mask(record).ravel(), minlength=IGNORE + 1)
    return tuple(k for k in range(len(dataset.classes)) if counts[k + 1])
