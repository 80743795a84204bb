from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.coco.classes import COCO_CLASSES
from trainer.data.dataset import Dataset, read_index_png
from trainer.data.formats import convert as module
from trainer.data.formats.class_folders import FoldersWriter
from trainer.data.formats.convert import convert, writers
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.data.palette import voc_palette
from trainer.errors import ConfigError, DataError, RunError, TargetError

SIZE = (12, 9)
NAMES = ("2007_000032", "2007_000033", "2007_000039", "2007_000042", "2007_000061")


def voc(root: Path) -> Path:
    """Five images: two classes with a border; a tag that the mask lacks; background only; no mask;
    in no train list.
    """
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(
            root / f"JPEGImages/{name}.jpg"
        )
    lists = {"train": NAMES[:2], "train_aug": NAMES[:4], "val": NAMES[4:]}
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, ids in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(reversed(ids)))
    table = {
        "classes": [{"name": "cat", "voc_index": 8}, {"name": "dog", "voc_index": 12}],
        "ignore": 255,
    }
    (root / "classes.json").write_text(json.dumps(table))
    tags = ("1,1", "1,1", "0,0", "0,1", "0,1")
    rows = "".join(f"{name},{flags}\n" for name, flags in zip(NAMES, tags, strict=True))
    (root / "image_labels.csv").write_text(f"image_id,cat,dog\n{rows}")
    for name, value in zip(NAMES, (8, 8, 0, None, 12), strict=True):
        if value is not None:
            label = np.zeros(SIZE[::-1], np.uint8)
            label[2:6, 3:7], label[6, 3:7] = value, 255 if value else 0
            if name == NAMES[0]:
                label[0, :5] = 12
            folder = root / ("SegmentationClassAug" if name == NAMES[1] else "SegmentationClass")
            folder.mkdir(exist_ok=True)
            Image.fromarray(label).save(folder / f"{name}.png")
    return root


def facts(data: Dataset, maskless: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything that a conversion has to keep."""
    masks = {
        i: data.read_mask(r).tolist()
        for i, r in data.records.items()
        if data.has_mask(r) and i not in maskless
    }
    return {
        "classes": data.classes,
        "tags": {i: record.tags for i, record in data.records.items()},
        "lists": {name: set(ids) for name, ids in data.lists.items()},
        "masks": masks,
        "pixels": {i: record.image.read_bytes() for i, record in data.records.items()},
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return voc(tmp_path / "source")


@pytest.mark.parametrize("form", ["voc", "csv"])
def test_nothing_is_lost_in_voc_and_csv(source: Path, tmp_path: Path, form: str) -> None:
    summary = convert(source, tmp_path / "new", form)
    old, new = open_dataset(source), open_dataset(tmp_path / "new")
    assert facts(new) == facts(old)
    assert (summary["images"], summary["masks"], summary["kept"], summary["classes"]) == (
        5,
        4,
        0,
        2,
    )
    assert json.loads((tmp_path / "new" / "convert.json").read_text())["done"] is True
    if form == "voc":
        assert new.mask_values == (8, 12)
        assert new.lists == old.lists
        assert (
            new.records[NAMES[1]].mask
            == tmp_path / "new" / "SegmentationClassAug" / f"{NAMES[1]}.png"
        )
        assert summary["lost"] == []


def test_voc_to_coco_and_back(source: Path, tmp_path: Path) -> None:
    summary = convert(source, tmp_path / "coco", "coco", "hardlink")
    assert summary["lost"] == []
    old, coco = facts(open_dataset(source)), facts(open_dataset(tmp_path / "coco"))
    assert coco == old
    without = DataConfig(keep_empty=False)
    assert NAMES[2] not in open_dataset(tmp_path / "coco", config=without).records
    convert(tmp_path / "coco", tmp_path / "back", "voc", "symlink")
    assert facts(open_dataset(tmp_path / "back")) == old
    for name in (NAMES[0], NAMES[4]):
        values = [
            read_index_png(root / "SegmentationClass" / f"{name}.png")
            for root in (source, tmp_path / "back")
        ]
        assert (values[0] == values[1]).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco_as_others_read_it(source: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    convert(source, tmp_path / "coco", "coco", "none")
    coco = COCO(str(tmp_path / "coco" / "annotations" / "instances_train_aug.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    (image,) = (i for i in coco.loadImgs(coco.getImgIds()) if i["file_name"] == f"{NAMES[0]}.jpg")
    assert (image["height"], image["width"]) == (9, 12)
    notes = coco.loadAnns(coco.getAnnIds(image["id"]))
    assert [(n["category_id"], n["iscrowd"], n["area"], n["bbox"]) for n in notes] == [
        (1, 0, 16, [3, 2, 4, 4]),
        (2, 0, 5, [0, 0, 5, 1]),
        (1, 1, 4, [3, 6, 4, 1]),
    ]
    assert coco.annToMask(notes[0]).sum() == 16
    assert len({note["id"] for note in coco.dataset["annotations"]}) == len(
        coco.dataset["annotations"]
    )
    assert not (tmp_path / "coco" / "images").exists()


def test_coco_to_voc_with_gaps_crowds_polygons_and_empty_images(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name in ("a", "b"):
        Image.new("L", SIZE, 90).save(root / "images" / f"{name}.jpg")
    polygon = [[1, 1, 5, 1, 5, 5, 1, 5]]
    runs = {"size": [9, 12], "counts": [99, 9]}
    table = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 12} for n in ("a", "b")
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}],
        "annotations": [
            {"image_id": "a", "category_id": 90, "segmentation": polygon, "iscrowd": 0},
            {"image_id": "a", "category_id": 3, "segmentation": runs, "iscrowd": 1},
        ],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(table))
    config = DataConfig(crowd="ignore")
    summary = convert(root, tmp_path / "voc", "voc", config=config)
    new = open_dataset(tmp_path / "voc")
    assert (new.classes, new.mask_values) == (("ant", "zebra"), (1, 2))
    assert {i: r.tags for i, r in new.records.items()} == {"a": (1,), "b": ()}
    mask = new.read_mask(new.records["a"])
    assert (mask[:, 11] == 255).all()
    assert (mask == 2).sum() == 16
    assert not new.read_mask(new.records["b"]).any()
    assert summary["lost"] == ["objects of a class become one region: instances, boxes and crowds"]
    convert(root, tmp_path / "dropped", "voc", config=DataConfig(keep_empty=False))
    assert list(open_dataset(tmp_path / "dropped").records) == ["a"]


def test_cocos_classes_keep_cocos_ids(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "classes.txt").write_text("\n".join(COCO_CLASSES))
    (tmp_path / "source" / "labels.csv").write_text("image,tag\na.png,toothbrush\n")
    convert(tmp_path / "source", tmp_path / "coco", "coco")
    table = json.loads((tmp_path / "coco" / "annotations" / "instances_all.json").read_text())
    assert (table["categories"][11], table["categories"][79]) == (
        {"id": 13, "name": "stop sign"},
        {"id": 90, "name": "toothbrush"},
    )
    data = open_dataset(tmp_path / "coco")
    assert data.classes == COCO_CLASSES
    assert [data.has_mask(record) for record in data.records.values()] == [False]


def test_tags_that_only_the_mask_has_are_said(source: Path, tmp_path: Path) -> None:
    rows = (source / "image_labels.csv").read_text().replace(f"{NAMES[4]},0,1", f"{NAMES[4]},1,0")
    (source / "image_labels.csv").write_text(rows)
    assert (
        "1 images get tags that only their mask has"
        in convert(source, tmp_path / "coco", "coco")["lost"]
    )


def test_colours_become_indices(source: Path, tmp_path: Path) -> None:
    old = facts(open_dataset(source))["masks"]
    for path in source.glob("SegmentationClass*/*.png"):
        Image.fromarray(voc_palette()[read_index_png(path)]).save(path)
    with pytest.raises(DataError, match="3 of 5 images could not be converted") as error:
        convert(source, tmp_path / "new", "voc")
    assert "data.masks=colours" in error.value.hint
    colours = DataConfig(masks="colours")
    convert(source, tmp_path / "fixed", "voc", config=colours)
    assert facts(open_dataset(tmp_path / "fixed"))["masks"] == old
    summary = convert(source / "SegmentationClass", tmp_path / "masks", "masks", config=colours)
    assert (summary["masks"], summary["kept"]) == (3, 0)
    assert read_index_png(tmp_path / "masks" / f"{NAMES[4]}.png").max() == 255
    assert (
        convert(source / "SegmentationClass", tmp_path / "masks", "masks", config=colours)["kept"]
        == 3
    )
    with pytest.raises(DataError, match="holds no PNG"):
        convert(source / "JPEGImages", tmp_path / "none", "masks")


@pytest.mark.parametrize("images", ["copy", "hardlink", "symlink"])
def test_ways_of_placing_images(source: Path, tmp_path: Path, images: Any) -> None:
    convert(source, tmp_path / "new", "voc", images)
    old, new = (root / "JPEGImages" / f"{NAMES[0]}.jpg" for root in (source, tmp_path / "new"))
    assert old.read_bytes() == new.read_bytes()
    assert new.is_symlink() == (images == "symlink")
    assert old.samefile(new) == (images != "copy")
    assert convert(source, tmp_path / "new", "voc", images, force=True)["kept"] == 0
    assert list((tmp_path / "new").rglob("*.part")) == []


def test_an_interrupted_conversion_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    real = module.place_image

    def fail(old: Path, *rest: Any) -> None:
        if old.stem == NAMES[3]:
            raise KeyboardInterrupt
        real(old, *rest)

    monkeypatch.setattr(module, "place_image", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(source, new, "voc")
    assert not (new / "image_labels.csv").exists()
    monkeypatch.setattr(module, "place_image", real)
    before = (new / "JPEGImages" / f"{NAMES[0]}.jpg").stat().st_mtime_ns
    assert convert(source, new, "voc")["kept"] == 3
    assert (new / "JPEGImages" / f"{NAMES[0]}.jpg").stat().st_mtime_ns == before
    assert facts(open_dataset(new)) == facts(open_dataset(source))


def test_nothing_is_overwritten_without_force(source: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / "JPEGImages").mkdir(parents=True)
    mine = new / "JPEGImages" / f"{NAMES[0]}.jpg"
    mine.write_text("mine")
    with pytest.raises(TargetError, match="holds other things") as error:
        convert(source, new, "voc")
    assert "--force" in error.value.hint
    assert [path.name for path in new.iterdir()] == ["JPEGImages"]
    convert(source, new, "voc", force=True)
    assert mine.read_text(errors="replace") != "mine"
    convert(source, tmp_path / "other", "voc")
    with pytest.raises(TargetError, match="holds other things"):
        convert(source, tmp_path / "other", "csv")
    for inside in (source / "new", source, tmp_path):
        with pytest.raises(TargetError, match="which is read"):
            convert(source, inside, "voc", force=True)


def test_a_forced_conversion_that_was_interrupted_keeps_no_older_file(
    source: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    (new / "JPEGImages").mkdir(parents=True)
    (new / "JPEGImages" / f"{NAMES[4]}.jpg").write_text("mine")
    damaged = source / "SegmentationClass" / f"{NAMES[0]}.png"
    whole = damaged.read_bytes()
    damaged.write_text("no PNG")
    with pytest.raises(DataError, match="1 of 5 images could not be converted"):
        convert(source, new, "voc", force=True)
    (new / "JPEGImages" / f"{NAMES[4]}.jpg").write_text("mine again")
    damaged.write_bytes(whole)
    assert convert(source, new, "voc")["kept"] == 0
    assert facts(open_dataset(new)) == facts(open_dataset(source))


def test_a_mask_of_another_size_is_refused(source: Path, tmp_path: Path) -> None:
    Image.new("L", (3, 4)).save(source / "SegmentationClass" / f"{NAMES[0]}.png")
    with pytest.raises(DataError, match=f"mask of {NAMES[0]} has 3x4 pixels") as error:
        convert(source, tmp_path / "new", "coco")
    assert "12x9" in error.value.expected


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EXDEV, "--images copy"), (errno.ENOSPC, "needs none")]
)
def test_links_and_copies_that_fail(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(RunError, match="cannot be made from") as error:
        convert(source, tmp_path / "new", "voc", "hardlink" if number == errno.EXDEV else "copy")
    assert hint in error.value.hint
    assert list((tmp_path / "new").rglob("*.part")) == []


def test_too_little_space_is_found_before(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(RunError, match="converted images and masks need about"):
        convert(source, tmp_path / "new", "voc")
    assert list((tmp_path / "new").iterdir()) == []


def test_images_in_no_list_and_lists_that_cannot_be_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(source / f"{name}.png")
    (source / "labels.csv").write_text("image,tag,split\na,x,train\nb,x,\n")
    convert(source, tmp_path / "voc", "voc")
    assert open_dataset(tmp_path / "voc").lists == {
        "train": ("a",),
        "unlisted": ("b",),
        "all": ("a", "b"),
    }
    (source / "labels.csv").write_text("image,tag,split\na,x,my list\nb,x,\n")
    with pytest.raises(DataError, match="list 'my list' cannot be the name of a file"):
        convert(source, tmp_path / "other", "voc")
    (source / "labels.csv").write_text("image,tag,split\na,x,../train\nb,x,\n")
    with pytest.raises(DataError, match=r"lists whose names .* \(1\): \.\./train"):
        convert(source, tmp_path / "other", "voc")


def test_class_names_that_a_table_cannot_hold(source: Path, tmp_path: Path) -> None:
    (source / "classes.json").write_text(
        json.dumps(
            {"classes": [{"name": "a;b", "voc_index": 8}, {"name": "image", "voc_index": 12}]}
        )
    )
    (source / "image_labels.csv").write_text(f"image_id,a;b,image\n{NAMES[0]},1,0\n")
    with pytest.raises(DataError, match="'a;b' cannot stand in a cell"):
        convert(source, tmp_path / "csv", "csv")
    with pytest.raises(DataError, match="a class is called 'image'"):
        convert(source, tmp_path / "voc", "voc")


@pytest.mark.parametrize(
    "tag",
    [
        "../../../escaped",
        "/tmp/escaped",
        "cow/calf",
        "..",
        "CON",
        "a.",
        ".hidden",
        "x" * 300,
        "masks",
    ],
)
def test_classes_that_cannot_be_folders(tmp_path: Path, tag: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(source / f"{name}.png")
    (source / "labels.csv").write_text(f"image,tag\na,{tag}\nb,cat\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="1 class names cannot be those of folders") as error:
        convert(source, tmp_path / "new", "folders")
    assert "--to csv" in error.value.hint
    assert sorted(tmp_path.rglob("*")) == before
    assert convert(source, tmp_path / "csv", "csv")["images"] == 2


def test_classes_that_are_one_folder_elsewhere(source: Path) -> None:
    data = open_dataset(source)
    records = {i: replace(r, tags=(n % 2,)) for n, (i, r) in enumerate(data.records.items())}
    data = replace(data, classes=("Küh", "ku\u0308H"), records=records)
    with pytest.raises(DataError, match="one folder on many systems"):
        FoldersWriter(data).check()


def test_images_that_are_one_file_on_a_disk_that_knows_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "A"):
        Image.new("RGB", (4, 4)).save(source / f"{name}.png")
    (source / "labels.csv").write_text("image,tag\na,cow\nA,cat\n")
    assert convert(source, tmp_path / "new", "voc")["images"] == 2
    monkeypatch.setattr(module, "folds_case", lambda _: True)
    with pytest.raises(DataError, match=r"A and a would both become JPEGImages.a\.png"):
        convert(source, tmp_path / "other", "voc")


def test_what_was_changed_in_a_finished_conversion_stays(source: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    convert(source, new, "csv")
    (new / "labels.csv").write_text("image,tags,split\n")
    (new / "classes.txt").unlink()
    assert convert(source, new, "csv")["kept"] == 5
    assert (new / "labels.csv").read_text() == "image,tags,split\n"
    assert (new / "classes.txt").exists()
    convert(source, new, "csv", force=True)
    assert (new / "labels.csv").read_text() != "image,tags,split\n"


def test_force_does_not_write_through_a_link_into_the_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "JPEGImages").symlink_to(source / "JPEGImages")
    with pytest.raises(TargetError, match="holds the link JPEGImages"):
        convert(source, tmp_path / "new", "voc", "symlink", force=True)
    (tmp_path / "lists").mkdir()
    rows = "".join(f"{path},1,0\n" for path in sorted((source / "JPEGImages").iterdir()))
    (tmp_path / "lists" / "data_train.csv").write_text(f"filename,cat,dog\n{rows}")
    with pytest.raises(TargetError, match="is read"):
        convert(tmp_path / "lists", source / "JPEGImages", "csv", "symlink", force=True)


def test_command_line(source: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(
        app, ["convert", str(source), str(tmp_path / "new"), "--to", "coco", "--json"]
    )
    assert json.loads(result.stdout)["to"] == {"path": str(tmp_path / "new"), "format": "coco"}
    result = runner.invoke(app, ["convert", str(source), str(tmp_path / "csv"), "--to", "csv"])
    assert "5 images, 4 masks, 2 classes" in result.stdout
    assert "not kept: the order of the images in each list" in result.stdout
    result = runner.invoke(app, ["convert", str(source), str(tmp_path / "x"), "--to", "cocoa"])
    assert isinstance(result.exception, ConfigError)
    assert "'coco'" in result.exception.expected
    assert all(
        form in runner.invoke(app, ["convert", "--help"]).stdout
        for form in (*writers(), "labels", "masks")
    )


def test_a_pool_writes_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "alone", "coco")
    monkeypatch.setattr(module, "POOL_FROM", 1)
    convert(source, tmp_path / "pool", "coco")
    for path in (tmp_path / "alone" / "annotations").iterdir():
        assert (tmp_path / "pool" / "annotations" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("form", ["voc", "coco", "csv"])
def test_the_masks_of_a_data_set_become_a_folder(source: Path, tmp_path: Path, form: str) -> None:
    convert(source, tmp_path / "new", form)
    # A photograph in PNG must not pass for a mask.
    dataset = open_dataset(tmp_path / "new")
    summary = convert(tmp_path / "new", tmp_path / "masks", "masks")
    written = {path.stem: path for path in (tmp_path / "masks").glob("*.png")}
    masked = {r.id: r for r in dataset.records.values() if dataset.has_mask(r)}
    assert (summary["masks"], written.keys()) == (len(masked), masked.keys())
    for name, record in masked.items():
        assert (read_index_png(written[name]) == dataset.read_mask(record)).all()


def test_an_unknown_image_without_a_mask_has_none_in_coco(tmp_path: Path) -> None:
    old = tmp_path / "old"
    (old / "masks").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", SIZE).save(old / f"{name}.png")
    Image.new("L", SIZE, 1).save(old / "masks" / "a.png")
    (old / "labels.csv").write_text("image,tag\na.png,cat\nb.png,?\nc.png,\n")
    convert(old, tmp_path / "new", "coco")
    dataset = open_dataset(tmp_path / "new")
    assert [dataset.has_mask(dataset.records[name]) for name in "abc"] == [True, False, True]
