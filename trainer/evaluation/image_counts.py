"""Confusions of single images, kept beside every figure: what resampling, comparing and the worst
list are made of.

``evaluation/<stage>-<list>.npz`` of a run holds them sparsely, since an image has few labels: about
100 bytes an image.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.evaluation.metrics import DEFAULT, Counts, Margins, count_open, margins_miou
from trainer.files import write_atomic

Sparse = tuple[npt.NDArray[np.int32], Counts]


def sparse(confusion: Counts) -> Sparse:
    """Cells and pixels of a matrix ``[C,C+1]`` that are not empty."""
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
        boundary: float32 ``[N,C]``, the boundary F-score of every class
            (``trainer.evaluation.boundary``); nan where an image has no boundary of it, and
            everywhere if it was not measured.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    starts: Counts
    cells: npt.NDArray[np.int32]
    pixels: Counts
    boundary: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        class_names: Sequence[str],
        images: Sequence[Sparse],
        boundary: Sequence[npt.NDArray[np.float32]] = (),
    ) -> ImageCounts:
        """Gather what ``sparse`` made of each image."""
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
        )

    @property
    def labels(self) -> int:
        """C, background included."""
        return len(self.class_names) + 1

    def total(self) -> Counts:
        """The confusion of the list, int64 ``[C,C+1]``."""
        counts = np.zeros(self.labels * (self.labels + 1), np.int64)
        np.add.at(counts, self.cells, self.pixels)
        return counts.reshape(self.labels, self.labels + 1)

    def margins(self, convention: str = DEFAULT) -> Margins:
        """Margins of every image, int64 ``[N,C]``.

        Raises:
            DataError: see ``metrics.margins``.
        """
        image = np.repeat(np.arange(len(self.ids)), np.diff(self.starts))
        row, column = np.divmod(self.cells.astype(np.int64), self.labels + 1)

        def summed(label: Counts, chosen: npt.NDArray[np.bool_]) -> Counts:
            counts = np.zeros((len(self.ids), self.labels), np.int64)
            np.add.at(counts, (image[chosen], label[chosen]), self.pixels[chosen])
            return counts

        everywhere, open_ = np.ones(len(row), bool), column == self.labels
        counted = Margins(
            summed(row, row == column), summed(row, everywhere), summed(column, ~open_)
        )
        return count_open(counted, summed(row, open_), convention)

    def miou(self, convention: str = DEFAULT) -> npt.NDArray[np.float32]:
        """Mean IoU of each image by itself, float32 ``[N]``; 1 for one without known pixels."""
        return np.nan_to_num(margins_miou(self.margins(convention), convention), nan=1.0).astype(
            np.float32
        )

    def image_boundary_f(self) -> npt.NDArray[np.float64]:
        """Boundary F-score of each image, float64 ``[N]``: the mean over the classes that it
        outlines; nan without one.
        """
        return _mean_of_known(self.boundary, 1)

    def class_boundary_f(self) -> npt.NDArray[np.float64]:
        """Boundary F-score of each class, float64 ``[C]``: the mean over the images that outline
        it.
        """
        return _mean_of_known(self.boundary, 0)

    def boundary_f(self) -> float:
        """Boundary F-score of the list, the mean over its images; nan if it was not measured."""
        return float(_mean_of_known(self.image_boundary_f()[None], 1)[0])

    def select(self, ids: Sequence[str]) -> ImageCounts:
        """The same of some of the images, in the order of ``ids``."""
        place = {name: n for n, name in enumerate(self.ids)}
        rows = [place[name] for name in ids]
        spans = [slice(self.starts[n], self.starts[n + 1]) for n in rows]
        images = [(self.cells[span], self.pixels[span]) for span in spans]
        return ImageCounts.of(ids, self.class_names, images, list(self.boundary[rows]))

    def write(self, path: Path) -> None:
        """Store it without pickle, whole or not at all.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ids=np.asarray(self.ids, np.str_),
            class_names=np.asarray(self.class_names, np.str_),
            starts=self.starts,
            cells=self.cells,
            pixels=self.pixels,
            boundary=self.boundary,
        )
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> ImageCounts:
        """What ``write`` stored.

        Raises:
            DataError: missing, or not such a file.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return cls(
                    tuple(map(str, stored["ids"])),
                    tuple(map(str, stored["class_names"])),
                    stored["starts"],
                    stored["cells"],
                    stored["pixels"],
                    stored["boundary"],
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"counts {path} cannot be read: {error}",
                "the counts that wsss-trainer eval writes beside evaluation.json",
                "delete that file, then wsss-trainer eval RUN measures again",
            ) from error


def counts_path(folder: Path, stage: str, list_name: str) -> Path:
    """Where the counts of a stage of ``evaluation.json`` on a list are kept, in the folder of that
    file.
    """
    return folder / "evaluation" / f"{stage}-{list_name}.npz"


def _mean_of_known(values: npt.NDArray[np.floating], axis: int) -> npt.NDArray[np.float64]:
    known = np.isfinite(values)
    count = known.sum(axis)
    mean: npt.NDArray[np.float64] = np.divide(
        np.where(known, values, 0).sum(axis, dtype=np.float64),
        count,
        out=np.full(count.shape, np.nan),
        where=count > 0,
    )
    return mean
