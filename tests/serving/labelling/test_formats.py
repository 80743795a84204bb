"""Labelled folders in every form: exact, the server's masks, resumed, and read by the formats' own
tools.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from configs import EXACT
from filled import fill_as_opencv
from PIL import Image

from serving.client import Client
from serving.config import TilingConfig
from serving.errors import FieldError, LabelError
from serving.images import masks
from serving.labelling.formats import FORMATS, find_format
from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig

NAMES = ("a.png", "b.png", "sub/c.png", "sub/ü & <d>.png")


def blocks(seed: int, size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 7, 0), 5, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images with holes, regions that touch by corners, and one of them dark all over."""
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    for seed, (name, size) in enumerate(zip(NAMES, [(5, 7), (9, 6), (12, 12), (4, 4)])):
        Image.fromarray(
            blocks(seed, size) if name != "b.png" else np.zeros((*size, 3), np.uint8)
        ).save(source / name)
    return source


@pytest.fixture
def config(folder: Path, tmp_path: Path, repository: Path) -> LabelConfig:
    return LabelConfig(folder, tmp_path / "out", repository, model="colours", engine=EXACT)


@pytest.fixture
def truth(config: LabelConfig, tmp_path: Path) -> dict[str, np.ndarray]:
    """The masks as the form VOC has them, by name of the image."""
    voc = replace(config, target=tmp_path / "voc")
    label(voc)
    return {
        name: masks.read_png((voc.target / name).with_suffix(".png").read_bytes()) for name in NAMES
    }


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools' own, with NumPy 2
@pytest.mark.parametrize("outlines", [False, True])
def test_coco_is_read_by_its_own_tools(config, truth, capsys, outlines):
    coco = pytest.importorskip("pycocotools.coco")
    summary = label(replace(config, format="coco", polygons=outlines))
    (path,) = summary.files
    api = coco.COCO(path)
    assert [api.cats[key]["name"] for key in api.getCatIds()] == ["red", "green", "blue"]
    assert {api.imgs[key]["file_name"] for key in api.getImgIds()} == set(NAMES)
    for key, image in api.imgs.items():
        drawn = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in api.loadAnns(api.getAnnIds(key)):
            one = api.annToMask(annotation)
            assert annotation["area"] == one.sum()
            left, top, width, height = annotation["bbox"]
            assert one[top : top + height, left : left + width].sum() == one.sum()
            drawn[one == 1] = annotation["category_id"]
        np.testing.assert_array_equal(drawn, truth[image["file_name"]])


def test_run_lengths_and_polygons_equal_the_servers(config, server, folder):
    rle, lines = (
        replace(config, format="coco"),
        replace(config, format="yolo", target=config.target / "yolo"),
    )
    label(rle)
    label(lines)
    with Client(server.address) as client:
        for name in NAMES:
            found = json.loads((rle.target / "parts" / f"{name}.json").read_text())
            reply = client.segment(
                folder / name, "colours", encoding="coco_rle"
            ).reply.mask.coco_rle
            assert {a["category_id"]: a["segmentation"]["counts"] for a in found} == {
                entry.label: entry.counts for entry in reply.classes
            }
            reply = client.segment(
                folder / name, "colours", encoding="polygons"
            ).reply.mask.polygons
            outer = sum(not ring.hole for entry in reply.classes for ring in entry.rings)
            assert (
                len((lines.target / "labels" / name).with_suffix(".txt").read_text().splitlines())
                == outer
            )


def test_yolo_lines_are_the_mask(config, truth):
    summary = label(replace(config, format="yolo"))
    assert summary.files == [str(config.target / "data.yaml")]
    assert "path:" not in (config.target / "data.yaml").read_text(), "it works from any folder"
    assert (
        'names:\n  0: "red"\n  1: "green"\n  2: "blue"\n'
        in (config.target / "data.yaml").read_text()
    )
    for name, expected in truth.items():
        height, width = expected.shape
        drawn = np.zeros((height, width), np.uint8)
        for line in (config.target / "labels" / name).with_suffix(".txt").read_text().splitlines():
            index, *numbers = line.split()
            points = (np.array(numbers, float).reshape(-1, 2) * (width, height)).astype(int)
            assert len(points) >= 3
            drawn[fill_as_opencv(list(map(tuple, points.tolist())), height, width)] = int(index) + 1
        np.testing.assert_array_equal(drawn, expected)


def test_cvat_masks_are_run_lengths_in_their_box(config, truth):
    (path,) = label(replace(config, format="cvat")).files
    root = ElementTree.parse(path).getroot()
    assert root.findtext("version") == "1.1"
    assert [entry.text for entry in root.findall("meta/task/labels/label/name")] == [
        "red",
        "green",
        "blue",
    ]
    assert root.findtext("meta/task/labels/label/color") == "#800000"
    images = root.findall("image")
    assert [int(image.get("id")) for image in images] == [0, 1, 2, 3]
    assert {image.get("name") for image in images} == set(NAMES)
    labels = {"red": 1, "green": 2, "blue": 3}
    for image in images:
        drawn = np.zeros((int(image.get("height")), int(image.get("width"))), np.uint8)
        for mask in image.findall("mask"):
            left, top, width, height = (
                int(mask.get(key)) for key in ("left", "top", "width", "height")
            )
            counts = [int(count) for count in mask.get("rle").split(",")]
            inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
            drawn[top : top + height, left : left + width][inside] = labels[mask.get("label")]
        np.testing.assert_array_equal(drawn, truth[image.get("name")])


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_resumed_and_repaired(config, folder, form):
    config = replace(config, format=form)
    first = label(config)
    assert (first.written, first.format) == (4, form)
    whole = [Path(file).read_bytes() for file in first.files]
    again = label(config)
    assert (again.written, again.skipped) == (0, 4)
    assert [Path(file).read_bytes() for file in again.files] == whole
    part = config.target / find_format(form).part(Path("a.png"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2] + b"\xff")
    assert (label(config).written, [Path(file).read_bytes() for file in first.files]) == (1, whole)
    other = label(replace(config, confidence_threshold=0.6))
    assert other.written == 4
    (folder / "b.png").unlink()
    (folder / "bad.png").write_text("no image")
    left = label(replace(config, confidence_threshold=0.6))
    assert (left.written, left.skipped, left.failed) == (0, 3, 1)
    if form in ("coco", "cvat"):
        text = Path(left.files[0]).read_text(encoding="utf-8")
        assert "b.png" not in text
        assert "bad.png" not in text


def test_pixels_below_the_confidence_are_left_out(config, truth):
    sure = replace(config, confidence_threshold=0.9)
    label(sure)
    mask = masks.read_png((config.target / "a.png").read_bytes())
    bright = blocks(0, (5, 7)).max(axis=2) >= 0.9 * 255
    np.testing.assert_array_equal(mask, np.where(bright, truth["a.png"], 255))
    (path,) = label(replace(sure, format="coco", target=config.target / "coco")).files
    told = json.loads(Path(path).read_text())
    assert {annotation["category_id"] for annotation in told["annotations"]} <= {1, 2, 3}
    areas = sum(a["area"] for a in told["annotations"] if a["image_id"] == 1)
    assert areas == (bright & (truth["a.png"] > 0)).sum()
    for form in ("yolo", "cvat"):
        label(replace(sure, format=form, target=config.target / form))
    assert 'label=""' not in (config.target / "cvat" / "annotations.xml").read_text()
    assert "254 " not in (config.target / "yolo" / "labels" / "a.txt").read_text()


def test_tiled_masks_and_those_of_a_cam_model_equal_the_servers_to_the_byte(
    config, server, folder, tmp_path
):
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(
        folder / "large.png"
    )
    for model in ("colours", "maps"):
        tiled = replace(
            config, model=model, target=tmp_path / model, tiles=TilingConfig("tile", 0.3)
        )
        label(tiled)
        with Client(server.address) as client:
            for name in (*NAMES, "large.png"):
                reply = client.segment(
                    folder / name, model, oversize="tile", tile_overlap=0.3
                ).reply
                assert (tiled.target / name).read_bytes() == reply.mask.png
            assert reply.image.tiles > 1


def test_no_space_for_the_last_file_keeps_the_parts(config, monkeypatch):
    original = Path.open

    def full(self, mode="r", *arguments, **options):
        if self.name.endswith(".tmp") and mode == "w":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return original(self, mode, *arguments, **options)

    config = replace(config, format="coco")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(LabelError, match="the 4 masks written in this run are kept"):
            label(config)
    assert not (config.target / "annotations.json").exists()
    summary = label(config)
    assert (summary.written, summary.skipped) == (0, 4)
    assert len(json.loads(Path(summary.files[0]).read_text())["images"]) == 4


def test_two_images_of_one_name_go_into_one_coco_file_and_not_into_one_mask(config, folder):
    Image.fromarray(blocks(9, (3, 3))).save(folder / "a.bmp")
    with pytest.raises(LabelError, match=r"would both become a\.png"):
        label(config)
    assert label(replace(config, format="coco")).written == 5


def test_names_that_a_form_cannot_hold_are_failures(config, folder):
    (folder / "a.png").rename(folder / "line\x01.png")
    assert label(replace(config, format="cvat")).failed == 1
    os.rename(folder / "b.png", os.fsencode(folder) + b"/\xff.png")
    summary = label(replace(config, format="voc"))
    assert (summary.written, summary.failed) == (3, 1)
    assert "UTF-8" in (config.target / "failures.jsonl").read_text()


def test_thresholds_out_of_place_are_refused(config):
    with pytest.raises(FieldError, match="segmenter"):
        label(replace(config, background_threshold=0.3))
    with pytest.raises(FieldError, match="0 to 1"):
        label(replace(config, confidence_threshold=7.0))
