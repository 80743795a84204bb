"""Folders of corrections, and which true masks train: what is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.data.tables.corrections import corrected, extended, read_corrections
from trainer.data.tables.training_masks import choose_masks
from trainer.errors import DataError

FIRST, SECOND = "scene_00001", "scene_00004"
"""Images of the training list, with a deer and with a fox."""
IN_VAL = "scene_00003"
SIZE = (51, 64)


@pytest.fixture
def dataset(scenes) -> Dataset:
    return open_dataset(scenes)


@pytest.fixture
def folder(tmp_path, dataset) -> Path:
    """A mask of the first image with an owl and a robot, in another order of classes; and tags of
    the second.
    """
    mask = np.zeros(SIZE, np.uint8)
    mask[0, :3] = 1, 2, 255
    (tmp_path / "masks").mkdir()
    write_index_png(tmp_path / "masks" / f"{FIRST}.png", mask)
    (tmp_path / "classes.txt").write_text("robot\nowl\n")
    change = {SECOND: {"added": ["panda"], "removed": ["fox"]}}
    (tmp_path / "corrections.json").write_text(json.dumps({"tags": change, "more": 1}))
    return tmp_path


def names(dataset: Dataset, record_id: str) -> set[str]:
    return {dataset.classes[k] for k in dataset.records[record_id].tags}


def test_masks_are_read_in_the_classes_of_the_data(folder, dataset):
    mask = read_corrections(folder, dataset).read(FIRST)
    robot, owl = (dataset.classes.index(name) + 1 for name in ("robot", "owl"))
    assert mask[0].tolist() == [robot, owl, 255, *[0] * 61]


def test_tags_change_as_told_and_as_masks_show(folder, dataset):
    other = corrected(dataset, read_corrections(folder, dataset).tags)
    assert names(other, FIRST) == {"deer", "owl", "robot"}
    assert names(other, SECOND) == {"panda"}
    assert names(dataset, SECOND) == {"fox"}
    assert "of 2 images corrected" in other.tags_from
    assert other.fingerprint() != dataset.fingerprint()


def test_what_is_corrected_is_not_unknown_any_more(bare):
    """The bare scenes say nothing of one image."""
    dataset = open_dataset(bare)
    record = dataset.records[FIRST]
    unknown = tuple(range(len(dataset.classes)))
    object.__setattr__(record, "unknown", unknown)
    other = corrected(dataset, {FIRST: {"added": ["owl"], "removed": ["fox"]}})
    assert names(other, FIRST) == {"owl"}
    left = {dataset.classes[k] for k in other.records[FIRST].unknown}
    assert left == set(dataset.classes) - {"owl", "fox"}


def test_images_that_the_data_lack_train_too(folder, dataset):
    """One of them with a mask, of the other only one tag is known."""
    image = dataset.records[FIRST].image
    for name in ("new", "other"):
        (folder / f"{name}{image.suffix}").write_bytes(image.read_bytes())
    mask = np.full(SIZE, 1, np.uint8)
    write_index_png(folder / "masks" / "new.png", mask)
    content = {
        "tags": {"other": {"added": ["owl"], "removed": ["fox"]}},
        "images": {n: {"image": f"{n}{image.suffix}"} for n in ("new", "other")},
    }
    (folder / "corrections.json").write_text(json.dumps(content))
    corrections = read_corrections(folder, dataset)
    more = corrected(extended(dataset, corrections, "train"), corrections.tags)
    assert more.lists["train"][-2:] == ("new", "other")
    assert more.lists["all"][-2:] == ("new", "other")
    assert (names(more, "new"), more.records["new"].unknown) == ({"robot"}, ())
    assert names(more, "other") == {"owl"}
    assert len(more.records["other"].unknown) == len(dataset.classes) - 2
    masks = choose_masks(more, None, corrections, "train", "val")
    assert masks is not None
    assert masks.ids == {FIRST, "new"}
    # Opened again, the data set has none of them.
    assert corrected(dataset, corrections.tags).records.keys() == dataset.records.keys()


@pytest.mark.parametrize("name", ["../outside.jpg", "nowhere.jpg"])
def test_images_outside_of_the_folder_are_refused(folder, dataset, name):
    content = {"images": {"new": {"image": name}}}
    (folder / "corrections.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is not in"):
        read_corrections(folder, dataset)


def test_tags_that_say_the_same_change_nothing(dataset):
    assert corrected(dataset, {SECOND: {"added": ["fox"], "removed": ["owl"]}}) is dataset


def other_size(folder: Path) -> None:
    write_index_png(folder / "masks" / f"{FIRST}.png", np.zeros((8, 9), np.uint8))


def other_value(folder: Path) -> None:
    write_index_png(folder / "masks" / f"{FIRST}.png", np.full(SIZE, 3, np.uint8))


def other_image(folder: Path) -> None:
    write_index_png(folder / "masks" / "nobody.png", np.zeros((8, 9), np.uint8))


def removed_and_shown(folder: Path) -> None:
    change = {"tags": {FIRST: {"added": [], "removed": ["owl"]}}}
    (folder / "corrections.json").write_text(json.dumps(change))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_size, "the mask of 'scene_00001' is 9x8, its image 64x51"),
        (other_value, r"holds the values \[3\]"),
        (other_image, "corrects 1 images that .* lacks: nobody"),
        (removed_and_shown, "shows owl, which corrections.json removes"),
        (lambda folder: (folder / "classes.txt").unlink(), "has masks and no classes.txt"),
        (
            lambda folder: (folder / "classes.txt").write_text("robot\nowls\n"),
            "has the class 'owls', which .* lacks",
        ),
        (lambda folder: (folder / "corrections.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "corrections.json").write_text("{"), "cannot be read"),
        (
            lambda folder: (folder / "corrections.json").write_text(
                json.dumps({"tags": {FIRST: {"added": ["owls"]}}})
            ),
            "has the class 'owls'",
        ),
        (
            lambda folder: (folder / "corrections.json").write_text(
                json.dumps({"tags": {FIRST: {"added": ["fox"], "removed": ["fox"]}}})
            ),
            "adds and removes a class of 'scene_00001'",
        ),
        (lambda folder: (folder / "masks" / "notes.txt").touch(), "files that are no PNG"),
    ],
)
def test_what_cannot_be_is_told(
    folder, dataset, spoil: Callable[[Path], object], message, one_process
):
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        read_corrections(folder, dataset)
    assert caught.value.expected


def test_a_folder_without_corrections_is_refused(tmp_path, dataset):
    with pytest.raises(DataError, match="has no corrections"):
        read_corrections(tmp_path, dataset)
    with pytest.raises(DataError, match="is not a folder"):
        read_corrections(tmp_path / "nowhere", dataset)


# Which masks train


def test_a_list_or_a_file_of_ids_says_which_masks_train(dataset, tmp_path):
    every = choose_masks(dataset, "train", None, "train", "val")
    assert every is not None
    assert [record.id for record in every.images] == list(dataset.lists["train"])
    path = tmp_path / "few.txt"
    path.write_text(f"{SECOND}\n\n{FIRST}\n{SECOND}\n")
    few = choose_masks(dataset, str(path), None, "train", "val")
    assert few is not None
    assert [record.id for record in few.images] == [FIRST, SECOND]
    record = dataset.records[FIRST]
    assert np.array_equal(few.read_mask(record), dataset.read_mask(record))
    assert not few.has_mask(dataset.records["scene_00000"])
    assert choose_masks(dataset, None, None, "train", "val") is None


def test_a_corrected_mask_goes_before_the_one_of_the_data(folder, dataset):
    corrections = read_corrections(folder, dataset)
    masks = choose_masks(dataset, "train", corrections, "train", "val")
    assert masks is not None
    assert np.array_equal(masks.read_mask(dataset.records[FIRST]), corrections.read(FIRST))
    alone = choose_masks(dataset, None, corrections, "train", "val")
    assert alone is not None
    assert alone.ids == {FIRST}
    before = alone.mask_fingerprint(alone.images)
    other_mask = np.zeros(SIZE, np.uint8)
    write_index_png(folder / "masks" / f"{FIRST}.png", other_mask)
    assert alone.mask_fingerprint(alone.images) != before


def test_tags_alone_are_no_masks(folder, dataset):
    (folder / "masks" / f"{FIRST}.png").unlink()
    corrections = read_corrections(folder, dataset)
    assert choose_masks(dataset, None, corrections, "train", "val") is None


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([FIRST, IN_VAL], "1 images whose masks are to train are in 'val', which is measured"),
        (["nobody"], "names 1 images that .* lacks: nobody"),
        ([], "names no image"),
    ],
)
def test_lists_that_cannot_train_are_refused(dataset, tmp_path, ids, message):
    path = tmp_path / "few.txt"
    path.write_text("\n".join(ids))
    with pytest.raises(DataError, match=message):
        choose_masks(dataset, str(path), None, "train", "val")


def test_images_outside_of_the_training_list_are_refused(dataset, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text(IN_VAL)
    with pytest.raises(DataError, match="are not in the training list 'train'"):
        choose_masks(dataset, str(path), None, "train", None)


def test_a_name_that_is_neither_list_nor_file_is_told(dataset):
    with pytest.raises(DataError, match="neither a list of") as caught:
        choose_masks(dataset, "trian", None, "train", "val")
    assert "train" in caught.value.expected


def test_no_mask_at_all_is_refused(dataset, tmp_path):
    for record in dataset.records.values():
        object.__setattr__(record, "mask", None)
    with pytest.raises(DataError, match="none of the 8 images of --masks train has a true mask"):
        choose_masks(dataset, "train", None, "train", "val")


def test_a_mask_of_another_size_is_refused(dataset, tmp_path, one_process):
    path = tmp_path / "mask.png"
    write_index_png(path, np.zeros((8, 9), np.uint8))
    object.__setattr__(dataset.records[FIRST], "mask", path)
    with pytest.raises(DataError, match="the mask of 'scene_00001' is 9x8, its image 64x51"):
        choose_masks(dataset, "train", None, "train", "val")
