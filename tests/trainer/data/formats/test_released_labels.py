"""The label files of released code, both ways, and MVA's lists and class folders as data sets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.formats.convert import convert
from trainer.data.formats.opening import open_dataset
from trainer.data.formats.released_labels import read_cls_labels
from trainer.data.knobs import DataConfig
from trainer.errors import DataError, TargetError


def one_hot(*tags: int, count: int = 20) -> np.ndarray[Any, Any]:
    row = np.zeros(count, np.float32)
    row[list(tags)] = 1
    return row


def save(path: Path, content: Any) -> Path:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(root / name)
    return root


def tags(data: Dataset) -> dict[str, list[str]]:
    return {i: [data.classes[k] for k in record.tags] for i, record in data.records.items()}


@pytest.mark.parametrize(
    "keys", [("2007_000032", "2008_000002"), (np.int32(2007000032), np.int32(2008000002))]
)
def test_cls_labels_become_the_table_of_a_voc_folder(tmp_path: Path, keys: tuple[Any, Any]) -> None:
    path = save(tmp_path / "cls_labels.npy", {keys[0]: one_hot(14, 0), keys[1]: one_hot(19)})
    root = images(tmp_path / "voc", "JPEGImages/2007_000032.jpg", "JPEGImages/2008_000002.jpg")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    summary = convert(path, root / "image_labels.csv")
    assert (summary["rows"], summary["classes"], summary["from"]["format"]) == (
        2,
        20,
        "cls_labels.npy",
    )
    assert tags(open_dataset(root)) == {
        "2007_000032": ["aeroplane", "person"],
        "2008_000002": ["tvmonitor"],
    }
    convert(path, root / "image_labels.csv")
    (root / "image_labels.csv").write_text("corrected by hand")
    with pytest.raises(TargetError, match="is there already") as error:
        convert(path, root / "image_labels.csv")
    assert "--force" in error.value.hint
    assert (root / "image_labels.csv").read_text() == "corrected by hand"
    convert(path, root / "image_labels.csv", force=True)
    with pytest.raises(TargetError, match="which is read"):
        convert(root / "image_labels.csv", root / "image_labels.csv", force=True)


def test_cls_labels_of_coco(tmp_path: Path) -> None:
    path = save(
        tmp_path / "cls_labels.npy",
        {"COCO_train2014_000000000009": one_hot(79, count=80), 12: one_hot(count=80)},
    )
    classes, found = read_cls_labels(path)
    assert [classes[k] for k in found["COCO_train2014_000000000009"]] == ["toothbrush"]
    assert found["000000000012"] == ()


def test_cls_labels_as_old_numpy_saved_them(tmp_path: Path) -> None:
    """Protocol 2, with the modules of NumPy 1."""
    content = np.empty((), object)
    content[()] = {"2007_000032": one_hot(3)}
    pickled = pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"_codecs" in pickled
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    (tmp_path / "cls_labels.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + bytes((len(header), 0)) + header + pickled
    )
    assert read_cls_labels(tmp_path / "cls_labels.npy")[1] == {"2007_000032": (3,)}


class Evil:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["evil", "list", "numbers", "seven", "half", "missing"])
def test_other_files_are_refused_and_nothing_of_them_is_run(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cls_labels.npy"
    if content == "numbers":
        np.save(path, np.zeros(20))
    elif content != "missing":
        made: dict[str, Any] = {
            "evil": {"a": Evil(tmp_path / "run")},
            "list": [1],
            "seven": {"a": one_hot(1, count=7)},
            "half": {"a": one_hot(1) / 2},
        }
        save(path, made[content])
    with pytest.raises(DataError, match=r"cls_labels\.npy cannot be read") as error:
        convert(path, tmp_path / "out.csv")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out.csv").exists()
    if content == "evil":
        assert "nothing of it was run" in error.value.found


def test_a_mva_csv_whose_images_are_elsewhere_gives_its_tags(tmp_path: Path) -> None:
    path = tmp_path / "data_train.csv"
    path.write_text(
        "filename,cat,dog,cluster_0_0,cluster_0_1\n/home/them/VOC/JPEGImages/2007_000032.jpg,0,1,1,0\n"
    )
    convert(path, tmp_path / "image_labels.csv")
    assert (tmp_path / "image_labels.csv").read_text() == "image,cat,dog\n2007_000032,0,1\n"
    path.write_text("filename,cat\na/1.jpg,0\nb/1.png,1\n")
    with pytest.raises(DataError, match="line 3: other tags than before for '1'"):
        convert(path, tmp_path / "other.csv")


def test_mva_lists_are_a_data_set(tmp_path: Path) -> None:
    root = images(tmp_path / "mva", "pictures/a.jpg", "pictures/b.jpg")
    absolute = root / "pictures" / "b.jpg"
    (root / "data_train.csv").write_text(
        f"filename,cat,dog,cluster_0_0\npictures/a.jpg,1,0,1\n{absolute},1,1,0\n"
    )
    (root / "data_test.csv").write_text(f"filename,cat,dog\n{absolute},1,1\n")
    data = open_dataset(root)
    assert (data.format, data.tags_from) == ("mva", "data_*.csv")
    assert data.lists == {"val": ("b",), "train": ("a", "b"), "all": ("b", "a")}
    assert tags(data) == {"b": ["cat", "dog"], "a": ["cat"]}
    (root / "data_test.csv").write_text(f"filename,cat,dog\n{absolute},0,1\ngone.jpg,1,1\n")
    problems: list[DataError] = []
    open_dataset(root, problems)
    assert any(
        "1 images that are not there: gone.jpg" in p.found and "wsss-trainer convert" in p.hint
        for p in problems
    )
    assert any("other tags" in p.found for p in problems)
    with pytest.raises(DataError, match="lists of tags only"):
        open_dataset(root, config=DataConfig(labels_from="masks"))
    (root / "data_test.csv").write_text("filename,cat\n")
    with pytest.raises(DataError, match="other classes"):
        open_dataset(root)


def folder(tmp_path: Path) -> Path:
    root = images(tmp_path / "source", "a 1.jpg", "b.png", "c.jpg", "d.jpg")
    rows = "a 1.jpg,person;dog,train;train_aug\nb.png,dog,train_aug\nc.jpg,cat,val\nd.jpg,,val\n"
    (root / "labels.csv").write_text(f"image,tags,split\n{rows}")
    (root / "classes.txt").write_text("dog\nperson\ncat\n")
    return root


def test_psa_lists_are_read_as_they_are(tmp_path: Path) -> None:
    names = ("a 1.jpg", "b.png")
    root = images(tmp_path / "voc", *(f"JPEGImages/{name}" for name in names))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    lines = [f"/JPEGImages/{n} /SegmentationClassAug/{n.split('.')[0]}.png\n" for n in names]
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("".join(lines))
    labels = save(tmp_path / "cls_labels.npy", {"a 1": one_hot(11, 14), "b": one_hot(11)})
    convert(labels, root / "image_labels.csv")
    data = open_dataset(root)
    assert data.lists["train_aug"] == ("a 1", "b")
    assert tags(data) == {"a 1": ["dog", "person"], "b": ["dog"]}


def test_one_folder_a_class_there_and_back(tmp_path: Path) -> None:
    summary = convert(folder(tmp_path), tmp_path / "folders", "folders")
    assert summary["images"] == 3
    assert summary["lost"][0] == "1 images with several tags and 0 whose tags are unknown"
    assert (tmp_path / "folders" / "train_aug" / "dog" / "b.png").is_file()
    data = open_dataset(tmp_path / "folders")
    assert data.lists == {
        "train_aug": ("train_aug__dog__b",),
        "val": ("val__background__d", "val__cat__c"),
        "all": tuple(data.records),
    }
    assert tags(data) == {
        "train_aug__dog__b": ["dog"],
        "val__background__d": [],
        "val__cat__c": ["cat"],
    }


def test_class_folders(tmp_path: Path) -> None:
    root = images(
        tmp_path / "plants", "train/x.jpg", "fern/1.jpg", "fern/deep/2.jpg", ".cache/0.jpg"
    )
    data = open_dataset(root)
    assert (data.format, data.classes, set(data.lists)) == ("folders", ("fern", "train"), {"all"})
    assert tags(data) == {"fern__1": ["fern"], "fern__deep__2": ["fern"], "train__x": ["train"]}
    with pytest.raises(DataError, match="one folder a class: it has no tags from masks"):
        open_dataset(root, config=DataConfig(labels_from="masks"))
    images(root, "fern/1.png")
    with pytest.raises(DataError, match=r"1 names twice.*1\.png"):
        open_dataset(root)


@pytest.mark.parametrize(
    "names",
    [
        ("train2014/a.jpg", "val2014/b.jpg"),
        ("images/a.jpg", "cats/b.jpg"),
        ("cats/a.jpg",),
        ("cats/a.jpg", "dogs/b.jpg", "loose.jpg"),
        ("cats/a.jpg", "dogs/deeper/b.jpg"),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no data set that can be recognised"):
        open_dataset(images(tmp_path, *names))
