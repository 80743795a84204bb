"""Confusions of single images, stored beside every figure.

Resampling, comparisons and the list of the worst images use them. ``evaluation/<stage>-<list>.npz``
of a run holds them sparsely, since an image has few labels: about 100 bytes per image.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Record
from trainer.errors import DataError
from trainer.evaluation.metrics import DEFAULT, Counts, Margins, count_open, margins_miou
from trainer.files import write_atomic

Sparse = tuple[npt.NDArray[np.int32], Counts]
TEXTS = ("ids", "class_names")
ARRAYS = ("starts", "cells", "pixels", "boundary", "groups", "objects")


def sparse(confusion: Counts) -> Sparse:
    """The cells of a matrix ``[C,C+1]`` that are not empty, and their pixels."""
    cells = np.flatnonzero(confusion)
    return cells.astype(np.int32), confusion.reshape(-1)[cells]


@dataclass(frozen=True)
class ImageCounts:
    """Confusions ``[C,C+1]`` of N images, C = K+1 labels and a last column for predicted 255.

    Attributes:
        ids: the N images, in list order.
        class_names: the K foreground names.
        starts: int64 ``[N+1]``; image n has the entries ``starts[n]:starts[n+1]``.
        cells: int32 ``[M]``, ``truth * (C+1) + prediction``.
        pixels: int64 ``[M]``.
        boundary: float32 ``[N,C]``, the boundary F-score of every class; nan where an image has no
            boundary of it, and everywhere if it was not measured.
        groups: int64 ``[N]``; images of one group have the same number.
        objects: int64 ``[N,2,C]``, the true objects of every class and those that are hit;
            ``[N,2,0]`` where they were not counted.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    starts: Counts
    cells: npt.NDArray[np.int32]
    pixels: Counts
    boundary: npt.NDArray[np.float32]
    groups: Counts
    objects: Counts

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        class_names: Sequence[str],
        images: Sequence[Sparse],
        boundary: Sequence[npt.NDArray[np.float32]] = (),
        groups: Sequence[int] = (),
        objects: Sequence[Counts] = (),
    ) -> ImageCounts:
        """Gather what ``sparse`` made of each image. Without ``groups`` each is by itself."""
        labels = len(class_names) + 1
        sizes = [len(cells) for cells, _ in images]
        return cls(
            tuple(ids),
            tuple(class_names),
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
            np.concatenate([np.zeros(0, np.int32), *(cells for cells, _ in images)]),
            np.concatenate([np.zeros(0, np.int64), *(pixels for _, pixels in images)]),
            np.stack(boundary)
            if len(boundary)
            else np.full((len(ids), labels), np.nan, np.float32),
            np.asarray(groups if len(groups) else range(len(ids)), np.int64),
            np.stack(objects) if len(objects) else np.zeros((len(ids), 2, 0), np.int64),
        )

    @property
    def labels(self) -> int:
        """C, background included."""
        return len(self.class_names) + 1

    def total(self) -> Counts:
        """The confusion of the list, int64 ``[C,C+1]``."""
        counts = np.zeros(self.labels * (self.labels + 1), np.int64)
        # Not counts[cells] += pixels, which would add only one of the images that share a cell.
        np.add.at(counts, self.cells, self.pixels)
        return counts.reshape(self.labels, self.labels + 1)

    def margins(self, convention: str = DEFAULT) -> Margins:
        """Margins of every image, int64 ``[N,C]``.

        Raises:
            DataError: see ``metrics.margins``.
        """
        image = np.repeat(np.arange(len(self.ids)), np.diff(self.starts))
        row, column = np.divmod(self.cells.astype(np.int64), self.labels + 1)

        def total(label: Counts, chosen: npt.NDArray[np.bool_]) -> Counts:
            counts = np.zeros((len(self.ids), self.labels), np.int64)
            np.add.at(counts, (image[chosen], label[chosen]), self.pixels[chosen])
            return counts

        everywhere, open_ = np.ones(len(row), bool), column == self.labels
        m = Margins(total(row, row == column), total(row, everywhere), total(column, ~open_))
        return count_open(m, total(row, open_), convention)

    def miou(self, convention: str = DEFAULT) -> npt.NDArray[np.float32]:
        """Mean IoU of each image by itself, float32 ``[N]``; 1 where the truth is unknown."""
        values = margins_miou(self.margins(convention), convention)
        return np.nan_to_num(values, nan=1.0).astype(np.float32)

    def class_boundary_f(self) -> npt.NDArray[np.float64]:
        """Boundary F-score of each class, float64 ``[C]``: the mean over images that outline it."""
        return _finite_mean(self.boundary, 0)

    def boundary_f(self) -> float:
        """Boundary F-score of the list; nan if it was not measured.

        The mean over the images, each the mean over the classes that it outlines.
        """
        return float(_finite_mean(_finite_mean(self.boundary, 1), 0))

    def select(self, ids: Sequence[str]) -> ImageCounts:
        """The counts of some of the images, in the order of ``ids``."""
        place = {name: n for n, name in enumerate(self.ids)}
        rows = [place[name] for name in ids]
        spans = [slice(self.starts[n], self.starts[n + 1]) for n in rows]
        images = [(self.cells[span], self.pixels[span]) for span in spans]
        return ImageCounts.of(
            ids,
            self.class_names,
            images,
            list(self.boundary[rows]),
            self.groups[rows].tolist(),
            list(self.objects[rows]),
        )

    def write(self, path: Path) -> None:
        """Store the counts without pickle, whole or not at all.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        buffer = io.BytesIO()
        values: dict[str, Any] = {key: getattr(self, key) for key in ARRAYS}
        # Not as objects: these need pickle, which can run code when it is read.
        values |= {key: np.asarray(getattr(self, key), np.str_) for key in TEXTS}
        np.savez_compressed(buffer, **values)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> ImageCounts:
        """The counts that ``write`` stored.

        Raises:
            DataError: missing, or not such a file.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                values: dict[str, Any] = {key: archive[key] for key in ARRAYS if key in archive}
                # Counts of earlier versions have no groups and objects.
                images = len(archive["ids"])
                values.setdefault("groups", np.arange(images))
                values.setdefault("objects", np.zeros((images, 2, 0), np.int64))
                values |= {key: tuple(map(str, archive[key])) for key in TEXTS}
                return cls(**values)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"counts {path} cannot be read: {error}",
                "the counts that wsss-trainer eval writes beside evaluation.json",
                "delete that file; wsss-trainer eval RUN measures again",
            ) from error


def group_numbers(records: Sequence[Record]) -> list[int]:
    """The group of each record as a number; one without a group is by itself."""
    places: dict[tuple[str, str], int] = {}
    return [places.setdefault(record.unit, len(places)) for record in records]


def counts_path(folder: Path, stage: str, list_name: str) -> Path:
    """The file of the counts of a stage on a list, in the folder of ``evaluation.json``."""
    return folder / "evaluation" / f"{stage}-{list_name}.npz"


def _finite_mean(values: npt.NDArray[np.floating], axis: int) -> npt.NDArray[np.float64]:
    # Not numpy.nanmean, which warns where all values are nan.
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0).sum(axis, dtype=np.float64), finite.sum(axis)
    return np.asarray(total / np.where(count, count, np.nan))
