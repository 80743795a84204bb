"""Which true masks train, where most images have only tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.data.pixels import image_size
from trainer.data.tables.corrections import Corrections
from trainer.data.tables.reading import read_text
from trainer.errors import DataError, UserError, nearest, some
from trainer.pool import raise_together

LIST = "masks"
"""The list of the images whose true masks train, and the source that chooses by them."""


@dataclass(frozen=True)
class TrainingMasks(Dataset):
    """A data set as a training sees it: only the masks that train are there, in list ``masks``.

    Attributes:
        base: the data set.
        corrections: their masks go before those of ``base``; None without any.
        ids: of the images.
    """

    base: Dataset = field(kw_only=True)
    corrections: Corrections | None = field(default=None, kw_only=True)
    ids: frozenset[str] = field(default=frozenset(), kw_only=True)

    @classmethod
    def of(
        cls, base: Dataset, ids: Sequence[str], corrections: Corrections | None = None
    ) -> TrainingMasks:
        """The masks of the images ``ids`` of ``base``."""
        own: dict[str, Any] = {f.name: getattr(base, f.name) for f in fields(Dataset)}
        own["lists"] = {**base.lists, LIST: tuple(ids)}
        return cls(**own, base=base, corrections=corrections, ids=frozenset(ids))

    @property
    def images(self) -> list[Record]:
        """The images whose masks train."""
        return self.subset(LIST)

    def has_mask(self, record: Record) -> bool:
        """Whether the mask of the image trains."""
        return record.id in self.ids

    def is_blank(self, record: Record) -> bool:
        """Never: somebody drew these masks."""
        return False

    def read_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """See ``Dataset``."""
        if self._is_corrected(record):
            assert self.corrections
            return self.corrections.read(record.id)
        return self.base.read_mask(record)

    def read_either(self, record: Record, folder: Path) -> npt.NDArray[np.uint8]:
        """The mask that trains, ``uint8 [H,W]``: the true one, else the pseudo mask in ``folder``.

        Raises:
            DataError: it is missing or damaged.
        """
        if self.has_mask(record):
            return self.read_mask(record)
        return read_index_png(folder / f"{record.id}.png")

    def mask_size(self, record: Record) -> tuple[int, int] | None:
        """See ``Dataset``."""
        if self._is_corrected(record):
            assert self.corrections
            return image_size(self.corrections.files[record.id])
        return self.base.mask_size(record)

    def mask_source(self, record: Record) -> bytes:
        """See ``Dataset``."""
        if self._is_corrected(record):
            assert self.corrections
            labels = repr(self.corrections.labels).encode()
            return labels + self.corrections.files[record.id].read_bytes()
        return self.base.mask_source(record)

    def _is_corrected(self, record: Record) -> bool:
        return self.corrections is not None and record.id in self.corrections.files


def choose_masks(
    dataset: Dataset,
    choice: str | None,
    corrections: Corrections | None,
    train_list: str,
    val_list: str | None,
) -> TrainingMasks | None:
    """The true masks that train; None where nobody asked for any.

    Args:
        dataset: with corrected tags.
        choice: ``--masks``: the name of a list, or a file of ids, one a line.
        corrections: whose masks train too.
        train_list: list that trains.
        val_list: list that is measured, and does not train.

    Raises:
        DataError: no such list or file, ids that the data lack, no mask at all, or images that do
            not train, or that are measured.
    """
    files = {*corrections.files} if corrections else set()
    ids = {*(_listed(dataset, choice) if choice else ()), *files}
    if not choice and not ids:
        return None
    drawn = {r.id for r in (dataset.records[i] for i in ids) if _is_drawn(dataset, r)}
    with_mask = files | drawn
    if not with_mask:
        raise DataError(
            f"none of the {len(ids)} images of --masks {choice} has a true mask",
            "images with masks",
            "wsss-trainer check DATA says which lists have masks",
        )
    measured = dataset.subset(val_list) if val_list and val_list != train_list else []
    if both := sorted(with_mask & {record.id for record in measured}):
        raise DataError(
            f"{len(both)} images whose masks are to train are in {val_list!r}, which is measured:"
            f" {some(both)}",
            "masks of other images: figures on images that trained say nothing",
            "take them out of the list, or measure on another list (--val-list)",
        )
    training = [record.id for record in dataset.subset(train_list)]
    if strangers := sorted(with_mask - {*training}):
        raise DataError(
            f"{len(strangers)} images whose masks are to train are not in the training list"
            f" {train_list!r}: {some(strangers)}",
            "images of the training list",
            "--train-list with a list that holds them",
        )
    # In the order of the training list, whatever the order of the file: keys depend on it.
    masks = TrainingMasks.of(dataset, [i for i in training if i in with_mask], corrections)
    check_trained(masks)
    return masks


def check_trained(masks: TrainingMasks) -> None:
    """Read every mask that trains, before hours are spent on the rest.

    Raises:
        DataError: masks of another size than their image, unreadable ones, and values that no
            class has, listed together.
    """
    problems: list[UserError] = []
    for record in masks.images:
        try:
            mask, (height, width) = masks.read_mask(record), image_size(record.image)
        except DataError as error:
            problems.append(error)
            continue
        if mask.shape != (height, width):
            size = f"{mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}"
            what = f"the mask of {record.id!r} is {size}"
            problems.append(DataError(what, "masks of the image's size"))
    raise_together(problems, len(masks.images), "masks cannot be trained on")


def _is_drawn(dataset: Dataset, record: Record) -> bool:
    # A mask that follows from the tags alone teaches nothing more than the pseudo mask.
    return dataset.has_mask(record) and not dataset.is_blank(record)


def _listed(dataset: Dataset, choice: str) -> list[str]:
    """The ids of ``--masks``."""
    if choice in dataset.lists:
        return list(dataset.lists[choice])
    path = Path(choice)
    if not path.is_file():
        raise DataError(
            f"--masks {choice} is neither a list of {dataset.root} nor a file",
            nearest(choice, sorted(dataset.lists)),
            "or a text file with the ids of the images, one a line",
        )
    lines = [line.strip() for line in read_text(path)[0].splitlines()]
    ids = list(dict.fromkeys(line for line in lines if line))
    if not ids:
        raise DataError(f"{path} names no image", "the ids of the images, one a line")
    if strangers := [i for i in ids if i not in dataset.records]:
        raise DataError(
            f"{path} names {len(strangers)} images that {dataset.root} lacks: {some(strangers)}",
            f"ids such as {some(dataset.records)}",
            "correct the lines, or take them out",
        )
    return ids
