"""The layout of MVTec AD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.checks.check import check
from trainer.checks.preflight import preflight
from trainer.cli import app
from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset, reopen_data
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

IMAGES = (
    *(f"train/good/{n:03}.png" for n in range(4)),
    *(f"test/good/{n:03}.png" for n in range(2)),
    *(f"test/broken/{n:03}.png" for n in range(4)),
    *(f"test/contamination/{n:03}.png" for n in range(4)),
)


@pytest.fixture
def bottle(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    for n, name in enumerate(IMAGES):
        picture(root / name, np.random.default_rng(n).integers(0, 255, (40, 48, 3), np.uint8))
        if "test" in name and "good" not in name:
            mask(root, name)
    return root


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(root: Path, name: str, suffix: str = "_mask") -> None:
    pixels = np.zeros((40, 48), np.uint8)
    pixels[5:9, 10:20] = 255
    place = root / name.replace("test", "ground_truth")
    picture(place.with_name(f"{place.stem}{suffix}.png"), pixels)


def names(data: Dataset, key: str) -> list[str]:
    return [data.classes[k] for k in data.records[key].tags]


def test_defects_are_classes_and_good_images_negatives(bottle: Path) -> None:
    data = open_dataset(bottle)
    assert (data.format, data.classes) == ("mvtec", ("broken", "contamination"))
    assert {name: len(ids) for name, ids in data.lists.items()} == {
        "train": 4,
        "test": 10,
        "all": 14,
    }
    assert names(data, "test__broken__000") == ["broken"]
    assert names(data, "test__contamination__003") == ["contamination"]
    assert all(record.is_negative for record in data.subset("train"))
    assert data.records["test__good__000"].is_negative
    assert (data.tags_from, data.masks_from) == ("the folder of each image", "ground_truth")


def test_masks_say_where_the_defect_of_the_tag_is(bottle: Path) -> None:
    data = open_dataset(bottle)
    for key, value in (("test__broken__000", 1), ("test__contamination__000", 2)):
        label = data.read_mask(data.records[key])
        assert np.unique(label).tolist() == [0, value]
        assert (label == value).sum() == 40
    assert not data.read_mask(data.records["test__good__000"]).any()
    assert len(data.masked("test")) == 10
    assert data.masked("train") == []
    manifest = {"config": {"data": {}}, "data": {"path": str(bottle)}}
    assert reopen_data(manifest).read_mask(data.records["test__broken__000"]).max() == 1


def test_the_training_list_has_no_class_and_split_makes_another(
    bottle: Path, tmp_path: Path
) -> None:
    command = f"wsss-trainer split {bottle}"
    facts = preflight(open_dataset(bottle), "train", (), False, False)
    for problems in (facts.problems, check(bottle).problems):
        (problem,) = (p for p in problems if p.kind == "all-negative")
        assert command in problem.hint
        assert "'test'" in problem.hint
    with pytest.raises(DataError, match="cannot be used"):
        facts.raise_errors()
    lists = tmp_path / "lists.csv"
    result = CliRunner().invoke(app, ["split", str(bottle), "--val", "0.5", "--out", str(lists)])
    assert result.exit_code == 0, result.output
    divided = open_dataset(bottle, config=DataConfig(lists=str(lists)))
    assert set(divided.lists) == {"train", "val", "all"}
    for name in ("train", "val"):
        tags = [record.tags for record in divided.subset(name)]
        assert {(), (0,), (1,)} == set(tags)
        assert len(divided.masked(name)) == len(tags)
    preflight(divided, "train", ("val",), False, True).raise_errors()


def test_check_takes_the_masks_for_what_they_are(bottle: Path) -> None:
    report = check(bottle)
    kinds = {problem.kind for problem in report.problems}
    assert not {kind for kind in kinds if kind.startswith("mask") or kind == "tag-unmasked"}


@pytest.mark.parametrize(("negative", "suffix"), [("ok", ""), ("good", "_mask")])
def test_data_sets_that_follow_it(tmp_path: Path, negative: str, suffix: str) -> None:
    root, pixels = tmp_path / "product", np.zeros((40, 48, 3), np.uint8)
    for name in (f"train/{negative}/a.png", f"test/{negative}/a.png", "test/ko/a.png"):
        picture(root / name, pixels)
    picture(root / "train/ko/a.png", pixels)
    mask(root, "test/ko/a.png", suffix)
    data = open_dataset(root)
    assert data.classes == ("ko",)
    assert data.records["train__ko__a"].mask is None
    assert data.read_mask(data.records["test__ko__a"]).max() == 1


def test_masks_of_no_image_are_named(bottle: Path) -> None:
    mask(bottle, "test/broken/900.png")
    (note,) = (note for note in open_dataset(bottle).notes if "belong to no image" in note)
    assert "ground_truth/broken/900_mask.png" in note


def test_the_folder_above_the_categories_says_what_to_pass(bottle: Path) -> None:
    with pytest.raises(DataError) as error:
        open_dataset(bottle.parent)
    assert f"pass a folder below it that is a data set: {bottle}" in error.value.hint
