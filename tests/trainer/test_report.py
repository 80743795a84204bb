from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.camfile import cam_path, write_cam
from trainer.charts import Line, Mark, bars, line_chart, short, thin, ticks
from trainer.errors import RunError
from trainer.evaluate import evaluate_cams, evaluate_folder
from trainer.palette import write_index_png
from trainer.report import write_report
from trainer.report_facts import duration, memory, moment, percent, read_facts, threshold
from trainer.report_sheets import choose_sheets

CLASSES = ("cat", "<dog> & co", "sheep")
VAL = tuple(f"val_{i}" for i in range(6))
TRAIN = tuple(f"train_{i}" for i in range(4))
SECTIONS = ("results", "classes", "images", "threshold", "confusion", "training", "stages", "provenance")
VOID = {"meta", "img", "br", "input", "hr", "link", "rect", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] not in (["style"], ["script"]) else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def scene(rng: np.random.Generator, tags: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    image = rng.integers(90, 150, (48, 64, 3)).astype(np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    for n, k in enumerate(tags):
        box = np.s_[10:40, 4 + 30 * n : 28 + 30 * n]
        image[box], mask[box] = rng.integers(0, 256, 3), k + 1
    return image, mask


@pytest.fixture
def run(tmp_path: Path, complete: Path) -> Path:
    """A copy of the complete run that a test may damage."""
    shutil.copytree(complete, tmp_path / "animals")
    return tmp_path / "animals"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete run: tags, maps, masks, predictions and figures that belong to each other."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("report")
    data, run = root / "data", root / "animals"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    rows = ["image_id," + ",".join(f'"{c}"' for c in CLASSES)]
    for n, name in enumerate((*VAL, *TRAIN)):
        tags = (n % 3,) if n % 4 else (0, 1)
        image, mask = scene(rng, tags)
        Image.fromarray(image).save(data / "JPEGImages" / f"{name}.jpg")
        write_index_png(data / "SegmentationClass" / f"{name}.png", mask)
        rows.append(",".join([name, *(str(int(k in tags)) for k in range(3))]))
        maps = np.stack([0.9 * (mask[::4, ::4] == k + 1) + 0.1 * rng.random((12, 16)) for k in tags])
        write_cam(cam_path(run / "cams", name), tags, maps, (48, 64))
        spoiled = np.roll(mask, 2 + n, axis=1)
        if name in TRAIN:
            spoiled[:3] = 255
            write_index_png(run / "masks" / f"{name}.png", spoiled)
        else:
            write_index_png(run / "segment" / "predictions" / "val" / f"{name}.png", spoiled)
    (data / "image_labels.csv").write_text("\n".join(rows) + "\n")
    table = [{"voc_index": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    (data / "classes.json").write_text(json.dumps({"classes": table, "ignore": 255}))
    for name, ids in (("val", VAL), ("train", TRAIN)):
        (data / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids) + "\n")
    (run / "manifest.json").write_text(json.dumps(manifest(data)))
    write_metrics(run)
    evaluate(run)
    return run


def manifest(data: Path) -> dict[str, Any]:
    def stage(seconds: float) -> dict[str, Any]:
        return {
            "status": "done",
            "key": "0123456789abcdef",
            "seconds": seconds,
            "peak_memory_mb": 900.0,
            "outputs": {"count": 10},
        }

    return {
        "format": 1,
        "created": "2026-11-21T03:02:11+00:00",
        "command": ["wsss-trainer", "fit", str(data), "--method", "cam"],
        "versions": {"wsss": "0.1.0", "torch": "2.15.0"},
        "commit": "5f1c9a7be0d2",
        "host": {"name": "bench-01", "cpus": 2, "device": "cpu"},
        "seed": 7,
        "method": "cam",
        "backbone": "mobilenet_v2",
        "supervision": "ImageNet tags",
        "data": {
            "path": str(data),
            "format": "voc",
            "fingerprint": "9f3a61c2",
            "classes": list(CLASSES),
            "lists": {"val": 6},
            "tags_from": "image_labels.csv",
        },
        "config": {"classify": {"epochs": 4, "lr": 0.001}},
        "stages": {"classify": stage(61.0), "cams": stage(8.25), "refine": stage(3.0), "segment": stage(7000.0)},
    }


def write_metrics(run: Path) -> None:
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "epoch", "step", "name", "value"])
        for step in range(10, 1000, 10):
            writer.writerow(["classify", 1, step, "loss", 1 / step])
            writer.writerow(["classify", 1, step, "lr", 0.001])
        writer.writerow(["classify", 1, 990, "val_map", 0.73])


def evaluate(run: Path) -> None:
    facts = read_facts(run)
    assert facts.dataset is not None
    val, train = facts.dataset.subset("val"), facts.dataset.subset("train")
    cams = evaluate_cams(facts.dataset, val, run / "cams", workers=1)
    refined = evaluate_folder(facts.dataset, train, run / "masks", workers=1)
    segment = evaluate_folder(facts.dataset, val, run / "segment" / "predictions" / "val", workers=1)
    full = segment.report("val, true masks") | {"miou": 0.9}
    figures = {
        "cam": {"val": cams.report(0.4, "train", "val, four scales & flip")},
        "refined": {"train": refined.report("train, CRF", 0.4, "train")},
        "segment": {"val": segment.report("val, no CRF")},
        "segment_full": {"val": full},
    }
    (run / "evaluation.json").write_text(json.dumps(figures))


def report(run: Path, **options: int) -> tuple[str, Page]:
    path = write_report(run, **options)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_a_complete_run_has_every_section_and_nothing_missing(run: Path) -> None:
    text, page = report(run)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert "Not there" not in page.text
    assert "card empty" not in text


def test_the_page_asks_for_nothing_outside_itself(run: Path) -> None:
    text, page = report(run)
    outside_pixels = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", outside_pixels)
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#"))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)


def test_figures_equal_those_of_evaluation_json(run: Path) -> None:
    _, page = report(run)
    figures = json.loads((run / "evaluation.json").read_text())
    for stage, name in (("cam", "val"), ("refined", "train"), ("segment", "val")):
        assert f"{100 * figures[stage][name]['miou']:.1f}%" in page.text
        assert f"{100 * figures[stage][name]['iou']['cat']:.1f}" in page.text
    ratio = figures["segment"]["val"]["miou"] / 0.9
    assert f"{ratio:.2f}" in page.text
    assert page.text.count("val, four scales & flip") >= 3
    assert "threshold 0.40, chosen on train masks" in page.text


def test_an_oracle_threshold_is_called_one(run: Path) -> None:
    figures = json.loads((run / "evaluation.json").read_text())
    figures["cam"]["val"]["threshold_from"] = "oracle"
    (run / "evaluation.json").write_text(json.dumps(figures))
    text, page = report(run)
    assert '<span class="tag warn">oracle</span>' in text
    assert "oracle: best on this very list" in page.text


def test_images_are_readable_thumbnails_with_alt_texts(run: Path) -> None:
    _, page = report(run)
    images = page.all("img")
    alts = [str(i["alt"]) for i in images]
    assert all(i["loading"] == "lazy" and i["alt"] for i in images)
    for part in ("photograph, tagged cat, <dog> & co", "true mask", "CAM of sheep", "refined", "prediction"):
        assert any(part in alt for alt in alts), part
    for image in images:
        data = base64.b64decode(str(image["src"]).split(",", 1)[1])
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.format == "JPEG"
            assert [str(opened.width), str(opened.height)] == [image["width"], image["height"]]


def test_per_image_iou_is_that_of_the_evaluation(run: Path) -> None:
    _, page = report(run)
    worst = json.loads((run / "evaluation.json").read_text())["segment"]["val"]["worst"]
    assert len(worst) == len(VAL)
    for entry in worst:
        # Once in the row of the image, once in the worst list.
        row = page.text.index(entry["id"])
        assert f"Prediction{100 * entry['miou']:.1f}" in page.text[row : row + 120]


def test_everything_from_outside_is_escaped(run: Path) -> None:
    entry = json.loads((run / "manifest.json").read_text())
    entry["supervision"], entry["host"] = "<script>alert(1)</script>", {"name": '"><img src=x>'}
    (run / "manifest.json").write_text(json.dumps(entry))
    text, page = report(run)
    assert len(page.all("script")) == 1
    assert "<img src=x>" not in text
    assert "&lt;dog&gt; &amp; co" in text


def test_a_run_that_stopped_after_cams_says_what_is_not_there(run: Path) -> None:
    for name in ("evaluation.json", "metrics.csv"):
        (run / name).unlink()
    for file in [*(run / "masks").iterdir(), *(run / "segment" / "predictions" / "val").iterdir()]:
        file.unlink()
    entry = json.loads((run / "manifest.json").read_text())
    entry["stages"] = {"classify": entry["stages"]["classify"], "cams": {"status": "failed", "seconds": 3}}
    (run / "manifest.json").write_text(json.dumps(entry))
    text, page = report(run)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    # Five cards, then classes, threshold, confusion and training.
    assert page.text.count("Not there yet") == 9
    assert '<li class="failed"><b>cams</b>failed</li>' in text
    assert '<li class="todo"><b>segment</b>not yet</li>' in text
    assert any("CAM of" in str(i["alt"]) for i in page.all("img"))
    assert not any("prediction" in str(i["alt"]) for i in page.all("img"))


def test_a_bare_manifest_is_enough(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": {}}')
    _, page = report(tmp_path)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert page.all("img") == []


def test_a_data_set_that_moved_away_leaves_the_figures(run: Path) -> None:
    entry = json.loads((run / "manifest.json").read_text())
    entry["data"]["path"] = str(run / "gone")
    (run / "manifest.json").write_text(json.dumps(entry))
    _, page = report(run)
    assert "cannot be opened here" in page.text
    assert page.all("img") == []
    assert "sheep" in page.text


def test_damaged_files_cost_their_own_place_only(run: Path) -> None:
    (run / "cams" / "val_0.npz").write_bytes(b"not a zip")
    (run / "segment" / "predictions" / "val" / "val_1.png").write_bytes(b"not a png")
    with (run / "metrics.csv").open("a") as file:
        file.write("classify,1,broken\n")
    (run / "evaluation.json").write_text('{"cam": {')
    _, page = report(run)
    alts = [str(i["alt"]) for i in page.all("img")]
    assert not any(alt.startswith("val_0: CAM") for alt in alts)
    assert any(alt == "val_0: prediction" for alt in alts)
    assert not any(alt == "val_1: prediction" for alt in alts)
    assert "1 damaged lines of metrics.csv" in page.text
    assert "evaluation.json cannot be read" in page.text


def test_numbers_that_are_not_finite_are_dashes(run: Path) -> None:
    figures = json.loads((run / "evaluation.json").read_text())
    figures["cam"]["val"]["miou"] = float("nan")
    figures["segment"]["val"]["iou"]["sheep"] = None
    (run / "evaluation.json").write_text(json.dumps(figures))
    _, page = report(run)
    assert "nan" not in re.sub(r"[a-z_]*nan[a-z_]+", "", page.text.lower())
    assert "–%" in page.text


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no manifest.json"), ("{", "cannot be read"), ("[]", "no JSON object")]
)
def test_no_manifest_is_a_user_error(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=words):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("count", "first", "worst", "train"), [(24, 6, 0, 4), (6, 2, 2, 2), (1, 1, 0, 0), (0, 0, 0, 0)]
)
def test_sheets_hold_first_worst_and_refined(run: Path, count: int, first: int, worst: int, train: int) -> None:
    facts = read_facts(run)
    assert facts.dataset is not None
    sheets = {s.title: s.ids for s in choose_sheets(facts, facts.dataset, count)}
    assert sheets.get("First images of val", ()) == VAL[:first]
    assert len(sheets.get("Worst images of val", ())) == worst
    assert sheets.get("First images of train", ()) == TRAIN[:train]
    ids = [i for chosen in sheets.values() for i in chosen]
    assert len(ids) == len(set(ids)) <= count


def test_worst_images_come_worst_first(run: Path) -> None:
    facts = read_facts(run)
    assert facts.dataset is not None
    sheets = {s.title: s.ids for s in choose_sheets(facts, facts.dataset, 6)}
    ranked = [w["id"] for w in facts.evaluation["segment"]["val"]["worst"] if w["id"] not in VAL[:2]]
    assert list(sheets["Worst images of val"]) == ranked[:2]


def test_the_file_stays_small(run: Path) -> None:
    text, page = report(run)
    images = sum(len(str(i["src"])) for i in page.all("img"))
    assert len(text) - images < 120_000
    assert images < 40_000 * len(page.all("img"))


def test_many_classes_make_a_picture_of_the_confusion(run: Path) -> None:
    names = [f"class {k}" for k in range(80)]
    entry = json.loads((run / "manifest.json").read_text())
    entry["data"] |= {"path": "", "classes": names}
    (run / "manifest.json").write_text(json.dumps(entry))
    counts = np.eye(81, dtype=int) * 9
    counts[5, 7] = 1
    figures = {"segment": {"val": {"miou": 0.5, "iou": dict.fromkeys(names, 0.5), "confusion": counts.tolist()}}}
    (run / "evaluation.json").write_text(json.dumps(figures))
    text, page = report(run)
    assert any("81 labels" in str(i["alt"]) for i in page.all("img"))
    assert "class 4" in page.text
    assert "10.0" in page.text
    assert len(text) < 400_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 0.73, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, 420, [0, 200, 400, 600]),
        (0, 0, [0, 0.2, 0.4, 0.6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_long_curves_are_averaged_and_keep_their_end() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_001)]
    few = thin(points, 240)
    assert len(few) <= 240
    assert few[-1] == points[-1]
    assert all(0.35 < y < 0.65 for _, y in few[:-1])
    assert thin(points[:50], 240) == points[:50]


def test_a_chart_maps_values_to_places() -> None:
    drawn = line_chart(
        [Line("up", "red", [(0, 0), (10, 1)])], "label", "x", marks=[Mark(5, "here", [(5, 0.5)])], size=(360, 220)
    )
    path = re.search(r'points="([^"]+)"', drawn)
    assert path is not None
    assert path.group(1) == "46.0,186.0 346.0,12.0"
    assert '<circle class="dot" cx="196.0" cy="99.0"' in drawn
    assert "No finite value" in line_chart([Line("none", "red", [(0, float("nan"))])], "label", "x")
    assert "<circle" in line_chart([Line("one", "red", [(3, 0.5)])], "label", "x")


def test_bars_are_clipped_and_leave_gaps_for_missing_values() -> None:
    drawn = bars([("red", 0.25), ("blue", None), ("green", 1.7)], "three")
    assert re.findall(r'y="(\d+)" width="([\d.]+)%"', drawn) == [("0", "25.00"), ("18", "100.00")]
    assert 'aria-label="three"' in drawn


def test_words_for_numbers() -> None:
    assert [short(v) for v in (0, 0.25, 1500, 2.5e6, 0.0001, 0.00025)] == [
        "0",
        "0.25",
        "1.5k",
        "2.5M",
        "1e-4",
        "2.5e-4",
    ]
    assert [duration(v) for v in (8.25, 185, 4320, None)] == ["8.2 s", "3 min 05 s", "1 h 12 min", "–"]
    assert [memory(v) for v in (850.4, 1434, None)] == ["850 MB", "1.4 GB", "–"]
    assert [percent(v) for v in (0.468, float("nan"), None)] == ["46.8", "–", "–"]
    assert moment("2026-11-21T03:58:40+00:00") == "21 November 2026, 03:58 UTC"
    assert threshold({"threshold": 0.4, "threshold_from": "train_aug"}) == "threshold 0.40, chosen on train_aug masks"
    assert threshold({"threshold": None}) == ""
