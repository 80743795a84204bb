"""Segments that a user brings: which file belongs to which image, and what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from tiny_nets import pictures

from trainer.data.coco.segments import find_segments, label_segments, read_segments
from trainer.errors import DataError

SIZE = (6, 9)


def disc(row: int, column: int) -> np.ndarray:
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= 6


def runs(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    """COCO run lengths, as pycocotools or by hand: down the columns, background first."""
    if compressed:
        packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(packed["size"]), "counts": packed["counts"].decode()}
    flat = [0, *mask.T.ravel().astype(int), 2]
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff([0, *edges[:-1], mask.size]) if len(edges) > 1 else [mask.size]
    return {"size": list(mask.shape), "counts": [int(n) for n in counts]}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("form", ["bare", "segmentation", "annotations"])
def test_run_lengths_of_every_form(tmp_path, form, compressed):
    masks = [disc(2, 2), disc(3, 4), np.zeros(SIZE, bool)]
    entries: Any = [runs(mask, compressed) for mask in masks]
    if form != "bare":
        entries = [{"segmentation": entry, "area": 3} for entry in entries]
    if form == "annotations":
        entries = {"image": {"file_name": "a.jpg"}, "annotations": entries}
    segments = read_segments(write(tmp_path / "a.json", entries), SIZE)
    # They may overlap, and an empty one is none.
    assert [s.tolist() for s in segments] == [np.flatnonzero(m).tolist() for m in masks[:2]]


def test_polygons(tmp_path):
    path = write(tmp_path / "a.json", [{"segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}])
    (segment,) = read_segments(path, SIZE)
    expected = np.zeros(SIZE, bool)
    expected[1:4, 1:5] = True
    assert segment.tolist() == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.uint8, "a.png"), (np.uint16, "a.png"), (np.uint16, "a.TIF"), (np.int32, "a.tiff")],
)
def test_a_label_picture_holds_a_number_for_each_segment(tmp_path, dtype, name):
    labels = np.zeros(SIZE, dtype)
    labels[:2], labels[3:, 4:] = np.iinfo(dtype).max, 7
    Image.fromarray(labels).save(tmp_path / name)
    segments = read_segments(tmp_path / name, SIZE)
    expected = [np.flatnonzero(labels == n).tolist() for n in (7, np.iinfo(dtype).max)]
    assert [s.tolist() for s in segments] == expected
    assert [s.tolist() for s in label_segments(labels)] == expected


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a": 1}, "no list of segments"),
        ([1], "no list of segments"),
        ([{"size": [6, 9], "counts": [3, 4]}], "segment 1 of 1: run lengths that do not fill 54"),
        ([{"size": [9, 6], "counts": [54]}], r"a \[9, 6\] picture in one of \[6, 9\]"),
        ([{"size": [6, 9], "counts": "zzz"}], "damaged text of run lengths"),
        ([{"segmentation": [[1, 2, 3]]}], "odd number"),
    ],
)
def test_json_that_holds_no_segments(tmp_path, content, found):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(DataError, match=found) as caught:
        read_segments(path, SIZE)
    assert str(path) in caught.value.found


def test_files_that_hold_no_segments(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="Expecting property name"):
        read_segments(tmp_path / "a.json", SIZE)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="a RGB picture"):
        read_segments(tmp_path / "b.png", SIZE)
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match="9 x 6 pixels") as caught:
        read_segments(tmp_path / "c.png", SIZE)
    assert "6 x 9" in caught.value.expected
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read"):
        read_segments(tmp_path / "d.png", SIZE)


def test_files_are_called_like_their_images(tmp_path):
    dataset, folder = pictures(tmp_path / "data", 3), tmp_path / "segments"
    folder.mkdir()
    for name in ("p0.png", "p1.json", "P2.png", ".hidden.png", "notes.txt"):
        (folder / name).touch()
    assert find_segments(folder, dataset) == {
        "p0": folder / "p0.png",
        "p1": folder / "p1.json",
        "p2": folder / "P2.png",
    }
    (folder / "p1.png").touch()
    (folder / "q.json").touch()
    with pytest.raises(DataError) as caught:
        find_segments(folder, dataset)
    assert "1 files belong to no image: q.json" in caught.value.found
    assert "1 images have two files: p1.json and p1.png" in caught.value.found
    with pytest.raises(DataError, match="is no folder of segments"):
        find_segments(folder / "p0.png", dataset)


def test_a_file_of_several_images_is_refused(tmp_path):
    entries = [{"image_id": n, "segmentation": runs(disc(2, 2), True)} for n in (1, 2)]
    with pytest.raises(DataError, match="several images"):
        read_segments(write(tmp_path / "a.json", {"annotations": entries}), SIZE)
    assert len(read_segments(write(tmp_path / "a.json", entries[:1] * 2), SIZE)) == 2


@pytest.mark.parametrize("kind", [bool, int])
def test_a_mask_row_by_row_is_no_outline(tmp_path, kind):
    # As SAM returns masks unless it is asked for run lengths.
    entries = [{"segmentation": disc(2, 2).T.astype(kind).tolist()}]
    with pytest.raises(DataError, match="in place of an outline"):
        read_segments(write(tmp_path / "a.json", entries), SIZE[::-1])


def test_json_that_is_too_deep(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="recursion"):
        read_segments(tmp_path / "a.json", SIZE)


def test_label_pictures_are_turned_as_their_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    label = np.zeros(SIZE[::-1], np.uint8)
    label[0, 0] = 1
    Image.fromarray(label).save(tmp_path / "a.png", exif=exif)
    (segment,) = read_segments(tmp_path / "a.png", SIZE)
    assert segment.tolist() == [SIZE[1] - 1]
