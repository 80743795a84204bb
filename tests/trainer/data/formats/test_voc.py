from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from voc_tree import make_image, make_mask, make_tree, make_xml

from trainer.data.formats import voc
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.data.palette import voc_palette
from trainer.errors import DataError


def write_labels(
    root: Path, text: str, classes: tuple[tuple[str, int], ...] = (("cat", 8), ("dog", 12))
) -> None:
    table = {"classes": [{"name": n, "voc_index": v} for n, v in classes], "ignore": 255}
    (root / "classes.json").write_text(json.dumps(table))
    (root / "image_labels.csv").write_text(text)


def test_csv_tags_classes_and_lists(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n\n2007_000033\n", "val": "b 1\n"})
    labels = "image_id,dog,cat,mask_source\n2007_000032,1,0,sbd\n2007_000033,1,1,sbd\nb 1,0,1,voc\n"
    write_labels(root, labels)
    make_mask(root / "SegmentationClass" / "2007_000032.png", [[0, 8], [12, 255]])
    data = open_dataset(root)
    assert data.format == "voc"
    assert data.classes == ("cat", "dog")
    assert data.mask_values == (8, 12)
    assert data.lists == {
        "train": ("2007_000032", "2007_000033"),
        "val": ("b 1",),
        "all": ("2007_000032", "2007_000033", "b 1"),
    }
    assert [r.tags for r in data.subset("all")] == [(1,), (0, 1), (0,)]
    assert data.tags_from == "image_labels.csv"
    assert data.tag_matrix(data.subset("all")).tolist() == [[0, 1], [1, 1], [1, 0]]
    record = data.records["2007_000032"]
    assert data.has_mask(record)
    assert data.read_mask(record).tolist() == [[0, 1], [2, 255]]
    assert not data.has_mask(data.records["b 1"])
    with pytest.raises(DataError, match="has no mask"):
        data.read_mask(data.records["b 1"])


def test_two_column_lists_and_sbd_name(tmp_path: Path) -> None:
    lines = (
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n/JPEGImages/b 1.jpg"
        " /Seg/b 1.png\n"
    )
    root = make_tree(tmp_path, {"trainaug": lines, "train": "2007_000032 1\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    data = open_dataset(root)
    assert data.lists["train_aug"] == ("2007_000032", "b 1")
    assert data.lists["train"] == ("2007_000032",)
    assert any("1 listed images have no row" in note for note in data.notes)
    assert "1 of 2 images have unknown classes; of 1 of them nothing is known" in data.notes
    assert data.records["b 1"].tags == ()
    assert data.records["b 1"].unknown == (0, 1)


def test_xml_tags_count_difficult_objects_but_not_parts(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n2007_000033\nb 1\n"})
    make_xml(root, "2007_000032", [("person", 1), ("dog", 0), ("dog", 0)])
    make_xml(root, "2007_000033", [("unicorn", 0)])
    data = open_dataset(root)
    assert data.classes == voc.VOC_CLASSES
    assert [data.classes[k] for k in data.records["2007_000032"].tags] == ["dog", "person"]
    assert data.records["2007_000033"].tags == ()
    assert "difficult" in data.tags_from
    assert any("unicorn" in note for note in data.notes)
    assert any("1 listed images have no file in Annotations" in note for note in data.notes)


def test_mask_tags_and_aug_masks_as_second_choice(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n2007_000033\n"})
    make_mask(root / "SegmentationClassAug" / "2007_000032.png", [[0, 20]])
    make_mask(root / "SegmentationClass" / "2007_000032.png", [[1, 255]])
    make_mask(root / "SegmentationClassAug" / "2007_000033.png", [[0, 20]])
    data = open_dataset(root)
    assert data.records["2007_000032"].tags == (0,)
    assert data.records["2007_000033"].tags == (19,)
    assert data.tags_from == "classes in the masks"
    assert data.read_mask(data.records["2007_000032"]).tolist() == [[1, 255]]


def test_labels_from_is_obeyed_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n2007_000033\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n2007_000033,1,0\n")
    make_xml(root, "2007_000032", [("dog", 0)])
    make_mask(root / "SegmentationClass" / "2007_000032.png", [[8, 12]])

    def tags(source: Any) -> tuple[int, ...]:
        return open_dataset(root, config=DataConfig(labels_from=source)).records["2007_000032"].tags

    assert [tags(source) for source in ("auto", "csv", "xml", "masks")] == [
        (0,),
        (0,),
        (1,),
        (0, 1),
    ]
    prints = {
        open_dataset(root, config=DataConfig(labels_from=s)).fingerprint()
        for s in ("auto", "xml", "masks")
    }
    assert len(prints) == 3
    data = open_dataset(root, config=DataConfig(labels_from="masks"))
    assert data.tags_from == "classes in the masks"
    assert data.records["2007_000033"].unknown == (0, 1)
    (root / "image_labels.csv").unlink()
    assert open_dataset(root).tags_from.startswith("objects of Annotations")
    with pytest.raises(DataError, match=r"has no image_labels\.csv") as error:
        tags("csv")
    assert error.value.expected.endswith("what is there: xml, masks")


def test_masks_in_colours(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n2007_000033\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n2007_000033,1,0\n")
    coloured, plain = (
        root / "SegmentationClass" / f"{name}.png" for name in ("2007_000032", "2007_000033")
    )
    make_mask(plain, [[8, 255]])
    Image.fromarray(voc_palette()[[[0, 8], [12, 255]]]).save(coloured)
    data = open_dataset(root, config=DataConfig(masks="colours"))
    assert [data.read_mask(record).tolist() for record in data.subset("train")] == [
        [[0, 1], [2, 255]],
        [[1, 255]],
    ]
    with pytest.raises(DataError, match="is a RGB picture") as error:
        open_dataset(root).read_mask(data.records["2007_000032"])
    assert (
        f"wsss-trainer convert {coloured.parent} NEW --to masks --set data.masks=colours"
        in error.value.hint
    )
    Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(coloured)
    with pytest.raises(
        DataError, match=r"palette lacks, at 100\.0% of its pixels: first \(7, 7, 7\)"
    ):
        data.read_mask(data.records["2007_000032"])


def test_grey_levels_of_the_colours_are_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    path = root / "SegmentationClass" / "2007_000032.png"
    path.parent.mkdir()
    Image.fromarray(voc_palette()[[[0, 8], [12, 255]]]).convert("L").save(path)
    data = open_dataset(root)
    with pytest.raises(DataError, match=r"holds \[19, 34, 220\]: grey levels of the VOC colours"):
        data.read_mask(data.records["2007_000032"])


def test_without_lists_every_image_is_a_record(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n2007_000033.jpg,0,1\n")
    data = open_dataset(root)
    assert set(data.lists) == {"all"}
    assert len(data.records) == 3
    assert data.records["2007_000033"].tags == (1,)


def test_unlisted_images_are_counted(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    assert any(
        note.startswith("2 images in JPEGImages are in no list")
        for note in open_dataset(root).notes
    )


def test_list_with_absent_images(tmp_path: Path) -> None:
    listing = "".join(f"gone_{n}\n" for n in range(9)) + "2007_000032\n"
    root = make_tree(tmp_path, {"train": listing})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    with pytest.raises(
        DataError, match=r"names 9 images that are not there: gone_0, .* and 4 more"
    ):
        open_dataset(root)
    problems: list[DataError] = []
    assert open_dataset(root, problems).lists["train"] == ("2007_000032",)
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("lists", "labels", "message"),
    [
        ("2007_000032\n2007_000032\n", "image_id,cat,dog\n", "twice: 2007_000032"),
        (
            "2007_000032\n",
            "picture,cat,dog\n",
            "columns 'picture', 'cat', 'dog': no column of image names",
        ),
        ("2007_000032\n", "image_id,cat\n", "no column for dog"),
        (
            "2007_000032\n",
            "image_id,cat,dog\n2007_000032,1,maybe\n",
            "line 2, column 'dog': 'maybe'",
        ),
        ("2007_000032\n", "image_id,cat,dog\n2007_000032,1\n", "line 2 has 2 cells"),
        ("2007_000032\n", "image_id,cat,dog\n2007_000032,1,0\n2007_000032,0,1\n", "different tags"),
        ("2007_000032\n", "image_id,cat,cat\n", "repeats a column"),
        ("2007_000032\n", "", "is empty"),
    ],
)
def test_bad_lists_and_labels(tmp_path: Path, lists: str, labels: str, message: str) -> None:
    root = make_tree(tmp_path, {"train": lists})
    write_labels(root, labels)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


@pytest.mark.parametrize(
    "table",
    [
        "not json",
        '{"classes": [{"name": "cat"}]}',
        '{"classes": []}',
        '{"classes": [{"name": "cat", "voc_index": 3}, {"name": "cat", "voc_index": 4}]}',
        '{"classes": [{"name": "cat", "voc_index": 3}, {"name": "dog", "voc_index": 3}]}',
        '{"classes": [{"name": "cat", "voc_index": 0}]}',
        '{"classes": [{"name": "cat", "voc_index": 1}], "ignore": 254}',
        "[]",
    ],
)
def test_bad_class_table(tmp_path: Path, table: str) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    (root / "classes.json").write_text(table)
    with pytest.raises(DataError, match=r"classes\.json"):
        open_dataset(root)


def test_two_files_with_one_id(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n"})
    make_image(root / "JPEGImages" / "2007_000032.png")
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    with pytest.raises(DataError, match=r"1 names twice.*2007_000032\.png"):
        open_dataset(root)


def test_damaged_xml_list_and_no_tags(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n"})
    with pytest.raises(DataError, match="has no tags"):
        open_dataset(root)
    make_xml(root, "2007_000032", [("dog", 0)])
    (root / "Annotations" / "2007_000032.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"2007_000032\.xml cannot be read"):
        open_dataset(root)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.txt is not text"):
        open_dataset(root)


def test_no_images(tmp_path: Path) -> None:
    make_tree(tmp_path, {"train": ""}, names=())
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        open_dataset(tmp_path)


def test_unknown_mask_value(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n"})
    write_labels(root, "image_id,cat,dog\n2007_000032,1,0\n")
    make_mask(root / "SegmentationClass" / "2007_000032.png", [[0, 9, 10]])
    data = open_dataset(root)
    with pytest.raises(DataError, match=r"values \[9, 10\]"):
        data.read_mask(data.records["2007_000032"])
