"""JSON as tools write it: what is unambiguous is read, the rest is one error that names it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.checks.check import check
from trainer.checks.preflight import about_masks
from trainer.data.dataset import Dataset
from trainer.data.formats.coco import recognises
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}]
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]
PLACE = "annotations/instances_train.json"


def table(*annotations: dict[str, Any], count: int = 2, **sections: Any) -> dict[str, Any]:
    """A valid table of ``count`` images; without annotations one of another class each."""
    images = [
        {"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 10} for n in range(1, count + 1)
    ]
    given = annotations or tuple(note(n, n) for n in range(1, count + 1))
    return {"images": images, "annotations": list(given), "categories": CATEGORIES, **sections}


def note(image: Any, category: Any = 1, segmentation: Any = SQUARE, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, **more}


def write(root: Path, content: dict[str, Any], place: str = PLACE) -> Path:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(json.dumps(content))
    return root


def pictures(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(root / name, "JPEG")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two images of 10x8 pixels."""
    return pictures(tmp_path, "images/1.jpg", "images/2.jpg")


def painted(data: Dataset) -> list[int]:
    """Pixels that are not background, by image."""
    return [int((data.read_mask(record) > 0).sum()) for record in data.records.values()]


def errors(root: Path) -> list[str]:
    """Errors of ``check``, which raises nothing."""
    return [p.message for p in check(root).problems if p.severity == "error"]


@pytest.mark.parametrize("size", [8.0, "8", "8.0", None, 0, float("nan")])
def test_sizes_that_mean_one_thing(root: Path, size: Any) -> None:
    content = table()
    content["images"][0]["height"] = size
    del content["images"][1]["width"]
    data = open_dataset(write(root, content))
    assert painted(data) == [9, 9]
    assert errors(root) == []


@pytest.mark.parametrize("size", [-8, "8px", 8.5, True, [8], float("inf"), 1e400])
def test_sizes_that_mean_nothing(root: Path, size: Any) -> None:
    content = table(note(1), note(2), note(2, 2))
    content["images"][0]["height"] = size
    with pytest.raises(DataError, match=r"damaged entries \(1\): images\[0\] has the height"):
        open_dataset(write(root, content))
    (error,) = errors(root)
    assert "images[0] has the height" in error


@pytest.mark.parametrize("size", [200_000, 10**12, 10**400])
def test_a_size_is_compared_before_anything_is_allocated(root: Path, size: int) -> None:
    content = table()
    content["images"][0].update(height=size, width=size)
    report = check(write(root, content))
    (problem,) = (p for p in report.problems if p.severity == "error")
    assert (problem.kind, problem.names) == ("mask-size", ("images/1.jpg",))
    assert "10x8 pixels, its JSON says" in problem.message


def test_fit_compares_sizes_before_it_starts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checks.preflight.SAMPLE_PIXELS", 0)
    content = table()
    content["images"][0]["height"] = 7
    data = open_dataset(write(root, content))
    (problem,) = about_masks(data, list(data.records.values()))
    assert (problem.kind, problem.names) == ("mask-size", ("1",))


def test_a_corrected_outline_is_another_mask(root: Path) -> None:
    before = open_dataset(write(root, table()))
    after = open_dataset(write(root, table(note(1, 1, [[1, 1, 5, 1, 5, 4, 1, 4]]), note(2, 2))))
    records = list(before.records.values())
    assert before.fingerprint() == after.fingerprint()
    assert before.mask_fingerprint(records) != after.mask_fingerprint(records)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e400, 1e9, -1e8, None, "x", [1]])
def test_a_coordinate_that_is_none(root: Path, value: Any) -> None:
    broken = [[1, 1, 4, 1, 4, value, 1, 4]]
    write(root, table(note(1, 1, broken), note(2, 2)))
    with pytest.raises(DataError, match=r"cannot be drawn \(1\): annotations\[0\] of 1\.jpg"):
        open_dataset(root)
    (error,) = errors(root)
    assert "annotations[0] of 1.jpg" in error


def test_polygons_that_reach_beyond_the_image_are_clipped(root: Path) -> None:
    wide = [[-9e5, -9e5, 9e5, -9e5, 9e5, 9e5, -9e5, 9e5]]
    half = [[5, 2, 5000, 2, 5000, 6, 5, 6]]
    data = open_dataset(write(root, table(note(1, 1, wide), note(2, 1, half))))
    assert painted(data) == [80, 20]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([-5, 10, 75], "negative"),
        ([10**12, 1], "do not fill"),
        ([10**400], "do not fill"),
        ([72, 7], "do not fill"),
        ([72, 9], "do not fill"),
        ([72.5, 7.5], "whole numbers"),
        ([None, 80], "whole numbers"),
        (None, "without counts"),
        ("~~~", "damaged text"),
        ("", "damaged text"),
        ("oooooooooooooo0", "more than 30 bits"),
        ("`00", "do not fill"),
    ],
)
def test_run_lengths_that_do_not_fill_the_image(root: Path, counts: Any, message: str) -> None:
    write(root, table(note(1, 1, {"size": [8, 10], "counts": counts}), note(2)))
    with pytest.raises(DataError, match=message):
        open_dataset(root)


@pytest.mark.parametrize(
    "counts", [[72, 8], [72.0, "8"], [0, 8, 72], [70, 2, 0, 6, 2], [72, 8, 0], [64, 8, 0, 0, 8]]
)
def test_run_lengths_as_numbers(root: Path, counts: Any) -> None:
    runs = {"size": [8.0, "10"], "counts": counts}
    assert painted(open_dataset(write(root, table(note(1, 1, runs), note(2))))) == [8, 9]


@pytest.mark.parametrize(
    "outline",
    [
        [1, 1, 4, 1, 4, 4, 1, 4],
        [[1, 1], [4, 1], [4, 4], [1, 4]],
        [[[1, 1], [4, 1], [4, 4], [1, 4]]],
        [{"x": 1, "y": 1}, {"x": 4, "y": 1}, {"x": 4, "y": 4}, {"x": 1, "y": 4}],
        [["1", "1", "4.0", "1", "4", "4", "1", "4"]],
        [[1, 1, 4, 1, 4, 4, 1, 4], [1, 1], []],
        [{"size": [8, 10], "counts": [9, 3, 5, 3, 5, 3, 52]}],
    ],
)
def test_outlines_in_other_shapes(root: Path, outline: Any) -> None:
    assert painted(open_dataset(write(root, table(note(1, 1, outline), note(2))))) == [9, 9]


@pytest.mark.parametrize("outline", ["1 1 4 1 4 4", 7, [[1, 1, 4, 1, 4]], [["a"]], [1, 1, [2], 3]])
def test_outlines_in_no_shape(root: Path, outline: Any) -> None:
    write(root, table(note(1, 1, outline), note(2)))
    with pytest.raises(DataError, match=r"annotations\[0\] of 1\.jpg"):
        open_dataset(root)


def test_coordinates_in_fractions_are_scaled_and_said(root: Path) -> None:
    outline = [[0.1, 0.125, 0.4, 0.125, 0.4, 0.5, 0.1, 0.5]]
    data = open_dataset(write(root, table(note(1, 1, outline), note(2, 2, outline))))
    assert painted(data) == [9, 9]
    assert any("fractions of width and height" in text for text in data.notes)
    pixels = open_dataset(write(root, table(note(1, 1, outline), note(2))))
    assert painted(pixels) == [0, 9]


@pytest.mark.parametrize("key", [str, float, lambda n: f" {n}.0", lambda n: f"id-{n}"])
def test_ids_as_text(root: Path, key: Any) -> None:
    content = table(note(key(1), key(1)), note(2, 2))
    for entry in content["images"][:1] + content["categories"]:
        entry["id"] = entry["id"] if key(1) == "id-1" else str(entry["id"])
    if key(1) == "id-1":
        content["images"][0]["id"], content["categories"] = (
            "id-1",
            [
                {"id": "id-1", "name": "cat"},
                {"id": 2, "name": "cow"},
            ],
        )
    data = open_dataset(write(root, content))
    assert [[data.classes[k] for k in r.tags] for r in data.records.values()] == [["cat"], ["cow"]]


@pytest.mark.parametrize("value", [None, True, {}, [1], "", 1.5])
@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_ids_that_are_none(root: Path, field: str, value: Any) -> None:
    write(root, table({**note(1), field: value}, note(2)))
    with pytest.raises(DataError, match=rf"annotations\[0\] has the {field}"):
        open_dataset(root)


@pytest.mark.parametrize("crowd", [1, "1", True, 1.0])
def test_all_crowds_are_no_crowds(root: Path, crowd: Any) -> None:
    runs = {"size": [8, 10], "counts": [72, 8]}
    notes = (note(1, 1, runs, iscrowd=crowd), note(2, 2, runs, iscrowd=crowd))
    data = open_dataset(write(root, table(*notes)))
    assert ([r.tags for r in data.records.values()], painted(data)) == ([(0,), (1,)], [8, 8])
    assert any("every annotation of train is marked as a crowd" in text for text in data.notes)


@pytest.mark.parametrize("crowd", [0, "0", False, None, "false"])
def test_no_crowds(root: Path, crowd: Any) -> None:
    data = open_dataset(write(root, table(note(1, iscrowd=crowd), note(2, iscrowd=crowd))))
    assert [r.tags for r in data.records.values()] == [(0,), (0,)]
    assert not any("crowd" in text for text in data.notes)


def test_groups_that_nobody_uses_are_no_classes(root: Path) -> None:
    categories = [
        {"id": 0, "name": "Animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "cow", "supercategory": "animals"},
    ]
    content = table(note(1), note(2, 2), categories=categories)
    data = open_dataset(write(root, content))
    assert (data.classes, [r.tags for r in data.records.values()]) == (("cat", "cow"), [(0,), (1,)])
    assert any("'Animals' is only a group" in text for text in data.notes)
    assert errors(root) == []
    used = table(note(1, 0), note(2, 2), categories=categories)
    assert open_dataset(write(root, used)).classes == ("Animals", "cat", "cow")


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_background_is_background(root: Path, name: str) -> None:
    categories = [{"id": 0, "name": name}, *CATEGORIES, {"id": 9, "name": "__ignore__"}]
    hole = [[2, 2, 3, 2, 3, 3, 2, 3]]
    ignored = [[5, 5, 7, 5, 7, 7, 5, 7]]
    notes = (note(1), note(1, 0, hole), note(2, 2), note(2, 9, ignored), note(2, 0, None))
    data = open_dataset(write(root, table(*notes, categories=categories)))
    assert (data.classes, [r.tags for r in data.records.values()]) == (("cat", "cow"), [(0,), (1,)])
    first, second = (data.read_mask(record) for record in data.records.values())
    assert ((first > 0).sum(), first[2, 2], (second == 2).sum(), second[5, 5]) == (8, 0, 9, 255)


def test_classes_that_differ_in_letters_only_are_one(root: Path) -> None:
    pictures(root, "val/3.jpg")
    names = ("Kühe", unicodedata.normalize("NFD", "kühe"), "cat", "cat")
    categories = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    write(root, table(note(1, 1), note(1, 2), note(2, 4), categories=categories))
    val = table(
        note(1, 7),
        images=[{"id": 1, "file_name": "3.jpg", "width": 10, "height": 8}],
        categories=[{"id": 7, "name": "CAT"}],
    )
    data = open_dataset(write(root, val, "annotations/instances_val.json"))
    assert (data.classes, [r.tags for r in data.records.values()]) == (
        ("Kühe", "cat"),
        [(0,), (1,), (1,)],
    )
    (text,) = (text for text in data.notes if "one class" in text)
    assert "cat = cat = CAT" in text


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("val", "a_train")])
def test_a_file_may_have_some_of_the_classes(root: Path, first: str, second: str) -> None:
    part = table(note(1, 5), categories=[{"id": 5, "name": "cow"}, {"id": 6, "name": "stray"}])
    write(root, table(note(1, 1), note(1, 2), note(2, 2)), f"annotations/{first}.json")
    write(root, part, f"annotations/{second}.json")
    data = open_dataset(root, [])
    assert data.classes == ("cat", "cow")
    assert any("'stray' is in one file only" in text for text in data.notes)


@pytest.mark.parametrize(
    "name",
    [
        "images\\1.jpg",
        "..\\..\\images\\1.jpg",
        "C:\\Users\\me\\pictures\\1.jpg",
        "/home/me/set/images/1.jpg",
        "/etc/../1.JPG",
        "https://host.invalid/a/1.jpg?v=2",
        "./1.jpg",
        "1",
        "1.JPG",
    ],
)
def test_paths_of_other_machines(root: Path, name: str) -> None:
    content = table(note(1), note(2))
    content["images"][0]["file_name"] = name
    content["images"][1]["file_name"] = "images/2.jpg"
    data = open_dataset(write(root, content))
    assert [r.image.name for r in data.records.values()] == ["1.jpg", "2.jpg"]
    assert all(".." not in i and "home" not in i and "Users" not in i for i in data.records)


def test_images_in_sub_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "images/set a/1.jpg", "images/set b/2.jpg", "other/set b/2.jpg")
    data = open_dataset(write(tmp_path, table()))
    assert list(data.records) == ["1", "2"]
    pictures(tmp_path, "images/set b/1.jpg")
    with pytest.raises(DataError, match=r"names that several images have: 1\.jpg"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../secret.jpg", "{}/secret.jpg", "images/../../secret.jpg"])
def test_nothing_outside_of_the_data_folder_is_read(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "secret.jpg")
    root = pictures(tmp_path / "data", "images/2.jpg")
    content = table(note(1), note(2))
    content["images"][0]["file_name"] = name.format(tmp_path)
    with pytest.raises(DataError, match="names 1 images that are not there"):
        open_dataset(write(root, content))


def test_two_entries_of_one_image(root: Path) -> None:
    content = table(note(1), note(2))
    content["images"][1]["file_name"] = "/elsewhere/1.jpg"
    with pytest.raises(DataError, match=r"names 1 images more than once: 1\.jpg = /else"):
        open_dataset(write(root, content))


def test_images_that_are_there_and_cannot_be_read(root: Path) -> None:
    (root / "images" / "1.jpg").rename(root / "images" / "1.HEIC")
    content = table()
    content["images"][0]["file_name"] = "1.HEIC"
    with pytest.raises(DataError, match=r"are there and left out: 1\.HEIC"):
        open_dataset(write(root, content))


def test_roboflow(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        pictures(tmp_path, f"{split}/1.jpg", f"{split}/2.jpg")
        write(tmp_path, table(), f"{split}/_annotations.coco.json")
    data = open_dataset(tmp_path)
    assert {name: len(ids) for name, ids in data.lists.items()} == {
        "train": 2,
        "valid": 2,
        "test": 2,
        "all": 6,
    }
    assert (data.default_list("train"), data.default_list("val")) == ("train", "valid")
    assert all(data.records[i].image.parent.name == "valid" for i in data.lists["valid"])


@pytest.mark.parametrize(
    ("place", "folder", "name"),
    [
        ("result.json", "images", "result"),
        ("labels.JSON", "data", "labels"),
        ("_annotations.coco.json", ".", "_annotations.coco"),
        ("Annotations/instances_default.json", "images", "default"),
        ("train/labels.json", "train/data", "train"),
    ],
)
def test_places_of_the_json(tmp_path: Path, place: str, folder: str, name: str) -> None:
    pictures(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    data = open_dataset(write(tmp_path, table(), place))
    assert data.lists == {name: ("1", "2"), "all": ("1", "2")}


def test_what_is_no_coco(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/1.jpg", "cow/2.jpg")
    (tmp_path / "cat" / "x.json").write_text('{"images": [], "shapes": []}')
    assert not recognises(tmp_path)
    assert open_dataset(tmp_path).format == "folders"
    write(tmp_path, table(), "result.json")
    (tmp_path / "labels.csv").write_text("image,tag\n1.jpg,cat\n2.jpg,cow\n")
    assert open_dataset(tmp_path).format == "folder"


def test_json_that_is_left_out_is_named(root: Path) -> None:
    (root / "annotations").mkdir()
    (root / "annotations" / "captions.json").write_text('{"images": [], "annotations": []}')
    data = open_dataset(write(root, table(), "annotations/train.json"))
    assert (list(data.lists), any("captions.json" in text for text in data.notes)) == (
        ["train", "all"],
        True,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read"),
        ('{"images": 1, "annotations": [], "categories": []}', "images is no list"),
        ('{"images": [], "annotations": [{"segments_info": []}], "categories": []}', "panoptic"),
        ('{"images": [null], "annotations": [7], "categories": [{"id": 1, "name": "a"}]}', "null"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": null}]}', "damaged"),
        ('{"images": [], "annotations": [], "categories": [7]}', r"categories\[0\] is 7"),
    ],
)
def test_json_of_other_kinds(root: Path, text: str, message: str) -> None:
    (root / "annotations").mkdir()
    (root / PLACE).write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


def test_one_damaged_file_leaves_the_others(root: Path) -> None:
    write(root, table())
    (root / "annotations" / "instances_val.json").write_text("{")
    (error,) = errors(root)
    assert "instances_val.json cannot be read" in error


def test_time_and_memory_of_one_image_are_bounded(root: Path) -> None:
    zigzag = [[x for n in range(400_000) for x in ((0, 0) if n % 2 else (10, 8))]]
    everything = {"size": [8, 10], "counts": [0, 80]}
    for notes in ([note(1, 1, zigzag)], [note(1, 1, everything)] * 1001):
        data = open_dataset(write(root, table(*notes)), config=DataConfig())
        with pytest.raises(DataError, match="more than"):
            data.read_mask(data.records["1"])


def test_lvis_names_images_by_their_address(root: Path) -> None:
    content = table()
    for n, entry in enumerate(content["images"], 1):
        del entry["file_name"]
        entry["coco_url"] = f"http://images.cocodataset.org/train2017/{n}.jpg"
    data = open_dataset(write(root, content))
    assert [r.image.name for r in data.records.values()] == ["1.jpg", "2.jpg"]
    assert set(data.records) == {"1", "2"}


def test_two_files_with_other_outlines_of_one_image(root: Path) -> None:
    write(root, table())
    # Frames of several films have the same names.
    write(
        root, table(note(1, 1, [[5, 5, 9, 5, 9, 8]]), note(2, 2)), "annotations/instances_val.json"
    )
    with pytest.raises(
        DataError, match=r"instances_val.json and another file disagree about 1.jpg"
    ):
        open_dataset(root)
    write(root, table(), "annotations/instances_val.json")
    assert open_dataset(root).lists["val"] == ("1", "2")
