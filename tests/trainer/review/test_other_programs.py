"""Answers as other programs, systems and versions write them are taken or refused, never lost."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.palette import encode_index_png, voc_palette, write_index_png
from trainer.errors import DataError
from trainer.review.brush import encode
from trainer.review.files import Files
from trainer.review.form import Answer
from trainer.review.forms import FORMS, opened_export
from trainer.review.labels import Labels

LABELS = Labels(("cat", "dog"))
MASK = np.zeros((8, 9), np.uint8)
MASK[1:4, 2:7] = 1
MASK[5] = 255


def answers(place: Path) -> list[Answer]:
    form, files = opened_export(place)
    return list(form.read(files, LABELS))


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["masks\\a.png", "review\\masks\\a.png", "masks/a.PNG", "a.PNG", "top/a.png"]
)
def test_names_in_zips(name: str, tmp_path: Path) -> None:
    png = encode_index_png(MASK)
    photo = encode_index_png(np.ones((8, 9), np.uint8))
    (answer,) = answers(zipped(tmp_path / "a.zip", **{name: png}))
    assert answer.name.removeprefix("top/") == "a"
    assert (answer.mask == MASK).all()
    # The photographs of a review are no masks.
    extra = {"review/images/a.png": photo} if "\\" not in name else {}
    assert len(answers(zipped(tmp_path / "b.zip", **{name: png, **extra}))) == 1


def test_both_masks_of_one_image_are_seen(tmp_path: Path) -> None:
    first, second = encode_index_png(MASK), encode_index_png(MASK[::-1].copy())
    path = zipped(tmp_path / "a.zip", **{"one/masks/a.png": first, "two/masks/a.png": second})
    assert [answer.name for answer in answers(path)] == ["a", "a"]
    path = zipped(
        tmp_path / "b.zip",
        **{
            "labelmap.txt": b"cat:128,0,0::\nignore:224,224,192::\n",
            "one/SegmentationClass/a.png": first,
            "two/SegmentationClass/a.png": second,
        },
    )
    assert [answer.name for answer in answers(path)] == ["a", "a"]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("masks/a.png", first)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("masks/a.png", second)
    with pytest.raises(DataError, match=r"two files 'masks/a\.png'"):
        Files(tmp_path / "c.zip")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no end", encode_index_png(MASK)])
def test_a_zip_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip cannot be read"):
        opened_export(tmp_path / "a.zip")


def test_sixteen_bits_and_opacity(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(MASK.astype(np.uint16)).save(tmp_path / "masks" / "a.png")
    (answer,) = answers(tmp_path)
    assert (answer.mask == MASK).all()
    Image.fromarray(MASK).convert("LA").save(tmp_path / "masks" / "a.png")
    (answer,) = answers(tmp_path)
    assert (answer.mask == MASK).all()
    Image.fromarray(MASK.astype(np.uint16) * 257).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="numbers from 0 to 65535"):
        answers(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.jpg", r"a\.jpg is no PNG"), ("a.tif", r"a\.tif is no PNG"), ("a.png", "is a JPEG")],
)
def test_masks_of_another_kind(name: str, words: str, tmp_path: Path) -> None:
    write_index_png(tmp_path / "masks" / "b.png", MASK)
    kind = "TIFF" if name.endswith("tif") else "JPEG"
    Image.fromarray(MASK).save(tmp_path / "masks" / name, kind)
    with pytest.raises(DataError, match=words):
        answers(tmp_path)
    # Beside the mask itself, it may be anything.
    write_index_png(tmp_path / "masks" / "a.png", MASK)
    assert len(answers(tmp_path)) == 2


def test_the_palette_of_many_classes_in_another_order(tmp_path: Path) -> None:
    labels = Labels(tuple(f"class {n}" for n in range(40)))
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette(voc_palette()[[0, 33, 255]].tobytes())
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / "a.png")
    (answer,) = FORMS["folder"].read(Files(tmp_path), labels)
    assert answer.mask is not None
    assert answer.mask.tolist() == [[0, 33, 255]]


def label_studio(path: Path, task: dict[str, Any]) -> list[Answer]:
    path.write_text(json.dumps([task]))
    return answers(path)


def region() -> dict[str, Any]:
    height, width = MASK.shape
    value = {"format": "rle", "rle": encode(MASK == 1), "brushlabels": ["cat"]}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"type": "brushlabels", "value": value, **size}


@pytest.mark.parametrize("key", ["annotations", "completions"])
@pytest.mark.parametrize(
    "data",
    [
        {"image": "/upload/1/0123abcd-a.png"},
        {"photo": "/upload/1/0123abcd-a.png", "note": "blue"},
        {"photo": "https://images.example/x/a.jpg?key=1.5", "image": None},
        {"photo": "/data/local-files/?d=x/a.jpg"},
    ],
)
def test_tasks_of_other_projects_and_versions(
    key: str, data: dict[str, Any], tmp_path: Path
) -> None:
    task = {"data": data, key: [{"result": [region()]}]}
    (answer,) = label_studio(tmp_path / "a.json", task)
    assert answer.name == "a"
    assert answer.mask is not None
    assert (answer.mask == (MASK == 1)).all()


@pytest.mark.parametrize("tag", ["mask", "tag", "brush strokes"])
def test_json_min_names_regions_by_their_tag(tag: str, tmp_path: Path) -> None:
    value = {**region().pop("value"), **{k: v for k, v in region().items() if k != "type"}}
    task = {"image": "a.png", "boxes": [{"x": 3}], "annotation_id": 1, tag: [value]}
    (answer,) = label_studio(tmp_path / "a.json", task)
    assert answer.mask is not None
    assert (answer.mask == (MASK == 1)).all()


@pytest.mark.parametrize(
    "change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.decode().encode("utf-16")]
)
def test_json_of_windows(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [region()]}]}
    (tmp_path / "a.json").write_bytes(change(json.dumps([task]).encode()))
    assert len(answers(tmp_path / "a.json")) == 1


def test_json_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="is no JSON"):
        answers(tmp_path / "a.json")
