"""Tags that are the classes seen in the masks, for any format."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from trainer.data.dataset import IGNORE, Dataset, Record, complain
from trainer.errors import DataError, UserError
from trainer.pool import joined, over_images

FROM_MASKS = "classes in the masks"
POOL_FROM = 300


def with_mask_tags(dataset: Dataset, problems: list[DataError] | None = None) -> Dataset:
    """The data set with the classes of each mask as tags; images without a mask have none.

    Args:
        dataset: its own tags are not looked at.
        problems: collects masks that cannot be read instead of raising the first.

    Raises:
        DataError: a mask that cannot be read, or no mask at all.
    """
    masked = [record for record in dataset.records.values() if dataset.has_mask(record)]
    if not masked:
        raise DataError(
            f"{dataset.root} has no masks to take tags from",
            "a mask for every image",
            "--labels-from csv",
        )
    many = len(masked) >= POOL_FROM
    records = {key: dataclasses.replace(record, tags=()) for key, record in dataset.records.items()}
    work = over_images(
        partial(_shown, dataset),
        masked,
        None if many else 0,
        "tags from masks",
        many,
        lambda r: r.id,
    )
    failed: list[UserError] = []
    for record, outcome in work:
        if isinstance(outcome, tuple):
            records[record.id] = dataclasses.replace(record, tags=outcome)
        elif isinstance(outcome, DataError):
            failed.append(outcome)
        else:
            raise outcome
    if failed:
        complain(joined(failed, len(masked), "masks give no tags"), problems)
    return dataclasses.replace(dataset, records=records, tags_from=FROM_MASKS)


def _shown(dataset: Dataset, record: Record) -> tuple[int, ...]:
    counts = np.bincount(dataset.read_mask(record).ravel(), minlength=IGNORE + 1)
    return tuple(k for k in range(len(dataset.classes)) if counts[k + 1])
