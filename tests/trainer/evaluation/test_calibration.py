"""The share of wrong pixels at each confidence, and the masks that it is counted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.palette import write_index_png
from trainer.errors import DataError
from trainer.evaluation.calibration import (
    IMAGES,
    Calibration,
    calibrated,
    error_counts,
    reference_of,
)
from trainer.run import Run

LABELS = 3


def draw(rng: np.random.Generator, certainty: float) -> np.ndarray:
    """Counts of an image whose pixels are wrong as often as half their lack of confidence."""
    confidence = rng.integers(int(255 * certainty), 256, (40, 40)).astype(np.uint8)
    truth = rng.integers(0, LABELS, confidence.shape).astype(np.uint8)
    is_wrong = rng.random(confidence.shape) < (1 - confidence / 255) / 2
    mask = np.where(is_wrong, (truth + 1) % LABELS, truth).astype(np.uint8)
    truth[:2] = IGNORE
    return error_counts(mask, confidence, truth)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    counts = [draw(rng, rng.random()) for _ in range(100)]
    result = calibrated(counts, list(range(100)), "drawn masks")
    assert result is not None
    return result


def test_counts_are_of_pixels_with_a_label_at_the_size_of_the_mask() -> None:
    mask = np.array([[0, 1], [1, 2]], np.uint8)
    confidence = np.array([[9, 9], [9, 7]], np.uint8)
    truth = np.array([[0, 0], [IGNORE, 1]], np.uint8)
    counts = error_counts(mask, confidence, np.kron(truth, np.ones((3, 3), np.uint8)))
    assert counts.shape == (2, 256)
    assert (counts[:, 9].tolist(), counts[:, 7].tolist()) == ([2, 1], [1, 1])
    assert counts.sum() == 5


def test_the_share_of_wrong_pixels_is_that_of_their_making(calibration: Calibration) -> None:
    confidence = np.arange(256)
    assert np.abs(calibration.wrong - (1 - confidence / 255) / 2).mean() < 0.02
    assert (np.diff(calibration.wrong) <= 0).all()
    assert ((calibration.wrong >= 0) & (calibration.wrong <= 1)).all()


def test_doubts_of_new_images_are_their_shares_of_wrong_pixels(calibration: Calibration) -> None:
    rng, doubts, wrong = np.random.default_rng(1), [], []
    for certainty in np.linspace(0, 0.95, 50):
        every, errors = draw(rng, certainty)
        doubts.append(every @ calibration.wrong / every.sum())
        wrong.append(errors.sum() / every.sum())
    assert abs(np.mean(doubts) - np.mean(wrong)) < 0.01
    assert np.corrcoef(doubts, wrong)[0, 1] > 0.98


def test_held_out_images_say_how_good_it_is(calibration: Calibration) -> None:
    figures = calibration.held_out
    assert figures["images"] == 100
    assert figures["doubt"] == pytest.approx(figures["wrong"], abs=0.01)
    assert figures["mean_error"] < 0.02
    assert figures["rank_correlation"] > 0.95
    entry = calibration.card_entry()
    assert entry["from"] == "drawn masks"
    assert len(entry["wrong"]) == len(calibration.knots)


def test_images_weigh_the_same_whatever_their_size() -> None:
    small, large = np.zeros((2, 256), np.int64), np.zeros((2, 256), np.int64)
    small[:, 200] = 10, 10
    large[:, 200] = 1000, 0
    result = calibrated([small, large], [0, 1], "")
    assert result is not None
    assert result.wrong[200] == 0.5


def test_few_images_have_a_calibration_without_figures_and_none_has_none() -> None:
    counts = np.zeros((2, 256), np.int64)
    assert calibrated([counts], [0], "") is None
    counts[:, 200] = 10, 1
    result = calibrated([counts, counts], [0, 0], "")
    assert result is not None
    assert result.held_out == {"images": 2}
    assert result.wrong == pytest.approx(0.1)
    equal = calibrated([counts, counts], [0, 1], "")
    assert equal is not None
    assert equal.held_out["rank_correlation"] is None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.manifest.update(train_list="train", masks=None)
    (run.path / "masks").mkdir(parents=True)
    return run


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    records = {}
    for n in range(4):
        name = str(n)
        Image.new("RGB", (6, 4)).save(tmp_path / f"{name}.png")
        write_index_png(tmp_path / "truth" / f"{name}.png", np.full((4, 6), 1, np.uint8))
        mask = tmp_path / "truth" / f"{name}.png" if n < 3 else None
        records[name] = Record(name, tmp_path / f"{name}.png", (0,), mask)
    lists = {"train": ("0", "1", "3"), "val": ("2",), "bare": ("3",)}
    return Dataset(tmp_path, "folder", ("cat",), (1,), records, lists, "test", masks_from="masks")


def test_masks_that_trained_are_the_reference(run: Run, dataset: Dataset) -> None:
    assert reference_of(run, dataset) is None
    for name in ("0", "1", "2"):
        write_index_png(run.path / "masks" / f"{name}.png", np.zeros((4, 6), np.uint8))
    reference = reference_of(run, dataset)
    assert reference is not None
    assert [record.id for record in reference.records] == ["0", "1"]
    assert reference.source == "pseudo masks of train"
    assert not reference.read_mask(reference.records[0]).any()
    # A true mask that trained goes before the pseudo mask.
    run.manifest["masks"] = {"ids": ["1", "gone"], "corrections": str(run.path / "gone")}
    reference = reference_of(run, dataset)
    assert reference is not None
    values = {r.id: int(reference.read_mask(r).max()) for r in reference.records}
    assert values == {"0": 0, "1": 1}
    assert reference.source == "true masks of 1 training images and pseudo masks of train"


def test_a_list_with_true_masks_can_be_the_reference(run: Run, dataset: Dataset) -> None:
    reference = reference_of(run, dataset, "val")
    assert reference is not None
    assert [record.id for record in reference.records] == ["2"]
    assert (reference.read_mask(reference.records[0]) == 1).all()
    assert reference.source == "true masks of val"
    with pytest.raises(DataError, match="no image of list 'bare' has a true mask"):
        reference_of(run, dataset, "bare")
    with pytest.raises(DataError, match="no list 'nowhere'"):
        reference_of(run, dataset, "nowhere")


def test_large_lists_are_drawn_from_the_same_way_every_time(run: Run, dataset: Dataset) -> None:
    records = {str(n): Record(str(n), Path("x.png"), (0,), Path("x.png")) for n in range(1000)}
    large = Dataset(
        *(dataset.root, "folder", ("cat",), (1,), records, {"all": tuple(records)}, "test"),
        masks_from="masks",
    )
    first, again = (reference_of(run, large, "all") for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.records == again.records
    assert len(first.records) == IMAGES
    assert 400 < np.mean([int(record.id) for record in first.records]) < 600
