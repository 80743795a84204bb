"""``scores.csv``: the classifier's score of every image and class, to read and to compute with."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.files import write_atomic

Values = npt.NDArray[np.float64]
FILE = "scores/scores.csv"
"""Its place in a run."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of images.

    Attributes:
        ids: the N images.
        class_names: the K classes.
        scores: float64 ``[N,K]``, probabilities.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    scores: Values

    @classmethod
    def of_logits(
        cls, ids: Sequence[str], class_names: Sequence[str], logits_NK: npt.ArrayLike
    ) -> ImageScores:
        """The probabilities of image logits."""
        from scipy.special import expit

        # In float64 scores saturate at a logit of 36 and not of 17, so fewer become equal.
        return cls(tuple(ids), tuple(class_names), expit(np.asarray(logits_NK, np.float64)))

    def of(self, ids: Sequence[str]) -> Values:
        """Scores ``[n,K]`` of some of the images, in the order of ``ids``."""
        place = {name: n for n, name in enumerate(self.ids)}
        return self.scores[[place[name] for name in ids]]

    def write(self, path: Path) -> None:
        """Store them, whole or not at all.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["id", *self.class_names])
        for name, row in zip(self.ids, self.scores, strict=True):
            # Nine digits tell any two float32 apart.
            rows.writerow([name, *(f"{score:.9g}" for score in row)])
        write_atomic(path, text.getvalue().encode())

    @classmethod
    def read(cls, path: Path) -> ImageScores:
        """The scores that ``write`` stored.

        Raises:
            DataError: missing, or not such a file.
        """
        try:
            with path.open(newline="", encoding="utf-8") as file:
                (_, *names), *rows = csv.reader(file)
            table = np.array([row[1:] for row in rows], np.float64).reshape(len(rows), len(names))
        except (OSError, ValueError) as error:
            raise DataError(
                f"scores {path} cannot be read: {error}",
                "the table that wsss-trainer fit writes",
                "delete that file, and run wsss-trainer fit again",
            ) from error
        return cls(tuple(row[0] for row in rows), tuple(names), table)
