"""Present, absent and unknown, in every format that can say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.checks.check import check
from trainer.data.dataset import Dataset
from trainer.data.formats.convert import convert
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

MISSING = DataConfig(missing="unknown")
OBJECT = "<object><name>cat</name></object>"


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / name)
    return root


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    images(root, "a.png", "b.png", "c.png")
    (root / name).write_text(text)
    return root


def states(data: Dataset) -> dict[str, str]:
    """One letter a class: + present, - absent, ? unknown."""
    letters = {1.0: "+", 0.0: "-"}
    matrix = data.tag_matrix(list(data.records.values()))
    return {
        key: "".join(letters.get(value, "?") for value in row.tolist())
        for key, row in zip(data.records, matrix, strict=True)
    }


@pytest.mark.parametrize(
    ("text", "plain", "missing"),
    [
        ("image,tags\na,cat;?dog\nb,?\nc,dog\n", "+? ?? -+", "+? ?? ?+"),
        ("image,tags\na,cat;?\nb,\nc,dog;background\n", "+? -- -+", "+? ?? -+"),
        ("image,tag\na,?cat;cat\nb,background\nb,dog\nc,?dog\n", "+- -+ -?", "+? -+ ??"),
        ('image,tags\na,cat\nb,"cat, ?dog"\nc,dog\n', "+- +? -+", "+? +? ?+"),
        ("image,tag\na,?cat\na,dog\nb,?cat\nb,cat\nc,\n", "?+ +- --", "?+ +? ??"),
        ("image,cat,dog\na,1,0\nb,,?\nc,0,1\n", "+- ?? -+", "+- ?? -+"),
        ("image,cat,dog\na,1,0\nb,0,0\nc,nan,1\n", "+- -- ?+", "+- -- ?+"),
        ("image,cat,dog\na,x,\nb,,\nc,,x\n", "+- -- -+", "+? ?? ?+"),
        ("image,cat,dog\na,x,?\nb,,\nc,,x\n", "+? -- -+", "+? ?? ?+"),
        ("image,cat,dog\na,1,-1\nb,-1,-1\nc,-1,1\n", "+- -- -+", "+- -- -+"),
    ],
)
def test_tables(tmp_path: Path, text: str, plain: str, missing: str) -> None:
    root = table(tmp_path, text)
    assert " ".join(states(open_dataset(root)).values()) == plain
    assert " ".join(states(open_dataset(root, config=MISSING)).values()) == missing


def test_records_and_notes(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "image,tags\na,cat;?dog\nb,?\nc,\n"))
    record = data.records["a"]
    assert (record.tags, record.unknown, record.possible) == ((0,), (1,), (0, 1))
    assert not data.records["b"].is_negative
    assert data.records["c"].is_negative
    assert "1 of 3 images show none of the classes" in data.notes
    assert "2 of 3 images have unknown classes; of 1 of them nothing is known" in data.notes
    plain = open_dataset(table(tmp_path / "plain", "image,tags\na,cat\nb,dog\nc,\n"))
    assert data.fingerprint() != plain.fingerprint()


def test_json_lines_with_an_empty_list(tmp_path: Path) -> None:
    lines = [
        {"file_name": "a.png", "tags": ["cat", "?dog"]},
        {"file_name": "b.png", "tags": []},
        {"file_name": "c.png", "tags": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert states(open_dataset(table(tmp_path, text, "metadata.jsonl"))) == {
        "a": "+?",
        "b": "--",
        "c": "--",
    }


def test_a_column_of_unknowns_only(tmp_path: Path) -> None:
    root = table(tmp_path, "image,cat,dog\na,1,?\nb,0,?\nc,0,\n")
    with pytest.raises(DataError, match="says of no image whether it shows 'dog'"):
        open_dataset(root)
    report = check(root)
    assert report.exit_code == 2
    assert vars(report.tags["dog"]) == {"present": 0, "absent": 0, "unknown": 3}


def test_minus_1_beside_0_stays_ambiguous(tmp_path: Path) -> None:
    root = table(tmp_path, "image,cat\na,1\nb,0\nc,-1\n")
    with pytest.raises(DataError, match="neither 0 nor 1") as error:
        open_dataset(root)
    assert "? (unknown)" in error.value.expected


def voc(root: Path) -> Path:
    for key in ("a", "b", "c"):
        images(root, f"JPEGImages/{key}.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\nc\n")
    names = [{"name": "cat", "voc_index": 1}, {"name": "dog", "voc_index": 2}]
    (root / "classes.json").write_text(json.dumps({"classes": names}))
    return root


def test_voc_table_xml_and_masks(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "image_labels.csv").write_text("image_id,cat,dog,patient\na,1,?,p1\nb,0,0,p1\n")
    data = open_dataset(root)
    assert states(data) == {"a": "+?", "b": "--", "c": "??"}
    assert [record.group for record in data.records.values()] == ["p1", "p1", ""]
    assert any("1 listed images have no row in image_labels.csv" in note for note in data.notes)
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(f"<annotation>{OBJECT}</annotation>")
    (root / "Annotations" / "b.xml").write_text("<annotation></annotation>")
    xml = open_dataset(root, config=DataConfig(labels_from="xml"))
    assert states(xml) == {"a": "+-", "b": "--", "c": "??"}
    both = open_dataset(root, config=DataConfig(labels_from="xml", missing="unknown"))
    assert states(both) == {"a": "+?", "b": "??", "c": "??"}
    (root / "SegmentationClass").mkdir()
    Image.fromarray(np.full((3, 4), 2, np.uint8)).save(root / "SegmentationClass" / "c.png")
    masks = open_dataset(root, config=DataConfig(labels_from="masks"))
    assert states(masks) == {"a": "??", "b": "??", "c": "-+"}


def test_xml_beside_images(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "a.xml").write_text(f"<annotation>{OBJECT}</annotation>")
    (tmp_path / "b.xml").write_text("<annotation></annotation>")
    assert states(open_dataset(tmp_path)) == {"a": "+", "b": "-"}
    assert states(open_dataset(tmp_path, config=MISSING)) == {"a": "+", "b": "?"}


def coco(root: Path, *entries: dict[str, object]) -> Path:
    images(root, "images/a.png", "images/b.png", "images/c.png")
    table = {
        "images": [
            {"id": n, "file_name": f"{key}.png", **fields}
            for n, (key, fields) in enumerate(zip("abc", entries, strict=True), 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in ((3, "ant"), (5, "bee"), (9, "cow"))],
        "annotations": [{"image_id": 1, "category_id": 5, "bbox": [0, 0, 2, 2]}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(table))
    return root


def test_lvis_lists(tmp_path: Path) -> None:
    fields = [
        {"neg_category_ids": [3], "not_exhaustive_category_ids": [5], "patient_id": 7},
        {"neg_category_ids": [], "not_exhaustive_category_ids": []},
        {"not_exhaustive_category_ids": [9], "patient_id": "x"},
    ]
    data = open_dataset(coco(tmp_path, *fields))
    assert states(data) == {"a": "-+?", "b": "???", "c": "--?"}
    assert [record.group for record in data.records.values()] == ["7", "", "x"]
    assert any("column 'patient_id'" in note for note in data.notes)
    unknown = open_dataset(tmp_path, config=DataConfig(missing="unknown", group="none"))
    assert states(unknown) == {"a": "-+?", "b": "???", "c": "???"}
    assert not any(record.group for record in unknown.records.values())


def test_damaged_lvis_lists(tmp_path: Path) -> None:
    root = coco(tmp_path, {"neg_category_ids": "3"}, {"not_exhaustive_category_ids": [None]}, {})
    with pytest.raises(DataError, match=r"damaged entries \(2\): images\[0\] has the neg_category"):
        open_dataset(root)


@pytest.mark.parametrize("folder", ["good", "None", "OK", "no_defect", "background"])
def test_class_folders_of_negatives(tmp_path: Path, folder: str) -> None:
    images(tmp_path, f"{folder}/1.png", "crack/2.png", "hole/3.png")
    data = open_dataset(tmp_path)
    assert data.classes == ("crack", "hole")
    assert list(states(open_dataset(tmp_path, config=MISSING)).values()).count("--") == 1
    assert any(f"folder {folder!r} show none of the classes" in note for note in data.notes)
    if folder != "background":
        assert len(open_dataset(tmp_path, config=DataConfig(negative="none")).classes) == 3
        other = open_dataset(tmp_path, config=DataConfig(negative="Crack, hole"))
        assert other.classes == (folder,)


def test_a_tag_that_means_no_class(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tags\na,free\nb,hole\nc,crack;free\n")
    assert open_dataset(root).classes == ("crack", "free", "hole")
    data = open_dataset(root, config=DataConfig(negative="Free"))
    assert states(data) == {"a": "--", "b": "-+", "c": "+-"}
    (root / "classes.txt").write_text("crack\nfree\nhole\n")
    data = open_dataset(root, config=DataConfig(negative="free"))
    assert (data.classes, data.mask_values) == (("crack", "hole"), (1, 3))


@pytest.mark.parametrize("form", ["csv", "voc", "coco"])
def test_conversions_carry_unknown_classes_and_groups(tmp_path: Path, form: str) -> None:
    text = "image,tags,split,group\na,cat;?dog,train,g1\nb,?,train,g1\nc,,val,\n"
    source = open_dataset(table(tmp_path / "data", text))
    summary = convert(tmp_path / "data", tmp_path / form, form)
    target = open_dataset(tmp_path / form)
    assert states(target) == states(source) == {"a": "+?", "b": "??", "c": "--"}
    assert [r.group for r in target.records.values()] == ["g1", "g1", ""]
    assert not any("unknown" in text or "group" in text for text in summary["lost"])


def test_conversions_say_what_they_lose(tmp_path: Path) -> None:
    text = "image,tags,split,group\na,cat;?dog,train,g1\nb,?,train,g1\nc,,val,\n"
    summary = convert(table(tmp_path / "data", text), tmp_path / "folders", "folders")
    assert summary["lost"][:3] == [
        "0 images with several tags and 1 whose tags are unknown",
        "which classes of 1 images are unknown",
        "groups",
    ]
    convert(tmp_path / "data", tmp_path / "tags.csv")
    assert (tmp_path / "tags.csv").read_text() == (
        "image,cat,dog,group\na,1,?,g1\nb,?,?,g1\nc,0,0,\n"
    )
    convert(tmp_path / "tags.csv", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "tags.csv").read_bytes()
