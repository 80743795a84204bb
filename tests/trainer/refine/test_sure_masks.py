"""Pseudo masks without their unsure pixels: sureness, thresholds, and what is written."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.data.tables.training_masks import TrainingMasks
from trainer.maps.camfile import Cam, cam_path, stride4, write_cam
from trainer.refine.sure_masks import (
    BINS,
    FALLBACK,
    precise_levels,
    sure_levels,
    sureness,
    write_sure,
)


def test_sureness_is_the_map_of_the_label_or_the_rest():
    maps = np.array([[[0.9, 0.2]], [[0.4, 0.1]]], np.float32)
    cam = Cam(np.array([1, 4], np.int16), maps, (4, 8))
    mask = np.array([[2] * 4 + [0] * 4, [5] * 4 + [2] * 4, [0] * 8, [255] * 8], np.uint8)
    values = sureness(cam, mask)
    np.testing.assert_allclose(values[0], [0.9] * 4 + [0.8] * 4, rtol=1e-6)
    np.testing.assert_allclose(values[1], [0.4] * 4 + [0.2] * 4, rtol=1e-6)
    np.testing.assert_allclose(values[2], [0.1] * 4 + [0.8] * 4, rtol=1e-6)


def test_an_image_without_a_class_is_surely_background():
    cam = Cam(np.zeros(0, np.int16), np.zeros((0, 1, 1), np.float32), (4, 4))
    assert (sureness(cam, np.zeros((4, 4), np.uint8)) == 1).all()


@pytest.mark.parametrize(
    ("every", "right", "level"),
    [
        ({20: 100, 60: 100}, {20: 50, 60: 95}, 0.21),
        ({20: 100, 60: 100}, {20: 95, 60: 95}, 0.0),
        ({20: 100, 60: 100}, {20: 0, 60: 50}, FALLBACK),
        ({60: 7}, {60: 7}, FALLBACK),
        ({60: 8}, {60: 8}, 0.0),
        ({}, {}, FALLBACK),
    ],
)
def test_the_lowest_level_that_is_precise_enough(every, right, level):
    counts = np.zeros((2, 1, BINS), np.int64)
    for row, pixels in enumerate((every, right)):
        for place, number in pixels.items():
            counts[row, 0, place] = number
    assert precise_levels(counts[0], counts[1], 0.9).tolist() == [level]


def test_unsure_pixels_of_other_images_are_open(scenes, tmp_path, one_process):
    dataset = open_dataset(scenes)
    first, second = dataset.records["scene_00001"], dataset.records["scene_00002"]
    pseudo, maps = tmp_path / "pseudo", tmp_path / "maps"
    for folder in (pseudo, maps):
        folder.mkdir()
    for record in (first, second):
        # A pseudo mask that is right where its map is high, and covers all of the right half.
        truth, label = dataset.read_mask(record), record.tags[0] + 1
        mask = np.where(truth == label, label, 0).astype(np.uint8)
        mask[:, 32:] = label
        write_index_png(pseudo / f"{record.id}.png", mask)
        grid = (truth == label)[::4, ::4].astype(np.float32) * 0.8 + 0.1
        assert grid.shape == stride4(truth.shape)
        write_cam(cam_path(maps, record.id), record.tags, grid[None], truth.shape)
    masks = TrainingMasks.of(dataset, [first.id])
    levels = sure_levels(masks, [first], pseudo, maps, 0.9, 0)
    label = first.tags[0] + 1
    assert 0.1 < levels[label] <= 0.9
    assert levels[0] < 0.9
    others = np.setdiff1d(np.arange(1, len(levels)), [label])
    assert (levels[others] == FALLBACK).all()
    own = np.full(len(levels), 0.5)
    summary = write_sure([second], pseudo, maps, tmp_path / "sure", own, 0)
    mask = read_index_png(tmp_path / "sure" / f"{second.id}.png")
    former = read_index_png(pseudo / f"{second.id}.png")
    unsure = sureness(Cam(np.array(second.tags, np.int16), grid[None], mask.shape), former) < 0.5
    assert unsure.any()
    assert np.array_equal(mask, np.where(unsure, 255, former))
    assert summary == {"count": 1, "ignore": round(float(unsure.mean()), 4)}
    assert write_sure([second], pseudo, maps, tmp_path / "sure", own, 0)["ignore"] == 0
