"""The vote of segments on masks, by hand and as the end of a run's refinement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from refined import again, fit

from trainer.data.coco.segments import label_segments
from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.pixels import image_size
from trainer.errors import DataError
from trainer.evaluation.conditions import PROTOCOL
from trainer.evaluation.measure import current_evaluation
from trainer.refine.vote import VoteConfig, origin, voted

pytestmark = pytest.mark.usefixtures("one_process")
Labels = npt.NDArray[np.uint8]


def strip(*values: int) -> Labels:
    return np.array([values], np.uint8)


def vote(mask: Labels, *segments: list[int], **knobs: object) -> list[int]:
    positions = [np.array(segment) for segment in segments]
    config = VoteConfig(segments="superpixels", **knobs)  # type: ignore[arg-type]
    return voted(mask, positions, config)[0].tolist()


def test_a_segment_takes_the_class_of_more_than_half_of_it():
    assert vote(strip(1, 1, 1, 0, 0), [0, 1, 2, 3]) == [1, 1, 1, 1, 0]
    # Exactly half is too little, and what nobody claims is background.
    assert vote(strip(1, 1, 0, 0, 1), [0, 1, 2, 3]) == [0, 0, 0, 0, 1]
    assert vote(strip(1, 1, 0, 0, 1), [0, 1, 2, 3], segment_share=0.4) == [1, 1, 1, 1, 1]


def test_a_segment_takes_a_class_that_it_holds_nearly_all_of():
    mask = strip(1, 0, 0, 0, 0, 0)
    assert vote(mask, [0, 1, 2, 3]) == [1, 1, 1, 1, 0, 0]
    assert vote(strip(1, 0, 0, 0, 0, 1), [0, 1, 2, 3]) == [0, 0, 0, 0, 0, 1]
    assert vote(strip(1, 0, 0, 0, 0, 1), [0, 1, 2, 3], segment_cover=0.5) == [1, 1, 1, 1, 0, 1]


def test_pixels_outside_of_segments_and_open_pixels_stay():
    assert vote(strip(1, 1, 255, 2, 2, 0), [0, 1, 2]) == [1, 1, 255, 2, 2, 0]
    assert vote(strip(0, 0, 255), [0, 1, 2]) == [0, 0, 255]


def test_the_purest_of_overlapping_segments_is_on_top():
    mask = strip(1, 1, 1, 2, 2, 0)
    # Shares: 3 of 5, 2 of 3.
    assert vote(mask, [0, 1, 2, 3, 4], [3, 4, 5]) == [1, 1, 1, 2, 2, 2]
    assert vote(mask, [3, 4, 5], [0, 1, 2, 3, 4]) == [1, 1, 1, 2, 2, 2]


def test_contested_segments_by_share_and_as_released():
    # Class 1 lies in the segment as a whole, but class 2 fills it.
    mask, segment = strip(1, 2, 2, 2, 0), [0, 1, 2, 3, 4]
    assert vote(mask, segment) == [2, 2, 2, 2, 2]
    # As released class 1 takes it first, and class 2 stays where it was.
    assert vote(mask, segment, segment_order="class") == [1, 2, 2, 2, 1]


def by_hand(mask: Labels, segments: list[npt.NDArray[np.int64]]) -> Labels:
    """The released order, class by class, on boolean planes."""
    planes = np.zeros((len(segments), mask.size), bool)
    for plane, segment in zip(planes, segments):
        plane[segment] = True
    flat, result, taken = mask.ravel(), np.zeros(mask.size, np.uint8), set[int]()
    for label in range(1, 255):
        own = flat == label
        if not own.any():
            continue
        union, new = np.zeros(mask.size, bool), own & False
        for n in [n for n in range(len(segments)) if n not in taken]:
            union |= planes[n]
            both = (planes[n] & own).sum()
            if 2 * both > planes[n].sum() or both >= 0.85 * own.sum():
                new |= planes[n]
                taken.add(n)
        result[new | (own & ~union)] = label
    return result.reshape(mask.shape)


@pytest.mark.parametrize("seed", range(5))
def test_random_segments(seed):
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 0, 1, 2, 4], (4, 5)).astype(np.uint8)
    mask = blocks.repeat(6, 0).repeat(6, 1)
    squares = [(*rng.integers(0, 20, 2), *rng.integers(2, 12, 2)) for _ in range(30)]
    segments = []
    for top, left, height, width in squares:
        plane = np.zeros(mask.shape, bool)
        plane[top : top + height, left : left + width] = True
        segments.append(np.flatnonzero(plane))
    released = voted(mask, segments, VoteConfig(segment_order="class"))
    np.testing.assert_array_equal(released, by_hand(mask, segments))
    ours = voted(mask, segments, VoteConfig())
    shuffled = [segments[n] for n in rng.permutation(len(segments))]
    np.testing.assert_array_equal(ours, voted(mask, shuffled, VoteConfig()))
    assert not np.array_equal(ours, mask)


def test_segments_of_the_truth_bring_the_truth_back():
    truth = np.zeros((40, 60), np.uint8)
    truth[5:20, 5:30], truth[22:38, 30:55] = 1, 3
    rng = np.random.default_rng(0)
    spoilt = np.where(rng.random(truth.shape) < 0.3, 0, truth).astype(np.uint8)
    segments = label_segments(truth + 1)
    np.testing.assert_array_equal(voted(spoilt, segments, VoteConfig()), truth)


def segment_files(data: Path, folder: Path) -> Path:
    """The true masks as segments."""
    dataset = open_dataset(data)
    folder.mkdir()
    for record in dataset.records.values():
        Image.fromarray(dataset.read_mask(record) + 1).save(folder / f"{record.id}.png")
    return folder


@pytest.fixture
def run(mapped, tmp_path) -> Path:
    return Path(shutil.copytree(mapped, tmp_path / "run"))


def test_a_run_whose_masks_take_over_segments(bare, run, tmp_path):
    folder = segment_files(bare, tmp_path / "segments")
    given = f"refine.segments={folder}"
    fit(bare, run, given, refine="segments")
    dataset = open_dataset(bare)
    for record in dataset.records.values():
        mask = read_index_png(run / "masks" / f"{record.id}.png")
        truth = dataset.read_mask(record)
        # Each segment is an object as a whole, or nothing.
        assert all(len(np.unique(mask[truth == n])) == 1 for n in np.unique(truth))
    entry = current_evaluation(run)["refined"]["val"]
    assert "train tags" in entry["protocol"]
    assert "and segments given by the user" in entry["protocol"]
    assert entry["conditions"]["segments"] == "segments given by the user"
    assert "segments" in PROTOCOL
    assert again(fit(bare, run, given, refine="segments")) == set()
    # The files count, not their place.
    moved = folder.rename(tmp_path / "moved")
    assert again(fit(bare, run, f"refine.segments={moved}", refine="segments")) == set()
    first = next(record for record in dataset.records.values() if record.tags)
    size = image_size(first.image)
    Image.fromarray(np.ones(size, np.uint8)).save(moved / f"{first.id}.png")
    assert again(fit(bare, run, f"refine.segments={moved}", refine="segments")) == {"refine"}


def test_super_pixels_need_no_files(bare, run):
    fit(bare, run, "refine.superpixels=40", refine="segments")
    assert "super-pixels" in current_evaluation(run)["refined"]["val"]["protocol"]
    assert json.loads((run / "manifest.json").read_text())["config"]["refine"]["refine"] == "none"


def test_runs_without_segments_keep_their_keys_and_words(bare, run):
    fit(bare, run, refine="none")
    entry = current_evaluation(run)["refined"]["val"]
    assert "segments" not in entry["protocol"]
    assert "super-pixels" not in entry["protocol"]
    # Knobs of a vote that is not held change nothing.
    assert again(fit(bare, run, "refine.segment_share=0.7", refine="none")) == set()
    assert origin({"refine": "crf"}) == ""


def test_segments_that_do_not_fit_end_the_run_before_it_starts(bare, run, tmp_path):
    folder = segment_files(bare, tmp_path / "segments")
    given = f"refine.segments={folder}"
    first = next(r for r in open_dataset(bare).records.values() if r.tags)
    file = folder / f"{first.id}.png"
    Image.fromarray(np.ones((5, 7), np.uint8)).save(file)
    with pytest.raises(DataError, match=rf"another size: {first.id} \(5 x 7, the image 64 x 64\)"):
        fit(bare, run, given, refine="segments")
    file.rename(folder / "stranger.png")
    with pytest.raises(DataError, match=r"1 files belong to no image: stranger\.png"):
        fit(bare, run, given, refine="segments")
    (folder / "stranger.png").unlink()
    with pytest.raises(DataError, match=f"1 of 10 images have no segments in .*: {first.id}"):
        fit(bare, run, given, refine="segments")
    with pytest.raises(DataError, match="is no folder of segments"):
        fit(bare, run, "refine.segments=slick", refine="segments")


def test_damaged_run_lengths_are_an_error_of_their_image(bare, run, tmp_path):
    folder = segment_files(bare, tmp_path / "segments")
    first = next(r for r in open_dataset(bare).records.values() if r.tags)
    (folder / f"{first.id}.png").unlink()
    (folder / f"{first.id}.json").write_text('[{"size": [64, 64], "counts": [5]}]')
    with pytest.raises(DataError, match="do not fill 4096 pixels"):
        fit(bare, run, f"refine.segments={folder}", refine="segments")
    assert len(list((run / "masks").iterdir())) == 9
