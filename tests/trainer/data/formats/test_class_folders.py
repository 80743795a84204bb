"""One folder a class, and folders that are nearly so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.formats.convert import convert
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

CLASSES = ("cat/a.jpg", "cow/b.jpg", "dog/c.JPG")


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        elif name.lower().endswith((".jpg", ".png", ".jfif")):
            Image.new("RGB", (4, 3)).save(root / name, "PNG")
        else:
            (root / name).write_text("x")
    return root


def tags(data: Dataset) -> dict[str, list[str]]:
    return {i: [data.classes[k] for k in record.tags] for i, record in data.records.items()}


EXPECTED = {"cat__a": ["cat"], "cow__b": ["cow"], "dog__c": ["dog"]}


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX/cat/._a.jpg",
        "__MACOSX/cat/a.jpg",
        "empty/",
        "docs/readme.md",
        "runs/default/manifest.json",
        "runs/default/cams/a.png",
        "manifest.json",
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/x.jpg",
        "cat/Thumbs.db",
        "README.md",
    ],
)
def test_what_counts_for_nothing(tmp_path: Path, name: str) -> None:
    if name.startswith("runs"):
        make(tmp_path, "runs/default/manifest.json", "runs/default/cams/a.png")
    data = open_dataset(make(tmp_path, *CLASSES, name))
    assert tags(data) == EXPECTED
    said = "\n".join(data.notes)
    first = name.split("/")[0]
    assert first in said or first in ("manifest.json", ".ipynb_checkpoints", "cat", "README.md")
    assert "@eaDir" in said or "@eaDir" not in name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((*CLASSES, "banner.png"), "images beside the folders of classes: banner.png"),
        ((*CLASSES, "sheep/2024/d.jpg"), "images only in folders below sheep"),
        ((*CLASSES, "docs/figures/d.jpg"), "images only in folders below docs"),
        ((*CLASSES, "sheep/d.HEIC"), "no picture that can be read (HEIC? permission?) in sheep"),
        (("cat/a.jpg", "cat/b.jpg"), "images of one class only: cat"),
        (("train/cat/a.jpg", "val/cat/b.jpg"), "images of one class only: train/cat, val/cat"),
        (("train/a.jpg", "val/b.jpg"), "images of no class in train, val"),
        (
            ("train/cat/a.jpg", "train/dog/b.jpg", "docs/c.jpg"),
            "beside the lists train stand other folders with images: docs",
        ),
        (("animals/cat/a.jpg", "animals/dog/b.jpg"), "pass a folder below it"),
        (("a.jpg", "tags.csv"), "1 images are there, and nothing says what they show"),
        (("data.yaml", "images/a.jpg", "labels/a.txt"), "this looks like YOLO"),
        (("data.yaml", "train/images/a.jpg", "train/labels/a.txt"), "this looks like YOLO"),
        (("train/images/a.jpg", "train/masks/a.png"), "nothing says what they show"),
        (("image/a.jpg", "mask/a.png"), "nothing says what they show"),
    ],
)
def test_what_is_in_the_way_is_named(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match="no data set that can be recognised") as caught:
        open_dataset(make(tmp_path, *names))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["tags.csv", "train.tsv", "train/_classes.csv"])
def test_a_table_of_another_name_is_pointed_at(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.jpg", "train/b.jpg")
    (tmp_path / name).write_text("filename,tag\na.jpg,cat\n")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert f"a table of images is there ({name}): save it as" in str(caught.value)


@pytest.mark.parametrize("outer", [("Train", "Val"), ("training", "valid"), ("TRAIN", "Testing")])
def test_lists_of_any_spelling(tmp_path: Path, outer: tuple[str, str]) -> None:
    train, other = outer
    names = (f"{train}/cat/a.jpg", f"{train}/dog/b.jpg", f"{other}/Cat/c.jpg", "docs/x.txt")
    data = open_dataset(make(tmp_path, *names))
    assert data.classes == ("Cat", "dog") or data.classes == ("cat", "dog")
    assert data.lists[data.default_list("train") or ""] == (f"{train}__cat__a", f"{train}__dog__b")
    assert data.lists[other.lower()] == (f"{other}__Cat__c",)
    assert any("are one class" in note for note in data.notes)


def test_background_is_no_class(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, "cat/a.jpg", "Background/b.jpg", "__ignore__/c.jpg"))
    assert tags(data) == {"Background__b": [], "cat__a": ["cat"]}
    assert any("'Background' show none of the classes" in note for note in data.notes)
    assert any("'__ignore__' are left out" in note for note in data.notes)


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, *(f"{n}/x.png" for n in range(12))))
    assert data.classes == tuple(map(str, range(12)))


def test_kinds_that_are_not_read_are_named_and_jfif_is_read(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, *CLASSES, "cat/d.HEIC", "dog/e.gif", "cow/f.jfif"))
    assert set(data.records) == {*EXPECTED, "cow__f"}
    assert any(note.endswith("are left out: cat/d.HEIC, dog/e.gif") for note in data.notes)


def test_linked_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "pool/cat/a.jpg", "pool/dog/b.jpg", "data/cow/c.jpg")
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "pool" / name)
    (tmp_path / "data" / "dog" / "loop").symlink_to(tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    assert set(data.records) >= {"cat__a", "cow__c", "dog__b"}


def test_a_class_folder_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *CLASSES)
    real = os.scandir
    listing = Path.iterdir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "cow":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(
        Path, "iterdir", lambda self: refuse(self) if self.name == "cow" else listing(self)
    )
    with pytest.raises(DataError, match="recognised") as caught:
        open_dataset(tmp_path)
    assert "folders that cannot be opened" in str(caught.value)


def test_a_folder_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="cannot be opened"):
        open_dataset(tmp_path)


def test_masks_beside_their_images_are_no_images(tmp_path: Path) -> None:
    names = (
        "cyst/c (1).png",
        "cyst/c (1)_mask.png",
        "cyst/c (1)_mask_1.png",
        "cyst/alone_mask.png",
    )
    data = open_dataset(make(tmp_path, *names, "tumour/t.jpg", "tumour/t_gt.png"))
    assert tags(data) == {
        "cyst__c (1)": ["cyst"],
        "cyst__alone_mask": ["cyst"],
        "tumour__t": ["tumour"],
    }
    assert any(note.startswith("3 masks beside their images") for note in data.notes)


def test_classes_may_begin_like_lists(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, "valve_open/a.jpg", "valve_closed/b.jpg"))
    assert data.classes == ("valve_closed", "valve_open")
    assert set(data.lists) == {"all"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("photos.zip", "PK", "unpack photos.zip"),
        ("a.json", '{"version": "5", "shapes": []}', "annotations of labelme"),
        ("annotations.xml", "<annotations><image id='0'/></annotations>", "of CVAT for images"),
        ("p.json", '[{"annotations": [{"completed_by": 1}]}]', "annotations of Label Studio"),
        ("via.json", '{"a": {"regions": [{"shape_attributes": 1}]}}', "annotations of VIA"),
    ],
)
def test_annotations_of_tools_are_pointed_at(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (make(tmp_path, "images/a.jpg") / name).write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert message in caught.value.hint


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is not a folder") as caught:
        open_dataset(tmp_path / "photos.zip")
    assert f"pass its folder, {tmp_path}, or unpack it" in caught.value.hint


def test_a_table_that_is_not_read_is_named(tmp_path: Path) -> None:
    make(tmp_path, *CLASSES)
    (tmp_path / "metadata.csv").write_text("file_name,label\ncat/a.jpg,x\n")
    data = open_dataset(tmp_path)
    assert tags(data) == EXPECTED
    assert any(note.startswith("metadata.csv is not read") for note in data.notes)


def test_a_class_called_like_negatives_is_not_written_as_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "good/a.jpg", "dog/b.jpg")
    config = DataConfig(negative="none")
    with pytest.raises(DataError, match="1 class names cannot be those of folders: 'good'"):
        convert(tmp_path, tmp_path.with_name("new"), "folders", config=config)
