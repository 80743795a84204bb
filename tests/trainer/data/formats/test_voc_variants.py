"""VOC trees, lists, annotations and masks as tools other than VOC's write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from voc_tree import make_image, make_mask, make_tree, make_xml

from trainer.checks.check import check
from trainer.data.formats.opening import open_dataset
from trainer.data.remarks import Remarks
from trainer.data.voc import xml as voc_xml
from trainer.data.voc.lists import list_id
from trainer.data.voc.xml import object_names, read_objects
from trainer.errors import DataError

FUZZ = settings(
    max_examples=int(os.environ.get("WSSS_FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NFC, NFD = "K\u00fche 1", "Ku\u0308he 1"


def tags(data: Any) -> dict[str, list[str]]:
    return {i: [data.classes[k] for k in record.tags] for i, record in data.records.items()}


@pytest.mark.parametrize(
    ("line", "id_"),
    [
        ("my cow 1.jpg", "my cow 1"),
        ("my cow 1", "my cow 1"),
        ("my cow 1 -1", "my cow 1"),
        ("2007_000032  1", "2007_000032"),
        ("JPEGImages\\2007_000032.JPG", "2007_000032"),
        ("..\\..\\VOC 2012\\JPEGImages\\my cow 1.jpg", "my cow 1"),
        ("C:\\my data\\JPEGImages\\2007_000032", "2007_000032"),
        ("/JPEGImages/my cow 1.jpg /SegmentationClass/my cow 1_mask.png", "my cow 1"),
        ("JPEGImages/my.jpg SegmentationClass/my.png", "my"),
        ("/JPEGImages/my cow 1 /Seg/other", "my cow 1"),
        ("/JPEGImages/2007_000032.jpg\t/Seg/x.png", "2007_000032"),
        (NFD, NFC),
        ("gone 7.jpg", "gone 7"),
        ("gone.tar 1", "gone.tar"),
    ],
)
def test_a_list_line_names_an_image_however_it_is_written(line: str, id_: str) -> None:
    assert list_id(line, {"my", "my cow 1", "2007_000032", NFC}) == id_


@FUZZ
@given(st.text(min_size=1).map(str.strip).filter(bool), st.text(min_size=1))
def test_any_list_line_means_some_id(line: str, known: str) -> None:
    assert isinstance(list_id(line, {known}), str)


def test_names_in_both_unicode_forms_are_one(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"Train": f"{NFC}\n"}, names=(NFD,))
    make_xml(root, NFC, [("K\u00fche", 0), ("Ku\u0308he", 0)])
    data = open_dataset(root)
    assert data.classes == ("K\u00fche",)
    assert tags(data) == {NFC: ["K\u00fche"]}
    assert data.default_list("train") == "train"


def test_letter_case_of_objects_does_not_lose_tags(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n2007_000033\n"})
    make_xml(root, "2007_000032", [("Cow", 0)])
    make_xml(root, "2007_000033", [("cow", 0), (" DOG ", 0)])
    data = open_dataset(root)
    assert tags(data) == {"2007_000032": ["cow"], "2007_000033": ["cow", "dog"]}
    assert any("'Cow' = 'cow'" in note for note in data.notes)


def test_a_class_table_of_names_in_the_annotations(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "a\nb\n"}, names=("a", "b"))
    make_xml(root, "a", [("Zebra", 0), ("cow", 0)])
    make_xml(root, "b", [("zebra", 0), ("zebra", 0), ("lynx", 0)])
    data = open_dataset(root)
    assert data.classes == ("Zebra", "cow", "lynx")
    assert check(root).ok
    make_mask(root / "SegmentationClass" / "a.png", [[0, 1]])
    with pytest.raises(DataError, match="has masks and no class table") as error:
        open_dataset(root)
    assert 'classes.json: {"classes": [{"voc_index": 1, "name": "Zebra"}' in error.value.expected


def test_own_photographs_of_some_of_vocs_classes_have_those_only(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "a\nb\n"}, names=("a", "b"))
    make_xml(root, "a", [("dog", 0)])
    make_xml(root, "b", [("cat", 0)])
    make_mask(root / "SegmentationClass" / "a.png", [[0, 12]])
    data = open_dataset(root)
    assert (data.classes, data.mask_values) == (("cat", "dog"), (8, 12))
    assert data.read_mask(data.records["a"]).tolist() == [[0, 2]]


def test_lists_of_main_and_no_lists(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {}, names=("a", "b", "c d"))
    (root / "ImageSets" / "Segmentation").rmdir()
    for name in ("a", "b", "c d"):
        make_xml(root, name, [("dog", 0)])
    main = root / "ImageSets" / "Main"
    main.mkdir()
    (main / "train.txt").write_text("a\nc d.jpg\n")
    (main / "val.txt").write_text("b\n")
    (main / "dog_train.txt").write_text("a  1\nc d -1\n")
    data = open_dataset(root)
    assert data.lists == {"train": ("a", "c d"), "val": ("b",), "all": ("a", "b", "c d")}
    for path in main.iterdir():
        path.unlink()
    main.rmdir()
    (root / "ImageSets").rmdir()
    assert set(open_dataset(root).lists) == {"all"}


LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
cat:128,0,0::
ignored:9,9,9::
cow:0,128,0:body,head:
dog:128,128,0::
"""


def cvat(root: Path, labelmap: str = LABELMAP) -> Path:
    make_tree(root, {"default": "a\nb\n"}, names=("a", "b"))
    (root / "labelmap.txt").write_text(labelmap)
    colours = [[(0, 0, 0), (128, 0, 0), (9, 9, 9)], [(0, 128, 0), (128, 128, 0), (224, 224, 192)]]
    (root / "SegmentationClass").mkdir()
    Image.fromarray(np.array(colours, np.uint8)).save(root / "SegmentationClass" / "a.png")
    paletted = Image.fromarray(np.array(colours, np.uint8)).quantize(6)
    paletted.save(root / "SegmentationClass" / "b.png")
    return root


def test_cvats_class_table_and_colours_are_read(tmp_path: Path) -> None:
    data = open_dataset(cvat(tmp_path))
    assert data.classes == ("cat", "cow", "dog")
    assert tags(data) == {"a": ["cat", "cow", "dog"], "b": ["cat", "cow", "dog"]}
    for record in data.subset("default"):
        assert data.read_mask(record).tolist() == [[0, 1, 255], [2, 3, 255]]
    make_mask(tmp_path / "SegmentationClass" / "b.png", [[0, 1, 2, 3, 255]])
    data = open_dataset(tmp_path)
    assert data.read_mask(data.records["b"]).tolist() == [[0, 1, 2, 3, 255]]


def test_a_colour_that_the_table_lacks_is_one_error_for_all_masks(tmp_path: Path) -> None:
    cvat(tmp_path, LABELMAP.replace("128,0,0", "127,0,0"))
    (problem,) = (p for p in check(tmp_path).problems if p.kind == "data")
    assert problem.message.startswith("2 of 2 masks give no tags")
    assert "holds colours that the data set's class table lacks" in problem.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n", "line 1: 'cat'"),
        ("cat:1,2::\n", "line 1"),
        ("cat:1,2,300::\n", "line 1"),
        ("cat:::\n", "line 1"),
        ("cat:1,2,3::\ndog:1,2,3::\n", "line 2: 'dog' has the colour 1, 2, 3 of another label"),
        ("cat:0,0,0::\n", "or of the background"),
        ("background:0,0,0::\n", "has 0 classes"),
        ("cat:1,2,3::\ncat:3,2,1::\n", "repeats cat"),
    ],
)
def test_a_bad_labelmap_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(cvat(tmp_path, text))


def test_cvat_without_images_says_where_they_belong(tmp_path: Path) -> None:
    root = cvat(tmp_path)
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    (root / "JPEGImages").rmdir()
    with pytest.raises(DataError, match="JPEGImages holds no image") as error:
        open_dataset(root)
    assert "copy them to JPEGImages" in error.value.hint


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<annotation>",
        "<annotations><image/></annotations>",
        "<annotation><object/></annotation>",
        "<annotation><object><name> </name></object></annotation>",
        f"<annotation><object><name>{'x' * 300}</name></object></annotation>",
        '<!DOCTYPE a [<!ENTITY b "cow">]><annotation><object><name>&b;</name></object>'
        "</annotation>",
        '<?xml version="1.0" encoding="unheard-of"?><annotation/>',
        "<annotation>" + "<a>" * 5000,
    ],
)
def test_bad_annotations_are_one_error(tmp_path: Path, xml: str) -> None:
    root = make_tree(tmp_path, {"train": "2007_000032\n2007_000033\nb 1\n"})
    make_xml(root, "b 1", [("dog", 0)])
    for name in ("2007_000032", "2007_000033"):
        make_xml(root, name, [])
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    with pytest.raises(DataError, match=r"2 annotations cannot be used: .*2007_000032\.xml"):
        open_dataset(root)
    problems: list[DataError] = []
    assert tags(open_dataset(root, problems))["b 1"] == ["dog"]
    assert len(problems) == 1


def test_an_annotation_is_not_read_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voc_xml, "MOST_BYTES", 50)
    (tmp_path / "a.xml").write_text(f"<annotation>{' ' * 50}</annotation>")
    with pytest.raises(DataError, match="it has 75 bytes"):
        object_names(tmp_path / "a.xml")


def test_numbers_in_annotations_decide_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        "<annotation><size><width>1e400</width><height>-9</height></size><object><name>cow</name>"
        f"<bndbox><xmin>{'9' * 5000}</xmin></bndbox></object></annotation>"
    )
    assert object_names(tmp_path / "a.xml") == {"cow"}


PIECES = st.sampled_from(
    [
        "<annotation>",
        "</annotation>",
        "<object>",
        "</object>",
        "<name>",
        "</name>",
        "<part>",
        "cow",
        "&lt;",
        "&#0;",
        "&a;",
        "<!--",
        "-->",
        "<![CDATA[x]]>",
        "<!DOCTYPE",
        "\x00",
        "é",
    ]
)


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(PIECES, max_size=14).map(lambda pieces: "".join(pieces).encode()),
        st.lists(PIECES, max_size=14).map(
            lambda p: (
                f"<annotation><object><name>cow</name>{''.join(p)}</object></annotation>".encode()
            )
        ),
    )
)
def test_any_bytes_are_names_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.xml"
    path.write_bytes(content)
    problems: list[DataError] = []
    names = read_objects({"a": path}, ["a"], Remarks(problems))
    assert bool(problems) == ("a" not in names)
    assert all(names.get("a", ()))


def test_labelimg_writes_annotations_beside_pictures(tmp_path: Path) -> None:
    for name in ("my cat", "cow", "none", "later"):
        make_image(tmp_path / f"{name}.jpg")
    for name, shown in (("my cat", "Cat"), ("cow", "cow"), ("none", ""), ("stray", "cow")):
        entry = f"<object><name>{shown}</name></object>" if shown else ""
        (tmp_path / f"{name}.xml").write_text(f"<annotation>{entry}</annotation>")
    data = open_dataset(tmp_path)
    assert data.format == "xml"
    assert tags(data) == {"cow": ["cow"], "my cat": ["Cat"], "none": []}
    assert "1 images have no annotation and are left out" in data.notes
    assert "1 annotations belong to no image: stray.xml" in data.notes


def test_roboflow_has_a_folder_a_list_and_kaggle_one_for_annotations(tmp_path: Path) -> None:
    for place, shown in (("train/a", "cat"), ("train/b", "dog"), ("valid/a", "cat")):
        make_image(tmp_path / "one" / f"{place}.jpg")
        (tmp_path / "one" / f"{place}.xml").write_text(
            f"<annotation><object><name>{shown}</name></object></annotation>"
        )
    data = open_dataset(tmp_path / "one")
    assert data.lists["train"] == ("train__a", "train__b")
    assert data.lists["valid"] == ("valid__a",)
    assert data.default_list("val") == "valid"
    make_image(tmp_path / "two" / "images" / "a.png")
    (tmp_path / "two" / "annotations").mkdir()
    (tmp_path / "two" / "annotations" / "a.xml").write_text(
        "<annotation><object><name>cat</name></object></annotation>"
    )
    assert tags(open_dataset(tmp_path / "two")) == {"images__a": ["cat"]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_lists_of_other_encodings_and_systems(tmp_path: Path, encoding: str) -> None:
    root = make_tree(tmp_path, {}, names=("a", "Küche"))
    for name in ("a", "Küche"):
        make_xml(root, name, [("dog", 0)])
    folder = root / "ImageSets" / "Segmentation"
    # PowerShell writes UTF-16; macOS puts a file of its own beside each file on foreign disks.
    (folder / "train.TXT").write_bytes("a\r\nKüche\r\n".encode(encoding))
    (folder / "._train.txt").write_bytes(b"\0\5\x16\7\xff\xfe\0")
    assert open_dataset(root).lists["train"] == ("a", "Küche")


def test_a_list_that_is_no_text_is_one_problem(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"val": "a\n"}, names=("a",))
    make_xml(root, "a", [("dog", 0)])
    (root / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"a\n\0\0")
    with pytest.raises(DataError, match=r"train.txt is not text: it holds zero bytes"):
        open_dataset(root)


def test_annotations_with_large_letters_go_before_masks(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "a\n"}, names=("a",))
    make_xml(root, "a", [("dog", 0)])
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "a.XML")
    make_mask(root / "SegmentationClass" / "a.png", [[8] * 8] * 6)
    data = open_dataset(root)
    assert data.tags_from.startswith("objects of Annotations")
    assert tags(data) == {"a": ["dog"]}


def test_masks_of_other_kinds_and_names(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "a\nb\n"}, names=("a", "b"))
    for name in ("a", "b"):
        make_xml(root, name, [("dog", 0)])
    make_mask(root / "SegmentationClass" / "a.tif", [[12] * 8] * 6)
    make_mask(root / "SegmentationClass" / "b_mask.png", [[12] * 8] * 6)
    data = open_dataset(root)
    assert data.read_mask(data.records["a"]).max() == 1
    assert not data.has_mask(data.records["b"])
    assert any(note.startswith("1 files among the masks belong to no") for note in data.notes)


def test_objects_called_background_are_of_no_class(tmp_path: Path) -> None:
    root = make_tree(tmp_path, {"train": "a\nb\nc\n"}, names=("a", "b", "c"))
    make_xml(root, "a", [("background", 0), ("car", 0)])
    make_xml(root, "b", [("__ignore__", 0)])
    make_xml(root, "c", [("bus", 0)])
    data = open_dataset(root)
    assert data.classes == ("bus", "car")
    assert tags(data) == {"a": ["car"], "b": [], "c": ["bus"]}
    assert "objects called '__ignore__', 'background' are of no class" in data.notes
