import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_nets import pictures

from trainer.data import superpixels
from trainer.data.dataset import Record
from trainer.data.superpixels import (
    make_superpixels,
    read_superpixels,
    renumbered,
    slic_superpixels,
)
from trainer.data.transforms import MEAN, STD, classify_planes, sample_rng
from trainer.errors import DataError


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x % 256, 4 * y % 256, 2 * (x + y) % 256], 2).astype(np.uint8)


def painted(ids: np.ndarray) -> np.ndarray:
    """Every id as a colour of its own."""
    return np.stack([ids % 7 * 30, ids // 7 % 7 * 30, ids // 49 * 30], 2).astype(np.uint8)


def colours(view) -> np.ndarray:
    pixels = view.permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)
    return np.rint(pixels * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(60, 80), (1, 1), (1, 7), (3, 3)])
def test_ids_are_consecutive_from_one(size):
    ids = slic_superpixels(smooth(*size), 20)
    assert ids.shape == size
    assert ids.dtype == np.uint16
    assert np.array_equal(np.unique(ids), np.arange(1, ids.max() + 1))
    if size == (60, 80):
        assert 10 <= ids.max() <= 40


def test_one_colour_is_cut_too():
    assert slic_superpixels(np.full((60, 80, 3), 7, np.uint8), 20).max() > 5


def test_renumbered():
    ids = np.array([[0, 9, 3], [3, 9, 700]], np.uint16)
    assert renumbered(ids).tolist() == [[0, 2, 1], [1, 2, 3]]
    assert renumbered(ids).dtype == np.int64
    assert not renumbered(np.zeros((2, 2), np.uint16)).any()
    assert renumbered(np.full((2, 2), 5, np.uint16)).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("size", [(40, 50), (20, 60)])
def test_ids_follow_the_image(size):
    ids = slic_superpixels(smooth(*size), 30)
    image = painted(ids)
    flipped = set()
    for n in range(12):
        side = max(size)
        view, (cut,) = classify_planes(image, [ids], sample_rng(0, 0, n), (side, side), 32, False)
        inside = cut > 0
        assert np.array_equal(colours(view)[inside], painted(cut)[inside])
        assert not view.numpy()[:, ~inside].any()
        assert inside.sum() == min(32, size[0]) * 32
        rows = cut[inside.any(1)]
        flipped.add(
            any(
                np.array_equal(rows[0], row[x : x + 32]) for row in ids for x in range(size[1] - 31)
            )
        )
    assert flipped == {True, False}


def test_ids_follow_a_resized_image():
    ids = slic_superpixels(np.full((48, 64, 3), 9, np.uint8), 8)
    view, (cut,) = classify_planes(painted(ids), [ids], sample_rng(0, 0, 1), (128, 128), 96, False)
    same = (colours(view) == painted(cut)).all(2)
    # Bicubic blends along the borders only.
    assert same.mean() > 0.7
    assert set(np.unique(cut)) <= set(np.unique(ids))


def test_the_image_is_that_of_samples_without_ids():
    image = smooth(40, 50)
    for n in range(4):
        with_ids = classify_planes(
            image, [slic_superpixels(image, 9)], sample_rng(3, 0, n), (32, 64), 32, True
        )[0]
        assert np.array_equal(
            with_ids, classify_planes(image, [], sample_rng(3, 0, n), (32, 64), 32, True)[0]
        )


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return pictures(tmp_path / "data", count=3).subset("all")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
def test_segments_are_made_once(records, tmp_path, workers):
    folder = tmp_path / "superpixels" / "12"
    make_superpixels(records, folder, 12, workers)
    first = times(folder)
    assert set(first) == {"p0.png", "p1.png", "p2.png"}
    for record in records:
        image = np.asarray(Image.open(record.image))
        assert np.array_equal(read_superpixels(record, folder), slic_superpixels(image, 12))
    make_superpixels(records, folder, 12, workers)
    assert times(folder) == first


@pytest.mark.parametrize(
    "damage", ["missing", "cut", "empty", "eight bits", "zero", "other size", "older"]
)
def test_missing_and_damaged_files_are_made_again(records, tmp_path, damage):
    folder = tmp_path / "superpixels"
    make_superpixels(records, folder, 12, 0)
    path, whole, kept = folder / "p1.png", (folder / "p1.png").read_bytes(), times(folder)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "older":
        os.utime(path, (1, 1))
    else:
        ids = read_superpixels(records[1], folder)
        ids[0, 0] = 0 if damage == "zero" else 1
        made = {"eight bits": ids.astype(np.uint8), "other size": ids[:-1]}.get(damage, ids)
        Image.fromarray(made).save(path)
    if damage in ("missing", "cut", "empty", "eight bits", "zero"):
        with pytest.raises(DataError) as caught:
            read_superpixels(records[1], folder)
        assert "run the same command again" in caught.value.hint
    make_superpixels(records, folder, 12, 0)
    assert path.read_bytes() == whole
    assert {k: v for k, v in times(folder).items() if k != "p1.png"} == {
        k: v for k, v in kept.items() if k != "p1.png"
    }


def test_one_bad_image_does_not_lose_the_others(records, tmp_path):
    records[1].image.write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 3 images have no super-pixels"):
        make_superpixels(records, tmp_path / "s", 12, 0)
    assert set(times(tmp_path / "s")) == {"p0.png", "p2.png"}


def test_large_photographs_are_made_smaller_first(records, tmp_path, monkeypatch):
    monkeypatch.setattr(superpixels, "LONG_SIDE", 33)
    make_superpixels(records, tmp_path / "s", 12, 0)
    first = times(tmp_path / "s")
    ids = read_superpixels(records[0], tmp_path / "s")
    assert max(ids.shape) == 33
    make_superpixels(records, tmp_path / "s", 12, 0)
    assert times(tmp_path / "s") == first
    image = np.asarray(Image.open(records[0].image))
    view, (cut,) = classify_planes(image, [ids], sample_rng(0, 0, 0), (44, 44), 48, False)
    assert ((cut > 0) == view.numpy().any(0)).mean() > 0.99
