"""Shares of labels in tags, truth and predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.data.palette import write_index_png
from trainer.evaluation.image_counts import ImageCounts, sparse
from trainer.evaluation.metrics import confusion
from trainer.evaluation.shares import mask_shares, measured_shares, tag_shares

CLASSES = ("a", "b")


def dataset(*records: Record) -> Dataset:
    ids = {record.id: record for record in records}
    return Dataset(Path(), "voc", CLASSES, (1, 2), ids, {"all": tuple(ids)}, "test")


def test_tags() -> None:
    records = [
        Record("x", Path("x"), (0,), unknown=(1,)),
        Record("y", Path("y"), (), unknown=(1,)),
        Record("z", Path("z"), (0,), unknown=(1,)),
    ]
    assert tag_shares(dataset(*records), records) == {"a": np.float32(2 / 3), "b": None}


def test_pixels_of_truth_and_prediction() -> None:
    truth, pred = np.array([[0, 0, 1, 255]]), np.array([[0, 0, 255, 2]])
    counts = confusion(pred, truth, 3, predicted_ignore="own")
    true, guess = measured_shares(ImageCounts.of(["x"], CLASSES, [sparse(counts)]))
    assert true == {"background": 2 / 3, "a": 1 / 3, "b": 0}
    assert guess == {"background": 1, "a": 0, "b": 0}
    nothing = measured_shares(ImageCounts.of([], CLASSES, []))[0]
    assert nothing == {"background": None, "a": None, "b": None}


def test_masks_without_truth(tmp_path: Path) -> None:
    records = [Record(name, Path(name), ()) for name in ("x", "y")]
    write_index_png(tmp_path / "x.png", np.array([[0, 0, 1, 255]], np.uint8))
    write_index_png(tmp_path / "y.png", np.array([[0, 2]], np.uint8))
    shares = mask_shares(dataset(*records), records, tmp_path)
    assert shares == {"background": 3 / 5, "a": 1 / 5, "b": 1 / 5}
