"""``image_labels.csv`` of a VOC folder: its names, columns and cells."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.errors import DataError

NAMES = ("my cow 1", "Kühe", "2007_000032", "a.v2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (4, 3)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets" / "Segmentation" / "Train.txt").write_text("\n".join(NAMES))
    classes = [{"name": "Cat", "voc_index": 1}, {"name": "dog", "voc_index": 2}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    return tmp_path


def tags(data: Dataset) -> dict[str, list[str]]:
    return {i: [data.classes[k] for k in record.tags] for i, record in data.records.items()}


@pytest.mark.parametrize(
    "shape",
    [
        "{}",
        "{}.jpg",
        "{}.JPG",
        "JPEGImages/{}.jpg",
        "JPEGImages\\{}.jpg",
        "..\\..\\VOC\\JPEGImages\\{}.jpg",
        "C:\\data\\{}.jpg",
        "/home/me/VOC2012/JPEGImages/{}.jpg",
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_with_spaces_slashes_and_suffixes(root: Path, shape: str, form: str) -> None:
    rows = "".join(f"{shape.format(name)},{n % 2},1\n" for n, name in enumerate(NAMES))
    text = unicodedata.normalize(form, f"image_id,cat,Dog\n{rows}")
    (root / "image_labels.csv").write_text(text, encoding="utf-8")
    data = open_dataset(root)
    assert tags(data) == {
        name: ["Cat", "dog"] if n % 2 else ["dog"] for n, name in enumerate(NAMES)
    }
    assert data.notes == ()
    assert data.lists["train"] == NAMES


def test_decomposed_file_names(root: Path) -> None:
    folder = root / "JPEGImages"
    (folder / "Kühe.jpg").rename(folder / unicodedata.normalize("NFD", "Kühe.jpg"))
    (root / "image_labels.csv").write_text("image_id,Cat,dog\nKühe,1,0\n")
    assert tags(open_dataset(root))["Kühe"] == ["Cat"]


def test_rows_without_an_image_and_images_without_a_row_are_named(root: Path) -> None:
    (root / "image_labels.csv").write_text("image_id,Cat,dog\nmy cow 1,1,0\nmy,0,1\n")
    notes = open_dataset(root).notes
    assert "1 rows of image_labels.csv name no listed image: my" in notes
    assert any(note.startswith("3 listed images have no row in image_labels.csv") for note in notes)


def test_cells_that_are_neither_yes_nor_no_are_one_error(root: Path) -> None:
    rows = "".join(f"{name},1,2\n" for name in NAMES)
    (root / "image_labels.csv").write_text(f"image_id,Cat,dog\n{rows}")
    problems: list[DataError] = []
    open_dataset(root, problems)
    assert len(problems) == 1
    assert "4 cells that are neither 0 nor 1" in problems[0].found


def test_files_in_jpegimages_that_are_not_read_are_named(root: Path) -> None:
    (root / "image_labels.csv").write_text("image_id,Cat,dog\nmy cow 1,1,0\n")
    (root / "JPEGImages" / "x.HEIC").write_bytes(b"")
    os.mkfifo(root / "JPEGImages" / "pipe.jpg")
    data = open_dataset(root)
    assert "pipe" not in data.records
    assert any("x.HEIC" in note for note in data.notes)
    assert any("pipe.jpg" in note for note in data.notes)
