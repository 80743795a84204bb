from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.data.coco.dataset import CocoDataset
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.data.pixels import read_image
from trainer.errors import DataError

CATEGORIES = [
    {"id": 90, "name": "toothbrush"},
    {"id": 1, "name": "person"},
    {"id": 13, "name": "stop sign"},
]
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]


DROP = DataConfig(keep_empty=False)


def note(image: int, category: int, segmentation: Any = None, **extra: Any) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": segmentation or SQUARE,
        **extra,
    }


def make(
    root: Path,
    annotations: list[dict[str, Any]],
    name: str = "instances_train2014",
    folder: str = "train2014",
    files: tuple[str, ...] = ("COCO_train2014_000000000009.jpg", "b.jpg"),
    categories: list[dict[str, Any]] | None = None,
) -> Path:
    images = []
    for n, file in enumerate(files):
        (root / folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(root / folder / file)
        images.append({"id": n, "file_name": file, "height": 8, "width": 10})
    table = {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{name}.json").write_text(json.dumps(table))
    return root


def test_categories_by_rank_and_tags_without_crowds(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 90), note(0, 1), note(0, 90), note(0, 13, iscrowd=1)])
    data = open_dataset(tmp_path)
    assert data.format == "coco"
    assert data.classes == ("person", "stop sign", "toothbrush")
    assert data.lists["train2014"] == ("COCO_train2014_000000000009", "b")
    assert data.lists["all"] == data.lists["train2014"]
    assert data.records["COCO_train2014_000000000009"].tags == (0, 2)
    assert data.records["b"].tags == ()
    assert "crowds left out" in data.tags_from
    assert data.records["b"].is_negative
    assert "1 of 2 images show none of the classes" in data.notes
    assert any("ids run from 1 to 90 with gaps: masks hold 1 to 3" in text for text in data.notes)
    with_crowds = open_dataset(tmp_path, config=DataConfig(crowd_tags=True))
    assert with_crowds.records["COCO_train2014_000000000009"].tags == (0, 1, 2)
    assert "crowds included" in with_crowds.tags_from


def test_images_without_annotation_are_negatives_or_left_out(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 1, iscrowd=1), note(0, 1, ignore=1), note(0, 90)])
    data = open_dataset(tmp_path, config=DROP)
    assert data.lists["train2014"] == data.lists["all"] == ("COCO_train2014_000000000009",)
    assert isinstance(data, CocoDataset)
    tags = data.records["COCO_train2014_000000000009"].tags
    assert (data.empty, tags) == ({"train2014": 1}, (2,))
    assert any("1 annotations of train2014 are crowds" in text for text in data.notes)
    assert any("data.keep_empty=on keeps them" in text for text in data.notes)
    whole = open_dataset(tmp_path)
    assert len(whole.records) == 2
    assert whole.fingerprint() != data.fingerprint()


@pytest.mark.parametrize(("crowd", "value"), [("drop", 0), ("ignore", 255), ("keep", 1)])
def test_masks_are_painted_in_order_with_crowds_as_asked(
    tmp_path: Path, crowd: Any, value: int
) -> None:
    runs = {"size": [8, 10], "counts": [72, 8]}  # the last column, column-major
    later = [[3, 3, 6, 3, 6, 6, 3, 6]]
    make(tmp_path, [note(0, 1), note(0, 90, later), note(0, 1, runs, iscrowd=1)])
    opened = open_dataset(tmp_path, config=DataConfig(crowd=crowd))
    data = pickle.loads(pickle.dumps(opened))  # as a worker process gets it
    record = data.records["COCO_train2014_000000000009"]
    assert data.has_mask(record)
    mask = data.read_mask(record)
    assert mask.shape == (8, 10)
    assert mask.dtype == "uint8"
    assert mask[2, 2] == 1
    assert mask[3, 3] == 3
    assert (mask[:, 9] == value).all()
    assert mask[7, 0] == 0
    assert (mask[:, :9] == 1).sum() == 8
    assert (mask == 3).sum() == 9
    empty = data.records["b"]
    assert data.has_mask(empty)
    assert not data.read_mask(empty).any()
    assert data.masks_from.startswith("annotations painted in file order, crowds")


def test_ignored_annotations_are_255_and_no_tag(tmp_path: Path) -> None:
    runs = {"size": [8, 10], "counts": [72, 8]}
    make(tmp_path, [note(0, 1), note(0, 90, runs, iscrowd=1, ignore=1)])
    data = open_dataset(tmp_path, config=DataConfig(crowd="keep", crowd_tags=True))
    record, _ = data.subset("train2014")
    assert record.tags == (0,)
    assert (data.read_mask(record)[:, 9] == 255).all()


def test_tags_from_the_masks_are_what_no_later_object_hides(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 1), note(0, 90)])
    data = open_dataset(tmp_path, config=DataConfig(labels_from="masks"))
    record, _ = data.subset("train2014")
    assert [data.classes[k] for k in record.tags] == ["toothbrush"]
    assert data.tags_from == "classes in the masks"
    with pytest.raises(DataError, match="tags are in its JSON"):
        open_dataset(tmp_path, config=DataConfig(labels_from="xml"))


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("COCO_train2014_000000000009.jpg", "000000000009.jpg"),
        ("000000000009.jpg", "COCO_train2014_000000000009.jpg"),
    ],
)
def test_file_names_with_and_without_prefix(tmp_path: Path, entry: str, file: str) -> None:
    make(tmp_path, [note(0, 1)], files=(entry,))
    (tmp_path / "train2014" / entry).rename(tmp_path / "train2014" / file)
    (record,) = open_dataset(tmp_path).records.values()
    assert (record.id, record.image.name) == (entry[:-4], file)


def test_categories_are_matched_by_name_between_files(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 90)], files=("a.jpg",))
    contiguous = [
        {"id": n, "name": name} for n, name in enumerate(("person", "stop sign", "toothbrush"))
    ]
    make(tmp_path, [note(0, 2)], "instances_val2014", "val2014", ("b.jpg",), contiguous)
    data = open_dataset(tmp_path)
    assert [record.tags for record in data.records.values()] == [(2,), (2,)]


def test_grey_images_are_read_as_rgb(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 1)], files=("a.jpg",))
    Image.new("L", (10, 8), 77).save(tmp_path / "train2014" / "a.jpg")
    (record,) = open_dataset(tmp_path).records.values()
    assert read_image(record.image).shape == (8, 10, 3)


def test_compressed_run_lengths(tmp_path: Path) -> None:
    from pycocotools import mask as rle

    runs = rle.frPyObjects({"size": [8, 10], "counts": [0, 16, 64]}, 8, 10)
    counts = runs["counts"].decode()
    make(tmp_path, [note(0, 13, {"size": [8, 10], "counts": counts})])
    data = open_dataset(tmp_path)
    mask = data.read_mask(data.subset("train2014")[0])
    assert (mask[:, :2] == 2).all()
    assert not mask[:, 2:].any()


@pytest.mark.parametrize("folder", ["train2014", "images/train2014", "images", "."])
def test_image_folders(tmp_path: Path, folder: str) -> None:
    make(tmp_path, [note(0, 1)], folder=folder)
    assert len(open_dataset(tmp_path).records) == 2


def test_several_files_are_several_lists(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 1)])
    make(tmp_path, [note(0, 90)], "instances_val2014", "val2014", ("b.jpg",))
    (tmp_path / "annotations" / "captions_val2014.json").write_text("[]")
    data = open_dataset(tmp_path)
    assert data.lists["val2014"] == ("val2014__b",)
    assert len(data.lists["all"]) == 3
    assert data.records["val2014__b"].tags == (2,)


def test_boxes_only_give_tags_but_no_mask(tmp_path: Path) -> None:
    make(
        tmp_path,
        [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 3, 3]}, note(1, 1, [[1, 1, 3, 3]])],
    )
    data = open_dataset(tmp_path)
    assert [record.tags for record in data.subset("all")] == [(0,), (0,)]
    assert [data.has_mask(record) for record in data.subset("all")] == [False, False]
    assert any("2 images have objects without outline" in text for text in data.notes)
    with pytest.raises(DataError, match="without an outline"):
        data.read_mask(data.records["b"])


def test_run_lengths_of_another_size(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 1, {"size": [3, 3], "counts": [0, 9]})])
    with pytest.raises(DataError, match=r"cannot be drawn \(1\).* of a \[3, 3\] picture in one of"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": [{"id": 1, "file_name": "gone.jpg", "height": 1, "width": 1}]},
            r"names 1 images .*gone\.jpg",
        ),
        ({"annotations": [note(0, 7)]}, "unknown categories"),
        ({"annotations": [note(5, 1)]}, r"unknown images \(1\)"),
        ({"annotations": [{"id": 3}]}, "damaged entries"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the same id"),
        ({"categories": [{"name": "a"}]}, "damaged category"),
    ],
)
def test_bad_tables(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make(tmp_path, [])
    path = tmp_path / "annotations" / "instances_train2014.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', b"\xff\xff"])
def test_not_instances_json(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "x.json").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(DataError, match=r"x\.json"):
        open_dataset(tmp_path)


def test_files_that_disagree(tmp_path: Path) -> None:
    make(tmp_path, [note(0, 1)])
    make(tmp_path, [note(0, 1)], "instances_val", "val", ("v.jpg",), [{"id": 1, "name": "dog"}])
    with pytest.raises(DataError, match=r"other categories .* only instances_val\.json has 'dog'"):
        open_dataset(tmp_path)
    make(tmp_path, [note(0, 90)], "instances_val", "train2014")
    with pytest.raises(DataError, match="disagree"):
        open_dataset(tmp_path)
