from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from trainer.checks import check as module
from trainer.checks.check import Report, check, print_report
from trainer.checks.inspection import Problem
from trainer.data.knobs import DataConfig
from trainer.data.palette import voc_palette
from trainer.data.voc.classes import VOC_CLASSES

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (48, 40), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def mask(root: Path, name: str, value: int = 1, size: tuple[int, int] = (48, 40)) -> None:
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint8)).save(root / "masks" / f"{name}.png")


def make(root: Path, count: int = 4, extra: str = "", columns: str = "image,tag") -> Path:
    rows = "".join(f"im{n},{'cat' if n % 2 else 'dog'}\n" for n in range(count))
    for n in range(count):
        picture(root / f"im{n}.jpg")
    (root / "labels.csv").write_text(f"{columns}\n{rows}{extra}")
    return root


def of_kind(report: Report, kind: str) -> Problem:
    (problem,) = (p for p in report.problems if p.kind == kind)
    return problem


def kinds(report: Report) -> set[str]:
    return {problem.kind for problem in report.problems}


def test_sound_data(tmp_path: Path) -> None:
    make(tmp_path)
    for n in range(4):
        mask(tmp_path, f"im{n}", 1 if n % 2 else 2)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    report = check(tmp_path)
    assert report.problems == ()
    assert report.ok
    assert report.exit_code == 0
    assert (report.format, report.images) == ("folder", 4)
    assert report.classes == {"cat": 2, "dog": 2}
    assert report.lists == {"all": 4}


def test_everything_at_once_in_one_pass(tmp_path: Path) -> None:
    names = ["cut", "text", "cmyk", "deep", "turned", "grey", "alpha", "tiny", "copy", "untagged"]
    make(
        tmp_path,
        6,
        "".join(f"{n},{'' if n == 'untagged' else 'dog'}\n" for n in names) + "tiny,bear\n",
    )
    whole = (tmp_path / "im0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("CMYK", (40, 40)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(RNG.integers(0, 65535, (40, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (40, 40)).save(tmp_path / "grey.png")
    Image.new("RGBA", (40, 40)).save(tmp_path / "alpha.png")
    picture(tmp_path / "tiny.png", (8, 40))
    (tmp_path / "copy.jpg").write_bytes(whole)
    picture(tmp_path / "untagged.jpg")
    report = check(tmp_path)
    assert report.images == 16
    assert report.exit_code == 2
    expected = {
        "truncated": ("error", "cut.jpg"),
        "unreadable": ("error", "text.jpg"),
        "cmyk": ("warning", "cmyk.jpg"),
        "16-bit": ("warning", "deep.png"),
        "rotated": ("info", "turned.jpg"),
        "grey": ("info", "grey.png"),
        "palette": ("info", "alpha.png"),
        "tiny": ("warning", "tiny.png"),
        "duplicate": ("warning", "copy.jpg = im0.jpg"),
        "class-single": ("warning", "bear"),
    }
    for kind, (severity, name) in expected.items():
        problem = of_kind(report, kind)
        assert (problem.severity, problem.names) == (severity, (name,)), kind
    assert kinds(report) == {*expected, "no-masks", "note"}
    order = [module.SEVERITIES.index(problem.severity) for problem in report.problems]
    assert order == sorted(order)


def test_masks(tmp_path: Path) -> None:
    make(tmp_path, 6)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    mask(tmp_path, "im0", 2)
    mask(tmp_path, "im1", 1, (40, 48))
    mask(tmp_path, "im2", 3)
    Image.new("RGB", (48, 40), "red").save(tmp_path / "masks" / "im3.png")
    mask(tmp_path, "im4", 1)
    (tmp_path / "masks" / "im5.png").write_text("no PNG")
    picture(tmp_path / "im6.jpg")
    with (tmp_path / "labels.csv").open("a") as table:
        table.write("im6,dog\nim7,\n")
    picture(tmp_path / "im7.jpg")
    report = check(tmp_path)
    assert of_kind(report, "mask-size").names == ("masks/im1.png",)
    assert "40x48 for an image of 48x40" in of_kind(report, "mask-size").message
    assert of_kind(report, "mask-value").names == ("masks/im2.png",)
    assert "[3]" in of_kind(report, "mask-value").message
    assert of_kind(report, "mask-colour").names == ("masks/im3.png",)
    assert of_kind(report, "mask-untagged").names == ("masks/im4.png",)
    assert "cat" in of_kind(report, "mask-untagged").message
    assert of_kind(report, "tag-unmasked").names == ("im4.jpg",)
    assert of_kind(report, "mask-unreadable").names == ("masks/im5.png",)
    assert of_kind(report, "mask-missing").names == ("im6.jpg",)
    assert report.exit_code == 2


def test_spoilt_voc_masks_say_what_was_done_to_them(tmp_path: Path) -> None:
    names = ("2007_000032", "2007_000033", "2007_000039")
    for name in names:
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    folder = tmp_path / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n".join(names))
    (tmp_path / "image_labels.csv").write_text(
        f"image_id,{','.join(VOC_CLASSES)}\n" + _row(names[0])
    )
    masks = tmp_path / "SegmentationClass"
    masks.mkdir()
    index = np.full((40, 48), 15, np.uint8)
    index[:2], index[-2:] = 0, 255
    grey, colour, renumbered = (masks / f"{name}.png" for name in names)
    Image.fromarray(voc_palette()[index]).convert("L").save(grey)
    Image.fromarray(voc_palette()[index]).save(colour)
    Image.fromarray(voc_palette()[index]).quantize(3).save(renumbered)
    report = check(tmp_path)
    assert of_kind(report, "mask-grey").names == ("SegmentationClass/2007_000032.png",)
    assert "same grey" in of_kind(report, "mask-grey").hint
    assert of_kind(report, "mask-colour").names == ("SegmentationClass/2007_000033.png",)
    assert "data.masks=colours" in of_kind(report, "mask-colour").hint
    assert of_kind(report, "mask-reindexed").names == ("SegmentationClass/2007_000039.png",)
    assert of_kind(report, "voc-sbd").severity == "warning"
    grey.unlink()
    kinds_now = kinds(check(tmp_path, config=DataConfig(masks="colours")))
    assert not kinds_now & {"mask-colour", "mask-reindexed", "mask-value", "mask-unreadable"}


def _row(name: str) -> str:
    return f"{name},{','.join('1' if c == 'person' else '0' for c in VOC_CLASSES)}\n"


def test_rotated_image_wants_the_turned_mask(tmp_path: Path) -> None:
    make(tmp_path, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "im0.jpg", (48, 40), exif=exif)
    mask(tmp_path, "im0", 2, (40, 48))
    mask(tmp_path, "im1", 1)
    assert "mask-size" not in kinds(check(tmp_path))
    mask(tmp_path, "im0", 2, (48, 40))
    assert of_kind(check(tmp_path), "mask-size").names == ("masks/im0.png",)


@pytest.mark.parametrize("side", [10_001, 50_000])
def test_huge_image_is_reported_without_decoding(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    make(tmp_path, 4, "bomb,cat\n")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    report = check(tmp_path)
    assert of_kind(report, "huge").names == ("bomb.png",)
    assert not {"unreadable", "truncated"} & kinds(report)


def test_class_without_image_is_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\nunicorn\n")
    problem = of_kind(check(tmp_path), "class-empty")
    assert (problem.severity, problem.names) == ("error", ("unicorn",))


def test_what_stops_opening_is_in_the_report(tmp_path: Path) -> None:
    report = check(tmp_path / "nowhere")
    assert (report.format, report.images, report.exit_code) == (None, 0, 2)
    assert "is not a folder" in report.problems[0].message
    make(tmp_path, columns="picture,kind")
    report = check(tmp_path)
    assert "'picture', 'kind'" in report.problems[0].message
    assert "expected one of image" in report.problems[0].hint


def test_contradictions_do_not_hide_the_rest(tmp_path: Path) -> None:
    make(tmp_path, 4, "gone,cat\n")
    (tmp_path / "im3.jpg").write_text("not an image")
    picture(tmp_path / "im1.png")
    report = check(tmp_path)
    messages = [problem.message for problem in report.problems if problem.kind == "data"]
    assert any("gone" in message for message in messages)
    assert any("several images have (1): im1" in message for message in messages)
    assert of_kind(report, "unreadable").names == ("im3.jpg",)


def test_lists(tmp_path: Path) -> None:
    rows = "im0,dog,train\nim1,cat,train\nim2,dog,val\nim3,bear,val\ncopy,cat,val\n"
    make(tmp_path, 4)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "im1.jpg").read_bytes())
    (tmp_path / "labels.csv").write_text("image,tag,split\n" + rows)
    report = check(tmp_path)
    assert of_kind(report, "leak").names == ("copy = im1",)
    assert of_kind(report, "class-unlisted").names == ("bear",)
    part = check(tmp_path, ["val", "trian"])
    assert part.images == 3
    assert of_kind(part, "list").message == "there is no list 'trian'"
    assert "'train'" in of_kind(part, "list").hint
    assert part.exit_code == 2


def test_overlapping_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    folder = tmp_path / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for name, text in (("train", "a\nb\n"), ("val", "b\n"), ("trainval", "a\nb\n"), ("test", "")):
        (folder / f"{name}.txt").write_text(text)
    table = {"classes": [{"name": "x", "voc_index": 1}]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    (tmp_path / "image_labels.csv").write_text("image_id,x\na,1\nb,1\n")
    report = check(tmp_path)
    assert of_kind(report, "overlap").names == ("b",)
    assert of_kind(report, "list-empty").names == ("test",)
    assert report.ok


def test_coco_masks_are_drawn_and_compared(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg", (48, 40))
    (tmp_path / "annotations").mkdir()
    outline = [[1, 1, 9, 1, 9, 9, 1, 9]]
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 44}],
        "categories": [{"id": 5, "name": "x"}],
        "annotations": [{"image_id": 1, "category_id": 5, "segmentation": outline}],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(table))
    assert of_kind(check(tmp_path), "mask-size").names == ("images/a.jpg",)


def test_pool_finds_the_same_as_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 12)
    (tmp_path / "im5.jpg").write_text("no")
    alone = check(tmp_path)
    monkeypatch.setattr(module, "POOL_FROM", 1)
    assert check(tmp_path) == alone
    assert of_kind(alone, "unreadable").names == ("im5.jpg",)


def test_json_and_table(tmp_path: Path) -> None:
    make(tmp_path, 3)
    (tmp_path / "im2.jpg").write_text("no")
    report = check(tmp_path)
    table = json.loads(json.dumps(report.to_json()))
    assert table["ok"] is False
    assert table["classes"] == {"cat": 1, "dog": 2}
    (problem,) = (p for p in table["problems"] if p["kind"] == "unreadable")
    assert (problem["count"], problem["names"], problem["severity"]) == (1, ["im2.jpg"], "error")
    console = Console(width=140, record=True, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    for part in (
        "im2.jpg",
        "cannot be read",
        "error",
        "cat",
        "MB of disk",
        "correct the errors first",
    ):
        assert part in text


def test_estimates_grow_with_the_data() -> None:
    small = module.estimate(
        [module.Finding(pixels=10_000, cells=600, mask_bytes=500)] * 10, workers=2
    )
    large = module.estimate(
        [module.Finding(pixels=4_000_000, cells=250_000, mask_bytes=9000)] * 1000, workers=2
    )
    assert large["disk_mb"]["cams"] == pytest.approx(500)
    assert large["memory_mb"] == 2360
    assert small["memory_mb"] == 2300
    for stage in ("classify", "cams", "refine", "segment"):
        assert large["minutes"][stage] > small["minutes"][stage]
    assert (
        module.estimate([module.Finding(pixels=10_000)] * 4000, workers=4)["minutes"]["classify"]
        == 7.6
    )


def test_images_of_several_pages_are_named(tmp_path: Path) -> None:
    make(tmp_path, 2, "film,dog\n")
    pages = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "film.tif", save_all=True, append_images=pages[1:])
    problem = of_kind(check(tmp_path), "frames")
    assert (problem.severity, problem.names) == ("info", ("film.tif",))
