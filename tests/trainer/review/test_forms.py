"""Masks that no one touches come back equal to the byte, in the form of every tool."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.palette import encode_index_png, voc_palette
from trainer.errors import DataError
from trainer.review import brush
from trainer.review.files import Files
from trainer.review.form import Request, Task
from trainer.review.forms import FORMS, opened_export
from trainer.review.labels import Labels

CLASSES = ("cat", "dog, wild", "<é>")
LABELS = Labels(CLASSES)


def masks() -> dict[str, np.ndarray]:
    """Holes, several parts, single pixels, pixels at every border, and ignored pixels."""
    rings = np.zeros((40, 56), np.uint8)
    rings[5:30, 5:30] = 1
    rings[10:25, 10:25] = 0
    rings[15:18, 15:18] = 2
    rings[[0, 0, -1, -1], [0, -1, 0, -1]] = 3
    rings[35, 20:50] = 255
    dots = np.zeros((7, 300), np.uint8)
    dots[::2, ::2] = 2
    dots[1, 1] = 1
    noise = np.random.default_rng(0).choice([0, 1, 2, 3, 255], (33, 17)).astype(np.uint8)
    return {
        "rings": rings,
        "part/dots": dots,
        "noise.jpg": noise,
        "empty": np.zeros((3, 4), np.uint8),
        "full": np.full((280, 290), 3, np.uint8),
    }


def request(folder: Path, url: str = "") -> Request:
    tasks = []
    for name, mask in masks().items():
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(voc_palette()[mask]).save(path)
        place = path.relative_to(folder).as_posix()
        tasks.append(Task(name, place, mask.shape, ("cat",), "why", 0.5, lambda mask=mask: mask))
    return Request("key", LABELS, tasks, "model", url)


def submitted(place: Path) -> Path:
    """What Label Studio exports after somebody has submitted every task as it is."""
    tasks = json.loads((place / "tasks.json").read_text())
    for number, task in enumerate(tasks, 1):
        (guess,) = task.pop("predictions")
        task["id"] = number
        task["annotations"] = [{"result": guess["result"], "was_cancelled": False}]
    path = place / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def shortened(place: Path) -> Path:
    """The same as JSON-MIN."""
    tasks = json.loads(submitted(place).read_text())
    rows = []
    for task in tasks:
        results = [
            {**result["value"], **{k: result[k] for k in ("original_width", "original_height")}}
            for result in task["annotations"][0]["result"]
        ]
        row = {**task["data"], "id": task["id"], "annotation_id": 1}
        rows.append(row | {"mask": results} if results else row)
    path = place / "export-min.json"
    path.write_text(json.dumps(rows))
    return path


def zipped(place: Path, name: str = "review.zip") -> Path:
    path = place.parent / name
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(place.rglob("*")):
            archive.write(file, f"top/{file.relative_to(place).as_posix()}")
    return path


@pytest.mark.parametrize(
    ("form", "export"),
    [
        ("folder", lambda place: place),
        ("folder", zipped),
        ("cvat", lambda place: place / "annotations.zip"),
        ("labelstudio", submitted),
        ("labelstudio", shortened),
    ],
)
def test_untouched_masks_return_to_the_byte(
    form: str, export: Callable[[Path], Path], tmp_path: Path
) -> None:
    place = tmp_path / "review"
    FORMS[form].write(place, request(place))
    found, files = opened_export(export(place))
    assert found.name == form
    answers = {answer.name: answer for answer in found.read(files, LABELS)}
    assert set(answers) == set(masks())
    for name, mask in masks().items():
        back = answers[name].mask
        if back is None:
            assert form == "labelstudio"
            assert not mask.any()
        else:
            assert encode_index_png(back) == encode_index_png(mask)


def test_label_studio_gets_images_or_their_addresses(tmp_path: Path) -> None:
    FORMS["labelstudio"].write(tmp_path, request(tmp_path))
    task = json.loads((tmp_path / "tasks.json").read_text())[0]
    assert task["data"]["image"].startswith("data:image/png;base64,")
    assert task["predictions"][0]["score"] == 0.5
    FORMS["labelstudio"].write(tmp_path, request(tmp_path, "/data/local-files/?d=r/images/"))
    address = json.loads((tmp_path / "tasks.json").read_text())[1]["data"]["image"]
    assert address == "/data/local-files/?d=r/images/part/dots.png"
    config = (tmp_path / "label-config.xml").read_text()
    assert "&lt;é&gt;" in config
    assert 'value="ignore"' in config


def test_cvat_masks_have_declared_colours_only(tmp_path: Path) -> None:
    FORMS["cvat"].write(tmp_path, request(tmp_path))
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()
        colours = {line.rsplit(":", 3)[1] for line in lines[1:]}
        assert lines[1] == "background:0,0,0::"
        for name in masks():
            with Image.open(io.BytesIO(archive.read(f"SegmentationClass/{name}.png"))) as image:
                assert image.mode == "RGB"
                pixels = np.unique(np.asarray(image).reshape(-1, 3), axis=0)
            assert {",".join(map(str, pixel)) for pixel in pixels.tolist()} <= colours
    names = [entry["name"] for entry in json.loads((tmp_path / "labels.json").read_text())]
    assert names == ["background", *CLASSES, "ignore"]


def test_names_that_the_label_map_of_cvat_cannot_hold() -> None:
    for name in ("a:b", "#1"):
        with pytest.raises(DataError, match="--for labelstudio"):
            FORMS["cvat"].check(Labels((name,)))
    FORMS["cvat"].check(LABELS)


def cvat_zip(path: Path, label_map: str, colour: tuple[int, int, int]) -> Files:
    picture = io.BytesIO()
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[1] = colour
    Image.fromarray(pixels).save(picture, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labelmap.txt", label_map)
        archive.writestr("SegmentationClass/a.png", picture.getvalue())
    return Files(path)


def test_the_colours_of_cvat_follow_its_own_label_map(tmp_path: Path) -> None:
    label_map = "# label:color_rgb:parts:actions\n<é>:1,2,3::\nbackground:9,9,9::\nCat:7,7,7::\n"
    files = cvat_zip(tmp_path / "a.zip", label_map, (1, 2, 3))
    (answer,) = FORMS["cvat"].read(files, LABELS)
    assert answer.mask is not None
    assert answer.mask.tolist() == [[0] * 5, [3] * 5, [0] * 5, [0] * 5]


@pytest.mark.parametrize(
    ("label_map", "colour", "words"),
    [
        ("cat:1,2,3::\n", (4, 4, 4), "colours that labelmap.txt lacks"),
        ("horse:4,4,4::\n", (4, 4, 4), "the label 'horse'"),
        ("cat:4,4,4::\ndog, wild:4,4,4::\n", (4, 4, 4), "the same colour"),
        ("cat\n", (4, 4, 4), "the line 'cat'"),
    ],
)
def test_strange_colours_and_labels_of_cvat(
    label_map: str, colour: tuple[int, int, int], words: str, tmp_path: Path
) -> None:
    files = cvat_zip(tmp_path / "a.zip", label_map, colour)
    with pytest.raises(DataError, match=words):
        list(FORMS["cvat"].read(files, LABELS))


def test_a_label_of_cvat_that_no_pixel_has_may_be_unknown(tmp_path: Path) -> None:
    files = cvat_zip(tmp_path / "a.zip", "cat:1,2,3::\nhorse:4,4,4::\n", (1, 2, 3))
    (answer,) = FORMS["cvat"].read(files, LABELS)
    assert answer.mask is not None
    assert answer.mask.max() == 1


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [4, 5], "counts": "abc"}, "another kind"),
        ("04", "another kind"),
        ([0, 300, 4], "another kind"),
        (brush.encode(np.zeros((9, 5), bool)), "4 for each of 4x5 pixels"),
        (brush.encode(np.ones((4, 5), bool))[:-2], "end too early"),
        ([], "end too early"),
        (None, "another kind"),
    ],
)
def test_run_lengths_that_are_not_of_this_image(rle: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        brush.decode(rle, (4, 5), "export.json")


def test_run_lengths_as_label_studio_writes_them() -> None:
    """Values one by one, in other sizes, and with the smooth rim of a stroke."""
    alpha = [0, 127, 128, 255]
    bits = f"{16:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (2, 4, 8, 16))
    bits += "0" + "01" + f"{15:04b}" + "".join(f"{value:08b}" for a in alpha for value in [a] * 4)
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
    assert brush.decode(data, (2, 2), "").tolist() == [[False, False], [True, True]]


def task(*regions: dict[str, Any]) -> dict[str, Any]:
    results = [
        {"original_width": 5, "original_height": 4, "image_rotation": 0, **region}
        for region in regions
    ]
    return {"data": {"image": "/upload/1/0123abcd-a.png"}, "annotations": [{"result": results}]}


def labelstudio(tmp_path: Path, content: Any) -> list[Any]:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(content))
    return list(FORMS["labelstudio"].read(Files(path), LABELS))


def test_polygons_of_label_studio_and_names_of_uploads(tmp_path: Path) -> None:
    square = [[20, 25], [60, 25], [60, 75], [20, 75]]
    region = {"type": "polygonlabels", "value": {"points": square, "polygonlabels": ["cat"]}}
    (answer,) = labelstudio(tmp_path, [task(region)])
    assert answer.name == "a"
    expected = np.zeros((4, 5), np.uint8)
    expected[1:3, 1:3] = 1
    assert answer.mask.tolist() == expected.tolist()


def test_boxes_and_unknown_labels_of_label_studio(tmp_path: Path) -> None:
    box = {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}}
    with pytest.raises(DataError, match="rectanglelabels"):
        labelstudio(tmp_path, [task(box)])
    rle = brush.encode(np.ones((4, 5), bool))
    horse = {"type": "brushlabels", "value": {"rle": rle, "brushlabels": ["horse"]}}
    with pytest.raises(DataError, match="'horse'"):
        labelstudio(tmp_path, [task(horse)])
    mask = {"type": "bitmasklabels", "value": {"bitmasklabels": ["horse"]}}
    with pytest.raises(DataError, match="has bitmasklabels"):
        labelstudio(tmp_path, [task(mask)])
    with pytest.raises(DataError, match="not as COCO"):
        labelstudio(tmp_path, {"images": [], "annotations": []})


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": 3},
        {"annotations": [{"result": [{"type": "brushlabels"}]}]},
        {"annotations": [{"result": [{"type": "brushlabels", "original_height": 3}]}]},
        {
            "annotations": [
                {"result": [{"type": "brushlabels", "original_height": 3, "original_width": 0}]}
            ]
        },
        {"data": None},
    ],
)
def test_tasks_that_label_studio_would_not_write(change: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not as Label Studio writes it|impossible sizes"):
        labelstudio(tmp_path, [{**task(), **change}])


def test_skipped_tasks_are_no_answers_and_the_declared_truth_counts(tmp_path: Path) -> None:
    rle = brush.encode(np.ones((4, 5), bool))
    entry = task({"type": "brushlabels", "value": {"rle": rle, "brushlabels": ["cat"]}})
    skipped = {"data": entry["data"], "annotations": [{"result": [], "was_cancelled": True}]}
    assert labelstudio(tmp_path, [skipped]) == []
    entry["annotations"].append({"result": [], "ground_truth": True})
    (answer,) = labelstudio(tmp_path, [entry])
    assert answer.mask is None


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("../a.png", 1, "leads out"), ("/etc/a.png", 1, "leads out"), ("..\\a", 1, "leads out")],
)
def test_names_that_lead_out_of_a_zip(name: str, size: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"0" * size)
    with pytest.raises(DataError, match=words):
        Files(path)


def test_a_zip_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.review.files.MOST_BYTES", 1000)
    monkeypatch.setattr("trainer.review.files.MOST_TOTAL", 1500)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"0" * 1001)
    with pytest.raises(DataError, match="1,001 bytes"):
        Files(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"0" * 800)
        archive.writestr("b", b"0" * 800)
    with pytest.raises(DataError, match="1,600 bytes"):
        Files(path)


def test_a_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("masks/a.png", b"0" * 100)
    content = bytearray(path.read_bytes())
    content[50] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="export it again"):
        list(FORMS["folder"].read(Files(path), LABELS))


def test_an_editor_may_save_colours_or_another_order(tmp_path: Path) -> None:
    mask = masks()["rings"]
    (tmp_path / "masks").mkdir()
    Image.fromarray(voc_palette()[mask]).save(tmp_path / "masks" / "a.png")
    (answer,) = FORMS["folder"].read(Files(tmp_path), LABELS)
    assert answer.mask is not None
    assert (answer.mask == mask).all()
    (tmp_path / "classes.txt").write_text("background\n<é>\ncat\n")
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(tmp_path / "masks" / "a.png")
    (answer,) = FORMS["folder"].read(Files(tmp_path), LABELS)
    assert answer.mask is not None
    assert answer.mask.tolist() == [[0, 3, 1, 255]]
    Image.fromarray(np.array([[3]], np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"values \[3\]"):
        list(FORMS["folder"].read(Files(tmp_path), LABELS))


def test_what_holds_no_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        opened_export(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no answers"):
        opened_export(tmp_path)
